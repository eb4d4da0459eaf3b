//! What crosses a network, as tcpdump sees it.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::{Host, SOON, wait_until};

/// The length in bytes of the header of a file of tcpdump's.
const HEADER: usize = 24;

/// The length in bytes of the header of each packet in it.
const RECORD: usize = 16;

/// How many captures there were: each has an address of its own that marks its end.
static CAPTURES: AtomicU16 = AtomicU16::new(0);

/// A running tcpdump. Dropping it ends it.
pub struct Capture<'a> {
    host: &'a Host,
    tcpdump: Child,
    file: PathBuf,
    /// Where the packet goes that is the last to be captured.
    end: Ipv4Addr,
    _directory: TempDir,
}

impl<'a> Capture<'a> {
    /// Captures on all interfaces of a host what a filter of pcap lets through, as `udp port 5000`.
    pub fn start(host: &'a Host, filter: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("capture");
        let [high, low] = CAPTURES.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let end = Ipv4Addr::new(127, 77, high, low);
        let tcpdump = host
            .command("tcpdump")
            .args(["-i", "any", "--immediate-mode", "-U", "-Z", "root", "-w", file.to_str().unwrap()])
            // In immediate mode each packet has a slot as long as the longest, so that by tcpdump's own figures
            // eight are held while it waits for a processor. These make it 512.
            .args(["-s", "65535", "-B", "32768"])
            .arg(format!("({filter}) or dst host {end}"))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tcpdump starts: run scripts/test, which installs it");
        let begun = || fs::metadata(&file).is_ok_and(|file| file.len() >= HEADER as u64);
        wait_until(SOON, "tcpdump listens", begun);
        Self { host, tcpdump, file, end, _directory: directory }
    }

    /// All that was captured until now, with the headers of the file and of each packet.
    pub fn stop(mut self) -> Captured {
        let end = self.end;
        self.host.enter(|| UdpSocket::bind("127.0.0.1:0").unwrap().send_to(&[], (end, 9)).unwrap());
        // Whoever ends tcpdump at once loses what it has not read yet.
        let mut captured = Captured(Vec::new());
        wait_until(SOON, "tcpdump has all", || {
            captured.0 = fs::read(&self.file).unwrap();
            captured.cut(end)
        });
        kill(Pid::from_raw(self.tcpdump.id().try_into().unwrap()), Signal::SIGINT).unwrap();
        let said = io::read_to_string(self.tcpdump.stderr.take().unwrap()).unwrap();
        self.tcpdump.wait().unwrap();
        assert!(
            said.contains("\n0 packets dropped by kernel"),
            "what was captured is all that crossed: {said}"
        );
        captured
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
    }
}

/// How many bytes of a packet follow its header.
fn length(record: &[u8]) -> usize {
    u32::from_ne_bytes([record[8], record[9], record[10], record[11]]).try_into().unwrap()
}

/// What was captured.
pub struct Captured(Vec<u8>);

impl Captured {
    /// Cuts it before the first packet for `end`, and says whether there is one.
    fn cut(&mut self, end: Ipv4Addr) -> bool {
        let mut at = HEADER;
        while let Some(record) = self.0.get(at..at + RECORD) {
            let next = at + RECORD + length(record);
            let is_end = |packet: &[u8]| packet.windows(4).any(|window| window == end.octets());
            if self.0.get(at + RECORD..next).is_some_and(is_end) {
                self.0.truncate(at);
                return true;
            }
            at = next;
        }
        false
    }

    /// Whether these bytes stand somewhere in it.
    pub fn has(&self, bytes: &[u8]) -> bool {
        self.0.windows(bytes.len()).any(|window| window == bytes)
    }

    /// How many packets it is.
    pub fn count(&self) -> usize {
        let mut rest = self.0.get(HEADER..).unwrap_or_default();
        let mut count = 0;
        while let Some((record, behind)) = rest.split_at_checked(RECORD) {
            rest = behind.get(length(record)..).unwrap_or_default();
            count += 1;
        }
        count
    }

    /// The data packets of WireGuard that IPv4 has brought from `source` at port 5000, from the first.
    pub fn data_packets(&self, source: Ipv4Addr) -> Vec<&[u8]> {
        /// Between the source address in the header of IPv4 and what UDP carries.
        const GAP: usize = 16;
        let sent = source.octets();
        let starts = self.0.windows(4).enumerate().filter(|(_, window)| *window == sent).map(|(at, _)| at);
        let packet = |at: usize| {
            let udp = self.0.get(at + 8..at + GAP)?;
            let length = usize::from(u16::from_be_bytes([udp[4], udp[5]])).checked_sub(8)?;
            let packet = self.0.get(at + GAP..at + GAP + length)?;
            (udp[..2] == 5000_u16.to_be_bytes() && packet.starts_with(&[4, 0, 0, 0])).then_some(packet)
        };
        starts.filter_map(packet).collect()
    }

    /// Whether there was nothing.
    pub fn is_empty(&self) -> bool {
        self.len() <= HEADER
    }

    /// How many bytes it is.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}
