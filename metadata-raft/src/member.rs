//! One member from its start to its end.
//!
//! Start: the volume is checked to be this member's of this cluster, then Raft runs on it. End: the
//! member takes no more work, lets a successor take the lead, stops, and syncs what it has. A store
//! that failed ends the member at once; the next start recovers from the log.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coffer_join::token::{JoinToken, TokenError};
use coffer_join::{Asking, JoinError, Newcomer};
use coffer_metadata_core::{Command, query};
use coffer_model::encoding::encode;
use coffer_model::id::MemberId;
use coffer_model::log::SystemOp;
use coffer_model::signing::{PublicKey, Signer};
use coffer_proto::internal::join_service_server::JoinServiceServer;
use coffer_service::channel::ChannelError;
use coffer_service::files::{PRIVATE_FILE, write_atomically};
use coffer_service::health::{Health, alive_while};
use coffer_service::identity::{IdentityError, ProcessIdentity};
use coffer_service::peer::{PeerId, peer_uri_id};
use coffer_service::server::{GrpcServer, ServerLimits};
use coffer_service::shutdown::Shutdown;
use coffer_service::tls::{ClientAuth, LiveTls, RELOAD_EVERY, TlsError, read_certificates};
use coffer_service::watch::{Watch, WatchError, Watched};
use openraft::SnapshotPolicy;
use openraft::error::{InitializeError, RaftError};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tower::Layer;

use crate::access::Door;
use crate::admin::Admin;
use crate::batch::{Batcher, Proposer};
use crate::clock::Clock;
use crate::cluster::Cluster;
use crate::config::{Config, Timing};
use crate::directory::Directory;
use crate::duties::Duties;
use crate::group::{Group, GroupError, ROLE, Records, latest_descriptor, member_id};
use crate::heard::greet;
use crate::join::{Join, Vouching};
use crate::listing::Listings;
use crate::log::LogStore;
use crate::login::{Attempts, Guesses, Login};
use crate::machine::{Machine, PreparedCache};
use crate::membership::Following;
use crate::network::Network;
use crate::nodes::Nodes;
use crate::opaque::{Opaque, SetupError};
use crate::peers::Peers;
use crate::raft::{Leadership, Raft};
use crate::reads::Reads;
use crate::serve::{Internal, Snapshots, routes};
use crate::store::{Store, StoreError};
use crate::threads::blocking;
use crate::truncation::{LogPolicy, Truncation};

/// How long requests that are under way at the end may take.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the database may take to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often readiness is looked at where nothing changes.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often what is too old is forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// Calls by which members keep each other up to date, and nodes themselves.
const QUIET: [&str; 9] = [
    "/coffer.internal.v1.MemberService/Greet",
    "/coffer.internal.v1.MemberService/Append",
    "/coffer.internal.v1.MemberService/Vote",
    "/coffer.internal.v1.MemberService/ReadClock",
    "/coffer.internal.v1.MemberService/ReadFeed",
    "/coffer.internal.v1.MemberService/ReadRows",
    "/coffer.internal.v1.MemberService/ReportNode",
    "/coffer.internal.v1.MemberService/GetCoreVersion",
    "/coffer.internal.v1.MemberService/GetReadIndex",
];
/// Entries in one message to a peer; their bytes have a bound of their own.
const APPEND_ENTRIES_MAX: u64 = 64;

/// Why a volume was not prepared.
#[derive(Debug, thiserror::Error)]
#[error("cannot prepare the volume of a metadata member")]
pub struct InitError(#[from] IdentityError);

/// Why a member did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    /// The signed records cannot be used.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// The volume cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The store cannot be used, or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The secrets for login cannot be used.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The certificate is somebody else's.
    #[error(
        "the certificate {} is not this member's: it has to name {expected}",
        path.display()
    )]
    Certificate {
        /// The certificate's file.
        path: PathBuf,
        /// What it has to say.
        expected: PeerId,
    },
    /// A member's address in the descriptor is not one.
    #[error("the descriptor names an address that cannot be used")]
    Address(#[from] ChannelError),
    /// The volume was in use, and its store is gone.
    #[error(
        "{} is gone, but this volume has been a member of cluster {cluster}; what this member had \
         promised is lost with it: restore the volume, or retire the member and start a new one",
        path.display()
    )]
    StoreLost {
        /// Where the store should be.
        path: PathBuf,
        /// The cluster the volume belongs to.
        cluster: coffer_model::id::ClusterId,
    },
    /// The join token cannot be used.
    #[error(transparent)]
    JoinToken(#[from] TokenError),
    /// The descriptors that name this member cannot be kept.
    #[error("cannot write {}", path.display())]
    KeepDescriptors {
        /// Where.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Raft did not start, or stopped.
    #[error("Raft stopped: {0}")]
    Raft(String),
    /// Calls cannot be watched.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// An administrator has taken this member out of the cluster.
    #[error(
        "member {member} is not in the cluster's descriptor any more; its volume holds nothing the \
         cluster needs"
    )]
    Dismissed {
        /// This member.
        member: MemberId,
    },
    /// The server failed.
    #[error("the gRPC server failed")]
    Server(#[source] tonic::transport::Error),
    /// A task of the member panicked.
    #[error("the member stopped: {0}")]
    Task(String),
}

/// Prepares the volume of a new member and says who it is, so that an administrator can name it in the
/// descriptor and have a certificate made for it. Doing it again gives the same answer.
pub fn init(data_dir: &Path) -> Result<(MemberId, PublicKey), InitError> {
    let identity = ProcessIdentity::load_or_create(data_dir, ROLE, None)?;
    Ok((member_id(&identity), identity.public_key()))
}

/// Runs a member until `shutdown`, or until it cannot go on.
pub async fn run(config: Config, shutdown: Shutdown) -> Result<(), MemberError> {
    if !join_if_new(&config, &shutdown).await? {
        return Ok(());
    }
    let listener = listen(config.listen).await?;
    run_on(config, listener, shutdown).await
}

/// Asks for the place of a lost member, where the configuration says so and this volume was never a member's.
/// Says whether to go on: not if it was told to stop before it got in.
pub(crate) async fn join_if_new(config: &Config, shutdown: &Shutdown) -> Result<bool, MemberError> {
    let (Some(token), Some(replaces)) = (&config.join_token_file, &config.replaces) else {
        return Ok(true);
    };
    let records = Records::read(config)?;
    if Store::exists(&config.store_dir()) {
        return Ok(true);
    }
    // Held until it is in, so that no other process takes the volume.
    let identity = ProcessIdentity::load_or_create(&config.data_dir, ROLE, None)?;
    if identity.cluster().is_some() || records.check_named(&identity).is_ok() {
        // It was a member once, or is one: what is wrong with that is said where it starts.
        return Ok(true);
    }
    let token = JoinToken::read(token)?;
    let tls = LiveTls::load(config.tls.clone(), ClientAuth::Required)?;
    let asking = Asking {
        cluster: records.cluster,
        tls: &tls,
        newcomer: Newcomer::Member { id: member_id(&identity), replaces: replaces.clone() },
        key: identity.public_key(),
        token: &token,
    };
    let joining = coffer_join::join(asking, records.first, shutdown);
    let joined = alive_while(config.health_listen, joining)
        .await
        .map_err(|source| listen_failed(config.health_listen.unwrap_or(config.listen), source))?;
    let successors = match joined {
        Ok(successors) => successors,
        Err(JoinError::Dismissed) => {
            return Err(MemberError::Dismissed { member: member_id(&identity) });
        }
        Err(JoinError::Stopped) => return Ok(false),
    };
    let path = config.joined_file();
    write_atomically(&path, &encode(&successors), PRIVATE_FILE)
        .map_err(|source| MemberError::KeepDescriptors { path, source })?;
    Ok(true)
}

/// [`run`] on a listener that is there already; `listen` of the configuration is not used.
pub async fn run_on(
    config: Config,
    listener: TcpListener,
    shutdown: Shutdown,
) -> Result<(), MemberError> {
    Running::start(config, LogPolicy::STANDARD, listener).await?.until(&shutdown).await
}

async fn listen(address: SocketAddr) -> Result<TcpListener, MemberError> {
    TcpListener::bind(address).await.map_err(|source| listen_failed(address, source))
}

fn listen_failed(address: SocketAddr, source: std::io::Error) -> MemberError {
    MemberError::Listen { address, source }
}

/// The task that serves.
type Server = JoinHandle<Result<(), tonic::transport::Error>>;

/// A member that runs.
pub(crate) struct Running {
    raft: Raft,
    store: Arc<Store>,
    door: Door,
    health: Health,
    timing: Timing,
    me: MemberId,
    dismissed: CancellationToken,
    /// The member's own tasks; they outlive the signal to stop by the time it takes to stop well.
    tasks: Shutdown,
    stop_serving: CancellationToken,
    #[cfg(test)]
    duties: Duties,
    server: Server,
    // Holds the volume's lock.
    _group: Arc<Group>,
}

impl Running {
    pub(crate) async fn start(
        config: Config,
        policy: LogPolicy,
        listener: TcpListener,
    ) -> Result<Self, MemberError> {
        Self::start_with(config, policy, |tls, services, stop| {
            let limits = ServerLimits { drain_timeout: DRAIN_TIMEOUT, ..ServerLimits::standard() };
            tokio::spawn(GrpcServer::new(tls, limits).serve(listener, services, stop))
        })
        .await
    }

    /// Starts everything; `serve` is what brings calls to the services, until it is told to stop.
    async fn start_with(
        config: Config,
        policy: LogPolicy,
        serve: impl FnOnce(Arc<LiveTls>, Watched<Routes>, CancellationToken) -> Server,
    ) -> Result<Self, MemberError> {
        let health_listener = match config.health_listen {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let setup = config.clone();
        let opened = blocking(move || Opened::open(&setup)).await;
        let Opened { group, store, log, opaque, tls } =
            opened.map_err(|error| MemberError::Task(error.to_string()))??;
        let peers = Peers::new(&group, &tls)?;
        let prepared = Arc::new(PreparedCache::default());
        let machine = Machine::new(Arc::clone(&store), group.cluster(), Arc::clone(&prepared));
        let raft = Raft::new(
            group.me.as_u64(),
            Arc::new(raft_config(&config.timing, &group)),
            Network { group: Arc::clone(&group), peers: peers.clone() },
            log.clone(),
            machine,
        )
        .await
        .map_err(|error| MemberError::Raft(error.to_string()))?;

        let tasks = Shutdown::new();
        let leadership = Leadership {
            raft: raft.clone(),
            me: group.me,
            patience: config.timing.election_max + config.timing.election_min,
        };
        let door = Door::new(Arc::clone(&group), leadership.clone(), peers.clone());
        let reads = Reads::start(leadership.clone(), peers.clone(), Arc::clone(&store), &tasks);
        let peers_of_clock = peers.clone();
        let batcher = Batcher {
            leadership,
            group: Arc::clone(&group),
            peers,
            tick_every: config.timing.tick,
        };
        let proposer = Proposer::start(batcher, &tasks);
        let nodes = Arc::new(Nodes::default());
        let listings = Arc::new(Listings::new(group.me, random_number()));
        let attempts = Arc::new(Attempts::default());
        let watch = Watch::start(
            ROLE,
            coffer_proto::methods(),
            coffer_proto::REFUSALS,
            config.audit_log.as_deref(),
        )?
        .with_quiet(&QUIET);
        let health = Health::new().await.with_metrics(watch.metrics());
        let directory = Directory {
            door: door.clone(),
            reads: reads.clone(),
            proposer: proposer.clone(),
            prepared,
            listings: Arc::clone(&listings),
        };
        let login = Login {
            door: door.clone(),
            reads: reads.clone(),
            proposer: proposer.clone(),
            opaque,
            attempts: Arc::clone(&attempts),
            guesses: Arc::new(Guesses::new()),
        };
        let cluster =
            Cluster { door: door.clone(), reads: reads.clone(), nodes: Arc::clone(&nodes) };
        let internal =
            Internal::new(door.clone(), reads.clone(), proposer.clone(), Arc::clone(&nodes));
        let snapshots = Snapshots::new(door.clone(), Arc::clone(&store));
        let admin = Admin { door: door.clone(), reads: reads.clone(), proposer: proposer.clone() };
        let vouching = Vouching { door: door.clone(), reads: reads.clone() };
        let join = Join::new(vouching, proposer.clone());
        let services = routes(directory, login, cluster, internal, snapshots, admin, &health)
            .add_service(JoinServiceServer::new(join));

        let stop_serving = CancellationToken::new();
        let server = serve(Arc::clone(&tls), watch.layer(services), stop_serving.clone());
        if let Some(listener) = health_listener {
            let (health, stop) = (health.clone(), tasks.token());
            tasks.spawn("plain health", async move {
                if let Err(error) = health.serve_plain(listener, stop).await {
                    tracing::warn!(%error, "health is not served any more");
                }
            });
        }
        tasks.spawn("certificates", tls.watch(RELOAD_EVERY, tasks.token()));
        let truncation = Truncation { raft: raft.clone(), log, policy };
        tasks.spawn("log truncation", truncation.watch(tasks.token()));
        tasks.spawn("sweeper", sweep(listings, attempts, tasks.token()));
        let compared = Clock::watch(Arc::clone(&group), peers_of_clock, tasks.token());
        tasks.spawn("clock", compared);
        let dismissed = CancellationToken::new();
        let following =
            Following { door: door.clone(), reads: reads.clone(), dismissed: dismissed.clone() };
        tasks.spawn("descriptor", following.watch(tasks.token()));
        tasks.spawn("greetings", greet(door.clone(), tasks.token()));
        let duties =
            Duties { door: door.clone(), reads: reads.clone(), proposer: proposer.clone() };
        tasks.spawn("duties", duties.clone().watch(tasks.token()));
        let leading =
            Leading { door: door.clone(), reads, proposer, nodes, health: health.clone() };
        tasks.spawn("leading", leading.watch(tasks.token()));

        // Who came later, into a place that was given it, forms no group: there is one.
        if config.bootstrap && group.records.first.member_key(group.me).is_some() {
            form_group(&raft, &group).await?;
        }
        tracing::info!(member = %group.me, cluster = %group.cluster(), "the member runs");
        Ok(Self {
            raft,
            store,
            door,
            health,
            timing: config.timing,
            me: group.me,
            dismissed,
            tasks,
            stop_serving,
            #[cfg(test)]
            duties,
            server,
            _group: group,
        })
    }

    /// Runs until `shutdown`, then stops in order; or until the member cannot go on.
    pub(crate) async fn until(mut self, shutdown: &Shutdown) -> Result<(), MemberError> {
        let ended = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            () = self.store.poison().struck() => Err(self.poisoned()),
            () = self.dismissed.cancelled() => Err(MemberError::Dismissed { member: self.me }),
            () = self.tasks.cancelled() => {
                let cause = self.tasks.cause().map(|cause| cause.to_string());
                Err(MemberError::Task(cause.unwrap_or_default()))
            }
            reason = raft_stopped(&self.raft) => Err(match self.store.poison().reason() {
                Some(_) => self.poisoned(),
                None => MemberError::Raft(reason),
            }),
            served = &mut self.server => Err(match served {
                Ok(Ok(())) => MemberError::Task("the server ended".to_owned()),
                Ok(Err(error)) => MemberError::Server(error),
                Err(error) => MemberError::Task(error.to_string()),
            }),
        };
        self.health.set_not_serving().await;
        self.door.close();
        match ended {
            Ok(()) => {
                self.step_down().await;
                let synced = self.stop(true).await;
                tracing::info!("the member has stopped");
                synced
            }
            Err(error) => {
                // What went wrong first is what to tell.
                let _ = self.stop(false).await;
                Err(error)
            }
        }
    }

    /// Ends at once, as a crash would, but with its port and its files free.
    #[cfg(test)]
    pub(crate) async fn crash(self) {
        self.server.abort();
        let _ = self.stop(false).await;
    }

    fn poisoned(&self) -> MemberError {
        let reason = self.store.poison().reason().unwrap_or_default().to_owned();
        StoreError::Poisoned(reason).into()
    }

    /// Lets another member take the lead. openraft cannot hand it over, so the leader falls silent and
    /// waits, serving what it still has, until another one leads.
    async fn step_down(&self) {
        let leader = self.raft.metrics().borrow().current_leader;
        let alone = self.door.group.others().is_empty();
        if leader != Some(self.me.as_u64()) || alone {
            return;
        }
        let settings = self.raft.runtime_config();
        settings.heartbeat(false);
        settings.elect(false);
        let me = self.me.as_u64();
        let succeeded = self
            .raft
            .wait(Some(self.timing.step_down))
            .metrics(
                |metrics| metrics.current_leader.is_some_and(|leader| leader != me),
                "step down",
            )
            .await;
        match succeeded {
            Ok(_) => tracing::info!("another member leads"),
            Err(_) => tracing::warn!("no other member took the lead in time"),
        }
    }

    async fn stop(mut self, sync: bool) -> Result<(), MemberError> {
        self.stop_serving.cancel();
        if !self.server.is_finished() {
            // Its own drain timeout bounds it.
            let _ = (&mut self.server).await;
        }
        // An error here says that Raft's task panicked; it has stopped either way.
        let _ = self.raft.shutdown().await;
        self.tasks.cancel();
        if let Err(error) = self.tasks.drain(DRAIN_TIMEOUT).await {
            tracing::warn!(%error, "not all tasks ended in time");
        }
        #[cfg(test)]
        drop(self.duties);
        let Self { raft, store, door, .. } = self;
        drop((raft, door));
        let synced = if sync {
            let store = Arc::clone(&store);
            let synced = tokio::task::spawn_blocking(move || store.sync()).await;
            synced.map_err(|error| MemberError::Task(error.to_string()))?.map_err(MemberError::from)
        } else {
            Ok(())
        };
        close(store).await;
        synced
    }
}

/// Waits until nobody uses the database any more, and closes it.
async fn close(mut store: Arc<Store>) {
    let deadline = Instant::now() + CLOSE_TIMEOUT;
    while Instant::now() < deadline {
        match Arc::try_unwrap(store) {
            Ok(store) => {
                let _ = tokio::task::spawn_blocking(move || drop(store)).await;
                return;
            }
            Err(shared) => store = shared,
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tracing::warn!("the metadata store is still in use");
}

async fn raft_stopped(raft: &Raft) -> String {
    let mut metrics = raft.metrics();
    loop {
        if let Err(error) = &metrics.borrow_and_update().running_state {
            return error.to_string();
        }
        if metrics.changed().await.is_err() {
            return "its task has ended".to_owned();
        }
    }
}

/// What stands on the disk, opened and checked.
struct Opened {
    group: Arc<Group>,
    store: Arc<Store>,
    log: LogStore,
    opaque: Arc<Opaque>,
    tls: Arc<LiveTls>,
}

impl Opened {
    fn open(config: &Config) -> Result<Self, MemberError> {
        let records = Records::read(config)?;
        let cluster = records.cluster;
        let identity = ProcessIdentity::load_or_create(&config.data_dir, ROLE, None)?;
        let path = config.store_dir();
        if identity.cluster() == Some(cluster) && !Store::exists(&path) {
            return Err(MemberError::StoreLost { path, cluster });
        }
        if identity.cluster().is_some() {
            // Refuses the volume of another cluster.
            identity.bind(&cluster)?;
        }
        let tls = LiveTls::load(config.tls.clone(), ClientAuth::Required)?;
        let own = peer_uri_id(&read_certificates(&config.tls.certificate)?);
        if own.as_ref() != Some(identity.peer_id()) {
            let path = config.tls.certificate.clone();
            return Err(MemberError::Certificate { path, expected: identity.peer_id().clone() });
        }
        let opaque = Opaque::read(&config.opaque_setup, &cluster)?;
        tracing::info!(fingerprint = %opaque.fingerprint(), "the secrets for login are read");
        if !Store::exists(&path) {
            // Nothing is written for a cluster this volume does not belong to.
            records.check_named(&identity)?;
        }
        let store = Store::open(&path, &cluster, member_id(&identity))?;
        let latest = latest_descriptor(&*store).map_err(|error| StoreError::Read {
            what: "the descriptor",
            reason: error.to_string(),
        })?;
        let group = Group::new(records, latest, identity)?;
        let log = LogStore::new(Arc::clone(&store))?;
        // Only now: a volume that is bound has a store, or has lost it.
        group.identity.bind(&cluster)?;
        Ok(Self { group: Arc::new(group), store, log, opaque: Arc::new(opaque), tls })
    }
}

fn raft_config(timing: &Timing, group: &Group) -> openraft::Config {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    openraft::Config {
        cluster_name: group.cluster().to_string(),
        heartbeat_interval: ms(timing.heartbeat),
        election_timeout_min: ms(timing.election_min),
        election_timeout_max: ms(timing.election_max),
        max_payload_entries: APPEND_ENTRIES_MAX,
        // When the log is cut, and where, is for `truncation` to say.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        ..openraft::Config::default()
    }
}

/// Makes the members of the descriptor a Raft group, unless there is one.
async fn form_group(raft: &Raft, group: &Group) -> Result<(), MemberError> {
    let members: BTreeSet<u64> =
        group.descriptor().members.iter().map(|member| member.id.as_u64()).collect();
    match raft.initialize(members).await {
        Ok(()) => {
            tracing::info!("the group is formed");
            Ok(())
        }
        Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
        Err(error) => Err(MemberError::Raft(error.to_string())),
    }
}

fn random_number() -> u64 {
    // Without randomness a token of an earlier run could meet a listing of this one, whose content
    // is checked against the request anyway.
    getrandom::u64().unwrap_or(0)
}

async fn sweep(listings: Arc<Listings>, attempts: Arc<Attempts>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(SWEEP_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        listings.sweep();
        attempts.sweep();
    }
}

/// Follows who leads: says whether the member is ready, and forms the cluster where there is none.
struct Leading {
    door: Door,
    reads: Reads,
    proposer: Proposer,
    nodes: Arc<Nodes>,
    health: Health,
}

impl Leading {
    async fn watch(self, stop: CancellationToken) {
        let mut metrics = self.door.leadership.raft.metrics();
        let (mut formed, mut ready) = (false, false);
        loop {
            metrics.borrow_and_update();
            let leader = self.door.leadership.leader();
            let leads = self.door.leadership.is_mine();
            self.nodes.set_leading(leads, Instant::now());
            if !formed {
                formed = self.is_formed().await;
            }
            if !formed && leads {
                self.form().await;
                formed = self.is_formed().await;
            }
            let wanted = formed && leader.is_some();
            if wanted != ready && !stop.is_cancelled() {
                ready = wanted;
                tracing::info!(ready, leads, "readiness changed");
                if ready {
                    self.health.set_serving().await;
                } else {
                    self.health.set_not_serving().await;
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = metrics.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    async fn is_formed(&self) -> bool {
        let view = self.reads.local();
        let found = blocking(move || query::genesis(&view)).await;
        matches!(found, Ok(Ok(Some(_))))
    }

    /// Proposes the first entry of the log. Proposing it twice does no harm.
    async fn form(&self) {
        let records = &self.door.group.records;
        let op = SystemOp::Genesis {
            descriptor: records.signed_descriptor.clone(),
            layout: records.signed_layout.clone(),
        };
        match self.proposer.propose(Command::System(op)).await {
            Ok(_) => tracing::info!(cluster = %records.cluster, "the cluster is formed"),
            Err(error) => tracing::info!(?error, "the cluster could not be formed yet"),
        }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::{copy_dir, simulation};
