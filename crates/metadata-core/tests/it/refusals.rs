//! What is refused, and how: one row each. A refused bundle changes no byte; a refused op leaves nothing
//! but its record in the log.

use std::sync::OnceLock;

use coffer_metadata_core::{Command, MemoryTables, Reply, Table};
use coffer_model::SUITE;
use coffer_model::bundle::{
    Author, BUNDLE_OPS_MAX, BundleRejection, Header, NOT_AFTER_MS_MAX, SUBMISSION_BYTES_MAX,
    Submission,
};
use coffer_model::encoding::encode;
use coffer_model::hash::Hash;
use coffer_model::id::{ClusterId, InodeId};
use coffer_model::manifest::{CHANGES_MAX, Slot};
use coffer_model::name::PATH_DEPTH_MAX;
use coffer_model::object::{
    EntryKey, EntryLeaf, EntryState, Kind, LeafHash, Object, Role, SessionLeaf, StagedKey,
};
use coffer_model::op::{Base, Change, Op, Rejection, Rule};
use coffer_model::session::{CertificateHash, SESSION_MS_MAX};
use coffer_model::signing::{Signature, Signer};
use coffer_model::time::LogTime;

use crate::kit::{
    Cluster, ClusterOptions, Draft, Key, User, applied, chunk, inode, key, manifest_of, submission,
    write,
};
use crate::tree::same;

/// A cluster with two users. Alice has `docs/a` (three chunks, two versions), `docs/sub`, `empty`, `file`, and
/// the deleted `gone`, a directory with a file in it.
#[derive(Clone)]
struct Scene {
    cluster: Cluster,
    alice: User,
    bob: User,
}

impl Scene {
    fn new() -> Self {
        static SCENE: OnceLock<Scene> = OnceLock::new();
        SCENE.get_or_init(Self::make).clone()
    }

    fn make() -> Self {
        let mut cluster = Cluster::new();
        let mut alice = User::join(&mut cluster, "alice");
        let bob = User::join(&mut cluster, "bob");
        let mut draft = Draft::new();
        for name in ["docs", "empty", "gone"] {
            draft.create_directory(&cluster, key(alice.home, name), inode(name));
        }
        draft.create_directory(&cluster, key(inode("docs"), "sub"), inode("sub"));
        draft.create_file(&cluster, key(inode("docs"), "a"), inode("a"), &[1, 2, 3]);
        draft.create_file(&cluster, key(inode("gone"), "b"), inode("b"), &[4]);
        draft.create_file(&cluster, key(alice.home, "file"), inode("file"), &[]);
        alice.act(&mut cluster, &draft);
        let mut draft = Draft::new();
        draft.commit(&cluster, inode("a"), &[1, 5]);
        draft.remove(&cluster, key(alice.home, "gone"), false);
        alice.act(&mut cluster, &draft);
        Self { cluster, alice, bob }
    }

    fn home(&self, name: &str) -> EntryKey {
        key(self.alice.home, name)
    }

    /// A good op of Alice's.
    fn good(&self) -> Draft {
        let mut draft = Draft::new();
        draft.create_file(&self.cluster, self.home("new"), inode("new"), &[9]);
        draft
    }

    /// Alice's header and key, with something changed before it is signed.
    fn signed(&mut self, change: impl Fn(&mut Header, &Self)) -> Submission {
        let mut header = self.alice.header(&self.cluster);
        change(&mut header, self);
        let draft = self.good();
        submission(header.sign(&draft.ops, &self.alice.session), &draft)
    }
}

/// All but what every logged bundle leaves behind.
fn objects(tables: &MemoryTables) -> Vec<(Table, Vec<u8>, Vec<u8>)> {
    const RECORDS: [Table; 4] = [Table::Log, Table::LogOps, Table::Repeats, Table::RepeatsByTime];
    tables
        .rows()
        .filter(|(table, key, _)| {
            !RECORDS.contains(table) && (*table != Table::Meta || *key != b"frontier")
        })
        .map(|(table, key, value)| (table, key.to_vec(), value.to_vec()))
        .collect()
}

// -- whole bundles --------------------------------------------------------------------------------

fn check_bundle(what: &str, expected: &BundleRejection, make: impl Fn(&mut Scene) -> Vec<u8>) {
    let mut scene = Scene::new();
    let bytes = make(&mut scene);
    let before = scene.cluster.tables.clone();
    let reply = scene.cluster.apply(&Command::Submission(bytes));
    let same = match (&reply, expected) {
        (Reply::Refused(BundleRejection::Malformed(_)), BundleRejection::Malformed(_)) => true,
        (Reply::Refused(found), expected) => found == expected,
        _ => false,
    };
    assert!(same, "{what}: {reply:?}, not {expected:?}");
    assert_eq!(scene.cluster.tables, before, "{what}: changed something");
}

fn malformed() -> BundleRejection {
    BundleRejection::Malformed(String::new())
}

#[test]
fn a_bundle_that_was_tampered_with_is_refused() {
    let good = |scene: &mut Scene| {
        let draft = scene.good();
        let mut more = draft.clone();
        more.set_attrs(&scene.cluster, inode("a"), "more");
        scene.alice.sign(&scene.cluster, &more)
    };
    type Tamper = fn(&mut Submission);
    let rows: [(&str, BundleRejection, Tamper); 12] = [
        ("signature", BundleRejection::Signature, |s| {
            let mut bytes = *s.bundle.signature.as_bytes();
            bytes[3] ^= 1;
            s.bundle.signature = Signature::from_bytes(bytes);
        }),
        ("signature of zeros", BundleRejection::Signature, |s| {
            s.bundle.signature = Signature::from_bytes([0; 64]);
        }),
        ("op", malformed(), |s| s.bundle.ops[0][40] ^= 1),
        ("op added", malformed(), |s| s.bundle.ops.push(s.bundle.ops[0].clone())),
        ("op dropped", malformed(), |s| drop(s.bundle.ops.pop())),
        ("ops swapped", malformed(), |s| s.bundle.ops.swap(0, 1)),
        ("trailing bytes on an op", malformed(), |s| s.bundle.ops[0].push(0)),
        ("no ops", malformed(), |s| s.bundle.ops.clear()),
        ("header: request", BundleRejection::Signature, |s| {
            tamper_header(s, |header| {
                header.request = coffer_model::id::RequestId::from_bytes([0; 16]);
            });
        }),
        ("header: not-after", BundleRejection::Signature, |s| {
            tamper_header(s, |header| header.not_after = header.not_after.plus_ms(1));
        }),
        ("header: principal", BundleRejection::Signature, |s| {
            tamper_header(s, |header| {
                header.principal = coffer_model::id::PrincipalId::from_bytes([0; 16]);
            });
        }),
        ("trailing bytes on the header", malformed(), |s| s.bundle.header.push(0)),
    ];
    for (what, expected, tamper) in rows {
        check_bundle(what, &expected, |scene| {
            let mut submission = good(scene);
            tamper(&mut submission);
            encode(&submission)
        });
    }
}

fn tamper_header(submission: &mut Submission, change: impl Fn(&mut Header)) {
    let mut header = coffer_model::encoding::decode("header", &submission.bundle.header).unwrap();
    change(&mut header);
    submission.bundle.header = encode(&header);
}

#[test]
fn a_header_that_says_the_wrong_thing_is_refused() {
    type Say = fn(&mut Header, &Scene);
    let rows: [(&str, BundleRejection, Say); 9] = [
        ("another cluster", BundleRejection::Cluster, |header, _| {
            header.cluster = ClusterId::from_bytes([1; 32]);
        }),
        ("another suite", BundleRejection::Cluster, |header, _| header.suite = SUITE + 1),
        ("no suite", BundleRejection::Cluster, |header, _| header.suite = 0),
        ("nine vaults", malformed(), |header, scene| {
            let hash = scene.cluster.vault(scene.alice.home).unwrap().hash;
            header.vaults = vec![hash; 9];
        }),
        ("a vault record that never was", BundleRejection::VaultChanged, |header, scene| {
            let hash = scene.cluster.vault(scene.alice.home).unwrap().hash;
            header.vaults = vec![hash, LeafHash::from_hash(Hash::from_bytes([1; 32]))];
        }),
        ("an unknown session", BundleRejection::Session, |header, _| {
            header.author = Author::Session(CertificateHash::from_hash(Hash::from_bytes([1; 32])));
        }),
        ("somebody else's session", BundleRejection::Session, |header, scene| {
            header.author = Author::Session(scene.bob.certificate);
        }),
        ("somebody else", BundleRejection::Session, |header, scene| {
            header.principal = scene.bob.principal;
        }),
        ("ops of a session by identity", BundleRejection::Signature, |header, _| {
            header.author = Author::Identity;
        }),
    ];
    for (what, expected, say) in rows {
        check_bundle(what, &expected, |scene| encode(&scene.signed(say)));
    }
    // The other way round: ops that need the identity, by a session; and the identity, but ops that
    // need a session.
    check_bundle("identity ops by a session", &BundleRejection::Session, |scene| {
        let login = scene.alice.clone().login(&scene.cluster, 1);
        let mut draft = scene.good();
        draft.push(login);
        encode(&scene.alice.sign(&scene.cluster, &draft))
    });
    check_bundle("session ops by the identity", &BundleRejection::Session, |scene| {
        let mut draft = scene.good();
        draft.push(scene.alice.clone().login(&scene.cluster, 1));
        encode(&scene.alice.by_identity(&scene.cluster, &draft))
    });
}

#[test]
fn the_vault_records_that_stand_may_be_relied_on() {
    let mut scene = Scene::new();
    let submission = scene.signed(|header, scene| {
        let hash = |home| scene.cluster.vault(home).unwrap().hash;
        header.vaults = vec![hash(scene.alice.home), hash(scene.bob.home)];
        header.vaults.resize(8, hash(scene.alice.home));
    });
    assert_eq!(applied(&scene.cluster.submit(&submission)), 1);
}

#[test]
fn a_bundle_counts_from_now_until_its_not_after() {
    let time = Scene::new().cluster.time();
    let at = |ms: u64| LogTime::from_unix_ms(ms);
    let (now, latest) = (time.unix_ms(), time.unix_ms() + NOT_AFTER_MS_MAX);
    for (not_after, good) in [
        (0, false),
        (now - 1, false),
        (now, true),
        (latest, true),
        (latest + 1, false),
        (u64::MAX, false),
    ] {
        let mut scene = Scene::new();
        let submission = scene.signed(|header, _| header.not_after = at(not_after));
        let reply = scene.cluster.submit(&submission);
        if good {
            assert_eq!(applied(&reply), 1);
        } else {
            assert_eq!(reply, Reply::Refused(BundleRejection::Expired(time)), "{not_after}");
        }
    }
}

#[test]
fn a_bundle_has_1_to_256_ops() {
    for (count, good) in
        [(0, false), (1, true), (BUNDLE_OPS_MAX, true), (BUNDLE_OPS_MAX + 1, false)]
    {
        let mut scene = Scene::new();
        let mut draft = Draft::new();
        for number in 0..count {
            let name = format!("n{number}");
            draft.create_directory(&scene.cluster, scene.home(&name), inode(&name));
        }
        let reply = scene.cluster.submit(&scene.alice.sign(&scene.cluster, &draft));
        match reply {
            Reply::Bundle { .. } if good => assert_eq!(applied(&reply), count),
            Reply::Refused(BundleRejection::Malformed(_)) if !good => {}
            other => panic!("{count} ops: {other:?}"),
        }
    }
}

#[test]
fn a_submission_has_at_most_4_mib() {
    for (extra, good) in [(0, true), (1, false)] {
        let mut scene = Scene::new();
        let submission = scene.signed(|_, _| {});
        let mut padded = submission.clone();
        padded.payloads.blobs.push(Vec::new());
        let missing = SUBMISSION_BYTES_MAX - encode(&padded).len();
        *padded.payloads.blobs.last_mut().unwrap() = vec![0; missing + extra];
        assert_eq!(encode(&padded).len(), SUBMISSION_BYTES_MAX + extra);
        let reply = scene.cluster.submit(&padded);
        match reply {
            Reply::Bundle { .. } if good => {}
            Reply::Refused(BundleRejection::Malformed(_)) if !good => {}
            other => panic!("{extra}: {other:?}"),
        }
    }
}

#[test]
fn nothing_is_applied_before_there_is_a_cluster() {
    let mut cluster = Cluster::before_genesis(&ClusterOptions::usual());
    let mut user = User::newcomer("early");
    let mut draft = Draft::new();
    let registration = user.registration(&mut draft);
    draft.push(registration);
    let mut header = user.identity_header(&cluster);
    header.not_after = LogTime::from_unix_ms(1000);
    let submission = submission(header.sign(&draft.ops, &user.identity), &draft);
    assert_eq!(cluster.submit(&submission), Reply::Refused(BundleRejection::Cluster));
    assert_eq!(cluster.tables, MemoryTables::default());
}

// -- sessions -------------------------------------------------------------------------------------

#[test]
fn a_closed_session_signs_nothing_more() {
    let mut scene = Scene::new();
    let mut draft = Draft::new();
    draft.close_session(&scene.cluster, scene.alice.certificate);
    let closing = scene.alice.sign(&scene.cluster, &draft);
    let first = scene.cluster.submit(&closing);
    assert_eq!(applied(&first), 1);
    let submission = scene.signed(|_, _| {});
    assert_eq!(scene.cluster.submit(&submission), Reply::Refused(BundleRejection::Session));
    // Whoever lost the answer still gets it.
    let Reply::Bundle { outcomes, revision, .. } = first else { panic!() };
    let again = Reply::Bundle { outcomes, revision, repeated: true };
    assert_eq!(scene.cluster.submit(&closing), again);
    // Another session of the same user goes on.
    let mut login = Draft::new();
    login.push(scene.alice.login(&scene.cluster, 1));
    let submission = scene.alice.by_identity(&scene.cluster, &login);
    assert_eq!(applied(&scene.cluster.submit(&submission)), 1);
    let draft = scene.good();
    scene.alice.act(&mut scene.cluster, &draft);
}

#[test]
fn a_session_ends_with_its_certificate() {
    let mut scene = Scene::new();
    let expires = scene.cluster.session(scene.alice.certificate).unwrap().leaf;
    let expires = expires.certificate.certificate.expires.unix_ms();
    scene.cluster.tick_to(expires - 1);
    let draft = scene.good();
    scene.alice.act(&mut scene.cluster, &draft);
    scene.cluster.tick_to(expires);
    let late = scene.signed(|_, _| {});
    assert_eq!(scene.cluster.submit(&late), Reply::Refused(BundleRejection::Session));
}

// -- repeats --------------------------------------------------------------------------------------

#[test]
fn a_repeat_gets_the_first_answer_whatever_it_asks() {
    let mut scene = Scene::new();
    let first = scene.signed(|_, _| {});
    let reply = scene.cluster.submit(&first);
    assert_eq!(applied(&reply), 1);
    let Reply::Bundle { outcomes, revision, .. } = reply else { panic!() };
    let expected = Reply::Bundle { outcomes, revision, repeated: true };
    let header: Header = coffer_model::encoding::decode("header", &first.bundle.header).unwrap();

    // The same bytes; the same request sealed and signed anew; other ops under the same request.
    let before = scene.cluster.tables.clone();
    assert_eq!(scene.cluster.submit(&first), expected);
    let mut draft = scene.good();
    draft.payloads.blobs.push(b"sealed anew".to_vec());
    let anew = Header { not_after: header.not_after.plus_ms(5), ..header.clone() };
    let anew = submission(anew.sign(&draft.ops, &scene.alice.session), &draft);
    assert_eq!(scene.cluster.submit(&anew), expected);
    let mut other = Draft::new();
    other.remove(&scene.cluster, scene.home("docs"), false);
    let other = submission(header.clone().sign(&other.ops, &scene.alice.session), &other);
    assert_eq!(scene.cluster.submit(&other), expected);
    assert_eq!(scene.cluster.tables, before);

    // In a new session too.
    let mut login = Draft::new();
    login.push(scene.alice.login(&scene.cluster, 1));
    let login = scene.alice.by_identity(&scene.cluster, &login);
    assert_eq!(applied(&scene.cluster.submit(&login)), 1);
    let mut later = scene.alice.header(&scene.cluster);
    later.request = header.request;
    let draft = scene.good();
    let later = submission(later.sign(&draft.ops, &scene.alice.session), &draft);
    assert_eq!(scene.cluster.submit(&later), expected);

    // Somebody else's request of the same name is another request.
    let mut theirs = scene.bob.header(&scene.cluster);
    theirs.request = header.request;
    let theirs = submission(theirs.sign(&draft.ops, &scene.bob.session), &draft);
    let Reply::Bundle { outcomes, repeated: false, .. } = scene.cluster.submit(&theirs) else {
        panic!("not Bob's own answer")
    };
    assert_eq!(outcomes, [Err(Rejection::Denied)]);
}

/// A29: what was forgotten is not applied again, for its time is over.
#[test]
fn a_forgotten_request_is_too_late() {
    let mut scene = Scene::new();
    let first = scene.signed(|_, _| {});
    assert_eq!(applied(&scene.cluster.submit(&first)), 1);
    scene.cluster.tick_by(60_001);
    // Every bundle clears a few away.
    for number in 0..20 {
        let mut draft = Draft::new();
        draft.set_attrs(&scene.cluster, inode("a"), &format!("{number}"));
        scene.alice.act(&mut scene.cluster, &draft);
    }
    let time = scene.cluster.time();
    let reply = scene.cluster.submit(&first);
    assert_eq!(reply, Reply::Refused(BundleRejection::Expired(time)));
    let kept = scene.cluster.tables.rows().filter(|(table, ..)| *table == Table::Repeats).count();
    assert_eq!(kept, 20, "only requests that may still be repeated are remembered");
}

/// Nobody but its author gets to answer a request, or fills the log in somebody else's name.
#[test]
fn nobody_can_speak_for_another() {
    let mut scene = Scene::new();
    let mallory = Key::of("mallory");
    let victim = scene.alice.header(&scene.cluster);
    let login = scene.alice.clone().login(&scene.cluster, 1);
    let rows: [(Author, BundleRejection); 2] = [
        (Author::Identity, BundleRejection::Signature),
        (Author::Session(scene.alice.certificate), BundleRejection::Session),
    ];
    for (author, expected) in rows {
        let before = scene.cluster.tables.clone();
        let mut draft = if author == Author::Identity { Draft::new() } else { scene.good() };
        if author == Author::Identity {
            draft.push(login.clone());
        }
        let forged = Header { author, key: mallory.public_key(), ..victim.clone() };
        let forged = submission(forged.sign(&draft.ops, &mallory), &draft);
        assert_eq!(scene.cluster.submit(&forged), Reply::Refused(expected));
        assert_eq!(scene.cluster.tables, before);
    }
    let draft = scene.good();
    let genuine = submission(victim.sign(&draft.ops, &scene.alice.session), &draft);
    assert_eq!(applied(&scene.cluster.submit(&genuine)), 1);

    // Nor can somebody who is not registered say anything but that they register.
    let mut newcomer = User::newcomer("mallory");
    let mut draft = Draft::new();
    draft.push(newcomer.login(&scene.cluster, 0));
    let submission = newcomer.by_identity(&scene.cluster, &draft);
    assert_eq!(scene.cluster.submit(&submission), Reply::Refused(BundleRejection::Signature));
}

/// The answer to a request is not for everybody who knows its number.
#[test]
fn a_repeat_by_a_foreign_key_gets_no_answer() {
    let mut scene = Scene::new();
    let first = scene.signed(|_, _| {});
    assert_eq!(applied(&scene.cluster.submit(&first)), 1);
    let header: Header = coffer_model::encoding::decode("header", &first.bundle.header).unwrap();
    let mallory = Key::of("mallory");
    let draft = scene.good();
    for (author, expected) in [
        (Author::Identity, BundleRejection::Signature),
        (header.author, BundleRejection::Session),
        (Author::Session(scene.bob.certificate), BundleRejection::Session),
    ] {
        let forged = Header { author, key: mallory.public_key(), ..header.clone() };
        let forged = submission(forged.sign(&draft.ops, &mallory), &draft);
        assert_eq!(scene.cluster.submit(&forged), Reply::Refused(expected));
    }
}

/// Whose slots they are is said once.
#[test]
fn slots_that_belong_to_no_op_or_come_twice_are_refused() {
    let rows: &[fn(&mut Vec<coffer_model::bundle::OpSlots>)] = &[
        |slots| slots[0].op = 1,
        |slots| slots.push(slots[0].clone()),
        |slots| slots.insert(0, coffer_model::bundle::OpSlots { op: 1, changes: Vec::new() }),
    ];
    for spoil in rows {
        let mut scene = Scene::new();
        let mut draft = Draft::new();
        draft.commit(&scene.cluster, inode("a"), &[1]);
        spoil(&mut draft.payloads.slots);
        let before = scene.cluster.tables.clone();
        let reply = scene.cluster.submit(&scene.alice.sign(&scene.cluster, &draft));
        assert!(matches!(reply, Reply::Refused(BundleRejection::Malformed(_))), "{reply:?}");
        assert_eq!(scene.cluster.tables, before);
    }
}

// -- single ops -----------------------------------------------------------------------------------

fn check_op(what: &str, expected: &Rejection, scene: &mut Scene, draft: &Draft) {
    let before = objects(&scene.cluster.tables);
    let reply = scene.cluster.submit(&scene.alice.sign(&scene.cluster, draft));
    check_refused(what, expected, &reply, draft.ops.len() - 1);
    assert!(
        draft.ops.len() > 1 || objects(&scene.cluster.tables) == before,
        "{what}: left a trace"
    );
}

fn check_refused(what: &str, expected: &Rejection, reply: &Reply, at: usize) {
    let Reply::Bundle { outcomes, .. } = reply else { panic!("{what}: {reply:?}") };
    match &outcomes[at] {
        Err(rejection) if same(expected, rejection) => {}
        other => panic!("{what}: {other:?}, not {expected:?}"),
    }
}

fn invalid() -> Rejection {
    Rejection::Invalid(Rule::TwoNames)
}

type Make = fn(&Scene, &mut Draft);

/// Proves S11, S14, S20 of docs/semantics.md.
#[test]
fn ops_that_break_a_rule_are_refused_for_it() {
    let rows: Vec<(&str, Rejection, Make)> = vec![
        ("create in what does not exist", Rejection::NotFound, |s, d| {
            d.create_directory(&s.cluster, key(inode("nowhere"), "x"), inode("x"));
        }),
        ("create below a deleted directory", Rejection::NotFound, |s, d| {
            d.create_directory(&s.cluster, key(inode("gone"), "x"), inode("x"));
        }),
        ("create below a file", Rejection::NotADirectory, |s, d| {
            d.create_directory(&s.cluster, key(inode("file"), "x"), inode("x"));
        }),
        ("create in another home", Rejection::Denied, |s, d| {
            d.create_directory(&s.cluster, key(s.bob.home, "x"), inode("x"));
        }),
        ("create with the id of a file", Rejection::InodeExists, |s, d| {
            d.create_file(&s.cluster, s.home("x"), inode("a"), &[]);
        }),
        ("create with the id of something deleted", Rejection::InodeExists, |s, d| {
            d.create_directory(&s.cluster, s.home("x"), inode("gone"));
        }),
        ("create with the id of a home", Rejection::InodeExists, |s, d| {
            d.create_directory(&s.cluster, s.home("x"), s.bob.home);
        }),
        ("create with the id of the directory itself", Rejection::InodeExists, |s, d| {
            d.create_directory(&s.cluster, s.home("x"), s.alice.home);
        }),
        ("a directory with content", invalid(), |s, d| {
            d.create_file(&s.cluster, s.home("x"), inode("x"), &[]);
            edit_entry(d, |entry| entry.leaf.kind = Kind::Directory);
        }),
        ("a file without content", invalid(), |s, d| {
            d.create_directory(&s.cluster, s.home("x"), inode("x"));
            edit_entry(d, |entry| entry.leaf.kind = Kind::File);
        }),
        ("a named pipe", invalid(), |s, d| {
            d.create_file(&s.cluster, s.home("x"), inode("x"), &[]);
            edit_entry(d, |entry| entry.leaf.kind = Kind::Fifo);
        }),
        ("a device", invalid(), |s, d| {
            d.create_file(&s.cluster, s.home("x"), inode("x"), &[]);
            edit_entry(d, |entry| entry.leaf.kind = Kind::Device);
        }),
        ("a name that is born deleted", invalid(), |s, d| {
            d.create_directory(&s.cluster, s.home("x"), inode("x"));
            edit_entry(d, |entry| entry.leaf.state = EntryState::Deleted);
        }),
        ("a name that is born adopted", invalid(), |s, d| {
            d.create_directory(&s.cluster, s.home("x"), inode("x"));
            edit_entry(d, |entry| entry.leaf.adopted_at = 1);
        }),
        ("a name without a wrapped key", invalid(), |s, d| {
            d.create_directory(&s.cluster, s.home("x"), inode("x"));
            edit_entry(d, |entry| entry.leaf.wrap.clear());
        }),
        ("a wrapped key that is too long", invalid(), |s, d| {
            d.create_directory(&s.cluster, s.home("x"), inode("x"));
            edit_entry(d, |entry| entry.leaf.wrap = vec![0; 257]);
        }),
        ("a name that came without its payload", Rejection::Payload, |s, d| {
            d.create_directory(&s.cluster, s.home("x"), inode("x"));
            d.payloads.blobs.remove(0);
        }),
        ("a name with another payload", Rejection::Payload, |s, d| {
            d.create_directory(&s.cluster, s.home("x"), inode("x"));
            d.payloads.blobs[0].push(0);
        }),
        ("attributes that came without their payload", Rejection::Payload, |s, d| {
            d.create_directory(&s.cluster, s.home("x"), inode("x"));
            d.payloads.blobs.remove(1);
        }),
        ("a version without its payload", Rejection::Payload, |s, d| {
            d.commit(&s.cluster, inode("a"), &[1]);
            d.payloads.blobs.clear();
        }),
        ("a payload that is too large", Rejection::Payload, |s, d| {
            d.create_directory(&s.cluster, s.home("x"), inode("x"));
            let name = d.blob(vec![0; (64 << 10) + 1]);
            edit_entry(d, |entry| entry.leaf.name = name);
        }),
        ("commit to what does not exist", Rejection::NotFound, |s, d| {
            d.commit(&s.cluster, inode("nowhere"), &[1]);
        }),
        ("commit to what is below a deleted directory", Rejection::NotFound, |s, d| {
            d.commit(&s.cluster, inode("b"), &[1]);
        }),
        ("commit to a directory", Rejection::IsADirectory, |s, d| {
            d.commit(&s.cluster, inode("docs"), &[1]);
        }),
        ("commit to a home's root", Rejection::IsADirectory, |s, d| {
            d.commit(&s.cluster, s.alice.home, &[1]);
        }),
        ("a version number that was skipped", invalid(), |s, d| {
            d.commit(&s.cluster, inode("a"), &[1]);
            edit_head(d, |head| head.change.leaf.version += 1);
        }),
        ("a version number again", invalid(), |s, d| {
            d.commit(&s.cluster, inode("a"), &[1]);
            edit_head(d, |head| head.change.leaf.version -= 1);
        }),
        ("another manifest root", Rejection::Manifest, |s, d| {
            d.commit(&s.cluster, inode("a"), &[1]);
            edit_head(d, |head| head.change.leaf.root = Some(Hash::from_bytes([1; 32])));
        }),
        ("no manifest root", Rejection::Manifest, |s, d| {
            d.commit(&s.cluster, inode("a"), &[1]);
            edit_head(d, |head| head.change.leaf.root = None);
        }),
        ("another slot than was signed", Rejection::Manifest, |s, d| {
            d.commit(&s.cluster, inode("a"), &[1]);
            d.payloads.slots[0].changes[0].1 = Slot::Chunk(chunk(2));
        }),
        ("a false length of a chunk", Rejection::Manifest, |s, d| {
            d.commit(&s.cluster, inode("a"), &[1]);
            let Slot::Chunk(chunk) = &mut d.payloads.slots[0].changes[0].1 else { panic!() };
            chunk.length -= 1;
        }),
        ("slots that did not come along", Rejection::Manifest, |s, d| {
            d.commit(&s.cluster, inode("a"), &[1]);
            d.payloads.slots.clear();
        }),
        ("slots out of order", Rejection::Manifest, |s, d| {
            d.commit(&s.cluster, inode("a"), &[1, 2]);
            d.payloads.slots[0].changes.swap(0, 1);
        }),
        ("a slot beyond the end", Rejection::Manifest, |s, d| {
            d.commit(&s.cluster, inode("a"), &[1]);
            d.payloads.slots[0].changes.push((1, Slot::Hole));
        }),
        ("more slots than a file may have", Rejection::Manifest, |s, d| {
            d.commit(&s.cluster, inode("a"), &[]);
            edit_head(d, |head| head.change.leaf.slots = (1 << 40) + 1);
        }),
        ("more changes than an op may have", Rejection::Manifest, |s, d| {
            d.commit(&s.cluster, inode("a"), &[]);
            let count = CHANGES_MAX as u64 + 1;
            edit_head(d, |head| head.change.leaf.slots = count);
            d.payloads.slots[0].changes = (0..count).map(|slot| (slot, Slot::Hole)).collect();
        }),
        ("a base that is not there", Rejection::Manifest, |s, d| {
            d.commit(&s.cluster, inode("a"), &[1]);
            edit_head(d, |head| head.base = Base::Version(3));
        }),
        ("version 0 as a base", Rejection::Manifest, |s, d| {
            d.commit(&s.cluster, inode("a"), &[1]);
            edit_head(d, |head| head.base = Base::Version(0));
        }),
        ("a base of another chunk class", Rejection::Manifest, |s, d| {
            d.commit(&s.cluster, inode("a"), &[1, 2, 3]);
            edit_head(d, |head| {
                head.base = Base::Version(1);
                head.change.leaf.class = coffer_model::chunk::ChunkClass::Small;
            });
        }),
        ("a partial version that is not there", Rejection::Manifest, |s, d| {
            d.commit(&s.cluster, inode("a"), &[1]);
            edit_head(d, |head| head.base = Base::Staged);
        }),
        ("a version restored from one it is not based on", invalid(), |s, d| {
            d.commit(&s.cluster, inode("a"), &[1]);
            edit_head(d, |head| head.change.leaf.restored = 1);
        }),
        ("a restored version that is not the old one", invalid(), |s, d| {
            d.commit(&s.cluster, inode("a"), &[1, 2, 3]);
            edit_head(d, |head| {
                head.base = Base::Version(1);
                head.change.leaf.restored = 1;
            });
        }),
        ("chunks without receipts", Rejection::ReceiptsExpired, |s, d| {
            d.commit(&s.cluster, inode("a"), &[1]);
            edit_head(d, |head| head.receipts_until = None);
        }),
        ("chunks with receipts that have run out", Rejection::ReceiptsExpired, |s, d| {
            d.commit(&s.cluster, inode("a"), &[1]);
            let late = LogTime::from_unix_ms(s.cluster.time().unix_ms() - 1);
            edit_head(d, |head| head.receipts_until = Some(late));
        }),
        ("a commit with attributes of something else", invalid(), |s, d| {
            d.commit(&s.cluster, inode("a"), &[1]);
            let row = s.cluster.attrs(inode("file")).unwrap();
            let attrs = d.attrs(inode("file"), Some(row.hash), "other");
            let Op::Commit { attrs: of, .. } = &mut d.ops[0] else { panic!() };
            *of = Some(attrs);
        }),
        ("attributes of what does not exist", Rejection::NotFound, |s, d| {
            d.set_attrs(&s.cluster, inode("nowhere"), "x");
        }),
        ("attributes of what is deleted", Rejection::NotFound, |s, d| {
            d.set_attrs(&s.cluster, inode("b"), "x");
        }),
        ("a directory into itself", Rejection::IntoItself, |s, d| {
            d.rename(&s.cluster, s.home("docs"), key(inode("docs"), "x"));
        }),
        ("a directory below itself", Rejection::IntoItself, |s, d| {
            d.rename(&s.cluster, s.home("docs"), key(inode("sub"), "x"));
        }),
        ("a rename to the same name", invalid(), |s, d| {
            d.rename(&s.cluster, s.home("docs"), s.home("docs"));
        }),
        ("a rename into what is deleted", Rejection::NotFound, |s, d| {
            d.rename(&s.cluster, s.home("docs"), key(inode("gone"), "x"));
        }),
        ("a rename into a file", Rejection::NotADirectory, |s, d| {
            d.rename(&s.cluster, s.home("docs"), key(inode("a"), "x"));
        }),
        ("a rename to another's home", Rejection::Denied, |s, d| {
            d.rename(&s.cluster, s.home("docs"), key(s.bob.home, "x"));
        }),
        ("a file over a directory", Rejection::IsADirectory, |s, d| {
            d.rename(&s.cluster, s.home("file"), s.home("empty"));
        }),
        ("a directory over a file", Rejection::NotADirectory, |s, d| {
            d.rename(&s.cluster, s.home("docs"), s.home("file"));
        }),
        ("a directory over one that is not empty", Rejection::NotEmpty, |s, d| {
            d.rename(&s.cluster, s.home("empty"), s.home("docs"));
        }),
        ("a rename of what was deleted", Rejection::NotFound, |s, d| {
            d.rename(&s.cluster, s.home("gone"), s.home("x"));
        }),
        ("a rename that makes something else of it", invalid(), |s, d| {
            d.rename(&s.cluster, s.home("file"), s.home("x"));
            let Op::Rename { to, .. } = &mut d.ops[0] else { panic!() };
            to.leaf.inode = inode("a");
        }),
        ("a rename that makes another kind of it", invalid(), |s, d| {
            d.rename(&s.cluster, s.home("file"), s.home("x"));
            let Op::Rename { to, .. } = &mut d.ops[0] else { panic!() };
            to.leaf.kind = Kind::Symlink;
        }),
        ("a rename that says it went elsewhere", invalid(), |s, d| {
            d.rename(&s.cluster, s.home("file"), s.home("x"));
            let to = s.home("y");
            let Op::Rename { from, .. } = &mut d.ops[0] else { panic!() };
            from.leaf.state = EntryState::Moved { to };
        }),
        ("a rename that says it was deleted", invalid(), |s, d| {
            d.rename(&s.cluster, s.home("file"), s.home("x"));
            let Op::Rename { from, .. } = &mut d.ops[0] else { panic!() };
            from.leaf.state = EntryState::Deleted;
        }),
        ("a rename that vouches for the future", invalid(), |s, d| {
            d.rename(&s.cluster, s.home("docs"), s.home("x"));
            let later = s.cluster.revision() + 1;
            let Op::Rename { to, .. } = &mut d.ops[0] else { panic!() };
            to.leaf.adopted_at = later;
        }),
        ("a rename without the new name's payload", Rejection::Payload, |s, d| {
            d.rename(&s.cluster, s.home("file"), s.home("x"));
            d.payloads.blobs.clear();
        }),
        ("removing a directory that should be empty", Rejection::NotEmpty, |s, d| {
            d.remove(&s.cluster, s.home("docs"), true);
        }),
        ("removing what was removed", Rejection::NotFound, |s, d| {
            d.remove(&s.cluster, s.home("gone"), false);
        }),
        ("removing below a deleted directory", Rejection::NotFound, |s, d| {
            d.remove(&s.cluster, key(inode("gone"), "b"), false);
        }),
        ("a tombstone that is none", invalid(), |s, d| {
            d.remove(&s.cluster, s.home("file"), false);
            edit_entry(d, |entry| entry.leaf.state = EntryState::Live);
        }),
        ("a tombstone of something else", invalid(), |s, d| {
            d.remove(&s.cluster, s.home("file"), false);
            edit_entry(d, |entry| entry.leaf.inode = inode("a"));
        }),
        ("a tombstone without the keys", invalid(), |s, d| {
            d.remove(&s.cluster, s.home("file"), false);
            edit_entry(d, |entry| entry.leaf.wrap = vec![0]);
        }),
        ("restoring what never was", Rejection::NotFound, |s, d| {
            d.undelete(&s.cluster, s.home("x"), inode("nowhere"), Kind::File);
        }),
        ("restoring what stands", invalid(), |s, d| {
            d.undelete(&s.cluster, s.home("x"), inode("file"), Kind::File);
        }),
        ("restoring a home's root", invalid(), |s, d| {
            d.undelete(&s.cluster, s.home("x"), s.alice.home, Kind::Directory);
        }),
        ("restoring as another kind", invalid(), |s, d| {
            d.undelete(&s.cluster, s.home("x"), inode("gone"), Kind::File);
        }),
        ("restoring a part of what was deleted whole", invalid(), |s, d| {
            d.undelete(&s.cluster, s.home("x"), inode("b"), Kind::File);
        }),
        ("restoring into itself", Rejection::NotFound, |s, d| {
            d.undelete(&s.cluster, key(inode("gone"), "x"), inode("gone"), Kind::Directory);
        }),
        ("restoring under another name without its payload", Rejection::Payload, |s, d| {
            d.undelete(&s.cluster, s.home("x"), inode("gone"), Kind::Directory);
            d.payloads.blobs.clear();
        }),
        ("restoring as deleted", invalid(), |s, d| {
            d.undelete(&s.cluster, s.home("x"), inode("gone"), Kind::Directory);
            edit_entry(d, |entry| entry.leaf.state = EntryState::Deleted);
        }),
        ("restoring in another's home", Rejection::Denied, |s, d| {
            d.undelete(&s.cluster, key(s.bob.home, "x"), inode("gone"), Kind::Directory);
        }),
        ("a partial version of a directory", Rejection::IsADirectory, |s, d| {
            stage(d, s.alice.home, inode("docs"));
        }),
        ("a partial version in a deleted directory", Rejection::NotFound, |_, d| {
            stage(d, inode("gone"), inode("x"));
        }),
        ("a partial version of something deleted", Rejection::NotFound, |s, d| {
            stage(d, s.alice.home, inode("b"));
        }),
        ("a partial version in another's home", Rejection::Denied, |s, d| {
            stage(d, s.bob.home, inode("x"));
        }),
        ("a partial version that goes on from none", invalid(), |s, d| {
            stage(d, s.alice.home, inode("x"));
            let Op::Stage { base, .. } = &mut d.ops[0] else { panic!() };
            *base = Base::Staged;
        }),
        ("a partial version of a version that is not there", Rejection::Manifest, |s, d| {
            stage(d, s.alice.home, inode("x"));
            let Op::Stage { base, .. } = &mut d.ops[0] else { panic!() };
            *base = Base::Version(1);
        }),
        ("a partial version without receipts", Rejection::ReceiptsExpired, |s, d| {
            stage(d, s.alice.home, inode("x"));
            let Op::Stage { receipts_until, .. } = &mut d.ops[0] else { panic!() };
            *receipts_until = None;
        }),
        ("closing a session that is not there", Rejection::NotFound, |s, d| {
            d.close_session(&s.cluster, s.alice.certificate);
            edit_session(d, |session| {
                session.key = CertificateHash::from_hash(Hash::from_bytes([1; 32]))
            });
        }),
        ("closing another's session", Rejection::Denied, |s, d| {
            d.close_session(&s.cluster, s.bob.certificate);
        }),
        ("closing a session that stays open", invalid(), |s, d| {
            d.close_session(&s.cluster, s.alice.certificate);
            edit_session(d, |session| session.leaf.closed = false);
        }),
        ("closing a session with another certificate", invalid(), |s, d| {
            d.close_session(&s.cluster, s.alice.certificate);
            edit_session(d, |session| {
                session.leaf.certificate.certificate.expires = LogTime::from_unix_ms(u64::MAX);
            });
        }),
    ];
    for (what, expected, make) in rows {
        let mut scene = Scene::new();
        let mut draft = Draft::new();
        make(&scene, &mut draft);
        check_op(what, &expected, &mut scene, &draft);
    }
}

fn stage(draft: &mut Draft, directory: InodeId, of: InodeId) {
    let chunks = [(0, chunk(1))].into();
    draft.stage(directory, StagedKey { inode: of, write: write("w") }, &chunks, 1);
}

fn edit_entry(draft: &mut Draft, edit: impl FnOnce(&mut Change<EntryKey, EntryLeaf>)) {
    match draft.ops.last_mut() {
        Some(Op::Create { entry, .. } | Op::Remove { entry, .. } | Op::Undelete { entry }) => {
            edit(entry);
        }
        other => panic!("{other:?}"),
    }
}

fn edit_head(draft: &mut Draft, edit: impl FnOnce(&mut coffer_model::op::HeadChange)) {
    match draft.ops.last_mut() {
        Some(Op::Create { head: Some(head), .. } | Op::Commit { head, .. }) => edit(head),
        other => panic!("{other:?}"),
    }
}

fn edit_session(draft: &mut Draft, edit: impl FnOnce(&mut Change<CertificateHash, SessionLeaf>)) {
    match draft.ops.last_mut() {
        Some(Op::OpenSession { session } | Op::CloseSession { session }) => edit(session),
        other => panic!("{other:?}"),
    }
}

/// Every hash an op expects must be the one that stands; the answer says which one does.
#[test]
fn a_stale_expectation_is_answered_with_what_stands() {
    let wrong = Some(LeafHash::from_hash(Hash::from_bytes([1; 32])));
    type Spoil = fn(&Scene, &mut Draft, Option<LeafHash>) -> Object;
    let rows: Vec<(&str, bool, Spoil)> = vec![
        ("create: name", false, |s, d, wrong| {
            d.create_file(&s.cluster, s.home("x"), inode("x"), &[]);
            edit_entry(d, |entry| entry.expected = wrong);
            Object::Entry(s.home("x"))
        }),
        ("create: attributes", false, |s, d, wrong| {
            d.create_file(&s.cluster, s.home("x"), inode("x"), &[]);
            let Some(Op::Create { attrs, .. }) = d.ops.last_mut() else { panic!() };
            attrs.expected = wrong;
            Object::Attrs(inode("x"))
        }),
        ("create: content", false, |s, d, wrong| {
            d.create_file(&s.cluster, s.home("x"), inode("x"), &[]);
            edit_head(d, |head| head.change.expected = wrong);
            Object::Head(inode("x"))
        }),
        ("create over what stands", true, |s, d, _| {
            d.create_file(&s.cluster, s.home("docs"), inode("x"), &[]);
            Object::Entry(s.home("docs"))
        }),
        ("create over a tombstone that was not seen", true, |s, d, _| {
            d.create_file(&s.cluster, s.home("gone"), inode("x"), &[]);
            edit_entry(d, |entry| entry.expected = None);
            Object::Entry(s.home("gone"))
        }),
        ("commit: content", true, |s, d, wrong| {
            d.commit(&s.cluster, inode("a"), &[1]);
            edit_head(d, |head| head.change.expected = wrong);
            Object::Head(inode("a"))
        }),
        ("commit: content taken for none", true, |s, d, _| {
            d.commit(&s.cluster, inode("a"), &[1]);
            edit_head(d, |head| head.change.expected = None);
            Object::Head(inode("a"))
        }),
        ("set_attrs", true, |s, d, wrong| {
            d.set_attrs(&s.cluster, inode("a"), "x");
            let Some(Op::SetAttrs { attrs }) = d.ops.last_mut() else { panic!() };
            attrs.expected = wrong;
            Object::Attrs(inode("a"))
        }),
        ("rename: from", true, |s, d, wrong| {
            d.rename(&s.cluster, s.home("file"), s.home("x"));
            let Some(Op::Rename { from, .. }) = d.ops.last_mut() else { panic!() };
            from.expected = wrong;
            Object::Entry(s.home("file"))
        }),
        ("rename: to", false, |s, d, wrong| {
            d.rename(&s.cluster, s.home("file"), s.home("x"));
            let Some(Op::Rename { to, .. }) = d.ops.last_mut() else { panic!() };
            to.expected = wrong;
            Object::Entry(s.home("x"))
        }),
        ("rename: over what was not seen", true, |s, d, _| {
            d.rename(&s.cluster, key(inode("docs"), "a"), s.home("file"));
            let Some(Op::Rename { to, .. }) = d.ops.last_mut() else { panic!() };
            to.expected = None;
            Object::Entry(s.home("file"))
        }),
        ("remove", true, |s, d, wrong| {
            d.remove(&s.cluster, s.home("file"), false);
            edit_entry(d, |entry| entry.expected = wrong);
            Object::Entry(s.home("file"))
        }),
        ("undelete", true, |s, d, wrong| {
            d.undelete(&s.cluster, s.home("gone"), inode("gone"), Kind::Directory);
            edit_entry(d, |entry| entry.expected = wrong);
            Object::Entry(s.home("gone"))
        }),
        ("undelete over what stands", true, |s, d, _| {
            d.undelete(&s.cluster, s.home("file"), inode("gone"), Kind::Directory);
            Object::Entry(s.home("file"))
        }),
        ("stage", false, |s, d, wrong| {
            stage(d, s.alice.home, inode("x"));
            let Some(Op::Stage { staged, .. }) = d.ops.last_mut() else { panic!() };
            staged.expected = wrong;
            Object::Staged(staged.key)
        }),
        ("close_session", true, |s, d, wrong| {
            d.close_session(&s.cluster, s.alice.certificate);
            edit_session(d, |session| session.expected = wrong);
            Object::Session(s.alice.certificate)
        }),
    ];
    for (what, stands, spoil) in rows {
        let mut scene = Scene::new();
        let mut draft = Draft::new();
        let object = spoil(&scene, &mut draft, wrong);
        let current = match &object {
            Object::Entry(key) => scene.cluster.entry(key).map(|row| row.hash),
            Object::Head(inode) => scene.cluster.head(*inode).map(|row| row.hash),
            Object::Attrs(inode) => scene.cluster.attrs(*inode).map(|row| row.hash),
            Object::Staged(key) => scene.cluster.staged(key).map(|row| row.hash),
            Object::Session(of) => scene.cluster.session(*of).map(|row| row.hash),
            other => panic!("{other:?}"),
        };
        assert_eq!(current.is_some(), stands, "{what}");
        check_op(what, &Rejection::Conflict { object, current }, &mut scene, &draft);
    }
}

/// An op that relies on a refused one of its bundle is refused too, and the others are not.
#[test]
fn an_op_that_relies_on_a_refused_one_falls_with_it() {
    let mut scene = Scene::new();
    let mut draft = Draft::new();
    draft.create_directory(&scene.cluster, scene.home("ok"), inode("ok"));
    draft.create_directory(&scene.cluster, scene.home("bad"), inode("bad"));
    edit_entry(&mut draft, |entry| entry.leaf.wrap.clear());
    draft.create_directory(&scene.cluster, key(inode("bad"), "below"), inode("below"));
    draft.create_directory(&scene.cluster, key(inode("ok"), "below"), inode("other"));
    draft.set_attrs(&scene.cluster, inode("a"), "one");
    let stale = draft.ops.last().cloned().unwrap();
    draft.push(stale);
    let reply = scene.cluster.submit(&scene.alice.sign(&scene.cluster, &draft));
    let Reply::Bundle { outcomes, .. } = reply else { panic!("{reply:?}") };
    let current = scene.cluster.attrs(inode("a")).map(|row| row.hash);
    let conflict = Rejection::Conflict { object: Object::Attrs(inode("a")), current };
    let expected = [None, Some(invalid()), Some(Rejection::NotFound), None, None, Some(conflict)];
    for (at, (outcome, expected)) in outcomes.iter().zip(&expected).enumerate() {
        match (outcome, expected) {
            (Ok(_), None) => {}
            (Err(found), Some(expected)) if same(expected, found) => {}
            _ => panic!("op {at}: {outcome:?}, not {expected:?}"),
        }
    }
}

/// Log time that passes the receipts' time closes the door, not a tick earlier.
#[test]
fn a_commit_comes_before_its_receipts_run_out() {
    for (late, good) in [(0, true), (1, false)] {
        let mut scene = Scene::new();
        let until = scene.cluster.time().plus_ms(30_000);
        let mut draft = Draft::new();
        draft.commit(&scene.cluster, inode("a"), &[7, 8]);
        edit_head(&mut draft, |head| head.receipts_until = Some(until));
        scene.cluster.tick_to(until.unix_ms() + late);
        let reply = scene.cluster.submit(&scene.alice.sign(&scene.cluster, &draft));
        if good {
            assert_eq!(applied(&reply), 1);
        } else {
            check_refused("late", &Rejection::ReceiptsExpired, &reply, 0);
        }
    }
}

#[test]
fn a_path_has_a_bounded_depth() {
    let mut scene = Scene::new();
    let mut draft = Draft::new();
    let mut at = scene.alice.home;
    // A home's root is one component, so 255 more fit.
    for depth in 1..PATH_DEPTH_MAX {
        let next = inode(&format!("depth {depth}"));
        draft.create_directory(&scene.cluster, key(at, "d"), next);
        at = next;
    }
    scene.alice.act(&mut scene.cluster, &draft);
    let mut draft = Draft::new();
    draft.create_directory(&scene.cluster, key(at, "d"), inode("too deep"));
    check_op("create", &Rejection::TooDeep, &mut scene, &draft);
    let mut draft = Draft::new();
    draft.rename(&scene.cluster, scene.home("file"), key(at, "f"));
    check_op("rename", &Rejection::TooDeep, &mut scene, &draft);
    let mut draft = Draft::new();
    draft.undelete(&scene.cluster, key(at, "f"), inode("gone"), Kind::Directory);
    check_op("undelete", &Rejection::TooDeep, &mut scene, &draft);
    // The deepest directory can be changed itself, and removed.
    let above = inode(&format!("depth {}", PATH_DEPTH_MAX - 2));
    let mut draft = Draft::new();
    draft.set_attrs(&scene.cluster, at, "deep");
    draft.remove(&scene.cluster, key(above, "d"), true);
    scene.alice.act(&mut scene.cluster, &draft);
}

// -- users ----------------------------------------------------------------------------------------

fn register(scene: &mut Scene, user: &mut User, edit: impl FnOnce(&mut Op, &mut Draft)) -> Reply {
    let mut draft = Draft::new();
    let mut registration = user.registration(&mut draft);
    edit(&mut registration, &mut draft);
    draft.push(registration);
    let submission = user.by_identity(&scene.cluster, &draft);
    scene.cluster.submit(&submission)
}

/// A47: however many come at once, the first in the log has the name, for ever.
#[test]
fn a_name_belongs_to_its_first_registrant() {
    let mut scene = Scene::new();
    let mut both: Vec<User> = ["one", "two"]
        .map(|word| User {
            name: "carol".parse().unwrap(),
            identity: Key::of(word),
            principal: coffer_model::id::PrincipalId::from_bytes(crate::kit::id16(word)),
            home: inode(word),
            ..User::newcomer("carol")
        })
        .into();
    let before = scene.cluster.clone();
    assert_eq!(applied(&register(&mut scene, &mut both[0], |_, _| {})), 1);
    let reply = register(&mut scene, &mut both[1], |_, _| {});
    check_refused("second", &Rejection::NameTaken, &reply, 0);
    let name = both[0].name.clone();
    assert_eq!(scene.cluster.user(&name).unwrap().leaf.home, inode("one"));
    // Whichever comes first, exactly one wins.
    scene.cluster = before;
    assert_eq!(applied(&register(&mut scene, &mut both[1], |_, _| {})), 1);
    let reply = register(&mut scene, &mut both[0], |_, _| {});
    check_refused("second", &Rejection::NameTaken, &reply, 0);
    // Registered is registered: with the same keys too.
    let reply = register(&mut scene, &mut both[1], |_, _| {});
    check_refused("again", &Rejection::NameTaken, &reply, 0);
}

#[test]
fn registrations_that_break_a_rule_are_refused() {
    type Spoil = fn(&mut Op, &mut Draft, &Scene);
    let rows: Vec<(&str, Rejection, Spoil)> = vec![
        ("the home of another", Rejection::InodeExists, |op, _, s| move_home(op, s.alice.home)),
        ("a file as a home", Rejection::InodeExists, |op, _, _| move_home(op, inode("a"))),
        ("the second keyring first", invalid(), |op, _, _| user_of(op).keyring_epoch = 2),
        ("no keyring", Rejection::Payload, |_, draft, _| drop(draft.payloads.blobs.remove(0))),
        ("no login record", Rejection::Payload, |_, draft, _| drop(draft.payloads.blobs.remove(1))),
        ("no attributes", Rejection::Payload, |_, draft, _| drop(draft.payloads.blobs.remove(2))),
        ("the vault of something else", invalid(), |op, _, s| {
            let Op::Register { vault, .. } = op else { panic!() };
            vault.key = s.alice.home;
        }),
        ("a vault that another pays for", invalid(), |op, _, s| {
            let Op::Register { vault, .. } = op else { panic!() };
            vault.leaf.home = s.alice.home;
        }),
        ("attributes of something else", invalid(), |op, _, s| {
            let Op::Register { attrs, .. } = op else { panic!() };
            attrs.key = s.alice.home;
        }),
        ("a home without members", invalid(), |op, _, _| members_of(op).clear()),
        ("a home of another", invalid(), |op, _, s| {
            members_of(op)[0].principal = s.alice.principal
        }),
        ("a home with two members", invalid(), |op, _, s| {
            let mut second = members_of(op)[0].clone();
            second.principal = s.alice.principal;
            members_of(op).push(second);
            members_of(op).sort_by_key(|member| member.principal);
        }),
        ("a home one may only write to", invalid(), |op, _, _| {
            members_of(op)[0].role = Role::Writer
        }),
        ("a member twice", invalid(), |op, _, _| {
            let again = members_of(op)[0].clone();
            members_of(op).push(again);
        }),
        ("a sealed key without end", invalid(), |op, _, _| {
            members_of(op)[0].sealed_key = vec![0; 257];
        }),
        ("a former key without end", invalid(), |op, _, _| {
            let Op::Register { vault, .. } = op else { panic!() };
            vault.leaf.former_key = Some(vec![0; 257]);
        }),
        ("a user who replaces one", invalid(), |op, _, s| {
            let Op::Register { user, .. } = op else { panic!() };
            user.expected = s.cluster.user(&s.alice.name).map(|row| row.hash);
        }),
        ("a vault that replaces one", invalid(), |op, _, s| {
            let Op::Register { vault, .. } = op else { panic!() };
            vault.expected = s.cluster.vault(s.alice.home).map(|row| row.hash);
        }),
        ("attributes that replace some", invalid(), |op, _, s| {
            let Op::Register { attrs, .. } = op else { panic!() };
            attrs.expected = s.cluster.attrs(s.alice.home).map(|row| row.hash);
        }),
    ];
    for (what, expected, spoil) in rows {
        let mut scene = Scene::new();
        let untouched = Scene::new();
        let before = scene.cluster.tables.clone();
        let mut carol = User::newcomer("carol");
        let reply = register(&mut scene, &mut carol, |op, draft| spoil(op, draft, &untouched));
        check_refused(what, &expected, &reply, 0);
        // Not even in the log: anybody could fill it.
        assert_eq!(scene.cluster.tables, before, "{what}: left a trace");
    }
}

fn user_of(op: &mut Op) -> &mut coffer_model::object::UserLeaf {
    match op {
        Op::Register { user, .. } | Op::UpdateUser { user } => &mut user.leaf,
        other => panic!("{other:?}"),
    }
}

fn members_of(op: &mut Op) -> &mut Vec<coffer_model::object::VaultMember> {
    let Op::Register { vault, .. } = op else { panic!("{op:?}") };
    &mut vault.leaf.members
}

fn move_home(op: &mut Op, to: InodeId) {
    let Op::Register { user, vault, attrs } = op else { panic!("{op:?}") };
    (user.leaf.home, vault.key, vault.leaf.home, attrs.key) = (to, to, to, to);
}

#[test]
fn who_registers_brings_the_key_that_signs() {
    // With a principal, or an identity, other than the header's: the bundle is nobody's.
    type Spoil = fn(&mut Op, &Scene);
    let rows: [(&str, Spoil); 3] = [
        ("another identity", |op, _| user_of(op).identity = Key::of("other").public_key()),
        ("another principal", |op, _| {
            user_of(op).principal = coffer_model::id::PrincipalId::from_bytes([1; 16]);
        }),
        ("the identity of another user", |op, s| {
            user_of(op).identity = s.alice.identity.public_key();
        }),
    ];
    for (what, spoil) in rows {
        let mut scene = Scene::new();
        let untouched = Scene::new();
        let reply =
            register(&mut scene, &mut User::newcomer("carol"), |op, _| spoil(op, &untouched));
        assert_eq!(reply, Reply::Refused(BundleRejection::Signature), "{what}");
    }
    // A second user under the id of the first: by another key nothing, by the same key not again.
    let mut scene = Scene::new();
    let mut twin = User { principal: scene.alice.principal, ..User::newcomer("carol") };
    let reply = register(&mut scene, &mut twin, |_, _| {});
    assert_eq!(reply, Reply::Refused(BundleRejection::Signature));
    let mut twin = User { identity: scene.alice.identity.clone(), ..twin };
    let reply = register(&mut scene, &mut twin, |_, _| {});
    check_refused("the same id", &Rejection::NameTaken, &reply, 0);
    // One bundle registers one user: a second one in it is somebody else.
    let (mut carol, dave) = (User::newcomer("carol"), User::newcomer("dave"));
    let mut draft = Draft::new();
    let (first, second) = (carol.registration(&mut draft), dave.registration(&mut draft));
    draft.push(first).push(second);
    let reply = scene.cluster.submit(&carol.by_identity(&scene.cluster, &draft));
    check_refused("a second user", &Rejection::Denied, &reply, 1);
    assert_eq!(applied(&reply), 1);
}

#[test]
fn a_closed_cluster_wants_an_invite() {
    let options = ClusterOptions { open_registration: false, ..ClusterOptions::usual() };
    let mut cluster = Cluster::with(&options);
    let mut user = User::newcomer("carol");
    let mut draft = Draft::new();
    let registration = user.registration(&mut draft);
    draft.push(registration);
    let reply = cluster.submit(&user.by_identity(&cluster, &draft));
    check_refused("closed", &Rejection::InviteRequired, &reply, 0);
}

fn update(
    scene: &mut Scene,
    edit: impl FnOnce(&mut Change<coffer_model::name::UserName, coffer_model::object::UserLeaf>),
) -> Reply {
    let row = scene.cluster.user(&scene.alice.name).unwrap();
    let mut draft = Draft::new();
    let mut leaf = row.leaf.clone();
    leaf.keyring = draft.blob("a new keyring");
    leaf.keyring_epoch += 1;
    leaf.login_record = draft.blob("a new login record");
    let mut user = Change { key: scene.alice.name.clone(), expected: Some(row.hash), leaf };
    edit(&mut user);
    draft.push(Op::UpdateUser { user });
    scene.cluster.submit(&scene.alice.by_identity(&scene.cluster, &draft))
}

#[test]
fn a_password_change_changes_keys_and_nothing_else() {
    type Spoil = fn(&mut Change<coffer_model::name::UserName, coffer_model::object::UserLeaf>);
    let rows: Vec<(&str, Rejection, Spoil)> = vec![
        ("somebody else", Rejection::Denied, |user| user.key = "bob".parse().unwrap()),
        ("nobody", Rejection::NotFound, |user| user.key = "nobody".parse().unwrap()),
        ("the epoch stays", invalid(), |user| user.leaf.keyring_epoch -= 1),
        ("the epoch jumps", invalid(), |user| user.leaf.keyring_epoch += 1),
        ("another identity", invalid(), |user| user.leaf.identity = Key::of("x").public_key()),
        ("another home", invalid(), |user| user.leaf.home = inode("docs")),
        ("another sealing key", invalid(), |user| user.leaf.hpke = [1; 32]),
        ("a keyring that did not come", Rejection::Payload, |user| {
            user.leaf.keyring = Hash::from_bytes([1; 32]);
        }),
    ];
    for (what, expected, spoil) in rows {
        let mut scene = Scene::new();
        let before = objects(&scene.cluster.tables);
        let reply = update(&mut scene, spoil);
        check_refused(what, &expected, &reply, 0);
        assert_eq!(objects(&scene.cluster.tables), before, "{what}: left a trace");
    }
    let mut scene = Scene::new();
    assert_eq!(applied(&update(&mut scene, |_| {})), 1);
    let row = scene.cluster.user(&scene.alice.name).unwrap();
    assert_eq!((row.leaf.keyring_epoch, row.payload), (2, b"a new keyring".to_vec()));
    // The old record does not come back.
    let current = Some(row.hash);
    let object = Object::User(scene.alice.name.clone());
    let reply = update(&mut scene, |user| user.expected = None);
    check_refused("stale", &Rejection::Conflict { object, current }, &reply, 0);
    // A login record that stays need not travel again.
    let record = row.leaf.login_record;
    assert_eq!(applied(&update(&mut scene, |user| user.leaf.login_record = record)), 1);
    assert_eq!(scene.cluster.user(&scene.alice.name).unwrap().second, b"a new login record");
}

#[test]
fn sessions_that_break_a_rule_are_not_opened() {
    type Spoil = fn(&mut coffer_model::session::Certificate, &Scene);
    let certificates: Vec<(&str, Rejection, Spoil)> = vec![
        ("of another user", Rejection::Denied, |c, s| c.principal = s.bob.principal),
        ("for another cluster", Rejection::Denied, |c, _| {
            c.cluster = ClusterId::from_bytes([1; 32]);
        }),
        ("of another suite", Rejection::Denied, |c, _| c.suite = 2),
        ("over", invalid(), |c, s| {
            c.issued = LogTime::from_unix_ms(s.cluster.time().unix_ms() - 10);
            c.expires = s.cluster.time();
        }),
        ("too long", invalid(), |c, _| c.expires = c.issued.plus_ms(SESSION_MS_MAX + 1)),
        ("longer than it says", invalid(), |c, _| c.issued = LogTime::from_unix_ms(1)),
        ("not begun", invalid(), |c, s| {
            c.issued = s.cluster.time().plus_ms(NOT_AFTER_MS_MAX + 1);
            c.expires = c.issued.plus_ms(1);
        }),
        ("upside down", invalid(), |c, _| c.issued = c.expires.plus_ms(1)),
    ];
    for (what, expected, spoil) in certificates {
        let mut scene = Scene::new();
        let mut certificate = scene.alice.certificate(&scene.cluster, &Key::of("new"));
        spoil(&mut certificate, &scene);
        let hash = certificate.hash();
        let certificate = certificate.sign(&scene.alice.identity);
        let leaf = SessionLeaf { certificate, closed: false };
        let reply = open(&mut scene, Change { key: hash, expected: None, leaf });
        check_refused(what, &expected, &reply, 0);
    }
    type SpoilChange = fn(&mut Change<CertificateHash, SessionLeaf>, &Scene);
    let changes: Vec<(&str, Rejection, SpoilChange)> = vec![
        ("by another key", Rejection::Denied, |session, s| {
            let certificate = session.leaf.certificate.certificate.clone();
            session.leaf.certificate = certificate.sign(&s.bob.identity);
        }),
        ("by the session itself", Rejection::Denied, |session, _| {
            let certificate = session.leaf.certificate.certificate.clone();
            session.leaf.certificate = certificate.sign(&Key::of("new"));
        }),
        ("born closed", invalid(), |session, _| session.leaf.closed = true),
        ("under another name", invalid(), |session, s| session.key = s.alice.certificate),
        ("in the place of another", invalid(), |session, s| {
            session.expected = s.cluster.session(s.alice.certificate).map(|row| row.hash);
        }),
    ];
    for (what, expected, spoil) in changes {
        let mut scene = Scene::new();
        let certificate = scene.alice.certificate(&scene.cluster, &Key::of("new"));
        let key = certificate.hash();
        let certificate = certificate.sign(&scene.alice.identity);
        let leaf = SessionLeaf { certificate, closed: false };
        let mut session = Change { key, expected: None, leaf };
        spoil(&mut session, &scene);
        let reply = open(&mut scene, session);
        check_refused(what, &expected, &reply, 0);
    }
}

fn open(scene: &mut Scene, session: Change<CertificateHash, SessionLeaf>) -> Reply {
    let mut draft = Draft::new();
    draft.push(Op::OpenSession { session });
    scene.cluster.submit(&scene.alice.by_identity(&scene.cluster, &draft))
}

/// A key that was given up does not come back, also not by the user's own hand.
#[test]
fn a_closed_session_is_not_opened_again() {
    let mut scene = Scene::new();
    let open_row = scene.cluster.session(scene.alice.certificate).unwrap();
    let mut draft = Draft::new();
    draft.close_session(&scene.cluster, scene.alice.certificate);
    scene.alice.act(&mut scene.cluster, &draft);
    let closed = scene.cluster.session(scene.alice.certificate).unwrap();
    for expected in [None, Some(open_row.hash), Some(closed.hash)] {
        let session =
            Change { key: scene.alice.certificate, expected, leaf: open_row.leaf.clone() };
        let reply = open(&mut scene, session);
        let Reply::Bundle { outcomes, .. } = reply else { panic!("{reply:?}") };
        assert!(outcomes[0].is_err(), "{expected:?}");
    }
    assert!(scene.cluster.session(scene.alice.certificate).unwrap().leaf.closed);
    let bundle = scene.signed(|_, _| {});
    assert_eq!(scene.cluster.submit(&bundle), Reply::Refused(BundleRejection::Session));
}

#[test]
fn the_manifest_of_the_kit_is_the_one_of_the_core() {
    // The rows above compare roots the kit computes; this one makes sure they mean something.
    let scene = Scene::new();
    let row = scene.cluster.head(inode("a")).unwrap();
    let chunks = [(0, chunk(1)), (1, chunk(5))].into();
    assert_eq!(row.leaf.root, manifest_of(2, &chunks).0);
    assert_eq!(row.leaf.version, 2);
}
