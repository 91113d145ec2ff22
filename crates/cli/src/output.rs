//! What commands print: text for people, JSON for programs.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::fmt::{Display, Write as _};
use std::io::{self, BufRead as _, Read as _, Write as _};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::CommandFactory;
use coffer_client::{EntryInfo, Stat, VersionInfo};
use coffer_model::object::Kind;
use serde_json::{Value, json};

use crate::args::Cli;
use crate::status::size_text;

/// The longest answer to a question that is read.
const ANSWER_BYTES_MAX: u64 = 64;

/// An error with its causes, on one line.
pub(crate) fn chain(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Tells why the command failed.
pub(crate) fn report(error: &anyhow::Error) {
    eprintln!("coffer: {}", chain(error));
}

/// One line for people.
pub(crate) fn line(text: &str) {
    print(text);
}

/// One line that is no result.
pub(crate) fn remark(text: &str) {
    eprintln!("{text}");
}

/// Asks whoever sits at the terminal; anything but yes is no.
pub(crate) fn asked(question: &str) -> io::Result<bool> {
    eprint!("{question} (yes/no) ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().lock().take(ANSWER_BYTES_MAX).read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "yes"))
}

/// A number of bytes, for reading and exactly.
pub(crate) fn bytes_text(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    format!("{} ({bytes} bytes)", size_text(bytes))
}

/// What makes a shell complete our commands.
pub(crate) fn completion(shell: clap_complete::Shell) {
    clap_complete::generate(shell, &mut Cli::command(), "coffer", &mut std::io::stdout());
}

/// One manual page for each command.
pub(crate) fn man_pages(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    clap_mangen::generate_to(Cli::command(), dir)
        .with_context(|| format!("cannot write into {}", dir.display()))?;
    Ok(())
}

/// A value for programs.
pub(crate) fn json(value: &Value) {
    print(value);
}

/// Prints a line. Whoever read may have had enough, as with `| head`; what is being done goes on.
fn print(text: impl Display) {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            // A result that nobody gets must not look like success.
            eprintln!("coffer: cannot print: {error}");
            std::process::exit(1);
        }
        _ => {}
    }
}

pub(crate) const fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Directory => "directory",
        Kind::File => "file",
        Kind::Symlink => "symlink",
        Kind::Fifo => "fifo",
        Kind::Device => "device",
    }
}

/// What stands behind a name, so that its kind shows.
pub(crate) const fn entry_mark(kind: Kind) -> &'static str {
    match kind {
        Kind::Directory => "/",
        Kind::Symlink => "@",
        _ => "",
    }
}

pub(crate) fn stat_json(stat: &Stat) -> Value {
    json!({
        "inode": stat.inode.map(|inode| inode.to_string()),
        "kind": kind_name(stat.kind),
        "mode": format!("{:04o}", stat.mode),
        "size": stat.length,
        "version": stat.version,
        "mtime_ns": stat.mtime_ns,
        "target": stat.target.as_ref().map(|target| String::from_utf8_lossy(target).into_owned()),
    })
}

pub(crate) fn entry_json(entry: &EntryInfo) -> Value {
    let mut value = stat_json(&entry.stat);
    if let Value::Object(fields) = &mut value {
        fields.insert("name".to_owned(), entry.name.as_str().into());
        fields.insert("deleted".to_owned(), entry.deleted.into());
    }
    value
}

pub(crate) fn entry_line(entry: &EntryInfo, long: bool) -> String {
    let mut text = String::new();
    if long {
        let letter = match entry.stat.kind {
            Kind::Directory => 'd',
            Kind::Symlink => 'l',
            _ => '-',
        };
        let (mode, size) = (mode_letters(entry.stat.mode), entry.stat.length);
        // Writing to a String cannot fail.
        let _ = write!(text, "{letter}{mode} {size:>12} {} ", time_text(entry.stat.mtime_ns));
    }
    text += entry.name.as_str();
    text += entry_mark(entry.stat.kind);
    if let Some(target) = entry.stat.target.as_ref().filter(|_| long) {
        let _ = write!(text, " -> {}", String::from_utf8_lossy(target));
    }
    if entry.deleted {
        text += " (deleted)";
    }
    text
}

pub(crate) fn stat_text(path: &str, stat: &Stat) -> String {
    let mut text = format!("{path}\n  kind      {}\n", kind_name(stat.kind));
    let _ = writeln!(text, "  mode      {:04o} ({})", stat.mode, mode_letters(stat.mode));
    let _ = writeln!(text, "  changed   {}", time_text(stat.mtime_ns));
    if stat.kind != Kind::Directory {
        let _ = writeln!(text, "  size      {} bytes", stat.length);
        let _ = writeln!(text, "  version   {}", stat.version);
    }
    if let Some(class) = stat.class {
        let _ = writeln!(text, "  slots of  {} KiB", class.bytes() / 1024);
    }
    if let Some(target) = &stat.target {
        let _ = writeln!(text, "  points at {}", String::from_utf8_lossy(target));
    }
    if let Some(inode) = stat.inode {
        let _ = write!(text, "  inode     {inode}");
    }
    text
}

pub(crate) fn version_json(version: &VersionInfo) -> Value {
    json!({
        "version": version.version,
        "size": version.length,
        "mtime_ns": version.mtime_ns,
        "committed_ms": version.committed.unix_ms(),
        "restored": version.restored,
    })
}

pub(crate) fn version_line(version: &VersionInfo) -> String {
    let committed = i64::try_from(version.committed.unix_ms()).unwrap_or(i64::MAX);
    let mut text = format!(
        "{:>6} {:>12} bytes  {}",
        version.version,
        version.length,
        time_text(committed.saturating_mul(1_000_000))
    );
    if let Some(restored) = version.restored {
        let _ = write!(text, "  version {restored} again");
    }
    text
}

fn mode_letters(mode: u32) -> String {
    (0..9)
        .rev()
        .map(|bit| if mode >> bit & 1 == 1 { ['x', 'w', 'r'][bit % 3] } else { '-' })
        .collect()
}

/// UTC, to the second.
pub(crate) fn time_text(unix_ns: i64) -> String {
    let seconds = unix_ns.div_euclid(1_000_000_000);
    let (day, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(day);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

/// The calendar date of a day counted from 1970-01-01 (Howard Hinnant, "chrono-compatible low-level
/// date algorithms": years are taken to begin in March, so that the leap day comes last).
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// A log time as text.
pub(crate) fn log_time_text(unix_ms: u64) -> String {
    let since = UNIX_EPOCH + Duration::from_millis(unix_ms);
    let nanos = since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    time_text(i64::try_from(nanos).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_modes_read_as_people_expect() {
        assert_eq!(time_text(0), "1970-01-01 00:00:00Z");
        assert_eq!(time_text(951_782_400_000_000_000), "2000-02-29 00:00:00Z");
        assert_eq!(time_text(1_795_242_355_000_000_000), "2026-11-21 06:25:55Z");
        assert_eq!(time_text(-1), "1969-12-31 23:59:59Z");
        assert_eq!(mode_letters(0o754), "rwxr-xr--");
    }
}
