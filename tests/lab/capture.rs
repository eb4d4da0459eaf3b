//! What crosses a network, as tcpdump sees it.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::{Host, SOON, wait_until};

/// The length in bytes of the header of a file of tcpdump's.
const HEADER: usize = 24;

/// A running tcpdump. Dropping it ends it.
pub struct Capture {
    tcpdump: Child,
    file: PathBuf,
    _directory: TempDir,
}

impl Capture {
    /// Captures on all interfaces of a host what a filter lets through, as `&["udp", "port", "5000"]`.
    pub fn start(host: &Host, filter: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("capture");
        let tcpdump = host
            .command("tcpdump")
            .args(["-i", "any", "--immediate-mode", "-U", "-Z", "root", "-w", file.to_str().unwrap()])
            .args(filter)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("tcpdump starts: run scripts/test, which installs it");
        let begun = || fs::metadata(&file).is_ok_and(|file| file.len() >= HEADER as u64);
        wait_until(SOON, "tcpdump listens", begun);
        Self { tcpdump, file, _directory: directory }
    }

    /// All that was captured, with the headers of the file and of each packet.
    pub fn stop(mut self) -> Captured {
        // Told to end, it writes what it has.
        kill(Pid::from_raw(self.tcpdump.id().try_into().unwrap()), Signal::SIGINT).unwrap();
        self.tcpdump.wait().unwrap();
        Captured(fs::read(&self.file).unwrap())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
    }
}

/// What was captured.
pub struct Captured(Vec<u8>);

impl Captured {
    /// Whether these bytes stand somewhere in it.
    pub fn has(&self, bytes: &[u8]) -> bool {
        self.0.windows(bytes.len()).any(|window| window == bytes)
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
