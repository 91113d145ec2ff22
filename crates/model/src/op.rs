//! Ops: the changes of the directory that a principal signs. An op lists objects, the leaf each is
//! expected to hold, and the leaf it gets: compare-and-swap, object by object. Which objects an op
//! touches is fixed by its kind, so an op of the wrong shape does not decode.

use borsh::{BorshDeserialize, BorshSerialize};

use crate::id::{ClusterId, InodeId};
use crate::name::UserName;
use crate::object::{
    AttrsLeaf, EntryKey, EntryLeaf, HeadLeaf, Leaf, LeafHash, Object, SealedSessionLeaf,
    SessionLeaf, StagedKey, StagedLeaf, UserLeaf, VaultLeaf,
};
use crate::session::CertificateHash;
use crate::time::LogTime;

/// One object's change.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Change<K, L> {
    /// Which object.
    pub key: K,
    /// The hash of the leaf it must hold now; none where there must be nothing.
    pub expected: Option<LeafHash>,
    /// The leaf it gets.
    pub leaf: L,
}

/// A change of any object, for code that treats all alike.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AnyChange {
    /// Which object.
    pub object: Object,
    /// The hash of the leaf it must hold now.
    pub expected: Option<LeafHash>,
    /// The leaf it gets.
    pub leaf: Leaf,
}

impl AnyChange {
    /// The hash of the new leaf.
    pub fn leaf_hash(&self, cluster: &ClusterId) -> LeafHash {
        LeafHash::of(cluster, &self.object, self.expected, &self.leaf)
    }
}

/// Where a version's slots come from: the manifest the changed slots are put into.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum Base {
    /// An empty manifest.
    Empty,
    /// A version of the same file.
    Version(u64),
    /// The partial version with the head's own write id.
    Staged,
}

/// A head's change with what it takes to check it.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct HeadChange {
    /// The change.
    pub change: Change<InodeId, HeadLeaf>,
    /// What the changed slots are put into.
    pub base: Base,
    /// The smallest keep-until of the receipts of new chunks; refused once log time has passed it.
    pub receipts_until: Option<LogTime>,
}

/// One signed change of the directory.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum Op {
    /// A new user with the home's root. Signed by the identity it brings.
    Register {
        /// The user.
        user: Change<UserName, UserLeaf>,
        /// The home's vault.
        vault: Change<InodeId, VaultLeaf>,
        /// The attributes of the home's root.
        attrs: Change<InodeId, AttrsLeaf>,
    },
    /// New keyring and login record: a changed password. Identity, home and id stay.
    UpdateUser {
        /// The user.
        user: Change<UserName, UserLeaf>,
    },
    /// A new session. Signed by the identity.
    OpenSession {
        /// The session.
        session: Change<CertificateHash, SessionLeaf>,
    },
    /// The end of a session before its time.
    CloseSession {
        /// The session.
        session: Change<CertificateHash, SessionLeaf>,
    },
    /// A new file, directory or symlink under a name that is free. What a tombstone of that name
    /// pointed at goes to the trash.
    Create {
        /// The name.
        entry: Change<EntryKey, EntryLeaf>,
        /// Mode, times and attributes.
        attrs: Change<InodeId, AttrsLeaf>,
        /// The first version; none for a directory.
        head: Option<HeadChange>,
    },
    /// A new version, with new attributes or the ones there are.
    Commit {
        /// The version.
        head: HeadChange,
        /// The attributes.
        attrs: Option<Change<InodeId, AttrsLeaf>>,
    },
    /// Part of a large change, kept until a version of the same write takes it up.
    Stage {
        /// The partial version.
        staged: Change<StagedKey, StagedLeaf>,
        /// What the changed slots are put into: an empty manifest or a version for the first part,
        /// the partial version itself for each next.
        base: Base,
        /// The smallest keep-until of the receipts of new chunks.
        receipts_until: Option<LogTime>,
    },
    /// New mode, times or attributes.
    SetAttrs {
        /// The attributes.
        attrs: Change<InodeId, AttrsLeaf>,
    },
    /// An inode goes from one name to another; what the other name pointed at goes to the trash.
    Rename {
        /// The name it leaves, as a `Moved` tombstone.
        from: Change<EntryKey, EntryLeaf>,
        /// The name it gets.
        to: Change<EntryKey, EntryLeaf>,
    },
    /// A name becomes a tombstone. Of a directory, everything below goes with it, unless it was
    /// asked to be empty.
    Remove {
        /// The name.
        entry: Change<EntryKey, EntryLeaf>,
        /// Refuse a directory that has content.
        only_empty: bool,
    },
    /// A removed or replaced inode gets a name again.
    Undelete {
        /// The name; free, or the tombstone of that very inode.
        entry: Change<EntryKey, EntryLeaf>,
    },
    /// A session of a user in gateway custody leaves its sealed keys with the cluster. Signed by the
    /// session itself. Since core version 2.
    SealSession {
        /// The sealed keys.
        sealed: Change<CertificateHash, SealedSessionLeaf>,
    },
}

impl Op {
    /// The changes of the op, in the order their leaves count.
    pub fn changes(&self) -> Vec<AnyChange> {
        match self {
            Self::Register { user, vault, attrs } => {
                vec![of_user(user), of_vault(vault), of_attrs(attrs)]
            }
            Self::UpdateUser { user } => vec![of_user(user)],
            Self::OpenSession { session } | Self::CloseSession { session } => vec![AnyChange {
                object: Object::Session(session.key),
                expected: session.expected,
                leaf: Leaf::Session(session.leaf.clone()),
            }],
            Self::Create { entry, attrs, head } => {
                let mut changes = vec![of_entry(entry), of_attrs(attrs)];
                changes.extend(head.as_ref().map(|head| of_head(&head.change)));
                changes
            }
            Self::Commit { head, attrs } => {
                let mut changes = vec![of_head(&head.change)];
                changes.extend(attrs.as_ref().map(of_attrs));
                changes
            }
            Self::Stage { staged, .. } => vec![AnyChange {
                object: Object::Staged(staged.key),
                expected: staged.expected,
                leaf: Leaf::Staged(staged.leaf.clone()),
            }],
            Self::SetAttrs { attrs } => vec![of_attrs(attrs)],
            Self::Rename { from, to } => vec![of_entry(from), of_entry(to)],
            Self::Remove { entry, .. } | Self::Undelete { entry } => vec![of_entry(entry)],
            Self::SealSession { sealed } => vec![AnyChange {
                object: Object::SealedSession(sealed.key),
                expected: sealed.expected,
                leaf: Leaf::SealedSession(sealed.leaf.clone()),
            }],
        }
    }

    /// A short name for logs and metrics.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Register { .. } => "register",
            Self::UpdateUser { .. } => "update_user",
            Self::OpenSession { .. } => "open_session",
            Self::CloseSession { .. } => "close_session",
            Self::Create { .. } => "create",
            Self::Commit { .. } => "commit",
            Self::Stage { .. } => "stage",
            Self::SetAttrs { .. } => "set_attrs",
            Self::Rename { .. } => "rename",
            Self::Remove { .. } => "remove",
            Self::Undelete { .. } => "undelete",
            Self::SealSession { .. } => "seal_session",
        }
    }
}

fn of_entry(change: &Change<EntryKey, EntryLeaf>) -> AnyChange {
    AnyChange {
        object: Object::Entry(change.key),
        expected: change.expected,
        leaf: Leaf::Entry(change.leaf.clone()),
    }
}

fn of_head(change: &Change<InodeId, HeadLeaf>) -> AnyChange {
    AnyChange {
        object: Object::Head(change.key),
        expected: change.expected,
        leaf: Leaf::Head(change.leaf.clone()),
    }
}

fn of_attrs(change: &Change<InodeId, AttrsLeaf>) -> AnyChange {
    AnyChange {
        object: Object::Attrs(change.key),
        expected: change.expected,
        leaf: Leaf::Attrs(change.leaf.clone()),
    }
}

fn of_vault(change: &Change<InodeId, VaultLeaf>) -> AnyChange {
    AnyChange {
        object: Object::Vault(change.key),
        expected: change.expected,
        leaf: Leaf::Vault(change.leaf.clone()),
    }
}

fn of_user(change: &Change<UserName, UserLeaf>) -> AnyChange {
    AnyChange {
        object: Object::User(change.key.clone()),
        expected: change.expected,
        leaf: Leaf::User(change.leaf.clone()),
    }
}

/// What an op that was applied led to: nothing beyond what it said.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Outcome {
    /// Bytes charged to the home by this op.
    pub charged_bytes: u64,
}

/// The rule of its kind that a change breaks. The numbers are part of the log format.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize, thiserror::Error)]
pub enum Rule {
    /// A new user replaces nothing.
    #[error("a new user replaces nothing")]
    UserIsNew,
    /// The first keyring has epoch 1.
    #[error("the first keyring has epoch 1")]
    FirstEpoch,
    /// Vault and attributes belong to the home's root.
    #[error("vault and attributes belong to the home's root")]
    HomeRoot,
    /// A new home has its user as its one member.
    #[error("a new home has its user as its one member")]
    HomeMembers,
    /// Only keyring and login record change, and the epoch rises by one.
    #[error("only keyring and login record change, and the epoch rises by one")]
    OnlyKeysChange,
    /// An open session is named by its certificate.
    #[error("an open session is named by its certificate")]
    SessionName,
    /// A session is opened once.
    #[error("a session is opened once")]
    SessionOnce,
    /// A session lasts at most 12 hours from now.
    #[error("a session lasts at most 12 hours from now")]
    SessionTimes,
    /// Closing a session changes nothing else.
    #[error("closing a session changes nothing else")]
    SessionClosing,
    /// A new name is live and adopts nothing.
    #[error("a new name is live and adopts nothing")]
    NewEntry,
    /// Files and symlinks have content, directories have none.
    #[error("files and symlinks have content, directories have none")]
    ContentOfKind,
    /// Name, attributes and content belong to one inode.
    #[error("name, attributes and content belong to one inode")]
    OneInode,
    /// A partial version keeps its class and directory.
    #[error("a partial version keeps its class and directory")]
    StagedShape,
    /// The first part starts anew, each next at the one before.
    #[error("the first part starts anew, each next at the one before")]
    StagedBase,
    /// A rename needs two names.
    #[error("a rename needs two names")]
    TwoNames,
    /// The old name becomes a tombstone that says where it went.
    #[error("the old name becomes a tombstone that says where it went")]
    MovedTombstone,
    /// The new name points at what the old one did.
    #[error("the new name points at what the old one did")]
    MovedEntry,
    /// A tombstone keeps everything but the state.
    #[error("a tombstone keeps everything but the state")]
    Tombstone,
    /// What is restored is live.
    #[error("what is restored is live")]
    RestoredIsLive,
    /// Only what is deleted can be restored, as what it was.
    #[error("only what is deleted can be restored, as what it was")]
    RestoredWasDeleted,
    /// Versions are counted one by one.
    #[error("versions are counted one by one")]
    NextVersion,
    /// A restored version is the one it brings back, unchanged.
    #[error("a restored version is the one it brings back, unchanged")]
    RestoredVersion,
    /// A wrapped key has 1 to 256 bytes.
    #[error("a wrapped key has 1 to 256 bytes")]
    WrapLength,
    /// This version knows files, directories and symlinks.
    #[error("this version knows files, directories and symlinks")]
    KindKnown,
    /// A vault has 1 to 1024 members, ascending.
    #[error("a vault has 1 to 1024 members, ascending")]
    VaultMembers,
    /// A sealed key has at most 256 bytes.
    #[error("a sealed key has at most 256 bytes")]
    SealedKeyLength,
    /// A session seals its own keys, of a user in gateway custody.
    #[error("a session seals its own keys, of a user in gateway custody")]
    SealedSession,
    /// An op of a later version of the state machine than is in force.
    #[error("the cluster's members do not all understand this change yet")]
    LaterVersion,
}

impl Rule {
    /// All of them, by their numbers.
    pub const ALL: [Self; 28] = [
        Self::UserIsNew,
        Self::FirstEpoch,
        Self::HomeRoot,
        Self::HomeMembers,
        Self::OnlyKeysChange,
        Self::SessionName,
        Self::SessionOnce,
        Self::SessionTimes,
        Self::SessionClosing,
        Self::NewEntry,
        Self::ContentOfKind,
        Self::OneInode,
        Self::StagedShape,
        Self::StagedBase,
        Self::TwoNames,
        Self::MovedTombstone,
        Self::MovedEntry,
        Self::Tombstone,
        Self::RestoredIsLive,
        Self::RestoredWasDeleted,
        Self::NextVersion,
        Self::RestoredVersion,
        Self::WrapLength,
        Self::KindKnown,
        Self::VaultMembers,
        Self::SealedKeyLength,
        Self::SealedSession,
        Self::LaterVersion,
    ];
}

/// Why an op was refused. The numbers are part of the log format.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize, thiserror::Error)]
pub enum Rejection {
    /// An object does not hold the expected leaf.
    #[error("{object:?} changed in the meantime")]
    Conflict {
        /// Which object.
        object: Object,
        /// What it holds.
        current: Option<LeafHash>,
    },
    /// What the op builds on is not there, or deleted.
    #[error("the file or directory does not exist")]
    NotFound,
    /// The principal's role does not allow it.
    #[error("not allowed")]
    Denied,
    /// A parent is not a directory.
    #[error("not a directory")]
    NotADirectory,
    /// A directory where a file was meant.
    #[error("is a directory")]
    IsADirectory,
    /// A directory that should have been empty.
    #[error("the directory is not empty")]
    NotEmpty,
    /// A directory below itself.
    #[error("a directory cannot be moved into itself")]
    IntoItself,
    /// From one home to another.
    #[error("a rename cannot leave its home; copy instead")]
    CrossHome,
    /// Too deep a tree.
    #[error("the path is too deep")]
    TooDeep,
    /// Chunks may be gone: the commit came after its receipts' time.
    #[error("the chunk receipts have run out; ask the storage nodes again")]
    ReceiptsExpired,
    /// The manifest does not lead to the signed root, or its base is not there.
    #[error("the changed slots do not lead to the signed manifest root")]
    Manifest,
    /// A detached payload is missing, too large, or not the one the leaf names.
    #[error("a payload is missing or is not the one that was signed")]
    Payload,
    /// The leaf breaks a rule of its kind.
    #[error("invalid change: {0}")]
    Invalid(Rule),
    /// The name of a user is taken for ever.
    #[error("the name is taken")]
    NameTaken,
    /// The inode id is in use.
    #[error("the inode exists already")]
    InodeExists,
    /// Registration needs an invite here.
    #[error("registration needs an invite")]
    InviteRequired,
    /// The home's quota is used up.
    #[error("the quota of the home is used up")]
    QuotaExceeded,
}
