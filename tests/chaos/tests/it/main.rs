//! Clusters of real processes: what a user may rely on while processes die, and what is refused.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod api;
mod bad_input;
mod command_line;
mod confidential;
mod crowds;
mod faults;
mod files;
mod hot_directory;
mod join;
mod large;
mod linear;
mod moving;
mod observed;
mod operate;
mod orders;
mod purge;
mod slow_commit;
mod sync;
