//! `controller node`.

use super::apply::generation;
use super::{AskArgs, Error};
use crate::proto::model::parse_label;
use crate::proto::v1;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Let a host join that asks for it: type the code that its agent prints there
    Approve(ApproveArgs),
    /// Take a node out of every mesh, and its identity with it
    Remove(RemoveArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct ApproveArgs {
    /// The node
    node: String,
    /// The code that the agent prints on its own host
    code: String,
    /// What the node is to be, as role=web; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',', value_parser = parse_label)]
    label: Vec<(String, String)>,
    #[command(flatten)]
    ask: AskArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct RemoveArgs {
    /// The node
    node: String,
    /// Consent to the removal of more than half, and more than three, of another node's tunnels
    #[arg(long)]
    allow_removals: bool,
    #[command(flatten)]
    ask: AskArgs,
}

impl Command {
    pub(super) async fn run(&self) -> Result<(), Error> {
        match self {
            Self::Approve(args) => args.run().await,
            Self::Remove(args) => args.run().await,
        }
    }
}

impl ApproveArgs {
    async fn run(&self) -> Result<(), Error> {
        let request = v1::ApproveNodeRequest {
            node: self.node.clone(),
            code: self.code.clone(),
            labels: self.label.iter().cloned().collect(),
        };
        let answer = self.ask.connect().await?.approve_node(request).await?.into_inner();
        self.ask.write(&answer, |_| format!("node {} may join, and does when it asks again", self.node))
    }
}

impl RemoveArgs {
    async fn run(&self) -> Result<(), Error> {
        let request = v1::RemoveNodeRequest { node: self.node.clone(), allow_removals: self.allow_removals };
        let answer = self.ask.connect().await?.remove_node(request).await?.into_inner();
        self.ask.write(&answer, |answer| removed(&self.node, answer))
    }
}

fn removed(node: &str, answer: &v1::RemoveNodeResponse) -> String {
    let mut lines = vec![format!("node {node} is removed; {}", generation(answer.generation))];
    if answer.removals_held {
        lines.push(
            "no node drops its tunnel to it until the store can be read whole: see `controller status`"
                .to_owned(),
        );
    }
    let mut tell = |nodes: &[String], more: u32, words: &str| {
        let more = match more {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        if !nodes.is_empty() {
            lines.push(format!("{words}: {}{more}", nodes.join(", ")));
        }
    };
    let later = "these have no session now, and drop their tunnels to it when they come again";
    tell(&answer.later, answer.more_later, later);
    let by_hand = "these have no agent, and go on with it until their files are replaced by those of `controller export \
                   wireguard`";
    tell(&answer.wireguard, answer.more_wireguard, by_hand);
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_cannot_be_told_now_are_named() {
        let mut answer = v1::RemoveNodeResponse::default();
        assert_eq!(removed("web-1", &answer).lines().count(), 1);
        answer.removals_held = true;
        assert!(removed("web-1", &answer).contains("no node drops its tunnel to it until"));
        answer.later = vec!["web-2".to_owned(), "web-3".to_owned()];
        answer.more_later = 7;
        assert!(removed("web-1", &answer).ends_with("web-2, web-3 and 7 more"));
        answer.wireguard = vec!["phone".to_owned()];
        assert!(removed("web-1", &answer).ends_with("`controller export wireguard`: phone"));
    }
}
