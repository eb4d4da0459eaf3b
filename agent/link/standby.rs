//! Whether places of a peer that are preferred to the one in use answer again: they are asked beside the traffic.

use std::net::SocketAddr;
use std::time::Duration;

/// How often one that does not answer is asked.
const SELDOM: Duration = Duration::from_secs(10);
/// How often one that does is, and how long an answer is waited for.
const OFTEN: Duration = Duration::from_secs(2);
/// For how long one must have answered, without a miss, until it is used again.
const HEALTH: Duration = Duration::from_secs(10);
/// What the numbers of these questions begin with: no other question comes so far.
const NUMBERS: u32 = 1 << 31;

/// What is known of the places that are preferred to the one in use.
#[derive(Debug)]
pub struct Standby {
    /// The preferred first.
    places: Vec<Place>,
    number: u32,
}

#[derive(Debug)]
struct Place {
    address: SocketAddr,
    /// The question that is not answered.
    asked: Option<u32>,
    /// When it is asked next.
    due: Duration,
    /// Since when it has answered everything.
    healthy_since: Option<Duration>,
}

impl Standby {
    /// Of places of which nothing is known, the preferred first; times are since boot.
    pub fn new(places: impl IntoIterator<Item = SocketAddr>, now: Duration) -> Self {
        let place = |address| Place { address, asked: None, due: now + OFTEN, healthy_since: None };
        Self { places: places.into_iter().map(place).collect(), number: NUMBERS }
    }

    /// The places, the preferred first.
    pub fn places(&self) -> impl Iterator<Item = SocketAddr> {
        self.places.iter().map(|place| place.address)
    }

    /// What is to be asked of whom now: numbers of questions.
    pub fn poll(&mut self, now: Duration) -> Vec<(SocketAddr, u32)> {
        let due = self.places.iter_mut().filter(|place| place.due <= now);
        let ask = |place: &mut Place| {
            self.number = self.number.wrapping_add(1) | NUMBERS;
            let is_missed = place.asked.replace(self.number).is_some();
            if is_missed {
                place.healthy_since = None;
            }
            place.due = now + if is_missed { SELDOM } else { OFTEN };
            (place.address, self.number)
        };
        due.map(ask).collect()
    }

    /// An answer has come.
    pub fn handle_answer(&mut self, number: u32, now: Duration) {
        if let Some(place) = self.places.iter_mut().find(|place| place.asked == Some(number)) {
            place.asked = None;
            place.healthy_since.get_or_insert(now);
            place.due = place.due.min(now + OFTEN);
        }
    }

    /// The most preferred one that has answered for long enough.
    pub fn fit(&self, now: Duration) -> Option<SocketAddr> {
        let is_fit = |place: &&Place| place.healthy_since.is_some_and(|since| now >= since + HEALTH);
        self.places.iter().find(is_fit).map(|place| place.address)
    }

    /// When it is to be looked at again.
    pub fn poll_at(&self) -> Duration {
        self.places.iter().map(|place| place.due).min().unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STEP: Duration = Duration::from_millis(100);

    fn places(count: u8) -> Vec<SocketAddr> {
        (1..=count).map(|n| SocketAddr::from(([172, 100, n, 2], 5000))).collect()
    }

    /// Lets time pass; each question is answered where `answers` says so of its place and time. Returns for each moment
    /// what was fit, and how many were asked.
    fn run(
        standby: &mut Standby,
        steps: u32,
        answers: impl Fn(usize, Duration) -> bool,
    ) -> Vec<(Duration, Option<SocketAddr>, usize)> {
        let all: Vec<_> = standby.places().collect();
        let mut seen = Vec::new();
        for step in 0..steps {
            let now = STEP * step;
            let asked = standby.poll(now);
            for (address, number) in &asked {
                let place = all.iter().position(|place| place == address).unwrap();
                if answers(place, now) {
                    standby.handle_answer(*number, now);
                }
            }
            assert!(standby.poll_at() > now);
            seen.push((now, standby.fit(now), asked.len()));
        }
        seen
    }

    #[test]
    fn one_that_answers_is_fit_after_its_time_and_not_before() {
        let mut standby = Standby::new(places(1), Duration::ZERO);
        let seen = run(&mut standby, 300, |_, _| true);
        let (at, fit, _) = seen.iter().find(|(_, fit, _)| fit.is_some()).unwrap();
        assert_eq!(*fit, Some(places(1)[0]));
        assert_eq!(*at, OFTEN + HEALTH);
    }

    #[test]
    fn a_miss_begins_the_time_anew() {
        let mut standby = Standby::new(places(1), Duration::ZERO);
        let missed = Duration::from_secs(8);
        let seen = run(&mut standby, 600, |_, now| now != missed);
        let (at, ..) = seen.iter().find(|(_, fit, _)| fit.is_some()).unwrap();
        assert!(*at >= missed + HEALTH, "{at:?}");
        assert!(*at <= missed + HEALTH + OFTEN * 2, "{at:?}");
    }

    #[test]
    fn one_that_goes_again_is_not_fit_any_more() {
        let mut standby = Standby::new(places(1), Duration::ZERO);
        let gone = Duration::from_secs(20);
        let seen = run(&mut standby, 400, |_, now| now < gone);
        assert!(seen.iter().any(|(_, fit, _)| fit.is_some()));
        assert!(seen.iter().all(|(at, fit, _)| *at < gone + OFTEN * 2 || fit.is_none()));
    }

    #[test]
    fn who_does_not_answer_is_asked_seldom_and_an_answer_to_nothing_says_nothing() {
        let mut standby = Standby::new(places(1), Duration::ZERO);
        let seen = run(&mut standby, 1_000, |_, _| false);
        let asked: usize = seen.iter().map(|(.., asked)| asked).sum();
        assert!((10..=13).contains(&asked), "{asked} in 100 s");
        for number in [0, 1, NUMBERS, u32::MAX] {
            standby.handle_answer(number, Duration::from_secs(200));
        }
        assert_eq!(standby.fit(Duration::from_secs(1_000)), None);
    }

    proptest! {
        #[test]
        fn of_those_that_answer_the_preferred_one_is_fit(answers in proptest::collection::vec(any::<bool>(), 1..4)) {
            let all = places(answers.len() as u8);
            let mut standby = Standby::new(all.clone(), Duration::ZERO);
            let seen = run(&mut standby, 400, |place, _| answers[place]);
            let first = answers.iter().position(|answers| *answers).map(|place| all[place]);
            prop_assert_eq!(seen.last().unwrap().1, first);
        }
    }
}
