//! Clients: several sessions of one user at a few names of one home. Each looks, thinks, and then changes
//! what it saw; what gets no answer it sends again, as it was, to any member.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use coffer_history::Numbers;
use coffer_model::SUITE;
use coffer_model::bundle::{Author, Header, Outcomes, Payloads, Submission};
use coffer_model::chunk::ChunkClass;
use coffer_model::encoding::{decode, encode};
use coffer_model::hash::{Hash, payload_hash};
use coffer_model::id::{ClusterId, InodeId, PrincipalId, RequestId, WriteId};
use coffer_model::name::UserName;
use coffer_model::object::{
    AttrsLeaf, Custody, EntryKey, EntryLeaf, EntryState, HeadLeaf, Kind, Leaf, LeafHash, Object,
    Role, SessionLeaf, UserLeaf, VaultLeaf, VaultMember,
};
use coffer_model::op::{Base, Change, HeadChange, Op};
use coffer_model::session::{Certificate, Scope, SessionProof};
use coffer_model::signing::Signer;
use coffer_model::time::LogTime;
use coffer_proto::v1 as pb;
use coffer_proto::v1::directory_service_client::DirectoryServiceClient;
use coffer_service::channel::Channel;
use coffer_service::status::is_retryable;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

use super::group::MEMBERS;
use super::net::{Host, Line, Net};
use super::pause;
use crate::clock::unix_ms;
use crate::member::tests::kit::{Key, inode, tag, with_header};

/// Clients that work at once; one more prepares, and looks at the end.
pub(super) const CLIENTS: usize = 4;
/// Names they work at.
pub(super) const NAMES: usize = 3;
/// What each does.
const ROUNDS: usize = 22;
/// The longest a client thinks.
const THINK_MS_MAX: u64 = 700;
/// How long a client tries to get an answer. The impatient never know what became of a change.
const PATIENCE_MS_MIN: u64 = 500;
const PATIENCE_MS_MAX: u64 = 10_000;
/// How long one attempt may take.
const ATTEMPT_MS_MIN: u64 = 300;
const ATTEMPT_MS_MAX: u64 = 2500;

/// What became of a submission, by an answer to it.
pub(super) type Answer = (Outcomes, u64);

/// One change or look of one client. Times are in nanoseconds since the run began.
#[derive(Clone, Debug)]
pub(super) enum Record {
    Wrote {
        client: usize,
        request: RequestId,
        /// What it set, if it was not refused.
        set: Vec<(Object, LeafHash)>,
        began: u64,
        ended: Option<u64>,
        answer: Option<Answer>,
    },
    Saw {
        client: usize,
        /// The latest revision the client had seen before.
        least: u64,
        revision: u64,
        found: Vec<(Object, Option<LeafHash>)>,
        began: u64,
        ended: u64,
    },
    /// Something that must not happen at all.
    Wrong(String),
}

/// The user, with a session for each client.
pub(super) struct Account {
    pub(super) cluster: ClusterId,
    principal: PrincipalId,
    home: InodeId,
    identity: Key,
    sessions: Vec<(Key, Certificate)>,
}

fn principal(word: &str) -> PrincipalId {
    PrincipalId::from_bytes(
        *Hash::of("simulation", word.as_bytes()).as_bytes().first_chunk().unwrap(),
    )
}

impl Account {
    pub(super) fn new(cluster: ClusterId) -> Self {
        let principal = principal("alice");
        let now = LogTime::from_unix_ms(unix_ms());
        let sessions = (0..=CLIENTS).map(|client| {
            let key = Key::of(&format!("session {client}"));
            let certificate = Certificate {
                suite: SUITE,
                cluster,
                principal,
                key: key.public_key(),
                scope: Scope::Full,
                issued: now,
                expires: now.plus_ms(3_600_000),
            };
            (key, certificate)
        });
        let (home, identity) = (inode("home alice"), Key::of("identity alice"));
        Self { cluster, principal, home, identity, sessions: sessions.collect() }
    }

    pub(super) fn name(&self, number: usize) -> EntryKey {
        EntryKey { directory: self.home, tag: tag(&format!("name {number}")) }
    }

    fn header(&self, author: Author, key: &Key, request: RequestId) -> Header {
        Header {
            cluster: self.cluster,
            suite: SUITE,
            principal: self.principal,
            author,
            key: key.public_key(),
            vaults: Vec::new(),
            request,
            not_after: LogTime::from_unix_ms(unix_ms() + 60_000),
            ops: 0,
            ops_root: [0; 32],
        }
    }

    /// Registers the user and opens all sessions.
    fn registration(&self) -> (RequestId, Vec<u8>) {
        let mut blobs = Vec::new();
        let mut blob = |word: &str| {
            blobs.push(word.as_bytes().to_vec());
            payload_hash(word.as_bytes())
        };
        let leaf = UserLeaf {
            principal: self.principal,
            identity: self.identity.public_key(),
            hpke: [1; 32],
            home: self.home,
            custody: Custody::Local,
            keyring: blob("keyring"),
            keyring_epoch: 1,
            login_record: blob("login record"),
            invite: None,
        };
        let alone =
            VaultMember { principal: self.principal, role: Role::Admin, sealed_key: vec![3; 80] };
        let vault = VaultLeaf {
            home: self.home,
            epoch: 0,
            key_commitment: Hash::from_bytes([2; 32]),
            members: vec![alone],
            former_key: None,
            gateway_custody: false,
            padding: true,
        };
        let attrs = AttrsLeaf { payload: blob("attributes"), generation: 0 };
        let name: UserName = "alice".parse().unwrap();
        let mut ops = vec![Op::Register {
            user: Change { key: name, expected: None, leaf },
            vault: Change { key: self.home, expected: None, leaf: vault },
            attrs: Change { key: self.home, expected: None, leaf: attrs },
        }];
        for (_, certificate) in &self.sessions {
            let certificate = certificate.clone();
            let key = certificate.hash();
            let leaf = SessionLeaf { certificate: certificate.sign(&self.identity), closed: false };
            ops.push(Op::OpenSession { session: Change { key, expected: None, leaf } });
        }
        let request = request_id(usize::MAX, 0);
        let header = self.header(Author::Identity, &self.identity, request);
        let bundle = header.sign(&ops, &self.identity);
        let payloads = Payloads { blobs, slots: Vec::new() };
        (request, encode(&Submission { bundle, payloads }))
    }
}

fn request_id(client: usize, number: u64) -> RequestId {
    let hash = Hash::of("simulation", format!("request {client} {number}").as_bytes());
    RequestId::from_bytes(*hash.as_bytes().first_chunk().unwrap())
}

/// What stands under a name.
#[derive(Clone, Debug)]
struct Standing {
    hash: LeafHash,
    leaf: EntryLeaf,
    head: Option<(LeafHash, HeadLeaf)>,
}

/// One client.
pub(super) struct Client {
    number: usize,
    account: Arc<Account>,
    channels: Vec<Channel>,
    numbers: Numbers,
    began: Instant,
    requests: u64,
    seen: u64,
    /// What it believes of the names.
    believes: BTreeMap<usize, Option<Standing>>,
    records: Vec<Record>,
}

impl Client {
    pub(super) fn new(
        number: usize,
        account: &Arc<Account>,
        net: &Arc<Net>,
        numbers: Numbers,
        began: Instant,
    ) -> Self {
        let host = Host::Client(number);
        let channels = (0..MEMBERS).map(|member| {
            let line = Line::new(net, host, CancellationToken::new(), Host::Member(member));
            let endpoint = Endpoint::from_static("http://member");
            line.channel(endpoint.connect_timeout(Duration::from_secs(1)))
        });
        Self {
            number,
            account: Arc::clone(account),
            channels: channels.collect(),
            numbers,
            began,
            requests: 0,
            seen: 0,
            believes: BTreeMap::new(),
            records: Vec::new(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap()
    }

    /// Makes the user and the sessions.
    pub(super) async fn prepare(&mut self) -> Vec<Record> {
        let (request, submission) = self.account.registration();
        self.submit(request, Vec::new(), submission, false).await;
        std::mem::take(&mut self.records)
    }

    /// Does what there is to do; gives what it did and saw.
    pub(super) async fn work(mut self) -> Vec<Record> {
        for _ in 0..ROUNDS {
            pause(self.numbers.below(THINK_MS_MAX)).await;
            let (one, other) = (self.any_name(), self.any_name());
            // Now and then on old knowledge, which makes conflicts.
            if self.numbers.below(4) > 0 || !self.believes.contains_key(&one) {
                let member = self.any_member();
                if !self.look(&[one, other], member).await {
                    continue;
                }
                pause(self.numbers.below(40)).await;
            }
            if self.numbers.below(5) > 0 {
                self.change(one, other).await;
            }
        }
        self.records
    }

    /// Looks at all names at one member.
    pub(super) async fn look_at_all(&mut self, member: usize) -> bool {
        let names: Vec<usize> = (0..NAMES).collect();
        self.look(&names, member).await
    }

    /// Changes something at the end, so that it is known to go on.
    pub(super) async fn change_once(&mut self) -> bool {
        let before = self.records.len();
        self.look_at_all(0).await;
        self.change(0, 1).await;
        self.records[before..]
            .iter()
            .any(|record| matches!(record, Record::Wrote { answer: Some(_), .. }))
    }

    pub(super) fn into_records(self) -> Vec<Record> {
        self.records
    }

    fn any_name(&mut self) -> usize {
        usize::try_from(self.numbers.below(NAMES as u64)).unwrap()
    }

    fn any_member(&mut self) -> usize {
        usize::try_from(self.numbers.below(MEMBERS as u64)).unwrap()
    }

    fn proof(&self) -> Vec<u8> {
        let (key, certificate) = &self.account.sessions[self.number];
        let proof = SessionProof {
            audience: self.account.cluster,
            certificate: certificate.hash(),
            key: key.public_key(),
            expires_unix_ms: unix_ms() + 50_000,
        };
        proof.sign(key)
    }

    fn attempt_time(&mut self) -> Duration {
        let more = self.numbers.below(ATTEMPT_MS_MAX - ATTEMPT_MS_MIN);
        Duration::from_millis(ATTEMPT_MS_MIN + more)
    }

    /// Until when to try, in nanoseconds since the run began.
    fn deadline(&mut self) -> u64 {
        let more = self.numbers.below(PATIENCE_MS_MAX - PATIENCE_MS_MIN);
        self.now() + (PATIENCE_MS_MIN + more) * 1_000_000
    }

    /// Whether to try again after a failure.
    async fn is_to_repeat(&mut self, status: &Status, deadline: u64) -> bool {
        if !is_retryable(status) && status.code() != Code::Unknown {
            let text = format!("client {}: an answer that cannot be: {status:?}", self.number);
            self.records.push(Record::Wrong(text));
            return false;
        }
        pause(20 + self.numbers.below(300)).await;
        self.now() < deadline
    }

    /// Looks at names; false if nobody answered.
    async fn look(&mut self, names: &[usize], mut member: usize) -> bool {
        let (began, least, deadline) = (self.now(), self.seen, self.deadline());
        let answer = loop {
            let mut request = with_header(self.question(names), &self.proof());
            let time = self.attempt_time();
            request.set_timeout(time);
            let mut client = DirectoryServiceClient::new(self.channels[member].clone());
            let answer = timeout(time + Duration::from_secs(1), client.read(request)).await;
            match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("it is late"))) {
                Ok(answer) => break answer.into_inner(),
                Err(status) if self.is_to_repeat(&status, deadline).await => {}
                Err(_) => return false,
            }
            member = self.any_member();
        };
        let ended = self.now();
        if answer.revision < least {
            let text =
                format!("client {}: revision {} after {least}", self.number, answer.revision);
            self.records.push(Record::Wrong(text));
        }
        let revision = answer.revision;
        self.seen = self.seen.max(revision);
        let mut found = Vec::new();
        for (name, standing) in names.iter().zip(self.parse(names, answer)) {
            let object = Object::Entry(self.account.name(*name));
            found.push((object, standing.as_ref().map(|standing| standing.hash)));
            if let Some(Standing { leaf, head: Some((hash, _)), .. }) = &standing {
                found.push((Object::Head(leaf.inode), Some(*hash)));
            }
            self.believes.insert(*name, standing);
        }
        let client = self.number;
        self.records.push(Record::Saw { client, least, revision, found, began, ended });
        true
    }

    fn question(&self, names: &[usize]) -> pb::ReadRequest {
        let want = pb::Want { head: true, ..pb::Want::default() };
        let query = |name: &usize| {
            let EntryKey { directory, tag } = self.account.name(*name);
            let walk = pb::WalkQuery {
                directory: directory.as_bytes().to_vec().into(),
                tags: vec![tag.as_bytes().to_vec().into()],
                want: Some(want),
            };
            pb::Query { query: Some(pb::query::Query::Walk(walk)) }
        };
        pb::ReadRequest { queries: names.iter().map(query).collect(), min_revision: self.seen }
    }

    /// What an answer says of each name, by the signed ops in it.
    fn parse(&self, names: &[usize], answer: pb::ReadResponse) -> Vec<Option<Standing>> {
        let proofs = answer.proofs.unwrap();
        let leaf = |leaf: &pb::ProvenLeaf, object: &Object| {
            let op: Op = decode("op", &proofs.ops[usize::try_from(leaf.op).unwrap()].op).unwrap();
            let change = op.changes().into_iter().find(|change| change.object == *object).unwrap();
            (change.leaf_hash(&self.account.cluster), change.leaf)
        };
        let standing = |(name, answer): (&usize, &pb::Answer)| {
            let Some(pb::answer::Answer::Walk(walk)) = &answer.answer else { panic!() };
            let step = walk.steps.first()?;
            let object = Object::Entry(self.account.name(*name));
            let (hash, Leaf::Entry(entry)) = leaf(step.entry.as_ref().unwrap(), &object) else {
                panic!("an entry has the leaf of one")
            };
            let head = step.head.as_ref().map(|head| {
                let (hash, Leaf::Head(head)) = leaf(head, &Object::Head(entry.inode)) else {
                    panic!("a version has the leaf of one")
                };
                (hash, head)
            });
            Some(Standing { hash, leaf: entry, head })
        };
        names.iter().zip(&answer.answers).map(standing).collect()
    }

    /// Changes something about the first name, by what the client believes.
    async fn change(&mut self, name: usize, other: usize) {
        let standing = self.believes.get(&name).cloned().flatten();
        let target = self.believes.get(&other).cloned();
        self.requests += 1;
        let request = request_id(self.number, self.requests);
        let mut blobs = Vec::new();
        let word = format!("{} {}", self.number, self.requests);
        let mut blob = |what: &str| {
            let bytes = format!("{what} {word}").into_bytes();
            let hash = payload_hash(&bytes);
            blobs.push(bytes);
            hash
        };
        let key = self.account.name(name);
        let dice = self.numbers.below(10);
        let op = match standing {
            Some(Standing { hash, leaf, head: Some((head_hash, head)) })
                if leaf.state == EntryState::Live =>
            {
                match (dice, target) {
                    (0..2, _) => {
                        let leaf = EntryLeaf { state: EntryState::Deleted, ..leaf };
                        let entry = Change { key, expected: Some(hash), leaf };
                        Op::Remove { entry, only_empty: false }
                    }
                    (2..5, Some(target)) if other != name => {
                        let to = self.account.name(other);
                        let moved = EntryLeaf { state: EntryState::Moved { to }, ..leaf.clone() };
                        let arrived = EntryLeaf { name: blob("moved name"), ..leaf };
                        let expected = target.map(|target| target.hash);
                        Op::Rename {
                            from: Change { key, expected: Some(hash), leaf: moved },
                            to: Change { key: to, expected, leaf: arrived },
                        }
                    }
                    _ => {
                        let next = HeadLeaf {
                            version: head.version + 1,
                            payload: blob("content"),
                            ..head
                        };
                        let change =
                            Change { key: leaf.inode, expected: Some(head_hash), leaf: next };
                        let head = HeadChange { change, base: Base::Empty, receipts_until: None };
                        Op::Commit { head, attrs: None }
                    }
                }
            }
            // A new file, also where a tombstone is.
            standing => {
                let file = inode(&format!("file {word}"));
                let leaf = EntryLeaf {
                    inode: file,
                    kind: Kind::File,
                    state: EntryState::Live,
                    name: blob("name"),
                    wrap: vec![1; 48],
                    generation: 0,
                    adopted_at: 0,
                };
                let entry = Change { key, expected: standing.map(|standing| standing.hash), leaf };
                let attrs = AttrsLeaf { payload: blob("attributes"), generation: 0 };
                let head = HeadLeaf {
                    version: 1,
                    write: WriteId::from_bytes([7; 16]),
                    generation: 0,
                    class: ChunkClass::Large,
                    slots: 0,
                    root: None,
                    payload: blob("content"),
                    restored: 0,
                };
                let change = Change { key: file, expected: None, leaf: head };
                Op::Create {
                    entry,
                    attrs: Change { key: file, expected: None, leaf: attrs },
                    head: Some(HeadChange { change, base: Base::Empty, receipts_until: None }),
                }
            }
        };
        let cluster = self.account.cluster;
        let set = op.changes();
        let set = set.into_iter().map(|change| (change.object.clone(), change.leaf_hash(&cluster)));
        let set: Vec<_> = set.filter(|(object, _)| !matches!(object, Object::Attrs(_))).collect();
        let (session, certificate) = &self.account.sessions[self.number];
        let header = self.account.header(Author::Session(certificate.hash()), session, request);
        let bundle = header.sign(&[op], session);
        let payloads = Payloads { blobs, slots: Vec::new() };
        let again = self.numbers.below(6) == 0;
        self.submit(request, set, encode(&Submission { bundle, payloads }), again).await;
        // What it knew is old now, whatever became of it.
        if self.numbers.below(2) == 0 {
            self.believes.remove(&name);
        }
    }

    /// Submits until it is answered, or too late. With `again` the answered request is sent once more,
    /// and has to get the same answer.
    async fn submit(
        &mut self,
        request: RequestId,
        set: Vec<(Object, LeafHash)>,
        submission: Vec<u8>,
        again: bool,
    ) -> Option<Answer> {
        let began = self.now();
        let answer = self.answer_to(&submission).await;
        let ended = answer.is_some().then(|| self.now());
        if let Some((_, revision)) = &answer {
            self.seen = self.seen.max(*revision);
        }
        let client = self.number;
        let record = Record::Wrote { client, request, set, began, ended, answer: answer.clone() };
        self.records.push(record);
        if again && let Some(first) = &answer {
            pause(self.numbers.below(500)).await;
            let second = self.answer_to(&submission).await;
            if second.as_ref().is_some_and(|second| second != first) {
                let text = format!("client {client}: {first:?}, and repeated: {second:?}");
                self.records.push(Record::Wrong(text));
            }
        }
        answer
    }

    async fn answer_to(&mut self, submission: &[u8]) -> Option<Answer> {
        let deadline = self.deadline();
        loop {
            let message = pb::SubmitRequest { submission: submission.to_vec().into() };
            let mut request = with_header(message, &self.proof());
            let time = self.attempt_time();
            request.set_timeout(time);
            let member = self.any_member();
            let mut client = DirectoryServiceClient::new(self.channels[member].clone());
            let answer = timeout(time + Duration::from_secs(1), client.submit(request)).await;
            match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("it is late"))) {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    let outcomes = decode("outcomes", &answer.outcomes).unwrap();
                    return Some((outcomes, answer.revision));
                }
                Err(status) if self.is_to_repeat(&status, deadline).await => {}
                Err(_) => return None,
            }
        }
    }
}
