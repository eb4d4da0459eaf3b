//! Changes of who may join and who may steer: all that wait are judged together, one after the other, and committed
//! in one transaction, so that a thousand hosts that join at once wait for a few.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinSet};

use super::Stopping;
use crate::controller::audit::Deed;
use crate::controller::state::ControllerState;
use crate::controller::store::{Store, StoreError};
use crate::controller::trust::{Denial, Draft};

/// How many changes wait at most.
const WAITING: usize = 4_096;

/// Why a change was not made. Nothing of it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeError {
    /// It is refused.
    Refused(Denial),
    /// The store cannot be written, in words why.
    Store(String),
    /// Too many are before it.
    Busy,
    /// The controller is stopping.
    Stopping,
}

impl From<Stopping> for ChangeError {
    fn from(Stopping: Stopping) -> Self {
        Self::Stopping
    }
}

/// Something that is wanted to be otherwise.
pub(super) trait Change: Send {
    /// Makes it so in `draft`, as far as it may be. May be called again, with another draft.
    fn judge(&mut self, draft: &mut Draft, wall: Duration);

    /// Tells what came of it: where `fault` is, it could not be stored.
    fn answer(self: Box<Self>, fault: Option<ChangeError>);
}

/// A change with whoever waits for it.
pub(super) struct Asked<T, F> {
    deed: Option<Deed>,
    judge: F,
    outcome: Option<Result<T, Denial>>,
    reply: oneshot::Sender<Result<T, ChangeError>>,
}

impl<T, F> Asked<T, F> {
    pub(super) fn new(deed: Option<Deed>, judge: F, reply: oneshot::Sender<Result<T, ChangeError>>) -> Self {
        Self { deed, judge, outcome: None, reply }
    }
}

impl<T, F> Change for Asked<T, F>
where
    T: Send,
    F: FnMut(&mut Draft, Duration) -> Result<T, Denial> + Send,
{
    fn judge(&mut self, draft: &mut Draft, wall: Duration) {
        let judge = &mut self.judge;
        self.outcome = Some(draft.attempt(self.deed.as_ref(), |draft| judge(draft, wall)));
    }

    fn answer(self: Box<Self>, fault: Option<ChangeError>) {
        let answer = match (self.outcome, fault) {
            // What is refused was not to be stored.
            (Some(Err(denial)), _) => Err(ChangeError::Refused(denial)),
            (_, Some(fault)) => Err(fault),
            (Some(Ok(value)), None) => Ok(value),
            (None, None) => Err(ChangeError::Stopping),
        };
        // Whoever asked may have gone away meanwhile.
        let _ = self.reply.send(answer);
    }
}

type Commit = Result<u64, StoreError>;

/// The changes that are not answered yet.
pub(super) struct Changes {
    store: Arc<dyn Store>,
    waiting: Vec<Box<dyn Change>>,
    /// Those of the transaction that is under way, or has not come into the state yet.
    batch: Vec<Box<dyn Change>>,
    commits: JoinSet<Commit>,
    /// The revision of that transaction, once it is done.
    done: Option<u64>,
    /// The revision by which that transaction was judged.
    judged: u64,
    /// Above which revision the next may be judged: one that lost is judged by what it lost against.
    after: Option<u64>,
}

impl Changes {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            waiting: Vec::new(),
            batch: Vec::new(),
            commits: JoinSet::new(),
            done: None,
            judged: 0,
            after: None,
        }
    }

    /// Takes in a change. [`Self::handle_state`] begins with it.
    pub(super) fn take_in(&mut self, change: Box<dyn Change>) {
        if self.waiting.len() >= WAITING {
            change.answer(Some(ChangeError::Busy));
            return;
        }
        self.waiting.push(change);
    }

    /// What came of the transaction that is under way; `None`: there is none.
    pub(super) async fn next(&mut self) -> Option<Commit> {
        let lost = |error: JoinError| StoreError::Unavailable(error.to_string());
        Some(self.commits.join_next().await?.map_err(lost).flatten())
    }

    /// Does what follows from it. Returns why the store could not be written.
    pub(super) fn settle(&mut self, commit: Commit) -> Option<String> {
        match commit {
            Ok(revision) => {
                self.done = Some(revision);
                None
            }
            Err(StoreError::Conflict(_)) => {
                self.after = Some(self.judged);
                let later = std::mem::take(&mut self.waiting);
                self.waiting = std::mem::take(&mut self.batch);
                self.waiting.extend(later);
                None
            }
            Err(StoreError::Unavailable(reason)) => {
                for change in self.batch.drain(..) {
                    change.answer(Some(ChangeError::Store(reason.clone())));
                }
                Some(reason)
            }
        }
    }

    /// Answers what the state has come to, and judges what waits.
    pub(super) fn handle_state(&mut self, state: &ControllerState, wall: Duration) {
        let revision = state.stored().revision;
        if self.done.take_if(|done| *done <= revision).is_some() {
            self.batch.drain(..).for_each(|change| change.answer(None));
        }
        let is_held = self.after.take_if(|after| revision > *after).is_none() && self.after.is_some();
        if !self.batch.is_empty() || self.waiting.is_empty() || is_held {
            return;
        }
        let mut draft = Draft::new(&state.stored().trust);
        let mut changes = std::mem::take(&mut self.waiting);
        changes.iter_mut().for_each(|change| change.judge(&mut draft, wall));
        match state.stored().transaction_of(&draft, wall) {
            None => changes.into_iter().for_each(|change| change.answer(None)),
            Some(transaction) => {
                self.batch = changes;
                self.judged = revision;
                let store = Arc::clone(&self.store);
                self.commits.spawn(async move { store.commit(transaction).await });
            }
        }
    }
}
