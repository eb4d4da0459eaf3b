//! Host names of remotes, and what a resolver says of them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::AgentState;
use crate::agent::target;
use crate::proto::model::{Host, Remote, Tunnel, TunnelName, is_underlay_address};

/// How soon a name that did not resolve is asked for again.
const RESOLVE_RETRY: Duration = Duration::from_secs(5);
/// How long an answer of the resolver is believed while nothing speaks against it.
const RESOLVE_AGAIN: Duration = Duration::from_secs(60);

/// A host name that a remote has.
#[derive(Debug, Clone)]
pub(super) struct Lookup {
    pub(super) due: Instant,
    pub(super) pending: bool,
    /// When it was last answered.
    answered: Option<Instant>,
}

impl Lookup {
    /// One that is due at `due`.
    pub(super) fn new(due: Instant) -> Self {
        Self { due, pending: false, answered: None }
    }
}

impl AgentState {
    /// Takes in what a resolver says of a host name, the preferred address first.
    pub fn handle_resolved(&mut self, host: &str, answer: Result<Vec<IpAddr>, String>, now: Instant) {
        self.now = now;
        if !self.lookups.contains_key(host) {
            return;
        }
        let known = self.facts.resolved.get(host).and_then(|known| known.as_ref().ok()).copied();
        let is_silent = self.is_silent(host);
        let resolved = match (answer, known) {
            // Nobody is there: the name has moved, or another of its addresses is to be tried.
            (Ok(addresses), Some(known)) if is_silent => Ok(after(&addresses, known)),
            // A name with several addresses comes in any order: stay with the one in use.
            (Ok(addresses), Some(known)) if addresses.contains(&known) => Ok(known),
            // Resolvers that block a name answer with addresses that are no host's, as 0.0.0.0. Those on the same link
            // answer with what is a host's on that link alone.
            (Ok(addresses), known) => {
                let mut addresses = addresses.into_iter().filter(|address| is_underlay_address(*address));
                addresses.next().or(known).ok_or_else(|| "no address of a host".to_owned())
            }
            // The peer is likely where it was while the resolver is away.
            (Err(_), Some(known)) => Ok(known),
            (Err(reason), None) => Err(reason),
        };
        // What is known already is in the target: many names that stay cost nothing.
        let is_news = known.is_none_or(|known| resolved != Ok(known));
        let resolved =
            resolved.and_then(|address| match is_news.then(|| self.upset_by(host, address)).flatten() {
                Some(other) => Err(format!("{address} clashes with tunnel {other}")),
                None => Ok(address),
            });
        if let Some(lookup) = self.lookups.get_mut(host) {
            lookup.pending = false;
            lookup.answered = Some(now);
            lookup.due = now + if resolved.is_ok() && !is_silent { RESOLVE_AGAIN } else { RESOLVE_RETRY };
        }
        if is_news {
            self.facts.resolved.insert(host.to_owned(), resolved);
            self.rebuild();
        }
    }

    /// Takes in whose peers are not heard: where they are is asked for again.
    pub fn handle_silent(&mut self, silent: BTreeSet<TunnelName>, now: Instant) {
        self.now = now;
        if self.silent == silent {
            return;
        }
        self.silent = silent;
        let hosts: Vec<String> = self.lookups.keys().filter(|host| self.is_silent(host)).cloned().collect();
        for host in hosts {
            if let Some(lookup) = self.lookups.get_mut(&host) {
                let earliest = lookup.answered.map_or(now, |answered| answered + RESOLVE_RETRY);
                lookup.due = lookup.due.min(earliest.max(now));
            }
        }
    }

    /// Whether nobody is heard at a host name, by any of the tunnels that use it. Of one that is not probed nothing is known.
    fn is_silent(&self, host: &str) -> bool {
        let uses = |name: &TunnelName, tunnel: &Tunnel| {
            let position = self.facts.in_use.get(name).copied().unwrap_or(0);
            let remote = tunnel.remote.as_ref().and_then(|remotes| remotes.iter().nth(position));
            remote.is_some_and(|remote| is_at(remote, host))
        };
        let mut users =
            self.wanted.desired.tunnels.iter().filter(|(name, tunnel)| uses(name, tunnel)).peekable();
        users.peek().is_some() && users.all(|(name, _)| self.silent.contains(name))
    }

    /// A tunnel to elsewhere that works, and would not if `host` had `address`: whoever answers for a name must not
    /// take from others what they have.
    fn upset_by(&self, host: &str, address: IpAddr) -> Option<TunnelName> {
        let mut facts = self.facts.clone();
        facts.resolved.insert(host.to_owned(), Ok(address));
        let after = target::build(&self.wanted.desired, &facts, &self.policy);
        let is_elsewhere = |name: &TunnelName| {
            let tunnel = self.wanted.desired.tunnels.get(name);
            let remotes = tunnel.and_then(|tunnel| tunnel.remote.as_ref());
            !remotes.is_some_and(|remotes| remotes.iter().any(|remote| is_at(remote, host)))
        };
        let mut upset = after.faults.into_keys();
        upset.find(|name| is_elsewhere(name) && !self.target.faults.contains_key(name))
    }
}

/// Whether a remote has a host name.
fn is_at(remote: &Remote, host: &str) -> bool {
    matches!(&remote.host, Host::Name(name) if name == host)
}

/// Of the addresses of a name the one behind `known`; `known` where there is no other that can be a host's.
fn after(addresses: &[IpAddr], known: IpAddr) -> IpAddr {
    let mut addresses: Vec<IpAddr> = addresses.to_vec();
    addresses.retain(|address| is_underlay_address(*address));
    // They come in any order.
    addresses.sort_unstable();
    addresses.dedup();
    let next = addresses.iter().find(|address| **address > known);
    next.or(addresses.first()).copied().unwrap_or(known)
}
