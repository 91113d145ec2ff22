//! The engine's way to the cluster from inside a gateway: the same handlers that answer the sealed API,
//! called without a connection in between. What they check they check here too.

use std::sync::Arc;

use coffer_client::Transport;
use coffer_client::transport::{Answer, Credentials, Repeats};
use coffer_model::session::PROOF_HEADER;
use coffer_proto::v1 as pb;
use coffer_proto::v1::admin_service_server::AdminService;
use coffer_proto::v1::chunk_service_server::ChunkService;
use coffer_proto::v1::cluster_service_server::ClusterService;
use coffer_proto::v1::directory_service_server::DirectoryService;
use coffer_proto::v1::login_service_server::LoginService;
use coffer_service::status::{reason_of, status};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Response, Status};

use crate::chunks::Chunks;
use crate::members::Members;

/// This gateway's own sealed API.
pub(crate) struct InProcess {
    members: Arc<Members>,
    chunks: Arc<Chunks>,
    repeats: Repeats,
}

impl InProcess {
    pub(crate) fn new(members: Arc<Members>, chunks: Arc<Chunks>) -> Self {
        Self { members, chunks, repeats: Repeats::default() }
    }

    async fn call<M: Clone, R, F>(
        &self,
        session: Option<&Credentials>,
        message: M,
        send: impl Fn(Request<M>) -> F,
    ) -> Result<R, Status>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        self.repeats
            .call(|| {
                let answer = send(with_proof(session, &message));
                async move { answer.await.map(Response::into_inner) }
            })
            .await
    }

    async fn call_with_chunks<M: Clone, R, F>(
        &self,
        session: &Credentials,
        message: M,
        send: impl Fn(Request<M>) -> F,
    ) -> Result<R, Status>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        self.repeats
            .call_with_chunks(|| {
                let answer = send(with_proof(Some(session), &message));
                async move { answer.await.map(Response::into_inner) }
            })
            .await
    }

    /// A step of a login. Too many of them are refused at once: whoever waits here keeps others waiting.
    async fn login_step<M: Clone, R, F>(
        &self,
        message: M,
        send: impl Fn(Request<M>) -> F,
    ) -> Result<R, Status>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        self.call(None, message, |request| {
            let answer = send(request);
            async move { answer.await.map_err(without_hint) }
        })
        .await
    }
}

fn with_proof<M: Clone>(session: Option<&Credentials>, message: &M) -> Request<M> {
    let mut request = Request::new(message.clone());
    if let Some(session) = session {
        let proof = MetadataValue::from_bytes(&session.proof());
        request.metadata_mut().insert_bin(PROOF_HEADER, proof);
    }
    request
}

/// A refusal for too many attempts is final here; the caller gets a hint of the gateway's own.
fn without_hint(refused: Status) -> Status {
    let too_many = reason_of(&refused).is_some_and(|reason| reason.code == "TOO_MANY_ATTEMPTS");
    if refused.code() == Code::ResourceExhausted && too_many {
        return status(refused.code(), "TOO_MANY_ATTEMPTS", refused.message(), &[]);
    }
    refused
}

impl Transport for InProcess {
    fn submit<'a>(
        &'a self,
        session: Option<&'a Credentials>,
        request: pb::SubmitRequest,
    ) -> Answer<'a, pb::SubmitResponse> {
        Box::pin(self.call(session, request, |request| self.members.submit(request)))
    }

    fn read<'a>(
        &'a self,
        session: &'a Credentials,
        request: pb::ReadRequest,
    ) -> Answer<'a, pb::ReadResponse> {
        Box::pin(self.call(Some(session), request, |request| self.members.read(request)))
    }

    fn list<'a>(
        &'a self,
        session: &'a Credentials,
        request: pb::ListRequest,
    ) -> Answer<'a, pb::ListResponse> {
        Box::pin(self.call(Some(session), request, |request| self.members.list(request)))
    }

    fn list_versions<'a>(
        &'a self,
        session: &'a Credentials,
        request: pb::ListVersionsRequest,
    ) -> Answer<'a, pb::ListVersionsResponse> {
        Box::pin(self.call(Some(session), request, |request| self.members.list_versions(request)))
    }

    fn issue_write_ticket<'a>(
        &'a self,
        session: &'a Credentials,
        request: pb::IssueWriteTicketRequest,
    ) -> Answer<'a, pb::IssueWriteTicketResponse> {
        Box::pin(
            self.call(Some(session), request, |request| self.members.issue_write_ticket(request)),
        )
    }

    fn start_registration(
        &self,
        request: pb::StartRegistrationRequest,
    ) -> Answer<'_, pb::StartRegistrationResponse> {
        Box::pin(self.login_step(request, |request| self.members.start_registration(request)))
    }

    fn start_login(&self, request: pb::StartLoginRequest) -> Answer<'_, pb::StartLoginResponse> {
        Box::pin(self.login_step(request, |request| self.members.start_login(request)))
    }

    fn finish_login(&self, request: pb::FinishLoginRequest) -> Answer<'_, pb::FinishLoginResponse> {
        Box::pin(self.login_step(request, |request| self.members.finish_login(request)))
    }

    fn get_keyring(&self, request: pb::GetKeyringRequest) -> Answer<'_, pb::GetKeyringResponse> {
        Box::pin(self.call(None, request, |request| self.members.get_keyring(request)))
    }

    fn get_sealed_session(
        &self,
        request: pb::GetSealedSessionRequest,
    ) -> Answer<'_, pb::GetSealedSessionResponse> {
        Box::pin(self.call(None, request, |request| self.members.get_sealed_session(request)))
    }

    fn get_descriptor(
        &self,
        request: pb::GetDescriptorRequest,
    ) -> Answer<'_, pb::GetDescriptorResponse> {
        Box::pin(self.call(None, request, |request| self.members.get_descriptor(request)))
    }

    fn get_status(&self) -> Answer<'_, pb::GetStatusResponse> {
        Box::pin(
            self.call(None, pb::GetStatusRequest {}, |request| self.members.get_status(request)),
        )
    }

    fn find_home(&self, request: pb::FindHomeRequest) -> Answer<'_, pb::FindHomeResponse> {
        Box::pin(self.call(None, request, |request| self.members.find_home(request)))
    }

    fn put_chunks<'a>(
        &'a self,
        session: &'a Credentials,
        request: pb::PutChunksRequest,
    ) -> Answer<'a, pb::PutChunksResponse> {
        Box::pin(self.call_with_chunks(session, request, |request| self.chunks.put_chunks(request)))
    }

    fn get_chunks<'a>(
        &'a self,
        session: &'a Credentials,
        request: pb::GetChunksRequest,
    ) -> Answer<'a, pb::GetChunksResponse> {
        Box::pin(self.call_with_chunks(session, request, |request| self.chunks.get_chunks(request)))
    }

    fn renew_receipts<'a>(
        &'a self,
        session: &'a Credentials,
        request: pb::RenewReceiptsRequest,
    ) -> Answer<'a, pb::RenewReceiptsResponse> {
        Box::pin(
            self.call_with_chunks(session, request, |request| self.chunks.renew_receipts(request)),
        )
    }
}
