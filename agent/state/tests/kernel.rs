//! A host to try the state machine on: it does what Linux does, and refuses what Linux refuses.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::agent::reconcile::{Actual, ActualRoute, Link, Op, Route};
use crate::proto::model::DeviceName;

/// What happens to a host beside the agent.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// Someone makes an interface of this name, with this address.
    Appears(String, IpNet),
    /// Someone removes an interface.
    Vanishes(String),
    /// Someone takes an interface down.
    Down(String),
    /// Someone sets an interface's MTU.
    Mtu(String, u32),
    /// Someone gives an interface an address.
    Gains(String, IpNet),
    /// Someone takes an interface's first address.
    Loses(String),
    /// Someone removes the first of the agent's routes over an interface.
    Unroutes(String),
}

#[derive(Debug, Clone, Default)]
struct Interface {
    ours: bool,
    up: bool,
    mtu: u32,
    /// In the order of their coming: of a network's addresses the first is the primary one.
    addresses: Vec<IpNet>,
}

/// The kernel's interfaces, and the routes under the agent's protocol number.
#[derive(Debug, Clone, Default)]
pub(super) struct Kernel {
    /// Whether `promote_secondaries` is set.
    promotes: bool,
    links: BTreeMap<String, Interface>,
    routes: BTreeMap<IpNet, (String, Option<u32>)>,
}

fn no_such_device() -> String {
    "no such device".to_owned()
}

impl Kernel {
    pub(super) fn new(promotes: bool) -> Self {
        Self { promotes, ..Self::default() }
    }

    pub(super) fn actual(&self) -> Actual {
        let link = |(name, link): (&String, &Interface)| {
            let Interface { ours, up, mtu, addresses } = link.clone();
            (name.clone(), Link { ours, up, mtu, addresses: addresses.into_iter().collect() })
        };
        let route = |(prefix, (device, mtu)): (&IpNet, &(String, Option<u32>))| ActualRoute {
            prefix: *prefix,
            device: device.clone(),
            mtu: *mtu,
        };
        Actual {
            links: self.links.iter().map(link).collect(),
            routes: self.routes.iter().map(route).collect(),
        }
    }

    pub(super) fn is_ours(&self, name: &str) -> bool {
        self.links.get(name).is_some_and(|link| link.ours)
    }

    pub(super) fn is_foreign(&self, name: &str) -> bool {
        self.links.get(name).is_some_and(|link| !link.ours)
    }

    pub(super) fn our_devices(&self) -> BTreeSet<&str> {
        self.links.iter().filter(|(_, link)| link.ours).map(|(name, _)| name.as_str()).collect()
    }

    pub(super) fn happen(&mut self, event: &Event) {
        match event {
            Event::Appears(name, address) => {
                let new = Interface { ours: false, up: true, mtu: 1500, addresses: vec![*address] };
                self.links.entry(name.clone()).or_insert(new);
            }
            Event::Vanishes(name) => self.remove(name),
            Event::Down(name) => {
                if let Some(link) = self.links.get_mut(name) {
                    link.up = false;
                    // `keep_addr_on_down` is not set.
                    link.addresses.retain(|address| address.addr().is_ipv4());
                    self.routes.retain(|_, (device, _)| device != name);
                }
            }
            Event::Mtu(name, mtu) => self.set_mtu(name, *mtu),
            Event::Gains(name, address) => {
                if let Some(link) = self.links.get_mut(name)
                    && !link.addresses.contains(address)
                {
                    link.addresses.push(*address);
                }
            }
            Event::Loses(name) => {
                if let Some(first) = self.links.get(name).and_then(|link| link.addresses.first()).copied() {
                    self.remove_address(name, first);
                }
            }
            Event::Unroutes(name) => {
                let prefix = self.routes.iter().find(|(_, (device, _))| device == name).map(|(p, _)| *p);
                if let Some(prefix) = prefix {
                    self.routes.remove(&prefix);
                }
            }
        }
    }

    /// Performs an operation of the agent's, which reaches an interface only through the agent's own handle.
    pub(super) fn perform(&mut self, op: &Op) -> Result<(), String> {
        match op {
            Op::Observe
            | Op::Resolve(_)
            | Op::MeasurePaths(_)
            | Op::OpenKey(_)
            | Op::RemoveKey(_)
            | Op::Publish(_) => Ok(()),
            Op::CreateDevice(name) => {
                if self.links.contains_key(name.as_str()) {
                    return Err("device or resource busy".to_owned());
                }
                let new = Interface { ours: true, up: false, mtu: 1500, addresses: Vec::new() };
                self.links.insert(name.to_string(), new);
                Ok(())
            }
            Op::DeleteDevice(name) => {
                self.own(name)?;
                self.remove(name.as_str());
                Ok(())
            }
            Op::SetMtu(name, mtu) => {
                self.own(name)?;
                self.set_mtu(name.as_str(), (*mtu).into());
                Ok(())
            }
            Op::AddAddress(name, address) => {
                let link = self.own(name)?;
                if address.addr().is_ipv6() && link.mtu < 1280 {
                    return Err("invalid argument".to_owned());
                }
                if !link.addresses.contains(address) {
                    link.addresses.push(*address);
                }
                Ok(())
            }
            Op::RemoveAddress(name, address) => {
                self.own(name)?;
                self.remove_address(name.as_str(), *address);
                Ok(())
            }
            Op::SetUp(name) => {
                self.own(name)?.up = true;
                Ok(())
            }
            Op::AddRoute(route) => self.add_route(route),
            Op::ChangeRoute(route) => {
                self.own(&route.device)?;
                let mtu = route.mtu.map(u32::from);
                match self.routes.get_mut(&route.prefix) {
                    Some((device, there)) if device == route.device.as_str() => {
                        *there = mtu;
                        Ok(())
                    }
                    Some((device, _)) => panic!("{route:?} would replace the route over {device}"),
                    None => Err("no such route".to_owned()),
                }
            }
            Op::RemoveRoute(route) => match self.routes.get(&route.prefix) {
                Some((device, _)) if *device == route.device => {
                    self.routes.remove(&route.prefix);
                    Ok(())
                }
                Some(_) | None => Err("no such process".to_owned()),
            },
        }
    }

    fn own(&mut self, name: &DeviceName) -> Result<&mut Interface, String> {
        self.links.get_mut(name.as_str()).filter(|link| link.ours).ok_or_else(no_such_device)
    }

    fn add_route(&mut self, route: &Route) -> Result<(), String> {
        if !self.own(&route.device)?.up {
            return Err("network is down".to_owned());
        }
        let connected = self.links.values().filter(|link| link.up).flat_map(|link| &link.addresses);
        if self.routes.contains_key(&route.prefix) || connected.into_iter().any(|a| a.trunc() == route.prefix)
        {
            return Err("file exists".to_owned());
        }
        self.routes.insert(route.prefix, (route.device.to_string(), route.mtu.map(u32::from)));
        Ok(())
    }

    fn remove(&mut self, name: &str) {
        self.links.remove(name);
        self.routes.retain(|_, (device, _)| device != name);
    }

    fn set_mtu(&mut self, name: &str, mtu: u32) {
        let Some(link) = self.links.get_mut(name) else { return };
        link.mtu = mtu;
        if mtu < 1280 {
            link.addresses.retain(|address| address.addr().is_ipv4());
            self.routes.retain(|prefix, (device, _)| device != name || prefix.addr().is_ipv4());
        }
    }

    fn remove_address(&mut self, name: &str, address: IpNet) {
        let Some(link) = self.links.get_mut(name) else { return };
        let of_network = |other: &&IpNet| other.trunc() == address.trunc();
        let is_primary = link.addresses.iter().find(of_network) == Some(&address);
        link.addresses.retain(|other| *other != address);
        if address.addr().is_ipv4() && is_primary && !self.promotes {
            link.addresses.retain(|other| other.trunc() != address.trunc());
        }
        if !link.addresses.iter().any(|other| other.addr().is_ipv4()) {
            self.routes.retain(|prefix, (device, _)| device != name || prefix.addr().is_ipv6());
        }
    }
}
