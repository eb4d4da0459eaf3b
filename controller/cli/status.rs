//! `controller status`.

use super::operations::problem;
use super::{AskArgs, Error};
use crate::proto::host::output::columns;
use crate::proto::host::words::age;
use crate::proto::session::Generation;
use crate::proto::v1;
use crate::proto::words::span;

/// Show the controller as a whole, and what is wrong by node
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    ask: AskArgs,
}

impl Args {
    pub(super) async fn run(&self) -> Result<(), Error> {
        let request = v1::GetControllerStatusRequest {};
        let answer = self.ask.connect().await?.get_controller_status(request).await?.into_inner();
        self.ask.write(&answer, table)
    }
}

fn table(status: &v1::GetControllerStatusResponse) -> String {
    let generation = Generation::from(status.generation.unwrap_or_default());
    let started = status.started.as_ref();
    let mut rows = vec![
        ("version", status.version.clone()),
        ("running for", started.map_or_else(String::new, |started| span(age(started)))),
        ("listening on", status.listen.join(", ")),
        ("store", format!("{} ({})", status.store, status.store_id)),
        ("generation", generation.to_string()),
        ("meshes", status.meshes.to_string()),
        ("nodes", format!("{} live, {} stale, {} offline", status.live, status.stale, status.offline)),
        ("up to date", status.converged.to_string()),
    ];
    let links = match (status.link_ends, status.link_ends_up) {
        (0, _) => None,
        (ends, up) if ends == up => Some(format!("all of {ends} ends are up")),
        (ends, up) => Some(format!("{up} of {ends} ends are up: see `controller links`")),
    };
    rows.extend(links.map(|links| ("links", links)));
    rows.extend(status.problems.iter().map(|entry| ("problem", problem(entry))));
    if status.more_problems > 0 {
        rows.push(("problem", format!("and {} more", status.more_problems)));
    }
    rows.extend(status.findings.iter().map(|words| ("problem", words.clone())));
    rows.extend(status.waiting.iter().map(|host| {
        let v1::WaitingHost { node, source, code, has_joined, .. } = host;
        let approve = format!("`controller node approve {node} CODE`");
        let words = match has_joined {
            false => format!("{node} at {source}, code {code}: compare, then {approve}"),
            true => format!(
                "{node} at {source}, code {code}: a host of that name has joined, with another key; if this one is to be \
                 it now, compare, then `controller node remove {node}` and {approve}"
            ),
        };
        ("asks to join", words)
    }));
    if status.more_waiting > 0 {
        rows.push(("asks to join", format!("and {} more", status.more_waiting)));
    }
    rows.extend(status.weakened.iter().map(|words| ("weakened", words.clone())));
    columns(&[], rows.into_iter().map(|(name, words)| vec![name.to_owned(), words]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_name_the_node_and_the_tunnel() {
        let tunnel = v1::ItemId { id: Some(v1::item_id::Id::Tunnel("prod.minion-1".to_owned())) };
        let text = table(&v1::GetControllerStatusResponse {
            live: 2,
            offline: 1,
            problems: vec![v1::Problem {
                node: "minion-2".to_owned(),
                item: Some(tunnel),
                message: "no route".to_owned(),
            }],
            more_problems: 12,
            weakened: vec!["--insecure: plain text".to_owned()],
            listen: vec!["0.0.0.0:7443".to_owned(), "[::]:7443".to_owned()],
            store: "/var/lib/tunmesh-controller".to_owned(),
            store_id: "s1".to_owned(),
            meshes: 4,
            converged: 7,
            link_ends: 6,
            link_ends_up: 5,
            waiting: [("minion-9", false), ("minion-8", true)]
                .map(|(node, has_joined)| v1::WaitingHost {
                    node: node.to_owned(),
                    source: "172.100.1.9".to_owned(),
                    code: "7K3M-92QD".to_owned(),
                    waits: None,
                    has_joined,
                })
                .into(),
            more_waiting: 3,
            findings: vec!["the root's key is elsewhere".to_owned()],
            ..Default::default()
        });
        let rows: Vec<Vec<&str>> =
            text.lines().map(|line| line.splitn(2, "  ").map(str::trim).collect()).collect();
        for row in [
            ["listening on", "0.0.0.0:7443, [::]:7443"],
            ["store", "/var/lib/tunmesh-controller (s1)"],
            ["meshes", "4"],
            ["up to date", "7"],
            ["links", "5 of 6 ends are up: see `controller links`"],
        ] {
            assert!(rows.iter().any(|other| other[..] == row), "{row:?}: {text}");
        }
        for words in [
            "2 live, 0 stale, 1 offline",
            "minion-2: tunnel prod.minion-1: no route",
            "and 12 more",
            "minion-9 at 172.100.1.9, code 7K3M-92QD: compare, then `controller node approve minion-9 CODE`",
            "then `controller node remove minion-8` and `controller node approve minion-8 CODE`",
            "and 3 more",
            "--insecure",
            "the root's key is elsewhere",
        ] {
            assert!(text.contains(words), "{text}");
        }
    }
}
