//! gRPC to a gateway: calls with a time limit, repeated while their failure may pass.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use coffer_model::session::PROOF_HEADER;
use coffer_proto::MESSAGE_BYTES_MAX;
use coffer_proto::v1 as pb;
use coffer_proto::v1::admin_service_client::AdminServiceClient;
use coffer_proto::v1::chunk_service_client::ChunkServiceClient;
use coffer_proto::v1::cluster_service_client::ClusterServiceClient;
use coffer_proto::v1::directory_service_client::DirectoryServiceClient;
use coffer_proto::v1::login_service_client::LoginServiceClient;
use coffer_service::channel::{Channel, ChannelOptions, connect_lazy_any, host_of};
use coffer_service::tls::client_config_without_certificate;
use rustls::pki_types::CertificateDer;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};

use crate::error::ClientError;
use crate::transport::repeat::{CALL_TIMEOUT, CHUNK_TIMEOUT, Repeats};
use crate::transport::{Answer, Credentials, Transport};

/// Connections for chunks: encryption of one connection is the work of one core.
const CHUNK_CONNECTIONS: usize = 2;

/// The most gateway addresses of one transport.
const SERVERS_MAX: usize = 64;

/// A transport through a gateway, or whichever of several answers.
pub struct GatewayTransport {
    directory: Channel,
    chunks: Vec<Channel>,
    next: AtomicUsize,
    repeats: Repeats,
}

impl GatewayTransport {
    /// A transport to `server`: `host:port`, or several of them with commas between, of which any one that
    /// answers is used. A server's certificate must be good for `server_name`, or for its own host where that
    /// is empty, under one of the authorities (DER). Nothing is connected yet. Needs a tokio runtime.
    pub fn new(
        server: &str,
        server_name: &str,
        authorities: &[Vec<u8>],
    ) -> Result<Self, ClientError> {
        let refused = |why: String| ClientError::Connect { server: server.to_owned(), why };
        let authorities: Vec<CertificateDer<'static>> =
            authorities.iter().map(|der| CertificateDer::from(der.clone())).collect();
        let tls = client_config_without_certificate(&authorities)
            .map_err(|error| refused(error.to_string()))?;
        let tls = Arc::new(tls);
        let servers: Vec<(&str, &str)> = server
            .split(',')
            .map(|server| {
                (server, if server_name.is_empty() { host_of(server) } else { server_name })
            })
            .collect();
        if servers.len() > SERVERS_MAX {
            return Err(refused(format!("these are more than {SERVERS_MAX} servers")));
        }
        let channel = || {
            connect_lazy_any(&servers, Arc::clone(&tls), &ChannelOptions::standard())
                .map_err(|error| refused(error.to_string()))
        };
        Ok(Self {
            directory: channel()?,
            chunks: (0..CHUNK_CONNECTIONS).map(|_| channel()).collect::<Result<_, _>>()?,
            next: AtomicUsize::new(0),
            repeats: Repeats::default(),
        })
    }

    fn directory(&self) -> DirectoryServiceClient<Channel> {
        DirectoryServiceClient::new(self.directory.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn login(&self) -> LoginServiceClient<Channel> {
        LoginServiceClient::new(self.directory.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn cluster(&self) -> ClusterServiceClient<Channel> {
        ClusterServiceClient::new(self.directory.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn chunks(&self) -> ChunkServiceClient<Channel> {
        let at = self.next.fetch_add(1, Ordering::Relaxed) % self.chunks.len();
        ChunkServiceClient::new(self.chunks[at].clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.directory.clone())
    }

    pub(crate) async fn change_descriptor(
        &self,
        request: pb::ChangeDescriptorRequest,
    ) -> Result<pb::ChangeDescriptorResponse, Status> {
        let send = move |request| {
            let mut client = self.admin();
            async move { client.change_descriptor(request).await }
        };
        self.call(None, CALL_TIMEOUT, request, send).await
    }

    pub(crate) async fn change_layout(
        &self,
        request: pb::ChangeLayoutRequest,
    ) -> Result<pb::ChangeLayoutResponse, Status> {
        let send = move |request| {
            let mut client = self.admin();
            async move { client.change_layout(request).await }
        };
        self.call(None, CALL_TIMEOUT, request, send).await
    }

    pub(crate) async fn give_order(
        &self,
        request: pb::GiveOrderRequest,
    ) -> Result<pb::GiveOrderResponse, Status> {
        let send = move |request| {
            let mut client = self.admin();
            async move { client.give_order(request).await }
        };
        self.call(None, CALL_TIMEOUT, request, send).await
    }

    /// Sends `message` until it is answered, its failure is final, or time is up.
    async fn call<M: Clone, R, F>(
        &self,
        session: Option<&Credentials>,
        timeout: Duration,
        message: M,
        send: impl Fn(Request<M>) -> F,
    ) -> Result<R, Status>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        self.repeats
            .within(timeout, || {
                let mut request = Request::new(message.clone());
                if let Some(session) = session {
                    let proof = MetadataValue::from_bytes(&session.proof());
                    request.metadata_mut().insert_bin(PROOF_HEADER, proof);
                }
                let answer = send(request);
                async move { answer.await.map(Response::into_inner) }
            })
            .await
    }
}

impl Transport for GatewayTransport {
    fn submit<'a>(
        &'a self,
        session: Option<&'a Credentials>,
        request: pb::SubmitRequest,
    ) -> Answer<'a, pb::SubmitResponse> {
        Box::pin(self.call(session, CALL_TIMEOUT, request, move |request| {
            let mut client = self.directory();
            async move { client.submit(request).await }
        }))
    }

    fn read<'a>(
        &'a self,
        session: &'a Credentials,
        request: pb::ReadRequest,
    ) -> Answer<'a, pb::ReadResponse> {
        Box::pin(self.call(Some(session), CALL_TIMEOUT, request, move |request| {
            let mut client = self.directory();
            async move { client.read(request).await }
        }))
    }

    fn list<'a>(
        &'a self,
        session: &'a Credentials,
        request: pb::ListRequest,
    ) -> Answer<'a, pb::ListResponse> {
        Box::pin(self.call(Some(session), CALL_TIMEOUT, request, move |request| {
            let mut client = self.directory();
            async move { client.list(request).await }
        }))
    }

    fn list_versions<'a>(
        &'a self,
        session: &'a Credentials,
        request: pb::ListVersionsRequest,
    ) -> Answer<'a, pb::ListVersionsResponse> {
        Box::pin(self.call(Some(session), CALL_TIMEOUT, request, move |request| {
            let mut client = self.directory();
            async move { client.list_versions(request).await }
        }))
    }

    fn issue_write_ticket<'a>(
        &'a self,
        session: &'a Credentials,
        request: pb::IssueWriteTicketRequest,
    ) -> Answer<'a, pb::IssueWriteTicketResponse> {
        Box::pin(self.call(Some(session), CALL_TIMEOUT, request, move |request| {
            let mut client = self.directory();
            async move { client.issue_write_ticket(request).await }
        }))
    }

    fn start_registration(
        &self,
        request: pb::StartRegistrationRequest,
    ) -> Answer<'_, pb::StartRegistrationResponse> {
        Box::pin(self.call(None, CALL_TIMEOUT, request, move |request| {
            let mut client = self.login();
            async move { client.start_registration(request).await }
        }))
    }

    fn start_login(&self, request: pb::StartLoginRequest) -> Answer<'_, pb::StartLoginResponse> {
        Box::pin(self.call(None, CALL_TIMEOUT, request, move |request| {
            let mut client = self.login();
            async move { client.start_login(request).await }
        }))
    }

    fn finish_login(&self, request: pb::FinishLoginRequest) -> Answer<'_, pb::FinishLoginResponse> {
        Box::pin(self.call(None, CALL_TIMEOUT, request, move |request| {
            let mut client = self.login();
            async move { client.finish_login(request).await }
        }))
    }

    fn get_keyring(&self, request: pb::GetKeyringRequest) -> Answer<'_, pb::GetKeyringResponse> {
        Box::pin(self.call(None, CALL_TIMEOUT, request, move |request| {
            let mut client = self.login();
            async move { client.get_keyring(request).await }
        }))
    }

    fn get_sealed_session(
        &self,
        request: pb::GetSealedSessionRequest,
    ) -> Answer<'_, pb::GetSealedSessionResponse> {
        Box::pin(self.call(None, CALL_TIMEOUT, request, move |request| {
            let mut client = self.login();
            async move { client.get_sealed_session(request).await }
        }))
    }

    fn get_descriptor(
        &self,
        request: pb::GetDescriptorRequest,
    ) -> Answer<'_, pb::GetDescriptorResponse> {
        Box::pin(self.call(None, CALL_TIMEOUT, request, move |request| {
            let mut client = self.cluster();
            async move { client.get_descriptor(request).await }
        }))
    }

    fn get_status(&self) -> Answer<'_, pb::GetStatusResponse> {
        Box::pin(self.call(None, CALL_TIMEOUT, pb::GetStatusRequest {}, move |request| {
            let mut client = self.cluster();
            async move { client.get_status(request).await }
        }))
    }

    fn find_home(&self, request: pb::FindHomeRequest) -> Answer<'_, pb::FindHomeResponse> {
        Box::pin(self.call(None, CALL_TIMEOUT, request, move |request| {
            let mut client = self.admin();
            async move { client.find_home(request).await }
        }))
    }

    fn put_chunks<'a>(
        &'a self,
        session: &'a Credentials,
        request: pb::PutChunksRequest,
    ) -> Answer<'a, pb::PutChunksResponse> {
        Box::pin(self.call(Some(session), CHUNK_TIMEOUT, request, move |request| {
            let mut client = self.chunks();
            async move { client.put_chunks(request).await }
        }))
    }

    fn get_chunks<'a>(
        &'a self,
        session: &'a Credentials,
        request: pb::GetChunksRequest,
    ) -> Answer<'a, pb::GetChunksResponse> {
        Box::pin(self.call(Some(session), CHUNK_TIMEOUT, request, move |request| {
            let mut client = self.chunks();
            async move { client.get_chunks(request).await }
        }))
    }

    fn renew_receipts<'a>(
        &'a self,
        session: &'a Credentials,
        request: pb::RenewReceiptsRequest,
    ) -> Answer<'a, pb::RenewReceiptsResponse> {
        Box::pin(self.call(Some(session), CHUNK_TIMEOUT, request, move |request| {
            let mut client = self.chunks();
            async move { client.renew_receipts(request).await }
        }))
    }
}
