//! How many new sessions are taken on in a while.

use std::time::{Duration, Instant};

/// How many sessions a second are taken on.
const RATE: u32 = 500;
/// How many at once after a quiet time.
const BURST: u32 = 500;
/// The longest wait that is asked for.
const LONGEST: Duration = Duration::from_secs(30);

/// A token bucket, kept as the time at which it would be full but for what was taken.
#[derive(Debug, Clone)]
pub struct Admission {
    /// When all that was admitted is paid for.
    paid: Instant,
    /// When the last of those that were put off may come.
    booked: Instant,
}

impl Admission {
    /// A full bucket.
    pub fn new(now: Instant) -> Self {
        Self { paid: now, booked: now }
    }

    /// Takes a session on.
    ///
    /// # Errors
    /// After which time to come again; each is given a time of its own.
    pub fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        let price = Duration::from_secs(1) / RATE;
        let paid = self.paid.max(now) + price;
        if paid.duration_since(now) <= price * BURST {
            self.paid = paid;
            return Ok(());
        }
        self.booked = (self.booked.max(now) + price).min(now + LONGEST);
        Err(self.booked.duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "any time will do")]
    fn takes_on_a_burst_then_the_rate_and_spreads_the_rest() {
        let now = Instant::now();
        let mut admission = Admission::new(now);
        let admitted = (0..2_000).filter(|_| admission.admit(now).is_ok()).count();
        assert_eq!(admitted, 500);
        let later = now + Duration::from_millis(100);
        let waits: Vec<_> = (0..100).filter_map(|_| admission.admit(later).err()).collect();
        assert_eq!(waits.len(), 50);
        assert!(waits.windows(2).all(|pair| pair[0] < pair[1]), "{waits:?}");
        assert!((0..1_000_000).filter_map(|_| admission.admit(later).err()).all(|wait| wait <= LONGEST));
    }
}
