//! Why a session is not in step, and when that is news.

use std::collections::BTreeMap;

/// Why a session is not in step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What kind of trouble it is.
    pub kind: TroubleKind,
    /// What it is, in words. Of one kind they may differ from attempt to attempt.
    pub words: String,
}

impl Trouble {
    /// A trouble of a kind, in words.
    pub fn new(kind: TroubleKind, words: impl Into<String>) -> Self {
        Self { kind, words: words.into() }
    }
}

/// The kinds of trouble: where an operator would look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TroubleKind {
    /// It is not the one that this agent believes, or its certificate does not hold at this time.
    Unbelieved,
    /// It lets this host in once an operator has approved that.
    Unapproved,
    /// The agent has no token, its own is none, or its certificate cannot be kept.
    Unjoined,
    /// Its name does not resolve, or nobody takes a connection there.
    Unreachable,
    /// It took a connection and closed it before it answered.
    Unanswered,
    /// It refuses this agent, with a code of gRPC.
    Refused(i32),
    /// This agent refuses it: it has another store, or speaks another version of the protocol.
    Refuses,
    /// It says what it must not, or what this agent does not understand.
    Unintelligible,
    /// It is silent, or takes nothing any more.
    Silent,
    /// The session ended, by its word or with its connection.
    Ended,
    /// What it wants cannot be kept on disk.
    Unkept,
}

/// What was told of each controller, by position, since the agent was in step.
#[derive(Debug, Default)]
pub struct Told(BTreeMap<usize, TroubleKind>);

impl Told {
    /// Whether a trouble with a controller is news: none is told again for as long as it lasts.
    pub fn is_news(&mut self, controller: usize, kind: TroubleKind) -> bool {
        self.0.insert(controller, kind) != Some(kind)
    }

    /// The agent is in step: whatever comes is new.
    pub fn forget(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_news_once_for_each_controller() {
        let mut told = Told::default();
        let mut news = |controller, kind| told.is_news(controller, kind);
        assert!(news(0, TroubleKind::Unreachable) && news(1, TroubleKind::Unanswered));
        for _ in 0..3 {
            assert!(!news(0, TroubleKind::Unreachable) && !news(1, TroubleKind::Unanswered));
        }
        assert!(news(1, TroubleKind::Refused(6)) && !news(1, TroubleKind::Refused(6)));
        assert!(news(1, TroubleKind::Refused(8)), "another refusal");
        told.forget();
        assert!(told.is_news(0, TroubleKind::Unreachable));
    }
}
