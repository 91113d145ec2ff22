//! Who a process is: a random id and an Ed25519 key, made at its first start and kept on its volume.
//!
//! The volume owns the identity; a process only borrows it, and holds the volume's lock for as long
//! as it does. An identity that cannot be read is never replaced: a new one would be a stranger.
//!
//! The file `identity`, version 1 (integers little-endian, 188 bytes):
//!
//! ```text
//!   0  magic      8  "COFFERID"
//!   8  version    2  1
//!  10  bound      1  0: belongs to no cluster yet, 1: belongs to the one below
//!  11  role len   1  1..=32
//!  12  role      32  ASCII, zeroes after its length
//!  44  id        16
//!  60  seed      32  of the Ed25519 key; secret
//!  92  cluster   32  zeroes while not bound
//! 124  public    32  the public key, so that a damaged seed is noticed as such
//! 156  checksum  32  BLAKE3 of all before it
//! ```

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use coffer_model::id::ClusterId;
use coffer_model::signing::{Domain, PublicKey, Signature, Signer, signed_bytes};
use ed25519_dalek::{Signer as _, SigningKey};
use rustix::fs::{FlockOperation, flock};
use zeroize::Zeroizing;

use crate::files::{PRIVATE_FILE, create_private_dir, remove_unfinished, write_atomically};
use crate::peer::PeerId;

/// The name of the file that holds the identity.
const FILE: &str = "identity";
/// The name of the file whose lock says that the volume is in use.
const LOCK: &str = "lock";

const MAGIC: &[u8; 8] = b"COFFERID";
const VERSION: u16 = 1;
const FILE_BYTES: usize = 188;
const ROLE_FIELD: usize = 32;

/// Why a volume's identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The role is not a role's name.
    #[error("{role:?} is not the name of a role (1 to 32 lower-case letters, digits and '-')")]
    InvalidRole {
        /// What was given.
        role: String,
    },
    /// Another process has the volume.
    #[error("the volume {} is in use by another process; two processes must never share one", dir.display())]
    Locked {
        /// The volume.
        dir: PathBuf,
    },
    /// The volume was used by a process of another role.
    #[error(
        "the volume {} belongs to a {found}, not to a {expected}; give this process a volume of its own",
        dir.display()
    )]
    WrongRole {
        /// The volume.
        dir: PathBuf,
        /// The role of this process.
        expected: String,
        /// The role the volume was made for.
        found: String,
    },
    /// The volume belongs to another cluster.
    #[error(
        "the volume {} belongs to cluster {found}, not to {expected}; mount the right volume, correct the \
         configured cluster, or give this process an empty volume so that it joins as a new one",
        dir.display()
    )]
    ForeignVolume {
        /// The volume.
        dir: PathBuf,
        /// The cluster this process was told to serve.
        expected: ClusterId,
        /// The cluster the volume was made for.
        found: ClusterId,
    },
    /// The identity file is damaged.
    #[error(
        "{} is damaged ({reason}); restore it from a backup, or retire this process and start a new one on \
         an empty volume (the file is left as it is)",
        path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The identity file was written by a later version of the program.
    #[error("{} has format version {found}, this program knows only version {VERSION}; use a newer program", path.display())]
    UnknownVersion {
        /// The file.
        path: PathBuf,
        /// The version it says it has.
        found: u16,
    },
    /// The file system refused.
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
    /// The system gave no randomness.
    #[error("the system gave no random bytes for a new identity")]
    Random(#[source] getrandom::Error),
}

/// A process's id and secret key, and the lock of the volume they stand on.
pub struct ProcessIdentity {
    dir: PathBuf,
    peer: PeerId,
    key: SigningKey,
    cluster: Mutex<Option<ClusterId>>,
    // Closing the file gives the lock back.
    _lock: File,
}

impl ProcessIdentity {
    /// Takes the volume `dir` for this process, and makes an identity at its first start.
    ///
    /// With a `cluster`, a volume that belongs to none yet is bound to it, and one that belongs to
    /// another is refused. The volume stays locked until the value is dropped.
    pub fn load_or_create(
        dir: &Path,
        role: &str,
        cluster: Option<&ClusterId>,
    ) -> Result<Self, IdentityError> {
        // The role is checked before anything is written; the id is replaced below.
        PeerId::new(role, [0; 16])
            .map_err(|_| IdentityError::InvalidRole { role: role.to_owned() })?;
        create_private_dir(dir).map_err(io_error("create", dir))?;
        let lock = lock_volume(dir)?;
        let path = dir.join(FILE);
        // Under the lock there is no other writer whose unfinished file this could be.
        remove_unfinished(&path).map_err(io_error("clean up beside", &path))?;
        let record = match fs::read(&path) {
            Ok(bytes) => Record::decode(&path, &Zeroizing::new(bytes))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let record = Record::random(role, cluster.copied())?;
                record.write(&path)?;
                record
            }
            Err(error) => return Err(io_error("read", &path)(error)),
        };
        if record.role != role {
            return Err(IdentityError::WrongRole {
                dir: dir.to_owned(),
                expected: role.to_owned(),
                found: record.role,
            });
        }
        let peer = PeerId::new(role, record.id)
            .map_err(|_| IdentityError::InvalidRole { role: role.to_owned() })?;
        let identity = Self {
            dir: dir.to_owned(),
            peer,
            key: SigningKey::from_bytes(&record.seed),
            cluster: Mutex::new(record.cluster),
            _lock: lock,
        };
        if let Some(cluster) = cluster {
            identity.bind(cluster)?;
        }
        Ok(identity)
    }

    /// Who the process of the volume `dir` is, without taking the volume: nobody yet before its first
    /// start. What is wrong with a volume is for [`Self::load_or_create`] to say.
    pub fn recorded(dir: &Path) -> Option<PeerId> {
        let path = dir.join(FILE);
        let bytes = Zeroizing::new(fs::read(&path).ok()?);
        let record = Record::decode(&path, &bytes).ok()?;
        PeerId::new(&record.role, record.id).ok()
    }

    /// The content of an identity file that is kept nowhere yet.
    pub fn new_file(role: &str) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
        PeerId::new(role, [0; 16])
            .map_err(|_| IdentityError::InvalidRole { role: role.to_owned() })?;
        Ok(Record::random(role, None)?.encode())
    }

    /// The key in the folder `dir`, without taking the folder: for one that cannot be written to, such as a
    /// secret that is mounted. The role has to be `role`.
    pub fn read_key(dir: &Path, role: &str) -> Result<ProcessKey, IdentityError> {
        let path = dir.join(FILE);
        let bytes = Zeroizing::new(fs::read(&path).map_err(io_error("read", &path))?);
        let record = Record::decode(&path, &bytes)?;
        if record.role != role {
            return Err(IdentityError::WrongRole {
                dir: dir.to_owned(),
                expected: role.to_owned(),
                found: record.role,
            });
        }
        Ok(ProcessKey(SigningKey::from_bytes(&record.seed)))
    }

    /// Records, for ever, that this volume belongs to `cluster`. Binding it again to the same
    /// cluster does nothing; to another one it is refused.
    pub fn bind(&self, cluster: &ClusterId) -> Result<(), IdentityError> {
        let mut bound = self.cluster.lock().unwrap_or_else(PoisonError::into_inner);
        match *bound {
            Some(found) if found == *cluster => return Ok(()),
            Some(found) => {
                return Err(IdentityError::ForeignVolume {
                    dir: self.dir.clone(),
                    expected: *cluster,
                    found,
                });
            }
            None => {}
        }
        let record = Record {
            role: self.peer.role().to_owned(),
            id: *self.peer.id(),
            seed: Zeroizing::new(self.key.to_bytes()),
            cluster: Some(*cluster),
        };
        record.write(&self.dir.join(FILE))?;
        *bound = Some(*cluster);
        Ok(())
    }

    /// The random id of the process.
    pub const fn id(&self) -> &[u8; 16] {
        self.peer.id()
    }

    /// What the process does.
    pub fn role(&self) -> &str {
        self.peer.role()
    }

    /// Role and id, as they stand in the process's certificate.
    pub const fn peer_id(&self) -> &PeerId {
        &self.peer
    }

    /// The cluster the volume belongs to, if it belongs to one yet.
    pub fn cluster(&self) -> Option<ClusterId> {
        *self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The volume.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// A secret key that was read from an identity. It is wiped when it is dropped.
pub struct ProcessKey(SigningKey);

impl Signer for ProcessKey {
    fn public_key(&self) -> PublicKey {
        PublicKey::from_bytes(self.0.verifying_key().to_bytes())
    }

    fn sign(&self, domain: Domain, cluster: &ClusterId, bytes: &[u8]) -> Signature {
        Signature::from_bytes(self.0.sign(&signed_bytes(domain, cluster, bytes)).to_bytes())
    }
}

impl fmt::Debug for ProcessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessKey").field("public_key", &self.public_key()).finish_non_exhaustive()
    }
}

impl Signer for ProcessIdentity {
    fn public_key(&self) -> PublicKey {
        PublicKey::from_bytes(self.key.verifying_key().to_bytes())
    }

    fn sign(&self, domain: Domain, cluster: &ClusterId, bytes: &[u8]) -> Signature {
        Signature::from_bytes(self.key.sign(&signed_bytes(domain, cluster, bytes)).to_bytes())
    }
}

impl fmt::Debug for ProcessIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessIdentity")
            .field("peer", &self.peer)
            .field("public_key", &self.public_key())
            .field("cluster", &self.cluster())
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

fn lock_volume(dir: &Path) -> Result<File, IdentityError> {
    let path = dir.join(LOCK);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(PRIVATE_FILE)
        .open(&path)
        .map_err(io_error("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(IdentityError::Locked { dir: dir.to_owned() }),
        Err(error) => Err(io_error("lock", &path)(error.into())),
    }
}

/// What the file holds.
struct Record {
    role: String,
    id: [u8; 16],
    seed: Zeroizing<[u8; 32]>,
    cluster: Option<ClusterId>,
}

impl Record {
    fn random(role: &str, cluster: Option<ClusterId>) -> Result<Self, IdentityError> {
        let mut id = [0u8; 16];
        let mut seed = Zeroizing::new([0u8; 32]);
        getrandom::fill(&mut id).map_err(IdentityError::Random)?;
        getrandom::fill(&mut *seed).map_err(IdentityError::Random)?;
        Ok(Self { role: role.to_owned(), id, seed, cluster })
    }

    fn write(&self, path: &Path) -> Result<(), IdentityError> {
        write_atomically(path, &self.encode(), PRIVATE_FILE).map_err(io_error("write", path))
    }

    fn encode(&self) -> Zeroizing<Vec<u8>> {
        // The capacity is exact, so no reallocation leaves a copy of the seed behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_BYTES));
        let role_len = u8::try_from(self.role.len()).expect("a role's length was checked");
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.push(u8::from(self.cluster.is_some()));
        bytes.push(role_len);
        bytes.extend_from_slice(self.role.as_bytes());
        bytes.resize(12 + ROLE_FIELD, 0);
        bytes.extend_from_slice(&self.id);
        bytes.extend_from_slice(&*self.seed);
        bytes.extend_from_slice(&self.cluster.map_or([0; 32], |cluster| *cluster.as_bytes()));
        bytes.extend_from_slice(&SigningKey::from_bytes(&self.seed).verifying_key().to_bytes());
        let checksum = blake3::hash(&bytes);
        bytes.extend_from_slice(checksum.as_bytes());
        bytes
    }

    fn decode(path: &Path, bytes: &[u8]) -> Result<Self, IdentityError> {
        let corrupt = |reason| IdentityError::Corrupt { path: path.to_owned(), reason };
        let rest = bytes
            .strip_prefix(MAGIC)
            .ok_or_else(|| corrupt("it does not begin like an identity"))?;
        let version = rest.get(..2).and_then(|version| version.try_into().ok());
        let version =
            u16::from_le_bytes(version.ok_or_else(|| corrupt("it ends before its version"))?);
        if version != VERSION {
            return Err(IdentityError::UnknownVersion { path: path.to_owned(), found: version });
        }
        let bytes: &[u8; FILE_BYTES] =
            bytes.try_into().map_err(|_| corrupt("it does not have the length of its version"))?;
        let (body, checksum) = bytes.split_at(FILE_BYTES - 32);
        if blake3::hash(body).as_bytes() != checksum {
            return Err(corrupt("its checksum does not match"));
        }
        // The checksum holds, so what follows was written by us; it is still read without trust.
        let role_len = usize::from(body[11]);
        let role = body[12..12 + ROLE_FIELD]
            .get(..role_len)
            .and_then(|role| std::str::from_utf8(role).ok())
            .ok_or_else(|| corrupt("its role is not a role"))?;
        let seed = Zeroizing::new(field::<32>(body, 60));
        let cluster = match body[10] {
            0 => None,
            1 => Some(ClusterId::from_bytes(field(body, 92))),
            _ => return Err(corrupt("it is neither bound nor unbound")),
        };
        if SigningKey::from_bytes(&seed).verifying_key().to_bytes() != field(body, 124) {
            return Err(corrupt("its public key is not that of its secret key"));
        }
        Ok(Self { role: role.to_owned(), id: field(body, 44), seed, cluster })
    }
}

fn field<const N: usize>(body: &[u8], at: usize) -> [u8; N] {
    body[at..at + N].try_into().expect("the range has the length of the array")
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::Io { action, path, source }
}

#[cfg(test)]
mod tests;
