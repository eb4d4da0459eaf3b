//! A store in one file, for one controller.
//!
//! One thread writes: all transactions that wait for it are done in one commit of the database, each in a savepoint
//! of its own, and are answered when that commit is on disk. Readers have a connection of their own and are not held
//! up. A watch reads the log, so that its reader may be as slow as it likes until the log has forgotten.

mod tables;

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rusqlite::ffi::SQLITE_IOERR_SHMSIZE;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use super::{Change, Entry, Store, StoreError, Transaction};
use crate::proto::host::lock::{DirectoryError, Lock};
use tables::Refusal;

const FILE: &str = "store.db";
/// Marks our databases among all of SQLite's, `PRAGMA application_id`.
const APPLICATION: i32 = i32::from_be_bytes(*b"tunm");
/// The version of the tables, `PRAGMA user_version`.
const SCHEMA: i32 = 1;
/// How long to wait for another process that has the database locked, as one that copies it.
const BUSY: Duration = Duration::from_secs(10);
/// The most transactions of one commit, and the most that wait for it.
const GROUP: usize = 256;
/// The most changes that wait for the reader of a watch, beside those of one look at the log.
const AHEAD: usize = 16;

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another controller has the directory, or the file system refuses.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The file is a database of something else.
    #[error("{0} belongs to another application: move it away, or give another --state-dir")]
    Foreign(PathBuf),
    /// The file has a schema of the future.
    #[error(
        "{0} has schema {1}, this controller knows schemas up to {SCHEMA}: run the newer one that wrote it"
    )]
    Newer(PathBuf, i32),
    /// The file cannot be used, in words why.
    #[error("{0}")]
    Database(String),
}

/// A store in one file.
#[derive(Debug)]
pub struct SqliteStore {
    file: Arc<File>,
    requests: mpsc::Sender<Request>,
    head: watch::Receiver<u64>,
    watches: Mutex<JoinSet<()>>,
    writer: Option<JoinHandle<()>>,
}

/// The database, for reading.
#[derive(Debug)]
struct File {
    path: PathBuf,
    connection: Mutex<Connection>,
}

#[derive(Debug)]
struct Request {
    transaction: Transaction,
    reply: oneshot::Sender<Result<u64, StoreError>>,
}

impl SqliteStore {
    /// Opens the store in `directory`, both made where they are missing, for this process alone.
    ///
    /// # Errors
    /// Where another controller has it, it is damaged, foreign or of a newer schema, or the file system refuses.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        let lock = Lock::take(directory, "controller")?;
        let path = directory.join(FILE);
        create(&path).map_err(|error| DirectoryError::Io(directory.to_owned(), error))?;
        let failed = |error| OpenError::Database(words(&path, &error));
        let mut connection = connect(&path).map_err(failed)?;
        prepare(&path, &mut connection)?;
        let revision = tables::end(&connection).map_err(failed)?.revision;
        let reading = connect(&path).map_err(failed)?;
        reading.pragma_update(None, "query_only", true).map_err(failed)?;

        let (requests, waiting) = mpsc::channel(GROUP);
        let (head, seen) = watch::channel(revision);
        let place = place(&path);
        let writer = Writer { path: path.clone(), place, connection, head, failure: None, _lock: lock };
        let writer = thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run(waiting))
            .map_err(|error| OpenError::Database(format!("no thread for {}: {error}", path.display())))?;
        Ok(Self {
            file: Arc::new(File { path, connection: Mutex::new(reading) }),
            requests,
            head: seen,
            watches: Mutex::default(),
            writer: Some(writer),
        })
    }
}

impl Drop for SqliteStore {
    /// Waits for what is being committed, so that the next to open it finds the lock free.
    fn drop(&mut self) {
        self.requests = mpsc::channel(1).0;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

#[tonic::async_trait]
impl Store for SqliteStore {
    async fn read(&self, prefix: &str) -> Result<(Vec<Entry>, u64), StoreError> {
        let prefix = prefix.to_owned();
        look(&self.file, move |database| tables::read(database, &prefix)).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        let ended = || StoreError::Unavailable(format!("{} is closed", self.file.path.display()));
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request { transaction, reply }).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    fn watch(&self, revision: u64) -> ReceiverStream<Change> {
        let (sender, receiver) = mpsc::channel(AHEAD);
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        while watches.try_join_next().is_some() {}
        watches.spawn(follow(self.file.clone(), self.head.clone(), revision, sender));
        ReceiverStream::new(receiver)
    }
}

/// Asks the database, where that may take its time.
async fn look<T: Send + 'static>(
    file: &Arc<File>,
    ask: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
) -> Result<T, StoreError> {
    let file = file.clone();
    let asked = tokio::task::spawn_blocking(move || {
        let connection = file.connection.lock().unwrap_or_else(PoisonError::into_inner);
        ask(&connection).map_err(|error| StoreError::Unavailable(words(&file.path, &error)))
    });
    asked.await.map_err(|error| StoreError::Unavailable(error.to_string()))?
}

/// Brings the changes after `revision` to a reader, until it goes, the store closes or the log does not reach back.
async fn follow(
    file: Arc<File>,
    mut head: watch::Receiver<u64>,
    mut revision: u64,
    reader: mpsc::Sender<Change>,
) {
    loop {
        let changes = match look(&file, move |database| tables::changes(database, revision)).await {
            Ok(Some(changes)) => changes,
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, "changes of the store cannot be followed");
                return;
            }
        };
        let is_last = changes.is_empty();
        for change in changes {
            revision = change.revision;
            if reader.send(change).await.is_err() {
                return;
            }
        }
        if is_last {
            tokio::select! {
                () = reader.closed() => return,
                changed = head.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// What the writing thread has.
struct Writer {
    path: PathBuf,
    /// Of the open file.
    place: Option<Place>,
    connection: Connection,
    head: watch::Sender<u64>,
    /// Why the last commit failed. It is tried again and again, and the log may be on the same disk.
    failure: Option<String>,
    _lock: Lock,
}

impl Writer {
    /// Works until nobody can ask any more.
    fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut group = Vec::with_capacity(GROUP);
        while requests.blocking_recv_many(&mut group, GROUP) > 0 {
            let (transactions, replies): (Vec<_>, Vec<_>) =
                group.drain(..).map(|request| (request.transaction, request.reply)).unzip();
            let kept = self.kept(&transactions);
            let failure = match &kept {
                Ok(results) => results.iter().find_map(unavailable),
                Err(error) => Some(error.clone()),
            };
            match (&failure, self.failure.is_some()) {
                (Some(error), _) if failure != self.failure => {
                    tracing::error!(%error, "the store cannot be written");
                }
                (None, true) => tracing::info!("the store can be written again"),
                (Some(_), _) | (None, false) => {}
            }
            self.failure = failure;
            let refuse = |error| vec![Err(StoreError::Unavailable(error)); transactions.len()];
            let results = kept.unwrap_or_else(refuse);
            for (reply, result) in replies.into_iter().zip(results) {
                // Whoever asked may have gone.
                let _ = reply.send(result);
            }
        }
    }

    /// Does transactions where whoever starts next will find them.
    fn kept(&mut self, transactions: &[Transaction]) -> Result<Vec<Result<u64, StoreError>>, String> {
        // The database goes on in a file that has lost its name, and what it commits is gone with this process.
        if place(&self.path) != self.place {
            let file = self.path.display();
            return Err(format!(
                "{file} was removed or replaced while the controller ran: put it back, or start the controller again \
                 to go on with what is there"
            ));
        }
        self.commit(transactions).map_err(|error| words(&self.path, &error))
    }

    /// Does transactions in one commit; an error: none of them was done.
    fn commit(&mut self, transactions: &[Transaction]) -> rusqlite::Result<Vec<Result<u64, StoreError>>> {
        let mut group = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut end = tables::end(&group)?;
        let mut results = Vec::with_capacity(transactions.len());
        for transaction in transactions {
            let savepoint = group.savepoint()?;
            results.push(match tables::perform(&savepoint, transaction, end) {
                Ok(after) => {
                    savepoint.commit()?;
                    end = after;
                    Ok(end.revision)
                }
                Err(Refusal::Conflict(key)) => Err(StoreError::Conflict(key)),
                Err(Refusal::Twice(key)) => {
                    Err(StoreError::Unavailable(format!("a transaction writes {key} twice")))
                }
                // On a full disk SQLite takes back more than the savepoint, sometimes.
                Err(Refusal::Failed(error)) if savepoint.is_autocommit() => return Err(error),
                Err(Refusal::Failed(error)) => Err(StoreError::Unavailable(words(&self.path, &error))),
            });
        }
        tables::prune(&group, end)?;
        group.commit()?;
        self.head.send_if_modified(|head| std::mem::replace(head, end.revision) != end.revision);
        Ok(results)
    }
}

fn unavailable(result: &Result<u64, StoreError>) -> Option<String> {
    match result {
        Err(StoreError::Unavailable(words)) => Some(words.clone()),
        Ok(_) | Err(StoreError::Conflict(_)) => None,
    }
}

/// Device and number of a file, which no other has while it is open.
type Place = (u64, u64);

fn place(path: &Path) -> Option<Place> {
    path.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Makes an empty file where there is none. What SQLite puts beside it gets the same mode.
fn create(path: &Path) -> std::io::Result<()> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    // A copy that was put back may have any.
    fs::set_permissions(path, Permissions::from_mode(0o600))
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    // In WAL mode NORMAL would lose acknowledged transactions when the host loses power.
    connection.pragma_update(None, "synchronous", "full")?;
    Ok(connection)
}

/// Sees to it that a database is ours, whole, of our schema and in WAL mode. One that is not ours stays as it is.
fn prepare(path: &Path, connection: &mut Connection) -> Result<(), OpenError> {
    let failed = |error| OpenError::Database(words(path, &error));
    let pragma = |connection: &Connection, name| {
        connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0)).map_err(failed)
    };
    let (application, schema) = (pragma(connection, "application_id")?, pragma(connection, "user_version")?);
    let tables: u32 =
        connection.query_row("select count(*) from sqlite_schema", [], |row| row.get(0)).map_err(failed)?;
    let is_empty = application == 0 && schema == 0 && tables == 0;
    if !is_empty && application != APPLICATION {
        return Err(OpenError::Foreign(path.to_owned()));
    }
    if schema > SCHEMA {
        return Err(OpenError::Newer(path.to_owned(), schema));
    }
    let found: String =
        connection.pragma_query_value(None, "quick_check", |row| row.get(0)).map_err(failed)?;
    if found != "ok" {
        return Err(OpenError::Database(damaged(path, &found)));
    }
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0)).map_err(failed)?;
    if mode != "wal" {
        let reason = "the file system has no memory that processes share: give a --state-dir on a local disk";
        return Err(OpenError::Database(format!("{} cannot be used: {reason}", path.display())));
    }
    if is_empty {
        initialise(connection).map_err(failed)?;
    }
    Ok(())
}

fn initialise(connection: &mut Connection) -> rusqlite::Result<()> {
    let all = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    all.execute_batch(tables::CREATE)?;
    all.pragma_update(None, "user_version", SCHEMA)?;
    all.pragma_update(None, "application_id", APPLICATION)?;
    all.commit()
}

fn words(path: &Path, error: &rusqlite::Error) -> String {
    let file = path.display();
    let full = format!("the disk with {file} is full: make room");
    let extended = error.sqlite_error().map(|error| error.extended_code);
    match error.sqlite_error_code() {
        // Its index is in a file whose size cannot be had.
        Some(ErrorCode::SystemIoFailure) if extended == Some(SQLITE_IOERR_SHMSIZE) => full,
        Some(ErrorCode::DiskFull) => full,
        Some(ErrorCode::ReadOnly) => format!("{file} cannot be written: mount its file system for writing"),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            format!("another process has {file} locked")
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => damaged(path, &error.to_string()),
        _ => format!("{file} cannot be used: {error}"),
    }
}

fn damaged(path: &Path, what: &str) -> String {
    let file = path.display();
    format!(
        "{file} is damaged ({what}): remove {file}, {file}-wal and {file}-shm, then put a copy of it back"
    )
}
