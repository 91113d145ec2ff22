//! What every process of a cluster shares: its identity, TLS, the gRPC server and channels,
//! configuration, telemetry, health, shutdown, and the small bounded tools they are made of.
//!
//! Nothing here knows what the processes serve. The crate holds no global state but the tracing
//! subscriber, and starts no task that its caller did not ask for.

pub mod audit;
pub mod cache;
pub mod call;
pub mod channel;
pub mod config;
pub mod files;
pub mod health;
pub mod identity;
pub mod memory;
pub mod metrics;
pub mod one_box;
pub mod pace;
pub mod peer;
pub mod retry;
pub mod server;
pub mod shutdown;
pub mod status;
pub mod telemetry;
pub mod tls;
mod trace;
pub mod watch;
