//! The operator's commands.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub mod legacy;

/// Operates a mesh of UDP tunnels between hosts.
#[derive(Debug, Parser)]
#[command(name = "controller", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Legacy(legacy::Args),
}

/// A command that was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line cannot be meant; nothing was sent.
    #[error("{0}")]
    Usage(String),
    /// It failed, in words.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// 2 for wrong use, 1 for the rest.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(2),
            Self::Failed(_) => ExitCode::FAILURE,
        }
    }
}

impl Cli {
    /// Reads a command line, the program's name first. A fault or `--help` ends the process, with 2 or 0.
    pub fn read(args: impl IntoIterator<Item = OsString>) -> Self {
        Self::parse_from(legacy::spell_out_mask(args))
    }

    /// Does what was asked.
    ///
    /// # Errors
    /// Why it was not done.
    pub fn run(self) -> Result<(), Error> {
        match self.command {
            Command::Legacy(args) => args.run(),
        }
    }
}
