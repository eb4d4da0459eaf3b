//! The node agent: parse, log, run, exit code.

use std::io::Write;
use std::process::ExitCode;

use tunmesh::agent::cli::Cli;

fn main() -> ExitCode {
    Cli::from_args().run().unwrap_or_else(|error| {
        // One line, whatever the chain: it ends in logs and terminals.
        let _ = writeln!(std::io::stderr(), "agent: {error:#}");
        ExitCode::FAILURE
    })
}
