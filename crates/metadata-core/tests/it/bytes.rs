//! Bytes (A40): one value has one encoding, and no bytes make the state machine panic or break an
//! invariant, whoever signed them.

use std::sync::OnceLock;

use coffer_metadata_core::{Command, Prepared, Reply, layout};
use coffer_model::SUITE;
use coffer_model::bundle::{BundleRejection, Header, SignedBundle, Submission};
use coffer_model::descriptor::{Descriptor, SignedDescriptor};
use coffer_model::encoding::{decode, encode};
use coffer_model::log::{LogEntry, SystemOp};
use coffer_model::merkle::{leaf_hash, root};
use coffer_model::object::{Kind, StagedKey};
use coffer_model::op::{Op, Outcome, Rejection, Rule};
use coffer_model::signing::{Domain, Signer};
use proptest::prelude::*;

use crate::invariants::Checker;
use crate::kit::{Cluster, Draft, User, chunk, inode, key, write};

/// A home with something in it, and one good op of every verb. Always the same, so made once.
fn scene() -> (Cluster, User, Draft) {
    static SCENE: OnceLock<(Cluster, User, Draft)> = OnceLock::new();
    SCENE.get_or_init(make_scene).clone()
}

fn make_scene() -> (Cluster, User, Draft) {
    let mut cluster = Cluster::new();
    let mut alice = User::join_at_gateway(&mut cluster, "alice");
    let mut draft = Draft::new();
    for name in ["docs", "empty", "gone"] {
        draft.create_directory(&cluster, key(alice.home, name), inode(name));
    }
    draft.create_file(&cluster, key(inode("docs"), "a"), inode("a"), &[1, 2]);
    alice.act(&mut cluster, &draft);
    let mut draft = Draft::new();
    draft.remove(&cluster, key(alice.home, "gone"), false);
    alice.act(&mut cluster, &draft);
    let mut draft = Draft::new();
    draft.create_file(&cluster, key(alice.home, "new"), inode("new"), &[9]);
    draft.commit(&cluster, inode("a"), &[3]);
    let at = StagedKey { inode: inode("a"), write: write("w") };
    draft.stage(inode("docs"), at, &[(0, chunk(7))].into(), 1);
    draft.set_attrs(&cluster, inode("docs"), "other");
    draft.rename(&cluster, key(alice.home, "empty"), key(inode("docs"), "e"));
    draft.undelete(&cluster, key(alice.home, "gone"), inode("gone"), Kind::Directory);
    draft.remove(&cluster, key(alice.home, "docs"), false);
    draft.seal_session(alice.certificate, None, "keys");
    (cluster, alice, draft)
}

/// The ops as given, good or not, under a good signature.
fn sign_raw(mut header: Header, ops: Vec<Vec<u8>>, signer: &impl Signer) -> SignedBundle {
    let leaves: Vec<_> = ops.iter().map(|op| leaf_hash(op)).collect();
    header.ops = ops.len() as u16;
    header.ops_root = root(&leaves);
    let cluster = header.cluster;
    let header = encode(&header);
    let signature = signer.sign(Domain::Bundle, &cluster, &header);
    SignedBundle { header, signature, ops }
}

/// One change of some bytes.
#[derive(Clone, Debug)]
enum Bend {
    Set(prop::sample::Index, u8),
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, u8),
}

impl Bend {
    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        match self {
            Self::Set(at, value) => *at.get_mut(bytes) = *value,
            Self::Flip(at, bit) => *at.get_mut(bytes) ^= 1 << (bit % 8),
            Self::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Self::Insert(at, value) => bytes.insert(at.index(bytes.len()), *value),
        }
    }
}

fn bend() -> impl Strategy<Value = Bend> {
    let at = any::<prop::sample::Index>;
    let small = prop_oneof![0u8..9, any::<u8>()];
    prop_oneof![
        4 => (at(), small.clone()).prop_map(|(at, value)| Bend::Set(at, value)),
        4 => (at(), 0u8..8).prop_map(|(at, bit)| Bend::Flip(at, bit)),
        1 => at().prop_map(Bend::Cut),
        1 => (at(), small).prop_map(|(at, value)| Bend::Insert(at, value)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, ..ProptestConfig::default() })]

    /// A user signs anything at all that decodes: it is applied or refused, and what must hold holds.
    #[test]
    fn no_signed_op_breaks_anything(
        which in any::<prop::sample::Index>(),
        bends in prop::collection::vec(bend(), 1..3),
    ) {
        let (mut cluster, mut alice, draft) = scene();
        let at = which.index(draft.ops.len());
        let mut ops: Vec<Vec<u8>> = draft.ops.iter().map(encode).collect();
        for bend in &bends {
            bend.apply(&mut ops[at]);
        }
        let decodes = decode::<Op>("op", &ops[at]);
        let header = alice.header(&cluster);
        let bundle = sign_raw(header, ops.clone(), &alice.session);
        let submission = Submission { bundle, payloads: draft.payloads };
        let reply = cluster.submit(&submission);
        match decodes {
            Ok(op) => {
                prop_assert_eq!(encode(&op), ops[at].clone(), "an op has one encoding");
                let refused = matches!(reply, Reply::Refused(BundleRejection::Session));
                prop_assert!(refused || matches!(reply, Reply::Bundle { .. }), "{:?}", reply);
            }
            Err(_) => {
                prop_assert!(matches!(reply, Reply::Refused(BundleRejection::Malformed(_))));
            }
        }
        Checker::new(cluster.id).check(&cluster.tables);
    }

    /// The same of a header.
    #[test]
    fn no_signed_header_breaks_anything(bends in prop::collection::vec(bend(), 1..3)) {
        let (mut cluster, mut alice, draft) = scene();
        let ops: Vec<Vec<u8>> = draft.ops.iter().map(encode).collect();
        let mut bundle = sign_raw(alice.header(&cluster), ops, &alice.session);
        for bend in &bends {
            bend.apply(&mut bundle.header);
        }
        bundle.signature = alice.session.sign(Domain::Bundle, &cluster.id, &bundle.header);
        if let Ok(header) = decode::<Header>("header", &bundle.header) {
            prop_assert_eq!(encode(&header), bundle.header.clone(), "a header has one encoding");
        }
        cluster.submit(&Submission { bundle, payloads: draft.payloads });
        Checker::new(cluster.id).check(&cluster.tables);
    }

    /// And of what travels unsigned: whoever carries a bundle can lose ops of it for their author, but
    /// what is applied is what was signed, and costs what it costs.
    #[test]
    fn what_travels_unsigned_changes_nothing_that_was_signed(
        bends in prop::collection::vec(bend(), 1..4),
    ) {
        let (mut cluster, mut alice, draft) = scene();
        let mut honest = cluster.clone();
        let submission = alice.sign(&cluster, &draft);
        let Reply::Bundle { outcomes: expected, .. } = honest.submit(&submission) else { panic!() };
        let mut payloads = encode(&submission.payloads);
        for bend in &bends {
            bend.apply(&mut payloads);
        }
        let Ok(payloads) = decode("payloads", &payloads) else { return Ok(()) };
        let carried = Submission { payloads, ..submission };
        let outcomes = match cluster.submit(&carried) {
            Reply::Bundle { outcomes, .. } => outcomes,
            Reply::Refused(BundleRejection::Malformed(_)) => return Ok(()),
            other => panic!("{other:?}"),
        };
        for (outcome, expected) in outcomes.iter().zip(&expected) {
            prop_assert!(outcome.is_err() || outcome == expected, "{:?}", outcome);
        }
        Checker::new(cluster.id).check(&cluster.tables);
    }

    #[test]
    fn no_bytes_at_all_break_anything(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let (mut cluster, ..) = scene();
        let before = cluster.tables.clone();
        let reply = cluster.apply(&Command::Submission(bytes.clone()));
        prop_assert!(matches!(reply, Reply::Refused(BundleRejection::Malformed(_))));
        prop_assert_eq!(&cluster.tables, &before);
        let signature = cluster.admin.sign(Domain::Order, &cluster.id, &bytes);
        let ops = [
            SystemOp::Genesis { descriptor: bytes.clone(), layout: bytes.clone() },
            SystemOp::NodeReport { report: bytes.clone(), signature },
            SystemOp::NextDescriptor { descriptor: bytes.clone() },
            SystemOp::NextLayout { layout: bytes.clone() },
            SystemOp::ShareProof { proof: bytes.clone(), signature },
            SystemOp::Order {
                order: bytes,
                signatures: vec![(cluster.admin_key(), signature)],
            },
        ];
        for op in ops {
            cluster.system(op);
            prop_assert_eq!(&cluster.tables, &before);
        }
    }

    /// Bytes that decode are the encoding of what they decode to, for everything that is signed,
    /// hashed or replicated.
    #[test]
    fn one_value_has_one_encoding(
        which in 0usize..6,
        bends in prop::collection::vec(bend(), 1..4),
    ) {
        fn check<V: borsh::BorshDeserialize + borsh::BorshSerialize>(mut bytes: Vec<u8>, bends: &[Bend]) {
            assert_eq!(encode(&decode::<V>("value", &bytes).unwrap()), bytes);
            for bend in bends {
                bend.apply(&mut bytes);
            }
            if let Ok(value) = decode::<V>("value", &bytes) {
                assert_eq!(encode(&value), bytes);
            }
        }
        let (cluster, mut alice, draft) = scene();
        let submission = alice.sign(&cluster, &draft);
        let SystemOp::Genesis { descriptor, .. } = &cluster.genesis else { panic!() };
        match which {
            0 => check::<Submission>(encode(&submission), &bends),
            1 => check::<Command>(encode(&Command::Submission(encode(&submission))), &bends),
            2 => check::<Header>(submission.bundle.header, &bends),
            3 => check::<SignedDescriptor>(descriptor.clone(), &bends),
            4 => {
                let signed: SignedDescriptor = decode("descriptor", descriptor).unwrap();
                check::<Descriptor>(signed.bytes, &bends);
            }
            _ => {
                let logged = cluster.tables.rows();
                let logged = logged.filter(|(table, ..)| *table == coffer_metadata_core::Table::Log);
                for (_, _, entry) in logged {
                    check::<LogEntry>(entry.to_vec(), &bends);
                }
            }
        }
    }
}

/// The places where borsh could know two encodings of one value.
#[test]
fn other_encodings_of_the_same_are_refused() {
    let (cluster, mut alice, draft) = scene();
    // Create: discriminant 4, then the entry's key (48 bytes) and the option tag of its expectation.
    let create = encode(&draft.ops[0]);
    let at_option = 1 + 48;
    assert_eq!((create[0], create[at_option]), (4, 0));
    let with = |bytes: &[u8], at: usize, value: u8| {
        let mut bytes = bytes.to_vec();
        bytes[at] = value;
        bytes
    };
    let mut long = create.clone();
    long.push(0);
    let mut short = create.clone();
    short.pop();
    let remove = encode(&draft.ops[6]);
    let only_empty = remove.len() - 1;
    assert_eq!((remove[0], remove[only_empty]), (9, 0));
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("an option that is neither there nor not", with(&create, at_option, 2)),
        ("a truth value that is neither", with(&remove, only_empty, 2)),
        ("a verb that does not exist", with(&create, 0, 12)),
        ("a verb from far away", with(&create, 0, 255)),
        ("a kind that does not exist", with(&create, at_option + 1 + 16, 5)),
        ("trailing bytes", long),
        ("missing bytes", short),
    ];
    for (what, op) in rows {
        assert!(decode::<Op>("op", &op).is_err(), "{what}");
        let header = alice.header(&cluster);
        let bundle = sign_raw(header, vec![op], &alice.session);
        let refused = bundle.verify(&cluster.id).unwrap_err();
        assert!(matches!(refused, BundleRejection::Malformed(_)), "{what}: {refused:?}");
    }
    // A length that promises more than there is, in every place a length stands.
    let submission = encode(&alice.sign(&cluster, &draft));
    for at in 0..submission.len().min(2000) - 4 {
        let mut bytes = submission.clone();
        bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        let command = Command::Submission(bytes);
        assert!(!matches!(Prepared::new(&cluster.id, command), Prepared::System(_)));
    }
    let mut long = submission.clone();
    long.push(0);
    let prepared = Prepared::new(&cluster.id, Command::Submission(long));
    assert!(matches!(prepared, Prepared::Refused(BundleRejection::Malformed(_))), "{prepared:?}");
}

/// The numbers of rejections are part of the log.
#[test]
fn an_outcome_is_written_as_it_always_was() {
    let rows: [(Rejection, u8); 16] = [
        (Rejection::NotFound, 1),
        (Rejection::Denied, 2),
        (Rejection::NotADirectory, 3),
        (Rejection::IsADirectory, 4),
        (Rejection::NotEmpty, 5),
        (Rejection::IntoItself, 6),
        (Rejection::CrossHome, 7),
        (Rejection::TooDeep, 8),
        (Rejection::ReceiptsExpired, 9),
        (Rejection::Manifest, 10),
        (Rejection::Payload, 11),
        (Rejection::Invalid(Rule::TwoNames), 12),
        (Rejection::NameTaken, 13),
        (Rejection::InodeExists, 14),
        (Rejection::InviteRequired, 15),
        (Rejection::QuotaExceeded, 16),
    ];
    for (rejection, number) in rows {
        let outcome: Result<Outcome, Rejection> = Err(rejection);
        assert_eq!(encode(&outcome)[..2], [0, number]);
    }
    let outcome: Result<Outcome, Rejection> = Ok(Outcome { charged_bytes: 7 });
    assert_eq!(encode(&outcome), [1, 7, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_layout_that_contradicts_itself_is_refused() {
    use coffer_model::layout::Layout;
    let (cluster, ..) = scene();
    let SystemOp::Genesis { descriptor, .. } = &cluster.genesis else { panic!() };
    let signed: SignedDescriptor = decode("descriptor", descriptor).unwrap();
    let content: Descriptor = decode("descriptor", &signed.bytes).unwrap();
    assert_eq!(content.suite, SUITE);
    let good = layout::first(&content.nodes).unwrap();
    let bytes = encode(&good);
    let administrators = [cluster.admin.public_key()];
    let sign = |bytes: &[u8]| {
        let signature = cluster.admin.sign(Domain::Layout, &cluster.id, bytes);
        encode(&(bytes.to_vec(), signature))
    };
    assert_eq!(Layout::verify(&sign(&bytes), &cluster.id, &administrators), Ok(good));
    // Version 8, bits 1, replicas 1, nodes 4 + 3 × 16, then the table.
    let table = 8 + 1 + 1 + 4 + 48 + 4;
    for (what, at, value) in [
        ("too few bits", 8, 9),
        ("too many bits", 8, 17),
        ("other bits than the table has", 8, 13),
        ("no replicas", 9, 0),
        ("more replicas than nodes", 9, 4),
        ("other replicas than the table has", 9, 2),
        ("a node that is not there", table, 3),
        ("a node far away", table + 1, 255),
        ("a node twice", table, bytes[table + 2]),
    ] {
        let mut bent = bytes.clone();
        bent[at] = value;
        assert!(Layout::verify(&sign(&bent), &cluster.id, &administrators).is_err(), "{what}");
    }
}
