//! Makes `tests/decoder/fixture.json`: one directory with a few files, signed and sealed as the engine
//! does it, under fixed keys and write ids. `tests/decoder/decode.py`, written from the format documents
//! alone, opens it. `UPDATE_EXPECT=1` rewrites the file; its schema is `tests/decoder/README.md`.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use coffer_crypto::chunk::{ChunkContext, seal_chunk};
use coffer_crypto::content::{Attrs, Mode, VersionInfo, Xattrs};
use coffer_crypto::hpke::{HpkeSecret, VaultKeyContext, open_vault_key};
use coffer_crypto::keys::{ChildSecret, DirectorySecret, FileKey, ObjectKey};
use coffer_crypto::names::NameContext;
use coffer_crypto::padding::{Padding, padded_len};
use coffer_crypto::plaintext::Plaintext;
use coffer_crypto::seal::{AttrsContext, VersionContext, seal_attrs, seal_version};
use coffer_crypto::session::SessionSecrets;
use coffer_crypto::wrap::WrapContext;
use coffer_model::SUITE;
use coffer_model::bundle::{Author, Header, OpProof, SignedBundle};
use coffer_model::chunk::{ChunkClass, Redundancy};
use coffer_model::encoding::encode;
use coffer_model::hash::{Hash, payload_hash};
use coffer_model::id::{ChunkId, ClusterId, InodeId, PrincipalId, RequestId, WriteId};
use coffer_model::manifest::{self, Slot, SlotChunk};
use coffer_model::merkle::{Tree, leaf_hash};
use coffer_model::name::FileName;
use coffer_model::object::{
    AttrsLeaf, Custody, EntryKey, EntryLeaf, EntryState, HeadLeaf, Kind, Leaf, LeafHash, Object,
    Role, SessionLeaf, UserLeaf, VaultLeaf, VaultMember,
};
use coffer_model::op::{Base, Change, HeadChange, Op};
use coffer_model::session::{Certificate, Scope};
use coffer_model::signing::{Domain, PublicKey, Signature, Signer, signed_bytes};
use coffer_model::time::LogTime;
use ed25519_dalek::{Signer as _, SigningKey};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const CLUSTER: ClusterId = ClusterId::from_bytes([0xc0; 32]);
const PRINCIPAL: PrincipalId = PrincipalId::from_bytes([0xa1; 16]);
const HOME: InodeId = InodeId::from_bytes([0xb0; 16]);
const HPKE_SECRET: [u8; 32] = [0x68; 32];
const DIRECTORY_KEY: [u8; 32] = [0xd1; 32];
const DIRECTORY_TAG_KEY: [u8; 32] = [0xd2; 32];
/// Key and tag key, sealed to the member of the vault. Sealing takes fresh randomness, so it was done
/// once; that it opens to the keys above is checked with every run.
const SEALED_VAULT_KEY: &str = "e183e336ad4faffdb6bfe0def0e6cd8850dddb3ac5ebaa76024882b62382f818\
                                44f27662287dc7dec200780b604379fbe56d7f10722d57c0c79e2c82d0c6a5e1\
                                1622302879bf59c72c900800106a8e6ad5c0dd0566b22a6f9b825f91948e1b1f\
                                74cae893f4d7195a20d62bf1e93dcb88";
const CLASS: ChunkClass = ChunkClass::Small;
const CLASS_BYTES: usize = 64 << 10;

struct Key(SigningKey);

impl Signer for Key {
    fn public_key(&self) -> PublicKey {
        PublicKey::from_bytes(self.0.verifying_key().to_bytes())
    }

    fn sign(&self, domain: Domain, cluster: &ClusterId, bytes: &[u8]) -> Signature {
        Signature::from_bytes(self.0.sign(&signed_bytes(domain, cluster, bytes)).to_bytes())
    }
}

fn identity() -> Key {
    Key(SigningKey::from_bytes(&[1; 32]))
}

fn session() -> Key {
    Key(SigningKey::from_bytes(&[2; 32]))
}

fn time(seconds: u64) -> LogTime {
    LogTime::from_unix_ms(1_790_000_000_000 + seconds * 1000)
}

fn certificate() -> Certificate {
    Certificate {
        suite: SUITE,
        cluster: CLUSTER,
        principal: PRINCIPAL,
        key: session().public_key(),
        scope: Scope::Full,
        issued: time(0),
        expires: time(12 * 3600),
    }
}

fn commitment() -> Hash {
    let committed = encode(&(SUITE, CLUSTER, HOME, 0u32, DIRECTORY_KEY, DIRECTORY_TAG_KEY));
    Hash::of("coffer/v1/vault-key-commitment", &committed)
}

fn hpke() -> HpkeSecret {
    let secrets = encode(&([0u8; 32], HPKE_SECRET, 0u32));
    let length = u32::try_from(secrets.len()).unwrap().to_le_bytes();
    SessionSecrets::from_secret_bytes(&[length.as_slice(), &secrets].concat()).unwrap().hpke
}

/// The directory's secrets, got the way a member gets them: opened with the member's HPKE secret.
fn directory() -> DirectorySecret {
    let context = VaultKeyContext { cluster: CLUSTER, vault: HOME, epoch: 0, principal: PRINCIPAL };
    let sealed = hex::decode(SEALED_VAULT_KEY).unwrap();
    open_vault_key(&hpke(), &context, &commitment(), &sealed).unwrap()
}

fn first<K, L>(key: K, leaf: L) -> Change<K, L> {
    Change { key, expected: None, leaf }
}

fn hash_of(object: &Object, former: Option<LeafHash>, leaf: Leaf) -> LeafHash {
    LeafHash::of(&CLUSTER, object, former, &leaf)
}

fn bundle(author: Author, key: &Key, request: u8, ops: &[Op]) -> SignedBundle {
    let header = Header {
        cluster: CLUSTER,
        suite: SUITE,
        principal: PRINCIPAL,
        author,
        key: key.public_key(),
        vaults: Vec::new(),
        request: RequestId::from_bytes([request; 16]),
        not_after: time(120),
        ops: 0,
        ops_root: [0; 32],
    };
    let signed = header.sign(ops, key);
    signed.clone().verify(&CLUSTER).unwrap();
    signed
}

fn proof(bundle: &SignedBundle, index: u16) -> String {
    let leaves: Vec<_> = bundle.ops.iter().map(|op| leaf_hash(op)).collect();
    let at = usize::from(index);
    let proof = OpProof {
        header: bundle.header.clone(),
        signature: bundle.signature,
        index,
        op: bundle.ops[at].clone(),
        path: Tree::new(&leaves).path(at).unwrap().to_vec(),
    };
    proof.verify(&CLUSTER, |_, _| false).unwrap();
    hex::encode(encode(&proof))
}

/// Bytes that are not all alike and do not repeat with any power of two.
fn content(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| ((at * 31 + at / 251 + seed) % 256).to_le_bytes()[0]).collect()
}

/// Something under a name of the directory, sealed and wrapped.
struct Item {
    key: FileKey,
    wrap: Vec<u8>,
    inode: InodeId,
    kind: Kind,
    seed: u8,
}

impl Item {
    fn new(directory: &DirectorySecret, seed: u8, kind: Kind) -> Self {
        let write = WriteId::from_bytes([seed; 16]);
        let inode = directory.inode_for(&write);
        let context =
            WrapContext { cluster: CLUSTER, directory: HOME, child: inode, generation: 0 };
        let wrap = directory.wrap(&context, &ChildSecret::File(directory.file_key_for(&write)));
        Self { key: directory.file_key_for(&write), wrap, inode, kind, seed }
    }

    fn write(&self) -> WriteId {
        WriteId::from_bytes([self.seed; 16])
    }

    /// The entry's leaf and its sealed name.
    fn entry(&self, directory: &DirectorySecret, name: &str) -> (EntryKey, EntryLeaf, Vec<u8>) {
        let name: FileName = name.parse().unwrap();
        let context = NameContext { cluster: CLUSTER, directory: HOME, inode: self.inode };
        let sealed = directory.seal_name(&context, &[self.seed ^ 0x0f; 16], &name);
        let leaf = EntryLeaf {
            inode: self.inode,
            kind: self.kind,
            state: EntryState::Live,
            name: payload_hash(&sealed),
            wrap: self.wrap.clone(),
            generation: 0,
            adopted_at: 0,
        };
        (EntryKey { directory: HOME, tag: directory.name_tag(&name) }, leaf, sealed)
    }

    fn attrs(&self, mode: u32, mtime_ns: i64, xattrs: &[(&[u8], &[u8])]) -> (AttrsLeaf, Vec<u8>) {
        let mut set = Xattrs::default();
        for (name, value) in xattrs {
            set.insert(name, value).unwrap();
        }
        let attrs = Attrs { mode: Mode::from_bits(mode), mtime_ns, xattrs: set };
        let context = AttrsContext { cluster: CLUSTER, inode: self.inode };
        let sealed = seal_attrs(
            ObjectKey::File(&self.key),
            &context,
            &[self.seed ^ 0xf0; 16],
            &attrs.encode(Padding::Bucket),
        );
        (AttrsLeaf { payload: payload_hash(&sealed), generation: 0 }, sealed)
    }

    fn version(&self, write: WriteId, info: &VersionInfo) -> Vec<u8> {
        let context = VersionContext { cluster: CLUSTER, inode: self.inode, write };
        seal_version(&self.key, &context, &info.encode(Padding::Bucket).unwrap())
    }
}

/// Pages and chunks that were made so far.
#[derive(Default)]
struct Store {
    pages: BTreeMap<Hash, Vec<u8>>,
    chunks: BTreeMap<ChunkId, Vec<u8>>,
}

impl Store {
    /// Seals the given slots, the last one of the file padded.
    fn seal(
        &mut self,
        item: &Item,
        write: WriteId,
        slots: &[(u64, &[u8])],
        last: u64,
    ) -> Vec<(u64, Slot)> {
        let seal = |(slot, plaintext): &(u64, &[u8])| {
            let mut padded = plaintext.to_vec();
            if *slot == last {
                padded.resize(padded_len(plaintext.len(), CLASS_BYTES), 0);
            }
            let context = ChunkContext { cluster: CLUSTER, inode: item.inode, write, slot: *slot };
            let sealed = seal_chunk(&item.key, &context, &padded).unwrap();
            let chunk = SlotChunk {
                chunk: sealed.id(),
                length: u32::try_from(sealed.bytes().len()).unwrap(),
                write,
                generation: 0,
                scheme: Redundancy::Replicas,
            };
            self.chunks.insert(sealed.id(), sealed.into_bytes());
            (*slot, Slot::Chunk(chunk))
        };
        slots.iter().map(seal).collect()
    }

    fn manifest(
        &mut self,
        old: (Option<Hash>, u64),
        slots: u64,
        changes: &[(u64, Slot)],
    ) -> Option<Hash> {
        let changed = manifest::change(&self.pages, old.0, old.1, slots, changes).unwrap();
        self.pages.extend(changed.pages);
        changed.root
    }

    /// The pages a server would hand out with this head.
    fn pages_of(&self, head: &HeadLeaf) -> Vec<String> {
        let mut pages = Vec::new();
        let mut visit = |hash: &Hash| {
            pages.push(hex::encode(&self.pages[hash]));
            manifest::Page::parse(&self.pages[hash])
        };
        manifest::walk(&mut visit, head.root, head.slots, 0, head.slots).unwrap();
        pages
    }

    fn chunks(&self) -> BTreeMap<String, String> {
        let shown = |(id, sealed): (&ChunkId, &Vec<u8>)| (id.to_string(), hex::encode(sealed));
        self.chunks.iter().map(shown).collect()
    }
}

struct Made {
    entry: String,
    head: String,
    head_former: Option<String>,
    attrs: String,
    sealed_name: Vec<u8>,
    sealed_attrs: Vec<u8>,
    version: Vec<u8>,
    pages: Vec<String>,
}

impl Made {
    fn file(&self) -> Value {
        json!({
            "entry": self.entry,
            "name": hex::encode(&self.sealed_name),
            "attrs": self.attrs,
            "attrs_payload": hex::encode(&self.sealed_attrs),
            "head": self.head,
            "head_former": self.head_former,
            "head_payload": hex::encode(&self.version),
            "pages": self.pages,
        })
    }
}

fn with(mut file: Value, field: &str, value: Value) -> Value {
    file[field] = value;
    file
}

fn create(entry: (EntryKey, EntryLeaf), attrs: AttrsLeaf, head: HeadLeaf) -> Op {
    let inode = entry.1.inode;
    let has_chunks = head.root.is_some();
    Op::Create {
        entry: first(entry.0, entry.1),
        attrs: first(inode, attrs),
        head: Some(HeadChange {
            change: first(inode, head),
            base: Base::Empty,
            receipts_until: has_chunks.then(|| time(3600)),
        }),
    }
}

fn head_leaf(write: WriteId, slots: u64, root: Option<Hash>, payload: &[u8]) -> HeadLeaf {
    HeadLeaf {
        version: 1,
        write,
        generation: 0,
        class: CLASS,
        slots,
        root,
        payload: payload_hash(payload),
        restored: 0,
    }
}

fn build() -> Value {
    let directory = directory();
    let mut store = Store::default();

    // A user with a home, and a session.
    let register = Op::Register {
        user: first(
            "alice".parse().unwrap(),
            UserLeaf {
                principal: PRINCIPAL,
                identity: identity().public_key(),
                hpke: *hpke().public_key().as_bytes(),
                home: HOME,
                custody: Custody::Local,
                keyring: payload_hash(b"keyring"),
                keyring_epoch: 1,
                login_record: payload_hash(b"login record"),
                invite: None,
            },
        ),
        vault: first(
            HOME,
            VaultLeaf {
                home: HOME,
                epoch: 0,
                key_commitment: commitment(),
                members: vec![VaultMember {
                    principal: PRINCIPAL,
                    role: Role::Admin,
                    sealed_key: hex::decode(SEALED_VAULT_KEY).unwrap(),
                }],
                former_key: None,
                gateway_custody: true,
                padding: true,
            },
        ),
        attrs: first(HOME, AttrsLeaf { payload: payload_hash(b"home"), generation: 0 }),
    };
    let open_session = Op::OpenSession {
        session: first(
            certificate().hash(),
            SessionLeaf { certificate: certificate().sign(&identity()), closed: false },
        ),
    };
    let arrival = bundle(Author::Identity, &identity(), 1, &[register, open_session]);

    // 150,000 bytes in three slots, of which the middle one is a hole.
    let large = Item::new(&directory, 0x31, Kind::File);
    let mut large_content = content(150_000, 7);
    large_content[CLASS_BYTES..2 * CLASS_BYTES].fill(0);
    let large_slots = store.seal(
        &large,
        large.write(),
        &[(0, &large_content[..CLASS_BYTES]), (2, &large_content[2 * CLASS_BYTES..])],
        2,
    );
    let large_root = store.manifest((None, 0), 3, &large_slots);
    let large_version = large.version(
        large.write(),
        &VersionInfo { length: 150_000, mtime_ns: 1_789_999_000_123_456_789, inline: None },
    );
    let large_head = head_leaf(large.write(), 3, large_root, &large_version);
    let (large_key, large_leaf, large_name) = large.entry(&directory, "Übergröße.bin");
    let (large_attrs, large_sealed_attrs) =
        large.attrs(0o640, 0, &[(b"user.colour", b"blue"), (b"user.empty", b"")]);

    // A file that was made as `draft` with five bytes in it, then grew to a hundred slots, nearly all
    // of them holes, and got another name.
    let sparse = Item::new(&directory, 0x32, Kind::File);
    let draft_version = sparse.version(
        sparse.write(),
        &VersionInfo { length: 5, mtime_ns: 1, inline: Some(Plaintext::from(b"draft".to_vec())) },
    );
    let draft_head = head_leaf(sparse.write(), 0, None, &draft_version);
    let (draft_key, draft_leaf, _) = sparse.entry(&directory, "draft");
    let (sparse_attrs, sparse_sealed_attrs) = sparse.attrs(0o600, 0, &[]);
    let grown = WriteId::from_bytes([0x42; 16]);
    let tail = content(500, 99);
    let sparse_slots = store.seal(&sparse, grown, &[(99, &tail)], 99);
    let sparse_root = store.manifest((None, 0), 100, &sparse_slots);
    let sparse_length = 99 * CLASS_BYTES + tail.len();
    let sparse_version = sparse
        .version(grown, &VersionInfo { length: sparse_length as u64, mtime_ns: 2, inline: None });
    let sparse_head =
        HeadLeaf { version: 2, ..head_leaf(grown, 100, sparse_root, &sparse_version) };
    let (sparse_key, sparse_leaf, sparse_name) = sparse.entry(&directory, "sparse");
    let draft_head_hash =
        hash_of(&Object::Head(sparse.inode), None, Leaf::Head(draft_head.clone()));
    let draft_hash = hash_of(&Object::Entry(draft_key), None, Leaf::Entry(draft_leaf.clone()));

    // A symlink.
    let link = Item::new(&directory, 0x33, Kind::Symlink);
    let target = "Übergröße.bin".as_bytes().to_vec();
    let link_version = link.version(
        link.write(),
        &VersionInfo {
            length: target.len() as u64,
            mtime_ns: 3,
            inline: Some(Plaintext::from(target.clone())),
        },
    );
    let link_head = head_leaf(link.write(), 0, None, &link_version);
    let (link_key, link_leaf, link_name) = link.entry(&directory, "link");
    let (link_attrs, link_sealed_attrs) = link.attrs(0o777, 3, &[]);

    let author = Author::Session(certificate().hash());
    let creation = bundle(
        author,
        &session(),
        2,
        &[
            create((large_key, large_leaf.clone()), large_attrs.clone(), large_head.clone()),
            create((draft_key, draft_leaf.clone()), sparse_attrs, draft_head),
            create((link_key, link_leaf), link_attrs, link_head.clone()),
        ],
    );
    let change = bundle(
        author,
        &session(),
        3,
        &[
            Op::Commit {
                head: HeadChange {
                    change: Change {
                        key: sparse.inode,
                        expected: Some(draft_head_hash),
                        leaf: sparse_head.clone(),
                    },
                    base: Base::Empty,
                    receipts_until: Some(time(3600)),
                },
                attrs: None,
            },
            Op::Rename {
                from: Change {
                    key: draft_key,
                    expected: Some(draft_hash),
                    leaf: EntryLeaf {
                        state: EntryState::Moved { to: sparse_key },
                        ..draft_leaf.clone()
                    },
                },
                to: first(sparse_key, sparse_leaf),
            },
        ],
    );

    let large_made = Made {
        entry: proof(&creation, 0),
        head: proof(&creation, 0),
        head_former: None,
        attrs: proof(&creation, 0),
        sealed_name: large_name,
        sealed_attrs: large_sealed_attrs,
        version: large_version,
        pages: store.pages_of(&large_head),
    };
    let sparse_made = Made {
        entry: proof(&change, 1),
        head: proof(&change, 0),
        head_former: Some(proof(&creation, 1)),
        attrs: proof(&creation, 1),
        sealed_name: sparse_name,
        sealed_attrs: sparse_sealed_attrs,
        version: sparse_version,
        pages: store.pages_of(&sparse_head),
    };
    let link_made = Made {
        entry: proof(&creation, 2),
        head: proof(&creation, 2),
        head_former: None,
        attrs: proof(&creation, 2),
        sealed_name: link_name,
        sealed_attrs: link_sealed_attrs,
        version: link_version,
        pages: store.pages_of(&link_head),
    };

    // What a writer with a good signature could lie about, and what servers could mix up.
    let (_, _, other_name) = large.entry(&directory, "another name");
    let lying_leaf = EntryLeaf { name: payload_hash(&other_name), ..large_leaf.clone() };
    let swapped: Vec<(u64, Slot)> = vec![(0, large_slots[1].1), (2, large_slots[0].1)];
    let swapped_root = store.manifest((None, 0), 3, &swapped);
    let swapped_head = HeadLeaf { root: swapped_root, ..large_head.clone() };
    let lies = bundle(
        author,
        &session(),
        4,
        &[
            create((large_key, lying_leaf), large_attrs.clone(), large_head.clone()),
            create((large_key, large_leaf.clone()), large_attrs.clone(), swapped_head.clone()),
        ],
    );
    let stranger = Key(SigningKey::from_bytes(&[9; 32]));
    let by_stranger =
        bundle(author, &stranger, 5, &[create((large_key, large_leaf), large_attrs, large_head)]);
    let lying_name = with(
        with(large_made.file(), "entry", json!(proof(&lies, 0))),
        "name",
        json!(hex::encode(&other_name)),
    );
    let swapped_slots = with(
        with(large_made.file(), "head", json!(proof(&lies, 1))),
        "pages",
        json!(store.pages_of(&swapped_head)),
    );
    let unknown_author = with(large_made.file(), "entry", json!(proof(&by_stranger, 0)));

    let mut sparse_content = vec![0; 99 * CLASS_BYTES];
    sparse_content.extend_from_slice(&tail);
    let expected = |name: &str, kind: &str, mode: &str, content: &[u8]| {
        json!({
            "name": name,
            "kind": kind,
            "mode": mode,
            "length": content.len(),
            "sha256": hex::encode(Sha256::digest(content)),
        })
    };
    json!({
        "about": "Written by crates/crypto/tests/decoder_fixture.rs; see README.md.",
        "format": 1,
        "keys": {
            "cluster": CLUSTER.to_string(),
            "identity": identity().public_key().to_string(),
            "principal": PRINCIPAL.to_string(),
            "directory": HOME.to_string(),
            "directory_key": hex::encode(DIRECTORY_KEY),
            "directory_tag_key": hex::encode(DIRECTORY_TAG_KEY),
        },
        "user": proof(&arrival, 0),
        "session": proof(&arrival, 1),
        "chunks": store.chunks(),
        "files": [large_made.file(), sparse_made.file(), link_made.file()],
        "expected": [
            expected("Übergröße.bin", "file", "0640", &large_content),
            expected("sparse", "file", "0600", &sparse_content),
            expected("link", "symlink", "0777", &target),
        ],
        "refused": [
            {"why": "name", "what": "the sealed name of another entry, well signed", "file": lying_name},
            {"why": "chunk", "what": "two chunks in each other's slots, well signed", "file": swapped_slots},
            {"why": "author", "what": "signed by a key that is not the session's", "file": unknown_author},
        ],
    })
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/decoder/fixture.json")
}

#[test]
fn the_decoder_s_fixture_is_what_the_engine_makes() {
    let built = build();
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(path(), serde_json::to_string_pretty(&built).unwrap() + "\n").unwrap();
        return;
    }
    let kept: Value = serde_json::from_str(&std::fs::read_to_string(path()).unwrap()).unwrap();
    for field in ["keys", "user", "session", "files", "expected"] {
        assert_eq!(built[field], kept[field], "{field}");
    }
    assert!(built == kept, "the files differ; nothing signed or sealed may change");
}
