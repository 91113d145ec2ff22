//! The engine against a cluster of processes, for tests that ask for more than the command line gives.

use anyhow::Result;
use coffer_client::contact::StateDir;
use coffer_client::{Authority, Endpoint, Engine, Session};

use crate::{Cluster, password};

impl Cluster {
    /// An engine that remembers what it has seen in the folder of this name.
    pub async fn engine(&self, client: &str) -> Result<Engine> {
        let endpoint = Endpoint {
            server: self.address.clone(),
            server_name: None,
            authority: Authority::PemFile(self.authority()),
        };
        let state = StateDir::at(self.work_dir()?.join(client));
        Ok(Engine::connect(&endpoint, state).await?)
    }

    /// A session of `user`, who has registered, with a memory of its own.
    pub async fn log_in(&self, user: &str, client: &str) -> Result<Session> {
        let engine = self.engine(client).await?;
        let state = engine.login(&user.parse()?, &password(user)).await?;
        Ok(engine.session(state)?)
    }
}
