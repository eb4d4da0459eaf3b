//! What both programs say in the same words.

use std::time::Duration;

use super::clock;
use crate::proto::v1::tunnel_status::State;

/// A span of time as people write it, by its two largest units.
pub fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86400, seconds % 86400 / 3600),
    }
}

/// How long ago `time` was; a time that is still to come counts as now.
pub fn age(time: &pbjson_types::Timestamp) -> Duration {
    let then =
        Duration::new(u64::try_from(time.seconds).unwrap_or(0), u32::try_from(time.nanos).unwrap_or(0));
    clock::since_epoch().saturating_sub(then)
}

/// The state of a tunnel, whose last packet came `last` ago.
pub fn tunnel_state(state: State, reason: &str, last: Option<Duration>) -> String {
    match (state, last) {
        (State::Passing, Some(last)) => format!("passing, last packet {} ago", span(last)),
        (State::Passing, None) => "passing".to_owned(),
        (State::Waiting, _) if reason.is_empty() => "waiting for a first packet".to_owned(),
        (State::Waiting, _) => format!("waiting: {reason}"),
        (State::Failed, _) => format!("FAILED: {reason}"),
        (State::Unspecified, _) => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units() {
        for (seconds, words) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min 0 s"),
            (3_599, "59 min 59 s"),
            (3_660, "1 h 1 min"),
            (90_000, "1 d 1 h"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), words);
        }
    }
}
