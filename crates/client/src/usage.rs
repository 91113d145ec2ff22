//! What a home uses and may use. It is the word of a server: nobody signs it, it is a help and no promise.

use coffer_model::id::InodeId;
use coffer_model::name::UserName;
use coffer_proto::v1 as pb;

use crate::error::ClientError;
use crate::session::Session;
use crate::transport::Transport;

/// A home, what it uses and what it may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HomeUsage {
    /// Its root.
    pub home: InodeId,
    /// Bytes of all versions, sealed, also of what was deleted and is not purged yet.
    pub used_bytes: u64,
    /// Bytes it may use; none: without a limit.
    pub quota_bytes: Option<u64>,
    /// Files, directories and symlinks, deleted ones included until they are purged.
    pub used_inodes: u64,
    /// Chunks that versions name.
    pub used_rows: u64,
}

impl HomeUsage {
    pub(crate) async fn ask(
        transport: &dyn Transport,
        name: &UserName,
    ) -> Result<Self, ClientError> {
        let request = pb::FindHomeRequest { name: name.as_str().to_owned() };
        let answer = transport.find_home(request).await;
        let answer = answer.map_err(|status| ClientError::of_status(&status))?;
        let pb::FindHomeResponse { home, used_bytes, quota_bytes, used_inodes, used_rows } = answer;
        let home = InodeId::try_from(home.as_ref())
            .map_err(|_| ClientError::tampered("a home's id that is none"))?;
        Ok(Self { home, used_bytes, quota_bytes, used_inodes, used_rows })
    }
}

impl Session {
    /// What the user's own home uses and may use.
    pub async fn usage(&self) -> Result<HomeUsage, ClientError> {
        let usage = HomeUsage::ask(&*self.wire().transport, self.name()).await?;
        if usage.home != self.wire().home {
            return Err(ClientError::tampered("the usage of another home"));
        }
        Ok(usage)
    }
}
