//! `controller wait`.

use std::time::Duration;

use super::apply::duration;
use super::{ControllerArgs, Error, converge};
use crate::proto::convert;
use crate::proto::host::client::pages;
use crate::proto::host::clock::now;
use crate::proto::v1;
use crate::proto::v1::node::Health;
use crate::proto::words::span;

/// How often it is looked whether all nodes are heard of.
const LOOK: Duration = Duration::from_millis(500);

/// Wait until the nodes are as they are to be
///
/// Exit code: 0 they are, 1 they are not, and who lags and why, 2 wrong use.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Until every node is heard of and has all that is wanted now, as its kernel shows: 30s at most, or as long as given, as 90s
    /// or 5m
    #[arg(
        long,
        value_name = "DURATION",
        num_args = 0..=1,
        default_missing_value = "30s",
        value_parser = duration,
        required = true
    )]
    converged: Duration,
    #[command(flatten)]
    controller: ControllerArgs,
}

impl Args {
    pub(super) async fn run(&self) -> Result<(), Error> {
        let deadline = now() + self.converged;
        let mut controller = self.controller.connect().await?;
        converge::wait(&mut controller, None, self.converged).await?;
        // What a node has acknowledged is as it was when it was last heard.
        loop {
            let page = async |after| {
                let answer = controller.list_nodes(v1::ListNodesRequest { after }).await?.into_inner();
                Ok::<_, Error>((answer.nodes, answer.more))
            };
            let nodes: Vec<v1::Node> = pages(page, |node: &v1::Node| &node.name).await?;
            let silent: Vec<String> = nodes.iter().filter_map(silence).collect();
            if silent.is_empty() {
                return Ok(());
            }
            if now() >= deadline {
                return Err(Error::Failed(silent.join("\n")));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// That a node of a mesh is not heard of, in words.
fn silence(node: &v1::Node) -> Option<String> {
    let is_silent = matches!(node.health(), Health::Stale | Health::Offline) && !node.meshes.is_empty();
    is_silent.then(|| match &node.last_heard {
        Some(ago) => format!(
            "{}: it was last heard of {} ago: what it has now is not known",
            node.name,
            span(convert::span(ago))
        ),
        None => format!("{}: it has not been heard of since the controller's start", node.name),
    })
}
