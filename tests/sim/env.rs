//! What all parts of a simulated world share: time, chance, the network, and what is to go wrong.

use std::fmt;
use std::time::{Duration, Instant};

use crate::network::Network;
use crate::random::Random;
use crate::trace::Trace;

/// A fault in a shell, which the simulation must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// The controller's shell takes what comes on a superseded connection for the words of the new one.
    NoFence,
    /// The agent's shell says that a generation is kept before it is on disk.
    EarlyAck,
    /// The controller's shell works a delta out from what the agent had before the last one.
    WrongBase,
    /// The controller's shell forgets what came while a push was under way.
    LostDirtyFlag,
    /// The agent's shell removes what the controller does not want, whoever wants it.
    PrunesLocal,
}

pub struct Env {
    epoch: Instant,
    /// Since the run's start.
    pub now: Duration,
    /// How much the controller's wall clock is ahead.
    pub ahead: Duration,
    pub random: Random,
    pub trace: Trace,
    pub network: Network,
    /// Whether anything goes wrong by chance.
    pub faulty: bool,
    pub plant: Option<Plant>,
}

impl Env {
    #[allow(clippy::disallowed_methods, reason = "any instant will do to count from")]
    pub fn new(random: Random, trace: Trace, network: Network, plant: Option<Plant>) -> Self {
        let epoch = Instant::now();
        Self {
            epoch,
            now: Duration::ZERO,
            ahead: Duration::ZERO,
            random,
            trace,
            network,
            faulty: true,
            plant,
        }
    }

    pub fn instant(&self) -> Instant {
        self.epoch + self.now
    }

    /// When an instant of a state machine is, in the run's time.
    pub fn at(&self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.epoch)
    }

    /// Time since the Unix epoch as the controller's host has it.
    pub fn wall(&self) -> Duration {
        const START: Duration = Duration::from_secs(1_800_000_000);
        START + self.now + self.ahead
    }

    /// True once in `times` while things go wrong.
    pub fn fails(&mut self, times: u64) -> bool {
        self.faulty && self.random.once_in(times)
    }

    /// A time from now.
    pub fn soon(&mut self, least: u64, most: u64) -> Duration {
        self.now + self.random.millis(least..most) + Duration::from_micros(self.random.of(0..1000))
    }

    pub fn say(&mut self, who: &str, what: fmt::Arguments<'_>) {
        self.trace.say(self.now, who, what);
    }
}
