//! The controller: parse, log, run, exit code.

use std::io::{self, Write};
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tunmesh::controller::cli::Cli;

fn main() -> ExitCode {
    let cli = Cli::read(std::env::args_os());
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::WARN.into())
        .with_env_var("TUNMESH_LOG")
        .from_env_lossy();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    let Err(error) = cli.run() else { return ExitCode::SUCCESS };
    // Where stderr is gone, the exit code is all that can be said.
    let _ = writeln!(io::stderr(), "controller: {error}");
    error.exit_code()
}
