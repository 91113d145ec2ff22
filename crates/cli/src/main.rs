//! The one binary, `coffer`: what users type, the server roles, and a whole cluster for development.
//! It only wires: every decision is in the crates it calls.

mod admin;
mod args;
mod bench;
mod commands;
mod dev;
mod doctor;
mod exit;
mod found;
mod health;
mod join;
mod look;
mod machines;
mod output;
mod parts;
mod password;
mod pods;
mod progress;
mod roles;
mod status;
mod sync;

use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;

use crate::args::{Cli, Command};
use crate::found::Role;

// glibc's allocator gives large buffers back to the system and takes them again all the time.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Threads for what waits for a disk. Each keeps some megabytes for what it allocates, so hundreds of them
/// would take more memory than everything else.
const BLOCKING_THREADS_MAX: usize = 32;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(run(cli));
            // What still runs in the background must not hold up the end of a command.
            runtime.shutdown_timeout(std::time::Duration::from_secs(1));
            outcome
        }
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::report(&error);
            exit::code_of(&error)
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Found(args) => machines::found(&cli.global, &args),
        Command::Dev(args) => dev::run(args).await,
        Command::Bench(args) => bench::run(args, cli.global.json).await,
        Command::Completion { shell } => {
            output::completion(shell);
            Ok(())
        }
        Command::Man { dir } => output::man_pages(&dir),
        Command::Node(command) => admin::node(cli.global, command).await,
        Command::Member(command) => admin::member(cli.global, command).await,
        Command::Layout(command) => admin::layout(cli.global, command).await,
        Command::Admin(command) => admin::admin(cli.global, command).await,
        Command::Order(command) => admin::order(cli.global, command).await,
        Command::Join(command) => join::run(cli.global, command).await,
        Command::Volume { role, dir } => admin::volume(&cli.global, role, &dir),
        Command::Authority(args) => roles::authority(args).await,
        Command::ClusterSecrets(args) => pods::cluster_secrets(args).await,
        Command::Try(args) => pods::try_out(cli.global, args).await,
        Command::Metadata(args) => roles::run(Role::Metadata, args).await,
        Command::Storage(args) => roles::run(Role::Storage, args).await,
        Command::Gateway(args) => roles::run(Role::Gateway, args).await,
        command => commands::run(cli.global, command).await,
    }
}
