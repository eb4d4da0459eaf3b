//! The peers of encrypted tunnels. Egress and ingress share the sessions with each of them.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::num::NonZeroU16;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, TryLockError};
use std::thread;
use std::time::Duration;

use crate::agent::wireguard::cookie::CookieChecker;
use crate::agent::wireguard::message::{self, Index, Message};
use crate::agent::wireguard::tunnel::{HANDSHAKE, Indices, Noise, Sealed, Ticked, Tunnel};
use crate::agent::wireguard::{Refused, wipe_stack};
use crate::proto::host::wireguard::PrivateKey;
use crate::proto::model::PublicKey;

/// How many indices of a peer are known at most. A session goes on for 180 s, in which a host that is not answered
/// begins 36 handshakes.
const INDICES: usize = 64;
/// How many answers to one initiation are looked at: whoever sees it can send some, too.
const ANSWERS: u8 = 4;
/// How often at most a peer whose initiations are too old is sent one: its clock may have been set back.
const REVIVAL: Duration = Duration::from_secs(5);

/// How often sessions are tried that another thread has, before this one sleeps: a train is done in 40 µs, and to fall
/// asleep and be woken costs both threads more.
const TRIES: u32 = 100;

/// How much longer than something is sent nothing may be heard.
const LATE: Duration = Duration::from_secs(5);
/// For how long nothing may be heard at least.
const SILENCE: Duration = Duration::from_secs(30);
/// For how long nothing may be heard of a peer with which there were never keys, and to which packets go unencrypted until
/// then.
const UNMET: Duration = Duration::from_secs(5);
/// The age of keys is known to the quarter of a second at which the clock was looked at last.
const ROUNDING: Duration = Duration::from_secs(1);

/// Names a peer; unique in the agent's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerId(u64);

/// A key of this host, by which peers know it.
pub struct OwnKey {
    /// The key.
    pub private: PrivateKey,
    /// Judges the handshakes that come to it.
    checker: Mutex<CookieChecker>,
}

impl OwnKey {
    /// A key that no peer knows yet.
    pub fn new(private: PrivateKey) -> Self {
        Self { checker: Mutex::new(CookieChecker::new(&private)), private }
    }

    /// What judges the handshakes that come to it.
    pub fn checker(&self) -> MutexGuard<'_, CookieChecker> {
        self.checker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for OwnKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.private.fmt(f)
    }
}

/// Whose each index is that this host has chosen.
#[derive(Default)]
pub struct Receivers {
    indices: Indices,
    peers: RwLock<HashMap<Index, PeerId>>,
}

impl Receivers {
    /// The peer that was told an index.
    pub fn peer(&self, index: Index) -> Option<PeerId> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).get(&index).copied()
    }

    fn add(&self, index: Index, peer: PeerId) {
        self.peers.write().unwrap_or_else(PoisonError::into_inner).insert(index, peer);
    }

    /// Forgets indices of a peer. One that was chosen again meanwhile may be another's.
    fn remove(&self, indices: impl IntoIterator<Item = Index>, peer: PeerId) {
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        for index in indices {
            if peers.get(&index) == Some(&peer) {
                peers.remove(&index);
            }
        }
    }
}

/// A peer of an encrypted tunnel.
pub struct Peer {
    /// Tells it from all others, also from an earlier one of its key.
    pub id: PeerId,
    /// The key of this host that it knows.
    pub own: Arc<OwnKey>,
    /// Its own.
    pub key: PublicKey,
    /// How often at least something is sent to it, in seconds.
    pub keepalive: Option<NonZeroU16>,
    is_met: Arc<AtomicBool>,
    sessions: Mutex<Sessions>,
}

impl Peer {
    /// A peer with which there is no session yet. Every `keepalive` seconds at least something is sent to it, and where nothing
    /// is heard of it for a little longer, it is asked.
    pub fn new(
        id: u64,
        own: Arc<OwnKey>,
        key: PublicKey,
        keepalive: Option<NonZeroU16>,
        receivers: Arc<Receivers>,
    ) -> Self {
        let id = PeerId(id);
        let seconds = keepalive.map(NonZeroU16::get);
        let tunnel = Box::new(Noise::new(&own.private, &key, seconds, &receivers.indices));
        let is_met = Arc::new(AtomicBool::new(false));
        let sessions = Sessions {
            id,
            tunnel,
            receivers,
            indices: VecDeque::new(),
            is_greeted: false,
            awaited: None,
            revived_at: None,
            established: None,
            silence: seconds.map(|seconds| (Duration::from_secs(seconds.into()) + LATE).max(SILENCE)),
            asked_at: None,
            has_heard: false,
            is_met: Arc::clone(&is_met),
        };
        Self { id, own, key, keepalive, is_met, sessions: Mutex::new(sessions) }
    }

    /// Whether keys have ever been agreed on with it, so that both ends can send by them.
    pub fn is_met(&self) -> bool {
        self.is_met.load(Ordering::Relaxed)
    }

    /// The sessions with it, for as long as nobody else needs them: to be held for as many packets as are there.
    pub fn sessions(&self) -> MutexGuard<'_, Sessions> {
        for _ in 0..TRIES {
            match self.sessions.try_lock() {
                Ok(sessions) => return sessions,
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => thread::yield_now(),
            }
        }
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peer({})", self.key)
    }
}

/// The sessions with one peer, and by which indices it names them.
pub struct Sessions {
    id: PeerId,
    tunnel: Box<dyn Tunnel>,
    receivers: Arc<Receivers>,
    /// The oldest first.
    indices: VecDeque<Index>,
    is_greeted: bool,
    /// The last initiation, by its index, and how many answers to it are looked at still.
    awaited: Option<(Index, u8)>,
    /// When it was last sent an initiation since its own were too old, as time since boot.
    revived_at: Option<Duration>,
    established: Option<Duration>,
    /// After how long a silence it is asked whether it is there; absent: it may be silent.
    silence: Option<Duration>,
    /// When that was last done, or it was heard, as time since boot.
    asked_at: Option<Duration>,
    /// Whether it was heard since the last look at the clock.
    has_heard: bool,
    /// Whether both have had keys at a time.
    is_met: Arc<AtomicBool>,
}

impl Sessions {
    /// As [`Tunnel::seal`].
    pub fn seal(&mut self, pieces: [&[u8]; 2], longest: u16, room: &mut Vec<u8>) -> Sealed {
        let sealed = self.tunnel.seal(pieces, longest, room);
        if let Sealed::Waits { initiation: Some(initiation), .. } = &sealed {
            wipe_stack::<HANDSHAKE>();
            self.note(Some(initiation));
        }
        sealed
    }

    /// As [`Tunnel::seal_at_once`].
    ///
    /// # Errors
    /// As there.
    pub fn seal_at_once(
        &mut self,
        bytes: &[u8],
        longest: u16,
        room: &mut Vec<u8>,
    ) -> Result<(), Option<Vec<u8>>> {
        let sealed = self.tunnel.seal_at_once(bytes, longest, room);
        if let Err(Some(initiation)) = &sealed {
            wipe_stack::<HANDSHAKE>();
            self.note(Some(initiation));
        }
        sealed
    }

    /// As [`Tunnel::open`].
    ///
    /// # Errors
    /// As there.
    pub fn open(&mut self, datagram: &mut [u8]) -> Result<std::ops::Range<usize>, Refused> {
        let opened = self.tunnel.open(datagram);
        if opened.is_ok() {
            self.has_heard = true;
            if !self.is_met.load(Ordering::Relaxed) {
                self.is_met.store(true, Ordering::Relaxed);
            }
        }
        opened
    }

    /// As [`Tunnel::shake`].
    ///
    /// # Errors
    /// As there.
    pub fn shake(&mut self, message: &[u8]) -> Result<Option<Vec<u8>>, Refused> {
        let answer = self.tunnel.shake(message);
        wipe_stack::<HANDSHAKE>();
        let answer = answer?;
        self.has_heard = true;
        if matches!(Message::parse(message), Ok(Message::Response { .. })) {
            self.awaited = None;
            // It has them since before it answered.
            self.is_met.store(true, Ordering::Relaxed);
        }
        self.note(answer.as_deref());
        Ok(answer)
    }

    /// Judges an answer to an initiation before any key is worked with.
    ///
    /// # Errors
    /// `NoSession` where none is awaited, and `TooMany`.
    pub fn expect_answer(&mut self, index: Index) -> Result<(), Refused> {
        match &mut self.awaited {
            Some((awaited, left)) if *awaited == index => {
                *left = left.checked_sub(1).ok_or(Refused::TooMany)?;
                Ok(())
            }
            Some(_) | None => Err(Refused::NoSession),
        }
    }

    /// As [`Tunnel::forget`].
    pub fn forget(&mut self) -> usize {
        self.tunnel.forget()
    }

    /// As [`Tunnel::released`].
    pub fn released(&mut self) -> Option<(Vec<u8>, usize)> {
        self.tunnel.released()
    }

    /// What begins a handshake with a peer of which nothing was heard since this host knows it, the first time that this
    /// is asked. Who was restarted knows no session any more, and by this its peer learns of it.
    pub fn greet(&mut self) -> Option<Vec<u8>> {
        if std::mem::replace(&mut self.is_greeted, true) || self.tunnel.age().is_some() {
            return None;
        }
        self.initiate()
    }

    /// As [`Tunnel::renew`].
    pub fn renew(&mut self) -> Option<Vec<u8>> {
        let initiation = self.tunnel.renew();
        self.begun(initiation)
    }

    /// What begins a handshake with a peer whose own initiation is older than one that has been here. Somebody may have sent
    /// that again; but where the clock of a restarted peer was set back there is no other way to it.
    pub fn revive(&mut self, since_boot: Duration) -> Option<Vec<u8>> {
        if self.revived_at.is_some_and(|last| since_boot < last + REVIVAL) {
            return None;
        }
        self.revived_at = Some(since_boot);
        self.initiate()
    }

    /// As [`Tunnel::tick`]; `since_boot` is now. A peer that something is sent to in any case and that has not been heard for
    /// long may know no session any more: it is asked for one. So is one that `is_plain_until_met`.
    pub fn tick(&mut self, since_boot: Duration, is_plain_until_met: bool) -> Ticked {
        let mut ticked = self.tunnel.tick();
        if std::mem::take(&mut self.has_heard) {
            self.asked_at = None;
        }
        let asked_at = *self.asked_at.get_or_insert(since_boot);
        let is_unmet = is_plain_until_met && !self.is_met.load(Ordering::Relaxed);
        let silence = if is_unmet { Some(UNMET) } else { self.silence };
        if silence.is_some_and(|silence| since_boot >= asked_at + silence) {
            self.asked_at = Some(since_boot);
            ticked.message = self.tunnel.initiate().or(ticked.message);
        }
        if ticked.message.is_some() {
            wipe_stack::<HANDSHAKE>();
        }
        self.note(ticked.message.as_deref());
        ticked
    }

    /// When the keys were agreed on by which packets go now, as time since boot, where `since_boot` is now. The same
    /// whenever it is asked.
    pub fn established(&mut self, since_boot: Duration) -> Option<Duration> {
        let established = self.tunnel.age().map(|age| since_boot.saturating_sub(age));
        let is_same = |one: Duration, other| one.abs_diff(other) < ROUNDING;
        if !self.established.zip(established).is_some_and(|(known, new)| is_same(known, new)) {
            self.established = established;
        }
        self.established
    }

    fn initiate(&mut self) -> Option<Vec<u8>> {
        let initiation = self.tunnel.initiate();
        self.begun(initiation)
    }

    fn begun(&mut self, initiation: Option<Vec<u8>>) -> Option<Vec<u8>> {
        wipe_stack::<HANDSHAKE>();
        self.note(initiation.as_deref());
        initiation
    }

    /// Notes the index by which a message that goes to the peer is answered.
    fn note(&mut self, message: Option<&[u8]>) {
        let Some(index) = message.and_then(message::sender) else { return };
        if message.is_some_and(message::is_initiation) {
            self.awaited = Some((index, ANSWERS));
        }
        self.receivers.add(index, self.id);
        self.indices.push_back(index);
        if self.indices.len() > INDICES {
            self.receivers.remove(self.indices.pop_front(), self.id);
        }
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        self.receivers.remove(self.indices.drain(..), self.id);
    }
}

#[cfg(test)]
mod tests;
