//! Connections over TCP on loopback.

use std::net::Ipv4Addr;

use futures_util::{FutureExt, StreamExt};
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::*;
use crate::controller::pki::{Authority, SigningRequest};
use crate::proto::host::clock::since_epoch;
use crate::proto::host::credential::{Credential, Facts, PrivateKey};
use crate::proto::host::tls::{self, Belief, Seen};
use crate::proto::trust::{KeyId, Principal};

/// How long to wait for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone)]
struct Nobody;

impl TurnedAway for Nobody {
    fn turned_away(&self, _: String) {}
}

/// The sources' end of a listener behind a gate.
struct Door {
    address: SocketAddr,
    gate: Gate<Nobody>,
    authority: Authority,
    _directory: TempDir,
    connections: Pin<Box<dyn Stream<Item = io::Result<Accepted>> + Send>>,
}

impl Door {
    async fn open(insecure: &str, most: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::open(&directory.path().join("pki"), since_epoch()).unwrap();
        let (server, _) = authority.server(since_epoch()).unwrap();
        let handshakes = Handshakes::default();
        handshakes.change(&server, authority.roots()).unwrap();
        let gate = Gate::new(&[insecure.parse().unwrap()], most, Arc::new(handshakes), Nobody);
        let connections = Box::pin(gate.clone().connections(listener));
        Self { address, gate, authority, _directory: directory, connections }
    }

    async fn reach(&self, host: u8) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::new(127, 0, 0, host), 0).into()).unwrap();
        socket.connect(self.address).await.unwrap()
    }

    /// Dials from 127.0.0.`host`, in plain text. Returns both ends; without the near one it was turned away.
    async fn dial(&mut self, host: u8) -> (TcpStream, Option<Accepted>) {
        let mut far = self.reach(host).await;
        far.write_all(b"P").await.unwrap();
        let mut byte = [0];
        // Nothing is ever sent: whoever has something to read was closed.
        let near = tokio::select! {
            near = self.connections.next() => Some(near.unwrap().unwrap()),
            _ = far.read(&mut byte) => None,
        };
        let near = match near {
            Some(mut near) => {
                near.read_exact(&mut byte).await.unwrap();
                Some(near)
            }
            None => None,
        };
        (far, near)
    }

    /// What one is taken for who dials with `credential`, if anything.
    async fn shown(&mut self, credential: Option<&Credential>) -> Result<Shown, Unbelieved> {
        let belief = Belief::Roots(self.authority.roots().to_vec());
        let config = tls::client(belief, credential, Seen::default()).unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        let far = self.reach(1).await;
        let name = ServerName::try_from(tls::CONTROLLER).unwrap();
        let (far, near) = tokio::join!(connector.connect(name, far), self.connections.next());
        far.unwrap();
        near.unwrap().unwrap().connect_info().shown.expect("it is TLS")
    }

    /// A credential for `node`, made at a time.
    fn credential(&self, node: &str, wall: Duration) -> Credential {
        let key = PrivateKey::generate().unwrap();
        let request = SigningRequest::parse(&key.request().unwrap()).unwrap();
        let principal = Principal::Agent(node.parse().unwrap());
        let chain = self.authority.sign(&request, &principal, wall, wall + SILENCE * 100).unwrap();
        Credential { key, chain, roots: self.authority.roots().to_vec() }
    }

    fn left(&self) -> usize {
        let mut seats = self.gate.seats.lock().unwrap();
        let stranger = |number: u32| Source::from(IpAddr::from(Ipv4Addr::from_bits(number)));
        let left = (0..1_000).take_while(|number| seats.take(stranger(*number)).is_ok()).count();
        (0..u32::try_from(left).unwrap()).for_each(|number| seats.free(stranger(number)));
        left
    }
}

/// How long after `since` a connection ends that nobody writes to.
#[allow(clippy::disallowed_methods, reason = "the clock of the test")]
async fn end(near: &mut Accepted, since: Instant) -> Duration {
    let read = timeout(PATIENCE, near.read(&mut [0])).await;
    let error = read.expect("it ends").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    since.elapsed()
}

#[tokio::test]
async fn plain_text_is_for_the_networks_that_are_named() {
    let mut door = Door::open("127.0.0.2/32", 9).await;
    for _ in 0..2 {
        let (_far, near) = timeout(PATIENCE, door.dial(1)).await.unwrap();
        assert!(near.is_none());
    }
    let (mut far, near) = timeout(PATIENCE, door.dial(2)).await.unwrap();
    let mut near = near.expect("it is let in");
    let Peer { source, local, .. } = near.connect_info();
    assert_eq!((source, local), (Ipv4Addr::new(127, 0, 0, 2).into(), Ipv4Addr::LOCALHOST.into()));
    far.write_all(b"x").await.unwrap();
    let mut byte = [0];
    timeout(PATIENCE, near.read_exact(&mut byte)).await.unwrap().unwrap();
    assert_eq!((byte, door.left()), (*b"x", 8));
}

#[tokio::test]
async fn an_agent_of_the_mesh_is_taken_for_a_controller_by_nobody() {
    let mut door = Door::open("127.0.0.2/32", 9).await;
    let mut agent = door.credential("web-1", since_epoch());
    // With all that a controller shows.
    agent.chain.extend(door.authority.roots().iter().cloned());
    door.gate.handshakes.change(&agent, door.authority.roots()).unwrap();
    let root = door.authority.root_facts()[0].pin;
    for belief in [Belief::Roots(door.authority.roots().to_vec()), Belief::Pin(root), Belief::Anyone] {
        let config = tls::client(belief, None, Seen::default()).unwrap();
        let name = ServerName::try_from(tls::CONTROLLER).unwrap();
        let far = door.reach(1).await;
        let dialling = TlsConnector::from(Arc::new(config)).connect(name, far);
        let dialled = tokio::select! {
            dialled = dialling => dialled,
            _ = door.connections.next() => panic!("it is believed"),
        };
        let fault = dialled.unwrap_err().to_string();
        assert!(fault.contains("controller.tunmesh"), "{fault}");
    }
}

#[tokio::test]
async fn a_certificate_says_who_dials_and_whoever_has_none_is_let_in_to_be_told() {
    let mut door = Door::open("127.0.0.2/32", 9).await;
    let other = Door::open("127.0.0.2/32", 9).await;
    let now = since_epoch();
    let web = door.credential("web-1", now);
    let shown = door.shown(Some(&web)).await.unwrap();
    let principal = Principal::Agent("web-1".parse().unwrap());
    assert_eq!((shown.principal, shown.key), (principal, web.key.id()));
    assert_eq!(door.shown(None).await, Err(Unbelieved::Nothing));
    let foreign = other.credential("web-1", now);
    assert_eq!(door.shown(Some(&foreign)).await, Err(Unbelieved::Foreign));
    let old = door.credential("web-1", now - SILENCE * 200);
    assert_eq!(door.shown(Some(&old)).await, Err(Unbelieved::Expired));
    // Nobody shows a certificate whose key it has not.
    let stolen = Credential { key: foreign.key, ..web };
    let config = tls::client(Belief::Roots(stolen.roots.clone()), Some(&stolen), Seen::default());
    assert!(config.is_err(), "a client of ours does not even try");
}

#[tokio::test]
async fn from_the_next_connection_on_it_shows_what_it_was_changed_to() {
    let mut door = Door::open("127.0.0.2/32", 9).await;
    let old = door.authority.roots().to_vec();
    door.authority.rotate(since_epoch()).unwrap();
    let (server, _) = door.authority.server(since_epoch()).unwrap();
    door.gate.handshakes.change(&server, door.authority.roots()).unwrap();
    let pin = Facts::of(&old[0]).unwrap().key;
    for belief in [Belief::Roots(old), Belief::Pin(pin), Belief::Roots(door.authority.roots().to_vec())] {
        let config = tls::client(belief, None, Seen::default()).unwrap();
        let name = ServerName::try_from(tls::CONTROLLER).unwrap();
        let far = door.reach(1).await;
        let connector = TlsConnector::from(Arc::new(config));
        let (far, near) = tokio::join!(connector.connect(name, far), door.connections.next());
        assert!(far.is_ok() && near.is_some());
    }
    for belief in [Belief::Pin(KeyId::of(b"another")), Belief::Roots(Vec::new())] {
        let config = tls::client(belief, None, Seen::default()).unwrap();
        let name = ServerName::try_from(tls::CONTROLLER).unwrap();
        let far = door.reach(1).await;
        let connector = TlsConnector::from(Arc::new(config));
        let far = tokio::select! {
            far = connector.connect(name, far) => far,
            _ = door.connections.next() => panic!("it was let in"),
        };
        assert!(far.is_err());
    }
}

#[test]
#[allow(clippy::disallowed_methods, reason = "any time will do")]
fn a_source_that_begins_too_many_is_put_off_and_no_other() {
    let (mut begun, start) = (Shares::new(BEGUN), std::time::Instant::now());
    let source = |number| Source::from(IpAddr::from(Ipv4Addr::from_bits(number)));
    let taken = (0..5_000).filter(|_| begun.take(source(1), start)).count();
    assert_eq!(taken, 1_000);
    assert!(begun.take(source(2), start));
    let second = start + Duration::from_secs(1);
    assert_eq!((0..5_000).filter(|_| begun.take(source(1), second)).count(), 400);
    let later = second + Duration::from_secs(100);
    assert_eq!((0..5_000).filter(|_| begun.take(source(1), later)).count(), 1_000);
}

#[tokio::test]
async fn a_handshake_that_hangs_holds_up_nobody_and_ends() {
    let mut door = Door::open("127.0.0.2/32", 40).await;
    let mut hanging = Vec::new();
    for byte in [None, Some([22]), Some([0])] {
        for _ in 0..4 {
            let mut far = door.reach(1).await;
            if let Some(byte) = &byte {
                far.write_all(byte).await.unwrap();
            }
            hanging.push(far);
        }
    }
    assert_eq!(timeout(HANDSHAKE, door.shown(None)).await.unwrap(), Err(Unbelieved::Nothing));
    for far in &mut hanging {
        let mut byte = [0];
        let closed = async {
            tokio::select! {
                read = far.read(&mut byte) => assert!(matches!(read, Ok(0) | Err(_)), "{read:?}"),
                _ = door.connections.next() => panic!("it was let in"),
            }
        };
        timeout(PATIENCE, closed).await.unwrap();
    }
    assert_eq!(door.left(), 40);
}

#[tokio::test(start_paused = true)]
#[allow(clippy::disallowed_methods, reason = "the clock of the test")]
async fn a_connection_without_a_session_ends() {
    let mut door = Door::open("127.0.0.0/8", 9).await;
    let (_far, near) = door.dial(1).await;
    let mut near = near.unwrap();
    let start = Instant::now();
    assert!((SILENCE..SILENCE * 2).contains(&end(&mut near, start).await), "one that says nothing");
    drop(near);
    assert_eq!(door.left(), 9);

    // One with sessions stays, and goes some time after the last.
    let (mut far, near) = door.dial(1).await;
    let mut near = near.unwrap();
    let (first, second) = (near.connect_info().greet(), near.connect_info().greet());
    for session in [Some(first), None] {
        tokio::time::sleep(SILENCE * 3).await;
        assert!(near.read(&mut [0]).now_or_never().is_none(), "it stays");
        drop(session);
    }
    far.write_all(b"x").await.unwrap();
    assert_eq!(near.read(&mut [0]).await.unwrap(), 1);
    let ended = Instant::now();
    drop(second);
    let time = end(&mut near, ended).await;
    assert!((SILENCE..SILENCE * 3).contains(&time), "{time:?}");

    // Nor does one stay that writes and does not read.
    let (_far, near) = door.dial(1).await;
    let mut near = near.unwrap();
    tokio::time::sleep(SILENCE).await;
    assert_eq!(near.flush().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn a_source_has_what_it_can_and_leaves_room_for_others() {
    let mut door = Door::open("127.0.0.0/8", 16).await;
    let mut open = Vec::new();
    let mut counts = Vec::new();
    // Sessions change nothing about it.
    for host in [1, 1, 1, 2, 3, 4] {
        let before = open.len();
        loop {
            let (far, near) = timeout(PATIENCE, door.dial(host)).await.unwrap();
            let Some(near) = near else { break };
            let session = near.connect_info().greet();
            open.push((far, near, session));
        }
        counts.push(open.len() - before);
    }
    assert_eq!(counts, [8, 0, 0, 4, 2, 1]);
    assert_eq!(door.left(), 1);
    open.truncate(4);
    assert_eq!(door.left(), 12);
    open.clear();
    assert_eq!(door.left(), 16, "what ends is given back");
}
