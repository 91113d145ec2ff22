//! What a member knows about the group it is in, from the administrator-signed records. The first ones
//! are read at the start; the descriptors that follow them come through the log.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use coffer_metadata_core::{TableError, Tables, query};
use coffer_model::descriptor::{Descriptor, DescriptorError, Member, SignedDescriptor};
use coffer_model::encoding::{Malformed, decode};
use coffer_model::id::{ClusterId, MemberId, NodeId};
use coffer_model::layout::{Layout, LayoutError};
use coffer_model::signing::PublicKey;
use coffer_service::identity::ProcessIdentity;
use coffer_service::peer::PeerId;

use crate::clock::Clock;
use crate::config::Config;

/// A metadata member's role, as it stands in its certificate and on its volume.
pub const ROLE: &str = "metadata";
/// A storage node's role, as it stands in its certificate.
pub(crate) const STORAGE_ROLE: &str = "storage";
/// A descriptor or a layout longer than this is not one.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Why the signed records cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The descriptor file holds something else.
    #[error("{} is not a signed descriptor", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Malformed,
    },
    /// The descriptor is refused.
    #[error("the descriptor {} is refused", path.display())]
    Descriptor {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: DescriptorError,
    },
    /// The layout is refused.
    #[error("the layout {} is refused", path.display())]
    Layout {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: LayoutError,
    },
    /// This process is not in the descriptor.
    #[error(
        "this process is member {member} with key {key}, which the descriptor does not name; mount the \
         volume of a member, or have an administrator sign a descriptor with this one"
    )]
    NotAMember {
        /// This process.
        member: MemberId,
        /// Its key.
        key: PublicKey,
    },
}

/// The id of the member that has this identity: the first eight bytes of the volume's random id, read
/// as a little-endian number.
pub fn member_id(identity: &ProcessIdentity) -> MemberId {
    MemberId::of_volume(identity.id())
}

/// The member a certificate says it is for, if it is a member's. Whether the descriptor names that
/// member is another question.
pub(crate) fn member_of_peer(peer: &PeerId) -> Option<MemberId> {
    (peer.role() == ROLE).then(|| MemberId::of_volume(peer.id()))
}

/// The signed records, checked.
pub(crate) struct Records {
    pub(crate) cluster: ClusterId,
    /// The first descriptor.
    pub(crate) first: Descriptor,
    /// The latest descriptor that is known without the log.
    pub(crate) descriptor: Descriptor,
    /// The exact bytes of the first descriptor with its signatures.
    pub(crate) signed_descriptor: Vec<u8>,
    /// The exact bytes of the first layout with its signature.
    pub(crate) signed_layout: Vec<u8>,
}

impl Records {
    /// Reads them as the configuration says, and follows the files of later descriptors that there are.
    pub(crate) fn read(config: &Config) -> Result<Self, GroupError> {
        let (descriptor_path, layout_path) = (&config.descriptor, &config.layout);
        let signed_descriptor = read_bounded(descriptor_path)?;
        let path = || descriptor_path.clone();
        let signed: SignedDescriptor = decode("signed descriptor", &signed_descriptor)
            .map_err(|source| GroupError::Malformed { path: path(), source })?;
        let (cluster, descriptor) = signed
            .verify_first(None)
            .map_err(|source| GroupError::Descriptor { path: path(), source })?;
        let signed_layout = read_bounded(layout_path)?;
        Layout::verify(&signed_layout, &cluster, &descriptor.administrators)
            .map_err(|source| GroupError::Layout { path: layout_path.clone(), source })?;
        let first = descriptor.clone();
        let mut descriptor = descriptor;
        let joined = Some(config.joined_file()).filter(|path| path.exists());
        for path in joined.iter().chain(&config.successors) {
            descriptor = follow_file(path, &cluster, descriptor)?;
        }
        Ok(Self { cluster, first, descriptor, signed_descriptor, signed_layout })
    }
}

impl Records {
    /// Checks that the latest descriptor known without the log names this process.
    pub(crate) fn check_named(&self, identity: &ProcessIdentity) -> Result<(), GroupError> {
        named(&self.descriptor, identity).map(|_| ())
    }
}

fn named(descriptor: &Descriptor, identity: &ProcessIdentity) -> Result<MemberId, GroupError> {
    use coffer_model::signing::Signer as _;
    let (member, key) = (member_id(identity), identity.public_key());
    if descriptor.member_key(member) == Some(key) {
        Ok(member)
    } else {
        Err(GroupError::NotAMember { member, key })
    }
}

/// The descriptor in force by what the log has brought; none before there is a cluster.
pub(crate) fn latest_descriptor(tables: &impl Tables) -> Result<Option<Descriptor>, TableError> {
    let Some(signed) = query::descriptor(tables)? else { return Ok(None) };
    let damaged = |error: Malformed| TableError(error.to_string());
    let signed: SignedDescriptor = decode("signed descriptor", &signed).map_err(damaged)?;
    // It was checked before it was kept.
    decode("descriptor", &signed.bytes).map(Some).map_err(damaged)
}

/// The last descriptor of a file of successors, of which each follows the one before; those that are known
/// already are passed over.
fn follow_file(
    path: &Path,
    cluster: &ClusterId,
    first: Descriptor,
) -> Result<Descriptor, GroupError> {
    let malformed = |source| GroupError::Malformed { path: path.to_owned(), source };
    let successors: Vec<Vec<u8>> =
        decode("list of descriptors", &read_bounded(path)?).map_err(malformed)?;
    first
        .follow(cluster, &successors)
        .map_err(|source| GroupError::Descriptor { path: path.to_owned(), source })
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, GroupError> {
    let failed = |source| GroupError::Read { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(failed)?.len() > FILE_BYTES_MAX {
        let reason = "it is longer than 16 MiB";
        return Err(failed(std::io::Error::new(std::io::ErrorKind::FileTooLarge, reason)));
    }
    std::fs::read(path).map_err(failed)
}

/// Who called, as the descriptor knows them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Process {
    /// A metadata member.
    Member(MemberId),
    /// A storage node.
    Node(NodeId),
}

/// The group, and which member of it this process is.
pub(crate) struct Group {
    pub(crate) records: Records,
    pub(crate) identity: Arc<ProcessIdentity>,
    pub(crate) me: MemberId,
    pub(crate) clock: Clock,
    current: RwLock<Current>,
}

#[derive(Clone)]
struct Current {
    descriptor: Arc<Descriptor>,
    /// Members that the descriptor does not name any more, and that are still in the Raft group: it
    /// takes them to make a group without them.
    leaving: Arc<[Member]>,
}

impl Group {
    /// The group of this process, as far as it is known without the log. `latest` is what the log on the
    /// volume says, where there is one already.
    pub(crate) fn new(
        records: Records,
        latest: Option<Descriptor>,
        identity: ProcessIdentity,
    ) -> Result<Self, GroupError> {
        let descriptor = latest
            .filter(|latest| latest.number > records.descriptor.number)
            .unwrap_or_else(|| records.descriptor.clone());
        let me = named(&descriptor, &identity)?;
        let current = Current { descriptor: Arc::new(descriptor), leaving: Arc::new([]) };
        let (identity, current) = (Arc::new(identity), RwLock::new(current));
        Ok(Self { records, identity, me, clock: Clock::default(), current })
    }

    pub(crate) const fn cluster(&self) -> ClusterId {
        self.records.cluster
    }

    /// The latest descriptor this member knows.
    pub(crate) fn descriptor(&self) -> Arc<Descriptor> {
        Arc::clone(&self.read().descriptor)
    }

    /// Takes a later descriptor, and notes which members that were known so far are still in the Raft
    /// group. Says whether anything changed.
    pub(crate) fn follow(&self, latest: Option<Descriptor>, in_raft: &BTreeSet<u64>) -> bool {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let known: Vec<Member> =
            current.descriptor.members.iter().chain(current.leaving.iter()).cloned().collect();
        let descriptor = match latest {
            Some(latest) if latest.number > current.descriptor.number => Arc::new(latest),
            _ => Arc::clone(&current.descriptor),
        };
        let leaving: Arc<[Member]> = known
            .into_iter()
            .filter(|member| {
                in_raft.contains(&member.id.as_u64()) && descriptor.member_key(member.id).is_none()
            })
            .collect();
        let changed = descriptor.number != current.descriptor.number || leaving != current.leaving;
        *current = Current { descriptor, leaving };
        changed
    }

    /// A member by its id, also one that is leaving.
    pub(crate) fn member(&self, id: MemberId) -> Option<Member> {
        self.all().into_iter().find(|member| member.id == id)
    }

    /// The other members, also those that are leaving.
    pub(crate) fn others(&self) -> Vec<Member> {
        self.all().into_iter().filter(|member| member.id != self.me).collect()
    }

    fn all(&self) -> Vec<Member> {
        let current = self.read().clone();
        current.descriptor.members.iter().chain(current.leaving.iter()).cloned().collect()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who a certificate belongs to, if the descriptor names them. A certificate alone admits nobody.
    pub(crate) fn process(&self, peer: &PeerId) -> Option<Process> {
        if let Some(id) = member_of_peer(peer) {
            return self.member(id).map(|_| Process::Member(id));
        }
        let id = NodeId::from_bytes(*peer.id());
        let known = peer.role() == STORAGE_ROLE && self.descriptor().node_key(id).is_some();
        known.then_some(Process::Node(id))
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("cluster", &self.records.cluster)
            .field("me", &self.me)
            .finish_non_exhaustive()
    }
}
