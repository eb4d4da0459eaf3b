//! What strangers may cost a controller: bounded memory and time, and those that have joined nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]
#![allow(clippy::disallowed_methods, reason = "connections are opened and end in real time")]

mod lab;

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use lab::{Agent, Controller, Host, Lab, Pinger, SOON, ping_ok, wait_live, wait_until};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tunmesh::proto::host::limits;
use tunmesh::proto::host::tls::{self, Belief, Seen};

const CONTROLLER: &str = "172.100.1.254:7443";
/// Where the first agent heeds operators.
const AGENT: &str = "172.100.1.1:5002";
/// The addresses that strangers have, and how many connections they begin in all.
const SOURCES: u8 = 10;
const CONNECTIONS: usize = 10_000;
/// By when a connection that does nothing is closed: its handshake may take 3 s, and the controller is busy.
const CLOSED: Duration = Duration::from_secs(30);
/// What all of this may cost in memory, in KiB.
const MEMORY: u64 = 200 << 10;
const AGENT_MEMORY: u64 = 60 << 10;
const MESH: &str = "
mesh: prod
overlay: 10.9.0.0/24
security: plain
nodes: {web-1: {}, web-2: {}}
";

/// A controller, two agents that have joined it and are at work, and a host of strangers.
struct Site {
    _lab: Lab,
    bad: Host,
    controller: Controller,
    agents: [Agent; 2],
}

impl Site {
    fn new() -> Self {
        let lab = Lab::new();
        let [router, bad, one, two] = ["router", "bad", "one", "two"].map(|role| lab.host(role));
        let ends = [(&bad, "172.100.1.100/24"), (&one, "172.100.1.1/24"), (&two, "172.100.1.2/24")];
        lab.segment(&router, "172.100.1.254/24", &ends);
        for number in 1..SOURCES {
            bad.address(&bad.device_to(&router), &format!("{}/24", source(number)));
        }
        let controller = Controller::start_secure(&router, &[]);
        let token = controller.token(&["--uses", "2"]);
        let agents = [(&one, "web-1"), (&two, "web-2")].map(|(host, name)| {
            let joining = ["--controller", CONTROLLER, "--name", name, "--token", &token];
            Agent::start(host, &[&joining[..], &["--grpc-listen", "0.0.0.0:5002"]].concat())
        });
        wait_live(&controller, &["web-1".to_owned(), "web-2".to_owned()]);
        controller.apply_with(MESH, &["--wait"]).unwrap();
        ping_ok(agents[0].host(), "10.9.0.2");
        Self { _lab: lab, bad, controller, agents }
    }

    /// Has strangers do something, while those that have joined go on and are told of changes.
    fn withstands<T: Send>(&self, attack: impl FnOnce() -> T + Send) -> T {
        let ended = || self.agents.each_ref().map(|agent| agent.log().matches("not in step").count());
        let before = ended();
        let pinger = Pinger::start(self.agents[0].host(), "10.9.0.2", Duration::from_millis(50));
        let done = thread::scope(|scope| {
            let attack = scope.spawn(|| self.bad.enter(attack));
            let mut round = 0;
            while !attack.is_finished() || round == 0 {
                round += 1;
                let mesh = format!("{MESH}mtu: {}", 1300 + round % 100);
                self.controller.apply_with(&mesh, &["--wait"]).unwrap();
            }
            attack.join().unwrap()
        });
        pinger.lost_nothing("while strangers are at work");
        assert_eq!(ended(), before, "nobody's session ended");
        assert_eq!(self.controller.events("node-stale", ""), Vec::<Value>::new());
        for (pid, most) in [(self.controller.pid(), MEMORY), (self.agents[0].pid(), AGENT_MEMORY)] {
            let peak = peak(pid);
            assert!(peak < most, "{peak} KiB");
        }
        done
    }
}

/// The most memory that a process has had, in KiB, `proc_pid_status(5)`.
fn peak(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM")).unwrap();
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
}

fn source(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 100, 1, 100 + number)
}

/// A connection from one of the sources.
fn dial(from: u8, to: &str) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddrV4::new(source(from), 0).into()).unwrap();
    let to: SocketAddr = to.parse().unwrap();
    socket.connect_timeout(&to.into(), SOON).unwrap();
    socket.into()
}

/// Opens so many connections, says `words` on each, and waits until each was closed.
fn open_and_say(to: &str, connections: usize, words: &[u8]) {
    limits::raise_open_files();
    let mut open: Vec<TcpStream> = (0..connections)
        .map(|number| {
            let mut stream = dial((number % usize::from(SOURCES)) as u8, to);
            // One that was put off may be closed already.
            let _ = stream.write_all(words);
            stream.set_nonblocking(true).unwrap();
            stream
        })
        .collect();
    wait_until(CLOSED, "all are closed", || {
        open.retain_mut(
            |stream| matches!(stream.read(&mut [0; 64]), Err(error) if error.kind() == ErrorKind::WouldBlock),
        );
        open.is_empty()
    });
}

/// What a client says first, as it is on the wire.
fn client_hello() -> Vec<u8> {
    let mut hello = Vec::new();
    client().write_tls(&mut hello).unwrap();
    hello
}

fn client() -> ClientConnection {
    let config = tls::client(Belief::Anyone, None, Seen::default()).unwrap();
    ClientConnection::new(Arc::new(config), ServerName::try_from(tls::CONTROLLER).unwrap()).unwrap()
}

/// HTTP/2 without any client of it (RFC 9113).
struct Raw(StreamOwned<ClientConnection, TcpStream>);

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;

impl Raw {
    fn open(from: u8) -> Self {
        let stream = dial(from, CONTROLLER);
        stream.set_read_timeout(Some(CLOSED)).unwrap();
        stream.set_write_timeout(Some(CLOSED)).unwrap();
        let mut raw = Self(StreamOwned::new(client(), stream));
        raw.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
        raw
    }

    /// Sends a frame; `false`: the connection is closed.
    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        self.0.write_all(&[&head, payload].concat()).is_ok()
    }

    /// Reads until the connection is closed. Returns of which kinds the frames were that came.
    fn ended_within(mut self, deadline: Duration) -> BTreeSet<u8> {
        let end = Instant::now() + deadline;
        let (mut kinds, mut head) = (BTreeSet::new(), [0; 9]);
        self.0.sock.set_read_timeout(Some(deadline)).unwrap();
        while Instant::now() < end {
            if let Err(error) = self.0.read_exact(&mut head) {
                assert!(!matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
                return kinds;
            }
            kinds.insert(head[3]);
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let _ = self.0.read_exact(&mut vec![0; length]);
        }
        panic!("it is not closed: {kinds:?}");
    }
}

/// The headers of a request to join, by HPACK's static table (RFC 7541, appendix A), and `more` of them.
fn request(more: &[u8]) -> Vec<u8> {
    let literal =
        |index: u8, text: &str| [&[index, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let path = literal(0x44, "/tunmesh.v1.Enrolment/Enrol");
    let kind = [&[0x0f, 0x10][..], &literal(0, "application/grpc")[1..]].concat();
    [&[0x83, 0x87][..], &path, &literal(0x41, "controller"), &kind, more].concat()
}

#[test]
fn ten_thousand_connections_that_say_nothing_disturb_nobody() {
    let site = Site::new();
    site.withstands(|| open_and_say(CONTROLLER, CONNECTIONS, &[]));
}

#[test]
fn ten_thousand_halves_of_a_handshake_disturb_nobody() {
    let site = Site::new();
    let hello = client_hello();
    site.withstands(|| open_and_say(CONTROLLER, CONNECTIONS, &hello[..hello.len() / 2]));
    // All of what a client says first, which costs a signature, and nothing after it.
    site.withstands(|| open_and_say(CONTROLLER, CONNECTIONS / 4, &hello));
}

#[test]
fn ten_thousand_connections_to_an_agent_disturb_nobody() {
    let site = Site::new();
    let hello = client_hello();
    site.withstands(|| open_and_say(AGENT, CONNECTIONS, &hello[..hello.len() / 2]));
    assert_eq!(site.agents[0].tunnel_names(), ["prod.web-2"]);
    assert!(site.agents[0].log().contains("a connection was refused"));
}

#[test]
fn headers_of_a_mebibyte_disturb_nobody() {
    let site = Site::new();
    site.withstands(|| {
        // A field of 16,000 bytes, and 65 more of them.
        let text = vec![b'a'; 16_000];
        let field = [&[0, 1, b'x', 0x7f, 0x81, 0x7c][..], &text].concat();
        for number in 0..200 {
            let mut raw = Raw::open(number % SOURCES);
            let mut is_open = raw.frame(HEADERS, 0, 1, &request(&[]));
            for last in (0..65).map(|part| part == 64) {
                is_open = is_open && raw.frame(CONTINUATION, u8::from(last) * END_HEADERS, 1, &field);
            }
            // Long before one ends that says nothing.
            raw.ended_within(Duration::from_secs(3));
        }
    });
}

#[test]
fn ten_thousand_streams_disturb_nobody() {
    let site = Site::new();
    site.withstands(|| {
        // On one connection, on which nothing comes to an end; and then on many.
        for (connections, streams) in [(1, 10_000), (200, 50)] {
            let open: Vec<Raw> = (0..connections)
                .map(|number| {
                    let mut raw = Raw::open(number % SOURCES);
                    let _ = (0..streams)
                        .all(|stream| raw.frame(HEADERS, END_HEADERS, stream * 2 + 1, &request(&[])));
                    raw
                })
                .collect();
            for raw in open {
                let told = raw.ended_within(CLOSED);
                assert!(told.contains(&RST_STREAM) || told.contains(&GOAWAY), "{told:?}");
            }
        }
    });
}
