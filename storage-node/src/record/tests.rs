//! The page docs/formats/segments.md is what is written and read.
#![allow(clippy::unwrap_used)]

use super::*;

const SEGMENT: u64 = 1;
const NODE: NodeId = NodeId::from_bytes([2; 16]);
const FIRST: u64 = SEGMENT_HEADER_BYTES;
const SECOND: u64 = FIRST + 80;

fn shard() -> Record {
    let chunk = ChunkId::from_bytes(*blake3::hash(b"abc").as_bytes());
    Record {
        kind: Kind::Shard,
        key: ShardKey::replica(chunk),
        length: 3,
        keep_until: LogTime::from_unix_ms(1_700_000_000_000),
    }
}

fn extension() -> Record {
    let keep_until = shard().keep_until.plus_ms(3_600_000);
    Record { kind: Kind::Extension, keep_until, ..shard() }
}

/// Hexadecimal lines as the page sets them.
fn lines(bytes: &[u8]) -> String {
    let line = |bytes: &[u8]| {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("    {digits}\n")
    };
    bytes.chunks(32).map(line).collect()
}

#[test]
fn the_example_of_the_page_is_what_is_written() {
    let page = include_str!("../../../docs/formats/segments.md");
    let mut first = shard().header(SEGMENT, FIRST).to_vec();
    first.extend_from_slice(b"abc");
    first.resize(usize::try_from(shard().size()).unwrap(), 0);
    for bytes in [
        segment_header(SEGMENT, &NODE).to_vec(),
        first,
        extension().header(SEGMENT, SECOND).to_vec(),
    ] {
        assert!(page.contains(&lines(&bytes)), "not on the page:\n{}", lines(&bytes));
    }
    assert_eq!(FIRST + shard().size(), SECOND);
}

#[test]
fn a_header_is_read_as_it_was_written_and_only_there() {
    for record in [shard(), extension()] {
        let header = record.header(SEGMENT, FIRST);
        assert_eq!(Record::parse(&header, SEGMENT, FIRST), Ok(Some(record)));
        assert_eq!(Record::parse(&header, SEGMENT, FIRST + 8), Ok(None));
        assert_eq!(Record::parse(&header, SEGMENT + 1, FIRST), Ok(None));
        assert_eq!(Record::parse(&header[1..], SEGMENT, FIRST), Ok(None));
    }
}

#[test]
fn a_flipped_bit_anywhere_makes_it_no_header() {
    let header = shard().header(SEGMENT, FIRST);
    for at in 0..header.len() * 8 {
        let mut flipped = header;
        flipped[at / 8] ^= 1 << (at % 8);
        assert_eq!(Record::parse(&flipped, SEGMENT, FIRST), Ok(None), "bit {at}");
    }
}

/// Taken for the end of the segment, such a record would be written over.
#[test]
fn a_whole_header_that_is_not_understood_is_an_error() {
    let too_long = u8::try_from((SEALED_BYTES_MAX + 1) >> 16).unwrap() + 1;
    for (at, value) in [(4, 2), (5, 2), (52, 1), (10, too_long)] {
        let mut header = shard().header(SEGMENT, FIRST);
        header[at] = value;
        let sum = checksum(&[&header[..56], &SEGMENT.to_le_bytes(), &FIRST.to_le_bytes()]);
        header[56..].copy_from_slice(&sum);
        assert_eq!(Record::parse(&header, SEGMENT, FIRST), Err(UnknownRecord), "byte {at}");
    }
}

/// What is set aside is damaged; what is somebody else's is left alone.
#[test]
fn a_header_is_ours_foreign_or_damaged() {
    let (node, other) = (NodeId::from_bytes([2; 16]), NodeId::from_bytes([3; 16]));
    let header = segment_header(7, &node);
    assert_eq!(Header::of(&header, 7, &node), Header::Ours);
    assert_eq!(Header::of(&header, 8, &node), Header::Foreign);
    assert_eq!(Header::of(&header, 7, &other), Header::Foreign);
    for at in 0..header.len() {
        let mut flipped = header;
        flipped[at] ^= 1;
        assert_eq!(Header::of(&flipped, 7, &node), Header::Damaged, "byte {at}");
        assert_eq!(Header::of(&header[..at], 7, &node), Header::Damaged, "{at} bytes");
    }
    assert_eq!(Header::of(&[0; 64], 7, &node), Header::Damaged);
}
