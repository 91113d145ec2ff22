#![allow(clippy::unwrap_used)]

use ed25519_dalek::{Signer as _, SigningKey};

use super::*;
use crate::descriptor::Member;
use crate::id::MemberId;
use crate::signing::signed_bytes;

struct Key(SigningKey);

impl Key {
    fn new(fill: u8) -> Self {
        Self(SigningKey::from_bytes(&[fill; 32]))
    }
}

impl Signer for Key {
    fn public_key(&self) -> PublicKey {
        PublicKey::from_bytes(self.0.verifying_key().to_bytes())
    }

    fn sign(&self, domain: Domain, cluster: &ClusterId, bytes: &[u8]) -> Signature {
        Signature::from_bytes(self.0.sign(&signed_bytes(domain, cluster, bytes)).to_bytes())
    }
}

const CLUSTER: ClusterId = ClusterId::from_bytes([9; 32]);

/// A descriptor that two of three administrators have to sign the next one of.
fn descriptor(administrators: &[&Key]) -> Descriptor {
    Descriptor {
        suite: crate::SUITE,
        number: 7,
        former: None,
        nonce: [0; 16],
        authority: Vec::new(),
        administrators: administrators.iter().map(|key| key.public_key()).collect(),
        quorum: 2,
        members: vec![Member {
            id: MemberId::from_u64(1),
            key: Key::new(90).public_key(),
            address: "localhost:1".to_owned(),
        }],
        nodes: Vec::new(),
        cosigners: Vec::new(),
        replacement: None,
        open_registration: true,
    }
}

fn next(of: &Descriptor) -> Descriptor {
    Descriptor {
        number: of.number + 1,
        former: Some(of.hash()),
        open_registration: !of.open_registration,
        ..of.clone()
    }
}

fn present(descriptor: &Descriptor) -> Present<'_> {
    Present { cluster: CLUSTER, descriptor, order_number: 4 }
}

fn order(number: u64) -> Order {
    Order { number, what: Decision::Retention { ms: 1000 } }
}

/// Goal: a record is handed out for submission with as many different administrators' signatures as the
/// quorum says, and not before. Method: two of three sign a descriptor and an order, the file going from
/// one to the other as bytes; what comes out is what a member checks.
#[test]
fn two_of_three_are_enough_and_one_is_not() {
    let (a, b, c) = (Key::new(1), Key::new(2), Key::new(3));
    let now = descriptor(&[&a, &b, &c]);
    for mut proposal in [
        Proposal::of_descriptor(CLUSTER, &next(&now)),
        Proposal::of_order(CLUSTER, &order(5), None),
    ] {
        let refused = |signed| Err(ProposalError::TooFew { signed, quorum: 2 });
        assert_eq!(proposal.enough(present(&now)), refused(0));
        assert_eq!(proposal.sign(present(&now), &a).unwrap().lacking(), 1);
        assert_eq!(proposal.enough(present(&now)), refused(1));
        let mut proposal = Proposal::from_bytes(&proposal.to_bytes()).unwrap();
        let review = proposal.sign(present(&now), &c).unwrap();
        assert_eq!((review.lacking(), review.signed_by), (0, vec![a.public_key(), c.public_key()]));
        match proposal.enough(present(&now)).unwrap() {
            Signed::Descriptor(signed) => {
                assert_eq!(signed.verify_next(&CLUSTER, &now), Ok(next(&now)));
            }
            Signed::Order { bytes, signatures } => {
                assert_eq!(bytes, encode(&order(5)));
                assert!(now.approves(Domain::Order, &CLUSTER, &bytes, &signatures));
            }
        }
    }
}

/// Goal: whoever signs in vain is told why. Method: each fault alone.
#[test]
fn what_cannot_be_signed_says_why() {
    let (a, b, c, stranger) = (Key::new(1), Key::new(2), Key::new(3), Key::new(4));
    let now = descriptor(&[&a, &b, &c]);
    let mut proposal = Proposal::of_descriptor(CLUSTER, &next(&now));
    proposal.sign(present(&now), &a).unwrap();
    let signed_by_a = proposal.clone();

    let key = a.public_key();
    assert_eq!(proposal.sign(present(&now), &a), Err(ProposalError::SignedAlready { key }));
    let key = stranger.public_key();
    assert_eq!(
        proposal.sign(present(&now), &stranger),
        Err(ProposalError::NotAnAdministrator { key })
    );
    assert_eq!(proposal, signed_by_a);

    // Twice in the file, which no command writes.
    proposal.signatures.push(proposal.signatures[0]);
    let key = a.public_key();
    assert_eq!(proposal.review(present(&now)), Err(ProposalError::SignedAlready { key }));

    // The record was changed after it was signed.
    let other = Descriptor { quorum: 1, ..next(&now) };
    proposal = Proposal { record: Record::Descriptor(encode(&other)), ..signed_by_a.clone() };
    assert_eq!(proposal.review(present(&now)), Err(ProposalError::OtherBytes { key }));
    // The signature is for another purpose.
    proposal = Proposal { record: Record::Order(encode(&order(5))), ..signed_by_a.clone() };
    assert_eq!(proposal.review(present(&now)), Err(ProposalError::OtherBytes { key }));

    let elsewhere = Present { cluster: ClusterId::from_bytes([8; 32]), ..present(&now) };
    assert!(matches!(signed_by_a.review(elsewhere), Err(ProposalError::OtherCluster { .. })));
    let without_members = Descriptor { members: Vec::new(), ..next(&now) };
    assert!(matches!(
        Proposal::of_descriptor(CLUSTER, &without_members).review(present(&now)),
        Err(ProposalError::Refused(_))
    ));
}

/// Goal: what was made for a state that is gone is called stale, and what is done already is called that.
/// Method: the descriptor and the orders move on by the proposal itself and by others.
#[test]
fn a_proposal_is_stale_once_something_else_was_changed() {
    let (a, b, c) = (Key::new(1), Key::new(2), Key::new(3));
    let now = descriptor(&[&a, &b, &c]);
    let mut proposal = Proposal::of_descriptor(CLUSTER, &next(&now));
    proposal.sign(present(&now), &a).unwrap();
    assert_eq!(proposal.review(present(&next(&now))), Err(ProposalError::InForce));
    let other = Descriptor { quorum: 1, ..next(&now) };
    assert_eq!(
        proposal.sign(present(&other), &b),
        Err(ProposalError::Stale { what: "descriptor", number: 8, now: 8 })
    );
    let proposal = Proposal::of_order(CLUSTER, &order(4), None);
    assert_eq!(
        proposal.review(present(&now)),
        Err(ProposalError::Stale { what: "order", number: 4, now: 4 })
    );
}

/// Goal: the signature of an administrator who was taken out does not count. Method: two of three sign an
/// order; one of the two is taken out before it is submitted.
#[test]
fn the_signature_of_who_was_taken_out_does_not_count() {
    let (a, b, c) = (Key::new(1), Key::new(2), Key::new(3));
    let now = descriptor(&[&a, &b, &c]);
    let mut proposal = Proposal::of_order(CLUSTER, &order(5), None);
    proposal.sign(present(&now), &a).unwrap();
    proposal.sign(present(&now), &b).unwrap();
    assert!(proposal.enough(present(&now)).is_ok());
    let later = descriptor(&[&a, &c]);
    let review = proposal.review(present(&later)).unwrap();
    assert_eq!((review.lacking(), review.not_counted), (1, vec![b.public_key()]));
    assert_eq!(
        proposal.enough(present(&later)),
        Err(ProposalError::TooFew { signed: 1, quorum: 2 })
    );
    proposal.sign(present(&later), &c).unwrap();
    let Signed::Order { signatures, .. } = proposal.enough(present(&later)).unwrap() else {
        panic!("an order");
    };
    assert!(signatures.iter().all(|(key, _)| *key != b.public_key()));
}

/// Goal: no bytes from outside are taken for a proposal, and none panic. Method: every prefix of one, other
/// beginnings, another version, one that is too long, one with too many signatures.
#[test]
fn what_is_no_proposal_is_refused() {
    let a = Key::new(1);
    let now = descriptor(&[&a]);
    let mut proposal = Proposal::of_order(CLUSTER, &order(5), None);
    proposal.sign(present(&now), &a).unwrap();
    let bytes = proposal.to_bytes();
    assert_eq!(Proposal::from_bytes(&bytes), Ok(proposal.clone()));
    for length in 0..bytes.len() {
        assert!(Proposal::from_bytes(&bytes[..length]).is_err(), "{length}");
    }
    assert!(Proposal::from_bytes(&[bytes.as_slice(), &[0]].concat()).is_err());
    assert!(Proposal::from_bytes(b"something else altogether").is_err());
    let mut later = bytes.clone();
    later[8] = 2;
    assert_eq!(Proposal::from_bytes(&later), Err(ProposalError::UnknownVersion(2)));
    let mut long = bytes;
    long.resize(PROPOSAL_BYTES_MAX + 1, 0);
    assert!(matches!(Proposal::from_bytes(&long), Err(ProposalError::NotAProposal(_))));
    proposal.signatures = vec![proposal.signatures[0]; SIGNATURES_MAX + 1];
    assert_eq!(Proposal::from_bytes(&proposal.to_bytes()), Err(ProposalError::TooManySignatures));
}
