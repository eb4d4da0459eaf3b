//! The largest packet that the path between two hosts carries, found by what arrives and not by what routers say (RFC 8899).
//!
//! What is in use is asked for again and again: a path that carries less than it did, and says so to nobody, is found by three
//! answers that fail to come while small packets pass, of which one was sent after the last question. Then the least that every
//! path should carry is used, and from there on larger ones are tried.

use std::ops::RangeInclusive;
use std::time::Duration;

/// What every path should carry of IPv6, and nearly every one does of IPv4, in bytes of an IP packet (RFC 8200 section 5).
const BASE: u16 = 1280;
/// What every host takes of IPv4, in bytes of a packet (RFC 791).
const LEAST_V4: u16 = 576;
/// How often one size is tried at least (RFC 8899 section 5.1.2, MAX_PROBES), and at most.
const TRIES: RangeInclusive<u8> = 3..=12;
/// How often what is in use is asked for while it is used, and while it is not.
const VERIFY: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(15);
/// Of so many sizes that do come through one may fail so often that it is taken not to.
const CERTAIN: f64 = 1e7;
/// How often more is tried than is in use (RFC 8899 section 5.1.1, PMTU_RAISE_TIMER).
const RAISE: Duration = Duration::from_secs(600);
/// Of two sizes that are so close the larger is not looked for.
const CLOSE: u16 = 4;
/// Sizes that paths have, which are tried before those between: tunnels over Ethernet, PPPoE, Ethernet, and large frames.
const USUAL: [u16; 9] = [1380, 1400, 1420, 1450, 1480, 1492, 1500, 4000, 9000];

/// What is to be asked: an IP packet of so many bytes, headers included, that brings back an answer with the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// Told back in the answer.
    pub number: u32,
    /// The length of the packet in bytes.
    pub size: u16,
}

/// What is known of the path beside the sizes that it carries.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conditions {
    /// Whether the other end hears this one and is heard: otherwise nothing follows from silence.
    pub is_up: bool,
    /// Whether packets have been sent since this was last said.
    pub is_used: bool,
    /// How long an answer is waited for.
    pub patience: Duration,
    /// Of all small datagrams, the share that is lost, 0 to 1.
    pub loss: f64,
    /// When the last small datagram was sent of which it is known that it arrived: without one after it a large one may have
    /// been lost with all others.
    pub passed_at: Option<Duration>,
}

impl Conditions {
    /// How often a size is tried before it is taken not to come through. A path that loses small datagrams loses large ones
    /// as often, and is not narrow for that.
    fn tries(&self) -> u8 {
        let needed = CERTAIN.ln() / -self.loss.clamp(1e-9, 0.9).ln();
        (needed.ceil() as u8).clamp(*TRIES.start(), *TRIES.end())
    }
}

/// What is in use is another now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// In bytes of an IP packet.
    pub to: u16,
    /// The size that the path loses without a word; absent: it was raised, or somebody said so.
    pub lost: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// What is in use is asked for.
    Holding,
    /// `low` arrives, and `high` does not.
    Searching { low: u16, high: u16 },
}

/// What is known of a path. Times are since boot.
#[derive(Debug, Clone)]
pub struct PathMtu {
    floor: u16,
    ceiling: u16,
    current: u16,
    is_verified: bool,
    phase: Phase,
    number: u32,
    /// The last question, and the number of the first of those about its size: an answer to any of them will do.
    asked: Option<Question>,
    asked_at: Duration,
    first: u32,
    tries: u8,
    due: Duration,
    /// When what is in use last came through, or began to be used.
    held_at: Duration,
    raise_at: Duration,
    /// The size that was last found to be lost without a word, while less is in use for that.
    lost: Option<u16>,
}

impl PathMtu {
    /// Of a path of which it is only known what the route carries, `ceiling` bytes. That is in use until it has failed.
    pub fn new(is_v4: bool, ceiling: u16, now: Duration) -> Self {
        let floor = if is_v4 { LEAST_V4 } else { BASE };
        let ceiling = ceiling.max(floor);
        Self {
            floor,
            ceiling,
            current: ceiling,
            is_verified: false,
            phase: Phase::Holding,
            number: 0,
            asked: None,
            asked_at: now,
            first: 0,
            tries: 0,
            due: now,
            held_at: now,
            raise_at: now + RAISE,
            lost: None,
        }
    }

    /// The largest packet in use, in bytes.
    pub fn current(&self) -> u16 {
        self.current
    }

    /// Whether a packet of that size has come through since it is in use.
    pub fn is_verified(&self) -> bool {
        self.is_verified
    }

    /// The least size that the path was found to lose without a word, while less is in use for that.
    pub fn lost(&self) -> Option<u16> {
        self.lost
    }

    /// The sizes that can be in use.
    pub fn range(&self) -> RangeInclusive<u16> {
        self.floor..=self.ceiling
    }

    /// The route, or a router, says that it carries so much.
    pub fn set_ceiling(&mut self, ceiling: u16, now: Duration) -> Option<Change> {
        let ceiling = ceiling.max(self.floor);
        let before = std::mem::replace(&mut self.ceiling, ceiling);
        if ceiling > before {
            self.raise_at = now;
        }
        self.lost = self.lost.filter(|lost| *lost <= ceiling);
        if ceiling >= self.current {
            return match self.phase {
                Phase::Searching { low, high } if ceiling < before => {
                    self.go_on(low.min(ceiling), high.min(ceiling.saturating_add(1)), now)
                }
                Phase::Searching { .. } | Phase::Holding => None,
            };
        }
        self.begin(Phase::Holding, now);
        self.change(ceiling, None)
    }

    /// When it is to be polled next.
    pub fn poll_at(&self) -> Duration {
        self.due
    }

    /// What is due: a change, and a question.
    pub fn poll(&mut self, conditions: Conditions, now: Duration) -> (Option<Change>, Option<Question>) {
        let Conditions { is_up, is_used, patience, .. } = conditions;
        if now < self.due {
            return (None, None);
        }
        if !is_up {
            (self.asked, self.tries, self.due) = (None, 0, now + VERIFY);
            return (None, None);
        }
        let change = match self.asked.take() {
            Some(question) if self.tries >= conditions.tries() => {
                if conditions.passed_at.is_none_or(|at| at < self.asked_at) {
                    (self.asked, self.due) = (Some(question), now + patience);
                    return (None, None);
                }
                self.fail(question.size, now)
            }
            Some(_) | None => None,
        };
        if now < self.due {
            return (change, None);
        }
        if self.phase == Phase::Holding && now >= self.raise_at && self.is_verified {
            self.raise_at = now + RAISE;
            if self.current < self.ceiling {
                let phase = Phase::Searching { low: self.current, high: self.ceiling.saturating_add(1) };
                self.begin(phase, now);
            }
        }
        let is_idle = self.phase == Phase::Holding && self.is_verified && self.tries == 0 && !is_used;
        if is_idle && now < self.held_at + IDLE {
            self.due = now + VERIFY;
            return (change, None);
        }
        let size = match self.phase {
            Phase::Holding => self.current,
            Phase::Searching { low, high } => candidate(low, high),
        };
        self.number = self.number.wrapping_add(1);
        if self.tries == 0 {
            self.first = self.number;
        }
        let question = Question { number: self.number, size };
        (self.asked, self.asked_at) = (Some(question), now);
        self.tries += 1;
        self.due = now + patience;
        (change, Some(question))
    }

    /// An answer has come.
    pub fn handle_answer(&mut self, number: u32, now: Duration) -> Option<Change> {
        let first = self.first;
        let is_one = |asked: &mut Question| number.wrapping_sub(first) <= asked.number.wrapping_sub(first);
        let question = self.asked.take_if(is_one)?;
        self.tries = 0;
        self.lost = self.lost.filter(|lost| *lost > question.size);
        match self.phase {
            Phase::Holding => {
                self.is_verified = true;
                (self.held_at, self.due) = (now, now + VERIFY);
                None
            }
            Phase::Searching { high, .. } => self.go_on(question.size, high, now),
        }
    }

    /// A size has failed as often as it is tried.
    fn fail(&mut self, size: u16, now: Duration) -> Option<Change> {
        self.lost = Some(self.lost.map_or(size, |known| known.min(size)));
        match self.phase {
            Phase::Holding if size <= self.floor => {
                // There is nothing less.
                self.begin(Phase::Holding, now + VERIFY);
                None
            }
            Phase::Holding => {
                let to = if size > BASE { BASE } else { self.floor };
                self.raise_at = now + RAISE;
                self.begin(Phase::Searching { low: self.floor.saturating_sub(1), high: size }, now);
                self.change(to, Some(size))
            }
            Phase::Searching { low, .. } => {
                let floor = self.floor;
                let change = if size <= self.current { self.change(floor, Some(size)) } else { None };
                self.go_on(low, size, now).or(change)
            }
        }
    }

    /// Goes on with a search in which `low` arrives and `high` does not, or ends it.
    fn go_on(&mut self, low: u16, high: u16, now: Duration) -> Option<Change> {
        if high.saturating_sub(low) > CLOSE {
            self.begin(Phase::Searching { low, high }, now);
            return None;
        }
        self.begin(Phase::Holding, now);
        self.change(low.max(self.floor), None)
    }

    fn begin(&mut self, phase: Phase, due: Duration) {
        (self.phase, self.asked, self.tries, self.due) = (phase, None, 0, due);
    }

    fn change(&mut self, to: u16, lost: Option<u16>) -> Option<Change> {
        if to == self.current {
            return None;
        }
        (self.current, self.is_verified) = (to, false);
        Some(Change { to, lost })
    }
}

/// The size that is tried where `low` arrives and `high` does not, or is not known to.
fn candidate(low: u16, high: u16) -> u16 {
    let least = std::iter::once(BASE).chain(USUAL).find(|size| *size > low && *size < high);
    least.unwrap_or(low + (high - low).div_ceil(2))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(200);
    const TRIP: Duration = Duration::from_millis(20);

    /// A path that loses what is larger than it carries, and says nothing.
    struct World {
        now: Duration,
        carries: u16,
        mtu: PathMtu,
        answers: Vec<(Duration, u32)>,
        changes: Vec<(Duration, Change)>,
        asked: usize,
        /// Of 1,000 so many are lost.
        loss: u32,
        is_used: bool,
        trip: Duration,
        /// Whether small datagrams arrive.
        passes: bool,
        random: u32,
    }

    impl World {
        fn new(is_v4: bool, carries: u16, ceiling: u16) -> Self {
            let now = Duration::from_secs(100);
            let mtu = PathMtu::new(is_v4, ceiling, now);
            Self {
                now,
                carries,
                mtu,
                answers: Vec::new(),
                changes: Vec::new(),
                asked: 0,
                loss: 0,
                is_used: true,
                trip: TRIP,
                passes: true,
                random: 1,
            }
        }

        fn run(&mut self, time: Duration, is_up: bool) {
            let end = self.now + time;
            loop {
                let answer = self.answers.first().copied().filter(|(at, _)| *at <= self.mtu.poll_at());
                let next = answer.map_or(self.mtu.poll_at(), |(at, _)| at).max(self.now);
                if next > end {
                    break;
                }
                self.now = next;
                let change = if let Some((_, number)) = answer {
                    self.answers.remove(0);
                    self.mtu.handle_answer(number, next)
                } else {
                    let loss = f64::from(self.loss) / 1_000.0;
                    let passed_at = self.passes.then_some(next);
                    let is_used = self.is_used;
                    let conditions = Conditions { is_up, is_used, patience: PATIENCE, loss, passed_at };
                    let (change, question) = self.mtu.poll(conditions, next);
                    if let Some(Question { number, size }) = question {
                        assert!(self.mtu.range().contains(&size), "{size}");
                        self.asked += 1;
                        self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        if size <= self.carries && (self.random >> 16) % 1_000 >= self.loss {
                            self.answers.push((next + self.trip, number));
                        }
                    }
                    change
                };
                self.changes.extend(change.map(|change| (next, change)));
            }
            self.now = end;
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    proptest! {
        #[test]
        fn what_the_path_carries_is_found(is_v4 in any::<bool>(), carries in 576..=9_500_u16, ceiling in 1_280..=9_000_u16) {
            let carries = if is_v4 { carries } else { carries.max(1_280) };
            let mut world = World::new(is_v4, carries, ceiling);
            let most = carries.min(ceiling);
            world.run(SECOND * 2, true);
            prop_assert!(world.mtu.current() <= most, "what is known to be lost is not in use");
            world.run(SECOND * 13, true);
            prop_assert!(world.mtu.current() <= most && world.mtu.current() + CLOSE > most, "{} {:?}", world.mtu.current(), world.changes);
            prop_assert!(world.mtu.is_verified());
            if carries >= ceiling {
                prop_assert!(world.changes.is_empty(), "what is true from the start never changes");
            }
            // Once a second.
            let asked = world.asked;
            world.run(SECOND * 20, true);
            prop_assert!(world.asked - asked <= 20);
        }

        #[test]
        fn a_path_that_carries_less_is_found_in_time(carries in 1_300..=1_500_u16, after in 2_000..4_000_u64) {
            let mut world = World::new(true, 1_500, 1_500);
            world.run(Duration::from_millis(after), true);
            world.carries = carries.min(1_499);
            world.run(SECOND * 2, true);
            prop_assert!(world.mtu.current() <= world.carries, "{:?}", world.changes);
            prop_assert_eq!(world.changes[0].1, Change { to: BASE, lost: Some(1_500) });
            world.run(SECOND * 8, true);
            prop_assert!(world.mtu.current() + CLOSE > world.carries, "{:?}", world.changes);
            let lost = world.mtu.lost().unwrap();
            prop_assert!(lost > world.carries && lost <= world.carries + CLOSE, "{} of {}", lost, world.carries);
            // When it carries more again that is found, too.
            world.carries = 1_500;
            world.run(RAISE + SECOND * 5, true);
            prop_assert_eq!((world.mtu.current(), world.mtu.lost()), (1_500, None));
        }

        #[test]
        fn what_is_in_use_stays_in_bounds(
            carries in prop::collection::vec(500..=9_100_u16, 1..5), ceilings in prop::collection::vec(500..=9_100_u16, 1..5),
            loss in 0..500_u32, is_v4 in any::<bool>(), time in 1..3_000_u64,
        ) {
            let mut world = World::new(is_v4, carries[0], ceilings[0]);
            world.loss = loss;
            for (carries, ceiling) in carries.into_iter().zip(ceilings) {
                world.carries = carries;
                let now = world.now;
                world.mtu.set_ceiling(ceiling, now);
                world.run(Duration::from_millis(time), true);
                prop_assert!(world.mtu.range().contains(&world.mtu.current()));
            }
        }
    }

    #[test]
    fn a_path_that_loses_much_is_not_taken_for_a_narrow_one() {
        for (loss, seed) in
            [10, 50, 100, 200].into_iter().flat_map(|loss| (1..20).map(move |seed| (loss, seed)))
        {
            let mut world = World::new(true, 1_500, 1_500);
            (world.loss, world.random) = (loss, seed);
            world.run(SECOND * 300, true);
            assert!(world.changes.is_empty(), "{loss} {seed}: {:?}", world.changes);
        }
    }

    #[test]
    fn an_answer_that_comes_when_it_was_asked_again_is_one() {
        let mut world = World::new(true, 1_500, 1_500);
        world.trip = PATIENCE * 5 / 2;
        world.run(SECOND * 60, true);
        assert!(world.changes.is_empty() && world.mtu.is_verified(), "{:?}", world.changes);
    }

    #[test]
    fn a_path_that_is_not_used_is_left_in_peace_and_looked_at_once_it_is() {
        let mut world = World::new(true, 1_500, 1_500);
        world.is_used = false;
        world.run(SECOND * 5, true);
        let asked = world.asked;
        world.run(SECOND * 60, true);
        assert_eq!(world.asked - asked, 4);
        world.carries = 1_400;
        world.is_used = true;
        world.run(SECOND * 2, true);
        assert_eq!(world.mtu.current(), BASE);
    }

    #[test]
    fn silence_of_all_says_nothing_of_the_size() {
        let mut world = World::new(true, 1_500, 1_500);
        world.run(SECOND * 2, true);
        world.carries = 0;
        world.run(SECOND * 60, false);
        assert!(world.changes.is_empty());
    }

    #[test]
    fn a_cut_that_is_not_known_yet_is_not_taken_for_a_narrow_path() {
        for after in 2_000..3_000 {
            let mut world = World::new(true, 1_500, 1_500);
            world.run(Duration::from_millis(after), true);
            (world.carries, world.passes) = (0, false);
            // It is down when the detection time is over.
            world.run(SECOND * 4, true);
            world.run(SECOND * 10, false);
            (world.carries, world.passes) = (1_500, true);
            world.run(SECOND * 5, true);
            assert!(world.changes.is_empty() && world.mtu.lost().is_none(), "{after}: {:?}", world.changes);
        }
    }

    #[test]
    fn what_a_router_says_is_heeded_at_once() {
        let mut world = World::new(true, 1_500, 1_500);
        world.run(SECOND * 2, true);
        let now = world.now;
        assert_eq!(world.mtu.set_ceiling(1_400, now), Some(Change { to: 1_400, lost: None }));
        assert_eq!(
            world.mtu.set_ceiling(100, now),
            Some(Change { to: LEAST_V4, lost: None }),
            "nobody says less"
        );
        assert_eq!(world.mtu.set_ceiling(1_500, now), None);
        world.run(SECOND * 5, true);
        assert_eq!(world.mtu.current(), 1_500);
    }

    #[test]
    fn a_route_that_carries_more_is_heeded_in_the_midst_of_a_search() {
        let mut world = World::new(true, 1_300, 1_500);
        world.run(SECOND, true);
        assert!(matches!(world.mtu.phase, Phase::Searching { .. }));
        world.carries = 9_000;
        let now = world.now;
        assert_eq!(world.mtu.set_ceiling(9_000, now), None);
        world.run(SECOND * 10, true);
        assert_eq!(world.mtu.current(), 9_000);
    }

    #[test]
    fn an_answer_to_nothing_is_none() {
        let mut world = World::new(true, 1_400, 1_500);
        for number in 0..10 {
            assert_eq!(world.mtu.handle_answer(number, world.now), None);
        }
        assert!(!world.mtu.is_verified());
    }
}
