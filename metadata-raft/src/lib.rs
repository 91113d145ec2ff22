//! A metadata member: it replicates the directory's state machine with Raft, keeps log and state in one
//! RocksDB, and serves the sealed API's directory, the server half of login, and what members and
//! storage nodes ask of each other, all on one port with certificates on both sides.
//!
//! What a command does is decided in `coffer-metadata-core`; here it is only brought into one order,
//! made durable and answered. Everything a caller is told was confirmed by a majority at the time of
//! the call: a member that merely believes to lead answers nothing. openraft stays inside this crate.

mod access;
mod admin;
mod batch;
mod clock;
mod cluster;
mod codec;
mod config;
mod directory;
mod duties;
mod group;
mod heard;
mod join;
mod listing;
mod log;
mod login;
mod machine;
mod member;
mod membership;
mod network;
mod nodes;
mod opaque;
mod peers;
mod placement;
mod proofs;
mod raft;
mod reads;
mod serve;
mod snapshot;
mod store;
mod threads;
mod truncation;

pub use config::{Config, Timing, read_config};
pub use group::{GroupError, ROLE, member_id};
pub use member::{InitError, MemberError, init, run, run_on};
pub use opaque::{SetupError, new_opaque_setup};
pub use store::StoreError;
