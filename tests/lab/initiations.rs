//! A flood of WireGuard initiations that an agent must look at, from addresses without number.

use std::iter;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::SockAddr;
use tunmesh::agent::os::udp::send::{Message, Part, Sender, Transmit};
use tunmesh::agent::wireguard::tunnel::{Indices, Noise, Tunnel};
use tunmesh::proto::host::wireguard::PrivateKey;

use super::Host;

/// Where they come from: each address of it is the flooding host's.
pub const SOURCES: &str = "172.101.0.0/16";

/// A thread that floods until it is dropped.
pub struct Initiations {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Initiations {
    /// From `host` to an agent with this public key, so many a second. The agent's host must have a route to [`SOURCES`].
    pub fn start(host: &Host, to: SocketAddr, key: &str, rate: u32) -> Self {
        host.run(["ip", "route", "add", "local", SOURCES, "dev", "lo"]);
        let key = key.parse().unwrap();
        // Each is of a host of its own, and has a first MAC that only who knows the key makes.
        let made: Vec<Vec<u8>> = (0..2_000)
            .map(|_| {
                let own = PrivateKey::generate().unwrap();
                Noise::new(&own, &key, None, &Indices::default()).initiate().unwrap()
            })
            .collect();
        let socket = host.enter(|| std::net::UdpSocket::bind("0.0.0.0:0")).unwrap();
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ends, counts) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = thread::spawn(move || {
            let (mut sender, destination) = (Sender::default(), SockAddr::from(to));
            let begin = Instant::now();
            for (number, message) in (0_u32..).zip(made.iter().cycle()) {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                let wait = begin + Duration::from_secs(number.into()) / rate;
                thread::sleep(wait.saturating_duration_since(Instant::now()));
                let source = Ipv4Addr::from_bits(0xac65_0000 | (number.wrapping_mul(40_503) & 0xffff).max(1));
                let part = Part { buffer: 0, at: 0, length: message.len() as u32 };
                let datagram = Message {
                    destination: &destination,
                    source: Some(source.into()),
                    segment: None,
                    tos: 0,
                    parts: 0..1,
                };
                // Whether there is room is not of interest.
                if sender.send(&socket, iter::once(datagram), &[part], [message, &[]]).is_ok() {
                    counts.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { stop, sent, thread: Some(thread) }
    }

    /// How many were sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Initiations {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking(), "the flood failed");
    }
}
