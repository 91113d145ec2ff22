//! The end-to-end engine: the one place where plaintext exists. It speaks to a cluster through a
//! [`transport::Transport`], signs and seals whatever it sends, and verifies whatever it is handed
//! before a byte of it is used.
//!
//! Read it in the order of a command: [`contact`] finds and pins a cluster, [`account`] registers and
//! logs in, [`session`] holds what a logged-in user can do. Below that lie reading with verification
//! (`read`, `verify`, `resolve`), writing (`change`, `upload`, `chunks`) and local files (`local`).
//!
//! Nothing here prints, and no task outlives the session that started it.

pub mod account;
pub mod admin;
pub mod contact;
pub mod error;
pub mod options;
pub mod progress;
pub mod session;
pub mod state;
pub mod sync;
pub mod transport;

mod batch;
mod change;
mod chunks;
mod clock;
mod content;
mod contest;
mod download;
mod edit;
mod get_tree;
mod journal;
mod local;
mod manifest;
mod names;
mod node;
mod promise;
mod put_tree;
mod read;
mod resolve;
mod seen;
mod source;
mod state_dir;
mod upload;
mod usage;
mod verify;
pub mod walk;
mod wire;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use account::{AccountOptions, CustodySession, Engine, Registered};
pub use admin::Administration;
pub use coffer_crypto::session::{BearerToken, TokenCheck};
pub use contact::{Authority, Endpoint, Pinned};
pub use content::FileReader;
pub use error::ClientError;
pub use names::Page;
pub use options::{GetOptions, PutOptions, PutTreeOptions, SyncOptions, WriteOptions};
pub use progress::{Progress, Report, Silent, TreeReport};
pub use session::{EntryInfo, Session, Stat, VersionInfo};
pub use source::PieceStream;
pub use state::{SessionFile, SessionState};
pub use sync::{Difference, Step, SyncReport};
pub use transport::{GatewayTransport, Transport};
pub use usage::HomeUsage;
pub use walk::{TreeWalk, Visit};
