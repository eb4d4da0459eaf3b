use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const FEW: Timing = Timing { interval: INTERVAL, multiplier: MULTIPLIER };
/// How soon a cut is seen by whoever heard the other end until then, and by the other one.
const SEEN: Duration = Duration::from_millis(870);
/// How soon all is well again.
const HEALED: Duration = Duration::from_millis(2_500);

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The way from one end to the other.
#[derive(Debug, Clone, Default)]
struct Way {
    delay: Duration,
    /// By how much one may take longer than another.
    uneven: Duration,
    /// Of 1,000 so many are lost.
    loss: u64,
    is_cut: bool,
    /// What became of each probe: whether it came, by its number.
    fates: BTreeMap<u32, bool>,
}

/// Two ends and what is between them. The clocks of both differ.
struct World {
    now: Duration,
    ends: [Link; 2],
    clocks: [Duration; 2],
    ways: [Way; 2],
    /// By when they come, to which end.
    flying: BTreeMap<(Duration, u64), (usize, Probe)>,
    random: u64,
    sent: u64,
    changes: Vec<(Duration, usize, Transition)>,
}

impl World {
    fn new(seed: u64, clocks: [Duration; 2], ways: [Way; 2]) -> Self {
        let mut number = NonZeroU32::MIN;
        let ends = clocks.map(|clock| {
            number = number.saturating_add(1);
            Link::new(number, FEW, seed ^ u64::from(number.get()), clock)
        });
        let random = seed | 1;
        Self {
            now: Duration::ZERO,
            ends,
            clocks,
            ways,
            flying: BTreeMap::new(),
            random,
            sent: 0,
            changes: Vec::new(),
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % below.max(1)
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let polls = [0, 1].map(|one| (self.ends[one].poll_at().saturating_sub(self.clocks[one]), one));
            let poll = polls.into_iter().min().unwrap();
            let arrival = self.flying.keys().next().copied();
            if let Some(key) = arrival.filter(|(at, _)| *at <= poll.0) {
                if key.0 > end {
                    break;
                }
                let (to, probe) = self.flying.remove(&key).unwrap();
                self.now = self.now.max(key.0);
                let change = self.ends[to].handle_probe(&probe, self.now + self.clocks[to]);
                self.changes.extend(change.map(|change| (self.now, to, change)));
                continue;
            }
            if poll.0 > end {
                break;
            }
            self.now = self.now.max(poll.0);
            let (change, probe) = self.ends[poll.1].poll(self.now + self.clocks[poll.1]);
            self.changes.extend(change.map(|change| (self.now, poll.1, change)));
            if let Some(probe) = probe {
                self.send(poll.1, probe);
            }
        }
        self.now = end;
    }

    fn send(&mut self, from: usize, probe: Probe) {
        self.sent += 1;
        let (chance, late) = (self.random(1_000), self.random(1_000));
        let way = &mut self.ways[from];
        let comes = !way.is_cut && chance >= way.loss;
        way.fates.insert(probe.sequence, comes);
        if comes {
            let at = self.now + way.delay + way.uneven * late as u32 / 1_000;
            // It is as it went over the wire.
            self.flying.insert((at, self.sent), (1 - from, Probe::parse(&probe.encode()).unwrap()));
        }
    }

    fn states(&self) -> [LinkState; 2] {
        [0, 1].map(|one| self.ends[one].state().0)
    }
}

fn clocks() -> impl Strategy<Value = [Duration; 2]> {
    // Beyond what 32 bits of microseconds hold, too.
    any::<[u32; 2]>().prop_map(|clocks| clocks.map(|seconds| millis(u64::from(seconds) * 3)))
}

fn delays() -> impl Strategy<Value = [u64; 2]> {
    [0..80_u64, 0..80_u64]
}

fn ways(delays: [u64; 2]) -> [Way; 2] {
    delays.map(|delay| Way { delay: millis(delay), ..Way::default() })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn two_ends_find_each_other_and_measure_the_same(seed in any::<u64>(), clocks in clocks(), delays in delays()) {
        let mut world = World::new(seed, clocks, ways(delays));
        world.run(millis(1_000));
        prop_assert_eq!(world.states(), [LinkState::Up; 2]);
        world.run(millis(60_000));
        prop_assert_eq!(world.states(), [LinkState::Up; 2]);
        let both = millis(delays[0] + delays[1]);
        for end in &world.ends {
            let trip = end.figures().round_trip().unwrap();
            prop_assert!(trip.mean.abs_diff(both) < millis(1) && trip.deviation < millis(1), "{trip:?}");
            let hearing = end.figures().hearing();
            prop_assert_eq!((hearing.known, hearing.lost, hearing.reordered), (256, 0, 0));
            prop_assert!(hearing.jitter < millis(1), "{hearing:?}");
            prop_assert_eq!(end.detection_time(), Some(millis(800)));
        }
        // 5 to 7 a second, both ends.
        prop_assert!((500..900).contains(&world.sent), "{}", world.sent);
    }

    #[test]
    fn a_cut_is_seen_at_both_ends_with_its_direction(
        seed in any::<u64>(), clocks in clocks(), delays in delays(), before in 3_000..5_000_u64,
        cuts in prop::sample::select(vec![[true, false], [false, true], [true, true]]),
    ) {
        let mut world = World::new(seed, clocks, ways(delays));
        world.run(millis(before));
        for (way, is_cut) in world.ways.iter_mut().zip(cuts) {
            way.is_cut = is_cut;
        }
        world.run(SEEN + millis(delays[0] + delays[1]));
        let expected = match cuts {
            [true, true] => [LinkState::Down; 2],
            [true, false] => [LinkState::Init, LinkState::Down],
            _ => [LinkState::Down, LinkState::Init],
        };
        prop_assert_eq!(world.states(), expected, "{:?}", &world.changes);
        world.run(millis(30_000));
        prop_assert_eq!(world.states(), expected, "{:?}", &world.changes);
        world.ways = ways(delays);
        world.run(HEALED);
        prop_assert_eq!(world.states(), [LinkState::Up; 2], "{:?}", &world.changes);
    }

    #[test]
    fn loss_and_order_are_what_they_were(
        seed in any::<u64>(), clocks in clocks(), delays in delays(), uneven in 0..600_u64, loss in 0..300_u64,
    ) {
        let mut world = World::new(seed, clocks, ways(delays));
        world.run(millis(1_000));
        for way in &mut world.ways {
            (way.uneven, way.loss) = (millis(uneven), loss);
        }
        world.run(millis(100_000));
        // All that will come has come.
        world.ways.iter_mut().for_each(|way| way.is_cut = true);
        world.run(millis(700));
        for (from, end) in world.ways.iter().zip([1, 0]) {
            let hearing = world.ends[end].figures().hearing();
            let highest = *from.fates.iter().rfind(|(_, comes)| **comes).unwrap().0;
            let known = from.fates.range(..=highest).rev().take(hearing.known.into());
            let lost = known.filter(|(_, comes)| !**comes).count();
            prop_assert_eq!((hearing.known, usize::from(hearing.lost)), (256, lost));
            if uneven < 50 {
                prop_assert_eq!(hearing.reordered, 0, "the least interval is longer");
            }
            if uneven == 0 {
                prop_assert!(hearing.jitter < millis(1), "{hearing:?}");
            }
        }
    }

    #[test]
    fn an_end_that_begins_anew_is_known_at_once(seed in any::<u64>(), clocks in clocks(), delays in delays()) {
        let mut world = World::new(seed, clocks, ways(delays));
        world.run(millis(5_000));
        world.changes.clear();
        let now = world.now + world.clocks[1];
        world.ends[1] = Link::new(NonZeroU32::MAX, FEW, seed, now);
        world.run(millis(700));
        prop_assert_eq!(world.states(), [LinkState::Up; 2], "{:?}", &world.changes);
        let first = world.changes.iter().find(|(_, end, _)| *end == 0).unwrap().2;
        prop_assert_eq!((first.from, first.why), (LinkState::Up, Why::NotHeard), "it is told");
        prop_assert!(world.ends.iter().all(|end| end.figures().hearing().known < 10), "figures begin anew, too");
    }

    #[test]
    fn an_end_that_begins_anew_and_is_not_heard_hears_all_the_same(seed in any::<u64>(), clocks in clocks(), delays in delays()) {
        let mut world = World::new(seed, clocks, ways(delays));
        world.run(millis(5_000));
        world.ways[1].is_cut = true;
        let now = world.now + world.clocks[1];
        world.ends[1] = Link::new(NonZeroU32::MAX, FEW, seed, now);
        world.run(millis(10_000));
        prop_assert_eq!(world.states(), [LinkState::Down, LinkState::Init], "{:?}", &world.changes);
        prop_assert!(world.ends[1].figures().round_trip().is_none(), "nothing of it was ever answered");
        world.ways[1].is_cut = false;
        world.run(HEALED);
        prop_assert_eq!(world.states(), [LinkState::Up; 2]);
    }

    #[test]
    fn who_leaves_says_so_and_is_sent_nothing_until_it_is_back(seed in any::<u64>(), clocks in clocks(), delays in delays()) {
        let mut world = World::new(seed, clocks, ways(delays));
        world.run(millis(5_000));
        let now = world.now + world.clocks[0];
        world.ends[0].leave(now);
        world.run(millis(100));
        world.ways[0].is_cut = true;
        let sent = world.ways[1].fates.len();
        world.run(millis(20_000));
        let (state, _, why) = world.ends[1].state();
        prop_assert_eq!((state, why), (LinkState::Down, Why::Left));
        prop_assert_eq!(world.ends[0].state().0, LinkState::AdminDown);
        prop_assert_eq!(world.ways[1].fates.len(), sent);
        let now = world.now + world.clocks[0];
        world.ends[0] = Link::new(NonZeroU32::MAX, FEW, seed, now);
        world.ways[0].is_cut = false;
        world.run(millis(700));
        prop_assert_eq!(world.states(), [LinkState::Up; 2]);
    }
}

/// Two ends that know each other, at a time.
fn pair() -> (World, Duration) {
    let mut world = World::new(1, [Duration::ZERO; 2], ways([1, 1]));
    world.run(millis(5_000));
    assert_eq!(world.states(), [LinkState::Up; 2]);
    let now = world.now;
    (world, now)
}

#[test]
fn whoever_does_not_know_the_number_of_an_end_silences_it_not() {
    let (mut world, now) = pair();
    let (_, genuine) = world.ends[0].poll(now + millis(300));
    let genuine = genuine.unwrap();
    for (other, at) in [(None, 400), (NonZeroU32::new(77), 800)] {
        let at = now + millis(at);
        let forged = Probe { state: LinkState::AdminDown, other, sequence: genuine.sequence + 1, ..genuine };
        world.ends[1].handle_probe(&forged, at);
        assert_ne!(world.ends[1].state().2, Why::Left);
        assert!(world.ends[1].poll(at).1.is_some(), "it goes on");
    }
    world.now = now + millis(900);
    world.run(HEALED);
    assert_eq!(world.states(), [LinkState::Up; 2]);
}

#[test]
fn packets_keep_a_link_alive_but_not_for_ever() {
    let (mut world, start) = pair();
    let link = &mut world.ends[0];
    let mut down = None;
    for step in 0..1_000 {
        let now = start + millis(10) * step;
        link.handle_data(now);
        if let (Some(change), _) = link.poll(now) {
            down = Some((now - start, change));
        }
    }
    let (after, change) = down.unwrap();
    assert_eq!((change.to, change.why), (LinkState::Down, Why::Wordless));
    assert!(after > millis(2_000) && after < millis(2_600), "{after:?}");
}

#[test]
fn whoever_says_another_thing_each_time_is_answered_now_and_then() {
    let (mut world, start) = pair();
    let probe = world.ends[1].poll(world.ends[1].poll_at()).1.unwrap();
    let link = &mut world.ends[0];
    let mut answers = 0;
    for number in 0..100_000 {
        let now = start + Duration::from_micros(100) * number;
        let state = if number % 2 == 0 { LinkState::Down } else { LinkState::Up };
        let own = probe.own.saturating_add(number % 3);
        let said = Probe { state, own, sequence: probe.sequence.wrapping_add(number), ..probe };
        link.handle_probe(&said, now);
        answers += usize::from(link.poll(now).1.is_some());
    }
    assert!(answers <= 201, "{answers} in 10 s");
}

#[test]
fn what_was_heard_before_says_nothing_new() {
    let (mut world, start) = pair();
    let probe = world.ends[1].poll(world.ends[1].poll_at()).1.unwrap();
    let link = &mut world.ends[0];
    link.handle_probe(&probe, start);
    for step in 0..100 {
        link.handle_probe(&probe, start + millis(10) * step);
    }
    assert_eq!(link.poll(start + millis(800)).0.unwrap().why, Why::Silent);
    let unknowing = Probe { other: None, sequence: probe.sequence + 1, ..probe };
    let change = link.handle_probe(&unknowing, start + millis(850)).unwrap();
    assert_eq!(
        (change.to, change.why),
        (LinkState::Init, Why::NotHeard),
        "who knows nothing of this end has not heard it"
    );
    let stranger = Probe { other: NonZeroU32::new(77), sequence: probe.sequence + 2, ..probe };
    assert_eq!(
        link.handle_probe(&stranger, start + millis(900)),
        None,
        "it is for an earlier life of this end"
    );
}

#[test]
fn what_the_other_end_asks_for_has_bounds() {
    let (mut world, start) = pair();
    let probe = world.ends[1].poll(world.ends[1].poll_at()).1.unwrap();
    let wide = Duration::from_secs(4_000);
    let odd = Probe { sends_every: wide, hears_every: wide, multiplier: NonZeroU8::MAX, ..probe };
    let link = &mut world.ends[0];
    link.handle_probe(&odd, start);
    assert_eq!(link.detection_time(), Some(LONGEST));
    let mut next = start;
    for _ in 0..3 {
        next = link.poll_at();
        link.poll(next);
    }
    assert!(next < start + SLOWEST * 3);
    let (_, _, why) = {
        link.poll(start + LONGEST);
        link.state()
    };
    assert_eq!(why, Why::Silent);
}

#[test]
fn the_probes_of_many_links_are_bounded_together() {
    for (links, detection) in [(0, 800), (1, 800), (100, 800), (101, 808), (1_000, 8_000), (2_000, 16_000)] {
        let timing = Timing::of_links(links);
        assert_eq!(timing.interval * timing.multiplier.get().into(), millis(detection), "{links}");
    }
}

#[test]
fn packets_without_any_probe_are_told_from_silence() {
    let (mut link, second) = (Link::new(NonZeroU32::MIN, FEW, 1, Duration::ZERO), Duration::from_secs(1));
    link.poll(second);
    assert_eq!(link.state().2, Why::Never);
    link.handle_data(second);
    link.poll(second * 2);
    assert_eq!((link.state().0, link.state().2), (LinkState::Down, Why::Wordless));
    link.poll(second * 60);
    assert_eq!(link.state().2, Why::Never);
}
