//! A session between two commands: what it holds, and the only kind of place it may be kept in.
//!
//! The file holds keys that open the user's tree, so it lies on a memory file system, in a directory
//! and a file that only the user can enter and read. Any other place is refused.
//!
//! ```text
//! file = format: u8 = 2 ‖ borsh of the fields of SessionState, in order
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use borsh::{BorshDeserialize, BorshSerialize};
use coffer_crypto::session::{KeptSession, SessionSecrets};
use coffer_model::id::{ClusterId, InodeId, PrincipalId};
use coffer_model::name::UserName;
use coffer_model::object::{LeafHash, VaultLeaf};
use coffer_model::session::SignedCertificate;
use coffer_model::signing::PublicKey;
use coffer_model::time::LogTime;
use coffer_service::files::{PRIVATE_FILE, write_atomically};
use rustix::fs::OFlags;
use rustix::process::geteuid;
use zeroize::Zeroizing;

use crate::contact::Pinned;
use crate::error::ClientError;

/// A session of format 1, which knew no later descriptors, is at most 12 hours old: log in again.
const FORMAT: u8 = 2;
/// A larger file is no session.
const STATE_BYTES_MAX: u64 = 4 << 20;
/// File systems that live in memory.
const TMPFS_MAGIC: i64 = 0x0102_1994;
const RAMFS_MAGIC: i64 = 0x8584_58f6;

/// Everything a logged-in session needs. It holds secrets and cannot be printed or copied.
pub struct SessionState {
    /// The cluster, as it was pinned.
    pub(crate) pinned: Pinned,
    /// The user.
    pub(crate) principal: PrincipalId,
    /// The user's name.
    pub(crate) name: UserName,
    /// The root of the user's tree.
    pub(crate) home: InodeId,
    /// The public half of the user's identity.
    pub(crate) identity: PublicKey,
    /// What vouches for the session's key.
    pub(crate) certificate: SignedCertificate,
    /// The home's access list when the session began.
    pub(crate) vault: VaultLeaf,
    /// Its hash.
    pub(crate) vault_hash: LeafHash,
    /// The session's keys.
    pub(crate) secrets: SessionSecrets,
}

#[derive(BorshSerialize, BorshDeserialize)]
struct Fields {
    pinned: Pinned,
    principal: PrincipalId,
    name: UserName,
    home: InodeId,
    identity: PublicKey,
    certificate: SignedCertificate,
    vault: VaultLeaf,
    vault_hash: LeafHash,
}

impl SessionState {
    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.pinned.cluster
    }

    /// The server the session was opened through.
    pub fn server(&self) -> &str {
        &self.pinned.server
    }

    /// Reaches the same cluster elsewhere from now on: `host:port` of another gateway, or of several with
    /// commas between. Its certificate must be good for `server_name`, or for its own host.
    pub fn reach(&mut self, server: &str, server_name: Option<&str>) {
        server.clone_into(&mut self.pinned.server);
        self.pinned.server_name = server_name.unwrap_or_default().to_owned();
    }

    /// The user's name.
    pub fn name(&self) -> &UserName {
        &self.name
    }

    /// When the session ends by itself, in log time.
    pub fn expires(&self) -> LogTime {
        self.certificate.certificate.expires
    }

    /// What is kept of it in gateway custody.
    pub(crate) fn to_kept(&self) -> KeptSession {
        let (name, certificate) = (self.name.clone(), self.certificate.clone());
        KeptSession::of(&self.secrets, name, self.home, self.identity, certificate)
    }

    fn encode(&self) -> Zeroizing<Vec<u8>> {
        let secrets = self.secrets.to_secret_bytes();
        let fields = (
            (&self.pinned, &self.principal, &self.name, &self.home),
            (&self.identity, &self.certificate, &self.vault, &self.vault_hash),
        );
        let fields = borsh::to_vec(&fields).unwrap_or_default();
        // The buffer has its final size from the start, so no copy of the secrets is left behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(9 + fields.len() + secrets.len()));
        bytes.push(FORMAT);
        for part in [fields.as_slice(), &secrets] {
            let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(part);
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (format, rest) = bytes.split_first()?;
        if *format != FORMAT {
            return None;
        }
        let (fields, rest) = part(rest)?;
        let (secrets, rest) = part(rest)?;
        if !rest.is_empty() {
            return None;
        }
        let fields: Fields = borsh::from_slice(fields).ok()?;
        let secrets = SessionSecrets::from_secret_bytes(secrets).ok()?;
        let Fields { pinned, principal, name, home, identity, certificate, vault, vault_hash } =
            fields;
        Some(Self {
            pinned,
            principal,
            name,
            home,
            identity,
            certificate,
            vault,
            vault_hash,
            secrets,
        })
    }
}

fn part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)
}

/// Where a session is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionFile {
    path: PathBuf,
}

impl SessionFile {
    /// The session called `name` of this user: in `$XDG_RUNTIME_DIR/coffer`, or in
    /// `/dev/shm/coffer-<uid>` where there is no runtime directory.
    pub fn standard(name: &str) -> Result<Self, ClientError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
            return Err(ClientError::Invalid {
                what: "a session's name has 1 to 64 letters, digits, `_` or `-`".to_owned(),
            });
        }
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let dir = match runtime.filter(|path| path.is_absolute() && path.is_dir()) {
            Some(runtime) => runtime.join("coffer"),
            None => PathBuf::from(format!("/dev/shm/coffer-{}", geteuid().as_raw())),
        };
        Ok(Self { path: dir.join(name) })
    }

    /// Some other file; its directory is made where it is missing, and must be as safe.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether sessions kept here stay in memory: the place lies on a memory file system, or would when
    /// it is made.
    pub fn is_in_memory(&self) -> bool {
        let there = self.path.ancestors().skip(1).find(|above| above.is_dir());
        there
            .and_then(|above| rustix::fs::statfs(above).ok())
            .is_some_and(|found| matches!(found.f_type, TMPFS_MAGIC | RAMFS_MAGIC))
    }

    /// Makes the directory and checks that it is a place for a session, so that whoever is about to log in
    /// learns of it before.
    pub fn prepare(&self) -> Result<(), ClientError> {
        let dir = self.dir()?;
        match DirBuilder::new().mode(0o700).create(dir) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(ClientError::local("make", dir, error)),
        }
        check_directory(dir)
    }

    /// Writes the session.
    pub fn save(&self, state: &SessionState) -> Result<(), ClientError> {
        self.prepare()?;
        write_atomically(&self.path, &state.encode(), PRIVATE_FILE)
            .map_err(|error| ClientError::local("write", &self.path, error))
    }

    /// Reads the session. [`ClientError::NotLoggedIn`] where there is none.
    pub fn load(&self) -> Result<SessionState, ClientError> {
        let dir = self.dir()?;
        if !dir.exists() {
            return Err(ClientError::NotLoggedIn);
        }
        check_directory(dir)?;
        let Some(mut file) = self.open()? else { return Err(ClientError::NotLoggedIn) };
        let local = |error| ClientError::local("read", &self.path, error);
        let length = file.metadata().map_err(local)?.len().min(STATE_BYTES_MAX);
        let capacity = usize::try_from(length).unwrap_or_default();
        let mut bytes = Zeroizing::new(vec![0; capacity]);
        file.read_exact(&mut bytes).map_err(local)?;
        SessionState::decode(&bytes).ok_or_else(|| ClientError::UnsafeSessionFile {
            path: self.path.clone(),
            why: "its content is not a session of this version; log out and log in again"
                .to_owned(),
        })
    }

    /// Overwrites and removes the session, if there is one.
    pub fn wipe(&self) -> Result<(), ClientError> {
        let local = |error| ClientError::local("wipe", &self.path, error);
        let opened = OpenOptions::new().write(true).custom_flags(nofollow()).open(&self.path);
        match opened {
            Ok(mut file) => {
                let length = file.metadata().map_err(local)?.len();
                let zeros =
                    vec![0; usize::try_from(length.min(STATE_BYTES_MAX)).unwrap_or_default()];
                file.write_all(&zeros).map_err(local)?;
                fs::remove_file(&self.path).map_err(local)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(local(error)),
        }
    }

    fn dir(&self) -> Result<&Path, ClientError> {
        self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).ok_or_else(|| {
            ClientError::UnsafeSessionFile {
                path: self.path.clone(),
                why: "it is not inside a directory".to_owned(),
            }
        })
    }

    fn open(&self) -> Result<Option<File>, ClientError> {
        let unsafe_file = |why: &str| ClientError::UnsafeSessionFile {
            path: self.path.clone(),
            why: why.to_owned(),
        };
        let file = match OpenOptions::new().read(true).custom_flags(nofollow()).open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
                return Err(unsafe_file("it is a symbolic link"));
            }
            Err(error) => return Err(ClientError::local("open", &self.path, error)),
        };
        let found =
            file.metadata().map_err(|error| ClientError::local("look at", &self.path, error))?;
        if !found.is_file() {
            return Err(unsafe_file("it is not a regular file"));
        }
        if found.uid() != geteuid().as_raw() {
            return Err(unsafe_file("it belongs to somebody else"));
        }
        if found.permissions().mode() & 0o077 != 0 {
            return Err(unsafe_file("others may read it; its mode must be 0600"));
        }
        Ok(Some(file))
    }
}

fn nofollow() -> i32 {
    OFlags::NOFOLLOW.bits().cast_signed()
}

/// Only a directory in memory that nobody else can enter may hold a session.
fn check_directory(dir: &Path) -> Result<(), ClientError> {
    let unsafe_dir =
        |why: &str| ClientError::UnsafeSessionFile { path: dir.to_owned(), why: why.to_owned() };
    let local = |error| ClientError::local("look at", dir, error);
    let found = fs::symlink_metadata(dir).map_err(local)?;
    if !found.is_dir() {
        return Err(unsafe_dir("it is not a directory"));
    }
    if found.uid() != geteuid().as_raw() {
        return Err(unsafe_dir("it belongs to somebody else"));
    }
    if found.permissions().mode() & 0o077 != 0 {
        return Err(unsafe_dir("others may enter it; its mode must be 0700"));
    }
    let file_system = rustix::fs::statfs(dir).map_err(|error| local(error.into()))?;
    if !matches!(file_system.f_type, TMPFS_MAGIC | RAMFS_MAGIC) {
        return Err(unsafe_dir(
            "it is not on a memory file system, and keys must not reach a disk; \
             set XDG_RUNTIME_DIR to a directory on a tmpfs",
        ));
    }
    Ok(())
}
