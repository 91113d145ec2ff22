//! What a Helm release runs once: the secrets of a new cluster, and a try of one that is there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use coffer_authority::ADMINISTRATOR;
use coffer_client::contact::{Authority, Endpoint, StateDir};
use coffer_client::{AccountOptions, ClientError, Engine, PutOptions, Session};
use coffer_join::token::JoinToken;
use coffer_model::name::{RemotePath, UserName};
use coffer_operator::{Ensured, ensure_secret};
use coffer_service::files::{PRIVATE_FILE, create_private_dir, write_atomically};
use coffer_service::identity::ProcessIdentity;
use coffer_service::one_box::OneBoxCa;
use serde::{Deserialize, Serialize};
use serde_json::json;
use zeroize::Zeroizing;

use crate::admin::{Operator, invite};
use crate::args::Global;
use crate::output;

/// What the account of `coffer try` is called.
const TEST_USER: &str = "coffer-try";
/// A file of several chunks, the last one not full.
const TEST_BYTES: usize = (5 << 20) + 321;
/// A cluster that was founded a moment ago may still be getting ready.
const PATIENCE: Duration = Duration::from_secs(60);
const INVITE_MS: u64 = 600_000;

/// `coffer cluster-secrets`
#[derive(Debug, clap::Args)]
pub(crate) struct ClusterSecretsArgs {
    /// A Kubernetes secret, in this pod's namespace
    #[arg(long, value_name = "NAME", required_unless_present = "dir")]
    secret: Option<String>,
    /// A folder instead, with a file for each
    #[arg(long, value_name = "DIR", conflicts_with = "secret")]
    dir: Option<PathBuf>,
    /// The administrator's key is in another secret: make none
    #[arg(long)]
    administrator_elsewhere: bool,
    /// The authority's certificate and key are in another secret: make none
    #[arg(long)]
    authority_elsewhere: bool,
}

/// Makes the secrets a new cluster begins with, where there are none.
pub(crate) async fn cluster_secrets(args: ClusterSecretsArgs) -> Result<()> {
    let mut contents = BTreeMap::new();
    let mut add = |key: &str, bytes: Zeroizing<Vec<u8>>| contents.insert(key.to_owned(), bytes);
    let token = JoinToken::random()?;
    add("join-token", Zeroizing::new(token.to_text().as_bytes().to_vec()));
    add("opaque.setup", coffer_metadata_raft::new_opaque_setup());
    let account = Account { user: TEST_USER.to_owned(), password: random_password()? };
    add("test-account", Zeroizing::new(serde_json::to_vec(&account)?));
    if !args.authority_elsewhere {
        let (certificate, key) = OneBoxCa::new_pems()?;
        add("ca.pem", Zeroizing::new(certificate.into_bytes()));
        add("ca.key", Zeroizing::new(key.as_bytes().to_vec()));
    }
    if !args.administrator_elsewhere {
        add("administrator", ProcessIdentity::new_file(ADMINISTRATOR)?);
    }
    let (place, ensured) = match (args.secret, args.dir) {
        (Some(name), _) => (format!("the secret {name}"), ensure_secret(&name, contents).await?),
        (None, Some(dir)) => (dir.display().to_string(), ensure_folder(&dir, &contents)?),
        (None, None) => bail!("say where to, with --secret or --dir"),
    };
    let told = match ensured {
        Ensured::Made => "was made: keep a copy of it in a safe place",
        Ensured::Kept => "is there already and stays as it is",
    };
    output::line(&format!("{place} {told}"));
    Ok(())
}

/// Makes the folder, if it is not there; it is there with everything in it or not at all.
fn ensure_folder(dir: &Path, contents: &BTreeMap<String, Zeroizing<Vec<u8>>>) -> Result<Ensured> {
    if dir.exists() {
        for key in contents.keys() {
            let path = dir.join(file_of(key));
            ensure!(path.exists(), "{} is there without {}", dir.display(), path.display());
        }
        return Ok(Ensured::Kept);
    }
    let unfinished = dir.with_extension("unfinished");
    create_private_dir(&unfinished.join(ADMINISTRATOR))?;
    for (key, bytes) in contents {
        write_atomically(&unfinished.join(file_of(key)), bytes, PRIVATE_FILE)?;
    }
    std::fs::rename(&unfinished, dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(Ensured::Made)
}

/// An administrator's key is given by its folder.
fn file_of(key: &str) -> PathBuf {
    if key == ADMINISTRATOR { Path::new(key).join("identity") } else { PathBuf::from(key) }
}

/// The account with which a cluster is tried.
#[derive(Serialize, Deserialize)]
struct Account {
    user: String,
    password: Zeroizing<String>,
}

fn random_password() -> Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new([0; 24]);
    getrandom::fill(&mut *bytes).context("the system gives no randomness")?;
    Ok(Zeroizing::new(hex::encode(*bytes)))
}

/// `coffer try`
#[derive(Debug, clap::Args)]
pub(crate) struct TryArgs {
    /// A file with the account to use: {"user": "…", "password": "…"}. It is made if there is no such user
    #[arg(long, value_name = "FILE")]
    account: PathBuf,
    /// The folder with an administrator's key, to invite the account where registration is not open
    #[arg(long, value_name = "DIR", env = "COFFER_ADMIN")]
    admin: Option<PathBuf>,
}

/// Puts a sealed file into the cluster, gets it back, compares, and removes it again.
pub(crate) async fn try_out(global: Global, args: TryArgs) -> Result<()> {
    let text = Zeroizing::new(
        std::fs::read(&args.account)
            .with_context(|| format!("cannot read {}", args.account.display()))?,
    );
    let account: Account = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not an account", args.account.display()))?;
    let began = Instant::now();
    let session = loop {
        match open(&global, &account, args.admin.as_deref()).await {
            Ok(session) => break session,
            Err(error) if is_not_yet(&error) && began.elapsed() < PATIENCE => {
                output::remark(&format!("not yet: {error:#}"));
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(error) => return Err(error),
        }
    };
    let name: RemotePath =
        format!("/{}/try-{}", account.user, hex::encode(random::<8>()?)).parse()?;
    let content = content()?;
    let put = Instant::now();
    session.put_bytes(&content, &name, &PutOptions::standard()).await?;
    let put = put.elapsed();
    let get = Instant::now();
    let back = session.read_range(&name, None, 0, content.len() as u64 + 1).await?;
    let get = get.elapsed();
    ensure!(back == content, "what came back is not what was put");
    session.remove(&name, false).await?;
    match session.read_range(&name, None, 0, 1).await {
        Err(ClientError::NotFound { .. }) => {}
        Ok(_) => bail!("a file that was removed can still be read"),
        Err(error) => return Err(error.into()),
    }
    session.close().await?;
    let told = json!({
        "bytes": content.len(),
        "put_ms": put.as_millis(),
        "get_ms": get.as_millis(),
    });
    if global.json {
        output::json(&told);
    } else {
        output::line(&format!(
            "a sealed file of {} bytes was put in {put:.1?}, got back in {get:.1?} as it was, and removed",
            content.len()
        ));
    }
    Ok(())
}

/// What a cluster answers that is still getting ready.
fn is_not_yet(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref::<ClientError>(),
        Some(ClientError::Unavailable { .. } | ClientError::Connect { .. })
    )
}

async fn open(global: &Global, account: &Account, admin: Option<&Path>) -> Result<Session> {
    let Some(server) = global.server.clone() else {
        bail!("say where the cluster is: --server host:port, or $COFFER_SERVER");
    };
    let authority = global.ca.clone().map_or(Authority::Pinned, Authority::PemFile);
    let endpoint = Endpoint { server, server_name: global.server_name.clone(), authority };
    // A try leaves nothing behind on this machine.
    let engine = Engine::connect(&endpoint, StateDir::nowhere()).await?;
    let user: UserName = account.user.parse()?;
    let state = match engine.login(&user, &account.password).await {
        // Nobody can tell a wrong password from a user who is not there.
        Err(ClientError::WrongPassword) => {
            let invite = match admin {
                Some(admin) => {
                    let mut operator =
                        Operator::with_admin(global, admin.to_owned(), StateDir::nowhere()).await?;
                    let (invite, ordered) = invite(&mut operator, INVITE_MS).await?;
                    ordered?;
                    Some(hex::decode(invite)?)
                }
                None => None,
            };
            let options = AccountOptions { invite, ..AccountOptions::standard() };
            engine.register(&user, &account.password, &options).await?;
            engine.login(&user, &account.password).await?
        }
        other => other?,
    };
    Ok(engine.session(state)?)
}

fn random<const COUNT: usize>() -> Result<[u8; COUNT]> {
    let mut bytes = [0; COUNT];
    getrandom::fill(&mut bytes).context("the system gives no randomness")?;
    Ok(bytes)
}

/// Bytes that nobody has put before.
fn content() -> Result<Vec<u8>> {
    let mut content = vec![0; TEST_BYTES];
    getrandom::fill(&mut content).context("the system gives no randomness")?;
    Ok(content)
}
