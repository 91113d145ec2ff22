//! What a member knows about the group it is in, from the administrator-signed records: read once at
//! the start, and the same until the process ends.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coffer_model::descriptor::{Descriptor, DescriptorError, Member, SignedDescriptor};
use coffer_model::encoding::{Malformed, decode};
use coffer_model::id::{ClusterId, MemberId, NodeId};
use coffer_model::layout::{Layout, LayoutError};
use coffer_model::signing::PublicKey;
use coffer_service::identity::ProcessIdentity;
use coffer_service::peer::PeerId;

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
    member_of(identity.id())
}

fn member_of(id: &[u8; 16]) -> MemberId {
    let [a, b, c, d, e, f, g, h, ..] = *id;
    MemberId::from_u64(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
}

/// The member a certificate says it is for, if it is a member's. Whether the descriptor names that
/// member is another question.
pub(crate) fn member_of_peer(peer: &PeerId) -> Option<MemberId> {
    (peer.role() == ROLE).then(|| member_of(peer.id()))
}

/// The signed records, checked.
pub(crate) struct Records {
    pub(crate) cluster: ClusterId,
    pub(crate) descriptor: Descriptor,
    /// The exact bytes of the descriptor with its signatures.
    pub(crate) signed_descriptor: Vec<u8>,
    /// The exact bytes of the first layout with its signature.
    pub(crate) signed_layout: Vec<u8>,
}

impl Records {
    pub(crate) fn read(descriptor_path: &Path, layout_path: &Path) -> Result<Self, GroupError> {
        let signed_descriptor = read_bounded(descriptor_path)?;
        let path = || descriptor_path.to_owned();
        let signed: SignedDescriptor = decode("signed descriptor", &signed_descriptor)
            .map_err(|source| GroupError::Malformed { path: path(), source })?;
        let (cluster, descriptor) = signed
            .verify_first(None)
            .map_err(|source| GroupError::Descriptor { path: path(), source })?;
        let signed_layout = read_bounded(layout_path)?;
        Layout::verify(&signed_layout, &cluster, &descriptor.administrators)
            .map_err(|source| GroupError::Layout { path: layout_path.to_owned(), source })?;
        Ok(Self { cluster, descriptor, signed_descriptor, signed_layout })
    }
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
}

impl Group {
    pub(crate) fn new(records: Records, identity: ProcessIdentity) -> Result<Self, GroupError> {
        use coffer_model::signing::Signer as _;
        let (me, key) = (member_id(&identity), identity.public_key());
        if records.descriptor.member_key(me) != Some(key) {
            return Err(GroupError::NotAMember { member: me, key });
        }
        Ok(Self { records, identity: Arc::new(identity), me })
    }

    pub(crate) const fn cluster(&self) -> ClusterId {
        self.records.cluster
    }

    pub(crate) const fn descriptor(&self) -> &Descriptor {
        &self.records.descriptor
    }

    /// A member by its id.
    pub(crate) fn member(&self, id: MemberId) -> Option<&Member> {
        self.records.descriptor.members.iter().find(|member| member.id == id)
    }

    /// The other members.
    pub(crate) fn others(&self) -> impl Iterator<Item = &Member> {
        self.records.descriptor.members.iter().filter(|member| member.id != self.me)
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
