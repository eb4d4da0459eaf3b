//! Traffic between hosts: pings and TCP transfers.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGsoSegment;
use nix::unistd::Pid;

use super::{Host, SOON, wait_until};

/// Intervals between pings after which it is told whether any are lost.
const ENOUGH: u32 = 20;

/// Waits until a ping from `host` to `target` is answered.
pub fn ping_ok(host: &Host, target: &str) {
    wait_until(SOON, &format!("a ping from {} to {target} is answered", host.role()), || {
        ping(host, target, &[])
    });
}

/// Whether one ping is answered within a second; `options` are ping's, as `["-s", "1472", "-M", "do"]`.
pub fn ping(host: &Host, target: &str, options: &[&str]) -> bool {
    host.try_run(["ping", "-n", "-q", "-c", "1", "-W", "1"].iter().chain(options).chain([&target])).is_ok()
}

/// Pings that go on until they are stopped.
pub struct Pinger {
    process: Child,
    /// What ping prints: a line for each request that is answered.
    output: File,
    /// When enough of them were sent to tell whether any are lost.
    telling: Instant,
}

/// What became of a [`Pinger`]'s pings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PingReport {
    /// Requests sent, without the last one where its reply may have been on its way.
    pub sent: u64,
    /// Replies received.
    pub received: u64,
}

impl Pinger {
    /// Begins to ping `target` from `host` every `interval`; returns when ping is at work.
    pub fn start(host: &Host, target: &str, interval: Duration) -> Self {
        let mut command = host.command("ping");
        command.args(["-n", "-i", &interval.as_secs_f64().to_string(), target]);
        // A pipe that nobody reads would fill, and ping wait.
        let output = tempfile::tempfile().expect("a file for what ping prints");
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("the file once more"));
        let process = command.spawn().expect("ping starts");
        let pinger = Self { process, output, telling: Instant::now() + interval * ENOUGH };
        // Before that an interrupt would end it without a summary.
        wait_until(SOON, "ping heeds SIGINT", || pinger.catches_interrupts());
        pinger
    }

    /// Ends the pings and counts them.
    pub fn stop(mut self) -> PingReport {
        self.interrupt();
        self.process.wait().expect("ping ends");
        let mut text = String::new();
        self.output.rewind().expect("the file is read from its start");
        self.output.read_to_string(&mut text).expect("ping prints text");
        report(&text).unwrap_or_else(|| panic!("ping printed no summary: {text:?}"))
    }

    /// Ends the pings, of which none may be lost, when there were enough of them.
    pub fn lost_nothing(self, what: &str) {
        thread::sleep(self.telling.saturating_duration_since(Instant::now()));
        let report = self.stop();
        assert!(report.sent >= 10 && report.received == report.sent, "{what}: {report:?}");
    }

    /// Reads the set of caught signals, a bit for each from 1 on, proc(5).
    fn catches_interrupts(&self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
        caught & (1 << (Signal::SIGINT as u64 - 1)) != 0
    }

    fn interrupt(&self) {
        let pid = i32::try_from(self.process.id()).expect("a process id");
        // It may have ended by itself; its summary tells.
        let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Reads "40 packets transmitted, 39 received, +1 errors, …" and, before it, whether the last one was told of.
fn report(text: &str) -> Option<PingReport> {
    let line = text.lines().find(|line| line.contains(" packets transmitted"))?;
    let mut figures = line.split(", ").map(|part| part.split(' ').next().and_then(|n| n.parse().ok()));
    let (sent, received): (u64, u64) = (figures.next()??, figures.next()??);
    // Replies, and errors, as "64 bytes from 10.0.1.2: icmp_seq=40 ttl=64 time=0.1 ms".
    let last = format!("icmp_seq={sent} ");
    let waiting = sent > 0 && !text.contains(&last);
    Some(PingReport { sent: sent - u64::from(waiting), received })
}

/// Sends `bytes` over TCP from a host to another, where they must arrive whole and unchanged.
pub fn transfer(from: &Host, to: &Host, to_address: &str, bytes: u64) {
    // Enough for a slow tunnel on a busy machine: 1 MB/s.
    let deadline = SOON + Duration::from_micros(bytes);
    if let Err(problem) = try_transfer(from, to, to_address, bytes, deadline) {
        panic!("{bytes} bytes from {} to {} ({to_address}): {problem}", from.role(), to.role());
    }
}

/// Sends `bytes` over TCP from a host to another; the error says what they came to by `deadline`.
pub fn try_transfer(
    from: &Host,
    to: &Host,
    to_address: &str,
    bytes: u64,
    deadline: Duration,
) -> Result<(), String> {
    let address: IpAddr = to_address.parse().expect("an IP address");
    let end = Instant::now() + deadline;
    let listener = to.enter(|| TcpListener::bind((address, 0))).map_err(|e| format!("cannot listen: {e}"))?;
    let target = listener.local_addr().expect("it is bound");
    let sender = from.clone();
    let sender = thread::spawn(move || sender.enter(|| send(target, bytes, end)));
    let received = thread::spawn(move || receive(&listener, end));
    let sent = sender.join().expect("the sender does not panic").map_err(|e| format!("sending: {e}"));
    if sent.is_err() {
        // Ends the accept of a receiver that nobody reached.
        let _ = to.enter(|| TcpStream::connect_timeout(&target, Duration::from_secs(1)));
    }
    let received =
        received.join().expect("the receiver does not panic").map_err(|e| format!("receiving: {e}"));
    let (sent, received) = (sent?, received?);
    if sent == received { Ok(()) } else { Err(format!("sent {sent:?}, received {received:?}")) }
}

/// Sends `count` datagrams of `size` bytes from a host to another, as many at once as the kernel cuts from one piece; they
/// must arrive whole, unchanged, and in their order.
pub fn datagrams(from: &Host, to: &Host, to_address: &str, size: u16, count: u64) {
    let address: IpAddr = to_address.parse().expect("an IP address");
    let receiver = to.enter(|| UdpSocket::bind((address, 0))).expect("a port to receive at");
    let target = receiver.local_addr().expect("it is bound");
    let any: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let sender = from.enter(|| UdpSocket::bind((any, 0))).expect("a port to send from");
    sender.connect(target).expect("a way there");
    setsockopt(&sender, UdpGsoSegment, &i32::from(size)).expect("the kernel cuts datagrams");
    receiver.set_read_timeout(Some(SOON)).expect("a deadline");
    // What fits the buffer of the receiver, and the longest datagram: nothing is lost for want of room.
    let at_once = (40_000 / u64::from(size)).clamp(1, 64);
    let datagram = |number: u64| {
        let mut bytes = vec![0; usize::from(size)];
        Noise(number | 1 << 63).fill(&mut bytes);
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        bytes
    };
    let mut next = 0;
    while next < count {
        let end = count.min(next + at_once);
        let piece: Vec<u8> = (next..end).flat_map(datagram).collect();
        sender.send(&piece).expect("the datagrams are sent");
        for number in next..end {
            let mut arrived = vec![0; usize::from(size) + 1];
            let length = receiver.recv(&mut arrived).unwrap_or_else(|error| {
                panic!("datagram {number} of {count} from {} to {}: {error}", from.role(), to.role())
            });
            assert!(
                arrived[..length] == datagram(number),
                "datagram {number} is not the next, or not as it was sent"
            );
        }
        next = end;
    }
}

/// A stream of bytes: how many, and their CRC.
#[derive(Debug, PartialEq, Eq)]
struct Sum {
    bytes: u64,
    crc: u32,
}

fn send(target: SocketAddr, bytes: u64, end: Instant) -> io::Result<Sum> {
    let mut stream = TcpStream::connect_timeout(&target, left(end)?)?;
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 1 << 16];
    let mut rest = bytes;
    while rest > 0 {
        let length = usize::try_from(rest).map_or(buffer.len(), |rest| rest.min(buffer.len()));
        let chunk = &mut buffer[..length];
        noise.fill(chunk);
        hasher.update(chunk);
        stream.set_write_timeout(Some(left(end)?))?;
        stream.write_all(chunk)?;
        rest -= length as u64;
    }
    Ok(Sum { bytes, crc: hasher.finalize() })
}

fn receive(listener: &TcpListener, end: Instant) -> io::Result<Sum> {
    let (mut stream, _) = listener.accept()?;
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 1 << 16];
    let mut bytes = 0;
    loop {
        stream.set_read_timeout(Some(left(end)?))?;
        let length = stream
            .read(&mut buffer)
            .map_err(|error| io::Error::new(error.kind(), format!("{error} after {bytes} bytes")))?;
        if length == 0 {
            return Ok(Sum { bytes, crc: hasher.finalize() });
        }
        hasher.update(&buffer[..length]);
        bytes += length as u64;
    }
}

/// The time until `end`; an error when there is none.
fn left(end: Instant) -> io::Result<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Bytes that do not repeat, the same in every run (xorshift64*).
struct Noise(u64);

impl Noise {
    fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let bytes = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}
