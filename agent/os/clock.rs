//! The clock of liveness.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time since boot, suspended time included (`CLOCK_BOOTTIME` of `clock_gettime(2)`): it never jumps.
pub fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}
