//! Hosts and links: network namespaces and what joins them.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::{fmt, process, thread};

use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use super::secrets;

/// Where iproute2 keeps named namespaces.
const NAMESPACES: &str = "/run/netns";

/// Begins the name of every namespace of a laboratory; the process id follows.
const PREFIX: &str = "tm";

/// A set of hosts. Dropping it removes them.
pub struct Lab {
    number: u32,
    namespaces: Mutex<Vec<String>>,
}

impl Lab {
    /// An empty laboratory. Removes what test runs that are no longer alive left behind.
    pub fn new() -> Self {
        static LABS: AtomicU32 = AtomicU32::new(1);
        assert!(is_root(), "network namespaces need root: run scripts/test as root");
        remove_stale();
        Self { number: LABS.fetch_add(1, Ordering::Relaxed), namespaces: Mutex::default() }
    }

    /// A new host, alone in its network namespace. `role` is its name in the test, unique in its laboratory.
    pub fn host(&self, role: &str) -> Host {
        /// The first `ip netns add` of a machine mounts a directory, which must not happen twice at once.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let namespace = format!("{PREFIX}{}-{}-{role}", process::id(), self.number);
        {
            let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
            ip(["netns", "add", &namespace]);
        }
        self.namespaces.lock().unwrap().push(namespace.clone());
        let host = Host { role: role.to_owned(), namespace };
        // Without this an address of a new interface cannot be used for a second or two.
        host.sysctl("net.ipv6.conf.all.accept_dad", "0");
        host.sysctl("net.ipv6.conf.default.accept_dad", "0");
        host.run(["ip", "link", "set", "lo", "up"]);
        host
    }

    /// Joins two hosts with a cable. Each end is named after the host at the other: `to-h2` on `h1`.
    pub fn link(&self, a: &Host, a_address: &str, b: &Host, b_address: &str) {
        self.cable(a, b);
        a.address(&a.device_to(b), a_address);
        b.address(&b.device_to(a), b_address);
    }

    /// Joins hosts to a bridge on `router`, all in the network of their addresses. The bridge is `segment`.
    pub fn segment(&self, router: &Host, router_address: &str, hosts: &[(&Host, &str)]) {
        router.run(["ip", "link", "add", "segment", "type", "bridge", "forward_delay", "0"]);
        router.run(["ip", "link", "set", "segment", "up"]);
        for (host, address) in hosts {
            self.cable(host, router);
            router.run(["ip", "link", "set", &router.device_to(host), "master", "segment"]);
            host.address(&host.device_to(router), address);
        }
        router.address("segment", router_address);
    }

    fn cable(&self, a: &Host, b: &Host) {
        let (a_device, b_device) = (a.device_to(b), b.device_to(a));
        ip(["link", "add", &a_device, "netns", &a.namespace, "type", "veth"].into_iter().chain([
            "peer",
            "name",
            &b_device,
            "netns",
            &b.namespace,
        ]));
        a.run(["ip", "link", "set", &a_device, "up"]);
        b.run(["ip", "link", "set", &b_device, "up"]);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let namespaces = self.namespaces.get_mut().unwrap_or_else(PoisonError::into_inner);
        for namespace in namespaces.drain(..) {
            if let Err(failed) = try_ip(["netns", "delete", &namespace]) {
                eprintln!("{namespace} stays behind: {failed}");
            }
        }
    }
}

/// A host: one network namespace.
#[derive(Debug, Clone)]
pub struct Host {
    role: String,
    namespace: String,
}

impl Host {
    /// Its name in the test.
    pub fn role(&self) -> &str {
        &self.role
    }

    /// The name of its namespace, as `ip netns` knows it.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name of the interface that a link to `other` makes on this host.
    pub fn device_to(&self, other: &Host) -> String {
        format!("to-{}", other.role)
    }

    /// Gives an interface an address, usable at once.
    pub fn address(&self, device: &str, address: &str) {
        let mut command = vec!["ip", "address", "add", address, "dev", device];
        if address.contains(':') {
            command.push("nodad");
        }
        self.run(command);
    }

    /// Reaches `prefix` through the neighbour `via`.
    pub fn route(&self, prefix: &str, via: &str) {
        self.run(["ip", "route", "add", prefix, "via", via]);
    }

    /// Whether it passes on packets that are not for itself, in both families.
    pub fn forwarding(&self, on: bool) {
        let value = if on { "1" } else { "0" };
        self.sysctl("net.ipv4.ip_forward", value);
        self.sysctl("net.ipv6.conf.all.forwarding", value);
    }

    /// Sets a kernel parameter of its network, as `net.ipv4.ip_forward`. Names of interfaces must have no dot.
    pub fn sysctl(&self, key: &str, value: &str) {
        let path = Path::new("/proc/sys").join(key.replace('.', "/"));
        self.enter(|| fs::write(&path, value)).unwrap_or_else(|error| panic!("{key} = {value}: {error}"));
    }

    /// A command that will run on this host. `ip netns exec` becomes the program, so a child's process id is the
    /// program's.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace]).arg(program).env("LC_ALL", "C");
        command
    }

    /// Runs a program to its end, a minute at most, and returns what it printed; panics if it fails.
    pub fn run<I>(&self, command: I) -> String
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.try_run(command).unwrap_or_else(|failed| panic!("on {}: {failed}", self.role))
    }

    /// Runs a program to its end, a minute at most, and returns what it printed.
    pub fn try_run<I>(&self, command: I) -> Result<String, Failed>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let mut bounded = self.command("timeout");
        bounded.args(["--foreground", "--kill-after=1", "60"]).args(command);
        finish(bounded)
    }

    /// What `ip` shows on this host, as `ip_json(["address"])` or `ip_json(["-d", "link"])`.
    pub fn ip_json<I>(&self, arguments: I) -> Value
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let mut command = self.command("ip");
        command.arg("-json").args(arguments);
        let text = finish(command).unwrap_or_else(|failed| panic!("on {}: {failed}", self.role));
        if text.trim().is_empty() {
            return Value::Array(Vec::new());
        }
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("ip printed {text:?}: {error}"))
    }

    /// Does `work` on a thread that is on this host: sockets and tun devices that it makes belong here.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = Path::new(NAMESPACES).join(&self.namespace);
        let inside = || {
            let file = File::open(&namespace).unwrap_or_else(|e| panic!("{}: {e}", namespace.display()));
            setns(file, CloneFlags::CLONE_NEWNET).expect("enters the namespace");
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| resume_unwind(panic))
    }
}

/// A program that did not end well.
#[derive(Debug, Clone)]
pub struct Failed {
    /// The program and its arguments.
    pub command: String,
    /// Its exit code; absent: it was ended by a signal. 124: it did not end within its minute.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it complained.
    pub stderr: String,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, code, stdout, stderr } = self;
        write!(f, "{command} ended with {code:?}\n{stdout}{stderr}")
    }
}

fn finish(mut command: Command) -> Result<String, Failed> {
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; run scripts/test"));
    let [stdout, stderr] = [stdout, stderr].map(|printed| String::from_utf8_lossy(&printed).into_owned());
    for printed in [&stdout, &stderr] {
        secrets::look(printed, "a command");
    }
    if status.success() {
        return Ok(stdout);
    }
    Err(Failed { command: format!("{command:?}"), code: status.code(), stdout, stderr })
}

fn try_ip<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<String, Failed> {
    let mut command = Command::new("ip");
    command.args(arguments);
    finish(command)
}

fn ip<'a>(arguments: impl IntoIterator<Item = &'a str>) {
    try_ip(arguments).unwrap_or_else(|failed| panic!("{failed}"));
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Removes the namespaces of test runs that are no longer alive, and what still runs in them.
fn remove_stale() {
    let Ok(entries) = fs::read_dir(NAMESPACES) else { return };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Some(owner) = owner(&name) else { continue };
        if PathBuf::from(format!("/proc/{owner}")).exists() {
            continue;
        }
        let left = try_ip(["netns", "pids", &name]).unwrap_or_default();
        for pid in left.lines().filter_map(|line| line.trim().parse().ok()) {
            // It may end by itself in the meantime.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
        }
        // Another test run may be removing it as well.
        let _ = try_ip(["netns", "delete", &name]);
    }
}

/// The process id in the name of a laboratory's namespace.
fn owner(namespace: &str) -> Option<u32> {
    namespace.strip_prefix(PREFIX)?.split_once('-')?.0.parse().ok()
}

/// The address family of an underlay and the subnets behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Three hosts as in the description of 2015, each with a subnet behind it.
///
/// Hosts 1 and 2 share a network segment, host 3 is behind a router: 172.100.1.1, 172.100.1.2 and 172.100.2.3, or
/// fd00:100:1::1, fd00:100:1::2 and fd00:100:2::3. Behind host N is 192.168.N.0/24 or fd00:192:168:N::/64 with the
/// host at .2 (::2), whose gateway is host N at .1 (::1). The hosts forward; no host has a default route, so that
/// what no tunnel carries goes nowhere.
pub struct ThreeHosts {
    /// Where they are; more hosts may join.
    pub lab: Lab,
    /// Between host 3 and the others.
    pub router: Host,
    family: Family,
    hosts: [Host; 3],
    inner: [Host; 3],
}

impl ThreeHosts {
    /// The three hosts, their subnets and the router, without any tunnel.
    pub fn new(family: Family) -> Self {
        let lab = Lab::new();
        let router = lab.host("router");
        let hosts = ["h1", "h2", "h3"].map(|role| lab.host(role));
        let inner = ["s1", "s2", "s3"].map(|role| lab.host(role));
        let [h1, h2, h3] = &hosts;
        router.forwarding(true);
        let (segment, beyond) = match family {
            Family::V4 => (["172.100.1.254", "172.100.1.0/24"], ["172.100.2.254", "172.100.2.0/24"]),
            Family::V6 => (["fd00:100:1::254", "fd00:100:1::/64"], ["fd00:100:2::254", "fd00:100:2::/64"]),
        };
        let three = Self { lab, router, family, hosts: hosts.clone(), inner: inner.clone() };
        let ends = [1, 2, 3].map(|n| three.wide(three.underlay(n)));
        let [end_1, end_2, end_3] = &ends;
        three.lab.segment(&three.router, &three.wide(segment[0]), &[(h1, end_1), (h2, end_2)]);
        three.lab.link(h3, end_3, &three.router, &three.wide(beyond[0]));
        h1.route(beyond[1], segment[0]);
        h2.route(beyond[1], segment[0]);
        h3.route(segment[1], beyond[0]);
        for (n, (host, behind)) in (1..).zip(hosts.iter().zip(&inner)) {
            let (gateway, address) = (three.gateway(n), three.inner_address(n));
            three.lab.link(host, &three.wide(&gateway), behind, &three.wide(&address));
            behind.route("default", &gateway);
            host.forwarding(true);
        }
        three
    }

    /// Host `n`, 1 to 3.
    pub fn host(&self, n: usize) -> &Host {
        &self.hosts[n - 1]
    }

    /// The host in the subnet behind host `n`.
    pub fn inner(&self, n: usize) -> &Host {
        &self.inner[n - 1]
    }

    /// Where host `n` is on the underlay.
    pub fn underlay(&self, n: usize) -> &'static str {
        match self.family {
            Family::V4 => ["172.100.1.1", "172.100.1.2", "172.100.2.3"][n - 1],
            Family::V6 => ["fd00:100:1::1", "fd00:100:1::2", "fd00:100:2::3"][n - 1],
        }
    }

    /// The subnet behind host `n`.
    pub fn subnet(&self, n: usize) -> String {
        match self.family {
            Family::V4 => format!("192.168.{n}.0/24"),
            Family::V6 => format!("fd00:192:168:{n}::/64"),
        }
    }

    /// Where the host behind host `n` is.
    pub fn inner_address(&self, n: usize) -> String {
        match self.family {
            Family::V4 => format!("192.168.{n}.2"),
            Family::V6 => format!("fd00:192:168:{n}::2"),
        }
    }

    fn gateway(&self, n: usize) -> String {
        match self.family {
            Family::V4 => format!("192.168.{n}.1"),
            Family::V6 => format!("fd00:192:168:{n}::1"),
        }
    }

    /// `address` with the prefix length of its network.
    fn wide(&self, address: &str) -> String {
        match self.family {
            Family::V4 => format!("{address}/24"),
            Family::V6 => format!("{address}/64"),
        }
    }
}
