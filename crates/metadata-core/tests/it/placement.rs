//! Which layouts count, what nodes should hold, and what they may forget.

use std::collections::BTreeSet;

use coffer_metadata_core::query;
use coffer_model::encoding::encode;
use coffer_model::id::{ChunkId, ClusterId, NodeId};
use coffer_model::layout::{Layout, Partition};
use coffer_model::log::{ChunkRow, SystemOp};
use coffer_model::share::ShareProof;
use coffer_model::signing::{Domain, Signer};

use crate::invariants::Checker;
use crate::kit::{Cluster, Draft, Key, User, chunk, inode, key};
use crate::random::check_replay;
use crate::system::{check_ignored, check_logged};

fn versions(cluster: &Cluster) -> Vec<u64> {
    cluster.layouts().layouts.iter().map(Layout::version).collect()
}

/// A cluster of four nodes, a user, and a file with as many chunks; the fourth node holds nothing.
fn four_nodes(chunks: u64) -> (Cluster, User) {
    let mut cluster = Cluster::new();
    cluster.add_node();
    let mut alice = User::join(&mut cluster, "alice");
    write(&mut cluster, &mut alice, "a", 0..chunks);
    (cluster, alice)
}

fn write(cluster: &mut Cluster, user: &mut User, name: &str, chunks: std::ops::Range<u64>) {
    let mut draft = Draft::new();
    let chunks: Vec<u64> = chunks.collect();
    draft.create_file(cluster, key(user.home, name), inode(name), &chunks);
    user.act(cluster, &draft);
}

// -- which layouts count --------------------------------------------------------------------------

#[test]
fn a_layout_is_former_until_every_new_holder_has_proven_its_share() {
    let (mut cluster, mut alice) = four_nodes(5);
    assert_eq!((versions(&cluster), cluster.layouts().since), (vec![1], 0));
    let second = cluster.layout_on(2, &[0, 1, 3]);
    let op = cluster.next_layout(&second);
    check_logged(&mut cluster, op);
    assert_eq!((versions(&cluster), cluster.layouts().since), (vec![2, 1], 5));
    write(&mut cluster, &mut alice, "b", 5..8);
    let proof = cluster.proof(0, 2, 5);
    check_logged(&mut cluster, proof);
    let proof = cluster.proof(1, 2, 8);
    check_logged(&mut cluster, proof);
    // The new holder lacks what there was when the layout came into force.
    let proof = cluster.proof(3, 2, 4);
    check_logged(&mut cluster, proof);
    assert_eq!(versions(&cluster), [2, 1]);
    let proof = cluster.proof(3, 2, 5);
    check_logged(&mut cluster, proof);
    assert_eq!(versions(&cluster), [2]);
    assert_eq!(query::layout(&cluster.tables).unwrap().unwrap(), cluster.layouts().signed[0]);
    let mut proven: Vec<u64> =
        query::proofs(&cluster.tables).unwrap().iter().map(|proof| proof.position).collect();
    proven.sort_unstable();
    assert_eq!(proven, [5, 5, 8]);
}

/// Proofs are of one layout: a later one begins anew, and retires all that were before it at once.
#[test]
fn several_former_layouts_are_retired_at_once() {
    let (mut cluster, _) = four_nodes(2);
    for (version, nodes) in [(2, [0, 1, 3]), (3, [0, 3, 2])] {
        let layout = cluster.layout_on(version, &nodes);
        cluster.system(cluster.next_layout(&layout));
        cluster.system(cluster.proof(0, version, 2));
    }
    assert_eq!(versions(&cluster), [3, 2, 1]);
    let proof = cluster.proof(3, 2, 2);
    check_ignored("a proof of a former layout", &mut cluster, proof);
    cluster.system(cluster.proof(3, 3, 2));
    cluster.system(cluster.proof(2, 3, 2));
    assert_eq!(versions(&cluster), [3]);
    check_replay(&cluster);
}

#[test]
fn at_most_eight_layouts_wait() {
    let mut cluster = Cluster::new();
    for version in 2..10 {
        let layout = cluster.layout_on(version, &[0, 1, 2]);
        let op = cluster.next_layout(&layout);
        check_logged(&mut cluster, op);
    }
    let layout = cluster.layout_on(10, &[0, 1, 2]);
    let op = cluster.next_layout(&layout);
    check_ignored("a ninth", &mut cluster, op.clone());
    for node in 0..3 {
        cluster.system(cluster.proof(node, 9, 0));
    }
    assert_eq!(versions(&cluster), [9]);
    check_logged(&mut cluster, op);
}

#[test]
fn a_layout_that_does_not_follow_is_ignored() {
    let (base, _) = four_nodes(1);
    let good = base.layout_on(2, &[0, 1, 3]);
    let stranger = NodeId::from_bytes([1; 16]);
    let mallory = Key::of("mallory");
    let with = |layout: &Layout, cluster: &ClusterId, by: &Key| layout.sign(cluster, by);
    let small = Layout::new(2, 10, 1, vec![base.nodes[0].0], vec![0; 1024]).unwrap();
    let unknown = Layout::new(2, 12, 1, vec![base.nodes[0].0, stranger], vec![0; 4096]).unwrap();
    let signed = with(&good, &base.id, &base.admin);
    let mut long = signed.clone();
    long.push(0);
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("trailing bytes", long),
        ("by somebody else", with(&good, &base.id, &mallory)),
        ("for another cluster", with(&good, &ClusterId::from_bytes([1; 32]), &base.admin)),
        ("the same version", with(&base.layout_on(1, &[0, 1, 3]), &base.id, &base.admin)),
        ("a version too far", with(&base.layout_on(3, &[0, 1, 3]), &base.id, &base.admin)),
        ("other partitions", with(&small, &base.id, &base.admin)),
        ("a stranger", with(&unknown, &base.id, &base.admin)),
    ];
    for (what, layout) in rows {
        check_ignored(what, &mut base.clone(), SystemOp::NextLayout { layout });
    }
    let op = SystemOp::NextLayout { layout: signed };
    check_ignored("version 1", &mut base.clone().of_version_1(), op.clone());
    let mut cluster = base.clone();
    check_logged(&mut cluster, op.clone());
    check_ignored("the same again", &mut cluster, op);
    check_ignored("before the beginning", &mut before(), cluster.next_layout(&good));
}

fn before() -> Cluster {
    Cluster::before_genesis(&crate::kit::ClusterOptions::usual())
}

#[test]
fn a_proof_that_does_not_check_out_is_ignored() {
    let (mut cluster, _) = four_nodes(5);
    let id = cluster.id;
    let sign = |proof: ShareProof, by: &Key, domain: Domain, cluster: &ClusterId| {
        let proof = encode(&proof);
        let signature = by.sign(domain, cluster, &proof);
        SystemOp::ShareProof { proof, signature }
    };
    let (node, own) = cluster.nodes[0].clone();
    let good = ShareProof { node, layout: 1, position: 3 };
    let first = cluster.proof(0, 1, 3);
    check_logged(&mut cluster, first.clone());
    let mallory = Key::of("mallory");
    let later = ShareProof { position: 4, ..good };
    let stranger = ShareProof { node: NodeId::from_bytes([1; 16]), ..later };
    let SystemOp::ShareProof { mut proof, .. } = cluster.proof(0, 1, 4) else { panic!() };
    proof.push(0);
    let signature = own.sign(Domain::ShareProof, &id, &proof);
    let rows = [
        ("the same again", first),
        ("an earlier position", cluster.proof(0, 1, 2)),
        ("a position no row has", cluster.proof(1, 1, 6)),
        ("another layout", cluster.proof(1, 2, 3)),
        ("a node without a share", cluster.proof(3, 1, 3)),
        ("a foreign key", sign(later, &mallory, Domain::ShareProof, &id)),
        ("a stranger", sign(stranger, &mallory, Domain::ShareProof, &id)),
        ("another purpose", sign(later, &own, Domain::NodeReport, &id)),
        ("another cluster", {
            sign(later, &own, Domain::ShareProof, &ClusterId::from_bytes([1; 32]))
        }),
        ("trailing bytes", SystemOp::ShareProof { proof, signature }),
    ];
    for (what, op) in rows {
        check_ignored(what, &mut cluster, op);
    }
    let op = cluster.proof(0, 1, 4);
    check_ignored("version 1", &mut cluster.clone().of_version_1(), op.clone());
    check_logged(&mut cluster, op);
}

// -- what nodes should hold -----------------------------------------------------------------------

/// All rows of a node, a few at a time.
fn rows_of(
    cluster: &Cluster,
    layouts: &[Layout],
    node: NodeId,
    limit: usize,
) -> (Vec<ChunkRow>, usize) {
    let (mut all, mut after, mut calls) = (Vec::new(), None, 0);
    loop {
        let (rows, next) =
            query::rows_of(&cluster.tables, layouts, node, after.as_ref(), limit).unwrap();
        assert!(rows.len() <= limit);
        all.extend(rows);
        calls += 1;
        let Some(next) = next else { return (all, calls) };
        assert!(after < Some(next), "it goes on");
        after = Some(next);
    }
}

#[test]
fn a_node_sees_each_of_its_chunks_once() {
    let (mut cluster, mut alice) = four_nodes(200);
    // Every chunk once more, and some a third time.
    write(&mut cluster, &mut alice, "b", 0..200);
    write(&mut cluster, &mut alice, "c", 50..60);
    let nodes: Vec<NodeId> = cluster.nodes.iter().map(|(id, _)| *id).collect();
    let third = |shift: u16| {
        let table = (0..4096).map(|partition| (partition / 3 + shift) % 4).collect();
        Layout::new(2, 12, 1, nodes.clone(), table).unwrap()
    };
    let both = [third(0), third(1)];
    for layouts in [&both[..1], &both[..]] {
        for node in &nodes {
            let holds = |chunk: &ChunkId| {
                layouts.iter().any(|layout| layout.holds(*node, Partition::of(chunk, 12)))
            };
            let expected: BTreeSet<ChunkId> =
                (0..200).map(|number| chunk(number).chunk).filter(holds).collect();
            assert!(!expected.is_empty());
            for limit in [1, 3, 10_000] {
                let (rows, calls) = rows_of(&cluster, layouts, *node, limit);
                let found: Vec<ChunkId> = rows.iter().map(|row| row.chunk).collect();
                assert_eq!(found, expected.iter().copied().collect::<Vec<_>>());
                assert!(calls <= expected.len() / limit + 2, "{calls} calls");
            }
        }
    }
    let stranger = NodeId::from_bytes([1; 16]);
    assert_eq!(rows_of(&cluster, &both, stranger, 9), (Vec::new(), 1));
}

/// The ends of chunk-id space, and partitions of all sizes.
#[test]
fn no_chunk_falls_between_two_answers() {
    let mut cluster = Cluster::new();
    let mut alice = User::join(&mut cluster, "alice");
    let edge = |prefix: u16, rest: u8| {
        let mut id = [rest; 32];
        id[..2].copy_from_slice(&prefix.to_be_bytes());
        ChunkId::from_bytes(id)
    };
    let mut ids = BTreeSet::new();
    for prefix in [0, 1, 15, 16, 17, 0x7fff, 0x8000, 0xffef, 0xfff0, 0xffff] {
        ids.extend([edge(prefix, 0), edge(prefix, 0x80), edge(prefix, u8::MAX)]);
    }
    let mut draft = Draft::new();
    let content = (0..)
        .zip(&ids)
        .map(|(slot, id)| (slot, coffer_model::manifest::SlotChunk { chunk: *id, ..chunk(slot) }));
    let content = content.collect();
    let slots = ids.len() as u64;
    let head = draft.head(inode("a"), None, 1, coffer_model::op::Base::Empty, (slots, &content));
    let changes =
        content.iter().map(|(slot, chunk)| (*slot, coffer_model::manifest::Slot::Chunk(*chunk)));
    draft.slots(changes.collect());
    let kind = coffer_model::object::Kind::File;
    let entry = draft.entry(key(alice.home, "a"), None, inode("a"), kind);
    let attrs = draft.attrs(inode("a"), None, "new");
    draft.push(coffer_model::op::Op::Create { entry, attrs, head: Some(head) });
    alice.act(&mut cluster, &draft);
    for bits in [10, 12, 16] {
        let table = (0..1u32 << bits).map(|partition| (partition % 2) as u16).collect();
        let nodes = vec![cluster.nodes[0].0, cluster.nodes[1].0];
        let layout = Layout::new(2, bits, 1, nodes.clone(), table).unwrap();
        let mut found = Vec::new();
        for node in nodes {
            let (rows, _) = rows_of(&cluster, std::slice::from_ref(&layout), node, 2);
            found.extend(rows.iter().map(|row| row.chunk));
        }
        found.sort_unstable();
        assert_eq!(found, ids.iter().copied().collect::<Vec<_>>(), "{bits} bits");
    }
}

// -- what nodes may forget ------------------------------------------------------------------------

#[test]
fn a_node_may_forget_what_nothing_needs_there() {
    let (mut cluster, mut alice) = four_nodes(3);
    let free = |cluster: &Cluster, node: usize, chunks: &[u64]| {
        let layouts = cluster.layouts();
        let chunks: Vec<ChunkId> = chunks.iter().map(|number| chunk(*number).chunk).collect();
        let node = cluster.nodes[node].0;
        query::releasable(&cluster.tables, &layouts, node, &chunks).unwrap().len()
    };
    // Chunk 9 is named by nobody.
    assert_eq!(free(&cluster, 0, &[0, 1, 9]), 1);
    // The fourth node has no share, but nobody has proven to hold what it might.
    assert_eq!(free(&cluster, 3, &[0, 1, 9]), 1);
    for node in 0..3 {
        cluster.system(cluster.proof(node, 1, 2));
    }
    assert_eq!(free(&cluster, 3, &[0, 1, 2, 9]), 3, "the third row is proven by nobody");
    assert_eq!(free(&cluster, 0, &[0, 1, 2, 9]), 1);
    // A chunk that is named once more is in question once more.
    write(&mut cluster, &mut alice, "b", 0..1);
    assert_eq!(free(&cluster, 3, &[0, 1]), 1);

    let layout = cluster.layout_on(2, &[0, 1, 3]);
    cluster.system(cluster.next_layout(&layout));
    for node in [0, 1] {
        cluster.system(cluster.proof(node, 2, 4));
    }
    assert_eq!(free(&cluster, 2, &[0, 1, 2, 9]), 1, "a former layout gives it to the node");
    cluster.system(cluster.proof(3, 2, 4));
    assert_eq!(free(&cluster, 2, &[0, 1, 2, 9]), 4);
    assert_eq!(free(&cluster, 3, &[0, 1, 2, 9]), 1);
    Checker::new(cluster.id).check(&cluster.tables);
}
