use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};

use tokio::sync::mpsc;

use super::*;
use crate::agent::datapath::batch::{Delay, Place};
use crate::agent::datapath::sample;

const NOW: Duration = Duration::from_secs(1000);
const LENGTH: usize = 100;

/// What a kernel was asked to send: where to, in datagrams of which length, and how many bytes in all.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    peer: u8,
    source: Option<IpAddr>,
    segment: Option<u16>,
    bytes: usize,
}

/// A kernel that answers as it is told, and then takes everything.
#[derive(Default)]
struct Kernel {
    answers: VecDeque<Result<usize, i32>>,
    taken: Vec<Asked>,
    refused: Vec<Asked>,
}

impl Transmit for &mut Kernel {
    fn send<'m>(
        &mut self,
        _: &UdpSocket,
        messages: impl ExactSizeIterator<Item = Message<'m>>,
        parts: &[Part],
        _: [&[u8]; 2],
    ) -> io::Result<usize> {
        let asked: Vec<Asked> = messages
            .map(|message| Asked {
                peer: match message.destination.as_socket().unwrap().ip() {
                    IpAddr::V4(v4) => v4.octets()[3],
                    IpAddr::V6(v6) => panic!("{v6} is of the other socket"),
                },
                source: message.source,
                segment: message.segment,
                bytes: parts[message.parts].iter().map(|part| part.length as usize).sum(),
            })
            .collect();
        match self.answers.pop_front().unwrap_or(Ok(asked.len())) {
            Ok(count) => {
                self.taken.extend(asked.into_iter().take(count));
                Ok(count)
            }
            Err(errno) => {
                self.refused.extend(asked.into_iter().take(1));
                Err(io::Error::from_raw_os_error(errno))
            }
        }
    }
}

struct World {
    table: Table,
    shared: Arc<Shared>,
    events: mpsc::Receiver<DatapathEvent>,
    kernel: Kernel,
}

/// A device with tunnels to 192.0.2.1 and 192.0.2.2.
fn world(answers: &[Result<usize, i32>]) -> World {
    let endpoints = [1, 2].map(|peer| (Ipv4Addr::new(192, 0, 2, peer), 5000).into());
    let (shared, events) = sample::shared(Table::default());
    World {
        table: sample::table(&endpoints, &[]),
        shared,
        events,
        kernel: Kernel { answers: answers.iter().copied().collect(), ..Kernel::default() },
    }
}

impl World {
    fn tunnel(&self, peer: u8) -> &Tunnel {
        self.table.tunnel(place(peer)).unwrap()
    }

    /// Sends packets, so many to a peer as a train would be where trains go.
    fn send(&mut self, packets: &[(u8, usize)]) {
        let bytes = vec![0; LENGTH];
        let mut outbox = Outbox::new(Arc::clone(&self.shared), &mut self.kernel);
        for (peer, count) in packets {
            let tunnel = self.table.tunnel(place(*peer)).unwrap();
            let limit = if tunnel.path.takes_trains(NOW) { 127 } else { 1 };
            let way = Way { place: place(*peer), tos: 0, prefix: &[], limit, peer: None, roamed: None };
            for _ in 0..*count {
                let delay = outbox.add(&way, &bytes, 0, LENGTH);
                assert_eq!(delay, Delay::default());
            }
        }
        outbox.flush(&self.table, &bytes, NOW);
    }

    /// Packets that went to a peer, and that were dropped.
    fn counts(&self, peer: u8) -> (u64, Vec<(&'static str, u64)>) {
        let sent = self.tunnel(peer).stats.sent.read();
        (sent.packets, sent.drops.into_iter().collect())
    }
}

fn place(peer: u8) -> Place {
    Place { device: 0, tunnel: usize::from(peer) - 1 }
}

fn train(peer: u8, count: usize) -> Asked {
    Asked { peer, source: None, segment: Some(LENGTH as u16), bytes: count * LENGTH }
}

fn alone(peer: u8) -> Asked {
    Asked { peer, source: None, segment: None, bytes: LENGTH }
}

#[test]
fn what_goes_is_counted_and_what_was_not_taken_yet_follows() {
    let mut world = world(&[Ok(1), Ok(1)]);
    world.send(&[(1, 3), (2, 1), (1, 2)]);
    assert_eq!(world.kernel.taken, [train(1, 3), alone(2), train(1, 2)]);
    assert_eq!((world.counts(1), world.counts(2)), ((5, vec![]), (1, vec![])));
}

#[test]
fn a_peer_whose_trains_are_refused_gets_datagrams_one_by_one_and_no_other_does() {
    for errno in [libc::EIO, libc::EINVAL] {
        let mut world = world(&[Err(errno)]);
        world.send(&[(1, 3), (2, 2)]);
        assert_eq!(world.kernel.taken, [alone(1), alone(1), alone(1), train(2, 2)]);
        assert_eq!((world.counts(1), world.counts(2)), ((3, vec![]), (2, vec![])));
        world.kernel.taken.clear();
        world.send(&[(1, 2), (2, 2)]);
        assert_eq!(world.kernel.taken, [alone(1), alone(1), train(2, 2)]);
        // It is tried again.
        assert!(world.tunnel(1).path.takes_trains(NOW + Duration::from_secs(61)));
    }
}

#[test]
fn what_one_peer_is_refused_costs_no_other_anything() {
    let refusals = [
        (libc::EPERM, "firewall"),
        (libc::ENETUNREACH, "unreachable"),
        (libc::EHOSTUNREACH, "unreachable"),
        (libc::EMSGSIZE, "too_big"),
        (libc::EAGAIN, "socket_full"),
        (libc::ENOBUFS, "socket_full"),
        (libc::EOPNOTSUPP, "refused"),
    ];
    for (errno, reason) in refusals {
        let mut world = world(&[Err(errno), Err(errno), Ok(1)]);
        // What may pass is tried twice, the rest once.
        if ![libc::EAGAIN, libc::ENOBUFS].contains(&errno) {
            world.kernel.answers.pop_front();
        }
        world.send(&[(1, 3), (2, 2)]);
        assert_eq!(world.kernel.taken, [train(2, 2)], "{errno}");
        assert_eq!((world.counts(1), world.counts(2)), ((0, vec![(reason, 3)]), (2, vec![])), "{errno}");
    }
}

#[test]
fn a_moment_without_room_loses_nothing() {
    for errno in [libc::EAGAIN, libc::ENOBUFS] {
        let mut world = world(&[Err(errno)]);
        world.send(&[(1, 2)]);
        assert_eq!(world.kernel.taken, [train(1, 2)]);
        assert_eq!(world.counts(1), (2, vec![]));
    }
}

#[test]
fn a_local_address_that_has_left_the_host_is_forgotten() {
    let local = IpAddr::from([192, 0, 2, 99]);
    // A train that is refused may be at fault itself: only then each datagram tells.
    for (answers, refused) in [
        (vec![Err(libc::EADDRNOTAVAIL)], vec![train(1, 2)]),
        (vec![Err(libc::ENETUNREACH)], vec![train(1, 2)]),
        (vec![Err(libc::EINVAL), Err(libc::EINVAL)], vec![train(1, 2), alone(1)]),
    ] {
        let mut world = world(&answers);
        world.tunnel(1).path.mark_local(local);
        world.send(&[(1, 2)]);
        let refused: Vec<_> =
            refused.into_iter().map(|asked| Asked { source: Some(local), ..asked }).collect();
        assert_eq!(world.kernel.refused, refused);
        assert_eq!(world.kernel.taken.iter().map(|asked| asked.bytes).sum::<usize>(), 2 * LENGTH);
        assert!(world.kernel.taken.iter().all(|asked| asked.source.is_none()));
        assert_eq!(world.counts(1), (2, vec![]));
        assert_eq!(world.tunnel(1).path.local(), None);
        // The address was at fault, not the train.
        assert!(world.tunnel(1).path.takes_trains(NOW));
    }
}

#[test]
fn a_refused_train_says_nothing_of_the_local_address() {
    let local = IpAddr::from([192, 0, 2, 99]);
    let mut world = world(&[Err(libc::EINVAL)]);
    world.tunnel(1).path.mark_local(local);
    world.send(&[(1, 2)]);
    assert_eq!(world.kernel.taken, vec![Asked { source: Some(local), ..alone(1) }; 2]);
    assert_eq!(world.tunnel(1).path.local(), Some(local));
    assert!(!world.tunnel(1).path.takes_trains(NOW));
}

#[test]
fn while_a_full_socket_is_waited_for_load_is_high() {
    let mut world = world(&[Err(libc::EAGAIN)]);
    world.send(&[(1, 2)]);
    assert!(world.shared.load.is_high(NOW));
}

#[test]
fn a_path_that_has_become_narrow_is_told_once() {
    let mut world = world(&[Err(libc::EMSGSIZE), Err(libc::EMSGSIZE)]);
    world.send(&[(1, 2), (2, 1), (1, 1)]);
    assert_eq!((world.counts(1), world.counts(2)), ((1, vec![("too_big", 2)]), (0, vec![("too_big", 1)])));
    let told: Vec<_> = std::iter::from_fn(|| world.events.try_recv().ok()).collect();
    let narrowed = |peer: u8| DatapathEvent::PathNarrowed(IpAddr::from([192, 0, 2, peer]));
    assert_eq!(told, [narrowed(1), narrowed(2)]);
    world.kernel.answers.push_back(Err(libc::EMSGSIZE));
    world.send(&[(1, 1)]);
    assert!(world.events.try_recv().is_err(), "told again at the same time");
}

#[test]
fn a_family_without_a_socket_is_unreachable() {
    let mut world = world(&[]);
    Arc::get_mut(&mut world.shared).unwrap().sockets.v4 = None;
    world.send(&[(1, 2)]);
    assert_eq!(world.counts(1), (0, vec![("unreachable", 2)]));
}

#[test]
fn every_refusal_of_the_kernel_has_a_counter() {
    for errno in 1..134 {
        // Must not panic, and must give a reason that tells what to look at where there is one.
        let reason = reason_of(&io::Error::from_raw_os_error(errno));
        assert!(DropReason::ALL.contains(&reason));
    }
    assert_eq!(reason_of(&io::Error::from_raw_os_error(libc::EPERM)), DropReason::Firewall);
    assert_eq!(reason_of(&io::ErrorKind::Unsupported.into()), DropReason::Unreachable);
}
