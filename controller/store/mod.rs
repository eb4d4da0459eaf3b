//! Where the controller keeps what is wanted: keys with values, changed by compare-and-swap, watched in order.

pub mod sqlite;
pub mod transaction;

use tokio_stream::wrappers::ReceiverStream;

pub use transaction::{Change, Condition, Entry, StoreError, Transaction, Write};

/// A store. Every transaction that changes something has a revision of its own, one more than the last.
#[tonic::async_trait]
pub trait Store: Send + Sync {
    /// All keys that begin with `prefix`, in order, and the revision at which they are so.
    async fn read(&self, prefix: &str) -> Result<(Vec<Entry>, u64), StoreError>;

    /// Does a transaction; when this returns its revision, it survives a crash.
    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError>;

    /// All changes after `revision`, in order, each once. The stream ends where the store cannot go on from there:
    /// then read again.
    fn watch(&self, revision: u64) -> ReceiverStream<Change>;
}
