//! What the store holds, read.

use std::time::Duration;

use super::world::{Memory, mesh, node};
use super::{WEB, converged};
use crate::controller::mesh::NODES;
use crate::controller::plan::NodeRecord;
use crate::controller::state::{ApplyError, Connection, Effect};
use crate::controller::store::transaction::{Transaction, Write};
use crate::controller::stored::Stored;
use crate::proto::session::{Digest, Generation, Have};

fn put(store: &mut Memory, key: &str, value: &str) {
    let writes = vec![Write::Put(key.to_owned(), value.as_bytes().to_vec())];
    store.commit(Transaction { conditions: Vec::new(), writes }).unwrap();
}

#[test]
fn starts_are_counted_and_the_name_stays() {
    let mut store = Memory::default();
    for expected in 1..4 {
        let (start, transaction) = store.read().start(&format!("id-{expected}")).unwrap();
        assert_eq!(start, expected);
        store.commit(transaction.clone()).unwrap();
        assert!(store.commit(transaction).is_err(), "one controller starts at a time");
    }
    let stored = store.read();
    assert_eq!((stored.store_id.as_str(), stored.incarnation), ("id-1", 1));
    put(&mut store, "/meta/schema", "2");
    assert!(store.read().start("id").unwrap_err().contains("schema 2"));
    put(&mut store, "/meta/schema", "1");
    put(&mut store, "/meta/incarnation", "many");
    assert!(store.read().start("id").unwrap_err().contains("/meta/incarnation"));
}

#[test]
fn nothing_is_removed_while_it_cannot_be_read_what_is_wanted() {
    let (mut world, _) = converged(2);
    assert!(!world.store.read().holds_removals() && world.store.read().wanted.has_place(&node(0)));
    // Nothing of these is any node's tunnel.
    for (key, value) in [("/nodes/stranger", "7"), ("/nodes/no name", "7"), ("/tokens/x", "7")] {
        put(&mut world.store, key, value);
        assert!(!world.store.read().holds_removals(), "{key}");
    }
    for key in ["/meshes/web", "/allocations/web", "/nodes/n0"] {
        let mut store = world.store.clone();
        put(&mut store, key, "{");
        let stored = store.read();
        assert!(stored.holds_removals() && stored.remedy(key).is_some(), "{key}");
    }
    // Who has which address is not made up anew, and a mesh that is applied again is.
    put(&mut world.store, "/allocations/web", "{");
    world.restart();
    world.pass(Duration::from_secs(2));
    while world.do_commit() || world.deliver_change() {}
    assert!(world.store.read().holds_removals(), "the addresses are others now");
    let problems = world.state.status(world.now).problems;
    let told = |words: &str| problems.iter().any(|problem| problem.message.contains(words));
    assert!(told("no node removes anything until mesh web is applied again"), "{problems:?}");
    assert!(!told("no overlay address is left"), "{problems:?}");
    let deleted = world.state.basis().delete_mesh(&"web".parse().unwrap(), false);
    assert!(matches!(deleted, Err(ApplyError::NeedsConsent(_))), "{deleted:?}");
    world.apply(mesh(WEB));
    world.deliver_change();
    assert!(!world.store.read().holds_removals());
}

/// The views follow a change of the store a little later.
#[test]
fn what_was_worked_out_of_a_part_is_never_sent_as_all() {
    let (mut world, mut agents) = converged(2);
    put(&mut world.store, "/meshes/other", "{");
    world.restart();
    let writes = vec![Write::Delete("/meshes/other".to_owned())];
    let mended = world.store.commit(Transaction { conditions: Vec::new(), writes }).unwrap();
    world.state.handle_change(&mended, world.now, world.wall());
    assert!(!world.state.stored().holds_removals());
    agents[1].has = None;
    let (origin, hello) = (agents[1].origin(world.local), agents[1].hello.clone());
    world.state.handle_connected(Connection(99), origin, hello, world.now, world.wall());
    let effects = std::iter::from_fn(|| world.state.poll_effect());
    let held: Vec<bool> = effects
        .filter_map(|effect| match effect {
            Effect::SendSnapshot(_, snapshot) => Some(snapshot.removals.are_held),
            Effect::Send(..) | Effect::Commit(_) | Effect::Close(..) => None,
        })
        .collect();
    assert_eq!(held, [true]);
}

#[test]
fn what_cannot_be_read_is_named_and_the_rest_goes_on() {
    let (mut world, _) = converged(2);
    let whole = world.store.read();
    assert!(whole.faults.is_empty());
    for (key, value) in [
        ("/meshes/web", "{\"name\": \"other\"}"),
        ("/meshes/broken", "{"),
        ("/meshes/not a name", "{}"),
        ("/nodes/n0", "7"),
        ("/allocations/x", ""),
    ] {
        put(&mut world.store, key, value);
    }
    put(&mut world.store, "/of/a/later/release", "?");
    let stored = world.store.read();
    assert_eq!(stored.faults.len(), 5, "{:?}", stored.faults);
    assert_eq!((stored.wanted.meshes.len(), stored.wanted.nodes.len()), (0, 1));
    // What was broken can be applied over: the transaction knows the revision that broke it.
    world.restart();
    assert_eq!(world.state.status(world.now).problems.len(), 5);
    world.apply(mesh(WEB));
    assert!(world.deliver_change());
    assert_eq!(world.state.stored().wanted.meshes.len(), 1);
}

#[test]
fn who_has_the_labels_of_a_full_mesh_and_is_left_out_is_a_problem() {
    let (mut world, _) = converged(2);
    let first = world.store.read().wanted.nodes[&node(0)].clone();
    for number in 2..NODES + 2 {
        let endpoint = format!("172.101.{}.{}", number / 250, number % 250 + 1).parse().unwrap();
        let other = NodeRecord { endpoint: Some(endpoint), ..first.clone() };
        put(&mut world.store, &format!("/nodes/n{number}"), &serde_json::to_string(&other).unwrap());
    }
    world.restart();
    let problems = world.state.status(world.now).problems.into_iter();
    let left_out: Vec<_> =
        problems.map(|problem| problem.message).filter(|message| message.contains("are left out")).collect();
    assert_eq!(left_out.len(), 1, "{left_out:?}");
    assert!(
        left_out[0].starts_with("mesh web: ") && left_out[0].contains(" and 1 more have its labels"),
        "{left_out:?}"
    );
}

#[test]
fn changes_one_by_one_come_to_the_same_as_all_at_once() {
    let (mut world, mut agents) = converged(3);
    let mut one_by_one = Stored::default();
    let mut store = Memory::default();
    let (_, transaction) = store.read().start("id").unwrap();
    one_by_one.apply(&store.commit(transaction).unwrap());
    assert_eq!(one_by_one, store.read());
    agents[1].label("role", "db");
    world.connect(&mut agents[1]);
    world.settle(&mut agents);
    assert_eq!(*world.state.stored(), world.store.read());
    // An old change says nothing.
    let mut stored = world.store.read();
    let old = crate::controller::store::transaction::Change {
        revision: stored.revision,
        writes: vec![Write::Delete("/meshes/web".to_owned())],
    };
    stored.apply(&old);
    assert_eq!(stored, world.store.read());
}

#[test]
fn what_a_store_has_sent_is_told_from_what_its_copies_have() {
    let start = |store: &mut Memory, name: &str| {
        let (_, transaction) = store.read().start(name).unwrap();
        store.commit(transaction).unwrap();
    };
    let change = |store: &mut Memory| put(store, "/meta/schema", "1");
    let have = |store: &Memory, timeline: &str| Have {
        store_id: store.read().store_id,
        generation: store.read().generation(),
        digest: Digest::from_bytes(&[0; 16]).unwrap(),
        timeline: timeline.to_owned(),
    };
    let mut store = Memory::default();
    start(&mut store, "first");
    change(&mut store);
    let before = have(&store, "first");
    let mut copy = store.clone();
    change(&mut store);
    let after = have(&store, "first");
    start(&mut store, "second");
    let later = have(&store, "second");
    for sent in [&before, &after, &later] {
        assert!(store.read().has_sent(sent), "{sent:?}");
    }
    // The copy goes on from where it was made, and passes the numbers of the other.
    start(&mut copy, "another");
    for _ in 0..9 {
        for (sent, is_its_own) in [(&before, true), (&after, false), (&later, false)] {
            assert_eq!(copy.read().has_sent(sent), is_its_own, "{sent:?}");
        }
        change(&mut copy);
    }
    let known = have(&copy, "another");
    assert!(!store.read().has_sent(&known) && copy.read().has_sent(&known));
    // What an earlier release had is believed as far as the numbers go.
    let silent = Have { timeline: String::new(), ..after };
    assert!(copy.read().has_sent(&silent));
    let ahead = Generation { revision: u64::MAX, ..silent.generation };
    assert!(!copy.read().has_sent(&Have { generation: ahead, ..silent }));
    // As many starts are remembered as anybody needs.
    for number in 0..1_200 {
        start(&mut copy, &format!("start {number}"));
    }
    assert!(!copy.read().has_sent(&before) && copy.read().has_sent(&have(&copy, "start 1199")));
}
