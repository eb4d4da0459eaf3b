//! What others do to devices, addresses and routes.

use std::fs;
use std::time::Duration;

use serde_json::Value;
use tunmesh::proto::host::clock::since_epoch;

use crate::lab::{Agent, Host, SOON, Segment, holds_within, ping_ok, wait_until};

/// How soon what others have changed is as it was.
const REPAIRED: Duration = Duration::from_secs(2);

/// Two nodes of a mesh with a subnet behind the second.
fn mesh() -> (Segment, Vec<Agent>) {
    let segment = Segment::new(2);
    let agents = segment.agents(2);
    let mesh = "mesh: m\noverlay: 10.9.0.0/24\nnodes:\n  n1: {address: 10.9.0.1}\n  n2: {address: 10.9.0.2, routes: [192.168.2.0/24]}\n";
    segment.controller.apply_with(mesh, &["--wait"]).unwrap();
    ping_ok(segment.host(1), "10.9.0.2");
    (segment, agents)
}

/// What the device has: whether it is up, its MTU, its addresses, and the routes over it.
fn device(host: &Host) -> Option<(bool, u64, Vec<String>, Vec<String>)> {
    let link = host.try_run(["ip", "-json", "address", "show", "dev", "m"]).ok()?;
    let link: Value = serde_json::from_str(&link).ok()?;
    let link = &link[0];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let up = link["flags"].as_array()?.iter().any(|flag| flag == "UP");
    let addresses = link["addr_info"].as_array()?.iter().map(|address| text(&address["local"])).collect();
    let routes = host.ip_json(["route", "show", "proto", "152"]);
    let routes = routes.as_array()?.iter().map(|route| text(&route["dst"])).collect();
    Some((up, link["mtu"].as_u64()?, addresses, routes))
}

/// How often a node's device was repaired, as the controller was told.
fn repairs(segment: &Segment) -> Vec<String> {
    let events = segment.controller.events("device-repaired", "n1");
    events.iter().map(|event| event["message"].as_str().unwrap().to_owned()).collect()
}

/// What somebody does to the device, and what it is told as.
const MEDDLING: [(&[&str], &str); 6] = [
    (&["ip", "link", "set", "dev", "m", "down"], "device m: others took it down"),
    (&["ip", "link", "set", "dev", "m", "mtu", "1300"], "device m: others set its MTU to 1300"),
    (&["ip", "address", "del", "10.9.0.1/24", "dev", "m"], "device m: others took 10.9.0.1/24 from it"),
    (&["ip", "address", "add", "10.77.0.1/24", "dev", "m"], "device m: others gave it 10.77.0.1/24"),
    (
        &["ip", "route", "del", "192.168.2.0/24", "dev", "m"],
        "device m: others removed or changed its route to 192.168.2.0/24",
    ),
    (&["ip", "link", "del", "dev", "m"], "device m: others removed it"),
];

#[test]
fn case_17_what_others_change_is_put_right_and_told_once() {
    let (segment, _agents) = mesh();
    let host = segment.host(1);
    let wanted = device(host).unwrap();
    assert_eq!(
        (wanted.0, &wanted.2[..], &wanted.3[..]),
        (true, &["10.9.0.1".to_owned()][..], &["192.168.2.0/24".to_owned()][..])
    );
    for (number, (command, words)) in (1..).zip(MEDDLING) {
        let start = since_epoch();
        host.run(command);
        wait_until(SOON, &format!("it is as it was after {command:?}"), || {
            device(host).as_ref() == Some(&wanted)
        });
        let took = since_epoch() - start;
        assert!(took < REPAIRED, "{command:?}: {took:?}");
        wait_until(SOON, &format!("{words} is told"), || {
            repairs(&segment).iter().any(|told| told.starts_with(words))
        });
        assert_eq!(repairs(&segment).len(), number, "each once: {:?}", repairs(&segment));
        ping_ok(host, "10.9.0.2");
    }
    // What is not this agent's is nobody's business.
    host.run(["ip", "route", "add", "192.168.77.0/24", "via", "172.100.1.254"]);
    let is_touched = holds_within(REPAIRED, || repairs(&segment).len() > MEDDLING.len());
    assert!(!is_touched && host.run(["ip", "route"]).contains("192.168.77.0/24"));
}

/// The kernel tells more than there is room for, and what is done to the device is in the midst of it.
#[test]
fn case_17_what_others_change_among_thousands_of_routes_is_put_right() {
    let (segment, _agents) = mesh();
    let host = segment.host(1);
    let wanted = device(host).unwrap();
    let routes = |what: &str| -> String {
        let route =
            |n: u32| format!("route {what} 10.{}.{}.0/24 via 172.100.1.254\n", 100 + n / 256, n % 256);
        (0..10_000).map(route).collect()
    };
    let batch = tempfile::NamedTempFile::new().unwrap();
    let lines = [routes("add"), "link set dev m mtu 1300\n".to_owned(), routes("del")];
    fs::write(batch.path(), lines.concat()).unwrap();
    host.run(["ip", "-batch", batch.path().to_str().unwrap()]);
    let start = since_epoch();
    wait_until(SOON, "it is as it was", || device(host).as_ref() == Some(&wanted));
    let took = since_epoch() - start;
    assert!(took < REPAIRED, "{took:?}");
    ping_ok(host, "10.9.0.2");
}

#[test]
fn case_15_a_device_that_others_take_down_all_the_time_costs_little() {
    let (segment, agents) = mesh();
    let host = segment.host(1);
    let before = agents[0].log().lines().count();
    let start = since_epoch();
    let mut times = 0;
    while since_epoch() - start < Duration::from_secs(10) {
        let _ = host.try_run(["ip", "link", "set", "dev", "m", "down"]);
        times += 1;
    }
    assert!(times > 100, "{times}");
    let lines = agents[0].log().lines().count() - before;
    assert!(lines < 40, "a flood of {lines} lines: {}", agents[0].log());
    let told = repairs(&segment).len();
    assert!((1..=8).contains(&told), "{told} events");
    let tunnels = agents[0].show("tunnels");
    assert!(tunnels.contains("others change device m again and again: they took it down"), "{tunnels}");
    let waited = segment.controller.run(&["wait", "--converged", "1s"]).unwrap_err().to_string();
    assert!(waited.contains("n1") && waited.contains("others change device m again and again"), "{waited}");
    // Once they let it be it is had again.
    wait_until(Duration::from_secs(20), "it is up", || device(host).is_some_and(|(up, ..)| up));
    ping_ok(host, "10.9.0.2");
    wait_until(SOON, "nothing is wrong", || segment.controller.run(&["wait", "--converged", "1s"]).is_ok());
    assert!(!agents[0].show("tunnels").contains("again and again"));
}
