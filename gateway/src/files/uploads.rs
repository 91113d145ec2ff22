//! Uploads that come in pieces, each a call of its own. A piece goes straight to the engine, which seals
//! and stores it; nothing of it is kept here, and nothing is written to a disk of this machine. The
//! file is there when the upload is finished, and not before.
//!
//! An upload belongs to the session that began it. It is a task of the engine in this process, so it
//! ends with the process: whoever uploads begins anew then.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use coffer_client::progress::Report;
use coffer_client::{ClientError, PieceStream, PutOptions, Session};
use coffer_model::name::RemotePath;
use coffer_model::session::CertificateHash;
use coffer_service::status::status;
use futures_util::StreamExt;
use futures_util::stream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use super::answers::refusal;
use super::limits::overloaded;

/// How long an upload stays without a piece.
pub(crate) const IDLE_MAX: Duration = Duration::from_secs(10 * 60);
/// Uploads of one session at a time. Each may hold a slot of the session's room for bytes on their way up.
const UPLOADS_PER_SESSION_MAX: usize = 8;
/// Uploads in all, those that ended lately included.
const UPLOADS_MAX: usize = 256;
const UPLOADS_PAUSE: Duration = Duration::from_secs(5);

/// The uploads of this gateway.
pub(crate) struct Uploads(Mutex<HashMap<String, Upload>>);

#[derive(Clone)]
struct Upload {
    session: CertificateHash,
    used: Instant,
    /// One call at a time.
    state: Arc<tokio::sync::Mutex<State>>,
}

enum State {
    /// Pieces may come.
    Open { next_offset: u64, pieces: mpsc::Sender<Piece>, put: JoinHandle<Put> },
    /// The file is there. Kept for a while, for the answer may get lost.
    Finished(Report),
    /// It came to nothing.
    Failed(ClientError),
}

type Put = Result<Report, ClientError>;

/// What the task is told. That there is nobody left to tell it anything is not the end of the file.
enum Piece {
    Bytes(Bytes),
    End,
}

impl Uploads {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    /// Begins an upload; gives its id.
    pub(crate) fn start(
        &self,
        hash: CertificateHash,
        session: &Session,
        path: RemotePath,
        options: PutOptions,
    ) -> Result<String, Status> {
        let mut uploads = self.lock();
        let own = uploads.values().filter(|upload| upload.session == hash).count();
        if own >= UPLOADS_PER_SESSION_MAX || uploads.len() >= UPLOADS_MAX {
            return Err(overloaded("too many uploads are under way", UPLOADS_PAUSE));
        }
        let id = new_id()?;
        let (pieces, coming) = mpsc::channel(1);
        let session = session.clone();
        let put = tokio::spawn(async move {
            session.put_pieces(pieces_until_end(coming), &path, &options).await
        });
        let state = Arc::new(tokio::sync::Mutex::new(State::Open { next_offset: 0, pieces, put }));
        uploads.insert(id.clone(), Upload { session: hash, used: Instant::now(), state });
        Ok(id)
    }

    /// Adds a piece; gives where the next one begins.
    pub(crate) async fn write(
        &self,
        hash: &CertificateHash,
        id: &str,
        offset: u64,
        bytes: Bytes,
    ) -> Result<u64, Status> {
        let state = self.find(hash, id)?;
        let mut state = state.lock().await;
        let State::Open { next_offset, pieces, put } = &mut *state else {
            return Err(ended(&state));
        };
        if offset < *next_offset {
            return Ok(*next_offset);
        }
        if offset > *next_offset {
            let text = "there is a gap before this piece; go on at `next_offset`";
            let facts = [("next_offset", next_offset.to_string())];
            return Err(status(Code::OutOfRange, "UPLOAD_GAP", text, &facts));
        }
        if bytes.is_empty() {
            return Ok(*next_offset);
        }
        // Room first: a call that is given up while it waits has then taken nothing.
        if let Ok(room) = pieces.reserve().await {
            *next_offset += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            room.send(Piece::Bytes(bytes));
            return Ok(*next_offset);
        }
        let failed = failure(put.await);
        let refused = refusal(&failed);
        *state = State::Failed(failed);
        Err(refused)
    }

    /// Ends an upload: the version exists from now on.
    pub(crate) async fn finish(
        &self,
        hash: &CertificateHash,
        id: &str,
        length: Option<u64>,
    ) -> Result<Report, Status> {
        let state = self.find(hash, id)?;
        let mut state = state.lock().await;
        let (pieces, put) = match &mut *state {
            State::Finished(report) => return Ok(*report),
            State::Failed(error) => return Err(refusal(error)),
            State::Open { next_offset, pieces, put } => {
                if length.is_some_and(|length| length != *next_offset) {
                    let text = "the file is to have another length than what has come";
                    let facts = [("next_offset", next_offset.to_string())];
                    return Err(status(Code::OutOfRange, "UPLOAD_INCOMPLETE", text, &facts));
                }
                (pieces, put)
            }
        };
        // Where the task has ended already, its result says why.
        let _ = pieces.send(Piece::End).await;
        match put.await {
            Ok(Ok(report)) => {
                *state = State::Finished(report);
                Ok(report)
            }
            other => {
                let failed = failure(other);
                let refused = refusal(&failed);
                *state = State::Failed(failed);
                Err(refused)
            }
        }
    }

    /// Gives an upload up.
    pub(crate) fn abort(&self, hash: &CertificateHash, id: &str) -> Result<(), Status> {
        self.find(hash, id)?;
        self.lock().remove(id);
        Ok(())
    }

    /// Gives up all uploads of a session.
    pub(crate) fn abort_of(&self, hash: &CertificateHash) {
        self.lock().retain(|_, upload| upload.session != *hash);
    }

    /// Gives up what nobody has added to for a while.
    pub(crate) fn sweep(&self, now: Instant) {
        self.lock().retain(|_, upload| now.duration_since(upload.used) < IDLE_MAX);
    }

    /// An upload of this session. One of another session is as unknown as one that never was.
    fn find(
        &self,
        hash: &CertificateHash,
        id: &str,
    ) -> Result<Arc<tokio::sync::Mutex<State>>, Status> {
        let mut uploads = self.lock();
        let upload = uploads.get_mut(id).filter(|upload| upload.session == *hash);
        let upload = upload.ok_or_else(|| {
            let text = "this gateway knows no such upload; it ended, was given up, or the gateway was \
                        started again: begin it anew";
            status(Code::NotFound, "UPLOAD_UNKNOWN", text, &[])
        })?;
        upload.used = Instant::now();
        Ok(Arc::clone(&upload.state))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Upload>> {
        // Each step on the map is complete or not begun.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pieces_until_end(coming: mpsc::Receiver<Piece>) -> PieceStream {
    stream::unfold(Some(coming), |coming| async move {
        let mut coming = coming?;
        match coming.recv().await {
            Some(Piece::Bytes(bytes)) => Some((Ok(bytes), Some(coming))),
            Some(Piece::End) => None,
            // The upload was given up: without this the file would end here.
            None => Some((Err(ClientError::Stopped), None)),
        }
    })
    .boxed()
}

fn failure(ended: Result<Put, tokio::task::JoinError>) -> ClientError {
    match ended {
        Ok(Err(error)) => error,
        Ok(Ok(_)) | Err(_) => ClientError::Stopped,
    }
}

fn ended(state: &State) -> Status {
    match state {
        State::Failed(error) => refusal(error),
        State::Finished(_) | State::Open { .. } => {
            let text = "the upload is finished; what it made is a file now";
            status(Code::FailedPrecondition, "UPLOAD_FINISHED", text, &[])
        }
    }
}

/// A random name. It is no secret: an upload answers to its session only.
fn new_id() -> Result<String, Status> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| {
        status(Code::Internal, "NO_RANDOMNESS", "the system gives no random bytes", &[])
    })?;
    Ok(hex::encode(bytes))
}
