//! What operators change: storage nodes, members, administrators, the layout, retention, quotas and
//! invites. Each is a record that administrators sign on their own machines.
//!
//! Here is what the commands share: who signs, and how a signed record gets to the cluster. The commands
//! are in the modules below.

mod administrators;
mod members;
mod nodes;
mod orders;
mod words;

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use coffer_client::contact::StateDir;
use coffer_client::{Administration, Authority, ClientError, Endpoint};
use coffer_model::descriptor::Descriptor;
use coffer_model::id::{MemberId, NodeId};
use coffer_model::name::UserName;
use coffer_model::order::Decision;
use coffer_model::proposal::{PROPOSAL_BYTES_MAX, Proposal, Proposed, Review};
use coffer_model::signing::{PublicKey, Signer as _};
use coffer_service::identity::{ProcessIdentity, ProcessKey};
use serde_json::json;

use crate::args::Global;
use crate::exit::Waits;
use crate::found::{self, Founded, Role};
use crate::output;

pub(crate) use administrators::{AdminCommand, admin};
pub(crate) use members::{MemberCommand, member};
pub(crate) use nodes::{LayoutCommand, NodeCommand, layout, node};
pub(crate) use orders::{OrderCommand, invite, milliseconds, order};
pub(crate) use words::time_text;

/// The role in the identity file of an administrator's key.
pub(crate) use coffer_authority::ADMINISTRATOR;

/// Which cluster.
#[derive(Debug, Args)]
pub(crate) struct DirArgs {
    /// The folder of a `coffer dev` cluster: it says where the cluster is
    #[arg(long, value_name = "DIR", env = "COFFER_DEV_DIR")]
    dir: Option<PathBuf>,
}

/// Who signs, and for which cluster.
#[derive(Debug, Args)]
pub(crate) struct KeyArgs {
    /// The folder of a `coffer dev` cluster: it says where the cluster is and has its first
    /// administrator's key
    #[arg(long, value_name = "DIR", env = "COFFER_DEV_DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// The folder with the administrator's key
    #[arg(long, value_name = "DIR", env = "COFFER_ADMIN")]
    admin: Option<PathBuf>,
}

/// Who signs, and where the signed record goes.
#[derive(Debug, Args)]
pub(crate) struct AdminArgs {
    #[command(flatten)]
    pub(crate) key: KeyArgs,
    /// Only sign, and write the proposal to this file instead of submitting it
    ///
    /// Without this a proposal that other administrators have to sign as well is written into the current
    /// folder, and named.
    #[arg(long, value_name = "FILE")]
    sign_to: Option<PathBuf>,
}

/// What a prepared volume is for.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum VolumeRole {
    /// A storage node
    Storage,
    /// A metadata member
    Metadata,
}

/// Prepares a volume and says who it is.
pub(crate) fn volume(global: &Global, role: VolumeRole, dir: &Path) -> Result<()> {
    let (id, key) = match role {
        VolumeRole::Storage => {
            let (id, key) = coffer_storage_node::init(dir)?;
            (id.to_string(), key)
        }
        VolumeRole::Metadata => {
            let (id, key) = coffer_metadata_raft::init(dir)?;
            (id.to_string(), key)
        }
    };
    let key = hex::encode(key.as_bytes());
    let text = format!("id          {id}\npublic key  {key}");
    show(global, &json!({ "id": id, "public_key": key }), &text);
    Ok(())
}

/// An operator with a key.
pub(crate) struct Operator<'a> {
    global: &'a Global,
    /// The folder of a `coffer dev` cluster.
    pub(crate) dir: Option<PathBuf>,
    key: ProcessKey,
    pub(crate) cluster: Administration,
    sign_to: Option<PathBuf>,
}

impl<'a> Operator<'a> {
    /// With the key in `admin`.
    pub(crate) async fn with_admin(
        global: &'a Global,
        admin: PathBuf,
        state: StateDir,
    ) -> Result<Self> {
        Self::open(global, KeyArgs { dir: None, admin: Some(admin) }, state).await
    }

    pub(crate) async fn new(global: &'a Global, args: AdminArgs) -> Result<Self> {
        let operator = Self::with_key(global, args.key).await?;
        Ok(Self { sign_to: args.sign_to, ..operator })
    }

    async fn with_key(global: &'a Global, args: KeyArgs) -> Result<Self> {
        Self::open(global, args, StateDir::standard()?).await
    }

    async fn open(global: &'a Global, args: KeyArgs, state: StateDir) -> Result<Self> {
        let dir = canonical(args.dir)?;
        let Some(secret) = args.admin.or_else(|| dir.as_ref().map(|dir| dir.join("secret"))) else {
            bail!(
                "this needs the administrator's key: --dir with the folder of a `coffer dev` cluster, or \
                 --admin with the key's folder"
            );
        };
        if !secret.join("identity").exists() {
            bail!("{} has no administrator's key", secret.display());
        }
        let key = ProcessIdentity::read_key(&secret, ADMINISTRATOR)?;
        let endpoint = endpoint(global, dir.as_deref())?;
        let cluster = Administration::connect(&endpoint, &state).await?;
        if !cluster.descriptor().administrators.contains(&key.public_key()) {
            bail!("{} has a key that is no administrator's of this cluster", secret.display());
        }
        Ok(Self { global, dir, key, cluster, sign_to: None })
    }

    fn founded(&self) -> Result<Option<(PathBuf, Founded)>> {
        let Some(dir) = &self.dir else { return Ok(None) };
        Ok(Some((dir.clone(), found::load(dir)?)))
    }

    /// The id that `text` means: the beginning of one, or a process's name.
    fn resolve<'i>(&self, text: &str, ids: impl Iterator<Item = String> + 'i) -> Result<String> {
        let named = self.founded()?.and_then(|(_, founded)| {
            founded.processes.into_iter().find(|process| process.name == text)
        });
        let wanted = named.map_or_else(|| text.to_owned(), |process| process.id);
        let mut found: Vec<String> = ids.filter(|id| id.starts_with(&wanted)).collect();
        match (found.pop(), found.len()) {
            (Some(id), 0) => Ok(id),
            (Some(_), _) => bail!("{text} is the beginning of several ids; give more of it"),
            (None, _) => bail!("the descriptor names nothing that begins with {text}"),
        }
    }

    fn node(&self, text: &str) -> Result<NodeId> {
        let nodes = self.cluster.descriptor().nodes.iter().map(|node| node.id.to_string());
        Ok(self.resolve(text, nodes)?.parse()?)
    }

    fn member(&self, text: &str) -> Result<MemberId> {
        let members = self.cluster.descriptor().members.iter();
        Ok(self.resolve(text, members.map(|member| member.id.to_string()))?.parse()?)
    }

    /// Signs the descriptor that `change` makes of the one in force, and puts it in force; if others have
    /// to sign it as well, this ends in [`Waits`].
    pub(crate) async fn change(&mut self, change: impl FnOnce(&mut Descriptor)) -> Result<()> {
        self.carry(self.cluster.propose_descriptor(change)).await
    }

    /// As [`Self::change`], for an order; `user` is whose home it names.
    async fn order(&mut self, what: Decision, user: Option<&UserName>) -> Result<()> {
        let proposal = self.cluster.propose_order(what, user).await?;
        self.carry(proposal).await
    }

    async fn carry(&mut self, mut proposal: Proposal) -> Result<()> {
        let review = self.cluster.sign(&mut proposal, &self.key).await?;
        if review.lacking() == 0 && self.sign_to.is_none() {
            self.cluster.submit(&proposal).await?;
            return settle(self.dir.as_deref(), &self.cluster);
        }
        let file = self.sign_to.clone().unwrap_or_else(|| file_of(&review));
        write_new(&file, &proposal.to_bytes())?;
        if self.global.json {
            output::json(&words::signatures_json(&review, &file));
        } else {
            output::remark(&format!("the signed proposal is in {}", file.display()));
        }
        Err(waits(&review, file).into())
    }

    /// A process for the cluster's folder. `coffer dev` starts it once the descriptor names it.
    fn make(&self, role: Role) -> Result<found::Made> {
        let Some(dir) = &self.dir else {
            bail!("say which one: --id and --public-key, as `coffer volume` prints them");
        };
        found::make(dir, role)
    }

    pub(crate) fn told(&self, text: &str) {
        if !self.global.json {
            output::remark(text);
        }
    }
}

/// Brings the folder of a `coffer dev` cluster in line with the descriptor.
fn settle(dir: Option<&Path>, cluster: &Administration) -> Result<()> {
    match dir {
        Some(dir) => found::settle(dir, cluster.descriptor(), cluster.successors()),
        None => Ok(()),
    }
}

/// The name of a proposal's file, where none was given.
fn file_of(review: &Review) -> PathBuf {
    match &review.proposed {
        Proposed::Descriptor(next) => format!("descriptor-{}.proposal", next.number),
        Proposed::Order { order, .. } => format!("order-{}.proposal", order.number),
    }
    .into()
}

fn waits(review: &Review, file: PathBuf) -> Waits {
    Waits { signed: review.signed_by.len(), quorum: review.quorum, file }
}

/// Writes a proposal where nothing is yet: another one is not lost by it.
fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let written = File::create_new(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    match written {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(ClientError::Exists { what: path.display().to_string() }.into())
        }
        written => written.with_context(|| format!("cannot write {}", path.display())),
    }
}

fn read_proposal(path: &Path) -> Result<Proposal> {
    let unreadable = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(unreadable)?;
    let mut bytes = Vec::new();
    // One byte more than there may be, so that a longer file is noticed.
    let most = u64::try_from(PROPOSAL_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
    file.take(most).read_to_end(&mut bytes).with_context(unreadable)?;
    Ok(Proposal::from_bytes(&bytes).map_err(ClientError::from)?)
}

async fn connect(global: &Global, dir: Option<&Path>) -> Result<Administration> {
    let endpoint = endpoint(global, dir)?;
    Ok(Administration::connect(&endpoint, &StateDir::standard()?).await?)
}

fn canonical(dir: Option<PathBuf>) -> Result<Option<PathBuf>> {
    dir.map(|dir| dir.canonicalize().with_context(|| dir.display().to_string())).transpose()
}

pub(crate) fn endpoint(global: &Global, dir: Option<&Path>) -> Result<Endpoint> {
    let (mut server, mut authority) = (global.server.clone(), global.ca.clone());
    if let Some(dir) = dir {
        server = found::load(dir)?.gateway().map(|gateway| gateway.to_string());
        authority = Some(found::authority_file(dir));
    }
    let Some(server) = server else {
        bail!("say where the cluster is: --server host:port, or $COFFER_SERVER");
    };
    let authority = authority.map_or(Authority::Pinned, Authority::PemFile);
    Ok(Endpoint { server, server_name: global.server_name.clone(), authority })
}

fn public_key_of(text: &str) -> Result<PublicKey> {
    let bytes = hex::decode(text).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    Ok(PublicKey::from_bytes(bytes.context("a public key has 64 hexadecimal digits")?))
}

pub(crate) fn show(global: &Global, value: &serde_json::Value, text: &str) {
    if global.json { output::json(value) } else { output::line(text) }
}
