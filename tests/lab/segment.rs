//! Hosts on one segment with a controller, as most tests of meshes want them.

use super::{Agent, Controller, Host, Lab, SOON, wait_until};

/// Hosts on one segment, 172.100.1.1 and so on, with a controller on its router.
pub struct Segment {
    _lab: Lab,
    hosts: Vec<Host>,
    /// The controller, at [`Self::CONTROLLER`].
    pub controller: Controller,
}

impl Segment {
    /// Where agents dial.
    pub const CONTROLLER: &str = "172.100.1.254:7443";

    /// `count` hosts and the controller, without any agent.
    pub fn new(count: usize) -> Self {
        let lab = Lab::new();
        let router = lab.host("router");
        let hosts: Vec<_> = (1..=count).map(|n| lab.host(&node_name(n))).collect();
        let addresses: Vec<_> = (1..=count).map(|n| format!("172.100.1.{n}/24")).collect();
        let ends: Vec<_> = hosts.iter().zip(addresses.iter().map(String::as_str)).collect();
        lab.segment(&router, "172.100.1.254/24", &ends);
        let controller = Controller::start(&router, &[]);
        Self { _lab: lab, hosts, controller }
    }

    /// Host `n`, from 1.
    pub fn host(&self, n: usize) -> &Host {
        &self.hosts[n - 1]
    }

    /// The agent of host `n`, which is the node of its name.
    pub fn agent(&self, n: usize, arguments: &[&str]) -> Agent {
        Agent::join(self.host(n), Self::CONTROLLER, &node_name(n), arguments)
    }

    /// Agents of the hosts 1 to `count`, when the controller has all.
    pub fn agents(&self, count: usize) -> Vec<Agent> {
        let agents = (1..=count).map(|n| self.agent(n, &[])).collect();
        self.wait_live(count);
        agents
    }

    /// Waits until the controller has the nodes of the hosts 1 to `count`.
    pub fn wait_live(&self, count: usize) {
        wait_live(&self.controller, &(1..=count).map(node_name).collect::<Vec<_>>());
    }
}

/// The node that host `n` is.
pub fn node_name(n: usize) -> String {
    format!("n{n}")
}

/// Waits until a controller has these nodes.
pub fn wait_live(controller: &Controller, names: &[String]) {
    wait_until(SOON, &format!("{names:?} are live"), || {
        names.iter().all(|name| controller.node(name)["health"] == "LIVE")
    });
}
