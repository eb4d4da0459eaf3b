//! What egress has taken from a device and not sent yet: datagrams and trains of them, gathered from the packets' own
//! bytes and from headers made anew, or encrypted.

use std::ops::Range;
use std::sync::Arc;

use super::BUFFER;
use super::path::Destination;
use super::peer::{Peer, Sessions};
use crate::agent::os::udp::send::{Part, TRAIN};
use crate::agent::packet::split::{HEADERS, Train};
use crate::agent::wireguard::tunnel::Sealed;

/// The buffer of [`Part`]s with the packets as the devices gave them.
pub(super) const PACKETS: u8 = 0;
/// The buffer of [`Part`]s with headers made anew, and with what was encrypted.
pub(super) const MADE: u8 = 1;

/// Bytes that are made anew: enough of what is encrypted, and the largest packet that is many.
const ROOM: usize = 256 << 10;
/// The most bytes that are made of one packet.
const LARGEST: usize = BUFFER + (1 << 10);
/// The most messages of one system call.
const MESSAGES: usize = 64;
/// The most parts of all messages together.
const PARTS: usize = 2048;
/// As many bytes are sent at once: what lies longer leaves the processor's cache.
const ENOUGH: usize = 60_000;

/// A tunnel by its place in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The device among those of the table.
    pub device: usize,
    /// The tunnel among those of the device.
    pub tunnel: usize,
}

/// How packets go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way<'w> {
    pub(super) place: Place,
    /// The TOS byte or traffic class of the outer header.
    pub(super) tos: u8,
    /// What goes before each packet.
    pub(super) prefix: &'w [u8],
    /// The most datagrams of one message.
    pub(super) limit: usize,
    /// For whom packets are encrypted, if they are, and the longest of them: padding does not go beyond.
    pub(super) peer: Option<(&'w Peer, u16)>,
    /// Where the peer is, if it is not where it was said to be.
    pub(super) roamed: Option<&'w Arc<Destination>>,
}

/// What encrypting packets came to beside datagrams.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Delay {
    /// What begins a handshake: packets wait for a session.
    pub(super) initiation: Option<Vec<u8>>,
    /// How many packets have waited in vain.
    pub(super) lost: u64,
}

/// One message: datagrams of one length, the last of which may be shorter.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) place: Place,
    pub(super) tos: u8,
    /// The length of each datagram but the last, framing included.
    pub(super) segment: usize,
    pub(super) datagrams: usize,
    /// All bytes, framing included.
    pub(super) bytes: usize,
    /// Of the packets alone.
    pub(super) packet_bytes: usize,
    /// Where its peer is, if it is not where it was said to be.
    pub(super) roamed: Option<Arc<Destination>>,
    pub(super) parts: Range<usize>,
    /// The position of its first datagram among all.
    first: usize,
    /// Whether another datagram may follow.
    is_open: bool,
}

/// Messages in the order in which they are to go.
#[derive(Debug)]
pub(super) struct Batch {
    made: Vec<u8>,
    parts: Vec<Part>,
    /// Of each datagram, how long its packet is.
    lengths: Vec<usize>,
    entries: Vec<Entry>,
    bytes: usize,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            made: Vec::with_capacity(ROOM),
            parts: Vec::with_capacity(PARTS),
            lengths: Vec::with_capacity(PARTS),
            entries: Vec::with_capacity(MESSAGES),
            bytes: 0,
        }
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    pub(super) fn made(&self) -> &[u8] {
        &self.made
    }

    pub(super) fn clear(&mut self) {
        self.made.clear();
        self.parts.clear();
        self.lengths.clear();
        self.entries.clear();
        self.bytes = 0;
    }

    /// Whether it is time to send: there is enough, or another packet might not find room.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= ENOUGH || self.entries.len() == MESSAGES || !self.has_room()
    }

    /// Adds the packet of `length` bytes at `at` of the packets, which is not encrypted. There is room, unless
    /// [`is_full`](Self::is_full) says so.
    pub(super) fn add(&mut self, way: &Way<'_>, at: usize, length: usize) {
        let bytes = way.prefix.len() + length;
        self.join(way, bytes);
        if !way.prefix.is_empty() {
            self.make(way.prefix.len(), |made| made.copy_from_slice(way.prefix));
        }
        self.part(PACKETS, at, length);
        self.count(bytes, length);
    }

    /// Adds the packet that `pieces` make, encrypted. There is room, unless [`is_full`](Self::is_full) says so.
    pub(super) fn seal(
        &mut self,
        way: &Way<'_>,
        sessions: &mut Sessions,
        pieces: [&[u8]; 2],
        longest: u16,
        delay: &mut Delay,
    ) {
        let at = self.made.len();
        match sessions.seal(pieces, longest, &mut self.made) {
            Sealed::Datagram => {
                let bytes = self.made.len() - at;
                self.join(way, bytes);
                self.part(MADE, at, bytes);
                self.count(bytes, pieces.iter().map(|piece| piece.len()).sum());
            }
            Sealed::Waits { initiation, has_lost } => {
                delay.initiation = initiation.or(delay.initiation.take());
                delay.lost += u64::from(has_lost);
            }
        }
    }

    /// Adds the packets of a train in `packets`, encrypted, from the one at `from` on as far as there is room. Returns where it
    /// stopped.
    pub(super) fn seal_train(
        &mut self,
        way: &Way<'_>,
        (sessions, longest): (&mut Sessions, u16),
        train: &Train<'_>,
        from: usize,
        delay: &mut Delay,
    ) -> usize {
        let mut header = [0; HEADERS];
        let mut index = from;
        while index < train.count() && self.has_room() && self.entries.len() < MESSAGES {
            let Some(payload) = train.packet(index, &mut header) else { return train.count() };
            let header = header.get(..train.header_length()).unwrap_or_default();
            self.seal(way, sessions, [header, payload], longest, delay);
            index += 1;
        }
        index
    }

    /// Adds the packets of a train whose bytes begin at `at` of the packets and that is not encrypted, from the one at `from` on
    /// as far as there is room. Returns where it stopped.
    pub(super) fn add_train(&mut self, way: &Way<'_>, train: &Train<'_>, at: usize, from: usize) -> usize {
        let segment = way.prefix.len() + train.longest();
        let most = (TRAIN / segment).clamp(1, way.limit);
        let header = way.prefix.len() + train.header_length();
        let mut index = from;
        while index < train.count() && self.has_room() && self.entries.len() < MESSAGES {
            self.begin(way, segment, false);
            let end = index.saturating_add(most).min(train.count());
            while index < end && self.has_room() {
                let mut payload = 0;
                self.make(header, |made| {
                    let (front, back) = made.split_at_mut(way.prefix.len());
                    front.copy_from_slice(way.prefix);
                    payload = train.packet(index, back).map_or(0, <[u8]>::len);
                });
                self.part(PACKETS, at + train.payload_at(index), payload);
                self.count(header + payload, train.header_length() + payload);
                index += 1;
            }
        }
        index
    }

    /// The parts of each datagram of a message of this batch, and how long its packet is.
    pub(super) fn datagrams(&self, entry: &Entry) -> impl Iterator<Item = (&[Part], usize)> {
        let mut rest = self.parts.get(entry.parts.clone()).unwrap_or_default();
        let segment = entry.segment;
        let parts = std::iter::from_fn(move || {
            let mut length = 0;
            let is_in = |part: &&Part| {
                let is_in = length < segment;
                length += part.length as usize;
                is_in
            };
            let count = rest.iter().take_while(is_in).count();
            let (datagram, behind) = rest.split_at_checked(count).filter(|_| count > 0)?;
            rest = behind;
            Some(datagram)
        });
        let lengths = self.lengths.get(entry.first..).unwrap_or_default();
        parts.zip(lengths.iter().copied())
    }

    fn has_room(&self) -> bool {
        self.made.len() + LARGEST <= ROOM && self.parts.len() + 2 <= PARTS
    }

    /// Goes on with the last message where a datagram of so many bytes can be its next one, or begins another.
    fn join(&mut self, way: &Way<'_>, bytes: usize) {
        let joins = self.entries.last().is_some_and(|last| {
            last.is_open
                && (last.place, last.tos) == (way.place, way.tos)
                && bytes <= last.segment
                && last.datagrams < way.limit
                && last.bytes + bytes <= TRAIN
        });
        if !joins {
            self.begin(way, bytes, true);
        }
    }

    fn begin(&mut self, way: &Way<'_>, segment: usize, is_open: bool) {
        let at = self.parts.len();
        self.entries.push(Entry {
            place: way.place,
            tos: way.tos,
            segment,
            datagrams: 0,
            bytes: 0,
            packet_bytes: 0,
            roamed: way.roamed.cloned(),
            parts: at..at,
            first: self.lengths.len(),
            is_open,
        });
    }

    /// Has `length` bytes written, which are a part of the last message.
    fn make(&mut self, length: usize, write: impl FnOnce(&mut [u8])) {
        let at = self.made.len();
        self.made.resize(at + length, 0);
        write(self.made.get_mut(at..).unwrap_or_default());
        self.part(MADE, at, length);
    }

    fn part(&mut self, buffer: u8, at: usize, length: usize) {
        // Both buffers are far below 4 GiB.
        self.parts.push(Part { buffer, at: at as u32, length: length as u32 });
    }

    /// Counts a datagram of the last message.
    fn count(&mut self, bytes: usize, packet_bytes: usize) {
        let end = self.parts.len();
        self.lengths.push(packet_bytes);
        if let Some(last) = self.entries.last_mut() {
            last.datagrams += 1;
            last.bytes += bytes;
            last.packet_bytes += packet_bytes;
            last.parts.end = end;
            last.is_open &= bytes == last.segment;
        }
        self.bytes += bytes;
    }
}
