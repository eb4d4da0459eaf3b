//! What is asked of a store, and what it tells.

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key, as `/meshes/prod`.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// The revision that set it.
    pub revision: u64,
}

/// What must hold for a transaction to be done: a key was set by this revision, or is absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// The key.
    pub key: String,
    /// The revision that set it; `None`: it is absent.
    pub revision: Option<u64>,
}

/// One change of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets a key.
    Put(String, Vec<u8>),
    /// Removes a key; one that is absent is no error.
    Delete(String),
}

/// Writes that happen together, or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// What must hold.
    pub conditions: Vec<Condition>,
    /// What is then done, each key once.
    pub writes: Vec<Write>,
}

/// What one transaction changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its revision.
    pub revision: u64,
    /// Its writes.
    pub writes: Vec<Write>,
}

/// Why a store did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A condition does not hold; nothing changed.
    #[error("{0} has been changed by another")]
    Conflict(String),
    /// It cannot be read or written, in words why; nothing changed.
    #[error("{0}")]
    Unavailable(String),
}
