//! A group of members in one process, over real connections, and users who act in it.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use coffer_metadata_core::layout;
use coffer_model::SUITE;
use coffer_model::bundle::{Author, Header, Outcomes, Payloads, Submission};
use coffer_model::chunk::{ChunkClass, Redundancy};
use coffer_model::descriptor::{Descriptor, Member, SignedDescriptor, StorageNode};
use coffer_model::encoding::{decode, encode};
use coffer_model::hash::{Hash, payload_hash};
use coffer_model::id::{
    ChunkId, ClusterId, InodeId, NameTag, NodeId, PrincipalId, RequestId, WriteId,
};
use coffer_model::log::NodeReport;
use coffer_model::manifest::{self, Slot, SlotChunk};
use coffer_model::name::UserName;
use coffer_model::object::{
    AttrsLeaf, Custody, EntryKey, EntryLeaf, EntryState, HeadLeaf, Kind, Role, SessionLeaf,
    UserLeaf, VaultLeaf, VaultMember,
};
use coffer_model::op::{Base, Change, HeadChange, Op};
use coffer_model::session::{Certificate, PROOF_HEADER, Scope, SessionProof};
use coffer_model::signing::{Domain, PublicKey, Signature, Signer, signed_bytes};
use coffer_model::time::LogTime;
use coffer_proto::internal as internal_pb;
use coffer_proto::internal::member_service_client::MemberServiceClient;
use coffer_proto::v1 as pb;
use coffer_proto::v1::cluster_service_client::ClusterServiceClient;
use coffer_proto::v1::directory_service_client::DirectoryServiceClient;
use coffer_proto::v1::login_service_client::LoginServiceClient;
use coffer_service::channel::{Channel, ChannelOptions, connect_lazy};
use coffer_service::files::{PRIVATE_FILE, write_atomically};
use coffer_service::one_box::OneBoxCa;
use coffer_service::peer::PeerId;
use coffer_service::status::is_retryable;
use coffer_service::tls::client_config;
use ed25519_dalek::{Signer as _, SigningKey};
use opaque_ke::rand::rngs::OsRng;
use opaque_ke::{
    CipherSuite, ClientLogin, ClientLoginFinishParameters, ClientRegistration,
    ClientRegistrationFinishParameters, CredentialResponse, Identifiers, RegistrationResponse,
    Ristretto255, TripleDh,
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status};

use crate::clock::unix_ms;
use crate::config::{Config, Timing};
use crate::group::ROLE;
use crate::member::{MemberError, Running, init};
use crate::opaque::new_opaque_setup;
use crate::truncation::LogPolicy;

/// Long enough for anything that is not stuck.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A secret key.
#[derive(Clone)]
pub(crate) struct Key(SigningKey);

impl Key {
    pub(crate) fn of(word: &str) -> Self {
        Self(SigningKey::from_bytes(Hash::of("test key", word.as_bytes()).as_bytes()))
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

fn id16(word: &str) -> [u8; 16] {
    *Hash::of("test id", word.as_bytes()).as_bytes().first_chunk().unwrap()
}

pub(crate) fn inode(word: &str) -> InodeId {
    InodeId::from_bytes(id16(word))
}

pub(crate) fn tag(word: &str) -> NameTag {
    NameTag::from_bytes(*Hash::of("test tag", word.as_bytes()).as_bytes())
}

pub(crate) fn chunk_id(number: u64) -> ChunkId {
    ChunkId::from_bytes(*Hash::of("test chunk", &number.to_le_bytes()).as_bytes())
}

/// A group with its files, and those of its members that run.
pub(crate) struct TestGroup {
    pub(crate) dir: TempDir,
    pub(crate) id: ClusterId,
    pub(crate) descriptor: Descriptor,
    pub(crate) authority: OneBoxCa,
    pub(crate) nodes: Vec<Key>,
    pub(crate) configs: Vec<Config>,
    pub(crate) policy: LogPolicy,
    pub(crate) members: Vec<Option<Running>>,
    /// The descriptors after the first, signed, and the last of them.
    pub(crate) successors: Vec<Vec<u8>>,
    pub(crate) latest: Descriptor,
    /// Members that have not started yet find their ports here.
    listeners: std::sync::Mutex<Vec<Option<TcpListener>>>,
    peer: PeerId,
}

impl TestGroup {
    /// The files of a group; nobody runs yet.
    pub(crate) async fn founded(members: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = OneBoxCa::ephemeral().unwrap();
        let admin = Key::of("admin");
        let (mut listeners, mut listed) = (Vec::new(), Vec::new());
        for number in 0..members {
            let (id, key) = init(&dir.path().join(format!("data-{number}"))).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            listed.push(Member { id, key, address });
            listeners.push(Some(listener));
        }
        let nodes: Vec<Key> = (0..3).map(|number| Key::of(&format!("node {number}"))).collect();
        let storage_nodes: Vec<StorageNode> = (0..3)
            .map(|number| StorageNode {
                id: node_id(number),
                key: nodes[number].public_key(),
                zone: String::new(),
                weight: 1,
            })
            .collect();
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).unwrap();
        let descriptor = Descriptor {
            suite: SUITE,
            number: 0,
            former: None,
            nonce,
            authority: authority.certificate_pem().as_bytes().to_vec(),
            administrators: vec![admin.public_key()],
            quorum: 1,
            members: listed,
            nodes: storage_nodes.clone(),
            cosigners: Vec::new(),
            replacement: None,
            open_registration: true,
        };
        let id = ClusterId::from_bytes(*descriptor.hash().as_bytes());
        let path = |name: &str| dir.path().join(name);
        let signed = encode(&SignedDescriptor::first(&descriptor, &[&admin]));
        std::fs::write(path("descriptor"), signed).unwrap();
        let planned = layout::first(&storage_nodes).unwrap().sign(&id, &admin);
        std::fs::write(path("layout"), planned).unwrap();
        write_atomically(&path("opaque.setup"), &new_opaque_setup(), PRIVATE_FILE).unwrap();
        let configs = (0..members)
            .map(|number| {
                let listen = listeners[number].as_ref().unwrap().local_addr().unwrap();
                config_of(dir.path(), &authority, number, listen)
            })
            .collect();
        let peer = PeerId::new("gateway", [9; 16]).unwrap();
        let members = (0..members).map(|_| None).collect();
        let listeners = std::sync::Mutex::new(listeners);
        let policy = LogPolicy::STANDARD;
        let (successors, latest) = (Vec::new(), descriptor.clone());
        Self {
            dir,
            id,
            descriptor,
            authority,
            nodes,
            configs,
            policy,
            members,
            successors,
            latest,
            listeners,
            peer,
        }
    }

    /// The files of one more member; no descriptor names it yet.
    pub(crate) async fn new_member(&mut self) -> Member {
        let number = self.configs.len();
        let (id, key) = init(&self.dir.path().join(format!("data-{number}"))).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut config = config_of(self.dir.path(), &self.authority, number, address);
        let successors = self.dir.path().join("successors");
        std::fs::write(&successors, encode(&self.successors)).unwrap();
        config.successors = Some(successors);
        self.configs.push(config);
        self.listeners.lock().unwrap().push(Some(listener));
        self.members.push(None);
        Member { id, key, address: address.to_string() }
    }

    /// Signs the next descriptor, which from then on is what new members are given.
    pub(crate) fn next_descriptor(&mut self, change: impl FnOnce(&mut Descriptor)) -> Vec<u8> {
        let mut next = self.latest.clone();
        next.number += 1;
        next.former = Some(self.latest.hash());
        change(&mut next);
        let signed = encode(&SignedDescriptor::next(&self.id, &next, &[&Key::of("admin")]));
        self.successors.push(signed.clone());
        self.latest = next;
        std::fs::write(self.dir.path().join("successors"), encode(&self.successors)).unwrap();
        signed
    }

    /// A group whose members all run.
    pub(crate) async fn running(members: usize) -> Self {
        let mut group = Self::founded(members).await;
        for number in 0..members {
            group.start(number).await.unwrap();
        }
        group
    }

    pub(crate) async fn start(&mut self, number: usize) -> Result<(), MemberError> {
        let listener = self.listen_as(number).await;
        let config = self.configs[number].clone();
        self.members[number] = Some(Running::start(config, self.policy, listener).await?);
        Ok(())
    }

    /// The port of a member: the first time the one that was chosen for it, then the same again, which
    /// nobody else is given in so short a time.
    pub(crate) async fn listen_as(&self, number: usize) -> TcpListener {
        let first = self.listeners.lock().unwrap()[number].take();
        match first {
            Some(listener) => listener,
            None => bind_again(self.configs[number].listen).await,
        }
    }

    pub(crate) fn channel(&self, number: usize) -> Channel {
        self.channel_as(number, &self.peer)
    }

    /// A channel to a member, with a certificate for somebody.
    pub(crate) fn channel_as(&self, number: usize, peer: &PeerId) -> Channel {
        let name = peer.to_string().replace(['/', ':'], "-");
        let files = self.authority.issue_into(&self.dir.path().join(name), &[], peer).unwrap();
        self.channel_with(number, &files)
    }

    pub(crate) fn channel_with(
        &self,
        number: usize,
        files: &coffer_service::tls::TlsFiles,
    ) -> Channel {
        let tls = Arc::new(client_config(files).unwrap());
        let address = self.configs[number].listen.to_string();
        connect_lazy(&address, "localhost", tls, &ChannelOptions::standard()).unwrap()
    }

    pub(crate) fn node_channel(&self, number: usize, node: usize) -> Channel {
        let peer = PeerId::new("storage", *node_id(node).as_bytes()).unwrap();
        self.channel_as(number, &peer)
    }

    /// The member that leads, by the word of one that runs and has it confirmed.
    pub(crate) async fn leader(&self) -> usize {
        let channel = self.channel(self.any());
        let status = eventually(async || {
            ClusterServiceClient::new(channel.clone()).get_status(pb::GetStatusRequest {}).await
        });
        let status = status.await.into_inner();
        let leader = status.members.iter().find(|member| member.leader).unwrap();
        let place = |config: &Config| config.listen.to_string() == leader.address;
        self.configs.iter().position(place).unwrap()
    }

    /// A member that runs.
    pub(crate) fn any(&self) -> usize {
        self.members.iter().position(Option::is_some).unwrap()
    }

    pub(crate) async fn crash(&mut self, number: usize) {
        self.members[number].take().unwrap().crash().await;
    }

    pub(crate) async fn stop_all(&mut self) {
        let running = self.members.iter_mut().filter_map(Option::take);
        for member in running.collect::<Vec<_>>() {
            member.crash().await;
        }
    }

    pub(crate) async fn log_time(&self) -> u64 {
        let channel = self.channel(self.any());
        let name = "nobody".to_owned();
        let start = ClientRegistration::<Suite>::start(&mut OsRng, b"password")
            .unwrap()
            .message
            .serialize();
        let answer = eventually(async || {
            let message = start.to_vec().into();
            let request = pb::StartRegistrationRequest { name: name.clone(), message };
            LoginServiceClient::new(channel.clone()).start_registration(request).await
        });
        answer.await.into_inner().log_time_ms
    }

    pub(crate) fn report(&self, node: usize, number: u64, address: &str) -> Report {
        let report = NodeReport {
            node: node_id(node),
            number,
            address: address.to_owned(),
            capacity_bytes: 1 << 40,
        };
        let report = encode(&report);
        let signature = self.nodes[node].sign(Domain::NodeReport, &self.id, &report);
        internal_pb::ReportNodeRequest {
            report: report.into(),
            signature: signature.as_bytes().to_vec().into(),
            used_bytes: 7,
            chunks: 3,
            missing_chunks: 1,
            ..internal_pb::ReportNodeRequest::default()
        }
    }
}

pub(crate) type Report = internal_pb::ReportNodeRequest;

pub(crate) fn node_id(number: usize) -> NodeId {
    NodeId::from_bytes(id16(&format!("node {number}")))
}

pub(crate) fn member_client(channel: Channel) -> MemberServiceClient<Channel> {
    MemberServiceClient::new(channel)
}

async fn bind_again(address: SocketAddr) -> TcpListener {
    let bind = async {
        loop {
            match TcpListener::bind(address).await {
                Ok(listener) => return listener,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    tokio::time::timeout(LONG, bind).await.unwrap()
}

/// Calls until it goes well; failures that do not pass are the test's.
pub(crate) async fn eventually<T, F>(call: impl Fn() -> F) -> T
where
    F: Future<Output = Result<T, Status>>,
{
    let calls = async {
        loop {
            match call().await {
                Ok(answer) => return answer,
                Err(status) => assert!(is_retryable(&status), "{status:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, calls).await.unwrap()
}

/// The client's side of OPAQUE, without the stretching that makes it slow.
pub(crate) struct Suite;

impl CipherSuite for Suite {
    type OprfCs = Ristretto255;
    type KeyExchange = TripleDh<Ristretto255, sha2_v10::Sha512>;
    type Ksf = opaque_ke::ksf::Identity;
}

/// A user with a session.
pub(crate) struct User {
    pub(crate) name: UserName,
    pub(crate) principal: PrincipalId,
    pub(crate) home: InodeId,
    pub(crate) identity: Key,
    pub(crate) session: Key,
    pub(crate) certificate: Certificate,
    cluster: ClusterId,
    requests: std::cell::Cell<u64>,
}

/// Ops on their way into a bundle.
#[derive(Default)]
pub(crate) struct Draft {
    ops: Vec<Op>,
    payloads: Payloads,
}

impl Draft {
    fn blob(&mut self, bytes: impl Into<Vec<u8>>) -> Hash {
        let bytes = bytes.into();
        let hash = payload_hash(&bytes);
        self.payloads.blobs.push(bytes);
        hash
    }

    fn attrs(&mut self, inode: InodeId) -> Change<InodeId, AttrsLeaf> {
        let payload = self.blob(format!("attributes of {inode}"));
        Change { key: inode, expected: None, leaf: AttrsLeaf { payload, generation: 0 } }
    }

    /// A new file of this name, with a chunk in each of its first slots and a payload of this length.
    pub(crate) fn file(
        mut self,
        directory: InodeId,
        name: &str,
        chunks: &[u64],
        payload_bytes: usize,
    ) -> Self {
        let file = inode(&format!("{directory}/{name}"));
        let sealed_name = self.blob(format!("sealed {name}"));
        let leaf = EntryLeaf {
            inode: file,
            kind: Kind::File,
            state: EntryState::Live,
            name: sealed_name,
            wrap: vec![1; 48],
            generation: 0,
            adopted_at: 0,
        };
        let key = EntryKey { directory, tag: tag(name) };
        let entry = Change { key, expected: None, leaf };
        let attrs = self.attrs(file);
        let write = WriteId::from_bytes(id16("write"));
        let slots: Vec<(u64, Slot)> = (0..)
            .zip(chunks)
            .map(|(slot, number)| {
                let chunk = SlotChunk {
                    chunk: chunk_id(*number),
                    length: 1000,
                    write,
                    generation: 0,
                    scheme: Redundancy::Replicas,
                };
                (slot, Slot::Chunk(chunk))
            })
            .collect();
        let count = slots.len() as u64;
        let no_pages = std::collections::BTreeMap::new();
        let root = manifest::change(&no_pages, None, 0, count, &slots).unwrap().root;
        let mut payload = format!("version of {name} ").into_bytes();
        payload.resize(payload.len().max(payload_bytes), 0);
        let payload = self.blob(payload);
        let leaf = HeadLeaf {
            version: 1,
            write,
            generation: 0,
            class: ChunkClass::Large,
            slots: count,
            root,
            payload,
            restored: 0,
        };
        let head = HeadChange {
            change: Change { key: file, expected: None, leaf },
            base: Base::Empty,
            receipts_until: Some(LogTime::from_unix_ms(u64::MAX)),
        };
        if !slots.is_empty() {
            let op = u16::try_from(self.ops.len()).unwrap();
            self.payloads.slots.push(coffer_model::bundle::OpSlots { op, changes: slots });
        }
        self.ops.push(Op::Create { entry, attrs, head: Some(head) });
        self
    }
}

impl User {
    /// Registers with a password, logs in, and opens a session, through one member.
    pub(crate) async fn registered(group: &TestGroup, number: usize, name: &str) -> Self {
        let channel = group.channel(number);
        let name: UserName = name.parse().unwrap();
        let server = [b"coffer".as_slice(), group.id.as_bytes()].concat();
        let identifiers =
            Identifiers { client: Some(name.as_str().as_bytes()), server: Some(&server) };
        let started = ClientRegistration::<Suite>::start(&mut OsRng, b"secret").unwrap();
        let message = started.message.serialize().to_vec();
        let answer = eventually(async || {
            let name = name.to_string();
            let message = message.clone().into();
            let request = pb::StartRegistrationRequest { name, message };
            LoginServiceClient::new(channel.clone()).start_registration(request).await
        });
        let answer = answer.await.into_inner();
        assert!(answer.open_registration);
        let response = RegistrationResponse::deserialize(&answer.message).unwrap();
        let parameters = ClientRegistrationFinishParameters::new(identifiers, None);
        let finished = started.state.finish(&mut OsRng, b"secret", response, parameters).unwrap();

        let identity = Key::of(&format!("identity {name}"));
        let session = Key::of(&format!("session {name}"));
        let principal = PrincipalId::from_bytes(id16(&format!("principal {name}")));
        let home = inode(&format!("home {name}"));
        let now = LogTime::from_unix_ms(answer.log_time_ms);
        let certificate = Certificate {
            suite: SUITE,
            cluster: group.id,
            principal,
            key: session.public_key(),
            scope: Scope::Full,
            issued: now,
            expires: now.plus_ms(3_600_000),
        };
        let user = Self {
            name: name.clone(),
            principal,
            home,
            identity,
            session,
            certificate,
            cluster: group.id,
            requests: std::cell::Cell::new(0),
        };
        let mut draft = Draft::default();
        let keyring = draft.blob(format!("keyring of {name}"));
        let login_record = draft.blob(finished.message.serialize().to_vec());
        let attrs = draft.attrs(home);
        let leaf = UserLeaf {
            principal,
            identity: user.identity.public_key(),
            hpke: [1; 32],
            home,
            custody: Custody::Local,
            keyring,
            keyring_epoch: 1,
            login_record,
            invite: None,
        };
        let vault = VaultLeaf {
            home,
            epoch: 0,
            key_commitment: Hash::from_bytes([2; 32]),
            members: vec![VaultMember { principal, role: Role::Admin, sealed_key: vec![3; 80] }],
            former_key: None,
            gateway_custody: false,
            padding: true,
        };
        draft.ops.push(Op::Register {
            user: Change { key: name, expected: None, leaf },
            vault: Change { key: home, expected: None, leaf: vault },
            attrs,
        });
        let signed = user.certificate.clone().sign(&user.identity);
        draft.ops.push(Op::OpenSession {
            session: Change {
                key: user.certificate.hash(),
                expected: None,
                leaf: SessionLeaf { certificate: signed, closed: false },
            },
        });
        let bytes = user.sign(draft, Author::Identity, now.plus_ms(60_000));
        let outcomes = user.send(&channel, bytes).await.0;
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
        user
    }

    pub(crate) fn sign(&self, draft: Draft, author: Author, not_after: LogTime) -> Vec<u8> {
        self.requests.set(self.requests.get() + 1);
        let key = match author {
            Author::Session(_) => &self.session,
            Author::Identity => &self.identity,
        };
        let header = Header {
            cluster: self.cluster,
            suite: SUITE,
            principal: self.principal,
            author,
            key: key.public_key(),
            vaults: Vec::new(),
            request: RequestId::from_bytes(id16(&format!("request {}", self.requests.get()))),
            not_after,
            ops: 0,
            ops_root: [0; 32],
        };
        let bundle = header.sign(&draft.ops, key);
        encode(&Submission { bundle, payloads: draft.payloads })
    }

    /// A submission by the session, good for a minute by this machine's clock.
    pub(crate) fn submission(&self, draft: Draft) -> Vec<u8> {
        let not_after = LogTime::from_unix_ms(unix_ms() + 60_000);
        self.sign(draft, Author::Session(self.certificate.hash()), not_after)
    }

    pub(crate) fn proof(&self, expires_unix_ms: u64) -> SessionProof {
        SessionProof {
            audience: self.cluster,
            certificate: self.certificate.hash(),
            key: self.session.public_key(),
            expires_unix_ms,
        }
    }

    pub(crate) fn header(&self) -> Vec<u8> {
        self.proof(unix_ms() + 50_000).sign(&self.session)
    }

    /// A request with a good session proof.
    pub(crate) fn request<M>(&self, message: M) -> Request<M> {
        with_header(message, &self.header())
    }

    /// Submits until it is answered: the outcomes and the revision.
    pub(crate) async fn send(&self, channel: &Channel, submission: Vec<u8>) -> (Outcomes, u64) {
        let answer = eventually(async || {
            let submission = submission.clone().into();
            let request = self.request(pb::SubmitRequest { submission });
            DirectoryServiceClient::new(channel.clone()).submit(request).await
        });
        let answer = answer.await.into_inner();
        (decode("outcomes", &answer.outcomes).unwrap(), answer.revision)
    }

    /// Creates a file and expects it to go well; gives the revision.
    pub(crate) async fn create(&self, channel: &Channel, name: &str, chunks: &[u64]) -> u64 {
        let draft = Draft::default().file(self.home, name, chunks, 0);
        let (outcomes, revision) = self.send(channel, self.submission(draft)).await;
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
        revision
    }

    /// Reads one name of the home.
    pub(crate) async fn walk(&self, channel: &Channel, name: &str) -> pb::ReadResponse {
        eventually(async || {
            let request = self.request(self.walk_request(name, 0));
            DirectoryServiceClient::new(channel.clone()).read(request).await
        })
        .await
        .into_inner()
    }

    pub(crate) fn walk_request(&self, name: &str, min_revision: u64) -> pb::ReadRequest {
        let want = pb::Want { attrs: true, head: true, from_slot: 0, to_slot: 1024 };
        let walk = pb::WalkQuery {
            directory: self.home.as_bytes().to_vec().into(),
            tags: vec![tag(name).as_bytes().to_vec().into()],
            want: Some(want),
        };
        let query = pb::Query { query: Some(pb::query::Query::Walk(walk)) };
        pb::ReadRequest { queries: vec![query], min_revision }
    }

    pub(crate) fn list_request(&self, page_size: u32, page_token: &str) -> pb::ListRequest {
        pb::ListRequest {
            directory: self.home.as_bytes().to_vec().into(),
            page_size,
            page_token: page_token.to_owned(),
            min_revision: 0,
            want: Some(pb::Want { head: true, ..pb::Want::default() }),
            deleted: false,
        }
    }

    /// Logs in with a password; what the server gives, if it is the right one.
    pub(crate) async fn login(
        &self,
        channels: (&Channel, &Channel),
        password: &[u8],
    ) -> Result<pb::FinishLoginResponse, Status> {
        let server = [b"coffer".as_slice(), self.cluster.as_bytes()].concat();
        let name = self.name.as_str();
        let identifiers = Identifiers { client: Some(name.as_bytes()), server: Some(&server) };
        let started = ClientLogin::<Suite>::start(&mut OsRng, password).unwrap();
        let message = started.message.serialize().to_vec().into();
        let request = pb::StartLoginRequest { name: name.to_owned(), message };
        let answer = LoginServiceClient::new(channels.0.clone()).start_login(request).await?;
        let answer = answer.into_inner();
        let response = CredentialResponse::deserialize(&answer.message).unwrap();
        let context: &[u8] = b"coffer/v1/login";
        let parameters = ClientLoginFinishParameters::new(Some(context), identifiers, None);
        let message = match started.state.finish(&mut OsRng, password, response, parameters) {
            Ok(finished) => finished.message.serialize().to_vec(),
            // The client knows already; the server is told rubbish to see that it does too.
            Err(_) => vec![0; 64],
        };
        let request = pb::FinishLoginRequest { attempt: answer.attempt, message: message.into() };
        let finished = LoginServiceClient::new(channels.1.clone()).finish_login(request).await;
        finished.map(tonic::Response::into_inner)
    }
}

pub(crate) fn with_header<M>(message: M, header: &[u8]) -> Request<M> {
    let mut request = Request::new(message);
    request.metadata_mut().insert_bin(PROOF_HEADER, MetadataValue::from_bytes(header));
    request
}

pub(crate) fn directory(channel: &Channel) -> DirectoryServiceClient<Channel> {
    DirectoryServiceClient::new(channel.clone()).max_decoding_message_size(8 << 20)
}

fn config_of(
    dir: &Path,
    authority: &OneBoxCa,
    number: usize,
    listen: std::net::SocketAddr,
) -> Config {
    let path = |name: &str| dir.join(name);
    let data_dir = path(&format!("data-{number}"));
    let identity =
        coffer_service::identity::ProcessIdentity::load_or_create(&data_dir, ROLE, None).unwrap();
    let tls = authority.issue_into(&path(&format!("tls-{number}")), &[], identity.peer_id());
    Config {
        listen,
        health_listen: None,
        data_dir,
        descriptor: path("descriptor"),
        successors: None,
        audit_log: None,
        join_token_file: None,
        replaces: None,
        layout: path("layout"),
        opaque_setup: path("opaque.setup"),
        bootstrap: number == 0,
        tls: tls.unwrap(),
        timing: Timing::STANDARD,
    }
}

/// A copy of a member's volume under another name. Of a store that is open: RocksDB may just be
/// removing a file it needs no more, so a copy during which one vanished is begun again.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    for _ in 0..100 {
        match try_copy_dir(from, to) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                std::fs::remove_dir_all(to).unwrap();
            }
            done => return done.unwrap(),
        }
    }
    panic!("files vanish from {} all the time", from.display());
}

fn try_copy_dir(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            try_copy_dir(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
