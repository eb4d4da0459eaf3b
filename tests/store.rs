//! The store in one file: what every store must do, and what files, disks and killed processes do to it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]
#![allow(clippy::disallowed_methods, reason = "real locks are waited for in real time")]

mod conformance;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use std::{env, io, thread};

use conformance::{conformance, delete, next, put, when, writes};
use futures_util::future::join_all;
use rusqlite::Connection;
use tempfile::TempDir;
use tunmesh::controller::store::sqlite::{OpenError, SqliteStore};
use tunmesh::controller::store::{Change, Entry, Store, StoreError, Transaction};

conformance!(empty);

fn empty() -> (TempDir, Arc<dyn Store>) {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path()).unwrap();
    (directory, Arc::new(store))
}

fn database(directory: &Path) -> PathBuf {
    directory.join("store.db")
}

fn refusal(directory: &Path) -> OpenError {
    SqliteStore::open(directory).map(|_| ()).unwrap_err()
}

fn unavailable<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::Unavailable(words)) => words,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn reopened_it_has_everything() {
    let directory = tempfile::tempdir().unwrap();
    for round in 1..=5_u64 {
        let store = SqliteStore::open(directory.path()).unwrap();
        let (entries, revision) = store.read("/").await.unwrap();
        assert_eq!((entries.len() as u64, revision), (round - 1, round - 1));
        let key = format!("/n/{round}");
        let only_once = Transaction { conditions: vec![when(&key, None)], writes: vec![put(&key, "")] };
        assert_eq!(store.commit(only_once).await, Ok(round));
        let mut watch = store.watch(0);
        for n in 1..=round {
            let expected = Change { revision: n, writes: vec![put(&format!("/n/{n}"), "")] };
            assert_eq!(next(&mut watch).await, Some(expected));
        }
        drop(store);
        assert_eq!(next(&mut watch).await, None, "a closed store tells nothing more");
    }
}

#[test]
fn a_second_controller_is_told_who_has_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path()).unwrap();
    let error = refusal(directory.path()).to_string();
    assert!(error.contains(&std::process::id().to_string()) && error.contains("--state-dir"), "{error}");
    drop(store);
    SqliteStore::open(directory.path()).unwrap();
}

/// What it commits then is gone with the process: nobody must be told that it is kept.
#[tokio::test]
async fn a_database_taken_away_while_it_is_used_acknowledges_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path()).unwrap();
    assert_eq!(store.commit(writes([put("/a", "1")])).await, Ok(1));
    let (here, there) = (database(directory.path()), directory.path().join("elsewhere"));
    fs::rename(&here, &there).unwrap();
    let words = unavailable(store.commit(writes([put("/a", "2")])).await);
    assert!(words.contains("was removed or replaced"), "{words}");
    fs::write(&here, "").unwrap();
    unavailable(store.commit(writes([put("/a", "2")])).await);
    fs::rename(&there, &here).unwrap();
    assert_eq!(store.commit(writes([put("/a", "2")])).await, Ok(2));
}

#[tokio::test]
async fn nobody_else_can_read_its_files() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("new/state");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for _ in 0..2 {
        let store = SqliteStore::open(&directory).unwrap();
        store.commit(writes([put("/key", "")])).await.unwrap();
        assert_eq!(mode(&directory), 0o700);
        let files: Vec<_> = fs::read_dir(&directory).unwrap().map(|file| file.unwrap().path()).collect();
        assert!(files.len() >= 3, "{files:?}");
        for file in files {
            assert_eq!(mode(&file), 0o600, "{}", file.display());
        }
        drop(store);
        // As a copy that was put back.
        fs::set_permissions(database(&directory), fs::Permissions::from_mode(0o644)).unwrap();
    }
}

#[test]
fn a_newer_schema_is_refused_with_words() {
    let directory = tempfile::tempdir().unwrap();
    drop(SqliteStore::open(directory.path()).unwrap());
    let connection = Connection::open(database(directory.path())).unwrap();
    connection.pragma_update(None, "user_version", 2).unwrap();
    let error = refusal(directory.path());
    assert!(matches!(error, OpenError::Newer(_, 2)), "{error:?}");
    assert!(error.to_string().contains("schema 2"), "{error}");
}

#[test]
fn a_database_of_another_application_stays_as_it_is() {
    for theirs in [
        "create table theirs (n)",
        "pragma application_id = 7",
        "pragma user_version = 1; create table kv (key, value, revision)",
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = database(directory.path());
        Connection::open(&path).unwrap().execute_batch(theirs).unwrap();
        let before = fs::read(&path).unwrap();
        let error = refusal(directory.path());
        assert!(matches!(error, OpenError::Foreign(_)), "{error:?}");
        assert_eq!(fs::read(&path).unwrap(), before);
    }
}

/// A closed store with `keys` keys of 1 kB each.
async fn filled(keys: usize) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path()).unwrap();
    let all: Vec<_> = (0..keys).map(|n| put(&format!("/n/{n:04}"), vec![7; 1 << 10])).collect();
    store.commit(writes(all)).await.unwrap();
    directory
}

#[tokio::test]
async fn a_damaged_database_is_refused_with_words() {
    let directory = filled(500).await;
    let path = database(directory.path());
    let good = fs::read(&path).unwrap();
    let middle = [&good[..good.len() / 2], &[0xa5; 1 << 16], &good[good.len() / 2 + (1 << 16)..]].concat();
    for damaged in [
        &b"no database at all, but long enough to look like one".repeat(99)[..],
        &good[..good.len() / 3],
        &middle,
    ] {
        fs::write(&path, damaged).unwrap();
        let error = refusal(directory.path());
        assert!(matches!(error, OpenError::Database(_)), "{error:?}");
        assert!(error.to_string().contains("is damaged"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), damaged, "it is the operator's to look at");
    }
    fs::write(&path, &good).unwrap();
    SqliteStore::open(directory.path()).unwrap();
}

/// What is found where a controller was killed, and an older copy of the database alone was put back: the log of later
/// changes is no part of it. It may say all that was there last; then that is what there is.
#[tokio::test]
async fn a_copy_beside_the_log_of_later_changes_is_never_a_mixture() {
    let mut refused = 0;
    for (missing, logged) in [(0, 10), (1, 1), (1, 5), (2, 2), (3, 3), (4, 10), (7, 3), (30, 10)] {
        let directory = tempfile::tempdir().unwrap();
        let (path, log) = (database(directory.path()), directory.path().join("store.db-wal"));
        let changed = async |numbers: std::ops::Range<usize>| {
            let store = SqliteStore::open(directory.path()).unwrap();
            for n in numbers {
                // Here and there among a hundred keys.
                let key = format!("/n/{}", n * 37 % 100);
                store.commit(writes([put(&key, vec![1; 300])])).await.unwrap();
            }
            store
        };
        drop(changed(0..100).await);
        let copy = fs::read(&path).unwrap();
        drop(changed(100..100 + missing).await);
        let running = changed(350..350 + logged).await;
        let (later, last) = (fs::read(&log).unwrap(), running.read("/").await.unwrap());
        drop(running);
        fs::write(&path, &copy).unwrap();
        fs::write(&log, &later).unwrap();
        match SqliteStore::open(directory.path()) {
            Ok(store) => {
                assert_eq!(store.read("/").await.unwrap(), last, "{missing} are missing");
                drop(store);
                let database = Connection::open(&path).unwrap();
                let found: String =
                    database.pragma_query_value(None, "integrity_check", |row| row.get(0)).unwrap();
                assert_eq!(found, "ok", "{missing} are missing");
            }
            Err(error) => {
                let error = error.to_string();
                for words in ["is damaged", "store.db-wal", "put a copy of it back"] {
                    assert!(error.contains(words), "{missing} are missing: {error}");
                }
                refused += 1;
            }
        }
        // As the words say.
        for file in ["store.db", "store.db-wal", "store.db-shm"] {
            let _ = fs::remove_file(directory.path().join(file));
        }
        fs::write(&path, &copy).unwrap();
        let store = SqliteStore::open(directory.path()).unwrap();
        assert_eq!(store.read("/").await.unwrap().1, 100);
    }
    assert!(refused > 0);
}

#[tokio::test]
async fn a_database_damaged_while_it_is_used_gives_errors_in_words() {
    let directory = filled(500).await;
    let store = SqliteStore::open(directory.path()).unwrap();
    let path = database(directory.path());
    let good = fs::read(&path).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&vec![0xa5; good.len() - 4096], 4096).unwrap();
    for _ in 0..3 {
        let words = unavailable(store.read("/").await);
        assert!(words.contains("is damaged"), "{words}");
        assert_eq!(next(&mut store.watch(0)).await, None);
    }
    drop(store);
    file.write_all_at(&good, 0).unwrap();
    let store = SqliteStore::open(directory.path()).unwrap();
    assert_eq!(store.read("/n/").await.unwrap().0.len(), 500);
}

/// A small file system.
struct Disk(TempDir);

impl Disk {
    fn mount() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "none"])
            .arg(directory.path())
            .status()
            .unwrap();
        assert!(mounted.success(), "file systems are mounted by root: run scripts/test as root");
        Self(directory)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_costs_what_does_not_fit_and_nothing_else() {
    let disk = Disk::mount();
    let store = SqliteStore::open(disk.0.path()).unwrap();
    let revision = store.commit(writes([put("/a", "1"), put("/b", "1")])).await.unwrap();
    let filler = disk.0.path().join("filler");
    let error = fs::write(&filler, vec![0; 1 << 21]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    for _ in 0..3 {
        let all =
            (0..20).map(|n| store.commit(writes([delete("/a"), put(&format!("/n/{n}"), vec![7; 1 << 16])])));
        for result in join_all(all).await {
            let words = unavailable(result);
            assert!(words.contains("is full"), "{words}");
        }
        let entry = |key: &str| Entry { key: key.to_owned(), value: b"1".to_vec(), revision };
        assert_eq!(store.read("/").await.unwrap(), (vec![entry("/a"), entry("/b")], revision));
    }
    fs::remove_file(filler).unwrap();
    assert_eq!(store.commit(writes([delete("/a")])).await, Ok(revision + 1));
    let mut watch = store.watch(revision);
    assert_eq!(next(&mut watch).await, Some(Change { revision: revision + 1, writes: vec![delete("/a")] }));
    // A full disk at the start.
    drop(store);
    fs::write(disk.0.path().join("filler"), vec![0; 1 << 21]).unwrap_err();
    if let Err(error) = SqliteStore::open(disk.0.path()) {
        assert!(error.to_string().contains("is full"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_reaches_ten_thousand_transactions_back() {
    const ALL: u64 = 10_500;
    let (_directory, store) = empty();
    join_all((0..ALL).map(|_| store.commit(writes([put("/n", "")])))).await;
    for forgotten in [0, 1, ALL - 10_001] {
        assert_eq!(next(&mut store.watch(forgotten)).await, None, "{forgotten}");
    }
    let mut watch = store.watch(ALL - 10_000);
    for revision in ALL - 9_999..=ALL {
        assert_eq!(next(&mut watch).await.unwrap().revision, revision);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_slower_than_the_log_is_long_is_sent_away() {
    const ALL: u64 = 100;
    let (directory, store) = empty();
    let mut watch = store.watch(0);
    for _ in 0..ALL {
        store.commit(writes([put("/n", vec![7; 1 << 20])])).await.unwrap();
    }
    let size = fs::metadata(database(directory.path())).unwrap().len();
    assert!(size < 90 << 20, "the log does not forget: {size} bytes");
    let mut seen = 0;
    while let Some(change) = next(&mut watch).await {
        seen += 1;
        assert_eq!(change.revision, seen, "in order, or not at all");
    }
    assert!((1..30).contains(&seen), "{seen} changes were kept for it");
    assert_eq!(next(&mut store.watch(ALL - 1)).await.unwrap().revision, ALL);
}

/// Names the directory of the store that a child of this test binary writes to.
const CHILD: &str = "TUNMESH_TEST_STORE";
/// Keys of one transaction of the child.
const KEYS: u64 = 20;

/// No test of its own: the child that [`killed_at_any_moment_it_has_what_was_acknowledged`] kills.
#[tokio::test(flavor = "multi_thread")]
async fn child_writes_until_it_is_killed() {
    let Some(directory) = env::var_os(CHILD) else { return };
    let store = SqliteStore::open(Path::new(&directory)).unwrap();
    let (_, revision) = store.read("/").await.unwrap();
    let store = &store;
    let writers = (0..8_u64).map(|writer| async move {
        for n in 0.. {
            let name = format!("{revision}-{writer}-{n}");
            let all = (0..KEYS).map(|key| put(&format!("/t/{name}/{key}"), &name)).collect::<Vec<_>>();
            let done = store.commit(writes(all)).await.unwrap();
            // One write of a line: the reader sees it whole or not at all.
            io::stdout().write_all(format!("\ndone {done} {name}\n").as_bytes()).unwrap();
        }
    });
    join_all(writers).await;
}

#[tokio::test]
async fn killed_at_any_moment_it_has_what_was_acknowledged() {
    const ROUNDS: u64 = 20;
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeMap::new();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..ROUNDS {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let moment = Duration::from_micros(seed % 150_000);
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "child_writes_until_it_is_killed", "--nocapture"])
            .env(CHILD, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut acknowledge = |line: String| {
            let mut words = line.split(' ').skip(1).map(str::to_owned);
            let (revision, name) = (words.next().unwrap().parse::<u64>().unwrap(), words.next().unwrap());
            assert_eq!(acknowledged.insert(revision, name), None, "revision {revision} was given twice");
        };
        acknowledge(lines.find(|line| line.starts_with("done ")).expect("it writes"));
        let killer = thread::spawn(move || {
            thread::sleep(moment);
            child.kill().unwrap();
            child.wait().unwrap();
        });
        lines.filter(|line| line.starts_with("done ")).for_each(acknowledge);
        killer.join().unwrap();

        let store = SqliteStore::open(directory.path()).unwrap();
        let (entries, last) = store.read("/t/").await.unwrap();
        let mut kept = BTreeMap::<u64, Vec<Entry>>::new();
        entries.into_iter().for_each(|entry| kept.entry(entry.revision).or_default().push(entry));
        for (revision, name) in &acknowledged {
            let whole = kept.get(revision).is_some_and(|entries| entries[0].value == name.as_bytes());
            assert!(whole, "round {round}: {revision} {name} was acknowledged and is lost");
        }
        assert!(kept.keys().copied().eq(1..=last), "round {round}: revisions are missing");
        for (revision, entries) in kept {
            assert_eq!(entries.len() as u64, KEYS, "round {round}: {revision} is half there");
        }
        let logged = last.saturating_sub(10_000);
        let mut watch = store.watch(logged);
        for revision in logged + 1..=last {
            let change = next(&mut watch).await.unwrap();
            assert_eq!((change.revision, change.writes.len() as u64), (revision, KEYS), "round {round}");
        }
    }
    assert!(acknowledged.len() > 100, "{} transactions", acknowledged.len());
}
