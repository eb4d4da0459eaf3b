//! Randomness from a seed.

use std::time::Duration;

/// SplitMix64 (Steele, Lea and Flood, 2014): enough to spread agents.
#[derive(Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// From nothing to `most`.
    pub(super) fn up_to(&mut self, most: Duration) -> Duration {
        let most = u64::try_from(most.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.next() % most.saturating_add(1))
    }

    /// `time`, 10 % more or less.
    pub(super) fn about(&mut self, time: Duration) -> Duration {
        time * 9 / 10 + self.up_to(time / 5)
    }
}
