//! The first records of the cluster: made once, when everybody who founds it is there.
//!
//! The file `cluster`, written before anybody is given what is in it: the canonical encoding of the signed
//! descriptor and the signed layout. The file `keys`: of every id that ever got a certificate the key.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coffer_metadata_core::layout;
use coffer_model::SUITE;
use coffer_model::descriptor::{
    Descriptor, DescriptorError, Followed, Member, ReplacementPolicy, SignedDescriptor, StorageNode,
};
use coffer_model::encoding::{decode, encode};
use coffer_model::enrolment::{Applicant, Statement};
use coffer_model::id::{ClusterId, MemberId, NodeId};
use coffer_model::layout::LayoutError;
use coffer_model::signing::{PublicKey, Signer};
use coffer_service::files::{PRIVATE_FILE, write_atomically};

const CLUSTER_FILE: &str = "cluster";
const KEYS_FILE: &str = "keys";
/// Ids whose keys are kept.
const KEYS_MAX: usize = 100_000;
/// Who has not applied for this long is not counted as there: processes that wait apply every few seconds.
const PRESENT_FOR: Duration = Duration::from_secs(20);

/// Why records cannot be made, kept or taken up.
#[derive(Debug, thiserror::Error)]
pub enum FoundingError {
    /// A file cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{} is damaged; restore it from a backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// A descriptor does not check out.
    #[error("the descriptor does not check out")]
    Descriptor(#[from] DescriptorError),
    /// No layout, or one that does not check out.
    #[error("the layout does not check out")]
    Layout(#[from] LayoutError),
    /// Too many ids.
    #[error("more than {KEYS_MAX} ids have got certificates")]
    TooManyKeys,
    /// The system gave no randomness.
    #[error("the system gave no random bytes for a new cluster")]
    Random(#[source] getrandom::Error),
}

/// What the first records of a cluster say.
#[derive(Clone, Debug)]
pub struct First {
    /// The certificate authority, DER.
    pub authority: Vec<u8>,
    /// The metadata members.
    pub members: Vec<Member>,
    /// The storage nodes.
    pub nodes: Vec<StorageNode>,
    /// The standing replacement policy.
    pub replacement: Option<ReplacementPolicy>,
    /// Whether anybody may register.
    pub open_registration: bool,
}

/// The signed first records of a cluster.
#[derive(Clone, Debug)]
pub struct Records {
    /// The cluster.
    pub cluster: ClusterId,
    pub(crate) first: Descriptor,
    /// The encoded signed descriptor.
    pub descriptor: Vec<u8>,
    /// The signed layout.
    pub layout: Vec<u8>,
}

impl Records {
    /// Makes and signs the records of a new cluster that has one administrator.
    pub fn first(first: First, administrator: &impl Signer) -> Result<Self, FoundingError> {
        let First { authority, members, nodes, replacement, open_registration } = first;
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).map_err(FoundingError::Random)?;
        let cosigners =
            members.iter().map(|it| it.key).chain(nodes.iter().map(|it| it.key)).collect();
        let descriptor = Descriptor {
            suite: SUITE,
            number: 0,
            former: None,
            nonce,
            authority,
            administrators: vec![administrator.public_key()],
            quorum: 1,
            cosigners,
            members,
            nodes,
            replacement,
            open_registration,
        };
        let signed = SignedDescriptor::first(&descriptor, &[administrator]);
        let cluster = ClusterId::from_bytes(*descriptor.hash().as_bytes());
        let layout = layout::first(&descriptor.nodes)?.sign(&cluster, administrator);
        Self::check(encode(&signed), layout)
    }

    fn check(descriptor: Vec<u8>, layout: Vec<u8>) -> Result<Self, FoundingError> {
        let signed: SignedDescriptor =
            decode("cluster descriptor", &descriptor).map_err(DescriptorError::Malformed)?;
        let (cluster, first) = signed.verify_first(None)?;
        Followed::new(first.clone()).verify_layout(&layout, &cluster)?;
        Ok(Self { cluster, first, descriptor, layout })
    }
}

/// What a new cluster is to be.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) members: Vec<String>,
    pub(crate) nodes: Vec<String>,
    pub(crate) open_registration: bool,
    pub(crate) replacement: Option<ReplacementPolicy>,
}

/// The founding, under way or done.
pub(crate) struct Founding {
    dir: PathBuf,
    plan: Plan,
    records: Option<Records>,
    /// The latest statement from each address, and when it came.
    present: BTreeMap<String, (Statement, Instant)>,
    keys: BTreeMap<(Applicant, [u8; 16]), PublicKey>,
}

impl Founding {
    pub(crate) fn open(dir: &Path, plan: Plan) -> Result<Self, FoundingError> {
        let path = dir.join(CLUSTER_FILE);
        let records = match read(&path)? {
            Some(bytes) => {
                let damaged = |_| FoundingError::Damaged { path: path.clone() };
                let (descriptor, layout): (Vec<u8>, Vec<u8>) =
                    decode("records", &bytes).map_err(damaged)?;
                Some(Records::check(descriptor, layout)?)
            }
            None => None,
        };
        let path = dir.join(KEYS_FILE);
        let keys = match read(&path)? {
            Some(bytes) => decode::<Vec<(Applicant, [u8; 16], PublicKey)>>("keys", &bytes)
                .map_err(|_| FoundingError::Damaged { path })?
                .into_iter()
                .map(|(applicant, id, key)| ((applicant, id), key))
                .collect(),
            None => BTreeMap::new(),
        };
        Ok(Self { dir: dir.to_owned(), plan, records, present: BTreeMap::new(), keys })
    }

    pub(crate) fn records(&self) -> Option<&Records> {
        self.records.as_ref()
    }

    /// Whether this key is the one of this id, as far as anybody knows. A gateway's id says nothing, and is not
    /// kept.
    pub(crate) fn is_key_of(&self, statement: &Statement) -> bool {
        let named = self.records.as_ref().and_then(|records| match statement.applicant {
            Applicant::Member => records.first.member_key(MemberId::of_volume(&statement.id)),
            Applicant::Node => records.first.node_key(NodeId::from_bytes(statement.id)),
            Applicant::Gateway => None,
        });
        let kept = self.keys.get(&(statement.applicant, statement.id));
        named.is_none_or(|key| key == statement.key) && kept.is_none_or(|key| *key == statement.key)
    }

    /// Remembers the key of an id for ever.
    pub(crate) fn keep_key(&mut self, statement: &Statement) -> Result<(), FoundingError> {
        let id = (statement.applicant, statement.id);
        if statement.applicant == Applicant::Gateway || self.keys.contains_key(&id) {
            return Ok(());
        }
        if self.keys.len() >= KEYS_MAX {
            return Err(FoundingError::TooManyKeys);
        }
        self.keys.insert(id, statement.key);
        let all: Vec<_> =
            self.keys.iter().map(|((applicant, id), key)| (*applicant, *id, *key)).collect();
        let kept = self.write(KEYS_FILE, &encode(&all));
        if kept.is_err() {
            self.keys.remove(&id);
        }
        kept
    }

    /// Takes up the records of a cluster that a process already belongs to, if the administrator is among those
    /// who founded it: the join token alone makes nobody's cluster ours.
    pub(crate) fn take_up(
        &mut self,
        of: ClusterId,
        administrator: &PublicKey,
        descriptor: Vec<u8>,
        layout: Vec<u8>,
    ) -> Result<bool, FoundingError> {
        let records = Records::check(descriptor, layout)?;
        if records.cluster != of || !records.first.administrators.contains(administrator) {
            return Ok(false);
        }
        self.keep(records)?;
        Ok(true)
    }

    /// Notes who is there, and says which founding addresses have not applied lately.
    pub(crate) fn note(&mut self, statement: &Statement, now: Instant) -> Vec<String> {
        if self.wants(statement.applicant).contains(&statement.address) {
            self.present.insert(statement.address.clone(), (statement.clone(), now));
        }
        let is_there = |address: &&String, applicant| {
            self.present.get(*address).is_some_and(|(statement, seen)| {
                statement.applicant == applicant
                    && now.saturating_duration_since(*seen) < PRESENT_FOR
            })
        };
        let members = self.plan.members.iter().filter(|it| !is_there(it, Applicant::Member));
        let nodes = self.plan.nodes.iter().filter(|it| !is_there(it, Applicant::Node));
        members.chain(nodes).cloned().collect()
    }

    fn wants(&self, applicant: Applicant) -> &[String] {
        match applicant {
            Applicant::Member => &self.plan.members,
            Applicant::Node => &self.plan.nodes,
            Applicant::Gateway => &[],
        }
    }

    /// Makes the first records of those who are there, and keeps them.
    pub(crate) fn found(
        &mut self,
        authority: Vec<u8>,
        administrator: &impl Signer,
    ) -> Result<(), FoundingError> {
        let of = |address: &String| self.present.get(address).map(|(statement, _)| statement);
        let members: Vec<Member> = self
            .plan
            .members
            .iter()
            .filter_map(of)
            .map(|it| Member {
                id: MemberId::of_volume(&it.id),
                key: it.key,
                address: it.address.clone(),
            })
            .collect();
        let nodes: Vec<StorageNode> = self
            .plan
            .nodes
            .iter()
            .filter_map(of)
            .map(|it| StorageNode {
                id: NodeId::from_bytes(it.id),
                key: it.key,
                zone: it.zone.clone(),
                weight: it.weight,
            })
            .collect();
        let first = First {
            authority,
            members,
            nodes,
            replacement: self.plan.replacement.clone(),
            open_registration: self.plan.open_registration,
        };
        self.keep(Records::first(first, administrator)?)
    }

    /// Once kept, nothing else is ever given out.
    fn keep(&mut self, records: Records) -> Result<(), FoundingError> {
        self.write(CLUSTER_FILE, &encode(&(&records.descriptor, &records.layout)))?;
        self.present.clear();
        self.records = Some(records);
        Ok(())
    }

    fn write(&self, file: &str, bytes: &[u8]) -> Result<(), FoundingError> {
        let path = self.dir.join(file);
        write_atomically(&path, bytes, PRIVATE_FILE).map_err(|source| FoundingError::Io {
            action: "write",
            path,
            source,
        })
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, FoundingError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FoundingError::Io { action: "read", path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use coffer_join::token::JoinToken;

    use super::*;

    fn plan() -> Plan {
        Plan {
            members: vec!["m-0:1".into()],
            nodes: vec!["n-0:1".into(), "n-1:1".into()],
            open_registration: false,
            replacement: None,
        }
    }

    fn statement(applicant: Applicant, number: u8, address: &str) -> Statement {
        Statement {
            version: 1,
            applicant,
            id: [number; 16],
            key: PublicKey::from_bytes([number; 32]),
            address: address.into(),
            zone: String::new(),
            weight: 1,
            names: Vec::new(),
            request: Vec::new(),
            cluster: None,
        }
    }

    fn founded(dir: &Path) -> (Founding, PublicKey) {
        let mut founding = Founding::open(dir, plan()).unwrap();
        let now = Instant::now();
        founding.note(&statement(Applicant::Member, 1, "m-0:1"), now);
        founding.note(&statement(Applicant::Node, 2, "n-0:1"), now);
        assert!(founding.note(&statement(Applicant::Node, 3, "n-1:1"), now).is_empty());
        // Any key can stand for an administrator's here.
        let administrator = JoinToken::random().unwrap();
        founding.found(b"authority".to_vec(), &administrator).unwrap();
        (founding, administrator.public_key())
    }

    /// Goal: nobody is counted who may be gone, is another kind of process, or is not wanted.
    #[test]
    fn everybody_has_to_be_there_at_one_time() {
        let dir = tempfile::tempdir().unwrap();
        let mut founding = Founding::open(dir.path(), plan()).unwrap();
        let now = Instant::now();
        founding.note(&statement(Applicant::Member, 1, "m-0:1"), now);
        founding.note(&statement(Applicant::Node, 2, "n-0:1"), now);
        let later = now + PRESENT_FOR;
        let awaited = founding.note(&statement(Applicant::Node, 3, "n-1:1"), later);
        assert_eq!(awaited, ["m-0:1", "n-0:1"]);
        founding.note(&statement(Applicant::Node, 4, "m-0:1"), later);
        founding.note(&statement(Applicant::Gateway, 5, "n-0:1"), later);
        let awaited = founding.note(&statement(Applicant::Node, 6, "elsewhere:1"), later);
        assert_eq!(awaited, ["m-0:1", "n-0:1"]);
    }

    /// Goal: there is one founding, and it names the volume that was there last. Method: a pod comes again
    /// with a new volume before the founding, and the authority starts again after it.
    #[test]
    fn what_was_founded_stays() {
        let dir = tempfile::tempdir().unwrap();
        let mut founding = Founding::open(dir.path(), plan()).unwrap();
        founding.note(&statement(Applicant::Node, 9, "n-0:1"), Instant::now());
        drop(founding);
        let records = founded(dir.path()).0.records().cloned().unwrap();
        let named: Vec<NodeId> = records.first.nodes.iter().map(|node| node.id).collect();
        assert_eq!(named, [NodeId::from_bytes([2; 16]), NodeId::from_bytes([3; 16])]);
        let again = Founding::open(dir.path(), plan()).unwrap();
        assert_eq!(again.records().unwrap().cluster, records.cluster);
        std::fs::write(dir.path().join(CLUSTER_FILE), b"else").unwrap();
        assert!(matches!(Founding::open(dir.path(), plan()), Err(FoundingError::Damaged { .. })));
    }

    /// Goal: an id keeps its key, over restarts, and by the descriptor too where the keys are lost.
    #[test]
    fn an_id_has_one_key() {
        let dir = tempfile::tempdir().unwrap();
        let (mut founding, _) = founded(dir.path());
        let newcomer = statement(Applicant::Node, 7, "n-0:1");
        founding.keep_key(&newcomer).unwrap();
        let mut founding = Founding::open(dir.path(), plan()).unwrap();
        let forged = |number| Statement {
            key: PublicKey::from_bytes([99; 32]),
            ..statement(Applicant::Node, number, "n-0:1")
        };
        assert!(founding.is_key_of(&newcomer) && !founding.is_key_of(&forged(7)));
        std::fs::remove_file(dir.path().join(KEYS_FILE)).unwrap();
        founding.keys.clear();
        assert!(founding.is_key_of(&forged(7)) && !founding.is_key_of(&forged(2)));
        assert!(founding.is_key_of(&statement(Applicant::Gateway, 2, "")));
    }

    /// Goal: an authority without records takes up those of a cluster, and of the one that was named only.
    #[test]
    fn records_are_taken_up_as_they_are() {
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (founding, administrator) = founded(old.path());
        let records = founding.records().cloned().unwrap();
        let mut founding = Founding::open(new.path(), plan()).unwrap();
        let other = ClusterId::from_bytes([1; 32]);
        let Records { descriptor, layout, cluster, .. } = records;
        let mut take_up = |of, administrator: &PublicKey, layout: &[u8]| {
            founding.take_up(of, administrator, descriptor.clone(), layout.to_vec())
        };
        assert!(!take_up(other, &administrator, &layout).unwrap());
        // A cluster that somebody else founded, though all of it checks out.
        assert!(!take_up(cluster, &PublicKey::from_bytes([9; 32]), &layout).unwrap());
        let mut bent = layout.clone();
        *bent.last_mut().unwrap() ^= 1;
        assert!(take_up(cluster, &administrator, &bent).is_err());
        assert!(!new.path().join(CLUSTER_FILE).exists());
        assert!(take_up(cluster, &administrator, &layout).unwrap());
        let again = Founding::open(new.path(), plan()).unwrap();
        assert_eq!(again.records().unwrap().cluster, cluster);
    }
}
