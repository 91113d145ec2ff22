//! How much memory the process has, for logs and metrics.

use std::fs;
use std::io;

/// The resident set of this process, in bytes, as the kernel counts it (it may lag by a few pages
/// per core).
pub fn resident_bytes() -> io::Result<u64> {
    parse_resident(&fs::read_to_string("/proc/self/status")?).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "/proc/self/status has no VmRSS in kB")
    })
}

/// `statm` would be shorter but counts in pages, whose size is one more thing to ask for.
fn parse_resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_line_is_found_and_read() {
        for (status, expected) in [
            ("Name:\tx\nVmRSS:\t   1204 kB\nThreads:\t1\n", Some(1204 * 1024)),
            ("VmRSS:\t 12 pages\n", None),
            ("VmRSS:\t99999999999999999999 kB\n", None),
            ("", None),
        ] {
            assert_eq!(parse_resident(status), expected, "{status:?}");
        }
        assert!(resident_bytes().unwrap() > 100 * 1024);
    }
}
