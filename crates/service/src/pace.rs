//! Connections that have to get on: how far each one's requests and answers are, and when one that
//! does not move is closed.
//!
//! A [`Traffic`] belongs to one connection. The layer ([`Paced`]) tells it of requests that begin and
//! end, of bytes of messages that are not whole yet, and of answers that wait for the client to take
//! them; the connection's stream asks it [`Traffic::verdict`] now and then. Nothing here reads a
//! frame: what is wrong on the level of HTTP/2 is left to the library.
//!
//! Whose turn it is decides who may be waited for. A handler may think for as long as it likes, and
//! an answer that has nothing to say yet (a watch) may be silent. A client may not stop in the middle
//! of a message, nor leave an answer lying.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Extensions, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::Service;

use crate::server::{ConnectionInfo, ServerLimits};
use crate::status::{status, status_with_retry};

/// What has to move within a time limit for it to begin anew: a client at 2 KiB/s is still waited for.
const MOVED_BYTES_MIN: usize = 64 << 10;
/// One request counts at most this much as unfinished: a message is never larger, and the messages of
/// a stream leave one by one.
const UNFINISHED_BYTES_MAX: usize = 8 << 20;
/// The last bytes of a large part of an answer go by themselves. hyper asks for what comes after a part
/// when it hands the part over, not when the client has room for it; but it hands the next part over
/// only once there is room behind all before it. So who asks for more after the tail has taken the rest.
const TAIL_BYTES: usize = 16;
/// Parts up to this size go whole: what may be left behind of them is not worth another frame.
const WHOLE_BYTES_MAX: usize = 16 << 10;
/// What a caller is told to wait when too many messages are unfinished.
const OVERLOAD_PAUSE: Duration = Duration::from_millis(200);

/// What a connection deserves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It gets on.
    GoOn,
    /// It is not used; closing it harms nobody.
    Idle,
    /// The client leaves answers lying.
    Stalled,
    /// It sends frame after frame and nothing comes of them.
    Useless,
}

/// Bytes of messages that are not whole yet, of a whole server.
#[derive(Debug, Default)]
pub(crate) struct Unfinished(AtomicUsize);

/// How far the requests of one connection are.
#[derive(Debug)]
pub(crate) struct Traffic {
    limits: ServerLimits,
    unfinished_of_all: Arc<Unfinished>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The number of the next request.
    next: u64,
    under_way: usize,
    /// Since when no request is under way.
    quiet_since: Instant,
    /// Answers that the client has to take, by the number of their request, since when.
    untaken: BTreeMap<u64, Instant>,
    unfinished: usize,
    /// Bytes received since a request last got on.
    useless: usize,
    /// Bytes sent since `sent_since`.
    sent: usize,
    sent_since: Instant,
}

impl Traffic {
    pub(crate) fn new(limits: ServerLimits, unfinished_of_all: Arc<Unfinished>) -> Arc<Self> {
        let now = Instant::now();
        let state = State {
            next: 0,
            under_way: 0,
            quiet_since: now,
            untaken: BTreeMap::new(),
            unfinished: 0,
            useless: 0,
            sent: 0,
            sent_since: now,
        };
        Arc::new(Self { limits, unfinished_of_all, state: Mutex::new(state) })
    }

    /// How often a connection is to be judged, so that no limit is overstepped by more than a quarter.
    pub(crate) fn judge_every(&self) -> Duration {
        let ServerLimits { idle_timeout, answer_stall_timeout, .. } = self.limits;
        idle_timeout.min(answer_stall_timeout) / 4
    }

    pub(crate) fn verdict(&self) -> Verdict {
        let now = Instant::now();
        let mut state = self.state();
        if state.under_way == 0 {
            let quiet = now.duration_since(state.quiet_since);
            return if quiet >= self.limits.idle_timeout { Verdict::Idle } else { Verdict::GoOn };
        }
        let stall = self.limits.answer_stall_timeout;
        if state.sent >= MOVED_BYTES_MIN {
            (state.sent, state.sent_since) = (0, now);
        }
        let moves = now.duration_since(state.sent_since) < stall;
        let longest = state.untaken.values().map(|since| now.duration_since(*since)).max();
        match longest.unwrap_or_default() {
            waited if waited >= self.limits.answer_timeout => Verdict::Stalled,
            waited if waited >= stall && !moves => Verdict::Stalled,
            _ => Verdict::GoOn,
        }
    }

    /// Bytes came, of whatever kind.
    pub(crate) fn received(&self, bytes: usize) -> Verdict {
        let mut state = self.state();
        state.useless = state.useless.saturating_add(bytes);
        if state.useless > self.limits.useless_bytes_max { Verdict::Useless } else { Verdict::GoOn }
    }

    /// Bytes left, of whatever kind.
    pub(crate) fn sent(&self, bytes: usize) {
        let mut state = self.state();
        state.sent = state.sent.saturating_add(bytes);
    }

    fn begin(self: &Arc<Self>) -> UnderWay {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.under_way += 1;
        state.useless = 0;
        UnderWay { traffic: Arc::clone(self), number }
    }

    /// Counts bytes of a message that is not whole yet, if there is room for them.
    fn hold(&self, bytes: usize) -> bool {
        let mut state = self.state();
        state.useless = 0;
        let of_this = state.unfinished + bytes;
        let of_all = self.unfinished_of_all.0.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let fits = of_this <= self.limits.unfinished_bytes_per_connection_max
            && of_all <= self.limits.unfinished_bytes_max;
        if fits {
            state.unfinished = of_this;
        } else {
            self.unfinished_of_all.0.fetch_sub(bytes, Ordering::Relaxed);
        }
        fits
    }

    fn release(&self, bytes: usize) {
        self.state().unfinished -= bytes;
        self.unfinished_of_all.0.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Nothing panics while it holds the lock.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that has begun and not ended.
struct UnderWay {
    traffic: Arc<Traffic>,
    number: u64,
}

impl UnderWay {
    /// A part of the answer is there for the client to take.
    fn given(&self) {
        let now = Instant::now();
        let mut state = self.traffic.state();
        if state.untaken.is_empty() {
            (state.sent, state.sent_since) = (0, now);
        }
        state.untaken.insert(self.number, now);
    }

    /// The client has taken all there was.
    fn taken(&self) {
        let mut state = self.traffic.state();
        state.useless = 0;
        state.untaken.remove(&self.number);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.traffic.state();
        state.untaken.remove(&self.number);
        state.under_way -= 1;
        if state.under_way == 0 {
            state.quiet_since = Instant::now();
        }
    }
}

/// What an answer holds until the client has taken it, such as room in a bound of what is under way.
#[derive(Clone)]
struct Held(#[expect(dead_code, reason = "it is held, not looked at")] Arc<dyn Any + Send + Sync>);

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Held")
    }
}

/// Keeps `held` until the client has taken the whole answer these extensions belong to, or is gone.
/// Without it a permit is given back when the handler returns, while the answer's bytes lie in memory
/// for as long as the client likes.
pub fn hold_until_taken(answer: &mut Extensions, held: impl Any + Send + Sync) {
    answer.insert(Held(Arc::new(held)));
}

/// A service whose requests and answers have to get on.
#[derive(Clone, Debug)]
pub(crate) struct Paced<S> {
    inner: S,
}

impl<S> Paced<S> {
    pub(crate) const fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S> Service<Request<Body>> for Paced<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let connection = request.extensions().get::<ConnectionInfo>();
        let Some(traffic) = connection.map(|info| Arc::clone(info.traffic())) else {
            return Box::pin(self.inner.call(request));
        };
        let under_way = traffic.begin();
        let answered = self.inner.call(request.map(|body| Body::new(Arriving::new(body, traffic))));
        Box::pin(async move {
            let mut answer = answered.await?;
            let held = answer.extensions_mut().remove::<Held>();
            Ok(answer.map(|body| Body::new(Leaving::new(body, under_way, held))))
        })
    }
}

/// A request's message on its way in.
struct Arriving {
    inner: Body,
    traffic: Arc<Traffic>,
    unfinished: usize,
    /// Bytes since the client was first waited for.
    moved: usize,
    /// Runs while the client is waited for.
    limit: Option<Pin<Box<Sleep>>>,
}

impl Arriving {
    const fn new(inner: Body, traffic: Arc<Traffic>) -> Self {
        Self { inner, traffic, unfinished: 0, moved: 0, limit: None }
    }

    fn arrived(&mut self, bytes: usize) -> Result<(), Status> {
        self.moved = self.moved.saturating_add(bytes);
        if self.moved >= MOVED_BYTES_MIN {
            (self.moved, self.limit) = (0, None);
        }
        let more = bytes.min(UNFINISHED_BYTES_MAX - self.unfinished);
        if !self.traffic.hold(more) {
            let text = "too many messages are on their way in here; try again in a moment";
            let (code, reason) = (Code::ResourceExhausted, "OVERLOADED");
            return Err(status_with_retry(code, reason, text, &[], OVERLOAD_PAUSE));
        }
        self.unfinished += more;
        Ok(())
    }
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                Poll::Ready(Some(self.arrived(bytes).map(|()| frame)))
            }
            Poll::Ready(other) => Poll::Ready(other),
            Poll::Pending => {
                let timeout = self.traffic.limits.arrival_timeout;
                let limit = self.limit.get_or_insert_with(|| Box::pin(sleep(timeout)));
                ready!(limit.as_mut().poll(cx));
                let text = "the request did not arrive in time";
                Poll::Ready(Some(Err(status(Code::DeadlineExceeded, "TOO_SLOW", text, &[]))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.traffic.release(self.unfinished);
    }
}

/// An answer on its way out. It is asked for more only when the client has room for more.
struct Leaving {
    inner: Body,
    /// The tail of the part that was given last.
    tail: Option<Bytes>,
    under_way: UnderWay,
    _held: Option<Held>,
}

impl Leaving {
    fn new(inner: Body, under_way: UnderWay, held: Option<Held>) -> Self {
        under_way.given();
        Self { inner, tail: None, under_way, _held: held }
    }
}

impl HttpBody for Leaving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(tail) = self.tail.take() {
            return Poll::Ready(Some(Ok(Frame::data(tail))));
        }
        self.under_way.taken();
        let Some(part) = ready!(Pin::new(&mut self.inner).poll_frame(cx)) else {
            return Poll::Ready(None);
        };
        self.under_way.given();
        Poll::Ready(Some(part.map(|part| match part.into_data() {
            Ok(mut head) if head.len() > WHOLE_BYTES_MAX => {
                self.tail = Some(head.split_off(head.len() - TAIL_BYTES));
                Frame::data(head)
            }
            Ok(whole) => Frame::data(whole),
            Err(trailers) => trailers,
        })))
    }

    fn is_end_stream(&self) -> bool {
        self.tail.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
