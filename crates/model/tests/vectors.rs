//! Fixed values of everything that is signed, hashed or stored, compared byte by byte with
//! `testdata/coffer_v1_formats.json`. The pages of `docs/formats` name these vectors, so another
//! implementation can be checked against them. `UPDATE_EXPECT=1` rewrites the file; a change of what
//! is in it is a change of a format, and needs a new version.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use borsh::BorshDeserialize;
use coffer_model::SUITE;
use coffer_model::bundle::{
    Author, Bundle, BundleRejection, Header, OpProof, OpSlots, Outcomes, Payloads, SignedBundle,
    Submission, submission_hash,
};
use coffer_model::chunk::{ChunkClass, Redundancy, SealedChunk, ShardKey};
use coffer_model::descriptor::{
    Descriptor, Link, Member, Replaced, ReplacementPolicy, SignedDescriptor, StorageNode,
    join_token_hash,
};
use coffer_model::encoding::{decode, encode};
use coffer_model::hash::{Hash, payload_hash};
use coffer_model::id::{
    ChunkId, ClusterId, InodeId, MemberId, NameTag, NodeId, PrincipalId, RequestId, WriteId,
};
use coffer_model::layout::{Layout, Partition};
use coffer_model::log::{
    ChunkRow, ClockReading, LogBody, LogEntry, NodeReport, Revision, SystemOp,
};
use coffer_model::manifest::{self, Page, Slot, SlotChunk};
use coffer_model::merkle::{Frontier, Tree, TreeHash, leaf_hash};
use coffer_model::name::{FileName, RemotePath, UserName};
use coffer_model::object::{
    AttrsLeaf, Custody, EntryKey, EntryLeaf, EntryState, HeadLeaf, Kind, Leaf, LeafHash, Object,
    Role, SealedSessionLeaf, SessionLeaf, StagedKey, StagedLeaf, UserLeaf, VaultLeaf, VaultMember,
};
use coffer_model::op::{Base, Change, HeadChange, Op, Outcome, Rejection, Rule};
use coffer_model::order::{Decision, Order};
use coffer_model::proposal::{Present, Proposal, Proposed};
use coffer_model::receipt::{Flush, Held, Receipt};
use coffer_model::session::{Certificate, CertificateHash, Scope, SessionProof};
use coffer_model::share::{Release, ShareProof};
use coffer_model::signing::{Domain, PublicKey, Signature, Signer, signed_bytes};
use coffer_model::ticket::{Leave, Ticket};
use coffer_model::time::LogTime;
use ed25519_dalek::{Signer as _, SigningKey};
use serde_json::{Value, json};

// -- what the examples are made of ------------------------------------------------------------------

struct Key(SigningKey);

impl Key {
    fn new(fill: u8) -> Self {
        Self(SigningKey::from_bytes(&[fill; 32]))
    }
}

impl Signer for Key {
    fn public_key(&self) -> PublicKey {
        PublicKey::from_bytes(self.0.verifying_key().to_bytes())
    }

    fn sign(&self, domain: Domain, cluster: &ClusterId, bytes: &[u8]) -> Signature {
        Signature::from_bytes(self.0.sign(&signed_bytes(domain, cluster, bytes)).to_bytes())
    }
}

fn identity() -> Key {
    Key::new(1)
}
fn session() -> Key {
    Key::new(2)
}
fn administrator() -> Key {
    Key::new(3)
}
fn member(number: u8) -> Key {
    Key::new(0x10 + number)
}
fn join_token() -> Key {
    Key::new(0x40)
}
fn node(number: u8) -> Key {
    Key::new(0x20 + number)
}

fn principal() -> PrincipalId {
    PrincipalId::from_bytes([0xa1; 16])
}
fn home() -> InodeId {
    InodeId::from_bytes([0xb0; 16])
}
fn file() -> InodeId {
    InodeId::from_bytes([0xb1; 16])
}
fn write() -> WriteId {
    WriteId::from_bytes([0xc1; 16])
}
fn node_id(number: u8) -> NodeId {
    NodeId::from_bytes([0x50 + number; 16])
}
fn member_id(number: u8) -> MemberId {
    MemberId::from_u64(0x0102_0304_0506_0700 + u64::from(number))
}
fn entry_key(tag: u8) -> EntryKey {
    EntryKey { directory: home(), tag: NameTag::from_bytes([tag; 32]) }
}
fn time(seconds: u64) -> LogTime {
    LogTime::from_unix_ms(1_790_000_000_000 + seconds * 1000)
}
fn user_name() -> UserName {
    "alice".parse().unwrap()
}

fn payload(what: &str) -> Vec<u8> {
    format!("sealed {what}").into_bytes()
}

fn chunk(seed: u64) -> SlotChunk {
    let sealed = SealedChunk::hash(seed.to_le_bytes()).unwrap();
    SlotChunk {
        chunk: sealed.id(),
        length: 65_672,
        write: write(),
        generation: 0,
        scheme: Redundancy::Replicas,
    }
}

fn descriptor() -> Descriptor {
    Descriptor {
        suite: SUITE,
        number: 0,
        former: None,
        nonce: [0x0d; 16],
        authority: b"certificate authority".to_vec(),
        administrators: vec![administrator().public_key()],
        quorum: 1,
        members: (0..3)
            .map(|number| Member {
                id: member_id(number),
                key: member(number).public_key(),
                address: format!("member-{number}:7400"),
            })
            .collect(),
        nodes: (0..3)
            .map(|number| StorageNode {
                id: node_id(number),
                key: node(number).public_key(),
                zone: format!("zone-{number}"),
                weight: 100,
            })
            .collect(),
        cosigners: vec![member(0).public_key()],
        replacement: Some(ReplacementPolicy {
            silent_ms_min: 600_000,
            join_token: Hash::from_bytes([0x77; 32]),
        }),
        open_registration: true,
    }
}

fn cluster() -> ClusterId {
    ClusterId::from_bytes(*descriptor().hash().as_bytes())
}

fn certificate() -> Certificate {
    Certificate {
        suite: SUITE,
        cluster: cluster(),
        principal: principal(),
        key: session().public_key(),
        scope: Scope::Full,
        issued: time(0),
        expires: time(12 * 3600),
    }
}

fn user_leaf() -> UserLeaf {
    UserLeaf {
        principal: principal(),
        identity: identity().public_key(),
        hpke: [0x68; 32],
        home: home(),
        custody: Custody::Local,
        keyring: payload_hash(&payload("keyring")),
        keyring_epoch: 1,
        login_record: payload_hash(&payload("login record")),
        invite: None,
    }
}

fn vault_leaf() -> VaultLeaf {
    VaultLeaf {
        home: home(),
        epoch: 0,
        key_commitment: Hash::from_bytes([0x4b; 32]),
        members: vec![VaultMember {
            principal: principal(),
            role: Role::Admin,
            sealed_key: vec![0x5e; 112],
        }],
        former_key: None,
        gateway_custody: true,
        padding: true,
    }
}

fn entry_leaf(inode: InodeId, kind: Kind) -> EntryLeaf {
    EntryLeaf {
        inode,
        kind,
        state: EntryState::Live,
        name: payload_hash(&payload("name")),
        wrap: vec![0x3a; if kind == Kind::Directory { 80 } else { 48 }],
        generation: 0,
        adopted_at: 0,
    }
}

fn attrs_leaf() -> AttrsLeaf {
    AttrsLeaf { payload: payload_hash(&payload("attributes")), generation: 0 }
}

/// Three slots: a chunk, a hole, a chunk.
fn slots() -> Vec<(u64, Slot)> {
    vec![(0, Slot::Chunk(chunk(0))), (2, Slot::Chunk(chunk(2)))]
}

fn head_leaf() -> HeadLeaf {
    HeadLeaf {
        version: 1,
        write: write(),
        generation: 0,
        class: ChunkClass::Small,
        slots: 3,
        root: manifest_root(3, &slots()),
        payload: payload_hash(&payload("version")),
        restored: 0,
    }
}

fn manifest_root(length: u64, slots: &[(u64, Slot)]) -> Option<Hash> {
    manifest::change(&BTreeMap::new(), None, 0, length, slots).unwrap().root
}

fn session_leaf(closed: bool) -> SessionLeaf {
    SessionLeaf { certificate: certificate().sign(&identity()), closed }
}

fn sealed_session_leaf() -> SealedSessionLeaf {
    SealedSessionLeaf { payload: payload_hash(&payload("sealed session")) }
}

fn staged_leaf() -> StagedLeaf {
    StagedLeaf {
        directory: home(),
        class: ChunkClass::Large,
        slots: 8192,
        root: manifest_root(8192, &[(0, Slot::Chunk(chunk(0)))]),
    }
}

fn leaf_hash_of(object: &Object, former: Option<LeafHash>, leaf: Leaf) -> LeafHash {
    LeafHash::of(&cluster(), object, former, &leaf)
}

fn first<K, L>(key: K, leaf: L) -> Change<K, L> {
    Change { key, expected: None, leaf }
}

/// One op of every kind; each names the leaf that an earlier one set.
fn ops() -> Vec<(&'static str, Op)> {
    let entry = entry_leaf(file(), Kind::File);
    let entry_hash = leaf_hash_of(&Object::Entry(entry_key(1)), None, Leaf::Entry(entry.clone()));
    let head_hash = leaf_hash_of(&Object::Head(file()), None, Leaf::Head(head_leaf()));
    let attrs_hash = leaf_hash_of(&Object::Attrs(file()), None, Leaf::Attrs(attrs_leaf()));
    let user_hash = leaf_hash_of(&Object::User(user_name()), None, Leaf::User(user_leaf()));
    let certificate_hash = certificate().hash();
    let session_hash =
        leaf_hash_of(&Object::Session(certificate_hash), None, Leaf::Session(session_leaf(false)));
    let moved = EntryLeaf { state: EntryState::Moved { to: entry_key(2) }, ..entry.clone() };
    let arrived = entry_leaf(file(), Kind::File);
    let arrived_hash =
        leaf_hash_of(&Object::Entry(entry_key(2)), None, Leaf::Entry(arrived.clone()));
    let removed = EntryLeaf { state: EntryState::Deleted, ..arrived.clone() };
    let removed_hash = leaf_hash_of(
        &Object::Entry(entry_key(2)),
        Some(arrived_hash),
        Leaf::Entry(removed.clone()),
    );
    let directory = InodeId::from_bytes([0xb2; 16]);
    vec![
        (
            "register",
            Op::Register {
                user: first(user_name(), user_leaf()),
                vault: first(home(), vault_leaf()),
                attrs: first(home(), attrs_leaf()),
            },
        ),
        (
            "update_user",
            Op::UpdateUser {
                user: Change {
                    key: user_name(),
                    expected: Some(user_hash),
                    leaf: UserLeaf {
                        keyring: payload_hash(&payload("second keyring")),
                        keyring_epoch: 2,
                        ..user_leaf()
                    },
                },
            },
        ),
        ("open_session", Op::OpenSession { session: first(certificate_hash, session_leaf(false)) }),
        (
            "close_session",
            Op::CloseSession {
                session: Change {
                    key: certificate_hash,
                    expected: Some(session_hash),
                    leaf: session_leaf(true),
                },
            },
        ),
        (
            "create_file",
            Op::Create {
                entry: first(entry_key(1), entry.clone()),
                attrs: first(file(), attrs_leaf()),
                head: Some(HeadChange {
                    change: first(file(), head_leaf()),
                    base: Base::Empty,
                    receipts_until: Some(time(3600)),
                }),
            },
        ),
        (
            "create_directory",
            Op::Create {
                entry: first(entry_key(3), entry_leaf(directory, Kind::Directory)),
                attrs: first(directory, attrs_leaf()),
                head: None,
            },
        ),
        (
            "commit",
            Op::Commit {
                head: HeadChange {
                    change: Change {
                        key: file(),
                        expected: Some(head_hash),
                        leaf: HeadLeaf {
                            version: 2,
                            write: WriteId::from_bytes([0xc2; 16]),
                            ..head_leaf()
                        },
                    },
                    base: Base::Version(1),
                    receipts_until: None,
                },
                attrs: Some(Change {
                    key: file(),
                    expected: Some(attrs_hash),
                    leaf: AttrsLeaf {
                        payload: payload_hash(&payload("other attributes")),
                        generation: 0,
                    },
                }),
            },
        ),
        (
            "stage",
            Op::Stage {
                staged: first(StagedKey { inode: file(), write: write() }, staged_leaf()),
                base: Base::Empty,
                receipts_until: Some(time(3600)),
            },
        ),
        (
            "set_attrs",
            Op::SetAttrs {
                attrs: Change { key: file(), expected: Some(attrs_hash), leaf: attrs_leaf() },
            },
        ),
        (
            "rename",
            Op::Rename {
                from: Change { key: entry_key(1), expected: Some(entry_hash), leaf: moved },
                to: first(entry_key(2), arrived.clone()),
            },
        ),
        (
            "remove",
            Op::Remove {
                entry: Change { key: entry_key(2), expected: Some(arrived_hash), leaf: removed },
                only_empty: true,
            },
        ),
        (
            "undelete",
            Op::Undelete {
                entry: Change { key: entry_key(2), expected: Some(removed_hash), leaf: arrived },
            },
        ),
        (
            "seal_session",
            Op::SealSession { sealed: first(certificate().hash(), sealed_session_leaf()) },
        ),
    ]
}

fn op(name: &str) -> Op {
    ops().into_iter().find(|(found, _)| *found == name).unwrap().1
}

fn header(author: Author, key: &Key) -> Header {
    let vault = leaf_hash_of(&Object::Vault(home()), None, Leaf::Vault(vault_leaf()));
    Header {
        cluster: cluster(),
        suite: SUITE,
        principal: principal(),
        author,
        key: key.public_key(),
        vaults: vec![vault],
        request: RequestId::from_bytes([0xee; 16]),
        not_after: time(120),
        ops: 0,
        ops_root: [0; 32],
    }
}

/// Three ops under one session's signature.
fn bundle() -> SignedBundle {
    let author = Author::Session(certificate().hash());
    let ops = [op("create_file"), op("create_directory"), op("rename")];
    header(author, &session()).sign(&ops, &session())
}

/// A registration and the first session, under the identity.
fn first_bundle() -> SignedBundle {
    let header = Header { vaults: Vec::new(), ..header(Author::Identity, &identity()) };
    header.sign(&[op("register"), op("open_session")], &identity())
}

fn tree(leaves: &[Vec<u8>]) -> Tree {
    let leaves: Vec<TreeHash> = leaves.iter().map(|leaf| leaf_hash(leaf)).collect();
    Tree::new(&leaves)
}

fn outcomes() -> Outcomes {
    let conflict = Rejection::Conflict { object: Object::Head(file()), current: Some(head_hash()) };
    vec![Ok(Outcome { charged_bytes: 66_000 }), Err(Rejection::NotFound), Err(conflict)]
}

fn head_hash() -> LeafHash {
    leaf_hash_of(&Object::Head(file()), None, Leaf::Head(head_leaf()))
}

fn rejections() -> Vec<Rejection> {
    vec![
        Rejection::Conflict { object: Object::Entry(entry_key(1)), current: None },
        Rejection::NotFound,
        Rejection::Denied,
        Rejection::NotADirectory,
        Rejection::IsADirectory,
        Rejection::NotEmpty,
        Rejection::IntoItself,
        Rejection::CrossHome,
        Rejection::TooDeep,
        Rejection::ReceiptsExpired,
        Rejection::Manifest,
        Rejection::Payload,
        Rejection::Invalid(Rule::TwoNames),
        Rejection::NameTaken,
        Rejection::InodeExists,
        Rejection::InviteRequired,
        Rejection::QuotaExceeded,
    ]
}

fn bundle_rejections() -> Vec<BundleRejection> {
    vec![
        BundleRejection::Malformed("why".to_owned()),
        BundleRejection::Signature,
        BundleRejection::Cluster,
        BundleRejection::Expired(time(0)),
        BundleRejection::Session,
        BundleRejection::VaultChanged,
    ]
}

/// The variant's name, as `Debug` shows it.
fn variant(value: &impl std::fmt::Debug) -> String {
    let shown = format!("{value:?}");
    shown.split([' ', '(', '{']).next().unwrap().to_owned()
}

// -- the file ---------------------------------------------------------------------------------------

/// The vectors under the name of the page that specifies them.
#[derive(Default)]
struct Vectors {
    page: &'static str,
    list: Vec<Value>,
}

impl Vectors {
    fn page(&mut self, page: &'static str) {
        self.page = page;
    }

    fn add(&mut self, name: &str, fields: Value) {
        let mut vector = json!({"page": self.page, "name": name});
        vector.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        self.list.push(vector);
    }

    /// A value that decodes to what it was, and nothing longer or shorter does.
    fn encoding<T>(&mut self, name: &str, value: &T, more: Value) -> Vec<u8>
    where
        T: borsh::BorshSerialize + BorshDeserialize + PartialEq + std::fmt::Debug,
    {
        let bytes = encode(value);
        assert_eq!(decode::<T>("vector", &bytes).as_ref(), Ok(value), "{name}");
        assert!(decode::<T>("vector", &[bytes.as_slice(), &[0]].concat()).is_err(), "{name}");
        assert!(decode::<T>("vector", &bytes[..bytes.len() - 1]).is_err(), "{name}");
        let mut fields = json!({"encoding": hex::encode(&bytes)});
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.add(name, fields);
        bytes
    }

    fn signature(&mut self, name: &str, key: &Key, domain: Domain, bytes: &[u8]) -> Signature {
        let signature = key.sign(domain, &cluster(), bytes);
        key.public_key().verify(domain, &cluster(), bytes, &signature).unwrap();
        self.add(
            name,
            json!({
                "seed": hex::encode(key.0.to_bytes()),
                "public_key": hex::encode(key.public_key().as_bytes()),
                "signed_bytes": hex::encode(signed_bytes(domain, &cluster(), bytes)),
                "signature": hex::encode(signature.as_bytes()),
            }),
        );
        signature
    }
}

fn shown(hash: &[u8]) -> String {
    hex::encode(hash)
}

fn optional(hash: Option<&[u8]>) -> Value {
    hash.map_or(Value::Null, |hash| json!(hex::encode(hash)))
}

fn build() -> Vec<Value> {
    let mut vectors = Vectors::default();
    names(&mut vectors);
    objects(&mut vectors);
    ops_page(&mut vectors);
    bundles(&mut vectors);
    manifests(&mut vectors);
    log(&mut vectors);
    sessions(&mut vectors);
    tickets_and_receipts(&mut vectors);
    descriptor_and_layout(&mut vectors);
    changes_of_the_cluster(&mut vectors);
    replacements(&mut vectors);
    vectors.list
}

fn names(vectors: &mut Vectors) {
    vectors.page("ids-and-names.md");
    vectors.encoding("cluster id", &cluster(), json!({"text": cluster().to_string()}));
    vectors.encoding("inode id", &file(), json!({"text": file().to_string()}));
    vectors.encoding("member id", &member_id(0), json!({"text": member_id(0).to_string()}));
    vectors.encoding("log time", &time(0), json!({"unix_ms": time(0).unix_ms()}));
    vectors.encoding("user name", &user_name(), json!({"text": "alice"}));
    let bytes = b"coffer".to_vec();
    let id = SealedChunk::hash(bytes.as_slice()).unwrap().id();
    vectors.add("chunk id", json!({"bytes": shown(&bytes), "chunk_id": id.to_string()}));
    vectors.encoding("shard key", &ShardKey::replica(id), json!({}));
    vectors.add(
        "payload hash",
        json!({"bytes": shown(&bytes), "hash": payload_hash(&bytes).to_string()}),
    );
    let file_names: [&[u8]; 26] = [
        b"a",
        "Übergröße.txt".as_bytes(),
        b"...",
        b" ",
        b"con",
        &[b'x'; 255],
        "\u{200d}".as_bytes(),
        "\u{1f600}".as_bytes(),
        b"a\\b",
        b"a\xc2\xa0b",
        b"",
        b".",
        b"..",
        b"a/b",
        b"a\0b",
        b"a\nb",
        b"a\x7fb",
        b"a\xc2\x85b",
        &[b'x'; 256],
        b"\xff\xfe",
        b"\xc0\xaf",
        b"\xed\xa0\x80",
        "a\u{202e}b".as_bytes(),
        "a\u{2066}b".as_bytes(),
        "U\u{308}ber".as_bytes(),
        "\u{212b}".as_bytes(),
    ];
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for name in file_names {
        let list = if FileName::from_bytes(name).is_ok() { &mut good } else { &mut bad };
        list.push(shown(name));
    }
    vectors.add("file names", json!({"accepted": good, "refused": bad}));
    let user_names = [
        "al",
        "alice",
        "0a",
        "a.b_c-d",
        "a.",
        "abcdefghijklmnopqrstuvwxyz012345",
        "",
        "a",
        "Alice",
        "-a",
        ".a",
        "_a",
        "a b",
        "ali\u{e7}e",
        "abcdefghijklmnopqrstuvwxyz0123456",
    ];
    let (good, bad): (Vec<&str>, Vec<&str>) =
        user_names.into_iter().partition(|name| name.parse::<UserName>().is_ok());
    vectors.add("user names", json!({"accepted": good, "refused": bad}));
    let deepest = format!("/alice{}", "/a".repeat(255));
    let deeper = format!("{deepest}/a");
    let paths = [
        "/",
        "/alice",
        "/alice/",
        "/alice/a/b",
        deepest.as_str(),
        "",
        "alice",
        "//",
        "/a",
        "/Alice",
        "/alice//x",
        "/alice/./x",
        "/alice/../bob",
        deeper.as_str(),
    ];
    let (good, bad): (Vec<&str>, Vec<&str>) =
        paths.into_iter().partition(|path| path.parse::<RemotePath>().is_ok());
    vectors.add("paths", json!({"accepted": good, "refused": bad}));
}

fn objects(vectors: &mut Vectors) {
    vectors.page("objects.md");
    let certificate_hash = certificate().hash();
    let staged_key = StagedKey { inode: file(), write: write() };
    let rows: [(&str, Object, Option<Leaf>); 10] = [
        ("entry", Object::Entry(entry_key(1)), Some(Leaf::Entry(entry_leaf(file(), Kind::File)))),
        (
            "entry, moved",
            Object::Entry(entry_key(1)),
            Some(Leaf::Entry(EntryLeaf {
                state: EntryState::Moved { to: entry_key(2) },
                ..entry_leaf(file(), Kind::File)
            })),
        ),
        ("head", Object::Head(file()), Some(Leaf::Head(head_leaf()))),
        ("attributes", Object::Attrs(file()), Some(Leaf::Attrs(attrs_leaf()))),
        ("vault", Object::Vault(home()), Some(Leaf::Vault(vault_leaf()))),
        ("user", Object::User(user_name()), Some(Leaf::User(user_leaf()))),
        ("group", Object::Group("editors".parse().unwrap()), None),
        ("session", Object::Session(certificate_hash), Some(Leaf::Session(session_leaf(false)))),
        ("staged", Object::Staged(staged_key), Some(Leaf::Staged(staged_leaf()))),
        (
            "sealed session",
            Object::SealedSession(certificate_hash),
            Some(Leaf::SealedSession(sealed_session_leaf())),
        ),
    ];
    for (name, object, leaf) in rows {
        vectors.encoding(&format!("object: {name}"), &object, json!({}));
        let Some(leaf) = leaf else { continue };
        let former = LeafHash::from_hash(Hash::from_bytes([0xf0; 32]));
        let hashes = json!({
            "leaf_hash_first": leaf_hash_of(&object, None, leaf.clone()).as_hash().to_string(),
            "leaf_hash_after_f0": leaf_hash_of(&object, Some(former), leaf.clone())
                .as_hash()
                .to_string(),
        });
        vectors.encoding(&format!("leaf: {name}"), &leaf, hashes);
    }
    let object = Object::Attrs(file());
    let preimage = encode(&(cluster(), &object, None::<LeafHash>, Leaf::Attrs(attrs_leaf())));
    let hash = leaf_hash_of(&object, None, Leaf::Attrs(attrs_leaf()));
    assert_eq!(Hash::of("coffer/v1/leaf", &preimage), *hash.as_hash());
    vectors.add(
        "leaf hash: what is hashed",
        json!({"preimage": shown(&preimage), "hash": hash.as_hash().to_string()}),
    );
}

fn ops_page(vectors: &mut Vectors) {
    vectors.page("ops.md");
    for (name, op) in ops() {
        let hashes: Vec<String> = op
            .changes()
            .iter()
            .map(|change| change.leaf_hash(&cluster()).as_hash().to_string())
            .collect();
        vectors.encoding(&format!("op: {name}"), &op, json!({"leaf_hashes": hashes}));
    }
    for (name, base) in
        [("empty", Base::Empty), ("version 1", Base::Version(1)), ("staged", Base::Staged)]
    {
        vectors.encoding(&format!("base: {name}"), &base, json!({}));
    }
}

fn bundles(vectors: &mut Vectors) {
    vectors.page("bundles.md");
    for (name, bundle, key) in
        [("by a session", bundle(), session()), ("by an identity", first_bundle(), identity())]
    {
        let Bundle { header, .. } = bundle.clone().verify(&cluster()).unwrap().into_inner();
        let tree = tree(&bundle.ops);
        assert_eq!(tree.root(), header.ops_root);
        let leaves: Vec<String> = bundle.ops.iter().map(|op| shown(&leaf_hash(op))).collect();
        let paths: Vec<Vec<String>> = (0..bundle.ops.len())
            .map(|index| tree.path(index).unwrap().iter().map(|hash| shown(hash)).collect())
            .collect();
        let more = json!({"op_leaves": leaves, "op_paths": paths, "ops_root": shown(&tree.root())});
        vectors.encoding(&format!("header, {name}"), &header, more);
        let signature = vectors.signature(
            &format!("signature of the header, {name}"),
            &key,
            Domain::Bundle,
            &bundle.header,
        );
        assert_eq!(signature, bundle.signature);
        vectors.encoding(&format!("signed bundle, {name}"), &bundle, json!({}));
    }
    let bundle = bundle();
    let proof = OpProof {
        header: bundle.header.clone(),
        signature: bundle.signature,
        index: 2,
        op: bundle.ops[2].clone(),
        path: tree(&bundle.ops).path(2).unwrap().to_vec(),
    };
    proof.verify(&cluster(), |_, _| false).unwrap();
    vectors.encoding("op proof", &proof, json!({}));
    let payloads = Payloads {
        blobs: ["name", "attributes", "version"].map(payload).to_vec(),
        slots: vec![OpSlots { op: 0, changes: slots() }],
    };
    vectors.encoding("payloads", &payloads, json!({}));
    let submission = Submission { bundle, payloads };
    let hash = submission_hash(&encode(&submission)).to_string();
    vectors.encoding("submission", &submission, json!({"submission_hash": hash}));
    vectors.encoding("outcomes", &outcomes(), json!({}));
    for (number, rejection) in rejections().into_iter().enumerate() {
        let name = variant(&rejection);
        let bytes =
            vectors.encoding(&format!("rejection: {name}"), &rejection, json!({"number": number}));
        assert_eq!(usize::from(bytes[0]), number);
    }
    for (number, rejection) in bundle_rejections().into_iter().enumerate() {
        let name = format!("bundle rejection: {}", variant(&rejection));
        let bytes = vectors.encoding(&name, &rejection, json!({"number": number}));
        assert_eq!(usize::from(bytes[0]), number);
    }
}

fn manifests(vectors: &mut Vectors) {
    vectors.page("manifests.md");
    vectors.encoding("slot: hole", &Slot::Hole, json!({}));
    vectors.encoding("slot: chunk", &Slot::Chunk(chunk(0)), json!({}));
    let dense = |count: u64| -> Vec<(u64, Slot)> {
        (0..count).map(|slot| (slot, Slot::Chunk(chunk(slot)))).collect()
    };
    let rows = [
        ("no slots", 0, Vec::new()),
        ("one hole", 1, Vec::new()),
        ("one chunk", 1, dense(1)),
        ("chunk, hole, chunk", 3, slots()),
        ("chunk and 63 holes", 64, dense(1)),
        ("65 chunks", 65, dense(65)),
        ("4,097 slots, the last one a chunk", 4097, vec![(4096, Slot::Chunk(chunk(4096)))]),
        ("2^40 slots, the last one a chunk", 1 << 40, vec![((1 << 40) - 1, Slot::Chunk(chunk(7)))]),
    ];
    for (name, length, slots) in rows {
        let changed = manifest::change(&BTreeMap::new(), None, 0, length, &slots).unwrap();
        let root = changed.root;
        let pages: BTreeMap<Hash, Vec<u8>> = changed.pages.into_iter().collect();
        let read = manifest::read(&pages, root, length, 0, length).unwrap();
        assert_eq!(read.len(), slots.len());
        let chunks: Vec<Value> = slots
            .iter()
            .map(|(slot, content)| json!([slot, hex::encode(encode(content))]))
            .collect();
        // Dense ones are said by rule, for brevity: slot n holds the chunk whose bytes are n (u64 LE).
        let chunks = if slots.len() > 2 { json!("dense") } else { json!(chunks) };
        let shown_pages: BTreeMap<String, String> =
            pages.iter().map(|(hash, bytes)| (hash.to_string(), hex::encode(bytes))).collect();
        vectors.add(
            &format!("manifest: {name}"),
            json!({
                "slots": length,
                "chunks": chunks,
                "height": manifest::height(length),
                "root": optional(root.as_ref().map(|root| root.as_bytes().as_slice())),
                "pages": shown_pages,
            }),
        );
    }
    let heights: Vec<Value> = [0, 1, 64, 65, 4096, 4097, 262_144, 262_145, 1 << 40]
        .into_iter()
        .map(|slots| json!([slots, manifest::height(slots)]))
        .collect();
    vectors.add("heights", json!({"slots_and_height": heights}));
    let hole = encode(&Slot::Hole);
    let full = encode(&Slot::Chunk(chunk(0)));
    let page =
        |kind: u8, count: u32, body: &[u8]| [&[kind], &count.to_le_bytes()[..], body].concat();
    let refused = [
        ("a leaf page without slots", page(0, 0, &[])),
        ("a leaf page that ends with a hole", page(0, 2, &[full.as_slice(), &hole].concat())),
        ("a leaf page of 65 slots", page(0, 65, &full.repeat(65))),
        ("an interior page without children", page(1, 0, &[])),
        ("an interior page that ends with an absent child", page(1, 1, &[0])),
        (
            "an interior page of 65 children",
            page(1, 65, &[[1; 1].as_slice(), &[9; 32]].concat().repeat(65)),
        ),
        ("an unknown kind of page", page(2, 1, &full)),
        ("an unknown kind of slot", page(0, 1, &[2])),
        ("a byte behind a page", [page(0, 1, &full), vec![0]].concat()),
    ];
    for (why, bytes) in refused {
        assert!(Page::parse(&bytes).is_err(), "{why}");
        vectors.add(&format!("refused: {why}"), json!({"page_bytes": shown(&bytes)}));
    }
}

fn log(vectors: &mut Vectors) {
    vectors.page("log.md");
    vectors.encoding("revision", &Revision { group: 0, sequence: 4 }, json!({}));
    let readings: Vec<ClockReading> = (0..2u8)
        .map(|number| {
            let time = time(u64::from(number));
            let signed = encode(&(member_id(number), time));
            let name = format!("signature of a clock reading, member {number}");
            let signature =
                vectors.signature(&name, &member(number), Domain::ClockReading, &signed);
            ClockReading { member: member_id(number), time, signature }
        })
        .collect();
    vectors.encoding("clock reading", &readings[0], json!({}));
    let report = NodeReport {
        node: node_id(0),
        number: 1,
        address: "node-0:7500".to_owned(),
        capacity_bytes: 1 << 40,
    };
    let report_bytes = vectors.encoding("node report", &report, json!({}));
    let report_signature = vectors.signature(
        "signature of a node report",
        &node(0),
        Domain::NodeReport,
        &report_bytes,
    );
    let bundle = first_bundle();
    let bodies = [
        (
            "genesis",
            LogTime::ZERO,
            LogBody::System(SystemOp::Genesis {
                descriptor: encode(&signed_descriptor()),
                layout: layout().sign(&cluster(), &administrator()),
            }),
        ),
        ("tick", time(0), LogBody::System(SystemOp::Tick { readings })),
        (
            "node report",
            time(0),
            LogBody::System(SystemOp::NodeReport {
                report: report_bytes,
                signature: report_signature,
            }),
        ),
        (
            "bundle",
            time(0),
            LogBody::Bundle {
                header: bundle.header,
                signature: bundle.signature,
                outcomes: vec![
                    Ok(Outcome { charged_bytes: 256 }),
                    Ok(Outcome { charged_bytes: 0 }),
                ],
            },
        ),
    ];
    let mut frontier = Frontier::default();
    vectors.encoding("frontier of no entries", &frontier, json!({"root": shown(&frontier.root())}));
    let mut leaves = Vec::new();
    for ((name, time, body), sequence) in bodies.into_iter().zip(0u64..) {
        let entry = LogEntry { sequence, time, body };
        leaves.push(entry.leaf());
        frontier.append(entry.leaf());
        assert_eq!(frontier.root(), coffer_model::merkle::root(&leaves));
        vectors.encoding(
            &format!("log entry {sequence}: {name}"),
            &entry,
            json!({"leaf": shown(&entry.leaf())}),
        );
        vectors.encoding(
            &format!("frontier of {} entries", sequence + 1),
            &frontier,
            json!({"root": shown(&frontier.root())}),
        );
    }
    let row = ChunkRow {
        chunk: chunk(0).chunk,
        length: chunk(0).length,
        inode: file(),
        scheme: Redundancy::Replicas,
    };
    vectors.encoding("chunk row", &row, json!({}));
}

fn sessions(vectors: &mut Vectors) {
    vectors.page("sessions.md");
    let certificate = certificate();
    let hash = certificate.hash();
    let bytes = vectors.encoding(
        "certificate",
        &certificate,
        json!({"certificate_hash": hash.as_hash().to_string()}),
    );
    let signature =
        vectors.signature("signature of the certificate", &identity(), Domain::Session, &bytes);
    let signed = certificate.sign(&identity());
    assert_eq!(signed.signature, signature);
    signed.verify(&identity().public_key()).unwrap();
    vectors.encoding("signed certificate", &signed, json!({}));
    let proof = SessionProof {
        audience: cluster(),
        certificate: hash,
        key: session().public_key(),
        expires_unix_ms: time(60).unix_ms(),
    };
    let bytes = vectors.encoding("session proof", &proof, json!({}));
    vectors.signature("signature of the session proof", &session(), Domain::SessionProof, &bytes);
    let header = proof.sign(&session());
    SessionProof::verify(&header, &cluster(), time(0).unix_ms()).unwrap();
    vectors.add("session proof header", json!({"value": shown(&header)}));
}

fn tickets_and_receipts(vectors: &mut Vectors) {
    vectors.page("tickets.md");
    let mut chunks: Vec<ChunkId> = [0, 1, 2].map(|seed| chunk(seed).chunk).to_vec();
    chunks.sort_unstable();
    for (name, leave) in [
        ("read", Leave::Read { chunks }),
        ("write", Leave::Write { home: home(), bytes_max: 1 << 20 }),
    ] {
        let ticket = Ticket {
            cluster: cluster(),
            member: member_id(0),
            principal: principal(),
            session: session().public_key(),
            leave,
            expires_unix_ms: time(60).unix_ms(),
        };
        let bytes = vectors.encoding(&format!("{name} ticket"), &ticket, json!({}));
        let name = format!("signature of the {name} ticket");
        vectors.signature(&name, &member(0), Domain::Ticket, &bytes);
        vectors.add(
            &format!("{name}, as it travels"),
            json!({"value": shown(&ticket.sign(&member(0)))}),
        );
    }

    vectors.page("receipts.md");
    let held: Vec<Held> = (0..3)
        .map(|seed| Held {
            shard: ShardKey::replica(chunk(seed).chunk),
            length: chunk(seed).length,
            keep_until: time(3600),
        })
        .collect();
    let tree = tree(&held.iter().map(encode).collect::<Vec<_>>());
    for (held, index) in held.iter().zip(0..) {
        vectors.encoding(&format!("held {index}"), held, json!({"leaf": shown(&held.leaf())}));
    }
    let flush = Flush { node: node_id(0), root: tree.root(), size: 3 };
    let bytes = vectors.encoding("flush", &flush, json!({}));
    let signature = vectors.signature("signature of the flush", &node(0), Domain::Receipt, &bytes);
    let receipt = Receipt {
        held: held[1].clone(),
        index: 1,
        path: tree.path(1).unwrap().to_vec(),
        flush,
        signature,
    };
    let bytes = vectors.encoding("receipt", &receipt, json!({}));
    let key = |id| descriptor().node_key(id);
    assert_eq!(Receipt::verify(&bytes, &cluster(), key), Ok(receipt));
}

fn signed_descriptor() -> SignedDescriptor {
    SignedDescriptor::first(&descriptor(), &[&administrator()])
}

/// Partition p lies on nodes p and p + 1, modulo three.
fn layout() -> Layout {
    let table = (0..1u16 << 10).flat_map(|partition| [partition % 3, (partition + 1) % 3]);
    Layout::new(1, 10, 2, (0..3).map(node_id).collect(), table.collect()).unwrap()
}

fn descriptor_and_layout(vectors: &mut Vectors) {
    vectors.page("descriptor.md");
    let bytes =
        vectors.encoding("descriptor", &descriptor(), json!({"cluster_id": cluster().to_string()}));
    vectors.signature("signature of the descriptor", &administrator(), Domain::Descriptor, &bytes);
    let signed = signed_descriptor();
    assert_eq!(signed.verify_first(Some(cluster())), Ok((cluster(), descriptor())));
    vectors.encoding("signed descriptor", &signed, json!({}));

    vectors.page("layout.md");
    let layout = layout();
    let bytes = vectors.encoding("layout", &layout, json!({}));
    vectors.signature("signature of the layout", &administrator(), Domain::Layout, &bytes);
    let signed = layout.sign(&cluster(), &administrator());
    let administrators = [administrator().public_key()];
    assert_eq!(Layout::verify(&signed, &cluster(), &administrators), Ok(layout.clone()));
    vectors.add("layout, as it travels", json!({"value": shown(&signed)}));
    let id = chunk(0).chunk;
    let holders: Vec<String> = layout.nodes_of(&id).map(|node| node.to_string()).collect();
    let partition = Partition::of(&id, layout.partition_bits()).number();
    vectors.add(
        "placement",
        json!({"chunk": id.to_string(), "partition": partition, "holders": holders}),
    );
}

/// The descriptor after the first: a node more, and registration by invite only.
fn next_descriptor() -> Descriptor {
    let mut next = Descriptor {
        number: 1,
        former: Some(descriptor().hash()),
        open_registration: false,
        ..descriptor()
    };
    next.nodes.push(StorageNode {
        id: node_id(3),
        key: node(3).public_key(),
        zone: "zone-0".to_owned(),
        weight: 50,
    });
    next
}

/// Partition p lies on nodes p and p + 1, modulo four.
fn next_layout() -> Layout {
    let table = (0..1u16 << 10).flat_map(|partition| [partition % 4, (partition + 1) % 4]);
    Layout::new(2, 10, 2, (0..4).map(node_id).collect(), table.collect()).unwrap()
}

fn changes_of_the_cluster(vectors: &mut Vectors) {
    vectors.page("descriptor.md");
    let hash = json!({"hash": next_descriptor().hash().to_string()});
    let bytes = vectors.encoding("next descriptor", &next_descriptor(), hash);
    let name = "signature of the next descriptor";
    vectors.signature(name, &administrator(), Domain::Descriptor, &bytes);
    let signed_next = SignedDescriptor::next(&cluster(), &next_descriptor(), &[&administrator()]);
    assert_eq!(signed_next.verify_next(&cluster(), &descriptor()), Ok(next_descriptor()));
    let signed_next = vectors.encoding("signed next descriptor", &signed_next, json!({}));

    vectors.page("layout.md");
    let bytes = vectors.encoding("next layout", &next_layout(), json!({}));
    vectors.signature("signature of the next layout", &administrator(), Domain::Layout, &bytes);
    let proof = ShareProof { node: node_id(3), layout: 2, position: 7 };
    let proof = vectors.encoding("proof of a share", &proof, json!({}));
    let name = "signature of the proof of a share";
    let proof_signature = vectors.signature(name, &node(3), Domain::ShareProof, &proof);
    let mut chunks = [0, 1].map(|seed| chunk(seed).chunk).to_vec();
    chunks.sort_unstable();
    let release = Release { member: member_id(0), node: node_id(0), time: time(3600), chunks };
    let bytes = vectors.encoding("release", &release, json!({}));
    vectors.signature("signature of the release", &member(0), Domain::Release, &bytes);

    vectors.page("orders.md");
    let secret = b"sixteen bytes at least";
    let orders = [
        ("retention", Decision::Retention { ms: 86_400_000 }),
        ("quota of a home", Decision::Quota { home: Some(home()), bytes: Some(1 << 30) }),
        ("quota of all homes", Decision::Quota { home: None, bytes: Some(1 << 34) }),
        ("no quota of its own", Decision::Quota { home: Some(home()), bytes: None }),
        ("invite", Decision::Invite { invite: payload_hash(secret), expires: time(86_400) }),
    ];
    let mut first = None;
    for ((name, what), number) in orders.into_iter().zip(1u64..) {
        let order = Order { number, what };
        let bytes = vectors.encoding(&format!("order: {name}"), &order, json!({}));
        let signature = format!("signature of the order: {name}");
        let signature = vectors.signature(&signature, &administrator(), Domain::Order, &bytes);
        let signed = (bytes, vec![(administrator().public_key(), signature)]);
        assert_eq!(order.sign(&cluster(), &[&administrator()]), signed);
        first.get_or_insert(signed);
    }
    vectors.add(
        "secret of the invite",
        json!({"secret": shown(secret), "payload_hash": payload_hash(secret).to_string()}),
    );

    proposals(vectors);

    vectors.page("log.md");
    let (order, signatures) = first.unwrap();
    let ops = [
        ("core version", SystemOp::CoreVersion { version: 2 }),
        ("next descriptor", SystemOp::NextDescriptor { descriptor: signed_next }),
        (
            "next layout",
            SystemOp::NextLayout { layout: next_layout().sign(&cluster(), &administrator()) },
        ),
        ("share proof", SystemOp::ShareProof { proof, signature: proof_signature }),
        ("order", SystemOp::Order { order, signatures }),
        ("purge", SystemOp::Purge { inode: file() }),
    ];
    for ((name, op), number) in ops.into_iter().zip(3u8..) {
        let bytes = vectors.encoding(&format!("system op: {name}"), &op, json!({}));
        assert_eq!(bytes[0], number);
    }
}

/// The descriptor before a replacement: with a policy.
fn descriptor_with_policy() -> Descriptor {
    let policy = ReplacementPolicy {
        silent_ms_min: 600_000,
        join_token: join_token_hash(&join_token().public_key()),
    };
    Descriptor {
        number: 2,
        former: Some(next_descriptor().hash()),
        replacement: Some(policy),
        ..next_descriptor()
    }
}

fn replacements(vectors: &mut Vectors) {
    let (former, token) = (descriptor_with_policy(), join_token());
    vectors.page("descriptor.md");
    vectors.add(
        "join token",
        json!({
            "key": shown(token.public_key().as_bytes()),
            "hash": join_token_hash(&token.public_key()).to_string(),
        }),
    );
    vectors.encoding(
        "descriptor with a policy",
        &former,
        json!({"hash": former.hash().to_string()}),
    );
    let lost = Replaced::Node { lost: node_id(1), new: node_id(4) };
    let next = former.with_node_replaced(node_id(1), node_id(4), node(4).public_key()).unwrap();
    let bytes = vectors.encoding("replacement of a node", &next, json!({}));
    let name = "signature of the join token over the replacement of a node";
    let by_token = vectors.signature(name, &token, Domain::Replacement, &bytes);
    let name = "signature of a member over the replacement of a node";
    let by_member = vectors.signature(name, &member(0), Domain::Replacement, &bytes);
    let by_other = member(2).sign(Domain::Replacement, &cluster(), &bytes);
    let signatures = vec![
        (token.public_key(), by_token),
        (member(0).public_key(), by_member),
        (member(2).public_key(), by_other),
    ];
    let signed = SignedDescriptor { bytes, signatures };
    let link = signed.verify_link(&cluster(), &former).unwrap().1;
    assert_eq!(link, Link::Replacement(lost));
    vectors.encoding("signed replacement of a node", &signed, json!({}));
    let next = former.with_member_replaced(member_id(1), member_id(3), member(3).public_key());
    let next = next.unwrap();
    assert!(next.replaces_in(&former).is_ok());
    vectors.encoding("replacement of a member", &next, json!({}));

    vectors.page("layout.md");
    let signed = next_layout().sign(&cluster(), &administrator());
    let replaced = Layout::with_replaced(&signed, node_id(1), node_id(4)).unwrap().unwrap();
    let administrators = [administrator().public_key()];
    let pairs = [(node_id(1), node_id(4))];
    let found = Layout::verify_replaced(&replaced, &cluster(), &administrators, &pairs).unwrap();
    assert_eq!(found.version(), 3);
    vectors.add("layout with a replacement, as it travels", json!({"value": shown(&replaced)}));
}

// -- tests ------------------------------------------------------------------------------------------

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn every_format_gives_the_bytes_it_always_gave() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/coffer_v1_formats.json");
    let built = json!({
        "about": "Vectors of docs/formats. All byte strings are hexadecimal.",
        "suite": SUITE,
        "cluster_id": cluster().to_string(),
        "vectors": build(),
    });
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        let text = serde_json::to_string_pretty(&built).unwrap() + "\n";
        std::fs::write(&path, text).unwrap();
        return;
    }
    let expected: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let (found, kept) =
        (built["vectors"].as_array().unwrap(), expected["vectors"].as_array().unwrap());
    for (found, kept) in found.iter().zip(kept) {
        assert_eq!(found, kept, "{} in {}", kept["name"], kept["page"]);
    }
    assert_eq!(found.len(), kept.len());
    assert_eq!(built["cluster_id"], expected["cluster_id"]);
}

#[test]
fn no_two_vectors_of_a_page_have_one_name() {
    let mut names = BTreeSet::new();
    for vector in build() {
        let name = (vector["page"].to_string(), vector["name"].to_string());
        assert!(names.insert(name.clone()), "{name:?}");
    }
}

#[test]
fn what_is_not_canonical_does_not_decode() {
    let object = encode(&Object::Head(file()));
    let unknown = [&[9u8], &object[1..]].concat();
    assert!(decode::<Object>("object", &unknown).is_err(), "unknown number");
    let upper = encode(&(4u8, "Alice".to_owned()));
    assert!(decode::<Object>("object", &upper).is_err(), "a user name that is none");
    let entry = encode(&Leaf::Attrs(attrs_leaf()));
    assert!(decode::<Leaf>("leaf", &[entry.as_slice(), &[0]].concat()).is_err(), "one byte more");
    let mut vault = encode(&vault_leaf());
    *vault.last_mut().unwrap() = 2;
    assert!(decode::<VaultLeaf>("vault", &vault).is_err(), "a bool that is neither 0 nor 1");
    let option = [2u8; 33];
    assert!(decode::<Option<Hash>>("option", &option).is_err(), "an option that is neither");
    let long = u32::MAX.to_le_bytes();
    assert!(decode::<Vec<u8>>("bytes", &long).is_err(), "a list that is not all there");
}

/// Every string literal below `coffer/v1/` in the sources of this crate.
fn domains_in_the_source() -> BTreeSet<String> {
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut domains = BTreeSet::new();
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let literals = text.split('"');
            domains
                .extend(literals.filter(|text| text.starts_with("coffer/v1/")).map(str::to_owned));
        }
    }
    domains
}

#[test]
fn the_documents_list_every_domain_string() {
    let readme = std::fs::read_to_string(repository().join("docs/formats/README.md")).unwrap();
    let domains = domains_in_the_source();
    assert!(domains.len() >= 16, "{domains:?}");
    for domain in domains {
        assert!(readme.contains(&format!("`{domain}`")), "{domain} is not in the document");
    }
}

#[test]
fn the_documents_number_every_rejection() {
    let page = std::fs::read_to_string(repository().join("docs/formats/bundles.md")).unwrap();
    let op_rows = rejections().iter().map(variant).collect::<Vec<_>>();
    let bundle_rows = bundle_rejections().iter().map(variant).collect::<Vec<_>>();
    for names in [op_rows, bundle_rows] {
        for (number, name) in names.iter().enumerate() {
            let row = format!("| {number} | `{name}` |");
            assert!(page.contains(&row), "no row {row:?}");
        }
    }
}

#[test]
fn every_vector_is_of_a_page_that_exists() {
    let pages: BTreeSet<String> =
        build().iter().map(|vector| vector["page"].as_str().unwrap().to_owned()).collect();
    for page in pages {
        assert!(repository().join("docs/formats").join(&page).exists(), "{page}");
    }
}

#[test]
fn the_table_of_limits_is_the_code_s() {
    let page = std::fs::read_to_string(repository().join("docs/semantics.md")).unwrap();
    let kib = |bytes: usize| format!("{} KiB", bytes >> 10);
    let mib = |bytes: usize| format!("{} MiB", bytes >> 20);
    let rows = [
        ("NAME_BYTES_MAX", coffer_model::name::NAME_BYTES_MAX.to_string()),
        ("PATH_DEPTH_MAX", coffer_model::name::PATH_DEPTH_MAX.to_string()),
        ("SLOTS_MAX", format!("2^{}", manifest::SLOTS_MAX.ilog2())),
        ("CHANGES_MAX", manifest::CHANGES_MAX.to_string()),
        ("PAGE_BYTES_MAX", kib(manifest::PAGE_BYTES_MAX)),
        ("BUNDLE_OPS_MAX", coffer_model::bundle::BUNDLE_OPS_MAX.to_string()),
        ("SUBMISSION_BYTES_MAX", mib(coffer_model::bundle::SUBMISSION_BYTES_MAX)),
        ("PAYLOAD_BYTES_MAX", kib(coffer_model::bundle::PAYLOAD_BYTES_MAX)),
        ("VAULTS_RELIED_MAX", coffer_model::bundle::VAULTS_RELIED_MAX.to_string()),
        ("NOT_AFTER_MS_MAX", format!("{} s", coffer_model::bundle::NOT_AFTER_MS_MAX / 1000)),
        ("WRAP_BYTES_MAX", format!("{} bytes", coffer_model::object::WRAP_BYTES_MAX)),
        ("VAULT_MEMBERS_MAX", coffer_model::object::VAULT_MEMBERS_MAX.to_string()),
        ("SESSION_MS_MAX", format!("{} h", coffer_model::session::SESSION_MS_MAX / 3_600_000)),
        ("PROOF_MS_MAX", format!("{} s", coffer_model::session::PROOF_MS_MAX / 1000)),
        ("CLOCK_SKEW_MS_MAX", format!("{} s", coffer_model::session::CLOCK_SKEW_MS_MAX / 1000)),
        ("TICKET_MS_MAX", format!("{} s", coffer_model::ticket::TICKET_MS_MAX / 1000)),
        ("TICKET_CHUNKS_MAX", coffer_model::ticket::TICKET_CHUNKS_MAX.to_string()),
        ("RECEIPT_LEAVES_MAX", coffer_model::receipt::RECEIPT_LEAVES_MAX.to_string()),
        ("SEALED_BYTES_MAX", coffer_model::chunk::SEALED_BYTES_MAX.to_string()),
    ];
    for (name, value) in rows {
        let row = page.lines().find(|line| line.contains(&format!("`{name}`")));
        let row = row.unwrap_or_else(|| panic!("no row for {name}")).replace(',', "");
        assert!(row.contains(&format!("| {value}")), "{name} is {value}, the table says {row}");
    }
}

/// What signs in the examples is what the examples say.
#[test]
fn a_certificate_hash_is_not_the_hash_of_something_else() {
    let bytes = encode(&certificate());
    let hash = CertificateHash::from_hash(Hash::of("coffer/v1/session-certificate", &bytes));
    assert_eq!(hash, certificate().hash());
    assert_ne!(*hash.as_hash(), payload_hash(&bytes));
}

/// Both kinds of proposals, signed by the one administrator of the first descriptor.
fn proposals(vectors: &mut Vectors) {
    vectors.page("proposals.md");
    let descriptor = descriptor();
    let present = Present { cluster: cluster(), descriptor: &descriptor, order_number: 1 };
    let what = Decision::Quota { home: Some(home()), bytes: Some(1 << 30) };
    let order = Order { number: 2, what };
    let next = Proposed::Descriptor(Box::new(next_descriptor()));
    let user = user_name();
    for (name, mut proposal, proposed) in [
        ("descriptor", Proposal::of_descriptor(cluster(), &next_descriptor()), next),
        (
            "order",
            Proposal::of_order(cluster(), &order, Some(&user)),
            Proposed::Order { order: order.clone(), user: Some(user.clone()) },
        ),
    ] {
        proposal.sign(present, &administrator()).unwrap();
        let bytes = proposal.to_bytes();
        assert_eq!(Proposal::from_bytes(&bytes), Ok(proposal.clone()));
        assert_eq!(proposal.review(present).unwrap().proposed, proposed);
        vectors.add(&format!("proposal of a {name}"), json!({"file": hex::encode(&bytes)}));
    }
}
