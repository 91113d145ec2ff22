//! How much memory the process has, and how much it may have.
//!
//! In a container a process is ended by the kernel when it takes more than its control group may have, so
//! what is kept only for speed is made to fit ([`cache_bytes`]).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// With this much memory or more, caches have their standard size, in bytes.
const ROOMY: u64 = 1 << 30;
/// However little memory there is, a cache keeps this part of its standard size.
const LEAST_PART: u64 = 8;

/// The size for a cache whose standard size is given, both in bytes: less where the control groups of the
/// process allow less than 1 GiB.
pub fn cache_bytes(standard: usize) -> usize {
    scaled(standard, limit_bytes())
}

fn scaled(standard: usize, limit: Option<u64>) -> usize {
    let Some(limit) = limit.filter(|limit| *limit < ROOMY) else { return standard };
    let wide = u64::try_from(standard).unwrap_or(u64::MAX);
    let part = u128::from(wide) * u128::from(limit) / u128::from(ROOMY);
    let size = u64::try_from(part).unwrap_or(wide).max(wide / LEAST_PART);
    usize::try_from(size).unwrap_or(standard)
}

/// What the control groups of this process allow it, in bytes; none where they set no bound. See
/// "Memory" in the kernel's `cgroup-v1` and `cgroup-v2` documents.
pub fn limit_bytes() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    limit_below(Path::new("/sys/fs/cgroup"), &groups)
}

/// The least bound of the groups in `groups` and of those above them. In a container the files of the
/// process's own group often lie at the root, whatever the path says.
fn limit_below(mounted: &Path, groups: &str) -> Option<u64> {
    let bounds = groups.lines().filter_map(|line| {
        let (_, named) = line.split_once(':')?;
        let (controllers, path) = named.split_once(':')?;
        let (root, file) = if controllers.is_empty() {
            (mounted.to_owned(), "memory.max")
        } else if controllers.split(',').any(|it| it == "memory") {
            (mounted.join("memory"), "memory.limit_in_bytes")
        } else {
            return None;
        };
        let own = root.join(path.trim_start_matches('/'));
        own.ancestors()
            .take_while(|group| group.starts_with(&root))
            .filter_map(|group| bound(&group.join(file)))
            .min()
    });
    bounds.min()
}

fn bound(file: &PathBuf) -> Option<u64> {
    // `max`, or a number that no machine has, is no bound.
    let bytes: u64 = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    (bytes < 1 << 60).then_some(bytes)
}

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

    type Files<'a> = &'a [(&'a str, &'a str)];

    /// Goal: the bound is found wherever it stands. Method: trees as both versions of control groups lay
    /// them out, seen from the host and from within a container.
    #[test]
    fn the_least_bound_of_all_groups_counts() {
        let cases: &[(Files<'_>, &str, Option<u64>)] = &[
            (
                &[("memory.max", "max"), ("pod/memory.max", "800"), ("pod/a/memory.max", "900")],
                "0::/pod/a\n",
                Some(800),
            ),
            (&[("memory.max", "700")], "0::/not/seen/in/here\n", Some(700)),
            (&[("memory.max", "max")], "0::/\n", None),
            (
                &[
                    ("memory/memory.limit_in_bytes", "9223372036854771712"),
                    ("memory/docker/x/memory.limit_in_bytes", "600"),
                ],
                "5:cpu:/docker/x\n4:memory:/docker/x\n0::/\n",
                Some(600),
            ),
            (
                &[("memory/memory.limit_in_bytes", "9223372036854771712")],
                "4:hugetlb,memory:/\n",
                None,
            ),
            (&[("memory.max", "no number")], "0::/\n", None),
            (&[], "", None),
            (&[("memory.max", "5")], "garbage\n:\n::\n", Some(5)),
        ];
        for (files, groups, expected) in cases {
            let mounted = tempfile::tempdir().unwrap();
            for (path, text) in *files {
                let path = mounted.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, format!("{text}\n")).unwrap();
            }
            assert_eq!(limit_below(mounted.path(), groups), *expected, "{groups:?}");
        }
    }

    #[test]
    fn caches_shrink_with_the_bound_and_not_to_nothing() {
        for (limit, expected) in [
            (None, 64 << 20),
            (Some(2 << 30), 64 << 20),
            (Some(512 << 20), 32 << 20),
            (Some(1 << 20), 8 << 20),
            (Some(0), 8 << 20),
        ] {
            assert_eq!(scaled(64 << 20, limit), expected, "{limit:?}");
        }
    }

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
