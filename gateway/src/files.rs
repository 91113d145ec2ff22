//! The files API: plaintext for users in gateway custody, and the only place in a server where there is
//! any. The gateway runs the very engine that the command line runs, over its own sealed API; there is
//! no second path to data.
//!
//! What is here turns messages into calls of the engine and back. Keys are in [`sessions`], bounds in
//! [`limits`]. Passwords, tokens, paths and content appear in no log line, refusal or metric.

mod answers;
mod find;
mod limits;
mod sessions;
mod transport;
mod uploads;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use coffer_client::contact::{Pinned, StateDir};
use coffer_client::progress::Silent;
use coffer_client::{ClientError, CustodySession, Engine, PieceStream, PutOptions, Session};
use coffer_model::descriptor::SignedDescriptor;
use coffer_model::hash::Hash;
use coffer_model::id::{ClusterId, WriteId};
use coffer_model::name::UserName;
use coffer_model::session::CertificateHash;
use coffer_proto::v1 as pb;
use coffer_proto::v1::admin_service_server::AdminService;
use coffer_proto::v1::files_service_server::FilesService;
use coffer_proto::{CONTENT_BYTES_MAX, PAGE_SIZE_MAX};
use coffer_service::audit::{Note, note};
use coffer_service::shutdown::Shutdown;
use coffer_service::status::status;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tonic::{Code, Request, Response, Status, Streaming};
use zeroize::Zeroizing;

use crate::chunks::Chunks;
use crate::files::answers::{
    entry, file, invalid, refusal, remote_path, timestamp_ms, user_name, version, written,
};
use crate::files::find::{Wanted, find};
use crate::files::limits::{Admitted, Limits};
use crate::files::sessions::Sessions;
use crate::files::transport::InProcess;
use crate::files::uploads::Uploads;
use crate::members::Members;

/// Names or versions on a page where the caller does not say.
const PAGE_SIZE: u32 = 200;
/// How often what is idle is looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(20);
/// How long a stream may take for its next piece: it holds one of the calls that are answered at a time.
const PIECE_WAIT: Duration = Duration::from_secs(60);
/// The longest name of a put.
const REQUEST_ID_BYTES_MAX: usize = 64;

/// The files API of this gateway.
pub(crate) struct Files {
    sessions: Sessions,
    uploads: Uploads,
    limits: Arc<Limits>,
    members: Arc<Members>,
}

/// A call that may go on.
struct Call<M> {
    hash: CertificateHash,
    session: Session,
    admitted: Admitted,
    message: M,
}

impl Files {
    pub(crate) fn new(
        cluster: ClusterId,
        descriptor: SignedDescriptor,
        members: Arc<Members>,
        chunks: Arc<Chunks>,
    ) -> Self {
        // There is no connection to this cluster, so there is no server to be told from another.
        let pinned = Pinned {
            cluster,
            server: String::new(),
            server_name: String::new(),
            authorities: Vec::new(),
            descriptor,
            successors: Vec::new(),
        };
        let transport = Arc::new(InProcess::new(Arc::clone(&members), chunks));
        // Nothing of a user is remembered on this machine's disk.
        let engine = Engine::over(transport, pinned, StateDir::nowhere());
        let (sessions, uploads, limits) = (Sessions::new(engine), Uploads::new(), Limits::new());
        Self { sessions, uploads, limits, members }
    }

    /// Wipes what is idle, until shutdown.
    pub(crate) async fn sweep(self: Arc<Self>, shutdown: Shutdown) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(SWEEP_EVERY) => {}
            }
            let now = Instant::now();
            self.uploads.sweep(now);
            self.sessions.sweep(now);
        }
    }

    /// Finds the session of a call, and room for it.
    async fn admit<M>(&self, request: Request<M>) -> Result<Call<M>, Status> {
        let call = self.limits.call()?;
        let (hash, session) = self.sessions.of(&request).await?;
        let admitted = self.limits.of_user(session.principal(), call)?;
        Ok(Call { hash, session, admitted, message: request.into_inner() })
    }

    /// What a failure is for the caller. A session that the cluster has ended is not kept open here.
    fn refused(&self, hash: &CertificateHash, error: &ClientError) -> Status {
        if matches!(error, ClientError::SessionExpired) {
            self.uploads.abort_of(hash);
            self.sessions.forget(hash);
        }
        refusal(error)
    }

    /// A session that was begun, for who began it.
    fn begun(&self, begun: &CustodySession, about: Option<Note>) -> pb::SessionToken {
        self.sessions.begun(begun);
        if let Some(about) = about {
            about.add(|subject| {
                subject.session = Some(begun.token.session().as_hash().to_string());
                subject.principal = Some(begun.session.principal().to_string());
            });
        }
        let idle = i64::try_from(sessions::IDLE_MAX.as_secs()).unwrap_or_default();
        pb::SessionToken {
            token: begun.token.to_text().to_string(),
            expires_at: Some(timestamp_ms(begun.session.expires().unix_ms())),
            idle_timeout: Some(prost_types::Duration { seconds: idle, nanos: 0 }),
        }
    }
}

fn page_size(asked: u32) -> u32 {
    match asked {
        0 => PAGE_SIZE,
        asked => asked.min(PAGE_SIZE_MAX),
    }
}

fn page_token(token: &str) -> Option<&str> {
    Some(token).filter(|token| !token.is_empty())
}

fn put_options(mode: Option<u32>, if_version: Option<u64>) -> PutOptions {
    PutOptions { mode, if_version, ..PutOptions::standard() }
}

fn content_fits(bytes: usize) -> Result<(), Status> {
    if bytes <= CONTENT_BYTES_MAX {
        return Ok(());
    }
    let text = "one call carries at most 4 MiB of content; use an upload or a stream";
    Err(invalid("CONTENT_TOO_LARGE", text))
}

/// The write of a put that has a name. Another path or other content gives another write, so a name that
/// is used twice by mistake makes two versions and loses nothing.
fn write_of(request_id: &str, path: &str, bytes: &[u8]) -> Result<Option<WriteId>, Status> {
    if request_id.is_empty() {
        return Ok(None);
    }
    if request_id.len() > REQUEST_ID_BYTES_MAX {
        return Err(invalid("REQUEST_ID_TOO_LONG", "a request id has at most 64 bytes"));
    }
    const DOMAIN: &str = "coffer/v1/gateway/put";
    let mut named = Vec::with_capacity(32 * 3);
    for part in [request_id.as_bytes(), path.as_bytes(), bytes] {
        named.extend_from_slice(Hash::of(DOMAIN, part).as_bytes());
    }
    let hash = Hash::of(DOMAIN, &named);
    let id = hash.as_bytes().first_chunk().copied().unwrap_or_default();
    Ok(Some(WriteId::from_bytes(id)))
}

/// The content of a stream. One that breaks, stalls, or is not as it should be, makes no file.
fn pieces_of(parts: Streaming<pb::PutStreamRequest>) -> PieceStream {
    use pb::put_stream_request::Part;
    let pieces = stream::try_unfold(parts, |mut parts| async move {
        let part = tokio::time::timeout(PIECE_WAIT, parts.message()).await;
        match part.map_err(|_| ClientError::Stopped)?.map_err(|_| ClientError::Stopped)? {
            None => Ok(None),
            Some(pb::PutStreamRequest { part: Some(Part::Data(bytes)) }) => {
                Ok(Some((bytes, parts)))
            }
            Some(_) => Err(ClientError::Stopped),
        }
    });
    pieces.boxed()
}

/// Says in the audit log whose name it was.
fn note_name<M>(request: &Request<M>, name: &str) -> Result<UserName, Status> {
    let name = user_name(name)?;
    note(request, |subject| subject.object = Some(format!("user {name}")));
    Ok(name)
}

#[tonic::async_trait]
impl FilesService for Files {
    async fn register(
        &self,
        mut request: Request<pb::RegisterRequest>,
    ) -> Result<Response<pb::RegisterResponse>, Status> {
        let _room = self.limits.login()?;
        let password = Zeroizing::new(std::mem::take(&mut request.get_mut().password));
        let name = note_name(&request, &request.get_ref().name)?;
        let about = request.extensions().get::<Note>().cloned();
        let invite = request.into_inner().invite;
        let invite = Some(invite).filter(|invite| !invite.is_empty()).map(hex::decode).transpose();
        let invite = invite.map_err(|_| {
            invalid("INVITE_MALFORMED", "an invite is written in hexadecimal digits")
        })?;
        let made = self.sessions.engine().register_in_custody(&name, &password, invite).await;
        let (registered, begun) = made.map_err(|error| refusal(&error))?;
        Ok(Response::new(pb::RegisterResponse {
            session: Some(self.begun(&begun, about)),
            recovery_code: registered.recovery_code.to_text().to_string(),
        }))
    }

    async fn login(
        &self,
        mut request: Request<pb::LoginRequest>,
    ) -> Result<Response<pb::LoginResponse>, Status> {
        let _room = self.limits.login()?;
        let password = Zeroizing::new(std::mem::take(&mut request.get_mut().password));
        let name = note_name(&request, &request.get_ref().name)?;
        let about = request.extensions().get::<Note>().cloned();
        let begun = self.sessions.engine().login_in_custody(&name, &password).await;
        let begun = begun.map_err(|error| refusal(&error))?;
        Ok(Response::new(pb::LoginResponse { session: Some(self.begun(&begun, about)) }))
    }

    async fn logout(
        &self,
        request: Request<pb::LogoutRequest>,
    ) -> Result<Response<pb::LogoutResponse>, Status> {
        let call = self.admit(request).await?;
        self.uploads.abort_of(&call.hash);
        let closed = call.session.close().await;
        closed.map_err(|error| self.refused(&call.hash, &error))?;
        self.sessions.forget(&call.hash);
        Ok(Response::new(pb::LogoutResponse {}))
    }

    async fn put(
        &self,
        request: Request<pb::PutRequest>,
    ) -> Result<Response<pb::PutResponse>, Status> {
        let Call { hash, session, admitted: _admitted, message } = self.admit(request).await?;
        let pb::PutRequest { path: text, content, mode, if_version, request_id } = message;
        let path = remote_path(&text)?;
        let bytes = match content {
            Some(pb::put_request::Content::Data(bytes)) => bytes,
            Some(pb::put_request::Content::Text(text)) => Bytes::from(text),
            // A client of a later release may have sent content of a kind that is not known here; to take it
            // for an empty file would be to put one over what is there.
            None => {
                let text = "the put has no content that is known here: send `data` or `text`, an empty one \
                            for an empty file";
                return Err(invalid("CONTENT_MISSING", text));
            }
        };
        content_fits(bytes.len())?;
        let write_id = write_of(&request_id, &text, &bytes)?;
        let options = PutOptions { write_id, ..put_options(mode, if_version) };
        let report = session.put_bytes(&bytes, &path, &options).await;
        let report = report.map_err(|error| self.refused(&hash, &error))?;
        Ok(Response::new(pb::PutResponse { file: written(&report) }))
    }

    async fn get(
        &self,
        request: Request<pb::GetRequest>,
    ) -> Result<Response<pb::GetResponse>, Status> {
        let Call { hash, session, admitted: _admitted, message } = self.admit(request).await?;
        let pb::GetRequest { path, version, offset, length, as_text } = message;
        let path = remote_path(&path)?;
        let content_max = u64::try_from(CONTENT_BYTES_MAX).unwrap_or(u64::MAX);
        if length > content_max {
            let text = "one call gives at most 4 MiB; ask for less, or for a stream";
            return Err(invalid("CONTENT_TOO_LARGE", text));
        }
        let version = Some(version).filter(|version| *version > 0);
        let to = if length == 0 { u64::MAX } else { offset.saturating_add(length) };
        let reader = session.open_range(&path, version, offset, to).await;
        let mut reader = reader.map_err(|error| self.refused(&hash, &error))?;
        let (version, file_length) = (reader.version(), reader.length());
        if length == 0 && file_length.saturating_sub(offset) > content_max {
            let text = "the rest of the file is more than 4 MiB; ask for a part, or for a stream";
            let facts = [("file_length", file_length.to_string())];
            return Err(status(Code::OutOfRange, "CONTENT_TOO_LARGE", text, &facts));
        }
        let mut bytes = Vec::new();
        while let Some(piece) = reader.next().await.map_err(|error| self.refused(&hash, &error))? {
            bytes.extend_from_slice(&piece);
        }
        use pb::get_response::Content;
        let content = match String::from_utf8(bytes) {
            Ok(text) if as_text => Content::Text(text),
            Ok(text) => Content::Data(text.into_bytes().into()),
            Err(error) => Content::Data(error.into_bytes().into()),
        };
        Ok(Response::new(pb::GetResponse { content: Some(content), version, file_length }))
    }

    async fn start_upload(
        &self,
        request: Request<pb::StartUploadRequest>,
    ) -> Result<Response<pb::StartUploadResponse>, Status> {
        let call = self.admit(request).await?;
        let pb::StartUploadRequest { path, mode, if_version, .. } = call.message;
        let (path, options) = (remote_path(&path)?, put_options(mode, if_version));
        let upload_id = self.uploads.start(call.hash, &call.session, path, options)?;
        let idle = i64::try_from(uploads::IDLE_MAX.as_secs()).unwrap_or_default();
        let idle_timeout = Some(prost_types::Duration { seconds: idle, nanos: 0 });
        Ok(Response::new(pb::StartUploadResponse { upload_id, idle_timeout }))
    }

    async fn write_upload(
        &self,
        request: Request<pb::WriteUploadRequest>,
    ) -> Result<Response<pb::WriteUploadResponse>, Status> {
        let call = self.admit(request).await?;
        let pb::WriteUploadRequest { upload_id, offset, data } = call.message;
        content_fits(data.len())?;
        let next_offset = self.uploads.write(&call.hash, &upload_id, offset, data).await?;
        Ok(Response::new(pb::WriteUploadResponse { next_offset }))
    }

    async fn finish_upload(
        &self,
        request: Request<pb::FinishUploadRequest>,
    ) -> Result<Response<pb::FinishUploadResponse>, Status> {
        let call = self.admit(request).await?;
        let pb::FinishUploadRequest { upload_id, length } = call.message;
        let report = self.uploads.finish(&call.hash, &upload_id, length).await?;
        Ok(Response::new(pb::FinishUploadResponse { file: written(&report) }))
    }

    async fn abort_upload(
        &self,
        request: Request<pb::AbortUploadRequest>,
    ) -> Result<Response<pb::AbortUploadResponse>, Status> {
        let call = self.admit(request).await?;
        self.uploads.abort(&call.hash, &call.message.upload_id)?;
        Ok(Response::new(pb::AbortUploadResponse {}))
    }

    async fn put_stream(
        &self,
        request: Request<Streaming<pb::PutStreamRequest>>,
    ) -> Result<Response<pb::PutStreamResponse>, Status> {
        use pb::put_stream_request::Part;
        let Call { hash, session, admitted: _admitted, message: mut parts } =
            self.admit(request).await?;
        let start = match parts.message().await?.and_then(|first| first.part) {
            Some(Part::Start(start)) => start,
            _ => return Err(invalid("STREAM_MALFORMED", "the first message says what is put")),
        };
        let path = remote_path(&start.path)?;
        let options = put_options(start.mode, start.if_version);
        let report = session.put_pieces(pieces_of(parts), &path, &options).await;
        let report = report.map_err(|error| match error {
            ClientError::Stopped => invalid(
                "STREAM_MALFORMED",
                "the stream broke, stalled, or has something else in it than bytes",
            ),
            error => self.refused(&hash, &error),
        })?;
        Ok(Response::new(pb::PutStreamResponse { file: written(&report) }))
    }

    type GetStreamStream = BoxStream<'static, Result<pb::GetStreamResponse, Status>>;

    async fn get_stream(
        &self,
        request: Request<pb::GetStreamRequest>,
    ) -> Result<Response<Self::GetStreamStream>, Status> {
        use pb::get_stream_response::Part;
        let Call { hash, session, admitted, message } = self.admit(request).await?;
        let pb::GetStreamRequest { path, version, offset, length } = message;
        let path = remote_path(&path)?;
        let version = Some(version).filter(|version| *version > 0);
        let to = if length == 0 { u64::MAX } else { offset.saturating_add(length) };
        let reader = session.open_range(&path, version, offset, to).await;
        let reader = reader.map_err(|error| self.refused(&hash, &error))?;
        let start = pb::GetStreamStart { version: reader.version(), file_length: reader.length() };
        let first = Ok(pb::GetStreamResponse { part: Some(Part::Start(start)) });
        // The leave to do this call is given back with the stream.
        let rest = stream::try_unfold((reader, admitted), |(mut reader, admitted)| async move {
            let piece = reader.next().await.map_err(|error| refusal(&error))?;
            Ok(piece.map(|piece| {
                let data = Part::Data(Bytes::copy_from_slice(&piece));
                (pb::GetStreamResponse { part: Some(data) }, (reader, admitted))
            }))
        });
        Ok(Response::new(stream::once(async { first }).chain(rest).boxed()))
    }

    async fn list(
        &self,
        request: Request<pb::FilesServiceListRequest>,
    ) -> Result<Response<pb::FilesServiceListResponse>, Status> {
        let Call { hash, session, admitted: _admitted, message } = self.admit(request).await?;
        let path = remote_path(&message.path)?;
        let (size, token) = (page_size(message.page_size), page_token(&message.page_token));
        let page = session.list_page(&path, message.deleted, size, token).await;
        let page = page.map_err(|error| self.refused(&hash, &error))?;
        let files = page.items.into_iter().map(|item| entry(&path, item));
        Ok(Response::new(pb::FilesServiceListResponse {
            files: files.collect::<Result<_, _>>()?,
            next_page_token: page.next.unwrap_or_default(),
        }))
    }

    async fn stat(
        &self,
        request: Request<pb::StatRequest>,
    ) -> Result<Response<pb::StatResponse>, Status> {
        let Call { hash, session, admitted: _admitted, message } = self.admit(request).await?;
        let path = remote_path(&message.path)?;
        let stat = session.stat(&path).await.map_err(|error| self.refused(&hash, &error))?;
        Ok(Response::new(pb::StatResponse { file: Some(file(&path, stat)) }))
    }

    async fn make_directory(
        &self,
        request: Request<pb::MakeDirectoryRequest>,
    ) -> Result<Response<pb::MakeDirectoryResponse>, Status> {
        let Call { hash, session, admitted: _admitted, message } = self.admit(request).await?;
        let path = remote_path(&message.path)?;
        let made = session.mkdir(&path, message.parents).await;
        made.map_err(|error| self.refused(&hash, &error))?;
        Ok(Response::new(pb::MakeDirectoryResponse {}))
    }

    async fn r#move(
        &self,
        request: Request<pb::MoveRequest>,
    ) -> Result<Response<pb::MoveResponse>, Status> {
        let Call { hash, session, admitted: _admitted, message } = self.admit(request).await?;
        let (from, to) = (remote_path(&message.from)?, remote_path(&message.to)?);
        session.rename(&from, &to).await.map_err(|error| self.refused(&hash, &error))?;
        Ok(Response::new(pb::MoveResponse {}))
    }

    async fn copy(
        &self,
        request: Request<pb::CopyRequest>,
    ) -> Result<Response<pb::CopyResponse>, Status> {
        let Call { hash, session, admitted: _admitted, message } = self.admit(request).await?;
        let (from, to) = (remote_path(&message.from)?, remote_path(&message.to)?);
        let copied = session.copy(&from, &to, message.recursive, &Silent).await;
        copied.map_err(|error| self.refused(&hash, &error))?;
        Ok(Response::new(pb::CopyResponse {}))
    }

    async fn remove(
        &self,
        request: Request<pb::RemoveRequest>,
    ) -> Result<Response<pb::RemoveResponse>, Status> {
        let Call { hash, session, admitted: _admitted, message } = self.admit(request).await?;
        let path = remote_path(&message.path)?;
        let removed = session.remove(&path, message.recursive).await;
        removed.map_err(|error| self.refused(&hash, &error))?;
        Ok(Response::new(pb::RemoveResponse {}))
    }

    async fn restore(
        &self,
        request: Request<pb::RestoreRequest>,
    ) -> Result<Response<pb::RestoreResponse>, Status> {
        let Call { hash, session, admitted: _admitted, message } = self.admit(request).await?;
        let path = remote_path(&message.path)?;
        let restored = match message.version {
            0 => session.undelete(&path).await,
            version => session.restore_version(&path, version).await.map(|_| ()),
        };
        restored.map_err(|error| self.refused(&hash, &error))?;
        let stat = session.stat(&path).await.map_err(|error| self.refused(&hash, &error))?;
        Ok(Response::new(pb::RestoreResponse { file: Some(file(&path, stat)) }))
    }

    async fn list_versions(
        &self,
        request: Request<pb::FilesServiceListVersionsRequest>,
    ) -> Result<Response<pb::FilesServiceListVersionsResponse>, Status> {
        let Call { hash, session, admitted: _admitted, message } = self.admit(request).await?;
        let path = remote_path(&message.path)?;
        let (size, token) = (page_size(message.page_size), page_token(&message.page_token));
        let page = session.versions_page(&path, size, token).await;
        let page = page.map_err(|error| self.refused(&hash, &error))?;
        Ok(Response::new(pb::FilesServiceListVersionsResponse {
            versions: page.items.iter().map(version).collect(),
            next_page_token: page.next.unwrap_or_default(),
        }))
    }

    async fn find(
        &self,
        request: Request<pb::FindRequest>,
    ) -> Result<Response<pb::FindResponse>, Status> {
        let Call { hash: _, session, admitted: _admitted, message } = self.admit(request).await?;
        let path = remote_path(&message.path)?;
        let wanted = Wanted::parse(message.matching)?;
        let limit = usize::try_from(page_size(message.limit)).unwrap_or_default();
        let (files, complete) = find(&session, path, &wanted, limit).await?;
        Ok(Response::new(pb::FindResponse { files, complete }))
    }

    async fn get_quota(
        &self,
        request: Request<pb::GetQuotaRequest>,
    ) -> Result<Response<pb::GetQuotaResponse>, Status> {
        let Call { session, admitted: _admitted, .. } = self.admit(request).await?;
        // How much somebody uses is nothing the cluster signs: it is a help, and no promise.
        let asked = Request::new(pb::FindHomeRequest { name: session.name().to_string() });
        let home = self.members.find_home(asked).await?.into_inner();
        let pb::FindHomeResponse { used_bytes, quota_bytes, .. } = home;
        Ok(Response::new(pb::GetQuotaResponse { used_bytes, limit_bytes: quota_bytes }))
    }
}
