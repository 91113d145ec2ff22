//! A storage node: it keeps sealed chunks it cannot read on local disks, and keeps itself complete.
//!
//! A put is acknowledged when it is on disk, with a receipt the node signs. A get is checked against
//! the chunk's id before it leaves. Who may do either is said by tickets, which the node checks by
//! itself. What commits have named and the node lacks, it fetches from its siblings: that one loop
//! brings third copies, catches up after a restart, and replaces what scrubbing or a read has found
//! damaged.

mod clock;
mod cluster;
mod compact;
mod compare;
mod complete;
mod config;
mod disk;
mod door;
mod forget;
mod index;
#[cfg(test)]
mod kit;
mod members;
mod record;
mod run;
mod scrub;
mod serve;
mod store;

pub use cluster::install_descriptors;
pub use config::{Config, read_config};
pub use run::{Error, ROLE, init, run};
