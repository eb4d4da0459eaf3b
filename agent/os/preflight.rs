//! What the host must give before an agent can do anything.

use std::fs::{self, OpenOptions};
use std::path::Path;

/// The device that makes tun devices.
const TUN: &str = "/dev/net/tun";
/// `CAP_NET_ADMIN` of `linux/capability.h`.
const CAP_NET_ADMIN: u32 = 12;

/// What is missing on this host, and how to get it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// No capability to change the network.
    #[error(
        "the capability CAP_NET_ADMIN is missing: run the agent as root, or with \
         AmbientCapabilities=CAP_NET_ADMIN (systemd) or --cap-add NET_ADMIN (containers)"
    )]
    NetAdmin,
    /// No tun device to open.
    #[error(
        "{TUN} is missing: load the module with `modprobe tun`, or give the container the device with \
         --device {TUN}"
    )]
    TunAbsent,
    /// The tun device cannot be opened.
    #[error("{TUN} cannot be opened ({0}): let the agent's user read and write it")]
    TunClosed(String),
}

/// Checks the capability first: without it nothing else can be tried.
///
/// # Errors
/// The first thing that is missing.
pub fn check() -> Result<(), Missing> {
    if !has_net_admin() {
        return Err(Missing::NetAdmin);
    }
    if !Path::new(TUN).exists() {
        return Err(Missing::TunAbsent);
    }
    match OpenOptions::new().read(true).write(true).open(TUN) {
        Ok(_) => Ok(()),
        // ENODEV and ENXIO: the node is there, the driver behind it is not.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => {
            Err(Missing::TunAbsent)
        }
        Err(error) => Err(Missing::TunClosed(error.to_string())),
    }
}

fn has_net_admin() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    effective_capabilities(&status).is_some_and(|set| set & (1 << CAP_NET_ADMIN) != 0)
}

/// The effective set of `/proc/PID/status`, `proc(5)`.
fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_effective_set() {
        let status = "Name:\tagent\nCapPrm:\t0000000000000000\nCapEff:\t0000000000001000\n";
        assert_eq!(effective_capabilities(status), Some(1 << CAP_NET_ADMIN));
        assert_eq!(effective_capabilities("Name:\tagent\n"), None);
    }
}
