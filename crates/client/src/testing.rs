//! A cluster in memory: the real state machine, nodes that keep chunks in a map and sign real receipts,
//! and a place where a test can play the attacker, on any answer, just before it is handed out.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use coffer_crypto::keyring::{Keyring, KeyringKey, KeyringOwner, RecoveryCode, SealedKeyring};
use coffer_crypto::random::principal_id;
use coffer_crypto::sign::IdentityKey;
use coffer_metadata_core::query::{self, FoundEntry, FoundLeaf, QueryError, Want};
use coffer_metadata_core::state::OpRef;
use coffer_metadata_core::{Command, MemoryTables, Overlay, Prepared, Reply, apply};
use coffer_model::SUITE;
use coffer_model::bundle::Author;
use coffer_model::chunk::ShardKey;
use coffer_model::descriptor::{Descriptor, Member, SignedDescriptor, StorageNode};
use coffer_model::encoding::{decode, encode};
use coffer_model::id::{ChunkId, ClusterId, InodeId, MemberId, NameTag, NodeId, PrincipalId};
use coffer_model::log::{ClockReading, SystemOp};
use coffer_model::merkle::Tree;
use coffer_model::name::UserName;
use coffer_model::object::{Object, UserLeaf};
use coffer_model::op::Op;
use coffer_model::receipt::{Flush, Held, Receipt};
use coffer_model::session::SessionProof;
use coffer_model::signing::{Domain, Signer};
use coffer_model::ticket::{Leave, Ticket};
use coffer_model::time::LogTime;
use coffer_proto::v1 as pb;
use coffer_service::status::status;
use tonic::{Code, Status};

use crate::account::{AccountOptions, Engine, register_op};
use crate::change::{Signing, submit};
use crate::clock::LogClock;
use crate::contact::{Pinned, StateDir};
use crate::session::Session;
use crate::state::SessionState;
use crate::transport::{Answer, Credentials, Transport};

/// Log time when the cluster begins, in milliseconds.
pub(crate) const START_MS: u64 = 1_700_000_000_000;
/// How long nodes promise to keep what nobody has named, if a test says nothing else.
pub(crate) const KEEP_MS: u64 = 3600 * 1000;

/// What a test does in place of an answer.
type Interrupt = Box<dyn FnMut() -> Option<Status> + Send>;
/// What a test does to an answer.
type Tamper<T> = Mutex<Option<Box<dyn FnMut(&mut T) + Send>>>;

pub(crate) struct FakeCluster {
    pub(crate) cluster: ClusterId,
    descriptor: SignedDescriptor,
    member: IdentityKey,
    pub(crate) nodes: Vec<(NodeId, IdentityKey)>,
    state: Mutex<State>,
    /// How many calls there were, by name.
    pub(crate) calls: Mutex<BTreeMap<&'static str, u64>>,
    pub(crate) chunk_bytes: AtomicU64,
    pub(crate) on_read: Tamper<pb::ReadResponse>,
    pub(crate) on_list: Tamper<pb::ListResponse>,
    pub(crate) on_put: Tamper<pb::PutChunksResponse>,
    pub(crate) on_get: Tamper<pb::GetChunksResponse>,
    /// Runs before a submission is applied, and may answer it instead.
    pub(crate) on_submit: Mutex<Option<Interrupt>>,
    /// The listing's pages are this short.
    pub(crate) page_max: Mutex<usize>,
    /// How long nodes promise to keep what nobody has named.
    pub(crate) keep_ms: AtomicU64,
    /// How many listings are interrupted at their second page.
    pub(crate) snapshots_lost: AtomicU64,
}

/// A user with what opens the keyring.
pub(crate) struct TestUser {
    pub(crate) name: UserName,
    pub(crate) owner: KeyringOwner,
    pub(crate) leaf: UserLeaf,
    pub(crate) sealed: SealedKeyring,
    pub(crate) code: RecoveryCode,
}

struct State {
    tables: MemoryTables,
    chunks: BTreeMap<ChunkId, Bytes>,
    snapshots: BTreeMap<u64, MemoryTables>,
}

impl FakeCluster {
    pub(crate) fn start() -> Arc<Self> {
        let administrator = IdentityKey::generate();
        let member = IdentityKey::generate();
        let nodes: Vec<(NodeId, IdentityKey)> = (1..=3)
            .map(|number| (NodeId::from_bytes([number; 16]), IdentityKey::generate()))
            .collect();
        let content = Descriptor {
            suite: SUITE,
            number: 0,
            former: None,
            nonce: coffer_crypto::random::random_bytes(),
            authority: Vec::new(),
            administrators: vec![administrator.public_key()],
            quorum: 1,
            members: vec![Member {
                id: MemberId::from_u64(1),
                key: member.public_key(),
                address: "member:1".to_owned(),
            }],
            nodes: nodes
                .iter()
                .map(|(id, key)| StorageNode {
                    id: *id,
                    key: key.public_key(),
                    zone: String::new(),
                    weight: 1,
                })
                .collect(),
            cosigners: Vec::new(),
            replacement: None,
            open_registration: true,
        };
        let descriptor = SignedDescriptor::first(&content, &[&administrator]);
        let (cluster, _) = descriptor.verify_first(None).unwrap();
        let layout = coffer_metadata_core::layout::first(&content.nodes).unwrap();
        let genesis = SystemOp::Genesis {
            descriptor: encode(&descriptor),
            layout: layout.sign(&cluster, &administrator),
        };
        let fake = Arc::new(Self {
            cluster,
            descriptor,
            member,
            nodes,
            state: Mutex::new(State {
                tables: MemoryTables::default(),
                chunks: BTreeMap::new(),
                snapshots: BTreeMap::new(),
            }),
            calls: Mutex::default(),
            chunk_bytes: AtomicU64::new(0),
            on_read: Mutex::default(),
            on_list: Mutex::default(),
            on_put: Mutex::default(),
            on_get: Mutex::default(),
            on_submit: Mutex::default(),
            page_max: Mutex::new(usize::MAX),
            keep_ms: AtomicU64::new(KEEP_MS),
            snapshots_lost: AtomicU64::new(0),
        });
        fake.apply(Command::System(genesis));
        fake.tick(START_MS);
        fake
    }

    /// Moves log time.
    pub(crate) fn tick(&self, ms: u64) {
        let (member, time) = (MemberId::from_u64(1), LogTime::from_unix_ms(ms));
        let bytes = encode(&(member, time));
        let signature = self.member.sign(Domain::ClockReading, &self.cluster, &bytes);
        let readings = vec![ClockReading { member, time, signature }];
        self.apply(Command::System(SystemOp::Tick { readings }));
    }

    fn apply(&self, command: Command) -> Reply {
        let prepared = Prepared::new(&self.cluster, command);
        let mut state = self.state();
        let mut overlay = Overlay::new(&state.tables);
        let reply = apply(&mut overlay, &prepared).unwrap();
        let changes = overlay.into_changes();
        state.tables.write(changes);
        reply
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn pinned(&self) -> Pinned {
        Pinned {
            cluster: self.cluster,
            server: "gateway:1".to_owned(),
            server_name: "gateway".to_owned(),
            authorities: Vec::new(),
            descriptor: self.descriptor.clone(),
            successors: Vec::new(),
        }
    }

    /// A new user. Login itself needs the server half, which is elsewhere.
    pub(crate) async fn register(&self, name: &str) -> TestUser {
        let name: UserName = name.parse().unwrap();
        let (keyring, key) = (Keyring::generate(), KeyringKey::generate());
        let owner = KeyringOwner { cluster: self.cluster, principal: principal_id() };
        let code = RecoveryCode::generate();
        let wraps = vec![key.wrap_for_recovery(&owner, &code)];
        let sealed = SealedKeyring::seal(&owner, 1, &key, &keyring, wraps).unwrap();
        let (_, planned) = register_op(
            self.cluster,
            &name,
            &owner,
            &keyring,
            vec![1],
            sealed.encode(),
            &AccountOptions::standard(),
        )
        .unwrap();
        let Op::Register { user, .. } = &planned.op else { panic!("another op") };
        let leaf = user.leaf.clone();
        let clock = LogClock::default();
        let by = Signing {
            transport: self,
            session: None,
            cluster: self.cluster,
            principal: owner.principal,
            author: Author::Identity,
            clock: &clock,
            vaults: Vec::new(),
        };
        let (outcomes, _) = submit(&by, &keyring.identity, vec![planned]).await.unwrap();
        outcomes[0].as_ref().unwrap();
        TestUser { name, owner, leaf, sealed, code }
    }

    /// A session of a user.
    pub(crate) async fn login(self: &Arc<Self>, user: &TestUser, dir: &StateDir) -> Session {
        let state = self.login_state(user, dir).await;
        Session::resume_over(self.clone(), state, dir).unwrap()
    }

    /// The state of a new session of a user.
    pub(crate) async fn login_state(
        self: &Arc<Self>,
        user: &TestUser,
        dir: &StateDir,
    ) -> SessionState {
        let engine = Engine::over(self.clone(), self.pinned(), dir.clone());
        let opened = user.sealed.open_with_recovery(&user.owner, &user.code).unwrap();
        let clock = LogClock::default();
        engine.begin_session(&user.name, &user.leaf, opened, &clock).await.unwrap()
    }

    pub(crate) fn calls(&self, name: &'static str) -> u64 {
        self.calls.lock().unwrap().get(name).copied().unwrap_or(0)
    }

    /// Loses chunks on all nodes, those for which `lose` says so.
    pub(crate) fn lose_chunks(&self, mut lose: impl FnMut(&ChunkId) -> bool) {
        self.state().chunks.retain(|id, _| !lose(id));
    }

    pub(crate) fn chunk_count(&self) -> usize {
        self.state().chunks.len()
    }

    fn called(&self, name: &'static str) {
        *self.calls.lock().unwrap().entry(name).or_default() += 1;
    }

    fn principal(&self, tables: &MemoryTables, session: &Credentials) -> Result<Caller, Status> {
        let proof = session.proof();
        // The proof's time is by the real clock; its form and signature are what matters here.
        let (bytes, _): (Vec<u8>, coffer_model::signing::Signature) =
            decode("proof", &proof).unwrap();
        let proof: SessionProof = decode("proof", &bytes).unwrap();
        let principal = query::session(tables, &proof.certificate, &proof.key).unwrap();
        let principal = principal.ok_or_else(|| Status::unauthenticated("no session"))?;
        Ok(Caller { principal, proof })
    }

    fn ticket(&self, caller: &Caller, leave: Leave) -> Bytes {
        let ticket = Ticket {
            cluster: self.cluster,
            member: MemberId::from_u64(1),
            principal: caller.principal,
            session: caller.proof.key,
            leave,
            expires_unix_ms: 0,
        };
        ticket.sign(&self.member).into()
    }

    /// Receipts of two nodes.
    pub(crate) fn receipts(&self, id: ChunkId, length: usize) -> Vec<Bytes> {
        let now = query::log_time(&self.state().tables).unwrap();
        let nodes = self.nodes.iter().take(2);
        nodes.map(|(node, key)| self.receipt(*node, key, id, length, now)).collect()
    }

    pub(crate) fn receipt(
        &self,
        node: NodeId,
        key: &IdentityKey,
        id: ChunkId,
        length: usize,
        now: LogTime,
    ) -> Bytes {
        let held = Held {
            shard: ShardKey::replica(id),
            length: u32::try_from(length).unwrap(),
            keep_until: now.plus_ms(self.keep_ms.load(Ordering::Relaxed)),
        };
        let tree = Tree::new(&[held.leaf()]);
        let flush = Flush { node, root: tree.root(), size: 1 };
        let signature = flush.sign(&self.cluster, key);
        encode(&Receipt { held, index: 0, path: Vec::new(), flush, signature }).into()
    }
}

struct Caller {
    principal: PrincipalId,
    proof: SessionProof,
}

/// An answer in the making.
struct Answers<'a> {
    fake: &'a FakeCluster,
    tables: &'a MemoryTables,
    caller: &'a Caller,
    proofs: pb::Proofs,
    known: BTreeMap<OpRef, u32>,
}

impl Answers<'_> {
    fn leaf(&mut self, found: FoundLeaf) -> pb::ProvenLeaf {
        let op = match self.known.get(&found.at) {
            Some(op) => *op,
            None => {
                let proof = query::op_proof(self.tables, found.at).unwrap();
                self.proofs.headers.push(pb::SignedHeader {
                    header: proof.header.into(),
                    signature: proof.signature.as_bytes().to_vec().into(),
                });
                self.proofs.ops.push(pb::SignedOp {
                    header: u32::try_from(self.proofs.headers.len() - 1).unwrap(),
                    index: proof.index.into(),
                    op: proof.op.into(),
                    path: proof.path.concat().into(),
                    sequence: found.at.sequence,
                });
                let op = u32::try_from(self.proofs.ops.len() - 1).unwrap();
                self.known.insert(found.at, op);
                op
            }
        };
        pb::ProvenLeaf { op, payload: found.payload.into() }
    }

    fn pages(&self, pages: Vec<Vec<u8>>, mut chunks: Vec<ChunkId>) -> (Vec<Bytes>, Bytes) {
        let pages = pages.into_iter().map(Bytes::from).collect();
        if chunks.is_empty() {
            return (pages, Bytes::new());
        }
        chunks.sort_unstable();
        chunks.dedup();
        assert!(chunks.len() <= coffer_model::ticket::TICKET_CHUNKS_MAX);
        (pages, self.fake.ticket(self.caller, Leave::Read { chunks }))
    }

    fn entry(&mut self, found: FoundEntry) -> pb::Entry {
        let entry = Some(self.leaf(found.entry));
        let attrs = found.attrs.map(|attrs| self.leaf(attrs));
        let head = found.head.map(|head| self.leaf(head));
        let (pages, ticket) = self.pages(found.pages, found.chunks);
        pb::Entry { entry, attrs, head, pages, ticket }
    }

    fn answer(&mut self, query: pb::query::Query) -> Result<pb::answer::Answer, Status> {
        use pb::answer::Answer;
        use pb::query::Query;
        let principal = self.caller.principal;
        Ok(match query {
            Query::Walk(walk) => {
                let tags: Vec<NameTag> =
                    walk.tags.iter().map(|tag| NameTag::try_from(&tag[..]).unwrap()).collect();
                let steps = query::walk(
                    self.tables,
                    principal,
                    &inode(&walk.directory),
                    &tags,
                    &want(walk.want),
                )
                .map_err(refused)?;
                let steps = steps.into_iter().map(|step| self.entry(step)).collect();
                Answer::Walk(pb::WalkAnswer { steps })
            }
            Query::Object(asked) => {
                let object: Object = decode("object", &asked.object).unwrap();
                let found = query::object(self.tables, principal, &object).map_err(refused)?;
                Answer::Object(pb::ObjectAnswer { leaf: found.map(|found| self.leaf(found)) })
            }
            Query::Content(asked) => {
                assert!(asked.to_slot - asked.from_slot <= coffer_proto::SLOTS_PER_QUERY);
                let found = query::content(
                    self.tables,
                    principal,
                    &inode(&asked.inode),
                    asked.version,
                    asked.from_slot,
                    asked.to_slot,
                )
                .map_err(refused)?;
                let Some(found) = found else {
                    return Ok(Answer::Content(pb::ContentAnswer::default()));
                };
                let head = Some(self.leaf(found.head));
                let (pages, ticket) = self.pages(found.pages, found.chunks);
                Answer::Content(pb::ContentAnswer { head, pages, ticket })
            }
        })
    }
}

fn inode(bytes: &[u8]) -> InodeId {
    InodeId::try_from(bytes).unwrap()
}

fn want(want: Option<pb::Want>) -> Want {
    let pb::Want { attrs, head, from_slot, to_slot } = want.unwrap_or_default();
    Want { attrs, head, from_slot, to_slot }
}

fn refused(error: QueryError) -> Status {
    match error {
        QueryError::Denied => Status::permission_denied("not allowed"),
        QueryError::NotFound => Status::not_found("not found"),
        other => Status::failed_precondition(other.to_string()),
    }
}

fn tampered<T>(tamper: &Tamper<T>, mut answer: T) -> T {
    if let Some(tamper) = tamper.lock().unwrap().as_mut() {
        tamper(&mut answer);
    }
    answer
}

impl FakeCluster {
    fn submit_now(&self, request: &pb::SubmitRequest) -> Result<pb::SubmitResponse, Status> {
        self.called("submit");
        let answer = self.on_submit.lock().unwrap().as_mut().and_then(|hook| hook());
        if let Some(answer) = answer {
            return Err(answer);
        }
        match self.apply(Command::Submission(request.submission.to_vec())) {
            Reply::Bundle { outcomes, revision, .. } => {
                Ok(pb::SubmitResponse { outcomes: encode(&outcomes).into(), revision })
            }
            Reply::Refused(rejection) => {
                let facts = [("rejection", hex::encode(encode(&rejection)))];
                let code = Code::FailedPrecondition;
                Err(status(code, "BUNDLE_REJECTED", &rejection.to_string(), &facts))
            }
            Reply::System => panic!("a reply to something else"),
        }
    }

    fn read_now(
        &self,
        session: &Credentials,
        request: pb::ReadRequest,
    ) -> Result<pb::ReadResponse, Status> {
        self.called("read");
        let state = self.state();
        let caller = self.principal(&state.tables, session)?;
        let mut answers = Answers {
            fake: self,
            tables: &state.tables,
            caller: &caller,
            proofs: pb::Proofs::default(),
            known: BTreeMap::new(),
        };
        let list = request
            .queries
            .into_iter()
            .map(|query| {
                let answer = answers.answer(query.query.unwrap())?;
                Ok(pb::Answer { answer: Some(answer) })
            })
            .collect::<Result<Vec<_>, Status>>()?;
        let answer = pb::ReadResponse {
            revision: query::revision(&state.tables).unwrap(),
            log_time_ms: query::log_time(&state.tables).unwrap().unix_ms(),
            proofs: Some(answers.proofs),
            answers: list,
        };
        Ok(tampered(&self.on_read, answer))
    }

    fn list_now(
        &self,
        session: &Credentials,
        request: pb::ListRequest,
    ) -> Result<pb::ListResponse, Status> {
        self.called("list");
        let mut state = self.state();
        let caller = self.principal(&state.tables, session)?;
        let (tables, after) = match request.page_token.split_once('.') {
            None => (state.tables.clone(), None),
            Some((revision, tag)) => {
                let lost = self.snapshots_lost.load(Ordering::Relaxed);
                if lost > 0 {
                    self.snapshots_lost.store(lost - 1, Ordering::Relaxed);
                    return Err(status(Code::Aborted, "SNAPSHOT_GONE", "list again", &[]));
                }
                let revision: u64 = revision.parse().unwrap();
                (state.snapshots[&revision].clone(), Some(tag.parse::<NameTag>().unwrap()))
            }
        };
        let revision = query::revision(&tables).unwrap();
        state.snapshots.insert(revision, tables.clone());
        let size = usize::try_from(request.page_size).unwrap().min(*self.page_max.lock().unwrap());
        let (found, next) = query::list(
            &tables,
            caller.principal,
            &inode(&request.directory),
            after.as_ref(),
            size,
            &want(request.want),
            request.deleted,
        )
        .map_err(refused)?;
        let mut answers = Answers {
            fake: self,
            tables: &tables,
            caller: &caller,
            proofs: pb::Proofs::default(),
            known: BTreeMap::new(),
        };
        let entries = found.into_iter().map(|found| answers.entry(found)).collect();
        let answer = pb::ListResponse {
            revision,
            entries,
            proofs: Some(answers.proofs),
            next_page_token: next.map_or(String::new(), |tag| format!("{revision}.{tag}")),
        };
        Ok(tampered(&self.on_list, answer))
    }

    fn versions_now(
        &self,
        session: &Credentials,
        request: &pb::ListVersionsRequest,
    ) -> Result<pb::ListVersionsResponse, Status> {
        let state = self.state();
        let caller = self.principal(&state.tables, session)?;
        let before = request.page_token.parse().ok();
        let size = usize::try_from(request.page_size).unwrap().min(*self.page_max.lock().unwrap());
        let (found, next) =
            query::versions(&state.tables, caller.principal, &inode(&request.inode), before, size)
                .map_err(refused)?;
        let mut answers = Answers {
            fake: self,
            tables: &state.tables,
            caller: &caller,
            proofs: pb::Proofs::default(),
            known: BTreeMap::new(),
        };
        let versions = found
            .into_iter()
            .map(|leaf| {
                let log_time_ms = leaf.time.unix_ms();
                pb::Version { head: Some(answers.leaf(leaf)), log_time_ms }
            })
            .collect();
        Ok(pb::ListVersionsResponse {
            revision: query::revision(&state.tables).unwrap(),
            proofs: Some(answers.proofs),
            versions,
            next_page_token: next.map_or(String::new(), |before| before.to_string()),
        })
    }

    fn put_now(&self, request: pb::PutChunksRequest) -> pb::PutChunksResponse {
        self.called("put_chunks");
        assert!(request.chunks.len() <= coffer_proto::CHUNKS_PER_CALL);
        let bytes: usize = request.chunks.iter().map(Bytes::len).sum();
        assert!(bytes <= coffer_proto::CHUNK_BYTES_PER_CALL);
        self.chunk_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let stored = request
            .chunks
            .into_iter()
            .map(|data| {
                let id = ChunkId::from_bytes(*blake3::hash(&data).as_bytes());
                let receipts = self.receipts(id, data.len());
                self.state().chunks.insert(id, data);
                pb::Stored { chunk_id: id.as_bytes().to_vec().into(), receipts }
            })
            .collect();
        tampered(&self.on_put, pb::PutChunksResponse { stored })
    }

    fn get_now(&self, request: pb::GetChunksRequest) -> pb::GetChunksResponse {
        self.called("get_chunks");
        let (bytes, _): (Vec<u8>, coffer_model::signing::Signature) =
            decode("ticket", &request.ticket).unwrap();
        let ticket: Ticket = decode("ticket", &bytes).unwrap();
        let fetched = request
            .chunk_ids
            .into_iter()
            .map(|chunk_id| {
                let id = ChunkId::try_from(&chunk_id[..]).unwrap();
                ticket.allows_read(&id).unwrap();
                let data = self.state().chunks.get(&id).cloned().unwrap_or_default();
                pb::Fetched { chunk_id, data }
            })
            .collect();
        tampered(&self.on_get, pb::GetChunksResponse { fetched })
    }

    fn renew_now(&self, request: pb::RenewReceiptsRequest) -> pb::RenewReceiptsResponse {
        self.called("renew_receipts");
        let stored = request
            .chunk_ids
            .into_iter()
            .map(|chunk_id| {
                let id = ChunkId::try_from(&chunk_id[..]).unwrap();
                let length = self.state().chunks.get(&id).map(Bytes::len);
                let receipts = length.map(|length| self.receipts(id, length)).unwrap_or_default();
                pb::Stored { chunk_id, receipts }
            })
            .collect();
        pb::RenewReceiptsResponse { stored }
    }
}

fn ready<'a, T: Send + 'a>(answer: Result<T, Status>) -> Answer<'a, T> {
    Box::pin(async move {
        // So that others get a turn, as they do while a real call is under way.
        tokio::task::yield_now().await;
        answer
    })
}

fn unused<'a, T: Send + 'a>() -> Answer<'a, T> {
    ready(Err(Status::unimplemented("not in tests")))
}

impl Transport for FakeCluster {
    fn submit<'a>(
        &'a self,
        _: Option<&'a Credentials>,
        request: pb::SubmitRequest,
    ) -> Answer<'a, pb::SubmitResponse> {
        ready(self.submit_now(&request))
    }

    fn read<'a>(
        &'a self,
        session: &'a Credentials,
        request: pb::ReadRequest,
    ) -> Answer<'a, pb::ReadResponse> {
        ready(self.read_now(session, request))
    }

    fn list<'a>(
        &'a self,
        session: &'a Credentials,
        request: pb::ListRequest,
    ) -> Answer<'a, pb::ListResponse> {
        ready(self.list_now(session, request))
    }

    fn list_versions<'a>(
        &'a self,
        session: &'a Credentials,
        request: pb::ListVersionsRequest,
    ) -> Answer<'a, pb::ListVersionsResponse> {
        ready(self.versions_now(session, &request))
    }

    fn issue_write_ticket<'a>(
        &'a self,
        session: &'a Credentials,
        request: pb::IssueWriteTicketRequest,
    ) -> Answer<'a, pb::IssueWriteTicketResponse> {
        let state = self.state();
        let log_time_ms = query::log_time(&state.tables).unwrap().unix_ms();
        let answer = self.principal(&state.tables, session).map(|caller| {
            let home = inode(&request.inode);
            let leave = Leave::Write { home, bytes_max: request.bytes };
            pb::IssueWriteTicketResponse { ticket: self.ticket(&caller, leave), log_time_ms }
        });
        ready(answer)
    }

    fn start_registration(
        &self,
        _: pb::StartRegistrationRequest,
    ) -> Answer<'_, pb::StartRegistrationResponse> {
        unused()
    }

    fn start_login(&self, _: pb::StartLoginRequest) -> Answer<'_, pb::StartLoginResponse> {
        unused()
    }

    fn finish_login(&self, _: pb::FinishLoginRequest) -> Answer<'_, pb::FinishLoginResponse> {
        unused()
    }

    fn get_keyring(&self, _: pb::GetKeyringRequest) -> Answer<'_, pb::GetKeyringResponse> {
        unused()
    }

    fn get_sealed_session(
        &self,
        _: pb::GetSealedSessionRequest,
    ) -> Answer<'_, pb::GetSealedSessionResponse> {
        unused()
    }

    fn get_descriptor(&self, _: pb::GetDescriptorRequest) -> Answer<'_, pb::GetDescriptorResponse> {
        // There is none after the first.
        Box::pin(async { Ok(pb::GetDescriptorResponse::default()) })
    }

    fn get_status(&self) -> Answer<'_, pb::GetStatusResponse> {
        unused()
    }

    fn find_home(&self, request: pb::FindHomeRequest) -> Answer<'_, pb::FindHomeResponse> {
        let tables = &self.state().tables;
        let home = query::home_of(tables, &request.name.parse().unwrap()).unwrap().unwrap();
        let used = query::usage(tables, &home).unwrap();
        ready(Ok(pb::FindHomeResponse {
            home: home.as_bytes().to_vec().into(),
            used_bytes: used.bytes,
            quota_bytes: query::quota(tables, &home).unwrap(),
            used_inodes: used.inodes,
            used_rows: used.rows,
        }))
    }

    fn put_chunks<'a>(
        &'a self,
        _: &'a Credentials,
        request: pb::PutChunksRequest,
    ) -> Answer<'a, pb::PutChunksResponse> {
        ready(Ok(self.put_now(request)))
    }

    fn get_chunks<'a>(
        &'a self,
        _: &'a Credentials,
        request: pb::GetChunksRequest,
    ) -> Answer<'a, pb::GetChunksResponse> {
        ready(Ok(self.get_now(request)))
    }

    fn renew_receipts<'a>(
        &'a self,
        _: &'a Credentials,
        request: pb::RenewReceiptsRequest,
    ) -> Answer<'a, pb::RenewReceiptsResponse> {
        ready(Ok(self.renew_now(request)))
    }
}
