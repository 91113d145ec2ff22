//! Where passwords come from: a file, the environment, or a prompt. Never an argument, for those are
//! there for every other process to see.

use std::io::{IsTerminal, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};
use zeroize::Zeroizing;

use crate::args::PasswordArgs;

const VARIABLE: &str = "COFFER_PASSWORD";
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Reads a password that takes another's place. $COFFER_PASSWORD is the old one, so it is not asked.
pub(crate) fn read_new(file: Option<&Path>) -> Result<Zeroizing<String>> {
    match file {
        Some(path) => from_file(path),
        None => prompt("New password: ", true),
    }
}

/// Reads a recovery code.
pub(crate) fn read_code(file: Option<&Path>) -> Result<Zeroizing<String>> {
    match file {
        Some(path) => from_file(path),
        None => prompt("Recovery code: ", false),
    }
}

/// Reads the password; with `twice` a prompt asks again, for a new one.
pub(crate) fn read(args: &PasswordArgs, twice: bool) -> Result<Zeroizing<String>> {
    if let Some(path) = &args.password_file {
        return from_file(path);
    }
    if let Ok(password) = std::env::var(VARIABLE) {
        return Ok(Zeroizing::new(password));
    }
    prompt("Password: ", twice)
}

fn from_file(path: &Path) -> Result<Zeroizing<String>> {
    let unreadable = || format!("cannot read {}", path.display());
    let mut text = Zeroizing::new(String::new());
    let file = std::fs::File::open(path).with_context(unreadable)?;
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).with_context(unreadable)?;
    let line = text.lines().next().unwrap_or_default();
    Ok(Zeroizing::new(line.to_owned()))
}

fn prompt(text: &str, twice: bool) -> Result<Zeroizing<String>> {
    if !std::io::stdin().is_terminal() {
        bail!(
            "nothing to read it from: give it in a file (a password also in ${VARIABLE}), or run this in a terminal"
        );
    }
    let password = Zeroizing::new(rpassword::prompt_password(text)?);
    if twice {
        let again = Zeroizing::new(rpassword::prompt_password("The same again: ")?);
        if *password != *again {
            bail!("the two passwords differ; nothing was done");
        }
    }
    Ok(password)
}
