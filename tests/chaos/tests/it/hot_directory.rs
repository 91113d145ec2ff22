//! Two clients and 64 writers in one directory: nothing is lost, and nobody sees half a rename.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coffer_chaos::{Cluster, coffer_binary};
use coffer_client::{ClientError, PutOptions, Session, Silent};
use coffer_model::name::RemotePath;
use serde_json::Value;

const WRITERS: usize = 64;
const ROUNDS: usize = 5;

fn path(text: &str) -> RemotePath {
    text.parse().unwrap()
}

async fn put(session: &Session, to: &str, content: String) -> Result<u64, ClientError> {
    let reader = Box::new(std::io::Cursor::new(content.into_bytes()));
    let name = std::path::Path::new("-");
    let options = PutOptions::standard();
    Ok(session.put(reader, name, &path(to), &options, &Silent).await?.version)
}

async fn names(session: &Session) -> BTreeSet<String> {
    let entries = session.list(&path("/alice/hot"), false).await.unwrap();
    let count = entries.len();
    let names: BTreeSet<String> =
        entries.into_iter().map(|entry| entry.name.as_str().to_owned()).collect();
    assert_eq!(names.len(), count, "a name was listed twice");
    names
}

/// What one writer does: its token goes back and forth between two names, it writes a file of its
/// own again and again, makes one that it deletes, and writes the file all share.
async fn write(session: Session, writer: usize) -> Vec<u64> {
    let mut shared_versions = Vec::new();
    let (a, b) = (format!("/alice/hot/token-{writer}-a"), format!("/alice/hot/token-{writer}-b"));
    for round in 0..ROUNDS {
        let (from, to) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        session.rename(&path(from), &path(to)).await.unwrap();
        let own = format!("/alice/hot/own-{writer}");
        let version = put(&session, &own, format!("{writer}/{round}")).await.unwrap();
        assert_eq!(version, round as u64 + 1);
        let passing = format!("/alice/hot/passing-{writer}-{round}");
        put(&session, &passing, "gone soon".to_owned()).await.unwrap();
        session.remove(&path(&passing), false).await.unwrap();
        let version =
            put(&session, "/alice/hot/shared", format!("{writer}/{round}")).await.unwrap();
        shared_versions.push(version);
    }
    shared_versions
}

/// Proves S1, S9, S11, S12, S14 of docs/semantics.md.
#[test]
fn two_clients_with_64_writers_lose_nothing_and_see_no_half_rename() {
    let cluster = Cluster::start().unwrap();
    cluster.coffer("alice", &["register", "alice"]).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let log_in = async |client| cluster.log_in("alice", client).await.unwrap();
        let sessions = [log_in("first").await, log_in("second").await];
        sessions[0].mkdir(&path("/alice/hot"), false).await.unwrap();
        for writer in 0..WRITERS {
            let token = format!("/alice/hot/token-{writer}-a");
            put(&sessions[0], &token, format!("token {writer}")).await.unwrap();
        }
        let done = Arc::new(AtomicBool::new(false));
        let watcher = tokio::spawn({
            let (session, done) = (sessions[1].clone(), Arc::clone(&done));
            async move {
                let mut looks = 0;
                while !done.load(Ordering::Relaxed) {
                    let names = names(&session).await;
                    for writer in 0..WRITERS {
                        let at =
                            ["a", "b"].map(|end| names.contains(&format!("token-{writer}-{end}")));
                        assert!(at[0] != at[1], "token {writer} is at {at:?}");
                    }
                    looks += 1;
                }
                looks
            }
        });
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| tokio::spawn(write(sessions[writer % 2].clone(), writer)))
            .collect();
        let mut shared_versions = BTreeSet::new();
        for writer in writers {
            shared_versions.extend(writer.await.unwrap());
        }
        done.store(true, Ordering::Relaxed);
        assert!(watcher.await.unwrap() > 0);

        // Every write of the shared file is a version of its own, and all are there.
        let expected: BTreeSet<u64> = (1..=(WRITERS * ROUNDS) as u64).collect();
        assert_eq!(shared_versions, expected);
        let versions = sessions[1].versions(&path("/alice/hot/shared")).await.unwrap();
        assert_eq!(versions.len(), WRITERS * ROUNDS);

        let end = if ROUNDS % 2 == 1 { "b" } else { "a" };
        let mut expected: BTreeSet<String> = BTreeSet::from(["shared".to_owned()]);
        for writer in 0..WRITERS {
            expected.insert(format!("own-{writer}"));
            expected.insert(format!("token-{writer}-{end}"));
        }
        for session in &sessions {
            assert_eq!(names(session).await, expected);
        }
        for writer in 0..WRITERS {
            let own = path(&format!("/alice/hot/own-{writer}"));
            let content = sessions[0].read_range(&own, None, 0, 100).await.unwrap();
            assert_eq!(content, format!("{writer}/{}", ROUNDS - 1).into_bytes());
        }
    });
}

/// Goal: a directory of very many entries is listed in pages, each entry on one of them, while others create
/// and delete in it. Method: the measurement of this does it with a cluster of its own, and fails where an
/// entry is on no page or on two; here with fewer entries.
///
/// Proves S9 of docs/semantics.md.
#[test]
fn what_is_there_throughout_is_on_exactly_one_page_of_a_long_listing() {
    let measured = Command::new(coffer_binary().unwrap())
        .args(["bench", "listing", "--entries", "20000", "--json"])
        .output()
        .unwrap();
    assert!(measured.status.success(), "{}", String::from_utf8_lossy(&measured.stderr));
    let measured: Value = serde_json::from_slice(&measured.stdout).unwrap();
    assert!(measured["pages"].as_u64() >= Some(20), "{measured}");
    assert!(measured["changes_meanwhile"].as_u64() > Some(0), "{measured}");
}
