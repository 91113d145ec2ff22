//! Tests of forgetting: what nothing needs goes, and nothing that is promised or named.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use super::*;

/// A store with chunks that are promised for an hour and noted as surplus.
fn with_surplus(count: u64) -> (Opened<Platter>, TempDir, Platter, Vec<SealedChunk<Bytes>>) {
    let (platter, index) = (Platter::default(), tempfile::tempdir().unwrap());
    let opened = open(platter.clone(), &index.path().join("index"), SMALL);
    let chunks: Vec<_> = (0..count).map(|at| chunk(at, 100)).collect();
    opened.put(&chunks, START.plus_ms(HOUR)).unwrap();
    opened.store.take_up(&[], &ids(&chunks), 1, None).unwrap();
    (opened, index, platter, chunks)
}

fn forget(opened: &Opened<Platter>, chunks: &[SealedChunk<Bytes>], released: LogTime) -> u64 {
    let released = ids(chunks).into_iter().map(|id| (id, released)).collect();
    wait(opened.store.forget(released)).unwrap()
}

#[test]
fn what_is_surplus_and_promised_no_longer_is_forgotten_for_good() {
    let (opened, dir, platter, chunks) = with_surplus(6);
    let after = START.plus_ms(HOUR + 1);
    // To the end of the promise, and not beyond.
    assert_eq!(forget(&opened, &chunks, START.plus_ms(HOUR)), 0);
    // Renewed, written anew, and not surplus.
    opened.extend(&[chunks[0].id()], START.plus_ms(3 * HOUR)).unwrap();
    opened.put(&chunks[1..2], START.plus_ms(3 * HOUR)).unwrap();
    opened.store.take_up(&[chunks[2].id()], &[], 1, None).unwrap();
    assert_eq!(forget(&opened, &chunks, after), 3);
    assert_eq!(forget(&opened, &chunks, after), 0);
    let check = |opened: &Opened<Platter>| {
        opened.assert_has(&chunks[..3]);
        for gone in &chunks[3..] {
            assert_eq!(opened.store.read(&gone.id()).unwrap(), None);
        }
        assert_eq!(opened.store.totals(), Totals { shards: 3, bytes: 300 });
        assert_eq!(opened.missing(), []);
        let surplus: BTreeSet<_> = ids(&chunks[..2]).into_iter().collect();
        let noted = opened.store.index().surplus(None, 10).unwrap();
        assert_eq!(noted.into_iter().collect::<BTreeSet<_>>(), surplus);
    };
    check(&opened);
    // As the power leaves it now.
    crate::kit::copy(&dir.path().join("index"), &dir.path().join("crashed"));
    opened.close();
    let opened = open(platter, &dir.path().join("crashed"), SMALL);
    check(&opened);
    // It comes again, as something new.
    let receipts = opened.put(&chunks[3..], START).unwrap();
    assert!(receipts.iter().all(|receipt| receipt.held.keep_until == START));
    opened.assert_has(&chunks);
    opened.close();
}

/// What was found damaged and is needed no more is not fetched again.
#[test]
fn what_is_quarantined_is_forgotten_like_anything_else() {
    let (opened, _dir, platter, chunks) = with_surplus(2);
    let location = opened.store.index().location(&ShardKey::replica(chunks[0].id())).unwrap();
    platter.rot(0, location.unwrap().end() - 1);
    assert_eq!(opened.store.read(&chunks[0].id()).unwrap(), None);
    assert_eq!(opened.missing(), [chunks[0].id()]);
    assert_eq!(forget(&opened, &chunks[..1], START.plus_ms(HOUR)), 0);
    assert_eq!(forget(&opened, &chunks[..1], START.plus_ms(2 * HOUR)), 1);
    assert_eq!(opened.missing(), []);
    assert_eq!(opened.store.totals().shards, 1);
    opened.close();
}

/// Goal: a chunk that a commit names after the members gave leave to forget it is not lost from sight.
/// Method: the feed names it before and after it is forgotten.
#[test]
fn what_the_feed_names_meanwhile_is_kept_or_noted_as_missing() {
    let (opened, _dir, _, chunks) = with_surplus(2);
    let late = START.plus_ms(2 * HOUR);
    let named = |at: usize| opened.store.take_up(&[chunks[at].id()], &[], 1, Some(9)).unwrap();
    assert_eq!(named(0), []);
    assert_eq!(forget(&opened, &chunks, late), 1);
    assert_eq!(named(1), [chunks[1].id()]);
    opened.assert_has(&chunks[..1]);
    assert_eq!(opened.missing(), [chunks[1].id()]);
    opened.close();
}

#[test]
fn a_poisoned_store_forgets_nothing() {
    let (opened, _dir, platter, chunks) = with_surplus(1);
    platter.fail(Some(Fault::Sync));
    opened.put(&[chunk(9, 10)], START).unwrap_err();
    let released = vec![(chunks[0].id(), START.plus_ms(2 * HOUR))];
    let refused = wait(opened.store.forget(released)).unwrap_err();
    assert!(matches!(refused, StoreError::Poisoned(_)), "{refused}");
    opened.assert_has(&chunks);
    opened.close();
}

/// Goal: no chunk is ever forgotten that a receipt still covers. Method: threads that put and renew the
/// same few chunks, with promises around the time that others release them at, which rises all the
/// while; whoever has a receipt looks whether the chunk is there, and then what was released.
#[test]
fn no_receipt_is_broken_however_puts_and_renewals_race_with_forgetting() {
    let (opened, _dir, _, chunks) = with_surplus(8);
    let released = AtomicU64::new(START.unix_ms());
    let promised: Mutex<BTreeMap<ChunkId, LogTime>> = Mutex::default();
    let counts = [const { AtomicU64::new(0) }; 2];
    let holds = |receipt: &Receipt| {
        let id = receipt.held.shard.chunk;
        let is_here = opened.store.has(&id).unwrap();
        // In this order: what was released later can only have been forgotten later.
        let until = LogTime::from_unix_ms(released.load(Ordering::SeqCst));
        assert!(is_here || until > receipt.held.keep_until, "forgotten before its time");
        let mut promised = promised.lock().unwrap();
        let longest = promised.entry(id).or_insert(LogTime::ZERO);
        *longest = (*longest).max(receipt.held.keep_until);
    };
    thread::scope(|scope| {
        for seed in 1..=3_u64 {
            let (opened, chunks, released) = (&opened, &chunks, &released);
            let (holds, counts) = (&holds, &counts);
            scope.spawn(move || {
                let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                while released.load(Ordering::SeqCst) < START.plus_ms(400 * HOUR).unix_ms() {
                    let chunk = &chunks[usize::try_from(dice.below(8)).unwrap()];
                    let now = LogTime::from_unix_ms(released.load(Ordering::SeqCst));
                    let until = now.plus_ms(dice.below(3 * HOUR));
                    let receipts = if dice.below(2) == 0 {
                        opened.put(std::slice::from_ref(chunk), until).unwrap()
                    } else {
                        let renewed = opened.extend(&[chunk.id()], until).unwrap();
                        renewed.into_iter().flatten().collect()
                    };
                    receipts.iter().for_each(holds);
                    counts[0].fetch_add(receipts.len() as u64, Ordering::Relaxed);
                }
            });
        }
        let mut dice = Dice(7);
        for _ in 0..400 {
            let until = LogTime::from_unix_ms(released.load(Ordering::SeqCst));
            let until = until.plus_ms(dice.below(2 * HOUR) + 1);
            released.store(until.unix_ms(), Ordering::SeqCst);
            opened.store.take_up(&[], &ids(&chunks), 1, None).unwrap();
            counts[1].fetch_add(forget(&opened, &chunks, until), Ordering::Relaxed);
        }
        released.fetch_max(START.plus_ms(400 * HOUR).unix_ms(), Ordering::SeqCst);
    });
    let [promises, forgotten] = counts.map(AtomicU64::into_inner);
    assert!(promises > 100 && forgotten > 50, "{promises} receipts, {forgotten} forgotten");
    opened.close();
}
