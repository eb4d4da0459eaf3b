//! Whether a peer is there that sends no probes: by what it answers to ICMP echoes through the tunnel, by what else comes from
//! it, and by how old the keys are that it has agreed on.
//!
//! An answer tells of both directions, its absence of neither in particular: a peer may be set up to answer none, and one that
//! has never answered is not taken to be gone for that.

use std::time::Duration;

use super::figures::RoundTrip;
use super::liveness::Transition;
use crate::proto::model::{LinkState, Why};

/// How often the peer is asked.
const INTERVAL: Duration = Duration::from_secs(5);
/// After how long a silence it is taken to be out of reach: the last of three questions has a second to be answered.
const DETECTION: Duration = Duration::from_secs(16);
/// For how long keys are used (REJECT_AFTER_TIME, section 6.1 of the paper on WireGuard): what can still agree on some does so
/// before.
const KEYS: Duration = Duration::from_secs(180);

/// What an end without probes knows of the other one. Times are since boot.
#[derive(Debug, Clone)]
pub struct Echo {
    /// The last question, while it is not answered: its number, and when it was asked.
    asked: Option<(u16, Duration)>,
    sequence: u16,
    answered_at: Option<Duration>,
    /// When a packet came last.
    heard_at: Option<Duration>,
    /// When the keys were agreed on by which packets go; absent: there are none, or it is not encrypted.
    keyed_at: Option<Duration>,
    is_encrypted: bool,
    state: LinkState,
    why: Why,
    since: Duration,
    changes: u32,
    due: Duration,
    round_trip: Option<RoundTrip>,
}

impl Echo {
    /// One of which nothing has been heard. `seed` spreads the questions of many ends over time.
    pub fn new(is_encrypted: bool, seed: u64, now: Duration) -> Self {
        let spread = u32::try_from(seed % 1024).unwrap_or(0);
        Self {
            asked: None,
            sequence: 0,
            answered_at: None,
            heard_at: None,
            keyed_at: None,
            is_encrypted,
            state: LinkState::Down,
            why: Why::Never,
            since: now,
            changes: 0,
            due: now + INTERVAL * spread / 1024 / 5,
            round_trip: None,
        }
    }

    /// Whether its state says anything: of a peer whose packets are not encrypted nothing is known before it answers.
    pub fn is_known(&self) -> bool {
        self.is_encrypted || self.answered_at.is_some()
    }

    /// The peer has answered a question. Nothing is said by an answer to one that was not the last.
    pub fn handle_answer(&mut self, sequence: u16, now: Duration) -> Option<Transition> {
        let (_, asked_at) = self.asked.take_if(|(asked, _)| *asked == sequence)?;
        self.answered_at = Some(now);
        self.round_trip = Some(RoundTrip::next(self.round_trip, now.saturating_sub(asked_at)));
        self.look(now)
    }

    /// A packet of the peer came at a time that may have passed, and the keys by which packets go are from `keyed_at`. With new
    /// ones it is asked at once: what was asked before may have found none.
    pub fn handle_signs(&mut self, heard_at: Option<Duration>, keyed_at: Option<Duration>, now: Duration) {
        self.heard_at = self.heard_at.max(heard_at);
        if keyed_at.is_some() && keyed_at > self.keyed_at && self.answered_at < keyed_at {
            self.due = self.due.min(now);
        }
        self.keyed_at = keyed_at.or(self.keyed_at);
    }

    /// When it is to be polled next.
    pub fn poll_at(&self) -> Duration {
        let lapse = match self.why {
            Why::Heard => self.answered_at.map(|at| at + DETECTION),
            Why::Keyed => self.keyed_at.map(|at| at + KEYS),
            Why::Unanswered => self.heard_at.map(|at| at + DETECTION),
            Why::Never | Why::Silent | Why::Wordless | Why::NotHeard | Why::Left | Why::Leaving => None,
        };
        lapse.map_or(self.due, |lapse| lapse.min(self.due))
    }

    /// What is due: how the state has changed, and the number of a question that is to be sent.
    pub fn poll(&mut self, now: Duration) -> (Option<Transition>, Option<u16>) {
        let transition = self.look(now);
        if now < self.due {
            return (transition, None);
        }
        self.sequence = self.sequence.wrapping_add(1);
        self.asked = Some((self.sequence, now));
        self.due = now + INTERVAL;
        (transition, Some(self.sequence))
    }

    /// The state, since when it is so, and why.
    pub fn state(&self) -> (LinkState, Duration, Why) {
        (self.state, self.since, self.why)
    }

    /// After how long a silence the peer is taken to be out of reach.
    pub fn detection_time(&self) -> Duration {
        if self.why == Why::Keyed { KEYS } else { DETECTION }
    }

    /// How often the state has changed.
    pub fn changes(&self) -> u32 {
        self.changes
    }

    /// When it last answered.
    pub fn last_heard(&self) -> Option<Duration> {
        self.answered_at
    }

    /// How long an answer takes.
    pub fn round_trip(&self) -> Option<RoundTrip> {
        self.round_trip
    }

    fn judge(&self, now: Duration) -> (LinkState, Why) {
        let is_recent = |at: Option<Duration>, time| at.is_some_and(|at| now < at + time);
        let has_answered = self.answered_at.is_some();
        if is_recent(self.answered_at, DETECTION) {
            return (LinkState::Up, Why::Heard);
        }
        // Keys that were agreed on while it answered show nothing of what came then.
        let are_later =
            self.answered_at.is_none_or(|at| self.keyed_at.is_some_and(|keyed| keyed > at + DETECTION));
        if are_later && is_recent(self.keyed_at, KEYS) {
            return (LinkState::Up, Why::Keyed);
        }
        if has_answered && is_recent(self.heard_at, DETECTION) {
            return (LinkState::Init, Why::Unanswered);
        }
        let is_new = !has_answered && self.keyed_at.is_none();
        (LinkState::Down, if is_new { Why::Never } else { Why::Silent })
    }

    fn look(&mut self, now: Duration) -> Option<Transition> {
        let (to, why) = self.judge(now);
        let from = self.state;
        (self.state, self.why) = (to, why);
        if from == to {
            return None;
        }
        (self.since, self.changes) = (now, self.changes.saturating_add(1));
        Some(Transition { from, to, why })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Runs an end from `from` to `to`; `answers` says whether what is asked at a time is answered, 20 ms later.
    fn run(echo: &mut Echo, from: Duration, to: Duration, answers: impl Fn(Duration) -> bool) {
        let mut now = from;
        while now < to {
            if let (_, Some(sequence)) = echo.poll(now)
                && answers(now)
            {
                echo.handle_answer(sequence, now + Duration::from_millis(20));
            }
            now += Duration::from_millis(100);
        }
    }

    #[test]
    fn it_is_up_while_it_answers_and_down_within_the_detection_time() {
        let mut echo = Echo::new(false, 0, seconds(0));
        assert!(!echo.is_known());
        run(&mut echo, seconds(0), seconds(60), |now| now < seconds(30));
        assert!(echo.is_known());
        let (state, since, why) = echo.state();
        assert_eq!((state, why), (LinkState::Down, Why::Silent));
        assert!(since > seconds(30) && since <= seconds(30) + DETECTION, "{since:?}");
        assert_eq!(echo.round_trip().unwrap().mean, Duration::from_millis(20));
        run(&mut echo, seconds(60), seconds(66), |_| true);
        assert_eq!((echo.state().0, echo.changes()), (LinkState::Up, 3));
    }

    #[test]
    fn it_is_looked_at_when_its_state_may_lapse() {
        let mut echo = Echo::new(false, 0, seconds(0));
        run(&mut echo, seconds(0), seconds(1), |_| true);
        let mut now = seconds(1);
        while echo.state().0 == LinkState::Up {
            now = echo.poll_at();
            echo.poll(now);
        }
        assert_eq!(now, DETECTION + Duration::from_millis(20));
    }

    #[test]
    fn who_answers_no_more_but_sends_is_heard() {
        let mut echo = Echo::new(false, 0, seconds(0));
        run(&mut echo, seconds(0), seconds(10), |_| true);
        for second in 10..60 {
            echo.handle_signs(Some(seconds(second)), None, seconds(second));
            run(&mut echo, seconds(second), seconds(second + 1), |_| false);
        }
        assert_eq!((echo.state().0, echo.state().2), (LinkState::Init, Why::Unanswered));
    }

    #[test]
    fn who_never_answers_is_known_by_its_keys() {
        let mut plain = Echo::new(false, 0, seconds(0));
        run(&mut plain, seconds(0), seconds(600), |_| false);
        assert!(!plain.is_known(), "it may answer nobody");
        let mut sealed = Echo::new(true, 0, seconds(0));
        run(&mut sealed, seconds(0), seconds(10), |_| false);
        assert_eq!((sealed.is_known(), sealed.state().2), (true, Why::Never));
        sealed.handle_signs(None, Some(seconds(10)), seconds(10));
        run(&mut sealed, seconds(10), seconds(189), |_| false);
        assert_eq!(
            (sealed.state().0, sealed.state().2, sealed.detection_time()),
            (LinkState::Up, Why::Keyed, KEYS)
        );
        run(&mut sealed, seconds(189), seconds(191), |_| false);
        assert_eq!((sealed.state().0, sealed.state().2), (LinkState::Down, Why::Silent));
    }

    #[test]
    fn with_new_keys_it_is_asked_at_once() {
        let mut echo = Echo::new(true, 0, seconds(0));
        assert!(echo.poll(seconds(0)).1.is_some());
        echo.handle_signs(None, Some(seconds(1)), seconds(1));
        let (_, asked) = echo.poll(seconds(1));
        echo.handle_answer(asked.expect("it is asked"), seconds(1));
        echo.handle_signs(None, Some(seconds(1)), seconds(2));
        assert_eq!(echo.poll(seconds(2)).1, None, "they are new no more");
    }

    #[test]
    fn keys_that_are_older_than_the_last_answer_are_no_sign() {
        let mut echo = Echo::new(true, 0, seconds(0));
        run(&mut echo, seconds(0), seconds(100), |_| true);
        echo.handle_signs(None, Some(seconds(99)), seconds(100));
        run(&mut echo, seconds(100), seconds(117), |_| false);
        assert_eq!(echo.state().0, LinkState::Down);
        echo.handle_signs(None, Some(seconds(130)), seconds(130));
        run(&mut echo, seconds(130), seconds(131), |_| false);
        assert_eq!(echo.state().2, Why::Keyed, "it has begun to answer none");
    }

    proptest! {
        /// What is asked goes in the rhythm, whatever comes.
        #[test]
        fn it_asks_every_five_seconds(looks in prop::collection::vec(1_u64..5000, 1..200), seed in any::<u64>()) {
            let (mut echo, mut now, mut asked) = (Echo::new(true, seed, Duration::ZERO), Duration::ZERO, Vec::new());
            for look in looks {
                now += Duration::from_millis(look);
                if echo.poll(now).1.is_some() {
                    asked.push(now);
                }
                prop_assert!(echo.poll_at() <= now + INTERVAL);
            }
            prop_assert!(asked.windows(2).all(|pair| pair[1] - pair[0] >= INTERVAL));
        }

        /// Answers that are none, or come again, say nothing.
        #[test]
        fn only_the_answer_to_the_last_question_counts(sequences in prop::collection::vec(any::<u16>(), 0..50)) {
            let mut echo = Echo::new(false, 0, Duration::ZERO);
            let (_, asked) = echo.poll(Duration::ZERO);
            for sequence in sequences {
                let before = echo.is_known();
                echo.handle_answer(sequence, seconds(1));
                prop_assert_eq!(echo.is_known(), before || Some(sequence) == asked);
            }
        }
    }
}
