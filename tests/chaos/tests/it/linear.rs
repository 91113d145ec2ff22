//! Many clients at a few files while processes are killed and stopped: what they saw must be what one
//! store, doing one thing after the other, can have answered.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use coffer_chaos::Cluster;
use coffer_client::{ClientError, PutOptions, Session, Silent};
use coffer_history::{Action, Numbers, Operation, check};
use coffer_model::name::RemotePath;
use rustix::process::Signal;

const CLIENTS: usize = 8;
const REGISTERS: usize = 3;
const OPERATIONS: usize = 80;

/// `COFFER_CHAOS_SEED` repeats what a run asked for and did; how the processes interleave is theirs.
fn seed() -> u64 {
    let given = std::env::var("COFFER_CHAOS_SEED").ok().and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        u64::try_from(now.as_millis()).unwrap()
    })
}

fn path(register: usize) -> RemotePath {
    format!("/alice/register-{register}").parse().unwrap()
}

async fn write(session: &Session, register: usize, value: u64) -> Result<u64, ClientError> {
    // Larger than what travels with the op, so that storage nodes have a part in it.
    let mut content = vec![b'.'; 6000];
    content[..8].copy_from_slice(&value.to_le_bytes());
    let source = Box::new(std::io::Cursor::new(content));
    let name = std::path::Path::new("-");
    let options = PutOptions::standard();
    Ok(session.put(source, name, &path(register), &options, &Silent).await?.version)
}

async fn read(
    session: &Session,
    register: usize,
    version: Option<u64>,
) -> Result<(u64, u64), ClientError> {
    let mut reader = session.open(&path(register), version).await?;
    let version = reader.version();
    let first = reader.next().await?.unwrap();
    Ok((u64::from_le_bytes(first[..8].try_into().unwrap()), version))
}

/// What one client does, with the clock all share.
async fn client(
    session: Session,
    number: usize,
    seed: u64,
    clock: Instant,
    values: Arc<AtomicU64>,
) -> Vec<Operation> {
    let now = || u64::try_from(clock.elapsed().as_nanos()).unwrap();
    let mut numbers = Numbers::of(seed ^ (number as u64) << 32);
    let mut done = Vec::with_capacity(OPERATIONS);
    for _ in 0..OPERATIONS {
        let register = numbers.below(REGISTERS as u64) as usize;
        let began = now();
        let (ended, action) = if numbers.below(2) == 0 {
            let value = values.fetch_add(1, Ordering::Relaxed);
            match write(&session, register, value).await {
                Ok(version) => (Some(now()), Action::Write { value, version: Some(version) }),
                Err(error) => {
                    eprintln!("client {number}: a write failed: {error}");
                    (None, Action::Write { value, version: None })
                }
            }
        } else {
            match read(&session, register, None).await {
                Ok((value, version)) => (Some(now()), Action::Read { value, version }),
                Err(error) => {
                    eprintln!("client {number}: a read failed: {error}");
                    continue;
                }
            }
        };
        done.push(Operation { client: number, register, began, ended, action });
    }
    done
}

/// Kills and stops processes, one at a time, until told to end. What died is started again.
fn disturb(cluster: &Cluster, seed: u64, done: &AtomicBool) -> usize {
    let mut numbers = Numbers::of(!seed);
    let victims = ["metadata-1", "metadata-2", "metadata-3", "storage-1", "storage-2", "storage-3"];
    let mut disturbed = 0;
    while !done.load(Ordering::Relaxed) {
        let victim = victims[numbers.below(victims.len() as u64) as usize];
        let pause = Duration::from_millis(300 + numbers.below(900));
        if numbers.below(2) == 0 {
            // It may be just dead, of the time before.
            let _ = cluster.kill(victim);
        } else if cluster.signal(victim, Signal::STOP).is_ok() {
            thread::sleep(pause);
            let _ = cluster.signal(victim, Signal::CONT);
        }
        disturbed += 1;
        // Time to come back, so that there is one fault at a time.
        thread::sleep(pause + Duration::from_secs(2));
    }
    disturbed
}

/// Proves S6, S7, S12, S23 of docs/semantics.md.
#[test]
fn what_clients_see_under_faults_is_linearizable() {
    let seed = seed();
    println!("COFFER_CHAOS_SEED={seed}");
    let cluster = Cluster::start_with(1).unwrap();
    cluster.coffer("alice", &["register", "alice"]).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let values = Arc::new(AtomicU64::new(1));
    let clock = Instant::now();
    let mut operations: Vec<Operation> = Vec::new();
    let sessions: Vec<Session> = runtime.block_on(async {
        let mut sessions = Vec::new();
        for number in 0..CLIENTS {
            let client = format!("client-{number}");
            sessions.push(cluster.log_in("alice", &client).await.unwrap());
        }
        for register in 0..REGISTERS {
            let now = || Some(u64::try_from(clock.elapsed().as_nanos()).unwrap());
            let (began, value) = (now().unwrap(), values.fetch_add(1, Ordering::Relaxed));
            let version = Some(write(&sessions[0], register, value).await.unwrap());
            let action = Action::Write { value, version };
            operations.push(Operation { client: 0, register, began, ended: now(), action });
        }
        sessions
    });
    let ended = AtomicBool::new(false);
    let disturbed = thread::scope(|scope| {
        let disturbing = scope.spawn(|| disturb(&cluster, seed, &ended));
        runtime.block_on(async {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|number| {
                    let (session, values) = (sessions[number].clone(), Arc::clone(&values));
                    tokio::spawn(client(session, number, seed, clock, values))
                })
                .collect();
            for client in clients {
                operations.extend(client.await.unwrap());
            }
        });
        ended.store(true, Ordering::Relaxed);
        disturbing.join().unwrap()
    });

    // What is there at the end, read by somebody who has seen nothing yet.
    let last: BTreeMap<usize, BTreeMap<u64, u64>> = runtime.block_on(async {
        let session = cluster.log_in("alice", "last").await.unwrap();
        let mut last = BTreeMap::new();
        for register in 0..REGISTERS {
            let mut versions = BTreeMap::new();
            for version in session.versions(&path(register)).await.unwrap() {
                let (value, read) = read(&session, register, Some(version.version)).await.unwrap();
                assert_eq!(read, version.version);
                versions.insert(version.version, value);
            }
            last.insert(register, versions);
        }
        last
    });
    let violations = check(&operations, &last);
    for violation in &violations {
        eprintln!("{violation}");
    }
    assert!(violations.is_empty(), "{} violations, COFFER_CHAOS_SEED={seed}", violations.len());
    // One fault at a time is to cost nobody an operation.
    let unknown = operations.iter().filter(|operation| operation.ended.is_none()).count();
    let expected = CLIENTS * OPERATIONS + REGISTERS;
    assert_eq!((operations.len(), unknown), (expected, 0), "COFFER_CHAOS_SEED={seed}");
    assert!(disturbed > 0);
}
