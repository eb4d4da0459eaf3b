//! The links of a node as its agent has told them. Nothing of this is stored.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use crate::proto::model::{LinkState, TunnelName, Why};
use crate::proto::rate::{Bucket, Rate};
use crate::proto::session::{LinkFigures, LinkReport, LinkStates};

/// How many events there are of one link.
const EVENTS: Rate = Rate { burst: 6, every: Duration::from_secs(60) };

/// A link as one end has told it.
#[derive(Debug, Clone)]
pub struct KnownLink {
    /// What it told last.
    pub report: LinkReport,
    /// When.
    pub at: Instant,
    /// How well both ends hear each other, and when that was told; absent: the other end tells it, or nobody.
    pub figures: Option<(LinkFigures, Instant)>,
    number: NonZeroU32,
    /// The state of which there was an event last; up, where there was none.
    told: LinkState,
    events: Bucket,
}

/// All links of a node.
#[derive(Debug, Clone, Default)]
pub struct Links {
    by_tunnel: BTreeMap<TunnelName, KnownLink>,
    by_number: BTreeMap<NonZeroU32, TunnelName>,
    /// Whether there may be a link of which an event was withheld.
    is_withheld: bool,
}

impl Links {
    /// The link of a tunnel.
    pub fn get(&self, tunnel: &TunnelName) -> Option<&KnownLink> {
        self.by_tunnel.get(tunnel)
    }

    /// All of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&TunnelName, &KnownLink)> {
        self.by_tunnel.iter()
    }

    /// Takes in how links are. Returns those of which there is to be an event, as [`Self::news`].
    pub fn handle_states(&mut self, states: LinkStates, now: Instant) -> Vec<(TunnelName, LinkReport)> {
        if states.whole {
            self.by_number.clear();
            self.by_tunnel.retain(|tunnel, _| states.links.contains_key(tunnel));
        }
        for tunnel in &states.gone {
            if let Some(gone) = self.by_tunnel.remove(tunnel) {
                self.by_number.remove(&gone.number);
            }
        }
        for (tunnel, (number, report)) in states.links {
            let (told, events) = match self.by_tunnel.get(&tunnel) {
                Some(known) => (known.told, known.events),
                // A link that has never been up is not one that has failed.
                None => (LinkState::Up, Bucket::default()),
            };
            let figures = self.by_tunnel.get(&tunnel).and_then(|known| known.figures);
            if let Some(before) = self.by_tunnel.get(&tunnel) {
                self.by_number.remove(&before.number);
            }
            self.by_number.insert(number, tunnel.clone());
            let link = KnownLink { report, at: now, figures, number, told, events };
            self.is_withheld |= link.is_news();
            self.by_tunnel.insert(tunnel, link);
        }
        self.news(now)
    }

    /// Those of which there is to be an event now: of a link that changes all the time not every change is one.
    pub fn news(&mut self, now: Instant) -> Vec<(TunnelName, LinkReport)> {
        let mut news = Vec::new();
        if std::mem::take(&mut self.is_withheld) {
            for (tunnel, link) in self.by_tunnel.iter_mut().filter(|(_, link)| link.is_news()) {
                if link.events.take(EVENTS, now).is_ok() {
                    link.told = link.report.state;
                    news.push((tunnel.clone(), link.report.clone()));
                } else {
                    self.is_withheld = true;
                }
            }
        }
        news
    }

    /// Takes in how well the ends of links hear each other. Numbers that are no link's say nothing.
    pub fn handle_figures(&mut self, all: BTreeMap<NonZeroU32, LinkFigures>, now: Instant) {
        for (number, figures) in all {
            let link = self.by_number.get(&number).and_then(|tunnel| self.by_tunnel.get_mut(tunnel));
            if let Some(link) = link {
                link.figures = Some((figures, now));
            }
        }
    }
}

impl KnownLink {
    /// Whether it was up and is not, or is up again, and there was no event of that. That the other end has gone is an event of
    /// its node, and not of all others.
    fn is_news(&self) -> bool {
        if self.report.why == Why::Left {
            return false;
        }
        let state = self.report.state;
        // One that has never been up has not failed.
        let has_been_up = self.report.changes > 1;
        state != self.told && (state == LinkState::Up || has_been_up)
    }

    /// For how long it has been as it is.
    pub fn since(&self, now: Instant) -> Duration {
        self.report.since + now.saturating_duration_since(self.at)
    }
}
