//! Clusters of real processes: what a user may rely on while processes die, and what is refused.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod administrators;
mod api;
mod authority;
mod bad_input;
mod canary;
mod chart;
mod clocks;
mod command_line;
mod crowds;
mod faults;
mod files;
mod hot_directory;
mod join;
mod large;
mod linear;
mod machines;
mod moving;
mod observed;
mod one_process;
mod operate;
mod orders;
mod purge;
mod skew;
mod slow_commit;
mod slow_pipe;
mod sync;
mod upgrade;
