//! A lost volume is replaced by the standing policy: the descriptor, and for a storage node the layout.

use coffer_metadata_core::query;
use coffer_model::descriptor::{Descriptor, ReplacementPolicy, join_token_hash};
use coffer_model::id::{MemberId, NodeId};
use coffer_model::layout::Layout;
use coffer_model::log::SystemOp;
use coffer_model::signing::Signer;

use crate::invariants::Checker;
use crate::kit::{Cluster, Draft, Key, User, id16, inode, key};
use crate::random::check_replay;
use crate::system::{check_ignored, check_logged};

fn token() -> Key {
    Key::of("join token")
}

/// A cluster with a policy, of the version that acts on it.
fn with_policy() -> Cluster {
    let mut cluster = Cluster::new().of_version_3();
    set_policy(&mut cluster);
    cluster
}

fn set_policy(cluster: &mut Cluster) {
    let join_token = join_token_hash(&token().public_key());
    let policy = ReplacementPolicy { silent_ms_min: 60_000, join_token };
    cluster.change_descriptor(|next| next.replacement = Some(policy));
}

fn newcomer(word: &str) -> (NodeId, Key) {
    (NodeId::from_bytes(id16(word)), Key::of(word))
}

/// The next descriptor, in which a newcomer has the place of the first node that has it now.
fn replaced(cluster: &Cluster, at: usize, new: &(NodeId, Key)) -> Descriptor {
    let former = cluster.descriptor();
    let lost = former.nodes[at].id;
    former.with_node_replaced(lost, new.0, new.1.public_key()).unwrap()
}

/// Goal: a newcomer gets the share of the lost node, and the layout before is given up only when the
/// newcomer has proven it. Method: a file is there before; the newcomer proves last.
#[test]
fn a_newcomer_gets_the_share_and_has_to_prove_it() {
    let mut cluster = with_policy();
    let mut alice = User::join(&mut cluster, "alice");
    let mut draft = Draft::new();
    draft.create_file(&cluster, key(alice.home, "a"), inode("a"), &[1, 2, 3]);
    alice.act(&mut cluster, &draft);
    let report = cluster.report(1, 1);
    check_logged(&mut cluster, report);
    let proof = cluster.proof(1, 1, 3);
    check_logged(&mut cluster, proof);

    let (lost, new) = (cluster.nodes[1].0, newcomer("a new node"));
    let before = cluster.layouts().in_force().clone();
    let next = replaced(&cluster, 1, &new);
    let op = cluster.replacement(&next, &token(), 2);
    check_logged(&mut cluster, op.clone());
    assert_eq!(cluster.descriptor(), next);
    let layouts = cluster.layouts();
    let (after, former) = (layouts.in_force(), layouts.former());
    assert_eq!((after.version(), layouts.since), (2, 3));
    assert_eq!(former, std::slice::from_ref(&before));
    for partition in before.partitions() {
        let renamed = before.holders(partition).map(|id| if id == lost { new.0 } else { id });
        assert!(renamed.eq(after.holders(partition)));
    }
    let administrators = [cluster.admin_key()];
    let pairs = [(lost, new.0)];
    let signed = &layouts.signed[0];
    let read = Layout::verify_replaced(signed, &cluster.id, &administrators, &pairs);
    assert_eq!(read.as_ref(), Ok(after));
    assert!(query::nodes(&cluster.tables).unwrap().is_empty(), "where the lost one was");
    assert!(query::proofs(&cluster.tables).unwrap().is_empty(), "what the lost one had");
    check_ignored("the same again", &mut cluster, op);
    let proof = cluster.proof(1, 2, 3);
    check_ignored("a proof by the lost one", &mut cluster, proof);
    let report = cluster.report(1, 2);
    check_ignored("a report by the lost one", &mut cluster, report);

    cluster.nodes[1] = new;
    for (node, left) in [(0, 2), (2, 2), (1, 1)] {
        let proof = cluster.proof(node, 2, 3);
        check_logged(&mut cluster, proof);
        assert_eq!(cluster.layouts().signed.len(), left);
    }
    // Administrators go on from there.
    let layout = cluster.layout_on(3, &[1, 0, 2]);
    let op = cluster.next_layout(&layout);
    check_logged(&mut cluster, op);
    check_replay(&cluster);
    Checker::new(cluster.id).check(&cluster.tables);
}

#[test]
fn a_member_is_replaced_and_the_layout_stays() {
    let mut cluster = with_policy();
    let new = Key::of("a new member");
    let former = cluster.descriptor();
    let next =
        former.with_member_replaced(cluster.members[2].0, MemberId::from_u64(77), new.public_key());
    let next = next.unwrap();
    let op = cluster.replacement(&next, &token(), 1);
    check_ignored("one of three members", &mut cluster, op);
    let op = cluster.replacement(&next, &token(), 2);
    check_logged(&mut cluster, op);
    assert_eq!(cluster.descriptor(), next);
    assert_eq!(cluster.layouts().in_force().version(), 1);
    cluster.members[2] = (MemberId::from_u64(77), new);
    cluster.tick_by(1);
}

/// Goal: nobody is replaced but by the token of a policy, with a majority, at the version that knows of
/// it. Method: each of them is taken away once.
#[test]
fn what_the_policy_does_not_allow_is_ignored() {
    let base = with_policy();
    let new = newcomer("a new node");
    let next = replaced(&base, 0, &new);
    let good = base.replacement(&next, &token(), 2);
    let rows: Vec<(&str, SystemOp)> = vec![
        ("another token", base.replacement(&next, &Key::of("mallory"), 3)),
        ("no majority", base.replacement(&next, &token(), 1)),
        ("another zone", {
            let mut next = next.clone();
            next.nodes[0].zone = "elsewhere".to_owned();
            base.replacement(&next, &token(), 3)
        }),
    ];
    for (what, op) in rows {
        check_ignored(what, &mut base.clone(), op);
    }
    check_logged(&mut base.clone(), good);

    let mut version_2 = Cluster::new();
    set_policy(&mut version_2);
    let op = version_2.replacement(&replaced(&version_2, 0, &new), &token(), 3);
    check_ignored("version 2", &mut version_2, op);
    let without = Cluster::new().of_version_3();
    let op = without.replacement(&replaced(&without, 0, &new), &token(), 3);
    check_ignored("no policy", &mut without.clone(), op);
}

/// Where newcomers are lost before they have proven anything, layouts do not pile up without end.
#[test]
fn at_most_eight_layouts_wait_for_newcomers() {
    let mut cluster = with_policy();
    for number in 0..8 {
        let new = newcomer(&format!("newcomer {number}"));
        let op = cluster.replacement(&replaced(&cluster, 0, &new), &token(), 2);
        check_logged(&mut cluster, op);
        cluster.nodes[0] = new;
    }
    let new = newcomer("newcomer 8");
    let op = cluster.replacement(&replaced(&cluster, 0, &new), &token(), 2);
    check_ignored("a ninth", &mut cluster, op.clone());
    let proofs: Vec<SystemOp> = (0..3).map(|node| cluster.proof(node, 9, 0)).collect();
    for proof in proofs {
        check_logged(&mut cluster, proof);
    }
    assert!(cluster.layouts().former().is_empty());
    check_logged(&mut cluster, op);
}

/// A node that holds nothing leaves the layout as it is.
#[test]
fn a_node_without_a_share_is_replaced_without_a_layout() {
    let mut cluster = with_policy();
    cluster.add_node();
    let op = cluster.replacement(&replaced(&cluster, 3, &newcomer("new")), &token(), 2);
    check_logged(&mut cluster, op);
    assert_eq!(cluster.layouts().in_force().version(), 1);
}
