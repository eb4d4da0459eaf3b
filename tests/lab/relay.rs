//! An underlay with faults: a host that passes datagrams on between two others, and loses, doubles, damages, delays and
//! reorders some of them, the same in every run.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;

use super::Host;

/// What befalls datagrams. Shares are of a thousand.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// How many are lost.
    pub lost: u32,
    /// How many come twice.
    pub doubled: u32,
    /// How many come with one bit changed, behind their first 60 bytes or among their last 8: in no header but TCP's
    /// options, so that it is a checksum of their transport that tells.
    pub damaged: u32,
    /// How many come [`LATE`](Self::LATE) later than the others.
    pub late: u32,
    /// How long each takes.
    pub delay: Duration,
}

impl Faults {
    /// How much later a late one comes: others overtake it.
    pub const LATE: Duration = Duration::from_millis(3);
}

/// What became of the datagrams of one direction.
#[derive(Debug, Default)]
pub struct Passed {
    /// Datagrams with a packet that came.
    pub came: AtomicU64,
    /// Those that went on, doubles included.
    pub went: AtomicU64,
    /// Datagrams that went on with a bit changed.
    pub damaged: AtomicU64,
}

/// A running relay. Dropping it ends it.
pub struct Relay {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// From the first to the second, and back.
    pub passed: [Arc<Passed>; 2],
}

impl Relay {
    /// Begins to pass on what comes to `at` of `host`, one address for each end, to the other of the `ends`.
    pub fn start(host: &Host, at: [SocketAddr; 2], ends: [SocketAddr; 2], faults: Faults, seed: u64) -> Self {
        let sockets =
            host.enter(|| at.map(|address| UdpSocket::bind(address).expect("an address of the relay")));
        for socket in &sockets {
            // Nothing may be lost that the relay does not count.
            setsockopt(socket, RcvBufForce, &(64 << 20)).expect("a large buffer");
            socket.set_read_timeout(Some(Duration::from_millis(1))).expect("a timeout");
        }
        let stop = Arc::new(AtomicBool::new(false));
        let passed = [Arc::<Passed>::default(), Arc::default()];
        let threads = (0..2).map(|from| {
            let direction = Direction {
                from: sockets[from].try_clone().expect("a descriptor"),
                to: sockets[1 - from].try_clone().expect("a descriptor"),
                end: ends[1 - from],
                faults,
                seed: seed * 2 + from as u64 + 1,
                passed: Arc::clone(&passed[from]),
            };
            let stop = Arc::clone(&stop);
            thread::spawn(move || direction.run(&stop))
        });
        Self { threads: threads.collect(), stop, passed }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A relay that panicked has shown it already.
            let _ = thread.join();
        }
    }
}

struct Direction {
    from: UdpSocket,
    to: UdpSocket,
    end: SocketAddr,
    faults: Faults,
    seed: u64,
    passed: Arc<Passed>,
}

impl Direction {
    fn run(mut self, stop: &AtomicBool) {
        let mut waiting: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>> = BinaryHeap::new();
        let mut number = 0;
        let mut buffer = vec![0; 1 << 16];
        while !stop.load(Ordering::Relaxed) {
            match self.from.recv(&mut buffer) {
                Ok(length) => {
                    self.passed.came.fetch_add(has_packet(&buffer[..length]), Ordering::Relaxed);
                    if self.befalls(self.faults.damaged) {
                        self.damage(&mut buffer[..length]);
                    }
                    for _ in 0..self.copies() {
                        let late = if self.befalls(self.faults.late) { Faults::LATE } else { Duration::ZERO };
                        number += 1;
                        let due = Instant::now() + self.faults.delay + late;
                        waiting.push(Reverse((due, number, buffer[..length].to_vec())));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("the relay cannot receive: {error}"),
            }
            while waiting.peek().is_some_and(|Reverse((due, ..))| *due <= Instant::now()) {
                if let Some(Reverse((_, _, datagram))) = waiting.pop() {
                    self.to.send_to(&datagram, self.end).expect("the relay sends");
                    self.passed.went.fetch_add(has_packet(&datagram), Ordering::Relaxed);
                }
            }
        }
    }

    fn copies(&mut self) -> u32 {
        if self.befalls(self.faults.lost) { 0 } else { 1 + u32::from(self.befalls(self.faults.doubled)) }
    }

    fn damage(&mut self, datagram: &mut [u8]) {
        let from = datagram.len().saturating_sub(8).min(60);
        let bit = self.number() as usize % ((datagram.len() - from) * 8);
        datagram[from + bit / 8] ^= 1 << (bit % 8);
        self.passed.damaged.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether something befalls a datagram that befalls so many of a thousand.
    fn befalls(&mut self, share: u32) -> bool {
        self.number() % 1000 < u64::from(share)
    }

    /// The next of the numbers that `seed` gives.
    fn number(&mut self) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.seed >> 33
    }
}

/// 1 where a datagram has a packet in it, and 0 where it is a message of a handshake or an empty one, which only says that
/// its sender is there.
fn has_packet(datagram: &[u8]) -> u64 {
    /// Header and tag of what is encrypted, with nothing between.
    const EMPTY: usize = 32;
    match datagram {
        [1..=3, 0, 0, 0, ..] => 0,
        [4, 0, 0, 0, ..] => (datagram.len() > EMPTY).into(),
        _ => 1,
    }
}
