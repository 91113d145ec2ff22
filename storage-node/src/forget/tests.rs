//! Tests of what is made of members' releases. That nothing promised is forgotten is tested in
//! `store/tests/forgetting.rs`, forgetting by whole nodes in `run/tests.rs`.
#![allow(clippy::unwrap_used)]

use coffer_model::encoding::encode;
use coffer_model::id::MemberId;
use coffer_model::signing::Signer;

use super::*;
use crate::kit::{self, CLUSTER, Key, NODE, START};

fn id(number: u8) -> ChunkId {
    ChunkId::from_bytes([number; 32])
}

fn member(number: u8) -> Member {
    kit::member(MemberId::from_u64(u64::from(number)), &Key::of(number), "127.0.0.1:1")
}

fn release(number: u8, seconds: u64, chunks: &[u8]) -> Release {
    Release {
        member: member(number).id,
        node: NODE,
        time: START.plus_ms(seconds * 1000),
        chunks: chunks.iter().map(|chunk| id(*chunk)).collect(),
    }
}

/// Goal: half of the members, however late they are, make nobody forget, and those that are ahead of
/// the others do not count for these.
#[test]
fn a_chunk_is_released_by_more_than_half_at_the_time_that_more_than_half_have_reached() {
    let at = |seconds: u64| START.plus_ms(seconds * 1000);
    let asked = [id(1), id(2)];
    for (members, releases, expected) in [
        (1, vec![release(1, 5, &[1, 2])], vec![(id(1), at(5)), (id(2), at(5))]),
        (2, vec![release(1, 5, &[1])], vec![]),
        (2, vec![release(1, 5, &[1]), release(2, 3, &[1])], vec![(id(1), at(3))]),
        (3, vec![release(1, 5, &[1]), release(2, 3, &[1, 2])], vec![(id(1), at(3))]),
        (3, vec![release(1, 900, &[1])], vec![]),
        (
            3,
            vec![release(1, 900, &[1]), release(2, 3, &[1]), release(3, 4, &[1])],
            vec![(id(1), at(4))],
        ),
        (4, vec![release(1, 5, &[1]), release(2, 5, &[1])], vec![]),
        (
            5,
            vec![release(1, 5, &[2]), release(2, 6, &[2]), release(3, 7, &[2])],
            vec![(id(2), at(5))],
        ),
        // What was not asked about does not count.
        (1, vec![release(1, 5, &[3])], vec![]),
        (3, vec![], vec![]),
    ] {
        assert_eq!(agreed(members, &releases, &asked), expected, "{releases:?} of {members}");
    }
}

#[test]
fn a_release_counts_if_it_is_this_members_for_this_node_in_this_cluster() {
    let signed = |release: &Release, key: u8, domain: Domain, cluster: &ClusterId| {
        let release = encode(release);
        let signature = Key::of(key).sign(domain, cluster, &release);
        wire::ReleaseChunksResponse {
            release: release.into(),
            signature: Bytes::copy_from_slice(signature.as_bytes()),
        }
    };
    let check = |answer: &wire::ReleaseChunksResponse| checked(answer, &CLUSTER, NODE, &member(1));
    let good = release(1, 5, &[1, 2]);
    assert_eq!(check(&signed(&good, 1, Domain::Release, &CLUSTER)), Some(good.clone()));
    let other_cluster = ClusterId::from_bytes([9; 32]);
    let of_another_node = Release { node: NodeId::from_bytes([9; 16]), ..good.clone() };
    let too_many = Release {
        chunks: (0..=u32::try_from(RELEASE_CHUNKS_MAX).unwrap())
            .map(|at| {
                let mut id = [0; 32];
                id[..4].copy_from_slice(&at.to_be_bytes());
                ChunkId::from_bytes(id)
            })
            .collect(),
        ..good.clone()
    };
    for bad in [
        signed(&good, 2, Domain::Release, &CLUSTER),
        signed(&good, 1, Domain::ShareProof, &CLUSTER),
        signed(&good, 1, Domain::Release, &other_cluster),
        signed(&release(2, 5, &[1, 2]), 1, Domain::Release, &CLUSTER),
        signed(&of_another_node, 1, Domain::Release, &CLUSTER),
        signed(&release(1, 5, &[2, 1]), 1, Domain::Release, &CLUSTER),
        signed(&release(1, 5, &[1, 1]), 1, Domain::Release, &CLUSTER),
        signed(&too_many, 1, Domain::Release, &CLUSTER),
        wire::ReleaseChunksResponse::default(),
    ] {
        assert_eq!(check(&bad), None);
    }
}
