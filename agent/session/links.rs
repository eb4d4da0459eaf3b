//! What a controller is told of links.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use crate::proto::model::{LinkState, TunnelName, Why};
use crate::proto::rate::{Bucket, Rate};
use crate::proto::session::{AgentMessage, LinkFigures, LinkReport, LinkStates};

/// How often figures are told.
const FIGURES: Duration = Duration::from_secs(15);
/// How often the changes of one link are.
const CHANGES: Rate = Rate { burst: 3, every: Duration::from_secs(1) };

/// A link as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkView {
    /// What this end tells of it.
    pub report: LinkReport,
    /// How well both ends hear each other; absent: the other end tells that.
    pub figures: Option<LinkFigures>,
}

/// What the controller of a session knows of the links.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// As they were told last; `None`: not yet.
    told: Option<BTreeMap<TunnelName, Told>>,
    /// The number that was given last.
    number: u32,
    /// When figures are due.
    figures_at: Option<Instant>,
    /// When a change is due that was held back.
    held_until: Option<Instant>,
}

/// A link as it was told last.
#[derive(Debug)]
struct Told {
    number: NonZeroU32,
    shown: Shown,
    changes: Bucket,
}

/// What is told at once when it changes.
#[derive(Debug)]
struct Shown {
    state: LinkState,
    why: Why,
    detection_time: Option<Duration>,
    changes: u32,
    unsent: String,
    carries: Option<u16>,
    loses: Option<u16>,
}

impl PartialEq for Shown {
    /// Detection times are the same where they are close: with each link that comes all grow a little.
    fn eq(&self, other: &Self) -> bool {
        let Self { state, why, detection_time, changes, unsent, carries, loses } = self;
        let times = [*detection_time, other.detection_time].map(Option::unwrap_or_default);
        (state, why, changes, unsent, carries, loses)
            == (&other.state, &other.why, &other.changes, &other.unsent, &other.carries, &other.loses)
            && times[0].abs_diff(times[1]) * 8 <= times[0]
    }
}

impl Shown {
    fn of(report: &LinkReport) -> Self {
        Self {
            state: report.state,
            why: report.why,
            detection_time: report.detection_time,
            changes: report.changes,
            unsent: report.unsent.clone(),
            carries: report.carries,
            loses: report.loses,
        }
    }
}

impl Links {
    /// When something is to be told, whether or not anything changes until then; `None`: nothing is.
    pub(super) fn due(&self) -> Option<Instant> {
        [self.figures_at, self.held_until].into_iter().flatten().min()
    }

    /// What is to be said when the links are `now`.
    pub(super) fn next(&mut self, links: &BTreeMap<TunnelName, LinkView>, now: Instant) -> Vec<AgentMessage> {
        let states = self.states(links, now);
        let figures = self.figures(links, now);
        let states = states.map(AgentMessage::LinkStates);
        states.into_iter().chain(figures.map(AgentMessage::LinkFigures)).collect()
    }

    fn states(&mut self, links: &BTreeMap<TunnelName, LinkView>, now: Instant) -> Option<LinkStates> {
        let whole = self.told.is_none();
        let told = self.told.get_or_insert_default();
        let gone: BTreeSet<_> = told.keys().filter(|name| !links.contains_key(*name)).cloned().collect();
        told.retain(|name, _| links.contains_key(name));
        let mut news = BTreeMap::new();
        self.held_until = None;
        for (name, link) in links {
            let shown = Shown::of(&link.report);
            let number = match told.get_mut(name) {
                Some(known) if known.shown == shown => continue,
                Some(known) => {
                    if let Err(again) = known.changes.take(CHANGES, now) {
                        let held = self.held_until.get_or_insert(again);
                        *held = again.min(*held);
                        continue;
                    }
                    known.shown = shown;
                    known.number
                }
                None => {
                    self.number += 1;
                    let number = NonZeroU32::new(self.number)?;
                    told.insert(name.clone(), Told { number, shown, changes: Bucket::default() });
                    number
                }
            };
            news.insert(name.clone(), (number, link.report.clone()));
        }
        let states = LinkStates { links: news, gone, whole };
        (whole || states != LinkStates::default()).then_some(states)
    }

    fn figures(
        &mut self,
        links: &BTreeMap<TunnelName, LinkView>,
        now: Instant,
    ) -> Option<BTreeMap<NonZeroU32, LinkFigures>> {
        if self.figures_at.is_some_and(|at| now < at) {
            return None;
        }
        let told = self.told.as_ref()?;
        self.figures_at = Some(now + FIGURES);
        let figures = links.iter().filter_map(|(name, link)| Some((told.get(name)?.number, link.figures?)));
        let figures: BTreeMap<_, _> = figures.collect();
        (!figures.is_empty()).then_some(figures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::host::clock::now;

    fn link(state: LinkState, changes: u32, tells_figures: bool) -> LinkView {
        let report = LinkReport {
            state,
            why: if state == LinkState::Up { Why::Heard } else { Why::Silent },
            since: Duration::ZERO,
            last_heard: None,
            detection_time: None,
            changes,
            unsent: String::new(),
            carries: None,
            loses: None,
        };
        LinkView { report, figures: tells_figures.then(LinkFigures::default) }
    }

    fn links(of: &[(&str, LinkView)]) -> BTreeMap<TunnelName, LinkView> {
        of.iter().map(|(name, link)| (name.parse().unwrap(), link.clone())).collect()
    }

    fn states(messages: &[AgentMessage]) -> Option<&LinkStates> {
        messages.iter().find_map(|message| {
            let AgentMessage::LinkStates(states) = message else { return None };
            Some(states)
        })
    }

    fn has_figures(messages: &[AgentMessage]) -> bool {
        messages.iter().any(|message| matches!(message, AgentMessage::LinkFigures(_)))
    }

    #[test]
    fn all_is_told_first_then_what_changes() {
        let start = now();
        let mut reports = Links::default();
        let mut none = Links::default();
        let first = none.next(&BTreeMap::new(), start);
        assert!(states(&first).unwrap().whole, "that there are none is told, too");
        assert!(none.next(&BTreeMap::new(), start).is_empty());
        let both = links(&[("a", link(LinkState::Up, 1, true)), ("b", link(LinkState::Down, 0, false))]);
        let first = reports.next(&both, start);
        let whole = states(&first).unwrap();
        assert!(whole.whole && whole.links.len() == 2 && has_figures(&first), "{first:?}");
        assert!(reports.next(&both, start).is_empty());
        let one = links(&[("a", link(LinkState::Down, 2, true))]);
        let second = reports.next(&one, start);
        let change = states(&second).unwrap();
        assert_eq!((change.links.len(), change.gone.len(), change.whole), (1, 1, false));
        let number = |states: &LinkStates| states.links[&"a".parse().unwrap()].0;
        assert_eq!(number(change), number(whole), "it keeps its number");
        assert!(!has_figures(&second));
        let third = reports.next(&one, start + FIGURES);
        assert!(states(&third).is_none() && has_figures(&third));
    }

    #[test]
    fn of_a_link_that_flaps_the_last_state_is_told_once_a_second() {
        let start = now();
        let mut reports = Links::default();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let flap = |count: u32| {
            let state = if count.is_multiple_of(2) { LinkState::Up } else { LinkState::Down };
            links(&[("a", link(state, count, false))])
        };
        assert_eq!(reports.next(&flap(0), start).len(), 1);
        let mut told = Vec::new();
        for count in 1..=25_u32 {
            let now = at(u64::from(count) * 100);
            told.extend(reports.next(&flap(count), now).iter().map(|_| count));
        }
        assert_eq!(told, [1, 2, 3, 11, 21], "some at once, and then one a second");
        let due = reports.due().unwrap();
        assert_eq!(due, at(3_100));
        let last = reports.next(&flap(25), due);
        assert_eq!(states(&last).unwrap().links.len(), 1, "what was held back comes");
    }
}
