//! How many new sessions are taken on in a while.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::proto::rate::{Bucket, Rate};
use crate::proto::source::Source;

/// How many sessions a second are taken on, and at once after a quiet time.
const RATE: u32 = 500;
/// How many of them those share that have come within [`WINDOW`] already, each source as many. The rest is for those
/// that come first: whoever comes again and again has never all.
const SHARED: u32 = 400;
/// How long what a source takes is held against it.
const WINDOW: Duration = Duration::from_secs(1);
/// The longest wait that is asked for.
const LONGEST: Duration = Duration::from_secs(30);
/// How often sources that may come as if for the first time are forgotten.
const FORGET: Duration = Duration::from_millis(100);

/// All sources together.
const ALL: Rate = Rate { burst: RATE, every: Duration::from_millis(1_000 / RATE as u64) };

/// Takes sessions on: a bound for all, and within it a share for each source.
#[derive(Debug, Clone)]
pub struct Admission {
    all: Bucket,
    /// When the last of those may come that were put off for the sake of all.
    booked: Instant,
    sources: BTreeMap<Source, Share>,
    forgot_at: Instant,
}

/// What a source has taken.
#[derive(Debug, Clone, Copy)]
struct Share {
    /// When it has paid for all that it took.
    paid: Instant,
    /// When the last of those that were put off may come.
    booked: Instant,
}

impl Admission {
    /// One that has taken on nobody.
    pub fn new(now: Instant) -> Self {
        Self { all: Bucket::default(), booked: now, sources: BTreeMap::new(), forgot_at: now }
    }

    /// Takes a session from `source` on.
    ///
    /// # Errors
    /// After which time to come again; each is given a time of its own.
    pub fn admit(&mut self, source: IpAddr, now: Instant) -> Result<(), Duration> {
        if now >= self.forgot_at + FORGET {
            self.forgot_at = now;
            self.sources.retain(|_, share| share.paid.max(share.booked) > now);
        }
        let source = Source::from(source);
        let mut share = self.sources.get(&source).copied().unwrap_or(Share { paid: now, booked: now });
        let rivals = self.sources.len() + usize::from(!self.sources.contains_key(&source));
        let price = WINDOW * u32::try_from(rivals).unwrap_or(u32::MAX) / SHARED;
        let paid = share.paid.max(now) + price;
        if share.paid > now && paid.duration_since(now) > WINDOW {
            share.booked = book(share.booked, price, now);
            self.sources.insert(source, share);
            return Err(share.booked.duration_since(now));
        }
        if self.all.take(ALL, now).is_err() {
            self.booked = book(self.booked, ALL.every, now);
            return Err(self.booked.duration_since(now));
        }
        self.sources.insert(source, Share { paid, ..share });
        Ok(())
    }
}

/// The time of the next that is put off, after `last`.
fn book(last: Instant, price: Duration, now: Instant) -> Instant {
    (last.max(now) + price).min(now + LONGEST)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "any time will do")]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn source(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(0xac64_0000 + number).into()
    }

    #[test]
    fn takes_on_a_burst_then_the_rate_and_spreads_the_rest() {
        let now = Instant::now();
        let mut admission = Admission::new(now);
        let admitted = (0..2_000).filter(|number| admission.admit(source(*number), now).is_ok()).count();
        assert_eq!(admitted, 500);
        let later = now + Duration::from_millis(100);
        let waits: Vec<_> =
            (3_000..3_100).filter_map(|number| admission.admit(source(number), later).err()).collect();
        assert_eq!(waits.len(), 50);
        assert!(waits.windows(2).all(|pair| pair[0] < pair[1]), "{waits:?}");
        let waits = |number: u32| admission.admit(source(number % 100), later).err();
        assert!((0..1_000_000).filter_map(waits).all(|wait| wait <= LONGEST));
    }

    #[test]
    fn many_agents_behind_one_address_come_soon() {
        let mut now = Instant::now();
        let mut admission = Admission::new(now);
        let mut waiting = vec![now; 1_000];
        let start = now;
        while !waiting.is_empty() {
            now = *waiting.iter().min().unwrap();
            waiting = waiting
                .into_iter()
                .filter_map(|at| {
                    if at > now { Some(at) } else { Some(now + admission.admit(source(1), now).err()?) }
                })
                .collect();
        }
        assert!(now - start < Duration::from_secs(2), "{:?}", now - start);
    }

    /// Sources that come again at once, whatever they are told, keep nobody else out for long.
    #[test]
    fn a_storm_keeps_nobody_out() {
        // With few storms a stranger is let in at once; with many it finds the bound for all used up at first.
        for (storms, bound) in [(1, Duration::ZERO), (2, Duration::ZERO), (10, Duration::from_millis(500))] {
            let start = Instant::now();
            let mut admission = Admission::new(start);
            let (mut strangers, mut longest) = (BTreeMap::new(), Duration::ZERO);
            for millisecond in 0..10_000_u32 {
                let now = start + Duration::from_millis(millisecond.into());
                for number in 0..storms * 20 {
                    let _ = admission.admit(source(number % storms), now);
                }
                if millisecond % 50 == 0 {
                    strangers.insert(1_000 + millisecond, (now, now));
                }
                strangers.retain(|number, (since, at)| {
                    if *at > now {
                        return true;
                    }
                    match admission.admit(source(*number), now) {
                        Ok(()) => {
                            longest = longest.max(now - *since);
                            false
                        }
                        Err(wait) => {
                            *at = now + wait;
                            true
                        }
                    }
                });
            }
            assert!(longest <= bound && strangers.len() <= 10, "{storms} storms: {longest:?}, {strangers:?}");
        }
    }
}
