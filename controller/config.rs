//! What a controller is started with, parsed.

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use crate::proto::host::metrics::weakened_by_metrics;

/// What a controller is started with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where agents dial.
    pub listen: Vec<SocketAddr>,
    /// The Unix socket of MeshAdmin.
    pub socket: PathBuf,
    /// Where the store is.
    pub state_dir: PathBuf,
    /// Where metrics are served over HTTP; `None`: nowhere.
    pub metrics_listen: Option<SocketAddr>,
    /// The networks from which agents may come in plain text.
    pub insecure: Vec<IpNet>,
    /// The networks in which every host that asks may join.
    pub approve_any: Vec<IpNet>,
}

impl Config {
    /// The settings that are weaker than the defaults, each asked for by name, in words.
    pub fn weakened(&self) -> Vec<String> {
        let list =
            |prefixes: &[IpNet]| prefixes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let mut weakened = Vec::new();
        if !self.insecure.is_empty() {
            weakened.push(format!(
                "--insecure: whoever can send from {} can be any node that has not joined otherwise, and whoever can read \
                 there reads what nodes are told",
                list(&self.insecure)
            ));
        }
        if !self.approve_any.is_empty() {
            weakened.push(format!(
                "--approve-any: whoever can send from {} can join, under any name that nobody has yet",
                list(&self.approve_any)
            ));
        }
        weakened.extend(self.metrics_listen.and_then(weakened_by_metrics));
        weakened
    }
}
