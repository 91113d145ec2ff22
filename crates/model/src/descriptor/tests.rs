#![allow(clippy::unwrap_used)]

use ed25519_dalek::{Signer as _, SigningKey};

use super::*;
use crate::signing::signed_bytes;

struct Key(SigningKey);

impl Key {
    fn new(seed: u8) -> Self {
        Self(SigningKey::from_bytes(&[seed; 32]))
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

fn administrator() -> Key {
    Key::new(1)
}
fn token() -> Key {
    Key::new(2)
}
fn member(number: u8) -> Key {
    Key::new(0x10 + number)
}
fn node(number: u8) -> Key {
    Key::new(0x20 + number)
}
fn newcomer() -> Key {
    Key::new(0x30)
}
fn member_id(number: u8) -> MemberId {
    MemberId::from_u64(u64::from(number) + 1)
}
fn node_id(number: u8) -> NodeId {
    NodeId::from_bytes([number + 1; 16])
}
const NEW_NODE: NodeId = NodeId::from_bytes([0x77; 16]);
const NEW_MEMBER: MemberId = MemberId::from_u64(0x77);

fn former() -> Descriptor {
    Descriptor {
        suite: crate::SUITE,
        number: 4,
        former: Some(Hash::of("coffer/v1/descriptor", b"the one before")),
        nonce: [7; 16],
        authority: b"authority".to_vec(),
        administrators: vec![administrator().public_key()],
        quorum: 1,
        members: (0..3)
            .map(|number| Member {
                id: member_id(number),
                key: member(number).public_key(),
                address: format!("member-{number}:7400"),
            })
            .collect(),
        nodes: (0..3)
            .map(|number| StorageNode {
                id: node_id(number),
                key: node(number).public_key(),
                zone: format!("zone-{number}"),
                weight: 5,
            })
            .collect(),
        cosigners: Vec::new(),
        replacement: Some(ReplacementPolicy {
            silent_ms_min: 60_000,
            join_token: join_token_hash(&token().public_key()),
        }),
        open_registration: true,
    }
}

fn node_replaced() -> Descriptor {
    former().with_node_replaced(node_id(1), NEW_NODE, newcomer().public_key()).unwrap()
}

fn member_replaced() -> Descriptor {
    former().with_member_replaced(member_id(1), NEW_MEMBER, newcomer().public_key()).unwrap()
}

/// `next`, signed for a replacement by these.
fn signed(next: &Descriptor, by: &[Key]) -> SignedDescriptor {
    let bytes = encode(next);
    let signatures = by
        .iter()
        .map(|key| (key.public_key(), key.sign(Domain::Replacement, &CLUSTER, &bytes)))
        .collect();
    SignedDescriptor { bytes, signatures }
}

fn check(next: &Descriptor, by: &[Key]) -> Result<Link, DescriptorError> {
    signed(next, by).verify_link(&CLUSTER, &former()).map(|(found, link)| {
        assert_eq!(found, *next);
        link
    })
}

#[test]
fn the_token_and_a_majority_replace_one_volume() {
    let node = Replaced::Node { lost: node_id(1), new: NEW_NODE };
    let by = [token(), member(0), member(2)];
    assert_eq!(check(&node_replaced(), &by), Ok(Link::Replacement(node)));
    // The order of signatures, and more of them than are needed, change nothing.
    let by = [member(2), Key::new(0x70), member(1), token(), member(0)];
    assert_eq!(check(&node_replaced(), &by), Ok(Link::Replacement(node)));
    let member_seat = Replaced::Member { lost: member_id(1), new: NEW_MEMBER };
    let by = [token(), member(0), member(2)];
    assert_eq!(check(&member_replaced(), &by), Ok(Link::Replacement(member_seat)));
    let bytes = encode(&signed(&member_replaced(), &by));
    assert_eq!(former().follow(&CLUSTER, [bytes]), Ok(member_replaced()));
    let administered =
        SignedDescriptor::next(&CLUSTER, &node_replaced(), &[&administrator() as &dyn Signer]);
    let (_, link) = administered.verify_link(&CLUSTER, &former()).unwrap();
    assert_eq!(link, Link::Administrators);
}

/// Goal: nothing but one id and its key changes without an administrator. Method: each of the fields of a
/// good replacement is changed as well, and everybody signs it.
#[test]
fn nothing_else_may_change() {
    type Change = fn(&mut Descriptor);
    let rows: [(&str, Change); 22] = [
        ("two nodes", |next| {
            (next.nodes[0].id, next.nodes[0].key) =
                (NodeId::from_bytes([0x78; 16]), Key::new(0x31).public_key());
        }),
        ("a member as well", |next| {
            (next.members[0].id, next.members[0].key) = (NEW_MEMBER, Key::new(0x31).public_key());
        }),
        ("the zone", |next| next.nodes[1].zone = "zone-0".to_owned()),
        ("the weight", |next| next.nodes[1].weight = 6),
        ("another node's weight", |next| next.nodes[0].weight = 6),
        ("the order", |next| next.nodes.swap(0, 1)),
        ("a node more", |next| {
            let more = StorageNode { id: NodeId::from_bytes([0x79; 16]), ..next.nodes[0].clone() };
            next.nodes.push(more);
        }),
        ("a node less", |next| next.nodes.truncate(2)),
        ("a member less", |next| next.members.truncate(2)),
        ("an address", |next| next.members[1].address = "elsewhere:7400".to_owned()),
        ("the old key", |next| next.nodes[1].key = node(1).public_key()),
        ("the old id", |next| next.nodes[1].id = node_id(1)),
        ("another node's id", |next| next.nodes[1].id = node_id(0)),
        ("another node's key", |next| next.nodes[1].key = node(0).public_key()),
        ("a member's key", |next| next.nodes[1].key = member(0).public_key()),
        ("the token's key", |next| next.nodes[1].key = token().public_key()),
        ("the administrator's key", |next| next.nodes[1].key = administrator().public_key()),
        ("the administrators", |next| next.administrators.push(newcomer().public_key())),
        ("the policy", |next| next.replacement = None),
        ("registration", |next| next.open_registration = false),
        ("the number", |next| next.number += 1),
        ("the one before", |next| next.former = None),
    ];
    for (what, change) in rows {
        let mut next = node_replaced();
        change(&mut next);
        let found = check(&next, &[token(), member(0), member(1), member(2)]);
        assert!(matches!(found, Err(DescriptorError::NotReplacement(_))), "{what}: {found:?}");
    }
    let rows: [(&str, Change); 3] = [
        ("two members", |next| {
            (next.members[0].id, next.members[0].key) =
                (MemberId::from_u64(0x78), Key::new(0x31).public_key());
        }),
        ("the address", |next| next.members[1].address = "elsewhere:7400".to_owned()),
        ("another member's id", |next| next.members[1].id = member_id(0)),
    ];
    for (what, change) in rows {
        let mut next = member_replaced();
        change(&mut next);
        let found = check(&next, &[token(), member(0), member(1), member(2)]);
        assert!(matches!(found, Err(DescriptorError::NotReplacement(_))), "{what}: {found:?}");
    }
    let nobody = former().following().unwrap();
    let found = check(&nobody, &[token(), member(0), member(2)]);
    assert_eq!(found, Err(DescriptorError::NotReplacement("it replaces nobody")));
}

#[test]
fn who_signs_a_replacement() {
    let majority = Err(DescriptorError::NotReplacement("no majority of the members has signed it"));
    let unsigned = Err(DescriptorError::Signature);
    let next = member_replaced();
    assert_eq!(check(&next, &[token()]), majority);
    assert_eq!(check(&next, &[token(), member(0)]), majority, "one of three");
    assert_eq!(check(&next, &[token(), member(0), member(0)]), majority, "the same twice");
    assert_eq!(check(&next, &[token(), member(0), member(1)]), majority, "with the lost one");
    assert_eq!(check(&next, &[token(), member(0), newcomer()]), majority, "with the new one");
    assert_eq!(check(&next, &[token(), member(0), node(0)]), majority, "with a node");
    assert_eq!(check(&next, &[member(0), member(1), member(2)]), unsigned, "without the token");
    let by = [Key::new(0x40), member(0), member(1), member(2)];
    assert_eq!(check(&next, &by), unsigned, "the token of another cluster");
    assert_eq!(check(&next, &[administrator(), member(0), member(2)]), unsigned);

    // Signatures over other bytes, for another purpose or for another cluster count for nothing.
    let good = signed(&next, &[token(), member(0), member(2)]);
    let other = SignedDescriptor { bytes: encode(&node_replaced()), ..good.clone() };
    assert_eq!(other.verify_next(&CLUSTER, &former()), Err(DescriptorError::Signature));
    let there = ClusterId::from_bytes([8; 32]);
    assert_eq!(good.verify_next(&there, &former()), Err(DescriptorError::Signature));
    let mut purpose = good.clone();
    for (at, key) in [token(), member(0), member(2)].iter().enumerate() {
        purpose.signatures[at].1 = key.sign(Domain::Descriptor, &CLUSTER, &good.bytes);
    }
    assert_eq!(purpose.verify_next(&CLUSTER, &former()), Err(DescriptorError::Signature));

    let without = Descriptor { replacement: None, ..former() };
    let next = Descriptor { former: Some(without.hash()), replacement: None, ..next };
    let found = signed(&next, &[token(), member(0), member(2)]).verify_next(&CLUSTER, &without);
    assert_eq!(found, Err(DescriptorError::Signature), "no policy");
}

/// With one member nobody is left to vouch for it; it vouches for nodes alone.
#[test]
fn a_single_member_does_not_replace_itself() {
    let former = Descriptor { members: former().members[..1].to_vec(), ..former() };
    let next = former.with_member_replaced(member_id(0), NEW_MEMBER, newcomer().public_key());
    let signed_next = signed(&next.unwrap(), &[token(), member(0)]);
    assert!(signed_next.verify_next(&CLUSTER, &former).is_err());
    let next = former.with_node_replaced(node_id(0), NEW_NODE, newcomer().public_key()).unwrap();
    signed(&next, &[token(), member(0)]).verify_next(&CLUSTER, &former).unwrap();
}

/// Goal: a layout names a newcomer only where the descriptors put one. Method: replacements that the
/// reader has and has not followed, in chains, and ones that fit no place.
#[test]
fn a_layout_follows_the_replacements() {
    let ids: Vec<NodeId> = (0..4).map(node_id).collect();
    let table = (0..1u16 << 10).flat_map(|partition| [partition % 4, (partition + 1) % 4]);
    let layout = Layout::new(5, 10, 2, ids.clone(), table.collect()).unwrap();
    let first = layout.sign(&CLUSTER, &administrator());
    let keys = [administrator().public_key()];
    let pair = (ids[1], NEW_NODE);
    let second = Layout::with_replaced(&first, pair.0, pair.1).unwrap().unwrap();
    let found = Layout::verify_replaced(&second, &CLUSTER, &keys, &[pair]).unwrap();
    assert_eq!((found.version(), found.nodes()[1]), (6, NEW_NODE));
    assert!(found.partitions().all(|partition| {
        let renamed = layout.holders(partition).map(|id| if id == ids[1] { NEW_NODE } else { id });
        renamed.eq(found.holders(partition))
    }));
    assert_eq!(Layout::of_checked(&second), Ok(found));

    // Nobody has put it there.
    for known in [&[][..], &[(ids[1], ids[3])], &[(ids[0], NEW_NODE)]] {
        let refused = Layout::verify_replaced(&second, &CLUSTER, &keys, known);
        assert_eq!(refused, Err(LayoutError::NotReplaced(ids[1])));
    }
    assert!(Layout::verify(&second, &CLUSTER, &keys).is_err());
    let stranger = [Key::new(0x50).public_key()];
    let refused = Layout::verify_replaced(&second, &CLUSTER, &stranger, &[pair]);
    assert_eq!(refused, Err(LayoutError::Signature));

    // The newcomer is lost as well.
    let other = NodeId::from_bytes([0x78; 16]);
    let third = Layout::with_replaced(&second, NEW_NODE, other).unwrap().unwrap();
    let known = [pair, (NEW_NODE, other)];
    let found = Layout::verify_replaced(&third, &CLUSTER, &keys, &known).unwrap();
    assert_eq!((found.version(), found.nodes()[1]), (7, other));
    assert!(Layout::is_signed_by(&third, &CLUSTER, &keys));

    // Who has no place has none to give away, and nobody has two.
    assert_eq!(Layout::with_replaced(&third, ids[1], NEW_NODE), Ok(None));
    assert!(Layout::with_replaced(&third, ids[0], other).is_err());
    let damaged = [&first[..], &encode(&Vec::<(NodeId, NodeId)>::new())].concat();
    assert!(Layout::of_checked(&damaged).is_err(), "an empty list");
    let twice = [&first[..], &encode(&vec![pair, pair])].concat();
    assert!(Layout::of_checked(&twice).is_err());
}

#[test]
fn a_layout_carries_so_many_replacements() {
    let ids: Vec<NodeId> = (0..2).map(node_id).collect();
    let layout = Layout::new(1, 10, 1, ids, vec![0; 1 << 10]).unwrap();
    let mut signed = layout.sign(&CLUSTER, &administrator());
    let id = |number: usize| NodeId::from_bytes((1000 + number as u128).to_le_bytes());
    let mut last = node_id(0);
    for number in 0..crate::layout::REPLACEMENTS_MAX {
        signed = Layout::with_replaced(&signed, last, id(number)).unwrap().unwrap();
        last = id(number);
    }
    assert_eq!(Layout::of_checked(&signed).unwrap().version(), 257);
    assert!(Layout::with_replaced(&signed, last, NEW_NODE).is_err());
}
