//! A cluster in memory, users who act in it, and the pieces ops are made of. Every key and id follows
//! from a word, so the same test makes the same bytes.

use std::collections::BTreeMap;

use coffer_metadata_core::state::{Layouts, Row, entry_key, load, meta, staged_key};
use coffer_metadata_core::{
    Command, MemoryTables, Overlay, Prepared, Reply, Table, apply, layout, query,
};
use coffer_model::SUITE;
use coffer_model::bundle::{Author, Header, OpSlots, Payloads, SignedBundle, Submission};
use coffer_model::chunk::{ChunkClass, Redundancy};
use coffer_model::descriptor::{Descriptor, Member, SignedDescriptor, StorageNode};
use coffer_model::encoding::{decode, encode};
use coffer_model::hash::{Hash, payload_hash};
use coffer_model::id::{
    ChunkId, ClusterId, InodeId, MemberId, NameTag, NodeId, PrincipalId, RequestId, WriteId,
};
use coffer_model::layout::Layout;
use coffer_model::log::{ClockReading, NodeReport, SystemOp};
use coffer_model::manifest::{self, CHANGES_MAX, Root, Slot, SlotChunk};
use coffer_model::name::UserName;
use coffer_model::object::{
    AttrsLeaf, Custody, EntryKey, EntryLeaf, EntryState, HeadLeaf, Kind, LeafHash, Role,
    SealedSessionLeaf, SessionLeaf, StagedKey, StagedLeaf, UserLeaf, VaultLeaf, VaultMember,
};
use coffer_model::op::{Base, Change, HeadChange, Op};
use coffer_model::order::{Decision, Order};
use coffer_model::session::{Certificate, CertificateHash, SESSION_MS_MAX, Scope};
use coffer_model::share::ShareProof;
use coffer_model::signing::{Domain, PublicKey, Signature, Signer, signed_bytes};
use coffer_model::time::LogTime;
use ed25519_dalek::{Signer as _, SigningKey};

/// Log time after the first tick of every test cluster.
pub(crate) const START_MS: u64 = 1_700_000_000_000;

/// A secret key.
#[derive(Clone)]
pub(crate) struct Key(SigningKey);

impl Key {
    pub(crate) fn of(word: &str) -> Self {
        Self(SigningKey::from_bytes(blake3::hash(word.as_bytes()).as_bytes()))
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

/// 16 bytes that follow from a word.
pub(crate) fn id16(word: &str) -> [u8; 16] {
    let hash = blake3::hash(word.as_bytes());
    *hash.as_bytes().first_chunk().unwrap()
}

pub(crate) fn inode(word: &str) -> InodeId {
    InodeId::from_bytes(id16(&format!("inode {word}")))
}

pub(crate) fn write(word: &str) -> WriteId {
    WriteId::from_bytes(id16(&format!("write {word}")))
}

/// The key of a name in a directory; the tag of the same name elsewhere is another.
pub(crate) fn key(directory: InodeId, name: &str) -> EntryKey {
    let tag = *blake3::hash(format!("tag {directory} {name}").as_bytes()).as_bytes();
    EntryKey { directory, tag: NameTag::from_bytes(tag) }
}

/// A chunk that follows from a number.
pub(crate) fn chunk(number: u64) -> SlotChunk {
    let id = *blake3::hash(format!("chunk {number}").as_bytes()).as_bytes();
    SlotChunk {
        chunk: ChunkId::from_bytes(id),
        length: 1000 + (number % 1000) as u32,
        write: write("chunks"),
        generation: 0,
        scheme: Redundancy::Replicas,
    }
}

/// A manifest with these chunks, built in one go from nothing: the root and all its pages.
pub(crate) fn manifest_of(
    slots: u64,
    chunks: &BTreeMap<u64, SlotChunk>,
) -> (Root, BTreeMap<Hash, Vec<u8>>) {
    let all: Vec<(u64, Slot)> =
        chunks.iter().map(|(at, chunk)| (*at, Slot::Chunk(*chunk))).collect();
    let (mut root, mut pages, mut length) = (None, BTreeMap::new(), 0);
    for part in all.chunks(CHANGES_MAX) {
        let changed = manifest::change(&pages, root, length, slots, part).unwrap();
        (root, length) = (changed.root, slots);
        pages.extend(changed.pages);
    }
    if all.len() > CHANGES_MAX {
        let mut reachable = BTreeMap::new();
        let mut visit = |hash: &Hash| {
            reachable.insert(*hash, pages[hash].clone());
            manifest::Page::parse(&pages[hash])
        };
        manifest::walk(&mut visit, root, slots, 0, slots).unwrap();
        pages = reachable;
    }
    (root, pages)
}

/// How a test cluster is made.
#[derive(Clone)]
pub(crate) struct ClusterOptions {
    pub(crate) word: &'static str,
    pub(crate) members: u64,
    pub(crate) open_registration: bool,
}

impl ClusterOptions {
    pub(crate) fn usual() -> Self {
        Self { word: "cluster", members: 3, open_registration: true }
    }
}

/// A cluster: its keys, its tables, and every command it was given.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) id: ClusterId,
    pub(crate) tables: MemoryTables,
    pub(crate) admin: Key,
    pub(crate) members: Vec<(MemberId, Key)>,
    pub(crate) nodes: Vec<(NodeId, Key)>,
    pub(crate) genesis: SystemOp,
    pub(crate) commands: Vec<Vec<u8>>,
}

impl Cluster {
    /// A cluster with its genesis and a first tick applied.
    pub(crate) fn new() -> Self {
        Self::with(&ClusterOptions::usual())
    }

    pub(crate) fn with(options: &ClusterOptions) -> Self {
        let mut cluster = Self::before_genesis(options);
        cluster.system(cluster.genesis.clone());
        cluster.tick_to(START_MS);
        cluster
    }

    /// The keys of a cluster, and its genesis, with nothing applied.
    pub(crate) fn before_genesis(options: &ClusterOptions) -> Self {
        let admin = Key::of("admin");
        let members: Vec<(MemberId, Key)> = (1..=options.members)
            .map(|number| (MemberId::from_u64(number), Key::of(&format!("member {number}"))))
            .collect();
        let nodes: Vec<(NodeId, Key)> = (1..=3)
            .map(|number| {
                let word = format!("node {number}");
                (NodeId::from_bytes(id16(&word)), Key::of(&word))
            })
            .collect();
        let storage_nodes: Vec<StorageNode> = nodes
            .iter()
            .map(|(id, key)| StorageNode {
                id: *id,
                key: key.public_key(),
                zone: String::new(),
                weight: 1,
            })
            .collect();
        let descriptor = Descriptor {
            suite: SUITE,
            number: 0,
            former: None,
            nonce: id16(options.word),
            authority: b"authority".to_vec(),
            administrators: vec![admin.public_key()],
            quorum: 1,
            members: members
                .iter()
                .map(|(id, key)| Member {
                    id: *id,
                    key: key.public_key(),
                    address: format!("member:{}", id.as_u64()),
                })
                .collect(),
            nodes: storage_nodes.clone(),
            cosigners: Vec::new(),
            replacement: None,
            open_registration: options.open_registration,
        };
        let id = ClusterId::from_bytes(*descriptor.hash().as_bytes());
        let genesis = SystemOp::Genesis {
            descriptor: encode(&SignedDescriptor::first(&descriptor, &[&admin])),
            layout: layout::first(&storage_nodes).unwrap().sign(&id, &admin),
        };
        let tables = MemoryTables::default();
        Self { id, tables, admin, members, nodes, genesis, commands: Vec::new() }
    }

    /// Applies a command as a replica does: from its bytes, and all of it or nothing.
    pub(crate) fn apply(&mut self, command: &Command) -> Reply {
        let bytes = encode(command);
        let command = decode("command", &bytes).unwrap();
        self.commands.push(bytes);
        let mut overlay = Overlay::new(&self.tables);
        let reply = apply(&mut overlay, &Prepared::new(&self.id, command)).unwrap();
        let changes = overlay.into_changes();
        if let Reply::Refused(_) | Reply::Bundle { repeated: true, .. } = reply {
            assert!(changes.is_empty(), "{reply:?} changed something");
        }
        self.tables.write(changes);
        reply
    }

    pub(crate) fn system(&mut self, op: SystemOp) {
        assert_eq!(self.apply(&Command::System(op)), Reply::System);
    }

    pub(crate) fn submit(&mut self, submission: &Submission) -> Reply {
        self.apply(&Command::Submission(encode(submission)))
    }

    pub(crate) fn reading(&self, member: usize, ms: u64) -> ClockReading {
        let (member, key) = &self.members[member];
        let time = LogTime::from_unix_ms(ms);
        let signature = key.sign(Domain::ClockReading, &self.id, &encode(&(*member, time)));
        ClockReading { member: *member, time, signature }
    }

    /// The state as a release left it that knew version 1 only.
    pub(crate) fn of_version_1(mut self) -> Self {
        let mut overlay = Overlay::new(MemoryTables::default());
        overlay.put(Table::Meta, meta::CORE_VERSION, encode(&1u32));
        self.tables.write(overlay.into_changes());
        self
    }

    pub(crate) fn tick(&mut self, readings: Vec<ClockReading>) {
        self.system(SystemOp::Tick { readings });
    }

    /// A tick by all members, of one mind.
    pub(crate) fn tick_to(&mut self, ms: u64) {
        let readings = (0..self.members.len()).map(|member| self.reading(member, ms)).collect();
        self.tick(readings);
        assert_eq!(self.time().unix_ms(), ms);
    }

    pub(crate) fn tick_by(&mut self, ms: u64) {
        self.tick_to(self.time().unix_ms() + ms);
    }

    pub(crate) fn time(&self) -> LogTime {
        query::log_time(&self.tables).unwrap()
    }

    pub(crate) fn admin_key(&self) -> PublicKey {
        self.admin.public_key()
    }

    pub(crate) fn revision(&self) -> u64 {
        query::revision(&self.tables).unwrap()
    }

    pub(crate) fn report(&self, node: usize, number: u64) -> SystemOp {
        let (node, key) = &self.nodes[node];
        let report = NodeReport {
            node: *node,
            number,
            address: "node:1".to_owned(),
            capacity_bytes: 1 << 40,
        };
        let report = encode(&report);
        let signature = key.sign(Domain::NodeReport, &self.id, &report);
        SystemOp::NodeReport { report, signature }
    }

    // -- changes of the cluster -----------------------------------------------------------------

    /// The descriptor in force.
    pub(crate) fn descriptor(&self) -> Descriptor {
        let signed = query::descriptor(&self.tables).unwrap().unwrap();
        let signed: SignedDescriptor = decode("descriptor", &signed).unwrap();
        decode("descriptor", &signed.bytes).unwrap()
    }

    /// The version of the state machine in which lost volumes can be replaced.
    pub(crate) fn of_version_3(mut self) -> Self {
        self.system(SystemOp::CoreVersion { version: 3 });
        assert_eq!(query::core_version(&self.tables).unwrap(), 3);
        self
    }

    /// A next descriptor as the standing policy allows it: by the token and the first members.
    pub(crate) fn replacement(&self, next: &Descriptor, token: &Key, members: usize) -> SystemOp {
        let bytes = encode(next);
        let members = self.members.iter().take(members).map(|(_, key)| key);
        let signatures = std::iter::once(token)
            .chain(members)
            .map(|key| (key.public_key(), key.sign(Domain::Replacement, &self.id, &bytes)))
            .collect();
        SystemOp::NextDescriptor { descriptor: encode(&SignedDescriptor { bytes, signatures }) }
    }

    /// A good next descriptor with a change.
    pub(crate) fn next_descriptor(&self, change: impl FnOnce(&mut Descriptor)) -> Descriptor {
        let former = self.descriptor();
        let hash = former.hash();
        let mut next = Descriptor { number: former.number + 1, former: Some(hash), ..former };
        change(&mut next);
        next
    }

    pub(crate) fn change_descriptor(&mut self, change: impl FnOnce(&mut Descriptor)) {
        let next = self.next_descriptor(change);
        let signed = SignedDescriptor::next(&self.id, &next, &[&self.admin]);
        self.system(SystemOp::NextDescriptor { descriptor: encode(&signed) });
        assert_eq!(self.descriptor(), next);
    }

    /// Another storage node, in the descriptor.
    pub(crate) fn add_node(&mut self) {
        let word = format!("node {}", self.nodes.len() + 1);
        let (id, key) = (NodeId::from_bytes(id16(&word)), Key::of(&word));
        let node = StorageNode { id, key: key.public_key(), zone: String::new(), weight: 1 };
        self.nodes.push((id, key));
        self.change_descriptor(|next| next.nodes.push(node));
    }

    /// A layout by which every partition is at these nodes.
    pub(crate) fn layout_on(&self, version: u64, nodes: &[usize]) -> Layout {
        let ids = nodes.iter().map(|at| self.nodes[*at].0).collect();
        let row: Vec<u16> = (0..nodes.len() as u16).collect();
        Layout::new(version, 12, nodes.len() as u8, ids, row.repeat(4096)).unwrap()
    }

    pub(crate) fn next_layout(&self, layout: &Layout) -> SystemOp {
        SystemOp::NextLayout { layout: layout.sign(&self.id, &self.admin) }
    }

    pub(crate) fn proof(&self, node: usize, layout: u64, position: u64) -> SystemOp {
        let (node, key) = &self.nodes[node];
        let proof = encode(&ShareProof { node: *node, layout, position });
        let signature = key.sign(Domain::ShareProof, &self.id, &proof);
        SystemOp::ShareProof { proof, signature }
    }

    /// The next order, by the administrator.
    pub(crate) fn order(&self, what: Decision) -> SystemOp {
        let number = query::policy(&self.tables).unwrap().order_number + 1;
        let (order, signatures) = Order { number, what }.sign(&self.id, &[&self.admin]);
        SystemOp::Order { order, signatures }
    }

    pub(crate) fn give(&mut self, what: Decision) {
        let order = self.order(what);
        let revision = self.revision();
        self.system(order);
        assert_eq!(self.revision(), revision + 1, "the order counts");
    }

    pub(crate) fn layouts(&self) -> Layouts {
        query::layouts(&self.tables).unwrap().unwrap()
    }

    // -- what stands now ------------------------------------------------------------------------

    pub(crate) fn entry(&self, key: &EntryKey) -> Option<Row<EntryLeaf>> {
        load(&self.tables, Table::Entries, &entry_key(key)).unwrap()
    }

    pub(crate) fn head(&self, inode: InodeId) -> Option<Row<HeadLeaf>> {
        load(&self.tables, Table::Heads, inode.as_bytes()).unwrap()
    }

    pub(crate) fn attrs(&self, inode: InodeId) -> Option<Row<AttrsLeaf>> {
        load(&self.tables, Table::Attrs, inode.as_bytes()).unwrap()
    }

    pub(crate) fn staged(&self, key: &StagedKey) -> Option<Row<StagedLeaf>> {
        load(&self.tables, Table::Staged, &staged_key(key)).unwrap()
    }

    pub(crate) fn vault(&self, inode: InodeId) -> Option<Row<VaultLeaf>> {
        load(&self.tables, Table::Vaults, inode.as_bytes()).unwrap()
    }

    pub(crate) fn session(&self, certificate: CertificateHash) -> Option<Row<SessionLeaf>> {
        load(&self.tables, Table::Sessions, certificate.as_hash().as_bytes()).unwrap()
    }

    pub(crate) fn user(&self, name: &UserName) -> Option<Row<UserLeaf>> {
        load(&self.tables, Table::Users, name.as_str().as_bytes()).unwrap()
    }
}

/// Ops on their way into a bundle, with what travels beside them.
#[derive(Clone, Default)]
pub(crate) struct Draft {
    pub(crate) ops: Vec<Op>,
    pub(crate) payloads: Payloads,
}

impl Draft {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Takes a payload along and gives the hash that names it.
    pub(crate) fn blob(&mut self, bytes: impl Into<Vec<u8>>) -> Hash {
        let bytes = bytes.into();
        let hash = payload_hash(&bytes);
        self.payloads.blobs.push(bytes);
        hash
    }

    /// The changed slots of the op that is pushed next.
    pub(crate) fn slots(&mut self, changes: Vec<(u64, Slot)>) {
        let op = u16::try_from(self.ops.len()).unwrap();
        self.payloads.slots.push(OpSlots { op, changes });
    }

    pub(crate) fn push(&mut self, op: Op) -> &mut Self {
        self.ops.push(op);
        self
    }

    // -- good ops, from what stands now ---------------------------------------------------------

    /// A new name with its name payload taken along.
    pub(crate) fn entry(
        &mut self,
        key: EntryKey,
        expected: Option<LeafHash>,
        inode: InodeId,
        kind: Kind,
    ) -> Change<EntryKey, EntryLeaf> {
        let name = self.blob(format!("name {inode} at {} {}", key.directory, key.tag));
        let leaf = EntryLeaf {
            inode,
            kind,
            state: EntryState::Live,
            name,
            wrap: vec![1; 48],
            generation: 0,
            adopted_at: 0,
        };
        Change { key, expected, leaf }
    }

    pub(crate) fn attrs(
        &mut self,
        inode: InodeId,
        expected: Option<LeafHash>,
        word: &str,
    ) -> Change<InodeId, AttrsLeaf> {
        let payload = self.blob(format!("attributes {word}"));
        Change { key: inode, expected, leaf: AttrsLeaf { payload, generation: 0 } }
    }

    /// Version `version` with exactly these chunks; the changed slots are not taken along here.
    pub(crate) fn head(
        &mut self,
        inode: InodeId,
        expected: Option<LeafHash>,
        version: u64,
        base: Base,
        content: (u64, &BTreeMap<u64, SlotChunk>),
    ) -> HeadChange {
        let (slots, chunks) = content;
        let payload = self.blob(format!("version {version} of {inode}"));
        let leaf = HeadLeaf {
            version,
            write: write(&format!("{inode} {version}")),
            generation: 0,
            class: ChunkClass::Large,
            slots,
            root: manifest_of(slots, chunks).0,
            payload,
            restored: 0,
        };
        HeadChange {
            change: Change { key: inode, expected, leaf },
            base,
            receipts_until: Some(LogTime::from_unix_ms(u64::MAX)),
        }
    }

    pub(crate) fn create_directory(
        &mut self,
        cluster: &Cluster,
        at: EntryKey,
        inode: InodeId,
    ) -> &mut Self {
        let expected = cluster.entry(&at).map(|row| row.hash);
        let entry = self.entry(at, expected, inode, Kind::Directory);
        let attrs = self.attrs(inode, None, "new");
        self.push(Op::Create { entry, attrs, head: None })
    }

    /// A file with a chunk in each of its first slots.
    pub(crate) fn create_file(
        &mut self,
        cluster: &Cluster,
        at: EntryKey,
        inode: InodeId,
        chunks: &[u64],
    ) -> &mut Self {
        let expected = cluster.entry(&at).map(|row| row.hash);
        let entry = self.entry(at, expected, inode, Kind::File);
        let attrs = self.attrs(inode, None, "new");
        let content: BTreeMap<u64, SlotChunk> =
            (0..).zip(chunks.iter().map(|number| chunk(*number))).collect();
        let head = self.head(inode, None, 1, Base::Empty, (content.len() as u64, &content));
        self.slots(content.iter().map(|(slot, chunk)| (*slot, Slot::Chunk(*chunk))).collect());
        self.push(Op::Create { entry, attrs, head: Some(head) })
    }

    /// A next version that has these chunks in its first slots and nothing else, from scratch.
    pub(crate) fn commit(
        &mut self,
        cluster: &Cluster,
        inode: InodeId,
        chunks: &[u64],
    ) -> &mut Self {
        let row = cluster.head(inode);
        let version = row.as_ref().map_or(1, |row| row.leaf.version + 1);
        let content: BTreeMap<u64, SlotChunk> =
            (0..).zip(chunks.iter().map(|number| chunk(*number))).collect();
        let expected = row.map(|row| row.hash);
        let content_of = (content.len() as u64, &content);
        let head = self.head(inode, expected, version, Base::Empty, content_of);
        self.slots(content.iter().map(|(slot, chunk)| (*slot, Slot::Chunk(*chunk))).collect());
        self.push(Op::Commit { head, attrs: None })
    }

    pub(crate) fn set_attrs(&mut self, cluster: &Cluster, inode: InodeId, word: &str) -> &mut Self {
        let expected = cluster.attrs(inode).map(|row| row.hash);
        let attrs = self.attrs(inode, expected, word);
        self.push(Op::SetAttrs { attrs })
    }

    pub(crate) fn rename(&mut self, cluster: &Cluster, from: EntryKey, to: EntryKey) -> &mut Self {
        let row = cluster.entry(&from).unwrap();
        let moved = EntryLeaf { state: EntryState::Moved { to }, ..row.leaf.clone() };
        let expected = cluster.entry(&to).map(|row| row.hash);
        let to = self.entry(to, expected, row.leaf.inode, row.leaf.kind);
        let from = Change { key: from, expected: Some(row.hash), leaf: moved };
        self.push(Op::Rename { from, to })
    }

    pub(crate) fn remove(
        &mut self,
        cluster: &Cluster,
        at: EntryKey,
        only_empty: bool,
    ) -> &mut Self {
        let row = cluster.entry(&at).unwrap();
        let leaf = EntryLeaf { state: EntryState::Deleted, ..row.leaf };
        self.push(Op::Remove {
            entry: Change { key: at, expected: Some(row.hash), leaf },
            only_empty,
        })
    }

    pub(crate) fn undelete(
        &mut self,
        cluster: &Cluster,
        at: EntryKey,
        inode: InodeId,
        kind: Kind,
    ) -> &mut Self {
        let expected = cluster.entry(&at).map(|row| row.hash);
        let entry = self.entry(at, expected, inode, kind);
        self.push(Op::Undelete { entry })
    }

    /// The first part of a change to `inode`, from nothing.
    pub(crate) fn stage(
        &mut self,
        directory: InodeId,
        at: StagedKey,
        chunks: &BTreeMap<u64, SlotChunk>,
        slots: u64,
    ) -> &mut Self {
        self.slots(chunks.iter().map(|(slot, chunk)| (*slot, Slot::Chunk(*chunk))).collect());
        let leaf = StagedLeaf {
            directory,
            class: ChunkClass::Large,
            slots,
            root: manifest_of(slots, chunks).0,
        };
        self.push(Op::Stage {
            staged: Change { key: at, expected: None, leaf },
            base: Base::Empty,
            receipts_until: Some(LogTime::from_unix_ms(u64::MAX)),
        })
    }

    pub(crate) fn seal_session(
        &mut self,
        of: CertificateHash,
        expected: Option<LeafHash>,
        sealed: impl Into<Vec<u8>>,
    ) -> &mut Self {
        let leaf = SealedSessionLeaf { payload: self.blob(sealed) };
        self.push(Op::SealSession { sealed: Change { key: of, expected, leaf } })
    }

    pub(crate) fn close_session(&mut self, cluster: &Cluster, of: CertificateHash) -> &mut Self {
        let row = cluster.session(of).unwrap();
        let leaf = SessionLeaf { closed: true, ..row.leaf };
        let session = Change { key: of, expected: Some(row.hash), leaf };
        self.push(Op::CloseSession { session })
    }
}

/// A user with an open session.
#[derive(Clone)]
pub(crate) struct User {
    pub(crate) name: UserName,
    pub(crate) principal: PrincipalId,
    pub(crate) home: InodeId,
    pub(crate) identity: Key,
    pub(crate) session: Key,
    pub(crate) certificate: CertificateHash,
    pub(crate) custody: Custody,
    pub(crate) invite: Option<Hash>,
    pub(crate) requests: u64,
}

impl User {
    /// Somebody who is not registered.
    pub(crate) fn newcomer(name: &str) -> Self {
        Self {
            name: name.parse().unwrap(),
            principal: PrincipalId::from_bytes(id16(&format!("principal {name}"))),
            home: inode(&format!("home {name}")),
            identity: Key::of(&format!("identity {name}")),
            session: Key::of(&format!("session {name}")),
            certificate: CertificateHash::from_hash(Hash::from_bytes([0; 32])),
            custody: Custody::Local,
            invite: None,
            requests: 0,
        }
    }

    /// Somebody who is registered and logged in.
    pub(crate) fn join(cluster: &mut Cluster, name: &str) -> Self {
        Self::newcomer(name).joined(cluster)
    }

    /// The same for somebody whose keys are opened at a gateway.
    pub(crate) fn join_at_gateway(cluster: &mut Cluster, name: &str) -> Self {
        Self { custody: Custody::Gateway, ..Self::newcomer(name) }.joined(cluster)
    }

    fn joined(mut self, cluster: &mut Cluster) -> Self {
        let mut draft = Draft::new();
        let registration = self.registration(&mut draft);
        draft.push(registration);
        draft.push(self.login(cluster, 0));
        let reply = cluster.submit(&self.by_identity(cluster, &draft));
        assert_eq!(applied(&reply), 2, "{reply:?}");
        self
    }

    pub(crate) fn registration(&self, draft: &mut Draft) -> Op {
        let user = UserLeaf {
            principal: self.principal,
            identity: self.identity.public_key(),
            hpke: [9; 32],
            home: self.home,
            custody: self.custody,
            keyring: draft.blob(format!("keyring of {}", self.name)),
            keyring_epoch: 1,
            login_record: draft.blob(format!("login record of {}", self.name)),
            invite: self.invite,
        };
        let vault = VaultLeaf {
            home: self.home,
            epoch: 1,
            key_commitment: Hash::of("test", self.name.as_str().as_bytes()),
            members: vec![VaultMember {
                principal: self.principal,
                role: Role::Admin,
                sealed_key: vec![3; 112],
            }],
            former_key: None,
            gateway_custody: false,
            padding: true,
        };
        Op::Register {
            user: Change { key: self.name.clone(), expected: None, leaf: user },
            vault: Change { key: self.home, expected: None, leaf: vault },
            attrs: draft.attrs(self.home, None, "home"),
        }
    }

    pub(crate) fn certificate(&self, cluster: &Cluster, session: &Key) -> Certificate {
        let issued = cluster.time();
        Certificate {
            suite: SUITE,
            cluster: cluster.id,
            principal: self.principal,
            key: session.public_key(),
            scope: Scope::Full,
            issued,
            expires: issued.plus_ms(SESSION_MS_MAX),
        }
    }

    /// The op that opens a session with a key of its own, and the user as acting in it.
    pub(crate) fn login(&mut self, cluster: &Cluster, number: u64) -> Op {
        self.session = Key::of(&format!("session {number} of {}", self.name));
        let certificate = self.certificate(cluster, &self.session);
        self.certificate = certificate.hash();
        let certificate = certificate.sign(&self.identity);
        Op::OpenSession {
            session: Change {
                key: self.certificate,
                expected: None,
                leaf: SessionLeaf { certificate, closed: false },
            },
        }
    }

    pub(crate) fn request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId::from_bytes(id16(&format!("request {} of {}", self.requests, self.name)))
    }

    /// A header for this user's session, one minute long; the ops are filled in when it is signed.
    pub(crate) fn header(&mut self, cluster: &Cluster) -> Header {
        Header {
            cluster: cluster.id,
            suite: SUITE,
            principal: self.principal,
            author: Author::Session(self.certificate),
            key: self.session.public_key(),
            vaults: Vec::new(),
            request: self.request(),
            not_after: cluster.time().plus_ms(60_000),
            ops: 0,
            ops_root: [0; 32],
        }
    }

    pub(crate) fn identity_header(&mut self, cluster: &Cluster) -> Header {
        let key = self.identity.public_key();
        Header { author: Author::Identity, key, ..self.header(cluster) }
    }

    /// The draft, signed by the session.
    pub(crate) fn sign(&mut self, cluster: &Cluster, draft: &Draft) -> Submission {
        let header = self.header(cluster);
        submission(header.sign(&draft.ops, &self.session), draft)
    }

    /// The draft, signed by the identity.
    pub(crate) fn by_identity(&mut self, cluster: &Cluster, draft: &Draft) -> Submission {
        let header = self.identity_header(cluster);
        submission(header.sign(&draft.ops, &self.identity), draft)
    }

    /// Signs, submits, and expects that all of it is applied.
    pub(crate) fn act(&mut self, cluster: &mut Cluster, draft: &Draft) {
        let reply = cluster.submit(&self.sign(cluster, draft));
        assert_eq!(applied(&reply), draft.ops.len(), "{reply:?}");
    }
}

pub(crate) fn submission(bundle: SignedBundle, draft: &Draft) -> Submission {
    Submission { bundle, payloads: draft.payloads.clone() }
}

/// How many ops of a bundle were applied.
pub(crate) fn applied(reply: &Reply) -> usize {
    match reply {
        Reply::Bundle { outcomes, repeated: false, .. } => {
            outcomes.iter().filter(|outcome| outcome.is_ok()).count()
        }
        other => panic!("the bundle was not applied: {other:?}"),
    }
}
