//! Waits until every node has what is wanted, and shows how far they are.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tonic::Status;
use tonic::transport::Channel;

use super::Error;
use super::operations::{count_nodes, problem};
use crate::proto::v1;
use crate::proto::v1::mesh_admin_client::MeshAdminClient;
use crate::proto::words::span;

/// More names than this tell nobody more.
const NAMED: usize = 20;

/// Waits at most `limit` until every node has `generation`.
///
/// # Errors
/// Who lags and why, and which tunnels cannot be had.
pub(super) async fn wait(
    controller: &mut MeshAdminClient<Channel>,
    generation: Option<v1::Generation>,
    limit: Duration,
) -> Result<(), Error> {
    let mut progress = Progress::default();
    let mut last = v1::Convergence::default();
    let watch = async {
        let request = v1::WatchConvergenceRequest { generation };
        let mut stream = controller.watch_convergence(request).await?.into_inner();
        while let Some(convergence) = stream.message().await? {
            progress.show(&convergence);
            last = convergence;
        }
        Ok::<(), Status>(())
    };
    let watched = tokio::time::timeout(limit, watch).await;
    progress.end(&last);
    let why = match watched {
        Ok(ended) => {
            ended?;
            "the controller ended".to_owned()
        }
        Err(_) => format!("{} are over", span(limit)),
    };
    verdict(&last, &why).map_err(Error::Failed)
}

/// How far the nodes are, in words.
fn words(convergence: &v1::Convergence) -> String {
    format!("up to date: {} of {}", convergence.converged, count_nodes(convergence.nodes as usize))
}

/// Whether all nodes have all; otherwise what is missing, a line each. `why` says what ended the wait.
fn verdict(last: &v1::Convergence, why: &str) -> Result<(), String> {
    let is_late = last.converged < last.nodes;
    if !is_late && last.failures.is_empty() {
        return Ok(());
    }
    let mut lines = Vec::new();
    if is_late {
        lines.push(format!("{why}, {}", words(last)));
        lines.extend(named(&last.lagging, last.more_lagging));
    }
    if !last.failures.is_empty() {
        lines.push("not all that is wanted can be had:".to_owned());
        lines.extend(named(&last.failures, last.more_failures));
    }
    Err(lines.join("\n"))
}

/// Some of `problems`, of which there are `more` that were not told; a line each.
fn named(problems: &[v1::Problem], more: u32) -> Vec<String> {
    let mut lines: Vec<_> = problems.iter().take(NAMED).map(problem).collect();
    let more = problems.len() - lines.len() + more as usize;
    if more > 0 {
        lines.push(format!("and {more} more: `controller status` has all"));
    }
    lines
}

/// Progress on stderr: a bar for people, otherwise a line at the start and one at the end.
#[derive(Debug, Default)]
struct Progress {
    bar: Option<ProgressBar>,
    begun: bool,
}

impl Progress {
    fn show(&mut self, convergence: &v1::Convergence) {
        if !self.begun {
            self.begun = true;
            if io::stderr().is_terminal() {
                let bar = ProgressBar::new(convergence.nodes.into());
                if let Ok(style) =
                    ProgressStyle::with_template("{bar:30} up to date: {pos} of {len} nodes, {elapsed}")
                {
                    bar.set_style(style);
                }
                self.bar = Some(bar);
            } else {
                say(&format!("waiting for {}", count_nodes(convergence.nodes as usize)));
            }
        }
        if let Some(bar) = &self.bar {
            bar.set_length(convergence.nodes.into());
            bar.set_position(convergence.converged.into());
        }
    }

    fn end(&self, last: &v1::Convergence) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if last.converged == last.nodes {
            say(&words(last));
        }
    }
}

/// A line on stderr; where that is gone, nobody looks.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(count: usize) -> Vec<v1::Problem> {
        (0..count)
            .map(|n| v1::Problem { node: format!("n{n}"), item: None, message: "offline".to_owned() })
            .collect()
    }

    #[test]
    fn names_who_lags_and_what_cannot_be_had() {
        let mut last = v1::Convergence { nodes: 3, converged: 3, ..Default::default() };
        assert_eq!(verdict(&last, "30 s are over"), Ok(()));
        last.failures = problems(1);
        assert_eq!(
            verdict(&last, "30 s are over").unwrap_err(),
            "not all that is wanted can be had:\nn0: offline"
        );
        last.failures.clear();
        last.converged = 2;
        last.lagging = problems(NAMED + 2);
        last.more_lagging = 3;
        let words = verdict(&last, "30 s are over").unwrap_err();
        assert!(words.starts_with("30 s are over, up to date: 2 of 3 nodes\nn0: "), "{words}");
        assert!(words.ends_with("and 5 more: `controller status` has all"), "{words}");
    }
}
