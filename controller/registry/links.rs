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

    #[cfg(test)]
    pub(crate) fn by_tunnel_mut(&mut self, tunnel: &TunnelName) -> &mut KnownLink {
        self.by_tunnel.get_mut(tunnel).unwrap()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::host::clock::now;

    fn states(number: u32, state: LinkState, why: Why, changes: u32) -> LinkStates {
        let report = LinkReport {
            state,
            why,
            since: Duration::ZERO,
            last_heard: None,
            detection_time: None,
            changes,
            unsent: String::new(),
            carries: None,
            loses: None,
        };
        let number = NonZeroU32::new(number).unwrap();
        LinkStates { links: [("t".parse().unwrap(), (number, report))].into(), ..LinkStates::default() }
    }

    #[test]
    fn numbers_that_are_given_anew_are_not_kept() {
        let (mut links, now) = (Links::default(), now());
        for number in 1..1_000 {
            links.handle_states(states(number, LinkState::Up, Why::Heard, 1), now);
        }
        assert_eq!((links.by_tunnel.len(), links.by_number.len()), (1, 1));
        links.handle_figures([(NonZeroU32::MIN, LinkFigures::default())].into(), now);
        assert!(links.by_tunnel.values().all(|link| link.figures.is_none()), "it is nobody's any more");
    }

    #[test]
    fn an_event_is_told_of_what_failed_and_healed_and_not_of_who_went() {
        let (mut links, now) = (Links::default(), now());
        let mut told = |state, why, changes| links.handle_states(states(1, state, why, changes), now).len();
        assert_eq!(told(LinkState::Down, Why::Never, 0), 0, "it has never been up");
        assert_eq!(told(LinkState::Up, Why::Heard, 2), 0, "nothing was told of it");
        assert_eq!(told(LinkState::Down, Why::Silent, 3), 1);
        assert_eq!(told(LinkState::Up, Why::Heard, 5), 1);
        assert_eq!(told(LinkState::AdminDown, Why::Left, 6), 0);
        assert_eq!(told(LinkState::Up, Why::Heard, 8), 0);
    }

    #[test]
    fn of_a_link_that_flaps_some_events_are_told_and_at_last_how_it_is() {
        let (mut links, now) = (Links::default(), now());
        let mut count = 0;
        for changes in 1..=41 {
            let (state, why) = match changes % 2 {
                0 => (LinkState::Up, Why::Heard),
                _ => (LinkState::Down, Why::Silent),
            };
            count += links.handle_states(states(1, state, why, changes + 2), now).len();
        }
        assert_eq!(count, 6);
        // The last event was of its being up again.
        let later = links.news(now + EVENTS.every * 2);
        assert_eq!(later.iter().map(|(_, report)| report.state).collect::<Vec<_>>(), [LinkState::Down]);
        assert!(links.news(now + EVENTS.every * 4).is_empty());
    }
}
