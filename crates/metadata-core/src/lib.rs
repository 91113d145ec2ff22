//! The deterministic core of the metadata group: state in, state out.
//!
//! [`apply`] takes one replicated [`Command`] at a time and changes the tables; the same commands in
//! the same order give the same bytes on every replica. There is no IO here beyond the small
//! [`Tables`] trait, no clock (time comes in ticks signed by members), no randomness and no iteration
//! over hash maps. A command's content can never panic it: what is wrong is answered with a
//! rejection. [`query`] reads the same tables.

pub mod apply;
pub mod command;
pub mod layout;
pub mod query;
pub mod state;
pub mod tables;

pub use apply::{CoreError, apply};
pub use command::{Command, Prepared, Reply};
pub use tables::{MemoryTables, Overlay, Table, TableError, Tables};
