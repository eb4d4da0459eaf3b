//! What an agent tells of itself as metrics.

use std::time::Duration;

use super::runtime::{AgentHandle, ControllerStatus, Overview};
use crate::agent::session::SessionState;
use crate::proto::host::clock::since_epoch;
use crate::proto::host::metrics::{Labels, Metrics, seconds};
use crate::proto::model::{Hearing, LinkState, LinkStatus, Traffic, TunnelState, TunnelStatus};

/// The metrics as they are now; `None`: the agent is stopping.
pub async fn read(agent: AgentHandle) -> Option<Metrics> {
    let (tunnels, overview, controller) =
        (agent.tunnels().await.ok()?, agent.overview().await.ok()?, agent.controller().await.ok()?);
    Some(of(&tunnels, &overview, controller.as_ref(), since_epoch()))
}

/// `now` is time since the Unix epoch.
fn of(
    tunnels: &[TunnelStatus],
    overview: &Overview,
    controller: Option<&ControllerStatus>,
    now: Duration,
) -> Metrics {
    let mut metrics = Metrics::new("tunmesh_agent");
    of_tunnels(&mut metrics, tunnels, now);
    of_links(&mut metrics, tunnels, now);
    let reasons = |drops: &std::collections::BTreeMap<&'static str, u64>| {
        drops
            .iter()
            .map(|(reason, count)| (vec![("reason", (*reason).to_owned())], *count))
            .collect::<Vec<_>>()
    };
    let none = Labels::new;
    metrics.counter("datagrams_received", "Datagrams at the data port", [(none(), overview.datagrams)]);
    metrics.counter(
        "session_messages",
        "Datagrams that carried no packet and were taken in: probes and handshakes",
        [(none(), overview.session_messages)],
    );
    metrics.counter(
        "datagrams_dropped",
        "Datagrams that belong to no tunnel",
        reasons(&overview.datagrams_dropped),
    );
    metrics.counter(
        "packets_dropped",
        "Packets from devices that belong to no tunnel",
        reasons(&overview.packets_dropped),
    );
    let session = controller.and_then(|controller| controller.session.as_ref());
    let is_synced = session.map(|session| f64::from(u8::from(session.state == SessionState::Synced)));
    metrics.gauge(
        "controller_in_step",
        "Whether the agent has what its controller wants",
        is_synced.map(|value| (none(), value)),
    );
    let heard = session.and_then(|session| session.last_heard);
    metrics.gauge(
        "controller_last_heard_age_seconds",
        "How long ago a controller was heard",
        heard.map(|heard| (none(), seconds(now.saturating_sub(heard)))),
    );
    metrics
}

fn labels(tunnel: &TunnelStatus) -> Labels {
    vec![("tunnel", tunnel.name.to_string()), ("device", tunnel.tunnel.device.to_string())]
}

fn with(mut labels: Labels, name: &'static str, value: &str) -> Labels {
    labels.push((name, value.to_owned()));
    labels
}

fn of_tunnels(metrics: &mut Metrics, tunnels: &[TunnelStatus], now: Duration) {
    let directions = |of: fn(&Traffic) -> u64| {
        let both = |tunnel: &TunnelStatus| {
            [("sent", of(&tunnel.sent)), ("received", of(&tunnel.received))]
                .map(|(direction, value)| (with(labels(tunnel), "direction", direction), value))
        };
        tunnels.iter().flat_map(both).collect::<Vec<_>>()
    };
    metrics.counter("tunnel_packets", "Packets carried", directions(|traffic| traffic.packets));
    metrics.counter("tunnel_bytes", "Their bytes, without any framing", directions(|traffic| traffic.bytes));
    let drops = tunnels.iter().flat_map(|tunnel| {
        [("sent", &tunnel.sent), ("received", &tunnel.received)].into_iter().flat_map(
            move |(way, traffic)| {
                let of_reason = move |(reason, count): (&&'static str, &u64)| {
                    (with(with(labels(tunnel), "direction", way), "reason", reason), *count)
                };
                traffic.drops.iter().map(of_reason)
            },
        )
    });
    metrics.counter("tunnel_drops", "Packets not carried", drops);
    metrics.gauge(
        "tunnel_failed",
        "Whether something that the tunnel needs cannot be had",
        tunnels.iter().map(|tunnel| {
            (labels(tunnel), f64::from(u8::from(matches!(tunnel.state, TunnelState::Failed(_)))))
        }),
    );
    let ages = |of: fn(&TunnelStatus) -> Option<Duration>| {
        let age = |tunnel: &TunnelStatus| Some((labels(tunnel), seconds(now.saturating_sub(of(tunnel)?))));
        tunnels.iter().filter_map(age).collect::<Vec<_>>()
    };
    metrics.gauge(
        "tunnel_last_received_age_seconds",
        "How long ago the last packet was received",
        ages(|tunnel| tunnel.last_received),
    );
    metrics.gauge(
        "tunnel_keys_age_seconds",
        "How old the keys are by which packets go",
        ages(|tunnel| tunnel.last_handshake),
    );
    let mtu = |tunnel: &TunnelStatus| Some((labels(tunnel), u32::from(tunnel.path_mtu?).into()));
    metrics.gauge(
        "tunnel_path_mtu_bytes",
        "The largest packet that one datagram carries",
        tunnels.iter().filter_map(mtu),
    );
}

fn of_links(metrics: &mut Metrics, tunnels: &[TunnelStatus], now: Duration) {
    let links: Vec<(&TunnelStatus, &LinkStatus)> =
        tunnels.iter().filter_map(|tunnel| Some((tunnel, tunnel.link.as_ref()?))).collect();
    let of = |value: fn(&LinkStatus) -> Option<f64>| {
        links.iter().filter_map(|(tunnel, link)| Some((labels(tunnel), value(link)?))).collect::<Vec<_>>()
    };
    metrics.gauge(
        "link_up",
        "Whether both ends of the link hear each other",
        of(|link| Some(f64::from(u8::from(link.state == LinkState::Up)))),
    );
    let state = |(tunnel, link): &(&TunnelStatus, &LinkStatus)| {
        (with(labels(tunnel), "state", link.state.name()), 1.0)
    };
    metrics.gauge("link_state", "The state of the link: 1", links.iter().map(state));
    let age = |of: fn(&LinkStatus) -> Option<Duration>| {
        links
            .iter()
            .filter_map(|(tunnel, link)| Some((labels(tunnel), seconds(now.saturating_sub(of(link)?)))))
            .collect::<Vec<_>>()
    };
    metrics.gauge("link_state_age_seconds", "For how long it has been so", age(|link| Some(link.since)));
    metrics.gauge(
        "link_last_heard_age_seconds",
        "How long ago a probe of the peer was heard: so old is what is told of it",
        age(|link| link.last_heard),
    );
    metrics.gauge(
        "link_detection_seconds",
        "After how long a silence the peer is taken to be out of reach",
        of(|link| link.detection_time.map(seconds)),
    );
    metrics.gauge("link_round_trip_seconds", "To the peer and back", of(|link| link.round_trip.map(seconds)));
    metrics.gauge(
        "link_lost_size_bytes",
        "The size from which on the path loses packets without a word",
        of(|link| link.loses.map(f64::from)),
    );
    let changes = links.iter().map(|(tunnel, link)| (labels(tunnel), link.changes.into()));
    metrics.counter("link_changes", "How often the state has changed", changes);
    let hearing = |of: fn(&Hearing) -> f64| {
        let both = |(tunnel, link): &(&TunnelStatus, &LinkStatus)| {
            let ways = [("sent", link.sent), ("received", link.received)];
            ways.map(|(way, hearing)| Some((with(labels(tunnel), "direction", way), of(&hearing?))))
        };
        links.iter().flat_map(both).flatten().collect::<Vec<_>>()
    };
    metrics.gauge(
        "link_lost_ratio",
        "Of the latest probes the share that was lost",
        hearing(|hearing| share_of(hearing.lost, hearing.known)),
    );
    metrics.gauge(
        "link_reordered_ratio",
        "Of the latest probes the share that came after a later one",
        hearing(|hearing| share_of(hearing.reordered, hearing.known)),
    );
    metrics.gauge(
        "link_jitter_seconds",
        "How unevenly probes come (RFC 3550)",
        hearing(|hearing| seconds(hearing.jitter)),
    );
}

fn share_of(part: u16, known: u16) -> f64 {
    f64::from(part) / f64::from(known.max(1))
}
