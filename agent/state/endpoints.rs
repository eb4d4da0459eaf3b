//! Which endpoint of a peer is in use, where it has several.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::AgentState;
use crate::agent::link::choice::Choice;
use crate::proto::model::{LinkState, Remote, Remotes, TunnelName};

/// What would be due so soon is done with what is due: a thousand peers that are gone at once are looked for together.
const TOGETHER: Duration = Duration::from_millis(500);

/// Which of a tunnel's remotes is in use.
#[derive(Debug, Clone)]
pub(super) struct Chosen {
    /// Those that it is one of.
    remotes: Remotes,
    choice: Choice,
    /// The position that was told of last.
    told: usize,
}

/// How a tunnel with several remotes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Its link; absent: there is none.
    pub link: Option<LinkState>,
    /// An endpoint that is preferred to the one in use, and has answered for long enough.
    pub fit: Option<SocketAddr>,
}

/// Another endpoint of a peer is in use than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The tunnel.
    pub tunnel: TunnelName,
    /// Where its datagrams go now.
    pub to: Remote,
    /// Whether that is the preferred one.
    pub is_preferred: bool,
}

impl AgentState {
    /// The tunnels with several remotes, of which the link says which one is to be used.
    pub fn choosers(&self) -> impl Iterator<Item = &TunnelName> {
        let tunnels = &self.wanted.desired.tunnels;
        self.chosen.keys().filter(|name| tunnels.get(*name).is_some_and(|tunnel| tunnel.probed))
    }

    /// Takes in how those tunnels are.
    pub fn handle_standings(&mut self, standings: &BTreeMap<TunnelName, Standing>, now: Instant) {
        self.now = now;
        let mut has_moved = false;
        for (name, Standing { link, fit }) in standings {
            let Some(chosen) = self.chosen.get_mut(name) else { continue };
            match link {
                Some(link) => chosen.choice.note(*link, now),
                None => chosen.choice.forget(),
            }
            let mut places = self.target.places_of.get(name).into_iter().flatten();
            let fit = fit.and_then(|fit| places.find(|place| place.address == fit));
            if let Some(fit) = fit.filter(|fit| fit.position < chosen.choice.position()) {
                chosen.choice.take(fit.position);
                has_moved = true;
            }
        }
        if has_moved {
            self.rebuild();
        }
        self.try_others();
    }

    /// The next move of a tunnel to another of its remotes: each is told once.
    pub fn poll_move(&mut self) -> Option<Move> {
        self.chosen.iter_mut().find_map(|(tunnel, chosen)| {
            let position = chosen.choice.position();
            if chosen.told == position {
                return None;
            }
            chosen.told = position;
            let to = chosen.remotes.iter().nth(position)?.clone();
            Some(Move { tunnel: tunnel.clone(), to, is_preferred: position == 0 })
        })
    }

    /// When the next remote of a tunnel is to be tried.
    pub(super) fn choice_due(&self) -> Option<Instant> {
        self.chosen.values().filter_map(|chosen| chosen.choice.due()).min()
    }

    /// Tries the next remotes of the tunnels for which that is due.
    pub(super) fn try_others(&mut self) {
        let now = self.now;
        if self.choice_due().is_none_or(|due| due > now) {
            return;
        }
        let is_due = |chosen: &&mut Chosen| chosen.choice.due().is_some_and(|due| due <= now + TOGETHER);
        self.chosen.values_mut().filter(is_due).for_each(|chosen| chosen.choice.take_next(now));
        self.rebuild();
    }

    /// Keeps which remotes are in use, of the tunnels that have several; where others of them have changed, too.
    pub(super) fn keep_choices(&mut self) {
        let mut before = std::mem::take(&mut self.chosen);
        for (name, tunnel) in &self.wanted.desired.tunnels {
            let Some(remotes) = tunnel.remote.as_ref().filter(|remotes| remotes.count() > 1) else {
                continue;
            };
            let chosen = match before.remove(name) {
                // Nobody knows which of them answer.
                Some(known) if !tunnel.probed => Chosen { choice: Choice::new(0, remotes.count()), ..known },
                Some(known) if known.remotes == *remotes => known,
                known => {
                    let in_use =
                        known.and_then(|known| known.remotes.iter().nth(known.choice.position()).cloned());
                    let position =
                        in_use.and_then(|in_use| remotes.iter().position(|remote| *remote == in_use));
                    let position = position.unwrap_or(0);
                    let choice = Choice::new(position, remotes.count());
                    Chosen { remotes: remotes.clone(), choice, told: position }
                }
            };
            self.facts.in_use.insert(name.clone(), chosen.choice.position());
            self.chosen.insert(name.clone(), chosen);
        }
        self.facts.in_use.retain(|name, _| self.chosen.contains_key(name));
    }

    /// Takes in which remotes are in use, where others do not resolve.
    pub(super) fn take_in_use(&mut self) {
        for (name, position) in &self.target.in_use {
            if let Some(chosen) = self.chosen.get_mut(name) {
                chosen.choice.take(*position);
                self.facts.in_use.insert(name.clone(), *position);
            }
        }
    }
}
