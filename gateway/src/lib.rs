//! The gateway: the door to a cluster for everyone who cannot reach its inside.
//!
//! On the sealed API it sees ciphertext only. Directory and login calls go on to the
//! metadata members; chunks are placed by the layout and fanned out to storage nodes. It keeps
//! nothing: any number of gateways serve side by side, and a restarted one has lost nothing.
//!
//! Who may do what is not decided here. Members check sessions, nodes check tickets; the gateway
//! only turns away callers whose session proof does not verify, before they cost anything.

mod admin;
mod chunks;
mod cluster;
mod config;
mod door;
mod files;
mod members;
mod serve;

pub use config::{Config, read_config};
pub use serve::{Error, ROLE, run};
