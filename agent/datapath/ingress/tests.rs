use std::net::Ipv4Addr;

use socket2::SockRef;

use super::*;
use crate::agent::datapath::sample;
use crate::agent::os::udp::send::{Message, Part, Sender, Transmit};
use crate::agent::packet::checksum;
use crate::proto::model::Offload;

#[test]
fn marks_are_asked_for_as_soon_as_there_is_what_can_be_marked() {
    const NONE: u8 = 0b00;
    const CAPABLE: u8 = 0b10;
    const CONGESTED: u8 = 0b11;
    let world = world(1);
    let mut own = world.of_peer(0);
    let peer = &world.peers[0];
    let port = world.shared.sockets.v4.as_ref().unwrap().local_addr().unwrap();
    // Has a packet arrive, which says `inside`, in a datagram that says `outside`.
    let mut arrives = |inside: u8, outside: u8| {
        let mut packet = [0x45, inside, 0, 20, 0, 0, 0, 0, 64, 253, 0, 0, 10, 9, 0, 1, 10, 9, 0, 9];
        let sum = checksum::finish(checksum::sum(&packet, 0));
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        SockRef::from(peer).set_tos_v4(outside.into()).unwrap();
        peer.send_to(&packet, port).unwrap();
        assert!(own.pass(Reading::Wait).unwrap());
    };
    let congested = || {
        let table = world.shared.table.load();
        let tunnel = table.tunnel(table.sender(peer.local_addr().unwrap()).unwrap()).unwrap();
        tunnel.stats.received.drops.read().get("congested").copied().unwrap_or_default()
    };
    arrives(NONE, CONGESTED);
    assert_eq!(congested(), 1, "at first it is asked");
    (0..Marking::MANY).for_each(|_| arrives(NONE, NONE));
    arrives(NONE, CONGESTED);
    assert_eq!(congested(), 1, "none was to be expected");
    arrives(CAPABLE, NONE);
    arrives(NONE, CONGESTED);
    assert_eq!(congested(), 2);
}

/// Whoever is asked by ICMP echoes must not bring packets in another's name behind its answer.
#[test]
fn behind_an_answer_each_packet_is_judged() {
    use crate::agent::datapath::link::LinkEnd;
    use crate::agent::datapath::stats::TunnelStats;
    use crate::agent::datapath::table::Kept;
    let own: IpAddr = [10, 9, 0, 9].into();
    let end = Arc::new(LinkEnd::asking((own, [10, 9, 0, 2].into()), false, [7; 16], Duration::ZERO));
    let asked = end.poll(&TunnelStats::default(), None, Duration::from_secs(1)).echo.expect("it asks");
    let mut answer = Vec::new();
    etherparse::PacketBuilder::ipv4([10, 9, 0, 2], [10, 9, 0, 9], 64)
        .icmpv4_echo_reply(
            u16::from_be_bytes([asked[24], asked[25]]),
            u16::from_be_bytes([asked[26], asked[27]]),
        )
        .write(&mut answer, &asked[28..])
        .unwrap();
    let packet = || {
        let mut packet = Vec::new();
        let builder = etherparse::PacketBuilder::ipv4([10, 9, 0, 1], [10, 9, 0, 9], 64).udp(7777, 7777);
        builder.write(&mut packet, b"of the first one").unwrap();
        packet
    };
    let peers: Vec<_> = (0..2).map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).collect();
    let endpoints: Vec<_> = peers.iter().map(|peer| peer.local_addr().unwrap()).collect();
    let link = |name: &str| (name == "t2").then(|| Arc::clone(&end));
    let table = sample::table_of(&endpoints, &[], |name| Kept { link: link(name), ..Kept::default() });
    let (shared, _) = sample::shared(table);
    let port = shared.sockets.v4.as_ref().unwrap().local_addr().unwrap();
    for (peer, datagram) in [(0, packet()), (1, answer), (1, packet())] {
        peers[peer].send_to(&datagram, port).unwrap();
    }
    assert!(Ingress::of_port(Arc::clone(&shared), true).pass(Reading::Many).unwrap());
    assert_eq!(end.status(|at| at).map(|status| status.why), Some(crate::proto::model::Why::Heard));
    let table = shared.table.load();
    let received =
        |peer: usize| &table.tunnel(table.sender(endpoints[peer]).unwrap()).unwrap().stats.received;
    assert_eq!(received(1).drops.read().get("source_not_allowed"), Some(&1));
    assert_eq!([0, 1].map(|peer| received(peer).packets()), [1, 0]);
}

/// Peers on loopback with a tunnel each, and what receives from them.
struct World {
    peers: Vec<UdpSocket>,
    shared: Arc<Shared>,
    port: Ingress,
}

fn world(count: usize) -> World {
    let peers: Vec<_> = (0..count).map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).collect();
    let endpoints: Vec<_> = peers.iter().map(|peer| peer.local_addr().unwrap()).collect();
    let (shared, _) = sample::shared(sample::table(&endpoints, &[]));
    for endpoint in endpoints {
        let table = shared.table.load();
        let tunnel = table.tunnel(table.sender(endpoint).unwrap()).unwrap();
        tunnel.path.mark_local(Ipv4Addr::LOCALHOST.into());
    }
    let socket = shared.sockets.v4.as_ref().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    World { port: Ingress::of_port(Arc::clone(&shared), true), peers, shared }
}

impl World {
    fn of_peer(&self, peer: usize) -> Ingress {
        let address = self.peers[peer].local_addr().unwrap();
        let tunnel = self.shared.table.load().sender(address).unwrap();
        Ingress::of_peer(Arc::clone(&self.shared), (address, tunnel)).unwrap()
    }

    fn send(&self, peer: &UdpSocket, length: usize, count: usize) {
        let port = self.shared.sockets.v4.as_ref().unwrap().local_addr().unwrap();
        for _ in 0..count {
            peer.send_to(&vec![0x45; length], port).unwrap();
        }
    }
}

#[test]
fn a_peer_keeps_its_socket_though_little_came_at_first() {
    let world = world(1);
    let mut own = world.of_peer(0);
    world.send(&world.peers[0], 100, 1);
    assert!(own.pass(Reading::Wait).unwrap());
    assert!(!own.is_idle());
}

#[test]
fn a_socket_whose_peer_has_no_tunnel_any_more_is_idle() {
    let world = world(1);
    let mut own = world.of_peer(0);
    world.shared.table.store(Arc::new(Table::default()));
    world.send(&world.peers[0], 100, 100);
    assert!(own.pass(Reading::Wait).unwrap());
    assert!(own.is_idle());
}

#[test]
fn what_waits_behind_the_news_of_an_earlier_datagram_is_read() {
    let mut world = world(1);
    let mut own = world.of_peer(0);
    world.send(&world.peers[0], 100, 40);
    let peer = world.peers.remove(0);
    let address = peer.local_addr().unwrap();
    drop(peer);
    // Nobody is there any more: the kernel tells the socket that is connected to it.
    world.shared.sockets.v4.as_ref().unwrap().send_to(b"to nobody", address).unwrap();
    assert!(own.empty().unwrap());
    assert_eq!(world.shared.stats.datagrams(), 40);
}

#[test]
fn what_waits_as_one_message_is_read_whole_though_it_should_come_one_by_one() {
    const TRAINS: u64 = 40;
    let mut world = world(1);
    let peer = world.peers[0].try_clone().unwrap();
    world.send(&peer, 100, 1);
    assert!(world.port.pass(Reading::Few).unwrap());
    let destination = world.shared.sockets.v4.as_ref().unwrap().local_addr().unwrap().into();
    let bytes = [0x45; 1_000];
    for _ in 0..TRAINS {
        let part = Part { buffer: 0, at: 0, length: bytes.len() as u32 };
        let train =
            Message { destination: &destination, source: None, segment: Some(100), tos: 0, parts: 0..1 };
        Sender::default().send(&peer, std::iter::once(train), &[part], [&bytes, &[]]).unwrap();
    }
    let endpoints = [peer.local_addr().unwrap()];
    world.shared.table.store(Arc::new(sample::table(&endpoints, &[Offload::UdpGro])));
    assert!(world.port.empty().unwrap());
    assert_eq!(world.shared.stats.datagrams(), 1 + 10 * TRAINS);
    assert!(!world.port.merges);
}

#[test]
fn only_peers_of_tunnels_are_picked_and_only_while_they_send() {
    let mut world = world(1);
    // The peers' tunnels are their address's, whatever the port.
    let stranger = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).unwrap();
    let picked = |world: &mut World, sender: &UdpSocket, datagrams: usize| {
        let mut picked = None;
        for _ in 0..datagrams {
            world.send(sender, 60_000, 1);
            assert!(world.port.pass(Reading::Wait).unwrap());
            picked = picked.or(world.port.loud_peer().map(|(peer, _)| peer));
        }
        picked
    };
    let peer = world.peers[0].try_clone().unwrap();
    assert_eq!(picked(&mut world, &peer, 1), None);
    assert_eq!(picked(&mut world, &stranger, 2 * SAMPLE / 60_000), None, "strangers count for nobody");
    assert_eq!(picked(&mut world, &peer, 1 + SAMPLE / 60_000), Some(peer.local_addr().unwrap()));
    assert_eq!(picked(&mut world, &peer, SAMPLE / 60_000 / 2), None, "it is counted anew");
    world.port.forget_who_sends();
    assert_eq!(picked(&mut world, &peer, SAMPLE / 60_000 / 2 + 2), None);
}
