//! `coffer admin`: who the administrators are, and how several of them sign one record: the first makes a
//! proposal, each next one looks at it and adds a signature, and whoever comes last submits it.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Subcommand;
use coffer_client::ClientError;
use coffer_model::descriptor::Descriptor;
use coffer_model::proposal::{Proposal, ProposalError, Proposed, Review};
use coffer_model::signing::{PublicKey, Signer as _};
use coffer_service::files::write_atomically;
use coffer_service::identity::ProcessIdentity;
use coffer_service::one_box::{CA_FILE, OneBoxCa};
use coffer_service::tls::read_certificates;
use serde_json::json;

use crate::admin::words::{self, Standing};
use crate::admin::{
    ADMINISTRATOR, AdminArgs, DirArgs, KeyArgs, Operator, canonical, connect, public_key_of,
    read_proposal, settle, show, waits, write_new,
};
use crate::args::Global;
use crate::output;

/// A proposal is no secret.
const PROPOSAL_FILE: u32 = 0o644;

/// `coffer admin`
#[derive(Debug, Subcommand)]
pub(crate) enum AdminCommand {
    /// Who the administrators are, and how many of them have to sign
    List {
        #[command(flatten)]
        dir: DirArgs,
    },
    /// Make an administrator's key in a folder, and print its public key
    ///
    /// Where there is one already, it stays, and its public key is printed. The folder is for --admin; whoever
    /// has it can sign, so keep a copy where nobody else comes.
    Key {
        /// The folder
        folder: PathBuf,
    },
    /// Make somebody an administrator
    Add {
        /// The public key, 64 hexadecimal digits, as `coffer admin key` prints it
        key: String,
        /// How many administrators have to sign from then on; default: as many as now
        #[arg(long, value_name = "N")]
        quorum: Option<u8>,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Make somebody an administrator no more
    Remove {
        /// The public key or the beginning of it
        key: String,
        /// How many administrators have to sign from then on; default: as many as now
        #[arg(long, value_name = "N")]
        quorum: Option<u8>,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Change how many administrators have to sign
    ///
    /// If so many keys are lost that fewer are left, nobody can change anything any more.
    Quorum {
        /// How many
        number: u8,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Make a new certificate authority in a folder: `ca.pem` and, secret, `ca-key.pem`
    NewAuthority {
        /// The folder, which has none yet
        folder: PathBuf,
    },
    /// Name another certificate authority in the descriptor: clients trust it from then on as well
    ///
    /// That is one step of several; docs/operations.md has all of them ("Another certificate authority").
    Authority {
        /// The authority's certificate, PEM
        certificate: PathBuf,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Say what a proposal would change, and who has signed it
    Show {
        /// The proposal
        file: PathBuf,
        #[command(flatten)]
        dir: DirArgs,
    },
    /// Say what a proposal would change, and sign it
    Sign {
        /// The proposal; the signature is added to it
        file: PathBuf,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
        #[command(flatten)]
        key: KeyArgs,
        /// Write the signed proposal to another file instead
        #[arg(long, value_name = "FILE")]
        sign_to: Option<PathBuf>,
    },
    /// Have a proposal carried out that enough administrators have signed; this needs no key
    Submit {
        /// The proposal
        file: PathBuf,
        #[command(flatten)]
        dir: DirArgs,
    },
}

/// `coffer admin`
pub(crate) async fn admin(global: Global, command: AdminCommand) -> Result<()> {
    match command {
        AdminCommand::List { dir } => list(&global, dir).await,
        AdminCommand::Key { folder } => key(&global, &folder),
        AdminCommand::Add { key, quorum, admin } => {
            let key = public_key_of(&key)?;
            if !key.is_usable() {
                let what = format!("{key} is no public key: look for a typing error");
                return Err(ClientError::Invalid { what }.into());
            }
            let mut operator = Operator::new(&global, admin).await?;
            if operator.cluster.descriptor().administrators.contains(&key) {
                return Err(ClientError::Exists { what: format!("administrator {key}") }.into());
            }
            operator
                .change(|next| {
                    next.administrators.push(key);
                    next.quorum = quorum.unwrap_or(next.quorum);
                })
                .await?;
            operator.told(&administrators_text(operator.cluster.descriptor()));
            Ok(())
        }
        AdminCommand::Remove { key, quorum, admin } => {
            let mut operator = Operator::new(&global, admin).await?;
            let key = find(operator.cluster.descriptor(), &key)?;
            let others = operator.cluster.descriptor().administrators.iter();
            let others: Vec<PublicKey> = others.copied().filter(|other| *other != key).collect();
            if !others.is_empty() && !operator.cluster.layouts_are_signed_by(&others).await? {
                bail!(
                    "the layout is signed by administrator {key}: another one has to sign it first, with \
                     `coffer layout apply --anew --wait`"
                );
            }
            operator
                .change(|next| {
                    next.administrators = others;
                    next.quorum = quorum.unwrap_or(next.quorum);
                })
                .await?;
            operator.told(&administrators_text(operator.cluster.descriptor()));
            Ok(())
        }
        AdminCommand::Quorum { number, admin } => {
            let mut operator = Operator::new(&global, admin).await?;
            if operator.cluster.descriptor().quorum != number {
                operator.change(|next| next.quorum = number).await?;
            }
            operator.told(&administrators_text(operator.cluster.descriptor()));
            Ok(())
        }
        AdminCommand::NewAuthority { folder } => {
            if folder.join(CA_FILE).exists() {
                let what = folder.join(CA_FILE).display().to_string();
                return Err(ClientError::Exists { what }.into());
            }
            OneBoxCa::create(&folder)?;
            show(
                &global,
                &json!({ "certificate": folder.join(CA_FILE) }),
                &format!("the new authority is in {}; its key is secret", folder.display()),
            );
            Ok(())
        }
        AdminCommand::Authority { certificate, admin } => {
            let authority = read_certificates(&certificate)?.swap_remove(0).to_vec();
            let mut operator = Operator::new(&global, admin).await?;
            if operator.cluster.descriptor().authority != authority {
                operator.change(|next| next.authority = authority).await?;
            }
            operator.told("clients trust this authority as well from the next time they look");
            Ok(())
        }
        AdminCommand::Show { file, dir } => {
            let proposal = read_proposal(&file)?;
            let cluster = connect(&global, canonical(dir.dir)?.as_deref()).await?;
            let review = cluster.review(&proposal).await?;
            let standing = Standing::ask(&cluster, &review).await?;
            say(&global, &standing, &review, &file);
            Ok(())
        }
        AdminCommand::Sign { file, yes, key, sign_to } => {
            let mut proposal = read_proposal(&file)?;
            let operator = Operator::with_key(&global, key).await?;
            let review = operator.cluster.review(&proposal).await?;
            if review.signed_by.contains(&operator.key.public_key()) {
                let key = operator.key.public_key();
                return Err(ClientError::from(ProposalError::SignedAlready { key }).into());
            }
            let standing = Standing::ask(&operator.cluster, &review).await?;
            if !yes {
                say(&global, &standing, &review, &file);
                if !std::io::stdin().is_terminal() {
                    bail!("nothing was signed: say --yes, or run this in a terminal");
                }
                if !output::asked("Sign this?")? {
                    bail!("nothing was signed");
                }
            }
            let review = operator.cluster.sign(&mut proposal, &operator.key).await?;
            if yes {
                say(&global, &standing, &review, &file);
            }
            write_signed(&proposal, &file, sign_to.as_deref())?;
            let file = sign_to.unwrap_or(file);
            let Some(lacking) = std::num::NonZero::new(review.lacking()) else {
                operator
                    .told(&format!("enough have signed: `coffer admin submit {}`", file.display()));
                return Ok(());
            };
            operator.told(&format!("{lacking} more have to sign it"));
            Err(waits(&review, file).into())
        }
        AdminCommand::Submit { file, dir } => submit(&global, &file, dir).await,
    }
}

async fn list(global: &Global, dir: DirArgs) -> Result<()> {
    let cluster = connect(global, canonical(dir.dir)?.as_deref()).await?;
    let descriptor = cluster.descriptor();
    let keys: Vec<String> = descriptor.administrators.iter().map(ToString::to_string).collect();
    let value = json!({ "administrators": keys, "quorum": descriptor.quorum });
    show(global, &value, &administrators_text(descriptor));
    Ok(())
}

fn administrators_text(descriptor: &Descriptor) -> String {
    let all = descriptor.administrators.len();
    let mut text = format!("{} of {all} administrators have to sign a change", descriptor.quorum);
    for key in &descriptor.administrators {
        text += &format!("\n  {key}");
    }
    text
}

fn key(global: &Global, folder: &Path) -> Result<()> {
    let key = ProcessIdentity::load_or_create(folder, ADMINISTRATOR, None)?;
    let key = key.public_key().to_string();
    show(global, &json!({ "public_key": key }), &key);
    Ok(())
}

/// The administrator whose key begins with `text`.
fn find(descriptor: &Descriptor, text: &str) -> Result<PublicKey> {
    let mut found =
        descriptor.administrators.iter().filter(|key| key.to_string().starts_with(text));
    match (found.next(), found.next()) {
        (Some(key), None) => Ok(*key),
        (Some(_), Some(_)) => bail!("{text} is the beginning of several keys; give more of it"),
        (None, _) => {
            let what = format!("an administrator whose key begins with {text}");
            Err(ClientError::NotFound { what }.into())
        }
    }
}

fn say(global: &Global, standing: &Standing, review: &Review, file: &Path) {
    let changes = standing.changes(review);
    if global.json {
        let mut value = words::signatures_json(review, file);
        value["changes"] = changes.into();
        output::json(&value);
    } else {
        output::line(&words::proposal_text(review, &changes));
    }
}

/// The file is replaced at once, so that a signature that was there is never lost.
fn write_signed(proposal: &Proposal, file: &Path, sign_to: Option<&Path>) -> Result<()> {
    match sign_to {
        Some(other) => write_new(other, &proposal.to_bytes()),
        None => Ok(write_atomically(file, &proposal.to_bytes(), PROPOSAL_FILE)?),
    }
}

async fn submit(global: &Global, file: &Path, dir: DirArgs) -> Result<()> {
    let proposal = read_proposal(file)?;
    let dir = canonical(dir.dir)?;
    let mut cluster = connect(global, dir.as_deref()).await?;
    let review = cluster.review(&proposal).await?;
    let moves = match &review.proposed {
        Proposed::Descriptor(next) => next.nodes != cluster.descriptor().nodes,
        Proposed::Order { .. } => false,
    };
    cluster.submit(&proposal).await?;
    settle(dir.as_deref(), &cluster)?;
    if global.json {
        output::json(&words::signatures_json(&review, file));
    } else {
        output::remark("it is done");
        if moves {
            output::remark("`coffer layout apply` moves chunks accordingly");
        }
    }
    Ok(())
}
