//! The authority of a cluster whose processes find each other by themselves, and how a process applies there
//! (docs/formats/enrolment.md).
//!
//! The authority has the key by which certificates are made, and founds the cluster: it waits until every
//! founding process has applied, then signs the first descriptor and layout with the administrator's key, keeps
//! them, and gives them to everybody. Who applies proves to have the join token and the key on its volume. A
//! certificate admits nobody: who belongs to the cluster is in the descriptor.

mod config;
mod enrol;
mod founding;
mod names;
mod serve;

pub use config::{Config, EnrolConfig, read_config, read_enrol_config};
pub use enrol::{EnrolError, Enrolled, enrol};
pub use founding::{First, FoundingError, Records};
pub use serve::{Error, run};

/// The role of the authority, in its logs and its certificate.
pub const ROLE: &str = "authority";
/// The role of an administrator's key.
pub const ADMINISTRATOR: &str = "administrator";
