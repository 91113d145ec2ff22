//! Objects and leaves: everything the directory is made of. An object is a key, a leaf what stands
//! under it. A leaf's hash covers the hash of the leaf it replaced, so a value that comes back is
//! not mistaken for one that never left. What the server assigns (sequence, counts, times) stays
//! outside.

use borsh::{BorshDeserialize, BorshSerialize};

use crate::chunk::ChunkClass;
use crate::encoding::encode;
use crate::hash::Hash;
use crate::id::{ClusterId, InodeId, NameTag, PrincipalId, WriteId};
use crate::manifest::Root;
use crate::name::UserName;
use crate::session::{CertificateHash, SignedCertificate};
use crate::signing::PublicKey;

/// The longest wrap of a child's keys.
pub const WRAP_BYTES_MAX: usize = 256;
/// The most members one vault lists.
pub const VAULT_MEMBERS_MAX: usize = 1024;
/// The longest sealed keys of a session: a user's keyring is a few hundred bytes.
pub const SEALED_SESSION_BYTES_MAX: usize = 4096;

/// What an object is called.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, BorshSerialize, BorshDeserialize)]
pub enum Object {
    /// A name in a directory.
    Entry(EntryKey),
    /// The current version of a file or symlink.
    Head(InodeId),
    /// Mode, times and extended attributes.
    Attrs(InodeId),
    /// A subtree with one access list, by its root.
    Vault(InodeId),
    /// A user.
    User(UserName),
    /// A group; none exist yet.
    Group(UserName),
    /// A session.
    Session(CertificateHash),
    /// A partial version on its way to becoming one.
    Staged(StagedKey),
    /// The sealed keys of a session that a gateway keeps for a user in its custody.
    SealedSession(CertificateHash),
}

/// A name in a directory: the directory and the tag of the name.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, BorshSerialize, BorshDeserialize,
)]
pub struct EntryKey {
    /// The directory.
    pub directory: InodeId,
    /// The keyed hash of the name.
    pub tag: NameTag,
}

/// A partial version: which file it is for, and which write it belongs to.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, BorshSerialize, BorshDeserialize,
)]
pub struct StagedKey {
    /// The file it is for; it need not exist yet.
    pub inode: InodeId,
    /// The write.
    pub write: WriteId,
}

/// What kind of thing an inode is. Servers see it, for the tree's rules need it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = true)]
#[repr(u8)]
pub enum Kind {
    /// A directory.
    Directory = 0,
    /// A regular file.
    File = 1,
    /// A symbolic link; its target is the content.
    Symlink = 2,
    /// A named pipe; reserved.
    Fifo = 3,
    /// A device; reserved.
    Device = 4,
}

/// Whether a name stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum EntryState {
    /// The name points at its inode.
    Live,
    /// Tombstone: the name was removed; of a directory, with everything below.
    Deleted,
    /// Tombstone: the inode went to another name.
    Moved {
        /// Where it went.
        to: EntryKey,
    },
}

/// A name in a directory that points at an inode.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct EntryLeaf {
    /// What it points at; a tombstone keeps it.
    pub inode: InodeId,
    /// What kind of thing that is.
    pub kind: Kind,
    /// Whether the name stands.
    pub state: EntryState,
    /// Hash of the sealed name that travels beside the op.
    pub name: Hash,
    /// The child's keys, wrapped under the directory's; tombstones keep them.
    pub wrap: Vec<u8>,
    /// The generation of the directory key the wrap was made with.
    pub generation: u32,
    /// The log sequence up to which the mover of a subtree vouched for what is below; 0 for what
    /// was made here.
    pub adopted_at: u64,
}

/// The current version of a file's content.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct HeadLeaf {
    /// 1 for the first, one more for each next.
    pub version: u64,
    /// The write that made it; part of the sealing context of its payload and chunks.
    pub write: WriteId,
    /// The generation of the file key of the payload.
    pub generation: u32,
    /// How many bytes a slot covers.
    pub class: ChunkClass,
    /// How many slots there are.
    pub slots: u64,
    /// The manifest's root.
    pub root: Root,
    /// Hash of the sealed payload (length, time, inline content) that travels beside the op.
    pub payload: Hash,
    /// The version this one brought back; 0 for new content.
    pub restored: u64,
}

/// Mode, times and extended attributes, sealed.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct AttrsLeaf {
    /// Hash of the sealed attributes that travel beside the op.
    pub payload: Hash,
    /// The generation of the key they are sealed under.
    pub generation: u32,
}

/// What a member of a vault may do.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, BorshSerialize, BorshDeserialize,
)]
#[borsh(use_discriminant = true)]
#[repr(u8)]
pub enum Role {
    /// Read.
    Reader = 0,
    /// Read and change content.
    Writer = 1,
    /// Also change the access list.
    Admin = 2,
}

/// One member of a vault.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct VaultMember {
    /// Who.
    pub principal: PrincipalId,
    /// What they may do.
    pub role: Role,
    /// The vault's root key, sealed to the member's HPKE key.
    pub sealed_key: Vec<u8>,
}

/// A subtree with one access list.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct VaultLeaf {
    /// Whose quota pays for what is below.
    pub home: InodeId,
    /// The generation of the root key.
    pub epoch: u32,
    /// What the root key must hash to, so that no member can be given another.
    pub key_commitment: Hash,
    /// Members, ascending by principal.
    pub members: Vec<VaultMember>,
    /// The former root key sealed under this one, where newcomers may read history.
    pub former_key: Option<Vec<u8>>,
    /// Whether members in gateway custody may be added.
    pub gateway_custody: bool,
    /// Whether lengths are padded.
    pub padding: bool,
}

impl VaultLeaf {
    /// The role of a principal in this vault.
    pub fn role_of(&self, principal: PrincipalId) -> Option<Role> {
        let at = self.members.binary_search_by_key(&principal, |member| member.principal).ok()?;
        self.members.get(at).map(|member| member.role)
    }
}

/// Where a user's keys are opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = true)]
#[repr(u8)]
pub enum Custody {
    /// Only on the user's own machines.
    Local = 0,
    /// At a gateway, while logged in.
    Gateway = 1,
}

/// A user.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct UserLeaf {
    /// The random id everything else names the user by.
    pub principal: PrincipalId,
    /// Signs sessions.
    pub identity: PublicKey,
    /// Receives vault keys (X25519).
    pub hpke: [u8; 32],
    /// The root of the user's tree.
    pub home: InodeId,
    /// Where the keys are opened.
    pub custody: Custody,
    /// Hash of the sealed keyring that travels beside the op.
    pub keyring: Hash,
    /// Counts the keyrings, so that an old one cannot be served after a change.
    pub keyring_epoch: u64,
    /// Hash of the OPAQUE login record that travels beside the op.
    pub login_record: Hash,
    /// The invite the registration used; none where registration is open.
    pub invite: Option<Hash>,
}

/// A session in the log.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct SessionLeaf {
    /// The certificate, signed by the user's identity.
    pub certificate: SignedCertificate,
    /// Whether the session was closed before its time.
    pub closed: bool,
}

/// A partial version: its pages are kept and charged, but no reader sees it.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct StagedLeaf {
    /// The directory whose vault pays and permits.
    pub directory: InodeId,
    /// How many bytes a slot covers.
    pub class: ChunkClass,
    /// Slots so far.
    pub slots: u64,
    /// The root so far.
    pub root: Root,
}

/// The keys of a session in gateway custody, sealed under the bearer token, so that whichever gateway
/// is shown the token can serve the session.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct SealedSessionLeaf {
    /// Hash of the sealed keys that travel beside the op, at most 4 KiB.
    pub payload: Hash,
}

/// What stands under an object.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum Leaf {
    /// Under [`Object::Entry`].
    Entry(EntryLeaf),
    /// Under [`Object::Head`].
    Head(HeadLeaf),
    /// Under [`Object::Attrs`].
    Attrs(AttrsLeaf),
    /// Under [`Object::Vault`].
    Vault(VaultLeaf),
    /// Under [`Object::User`].
    User(UserLeaf),
    /// Under [`Object::Session`].
    Session(SessionLeaf),
    /// Under [`Object::Staged`].
    Staged(StagedLeaf),
    /// Under [`Object::SealedSession`].
    SealedSession(SealedSessionLeaf),
}

/// What names one state of one object.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, BorshSerialize, BorshDeserialize,
)]
pub struct LeafHash(Hash);

impl LeafHash {
    /// Takes a hash as the name of a leaf.
    pub const fn from_hash(hash: Hash) -> Self {
        Self(hash)
    }

    /// The hash.
    pub const fn as_hash(&self) -> &Hash {
        &self.0
    }

    /// The hash of `leaf` under `object`, replacing the leaf `former`.
    pub fn of(cluster: &ClusterId, object: &Object, former: Option<Self>, leaf: &Leaf) -> Self {
        Self(Hash::of("coffer/v1/leaf", &encode(&(cluster, object, former, leaf))))
    }
}

/// A leaf together with its hash.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AnyObjectLeaf {
    /// The leaf.
    pub leaf: Leaf,
    /// Its hash.
    pub hash: LeafHash,
}
