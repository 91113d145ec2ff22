//! Where passwords come from: a file, the environment, or a prompt. Never an argument, for those are
//! there for every other process to see.

use std::io::{IsTerminal, Read};

use anyhow::{Context, Result, bail};
use zeroize::Zeroizing;

use crate::args::PasswordArgs;

const VARIABLE: &str = "COFFER_PASSWORD";
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Reads the password; with `twice` a prompt asks again, for a new one.
pub(crate) fn read(args: &PasswordArgs, twice: bool) -> Result<Zeroizing<String>> {
    if let Some(path) = &args.password_file {
        let mut text = Zeroizing::new(String::new());
        let file = std::fs::File::open(path)
            .with_context(|| format!("cannot read the password file {}", path.display()))?;
        file.take(FILE_BYTES_MAX)
            .read_to_string(&mut text)
            .with_context(|| format!("cannot read the password file {}", path.display()))?;
        let line = text.lines().next().unwrap_or_default();
        return Ok(Zeroizing::new(line.to_owned()));
    }
    if let Ok(password) = std::env::var(VARIABLE) {
        return Ok(Zeroizing::new(password));
    }
    if !std::io::stdin().is_terminal() {
        bail!("no password: give --password-file or ${VARIABLE}, or run this in a terminal");
    }
    let password = Zeroizing::new(rpassword::prompt_password("Password: ")?);
    if twice {
        let again = Zeroizing::new(rpassword::prompt_password("The same again: ")?);
        if *password != *again {
            bail!("the two passwords differ; nothing was done");
        }
    }
    Ok(password)
}
