//! The controller: parse, run, exit code.

use std::io::{self, Write};
use std::process::ExitCode;

use tunmesh::controller::cli::Cli;

fn main() -> ExitCode {
    Cli::read(std::env::args_os()).run().unwrap_or_else(|error| {
        // Where stderr is gone, the exit code is all that can be said.
        let _ = writeln!(io::stderr(), "{error}");
        error.exit_code()
    })
}
