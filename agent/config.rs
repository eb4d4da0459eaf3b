//! What an agent is started with, parsed.

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;

/// What an agent is started with.
#[derive(Debug, Clone)]
pub struct Config {
    /// The UDP port of packets, here and at remotes that name none.
    pub data_port: u16,
    /// The UDP port of the legacy control protocol; `None`: closed.
    pub control_port: Option<u16>,
    /// Who beside this host may use the legacy control port.
    pub legacy_allow: Vec<IpNet>,
    /// The networks in which overlay addresses, allowed prefixes and routes may lie.
    pub accept_prefixes: Vec<IpNet>,
    /// The Unix socket of TunnelService.
    pub socket: PathBuf,
    /// A loopback address for TunnelService over TCP.
    pub grpc_listen: Option<SocketAddr>,
    /// Where the wanted state is kept.
    pub state_dir: PathBuf,
}

impl Config {
    /// The settings that are weaker than the defaults, each asked for by name, in words.
    pub fn weakened(&self) -> Vec<String> {
        let mut weakened = Vec::new();
        if !self.legacy_allow.is_empty() && self.control_port.is_some() {
            let prefixes: Vec<String> = self.legacy_allow.iter().map(ToString::to_string).collect();
            weakened.push(format!(
                "--legacy-allow: whoever can send from {} steers this agent, without any proof of who it is",
                prefixes.join(", ")
            ));
        }
        if let Some(address) = self.grpc_listen {
            weakened.push(format!("--grpc-listen {address}: every user of this host can steer this agent"));
        }
        weakened
    }
}
