//! Paths that are not what they seem.

use std::time::Duration;

use serde_json::json;
use tunmesh::proto::host::clock::since_epoch;

use crate::lab::{Agent, Flow, Probed, SOON, Way, grpcurl, ping, transfer, wait_until};

const ADD: &str = "tunmesh.v1.TunnelService/AddTunnel";

/// What the router carries to the second host, and that it says so to nobody.
fn narrow(way: &Way, bytes: u16) {
    let device = way.router.device_to(way.host(1));
    way.router.run(["ip", "link", "set", "dev", &device, "mtu", &bytes.to_string()]);
}

fn silence(way: &Way) {
    way.router.run(["nft", "add", "chain", "ip", "cut", "out", "{ type filter hook output priority 0; }"]);
    way.router.run([
        "nft",
        "add",
        "rule",
        "ip",
        "cut",
        "out",
        "icmp",
        "type",
        "destination-unreachable",
        "counter",
        "drop",
    ]);
}

/// A path that carries less than the links of both ends, and says so to nobody.
fn carries_what_the_path_does(is_encrypted: bool) {
    const PATH: u16 = 1400;
    let sealed = if is_encrypted { 32 } else { 0 };
    let way = Way::new();
    silence(&way);
    narrow(&way, PATH);
    let pair = Probed::on(way, is_encrypted);
    let way = &pair.way;
    transfer(way.host(0), way.host(1), "10.9.0.2", 50_000_000);
    let expected = u64::from(PATH) - 28 - sealed;
    let path = || pair.status(0)["pathMtu"].as_u64().unwrap();
    wait_until(SOON, "the path is measured", || {
        path() == expected && pair.status(0)["link"]["isCarried"] == true
    });
    let edge = |bytes: u64| (bytes - 28).to_string();
    assert!(ping(way.host(0), "10.9.0.2", &["-M", "do", "-s", &edge(expected)]));
    assert!(!ping(way.host(0), "10.9.0.2", &["-M", "do", "-s", &edge(expected + 1)]), "more does not go");
    let status = pair.status(0);
    assert_eq!(status["deviceMtu"].as_u64(), Some(expected), "the device follows");
    let lost = status["link"]["loses"].as_u64().unwrap();
    assert!((1401..=1404).contains(&lost), "{status}");
    let note = status["notes"][0].as_str().unwrap();
    assert!(note.contains(&format!("packets of {lost} bytes")) && note.contains("1400 are sent"), "{note}");
    let drops = way.router.run(["nft", "list", "chain", "ip", "cut", "out"]);
    assert!(!drops.contains("packets 0 "), "the router would have said so: {drops}");
}

#[test]
fn case_01_a_path_that_loses_what_is_large_is_measured() {
    carries_what_the_path_does(false);
}

#[test]
fn case_01_a_path_that_loses_what_is_large_is_measured_encrypted() {
    carries_what_the_path_does(true);
}

/// It becomes so in the midst of a transfer.
#[test]
fn case_01_a_transfer_goes_on_when_the_path_begins_to_lose_what_is_large() {
    for is_encrypted in [false, true] {
        let way = Way::new();
        silence(&way);
        let pair = Probed::on(way, is_encrypted);
        let way = &pair.way;
        let flow = Flow::start(way.host(0), way.host(1), "10.9.0.2");
        narrow(way, 1350);
        let start = since_epoch();
        // What was under way has arrived.
        let mut last = (flow.received(), since_epoch());
        let mut longest = Duration::ZERO;
        wait_until(Duration::from_secs(30), "it goes on for a while", || {
            let (received, now) = (flow.received(), since_epoch());
            if received > last.0 {
                last = (received, now);
            }
            longest = longest.max(now - last.1);
            now - start > Duration::from_secs(8) && now - last.1 < Duration::from_millis(200)
        });
        assert!(longest < Duration::from_secs(5), "{is_encrypted}: it stood still for {longest:?}");
        assert!(longest > Duration::from_millis(300), "{is_encrypted}: the path was narrow: {longest:?}");
    }
}

#[test]
fn case_01_a_device_with_ipv6_is_not_made_too_narrow_for_it() {
    let way = Way::new();
    let agent = Agent::start(way.host(0), &[]);
    let tunnel = json!({"tunnel": {
        "name": "link", "addresses": ["fd00:10:9::1/64"], "remote": Way::ENDS[1], "framing": "RAW", "mtu": 1200,
    }});
    let refused = grpcurl(&agent, ADD, &tunnel).unwrap_err();
    assert!(refused.message.contains("tunnel.mtu") && refused.message.contains("1280"), "{refused:?}");
}
