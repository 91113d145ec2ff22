//! The state machine from outside: commands in, replies and tables out.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod authority;
mod bytes;
mod invariants;
mod kit;
mod listing;
mod orders;
mod overlay;
mod placement;
mod purge;
mod random;
mod refusals;
mod replacement;
mod sealed;
mod store;
mod stories;
mod system;
mod tree;
