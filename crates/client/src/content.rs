//! Reading the content of a version: which chunks stand behind which slots, as the signed root says;
//! each chunk checked whole by its id, then opened; a bounded number of bytes ahead of the reader.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use coffer_crypto::chunk::{ChunkContext, open_chunk};
use coffer_crypto::keys::FileKey;
use coffer_crypto::plaintext::Plaintext;
use coffer_model::chunk::SealedChunk;
use coffer_model::id::InodeId;
use coffer_model::manifest::{self, SlotChunk};
use coffer_model::object::{HeadLeaf, Kind};
use coffer_proto::SLOTS_PER_QUERY;
use coffer_proto::v1 as pb;
use coffer_proto::v1::answer::Answer;
use coffer_proto::v1::query::Query;
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use tokio::sync::{Mutex, OwnedSemaphorePermit};

use crate::error::ClientError;
use crate::manifest::{bad_page, by_hash};
use crate::node::{Found, check_generation, open_version_info};
use crate::read::id_bytes;
use crate::resolve::SMALL_FILE_SLOTS;
use crate::session::Session;
use crate::upload::class_bytes;
use crate::verify::Checked;

/// Slots of one file under way at a time; their bytes are bounded by the session's budget.
pub(crate) const SLOTS_AHEAD: usize = 64;
/// A ticket is good for 60 s; one this old is not used any more.
const TICKET_AGE_MAX: Duration = Duration::from_secs(40);
/// How often a chunk that is not to be had is asked for again, each time with a fresh ticket.
const FETCH_ATTEMPTS: u32 = 4;
/// How long to wait before that: a node that comes back, or a copy that is being made, takes a while.
const FETCH_PAUSE: Duration = Duration::from_millis(500);

/// One version of a file, opened.
pub(crate) struct Content {
    pub(crate) inode: InodeId,
    pub(crate) key: Arc<FileKey>,
    pub(crate) head: HeadLeaf,
    pub(crate) length: u64,
    pub(crate) mtime_ns: i64,
    pub(crate) inline: Option<Plaintext>,
    /// The first slots, where they came along with the name.
    first: Option<Arc<Range>>,
}

/// The chunks of some slots, with the ticket to read them.
pub(crate) struct Range {
    from: u64,
    to: u64,
    slots: Vec<(u64, SlotChunk)>,
    ticket: Mutex<(Bytes, Instant)>,
}

/// A slot that is to be read, with room for its bytes.
pub(crate) struct Job {
    pub(crate) slot: u64,
    chunk: Option<SlotChunk>,
    range: Arc<Range>,
    room: Option<OwnedSemaphorePermit>,
}

/// A slot that was read; none for a hole.
pub(crate) struct Opened {
    pub(crate) slot: u64,
    pub(crate) plaintext: Option<Plaintext>,
    /// Given back when the plaintext is done with.
    _room: Option<OwnedSemaphorePermit>,
}

impl Content {
    /// Opens a verified version of a found file.
    pub(crate) fn open(
        session: &Session,
        found: &Found,
        head: &Checked<HeadLeaf>,
        path: &str,
    ) -> Result<Self, ClientError> {
        let key =
            found.file_key().ok_or_else(|| ClientError::IsADirectory { what: path.to_owned() })?;
        let inode = found.inode();
        let info = open_version_info(&session.wire().cluster, inode, key, head)?;
        Ok(Self {
            inode,
            key: Arc::clone(key),
            head: head.leaf.clone(),
            length: info.length,
            mtime_ns: info.mtime_ns,
            inline: info.inline,
            first: None,
        })
    }

    /// The current version of a found file, with the slots that came along.
    pub(crate) fn current(
        session: &Session,
        found: &Found,
        path: &str,
    ) -> Result<Self, ClientError> {
        let head = found.head.as_ref();
        let head = head.ok_or_else(|| match found.kind() {
            Kind::Directory => ClientError::IsADirectory { what: path.to_owned() },
            _ => ClientError::tampered("a file without a version"),
        })?;
        let mut content = Self::open(session, found, head, path)?;
        if !found.ticket.is_empty() {
            let to = SMALL_FILE_SLOTS.min(content.head.slots);
            content.first =
                Some(Range::read(&content.head, 0, to, &found.pages, found.ticket.clone())?);
        }
        Ok(content)
    }

    /// The same version for a reader of its slots.
    pub(crate) fn without_inline(&self) -> Self {
        Self {
            inode: self.inode,
            key: Arc::clone(&self.key),
            head: self.head.clone(),
            length: self.length,
            mtime_ns: self.mtime_ns,
            inline: None,
            first: self.first.clone(),
        }
    }

    /// How many bytes of a slot belong to the content.
    fn slot_bytes(&self, slot: u64) -> u64 {
        let class = self.head.class.bytes();
        self.length.saturating_sub(slot * class).min(class)
    }
}

impl Range {
    /// Reads slots out of manifest pages, each of which must be the one its parent names.
    fn read(
        head: &HeadLeaf,
        from: u64,
        to: u64,
        pages: &[Bytes],
        ticket: Bytes,
    ) -> Result<Arc<Self>, ClientError> {
        let slots = manifest::read(&by_hash(pages), head.root, head.slots, from, to);
        let slots = slots.map_err(bad_page)?;
        Ok(Arc::new(Self { from, to, slots, ticket: Mutex::new((ticket, Instant::now())) }))
    }

    fn chunk(&self, slot: u64) -> Option<SlotChunk> {
        let at = self.slots.binary_search_by_key(&slot, |(slot, _)| *slot).ok()?;
        self.slots.get(at).map(|(_, chunk)| *chunk)
    }
}

impl Session {
    /// Asks for the manifest pages of a range of slots.
    pub(crate) async fn pages(
        &self,
        content: &Content,
        from: u64,
        to: u64,
    ) -> Result<pb::ContentAnswer, ClientError> {
        let query = pb::ContentQuery {
            inode: id_bytes(content.inode),
            version: content.head.version,
            from_slot: from,
            to_slot: to,
        };
        let mut reading = self.wire().read(vec![Query::Content(query)]).await?;
        match reading.answers.pop() {
            Some(Answer::Content(answer)) => Ok(answer),
            _ => Err(ClientError::tampered("another answer than was asked for")),
        }
    }

    /// A version of a file by its number.
    pub(crate) async fn version_of(
        &self,
        found: &Found,
        version: u64,
        path: &str,
    ) -> Result<Content, ClientError> {
        let key = found.file_key();
        if key.is_none() {
            return Err(ClientError::IsADirectory { what: path.to_owned() });
        }
        let inode = found.inode();
        let query = pb::ContentQuery {
            inode: id_bytes(inode),
            version,
            from_slot: 0,
            to_slot: SMALL_FILE_SLOTS,
        };
        let mut reading = self.wire().read(vec![Query::Content(query)]).await?;
        let Some(Answer::Content(answer)) = reading.answers.pop() else {
            return Err(ClientError::tampered("another answer than was asked for"));
        };
        let leaf = answer
            .head
            .ok_or_else(|| ClientError::not_found(format!("version {version} of {path}")))?;
        let vault = &self.home().vault;
        let head = self.wire().verifier.head(&reading.proven, &leaf, inode, vault)?;
        if head.leaf.version != version {
            return Err(ClientError::tampered("another version than was asked for"));
        }
        let mut content = Content::open(self, found, &head, path)?;
        let to = SMALL_FILE_SLOTS.min(content.head.slots);
        content.first = Some(Range::read(&content.head, 0, to, &answer.pages, answer.ticket)?);
        Ok(content)
    }

    async fn range(&self, content: &Content, from: u64) -> Result<Arc<Range>, ClientError> {
        if let Some(first) = content.first.as_ref()
            && (first.from..first.to).contains(&from)
        {
            return Ok(Arc::clone(first));
        }
        // Ranges begin at a page, so that a ticket never names more chunks than it may.
        let from = from - from % SMALL_FILE_SLOTS;
        let to = (from + SLOTS_PER_QUERY).min(content.head.slots);
        let answer = self.pages(content, from, to).await?;
        Range::read(&content.head, from, to, &answer.pages, answer.ticket)
    }

    /// The slots `from..to` in order, each with room for its bytes.
    pub(crate) fn jobs(
        &self,
        content: Arc<Content>,
        from: u64,
        to: u64,
    ) -> impl futures_util::Stream<Item = Result<Job, ClientError>> + Send + use<> {
        let session = self.clone();
        let start = (session, content, from, None::<Arc<Range>>);
        stream::try_unfold(start, move |(session, content, slot, range)| async move {
            if slot >= to {
                return Ok(None);
            }
            let range = match range.filter(|range| slot < range.to) {
                Some(range) => range,
                None => session.range(&content, slot).await?,
            };
            let chunk = range.chunk(slot);
            let room = match &chunk {
                // The plaintext is held beside the sealed bytes for a moment.
                Some(chunk) => Some(session.chunks().room_down(u64::from(chunk.length)).await?),
                None => None,
            };
            let job = Job { slot, chunk, range: Arc::clone(&range), room };
            Ok(Some((job, (session, content, slot + 1, Some(range)))))
        })
    }

    /// Fetches, checks and opens one slot, and does `with` it on the same core.
    pub(crate) async fn open_slot<T: Send + 'static>(
        &self,
        content: Arc<Content>,
        job: Job,
        with: impl FnOnce(u64, Plaintext) -> Result<T, ClientError> + Send + 'static,
    ) -> Result<Option<(T, Option<OwnedSemaphorePermit>)>, ClientError> {
        let Some(chunk) = job.chunk else { return Ok(None) };
        check_generation(chunk.generation)?;
        let sealed = self.fetch(&content, &job, &chunk).await?;
        let (cluster, slot) = (self.wire().cluster, job.slot);
        let done = self.compute(move || {
            let sealed = SealedChunk::check(chunk.chunk, sealed)
                .map_err(|error| ClientError::tampered(error.to_string()))?;
            if u32::try_from(sealed.bytes().len()) != Ok(chunk.length) {
                return Err(ClientError::tampered("a chunk of another length"));
            }
            let context = ChunkContext { cluster, inode: content.inode, write: chunk.write, slot };
            let mut plaintext = open_chunk(&content.key, &context, &sealed)?;
            drop(sealed);
            fit(&content, slot, &mut plaintext)?;
            with(slot, plaintext)
        });
        Ok(Some((done.await??, job.room)))
    }

    async fn fetch(
        &self,
        content: &Content,
        job: &Job,
        chunk: &SlotChunk,
    ) -> Result<Bytes, ClientError> {
        let mut attempt = 1;
        loop {
            let ticket = self.ticket(content, &job.range, attempt > 1).await?;
            match self.chunks().fetch(&ticket, chunk.chunk, chunk.length).await {
                Err(ClientError::DataMissing { .. }) if attempt < FETCH_ATTEMPTS => {
                    tokio::time::sleep(FETCH_PAUSE * attempt).await;
                    attempt += 1;
                }
                fetched => return fetched,
            }
        }
    }

    /// The ticket of a range, asked for anew when it is old or was refused.
    async fn ticket(
        &self,
        content: &Content,
        range: &Range,
        refused: bool,
    ) -> Result<Bytes, ClientError> {
        let mut held = range.ticket.lock().await;
        let (ticket, issued) = &*held;
        let age = issued.elapsed();
        if age < TICKET_AGE_MAX && !(refused && age > FETCH_PAUSE) {
            return Ok(ticket.clone());
        }
        let asked = Instant::now();
        let answer = self.pages(content, range.from, range.to).await?;
        *held = (answer.ticket.clone(), asked);
        Ok(answer.ticket)
    }
}

/// Checks the length of an opened slot and drops its padding. A slot inside the file is full; only the
/// last one may be padded.
fn fit(content: &Content, slot: u64, plaintext: &mut Plaintext) -> Result<(), ClientError> {
    let belongs = usize::try_from(content.slot_bytes(slot)).unwrap_or(usize::MAX);
    let last = slot + 1 == content.head.slots;
    let fits = if last {
        plaintext.len() >= belongs && plaintext.len() <= class_bytes(content.head.class)
    } else {
        plaintext.len() == belongs
    };
    if !fits {
        return Err(ClientError::tampered("a chunk of another length than its slot"));
    }
    plaintext.truncate(belongs);
    Ok(())
}

/// Reads a version front to back, a bounded number of bytes ahead.
pub struct FileReader {
    content: Arc<Content>,
    from: u64,
    to: u64,
    at: u64,
    opened: BoxStream<'static, Result<Opened, ClientError>>,
}

impl FileReader {
    /// Reads the bytes `from..to` of a version.
    pub(crate) fn new(session: &Session, content: Content, from: u64, to: u64) -> Self {
        let content = Arc::new(content);
        let to = to.min(content.length);
        let from = from.min(to);
        let class = content.head.class.bytes();
        let (first, end) = if from < to && content.inline.is_none() {
            (from / class, to.div_ceil(class))
        } else {
            (0, 0)
        };
        let (of, by) = (Arc::clone(&content), session.clone());
        let opened = session
            .jobs(Arc::clone(&content), first, end)
            .map_ok(move |job| {
                let (content, session) = (Arc::clone(&of), by.clone());
                async move {
                    let slot = job.slot;
                    let done =
                        session.open_slot(content, job, |_, plaintext| Ok(plaintext)).await?;
                    let (plaintext, room) = done.unzip();
                    Ok(Opened { slot, plaintext, _room: room.flatten() })
                }
            })
            .try_buffered(SLOTS_AHEAD)
            .boxed();
        Self { content, from, to, at: from, opened }
    }

    /// The length of the whole version.
    pub fn length(&self) -> u64 {
        self.content.length
    }

    /// The version's number.
    pub fn version(&self) -> u64 {
        self.content.head.version
    }

    /// When its content was last changed, in nanoseconds since the Unix epoch.
    pub fn mtime_ns(&self) -> i64 {
        self.content.mtime_ns
    }

    /// The next piece, of at most one slot; none at the end. After an error there is nothing more to
    /// be had.
    pub async fn next(&mut self) -> Result<Option<Plaintext>, ClientError> {
        if self.at >= self.to {
            return Ok(None);
        }
        if let Some(inline) = &self.content.inline {
            let part = inline.get(index(self.from)..index(self.to)).unwrap_or_default();
            self.at = self.to;
            return Ok(Some(Plaintext::from(part.to_vec())));
        }
        let Some(opened) = self.opened.try_next().await? else { return Ok(None) };
        let class = self.content.head.class.bytes();
        let start = opened.slot * class;
        let end = (start + class).min(self.to);
        let (from, to) = (index(self.at - start), index(end - start));
        self.at = end;
        let piece = match opened.plaintext {
            None => Plaintext::from(vec![0; to - from]),
            Some(mut plaintext) if from == 0 => {
                plaintext.truncate(to);
                plaintext
            }
            Some(plaintext) => {
                Plaintext::from(plaintext.get(from..to).unwrap_or_default().to_vec())
            }
        };
        Ok(Some(piece))
    }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}
