//! The server of 2015, as it behaves on the wire.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::IntoRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::Host;

/// Source and destination of every datagram.
const DATA_PORT: u16 = 5000;

/// How soon a thread that waits for packets sees that the server has ended.
const GLANCE: Duration = Duration::from_millis(50);

/// A server of 2015 with one tunnel.
///
/// Its tun carries packet information. It reads at most MTU bytes of a packet, those four included, so that longer
/// packets lose their end, and sends each read as a datagram. What comes from the peer's address, whatever the
/// port, it writes to the tun as it is; the first datagram that the tun refuses ends it. Like the original it then
/// leaves nothing behind: device and port are gone.
pub struct Peer2015 {
    server: Arc<Server>,
    threads: Vec<JoinHandle<()>>,
}

impl Peer2015 {
    /// The tunnel's device.
    pub const DEVICE: &str = "udp0";

    /// Starts the server on `host` with a tunnel that has `address` ("10.0.1.2/30") and goes to `remote`.
    pub fn start(host: &Host, address: &str, mtu: u16, remote: &str) -> Self {
        let remote = remote.parse().expect("an IP address");
        let (tun, socket) = host.enter(|| (open_tun(), UdpSocket::bind((Ipv4Addr::UNSPECIFIED, DATA_PORT))));
        let socket = socket.expect("the data port is free");
        socket.set_read_timeout(Some(GLANCE)).expect("a timeout");
        host.run(["ip", "link", "set", Self::DEVICE, "mtu", &mtu.to_string(), "up"]);
        host.address(Self::DEVICE, address);

        let server = Arc::new(Server {
            tun,
            socket,
            remote,
            stopped: AtomicBool::new(false),
            ended: Mutex::default(),
            bad: Mutex::default(),
        });
        let (sender, receiver) = (server.clone(), server.clone());
        let threads = vec![
            thread::spawn(move || sender.run(|server| server.send_packets(mtu))),
            thread::spawn(move || receiver.run(Server::receive_packets)),
        ];
        Self { server, threads }
    }

    /// Why the server ended; absent: it runs.
    pub fn ended(&self) -> Option<String> {
        self.server.ended.lock().unwrap().clone()
    }

    /// The datagrams from the peer that were not four bytes of packet information and an IP packet.
    pub fn bad_datagrams(&self) -> Vec<Vec<u8>> {
        self.server.bad.lock().unwrap().clone()
    }
}

impl Drop for Peer2015 {
    fn drop(&mut self) {
        self.server.stopped.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

struct Server {
    tun: tun::Device,
    socket: UdpSocket,
    remote: IpAddr,
    stopped: AtomicBool,
    ended: Mutex<Option<String>>,
    bad: Mutex<Vec<Vec<u8>>>,
}

impl Server {
    /// Works until the server is stopped or `work` fails, which ends all of it.
    fn run(&self, work: impl Fn(&Self) -> Result<(), String>) {
        while !self.stopped.load(Ordering::Relaxed) {
            if let Err(reason) = work(self) {
                self.stopped.store(true, Ordering::Relaxed);
                *self.ended.lock().unwrap() = Some(reason);
            }
        }
    }

    fn send_packets(&self, mtu: u16) -> Result<(), String> {
        let mut buffer = vec![0; usize::from(mtu)];
        let length = match self.tun.recv_timeout(&mut buffer, GLANCE) {
            Ok(length) => length,
            Err(error) if is_nothing(&error) => return Ok(()),
            Err(error) => return Err(format!("cannot read from the tun: {error}")),
        };
        // What the underlay refuses is lost, as on a wire.
        let _ = self.socket.send_to(&buffer[..length], SocketAddr::new(self.remote, DATA_PORT));
        Ok(())
    }

    fn receive_packets(&self) -> Result<(), String> {
        let mut buffer = vec![0; 1 << 16];
        let (length, from) = match self.socket.recv_from(&mut buffer) {
            Ok(received) => received,
            Err(error) if is_nothing(&error) => return Ok(()),
            Err(error) => return Err(format!("cannot receive: {error}")),
        };
        if from.ip() != self.remote {
            return Ok(());
        }
        let datagram = &buffer[..length];
        if !is_packet_with_information(datagram) {
            self.bad.lock().unwrap().push(datagram.to_vec());
        }
        self.tun.send(datagram).map(drop).map_err(|error| {
            format!("the tun refuses {} bytes beginning {:02x?}: {error}", length, &datagram[..length.min(8)])
        })
    }
}

fn is_nothing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Opens the device with packet information, which the `tun` crate would take off and put on by itself: so the
/// crate is told that there is none.
#[expect(deprecated, reason = "the crate hides packet information, and this server is about it")]
fn open_tun() -> tun::Device {
    let mut with_information = tun::Configuration::default();
    with_information.tun_name(Peer2015::DEVICE).platform_config(|platform| {
        platform.packet_information(true).ensure_root_privileges(false);
    });
    let device = tun::Device::new(&with_information).expect("a tun device");
    let mut as_it_is = tun::Configuration::default();
    as_it_is.tun_name(Peer2015::DEVICE).raw_fd(device.into_raw_fd());
    tun::Device::new(&as_it_is).expect("a tun device")
}

/// Whether a datagram is `struct tun_pi` of `linux/if_tun.h` without flags, and then one whole IP packet.
fn is_packet_with_information(datagram: &[u8]) -> bool {
    let Some((information, packet)) = datagram.split_at_checked(4) else { return false };
    match information {
        [0, 0, 0x08, 0x00] => etherparse::Ipv4HeaderSlice::from_slice(packet).is_ok_and(|header| {
            usize::from(header.total_len()) == packet.len()
                && header.header_checksum() == header.to_header().calc_header_checksum()
        }),
        [0, 0, 0x86, 0xdd] => etherparse::Ipv6HeaderSlice::from_slice(packet).is_ok_and(|header| {
            usize::from(header.payload_length()) + etherparse::Ipv6Header::LEN == packet.len()
        }),
        _ => false,
    }
}
