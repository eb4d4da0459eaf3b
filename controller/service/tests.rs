//! A running controller, for the tests of its services.

use std::sync::Arc;

use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::controller::runtime::{self, ControllerHandle, Runtime};
use crate::controller::store::Store;
use crate::controller::store::sqlite::SqliteStore;
use crate::controller::stored::Stored;

/// A controller with a store in a directory of its own.
pub(super) struct Controller {
    pub(super) handle: ControllerHandle,
    pub(super) store: Arc<dyn Store>,
    /// Ends it.
    pub(super) stop: CancellationToken,
    /// What works for it, and for the test.
    pub(super) tasks: JoinSet<()>,
    pub(super) directory: TempDir,
}

pub(super) async fn controller() -> Controller {
    let directory = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(directory.path()).unwrap());
    let (_, transaction) = Stored::default().start("store-1").unwrap();
    store.commit(transaction).await.unwrap();
    let (entries, revision) = store.read("").await.unwrap();
    let (handle, requests) = runtime::channel();
    let runtime = Runtime::new(Stored::from_entries(entries, revision), 1, Arc::clone(&store), requests);
    let mut tasks = JoinSet::new();
    let stop = CancellationToken::new();
    tasks.spawn(runtime.run(stop.clone().cancelled_owned()));
    Controller { handle, store, stop, tasks, directory }
}
