//! Batches that form by themselves: while calls are under way, what arrives meanwhile gathers, and the
//! next call takes as much of it as fits. A lone item goes at once; under load batches become full.
//!
//! One task per batcher owns the queue and the calls. It ends when the last handle is dropped.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::error::ClientError;

/// How many items may wait in the channel; further senders wait themselves.
const QUEUE_MAX: usize = 1024;

/// The bounds of a batch and of the calls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The most items in one call.
    pub(crate) items_max: usize,
    /// The most bytes in one call; a single larger item goes alone.
    pub(crate) bytes_max: usize,
    /// With calls under way, a batch below this many bytes waits for more.
    pub(crate) eager_bytes: usize,
    /// The most calls under way.
    pub(crate) calls_max: usize,
}

/// What of an item counts for planning.
pub(crate) struct Weight {
    /// Only items of one group go together.
    pub(crate) group: Bytes,
    /// What the item weighs.
    pub(crate) bytes: usize,
}

/// Which items of a queue the next call takes, by position; none if it is better to wait. Items of one
/// group keep their order.
pub(crate) fn plan(limits: &Limits, queue: &[&Weight], calls: usize) -> Vec<usize> {
    let Some(first) = queue.first() else { return Vec::new() };
    if calls >= limits.calls_max {
        return Vec::new();
    }
    let (mut taken, mut bytes, mut full) = (Vec::new(), 0, false);
    for (at, weight) in queue.iter().enumerate() {
        if weight.group != first.group {
            continue;
        }
        let fits = taken.is_empty() || bytes + weight.bytes <= limits.bytes_max;
        if !fits || taken.len() == limits.items_max {
            full = true;
            break;
        }
        taken.push(at);
        bytes += weight.bytes;
    }
    let worth_it = full || calls == 0 || bytes >= limits.eager_bytes;
    if worth_it { taken } else { Vec::new() }
}

struct Waiting<I, O> {
    weight: Weight,
    item: I,
    reply: oneshot::Sender<Result<O, ClientError>>,
}

/// The answer to one item, on its way.
pub(crate) struct Pending<O>(oneshot::Receiver<Result<O, ClientError>>);

impl<O> Pending<O> {
    /// Waits for the answer.
    pub(crate) async fn answer(self) -> Result<O, ClientError> {
        self.0.await.unwrap_or(Err(ClientError::Stopped))
    }
}

/// Gathers items of type `I` into calls that give an `O` for each.
pub(crate) struct Batcher<I, O> {
    queue: mpsc::Sender<Waiting<I, O>>,
}

impl<I: Send + 'static, O: Send + 'static> Batcher<I, O> {
    /// Starts a batcher; `call` answers one batch of one group, item by item in order, or fails it as
    /// a whole.
    pub(crate) fn start<C, F>(limits: Limits, call: C) -> Self
    where
        C: Fn(Bytes, Vec<I>) -> F + Send + 'static,
        F: Future<Output = Result<Vec<Result<O, ClientError>>, ClientError>> + Send + 'static,
    {
        let (queue, items) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(run(limits, items, call));
        Self { queue }
    }

    /// Hands in an item. Items handed in one after the other are taken in that order.
    pub(crate) async fn hand_in(&self, weight: Weight, item: I) -> Result<Pending<O>, ClientError> {
        let (reply, answer) = oneshot::channel();
        let waiting = Waiting { weight, item, reply };
        self.queue.send(waiting).await.map_err(|_| ClientError::Stopped)?;
        Ok(Pending(answer))
    }

    /// Hands in an item and waits for its answer.
    pub(crate) async fn answer(&self, weight: Weight, item: I) -> Result<O, ClientError> {
        self.hand_in(weight, item).await?.answer().await
    }
}

async fn run<I, O, C, F>(limits: Limits, mut items: mpsc::Receiver<Waiting<I, O>>, call: C)
where
    I: Send + 'static,
    O: Send + 'static,
    C: Fn(Bytes, Vec<I>) -> F + Send + 'static,
    F: Future<Output = Result<Vec<Result<O, ClientError>>, ClientError>> + Send + 'static,
{
    let mut queue: VecDeque<Waiting<I, O>> = VecDeque::new();
    let mut calls = JoinSet::new();
    let mut open = true;
    while open || !queue.is_empty() || !calls.is_empty() {
        loop {
            let weights: Vec<&Weight> = queue.iter().map(|waiting| &waiting.weight).collect();
            let next = plan(&limits, &weights, calls.len());
            let batch = take(&mut queue, &next);
            let Some(first) = batch.first() else { break };
            let group = first.weight.group.clone();
            let (items, replies): (Vec<I>, Vec<_>) =
                batch.into_iter().map(|waiting| (waiting.item, waiting.reply)).unzip();
            let answers = call(group, items);
            calls.spawn(async move { reply_all(replies, answers.await) });
        }
        tokio::select! {
            item = items.recv(), if open && queue.len() < QUEUE_MAX => match item {
                Some(item) => {
                    queue.push_back(item);
                    // What has arrived together goes together.
                    while queue.len() < QUEUE_MAX && let Ok(item) = items.try_recv() {
                        queue.push_back(item);
                    }
                }
                None => open = false,
            },
            Some(_) = calls.join_next(), if !calls.is_empty() => {}
        }
    }
}

/// Takes the items at these ascending positions out of the queue.
fn take<T>(queue: &mut VecDeque<T>, positions: &[usize]) -> Vec<T> {
    let in_front = positions.iter().enumerate().all(|(at, position)| at == *position);
    if in_front {
        return queue.drain(..positions.len()).collect();
    }
    let mut taken = Vec::with_capacity(positions.len());
    let mut rest = VecDeque::with_capacity(queue.len());
    for (at, item) in queue.drain(..).enumerate() {
        if positions.binary_search(&at).is_ok() {
            taken.push(item);
        } else {
            rest.push_back(item);
        }
    }
    *queue = rest;
    taken
}

fn reply_all<O>(
    replies: Vec<oneshot::Sender<Result<O, ClientError>>>,
    answers: Result<Vec<Result<O, ClientError>>, ClientError>,
) {
    // Whoever has gone away needs no answer.
    match answers {
        Ok(answers) => {
            for (reply, answer) in replies.into_iter().zip(answers) {
                let _ = reply.send(answer);
            }
        }
        Err(error) => {
            for reply in replies {
                let _ = reply.send(Err(error.clone()));
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    const LIMITS: Limits = Limits { items_max: 3, bytes_max: 100, eager_bytes: 50, calls_max: 2 };

    fn weight(group: &'static str, bytes: usize) -> Weight {
        Weight { group: Bytes::from_static(group.as_bytes()), bytes }
    }

    #[test]
    fn batches_are_planned_within_their_bounds() {
        type Row<'a> = (&'a [(&'a str, usize)], usize, &'a [usize]);
        let rows: &[Row<'_>] = &[
            (&[], 0, &[]),
            // A lone item goes at once, but waits while calls are under way.
            (&[("a", 1)], 0, &[0]),
            (&[("a", 1)], 1, &[]),
            (&[("a", 60)], 1, &[0]),
            (&[("a", 60)], 2, &[]),
            // Full by items, full by bytes.
            (&[("a", 1), ("a", 1), ("a", 1), ("a", 1)], 1, &[0, 1, 2]),
            (&[("a", 40), ("a", 40), ("a", 40)], 1, &[0, 1]),
            (&[("a", 500), ("a", 1)], 1, &[0]),
            // Order within a group is kept: nothing overtakes what did not fit.
            (&[("a", 80), ("a", 40), ("a", 1)], 0, &[0]),
            // Other groups wait for their own call.
            (&[("a", 1), ("b", 1), ("a", 1)], 0, &[0, 2]),
        ];
        for (queue, calls, expected) in rows {
            let weights: Vec<Weight> = queue
                .iter()
                .map(|(group, bytes)| Weight {
                    group: group.as_bytes().to_vec().into(),
                    bytes: *bytes,
                })
                .collect();
            let queue: Vec<&Weight> = weights.iter().collect();
            assert_eq!(plan(&LIMITS, &queue, *calls), *expected, "{calls}");
        }
    }

    #[tokio::test]
    async fn every_item_gets_its_own_answer_in_order_within_a_group() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let limits = Limits { calls_max: 1, ..LIMITS };
        let batcher = Batcher::start(limits, move |_, items: Vec<u32>| {
            log.lock().unwrap().extend(items.clone());
            async move {
                tokio::task::yield_now().await;
                if items.contains(&13) {
                    return Err(ClientError::NotLoggedIn);
                }
                Ok(items.into_iter().map(|item| Ok(item * 2)).collect())
            }
        });
        let mut pending = Vec::new();
        for item in 0..50u32 {
            pending.push((item, batcher.hand_in(weight("a", 30), item).await.unwrap()));
        }
        let mut failed = 0;
        for (item, answer) in pending {
            match answer.answer().await {
                Ok(answer) => assert_eq!(answer, item * 2),
                Err(_) => failed += 1,
            }
        }
        assert!((1..=3).contains(&failed));
        assert_eq!(*seen.lock().unwrap(), (0..50).collect::<Vec<u32>>());
    }
}
