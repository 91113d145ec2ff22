//! The command line. Doc comments here are the manual.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::admin::{
    AdminCommand, LayoutCommand, MemberCommand, NodeCommand, OrderCommand, VolumeRole,
};
use crate::bench::BenchArgs;
use crate::dev::DevArgs;
use crate::join::JoinCommand;
use crate::machines::FoundArgs;
use crate::pods::{ClusterSecretsArgs, TryArgs};
use crate::roles::{AuthorityArgs, RoleArgs};
use crate::sync::SyncArgs;

/// Encrypted, versioned file storage that you run yourself.
///
/// Files are sealed and signed on this machine; no server can read, forge or silently lose them.
/// Remote paths are absolute: /alice/docs/report.pdf.
#[derive(Debug, Parser)]
#[command(name = "coffer", version, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed for a reason not listed here
  2  the command line is wrong
  3  not found
  4  already exists
  5  somebody else changed it in the meantime
  6  not allowed
  7  wrong password, or wrong recovery code
  8  not logged in, or the session has expired
  9  the cluster cannot be reached or is not ready
 10  a server's answer does not verify: forged, incomplete or older than what was seen
 11  a name or an argument is not valid
 12  not a directory, is a directory, or the directory is not empty
 13  this machine's disk, files or clock failed
 14  some of many files failed; each was named
 15  `doctor` found something wrong
 16  signed, and nothing changed yet: other administrators have to sign as well
 17  a server's configuration is wrong; each fault was named
 18  a server's volume, or the folder of a key, is in use, damaged or another's";

/// Options of every command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Where the cluster is, host:port of a gateway; or several with commas between, of which any one that
    /// answers is used. Needed at login; later the session knows it
    #[arg(long, global = true, env = "COFFER_SERVER", value_name = "HOST:PORT")]
    pub(crate) server: Option<String>,
    /// The certificate authority to trust at first contact, PEM. Later the pinned cluster counts
    #[arg(long, global = true, env = "COFFER_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// The name the server's certificate must carry, if it is not the host of --server
    #[arg(long, global = true, env = "COFFER_SERVER_NAME", value_name = "NAME")]
    pub(crate) server_name: Option<String>,
    /// A name for this login, where several are open at once
    #[arg(
        long,
        global = true,
        env = "COFFER_SESSION",
        value_name = "NAME",
        default_value = "default"
    )]
    pub(crate) session: String,
    /// Print JSON for programs
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// Where a password comes from. It never comes from an argument.
#[derive(Debug, Args)]
pub(crate) struct PasswordArgs {
    /// Read the password from the first line of a file. Else $COFFER_PASSWORD, else a prompt
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
}

/// What `find` looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum FindKind {
    /// Files
    F,
    /// Directories
    D,
    /// Symbolic links
    L,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RepairCommand {
    /// What each node lacks, and how fast it comes
    Status,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ScrubCommand {
    /// What was found damaged and waits for a new copy
    Status,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a user, print its recovery code, and log in
    Register {
        /// 2 to 32 of a-z, 0-9, `.`, `_`, `-`
        name: String,
        #[command(flatten)]
        password: PasswordArgs,
        /// The invite, where registration is not open: `coffer order invite` makes one
        #[arg(long, value_name = "INVITE", env = "COFFER_INVITE", hide_env_values = true)]
        invite: Option<String>,
    },
    /// Log in; the session lasts 12 hours and is kept in memory only
    Login {
        /// The user
        name: String,
        #[command(flatten)]
        password: PasswordArgs,
    },
    /// End the session
    Logout,
    /// Change the password; the recovery code stays the same
    Passwd {
        /// The user; default: who is logged in
        name: Option<String>,
        #[command(flatten)]
        password: PasswordArgs,
        /// Read the new password from the first line of a file. Else a prompt
        #[arg(long, value_name = "FILE")]
        new_password_file: Option<PathBuf>,
    },
    /// Set a new password with the recovery code, and get a new code
    ///
    /// For who has lost the password. The old password and the old code are good for nothing afterwards;
    /// files stay as they are, and sessions stay open until they end.
    Recover {
        /// The user
        name: String,
        /// Read the recovery code from the first line of a file. Else a prompt
        #[arg(long, value_name = "FILE")]
        code_file: Option<PathBuf>,
        /// Read the new password from the first line of a file. Else a prompt
        #[arg(long, value_name = "FILE")]
        new_password_file: Option<PathBuf>,
    },
    /// Who is logged in, where, and until when
    Whoami,
    /// Store a file, a directory (-r), or standard input (-)
    Put {
        /// Local file or directory, or `-` for standard input
        source: PathBuf,
        /// Remote path; a directory or one ending in `/` gets the source's name
        target: String,
        /// A directory with everything in it
        #[arg(short, long)]
        recursive: bool,
        /// Only if the remote file has this version (0: only if there is none)
        #[arg(long, value_name = "N", conflicts_with = "recursive")]
        if_version: Option<u64>,
        /// 64 KiB slots instead of 1 MiB: for files that are changed at random places
        #[arg(long)]
        small_slots: bool,
        /// Write at this offset of the existing file and keep the rest
        #[arg(long, value_name = "BYTES", conflicts_with_all = ["recursive", "append", "small_slots"])]
        offset: Option<u64>,
        /// Write at the end of the existing file
        #[arg(long, conflicts_with_all = ["recursive", "small_slots"])]
        append: bool,
    },
    /// Fetch a file, a directory (-r), or to standard output (-)
    Get {
        /// Remote path
        source: String,
        /// Local file or directory, or `-` for standard output; default: the last name
        target: Option<PathBuf>,
        /// A directory with everything in it
        #[arg(short, long)]
        recursive: bool,
        /// An older version
        #[arg(long, value_name = "N", conflicts_with = "recursive")]
        version: Option<u64>,
        /// Replace local files that exist
        #[arg(short, long)]
        force: bool,
    },
    /// Make one directory like another, local to remote or remote to local
    ///
    /// First it says what it would do: `+` what the target lacks, `~` what differs, `-` what only the
    /// target has (with --delete). With --yes it does it. Names are compared by kind, size, mode and time
    /// of the last change. Deleted remote files can be brought back with `restore`.
    Sync(SyncArgs),
    /// Print a file
    Cat {
        /// Remote path
        path: String,
        /// An older version
        #[arg(long, value_name = "N")]
        version: Option<u64>,
    },
    /// List a directory
    Ls {
        /// Remote path
        #[arg(default_value = "/")]
        path: String,
        /// Mode, size and time as well
        #[arg(short, long)]
        long: bool,
        /// Deleted names as well
        #[arg(long)]
        deleted: bool,
    },
    /// Draw a directory and everything below it
    Tree {
        /// Remote path
        #[arg(default_value = "/")]
        path: String,
        /// No deeper than this many levels
        #[arg(short = 'L', long, value_name = "LEVELS", default_value_t = usize::MAX, hide_default_value = true)]
        depth: usize,
    },
    /// Find names below a directory; names are searched on this machine, no server sees them
    Find {
        /// Remote path
        #[arg(default_value = "/")]
        path: String,
        /// Only names that match a pattern of `*`, `?` and `[…]`
        #[arg(short, long, value_name = "PATTERN")]
        name: Option<String>,
        /// The pattern does not tell capitals from small letters
        #[arg(short, long, requires = "name")]
        ignore_case: bool,
        /// Only this kind: f (file), d (directory), l (symbolic link)
        #[arg(short = 't', long = "type", value_name = "KIND")]
        kind: Option<FindKind>,
        /// Only files of at least this many bytes
        #[arg(long, value_name = "BYTES")]
        min_size: Option<u64>,
        /// Only files of at most this many bytes
        #[arg(long, value_name = "BYTES")]
        max_size: Option<u64>,
    },
    /// Sum up sizes of current versions, directory by directory
    Du {
        /// Remote path
        #[arg(default_value = "/")]
        path: String,
        /// Only the sum
        #[arg(short, long)]
        summarize: bool,
    },
    /// How much room the storage nodes have
    Df,
    /// What your own files use, and what they may use
    ///
    /// Older versions count, and what was deleted until it is purged, which is when the retention that
    /// administrators ordered is over.
    Quota,
    /// Everything about one file or directory
    Stat {
        /// Remote path
        path: String,
    },
    /// Make a directory
    Mkdir {
        /// Remote path
        path: String,
        /// Also the directories above; no error if it exists
        #[arg(short, long)]
        parents: bool,
    },
    /// Move or rename
    Mv {
        /// Remote path
        source: String,
        /// Remote path; a directory gets the source into it
        target: String,
    },
    /// Copy; the copy is sealed anew
    Cp {
        /// Remote path
        source: String,
        /// Remote path; a directory gets the source into it
        target: String,
        /// A directory with everything in it
        #[arg(short, long)]
        recursive: bool,
    },
    /// Delete; every version is kept and `restore` brings it back
    Rm {
        /// Remote path
        path: String,
        /// A directory with everything in it
        #[arg(short, long)]
        recursive: bool,
    },
    /// Bring back what was deleted, or an older version of a file
    Restore {
        /// Remote path
        path: String,
        /// The version; without it, what was deleted under this name
        #[arg(long, value_name = "N")]
        version: Option<u64>,
    },
    /// List the versions of a file, newest first
    Versions {
        /// Remote path
        path: String,
    },
    /// The state of the cluster: what is wrong first, then room, copies, members and nodes
    Status,
    /// Look at one thing after another, and say what is wrong and what to do about it
    ///
    /// From this machine's session and clock to the cluster's disks. Ends with 15 when something is wrong.
    Doctor,
    /// Copies that are missing
    #[command(subcommand)]
    Repair(RepairCommand),
    /// Reading everything back
    #[command(subcommand)]
    Scrub(ScrubCommand),
    /// Versions of this program and of the cluster
    Version,
    /// Measure a cluster of processes on this machine, beside what the machine could do at best
    Bench(BenchArgs),
    /// Print what makes a shell complete commands and options
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write manual pages, one for each command
    Man {
        /// Into this folder
        dir: PathBuf,
    },
    /// Storage nodes: take them in, drain them, take them out
    #[command(subcommand)]
    Node(NodeCommand),
    /// Metadata members: take them in, replace them, take them out
    #[command(subcommand)]
    Member(MemberCommand),
    /// The layout: which storage nodes hold what
    #[command(subcommand)]
    Layout(LayoutCommand),
    /// Administrators: who they are, and how they sign together
    #[command(subcommand)]
    Admin(AdminCommand),
    /// Orders for the whole cluster: retention, quotas, invites
    #[command(subcommand)]
    Order(OrderCommand),
    /// How lost volumes are replaced without an administrator
    #[command(subcommand)]
    Join(JoinCommand),
    /// Prepare the volume of a new storage node or member, and print its id and key
    Volume {
        /// What it is for
        #[arg(long)]
        role: VolumeRole,
        /// The volume
        dir: PathBuf,
    },
    /// Make the folders of a cluster that runs on several machines
    Found(FoundArgs),
    /// Run a whole cluster on this machine
    Dev(DevArgs),
    /// Put a sealed file into a cluster, get it back, compare and remove it
    ///
    /// With an account of its own, which is made at the first time. Nothing is kept on this machine.
    Try(TryArgs),
    /// Make the secrets of a new cluster that founds itself, where there are none
    ///
    /// In Kubernetes it runs in a pod, before a cluster is installed. What is there is never changed.
    ClusterSecrets(ClusterSecretsArgs),
    /// Server role: the authority, which issues certificates and founds the cluster
    Authority(AuthorityArgs),
    /// Server role: a metadata member
    Metadata(RoleArgs),
    /// Server role: a storage node
    Storage(RoleArgs),
    /// Server role: a gateway
    Gateway(RoleArgs),
}
