//! Interfaces, addresses and routes through rtnetlink.

pub mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use futures_util::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use tokio::task::JoinHandle;

use super::udp::send::{SEGMENTS, TRAIN};
use crate::agent::packet::frame::PI_LENGTH;
use crate::agent::reconcile::{ActualRoute, Route};
use crate::proto::model::{DeviceName, Mtu};

/// How many packets wait in a device before the kernel drops them: 500 by default, which is some trains.
const QUEUE: u32 = 4000;

/// How many packets the kernel hands out as one: what fits one message of the data port with its framing, so that none
/// goes in two.
fn packets_of_a_train(mtu: Mtu) -> LinkAttribute {
    let fit = TRAIN / (usize::from(mtu.get()) + PI_LENGTH);
    LinkAttribute::GsoMaxSegs(fit.clamp(1, SEGMENTS) as u32)
}

/// Under which the agent's routes stand; `ip route show proto 152` lists them. No entry of
/// `/etc/iproute2/rt_protos` has it.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(152);

/// An interface of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its number: a new one for each interface, also of the same name.
    pub index: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// The largest packet, in bytes.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: BTreeSet<IpNet>,
}

/// A connection to the kernel.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

fn to_io(error: rtnetlink::Error) -> io::Error {
    if let rtnetlink::Error::NetlinkError(message) = &error {
        message.to_io()
    } else {
        io::Error::other(error.to_string())
    }
}

impl Netlink {
    /// Opens a connection, served by a task of its own.
    ///
    /// # Errors
    /// What the kernel says.
    #[allow(clippy::disallowed_methods, reason = "the task ends with this value")]
    pub fn connect() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// All interfaces by name, with their addresses.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn interfaces(&self) -> io::Result<BTreeMap<String, Interface>> {
        let mut by_index = BTreeMap::new();
        let mut links = self.handle.link().get().execute();
        while let Some(link) = links.try_next().await.map_err(to_io)? {
            if let Some((name, interface)) = read_link(&link) {
                by_index.insert(interface.index, (name, interface));
            }
        }
        let mut addresses = self.handle.address().get().execute();
        while let Some(message) = addresses.try_next().await.map_err(to_io)? {
            let Some((_, interface)) = by_index.get_mut(&message.header.index) else { continue };
            if let Some(address) = interface_address(&message.attributes)
                && let Ok(network) = IpNet::new(address, message.header.prefix_len)
            {
                interface.addresses.insert(network);
            }
        }
        Ok(by_index.into_values().collect())
    }

    /// The routes of the main table under our protocol number, by the names of `interfaces`.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn own_routes(
        &self,
        interfaces: &BTreeMap<String, Interface>,
    ) -> io::Result<BTreeSet<ActualRoute>> {
        let names: BTreeMap<u32, &String> =
            interfaces.iter().map(|(name, interface)| (interface.index, name)).collect();
        let mut own = BTreeSet::new();
        for any in [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        ] {
            let mut routes = self.handle.route().get(any).execute();
            while let Some(route) = routes.try_next().await.map_err(to_io)? {
                own.extend(read_own_route(&route, &names));
            }
        }
        Ok(own)
    }

    /// The MTU of the route to `address`, in bytes: the route's own or what was learned of the path, otherwise its
    /// interface's.
    ///
    /// # Errors
    /// What the kernel says; `NotFound` where it names no interface.
    pub async fn path_mtu(
        &self,
        address: IpAddr,
        interfaces: &BTreeMap<String, Interface>,
    ) -> io::Result<u32> {
        let (index, mtu) = self.route_of(address).await?;
        if let Some(mtu) = mtu {
            return Ok(mtu);
        }
        let mut interfaces = interfaces.values();
        let interface = interfaces.find(|interface| Some(interface.index) == index);
        interface.map(|interface| interface.mtu).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The route to an address: the number of its interface, and the MTU that it has of its own.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn route_of(&self, address: IpAddr) -> io::Result<(Option<u32>, Option<u32>)> {
        let host = IpNet::from(address).prefix_len();
        let request = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(address, host)
            .map_err(io::Error::other)?
            .build();
        let mut routes = std::pin::pin!(self.handle.route().get(request).execute());
        let route = match routes.next().await {
            Some(route) => route.map_err(to_io)?,
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        let (mut index, mut mtu) = (None, None);
        for attribute in &route.attributes {
            if let RouteAttribute::Metrics(metrics) = attribute {
                mtu = own_mtu(metrics);
            }
            if let RouteAttribute::Oif(oif) = attribute {
                index = Some(*oif);
            }
        }
        Ok((index, mtu))
    }

    /// The number of the interface called `name`.
    ///
    /// # Errors
    /// `NotFound` where there is none; otherwise what the kernel says.
    pub async fn index_of(&self, name: &DeviceName) -> io::Result<u32> {
        let mut links = self.handle.link().get().match_name(name.as_str()).execute();
        let link = links.try_next().await.map_err(to_io)?;
        link.map(|link| link.header.index).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Prepares a new device, which has the MTU of an Ethernet: no address of the kernel's own choice, addresses that
    /// outlive their neighbours, room for what comes faster than it is read.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn prepare(&self, name: &DeviceName, index: u32) -> io::Result<()> {
        self.quiet(index).await?;
        let message = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::TxQueueLen(QUEUE))
            .append_extra_attribute(packets_of_a_train(Mtu::ETHERNET))
            .build();
        self.handle.link().set(message).execute().await.map_err(to_io)?;
        // Otherwise the kernel takes all addresses of a network away with the first. Where /proc/sys is read-only
        // the next reading shows what is missing.
        let path = format!("/proc/sys/net/ipv4/conf/{name}/promote_secondaries");
        let _ = std::fs::write(path, "1");
        Ok(())
    }

    /// Has the kernel choose no address of its own for an interface: with it would come chatter to multicast groups.
    async fn quiet(&self, index: u32) -> io::Result<()> {
        // In a request of its own, before the device is up: later, or with other changes, it comes too late.
        let quiet = vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)])];
        let message = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(quiet))
            .build();
        match self.handle.link().set(message).execute().await.map_err(to_io) {
            // Hosts without IPv6, and interfaces with too small an MTU for it, have nothing to set.
            Err(error) if error.raw_os_error() != Some(libc::EAFNOSUPPORT) => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Removes an interface.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn delete(&self, index: u32) -> io::Result<()> {
        self.handle.link().del(index).execute().await.map_err(to_io)
    }

    /// Sets the largest packet.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn set_mtu(&self, index: u32, mtu: Mtu) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(index)
            .mtu(mtu.into())
            .append_extra_attribute(packets_of_a_train(mtu))
            .build();
        self.handle.link().set(message).execute().await.map_err(to_io)?;
        // Below 1280 an interface loses its IPv6 settings; above it gets new ones.
        self.quiet(index).await
    }

    /// Brings an interface up.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn set_up(&self, index: u32) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.handle.link().set(message).execute().await.map_err(to_io)
    }

    /// Adds an address; that it is there already is no error.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn add_address(&self, index: u32, address: IpNet) -> io::Result<()> {
        let mut request = self.handle.address().add(index, address.addr(), address.prefix_len()).replace();
        if address.addr().is_ipv6() {
            // A tun device has no neighbours that could have the address, too.
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        request.execute().await.map_err(to_io)
    }

    /// Removes an address; that it is not there is no error.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn remove_address(&self, index: u32, address: IpNet) -> io::Result<()> {
        let mut addresses = self
            .handle
            .address()
            .get()
            .set_link_index_filter(index)
            .set_prefix_length_filter(address.prefix_len())
            .set_address_filter(address.addr())
            .execute();
        while let Some(message) = addresses.try_next().await.map_err(to_io)? {
            self.handle.address().del(message).execute().await.map_err(to_io)?;
        }
        Ok(())
    }

    /// Adds a route of ours.
    ///
    /// # Errors
    /// `AlreadyExists` where anyone has a route to the prefix; otherwise what the kernel says.
    pub async fn add_route(&self, index: u32, route: &Route) -> io::Result<()> {
        self.handle.route().add(route_message(index, route)?).execute().await.map_err(to_io)
    }

    /// Gives a route of ours another MTU.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn change_route(&self, index: u32, route: &Route) -> io::Result<()> {
        self.handle.route().add(route_message(index, route)?).replace().execute().await.map_err(to_io)
    }

    /// Removes a route of ours.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn remove_route(&self, index: u32, route: &ActualRoute) -> io::Result<()> {
        let message = own_route(index, route.prefix)?.build();
        self.handle.route().del(message).execute().await.map_err(to_io)
    }
}

fn read_link(link: &LinkMessage) -> Option<(String, Interface)> {
    let mut name = None;
    let mut mtu = 0;
    for attribute in &link.attributes {
        if let LinkAttribute::IfName(text) = attribute {
            name = Some(text.clone());
        }
        if let LinkAttribute::Mtu(bytes) = attribute {
            mtu = *bytes;
        }
    }
    let up = link.header.flags.contains(LinkFlags::Up);
    Some((name?, Interface { index: link.header.index, up, mtu, addresses: BTreeSet::new() }))
}

/// The interface's own address: `IFA_LOCAL` where there is one, since `IFA_ADDRESS` is then the other end's.
fn interface_address(attributes: &[AddressAttribute]) -> Option<IpAddr> {
    let mut address = None;
    for attribute in attributes {
        if let AddressAttribute::Local(local) = attribute {
            return Some(*local);
        }
        if let AddressAttribute::Address(other) = attribute {
            address = Some(*other);
        }
    }
    address
}

fn own_mtu(metrics: &[RouteMetric]) -> Option<u32> {
    metrics.iter().find_map(|metric| if let RouteMetric::Mtu(mtu) = metric { Some(*mtu) } else { None })
}

fn read_own_route(route: &RouteMessage, names: &BTreeMap<u32, &String>) -> Option<ActualRoute> {
    if route.header.protocol != PROTOCOL || route.header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let (mut address, mut device, mut mtu) = (None, None, None);
    for attribute in &route.attributes {
        if let RouteAttribute::Destination(destination) = attribute {
            if let RouteAddress::Inet(v4) = destination {
                address = Some(IpAddr::V4(*v4));
            }
            if let RouteAddress::Inet6(v6) = destination {
                address = Some(IpAddr::V6(*v6));
            }
        }
        if let RouteAttribute::Oif(index) = attribute {
            device = names.get(index);
        }
        if let RouteAttribute::Metrics(metrics) = attribute {
            mtu = own_mtu(metrics);
        }
    }
    let prefix = IpNet::new(address?, route.header.destination_prefix_length).ok()?;
    Some(ActualRoute { prefix, device: (*device?).clone(), mtu })
}

fn own_route(index: u32, prefix: IpNet) -> io::Result<RouteMessageBuilder<IpAddr>> {
    let builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(prefix.addr(), prefix.prefix_len())
        .map_err(io::Error::other)?;
    // IPv6 knows no scope of routes.
    let scope = if prefix.addr().is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
    Ok(builder.output_interface(index).protocol(PROTOCOL).scope(scope).kind(RouteType::Unicast))
}

fn route_message(index: u32, route: &Route) -> io::Result<RouteMessage> {
    let mut message = own_route(index, route.prefix)?.build();
    if let Some(mtu) = route.mtu {
        message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu.into())]));
    }
    Ok(message)
}
