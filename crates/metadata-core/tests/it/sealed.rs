//! Sealed sessions: who may leave sealed keys with the cluster, and when they go.

use coffer_metadata_core::Reply;
use coffer_metadata_core::query::{self, SealedSession};
use coffer_model::object::{LeafHash, Object};
use coffer_model::op::{Op, Rejection, Rule};
use coffer_model::session::{CertificateHash, SESSION_MS_MAX};

use crate::invariants::Checker;
use crate::kit::{Cluster, Draft, User};

fn sealed(cluster: &Cluster, session: &CertificateHash) -> Option<SealedSession> {
    query::sealed_session(&cluster.tables, session).unwrap()
}

/// The one op of the draft, signed by the user's session, is refused for this.
fn check_refused(
    what: &str,
    cluster: &mut Cluster,
    user: &mut User,
    draft: &Draft,
    why: Rejection,
) {
    let reply = cluster.submit(&user.sign(cluster, draft));
    let Reply::Bundle { outcomes, .. } = reply else { panic!("{what}: {reply:?}") };
    assert_eq!(outcomes.last(), Some(&Err(why)), "{what}");
    Checker::new(cluster.id).check(&cluster.tables);
}

fn leaf_hash(cluster: &Cluster, draft: &Draft) -> LeafHash {
    draft.ops[0].changes()[0].leaf_hash(&cluster.id)
}

#[test]
fn a_session_leaves_its_sealed_keys_until_it_is_closed() {
    let mut cluster = Cluster::new();
    let mut alice = User::join_at_gateway(&mut cluster, "alice");
    let session = alice.certificate;
    assert_eq!(sealed(&cluster, &session), None);
    let mut draft = Draft::new();
    draft.seal_session(session, None, vec![1; 4096]);
    alice.act(&mut cluster, &draft);
    let kept = SealedSession { name: "alice".to_owned(), sealed: vec![1; 4096], ended: false };
    assert_eq!(sealed(&cluster, &session), Some(kept.clone()));
    // Sealed anew, in the place of the first.
    let standing = leaf_hash(&cluster, &draft);
    let mut draft = Draft::new();
    draft.seal_session(session, Some(standing), "anew");
    alice.act(&mut cluster, &draft);
    let kept = SealedSession { sealed: b"anew".to_vec(), ..kept };
    assert_eq!(sealed(&cluster, &session), Some(kept));
    Checker::new(cluster.id).check(&cluster.tables);
    // Another session closes this one.
    let mut draft = Draft::new();
    draft.push(alice.login(&cluster, 1));
    cluster.submit(&alice.by_identity(&cluster, &draft));
    let mut draft = Draft::new();
    draft.close_session(&cluster, session);
    alice.act(&mut cluster, &draft);
    assert_eq!(sealed(&cluster, &session), None);
    Checker::new(cluster.id).check(&cluster.tables);
}

#[test]
fn the_keys_of_a_session_that_has_run_out_are_told_as_such() {
    let mut cluster = Cluster::new();
    let mut alice = User::join_at_gateway(&mut cluster, "alice");
    let mut draft = Draft::new();
    draft.seal_session(alice.certificate, None, "keys");
    alice.act(&mut cluster, &draft);
    cluster.tick_by(SESSION_MS_MAX);
    assert!(sealed(&cluster, &alice.certificate).unwrap().ended);
}

#[test]
fn nobody_seals_what_is_not_theirs() {
    let mut cluster = Cluster::new();
    let mut alice = User::join_at_gateway(&mut cluster, "alice");
    let mut bob = User::join(&mut cluster, "bob");
    let rule = || Rejection::Invalid(Rule::SealedSession);
    let first = alice.certificate;
    let mut draft = Draft::new();
    draft.push(alice.login(&cluster, 1));
    cluster.submit(&alice.by_identity(&cluster, &draft));

    let mut draft = Draft::new();
    draft.seal_session(bob.certificate, None, "keys");
    check_refused("local custody", &mut cluster, &mut bob, &draft, rule());
    let mut draft = Draft::new();
    draft.seal_session(first, None, "keys");
    check_refused("somebody else", &mut cluster, &mut bob, &draft, rule());
    check_refused("another session of the same user", &mut cluster, &mut alice, &draft, rule());
    let own = alice.certificate;
    let mut draft = Draft::new();
    draft.seal_session(own, None, vec![1; 4097]);
    check_refused("too long", &mut cluster, &mut alice, &draft, rule());
    let mut draft = Draft::new();
    draft.seal_session(own, None, "keys");
    draft.payloads.blobs.clear();
    check_refused("no payload", &mut cluster, &mut alice, &draft, Rejection::Payload);
    let mut draft = Draft::new();
    draft.seal_session(own, Some(leaf_of(&cluster, own)), "keys");
    let conflict = Rejection::Conflict { object: Object::SealedSession(own), current: None };
    check_refused("nothing stands there", &mut cluster, &mut alice, &draft, conflict);
    let mut draft = Draft::new();
    draft.close_session(&cluster, own);
    draft.seal_session(own, None, "keys");
    check_refused("closed just before", &mut cluster, &mut alice, &draft, rule());
    assert_eq!(sealed(&cluster, &own), None);
}

fn leaf_of(cluster: &Cluster, session: CertificateHash) -> LeafHash {
    cluster.session(session).unwrap().hash
}

#[test]
fn before_version_2_nothing_is_sealed() {
    let mut cluster = Cluster::new();
    let mut alice = User::join_at_gateway(&mut cluster, "alice");
    let mut cluster = cluster.of_version_1();
    let mut draft = Draft::new();
    draft.seal_session(alice.certificate, None, "keys");
    assert!(matches!(draft.ops[0], Op::SealSession { .. }));
    let later = Rejection::Invalid(Rule::LaterVersion);
    check_refused("version 1", &mut cluster, &mut alice, &draft, later);
    cluster.system(coffer_model::log::SystemOp::CoreVersion { version: 2 });
    alice.act(&mut cluster, &draft);
}
