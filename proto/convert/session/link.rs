//! What agents say of their links, to v1 and back.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use super::{MessageError, cut, fault, missing, parse};
use crate::proto::convert::link_state_to_wire;
use crate::proto::model::{Hearing, LinkState, TunnelName, Why};
use crate::proto::session::{LinkFigures, LinkReport, LinkStates};
use crate::proto::v1;
use crate::proto::v1::link::{State as WireState, Why as WireWhy};

/// Of how many probes it is known at most what became of them.
const WINDOW: u16 = 256;

pub(super) fn states(wire: v1::LinkStates) -> Result<LinkStates, MessageError> {
    Ok(LinkStates {
        links: wire.links.into_iter().map(report).collect::<Result<_, _>>()?,
        gone: wire.gone.iter().map(|name| parse("gone", name)).collect::<Result<_, _>>()?,
        whole: wire.whole,
    })
}

fn report(wire: v1::LinkReport) -> Result<(TunnelName, (NonZeroU32, LinkReport)), MessageError> {
    let state = match wire.state() {
        WireState::AdminDown => LinkState::AdminDown,
        WireState::Down => LinkState::Down,
        WireState::Init => LinkState::Init,
        WireState::Up => LinkState::Up,
        WireState::Unspecified => return Err(missing("state")),
    };
    let why = match wire.why() {
        WireWhy::Heard => Why::Heard,
        WireWhy::Never => Why::Never,
        WireWhy::Silent => Why::Silent,
        WireWhy::Wordless => Why::Wordless,
        WireWhy::NotHeard => Why::NotHeard,
        WireWhy::Left => Why::Left,
        WireWhy::Unanswered => Why::Unanswered,
        WireWhy::Keyed => Why::Keyed,
        WireWhy::Unspecified => return Err(missing("why")),
    };
    let report = LinkReport {
        state,
        why,
        since: Duration::from_millis(wire.since_ms),
        last_heard: wire.last_heard_ms.map(Duration::from_millis),
        detection_time: (wire.detection_ms > 0).then(|| Duration::from_millis(wire.detection_ms.into())),
        changes: wire.changes,
        unsent: cut(wire.unsent),
        carries: size(wire.carries)?,
        loses: size(wire.loses)?,
    };
    let number = NonZeroU32::new(wire.number).ok_or_else(|| missing("number"))?;
    Ok((parse("tunnel", &wire.tunnel)?, (number, report)))
}

/// The size of a packet; 0: none.
fn size(bytes: u32) -> Result<Option<u16>, MessageError> {
    let size = u16::try_from(bytes).map_err(|_| fault("carries", "is no size of a packet"))?;
    Ok((size > 0).then_some(size))
}

pub(super) fn wire_states(states: LinkStates) -> v1::LinkStates {
    let links = states.links.into_iter().map(|(tunnel, (number, report))| v1::LinkReport {
        number: number.get(),
        tunnel: tunnel.into(),
        state: link_state_to_wire(report.state).into(),
        why: wire_why(report.why).into(),
        since_ms: millis(report.since),
        last_heard_ms: report.last_heard.map(millis),
        detection_ms: report.detection_time.map_or(0, |time| u32::try_from(millis(time)).unwrap_or(u32::MAX)),
        changes: report.changes,
        unsent: report.unsent,
        carries: report.carries.map_or(0, u32::from),
        loses: report.loses.map_or(0, u32::from),
    });
    v1::LinkStates {
        links: links.collect(),
        gone: states.gone.into_iter().map(String::from).collect(),
        whole: states.whole,
    }
}

fn wire_why(why: Why) -> WireWhy {
    match why {
        Why::Heard => WireWhy::Heard,
        Why::Never => WireWhy::Never,
        Why::Silent => WireWhy::Silent,
        Why::Wordless => WireWhy::Wordless,
        Why::NotHeard => WireWhy::NotHeard,
        // Whichever of both ends it is that goes.
        Why::Left | Why::Leaving => WireWhy::Left,
        Why::Unanswered => WireWhy::Unanswered,
        Why::Keyed => WireWhy::Keyed,
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

/// Figures by the links' numbers.
pub(super) fn figures(wire: v1::LinkFigures) -> Result<BTreeMap<NonZeroU32, LinkFigures>, MessageError> {
    let count = wire.number.len();
    let columns = [wire.sent.unwrap_or_default(), wire.received.unwrap_or_default()];
    let parts = columns.iter().flat_map(|way| [&way.unknown, &way.lost, &way.reordered, &way.jitter]);
    if parts.chain([&wire.round_trip]).any(|column| column.len() != count) {
        return Err(fault("link_figures", "have columns of different lengths"));
    }
    let mut number = 0_u32;
    let mut all = BTreeMap::new();
    for row in 0..count {
        let at = |column: &[u32]| column.get(row).copied().unwrap_or_default();
        number = number.saturating_add(at(&wire.number));
        let hearing = |way: &v1::HearingColumns| {
            let half = |column: &[u32]| u16::try_from(at(column)).ok().filter(|count| *count <= WINDOW);
            let known = WINDOW - half(&way.unknown)?;
            let (lost, reordered) = (half(&way.lost)?, half(&way.reordered)?);
            let jitter = Duration::from_micros(at(&way.jitter).into());
            (lost + reordered <= known).then_some(Hearing { known, lost, reordered, jitter })
        };
        let trip = at(&wire.round_trip).checked_sub(1).map(|micros| Duration::from_micros(micros.into()));
        let named = NonZeroU32::new(number).filter(|named| !all.contains_key(named));
        let (Some(named), Some(sent), Some(received)) = (named, hearing(&columns[0]), hearing(&columns[1]))
        else {
            return Err(fault("link_figures", "say what cannot be"));
        };
        all.insert(named, LinkFigures { round_trip: trip, sent, received });
    }
    Ok(all)
}

pub(super) fn wire_figures(all: BTreeMap<NonZeroU32, LinkFigures>) -> v1::LinkFigures {
    let mut wire = v1::LinkFigures::default();
    let mut columns = [v1::HearingColumns::default(), v1::HearingColumns::default()];
    let mut before = 0;
    for (number, figures) in all {
        wire.number.push(number.get() - std::mem::replace(&mut before, number.get()));
        wire.round_trip.push(figures.round_trip.map_or(0, |trip| micros(trip).saturating_add(1)));
        for (way, hearing) in columns.iter_mut().zip([figures.sent, figures.received]) {
            way.unknown.push(WINDOW.saturating_sub(hearing.known).into());
            way.lost.push(hearing.lost.into());
            way.reordered.push(hearing.reordered.into());
            way.jitter.push(micros(hearing.jitter));
        }
    }
    let [sent, received] = columns;
    v1::LinkFigures { sent: Some(sent), received: Some(received), ..wire }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::proto::convert::session::agent_message;
    use crate::proto::session::AgentMessage;

    fn span() -> impl Strategy<Value = Duration> {
        any::<u32>().prop_map(|millis| Duration::from_millis(millis.into()))
    }

    fn hearing() -> impl Strategy<Value = Hearing> {
        (0..=WINDOW, any::<[u16; 2]>(), 0..u32::MAX).prop_map(|(known, [lost, reordered], jitter)| {
            let lost = lost % (known + 1);
            let jitter = Duration::from_micros(jitter.into());
            Hearing { known, lost, reordered: reordered % (known - lost + 1), jitter }
        })
    }

    prop_compose! {
        fn report()(
            (state, why) in prop_oneof![
                Just((LinkState::Up, Why::Heard)), Just((LinkState::Down, Why::Never)), Just((LinkState::Down, Why::Silent)),
                Just((LinkState::Down, Why::Wordless)), Just((LinkState::Init, Why::NotHeard)),
                Just((LinkState::AdminDown, Why::Left)), Just((LinkState::Init, Why::Unanswered)),
                Just((LinkState::Up, Why::Keyed)),
            ],
            since in span(), last_heard in prop::option::of(span()), detection in prop::option::of(1..u32::MAX),
            changes in any::<u32>(), sizes in prop::array::uniform2(prop::option::of(1..u16::MAX)), unsent in "[a-z_]{0,10}",
        ) -> LinkReport {
            let detection_time = detection.map(|millis| Duration::from_millis(millis.into()));
            let [carries, loses] = sizes;
            LinkReport { state, why, since, last_heard, detection_time, changes, unsent, carries, loses }
        }
    }

    prop_compose! {
        fn figures()(trip in prop::option::of(0..u32::MAX - 1), sent in hearing(), received in hearing()) -> LinkFigures {
            let round_trip = trip.map(|micros| Duration::from_micros(micros.into()));
            LinkFigures { round_trip, sent, received }
        }
    }

    /// A message as the other side has it.
    fn heard(message: AgentMessage) -> AgentMessage {
        let bytes = v1::AgentMessage::from(message).encode_to_vec();
        agent_message(v1::AgentMessage::decode(&bytes[..]).unwrap()).unwrap().unwrap()
    }

    proptest! {
        #[test]
        fn links_are_understood_as_they_were_told(
            links in prop::collection::btree_map("[a-z.]{1,20}", (any::<NonZeroU32>(), report()), 0..5),
            gone in prop::collection::btree_set("[a-z.]{1,20}", 0..3), whole in any::<bool>(),
        ) {
            let links = links.into_iter().filter_map(|(name, link)| Some((name.parse().ok()?, link))).collect();
            let gone = gone.into_iter().filter_map(|name| name.parse().ok()).collect();
            let states = AgentMessage::LinkStates(LinkStates { links, gone, whole });
            prop_assert_eq!(heard(states.clone()), states);
        }

        #[test]
        fn figures_are_understood_as_they_were_told(all in prop::collection::btree_map(any::<NonZeroU32>(), figures(), 0..20)) {
            let all = AgentMessage::LinkFigures(all);
            prop_assert_eq!(heard(all.clone()), all);
        }

        #[test]
        fn no_figures_are_taken_for_what_cannot_be(number in prop::collection::vec(0..3_u32, 3), lost in prop::collection::vec(0..300_u32, 2..4)) {
            let zeros = |count: usize| vec![0; count];
            let way = || v1::HearingColumns { unknown: zeros(3), lost: lost.clone(), reordered: zeros(3), jitter: zeros(3) };
            let wire = v1::LinkFigures { number, round_trip: zeros(3), sent: Some(way()), received: Some(way()) };
            if let Ok(all) = super::figures(wire.clone()) {
                prop_assert_eq!(all.len(), 3);
                prop_assert!(lost.len() == 3 && all.values().all(|figures| figures.sent.lost <= figures.sent.known));
                prop_assert_eq!(super::wire_figures(all), wire);
            }
        }
    }

    #[test]
    fn a_thousand_links_take_sixteen_kilobytes() {
        let usual = Hearing { known: 256, lost: 3, reordered: 1, jitter: Duration::from_micros(900) };
        let figures =
            LinkFigures { round_trip: Some(Duration::from_millis(120)), sent: usual, received: usual };
        let all = (1..=1_000).filter_map(NonZeroU32::new).map(|number| (number, figures)).collect();
        let bytes = v1::AgentMessage::from(AgentMessage::LinkFigures(all)).encoded_len();
        assert!(bytes <= 16_000, "{bytes}");
    }
}
