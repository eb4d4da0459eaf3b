//! What happened in a run: who, when and what. Only the end is kept.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

/// How many lines a failure shows.
const LINES: usize = 200;

/// How much is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loudness {
    /// Nothing: a run is the same each time, and one that fails is run again.
    Silent,
    /// The end, for a failure.
    Kept,
    /// All of it, on stderr as it comes.
    Loud,
}

#[derive(Debug)]
pub struct Trace {
    loudness: Loudness,
    lines: VecDeque<String>,
}

impl Trace {
    pub fn new(loudness: Loudness) -> Self {
        Self { loudness, lines: VecDeque::new() }
    }

    #[allow(clippy::print_stderr, reason = "whoever looks at one seed wants all of it")]
    pub fn say(&mut self, now: Duration, who: &str, what: fmt::Arguments<'_>) {
        if self.loudness == Loudness::Silent {
            return;
        }
        let line = format!("{:9.3} {who:<10} {what}", now.as_secs_f64());
        if self.loudness == Loudness::Loud {
            eprintln!("{line}");
        }
        if self.lines.len() == LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}
