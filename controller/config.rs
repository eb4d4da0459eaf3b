//! What a controller is started with, parsed.

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;

/// What a controller is started with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where agents dial.
    pub listen: Vec<SocketAddr>,
    /// The Unix socket of MeshAdmin.
    pub socket: PathBuf,
    /// Where the store is.
    pub state_dir: PathBuf,
    /// The networks from which agents may come in plain text.
    pub insecure: Vec<IpNet>,
}

impl Config {
    /// The settings that are weaker than the defaults, each asked for by name, in words.
    pub fn weakened(&self) -> Vec<String> {
        if self.insecure.is_empty() {
            return Vec::new();
        }
        let prefixes: Vec<String> = self.insecure.iter().map(ToString::to_string).collect();
        vec![format!(
            "--insecure: whoever can send from {} can be any node, and read what nodes are told",
            prefixes.join(", ")
        )]
    }
}
