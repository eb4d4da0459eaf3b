//! Tables and what the data threads share, for the tests here.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use tokio::sync::mpsc;

use super::load::Load;
use super::stats::AgentStats;
use super::table::{Kept, OpenDevice, Table};
use super::{DatapathEvent, DueTime, Shared};
use crate::agent::os::epoll::Waker;
use crate::agent::os::tun::TunDevice;
use crate::agent::os::udp::SocketPair;
use crate::agent::target::{ForwardingDevice, ForwardingTunnel};
use crate::proto::model::{AllowedPrefix, Framing, Mtu, Offload};

/// A device with a tunnel to each of `endpoints`, in this order, with the allowed prefixes 10.9.0.1/32 and so on, which do
/// `without` some offloads.
pub(super) fn table(endpoints: &[SocketAddr], without: &[Offload]) -> Table {
    table_of(endpoints, without, |_| Kept::default())
}

/// The same with what is known of each tunnel, `t1` and so on.
pub(super) fn table_of(
    endpoints: &[SocketAddr],
    without: &[Offload],
    mut kept: impl FnMut(&str) -> Kept,
) -> Table {
    let tunnel = |number: usize, endpoint| ForwardingTunnel {
        endpoint: Some(endpoint),
        exact_port: false,
        others: Vec::new(),
        framing: Framing::Raw,
        keepalive: None,
        also_plain: false,
        probed: false,
        echo: None,
        underlay: None,
        mtu: Mtu::ETHERNET,
        tcp_mtu: Mtu::ETHERNET,
        without: without.iter().copied().collect(),
        allowed_prefixes: vec![AllowedPrefix {
            prefix: format!("10.9.0.{number}/32").parse().unwrap(),
            preference: 0,
        }],
    };
    let device = ForwardingDevice {
        addresses: BTreeSet::new(),
        key: None,
        without: BTreeSet::new(),
        rests: false,
        tunnels: (1..)
            .zip(endpoints)
            .map(|(number, endpoint)| (format!("t{number}").parse().unwrap(), tunnel(number, *endpoint)))
            .collect(),
    };
    let mut table = Table::default();
    let open = OpenDevice { id: 1, tun: Arc::new(TunDevice::null()) };
    table.add(open, &device, |name, _| kept(name.as_str()));
    table
}

/// What threads share that have `table`, with a port on loopback.
pub(super) fn shared(table: Table) -> (Arc<Shared>, mpsc::Receiver<DatapathEvent>) {
    let (sender, events) = mpsc::channel(4);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let shared = Arc::new(Shared {
        table: ArcSwap::from_pointee(table),
        sockets: SocketPair { v4: Some(socket), v6: None },
        stats: Arc::new(AgentStats::default()),
        load: Load::default(),
        receivers: Arc::default(),
        limits: Mutex::default(),
        wished: Default::default(),
        links_due: DueTime::default(),
        links_told: AtomicBool::new(false),
        waker: Waker::new().unwrap(),
        stop: AtomicBool::new(false),
        events: sender,
    });
    (shared, events)
}
