//! `coffer found`: the folders of a cluster that runs on several machines, made in one place by whoever will
//! be its administrator.
//!
//! ```text
//! <dir>/descriptor  layout  ca.pem    the signed records of the cluster, and what clients trust
//! <dir>/secret/                       the administrator's key, the authority's key, the login seed: stays
//! <dir>/<machine>/                    goes to that machine, to wherever it is to be
//!     descriptor  layout  ca.pem
//!     metadata/  storage/  gateway/   config.toml and tls/ of each server, and the volume in data/
//! ```
//!
//! Paths in the configurations begin at their folder, so a machine's folder works wherever it is put.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use coffer_model::descriptor::{Member, StorageNode};
use coffer_service::files::{PRIVATE_FILE, create_private_dir, write_atomically};
use coffer_service::identity::ProcessIdentity;
use coffer_service::peer::PeerId;
use serde_json::json;

use crate::args::Global;
use crate::found::{
    CLUSTER_FILE, Founder, LAYOUT_FILE, MACHINES_FILE, OPAQUE_FILE, Role, authority_file,
    descriptor_file, new_gateway,
};
use crate::output;

/// The most machines of a new cluster; more come with `coffer node add`.
const MACHINES_MAX: usize = 256;
/// How many machines get a metadata member, where there are as many.
const MEMBERS: usize = 3;
/// Ports from the first one on: of gateway, metadata member and storage node, then where each serves health
/// and metrics.
const PORTS: u16 = 6;

/// `coffer found`
#[derive(Debug, clap::Args)]
pub(crate) struct FoundArgs {
    /// Where everything is written
    #[arg(long, default_value = "coffer-cluster")]
    dir: PathBuf,
    /// A machine: its name, and the host name or IP address the others reach it at. Each is a zone of its
    /// own. With three or more any one may be lost
    #[arg(long = "machine", value_name = "NAME=HOST", required = true, value_parser = parse_machine)]
    machines: Vec<Machine>,
    /// Another host name or IP address that clients use for a gateway; every gateway's certificate gets it
    #[arg(long = "also", value_name = "HOST")]
    also: Vec<String>,
    /// The first of six ports that each machine uses: gateway, member and node, then health and metrics of
    /// each
    #[arg(long, default_value_t = 7420, value_parser = clap::value_parser!(u16).range(1..=i64::from(u16::MAX - PORTS)))]
    port: u16,
    /// Let in only who has an invite (`coffer order invite`)
    #[arg(long)]
    by_invite: bool,
}

#[derive(Clone, Debug)]
struct Machine {
    name: String,
    host: String,
}

fn parse_machine(text: &str) -> Result<Machine, String> {
    let (name, host) = text.split_once('=').ok_or("expected NAME=HOST, such as one=10.0.0.1")?;
    let fits = |text: &str| {
        !text.is_empty()
            && !text.starts_with(['-', '.'])
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
    };
    if !fits(name) || name == "secret" || name.len() > 63 {
        return Err(format!(
            "{name:?} cannot name a machine's folder: letters, digits, - and _ can"
        ));
    }
    if !fits(host) && host.parse::<Ipv6Addr>().is_err() {
        return Err(format!("{host:?} is neither a host name nor an IP address"));
    }
    Ok(Machine { name: name.to_owned(), host: host.to_owned() })
}

impl Machine {
    /// `host:port` for others.
    fn at(&self, port: u16) -> String {
        match self.host.parse::<IpAddr>() {
            Ok(address) => SocketAddr::new(address, port).to_string(),
            Err(_) => format!("{}:{port}", self.host),
        }
    }

    /// Where its servers listen: at its address, or, where only its name is known, at all it has.
    fn listen(&self, port: u16) -> SocketAddr {
        let all = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        SocketAddr::new(self.host.parse().unwrap_or(all), port)
    }
}

/// Makes the folders.
pub(crate) fn found(global: &Global, args: &FoundArgs) -> Result<()> {
    check(args)?;
    let dir = &args.dir;
    let founder = Founder::new(dir)?;
    let members = if args.machines.len() < MEMBERS { 1 } else { MEMBERS };
    let (mut seats, mut nodes) = (Vec::new(), Vec::new());
    for (number, machine) in args.machines.iter().enumerate() {
        let home = dir.join(&machine.name);
        create_private_dir(&home)?;
        if number < members {
            let (id, key) = coffer_metadata_raft::init(&volume(&home, Role::Metadata))?;
            seats.push(Member { id, key, address: machine.at(args.port + 1) });
        }
        let (id, key) = coffer_storage_node::init(&volume(&home, Role::Storage))?;
        nodes.push(StorageNode { id, key, zone: machine.name.clone(), weight: 1 });
    }
    let cluster = founder.sign(seats, nodes, !args.by_invite)?;
    for (number, machine) in args.machines.iter().enumerate() {
        let home = dir.join(&machine.name);
        for file in [descriptor_file(dir), dir.join(LAYOUT_FILE), authority_file(dir)] {
            let name = file.file_name().context("it has a name")?;
            write_atomically(&home.join(name), &std::fs::read(&file)?, PRIVATE_FILE)?;
        }
        let mut roles = vec![Role::Storage, Role::Gateway];
        if number < members {
            roles.push(Role::Metadata);
            let setup = home.join("metadata").join(OPAQUE_FILE);
            write_atomically(&setup, &founder.opaque_setup, PRIVATE_FILE)?;
        }
        for role in roles {
            install(&founder, args, machine, role, number == 0)?;
        }
    }
    let made = json!({ "cluster": cluster.to_string(), "machines": args.machines.len(), "members": members });
    write_atomically(&dir.join(MACHINES_FILE), &serde_json::to_vec_pretty(&made)?, PRIVATE_FILE)?;
    if global.json {
        output::json(&made);
    } else {
        output::line(&next_steps(args, &cluster.to_string(), members));
    }
    Ok(())
}

fn check(args: &FoundArgs) -> Result<()> {
    let count = args.machines.len();
    ensure!(
        count >= 2,
        "one machine is too few: content is always kept on two (`coffer dev` runs on one)"
    );
    ensure!(count <= MACHINES_MAX, "{count} machines are too many: {MACHINES_MAX} at most");
    let names: BTreeSet<_> = args.machines.iter().map(|machine| &machine.name).collect();
    let hosts: BTreeSet<_> = args.machines.iter().map(|machine| &machine.host).collect();
    ensure!(names.len() == count && hosts.len() == count, "two machines have one name or host");
    let taken = args.dir.join(MACHINES_FILE).exists() || args.dir.join(CLUSTER_FILE).exists();
    if taken || args.machines.iter().any(|machine| args.dir.join(&machine.name).exists()) {
        bail!("{} has a cluster already; choose another folder with --dir", args.dir.display());
    }
    Ok(())
}

/// The volume of a server, which only it writes to.
fn volume(home: &Path, role: Role) -> PathBuf {
    home.join(role.name()).join("data")
}

/// Certificate and configuration of one server.
fn install(
    founder: &Founder,
    args: &FoundArgs,
    machine: &Machine,
    role: Role,
    bootstrap: bool,
) -> Result<()> {
    let home = args.dir.join(&machine.name);
    let folder = home.join(role.name());
    create_private_dir(&folder)?;
    let peer = match role {
        Role::Gateway => new_gateway()?,
        _ => volume_peer(&home, role)?,
    };
    let mut names = vec![machine.name.as_str(), machine.host.as_str()];
    if role == Role::Gateway {
        names.extend(args.also.iter().map(String::as_str));
    }
    founder.authority.issue_into(&folder.join("tls"), &names, &peer)?;
    let offset = match role {
        Role::Gateway => 0,
        Role::Metadata => 1,
        Role::Storage => 2,
    };
    let port = args.port + offset;
    let mut config = format!(
        "listen = \"{}\"\nhealth_listen = \"{}\"\ndescriptor = \"../descriptor\"\naudit_log = \"audit.jsonl\"\n",
        machine.listen(port),
        machine.listen(port + PORTS / 2),
    );
    match role {
        Role::Gateway => {}
        Role::Metadata => {
            config += &format!(
                "data_dir = \"data\"\nlayout = \"../layout\"\nopaque_setup = \"{OPAQUE_FILE}\"\nbootstrap = {bootstrap}\n"
            );
        }
        Role::Storage => {
            config += &format!("data_dir = \"data\"\nadvertise = \"{}\"\n", machine.at(port));
        }
    }
    config += "\n[tls]\nca = \"tls/ca.pem\"\ncertificate = \"tls/certificate.pem\"\nkey = \"tls/key.pem\"\n";
    write_atomically(&folder.join("config.toml"), config.as_bytes(), PRIVATE_FILE)?;
    Ok(())
}

fn volume_peer(home: &Path, role: Role) -> Result<PeerId> {
    let identity = ProcessIdentity::load_or_create(&volume(home, role), role.name(), None)?;
    Ok(identity.peer_id().clone())
}

fn next_steps(args: &FoundArgs, cluster: &str, members: usize) -> String {
    let dir = args.dir.display();
    let with: Vec<_> = args.machines[..members].iter().map(|it| it.name.as_str()).collect();
    let mut text = format!(
        "cluster {cluster}\n\n\
         Copy {dir}/<machine> to each machine, and run there, in that folder:\n  \
         coffer metadata --config metadata/config.toml     on {}\n  \
         coffer storage --config storage/config.toml\n  \
         coffer gateway --config gateway/config.toml\n\n\
         Then, from anywhere that has {dir}/ca.pem:\n  \
         export COFFER_SERVER={} COFFER_CA={dir}/ca.pem\n  \
         coffer status\n\n\
         Keep {dir}/secret to yourself: it is the administrator's key and the authority's. No server needs it.",
        with.join(", "),
        args.machines.iter().map(|it| it.at(args.port)).collect::<Vec<_>>().join(","),
    );
    if args.machines.len() < MEMBERS {
        text += "\n\nWith two machines neither may be lost; with three any one may.";
    }
    text
}
