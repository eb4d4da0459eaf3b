//! What every store must do, whatever it is made of. `conformance!(open)` makes a test of each; `open` is a function
//! that returns an empty store, and something to keep alive as long as it.

#![allow(unreachable_pub, reason = "a module of a test binary has no outside")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tunmesh::controller::store::{Change, Condition, Entry, Store, StoreError, Transaction, Write};

/// What a busy machine may take for a step.
const SOON: Duration = Duration::from_secs(10);
/// What a busy machine may take for a whole test.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long nothing comes where nothing is to come.
const NOTHING: Duration = Duration::from_millis(200);

macro_rules! conformance {
    ($open:path) => {
        conformance!($open:
            counts_by_compare_and_swap,
            does_all_of_a_transaction_or_nothing,
            lets_no_conflict_hurt_others,
            raises_the_revision_with_each_change,
            reads_a_consistent_snapshot,
            tells_each_change_once_and_in_order,
            tells_changes_from_any_revision_on,
            tells_a_slow_reader_everything,
            ends_a_watch_from_the_future,
            deletes_what_is_absent,
            holds_conditions_on_absent_keys,
            keeps_large_values,
            keeps_many_keys_of_one_transaction,
            reads_exactly_a_prefix,
            refuses_a_key_written_twice,
        );
    };
    ($open:path: $($name:ident),+ $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            let (_keep, store) = $open();
            let ended = tokio::time::timeout($crate::conformance::PATIENCE, $crate::conformance::$name(store)).await;
            ended.expect("it ends");
        }
    )+};
}
pub(crate) use conformance;

pub fn put(key: &str, value: impl AsRef<[u8]>) -> Write {
    Write::Put(key.to_owned(), value.as_ref().to_vec())
}

pub fn delete(key: &str) -> Write {
    Write::Delete(key.to_owned())
}

pub fn writes(writes: impl Into<Vec<Write>>) -> Transaction {
    Transaction { conditions: Vec::new(), writes: writes.into() }
}

pub fn when(key: &str, revision: Option<u64>) -> Condition {
    Condition { key: key.to_owned(), revision }
}

pub async fn next(watch: &mut ReceiverStream<Change>) -> Option<Change> {
    timeout(SOON, watch.next()).await.expect("a change, or the end")
}

async fn nothing_comes(watch: &mut ReceiverStream<Change>) {
    let came = timeout(NOTHING, watch.next()).await;
    assert!(came.is_err(), "{came:?}");
}

async fn get(store: &dyn Store, key: &str) -> Option<Entry> {
    let (entries, _) = store.read(key).await.unwrap();
    entries.into_iter().find(|entry| entry.key == key)
}

async fn revision(store: &dyn Store) -> u64 {
    store.read("/").await.unwrap().1
}

pub async fn counts_by_compare_and_swap(store: Arc<dyn Store>) {
    const TASKS: u64 = 20;
    const EACH: u64 = 25;
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let store = store.clone();
        tasks.spawn(async move {
            let mut done = 0;
            while done < EACH {
                let before = get(&*store, "/counter").await;
                let count: u64 =
                    before.as_ref().map_or(0, |entry| str::from_utf8(&entry.value).unwrap().parse().unwrap());
                let transaction = Transaction {
                    conditions: vec![when("/counter", before.map(|entry| entry.revision))],
                    writes: vec![put("/counter", (count + 1).to_string())],
                };
                match store.commit(transaction).await {
                    Ok(_) => done += 1,
                    Err(StoreError::Conflict(key)) => assert_eq!(key, "/counter"),
                    Err(error @ StoreError::Unavailable(_)) => panic!("{error}"),
                }
            }
        });
    }
    tasks.join_all().await;
    let counter = get(&*store, "/counter").await.unwrap();
    assert_eq!(counter.value, (TASKS * EACH).to_string().into_bytes());
    assert_eq!(counter.revision, TASKS * EACH, "one revision each");
}

pub async fn does_all_of_a_transaction_or_nothing(store: Arc<dyn Store>) {
    let first = store.commit(writes([put("/a", "1"), put("/b", "1")])).await.unwrap();
    let second = store.commit(writes([put("/b", "2")])).await.unwrap();
    let before = store.read("/").await.unwrap();
    let mut watch = store.watch(second);
    // The first condition holds, the second does not any more.
    let transaction = Transaction {
        conditions: vec![when("/a", Some(first)), when("/b", Some(first))],
        writes: vec![put("/a", "3"), delete("/b"), put("/c", "3")],
    };
    assert_eq!(store.commit(transaction.clone()).await, Err(StoreError::Conflict("/b".to_owned())));
    assert_eq!(store.read("/").await.unwrap(), before);
    nothing_comes(&mut watch).await;
    let transaction =
        Transaction { conditions: vec![when("/a", Some(first)), when("/b", Some(second))], ..transaction };
    let third = store.commit(transaction.clone()).await.unwrap();
    let entry = |key: &str| Entry { key: key.to_owned(), value: b"3".to_vec(), revision: third };
    assert_eq!(store.read("/").await.unwrap(), (vec![entry("/a"), entry("/c")], third));
    assert_eq!(next(&mut watch).await, Some(Change { revision: third, writes: transaction.writes }));
}

pub async fn lets_no_conflict_hurt_others(store: Arc<dyn Store>) {
    let is_bad = |n: usize| n.is_multiple_of(3);
    let all = (0..300).map(|n| {
        let transaction = Transaction {
            conditions: vec![when("/never", is_bad(n).then_some(1))],
            writes: vec![put(&format!("/n/{n:03}"), "")],
        };
        store.commit(transaction)
    });
    for (n, result) in join_all(all).await.into_iter().enumerate() {
        assert_eq!(result.is_err(), is_bad(n), "{n}: {result:?}");
    }
    let (entries, revision) = store.read("/n/").await.unwrap();
    assert_eq!((entries.len(), revision), (200, 200));
    assert!(entries.iter().all(|entry| !is_bad(entry.key["/n/".len()..].parse().unwrap())));
}

pub async fn raises_the_revision_with_each_change(store: Arc<dyn Store>) {
    assert_eq!(store.read("/").await.unwrap(), (Vec::new(), 0), "it is empty at first");
    for expected in 1..=5 {
        // The same value again counts: whoever sets a key may mean the revision.
        assert_eq!(store.commit(writes([put("/key", "same")])).await, Ok(expected));
        assert_eq!(get(&*store, "/key").await.unwrap().revision, expected);
    }
    let only_conditions = Transaction { conditions: vec![when("/key", Some(5))], writes: Vec::new() };
    assert_eq!(store.commit(only_conditions).await, Ok(5));
    assert_eq!(store.commit(Transaction::default()).await, Ok(5));
    assert_eq!(revision(&*store).await, 5);
}

pub async fn reads_a_consistent_snapshot(store: Arc<dyn Store>) {
    const ROUNDS: u64 = 300;
    let writer = store.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        for round in 0..ROUNDS {
            let all = [put("/pair/a", round.to_string()), put("/pair/b", round.to_string())];
            writer.commit(writes(all)).await.unwrap();
        }
    });
    let mut last = 0;
    while last < ROUNDS {
        let (entries, revision) = store.read("/pair/").await.unwrap();
        assert!(revision >= last, "{revision} after {last}");
        last = revision;
        if let [a, b] = &entries[..] {
            assert_eq!((&a.value, a.revision), (&b.value, b.revision));
            assert_eq!(a.revision, revision, "nobody else writes");
        } else {
            assert_eq!((entries, revision), (Vec::new(), 0));
        }
    }
    tasks.join_all().await;
}

pub async fn tells_each_change_once_and_in_order(store: Arc<dyn Store>) {
    const TASKS: usize = 8;
    const EACH: usize = 50;
    let watches: Vec<_> = (0..3).map(|_| store.watch(0)).collect();
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let store = store.clone();
        tasks.spawn(async move {
            let mut done = Vec::new();
            for n in 0..EACH {
                let all = writes([
                    put(&format!("/t/{task}"), n.to_string()),
                    put(&format!("/u/{task}"), n.to_string()),
                ]);
                done.push((store.commit(all.clone()).await.unwrap(), all.writes));
            }
            done
        });
    }
    let mut seen = Vec::new();
    for mut watch in watches {
        let mut changes = Vec::new();
        while changes.len() < TASKS * EACH {
            changes.push(next(&mut watch).await.unwrap());
        }
        nothing_comes(&mut watch).await;
        seen.push(changes);
    }
    let acknowledged: BTreeMap<u64, Vec<Write>> = tasks.join_all().await.into_iter().flatten().collect();
    let expected: Vec<Change> =
        acknowledged.into_iter().map(|(revision, writes)| Change { revision, writes }).collect();
    assert!((1..).zip(&expected).all(|(revision, change)| change.revision == revision), "{expected:?}");
    assert!(seen.iter().all(|changes| *changes == expected));
}

pub async fn tells_changes_from_any_revision_on(store: Arc<dyn Store>) {
    let expect = |n: u64| Change { revision: n, writes: vec![put("/n", n.to_string())] };
    for n in 1..=30_u64 {
        store.commit(writes([put("/n", n.to_string())])).await.unwrap();
    }
    for from in [0, 1, 10, 29, 30] {
        let mut watch = store.watch(from);
        for n in from + 1..=30 {
            assert_eq!(next(&mut watch).await, Some(expect(n)));
        }
        nothing_comes(&mut watch).await;
    }
    let mut watch = store.watch(20);
    assert_eq!(next(&mut watch).await, Some(expect(21)));
    drop(watch);
    let mut watch = store.watch(21);
    assert_eq!(next(&mut watch).await, Some(expect(22)));
    store.commit(writes([put("/n", "31")])).await.unwrap();
    for n in 23..=31 {
        assert_eq!(next(&mut watch).await, Some(expect(n)));
    }
}

pub async fn tells_a_slow_reader_everything(store: Arc<dyn Store>) {
    const CHANGES: u64 = 2_000;
    let mut watch = store.watch(0);
    let all = (0..CHANGES).map(|_| store.commit(writes([put("/n", vec![7; 1 << 10])])));
    let done = timeout(SOON, join_all(all)).await.expect("nobody waits for the reader");
    assert!(done.iter().all(Result::is_ok));
    for revision in 1..=CHANGES {
        assert_eq!(next(&mut watch).await.unwrap().revision, revision);
    }
}

pub async fn ends_a_watch_from_the_future(store: Arc<dyn Store>) {
    store.commit(writes([put("/key", "")])).await.unwrap();
    assert_eq!(next(&mut store.watch(2)).await, None);
}

pub async fn deletes_what_is_absent(store: Arc<dyn Store>) {
    let first = store.commit(writes([put("/key", "")])).await.unwrap();
    let mut watch = store.watch(first);
    assert_eq!(store.commit(writes([delete("/absent")])).await, Ok(first), "nothing changed");
    let second = store.commit(writes([delete("/absent"), delete("/key"), put("/other", "")])).await.unwrap();
    assert_eq!(second, first + 1);
    let changed = Change { revision: second, writes: vec![delete("/key"), put("/other", "")] };
    assert_eq!(next(&mut watch).await, Some(changed), "it tells what changed");
    let (entries, _) = store.read("/").await.unwrap();
    assert_eq!(entries.iter().map(|entry| &entry.key[..]).collect::<Vec<_>>(), ["/other"]);
}

pub async fn holds_conditions_on_absent_keys(store: Arc<dyn Store>) {
    let once = Transaction { conditions: vec![when("/key", None)], writes: vec![put("/key", "mine")] };
    let conflict = Err(StoreError::Conflict("/key".to_owned()));
    let again =
        |revision| Transaction { conditions: vec![when("/key", revision)], writes: vec![put("/key", "")] };
    assert_eq!(store.commit(again(Some(1))).await, conflict, "it was never set");
    assert_eq!(store.commit(again(Some(0))).await, conflict, "no revision is 0");
    let all = join_all((0..20).map(|_| store.commit(once.clone()))).await;
    assert_eq!(all.iter().filter(|result| result.is_ok()).count(), 1, "{all:?}");
    assert_eq!(store.commit(once.clone()).await, conflict);
    store.commit(writes([delete("/key")])).await.unwrap();
    assert_eq!(store.commit(again(Some(1))).await, conflict, "it was deleted");
    assert_eq!(store.commit(once).await, Ok(3));
}

pub async fn keeps_large_values(store: Arc<dyn Store>) {
    let value: Vec<u8> = (0..1_u32 << 18).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    assert_eq!(value.len(), 1 << 20);
    let all = writes([put("/large", &value), put("/empty", ""), put("/zeros", [0; 3])]);
    let revision = store.commit(all.clone()).await.unwrap();
    assert_eq!(get(&*store, "/large").await.unwrap().value, value);
    assert_eq!(get(&*store, "/empty").await.unwrap().value, b"");
    assert_eq!(get(&*store, "/zeros").await.unwrap().value, [0; 3]);
    let changed = next(&mut store.watch(revision - 1)).await;
    assert!(changed == Some(Change { revision, writes: all.writes }), "the change differs");
}

pub async fn keeps_many_keys_of_one_transaction(store: Arc<dyn Store>) {
    let keys: Vec<String> = (0..2_000).map(|n| format!("/many/{n:04}")).collect();
    let conditions = keys.iter().map(|key| when(key, None)).collect();
    let all: Vec<_> = keys.iter().rev().map(|key| put(key, key)).collect();
    let revision = store.commit(Transaction { conditions, writes: all.clone() }).await.unwrap();
    let (entries, _) = store.read("/many/").await.unwrap();
    assert!(entries.iter().all(|entry| entry.revision == revision && entry.value == entry.key.as_bytes()));
    assert_eq!(entries.into_iter().map(|entry| entry.key).collect::<Vec<_>>(), keys, "in order");
    let changed = next(&mut store.watch(revision - 1)).await.unwrap();
    assert_eq!(changed, Change { revision, writes: all });
    store.commit(writes(keys.iter().map(|key| delete(key)).collect::<Vec<_>>())).await.unwrap();
    assert_eq!(store.read("/many/").await.unwrap(), (Vec::new(), revision + 1));
}

pub async fn reads_exactly_a_prefix(store: Arc<dyn Store>) {
    let keys = [
        "/meshes/A",
        "/meshes/a",
        "/meshes/a%",
        "/meshes/a%b",
        "/meshes/a*",
        "/meshes/a_",
        "/meshes/aXb",
        "/meshes/ab",
        "/meshes/a\u{e9}",
        "/meshes/a\u{10ffff}",
        "/meshes/b",
        "/mesheS/a",
        "/meshes",
        "/nodes/a",
        "a",
        "'",
        "\\",
    ];
    store.commit(writes(keys.map(|key| put(key, "")))).await.unwrap();
    for prefix in [
        "",
        "/",
        "/meshes",
        "/meshes/",
        "/meshes/a",
        "/meshes/a%",
        "/meshes/a_",
        "/meshes/ab",
        "/meshes/a*",
        "/meshes/a\u{e9}",
        "/meshes/a\u{10ffff}",
        "/meshes/c",
        "'",
        "\\",
        "%",
        "_",
        "?",
    ] {
        let mut expected: Vec<_> = keys.into_iter().filter(|key| key.starts_with(prefix)).collect();
        expected.sort_unstable();
        let (entries, _) = store.read(prefix).await.unwrap();
        assert_eq!(entries.into_iter().map(|entry| entry.key).collect::<Vec<_>>(), expected, "{prefix:?}");
    }
}

pub async fn refuses_a_key_written_twice(store: Arc<dyn Store>) {
    for second in [put("/key", "2"), delete("/key")] {
        let error = store.commit(writes([put("/key", "1"), second])).await.unwrap_err();
        assert!(matches!(&error, StoreError::Unavailable(words) if words.contains("/key")), "{error:?}");
    }
    assert_eq!(store.read("").await.unwrap(), (Vec::new(), 0));
}
