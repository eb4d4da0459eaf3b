//! `controller nodes` and `controller tunnels`.

use std::time::Duration;

use super::{AskArgs, Error};
use crate::proto::convert;
use crate::proto::host::client::pages;
use crate::proto::host::output::columns;
use crate::proto::host::words::{diverted, endpoint_in_use, tunnel_state};
use crate::proto::session::Generation;
use crate::proto::v1;
use crate::proto::v1::node::Health;
use crate::proto::words::span;

/// Show the nodes: whether they are heard of, and how far they are
#[derive(Debug, clap::Args)]
pub(super) struct NodesArgs {
    #[command(flatten)]
    ask: AskArgs,
}

/// Show the tunnels of a node as its agent has them
#[derive(Debug, clap::Args)]
pub(super) struct TunnelsArgs {
    /// The node
    node: String,
    #[command(flatten)]
    ask: AskArgs,
}

impl NodesArgs {
    pub(super) async fn run(&self) -> Result<(), Error> {
        let mut controller = self.ask.connect().await?;
        let page = async |after| {
            let answer = controller.list_nodes(v1::ListNodesRequest { after }).await?.into_inner();
            Ok::<_, Error>((answer.nodes, answer.more))
        };
        let all = v1::ListNodesResponse { nodes: pages(page, |node| &node.name).await?, more: 0 };
        self.ask.write(&all, nodes)
    }
}

impl TunnelsArgs {
    pub(super) async fn run(&self) -> Result<(), Error> {
        let mut controller = self.ask.connect().await?;
        // What is said beside the tunnels is that of the last page.
        let mut all = v1::ListNodeTunnelsResponse::default();
        let page = async |after| {
            let request = v1::ListNodeTunnelsRequest { node: self.node.clone(), after };
            all = controller.list_node_tunnels(request).await?.into_inner();
            Ok::<_, Error>((std::mem::take(&mut all.tunnels), std::mem::take(&mut all.more)))
        };
        all.tunnels = pages(page, |tunnel| &tunnel.name).await?;
        self.ask.write(&all, |answer| tunnels(&self.node, answer))
    }
}

fn nodes(answer: &v1::ListNodesResponse) -> String {
    if answer.nodes.is_empty() {
        return "no nodes: no mesh names any, and no agent has dialled yet".to_owned();
    }
    let rows = answer.nodes.iter().map(|node| {
        vec![
            node.name.clone(),
            health(node.health(), node.last_heard.as_ref().map(convert::span)),
            node.meshes.join(" "),
            std::iter::once(&node.endpoint)
                .chain(&node.more_endpoints)
                .cloned()
                .collect::<Vec<_>>()
                .join(", "),
            node.version.clone(),
            progress(node),
            carrying(node),
        ]
    });
    columns(&["name", "health", "meshes", "endpoint", "version", "generation", "tunnels"], rows)
}

/// "live", "stale 14 s", "offline 2 min 3 s".
fn health(health: Health, last_heard: Option<Duration>) -> String {
    let word = health_word(health);
    match (health, last_heard) {
        (Health::Live | Health::NoAgent | Health::Unspecified, _) => word.to_owned(),
        (Health::Stale | Health::Offline, Some(age)) => format!("{word} {}", span(age)),
        (Health::Stale | Health::Offline, None) => format!("{word}, not heard of yet"),
    }
}

fn health_word(health: Health) -> &'static str {
    match health {
        Health::Live => "live",
        Health::Stale => "stale",
        Health::Offline => "offline",
        Health::NoAgent => "no agent",
        Health::Unspecified => "unknown",
    }
}

/// The generation that a node has, and the one that it is to have where it differs.
fn progress(node: &v1::Node) -> String {
    let words = |wire| Generation::from(wire).to_string();
    let observed = node.observed.map(words);
    match (observed, node.wanted.map(words)) {
        (Some(observed), _) if node.converged => observed,
        (observed, Some(wanted)) => format!("{} of {wanted}", observed.unwrap_or_else(|| "none".to_owned())),
        (observed, None) => observed.unwrap_or_default(),
    }
}

/// How many tunnels a node has, and how they are.
fn carrying(node: &v1::Node) -> String {
    if node.health() == Health::NoAgent {
        return String::new();
    }
    let diverted = diverted(node.diverted);
    let mut words = format!("{} ({} passing, {} failed{diverted})", node.tunnels, node.passing, node.failed);
    if node.removals_held > 0 {
        words += &format!(", {} kept that were to be removed", node.removals_held);
    }
    words
}

fn tunnels(node: &str, answer: &v1::ListNodeTunnelsResponse) -> String {
    if answer.health() == Health::NoAgent {
        return format!("{node} has no agent: its peers' tunnels to it say how it is");
    }
    let reported = answer.age.as_ref().map(convert::span);
    let mut text = if answer.tunnels.is_empty() {
        format!("no tunnels on {node}")
    } else {
        columns(
            &["name", "device", "owner", "endpoint", "state"],
            answer.tunnels.iter().map(|tunnel| {
                let last = tunnel.last_received_ms.map(Duration::from_millis);
                vec![
                    tunnel.name.clone(),
                    tunnel.device.clone(),
                    tunnel.owner().as_str_name().to_lowercase(),
                    endpoint_in_use(&tunnel.endpoint, &tunnel.preferred),
                    tunnel_state(tunnel.state(), &tunnel.reason, last),
                ]
            }),
        )
    };
    // What an agent said is as it was then.
    if answer.health() != Health::Live {
        text += &match reported {
            Some(age) => {
                format!("\n{node} is {}: this is {} old", health_word(answer.health()), span(age))
            }
            None => format!("\n{node} has not reported"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1::tunnel_status::{Owner, State};

    fn generation(revision: u64) -> Option<v1::Generation> {
        Some(v1::Generation { incarnation: 1, revision })
    }

    #[test]
    fn nodes_show_their_age_and_how_far_they_are() {
        let node = v1::Node {
            name: "minion-1".to_owned(),
            health: Health::Stale.into(),
            last_heard: Some(convert::duration(Duration::from_secs(14))),
            meshes: vec!["prod".to_owned(), "test".to_owned()],
            endpoint: "172.100.1.1:5000".to_owned(),
            version: "0.1.0".to_owned(),
            wanted: generation(7),
            observed: generation(5),
            tunnels: 3,
            passing: 2,
            failed: 1,
            removals_held: 4,
            ..Default::default()
        };
        assert_eq!(health(node.health(), Some(Duration::from_secs(14))), "stale 14 s");
        let text = nodes(&v1::ListNodesResponse { nodes: vec![node.clone()], more: 0 });
        for words in [
            "stale 14 s",
            "prod test",
            "172.100.1.1:5000",
            "0.1.0",
            "1.5 of 1.7",
            "3 (2 passing, 1 failed), 4 kept that were to be removed",
        ] {
            assert!(text.contains(words), "{text}");
        }
        assert_eq!(progress(&v1::Node { observed: None, ..node.clone() }), "none of 1.7");
        assert_eq!(progress(&v1::Node { observed: generation(7), converged: true, ..node }), "1.7");
        assert_eq!(health(Health::Offline, None), "offline, not heard of yet");
    }

    #[test]
    fn an_old_report_says_so() {
        let report = v1::TunnelReport {
            name: "prod.minion-2".to_owned(),
            owner: Owner::Controller.into(),
            state: State::Passing.into(),
            last_received_ms: Some(72_000),
            ..Default::default()
        };
        let mut answer = v1::ListNodeTunnelsResponse {
            tunnels: vec![report],
            age: Some(convert::duration(Duration::from_secs(70))),
            health: Health::Offline.into(),
            more: 0,
        };
        let text = tunnels("minion-1", &answer);
        assert!(text.contains("passing, last packet 1 min 12 s ago"), "{text}");
        assert!(text.contains("controller"), "its owner: {text}");
        assert!(text.ends_with("minion-1 is offline: this is 1 min 10 s old"), "{text}");
        answer.health = Health::Live.into();
        assert!(!tunnels("minion-1", &answer).contains("old"));
    }
}
