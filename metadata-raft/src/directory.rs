//! The directory service: submissions, reads, tickets.

use std::collections::BTreeMap;
use std::sync::Arc;

use coffer_metadata_core::query::{self, Want};
use coffer_metadata_core::{Command, Prepared, Reply};
use coffer_model::bundle::{Author, BundleRejection, SUBMISSION_BYTES_MAX};
use coffer_model::encoding::{decode, encode};
use coffer_model::id::{InodeId, NameTag};
use coffer_model::name::PATH_DEPTH_MAX;
use coffer_model::object::Object;
use coffer_model::op::Op;
use coffer_model::session::SessionProof;
use coffer_model::ticket::Leave;
use coffer_proto::v1 as pb;
use coffer_proto::v1::directory_service_client::DirectoryServiceClient;
use coffer_proto::v1::directory_service_server::DirectoryService;
use coffer_proto::{
    MESSAGE_BYTES_MAX, PAGE_SIZE_MAX, QUERIES_PER_READ, SLOTS_PER_QUERY, TICKET_BYTES_MAX,
};
use coffer_service::audit::{Note, note_of};
use coffer_service::channel::Channel;
use coffer_service::status::{status, status_with_retry};
use tonic::{Code, Request, Response, Status};

use crate::access::{Door, Route, authorised, invalid, query_refused, reading, store_failed};
use crate::batch::Proposer;
use crate::listing::{Listing, Listings, Token};
use crate::machine::PreparedCache;
use crate::proofs::{Answers, TicketOffice};
use crate::reads::{Confirmed, Reads};

/// A submission up to this size is checked where it comes in; the hashes of a longer one take long
/// enough to be worth another thread.
const CHECKED_INLINE_BYTES_MAX: usize = 32 << 10;
/// Answers are cut, or refused where they cannot be cut, at about this size.
pub(crate) const ANSWER_BYTES_MAX: usize = 4 << 20;
/// A page of versions is cut this much earlier: it is filled in steps.
const STEP_BYTES: usize = 1 << 20;
/// The server's choice of a page size.
const PAGE_SIZE: usize = 256;
/// Entries read from the store at a time while a page is filled.
const LIST_STEP: usize = 32;

/// The directory service of one member.
#[derive(Clone)]
pub(crate) struct Directory {
    pub(crate) door: Door,
    pub(crate) reads: Reads,
    pub(crate) proposer: Proposer,
    pub(crate) prepared: Arc<PreparedCache>,
    pub(crate) listings: Arc<Listings>,
}

fn client(channel: Channel) -> DirectoryServiceClient<Channel> {
    DirectoryServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

#[tonic::async_trait]
impl DirectoryService for Directory {
    async fn submit(
        &self,
        request: Request<pb::SubmitRequest>,
    ) -> Result<Response<pb::SubmitResponse>, Status> {
        if let Route::At(leader) = self.door.to_leader(&request)? {
            let call = |to, request| async move { client(to).submit(request).await };
            return self.door.forward(leader, request, call).await;
        }
        let note = note_of(&request);
        let proof = self.door.proof(&request);
        let submission = Vec::from(request.into_inner().submission);
        self.check(&submission, proof, &note).await?;
        let reply = self.proposer.propose(Command::Submission(submission)).await;
        match reply.map_err(|error| self.door.propose_refused(error))? {
            Reply::Bundle { outcomes, revision, repeated: _ } => {
                Ok(Response::new(pb::SubmitResponse {
                    outcomes: encode(&outcomes).into(),
                    revision,
                }))
            }
            Reply::Refused(rejection) => Err(bundle_refused(&rejection)),
            Reply::System => Err(status(Code::Internal, "REPLY", "a reply to something else", &[])),
        }
    }

    async fn read(
        &self,
        request: Request<pb::ReadRequest>,
    ) -> Result<Response<pb::ReadResponse>, Status> {
        self.door.here()?;
        let note = note_of(&request);
        let proof = self.door.proof(&request)?;
        let pb::ReadRequest { queries, min_revision } = request.into_inner();
        let questions = Question::parse_all(queries)?;
        let confirmed = self.view().await?;
        let group = Arc::clone(&self.door.group);
        let answer = reading(move || {
            let view = &confirmed.view;
            let principal = authorised(view, &proof, &note)?;
            let revision = fresh_enough(view, min_revision)?;
            let office = TicketOffice { group, principal, proof };
            let mut answers = Answers::new(view, &office);
            let mut list = Vec::with_capacity(questions.len());
            for question in questions {
                list.push(question.answer(view, &mut answers)?);
                if answers.bytes() > ANSWER_BYTES_MAX {
                    let text = "the answers are too long together; ask for less at a time";
                    return Err(invalid("ANSWER_TOO_LARGE", text));
                }
            }
            Ok(pb::ReadResponse {
                revision,
                log_time_ms: query::log_time(view).map_err(store_failed)?.unix_ms(),
                proofs: Some(answers.into_proofs()),
                answers: list,
            })
        });
        Ok(Response::new(answer.await?))
    }

    async fn list(
        &self,
        request: Request<pb::ListRequest>,
    ) -> Result<Response<pb::ListResponse>, Status> {
        self.door.here()?;
        let token = match request.get_ref().page_token.as_str() {
            "" => None,
            text => Some(Token::parse(text)?),
        };
        // The snapshot that a listing goes on in is at the member that began it.
        if let Some(token) = token
            && token.member != self.door.group.me
            && self.door.group.member(token.member).is_some()
        {
            let Route::At(member) = self.door.forward_to(token.member, &request)? else {
                return Err(self.door.not_leader(None));
            };
            let call = |to, request| async move { client(to).list(request).await };
            return self.door.forward(member, request, call).await;
        }
        let note = note_of(&request);
        let proof = self.door.proof(&request)?;
        let message = request.into_inner();
        let directory = inode(&message.directory)?;
        let page_size = page_size(message.page_size)?;
        let want = parse_want(message.want)?;
        let confirmed = self.view().await?;
        let (group, listings) = (Arc::clone(&self.door.group), Arc::clone(&self.listings));
        let answer = reading(move || {
            // The session has to be open now, whatever moment the pages are from.
            let principal = authorised(&confirmed.view, &proof, &note)?;
            let revision = fresh_enough(&confirmed.view, message.min_revision)?;
            let office = TicketOffice { group, principal, proof };
            let (listing, after) = match token {
                None => {
                    let (view, _place) = confirmed.into_view();
                    let deleted = message.deleted;
                    let listing = Listing { view, revision, principal, directory, want, deleted };
                    (Arc::new(listing), None)
                }
                Some(token) => {
                    let listing = listings.find(&token)?;
                    let same = listing.principal == principal
                        && listing.directory == directory
                        && listing.want == want
                        && listing.deleted == message.deleted;
                    if !same {
                        let text = "the page token belongs to another listing";
                        return Err(invalid("PAGE_TOKEN", text));
                    }
                    (listing, Some(token.after))
                }
            };
            let mut answers = Answers::new(&listing.view, &office);
            let (entries, next) = page(&listing, after, page_size, &mut answers)?;
            let proofs = answers.into_proofs();
            let next = match (next, token) {
                (None, _) => String::new(),
                (Some(after), Some(token)) => Token { after, ..token }.to_string(),
                (Some(after), None) => listings.keep(Arc::clone(&listing), after).to_string(),
            };
            Ok(pb::ListResponse {
                revision: listing.revision,
                proofs: Some(proofs),
                entries,
                next_page_token: next,
            })
        });
        Ok(Response::new(answer.await?))
    }

    async fn list_versions(
        &self,
        request: Request<pb::ListVersionsRequest>,
    ) -> Result<Response<pb::ListVersionsResponse>, Status> {
        self.door.here()?;
        let note = note_of(&request);
        let proof = self.door.proof(&request)?;
        let message = request.into_inner();
        let file = inode(&message.inode)?;
        let page_size = page_size(message.page_size)?;
        let before = parse_versions_token(&file, &message.page_token)?;
        let confirmed = self.view().await?;
        let group = Arc::clone(&self.door.group);
        let answer = reading(move || {
            let view = &confirmed.view;
            let principal = authorised(view, &proof, &note)?;
            let revision = fresh_enough(view, message.min_revision)?;
            let office = TicketOffice { group, principal, proof };
            let mut answers = Answers::new(view, &office);
            let (mut versions, mut before) = (Vec::new(), before);
            loop {
                let step = LIST_STEP.min(page_size - versions.len());
                let (found, next) =
                    query::versions(view, principal, &file, before, step).map_err(query_refused)?;
                for leaf in found {
                    let log_time_ms = leaf.time.unix_ms();
                    versions.push(pb::Version { head: Some(answers.leaf(leaf)?), log_time_ms });
                }
                before = next;
                let full =
                    versions.len() >= page_size || answers.bytes() > ANSWER_BYTES_MAX - STEP_BYTES;
                if full || before.is_none() {
                    break;
                }
            }
            Ok(pb::ListVersionsResponse {
                revision,
                proofs: Some(answers.into_proofs()),
                versions,
                next_page_token: before
                    .map_or(String::new(), |before| versions_token(&file, before)),
            })
        });
        Ok(Response::new(answer.await?))
    }

    async fn issue_write_ticket(
        &self,
        request: Request<pb::IssueWriteTicketRequest>,
    ) -> Result<Response<pb::IssueWriteTicketResponse>, Status> {
        if let Route::At(leader) = self.door.to_leader(&request)? {
            let call = |to, request| async move { client(to).issue_write_ticket(request).await };
            return self.door.forward(leader, request, call).await;
        }
        let note = note_of(&request);
        let proof = self.door.proof(&request)?;
        let message = request.into_inner();
        let below = inode(&message.inode)?;
        if message.bytes == 0 || message.bytes > TICKET_BYTES_MAX {
            return Err(invalid("TICKET_BYTES", "a ticket is for 1 byte to 1 GiB"));
        }
        // What the ticket is for ends in a commit, which is judged by log time.
        self.tick().await?;
        let confirmed = self.view().await?;
        let group = Arc::clone(&self.door.group);
        let answer = reading(move || {
            let view = &confirmed.view;
            let principal = authorised(view, &proof, &note)?;
            let home = query::write_home(view, principal, &below).map_err(query_refused)?;
            let office = TicketOffice { group, principal, proof };
            Ok(pb::IssueWriteTicketResponse {
                ticket: office.issue(Leave::Write { home, bytes_max: message.bytes }).into(),
                log_time_ms: query::log_time(view).map_err(store_failed)?.unix_ms(),
            })
        });
        Ok(Response::new(answer.await?))
    }
}

impl Directory {
    async fn view(&self) -> Result<Confirmed, Status> {
        self.proposer.nudge_tick();
        self.reads.view().await.map_err(|error| self.door.read_refused(error))
    }

    async fn tick(&self) -> Result<(), Status> {
        self.proposer.tick().await.map_err(|error| self.door.propose_refused(error))
    }

    /// Refuses at the door what could never be applied, before it costs a place in the log. What is
    /// good stays prepared until it is applied.
    async fn check(
        &self,
        submission: &[u8],
        proof: Result<SessionProof, Status>,
        note: &Note,
    ) -> Result<(), Status> {
        if submission.len() > SUBMISSION_BYTES_MAX {
            let text = "a submission has at most 4 MiB".to_owned();
            return Err(bundle_refused(&BundleRejection::Malformed(text)));
        }
        let (cluster, bytes) = (self.door.cluster(), submission.to_vec());
        let prepared = if bytes.len() <= CHECKED_INLINE_BYTES_MAX {
            Prepared::new(&cluster, Command::Submission(bytes))
        } else {
            reading(move || Ok(Prepared::new(&cluster, Command::Submission(bytes)))).await?
        };
        match &prepared {
            Prepared::Submission(content) => {
                let header = &content.0.header;
                note.add(|subject| {
                    subject.principal = Some(header.principal.to_string());
                    subject.object = Some(verbs(&content.0.ops));
                });
                if let Author::Session(certificate) = header.author {
                    let proof = proof?;
                    if proof.certificate != certificate || proof.key != header.key {
                        return Err(bundle_refused(&BundleRejection::Session));
                    }
                }
            }
            Prepared::Refused(rejection) => return Err(bundle_refused(rejection)),
            Prepared::System(_) => {}
        }
        self.prepared.insert(submission, prepared);
        Ok(())
    }
}

/// What the ops of a bundle do, each kind once with its number.
fn verbs(ops: &[Op]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for op in ops {
        *counts.entry(op.verb()).or_default() += 1;
    }
    let verbs = counts.iter().map(|(verb, count)| format!("{count} {verb}"));
    verbs.collect::<Vec<_>>().join(", ")
}

/// The refusal of a whole bundle, with what the client needs to tell why.
fn bundle_refused(rejection: &BundleRejection) -> Status {
    let code = match rejection {
        BundleRejection::Session | BundleRejection::Signature => Code::Unauthenticated,
        BundleRejection::Malformed(_)
        | BundleRejection::Cluster
        | BundleRejection::Expired(_)
        | BundleRejection::VaultChanged => Code::FailedPrecondition,
    };
    let facts = [("rejection", hex::encode(encode(rejection)))];
    status(code, "BUNDLE_REJECTED", &rejection.to_string(), &facts)
}

/// The revision of a view, which has to be the caller's highest at least. A confirmed view that is
/// older means that something acknowledged is gone, or never was; the caller must not be taken back.
fn fresh_enough(
    view: &impl coffer_metadata_core::Tables,
    min_revision: u64,
) -> Result<u64, Status> {
    let revision = query::revision(view).map_err(store_failed)?;
    if revision >= min_revision {
        return Ok(revision);
    }
    let facts = [("revision", revision.to_string()), ("min_revision", min_revision.to_string())];
    let text = "the caller has seen a later revision than this group has";
    let retry = std::time::Duration::from_millis(300);
    Err(status_with_retry(Code::Unavailable, "BEHIND", text, &facts, retry))
}

/// A parsed query.
enum Question {
    Walk { directory: InodeId, tags: Vec<NameTag>, want: Want },
    Object(Object),
    Content { inode: InodeId, version: u64, from: u64, to: u64 },
}

impl Question {
    fn parse_all(queries: Vec<pb::Query>) -> Result<Vec<Self>, Status> {
        if queries.is_empty() || queries.len() > QUERIES_PER_READ {
            return Err(invalid("QUERIES", "a read has 1 to 64 queries"));
        }
        queries.into_iter().map(Self::parse).collect()
    }

    fn parse(query: pb::Query) -> Result<Self, Status> {
        match query.query {
            Some(pb::query::Query::Walk(walk)) => {
                if walk.tags.is_empty() || walk.tags.len() > PATH_DEPTH_MAX {
                    return Err(invalid("TAGS", "a walk has 1 to 256 name tags"));
                }
                let tag = |bytes: &bytes::Bytes| {
                    NameTag::try_from(&bytes[..])
                        .map_err(|_| invalid("TAGS", "a name tag has 32 bytes"))
                };
                Ok(Self::Walk {
                    directory: inode(&walk.directory)?,
                    tags: walk.tags.iter().map(tag).collect::<Result<_, _>>()?,
                    want: parse_want(walk.want)?,
                })
            }
            Some(pb::query::Query::Object(object)) => decode("object", &object.object)
                .map(Self::Object)
                .map_err(|error| invalid("OBJECT", &error.to_string())),
            Some(pb::query::Query::Content(content)) => {
                slot_range(content.from_slot, content.to_slot)?;
                Ok(Self::Content {
                    inode: inode(&content.inode)?,
                    version: content.version,
                    from: content.from_slot,
                    to: content.to_slot,
                })
            }
            None => Err(invalid("QUERIES", "a query is empty, or of a kind not known here")),
        }
    }

    fn answer<T: coffer_metadata_core::Tables>(
        self,
        tables: &T,
        answers: &mut Answers<'_, T>,
    ) -> Result<pb::Answer, Status> {
        let principal = answers.principal();
        let answer = match self {
            Self::Walk { directory, tags, want } => {
                let steps = query::walk(tables, principal, &directory, &tags, &want)
                    .map_err(query_refused)?;
                let steps = steps.into_iter().map(|step| answers.entry(step));
                pb::answer::Answer::Walk(pb::WalkAnswer { steps: steps.collect::<Result<_, _>>()? })
            }
            Self::Object(object) => {
                let found = query::object(tables, principal, &object).map_err(query_refused)?;
                let leaf = found.map(|leaf| answers.leaf(leaf)).transpose()?;
                pb::answer::Answer::Object(pb::ObjectAnswer { leaf })
            }
            Self::Content { inode, version, from, to } => {
                let found = query::content(tables, principal, &inode, version, from, to)
                    .map_err(query_refused)?;
                let content = found.map(|content| answers.content(content)).transpose()?;
                pb::answer::Answer::Content(content.unwrap_or_default())
            }
        };
        Ok(pb::Answer { answer: Some(answer) })
    }
}

/// Fills a page; gives what to go on after, if there is more.
fn page<T: coffer_metadata_core::Tables>(
    listing: &Listing,
    after: Option<NameTag>,
    page_size: usize,
    answers: &mut Answers<'_, T>,
) -> Result<(Vec<pb::Entry>, Option<NameTag>), Status> {
    let Listing { view, principal, directory, want, deleted, .. } = listing;
    let (mut entries, mut after) = (Vec::new(), after);
    loop {
        let step = LIST_STEP.min(page_size - entries.len());
        let (found, next) =
            query::list(view, *principal, directory, after.as_ref(), step, want, *deleted)
                .map_err(query_refused)?;
        let mut found = found.into_iter().peekable();
        while let Some(entry) = found.next() {
            let tag = entry.key.tag;
            entries.push(answers.entry(entry)?);
            if answers.bytes() > ANSWER_BYTES_MAX && (found.peek().is_some() || next.is_some()) {
                return Ok((entries, Some(tag)));
            }
        }
        after = next;
        if entries.len() >= page_size || after.is_none() {
            return Ok((entries, after));
        }
    }
}

fn inode(bytes: &[u8]) -> Result<InodeId, Status> {
    InodeId::try_from(bytes).map_err(|_| invalid("INODE", "an inode id has 16 bytes"))
}

fn page_size(asked: u32) -> Result<usize, Status> {
    match asked {
        0 => Ok(PAGE_SIZE),
        1..=PAGE_SIZE_MAX => Ok(usize::try_from(asked).unwrap_or(PAGE_SIZE)),
        _ => Err(invalid("PAGE_SIZE", "a page has at most 1000 entries")),
    }
}

fn slot_range(from: u64, to: u64) -> Result<(), Status> {
    if to < from || to - from > SLOTS_PER_QUERY {
        return Err(invalid("SLOT_RANGE", "a range of slots ascends and has at most 1024"));
    }
    Ok(())
}

fn parse_want(want: Option<pb::Want>) -> Result<Want, Status> {
    let pb::Want { attrs, head, from_slot, to_slot } = want.unwrap_or_default();
    slot_range(from_slot, to_slot)?;
    Ok(Want { attrs, head, from_slot, to_slot })
}

/// Versions are numbered and never change, so their token needs no snapshot: `1.<inode>.<version>`.
fn versions_token(file: &InodeId, before: u64) -> String {
    format!("1.{file}.{before}")
}

fn parse_versions_token(file: &InodeId, token: &str) -> Result<Option<u64>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let refused = || invalid("PAGE_TOKEN", "the page token belongs to another listing");
    let rest = token.strip_prefix("1.").ok_or_else(refused)?;
    let (inode, before) = rest.split_once('.').ok_or_else(refused)?;
    let before: u64 = before.parse().map_err(|_| refused())?;
    let same = inode.parse() == Ok(*file) && versions_token(file, before) == token;
    if same { Ok(Some(before)) } else { Err(refused()) }
}
