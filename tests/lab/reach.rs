//! Who reaches whom, found out faster than by a process for each ping.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::Host;

/// How often who has not answered is asked again, and how long an answer is waited for before it is looked who is
/// left.
const AGAIN: Duration = Duration::from_millis(50);

/// Waits until each host has an answer of each of its targets to an ICMP echo; after `deadline` the error names the
/// pairs without one.
pub fn all_reach(wanted: &[(&Host, Vec<IpAddr>)], deadline: Duration) -> Result<(), String> {
    let end = Instant::now() + deadline;
    let silent: Vec<String> = thread::scope(|scope| {
        let threads: Vec<_> = wanted
            .iter()
            .map(|(host, targets)| {
                scope.spawn(move || {
                    host.sysctl("net.ipv4.ping_group_range", "0 2147483647");
                    let left = host.enter(|| ask(targets, end));
                    left.into_iter().map(|target| format!("{} -> {target}", host.role())).collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no one panics")).collect()
    });
    if silent.is_empty() {
        Ok(())
    } else {
        Err(format!("no answer within {deadline:?}: {}", silent.join(", ")))
    }
}

/// Asks until all have answered or it is `end`; who has not.
fn ask(targets: &[IpAddr], end: Instant) -> BTreeSet<IpAddr> {
    let (mut v4, mut v6) = (None, None);
    let mut silent: BTreeSet<IpAddr> = targets.iter().copied().collect();
    let mut sequence = 0_u16;
    while !silent.is_empty() && Instant::now() < end {
        for target in &silent {
            let (socket, request) = if target.is_ipv4() { (&mut v4, 8) } else { (&mut v6, 128) };
            let socket = socket.get_or_insert_with(|| open(*target).expect("a socket for echoes"));
            let [high, low] = sequence.to_be_bytes();
            // The kernel fills in checksum and identifier. What cannot be sent yet is tried again.
            let _ = socket.send_to(&[request, 0, 0, 0, 0, 0, high, low], SocketAddr::new(*target, 0));
        }
        sequence = sequence.wrapping_add(1);
        let again = Instant::now() + AGAIN;
        for socket in [&v4, &v6].into_iter().flatten() {
            let mut buffer = [0; 64];
            while !silent.is_empty() && Instant::now() < again {
                let Ok((_, from)) = socket.recv_from(&mut buffer) else { break };
                silent.remove(&from.ip());
            }
        }
    }
    silent
}

/// A socket that sends ICMP echo requests and receives the replies, icmp(7).
fn open(target: IpAddr) -> io::Result<UdpSocket> {
    let (domain, protocol) =
        if target.is_ipv4() { (Domain::IPV4, Protocol::ICMPV4) } else { (Domain::IPV6, Protocol::ICMPV6) };
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
    socket.set_read_timeout(Some(AGAIN / 5))?;
    Ok(socket.into())
}
