//! What both programs say in the same words.

use std::time::Duration;

use super::clock;
use crate::proto::v1::tunnel_status::State;
use crate::proto::words::span;

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
