//! Inodes with their opened keys: what a verified entry becomes once the directory's key has opened its
//! name and its wrap, and how a new entry is sealed.

use std::sync::Arc;

use bytes::Bytes;
use coffer_crypto::content::{Attrs, VersionInfo};
use coffer_crypto::keys::{ChildSecret, DirectorySecret, FileKey, ObjectKey};
use coffer_crypto::names::NameContext;
use coffer_crypto::padding::Padding;
use coffer_crypto::random::random_bytes;
use coffer_crypto::seal::{
    AttrsContext, VersionContext, open_attrs, open_version, seal_attrs, seal_version,
};
use coffer_crypto::wrap::WrapContext;
use coffer_model::hash::payload_hash;
use coffer_model::id::{ClusterId, InodeId, WriteId};
use coffer_model::name::FileName;
use coffer_model::object::{
    AttrsLeaf, EntryKey, EntryLeaf, EntryState, HeadLeaf, Kind, LeafHash, VaultLeaf,
};

use crate::error::ClientError;
use crate::verify::Checked;

/// The first generation of every key; there are no later ones yet.
pub(crate) const GENERATION: u32 = 1;

/// A directory whose keys are open.
pub(crate) struct Directory {
    pub(crate) inode: InodeId,
    pub(crate) secret: DirectorySecret,
}

/// The home: its access list and its root.
pub(crate) struct Home {
    pub(crate) vault: VaultLeaf,
    pub(crate) root: Arc<Directory>,
}

impl Home {
    pub(crate) fn padding(&self) -> Padding {
        if self.vault.padding { Padding::Bucket } else { Padding::None }
    }
}

/// The keys behind a name.
#[derive(Clone)]
pub(crate) enum Secret {
    Directory(Arc<Directory>),
    File(Arc<FileKey>),
}

impl Secret {
    pub(crate) fn object_key(&self) -> ObjectKey<'_> {
        match self {
            Self::Directory(directory) => ObjectKey::Directory(&directory.secret),
            Self::File(key) => ObjectKey::File(key),
        }
    }
}

/// A name that was found, with what was asked for of its inode.
#[derive(Clone)]
pub(crate) struct Found {
    pub(crate) key: EntryKey,
    pub(crate) entry: EntryLeaf,
    pub(crate) hash: LeafHash,
    pub(crate) name: FileName,
    pub(crate) secret: Secret,
    pub(crate) attrs: Option<Checked<AttrsLeaf>>,
    pub(crate) head: Option<Checked<HeadLeaf>>,
    pub(crate) pages: Vec<Bytes>,
    pub(crate) ticket: Bytes,
}

impl Found {
    pub(crate) fn is_live(&self) -> bool {
        self.entry.state == EntryState::Live
    }

    pub(crate) fn inode(&self) -> InodeId {
        self.entry.inode
    }

    pub(crate) fn kind(&self) -> Kind {
        self.entry.kind
    }

    pub(crate) fn directory(&self) -> Option<&Arc<Directory>> {
        match &self.secret {
            Secret::Directory(directory) => Some(directory),
            Secret::File(_) => None,
        }
    }

    pub(crate) fn file_key(&self) -> Option<&Arc<FileKey>> {
        match &self.secret {
            Secret::File(key) => Some(key),
            Secret::Directory(_) => None,
        }
    }
}

/// Opens a verified entry of `directory`: the name must have the tag it was found under, and the wrap
/// must hold a key of the entry's kind.
pub(crate) fn open_entry(
    cluster: &ClusterId,
    directory: &Directory,
    key: EntryKey,
    entry: &EntryLeaf,
    sealed_name: &[u8],
) -> Result<(FileName, Secret), ClientError> {
    check_generation(entry.generation)?;
    let context = NameContext { cluster: *cluster, directory: directory.inode, inode: entry.inode };
    let name = directory.secret.open_name(&context, sealed_name, &key.tag)?;
    let context = WrapContext {
        cluster: *cluster,
        directory: directory.inode,
        child: entry.inode,
        generation: entry.generation,
    };
    let secret = match (directory.secret.unwrap(&context, &entry.wrap)?, entry.kind) {
        (ChildSecret::Directory(secret), Kind::Directory) => {
            Secret::Directory(Arc::new(Directory { inode: entry.inode, secret }))
        }
        (ChildSecret::File(key), Kind::File | Kind::Symlink) => Secret::File(Arc::new(key)),
        _ => return Err(ClientError::tampered("a key of another kind than its entry")),
    };
    Ok((name, secret))
}

/// A live entry for `inode` under `name`, and the sealed name that travels beside it.
pub(crate) fn seal_entry(
    cluster: &ClusterId,
    directory: &Directory,
    name: &FileName,
    (inode, kind): (InodeId, Kind),
    secret: &ChildSecret,
    adopted_at: u64,
) -> (EntryLeaf, Vec<u8>) {
    let context = NameContext { cluster: *cluster, directory: directory.inode, inode };
    let sealed_name = directory.secret.seal_name(&context, &random_bytes(), name);
    let context = WrapContext {
        cluster: *cluster,
        directory: directory.inode,
        child: inode,
        generation: GENERATION,
    };
    let leaf = EntryLeaf {
        inode,
        kind,
        state: EntryState::Live,
        name: payload_hash(&sealed_name),
        wrap: directory.secret.wrap(&context, secret),
        generation: GENERATION,
        adopted_at,
    };
    (leaf, sealed_name)
}

/// Opens verified attributes.
pub(crate) fn open_attributes(
    cluster: &ClusterId,
    inode: InodeId,
    key: ObjectKey<'_>,
    attrs: &Checked<AttrsLeaf>,
) -> Result<Attrs, ClientError> {
    check_generation(attrs.leaf.generation)?;
    let context = AttrsContext { cluster: *cluster, inode };
    Ok(Attrs::decode(&open_attrs(key, &context, &attrs.payload)?)?)
}

/// Seals attributes, with the payload that travels beside the leaf.
pub(crate) fn seal_attributes(
    cluster: &ClusterId,
    inode: InodeId,
    key: ObjectKey<'_>,
    attrs: &Attrs,
    padding: Padding,
) -> (AttrsLeaf, Vec<u8>) {
    let context = AttrsContext { cluster: *cluster, inode };
    let payload = seal_attrs(key, &context, &random_bytes(), &attrs.encode(padding));
    (AttrsLeaf { payload: payload_hash(&payload), generation: GENERATION }, payload)
}

/// Opens what a verified version carries, and checks that its length fits its slots.
pub(crate) fn open_version_info(
    cluster: &ClusterId,
    inode: InodeId,
    key: &FileKey,
    head: &Checked<HeadLeaf>,
) -> Result<VersionInfo, ClientError> {
    let leaf = &head.leaf;
    check_generation(leaf.generation)?;
    let context = VersionContext { cluster: *cluster, inode, write: leaf.write };
    let info = VersionInfo::decode(&open_version(key, &context, &head.payload)?)?;
    let slots = match info.inline {
        Some(_) => 0,
        None => info.length.div_ceil(leaf.class.bytes()),
    };
    if slots != leaf.slots {
        return Err(ClientError::tampered("a version's length does not fit its slots"));
    }
    Ok(info)
}

/// Seals what a version carries.
pub(crate) fn seal_version_info(
    cluster: &ClusterId,
    inode: InodeId,
    write: WriteId,
    key: &FileKey,
    info: &VersionInfo,
    padding: Padding,
) -> Result<Vec<u8>, ClientError> {
    let context = VersionContext { cluster: *cluster, inode, write };
    Ok(seal_version(key, &context, &info.encode(padding)?))
}

pub(crate) fn check_generation(generation: u32) -> Result<(), ClientError> {
    if generation == GENERATION {
        Ok(())
    } else {
        Err(ClientError::Unsupported { what: format!("a key of generation {generation}") })
    }
}
