//! How long a controller takes to bring a full mesh to its agents, and what that costs.

#![allow(clippy::print_stdout, reason = "the result is for whoever runs it")]

#[path = "../tests/lab/fleet/mod.rs"]
mod fleet;

use std::path::Path;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use tunmesh::proto::host::output::columns;

use crate::fleet::{Options, Part, run};

/// Starts a controller on loopback and many agents without devices against it, and measures how soon all have what
/// is wanted.
#[derive(Debug, Parser)]
#[command(name = "scripts/bench fleet")]
struct Arguments {
    /// How many agents.
    #[arg(long, default_value_t = 1000)]
    agents: usize,
    /// Agents do not report their tunnels.
    #[arg(long)]
    no_reports: bool,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let Arguments { agents, no_reports, bench: _ } = Arguments::parse();
    let bar = ProgressBar::new(agents as u64);
    bar.set_style(
        ProgressStyle::with_template("{msg:24} [{bar:40}] {pos}/{len}")
            .unwrap_or(ProgressStyle::default_bar()),
    );
    let parts = run(
        Path::new(env!("CARGO_BIN_EXE_controller")),
        Options { agents, reports: !no_reports },
        |part, done, _| {
            bar.set_message(part.to_owned());
            bar.set_position(done as u64);
        },
    );
    bar.finish_and_clear();
    println!("{agents} agents in a full mesh, {} tunnels", agents * agents.saturating_sub(1));
    let header = ["part", "seconds", "controller cpu s", "peak MiB", "to controller MiB", "to agents MiB"];
    println!("{}", columns(&header, parts.iter().map(row)));
}

fn row(part: &Part) -> Vec<String> {
    let mebibytes = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    vec![
        part.name.to_owned(),
        format!("{:.2}", part.time.as_secs_f64()),
        format!("{:.2}", part.usage.processor.as_secs_f64()),
        mebibytes(part.usage.memory),
        mebibytes(part.up),
        mebibytes(part.down),
    ]
}
