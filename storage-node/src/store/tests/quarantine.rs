//! What becomes of shards that cannot be read back as they were written.

use super::*;

/// A disk in memory, with an index.
struct Bench {
    platter: Platter,
    index: TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { platter: Platter::default(), index: tempfile::tempdir().unwrap() }
    }

    fn open(&self) -> Opened<Platter> {
        open(self.platter.clone(), self.index.path(), SMALL)
    }

    fn lose_index(&self) {
        std::fs::remove_dir_all(self.index.path()).unwrap();
    }
}

fn key(chunk: &SealedChunk<Bytes>) -> ShardKey {
    ShardKey::replica(chunk.id())
}

fn row(opened: &Opened<Platter>, chunk: &SealedChunk<Bytes>) -> Location {
    opened.store.index().location(&key(chunk)).unwrap().unwrap()
}

/// Rots a byte of the chunk where it stands now, and reads it.
fn read_rotten(bench: &Bench, opened: &Opened<Platter>, chunk: &SealedChunk<Bytes>) {
    rot(bench, opened, chunk);
    assert_eq!(opened.store.read(&chunk.id()).unwrap(), None);
}

/// Rots a byte of the chunk where it stands now.
fn rot(bench: &Bench, opened: &Opened<Platter>, chunk: &SealedChunk<Bytes>) {
    let location = row(opened, chunk);
    bench.platter.rot(location.segment, location.end() - 1);
}

/// Asserts that the chunk counts as absent, and nothing else does; and that before it is read, for
/// that would find it damaged once more.
#[track_caller]
fn assert_quarantined(opened: &Opened<Platter>, chunk: &SealedChunk<Bytes>) {
    let found = opened.store.corrupt();
    assert!(row(opened, chunk).quarantined);
    assert!(!opened.store.has(&chunk.id()).unwrap());
    assert_eq!(opened.store.read(&chunk.id()).unwrap(), None);
    assert_eq!(opened.store.corrupt(), found);
    assert_eq!(opened.missing(), [chunk.id()]);
    let missing = opened.store.index().count_missing(9);
    assert_eq!((missing.chunks, missing.quarantined), (1, 1));
}

#[track_caller]
fn assert_nothing_missing(opened: &Opened<Platter>) {
    assert_eq!(opened.store.index().count_missing(9), Default::default());
}

/// Goal: whatever byte of a record rots, the right bytes are read or none, and scrubbing finds it.
/// Method: rot each byte of a record in turn; each time a good copy comes again.
#[test]
fn a_rotten_byte_anywhere_in_a_record_is_found_and_never_served() {
    let bench = Bench::new();
    let chunks = [chunk(1, 40), chunk(2, 40), chunk(3, 40)];
    let promised = START.plus_ms(10 * HOUR);
    let opened = bench.open();
    opened.put(&chunks, promised).unwrap();
    let totals = opened.store.totals();
    for at in 0..RECORD_HEADER_BYTES as u64 + 40 {
        let location = row(&opened, &chunks[1]);
        for chunk in &chunks {
            assert_eq!(opened.store.scrub(&key(chunk)).unwrap(), 72 + 40);
        }
        assert_nothing_missing(&opened);
        bench.platter.rot(location.segment, location.offset + at);
        let read = opened.store.read(&chunks[1].id()).unwrap();
        let is_header = at < RECORD_HEADER_BYTES as u64;
        assert_eq!(read.as_ref(), is_header.then_some(chunks[1].bytes()), "byte {at}");
        for chunk in &chunks {
            opened.store.scrub(&key(chunk)).unwrap();
        }
        assert_quarantined(&opened, &chunks[1]);
        assert_eq!(opened.store.corrupt(), at + 1);
        assert_eq!(opened.extend(&[chunks[1].id()], START).unwrap(), [None], "nor promised");
        opened.assert_has(&[chunks[0].clone(), chunks[2].clone()]);
        // The promise that was given is the new copy's.
        let again = opened.put(&chunks[1..2], START).unwrap();
        assert_eq!(again[0].held.keep_until, promised);
        assert!(!row(&opened, &chunks[1]).is_record_of(&location), "it is written anew");
        assert_nothing_missing(&opened);
    }
    opened.assert_has(&chunks);
    assert_eq!(opened.store.totals(), totals);
    opened.close();
    // Of all the records the last good one counts, also where only the segments are left.
    bench.lose_index();
    let opened = bench.open();
    opened.assert_has(&chunks);
    assert_eq!(opened.store.totals(), totals);
    opened.close();
}

#[test]
fn a_quarantine_outlasts_a_restart_and_a_power_failure() {
    let bench = Bench::new();
    let chunks = [chunk(1, 500), chunk(2, 500)];
    let opened = bench.open();
    opened.put(&chunks, START.plus_ms(9 * HOUR)).unwrap();
    let copy = tempfile::tempdir().unwrap();
    rot(&bench, &opened, &chunks[0]);
    opened.store.scrub(&key(&chunks[0])).unwrap();
    // What the disk has of the index at this moment, without a clean stop.
    crate::kit::copy(bench.index.path(), copy.path());
    opened.close();
    for index in [bench.index.path(), copy.path()] {
        let opened = open(bench.platter.clone(), index, SMALL);
        assert_eq!(opened.missing(), [chunks[0].id()]);
        assert_quarantined(&opened, &chunks[0]);
        opened.assert_has(&chunks[1..]);
        opened.close();
    }
    let opened = bench.open();
    let again = opened.put(&chunks[..1], START).unwrap();
    assert_eq!(again[0].held.keep_until, START.plus_ms(9 * HOUR));
    assert_nothing_missing(&opened);
    opened.close();
    let opened = bench.open();
    opened.assert_has(&chunks);
    assert_nothing_missing(&opened);
    opened.close();
}

/// Where the disk gives an error for some bytes, the others are served, and these fetched again.
#[test]
fn bytes_that_cannot_be_read_are_quarantined_and_the_others_are_served() {
    for (from, to) in [(0, 1), (RECORD_HEADER_BYTES as u64, 512)] {
        for by_scrub in [true, false] {
            let bench = Bench::new();
            let chunks = [chunk(1, 500), chunk(2, 500), chunk(3, 500)];
            let opened = bench.open();
            opened.put(&chunks, START).unwrap();
            let at = row(&opened, &chunks[1]).offset;
            bench.platter.break_sector(Some((0, at + from..at + to)));
            if by_scrub {
                opened.store.scrub(&key(&chunks[1])).unwrap();
            } else if from > 0 {
                assert_eq!(opened.store.read(&chunks[1].id()).unwrap(), None);
            } else {
                opened.assert_has(&chunks);
                continue;
            }
            assert_quarantined(&opened, &chunks[1]);
            opened.assert_has(&[chunks[0].clone(), chunks[2].clone()]);
            assert_eq!(opened.store.fault(), None, "writes go on");
            opened.put(&chunks[1..2], START).unwrap();
            opened.assert_has(&chunks);
            assert_nothing_missing(&opened);
            opened.close();
        }
    }
}

/// A start whose index is gone meets bytes that cannot be read: the node opens, and says what it lacks.
#[test]
fn a_start_that_meets_bytes_it_cannot_read_notes_them_as_missing() {
    let bench = Bench::new();
    let chunks = [chunk(1, 500), chunk(2, 500), chunk(3, 500)];
    let opened = bench.open();
    opened.put(&chunks, START.plus_ms(5 * HOUR)).unwrap();
    let (at, totals) = (row(&opened, &chunks[1]).offset, opened.store.totals());
    opened.close();
    bench.lose_index();
    bench.platter.break_sector(Some((0, at + 100..at + 101)));
    let opened = bench.open();
    assert_quarantined(&opened, &chunks[1]);
    opened.assert_has(&[chunks[0].clone(), chunks[2].clone()]);
    assert_eq!(opened.store.totals(), totals);
    let again = opened.put(&chunks[1..2], START).unwrap();
    assert_eq!(again[0].held.keep_until, START.plus_ms(5 * HOUR));
    opened.assert_has(&chunks);
    assert_eq!(opened.store.totals(), totals);
    opened.close();
}

/// Goal: a quarantine ends when the new copy was read back, and not before. Method: a disk that keeps
/// something else than what was written.
#[test]
fn a_copy_that_cannot_be_read_back_ends_no_quarantine_and_is_not_promised() {
    let bench = Bench::new();
    let (a, b) = (chunk(1, 500), chunk(2, 500));
    let opened = bench.open();
    opened.put(&[a.clone(), b.clone()], START.plus_ms(7 * HOUR)).unwrap();
    read_rotten(&bench, &opened, &a);
    assert_quarantined(&opened, &a);

    bench.platter.fail(Some(Fault::Rot));
    for _ in 0..3 {
        let refused = opened.put(std::slice::from_ref(&a), START).unwrap_err();
        assert!(matches!(refused, StoreError::NotReadBack), "{refused}");
        assert_quarantined(&opened, &a);
    }
    bench.platter.fail(None);
    // Nothing else is in doubt, also after a restart.
    opened.put(&[chunk(3, 500)], START).unwrap();
    opened.close();
    let opened = bench.open();
    assert_quarantined(&opened, &a);
    opened.assert_has(&[b.clone(), chunk(3, 500)]);
    let again = opened.put(std::slice::from_ref(&a), START).unwrap();
    assert_eq!(again[0].held.keep_until, START.plus_ms(7 * HOUR));
    assert_nothing_missing(&opened);
    opened.assert_has(&[a, b]);
    opened.close();
}

/// Goal: neither a quarantine nor a longer promise is lost where both come at once. Method: a renewal
/// is at the disk while its chunk is found damaged.
#[test]
fn a_chunk_found_damaged_while_it_is_renewed_is_quarantined_and_keeps_the_longer_promise() {
    let bench = Bench::new();
    let chunks = [chunk(1, 500), chunk(2, 500)];
    let opened = bench.open();
    opened.put(&chunks, START).unwrap();
    bench.platter.hold_syncs(true);
    wait(async {
        let (store, renewed) = (opened.store.clone(), ids(&chunks));
        let renewal =
            tokio::spawn(async move { store.extend(renewed, START.plus_ms(3 * HOUR)).await });
        while bench.platter.syncs() < 2 {
            tokio::task::yield_now().await;
        }
        // The record of the renewal is written, and nobody knows of it yet.
        rot(&bench, &opened, &chunks[0]);
        opened.store.scrub(&key(&chunks[0])).unwrap();
        bench.platter.hold_syncs(false);
        renewal.await.unwrap().unwrap();
    });
    assert_quarantined(&opened, &chunks[0]);
    opened.assert_has(&chunks[1..]);
    assert_eq!(row(&opened, &chunks[1]).keep_until, START.plus_ms(3 * HOUR));
    let again = opened.put(&chunks[..1], START).unwrap();
    assert_eq!(again[0].held.keep_until, START.plus_ms(3 * HOUR));
    opened.assert_has(&chunks);
    opened.close();
}

/// Somebody who read the old record and took long must not quarantine the new one.
#[test]
fn what_was_written_anew_is_not_quarantined_for_the_old_record() {
    let bench = Bench::new();
    let a = chunk(1, 500);
    let opened = bench.open();
    opened.put(std::slice::from_ref(&a), START).unwrap();
    let old = row(&opened, &a);
    read_rotten(&bench, &opened, &a);
    assert_quarantined(&opened, &a);
    opened.put(std::slice::from_ref(&a), START).unwrap();
    opened.store.quarantine(&key(&a), &old).unwrap();
    opened.assert_has(std::slice::from_ref(&a));
    assert_eq!(opened.store.corrupt(), 1);
    // Nor is one forgotten as here that was quarantined since it was seen.
    read_rotten(&bench, &opened, &a);
    assert_quarantined(&opened, &a);
    opened.store.forget_missing(&[a.id()]).unwrap();
    opened.store.take_up(&[a.id()], &[], 1_000, Some(0)).unwrap();
    assert_quarantined(&opened, &a);
    opened.close();
}

/// A disk that fails as a whole says nothing of any chunk.
#[test]
fn a_disk_that_cannot_be_read_at_all_quarantines_nothing() {
    assert!(is_damage(&io::ErrorKind::UnexpectedEof.into()));
    for (errno, expected) in [
        (rustix::io::Errno::IO, true),
        (rustix::io::Errno::BADMSG, true),
        (rustix::io::Errno::UCLEAN, true),
        (rustix::io::Errno::NODEV, false),
        (rustix::io::Errno::NOMEM, false),
        (rustix::io::Errno::INTR, false),
    ] {
        assert_eq!(is_damage(&errno.into()), expected, "{errno}");
    }
}
