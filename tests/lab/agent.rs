//! Real agents.

use std::ops::{Deref, DerefMut};
use std::path::Path;

use serde_json::{Value, json};

use super::daemon::{Daemon, StartError};
use super::{Host, grpcurl};

/// The agent's binary.
pub const AGENT: &str = env!("CARGO_BIN_EXE_agent");

/// A running agent with a directory of its own for socket, state and log. Dropping it ends it.
pub struct Agent(pub(super) Daemon);

impl Agent {
    /// Starts an agent on `host` with `arguments` more than socket and state directory, and waits until its
    /// socket answers.
    pub fn start(host: &Host, arguments: &[&str]) -> Self {
        Self::try_start(host, arguments).unwrap_or_else(|error| panic!("on {}: {error}", host.role()))
    }

    /// Starts an agent that may refuse to run.
    pub fn try_start(host: &Host, arguments: &[&str]) -> Result<Self, StartError> {
        Daemon::try_start(host, "agent", &[&[AGENT], arguments].concat()).map(Self)
    }

    /// Starts an agent on another host with the same arguments and a copy of its state.
    pub fn copy_to(&self, host: &Host) -> Self {
        Self(self.0.copy_to(host).unwrap_or_else(|error| panic!("on {}: {error}", host.role())))
    }

    /// Starts an agent by a command that ends in one, to which socket and state directory are added.
    pub fn start_by(host: &Host, command: &[&str]) -> Self {
        let started = Daemon::try_start(host, "agent", command);
        Self(started.unwrap_or_else(|error| panic!("on {}: {error}", host.role())))
    }

    /// Starts an agent with other arguments and a copy of the state in `from`.
    pub fn start_copy(host: &Host, from: &Path, arguments: &[&str]) -> Self {
        Self::start_copy_by(host, from, &[&[AGENT], arguments].concat())
    }

    /// The same by a command that ends in an agent.
    pub fn start_copy_by(host: &Host, from: &Path, command: &[&str]) -> Self {
        let started = Daemon::start_copy(host, "agent", command, from);
        Self(started.unwrap_or_else(|error| panic!("on {}: {error}", host.role())))
    }

    /// The key by which the peers of encrypted tunnels know its host.
    pub fn public_key(&self) -> String {
        let status = grpcurl(self, "tunmesh.v1.TunnelService/GetStatus", &json!({})).unwrap();
        status["publicKey"].as_str().unwrap().to_owned()
    }

    /// Its session with a controller, by gRPC.
    pub fn session(&self) -> Value {
        grpcurl(self, "tunmesh.v1.TunnelService/GetStatus", &json!({})).unwrap()["controller"].clone()
    }

    /// What one of its commands shows, as `show("status")`.
    pub fn show(&self, command: &str) -> String {
        self.host().run([AGENT, command, "--socket", self.socket().to_str().unwrap()])
    }

    /// Where it sends what is for a tunnel.
    pub fn endpoint_of(&self, tunnel: &str) -> String {
        let tunnels = self.tunnels();
        let found = tunnels.iter().find(|status| status["tunnel"]["name"] == tunnel).expect("the tunnel");
        found["endpoint"].as_str().unwrap_or_default().to_owned()
    }

    /// The names of its tunnels.
    pub fn tunnel_names(&self) -> Vec<String> {
        let names = self.tunnels().into_iter();
        names.map(|status| status["tunnel"]["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Its tunnels as it has them, by gRPC.
    pub fn tunnels(&self) -> Vec<Value> {
        let mut listed = grpcurl(self, "tunmesh.v1.TunnelService/ListTunnels", &json!({})).unwrap();
        listed["tunnels"].as_array_mut().map(std::mem::take).unwrap_or_default()
    }
}

impl Deref for Agent {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.0
    }
}

impl DerefMut for Agent {
    fn deref_mut(&mut self) -> &mut Daemon {
        &mut self.0
    }
}
