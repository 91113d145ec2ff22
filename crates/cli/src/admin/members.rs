//! `coffer member`: metadata members come and go.

use anyhow::Result;
use clap::{Args, Subcommand};
use coffer_model::descriptor::Member;
use coffer_model::id::MemberId;

use crate::admin::{AdminArgs, Operator, public_key_of};
use crate::args::Global;
use crate::commands::Console;
use crate::found::Role;

/// `coffer member`
#[derive(Debug, Subcommand)]
pub(crate) enum MemberCommand {
    /// All metadata members and how they are
    List,
    /// Take a metadata member into the cluster
    Add {
        #[command(flatten)]
        admin: AdminArgs,
        #[command(flatten)]
        new: NewMember,
    },
    /// Put a new member in the place of one whose volume is lost
    Replace {
        /// The id of the lost one or the beginning of it, or its name in a `coffer dev` cluster
        member: String,
        #[command(flatten)]
        admin: AdminArgs,
        #[command(flatten)]
        new: NewMember,
    },
    /// Take a metadata member out of the cluster
    Remove {
        /// Its id or the beginning of it, or its name in a `coffer dev` cluster
        member: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
}

/// A member whose volume is prepared; in a `coffer dev` cluster it is made.
#[derive(Debug, Args)]
pub(crate) struct NewMember {
    /// Its id, 16 hexadecimal digits
    #[arg(long, value_name = "ID", requires_all = ["public_key", "address"])]
    id: Option<MemberId>,
    /// Its public key, 64 hexadecimal digits
    #[arg(long, value_name = "KEY", requires = "id")]
    public_key: Option<String>,
    /// Where the others reach it, host:port
    #[arg(long, value_name = "HOST:PORT", requires = "id")]
    address: Option<String>,
}

/// `coffer member`
pub(crate) async fn member(global: Global, command: MemberCommand) -> Result<()> {
    let (admin, lost, new) = match command {
        MemberCommand::List => return Console { global }.member_list().await,
        MemberCommand::Add { admin, new } => (admin, None, Some(new)),
        MemberCommand::Replace { member, admin, new } => (admin, Some(member), Some(new)),
        MemberCommand::Remove { member, admin } => (admin, Some(member), None),
    };
    let mut operator = Operator::new(&global, admin).await?;
    let lost = lost.map(|member| operator.member(&member)).transpose()?;
    let new = match new {
        None => None,
        Some(NewMember { id: Some(id), public_key: Some(key), address: Some(address) }) => {
            Some(Member { id, key: public_key_of(&key)?, address })
        }
        Some(_) => {
            let made = operator.make(Role::Metadata)?;
            let address = made.process.address.to_string();
            Some(Member { id: made.process.id.parse()?, key: made.key, address })
        }
    };
    let id = new.as_ref().map(|member| member.id);
    operator
        .change(|next| {
            next.members.retain(|member| Some(member.id) != lost);
            next.members.extend(new);
        })
        .await?;
    if let Some(lost) = lost {
        operator.told(&format!("member {lost} does not belong to the cluster any more"));
    }
    if let Some(id) = id {
        operator.told(&format!(
            "member {id} belongs to the cluster; it votes once it has caught up, see `coffer status`"
        ));
    }
    Ok(())
}
