//! A logged-in user and everything they can do. The operations themselves are in the modules named
//! after them; here is what they share, and how a session begins and ends.

use std::sync::Arc;
use std::thread::available_parallelism;

use coffer_crypto::hpke::{VaultKeyContext, open_vault_key};
use coffer_crypto::session::{BearerToken, KeptSession};
use coffer_model::hash::payload_hash;
use coffer_model::id::{InodeId, NameTag, PrincipalId};
use coffer_model::name::{FileName, UserName};
use coffer_model::object::{Kind, Leaf, LeafHash, Object, SealedSessionLeaf, SessionLeaf};
use coffer_model::op::{Change, Op};
use coffer_model::session::SignedCertificate;
use coffer_model::time::LogTime;
use coffer_proto::v1 as pb;
use coffer_service::cache::BoundedCache;
use tokio::sync::Semaphore;

use crate::change::{Changes, PlannedOp};
use crate::chunks::Chunks;
use crate::clock::LogClock;
use crate::contest::{Contest, Turns};
use crate::error::ClientError;
use crate::journal::Journal;
use crate::node::{Directory, Found, Home};
use crate::seen::Seen;
use crate::state::SessionState;
use crate::state_dir::StateDir;
use crate::transport::{Credentials, Transport};
use crate::verify::Verifier;
use crate::wire::{LiveDescriptor, Wire};

/// Directories whose keys are remembered.
const DIRECTORIES_REMEMBERED: usize = 16 * 1024;

/// A logged-in user. Clones share everything.
#[derive(Clone)]
pub struct Session(Arc<Shared>);

struct Shared {
    wire: Arc<Wire>,
    name: UserName,
    home: Arc<Home>,
    certificate: SignedCertificate,
    directories: BoundedCache<(InodeId, NameTag), Arc<Directory>>,
    chunks: Chunks,
    changes: Changes,
    turns: Turns,
    cores: Arc<Semaphore>,
    journal: Journal,
}

/// What is known about a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The inode; none for `/`.
    pub inode: Option<InodeId>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// When it was last changed, in nanoseconds since the Unix epoch.
    pub mtime_ns: i64,
    /// The length of a file or of a symlink's target; 0 for directories.
    pub length: u64,
    /// The version; 0 for directories.
    pub version: u64,
    /// How many bytes a slot covers; of files.
    pub class: Option<coffer_model::chunk::ChunkClass>,
    /// Where a symlink points.
    pub target: Option<Vec<u8>>,
}

/// One name of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryInfo {
    /// The name.
    pub name: FileName,
    /// Whether it is a tombstone.
    pub deleted: bool,
    /// What it points at.
    pub stat: Stat,
}

/// One version of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionInfo {
    /// Its number.
    pub version: u64,
    /// Its length.
    pub length: u64,
    /// When its content was last changed, in nanoseconds since the Unix epoch.
    pub mtime_ns: i64,
    /// Log time of its commit, as the server says.
    pub committed: LogTime,
    /// Who wrote it.
    pub author: PrincipalId,
    /// The version it brought back; none for new content.
    pub restored: Option<u64>,
}

impl Session {
    /// Takes up a session that was kept. Nothing is connected yet. Needs a tokio runtime.
    pub fn resume(state: SessionState, state_dir: &StateDir) -> Result<Self, ClientError> {
        let transport = Arc::new(state.pinned.transport()?);
        Self::resume_over(transport, state, state_dir)
    }

    /// As [`Self::resume`], over a given transport.
    pub fn resume_over(
        transport: Arc<dyn Transport>,
        state: SessionState,
        state_dir: &StateDir,
    ) -> Result<Self, ClientError> {
        let SessionState {
            pinned,
            principal,
            name,
            home,
            identity,
            certificate,
            vault,
            vault_hash,
            secrets,
        } = state;
        let cluster = pinned.cluster;
        let sealed = vault.members.iter().find(|member| member.principal == principal);
        let sealed = sealed.ok_or_else(|| ClientError::Denied { what: "your own home".into() })?;
        let context = VaultKeyContext { cluster, vault: home, epoch: vault.epoch, principal };
        let secret =
            open_vault_key(&secrets.hpke, &context, &vault.key_commitment, &sealed.sealed_key)?;
        let root = Arc::new(Directory { inode: home, secret });
        let verifier = Verifier::new(cluster, principal, identity);
        verifier.trust_session(&certificate.certificate);
        let user_dir = state_dir.of_user(&cluster, &name);
        let wire = Arc::new(Wire {
            transport,
            cluster,
            descriptor: LiveDescriptor::new(pinned.descriptor()?),
            principal,
            home,
            credentials: Credentials::new(cluster, certificate.certificate.hash(), secrets.key),
            clock: LogClock::default(),
            seen: Seen::load(user_dir.as_ref().map(|dir| dir.join("seen")))?,
            verifier,
        });
        let cores = available_parallelism().map_or(2, usize::from);
        Ok(Self(Arc::new(Shared {
            chunks: Chunks::start(&wire),
            changes: Changes::start(Arc::clone(&wire), vault_hash),
            turns: Turns::default(),
            wire,
            name,
            home: Arc::new(Home { vault, root }),
            certificate,
            directories: BoundedCache::new(DIRECTORIES_REMEMBERED, None),
            cores: Arc::new(Semaphore::new(cores)),
            journal: Journal::at(user_dir.map(|dir| dir.join("uploads"))),
        })))
    }

    /// The user's name.
    pub fn name(&self) -> &UserName {
        &self.0.name
    }

    /// When the session ends by itself, in log time.
    pub fn expires(&self) -> LogTime {
        self.0.certificate.certificate.expires
    }

    /// The state of the cluster.
    pub async fn status(&self) -> Result<pb::GetStatusResponse, ClientError> {
        let status = self.wire().transport.get_status().await;
        status.map_err(|status| ClientError::of_status(&status))
    }

    /// Ends the session in the log, so that its key counts no more. The caller wipes the session file,
    /// whatever this comes to.
    pub async fn close(&self) -> Result<(), ClientError> {
        let certificate = self.0.certificate.clone();
        let key = certificate.certificate.hash();
        let object = Object::Session(key);
        let open = Leaf::Session(SessionLeaf { certificate: certificate.clone(), closed: false });
        let expected = Some(LeafHash::of(&self.wire().cluster, &object, None, &open));
        let leaf = SessionLeaf { certificate, closed: true };
        let op = Op::CloseSession { session: Change { key, expected, leaf } };
        let outcome = self.changes().apply(PlannedOp::new(op, Vec::new())).await?;
        outcome.map_err(|rejection| ClientError::rejected(rejection, "the session"))?;
        self.save_marks().await
    }

    /// Whose session it is.
    pub fn principal(&self) -> PrincipalId {
        self.wire().principal
    }

    /// Leaves the session with the cluster, sealed under a token, so that who shows the token at any
    /// gateway has the session again.
    pub(crate) async fn keep(
        &self,
        token: &BearerToken,
        kept: &KeptSession,
    ) -> Result<(), ClientError> {
        let sealed = token.seal(&self.wire().cluster, kept);
        let leaf = SealedSessionLeaf { payload: payload_hash(&sealed) };
        let sealed_session = Change { key: token.session(), expected: None, leaf };
        let op = PlannedOp::new(Op::SealSession { sealed: sealed_session }, vec![sealed]);
        let outcome = self.changes().apply(op).await?;
        outcome.map(|_| ()).map_err(|rejection| ClientError::rejected(rejection, "the session"))
    }

    /// Writes down what was seen of the cluster. Operations do this themselves every few seconds; a
    /// command does it once more at its end.
    pub async fn save_marks(&self) -> Result<(), ClientError> {
        let wire = Arc::clone(&self.0.wire);
        tokio::task::spawn_blocking(move || wire.seen.save())
            .await
            .map_err(|_| ClientError::Stopped)?
    }

    pub(crate) async fn save_marks_if_due(&self) -> Result<(), ClientError> {
        if self.wire().seen.is_due() { self.save_marks().await } else { Ok(()) }
    }

    pub(crate) fn wire(&self) -> &Arc<Wire> {
        &self.0.wire
    }

    pub(crate) fn home(&self) -> Arc<Home> {
        Arc::clone(&self.0.home)
    }

    pub(crate) fn chunks(&self) -> &Chunks {
        &self.0.chunks
    }

    pub(crate) fn changes(&self) -> &Changes {
        &self.0.changes
    }

    /// The contest for what a path names.
    pub(crate) fn contest(&self, what: impl Into<String>) -> Contest {
        self.0.turns.contest(what)
    }

    pub(crate) fn journal(&self) -> &Journal {
        &self.0.journal
    }

    /// Runs work that keeps a core busy, at most one at a time for each core.
    pub(crate) async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ClientError> {
        let core = Arc::clone(&self.0.cores).acquire_owned().await;
        let core = core.map_err(|_| ClientError::Stopped)?;
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(core);
            done
        });
        done.await.map_err(|_| ClientError::Stopped)
    }

    /// Remembers the keys of a live directory, and forgets those of one that is gone.
    pub(crate) fn remember(&self, found: &Found) {
        let key = (found.key.directory, found.key.tag);
        match found.directory().filter(|_| found.is_live()) {
            Some(directory) => self.0.directories.insert(key, Arc::clone(directory)),
            None => self.0.directories.remove(&key),
        }
    }

    pub(crate) fn remembered(&self, directory: InodeId, tag: NameTag) -> Option<Arc<Directory>> {
        self.0.directories.get(&(directory, tag))
    }
}
