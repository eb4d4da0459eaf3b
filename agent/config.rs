//! What an agent is started with, parsed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use super::service::controller::Introduction;
use crate::proto::host::metrics::weakened_by_metrics;
use crate::proto::model::{NodeName, Offload, Remote};
use crate::proto::session::Reach;

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
    /// Which offloads are not used.
    pub without: Vec<Offload>,
    /// The Unix socket of TunnelService.
    pub socket: PathBuf,
    /// An address for TunnelService over TCP: in plain text on loopback, otherwise for operators with certificates.
    pub grpc_listen: Option<SocketAddr>,
    /// Where metrics are served over HTTP; `None`: nowhere.
    pub metrics_listen: Option<SocketAddr>,
    /// Where the wanted state is kept.
    pub state_dir: PathBuf,
    /// Whom to follow; `None`: nobody.
    pub controller: Option<ControllerConfig>,
}

/// Which controllers an agent follows, and what it says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerConfig {
    /// Their addresses, at least one.
    pub addresses: Vec<Remote>,
    /// The networks in which they are dialled without encryption, as long as this agent has not joined.
    pub insecure: Vec<IpNet>,
    /// What is known of them before it has.
    pub introduction: Introduction,
    /// The node that this agent is.
    pub node: NodeName,
    /// What it says of itself.
    pub labels: BTreeMap<String, String>,
    /// Where others reach its data port.
    pub reach: Reach,
}

impl ControllerConfig {
    /// What is weaker than the defaults while the agent follows a controller, each asked for by name, in words.
    pub fn weakened(&self, has_joined: bool) -> Vec<String> {
        let list =
            |prefixes: &[IpNet]| prefixes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let mut weakened = Vec::new();
        if !self.insecure.is_empty() && !has_joined {
            weakened.push(format!(
                "--insecure: the controller is followed over {} without encryption or proof of who it is: whoever is in \
                 the path steers this agent",
                list(&self.insecure)
            ));
        }
        if !self.introduction.approve_any.is_empty() && !has_joined {
            weakened.push(format!(
                "--approve-any: whoever answers first in {} is believed to be the controller",
                list(&self.introduction.approve_any)
            ));
        }
        weakened
    }
}

impl Config {
    /// The settings that are weaker than the defaults for as long as the agent runs, each asked for by name, in words.
    pub fn weakened(&self) -> Vec<String> {
        let mut weakened = Vec::new();
        if !self.legacy_allow.is_empty() && self.control_port.is_some() {
            let prefixes: Vec<String> = self.legacy_allow.iter().map(ToString::to_string).collect();
            weakened.push(format!(
                "--legacy-allow: whoever can send from {} steers this agent, without any proof of who it is",
                prefixes.join(", ")
            ));
        }
        weakened.extend(self.metrics_listen.and_then(weakened_by_metrics));
        if let Some(address) = self.grpc_listen.filter(|address| address.ip().is_loopback()) {
            weakened.push(format!("--grpc-listen {address}: every user of this host can steer this agent"));
        }
        weakened
    }
}
