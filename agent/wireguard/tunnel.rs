//! The sessions with one peer: handshakes, keys, what has been received, and timers.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use gotatun::noise::errors::WireGuardError;
use gotatun::noise::handshake::parse_handshake_anon;
use gotatun::noise::index_table::IndexTable;
use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::noise::{Tunn, TunnResult};
use gotatun::packet::{Packet, WgKind};
use gotatun::x25519;

use super::message::{HEADER, Message, padded};
use super::{Refused, wipe_stack};
use crate::proto::host::wireguard::PrivateKey;
use crate::proto::model::PublicKey;

/// The most packets that wait for a session with one peer. Beyond, the oldest is lost.
pub const WAITING: usize = 32;

/// Words of the stack that what is done with a message of a handshake reaches.
pub const HANDSHAKE: usize = 8 << 10;

/// How many sessions gotatun keeps, those included that the peer has not heard of.
const SESSIONS: usize = 8;

/// What became of a packet that was to be encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sealed {
    /// It is a datagram now.
    Datagram,
    /// There is no session, and it waits for one.
    Waits {
        /// What begins a handshake, where none is under way. It is to be sent.
        initiation: Option<Vec<u8>>,
        /// Whether an older one was lost for it.
        has_lost: bool,
    },
}

/// What comes of a look at the clock.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ticked {
    /// What is to be sent: a new handshake, or that this host is there.
    pub message: Option<Vec<u8>>,
    /// How many packets have waited in vain.
    pub lost: usize,
}

/// The sessions with one peer.
///
/// Whoever implements it keeps keys to itself and wipes them when it goes.
pub trait Tunnel: Send {
    /// Encrypts the packet that `pieces` make, padded but not beyond `longest` bytes, and appends the datagram to `room`.
    fn seal(&mut self, pieces: [&[u8]; 2], longest: u16, room: &mut Vec<u8>) -> Sealed;

    /// The same for what is worth nothing later, which waits for no session.
    ///
    /// # Errors
    /// Where there is none: what begins a handshake, where none is under way. It is to be sent.
    fn seal_at_once(&mut self, bytes: &[u8], longest: u16, room: &mut Vec<u8>)
    -> Result<(), Option<Vec<u8>>>;

    /// Decrypts a data packet in place. Returns where what it carries is: a packet with its padding, of which nothing has
    /// been looked at, or nothing, where it only says that the peer is there.
    ///
    /// # Errors
    /// Where it is not the peer's, or has been here; its bytes are of no use then.
    fn open(&mut self, datagram: &mut [u8]) -> Result<Range<usize>, Refused>;

    /// Goes on with a handshake by a message that [`CookieChecker`](super::cookie::CookieChecker) let pass, or by a cookie. Returns what is to
    /// be sent.
    ///
    /// # Errors
    /// Where it is not the peer's, or of no handshake that is under way.
    fn shake(&mut self, message: &[u8]) -> Result<Option<Vec<u8>>, Refused>;

    /// The next packet that has waited for a session and can go now, as a datagram, and how long it was: to be asked for
    /// until there is none, after each message that was taken in.
    fn released(&mut self) -> Option<(Vec<u8>, usize)>;

    /// Begins a handshake, also where one is under way. Returns what is to be sent.
    fn initiate(&mut self) -> Option<Vec<u8>>;

    /// Begins a handshake where none is under way. Returns what is to be sent.
    fn renew(&mut self) -> Option<Vec<u8>>;

    /// Looks at the clock. It is to be called every 250 ms or so.
    fn tick(&mut self) -> Ticked;

    /// Gives up the packets that wait for a session, and says how many there were.
    fn forget(&mut self) -> usize;

    /// How old the keys are by which packets are encrypted now; `None`: there is no session.
    fn age(&self) -> Option<Duration>;
}

/// What all tunnels of one key share: which indices are taken.
#[derive(Clone)]
pub struct Indices(IndexTable);

impl Default for Indices {
    fn default() -> Self {
        Self(IndexTable::from_os_rng())
    }
}

/// Sessions as gotatun keeps them.
pub struct Noise {
    tunn: Tunn,
    /// Whether the peer has shown that it has the keys of a session: who has only answered does not know whether the other
    /// is there, or somebody has sent an old initiation again (section 5.1).
    is_confirmed: bool,
    /// How many initiations of the peer were answered since it has shown that it has keys.
    answered: usize,
    /// When the keys were agreed on that are in use while these answers are not known to have arrived.
    held: Option<Instant>,
    /// With their lengths before they were padded.
    waiting: VecDeque<(Packet, usize)>,
    /// Where packets are put together before they are encrypted, and datagrams are decrypted.
    scratch: BytesMut,
}

impl Noise {
    /// The sessions of the host with `own` key and the peer with another. Every `keepalive` seconds at least something is
    /// sent to the peer; `None`: nothing is, where there is nothing to send.
    pub fn new(own: &PrivateKey, peer: &PublicKey, keepalive: Option<u16>, indices: &Indices) -> Self {
        // It only forgets with this what it has counted, and nothing is counted here: handshakes are judged before.
        let unused = RateLimiter::new(own.point(), u64::MAX);
        let peer = x25519::PublicKey::from(*peer.as_bytes());
        let tunn = Tunn::new(own.secret(), peer, None, keepalive, indices.0.clone(), Arc::new(unused));
        Self {
            tunn,
            is_confirmed: false,
            answered: 0,
            held: None,
            waiting: VecDeque::new(),
            scratch: BytesMut::new(),
        }
    }

    fn packet(&mut self, bytes: &[u8]) -> Packet {
        self.scratch.extend_from_slice(bytes);
        Packet::from_bytes(self.scratch.split())
    }

    /// The packet that `pieces` make, padded but not beyond `longest` bytes.
    fn padded(&mut self, pieces: [&[u8]; 2], longest: u16) -> Packet {
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        let padded = padded(length, longest.into());
        self.scratch.reserve(padded);
        pieces.iter().for_each(|piece| self.scratch.extend_from_slice(piece));
        self.scratch.resize(padded, 0);
        Packet::from_bytes(self.scratch.split())
    }

    /// What begins a handshake; where one is under way only if `again`.
    fn begin(&mut self, again: bool) -> Option<Vec<u8>> {
        self.tunn.format_handshake_initiation(again).map(|message| bytes(message.into()))
    }

    /// The datagram of a packet, or the packet where there is no session for it.
    fn encrypt(&mut self, packet: Packet) -> Result<Packet, Packet> {
        if !self.is_confirmed {
            return Err(packet);
        }
        self.tunn.encapsulate_with_session(packet).map(Packet::into_bytes)
    }
}

#[allow(clippy::disallowed_methods, reason = "the library reads the clock as well")]
impl Tunnel for Noise {
    fn seal(&mut self, pieces: [&[u8]; 2], longest: u16, room: &mut Vec<u8>) -> Sealed {
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        let packet = self.padded(pieces, longest);
        match self.encrypt(packet) {
            Ok(datagram) => {
                room.extend_from_slice(&datagram);
                Sealed::Datagram
            }
            Err(packet) => {
                let has_lost = self.waiting.len() >= WAITING && self.waiting.pop_front().is_some();
                self.waiting.push_back((packet, length));
                Sealed::Waits { initiation: self.begin(false), has_lost }
            }
        }
    }

    fn seal_at_once(
        &mut self,
        bytes: &[u8],
        longest: u16,
        room: &mut Vec<u8>,
    ) -> Result<(), Option<Vec<u8>>> {
        let packet = self.padded([bytes, &[]], longest);
        match self.encrypt(packet) {
            Ok(datagram) => {
                room.extend_from_slice(&datagram);
                Ok(())
            }
            Err(_) => Err(self.begin(false)),
        }
    }

    fn open(&mut self, datagram: &mut [u8]) -> Result<Range<usize>, Refused> {
        // Its own check leaves out bytes that must be zero.
        Message::parse(datagram)?;
        let Ok(WgKind::Data(packet)) = self.packet(datagram).try_into_wg() else {
            return Err(Refused::Malformed);
        };
        match self.tunn.handle_incoming_packet(WgKind::Data(packet)) {
            TunnResult::WriteToTunnel(packet) => {
                (self.is_confirmed, self.answered) = (true, 0);
                let place = HEADER..HEADER + packet.len();
                let room = datagram.get_mut(place.clone()).ok_or(Refused::Malformed)?;
                room.copy_from_slice(&packet);
                Ok(place)
            }
            TunnResult::Err(error) => Err(refusal(&error)),
            TunnResult::Done | TunnResult::WriteToNetwork(_) => Err(Refused::Malformed),
        }
    }

    fn shake(&mut self, message: &[u8]) -> Result<Option<Vec<u8>>, Refused> {
        let message = self.packet(message).try_into_wg().map_err(|_| Refused::Malformed)?;
        let before = self.age();
        match self.tunn.handle_incoming_packet(message) {
            TunnResult::Done => Ok(None),
            TunnResult::WriteToNetwork(answer) => {
                // To a response the answer is a first packet of the session.
                if matches!(answer, WgKind::Data(_)) {
                    (self.is_confirmed, self.answered) = (true, 0);
                } else {
                    // The peer has not heard the answers before, and its session gives way to the last of them.
                    if self.answered == 0 {
                        self.held = before.and_then(|age| Instant::now().checked_sub(age));
                    }
                    self.answered += 1;
                    self.is_confirmed &= self.answered < SESSIONS;
                }
                Ok(Some(bytes(answer)))
            }
            TunnResult::Err(error) => Err(refusal(&error)),
            TunnResult::WriteToTunnel(_) => Err(Refused::Malformed),
        }
    }

    fn released(&mut self) -> Option<(Vec<u8>, usize)> {
        let (packet, length) = self.waiting.pop_front()?;
        match self.encrypt(packet) {
            Ok(datagram) => Some((datagram.to_vec(), length)),
            Err(packet) => {
                self.waiting.push_front((packet, length));
                None
            }
        }
    }

    fn initiate(&mut self) -> Option<Vec<u8>> {
        self.begin(true)
    }

    fn renew(&mut self) -> Option<Vec<u8>> {
        self.begin(false)
    }

    fn tick(&mut self) -> Ticked {
        match self.tunn.update_timers() {
            Ok(message) => Ticked { message: message.map(bytes), lost: 0 },
            Err(_) => {
                // Nobody has answered for long: what is to be sent next begins anew.
                self.is_confirmed = false;
                Ticked { message: None, lost: self.forget() }
            }
        }
    }

    fn forget(&mut self) -> usize {
        self.waiting.drain(..).count()
    }

    fn age(&self) -> Option<Duration> {
        // What was answered is no handshake until the peer shows that it has heard the answer.
        let age = match self.answered {
            0 => self.tunn.time_since_last_handshake(),
            _ => self.held.map(|held| held.elapsed()),
        };
        age.filter(|_| self.is_confirmed)
    }
}

/// Whose initiation it is, which takes a key exchange. Nothing shows yet that it is not an old one.
///
/// # Errors
/// Where it is none for this host's key.
pub fn initiator(own: &PrivateKey, initiation: &[u8]) -> Result<PublicKey, Refused> {
    let Ok(WgKind::HandshakeInit(message)) = Packet::copy_from(initiation).try_into_wg() else {
        return Err(Refused::Malformed);
    };
    let half = parse_handshake_anon(&own.secret(), own.point(), &message).map_err(|_| Refused::Forged);
    wipe_stack::<HANDSHAKE>();
    Ok(half?.peer_static_public.into())
}

fn bytes(message: WgKind) -> Vec<u8> {
    Packet::from(message).to_vec()
}

fn refusal(error: &WireGuardError) -> Refused {
    match error {
        WireGuardError::WrongIndex
        | WireGuardError::NoCurrentSession
        | WireGuardError::UnexpectedPacket
        | WireGuardError::ConnectionExpired => Refused::NoSession,
        WireGuardError::WrongTai64nTimestamp | WireGuardError::DuplicateCounter => Refused::Repeated,
        WireGuardError::InvalidCounter => Refused::TooLate,
        WireGuardError::WrongKey
        | WireGuardError::InvalidMac
        | WireGuardError::InvalidAeadTag
        | WireGuardError::InvalidTai64nTimestamp => Refused::Forged,
        WireGuardError::DestinationBufferTooSmall
        | WireGuardError::IncorrectPacketLength
        | WireGuardError::WrongPacketType
        | WireGuardError::InvalidPacket
        | WireGuardError::LockFailed => Refused::Malformed,
    }
}

#[cfg(test)]
mod tests;
