//! The simulated network: a connection is a pipe in memory with gRPC on it, and between the pipe and the
//! services of the member at its end stands what happens to messages on their way.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use coffer_history::Numbers;
use coffer_model::id::MemberId;
use coffer_service::channel::Channel;
use coffer_service::peer::PeerId;
use http::{Request, Response};
use http_body::Frame;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio::sync::oneshot;
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::body::Body;
use tonic::transport::server::Connected;
use tonic::transport::{Endpoint, Server};
use tower::{Service, ServiceExt as _, service_fn};

use super::pause;

/// What a pipe holds.
const PIPE_BYTES: usize = 256 << 10;
/// How often a message that is held back looks whether it can go on.
const HELD_LOOK: Duration = Duration::from_millis(20);
/// The method whose messages come in a stream; they fare all together.
const STREAM: &str = "/StreamSnapshot";

/// Somebody on the network.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Host {
    Member(usize),
    Client(usize),
}

/// How messages fare, in cases of a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weather {
    /// Never arrive, and nobody says so.
    pub(super) lost: u64,
    /// End their connection instead of arriving.
    pub(super) reset: u64,
    /// Arrive twice.
    pub(super) doubled: u64,
    /// Take up to `slow_ms` longer, so that others overtake them.
    pub(super) slow: u64,
    pub(super) slow_ms: u64,
}

type Error = Box<dyn std::error::Error + Send + Sync>;
type Calls = tower::util::BoxCloneSyncService<Request<Body>, Response<Body>, Error>;

/// A member that can be called, for as long as it lives.
#[derive(Clone)]
struct Served {
    calls: Calls,
    alive: CancellationToken,
}

/// The network.
pub(super) struct Net {
    hosts: BTreeMap<MemberId, Host>,
    peers: BTreeMap<Host, PeerId>,
    state: Mutex<State>,
}

struct State {
    /// Each way between two hosts draws from numbers of its own, made of this and the hosts.
    seed: u64,
    ways: BTreeMap<(Host, Host), Numbers>,
    served: BTreeMap<Host, Served>,
    blocked: BTreeSet<(Host, Host)>,
    weather: Weather,
    connections: Vec<(Host, Host, CancellationToken)>,
    met: Met,
}

/// How often what was met.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Met {
    pub(super) messages: u64,
    pub(super) lost: u64,
    pub(super) reset: u64,
    pub(super) doubled: u64,
    pub(super) slow: u64,
    pub(super) snapshots: u64,
}

/// What happens to one message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Arrives,
    Lost,
    Resets,
}

impl Net {
    pub(super) fn new(mut numbers: Numbers, members: &[(MemberId, PeerId)]) -> Arc<Self> {
        let members = members.iter().enumerate();
        let gateway = PeerId::new("gateway", [9; 16]).unwrap();
        let clients = (0..super::clients::CLIENTS + 2).map(|n| (Host::Client(n), gateway.clone()));
        let state = State {
            seed: numbers.next_number(),
            ways: BTreeMap::new(),
            served: BTreeMap::new(),
            blocked: BTreeSet::new(),
            weather: Weather::default(),
            connections: Vec::new(),
            met: Met::default(),
        };
        Arc::new(Self {
            hosts: members.clone().map(|(n, (id, _))| (*id, Host::Member(n))).collect(),
            peers: members
                .map(|(n, (_, peer))| (Host::Member(n), peer.clone()))
                .chain(clients)
                .collect(),
            state: Mutex::new(state),
        })
    }

    pub(super) fn host_of(&self, member: MemberId) -> Option<Host> {
        self.hosts.get(&member).copied()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// From now on `host` answers calls, until it dies.
    pub(super) fn serve<S>(&self, host: Host, calls: S, alive: CancellationToken)
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
    {
        let calls = Calls::new(calls.map_err(|never| match never {}));
        self.state().served.insert(host, Served { calls, alive });
    }

    pub(super) fn forget(&self, host: Host) {
        self.state().served.remove(&host);
    }

    pub(super) fn set_weather(&self, weather: Weather) {
        self.state().weather = weather;
    }

    /// What goes these ways does not arrive. With `cut` connections both ways break as well; without
    /// it nobody notices but by silence.
    pub(super) fn block(&self, ways: &[(Host, Host)], cut: bool) {
        let mut state = self.state();
        state.blocked.extend(ways);
        if cut {
            for (from, to, connection) in &state.connections {
                if ways.contains(&(*from, *to)) || ways.contains(&(*to, *from)) {
                    connection.cancel();
                }
            }
        }
    }

    pub(super) fn unblock(&self, ways: &[(Host, Host)]) {
        self.state().blocked.retain(|way| !ways.contains(way));
    }

    pub(super) fn calm(&self) {
        let mut state = self.state();
        state.blocked.clear();
        state.weather = Weather::default();
    }

    pub(super) fn met(&self) -> Met {
        self.state().met
    }

    fn is_blocked(&self, from: Host, to: Host) -> bool {
        self.state().blocked.contains(&(from, to))
    }

    /// Draws from the numbers of one way.
    fn draw<T>(&self, from: Host, to: Host, draw: impl FnOnce(&mut Numbers, &Weather) -> T) -> T {
        let State { seed, ways, weather, .. } = &mut *self.state();
        let place = |host| match host {
            Host::Member(n) => n as u64,
            Host::Client(n) => 100 + n as u64,
        };
        let number = 1 + place(from) * 1000 + place(to);
        let way = ways.entry((from, to)).or_insert_with(|| Numbers::of(*seed ^ number).split());
        draw(way, weather)
    }

    /// Takes a message as far as it goes.
    async fn carry(&self, from: Host, to: Host) -> Fate {
        let (fate, later_ms, is_slow, is_held) = self.draw(from, to, |numbers, weather| {
            let fate = match numbers.below(1000) {
                dice if dice < weather.lost => Fate::Lost,
                dice if dice < weather.lost + weather.reset => Fate::Resets,
                _ => Fate::Arrives,
            };
            let is_slow = numbers.below(1000) < weather.slow;
            let (near, far) = (numbers.below(4), numbers.below(weather.slow_ms.max(1)));
            let later_ms = if is_slow { near + far } else { near };
            (fate, later_ms, is_slow, numbers.below(2) == 0)
        });
        pause(later_ms).await;
        // What is blocked is lost, or arrives when the way is free again.
        let fate = if self.is_blocked(from, to) && !is_held {
            Fate::Lost
        } else {
            while self.is_blocked(from, to) {
                sleep(HELD_LOOK).await;
            }
            fate
        };
        let met = &mut self.state().met;
        met.messages += 1;
        met.slow += u64::from(is_slow);
        met.lost += u64::from(fate == Fate::Lost);
        met.reset += u64::from(fate == Fate::Resets);
        fate
    }

    fn doubles(&self, from: Host, to: Host) -> Option<u64> {
        let (dice, ms) = self.draw(from, to, |numbers, weather| {
            (numbers.below(1000) < weather.doubled, numbers.below(weather.slow_ms.max(50)))
        });
        if dice {
            self.state().met.doubled += 1;
        }
        dice.then_some(ms)
    }
}

/// From one host to another.
#[derive(Clone)]
pub(crate) struct Line {
    net: Arc<Net>,
    from: Host,
    from_alive: CancellationToken,
    to: Host,
}

impl Line {
    pub(super) fn new(net: &Arc<Net>, from: Host, from_alive: CancellationToken, to: Host) -> Self {
        Self { net: Arc::clone(net), from, from_alive, to }
    }

    /// A channel on this line, connected when it is used.
    pub(crate) fn channel(self, endpoint: Endpoint) -> Channel {
        let connector = service_fn(move |_: http::Uri| {
            let line = self.clone();
            async move { line.connect().await.map(TokioIo::new) }
        });
        endpoint.connect_with_connector_lazy(connector).into()
    }

    async fn connect(self) -> io::Result<Wire> {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        // The first message of a connection takes as long as others, and is held where they are; who
        // connects gives up by itself.
        pause(self.net.draw(self.from, self.to, |numbers, _| numbers.below(4))).await;
        while self.net.is_blocked(self.from, self.to) || self.net.is_blocked(self.to, self.from) {
            sleep(HELD_LOOK).await;
        }
        if self.from_alive.is_cancelled() {
            return Err(refused());
        }
        let served = self.net.state().served.get(&self.to).cloned().ok_or_else(refused)?;
        let cut = CancellationToken::new();
        {
            let mut state = self.net.state();
            state.connections.retain(|(.., connection)| !connection.is_cancelled());
            state.connections.push((self.from, self.to, cut.clone()));
        }
        let (near, far) = duplex(PIPE_BYTES);
        let ends = [self.from_alive.clone(), served.alive.clone(), cut.clone()];
        let (near, far) = (Wire::new(near, &ends), Wire::new(far, &ends));
        let calls = Arrivals { line: self, served, cut };
        let incoming = tokio_stream::once(Ok::<_, Infallible>(far));
        tokio::spawn(Server::builder().serve_with_incoming(calls, incoming));
        Ok(near)
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} to {:?}", self.from, self.to)
    }
}

/// The calls that arrive on one connection.
#[derive(Clone)]
struct Arrivals {
    line: Line,
    served: Served,
    cut: CancellationToken,
}

impl Service<Request<Body>> for Arrivals {
    type Response = Response<Body>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (answer, answered) = oneshot::channel();
        // A message that is on its way arrives, also when its sender has given up or is dead.
        tokio::spawn(self.clone().take(request, answer));
        Box::pin(async move {
            match answered.await {
                Ok(answer) => answer,
                // It is lost, and nobody says so.
                Err(_) => std::future::pending().await,
            }
        })
    }
}

impl Arrivals {
    async fn take(
        self,
        request: Request<Body>,
        answer: oneshot::Sender<Result<Response<Body>, Error>>,
    ) {
        let Line { net, from, to, .. } = &self.line;
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(net.peers[from].clone());
        let body = if parts.uri.path().ends_with(STREAM) {
            net.state().met.snapshots += 1;
            body
        } else {
            let Ok(bytes) = whole(body).await else { return };
            if let Some(later) = net.doubles(*from, *to) {
                let twin = Request::from_parts(parts.clone(), Body::new(Once(Some(bytes.clone()))));
                let (line, served) = (self.line.clone(), self.served.clone());
                tokio::spawn(async move {
                    pause(later).await;
                    if matches!(line.net.carry(line.from, line.to).await, Fate::Arrives) {
                        let _ = handle(served, twin).await;
                    }
                });
            }
            Body::new(Once(Some(bytes)))
        };
        match net.carry(*from, *to).await {
            Fate::Arrives => {}
            Fate::Lost => return,
            Fate::Resets => return self.cut.cancel(),
        }
        let Some(answered) = handle(self.served.clone(), Request::from_parts(parts, body)).await
        else {
            return;
        };
        match net.carry(*to, *from).await {
            Fate::Arrives => {
                // Who asked may have given up.
                let _ = answer.send(answered);
            }
            Fate::Lost => {}
            Fate::Resets => self.cut.cancel(),
        }
    }
}

/// Has a call handled; none if the member dies meanwhile.
async fn handle(served: Served, request: Request<Body>) -> Option<Result<Response<Body>, Error>> {
    let Served { calls, alive } = served;
    tokio::select! {
        biased;
        () = alive.cancelled() => None,
        answer = calls.oneshot(request) => Some(answer),
    }
}

/// All bytes of a message.
async fn whole(mut body: Body) -> Result<Bytes, tonic::Status> {
    use http_body::Body as _;
    let mut bytes = BytesMut::new();
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if let Ok(data) = frame?.into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes.freeze())
}

/// A message that is all there.
struct Once(Option<Bytes>);

impl http_body::Body for Once {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// One end of a pipe that breaks when a host at either end dies, or the connection is cut.
struct Wire {
    pipe: DuplexStream,
    ends: Vec<CancellationToken>,
    ended: Vec<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Wire {
    fn new(pipe: DuplexStream, ends: &[CancellationToken]) -> Self {
        let ended = ends.iter().map(|end| Box::pin(end.clone().cancelled_owned())).collect();
        Self { pipe, ends: ends.to_vec(), ended }
    }

    fn broken(&self) -> Option<io::Error> {
        let is_broken = self.ends.iter().any(CancellationToken::is_cancelled);
        is_broken.then(|| io::ErrorKind::ConnectionReset.into())
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        for end in &mut self.ended {
            if end.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
        }
        Pin::new(&mut self.pipe).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.broken() {
            Some(error) => Poll::Ready(Err(error)),
            None => Pin::new(&mut self.pipe).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

impl Connected for Wire {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}
