//! What a start makes of what a crash, or worse, left behind.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use super::*;
use crate::kit::copy;

/// Histories that are tried; each takes about a second.
const SEEDS: u64 = 10;

/// What becomes of the bytes behind a cut.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// The file ends there.
    Short,
    /// They were never written: zeros.
    Zeros,
    /// They are something else.
    Rubbish,
}

/// What is left of the index.
#[derive(Clone, Copy, Debug)]
enum Left {
    /// All of it: it knows of the record that is cut.
    All,
    /// It does not know of the last flush, as after a power failure.
    Older,
    /// Nothing.
    Nothing,
}

/// A volume with two chunks, and a third from a later flush as its last record.
struct Case {
    volume: Volume,
    chunks: [SealedChunk<Bytes>; 3],
    segment: Vec<u8>,
    /// Where the last record begins, and ends.
    from: u64,
    to: u64,
}

impl Case {
    fn new() -> Self {
        let volume = Volume::new();
        let chunks = [chunk(1, 300), chunk(2, 20), chunk(3, 5)];
        let opened = volume.open();
        opened.put(&chunks[..2], START).unwrap();
        opened.close();
        copy(&volume.index(), &volume.0.path().join("older"));
        let opened = volume.open();
        opened.put(&chunks[2..], START).unwrap();
        let location = opened.store.index().location(&ShardKey::replica(chunks[2].id())).unwrap();
        let location = location.unwrap();
        opened.close();
        copy(&volume.index(), &volume.0.path().join("all"));
        let segment = std::fs::read(volume.segment(0)).unwrap();
        Self { volume, chunks, segment, from: location.offset, to: location.end() }
    }

    fn set(&self, cut: Cut, at: u64, left: Left) {
        let path = self.volume.segment(0);
        std::fs::write(&path, &self.segment).unwrap();
        let file = OpenOptions::new().write(true).open(path).unwrap();
        let beyond = self.segment.len() - usize::try_from(at).unwrap();
        match cut {
            Cut::Short => file.set_len(at).unwrap(),
            Cut::Zeros => file.write_all_at(&vec![0; beyond], at).unwrap(),
            Cut::Rubbish => file.write_all_at(&vec![0xa5; beyond], at).unwrap(),
        }
        let index = self.volume.index();
        std::fs::remove_dir_all(&index).unwrap();
        match left {
            Left::All => copy(&self.volume.0.path().join("all"), &index),
            Left::Older => copy(&self.volume.0.path().join("older"), &index),
            Left::Nothing => {}
        }
    }

    /// What must hold after a cut inside the last record, whatever is left of the index.
    fn check(&self) {
        let [a, b, last] = &self.chunks;
        let opened = self.volume.open();
        opened.assert_has(&[a.clone(), b.clone()]);
        // All of it or nothing; and what is not here is not promised.
        assert!(!opened.store.has(&last.id()).unwrap(), "known before it is read");
        assert_eq!(opened.extend(&[last.id()], START.plus_ms(HOUR)).unwrap(), [None]);
        assert_eq!(opened.store.read(&last.id()).unwrap(), None);
        let fourth = chunk(4, 50);
        opened.put(&[last.clone(), fourth.clone()], START).unwrap();
        opened.assert_has(&[a.clone(), b.clone(), last.clone(), fourth.clone()]);
        assert_eq!(opened.store.totals().shards, 4);
        opened.close();
        // The segments alone say the same.
        std::fs::remove_dir_all(self.volume.index()).unwrap();
        let opened = self.volume.open();
        opened.assert_has(&[a.clone(), b.clone(), last.clone(), fourth]);
        assert_eq!(opened.store.totals().shards, 4);
        opened.close();
    }
}

fn check_every_cut(cut: Cut, left: Left) {
    let case = Case::new();
    for at in case.from..case.to {
        case.set(cut, at, left);
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case.check()));
        assert!(checked.is_ok(), "{cut:?} at {at} of {}..{}, index: {left:?}", case.from, case.to);
    }
}

#[test]
fn a_file_that_ends_in_its_last_record_and_an_older_index() {
    check_every_cut(Cut::Short, Left::Older);
}

#[test]
fn a_last_record_with_zeros_and_an_older_index() {
    check_every_cut(Cut::Zeros, Left::Older);
}

#[test]
fn a_last_record_with_rubbish_and_no_index() {
    check_every_cut(Cut::Rubbish, Left::Nothing);
}

/// Worse than a crash: bytes that were synced are gone. They count as missing.
#[test]
fn a_file_that_lost_its_end() {
    let case = Case::new();
    for at in case.from..case.to {
        case.set(Cut::Short, at, Left::All);
        let opened = case.volume.open();
        assert_eq!(opened.missing(), [case.chunks[2].id()], "cut at {at}");
        opened.close();
        case.check();
    }
}

#[test]
fn a_whole_tail_is_indexed_and_promised_as_before() {
    let case = Case::new();
    for left in [Left::Older, Left::Nothing] {
        case.set(Cut::Zeros, case.to, left);
        let opened = case.volume.open();
        opened.assert_has(&case.chunks);
        assert_eq!(opened.store.totals().shards, 3);
        let kept = opened.extend(&ids(&case.chunks), START).unwrap();
        assert!(kept.iter().all(|kept| kept.as_ref().unwrap().held.keep_until == START));
        opened.close();
    }
}

#[test]
fn a_segment_that_is_gone_or_too_short_is_mended_by_the_siblings() {
    for gone in [true, false] {
        let volume = Volume::new();
        let chunks: Vec<_> = (0..30).map(|at| chunk(at, 2000)).collect();
        let opened = volume.open();
        opened.put(&chunks, START).unwrap();
        opened.close();
        if gone {
            std::fs::remove_file(volume.segment(1)).unwrap();
        } else {
            OpenOptions::new().write(true).open(volume.segment(1)).unwrap().set_len(5000).unwrap();
        }
        let opened = volume.open();
        let missing = opened.missing();
        let (lost, here): (Vec<_>, Vec<_>) =
            chunks.iter().cloned().partition(|chunk| missing.contains(&chunk.id()));
        assert_eq!(missing.len(), if gone { 7 } else { 5 });
        assert_eq!(lost.len(), missing.len());
        opened.assert_has(&here);
        for chunk in &lost {
            assert_eq!(opened.store.read(&chunk.id()).unwrap(), None);
        }
        opened.put(&lost, START).unwrap();
        opened.assert_has(&chunks);
        opened.close();
        let opened = volume.open();
        opened.assert_has(&chunks);
        assert_eq!(opened.store.totals().shards, 30);
        opened.close();
    }
}

/// A volume of several segments, and what stood in segment `number` of them.
fn several_segments(number: u64) -> (Volume, Vec<SealedChunk<Bytes>>, Vec<SealedChunk<Bytes>>) {
    let volume = Volume::new();
    let chunks: Vec<_> = (0..20).map(|at| chunk(at, 2000)).collect();
    let opened = volume.open();
    opened.put(&chunks, START.plus_ms(5 * HOUR)).unwrap();
    let is_in = |chunk: &SealedChunk<Bytes>| {
        let row = opened.store.index().location(&ShardKey::replica(chunk.id())).unwrap();
        row.unwrap().segment == number
    };
    let (lost, here) = chunks.into_iter().partition(is_in);
    opened.close();
    (volume, lost, here)
}

/// Goal: a damaged header costs the chunks of its segment only, and these come again. Method: bytes
/// of the header, and files that are cut within it, of the first, a middle and the last segment.
#[test]
fn a_segment_whose_header_is_damaged_is_set_aside_and_the_others_are_served() {
    for number in 0..3 {
        let (volume, lost, here) = several_segments(number);
        let path = volume.segment(number);
        let good = std::fs::read(&path).unwrap();
        copy(&volume.segments(), &volume.0.path().join("segments-before"));
        copy(&volume.index(), &volume.0.path().join("index-before"));
        let flipped = [0, 8, 12, 63].map(|at| {
            let mut bytes = good.clone();
            bytes[at] ^= 0x10;
            bytes
        });
        for bytes in flipped.into_iter().chain([Vec::new(), good[..63].to_vec()]) {
            for (folder, before) in
                [(volume.segments(), "segments-before"), (volume.index(), "index-before")]
            {
                std::fs::remove_dir_all(&folder).unwrap();
                copy(&volume.0.path().join(before), &folder);
            }
            std::fs::write(&path, &bytes).unwrap();
            let opened = volume.open();
            let mut expected = ids(&lost);
            expected.sort_unstable();
            assert_eq!(opened.missing(), expected);
            opened.assert_has(&here);
            for chunk in &lost {
                assert_eq!(opened.store.read(&chunk.id()).unwrap(), None);
            }
            let aside = volume.segments().join(format!("{number:016}.damaged-0"));
            assert_eq!(std::fs::read(aside).unwrap(), bytes, "all of it is kept");
            // They come again, with the promises that were given for them.
            for receipt in opened.put(&lost, START).unwrap() {
                assert_eq!(receipt.held.keep_until, START.plus_ms(5 * HOUR));
            }
            assert_eq!(opened.missing(), []);
            opened.close();
            for index_lost in [false, true] {
                if index_lost {
                    std::fs::remove_dir_all(volume.index()).unwrap();
                }
                let opened = volume.open();
                opened.assert_has(&lost);
                opened.assert_has(&here);
                assert_eq!(opened.store.totals().shards, 20);
                opened.close();
            }
        }
    }
}

/// Without an index nobody knows what stood in it; the feed, read from its beginning, says it.
#[test]
fn a_segment_whose_header_is_damaged_is_set_aside_also_without_an_index() {
    let (volume, lost, here) = several_segments(1);
    flip(&volume.segment(1), 20);
    std::fs::remove_dir_all(volume.index()).unwrap();
    let opened = volume.open();
    opened.assert_has(&here);
    assert!(lost.iter().all(|chunk| !opened.store.has(&chunk.id()).unwrap()));
    assert_eq!(opened.store.index().cursor().unwrap(), 0);
    opened.close();
}

#[test]
fn a_segment_whose_header_cannot_be_read_is_set_aside() {
    let (platter, index) = (Platter::default(), tempfile::tempdir().unwrap());
    let chunks: Vec<_> = (0..12).map(|at| chunk(at, 4000)).collect();
    let opened = open(platter.clone(), index.path(), SMALL);
    opened.put(&chunks, START).unwrap();
    opened.close();
    platter.break_sector(Some((1, 0..512)));
    let opened = open(platter.clone(), index.path(), SMALL);
    assert_eq!(platter.aside(), [1]);
    let (lost, here): (Vec<_>, Vec<_>) =
        chunks.into_iter().partition(|chunk| opened.missing().contains(&chunk.id()));
    assert_eq!(lost.len(), 4);
    opened.assert_has(&here);
    opened.close();
}

/// Two of one number are both kept, and many at once are a matter for somebody to look at.
#[test]
fn a_segment_set_aside_replaces_none_and_a_volume_of_them_is_left_as_it_is() {
    let (volume, lost, _) = several_segments(2);
    for turn in 0..2 {
        flip(&volume.segment(2), 48);
        let opened = volume.open();
        assert!(volume.segments().join(format!("0000000000000002.damaged-{turn}")).exists());
        opened.put(&lost, START).unwrap();
        opened.close();
        assert!(volume.segment(2).exists(), "the number is free again");
    }
    let volume = Volume::new();
    let opened = volume.open();
    let chunks: Vec<_> = (0..20).map(|at| chunk(at, 10_000)).collect();
    opened.put(&chunks, START).unwrap();
    opened.close();
    for number in 0..=ASIDE_PER_START_MAX as u64 {
        flip(&volume.segment(number), 0);
    }
    let refused = volume.open_as(NODE).err().unwrap();
    assert!(matches!(refused, StoreError::Damaged(_)), "{refused}");
    assert_eq!(Folder::open(&volume.segments()).unwrap().segments().unwrap().len(), 20);
    flip(&volume.segment(0), 0);
    let opened = volume.open();
    assert_eq!(opened.missing().len(), ASIDE_PER_START_MAX);
    opened.assert_has(&chunks[..1]);
    opened.close();
}

/// Goal: where the index is gone, a record whose header has rotted costs itself and nothing behind it,
/// and nothing is written over what stands there. Method: rot in the header of each record in turn, of
/// small ones and of one that is longer than what is looked through at a time.
#[test]
fn a_rotten_record_hides_none_behind_it_from_a_start_without_an_index() {
    let lengths = [300, 0, 7, SEALED_BYTES_MAX, 64 << 10, 1];
    let chunks: Vec<_> = (0_u64..).zip(lengths).map(|(at, length)| chunk(at, length)).collect();
    for rotten in 0..chunks.len() {
        let (platter, index) = (Platter::default(), tempfile::tempdir().unwrap());
        let opened = open(platter.clone(), index.path(), 4 << 20);
        opened.put(&chunks, START).unwrap();
        let key = ShardKey::replica(chunks[rotten].id());
        let offset = opened.store.index().location(&key).unwrap().unwrap().offset;
        opened.close();
        std::fs::remove_dir_all(index.path()).unwrap();
        platter.rot(0, offset + 9);
        let opened = open(platter.clone(), index.path(), 4 << 20);
        assert!(!opened.store.has(&key.chunk).unwrap());
        let others: Vec<_> = chunks.iter().filter(|it| it.id() != key.chunk).cloned().collect();
        opened.assert_has(&others);
        opened.put(&[chunk(9, 2000)], START).unwrap();
        opened.assert_has(&others);
        opened.assert_has(&[chunk(9, 2000)]);
        assert_eq!(opened.store.totals().shards, 6);
        opened.close();
    }
}

/// Goal: a bad sector in what the index does not know yet costs its records, and not the node. Method:
/// sectors of headers that cannot be read, in the middle and at the end, with an index that knows
/// nothing and with one that knows the first record.
#[test]
fn a_header_that_cannot_be_read_hides_none_behind_it_and_stops_no_start() {
    let record = RECORD_HEADER_BYTES as u64 + LOOK_BYTES as u64;
    for (broken, is_known) in [(1, false), (1, true), (3, false), (3, true)] {
        let (platter, dir) = (Platter::default(), tempfile::tempdir().unwrap());
        let (index, older) = (dir.path().join("index"), dir.path().join("older"));
        let chunks: Vec<_> = (0..4).map(|at| chunk(at, LOOK_BYTES)).collect();
        let open = |index: &Path| open(platter.clone(), index, 1 << 20);
        let opened = open(&index);
        opened.put(&chunks[..1], START).unwrap();
        opened.close();
        copy(&index, &older);
        let opened = open(&index);
        opened.put(&chunks[1..], START).unwrap();
        opened.close();
        let offset = SEGMENT_HEADER_BYTES + broken * record;
        platter.break_sector(Some((0, offset..offset + 8)));
        let index = if is_known { older } else { dir.path().join("fresh") };
        let opened = open(&index);
        for (at, chunk) in (0..).zip(&chunks) {
            assert_eq!(opened.store.has(&chunk.id()).unwrap(), at != broken, "{broken}: {at}");
        }
        // It comes again, beside what cannot be read.
        opened.put(&chunks, START).unwrap();
        opened.assert_has(&chunks);
        opened.close();
        let opened = open(&index);
        opened.assert_has(&chunks);
        opened.close();
    }
}

/// What a client stores must not be taken for a record of a later version, which would keep the store
/// from opening.
#[test]
fn a_record_made_up_inside_of_a_rotten_one_is_no_obstacle() {
    let (platter, index) = (Platter::default(), tempfile::tempdir().unwrap());
    let inner = SEGMENT_HEADER_BYTES + RECORD_HEADER_BYTES as u64;
    let key = ShardKey::replica(chunk(1, 10).id());
    let record = Record { kind: Kind::Extension, key, length: 10, keep_until: START };
    let mut header = record.header(0, inner);
    header[5] = 9;
    let sum = blake3::Hasher::new()
        .update(&header[..56])
        .update(&0_u64.to_le_bytes())
        .update(&inner.to_le_bytes())
        .finalize();
    header[56..].copy_from_slice(&sum.as_bytes()[..16]);
    Record::parse(&header, 0, inner).unwrap_err();
    let made_up = SealedChunk::hash(Bytes::copy_from_slice(&header)).unwrap();
    let opened = open(platter.clone(), index.path(), SMALL);
    opened.put(&[made_up, chunk(2, 100)], START).unwrap();
    opened.close();
    std::fs::remove_dir_all(index.path()).unwrap();
    platter.rot(0, SEGMENT_HEADER_BYTES + 9);
    let opened = open(platter, index.path(), SMALL);
    opened.assert_has(&[chunk(2, 100)]);
    opened.close();
}

#[test]
fn a_running_store_whose_file_is_cut_goes_on() {
    let case = Case::new();
    let opened = case.volume.open();
    let file = OpenOptions::new().write(true).open(case.volume.segment(0)).unwrap();
    file.set_len(case.to - 1).unwrap();
    assert_eq!(opened.store.read(&case.chunks[2].id()).unwrap(), None);
    assert_eq!(opened.missing(), [case.chunks[2].id()]);
    opened.assert_has(&case.chunks[..2]);
    opened.close();
}

#[test]
fn what_another_version_wrote_is_not_written_over() {
    let case = Case::new();
    let before = std::fs::read(case.volume.segment(0)).unwrap();
    // A record behind the last one, whole, of a kind this version does not know.
    let record = Record {
        kind: Kind::Extension,
        key: ShardKey::replica(case.chunks[0].id()),
        length: 300,
        keep_until: START,
    };
    let at = case.to.next_multiple_of(8);
    let mut header = record.header(0, at);
    header[4] = 9;
    let sum = blake3::Hasher::new()
        .update(&header[..56])
        .update(&0_u64.to_le_bytes())
        .update(&at.to_le_bytes())
        .finalize();
    header[56..].copy_from_slice(&sum.as_bytes()[..16]);
    let mut segment = before.clone();
    let at = usize::try_from(at).unwrap();
    segment[at..at + header.len()].copy_from_slice(&header);
    // And a segment of another version, node or number, whose header is whole.
    let signed = |change: fn(&mut [u8])| {
        let mut bytes = before.clone();
        change(&mut bytes);
        let sum = blake3::hash(&bytes[..48]);
        bytes[48..64].copy_from_slice(&sum.as_bytes()[..16]);
        bytes
    };
    let versioned = signed(|bytes| bytes[8] = 2);
    let numbered = signed(|bytes| bytes[12] = 1);
    let of_another = signed(|bytes| bytes[20] ^= 1);
    for bytes in [segment, versioned, numbered, of_another] {
        std::fs::write(case.volume.segment(0), &bytes).unwrap();
        let refused = case.volume.open_as(NODE).err().unwrap();
        assert!(matches!(refused, StoreError::Damaged(_)), "{refused}");
        assert_eq!(std::fs::read(case.volume.segment(0)).unwrap(), bytes, "left as it is");
    }
}

/// The bytes of docs/formats/segments.md, as version 1 of this software wrote them.
#[test]
fn a_segment_of_version_1_is_read_for_ever() {
    let page = include_str!("../../../../docs/formats/segments.md");
    let digits: Vec<&str> = page
        .lines()
        .map(str::trim)
        .filter(|line| line.len() >= 16 && line.bytes().all(|digit| digit.is_ascii_hexdigit()))
        .collect();
    let digits = digits.concat();
    let mut bytes: Vec<u8> = (0..digits.len() / 2)
        .map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap())
        .collect();
    assert_eq!(bytes.len(), 64 + 80 + 72);
    bytes.resize(4096, 0);
    let volume = Volume::new();
    std::fs::create_dir(volume.segments()).unwrap();
    std::fs::write(volume.segment(1), &bytes).unwrap();
    let opened = volume.open_as(NodeId::from_bytes([2; 16])).unwrap();
    let abc = SealedChunk::hash(Bytes::from_static(b"abc")).unwrap();
    opened.assert_has(std::slice::from_ref(&abc));
    let location = opened.store.index().location(&ShardKey::replica(abc.id())).unwrap().unwrap();
    assert_eq!(location.keep_until, LogTime::from_unix_ms(1_700_003_600_000));
    assert_eq!((location.segment, location.offset, location.length), (1, 64, 3));
    assert_eq!(opened.store.index().indexed(1).unwrap(), Some(64 + 80 + 72));
    opened.close();
}

/// A tail that nobody was told of can be read again much later, with an older promise than the one
/// that was given since.
#[test]
fn the_latest_promise_of_all_records_counts() {
    let volume = Volume::new();
    let chunk = chunk(1, 16);
    let mut segment = segment_header(0, &NODE).to_vec();
    for (kind, hours) in
        [(Kind::Shard, 2), (Kind::Extension, 3), (Kind::Shard, 1), (Kind::Extension, 1)]
    {
        let key = ShardKey::replica(chunk.id());
        let record = Record { kind, key, length: 16, keep_until: START.plus_ms(hours * HOUR) };
        segment.extend(record.header(0, segment.len() as u64));
        segment.extend_from_slice(if kind == Kind::Shard { chunk.bytes() } else { b"" });
    }
    std::fs::create_dir(volume.segments()).unwrap();
    std::fs::write(volume.segment(0), segment).unwrap();
    let opened = volume.open();
    opened.assert_has(std::slice::from_ref(&chunk));
    let kept = opened.extend(&[chunk.id()], START).unwrap();
    assert_eq!(kept[0].as_ref().unwrap().held.keep_until, START.plus_ms(3 * HOUR));
    assert_eq!(opened.store.totals(), Totals { shards: 1, bytes: 16 });
    opened.close();
}

/// Goal: no receipt for what stands in the system's cache only. Method: a sync fails, the process is
/// started again and finds the bytes in the cache; the chunk comes again; then the power goes.
#[test]
fn what_a_start_finds_is_durable_before_it_is_promised() {
    for fault in [Fault::Sync, Fault::WriteReported] {
        let (platter, index) = (Platter::default(), tempfile::tempdir().unwrap());
        let chunks = [chunk(1, 1000), chunk(2, 5000)];
        let opened = open(platter.clone(), index.path(), SMALL);
        opened.put(&[chunk(0, 10)], START).unwrap();
        platter.fail(Some(fault));
        opened.put(&chunks, START).unwrap_err();
        platter.fail(None);
        opened.close();
        let opened = open(platter.clone(), index.path(), SMALL);
        opened.put(&chunks, START).unwrap();
        opened.close();
        // Nothing waits for a sync, or none of it is kept.
        platter.lose_power(&mut Dice(u64::MAX));
        let opened = open(platter.clone(), index.path(), SMALL);
        opened.assert_has(&chunks);
        opened.close();
    }
}

/// Goal: nothing acknowledged is ever lost. Method: puts and renewals on a disk that fails at random,
/// restarts, power failures that keep any of the unsynced sectors, and indexes that are older or gone,
/// against a map of what was acknowledged. A failure names the seed.
#[test]
fn nothing_acknowledged_is_lost_whatever_happens() {
    for seed in 1..=SEEDS {
        let told = std::panic::catch_unwind(|| simulate(seed));
        assert!(told.is_ok(), "seed {seed}");
    }
}

fn simulate(seed: u64) {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let (platter, volume) = (Platter::default(), tempfile::tempdir().unwrap());
    let (index, older) = (volume.path().join("index"), volume.path().join("older"));
    let pool: Vec<_> =
        (0..24).map(|at| chunk(at, usize::try_from(dice.below(3000) + 1).unwrap())).collect();
    let mut acknowledged: BTreeMap<ChunkId, LogTime> = BTreeMap::new();
    let mut now = START;
    for _ in 0..12 {
        let opened = open(platter.clone(), &index, SMALL);
        for chunk in &pool {
            let Some(until) = acknowledged.get(&chunk.id()) else { continue };
            opened.assert_has(std::slice::from_ref(chunk));
            let row = opened.store.index().location(&ShardKey::replica(chunk.id())).unwrap();
            assert!(row.unwrap().keep_until >= *until, "a promise is shorter than it was");
        }
        let ends_badly = dice.below(3) > 0;
        for step in 0..8 {
            now = now.plus_ms(dice.below(HOUR));
            if ends_badly && step == 7 {
                let faults = [Fault::Write, Fault::WriteReported, Fault::Sync, Fault::SyncReported];
                platter.fail(Some(faults[usize::try_from(dice.below(4)).unwrap()]));
            }
            let some: Vec<_> = pool.iter().filter(|_| dice.below(4) == 0).cloned().collect();
            let receipts = if dice.below(4) == 0 {
                opened.extend(&ids(&some), now).map(|it| it.into_iter().flatten().collect())
            } else {
                opened.put(&some, now)
            };
            for receipt in receipts.unwrap_or_default() {
                let until = acknowledged.entry(receipt.held.shard.chunk).or_insert(LogTime::ZERO);
                *until = (*until).max(receipt.held.keep_until);
            }
        }
        platter.fail(None);
        opened.close();
        if dice.below(2) == 0 {
            platter.lose_power(&mut dice);
        }
        match dice.below(4) {
            0 => std::fs::remove_dir_all(&index).unwrap(),
            1 if older.exists() => {
                std::fs::remove_dir_all(&index).unwrap();
                copy(&older, &index);
            }
            _ => {
                let _ = std::fs::remove_dir_all(&older);
                copy(&index, &older);
            }
        }
    }
    assert!(acknowledged.len() > 10);
}
