//! What is missing on this host for packets to pass, and how to mend it.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

use crate::agent::os::preflight;
use crate::proto::session::{Forwarding, HostFinding, HostSubject};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing to do.
    Ok,
    /// Could not be looked at, or matters to some meshes alone.
    Note,
    /// Subnets behind this host, or tunnels at all, will not pass.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub subject: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub found: String,
    /// What to do about it; empty where nothing is.
    pub remedy: String,
}

impl Finding {
    fn new(
        subject: &'static str,
        severity: Severity,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { subject, severity, found: found.into(), remedy: remedy.into() }
    }

    fn ok(subject: &'static str, found: impl Into<String>) -> Self {
        Self::new(subject, Severity::Ok, found, "")
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.subject, self.found)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, ": {}", self.remedy) }
    }
}

/// Everything, for a host on which no agent need run.
pub fn all() -> Vec<Finding> {
    let mut findings = vec![match preflight::check() {
        Ok(()) => Finding::ok("devices", "can be made"),
        Err(missing) => Finding::new("devices", Severity::Problem, "cannot be made", missing.to_string()),
    }];
    let group = fs::read_to_string("/etc/group").unwrap_or_default();
    findings.push(if group.lines().any(|line| line.starts_with("tunmesh:")) {
        Finding::ok("group", "tunmesh exists: its members may steer the agent")
    } else {
        Finding::new(
            "group",
            Severity::Note,
            "tunmesh does not exist: only root may steer the agent",
            "groupadd --system tunmesh",
        )
    });
    findings.extend(look_at_forwarding());
    findings
}

/// What keeps subnets behind this host from being reached; only what is wrong.
pub fn forwarding() -> Vec<Finding> {
    look_at_forwarding().into_iter().filter(|finding| finding.severity == Severity::Problem).collect()
}

/// The same for a controller that asks.
pub fn faults() -> Vec<HostFinding> {
    let all = [
        (
            HostSubject::ForwardingV4,
            ip_forward("forwarding of IPv4", Forwarding::SYSCTL_V4, Severity::Problem),
        ),
        (
            HostSubject::ForwardingV6,
            ip_forward("forwarding of IPv6", Forwarding::SYSCTL_V6, Severity::Problem),
        ),
        (HostSubject::ReversePath, rp_filter()),
        (HostSubject::Firewall, forward_policy()),
    ];
    let faults = all.into_iter().filter(|(_, finding)| finding.severity == Severity::Problem);
    let fault = |(subject, Finding { subject: name, found, .. })| HostFinding {
        subject,
        found: format!("{name} {found}"),
    };
    faults.map(fault).collect()
}

fn look_at_forwarding() -> Vec<Finding> {
    vec![
        ip_forward("forwarding of IPv4", Forwarding::SYSCTL_V4, Severity::Problem),
        // Most meshes carry IPv4 alone.
        ip_forward("forwarding of IPv6", Forwarding::SYSCTL_V6, Severity::Note),
        rp_filter(),
        forward_policy(),
    ]
}

/// What the kernel forwards. What cannot be read is not said to be off.
pub fn ip_forwarding() -> Forwarding {
    let is_on = |name| sysctl(name).as_deref() != Some("0");
    Forwarding { ipv4: is_on(Forwarding::SYSCTL_V4), ipv6: is_on(Forwarding::SYSCTL_V6) }
}

fn sysctl(name: &str) -> Option<String> {
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn ip_forward(subject: &'static str, name: &str, severity: Severity) -> Finding {
    match sysctl(name).as_deref() {
        Some("0") => Finding::new(
            subject,
            severity,
            "is off: subnets behind this host cannot be reached through it",
            format!("sysctl -w {name}=1"),
        ),
        Some(_) => Finding::ok(subject, "is on"),
        None => Finding::new(subject, Severity::Note, format!("is unknown: {name} cannot be read"), ""),
    }
}

/// Strict reverse-path filtering drops packets of a peer whose route back leads elsewhere. The kernel takes the
/// larger value of `all` and the interface's own; new devices begin with that of `default`.
fn rp_filter() -> Finding {
    const SUBJECT: &str = "reverse-path filter";
    let strict: Vec<&str> = ["all", "default"]
        .into_iter()
        .filter(|scope| sysctl(&format!("net.ipv4.conf.{scope}.rp_filter")).as_deref() == Some("1"))
        .collect();
    match strict.as_slice() {
        [] => Finding::ok(SUBJECT, "is not strict"),
        scopes => Finding::new(
            SUBJECT,
            Severity::Problem,
            "is strict: packets from a peer are dropped where the way back is not through the same tunnel",
            scopes
                .iter()
                .map(|scope| format!("sysctl -w net.ipv4.conf.{scope}.rp_filter=2"))
                .collect::<Vec<_>>()
                .join("; "),
        ),
    }
}

/// Whether a base chain on the forward hook drops by default, as `nft` tells (iptables-nft included).
fn forward_policy() -> Finding {
    const SUBJECT: &str = "firewall";
    let listed = Command::new("nft").args(["-j", "list", "chains"]).output();
    let chains = match listed {
        Ok(output) if output.status.success() => serde_json::from_slice(&output.stdout),
        Ok(_) | Err(_) => {
            return Finding::new(
                SUBJECT,
                Severity::Note,
                "was not looked at: `nft -j list chains` does not work here",
                "see that forwarded packets of the tunnels' devices are accepted",
            );
        }
    };
    let dropping = dropping_forward_chains(&chains.unwrap_or_default());
    if dropping.is_empty() {
        return Finding::ok(SUBJECT, "drops no forwarded packets by default");
    }
    Finding::new(
        SUBJECT,
        Severity::Problem,
        format!("drops forwarded packets by default ({})", dropping.join(", ")),
        "accept there what comes from and goes to the tunnels' devices",
    )
}

/// The chains of `nft -j list chains` on the forward hook whose policy is drop: family, table and name.
fn dropping_forward_chains(listed: &serde_json::Value) -> Vec<String> {
    let entries = listed.get("nftables").and_then(|entries| entries.as_array());
    let chains = entries.into_iter().flatten().filter_map(|entry| entry.get("chain"));
    let text = |chain: &serde_json::Value, key: &str| {
        chain.get(key).and_then(|value| value.as_str()).unwrap_or_default().to_owned()
    };
    chains
        .filter(|chain| text(chain, "hook") == "forward" && text(chain, "policy") == "drop")
        .map(|chain| format!("{} {} {}", text(chain, "family"), text(chain, "table"), text(chain, "name")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_chains_that_drop() {
        let listed = serde_json::json!({"nftables": [
            {"metainfo": {"version": "1.0.6"}},
            {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"}},
            {"chain": {"family": "ip", "table": "filter", "name": "INPUT", "hook": "input", "policy": "drop"}},
            {"chain": {"family": "inet", "table": "f", "name": "fwd", "hook": "forward", "policy": "accept"}},
            {"chain": {"family": "ip", "table": "filter", "name": "DOCKER"}}
        ]});
        assert_eq!(dropping_forward_chains(&listed), ["ip filter FORWARD"]);
        assert!(dropping_forward_chains(&serde_json::Value::Null).is_empty());
    }
}
