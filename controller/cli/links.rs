//! `controller links`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{AskArgs, Error};
use crate::proto::convert;
use crate::proto::host::output::{Format, columns, print};
use crate::proto::v1;
use crate::proto::v1::link_direction::Passage;
use crate::proto::v1::node_link::State;
use crate::proto::words::{fine, span};

/// How many nodes a matrix has at most: more are wider than a terminal.
const WIDEST: usize = 20;
/// How often a watch looks.
const LOOK: Duration = Duration::from_secs(1);

/// Show how the nodes of meshes hear each other, in each direction
///
/// Rows of the matrix send, columns receive: the round trip where what is sent arrives, with what is lost on the way there;
/// ok where only that is known; CUT where it does not arrive; ? where who could say has no session; - where nobody asks.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only this mesh
    #[arg(long, value_name = "MESH", default_value = "")]
    mesh: String,
    /// A line for each link instead of a matrix
    #[arg(long)]
    list: bool,
    /// Go on, once a second
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    ask: AskArgs,
}

impl Args {
    pub(super) async fn run(&self) -> Result<(), Error> {
        let mut controller = self.ask.connect().await?;
        loop {
            let mut all = v1::ListLinksResponse::default();
            loop {
                let request = v1::ListLinksRequest { after: all.after.clone(), mesh: self.mesh.clone() };
                let page = controller.list_links(request).await?.into_inner();
                all.links.extend(page.links);
                all.after = page.after;
                if all.after.is_empty() {
                    break;
                }
            }
            if !self.watch {
                return self.ask.write(&all, |all| self.table(all));
            }
            if !self.show(&all)? {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// One look of a watch. Returns whether somebody still reads.
    fn show(&self, all: &v1::ListLinksResponse) -> Result<bool, Error> {
        Ok(match self.ask.output {
            // Clears the screen and begins at its top (ECMA-48, ED and CUP).
            Format::Table => print(&format!("\x1b[2J\x1b[H{}", self.table(all)))?,
            // One line each, as of a stream.
            Format::Json => print(&serde_json::to_string(all).map_err(anyhow::Error::from)?)?,
            Format::Yaml => {
                print(&format!("---\n{}", serde_saphyr::to_string(all).map_err(anyhow::Error::from)?))?
            }
        })
    }

    fn table(&self, all: &v1::ListLinksResponse) -> String {
        if all.links.is_empty() {
            return "no links: no mesh has two nodes with an agent".to_owned();
        }
        if self.list {
            return format!("{}\n\n{}", list(&all.links), summary(&all.links));
        }
        let mut meshes: BTreeMap<&str, Vec<&v1::NodeLink>> = BTreeMap::new();
        all.links.iter().for_each(|link| meshes.entry(&link.mesh).or_default().push(link));
        let mut parts: Vec<String> = meshes.iter().filter_map(|(mesh, links)| matrix(mesh, links)).collect();
        let troubled: Vec<_> = all.links.iter().filter(|link| link.state() != State::Up).collect();
        parts.extend((!troubled.is_empty()).then(|| troubles(&troubled)));
        parts.push(summary(&all.links));
        parts.join("\n\n")
    }
}

/// How many links there are by state, and how old what is told of them is.
fn summary(links: &[v1::NodeLink]) -> String {
    let count = |state: State| links.iter().filter(|link| link.state() == state).count();
    let states = [State::Up, State::OneWay, State::Down, State::Unknown, State::NotProbed];
    let counts = states.map(|state| (count(state), word(state))).into_iter().filter(|(count, _)| *count > 0);
    let counts = counts.map(|(count, word)| format!("{count} {word}")).collect::<Vec<_>>().join(", ");
    let oldest = |ages: &mut dyn Iterator<Item = pbjson_types::Duration>| {
        ages.map(|age| convert::span(&age)).max().map(span)
    };
    let told = oldest(&mut links.iter().filter_map(|link| link.age));
    let told = told.map_or(String::new(), |age| format!("; told at most {age} ago"));
    // Of the others there are none since.
    let up = links.iter().filter(|link| link.state() == State::Up);
    let figures = oldest(&mut up.filter_map(|link| link.figures_age));
    let figures = figures.map_or(String::new(), |age| format!("; figures at most {age} old"));
    let links = if links.len() == 1 { "1 link".to_owned() } else { format!("{} links", links.len()) };
    format!("{links}: {counts}{told}{figures}")
}

fn word(state: State) -> &'static str {
    match state {
        State::Up => "up",
        State::OneWay => "ONE WAY",
        State::Down => "DOWN",
        State::Unknown => "unknown",
        State::NotProbed => "not probed",
        State::Unspecified => "of a kind that this release does not know",
    }
}

/// All nodes by all nodes; `None`: there are too many.
fn matrix(mesh: &str, links: &[&v1::NodeLink]) -> Option<String> {
    let nodes: BTreeSet<&str> = links.iter().flat_map(|link| [&*link.node, &*link.peer]).collect();
    if nodes.len() > WIDEST {
        return None;
    }
    let mut cells: BTreeMap<(&str, &str), String> = BTreeMap::new();
    for link in links {
        cells.insert((&link.node, &link.peer), cell(link, link.there.as_ref()));
        cells.insert((&link.peer, &link.node), cell(link, link.back.as_ref()));
    }
    let header: Vec<&str> = std::iter::once(mesh).chain(nodes.iter().copied()).collect();
    let rows = nodes.iter().map(|from| {
        let cells = nodes.iter().map(|to| {
            let cell = cells.get(&(*from, *to)).cloned();
            cell.unwrap_or_else(|| if from == to { "·".to_owned() } else { "-".to_owned() })
        });
        std::iter::once((*from).to_owned()).chain(cells).collect()
    });
    Some(columns(&header, rows))
}

fn cell(link: &v1::NodeLink, way: Option<&v1::LinkDirection>) -> String {
    if link.state() == State::NotProbed {
        return "-".to_owned();
    }
    match way.map_or(Passage::Unknown, v1::LinkDirection::passage) {
        Passage::Cut => "CUT".to_owned(),
        Passage::Unknown | Passage::Unspecified => "?".to_owned(),
        // The last round trip is none of a link that has become one-way.
        Passage::Heard if link.state() != State::Up => "ok".to_owned(),
        Passage::Heard => {
            let trip =
                link.round_trip.as_ref().map_or_else(|| "ok".to_owned(), |trip| fine(convert::span(trip)));
            let lost = way.and_then(|way| way.heard.as_ref()).filter(|heard| heard.lost > 0);
            lost.map_or_else(|| trip.clone(), |heard| format!("{trip} -{}", share(heard)))
        }
    }
}

/// How many of the latest probes were lost, in hundredths.
fn share(heard: &v1::Hearing) -> String {
    let thousandths = u64::from(heard.lost) * 1_000 / u64::from(heard.known.max(1));
    format!("{}.{} %", thousandths / 10, thousandths % 10)
}

fn age(age: Option<&pbjson_types::Duration>) -> String {
    age.map_or_else(|| "-".to_owned(), |age| span(convert::span(age)))
}

fn state(link: &v1::NodeLink) -> String {
    let since =
        link.since.as_ref().map_or_else(String::new, |since| format!(" {}", span(convert::span(since))));
    format!("{}{since}", word(link.state()))
}

/// The links that are not up.
fn troubles(links: &[&v1::NodeLink]) -> String {
    let rows = links.iter().map(|link| {
        vec![link.mesh.clone(), format!("{} - {}", link.node, link.peer), state(link), link.reason.clone()]
    });
    columns(&["mesh", "link", "state", "why"], rows)
}

fn list(links: &[v1::NodeLink]) -> String {
    let way = |way: Option<&v1::LinkDirection>| {
        let Some(heard) = way.and_then(|way| way.heard.as_ref()) else { return "-".to_owned() };
        let jitter = heard.jitter.as_ref().map(convert::span).unwrap_or_default();
        let late = if heard.reordered > 0 { format!(", {} late", heard.reordered) } else { String::new() };
        format!("{} of {} lost{late}, jitter {}", heard.lost, heard.known, fine(jitter))
    };
    let rows = links.iter().map(|link| {
        vec![
            link.mesh.clone(),
            link.node.clone(),
            link.peer.clone(),
            state(link),
            link.round_trip.as_ref().map_or_else(|| "-".to_owned(), |trip| fine(convert::span(trip))),
            way(link.there.as_ref()),
            way(link.back.as_ref()),
            age(link.figures_age.as_ref()),
            age(link.age.as_ref()),
            age_fine(link.detection_time.as_ref()),
            link.reason.clone(),
        ]
    });
    let header = [
        "mesh",
        "node",
        "peer",
        "state",
        "round trip",
        "there",
        "back",
        "figures",
        "told",
        "detection",
        "why",
    ];
    columns(&header, rows)
}

fn age_fine(time: Option<&pbjson_types::Duration>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| fine(convert::span(time)))
}
