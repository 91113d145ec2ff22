//! The version of the state machine: when it is raised, and what a program does that does not have it.

use coffer_metadata_core::state::{CORE_VERSION_FIRST, CORE_VERSION_MAX, meta};

use coffer_model::SUITE;
use coffer_model::bundle::{Author, Header, Payloads, SignedBundle, Submission};
use coffer_model::id::RequestId;
use coffer_model::merkle::{leaf_hash, root};
use coffer_model::signing::Domain;
use coffer_model::time::LogTime;

use super::*;

/// How much later log time has to be for leaders to have looked a few times.
const SOME_LOOKS_MS: u64 = 5000;

/// Every row of a database that nobody has open, as it is.
type Rows = Vec<(String, Vec<u8>, Vec<u8>)>;

fn open_bare(path: &Path) -> (rocksdb::DB, Vec<String>) {
    let options = rocksdb::Options::default();
    let names = rocksdb::DB::list_cf(&options, path).unwrap();
    (rocksdb::DB::open_cf(&options, path, &names).unwrap(), names)
}

fn bare_rows(path: &Path) -> Rows {
    let (db, names) = open_bare(path);
    let mut rows = Rows::new();
    for name in names {
        for row in db.iterator_cf(&db.cf_handle(&name).unwrap(), rocksdb::IteratorMode::Start) {
            let (key, value) = row.unwrap();
            rows.push((name.clone(), key.into(), value.into()));
        }
    }
    rows
}

/// Writes the version in force into the store of a member that does not run.
fn set_version(group: &TestGroup, number: usize, version: u32) {
    let (db, _) = open_bare(&group.configs[number].store_dir());
    db.put_cf(&db.cf_handle("core.meta").unwrap(), meta::CORE_VERSION, encode(&version)).unwrap();
}

fn version_at(group: &TestGroup, number: usize) -> u32 {
    query::core_version(&View::of(&group.running_member(number).store)).unwrap()
}

/// Waits until the version all have is in force: from then on the members put nothing but time into the log by
/// themselves.
pub(super) async fn settled(group: &TestGroup, number: usize) {
    until("the version all have", || version_at(group, number) == CORE_VERSION_MAX).await;
}

/// Goal: a later version comes into force by itself, on all members, and only when each of them has said that
/// it has it. Method: the state of three members is made that of a release which had version 1 only; two of
/// them run for a while, then the third starts. And one version more is asked for, which no member has.
/// Proves S47 of docs/semantics.md.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_is_raised_when_every_member_has_it() {
    let mut group = TestGroup::running(3).await;
    group.leader().await;
    group.stop_all().await;
    for number in 0..3 {
        set_version(&group, number, 1);
    }
    group.start(0).await.unwrap();
    group.start(1).await.unwrap();
    let log_time = || {
        let view = View::of(&group.running_member(0).store);
        query::log_time(&view).unwrap().unix_ms()
    };
    let alice = User::registered(&group, 0, "alice").await;
    let (began, mut files) = (log_time(), 0u64);
    while log_time() < began + SOME_LOOKS_MS {
        alice.create(&group.channel(0), &format!("file {files}"), &[files]).await;
        files += 1;
    }
    assert_eq!((version_at(&group, 0), version_at(&group, 1)), (1, 1), "one was not asked");

    group.start(2).await.unwrap();
    let everywhere = |version| (0..3).all(|number| version_at(&group, number) == version);
    until("all are at the version all have", || everywhere(CORE_VERSION_MAX)).await;
    for number in 1..3 {
        group.assert_same_state(0, number).await;
    }

    let leader = group.leader().await;
    group.running_member(leader).duties.raise(CORE_VERSION_MAX + 1).await;
    let later = alice.create(&group.channel(leader), "later", &[1]).await;
    assert!(later > files && everywhere(CORE_VERSION_MAX));
    group.stop_all().await;
}

/// Goal: an older program does not touch the state of a newer one, says what to do, and harms nothing. Method:
/// one member's state is made that of a later version; its start is refused and every row is as before; with
/// the version of before it goes on.
/// Proves S47 of docs/semantics.md.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_program_refuses_the_state_of_a_newer_one() {
    let mut group = TestGroup::running(1).await;
    let alice = User::registered(&group, 0, "alice").await;
    alice.create(&group.channel(0), "before", &[1]).await;
    let in_force = version_at(&group, 0);
    assert!((CORE_VERSION_FIRST..=CORE_VERSION_MAX).contains(&in_force));
    group.stop_all().await;
    set_version(&group, 0, CORE_VERSION_MAX + 1);
    let path = group.configs[0].store_dir();
    let before = bare_rows(&path);

    let refused = group.start(0).await.unwrap_err();
    let MemberError::Store(StoreError::LaterState { found }) = &refused else {
        panic!("{refused}")
    };
    assert_eq!(*found, CORE_VERSION_MAX + 1);
    let text = refused.to_string();
    let version = format!("version {found} of the state machine");
    for part in [version.as_str(), "or a newer one", "nothing was changed"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(before.len() > 20 && bare_rows(&path) == before, "it was touched");

    set_version(&group, 0, in_force);
    group.start(0).await.unwrap();
    group.assert_has(&alice, 0, "before").await;
    group.stop_all().await;
}

/// Goal: a member whose program is older than what its group goes on to stops where it stands, again at every
/// start, and says so; it never comes to another state than the others. Method: the version after the last
/// known one is put into the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_stops_before_a_version_it_does_not_have() {
    let mut group = TestGroup::running(1).await;
    let alice = User::registered(&group, 0, "alice").await;
    alice.create(&group.channel(0), "before", &[1]).await;
    let proposer = group.running_member(0).duties.proposer.clone();
    // One after the other; the leader may have brought some of them already, which changes nothing then.
    for version in CORE_VERSION_FIRST + 1..=CORE_VERSION_MAX {
        let op = SystemOp::CoreVersion { version };
        proposer.propose(Command::System(op)).await.unwrap();
    }
    let version = CORE_VERSION_MAX + 1;
    let op = SystemOp::CoreVersion { version };
    proposer.propose(Command::System(op)).await.unwrap_err();
    drop(proposer);
    let path = group.configs[0].store_dir();
    for _ in 0..2 {
        // At a start it may stop as early as that.
        let started = match group.members[0] {
            Some(_) => Ok(()),
            None => group.start(0).await,
        };
        let ended = match started {
            Ok(()) => {
                let member = group.members[0].take().unwrap();
                tokio::time::timeout(LONG, member.until(&Shutdown::new())).await.unwrap()
            }
            refused => refused,
        };
        let Err(MemberError::Raft(reason)) = ended else { panic!("{ended:?}") };
        let wanted = format!("gone on to version {version} of the state machine");
        assert!(reason.contains(&wanted) && reason.contains("newer program"), "{reason}");
        let rows = bare_rows(&path);
        let in_force = rows.iter().find(|row| row.0 == "core.meta" && row.1 == meta::CORE_VERSION);
        assert_eq!(in_force.unwrap().2, encode(&CORE_VERSION_MAX));
    }
}

/// Goal: what a later client signs that is not known here is refused whole, as what it is, and the member goes
/// on. Method: a bundle of another suite, and one with an op of a kind that does not exist, both well signed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bundles_of_a_later_release_are_refused() {
    let mut group = TestGroup::running(1).await;
    let channel = group.channel(0);
    let alice = User::registered(&group, 0, "alice").await;
    let submission = |suite: u16, ops: Vec<Vec<u8>>| {
        let header = Header {
            cluster: group.id,
            suite,
            principal: alice.principal,
            author: Author::Session(alice.certificate.hash()),
            key: alice.session.public_key(),
            vaults: Vec::new(),
            request: RequestId::from_bytes([5; 16]),
            not_after: LogTime::from_unix_ms(unix_ms() + 60_000),
            ops: u16::try_from(ops.len()).unwrap(),
            ops_root: root(&ops.iter().map(|op| leaf_hash(op)).collect::<Vec<_>>()),
        };
        let header = encode(&header);
        let signature = alice.session.sign(Domain::Bundle, &group.id, &header);
        let bundle = SignedBundle { header, signature, ops };
        encode(&Submission { bundle, payloads: Payloads::default() })
    };
    let submit = async |submission: Vec<u8>| {
        let request = alice.request(pb::SubmitRequest { submission: submission.into() });
        rejection(&directory(&channel).submit(request).await.unwrap_err())
    };
    let unknown_op = vec![250, 1, 2, 3];
    let refused = submit(submission(SUITE + 1, vec![unknown_op.clone()])).await;
    assert_eq!(refused, BundleRejection::Cluster);
    assert!(refused.to_string().contains("suite"), "{refused}");
    let refused = submit(submission(SUITE, vec![unknown_op])).await;
    assert!(matches!(&refused, BundleRejection::Malformed(_)), "{refused}");
    alice.create(&channel, "after", &[1]).await;
    group.assert_has(&alice, 0, "after").await;
    group.stop_all().await;
}
