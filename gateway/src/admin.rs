//! What administrators change: passed on to a metadata member as it is. It carries its own signatures,
//! which the members check; nobody needs a session.

use coffer_proto::v1 as pb;
use coffer_proto::v1::admin_service_client::AdminServiceClient;
use coffer_proto::v1::admin_service_server::AdminService;
use coffer_service::audit::note;
use tonic::{Request, Response, Status};

use crate::members::Members;

#[tonic::async_trait]
impl AdminService for Members {
    async fn change_descriptor(
        &self,
        request: Request<pb::ChangeDescriptorRequest>,
    ) -> Result<Response<pb::ChangeDescriptorResponse>, Status> {
        note(&request, |subject| subject.object = Some("descriptor".to_owned()));
        let message = request.into_inner();
        self.ask(async |channel| {
            AdminServiceClient::new(channel).change_descriptor(message.clone()).await
        })
        .await
    }

    async fn change_layout(
        &self,
        request: Request<pb::ChangeLayoutRequest>,
    ) -> Result<Response<pb::ChangeLayoutResponse>, Status> {
        note(&request, |subject| subject.object = Some("layout".to_owned()));
        let message = request.into_inner();
        self.ask(async |channel| {
            AdminServiceClient::new(channel).change_layout(message.clone()).await
        })
        .await
    }

    async fn give_order(
        &self,
        request: Request<pb::GiveOrderRequest>,
    ) -> Result<Response<pb::GiveOrderResponse>, Status> {
        note(&request, |subject| subject.object = Some("order".to_owned()));
        let message = request.into_inner();
        self.ask(async |channel| AdminServiceClient::new(channel).give_order(message.clone()).await)
            .await
    }

    async fn find_home(
        &self,
        request: Request<pb::FindHomeRequest>,
    ) -> Result<Response<pb::FindHomeResponse>, Status> {
        self.note_user(&request, &request.get_ref().name);
        let message = request.into_inner();
        self.ask(async |channel| AdminServiceClient::new(channel).find_home(message.clone()).await)
            .await
    }
}
