//! Founding a cluster on one machine: identities, certificates, the first descriptor and layout,
//! and a configuration file for each process.
//!
//! ```text
//! <dir>/cluster.json            what there is; written last: a folder without it is founded anew
//! <dir>/descriptor  layout      the signed records of the cluster
//! <dir>/ca.pem                  what clients trust at first contact
//! <dir>/secret/                 the administrator's key, the authority's key, the login seed
//! <dir>/<process>/config.toml   and tls/, data/, log; process.json of one that came later
//! ```

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use coffer_authority::{First, Records};
use coffer_model::descriptor::{Descriptor, Member, StorageNode};
use coffer_model::encoding::encode;
use coffer_model::id::ClusterId;
use coffer_model::signing::PublicKey;
use coffer_service::files::{PRIVATE_FILE, create_private_dir, write_atomically};
use coffer_service::identity::ProcessIdentity;
use coffer_service::one_box::OneBoxCa;
use coffer_service::peer::PeerId;
use coffer_service::tls::{TlsFiles, read_certificates};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::admin::ADMINISTRATOR;

pub(crate) const CLUSTER_FILE: &str = "cluster.json";
/// What `coffer found` made, written last.
pub(crate) const MACHINES_FILE: &str = "founded.json";
/// The signed first layout.
pub(crate) const LAYOUT_FILE: &str = "layout";
/// The secrets for login, the same on all members.
pub(crate) const OPAQUE_FILE: &str = "opaque.setup";
/// What [`Process`] a folder is of, for one that was made after the cluster.
const PROCESS_FILE: &str = "process.json";
/// The version of the folder's shape.
const VERSION: u32 = 1;

/// What a process of the cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    Metadata,
    Storage,
    Gateway,
}

impl Role {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Metadata => "metadata",
            Self::Storage => "storage",
            Self::Gateway => "gateway",
        }
    }
}

/// One process of the cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Process {
    /// `metadata-1`, `storage-3`, `gateway`: also its folder.
    pub(crate) name: String,
    pub(crate) role: Role,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Its id in hexadecimal, as `coffer status` shows it.
    pub(crate) id: String,
    /// Where it serves health and metrics.
    #[serde(default)]
    pub(crate) health: Option<SocketAddr>,
}

/// A founded cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Founded {
    version: u32,
    /// The cluster's id.
    pub(crate) cluster: String,
    pub(crate) processes: Vec<Process>,
}

impl Founded {
    /// The gateway's address.
    pub(crate) fn gateway(&self) -> Option<SocketAddr> {
        self.processes.iter().find(|it| it.role == Role::Gateway).map(|it| it.address)
    }
}

/// How large a cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) members: u8,
    pub(crate) nodes: u8,
    /// Where the gateway listens; port 0 picks a free one, which is then kept.
    pub(crate) gateway: SocketAddr,
}

/// Takes up the cluster in `dir`, or founds one there.
pub(crate) fn load_or_found(dir: &Path, size: Size) -> Result<Founded> {
    if dir.join(CLUSTER_FILE).exists() {
        return load(dir);
    }
    if dir.join(MACHINES_FILE).exists() {
        bail!(
            "{} is of a cluster over several machines (`coffer found`); choose another folder with --dir",
            dir.display()
        );
    }
    found(dir, size)
}

/// Takes up the cluster in `dir`.
pub(crate) fn load(dir: &Path) -> Result<Founded> {
    let path = dir.join(CLUSTER_FILE);
    let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let founded: Founded =
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
    if founded.version != VERSION {
        bail!("{} has version {}, this program knows {VERSION}", path.display(), founded.version);
    }
    Ok(founded)
}

fn save(dir: &Path, founded: &Founded) -> Result<()> {
    let text = serde_json::to_vec_pretty(founded)?;
    Ok(write_atomically(&dir.join(CLUSTER_FILE), &text, PRIVATE_FILE)?)
}

/// A process whose files are there, and that is not listed yet: [`settle`] does that.
pub(crate) struct Made {
    pub(crate) process: Process,
    pub(crate) key: PublicKey,
}

/// Makes volume, certificate and configuration of one more process. It runs once it is listed, which is
/// when the descriptor names it.
pub(crate) fn make(dir: &Path, role: Role) -> Result<Made> {
    let founded = load(dir)?;
    let stem = role.name();
    // A name is never used twice: the folder of one that was taken out may still be there.
    let name = (1u32..)
        .map(|number| format!("{stem}-{number}"))
        .find(|name| {
            founded.processes.iter().all(|it| it.name != *name) && !dir.join(name).exists()
        })
        .context("there are too many processes")?;
    let (id, key) = match role {
        Role::Metadata => {
            let (id, key) = coffer_metadata_raft::init(&data_dir(dir, &name))?;
            (id.to_string(), key)
        }
        Role::Storage => {
            let (id, key) = coffer_storage_node::init(&data_dir(dir, &name))?;
            (id.to_string(), key)
        }
        Role::Gateway => bail!("a gateway needs no place in the descriptor"),
    };
    let inside = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    let (first, second) = (TcpListener::bind(inside)?, TcpListener::bind(inside)?);
    let (address, health) = (first.local_addr()?, Some(second.local_addr()?));
    let process = Process { name, role, address, id, health };
    let authority = OneBoxCa::load_or_create(&dir.join("secret"))?;
    let peer = peer_of(dir, &process.name, role)?;
    let tls_dir = dir.join(&process.name).join("tls");
    let tls = authority.issue_into(&tls_dir, &[&process.name], &peer)?;
    let config = config_text(dir, &process, &tls, false, true);
    write_atomically(&config_file(dir, &process.name), config.as_bytes(), PRIVATE_FILE)?;
    let text = serde_json::to_vec_pretty(&process)?;
    write_atomically(&dir.join(&process.name).join(PROCESS_FILE), &text, PRIVATE_FILE)?;
    Ok(Made { process, key })
}

/// Makes a new volume for a process that has lost its own, where the cluster's policy lets it in: it then asks
/// for the place it had. Gives the process as it is from now on.
pub(crate) fn renew_if_lost(dir: &Path, process: &Process) -> Result<Process> {
    let is_lost = match process.role {
        Role::Gateway => false,
        Role::Metadata | Role::Storage => !data_dir(dir, &process.name).join("identity").exists(),
    };
    if !is_lost || !token_file(dir).exists() {
        return Ok(process.clone());
    }
    let data = data_dir(dir, &process.name);
    let id = match process.role {
        Role::Metadata => coffer_metadata_raft::init(&data)?.0.to_string(),
        _ => coffer_storage_node::init(&data)?.0.to_string(),
    };
    let process = Process { id, ..process.clone() };
    let peer = peer_of(dir, &process.name, process.role)?;
    let authority = OneBoxCa::load_or_create(&dir.join("secret"))?;
    let tls_dir = dir.join(&process.name).join("tls");
    let tls = authority.issue_into(&tls_dir, &[&process.name], &peer)?;
    let is_later = successors_file(dir).exists();
    let config = joining(dir, &process) + &config_text(dir, &process, &tls, false, is_later);
    write_atomically(&config_file(dir, &process.name), config.as_bytes(), PRIVATE_FILE)?;
    let mut founded = load(dir)?;
    for listed in founded.processes.iter_mut().filter(|listed| listed.name == process.name) {
        *listed = process.clone();
    }
    save(dir, &founded)?;
    Ok(process)
}

/// What a process's configuration begins with that takes the place at its own address.
fn joining(dir: &Path, process: &Process) -> String {
    let token = toml::Value::String(token_file(dir).display().to_string());
    match process.role {
        Role::Metadata => {
            format!("join_token_file = {token}\nreplaces = \"{}\"\n", process.address)
        }
        // The members know it by its address.
        _ => format!("join_token_file = {token}\n"),
    }
}

/// Where the join token of a `coffer dev` cluster is, if it has a policy.
pub(crate) fn token_file(dir: &Path) -> PathBuf {
    dir.join("secret/join-token")
}

/// Brings the folder in line with a descriptor: processes that were made here and that it names are listed,
/// so that `coffer dev` starts them; those that it names no more are taken off the list, and stop.
pub(crate) fn settle(dir: &Path, descriptor: &Descriptor, successors: &[Vec<u8>]) -> Result<()> {
    // New processes of this folder are given the descriptors along with the first one.
    write_atomically(&successors_file(dir), &encode(&successors.to_vec()), PRIVATE_FILE)?;
    let named = |process: &Process| match process.role {
        Role::Metadata => descriptor.members.iter().any(|it| it.id.to_string() == process.id),
        Role::Storage => descriptor.nodes.iter().any(|it| it.id.to_string() == process.id),
        Role::Gateway => true,
    };
    let mut founded = load(dir)?;
    let mut made = made_in(dir)?;
    made.retain(|process| {
        named(process) && founded.processes.iter().all(|listed| listed.id != process.id)
    });
    for process in &made {
        if process.role == Role::Storage {
            coffer_storage_node::install_descriptors(&data_dir(dir, &process.name), successors)?;
        }
    }
    founded.processes.retain(named);
    founded.processes.extend(made);
    save(dir, &founded)
}

/// The processes that were made in this folder after it was founded, by name.
fn made_in(dir: &Path) -> Result<Vec<Process>> {
    let mut made = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path().join(PROCESS_FILE);
        match std::fs::read(&path) {
            Ok(text) => {
                let process: Process = serde_json::from_slice(&text)
                    .with_context(|| format!("{} is damaged", path.display()))?;
                made.push(process);
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        }
    }
    made.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(made)
}

/// The file of the descriptors after the first.
pub(crate) fn successors_file(dir: &Path) -> PathBuf {
    dir.join("successors")
}

/// The signed descriptor's file.
pub(crate) fn descriptor_file(dir: &Path) -> PathBuf {
    dir.join("descriptor")
}

/// The certificate clients trust at first contact.
pub(crate) fn authority_file(dir: &Path) -> PathBuf {
    dir.join("ca.pem")
}

/// A gateway has no volume: its id is made up.
pub(crate) fn new_gateway() -> Result<PeerId> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).context("the system gives no randomness")?;
    Ok(PeerId::new("gateway", id)?)
}

/// What founding takes: the administrator's key, the authority and the secrets for login, in
/// `<dir>/secret`.
pub(crate) struct Founder {
    dir: PathBuf,
    administrator: ProcessIdentity,
    pub(crate) authority: OneBoxCa,
    pub(crate) opaque_setup: Zeroizing<Vec<u8>>,
}

impl Founder {
    /// Makes the secrets, and `ca.pem` for everybody.
    pub(crate) fn new(dir: &Path) -> Result<Self> {
        create_private_dir(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let secret = dir.join("secret");
        create_private_dir(&secret)?;
        let administrator = ProcessIdentity::load_or_create(&secret, ADMINISTRATOR, None)?;
        let authority = OneBoxCa::load_or_create(&secret)?;
        std::fs::write(authority_file(dir), authority.certificate_pem())?;
        let opaque_setup = coffer_metadata_raft::new_opaque_setup();
        write_atomically(&secret.join(OPAQUE_FILE), &opaque_setup, PRIVATE_FILE)?;
        Ok(Self { dir: dir.to_owned(), administrator, authority, opaque_setup })
    }

    /// Signs and writes the first descriptor and layout.
    pub(crate) fn sign(
        &self,
        members: Vec<Member>,
        nodes: Vec<StorageNode>,
        open_registration: bool,
    ) -> Result<ClusterId> {
        let authority = read_certificates(&authority_file(&self.dir))?.swap_remove(0).to_vec();
        let first = First { authority, members, nodes, replacement: None, open_registration };
        let Records { cluster, descriptor, layout, .. } =
            Records::first(first, &self.administrator)?;
        write_atomically(&descriptor_file(&self.dir), &descriptor, PRIVATE_FILE)?;
        write_atomically(&self.dir.join(LAYOUT_FILE), &layout, PRIVATE_FILE)?;
        Ok(cluster)
    }
}

fn found(dir: &Path, size: Size) -> Result<Founded> {
    let founder = Founder::new(dir)?;

    // All listeners are held until every port is chosen, so that none is chosen twice.
    let mut held = Vec::new();
    let mut free_address = |wanted: SocketAddr| -> Result<SocketAddr> {
        let listener = TcpListener::bind(wanted)
            .with_context(|| format!("cannot listen on {wanted}; choose another with --listen"))?;
        let address = listener.local_addr()?;
        held.push(listener);
        Ok(address)
    };
    let inside = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    let gateway_address = free_address(size.gateway)?;
    let gateway_health = free_address(inside)?;

    let (mut processes, mut members, mut nodes) = (Vec::new(), Vec::new(), Vec::new());
    for number in 1..=size.members {
        let name = format!("metadata-{number}");
        let (id, key) = coffer_metadata_raft::init(&data_dir(dir, &name))?;
        let address = free_address(inside)?;
        members.push(Member { id, key, address: address.to_string() });
        let health = Some(free_address(inside)?);
        let id = id.to_string();
        processes.push(Process { name, role: Role::Metadata, address, id, health });
    }
    for number in 1..=size.nodes {
        let name = format!("storage-{number}");
        let (id, key) = coffer_storage_node::init(&data_dir(dir, &name))?;
        let address = free_address(inside)?;
        nodes.push(StorageNode { id, key, zone: String::new(), weight: 1 });
        let id = id.to_string();
        let health = Some(free_address(inside)?);
        processes.push(Process { name, role: Role::Storage, address, id, health });
    }

    let cluster = founder.sign(members, nodes, true)?;

    let gateway = new_gateway()?;
    processes.push(Process {
        name: "gateway".to_owned(),
        role: Role::Gateway,
        address: gateway_address,
        id: gateway.to_string().rsplit('/').next().unwrap_or_default().to_owned(),
        health: Some(gateway_health),
    });
    let gateway_host = gateway_address.ip().to_string();
    for (number, process) in processes.iter().enumerate() {
        let peer = match process.role {
            Role::Gateway => gateway.clone(),
            role => peer_of(dir, &process.name, role)?,
        };
        let tls = founder.authority.issue_into(
            &dir.join(&process.name).join("tls"),
            &[&process.name, &gateway_host],
            &peer,
        )?;
        let config = config_text(dir, process, &tls, number == 0, false);
        write_atomically(&config_file(dir, &process.name), config.as_bytes(), PRIVATE_FILE)?;
    }
    let founded = Founded { version: VERSION, cluster: cluster.to_string(), processes };
    // From here on the cluster exists.
    save(dir, &founded)?;
    Ok(founded)
}

/// The id a process's certificate has to carry: the one on its volume.
fn peer_of(dir: &Path, name: &str, role: Role) -> Result<PeerId> {
    let identity = ProcessIdentity::load_or_create(&data_dir(dir, name), role.name(), None)?;
    Ok(identity.peer_id().clone())
}

pub(crate) fn config_file(dir: &Path, name: &str) -> PathBuf {
    dir.join(name).join("config.toml")
}

fn data_dir(dir: &Path, name: &str) -> PathBuf {
    dir.join(name).join("data")
}

fn audit_file(dir: &Path, name: &str) -> PathBuf {
    dir.join(name).join("audit.jsonl")
}

/// `is_later` is for a process that the first descriptor does not name.
fn config_text(
    dir: &Path,
    process: &Process,
    tls: &TlsFiles,
    bootstrap: bool,
    is_later: bool,
) -> String {
    let quoted = |path: &Path| toml::Value::String(path.display().to_string()).to_string();
    let mut text = format!(
        "listen = \"{}\"\ndescriptor = {}\n",
        process.address,
        quoted(&descriptor_file(dir))
    );
    match process.role {
        Role::Metadata => {
            text += &format!(
                "data_dir = {}\nlayout = {}\nopaque_setup = {}\nbootstrap = {bootstrap}\naudit_log = {}\n",
                quoted(&data_dir(dir, &process.name)),
                quoted(&dir.join(LAYOUT_FILE)),
                quoted(&dir.join("secret").join(OPAQUE_FILE)),
                quoted(&audit_file(dir, &process.name)),
            );
            if is_later {
                text += &format!("successors = {}\n", quoted(&successors_file(dir)));
            }
        }
        Role::Storage => {
            text += &format!(
                "data_dir = {}\nadvertise = \"{}\"\naudit_log = {}\n",
                quoted(&data_dir(dir, &process.name)),
                process.address,
                quoted(&audit_file(dir, &process.name))
            );
        }
        Role::Gateway => {
            text += &format!("audit_log = {}\n", quoted(&audit_file(dir, &process.name)));
        }
    }
    if let Some(health) = process.health {
        text += &format!("health_listen = \"{health}\"\n");
    }
    text += &format!(
        "\n[tls]\nca = {}\ncertificate = {}\nkey = {}\n",
        quoted(&tls.ca),
        quoted(&tls.certificate),
        quoted(&tls.key)
    );
    text
}
