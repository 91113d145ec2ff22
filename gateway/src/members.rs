//! Directory, login and cluster calls: passed on to a metadata member as they are.
//!
//! Any member takes any call and finds the leader itself; the gateway only looks for a member that
//! answers, beginning with the one that answered last.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use coffer_model::descriptor::Member;
use coffer_model::name::UserName;
use coffer_model::session::{PROOF_EXPIRED, PROOF_HEADER};
use coffer_proto::MESSAGE_BYTES_MAX;
use coffer_proto::v1 as pb;
use coffer_proto::v1::cluster_service_client::ClusterServiceClient;
use coffer_proto::v1::cluster_service_server::ClusterService;
use coffer_proto::v1::directory_service_client::DirectoryServiceClient;
use coffer_proto::v1::directory_service_server::DirectoryService;
use coffer_proto::v1::login_service_client::LoginServiceClient;
use coffer_proto::v1::login_service_server::LoginService;
use coffer_service::audit::note;
use coffer_service::call::contained;
use coffer_service::channel::{Channel, ChannelError, ChannelOptions, connect_lazy, host_of};
use coffer_service::peer::PeerId;
use coffer_service::status::{reason_of, relayed, status};
use coffer_service::tls::LiveTls;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};

use crate::door::Door;
use crate::serve::Error;

/// How long one member may take to answer before the next is asked. A leader that was cut off
/// answers nothing; its successor is there after about two seconds.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Channels to all metadata members.
pub(crate) struct Members {
    channels: RwLock<Arc<[Channel]>>,
    tls: Arc<LiveTls>,
    /// The one that answered last.
    preferred: AtomicUsize,
    door: Arc<Door>,
}

impl Members {
    pub(crate) fn new(
        members: &[Member],
        tls: &Arc<LiveTls>,
        door: Arc<Door>,
    ) -> Result<Self, Error> {
        let channels = connect(members, tls)?;
        let channels = RwLock::new(channels.into());
        Ok(Self { channels, tls: Arc::clone(tls), preferred: AtomicUsize::new(0), door })
    }

    /// Takes up the members of another descriptor.
    pub(crate) fn follow(&self, members: &[Member]) {
        match connect(members, &self.tls) {
            Ok(channels) => {
                *self.channels.write().unwrap_or_else(PoisonError::into_inner) = channels.into();
            }
            Err(error) => tracing::error!(%error, "the descriptor names an unusable address"),
        }
    }

    /// Calls members one after the other until one answers otherwise than "not here".
    pub(crate) async fn ask<T, F>(&self, call: impl Fn(Channel) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut last = status(Code::Unavailable, "NO_MEMBER", "the cluster has no members", &[]);
        let channels = Arc::clone(&self.channels.read().unwrap_or_else(PoisonError::into_inner));
        for turn in 0..channels.len() {
            let at = (first + turn) % channels.len();
            let answer = contained(call(channels[at].clone())).await;
            match answer.map_err(|failure| relayed(&failure)) {
                // Nobody there, no leader known, or no answer in time.
                Err(error)
                    if matches!(error.code(), Code::Unavailable | Code::DeadlineExceeded) =>
                {
                    last = error;
                }
                // The proof is of this time by our own clock, so it is the member's that is wrong. It finds
                // out by itself, or another one leads soon.
                Err(error) if is_of_another_time(&error) => {
                    let text =
                        "the clock of a metadata member is not that of this gateway; try again";
                    last = status(Code::Unavailable, "CLOCKS_DIFFER", text, &[]);
                }
                answer => {
                    self.preferred.store(at, Ordering::Relaxed);
                    return answer;
                }
            }
        }
        Err(last)
    }

    /// Says in the audit log which user a call is about, where that is the name of one.
    pub(crate) fn note_user<M>(&self, request: &Request<M>, name: &str) {
        if let Ok(name) = name.parse::<UserName>() {
            note(request, |subject| subject.object = Some(format!("user {name}")));
        }
    }

    /// The request to pass on: the same message, and of the headers the session proof and deadline.
    /// The audit log says that the call is about `object`.
    fn pass_on<M>(&self, request: Request<M>, object: String) -> Result<Passed<M>, Status> {
        note(&request, |subject| subject.object = Some(object));
        let mut headers = MetadataMap::new();
        headers.insert_bin(PROOF_HEADER, self.door.admit(&request)?);
        Ok(Passed { headers, message: request.into_inner() })
    }
}

fn connect(members: &[Member], tls: &Arc<LiveTls>) -> Result<Vec<Channel>, ChannelError> {
    let channel = |member: &Member| {
        let options =
            ChannelOptions { request_timeout: Some(CALL_TIMEOUT), ..ChannelOptions::standard() };
        connect_lazy(&member.address, host_of(&member.address), tls, &options)
    };
    members.iter().map(channel).collect()
}

struct Passed<M> {
    headers: MetadataMap,
    message: M,
}

impl<M: Clone> Passed<M> {
    fn request(&self) -> Request<M> {
        let mut request = Request::new(self.message.clone());
        *request.metadata_mut() = self.headers.clone();
        request
    }
}

fn is_of_another_time(refused: &Status) -> bool {
    reason_of(refused).is_some_and(|reason| reason.code == PROOF_EXPIRED)
}

/// The certificate a process must show.
pub(crate) fn peer(role: &str, id: [u8; 16]) -> PeerId {
    PeerId::new(role, id).expect("our role names are valid")
}

/// An id for the audit log; what is too long to be one is cut.
fn id_text(bytes: &[u8]) -> String {
    bytes.iter().take(32).map(|byte| format!("{byte:02x}")).collect()
}

fn directory(channel: Channel) -> DirectoryServiceClient<Channel> {
    DirectoryServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

#[tonic::async_trait]
impl DirectoryService for Members {
    async fn submit(
        &self,
        request: Request<pb::SubmitRequest>,
    ) -> Result<Response<pb::SubmitResponse>, Status> {
        // A submission signed by an identity (registration, new session) comes before any session.
        let mut headers = MetadataMap::new();
        if request.metadata().get_bin(PROOF_HEADER).is_some() {
            headers.insert_bin(PROOF_HEADER, self.door.admit(&request)?);
        }
        let passed = Passed { headers, message: request.into_inner() };
        self.ask(async |channel| directory(channel).submit(passed.request()).await).await
    }

    async fn read(
        &self,
        request: Request<pb::ReadRequest>,
    ) -> Result<Response<pb::ReadResponse>, Status> {
        let object = format!("{} queries", request.get_ref().queries.len());
        let passed = self.pass_on(request, object)?;
        self.ask(async |channel| directory(channel).read(passed.request()).await).await
    }

    async fn list(
        &self,
        request: Request<pb::ListRequest>,
    ) -> Result<Response<pb::ListResponse>, Status> {
        let object = id_text(&request.get_ref().directory);
        let passed = self.pass_on(request, object)?;
        self.ask(async |channel| directory(channel).list(passed.request()).await).await
    }

    async fn list_versions(
        &self,
        request: Request<pb::ListVersionsRequest>,
    ) -> Result<Response<pb::ListVersionsResponse>, Status> {
        let object = id_text(&request.get_ref().inode);
        let passed = self.pass_on(request, object)?;
        self.ask(async |channel| directory(channel).list_versions(passed.request()).await).await
    }

    async fn issue_write_ticket(
        &self,
        request: Request<pb::IssueWriteTicketRequest>,
    ) -> Result<Response<pb::IssueWriteTicketResponse>, Status> {
        let object = id_text(&request.get_ref().inode);
        let passed = self.pass_on(request, object)?;
        self.ask(async |channel| directory(channel).issue_write_ticket(passed.request()).await)
            .await
    }
}

#[tonic::async_trait]
impl LoginService for Members {
    async fn start_registration(
        &self,
        request: Request<pb::StartRegistrationRequest>,
    ) -> Result<Response<pb::StartRegistrationResponse>, Status> {
        self.note_user(&request, &request.get_ref().name);
        let message = request.into_inner();
        self.ask(async |channel| {
            LoginServiceClient::new(channel).start_registration(message.clone()).await
        })
        .await
    }

    async fn start_login(
        &self,
        request: Request<pb::StartLoginRequest>,
    ) -> Result<Response<pb::StartLoginResponse>, Status> {
        self.note_user(&request, &request.get_ref().name);
        let message = request.into_inner();
        self.ask(async |channel| {
            LoginServiceClient::new(channel).start_login(message.clone()).await
        })
        .await
    }

    async fn finish_login(
        &self,
        request: Request<pb::FinishLoginRequest>,
    ) -> Result<Response<pb::FinishLoginResponse>, Status> {
        let message = request.into_inner();
        self.ask(async |channel| {
            LoginServiceClient::new(channel).finish_login(message.clone()).await
        })
        .await
    }

    async fn get_keyring(
        &self,
        request: Request<pb::GetKeyringRequest>,
    ) -> Result<Response<pb::GetKeyringResponse>, Status> {
        self.note_user(&request, &request.get_ref().name);
        let message = request.into_inner();
        self.ask(async |channel| {
            LoginServiceClient::new(channel).get_keyring(message.clone()).await
        })
        .await
    }

    async fn get_sealed_session(
        &self,
        request: Request<pb::GetSealedSessionRequest>,
    ) -> Result<Response<pb::GetSealedSessionResponse>, Status> {
        let message = request.into_inner();
        self.ask(async |channel| {
            LoginServiceClient::new(channel).get_sealed_session(message.clone()).await
        })
        .await
    }
}

#[tonic::async_trait]
impl ClusterService for Members {
    async fn get_descriptor(
        &self,
        request: Request<pb::GetDescriptorRequest>,
    ) -> Result<Response<pb::GetDescriptorResponse>, Status> {
        let message = request.into_inner();
        self.ask(async |channel| ClusterServiceClient::new(channel).get_descriptor(message).await)
            .await
    }

    async fn get_status(
        &self,
        request: Request<pb::GetStatusRequest>,
    ) -> Result<Response<pb::GetStatusResponse>, Status> {
        let message = request.into_inner();
        self.ask(async |channel| ClusterServiceClient::new(channel).get_status(message).await).await
    }
}
