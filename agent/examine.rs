//! Tries how this host reaches the peers of tunnels, for whoever asks what is wrong.

use std::net::{IpAddr, SocketAddr};

use tokio::task::{JoinSet, spawn_blocking};

use crate::agent::check;
use crate::agent::os::ping;
use crate::proto::host::random;
use crate::proto::model::TunnelName;
use crate::proto::session::{Findings, PeerFinding};

/// A tunnel whose peer is to be tried, and what is known without that.
#[derive(Debug)]
pub struct Subject {
    /// Its name.
    pub tunnel: TunnelName,
    /// Where its datagrams go.
    pub endpoint: Option<SocketAddr>,
    /// Whether its peer bears a datagram that means nothing: a server of 2015 does not.
    pub is_tolerant: bool,
    /// As in [`PeerFinding`].
    pub strayed: Option<(IpAddr, String)>,
    /// As in [`PeerFinding`].
    pub other_key: bool,
}

/// Tries all of them beside each other, which takes a few seconds.
pub async fn examine(request: u64, subjects: Vec<Subject>) -> Findings {
    let mut tries = JoinSet::new();
    for subject in subjects {
        tries.spawn_blocking(move || (subject.tunnel.clone(), try_peer(subject)));
    }
    let host = spawn_blocking(check::faults).await.unwrap_or_default();
    Findings { request, host, peers: tries.join_all().await.into_iter().collect() }
}

fn try_peer(Subject { endpoint, is_tolerant, strayed, other_key, .. }: Subject) -> PeerFinding {
    let token = random::bits().map(u128::to_be_bytes);
    let ping = endpoint.zip(token.ok()).and_then(|(endpoint, token)| ping::ping(endpoint.ip(), &token));
    let port = endpoint.filter(|_| is_tolerant).and_then(ping::try_port);
    PeerFinding { endpoint, ping, port, strayed, other_key }
}
