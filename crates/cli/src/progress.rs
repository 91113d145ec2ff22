//! Progress for people: a bar on a terminal, a line every ten seconds elsewhere. It goes to standard
//! error, so that standard output stays the program's.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

const LINE_EVERY: Duration = Duration::from_secs(10);
const MIB: f64 = 1024.0 * 1024.0;

/// Counts what is done and shows it.
pub(crate) struct Progress {
    verb: &'static str,
    began: Instant,
    files_done: AtomicU64,
    bytes_done: AtomicU64,
    files_all: AtomicU64,
    bytes_all: AtomicU64,
    view: View,
}

enum View {
    Bar(ProgressBar),
    Lines(Mutex<Instant>),
    Nothing,
}

impl Progress {
    /// `verb` is what is being done: "put", "get".
    pub(crate) fn new(verb: &'static str, quiet: bool) -> Self {
        let view = if quiet {
            View::Nothing
        } else if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(0);
            let style = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
            // A template of ours is valid; without it indicatif's default is shown.
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            View::Bar(bar)
        } else {
            View::Lines(Mutex::new(Instant::now()))
        };
        Self {
            verb,
            began: Instant::now(),
            files_done: AtomicU64::new(0),
            bytes_done: AtomicU64::new(0),
            files_all: AtomicU64::new(0),
            bytes_all: AtomicU64::new(0),
            view,
        }
    }

    /// More is to be done than was known.
    pub(crate) fn add_total(&self, files: u64, bytes: u64) {
        self.files_all.fetch_add(files, Ordering::Relaxed);
        let all = self.bytes_all.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let View::Bar(bar) = &self.view {
            bar.set_length(all);
        }
    }

    /// Some of it is done.
    pub(crate) fn advance(&self, files: u64, bytes: u64) {
        let files_done = self.files_done.fetch_add(files, Ordering::Relaxed) + files;
        let bytes_done = self.bytes_done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        match &self.view {
            View::Bar(bar) => {
                bar.set_position(bytes_done);
                let all = self.files_all.load(Ordering::Relaxed);
                bar.set_message(format!("{} {files_done}/{all} files", self.verb));
            }
            View::Lines(last) => {
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                if last.elapsed() >= LINE_EVERY {
                    *last = Instant::now();
                    self.line(files_done, bytes_done);
                }
            }
            View::Nothing => {}
        }
    }

    fn line(&self, files: u64, bytes: u64) {
        let seconds = self.began.elapsed().as_secs_f64().max(0.001);
        let all_files = self.files_all.load(Ordering::Relaxed);
        let all_bytes = self.bytes_all.load(Ordering::Relaxed);
        let rate = as_f64(bytes) / seconds;
        let left = if rate > 0.0 { as_f64(all_bytes.saturating_sub(bytes)) / rate } else { 0.0 };
        // Nobody may be listening; that is no reason to stop.
        let _ = writeln!(
            std::io::stderr(),
            "{}: {files} of {all_files} files, {:.0} of {:.0} MiB, {:.1} MiB/s, {left:.0} s left",
            self.verb,
            as_f64(bytes) / MIB,
            as_f64(all_bytes) / MIB,
            rate / MIB,
        );
    }

    /// Prints something else, with the bar out of the way.
    pub(crate) fn aside(&self, print: impl FnOnce()) {
        match &self.view {
            View::Bar(bar) => bar.suspend(print),
            View::Lines(_) | View::Nothing => print(),
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        if let View::Bar(bar) = &self.view {
            bar.finish_and_clear();
        }
    }
}

#[allow(clippy::cast_precision_loss)] // shown with a few digits only
fn as_f64(number: u64) -> f64 {
    number as f64
}
