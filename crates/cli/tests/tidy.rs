//! The walls between our crates, and a few rules of the tree that no compiler checks.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Which of our crates may use which others (ARCHITECTURE.md, "Walls").
const ALLOWED: &[(&str, &[&str])] = &[
    ("coffer-model", &[]),
    ("coffer-crypto", &["coffer-model"]),
    ("coffer-metadata-core", &["coffer-model"]),
    ("coffer-proto", &["coffer-model"]),
    ("coffer-service", &["coffer-model"]),
    ("coffer-join", &["coffer-model", "coffer-proto", "coffer-service"]),
    (
        "coffer-authority",
        &["coffer-model", "coffer-proto", "coffer-service", "coffer-metadata-core", "coffer-join"],
    ),
    ("coffer-operator", &[]),
    ("coffer-storage-node", &["coffer-model", "coffer-proto", "coffer-service", "coffer-join"]),
    (
        "coffer-metadata-raft",
        &["coffer-model", "coffer-proto", "coffer-service", "coffer-metadata-core", "coffer-join"],
    ),
    ("coffer-client", &["coffer-model", "coffer-crypto", "coffer-proto", "coffer-service"]),
    ("coffer-gateway", &["coffer-model", "coffer-proto", "coffer-service", "coffer-client"]),
];

/// Foreign crates that some of ours must not use.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("coffer-model", &["tokio", "tonic", "prost", "rand", "getrandom"]),
    ("coffer-crypto", &["tokio", "tonic"]),
    ("coffer-metadata-core", &["tokio", "tonic", "openraft", "rand", "getrandom"]),
    ("coffer-client", &["openraft", "rocksdb"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

/// Our crates with what they depend on, tests left out.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .map(|package| {
            let all = package["dependencies"].as_array().unwrap();
            let normal = all.iter().filter(|it| it["kind"].is_null());
            let names = normal.map(|it| it["name"].as_str().unwrap().to_owned()).collect();
            (package["name"].as_str().unwrap().to_owned(), names)
        })
        .collect()
}

#[test]
fn no_crate_reaches_through_a_wall() {
    let dependencies = dependencies();
    for (name, allowed) in ALLOWED {
        for used in &dependencies[*name] {
            let ours = dependencies.contains_key(used);
            assert!(!ours || allowed.contains(&used.as_str()), "{name} must not use {used}");
        }
    }
    for (name, forbidden) in FORBIDDEN {
        for foreign in *forbidden {
            assert!(!dependencies[*name].contains(*foreign), "{name} must not use {foreign}");
        }
    }
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|it| it == "rs") {
            found.push(path);
        }
    }
}

fn all_sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for dir in ["crates", "proto/src", "storage-node", "metadata-raft", "gateway", "tests"] {
        sources(&root().join(dir), &mut found);
    }
    found
}

#[test]
fn every_module_says_what_it_is() {
    for path in all_sources() {
        let is_test = path.components().any(|part| part.as_os_str() == "tests")
            || path.file_name().is_some_and(|name| name == "tests.rs");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(is_test || text.starts_with("//!"), "{} has no header", path.display());
    }
}

#[test]
fn no_io_and_no_clock_where_only_functions_belong() {
    let pure = ["crates/model/src", "crates/metadata-core/src", "crates/crypto/src"];
    for dir in pure {
        let mut found = Vec::new();
        sources(&root().join(dir), &mut found);
        for path in found {
            if path.file_name().is_some_and(|name| name == "tests.rs" || name == "vectors.rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            for word in ["std::fs", "SystemTime", "Instant::now", "HashMap", "std::net"] {
                assert!(!code.contains(word), "{} uses {word}", path.display());
            }
        }
    }
}

/// Plaintext is nowhere in a server but in the files API.
#[test]
fn only_the_files_api_of_the_gateway_uses_the_engine() {
    let mut found = Vec::new();
    sources(&root().join("gateway/src"), &mut found);
    for path in found {
        let inside = path.strip_prefix(root().join("gateway/src")).unwrap();
        let is_files = inside.starts_with("files") || inside == Path::new("files.rs");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(is_files || !text.contains("coffer_client"), "{} uses the engine", path.display());
    }
}

#[test]
fn no_test_is_ignored_and_none_waits_for_luck() {
    for path in all_sources() {
        if path.ends_with("tidy.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains("#[ignore"), "{} ignores a test", path.display());
    }
}

#[test]
fn every_promise_to_users_is_proved_by_a_test_that_names_it() {
    let semantics = std::fs::read_to_string(root().join("docs/semantics.md")).unwrap();
    let promises: BTreeSet<String> = semantics
        .lines()
        .filter_map(|line| line.strip_prefix("**S")?.split_once('.'))
        .map(|(number, _)| format!("S{number}"))
        .collect();
    assert!(promises.len() > 20, "{promises:?}");
    let mut proved = BTreeSet::new();
    for path in all_sources() {
        let text = std::fs::read_to_string(&path).unwrap();
        for line in text.lines().filter_map(|line| line.trim().strip_prefix("/// Proves ")) {
            let Some((numbers, _)) = line.split_once(" of docs/semantics.md") else { continue };
            proved.extend(numbers.split(", ").map(str::to_owned));
        }
    }
    let unproved: Vec<&String> = promises.difference(&proved).collect();
    assert!(unproved.is_empty(), "no test names {unproved:?}");
    let unknown: Vec<&String> = proved.difference(&promises).collect();
    assert!(unknown.is_empty(), "{unknown:?} are not in docs/semantics.md");
}

/// Whether the literal that follows this code is the reason of a refusal.
fn begins_a_reason(before: &str) -> bool {
    let before = before.trim_end();
    let ends = ["code,", "invalid(", "refused(", "unauthenticated("];
    let after_a_code = before
        .strip_suffix(',')
        .is_some_and(|before| before.trim_end_matches(char::is_alphanumeric).ends_with("Code::"));
    after_a_code || ends.iter().any(|end| before.ends_with(end)) || {
        let (pattern, arrow) = before.split_at(before.len().saturating_sub(2));
        arrow == "=>" && pattern.lines().last().is_some_and(|line| line.contains("TicketError::"))
    }
}

/// Goal: whoever watches a cluster knows every reason there is. Method: the literals that servers answer
/// with are looked for in their code, and compared with the lists and the page, both ways.
#[test]
fn every_reason_of_a_refusal_is_listed() {
    let mut answered = BTreeSet::new();
    let mut found = Vec::new();
    for dir in [
        "crates/authority/src",
        "crates/service/src",
        "storage-node/src",
        "metadata-raft/src",
        "gateway/src",
    ] {
        sources(&root().join(dir), &mut found);
    }
    found.retain(|path| {
        !path.components().any(|part| part.as_os_str() == "tests") && !path.ends_with("tests.rs")
    });
    for path in found {
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for (at, _) in code.match_indices('"') {
            let literal = code[at + 1..].split('"').next().unwrap();
            let is_name = literal.starts_with(|first: char| first.is_ascii_uppercase())
                && literal.chars().all(|it| it.is_ascii_uppercase() || it == '_');
            if is_name && begins_a_reason(&code[..at]) {
                answered.insert(literal.to_owned());
            }
        }
    }
    // It is a constant, for clients look for it as well.
    answered.insert(coffer_model::session::PROOF_EXPIRED.to_owned());
    assert!(answered.contains("TOO_SLOW") && answered.len() > 100, "{answered:?}");
    let listed = coffer_proto::REFUSALS.iter().chain(&coffer_proto::OTHER_REASONS);
    let listed: BTreeSet<String> = listed.map(|reason| (*reason).to_owned()).collect();
    let unlisted: Vec<&String> = answered.difference(&listed).collect();
    assert!(unlisted.is_empty(), "proto/src/lib.rs does not list {unlisted:?}");
    let unused: Vec<&String> = listed.difference(&answered).collect();
    assert!(unused.is_empty(), "nothing answers {unused:?}");
    let page = std::fs::read_to_string(root().join("docs/operations.md")).unwrap();
    for reason in coffer_proto::REFUSALS {
        assert!(page.contains(&format!("`{reason}`")), "docs/operations.md does not name {reason}");
    }
}
