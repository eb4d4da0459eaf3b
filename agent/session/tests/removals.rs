//! What goes when it is not wanted any more, and what stays.

use std::collections::BTreeSet;

use super::{Bench, delta, generation, items, lost, snapshot};
use crate::proto::session::{
    ControllerMessage, Delta, Generation, Items, Removals, SnapshotChunk, SnapshotEnd,
};

/// Tunnels before and after, and how many of them are held without consent.
const REMOVALS: [(u64, u64, usize); 7] =
    [(3, 0, 0), (4, 0, 4), (4, 1, 0), (8, 4, 0), (8, 3, 5), (9, 4, 5), (100, 49, 51)];

#[test]
fn many_tunnels_go_only_with_consent() {
    for (before, after, held) in REMOVALS {
        let (before, after) = (items(1..=before, 0), items(1..=after, 1));
        for pushes in [delta((1, &before), (2, &after), 1), snapshot(2, &after, 1)] {
            let mut bench = Bench::synced(&before);
            let ack = bench.push(pushes);
            assert_eq!(ack.removals_held.len(), held, "{} to {}", before.len(), after.len());
            assert_eq!(bench.has().all().len(), after.len() + held);
            assert!(after.iter().all(|item| bench.has().all().iter().any(|there| there == item)));
            assert_eq!(bench.session.standing().held, ack.removals_held);
        }
        for pushes in [delta((1, &before), (2, &after), 2), snapshot(2, &after, 2)] {
            let mut bench = Bench::synced(&before);
            assert_eq!(bench.push(pushes).removals_held, BTreeSet::new());
            assert_eq!(bench.has().all(), after);
        }
    }
}

#[test]
fn what_is_held_goes_with_a_later_consent_and_by_no_other_way() {
    let views = [items(1..=8, 0), items(1..=2, 0), items(1..=60, 0), items(9..=60, 1)];
    let mut bench = Bench::synced(&views[0]);
    assert_eq!(bench.push(delta((1, &views[0]), (2, &views[1]), 1)).removals_held.len(), 6);
    // What it says it has is not what is wanted, so it is told about consent when it comes back.
    assert_ne!(bench.has().have().digest, views[1].digest());
    // Wanted again, and not wanted again, amid so many that six would be few.
    assert_eq!(bench.push(delta((2, &views[1]), (3, &views[2]), 1)).removals_held.len(), 0);
    let mut bench = Bench::synced(&views[0]);
    bench.push(delta((1, &views[0]), (2, &views[1]), 1));
    let ack = bench.push(delta((2, &views[1]), (3, &views[3]), 1));
    assert_eq!(ack.removals_held.len(), 6, "{:?}", ack.removals_held);
    let ack = bench.push(delta((3, &views[3]), (4, &views[3]), 4));
    assert_eq!((ack.removals_held.len(), bench.has().all()), (0, views[3].clone()));
}

/// The controller cannot read what is wanted: what it does not want may be wanted.
#[test]
fn nothing_goes_while_removals_are_held_however_few_and_with_consent() {
    let views = [items(1..=3, 0), items(3..=4, 1), items(1..=4, 2)];
    let (set, delete) = views[0].changes_to(&views[1]);
    let removals = Removals { consent: 2, are_held: true };
    let change = ControllerMessage::Delta(Delta {
        base: generation(1),
        generation: generation(2),
        set,
        delete,
        digest: views[1].digest(),
        removals,
    });
    let whole = ControllerMessage::Snapshot(SnapshotChunk {
        generation: generation(2),
        items: views[1].iter().cloned().collect(),
        end: Some(SnapshotEnd { digest: views[1].digest(), removals }),
    });
    for push in [change, whole] {
        let mut bench = Bench::synced(&views[0]);
        let ack = bench.push(push);
        let held: Vec<_> = ack.removals_held.iter().map(ToString::to_string).collect();
        assert_eq!(held, ["tunnel m.n1", "tunnel m.n2"]);
        assert!(views[1].iter().all(|item| bench.has().all().iter().any(|there| there == item)));
        // It can be read again.
        let ack = bench.push(delta((2, &views[1]), (3, &views[2]), 2));
        assert_eq!((ack.removals_held.len(), bench.has().all()), (0, views[2].clone()));
    }
}

/// A push of what `after` is for one that has `before` at a generation.
fn held(before: (u64, &Items), after: (u64, &Items), consent: u64) -> ControllerMessage {
    let ControllerMessage::Delta(change) = delta(before, after, consent) else { unreachable!() };
    ControllerMessage::Delta(Delta { removals: Removals { consent, are_held: true }, ..change })
}

#[test]
fn a_consent_that_is_given_while_removals_are_held_counts_once_they_are_not() {
    let views = [items(1..=9, 0), items(1..=4, 0), items(1..=3, 0)];
    for (consent, is_held) in [(1, true), (3, false)] {
        let mut bench = Bench::synced(&views[0]);
        assert_eq!(bench.push(held((1, &views[0]), (2, &views[1]), 0)).removals_held.len(), 5);
        assert_eq!(bench.push(held((2, &views[1]), (4, &views[2]), consent)).removals_held.len(), 6);
        let ack = bench.push(delta((4, &views[2]), (5, &views[2]), consent));
        assert_eq!(ack.removals_held.is_empty(), !is_held, "{consent}: {ack:?}");
        assert_eq!(bench.has().consents_after, None);
    }
}

#[test]
fn what_was_held_and_is_wanted_again_is_held_no_more_without_a_push() {
    let views = [items(1..=3, 0), items(1..=1, 0)];
    let mut bench = Bench::synced(&views[0]);
    bench.push(held((1, &views[0]), (2, &views[1]), 0));
    bench.session.handle_closed(lost(), None, bench.now);
    bench.effects();
    let hello = bench.connect();
    assert_eq!(hello.have.unwrap().digest, views[0].digest());
    let ack = bench.push(ControllerMessage::NotModified(generation(3)));
    assert!(ack.removals_held.is_empty());
    assert_eq!((&bench.has().items, &bench.has().held), (&views[0], &Items::default()));
}

/// The operators of an older copy of the store consent to what they see, and that is not what the agent has.
#[test]
fn no_consent_counts_for_what_was_wanted_in_another_incarnation() {
    let (before, after) = (items(1..=8, 0), items(1..=2, 0));
    let mut bench = Bench::synced(&before);
    let generation = |revision| Generation { incarnation: 2, revision };
    let ack = bench.push(ControllerMessage::Snapshot(SnapshotChunk {
        generation: generation(5),
        items: after.iter().cloned().collect(),
        end: Some(SnapshotEnd {
            digest: after.digest(),
            removals: Removals { consent: 4, ..Removals::default() },
        }),
    }));
    assert_eq!(ack.removals_held.len(), 6);
    // What is consented to from here on is what it says that it has.
    let (set, delete) = after.changes_to(&after);
    let ack = bench.push(ControllerMessage::Delta(Delta {
        base: generation(5),
        generation: generation(6),
        set,
        delete,
        digest: after.digest(),
        removals: Removals { consent: 6, ..Removals::default() },
    }));
    assert_eq!((ack.removals_held.len(), bench.has().all()), (0, after));
}

#[test]
fn the_devices_of_what_is_held_stay() {
    let (before, after) = (items(1..=8, 0), Items::default());
    let mut bench = Bench::synced(&before);
    bench.push(delta((1, &before), (2, &after), 0));
    assert_eq!(bench.has().all(), before);
}
