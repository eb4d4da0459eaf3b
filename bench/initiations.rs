//! Initiations of strangers to a host, each of which it must look at: what `scripts/bench flood` sends.

use std::io::{Write, stdout};

use clap::Parser;
use tunmesh::agent::wireguard::tunnel::{Indices, Noise, Tunnel};
use tunmesh::proto::host::wireguard::PrivateKey;
use tunmesh::proto::model::PublicKey;

/// Writes initiations, each of a key of its own, 148 bytes each.
#[derive(Debug, Parser)]
#[command(name = "initiations")]
struct Arguments {
    /// The key of the host that they are for.
    key: PublicKey,
    /// How many.
    #[arg(long, default_value_t = 2_000)]
    count: u16,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    for _ in 0..arguments.count {
        let own = PrivateKey::generate()?;
        let initiation = Noise::new(&own, &arguments.key, None, &Indices::default()).initiate();
        stdout().write_all(&initiation.unwrap_or_default())?;
    }
    Ok(())
}
