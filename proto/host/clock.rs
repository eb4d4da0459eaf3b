//! The clocks of the host. Only what acts reads them; what decides takes the time as an argument.

#![allow(clippy::disallowed_methods, reason = "this is where time enters")]

use std::time::{Duration, Instant, SystemTime};

/// The time by which timers go: it never goes back. In tests that pause tokio's clock it stands still with it.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The wall clock, as time since the Unix epoch. It may be set at any time.
pub fn since_epoch() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
