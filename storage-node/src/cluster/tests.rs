//! Tests of what a node takes up of what members say, and of what it knows after a restart.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use super::*;
use crate::kit::{self, CLUSTER, Key, administrator, layout, next_descriptor};

const NODE: NodeId = NodeId::from_bytes([1; 16]);
const OTHER: NodeId = NodeId::from_bytes([2; 16]);

fn first() -> Descriptor {
    let key = Key::of(1);
    let members = vec![kit::member(coffer_model::id::MemberId::from_u64(7), &key, "127.0.0.1:1")];
    let node = |id| kit::storage_node(id, coffer_model::signing::Signer::public_key(&key));
    kit::descriptor(members, vec![node(NODE), node(OTHER)])
}

fn open(dir: &Path) -> Arc<Cluster> {
    kit::cluster(dir, first())
}

/// Descriptors 1 to 3; the last one names other administrators, and no node.
fn following() -> Vec<(Descriptor, Bytes)> {
    let one = next_descriptor(&CLUSTER, &first(), |next| next.open_registration = true);
    let two = next_descriptor(&CLUSTER, &one.0, |next| next.nodes.truncate(1));
    let three = next_descriptor(&CLUSTER, &two.0, |next| next.nodes.clear());
    vec![one, two, three]
}

#[test]
fn descriptors_are_taken_up_in_order_and_known_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let following = following();
    let signed: Vec<Bytes> = following.iter().map(|(_, signed)| signed.clone()).collect();
    let cluster = open(dir.path());
    assert_eq!(*cluster.view().descriptor, first());
    // Not without those before.
    cluster.learn_descriptors(&signed[1..]).unwrap_err();
    assert_eq!(*cluster.view().descriptor, first());
    cluster.learn_descriptors(&signed[..2]).unwrap();
    assert!(cluster.view().names(NODE) && !cluster.view().names(OTHER));
    drop(cluster);
    let cluster = open(dir.path());
    assert_eq!(*cluster.view().descriptor, following[1].0);
    // None goes back.
    cluster.learn_descriptors(&signed[..1]).unwrap_err();
    cluster.learn_descriptors(&signed[2..]).unwrap();
    assert!(!cluster.view().names(NODE));
    drop(cluster);
    assert_eq!(*open(dir.path()).view().descriptor, following[2].0);
}

/// Those before a forged one count, and nothing of it.
#[test]
fn a_descriptor_that_nobody_vouches_for_is_not_taken_up() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = open(dir.path());
    let following = following();
    let forged = SignedDescriptor::next(&CLUSTER, &following[1].0, &[&Key::of(0xbb)]);
    let forged = Bytes::from(coffer_model::encoding::encode(&forged));
    let of_another = next_descriptor(&ClusterId::from_bytes([9; 32]), &following[0].0, |_| {}).1;
    cluster.learn_descriptors(&[following[0].1.clone(), forged]).unwrap_err();
    for bytes in [of_another, Bytes::new(), Bytes::from_static(b"no descriptor")] {
        cluster.learn_descriptors(&[bytes]).unwrap_err();
    }
    assert_eq!(*cluster.view().descriptor, following[0].0);
    drop(cluster);
    assert_eq!(*open(dir.path()).view().descriptor, following[0].0);
}

/// A volume on which something rotted says what comes before it; the rest comes again.
#[test]
fn a_stored_descriptor_that_rotted_is_learnt_again() {
    let dir = tempfile::tempdir().unwrap();
    let following = following();
    let signed: Vec<Bytes> = following.iter().map(|(_, signed)| signed.clone()).collect();
    open(dir.path()).learn_descriptors(&signed).unwrap();
    let path = dir.path().join("descriptors").join(file_name(2));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[40] ^= 1;
    std::fs::write(path, bytes).unwrap();
    let cluster = open(dir.path());
    assert_eq!(cluster.view().descriptor.number, 1);
    cluster.learn_descriptors(&signed[1..]).unwrap();
    drop(cluster);
    assert_eq!(open(dir.path()).view().descriptor.number, 3);
}

fn sign(layout: &Layout) -> Bytes {
    Bytes::from(layout.sign(&CLUSTER, &administrator()))
}

#[test]
fn a_chunk_belongs_by_any_layout_that_is_not_retired() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = open(dir.path());
    let chunk = ChunkId::from_bytes([7; 32]);
    let gives = |node| cluster.view().gives(node, &chunk);
    assert!(!gives(NODE), "no layout is known");
    let (old, new) = (layout(4, &[NODE]), layout(5, &[OTHER]));
    cluster.learn_layouts(&sign(&old), &[]).unwrap();
    assert!(gives(NODE) && !gives(OTHER));
    cluster.learn_layouts(&sign(&new), &[sign(&old)]).unwrap();
    assert!(gives(NODE) && gives(OTHER));
    assert_eq!(cluster.view().layout_version(), 5);
    cluster.learn_layouts(&sign(&new), &[]).unwrap();
    assert!(!gives(NODE) && gives(OTHER));
    // Members that are behind change nothing.
    cluster.learn_layouts(&sign(&new), &[sign(&old)]).unwrap();
    cluster.learn_layouts(&sign(&old), &[]).unwrap();
    assert!(!gives(NODE) && gives(OTHER));
}

/// Layouts are those of the administrators in force, and former ones are older.
#[test]
fn a_layout_that_no_administrator_signed_is_not_taken_up() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = open(dir.path());
    let (old, new) = (layout(4, &[NODE]), layout(5, &[OTHER]));
    let forged = |layout: &Layout| Bytes::from(layout.sign(&CLUSTER, &Key::of(0xbb)));
    cluster.learn_layouts(&forged(&new), &[]).unwrap_err();
    assert!(cluster.view().layout().is_none());
    cluster.learn_layouts(&sign(&new), &[forged(&old), sign(&layout(6, &[NODE]))]).unwrap();
    assert_eq!(cluster.view().layouts(), std::slice::from_ref(&new));
    let (_, signed) = next_descriptor(&CLUSTER, &first(), |next| {
        next.administrators = vec![coffer_model::signing::Signer::public_key(&Key::of(0xbb))];
    });
    cluster.learn_descriptors(&[signed]).unwrap();
    cluster.learn_layouts(&sign(&layout(7, &[NODE])), &[]).unwrap_err();
    cluster.learn_layouts(&forged(&layout(8, &[NODE])), &[]).unwrap();
    assert_eq!(cluster.view().layout_version(), 8);
}
