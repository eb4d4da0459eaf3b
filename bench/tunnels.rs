//! How long an agent takes for many tunnels that are added over one connection.

#![allow(clippy::print_stdout, reason = "the result is for whoever runs it")]
#![allow(clippy::disallowed_methods, reason = "real time is what is measured")]

use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use tokio::task::JoinSet;
use tunmesh::proto::host::client::connect;
use tunmesh::proto::v1;
use tunmesh::proto::v1::tunnel::Framing;
use tunmesh::proto::v1::tunnel_service_client::TunnelServiceClient;

/// Adds tunnels to a running agent, and prints the seconds that it took.
#[derive(Debug, Parser)]
#[command(name = "tunnels")]
struct Arguments {
    /// The agent's socket.
    #[arg(long)]
    socket: PathBuf,
    /// The address of the device, and of the peer of the first tunnel: both of one /16.
    #[arg(long, num_args = 2, value_names = ["OWN", "PEER"])]
    overlay: Vec<String>,
    /// The peer on the underlay.
    #[arg(long)]
    remote: String,
    /// The largest packet, in bytes.
    #[arg(long, default_value_t = 0)]
    mtu: u32,
    /// The key of the peer of the first tunnel, which is encrypted then.
    #[arg(long)]
    peer_public_key: Option<String>,
    /// How many tunnels; all but the first lead nowhere.
    #[arg(long, default_value_t = 1)]
    count: u16,
    /// Each has a device of its own.
    #[arg(long)]
    devices: bool,
    /// Each is asked for when the one before is there, not all at once.
    #[arg(long)]
    one_by_one: bool,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let channel = connect(&arguments.socket, "agent", "agent").await?;
    let agent = TunnelServiceClient::new(channel);
    let start = Instant::now();
    let mut under_way = JoinSet::new();
    for number in 0..arguments.count {
        let mut agent = agent.clone();
        let tunnel = Some(tunnel(&arguments, number));
        let request = v1::AddTunnelRequest { tunnel, replace: false };
        under_way.spawn(async move { agent.add_tunnel(request).await });
        // The first brings the device that others name.
        if number == 0 || arguments.one_by_one {
            under_way.join_next().await.transpose()?.transpose()?;
        }
    }
    while let Some(added) = under_way.join_next().await {
        added??;
    }
    println!("{:.3}", start.elapsed().as_secs_f64());
    Ok(())
}

fn tunnel(arguments: &Arguments, number: u16) -> v1::Tunnel {
    let [high, low] = number.to_be_bytes();
    let (own, peer) = match arguments.overlay.as_slice() {
        [own, peer] => (own.as_str(), peer.as_str()),
        _ => ("10.9.0.1", "10.9.0.2"),
    };
    let is_first = number == 0;
    let device = if arguments.devices { format!("mesh{number}") } else { "mesh0".to_owned() };
    let address = match (arguments.devices, is_first) {
        (_, true) => format!("{own}/16"),
        (true, false) => format!("10.10.{high}.{low}/32"),
        (false, false) => String::new(),
    };
    let key = arguments.peer_public_key.clone().filter(|_| is_first).unwrap_or_default();
    v1::Tunnel {
        name: format!("t{number}"),
        device,
        addresses: if address.is_empty() { Vec::new() } else { vec![address] },
        mtu: arguments.mtu,
        remote: if is_first { arguments.remote.clone() } else { format!("172.101.{high}.{low}") },
        framing: if key.is_empty() { Framing::Raw } else { Framing::Wireguard }.into(),
        peer_public_key: key,
        allowed_prefixes: vec![v1::AllowedPrefix {
            prefix: if is_first { format!("{peer}/32") } else { format!("10.11.{high}.{low}/32") },
            preference: 0,
        }],
        ..v1::Tunnel::default()
    }
}
