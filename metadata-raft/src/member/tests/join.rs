//! Lost volumes are replaced by the standing policy: who is refused, and why, and what comes of it.

use coffer_model::descriptor::{Followed, Replaced, ReplacementPolicy, join_token_hash};
use coffer_model::id::NodeId;
use coffer_model::signing::{Domain, PublicKey, Signer};
use coffer_proto::internal::join_service_client::JoinServiceClient;
use coffer_service::channel::Channel;

use super::*;
use crate::member::tests::kit::{Key, TestGroup, eventually, member_client, node_id};

/// An hour: nobody is silent for so long in a test.
const LONG_SILENCE_MS: u64 = 3_600_000;

struct Scene {
    group: TestGroup,
    token: JoinToken,
}

/// A storage node with a new volume.
struct NewNode {
    id: NodeId,
    key: Key,
    peer: PeerId,
}

fn new_node(number: u8) -> NewNode {
    let id = NodeId::from_bytes([0x70 + number; 16]);
    let peer = PeerId::new("storage", *id.as_bytes()).unwrap();
    NewNode { id, key: Key::of(&format!("new node {number}")), peer }
}

impl Scene {
    /// Three members that understand replacements, with audit logs and a policy.
    async fn with_policy(silent_ms_min: u64) -> Self {
        let mut scene = Self::without_policy().await;
        scene.set_policy(silent_ms_min).await;
        scene
    }

    async fn without_policy() -> Self {
        let mut group = TestGroup::founded(3).await;
        for number in 0..3 {
            let log = group.dir.path().join(format!("audit-{number}"));
            group.configs[number].audit_log = Some(log);
            group.start(number).await.unwrap();
        }
        let channel = group.channel(0);
        eventually(async || {
            let mut client = ClusterServiceClient::new(channel.clone());
            let status = client.get_status(pb::GetStatusRequest {}).await?;
            if status.get_ref().core_version < 3 {
                return Err(Status::unavailable("not all understand it yet"));
            }
            Ok(())
        })
        .await;
        Self { group, token: JoinToken::random().unwrap() }
    }

    async fn set_policy(&mut self, silent_ms_min: u64) {
        let join_token = join_token_hash(&self.token.public_key());
        let policy = ReplacementPolicy { silent_ms_min, join_token };
        let signed = self.group.next_descriptor(|next| next.replacement = Some(policy));
        let channel = self.group.channel(self.group.any());
        eventually(async || {
            let descriptor = signed.clone().into();
            let request = pb::ChangeDescriptorRequest { descriptor };
            AdminServiceClient::new(channel.clone()).change_descriptor(request).await
        })
        .await;
    }

    /// The request of a node for the place of another, with one thing changed.
    fn request(
        &self,
        lost: usize,
        new: &NewNode,
        token: &JoinToken,
        change: impl FnOnce(&mut Descriptor),
    ) -> internal_pb::JoinRequest {
        let former = &self.group.latest;
        let lost = former.nodes[lost].id;
        let mut next = former.with_node_replaced(lost, new.id, new.key.public_key()).unwrap();
        change(&mut next);
        let descriptor = encode(&next);
        let signature = token.sign(Domain::Replacement, &self.group.id, &descriptor);
        internal_pb::JoinRequest {
            descriptor: descriptor.into(),
            token_key: token.public_key().as_bytes().to_vec().into(),
            token_signature: signature.as_bytes().to_vec().into(),
        }
    }

    async fn join(
        &self,
        peer: &PeerId,
        request: &internal_pb::JoinRequest,
    ) -> Result<Vec<u8>, Status> {
        let channel = self.group.channel_as(self.group.any(), peer);
        settled(async || JoinServiceClient::new(channel.clone()).join(request.clone()).await)
            .await
            .map(|answer| answer.descriptor.to_vec())
    }

    async fn find(
        &self,
        peer: &PeerId,
        request: &internal_pb::FindSeatRequest,
    ) -> Result<String, Status> {
        let channel = self.group.channel_as(self.group.any(), peer);
        settled(async || JoinServiceClient::new(channel.clone()).find_seat(request.clone()).await)
            .await
            .map(|answer| answer.lost)
    }

    /// The group's descriptors and the layouts, as somebody follows them who knows the first.
    async fn followed(&self) -> (Followed, Vec<Vec<u8>>) {
        let channel = self.group.channel(self.group.any());
        let answer = eventually(async || {
            let request = pb::GetDescriptorRequest { known_number: 0 };
            ClusterServiceClient::new(channel.clone()).get_descriptor(request).await
        });
        let answer = answer.await.into_inner();
        let mut followed = Followed::new(self.group.descriptor.clone());
        followed.follow(&self.group.id, &answer.successors).unwrap();
        let layouts = std::iter::once(answer.layout).chain(answer.former_layouts);
        (followed, layouts.map(Into::into).collect())
    }

    /// Ends the group, and gives the events of all audit logs about these calls: decision and reason.
    async fn audited(mut self, method: &str) -> BTreeSet<(String, String)> {
        self.group.stop_all().await;
        let text: String = (0..3)
            .map(|number| self.group.dir.path().join(format!("audit-{number}")))
            .map(|log| std::fs::read_to_string(log).unwrap())
            .collect();
        let events =
            text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        events
            .filter(|event| event["method"].as_str().unwrap().ends_with(method))
            .map(|event| {
                let field = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
                (field("decision"), field("reason"))
            })
            .collect()
    }
}

/// What comes of a call once the group has a leader and does not find the caller too hasty.
async fn settled<T, F>(call: impl Fn() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<tonic::Response<T>, Status>>,
{
    eventually(async || match call().await {
        Err(status) if ["NOT_LEADER", "NO_QUORUM", "BUSY"].contains(&&*reason(&status)) => {
            Err(status)
        }
        other => Ok(other.map(tonic::Response::into_inner)),
    })
    .await
}

/// Proves S42 of docs/semantics.md.
///
/// Goal: a replacement needs the token, an allowed change, the newcomer's own certificate, and silence; and
/// every refusal is in the audit log. Method: each is missing once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_policy_does_not_allow_is_refused_and_audited() {
    let mut scene = Scene::without_policy().await;
    let new = new_node(0);
    let request = scene.request(0, &new, &scene.token, |_| {});
    let refused = |refused: Result<Vec<u8>, Status>| reason(&refused.unwrap_err());
    assert_eq!(refused(scene.join(&new.peer, &request).await), "NO_POLICY");

    scene.set_policy(LONG_SILENCE_MS).await;
    let request = scene.request(0, &new, &scene.token, |_| {});
    let status = scene.join(&new.peer, &request).await.unwrap_err();
    assert_eq!(reason(&status), "NOT_SILENT");
    let left: u64 = reason_of(&status).unwrap().metadata["left_ms"].parse().unwrap();
    assert!((1..=LONG_SILENCE_MS).contains(&left), "{left}");
    assert!(retry_delay(&status).is_some());

    let other = JoinToken::random().unwrap();
    let wrong = scene.request(0, &new, &other, |_| {});
    assert_eq!(refused(scene.join(&new.peer, &wrong).await), "WRONG_TOKEN");
    // The right key over other bytes.
    let another = scene.request(1, &new, &scene.token, |_| {});
    let forged =
        internal_pb::JoinRequest { token_signature: another.token_signature, ..request.clone() };
    assert_eq!(refused(scene.join(&new.peer, &forged).await), "WRONG_TOKEN");
    let more = scene.request(0, &new, &scene.token, |next| next.open_registration = false);
    assert_eq!(refused(scene.join(&new.peer, &more).await), "NOT_A_REPLACEMENT");
    let moved = scene.request(0, &new, &scene.token, |next| next.nodes[0].zone = "b".to_owned());
    assert_eq!(refused(scene.join(&new.peer, &moved).await), "NOT_A_REPLACEMENT");
    let later = scene.request(0, &new, &scene.token, |next| next.number += 1);
    assert_eq!(refused(scene.join(&new.peer, &later).await), "NOT_NEXT");
    // Nobody asks for another.
    assert_eq!(refused(scene.join(&new_node(1).peer, &request).await), "NOT_YOURS");
    let gateway = PeerId::new("gateway", *new.id.as_bytes()).unwrap();
    assert_eq!(refused(scene.join(&gateway, &request).await), "NOT_YOURS");
    let (followed, _) = scene.followed().await;
    assert_eq!(followed.descriptor, scene.group.latest);

    let audited = scene.audited("JoinService/Join").await;
    for (decision, reason) in [
        ("failed", "NO_POLICY"),
        ("failed", "NOT_SILENT"),
        ("denied", "WRONG_TOKEN"),
        ("denied", "NOT_A_REPLACEMENT"),
        ("denied", "NOT_YOURS"),
    ] {
        assert!(audited.contains(&(decision.to_owned(), reason.to_owned())), "{audited:?}");
    }
    assert!(audited.iter().all(|(decision, _)| decision != "allowed"), "{audited:?}");
}

/// Proves S43 of docs/semantics.md.
///
/// Goal: a node that was silent is replaced, the layout names the newcomer, everybody who follows accepts
/// both, and the old volume stays out. Method: a silence of a millisecond; the nodes of the test never speak.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_node_is_replaced_and_stays_out() {
    let mut scene = Scene::with_policy(1).await;
    let new = new_node(0);
    let lost = scene.group.latest.nodes[1].id;
    let request = scene.request(1, &new, &scene.token, |_| {});
    let signed = scene.join(&new.peer, &request).await.unwrap();
    let (followed, layouts) = scene.followed().await;
    let next: Descriptor = decode("descriptor", &request.descriptor).unwrap();
    assert_eq!(followed.descriptor, next);
    let link = next.replaces_in(&scene.group.latest);
    assert_eq!(link, Ok(Replaced::Node { lost, new: new.id }));
    let layout = followed.verify_layout(&layouts[0], &scene.group.id).unwrap();
    assert_eq!((layout.version(), layouts.len()), (2, 2));
    assert!(layout.nodes().contains(&new.id) && !layout.nodes().contains(&lost));
    // The answer of the first time may be lost.
    assert_eq!(scene.join(&new.peer, &request).await.unwrap(), signed);

    // The newcomer speaks for itself from now on, and the lost one no more.
    scene.group.latest = next;
    scene.group.nodes[1] = new.key;
    let number = scene.group.any();
    let old = PeerId::new("storage", *lost.as_bytes()).unwrap();
    let greet = async |peer: &PeerId| {
        let channel = scene.group.channel_as(number, peer);
        member_client(channel).greet(internal_pb::GreetRequest {}).await
    };
    eventually(async || match greet(&new.peer).await {
        // Each member takes up the descriptor in its own time.
        Err(status) if reason(&status) == "NOT_IN_DESCRIPTOR" => Err(Status::unavailable("yet")),
        other => other,
    })
    .await;
    assert_eq!(reason(&greet(&old).await.unwrap_err()), "NOT_IN_DESCRIPTOR");
    // It does not come back with the token either, into whichever place.
    let back = NewNode { id: lost, key: Key::of("node 1"), peer: old };
    let request = scene.request(0, &back, &scene.token, |_| {});
    assert_eq!(reason(&scene.join(&back.peer, &request).await.unwrap_err()), "DISMISSED");
    let audited = scene.audited("JoinService/Join").await;
    assert!(audited.contains(&("allowed".to_owned(), String::new())), "{audited:?}");
    assert!(audited.contains(&("denied".to_owned(), "DISMISSED".to_owned())), "{audited:?}");
}

/// Goal: what one member has heard, it does not vouch against, whatever the leader says. Method: a node
/// greets one follower, which is then asked as the leader would ask it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_vouches_by_what_it_has_heard_itself() {
    let mut scene = Scene::with_policy(LONG_SILENCE_MS).await;
    let new = new_node(0);
    let request = scene.request(0, &new, &scene.token, |_| {});
    let vouch = async |peer: &PeerId, request: &internal_pb::JoinRequest| {
        let channel = scene.group.channel_as(1, peer);
        let request = internal_pb::VouchReplacementRequest {
            descriptor: request.descriptor.clone(),
            token_key: request.token_key.clone(),
            token_signature: request.token_signature.clone(),
        };
        let client = member_client(channel);
        settled_here(async || client.clone().vouch_replacement(request.clone()).await).await
    };
    let leader = scene.group.descriptor.members[0].id;
    let leader = peer_of_member(&scene, leader);
    assert_eq!(reason(&vouch(&leader, &request).await.unwrap_err()), "NOT_SILENT");
    assert_eq!(reason(&vouch(&new.peer, &request).await.unwrap_err()), "NOT_IN_DESCRIPTOR");
    let node = PeerId::new("storage", *node_id(1).as_bytes()).unwrap();
    assert_eq!(reason(&vouch(&node, &request).await.unwrap_err()), "NOT_A_MEMBER");

    scene.set_policy(1).await;
    let request = scene.request(0, &new, &scene.token, |_| {});
    let vouch = async || {
        let channel = scene.group.channel_as(1, &leader);
        let request = internal_pb::VouchReplacementRequest {
            descriptor: request.descriptor.clone(),
            token_key: request.token_key.clone(),
            token_signature: request.token_signature.clone(),
        };
        let client = member_client(channel);
        settled_here(async || client.clone().vouch_replacement(request.clone()).await).await
    };
    let signature = vouch().await.unwrap().signature;
    let signature = <[u8; 64]>::try_from(&signature[..]).unwrap();
    let key: PublicKey = scene.group.descriptor.members[1].key;
    let signature = coffer_model::signing::Signature::from_bytes(signature);
    key.verify(Domain::Replacement, &scene.group.id, &request.descriptor, &signature).unwrap();
    scene.group.stop_all().await;
}

/// As [`settled`], of a member that answers from its own state and may be behind.
async fn settled_here<T, F>(call: impl Fn() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<tonic::Response<T>, Status>>,
{
    eventually(async || match call().await {
        Err(status) if ["NO_POLICY", "NOT_NEXT", "CORE_VERSION"].contains(&&*reason(&status)) => {
            Err(Status::unavailable("it is behind"))
        }
        other => Ok(other.map(tonic::Response::into_inner)),
    })
    .await
}

fn peer_of_member(scene: &Scene, member: MemberId) -> PeerId {
    let config = scene.group.configs.iter().zip(&scene.group.descriptor.members);
    let (config, _) = config.into_iter().find(|(_, listed)| listed.id == member).unwrap();
    peer_uri_id(&read_certificates(&config.tls.certificate).unwrap()).unwrap()
}

/// Goal: which place a newcomer is told of. Method: the nodes of the test never speak, so all of them are
/// silent; one has reported an address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_is_found_by_name_by_address_or_by_silence() {
    let mut scene = Scene::with_policy(1).await;
    let new = new_node(0);
    let node = |replaces: &str, zone: &str, address: &str| internal_pb::FindSeatRequest {
        kind: internal_pb::SeatKind::Node.into(),
        replaces: replaces.to_owned(),
        zone: zone.to_owned(),
        address: address.to_owned(),
    };
    let named = node_id(2).to_string();
    assert_eq!(scene.find(&new.peer, &node(&named, "", "")).await.unwrap(), named);
    let refused = async |request| reason(&scene.find(&new.peer, &request).await.unwrap_err());
    assert_eq!(refused(node("0000", "", "")).await, "NO_SUCH_SEAT");
    assert_eq!(refused(node("", "", "")).await, "AMBIGUOUS_SEAT");
    assert_eq!(refused(node("", "elsewhere", "")).await, "NO_SUCH_SEAT");
    let member = internal_pb::FindSeatRequest {
        kind: internal_pb::SeatKind::Member.into(),
        replaces: scene.group.descriptor.members[1].address.clone(),
        ..internal_pb::FindSeatRequest::default()
    };
    assert_eq!(refused(member.clone()).await, "NOT_YOURS");
    let peer = PeerId::new("metadata", [0x44; 16]).unwrap();
    let found = scene.find(&peer, &member).await.unwrap();
    assert_eq!(found, scene.group.descriptor.members[1].id.to_string());

    let channel = scene.group.node_channel(scene.group.any(), 1);
    let report = scene.group.report(1, 1, "node-1:7400");
    eventually(async || member_client(channel.clone()).report_node(report.clone()).await).await;
    let found = scene.find(&new.peer, &node("", "", "node-1:7400")).await.unwrap();
    assert_eq!(found, node_id(1).to_string());
    let found = scene.find(&new.peer, &node("node-1:7400", "", "")).await.unwrap();
    assert_eq!(found, node_id(1).to_string());
    // Who names an address nobody reported gets no place, though others are silent.
    assert_eq!(refused(node("node-9:7400", "", "node-1:7400")).await, "NO_SUCH_SEAT");
    scene.group.stop_all().await;
}

/// Goal: a member that lost its volume gets in, forms no group of its own though it is the one that formed
/// the first, votes, and is known after a restart. Method: the bootstrapping member's files are removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_with_a_new_volume_takes_the_old_one_s_place() {
    let mut scene = Scene::with_policy(500).await;
    let lost = scene.group.descriptor.members[0].clone();
    scene.group.crash(0).await;
    let data = scene.group.configs[0].data_dir.clone();
    std::fs::rename(&data, scene.group.dir.path().join("lost")).unwrap();
    let (new, _) = init(&data).unwrap();
    let peer = coffer_service::identity::ProcessIdentity::recorded(&data).unwrap();
    let tls = scene.group.authority.issue_into(&scene.group.dir.path().join("tls-0"), &[], &peer);
    let token = scene.group.dir.path().join("token");
    std::fs::write(&token, &*scene.token.to_text()).unwrap();
    let config = &mut scene.group.configs[0];
    config.tls = tls.unwrap();
    config.join_token_file = Some(token);
    config.replaces = Some(lost.address.clone());
    assert!(config.bootstrap);

    let config = config.clone();
    assert!(join_if_new(&config, &Shutdown::new()).await.unwrap());
    // Started twice before it has anything of the log.
    assert!(join_if_new(&config, &Shutdown::new()).await.unwrap());
    scene.group.start(0).await.unwrap();
    let channel: Channel = scene.group.channel(1);
    eventually(async || {
        let mut client = ClusterServiceClient::new(channel.clone());
        let status = client.get_status(pb::GetStatusRequest {}).await?.into_inner();
        let id = new.to_string();
        match status.members.iter().find(|member| member.id == id) {
            Some(member) if member.voter && member.behind == 0 => Ok(()),
            _ => Err(Status::unavailable("it does not count yet")),
        }
    })
    .await;
    scene.group.crash(0).await;
    scene.group.start(0).await.unwrap();
    // There is a majority only with it.
    scene.group.crash(1).await;
    scene.group.log_time().await;
    scene.group.stop_all().await;
}

impl Scene {
    /// Who wants to stop does not wait for the cluster.
    async fn stops_waiting(&self, config: &Config) {
        let shutdown = Shutdown::new();
        let waiting = join_if_new(config, &shutdown);
        let stopping = async {
            tokio::task::yield_now().await;
            shutdown.cancel();
        };
        let (joined, ()) = tokio::join!(waiting, stopping);
        assert!(!joined.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_that_waits_stops_when_it_is_told() {
    let mut scene = Scene::with_policy(LONG_SILENCE_MS).await;
    let token = scene.group.dir.path().join("token");
    std::fs::write(&token, &*scene.token.to_text()).unwrap();
    scene.group.new_member().await;
    let address = scene.group.descriptor.members[2].address.clone();
    let config = scene.group.configs.last_mut().unwrap();
    config.join_token_file = Some(token);
    config.replaces = Some(address);
    let config = config.clone();
    scene.stops_waiting(&config).await;
    scene.group.stop_all().await;
}
