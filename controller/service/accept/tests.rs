//! Connections over TCP on loopback.

use std::net::Ipv4Addr;

use futures_util::{FutureExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::time::timeout;

use super::*;

/// How long to wait for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// The sources' end of a listener behind a gate.
struct Door {
    address: SocketAddr,
    gate: Gate,
    connections: Pin<Box<dyn Stream<Item = io::Result<Accepted>> + Send>>,
}

impl Door {
    async fn open(insecure: &str, most: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let gate = Gate::new(&[insecure.parse().unwrap()], most);
        let connections = Box::pin(gate.clone().connections(listener));
        Self { address, gate, connections }
    }

    /// Dials from 127.0.0.`host`. Returns both ends; without the near one it was turned away.
    async fn dial(&mut self, host: u8) -> (TcpStream, Option<Accepted>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::new(127, 0, 0, host), 0).into()).unwrap();
        let mut far = socket.connect(self.address).await.unwrap();
        let mut byte = [0];
        // Nothing is ever sent: whoever has something to read was closed.
        let near = tokio::select! {
            near = self.connections.next() => Some(near.unwrap().unwrap()),
            _ = far.read(&mut byte) => None,
        };
        (far, near)
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
