//! How often something may be done.

use std::time::{Duration, Instant};

/// So many times at once after a quiet time, and then once in a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How often at once, at least 1.
    pub burst: u32,
    /// The time between two later ones, on average.
    pub every: Duration,
}

/// What has been taken of a rate: a token bucket, kept as the time at which it is full again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bucket {
    /// Absent: nothing was ever taken.
    paid: Option<Instant>,
}

impl Bucket {
    /// Takes one.
    ///
    /// # Errors
    /// When there is one again; nothing was taken.
    pub fn take(&mut self, rate: Rate, now: Instant) -> Result<(), Instant> {
        let paid = self.paid.map_or(now, |paid| paid.max(now)) + rate.every;
        let window = rate.every * rate.burst;
        if paid.duration_since(now) > window {
            return Err(paid - window);
        }
        self.paid = Some(paid);
        Ok(())
    }

    /// Whether as many can be taken as if nothing ever had been.
    pub fn is_whole(&self, now: Instant) -> bool {
        self.paid.is_none_or(|paid| paid <= now)
    }
}

/// What others can bring about as often as they like, and what is told now and then alone, with how often it was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seldom {
    count: u64,
    told: Option<Instant>,
}

impl Seldom {
    /// Counts one more. Returns how many there were since it was last told, where that was at least `every` ago.
    pub fn take(&mut self, every: Duration, now: Instant) -> Option<u64> {
        self.count += 1;
        if self.told.is_some_and(|told| now < told + every) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "any time will do")]
    fn what_is_told_seldom_leaves_none_out() {
        let (mut seldom, start, every) = (Seldom::default(), Instant::now(), Duration::from_secs(10));
        let mut at = |seconds| seldom.take(every, start + Duration::from_secs(seconds));
        assert_eq!([0, 1, 9, 10, 11, 40].map(&mut at), [Some(1), None, None, Some(3), None, Some(2)]);
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "any time will do")]
    fn gives_a_burst_then_one_in_a_while() {
        let rate = Rate { burst: 3, every: Duration::from_secs(10) };
        let (mut bucket, mut now) = (Bucket::default(), Instant::now());
        assert_eq!((0..9).filter(|_| bucket.take(rate, now).is_ok()).count(), 3);
        for _ in 0..3 {
            let again = bucket.take(rate, now).unwrap_err();
            assert_eq!(bucket.take(rate, again - Duration::from_nanos(1)), Err(again));
            assert_eq!(bucket.take(rate, again), Ok(()));
            now = again;
        }
        now += Duration::from_secs(1_000);
        assert_eq!((0..9).filter(|_| bucket.take(rate, now).is_ok()).count(), 3);
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "any time will do")]
    fn gives_as_many_as_have_come_to_be_due() {
        let rate = Rate { burst: 10, every: Duration::from_millis(100) };
        let (mut bucket, start) = (Bucket::default(), Instant::now());
        for (after, expected) in [(0, 10), (250, 2), (3_600_000, 10)] {
            let now = start + Duration::from_millis(after);
            assert_eq!((0..100).filter(|_| bucket.take(rate, now).is_ok()).count(), expected, "{after} ms");
        }
    }
}
