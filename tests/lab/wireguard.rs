//! WireGuard as others have it: the peer of an encrypted tunnel that is no agent.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tunmesh::proto::host::wireguard::PrivateKey;

use super::{Host, SOON, secrets, wait_until};

/// Debian's wireguard-go on a host, with one peer. Dropping it ends it.
pub struct WireguardGo {
    host: Host,
    device: String,
    address: String,
    key: PrivateKey,
    /// With its private key.
    directory: TempDir,
    peer: Vec<String>,
    process: Child,
}

impl WireguardGo {
    /// Starts it at UDP port `port` with an address and its network on the overlay, for a peer as `wg set` takes it:
    /// `["KEY", "endpoint", "172.100.1.1:5000", "allowed-ips", "10.9.0.0/24"]`.
    pub fn start(host: &Host, port: u16, address: &str, peer: &[&str]) -> Self {
        static DEVICES: AtomicU32 = AtomicU32::new(0);
        // Its socket has the device's name, and is the same file for all hosts.
        let device = format!("wg{}-{}", std::process::id(), DEVICES.fetch_add(1, Ordering::Relaxed));
        let key = PrivateKey::generate().unwrap();
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("wireguard.key"), key.to_text().as_bytes()).unwrap();
        secrets::learn_keys(directory.path());
        let process = run(host, &device);
        let peer: Vec<String> = peer.iter().map(|word| (*word).to_owned()).collect();
        let started =
            Self { host: host.clone(), device, address: address.to_owned(), key, directory, peer, process };
        started.set_up(port);
        started
    }

    /// Its public key.
    pub fn public_key(&self) -> String {
        self.key.public().to_string()
    }

    /// Ends it, and starts another with the same key and peer, which knows nothing of what was before.
    pub fn restart(&mut self, port: u16) {
        self.end();
        self.process = run(&self.host, &self.device);
        self.set_up(port);
    }

    /// Takes another UDP port.
    pub fn move_to(&self, port: u16) {
        self.host.run(["wg", "set", &self.device, "listen-port", &port.to_string()]);
    }

    /// When it last agreed on keys, in seconds since the Unix epoch; 0: never.
    pub fn last_handshake(&self) -> u64 {
        let shown = self.host.run(["wg", "show", &self.device, "latest-handshakes"]);
        shown.split_whitespace().nth(1).and_then(|seconds| seconds.parse().ok()).unwrap_or(0)
    }

    /// Where its peer is, as it has found.
    pub fn endpoint(&self) -> String {
        let shown = self.host.run(["wg", "show", &self.device, "endpoints"]);
        shown.split_whitespace().nth(1).unwrap_or_default().to_owned()
    }

    fn set_up(&self, port: u16) {
        let socket = Path::new("/var/run/wireguard").join(format!("{}.sock", self.device));
        wait_until(SOON, "wireguard-go takes commands", || socket.exists());
        let key = self.directory.path().join("wireguard.key");
        let port = port.to_string();
        let own =
            ["wg", "set", &self.device, "private-key", key.to_str().unwrap(), "listen-port", &port, "peer"];
        self.host.run(own.into_iter().chain(self.peer.iter().map(String::as_str)));
        self.host.address(&self.device, &self.address);
        self.host.run(["ip", "link", "set", &self.device, "mtu", "1420", "up"]);
    }

    fn end(&mut self) {
        // It removes its socket when it is told to end.
        let _ = kill(Pid::from_raw(self.process.id().try_into().unwrap()), Signal::SIGTERM);
        let _ = self.process.wait();
    }
}

impl Drop for WireguardGo {
    fn drop(&mut self) {
        self.end();
    }
}

/// What a file of wg-quick sets up on a host, with wireguard-go where the kernel has no WireGuard. Dropping it takes it
/// down.
pub struct WgQuick {
    host: Host,
    /// With the file, and its private key where it has none itself.
    directory: TempDir,
    device: String,
}

impl WgQuick {
    /// Sets up what the file says. Where it names a file of the private key, that has `key`.
    pub fn up(host: &Host, file: &str, key: Option<&PrivateKey>) -> Self {
        static DEVICES: AtomicU32 = AtomicU32::new(0);
        // Its socket has the device's name, and is the same file for all hosts.
        let device = format!("q{}-{}", std::process::id(), DEVICES.fetch_add(1, Ordering::Relaxed));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        if let Some(key) = key {
            fs::write(path.join(format!("{device}.key")), key.to_text().as_bytes()).unwrap();
            secrets::learn_keys(path);
        }
        let set_up = Self { host: host.clone(), device, directory };
        let file = file.replace("/etc/wireguard/", &format!("{}/", set_up.directory.path().display()));
        fs::write(set_up.file(), file).unwrap();
        set_up.quick("up");
        set_up
    }

    /// Ends it, and sets the same up again.
    pub fn restart(&self) {
        self.quick("down");
        self.quick("up");
    }

    fn quick(&self, command: &str) {
        self.host.run(["wg-quick", command, self.file().to_str().unwrap()]);
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join(format!("{}.conf", self.device))
    }
}

impl Drop for WgQuick {
    fn drop(&mut self) {
        let _ = self.host.try_run(["wg-quick", "down", self.file().to_str().unwrap()]);
    }
}

fn run(host: &Host, device: &str) -> Child {
    host.command("wireguard-go")
        .args(["-f", device])
        .env("WG_PROCESS_FOREGROUND", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("wireguard-go starts: run scripts/test, which installs it")
}
