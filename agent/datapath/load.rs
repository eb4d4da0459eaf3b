//! How much goes through the packet path: whether one thread is enough.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a system call for a message costs beside its bytes, as bytes.
const MESSAGE: u64 = 1_000;
/// The time in which a byte is worked off: what is more than 64 MB a second, or 60,000 messages, piles up.
const BYTE: u64 = 16;
/// From so much on, as time to work it off, load is high; what is more is not kept.
const HIGH: Duration = Duration::from_millis(2);
/// For so long it is high then: a pause in a transfer is no end, and its end is soon found.
const MEMORY: Duration = Duration::from_millis(100);

/// The work of data threads. What one thread adds while another does may be lost, which does no harm.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// When what was added would be worked off at a moderate pace, in nanoseconds since boot.
    done: AtomicU64,
    /// Until when it is high, likewise.
    high_until: AtomicU64,
}

impl Load {
    /// Notes that so many messages with so many bytes in all were read; `now` is time since boot.
    pub(super) fn add(&self, messages: usize, bytes: usize, now: Duration) {
        let cost = (messages as u64).saturating_mul(MESSAGE).saturating_add(bytes as u64);
        let begin = nanoseconds(now);
        let done = self.done.load(Ordering::Relaxed).max(begin).saturating_add(cost.saturating_mul(BYTE));
        let high = begin.saturating_add(nanoseconds(HIGH));
        self.done.store(done.min(high), Ordering::Relaxed);
        if done >= high {
            self.raise(now);
        }
    }

    /// Takes it to be high for now.
    pub(super) fn raise(&self, now: Duration) {
        self.high_until.store(nanoseconds(now).saturating_add(nanoseconds(MEMORY)), Ordering::Relaxed);
    }

    /// Whether more is to be done than one thread does well.
    pub(super) fn is_high(&self, now: Duration) -> bool {
        self.high_until.load(Ordering::Relaxed) > nanoseconds(now)
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The load after a second in which a message of so many bytes came every so often.
    fn after(bytes: usize, every: Duration) -> (Load, Duration) {
        let (load, mut now) = (Load::default(), Duration::from_secs(1_000));
        for _ in 0..Duration::from_secs(1).as_nanos() / every.as_nanos() {
            now += every;
            load.add(1, bytes, now);
        }
        (load, now)
    }

    #[test]
    fn pings_and_calls_are_no_load_and_transfers_are() {
        for (bytes, every, is_high) in [
            // Pings back to back, both ways; a call; 10 Mbit/s of video.
            (84, Duration::from_micros(25), false),
            (200, Duration::from_millis(20), false),
            (1_400, Duration::from_millis(1), false),
            // Trains at 5 Gbit/s; small datagrams, 100,000 a second.
            (62_500, Duration::from_micros(100), true),
            (64, Duration::from_micros(10), true),
        ] {
            let (load, now) = after(bytes, every);
            assert_eq!(load.is_high(now), is_high, "{bytes} bytes every {every:?}");
        }
    }

    #[test]
    fn a_transfer_is_over_after_a_pause_however_long_it_took_and_whoever_pings() {
        let (load, mut now) = after(62_500, Duration::from_micros(100));
        let end = now + MEMORY;
        while now < end {
            assert!(load.is_high(now), "a short pause is no end");
            load.add(1, 84, now);
            now += Duration::from_micros(100);
        }
        assert!(!load.is_high(now + HIGH));
    }

    #[test]
    fn a_burst_now_and_then_does_not_make_it_swing() {
        // 300 Mbit/s, 160 kB at a time.
        let (load, mut now) = after(160_000, Duration::from_micros(4_300));
        for _ in 0..4_300 {
            now += Duration::from_micros(1);
            assert!(load.is_high(now));
        }
    }

    #[test]
    fn no_number_is_too_large() {
        let load = Load::default();
        load.add(usize::MAX, usize::MAX, Duration::MAX);
        load.add(usize::MAX, usize::MAX, Duration::ZERO);
        assert!(load.is_high(Duration::ZERO));
        assert!(!load.is_high(Duration::MAX));
    }
}
