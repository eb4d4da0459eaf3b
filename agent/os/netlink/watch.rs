//! Hears of changes of the host's interfaces, addresses and routes as they happen.

use std::io;

use futures_util::stream::Stream;
use futures_util::{FutureExt, StreamExt};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::{RouteFlags, RouteHeader, RouteMessage};
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::task::JoinSet;

use super::PROTOCOL;

/// How many changes wait to be looked at. Where there are more, one says so in the place of all others.
const WAITING: usize = 64;

/// Something of the host that is another now, also by this agent's own doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// An interface or its addresses, by its number.
    Interface(u32),
    /// A route of this agent's.
    OwnRoute,
    /// Another route of the main table.
    Other,
    /// More happened than was heard: any of the others.
    Unheard,
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
            match sender.try_send(change) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => {
                    let Ok(place) = sender.reserve().await else { return };
                    // All that has come by now has happened before anyone reads that it was missed.
                    while messages.next().now_or_never().flatten().is_some() {}
                    place.send(Change::Unheard);
                }
                Err(TrySendError::Closed(_)) => return,
            }
        }
    }
}

fn meaning(payload: &NetlinkPayload<RouteNetlinkMessage>) -> Option<Change> {
    let NetlinkPayload::InnerMessage(message) = payload else {
        // The kernel says that it had no room for more.
        return Some(Change::Unheard);
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

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use rtnetlink::packet_core::NetlinkHeader;
    use rtnetlink::packet_route::link::LinkMessage;

    use super::*;

    fn message(payload: NetlinkPayload<RouteNetlinkMessage>) -> NetlinkMessage<RouteNetlinkMessage> {
        NetlinkMessage::new(NetlinkHeader::default(), payload)
    }

    fn route() -> NetlinkMessage<RouteNetlinkMessage> {
        let mut route = RouteMessage::default();
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        message(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)))
    }

    fn device() -> NetlinkMessage<RouteNetlinkMessage> {
        let mut link = LinkMessage::default();
        link.header.index = 7;
        message(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)))
    }

    /// What is read of these messages where `room` changes wait, and nobody reads before all have come.
    async fn read(messages: Vec<NetlinkMessage<RouteNetlinkMessage>>, room: usize) -> Vec<Change> {
        let (sender, mut changes) = mpsc::channel(room);
        let mut read = Vec::new();
        let reads = async {
            while let Some(change) = changes.recv().await {
                read.push(change);
            }
        };
        tokio::join!(biased; forward(stream::iter(messages), sender), reads);
        read
    }

    #[tokio::test]
    async fn what_finds_no_room_is_told_as_missed() {
        let all = || vec![route(), route(), device(), route()];
        let (other, device) = (Change::Other, Change::Interface(7));
        assert_eq!(read(all(), 4).await, [other, other, device, other]);
        assert_eq!(read(all(), 3).await, [other, other, device, Change::Unheard]);
        assert_eq!(read(all(), 2).await, [other, other, Change::Unheard]);
        assert_eq!(read(vec![message(NetlinkPayload::Overrun(Vec::new()))], 2).await, [Change::Unheard]);
    }
}
