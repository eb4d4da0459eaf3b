//! Hears of changes of the host's interfaces, addresses and routes as they happen.

use std::io;

use futures_util::StreamExt;
use futures_util::stream::Stream;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::{RouteFlags, RouteHeader, RouteMessage};
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::PROTOCOL;

/// How many changes wait to be looked at. All say that the host is to be looked at: who misses one has another.
const WAITING: usize = 64;

/// Something of the host that is another now, also by this agent's own doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// An interface or its addresses, by its number.
    Interface(u32),
    /// A route of this agent's.
    OwnRoute,
    /// Another route of the main table, or nobody knows what: more happened than was heard.
    Other,
}

/// Hears of changes, on a connection of its own: however many there are, they hold up no answer to this agent.
#[derive(Debug)]
pub struct Watch {
    changes: mpsc::Receiver<Change>,
    _tasks: JoinSet<()>,
}

impl Watch {
    /// Begins to listen.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn start() -> io::Result<Self> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, _, messages) = new_multicast_connection(&groups)?;
        let (sender, changes) = mpsc::channel(WAITING);
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        tasks.spawn(forward(messages.map(|(message, _)| message), sender));
        Ok(Self { changes, _tasks: tasks })
    }

    /// Waits for the next change; for ever where nothing is heard any more.
    pub async fn changed(&mut self) -> Change {
        match self.changes.recv().await {
            Some(change) => change,
            None => std::future::pending().await,
        }
    }

    /// The next change that is there already.
    pub fn waiting(&mut self) -> Option<Change> {
        self.changes.try_recv().ok()
    }
}

async fn forward(
    mut messages: impl Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Unpin,
    sender: mpsc::Sender<Change>,
) {
    while let Some(message) = messages.next().await {
        if let Some(change) = meaning(&message.payload) {
            // A full channel says enough.
            let _ = sender.try_send(change);
        }
    }
}

fn meaning(payload: &NetlinkPayload<RouteNetlinkMessage>) -> Option<Change> {
    let NetlinkPayload::InnerMessage(message) = payload else {
        // The kernel says that it had no room for more.
        return Some(Change::Other);
    };
    if let RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) = message {
        return Some(Change::Interface(link.header.index));
    }
    if let RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) = message {
        return Some(Change::Interface(address.header.index));
    }
    if let RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) = message {
        return of_route(route);
    }
    None
}

/// What the kernel has learnt of a path, and what is in tables of its own or others', is no matter of ours.
fn of_route(route: &RouteMessage) -> Option<Change> {
    let is_learnt = route.header.flags.contains(RouteFlags::Cloned);
    if is_learnt || route.header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    Some(if route.header.protocol == PROTOCOL { Change::OwnRoute } else { Change::Other })
}
