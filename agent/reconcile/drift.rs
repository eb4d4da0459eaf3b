//! What others have done to the devices and routes that are this agent's.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Actual, Link};
use crate::agent::target::{Target, TargetDevice};
use crate::proto::model::DeviceName;

/// What of the target was there `before`, and is there no more or not alone, by device and in words. What was not as it is
/// to be before is not told: it was this agent that was not ready.
pub fn drift(before: &Actual, after: &Actual, target: &Target) -> BTreeMap<DeviceName, String> {
    let of = |(name, device): (&DeviceName, &TargetDevice)| {
        let was = before.links.get(name.as_str()).filter(|link| link.ours)?;
        let words = match after.links.get(name.as_str()).filter(|link| link.ours) {
            None => vec!["removed it".to_owned()],
            Some(is) if was.up && !is.up => vec!["took it down".to_owned()],
            Some(is) => {
                let mut words = of_device(was, is, device);
                words.extend(of_routes(before, after, target, name));
                words
            }
        };
        (!words.is_empty()).then(|| (name.clone(), words.join(", ")))
    };
    target.devices.iter().filter_map(of).collect()
}

fn of_device(was: &Link, is: &Link, device: &TargetDevice) -> Vec<String> {
    let mut words = Vec::new();
    let mtu = u32::from(device.mtu);
    if was.mtu == mtu && is.mtu != mtu {
        words.push(format!("set its MTU to {}", is.mtu));
    }
    let wanted = device.addresses.iter().filter(|address| was.addresses.contains(address));
    let taken = wanted.filter(|address| !is.addresses.contains(address));
    words.extend(taken.map(|address| format!("took {address} from it")));
    let given = is.addresses.iter().filter(|address| !was.addresses.contains(address));
    // The kernel gives one of its own choice when the MTU comes to be enough for IPv6 again.
    let is_kernels =
        |address: &IpNet| matches!(address.addr(), IpAddr::V6(own) if own.is_unicast_link_local());
    let given = given.filter(|address| !device.addresses.contains(address) && !is_kernels(address));
    words.extend(given.map(|address| format!("gave it {address}")));
    words
}

fn of_routes(before: &Actual, after: &Actual, target: &Target, name: &DeviceName) -> Vec<String> {
    let routes = target.routes.iter().filter(|route| route.device == *name);
    let was_there = routes.filter(|route| before.routes.contains(&route.as_actual()));
    let lost = was_there.filter(|route| !after.routes.contains(&route.as_actual()));
    lost.map(|route| format!("removed or changed its route to {}", route.prefix)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::agent::reconcile::Route;
    use crate::proto::model::Mtu;

    fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
        text.parse().unwrap()
    }

    /// A device with an address and a route, as it is to be.
    fn world() -> (Actual, Target) {
        let device = TargetDevice {
            mtu: Mtu::try_from(1472).unwrap(),
            addresses: BTreeSet::from([name("10.9.0.1/24")]),
        };
        let route = Route { prefix: name("192.168.1.0/24"), device: name("prod"), mtu: None };
        let link = Link { ours: true, up: true, mtu: 1472, addresses: device.addresses.clone() };
        let actual = Actual { links: [("prod".to_owned(), link)].into(), routes: [route.as_actual()].into() };
        let target =
            Target { devices: [(name("prod"), device)].into(), routes: [route].into(), ..Target::default() };
        (actual, target)
    }

    fn words(change: impl FnOnce(&mut Actual)) -> Option<String> {
        let (before, target) = world();
        let mut after = before.clone();
        change(&mut after);
        drift(&before, &after, &target).remove(&name::<DeviceName>("prod"))
    }

    fn link(actual: &mut Actual) -> &mut Link {
        actual.links.get_mut("prod").unwrap()
    }

    #[test]
    fn each_change_is_told_in_words() {
        assert_eq!(words(|_| ()), None);
        assert_eq!(
            words(|actual| _ = link(actual).addresses.insert(name("fe80::1/64"))),
            None,
            "the kernel's own"
        );
        for (change, expected) in [
            ((|actual| actual.links.clear()) as fn(&mut Actual), "removed it"),
            (|actual| link(actual).ours = false, "removed it"),
            (|actual| link(actual).up = false, "took it down"),
            (|actual| link(actual).mtu = 1400, "set its MTU to 1400"),
            (|actual| link(actual).addresses.clear(), "took 10.9.0.1/24 from it"),
            (|actual| _ = link(actual).addresses.insert(name("10.1.1.1/24")), "gave it 10.1.1.1/24"),
            (|actual| actual.routes.clear(), "removed or changed its route to 192.168.1.0/24"),
        ] {
            assert_eq!(words(change).as_deref(), Some(expected));
        }
    }

    #[test]
    fn what_was_not_there_yet_is_nobodys_doing() {
        let (after, target) = world();
        assert_eq!(drift(&Actual::default(), &after, &target), BTreeMap::new());
        let mut before = after.clone();
        link(&mut before).mtu = 1500;
        before.routes.clear();
        assert_eq!(drift(&before, &before, &target), BTreeMap::new());
    }
}
