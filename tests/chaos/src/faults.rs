//! Machines that fail the process on them: a clock that is off, a volume that is full, a sync that fails.
//!
//! The process is a real one, and so are its files: what `faults.c` puts between it and the C library answers
//! in the system's place.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

const SOURCE: &str = include_str!("faults.c");

/// Settings of a process's environment.
pub type Settings = Vec<(String, String)>;

/// A machine that can fail.
pub struct Machine {
    dir: TempDir,
}

impl Machine {
    /// Compiles what goes between. A C compiler is there: Rust links with it.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("coffer-faults").tempdir()?;
        let source = dir.path().join("faults.c");
        fs::write(&source, SOURCE)?;
        let output = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&dir.path().join("faults.so"), &source])
            .arg("-ldl")
            .output()
            .context("cannot run the C compiler `cc`")?;
        if !output.status.success() {
            bail!("faults.c does not compile: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(Self { dir })
    }

    fn preload(&self) -> (String, String) {
        let library = self.dir.path().join("faults.so");
        ("LD_PRELOAD".to_owned(), library.display().to_string())
    }

    fn switch(&self) -> PathBuf {
        self.dir.path().join("switch")
    }

    /// The clock of the day is off by so much.
    pub fn clock(&self, off_ms: i64) -> Settings {
        vec![self.preload(), ("COFFER_FAULTS_CLOCK_MS".to_owned(), off_ms.to_string())]
    }

    /// What lies in this folder fails when [`Self::fail`] says so.
    pub fn volume(&self, folder: &Path) -> Settings {
        vec![
            self.preload(),
            ("COFFER_FAULTS_FOLDER".to_owned(), folder.display().to_string()),
            ("COFFER_FAULTS_SWITCH".to_owned(), self.switch().display().to_string()),
        ]
    }

    /// From now on the volume fails in this way, or no more.
    pub fn fail(&self, how: Option<Failure>) -> Result<()> {
        let text = match how {
            Some(Failure::Full) => "full",
            Some(Failure::Sync) => "sync",
            None => "no",
        };
        fs::write(self.switch(), text).context("cannot turn the switch")
    }
}

/// How a volume fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Every write: no space is left.
    Full,
    /// Every sync: an input/output error.
    Sync,
}
