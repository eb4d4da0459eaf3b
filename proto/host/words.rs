//! What both programs say in the same words.

use std::time::Duration;

use super::clock;
use crate::proto::model::{LinkState, Why};
use crate::proto::v1::tunnel_status::State;
use crate::proto::words::{fine, span};
use crate::proto::{convert, v1};

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

/// Where a tunnel's datagrams go, and where they would rather; that is empty where they do.
pub fn endpoint_in_use(endpoint: &str, preferred: &str) -> String {
    match preferred {
        "" => endpoint.to_owned(),
        preferred => format!("{endpoint}, instead of {preferred}"),
    }
}

/// How many tunnels go to another than the preferred endpoint of their peer, to stand behind other counts; empty where
/// none does.
pub fn diverted(count: u32) -> String {
    match count {
        0 => String::new(),
        count => format!(", {count} not to the preferred endpoint"),
    }
}

/// A link as this host has it: its state and since when, and what is known of both directions. Nothing is said that may be
/// old without how old it is.
pub fn link(link: &v1::Link) -> String {
    use v1::link::State;
    let since = link.since.as_ref().map(age).map(span).unwrap_or_default();
    let state = match link.state() {
        State::Unspecified => "unknown",
        State::AdminDown => LinkState::AdminDown.name(),
        State::Down => LinkState::Down.name(),
        State::Init => LinkState::Init.name(),
        State::Up => LinkState::Up.name(),
    };
    // It may be up by less than what both ends hear.
    if link.state() != State::Up || link.reason != Why::Heard.to_string() {
        return format!("{state} for {since}: {}", link.reason);
    }
    let trip = link.round_trip.as_ref().map(|trip| format!(", {} there and back", fine(convert::span(trip))));
    let lost = |way: &str, hearing: Option<&v1::Hearing>| {
        let hearing = hearing.filter(|hearing| hearing.lost > 0)?;
        Some(format!(", {} of {} lost {way}", hearing.lost, hearing.known))
    };
    let parts = [trip, lost("going", link.sent.as_ref()), lost("coming", link.received.as_ref())];
    format!("{state} for {since}{}", parts.into_iter().flatten().collect::<String>())
}
