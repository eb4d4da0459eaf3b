//! Which of the places of a peer datagrams go to, where it has several.
//!
//! Each end decides for itself, by whether the link is up: where the peer says that it does not hear this end, what is
//! sent gets lost; where nothing is heard, it may. Both ends may have to find a place that works. An end that hears and
//! is not heard looks at the next place much sooner than one that hears nothing, so that of two that look for each other
//! one stays where it is long enough for the other to look everywhere.

use std::time::{Duration, Instant};

use crate::proto::model::{LinkState, Remotes};

/// How long a peer that is heard may not hear this end, until the next place is tried.
const UNHEARD: Duration = Duration::from_millis(1500);
/// How long a peer may be silent, until the next place is tried: to begin with, and then twice as long each time.
const SILENT: Duration = Duration::from_millis(2500);
/// The longest of these: more than a peer needs that has the most places to look at.
const LONGEST: Duration = Duration::from_secs(10);
const _: () = assert!(LONGEST.as_millis() > UNHEARD.as_millis() * Remotes::MOST as u128);

/// Which of several places of a peer is in use, by its position: the first is the preferred one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    position: usize,
    count: usize,
    link: Link,
    /// How many places were tried since the link was up.
    tries: u32,
}

/// What is known of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Unknown,
    Up,
    Down {
        state: LinkState,
        /// Since when it is not up or, where that is later, this place is in use.
        since: Instant,
        /// The same of a peer that is heard and does not hear.
        unheard_since: Option<Instant>,
    },
}

impl Choice {
    /// Of so many places, at least one; the one at `position` is in use, and nothing is known of it.
    pub fn new(position: usize, count: usize) -> Self {
        Self { position, count, link: Link::Unknown, tries: 0 }
    }

    /// The place in use.
    pub fn position(&self) -> usize {
        self.position
    }

    /// How the link is now.
    pub fn note(&mut self, state: LinkState, now: Instant) {
        let (since, unheard_since) = match (self.link, state) {
            (_, LinkState::Up) => {
                (self.link, self.tries) = (Link::Up, 0);
                return;
            }
            (Link::Down { since, unheard_since, .. }, _) => (since, unheard_since),
            (Link::Unknown | Link::Up, _) => (now, None),
        };
        let unheard_since = (state == LinkState::Init).then(|| unheard_since.unwrap_or(now));
        self.link = Link::Down { state, since, unheard_since };
    }

    /// Nothing is known of the link any more.
    pub fn forget(&mut self) {
        (self.link, self.tries) = (Link::Unknown, 0);
    }

    /// When the next place is to be tried; `None`: the link is up, or there is no other place.
    pub fn due(&self) -> Option<Instant> {
        let Link::Down { state, since, unheard_since } = self.link else { return None };
        let patience = match state {
            // It has said that it goes: no place is to blame.
            LinkState::AdminDown => LONGEST,
            LinkState::Down | LinkState::Init | LinkState::Up => {
                SILENT.saturating_mul(1 << self.tries.min(8)).min(LONGEST)
            }
        };
        let silent = since + patience;
        let due = unheard_since.map_or(silent, |since| silent.min(since + UNHEARD));
        (self.count > 1).then_some(due)
    }

    /// From `now` on the next place is in use.
    pub fn take_next(&mut self, now: Instant) {
        self.position = (self.position + 1) % self.count.max(1);
        self.tries = self.tries.saturating_add(1);
        if let Link::Down { since, unheard_since, .. } = &mut self.link {
            *since = now;
            *unheard_since = unheard_since.map(|_| now);
        }
    }

    /// Another place is in use: the name of one does not resolve, or a preferred one is fit.
    pub fn take(&mut self, position: usize) {
        self.position = position;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::host::clock;

    const STEP: Duration = Duration::from_millis(50);
    /// How often an end sends that hears something, and one that does not; a silence is noticed after four times as long.
    const FAST: Duration = Duration::from_millis(200);
    const SLOW: Duration = Duration::from_secs(1);

    /// What one end says.
    #[derive(Clone, Copy)]
    struct Word {
        at: Instant,
        state: LinkState,
        interval: Duration,
    }

    /// One of two ends, and which of the other's places lead to that.
    struct End {
        choice: Choice,
        leads: Vec<bool>,
        heard: Option<Word>,
        sent: Option<Word>,
        state: LinkState,
        moves: usize,
    }

    impl End {
        fn new(leads: &[bool]) -> Self {
            let choice = Choice::new(0, leads.len());
            let leads = leads.to_vec();
            Self { choice, leads, heard: None, sent: None, state: LinkState::Down, moves: 0 }
        }

        /// What it says now, if anything, and whether that comes through.
        fn speak(&mut self, now: Instant) -> Option<Word> {
            let interval = if self.state == LinkState::Down { SLOW } else { FAST };
            let is_due = |sent: Word| now >= sent.at + interval || sent.state != self.state;
            if !self.sent.is_none_or(is_due) {
                return None;
            }
            let word = Word { at: now, state: self.state, interval };
            self.sent = Some(word);
            self.leads[self.choice.position()].then_some(word)
        }

        fn judge(&mut self, now: Instant) {
            let is_heard = |heard: &Word| now < heard.at + heard.interval * 4;
            self.state = match self.heard.filter(is_heard).map(|heard| heard.state) {
                None => LinkState::Down,
                Some(LinkState::Init | LinkState::Up) => LinkState::Up,
                Some(LinkState::Down | LinkState::AdminDown) => LinkState::Init,
            };
            self.choice.note(self.state, now);
            if self.choice.due().is_some_and(|due| due <= now) {
                self.choice.take_next(now);
                self.moves += 1;
            }
        }
    }

    /// Lets time pass for two ends.
    fn run(ends: &mut [End; 2], from: Instant, steps: u32) -> Instant {
        let mut now = from;
        for _ in 0..steps {
            now += STEP;
            for n in [0, 1] {
                if let Some(word) = ends[n].speak(now) {
                    ends[1 - n].heard = Some(word);
                }
            }
            ends.iter_mut().for_each(|end| end.judge(now));
        }
        now
    }

    fn is_up(ends: &[End; 2]) -> bool {
        ends.iter().all(|end| end.state == LinkState::Up)
    }

    fn places() -> impl Strategy<Value = Vec<bool>> {
        let any = proptest::collection::vec(any::<bool>(), 1..=Remotes::MOST);
        any.prop_filter("one leads to it", |places| places.contains(&true))
    }

    proptest! {
        /// Whatever places lead to either, and whenever the other began to look.
        #[test]
        fn two_that_look_for_each_other_meet_and_stay(
            leads in [places(), places()], head_start in 0..200_u32,
        ) {
            let mut ends = leads.each_ref().map(|leads| End::new(leads));
            let now = clock::now();
            // Nobody hears the first meanwhile.
            let other = std::mem::replace(&mut ends[1].leads, vec![false; leads[1].len()]);
            let held = ends[1].choice.clone();
            let now = run(&mut ends, now, head_start);
            ends[1].leads = other;
            ends[1].choice = held;
            let now = run(&mut ends, now, 1_000);
            prop_assert!(is_up(&ends), "{leads:?}: {:?}", ends.each_ref().map(|end| end.choice.clone()));
            let moves = ends.each_ref().map(|end| end.moves);
            run(&mut ends, now, 1_000);
            prop_assert_eq!(ends.each_ref().map(|end| end.moves), moves, "they stay");
        }

        /// Both have two places, the second ones lead to them, and the first ones do no more.
        #[test]
        fn with_two_places_each_they_meet_within_five_seconds(before in 0..100_u32) {
            let mut ends = [End::new(&[true, true]), End::new(&[true, true])];
            let now = run(&mut ends, clock::now(), 20 + before);
            prop_assert!(is_up(&ends));
            ends.iter_mut().for_each(|end| end.leads[0] = false);
            run(&mut ends, now, 100);
            prop_assert!(is_up(&ends));
        }
    }

    #[test]
    fn where_one_direction_is_cut_the_end_moves_that_is_not_heard() {
        let mut ends = [End::new(&[true, true]), End::new(&[true, true])];
        let now = run(&mut ends, clock::now(), 40);
        ends[0].leads[0] = false;
        run(&mut ends, now, 200);
        assert!(is_up(&ends));
        assert_eq!(ends.each_ref().map(|end| end.choice.position()), [1, 0]);
    }

    #[test]
    fn who_says_that_it_goes_is_waited_for() {
        let start = clock::now();
        let mut choice = Choice::new(0, 2);
        choice.note(LinkState::AdminDown, start);
        assert_eq!(choice.due(), Some(start + LONGEST));
        choice.note(LinkState::Up, start);
        assert_eq!(choice.due(), None);
    }

    #[test]
    fn where_there_is_one_place_nothing_is_due() {
        let mut choice = Choice::new(0, 1);
        choice.note(LinkState::Down, clock::now());
        assert_eq!(choice.due(), None);
        choice.take_next(clock::now());
        assert_eq!(choice.position(), 0);
    }
}
