//! Links that carry packets in one direction alone.

use std::time::Duration;

use serde_json::Value;
use tunmesh::proto::host::clock::since_epoch;

use crate::lab::{Probed, SOON, ping_ok, since, time, wait_until};

/// What is done to the way is seen at both ends, with its direction.
fn says_what_the_way_does(is_encrypted: bool) {
    /// Who hears nothing says so in less than a second, and tells the other one.
    const SEEN: Duration = Duration::from_secs(1);
    let pair = Probed::new(is_encrypted);
    let way = &pair.way;
    for n in [0, 1] {
        wait_until(SOON, "figures of both directions", || {
            let link = pair.link(n);
            ["sent", "received"].iter().all(|way| link[way]["known"].as_u64() > Some(5))
                && !link["roundTrip"].is_null()
        });
        let link = pair.link(n);
        assert!(link["sent"]["lost"].is_null() && link["received"]["lost"].is_null(), "{link}");
        // Four intervals of 200 ms.
        assert_eq!(link["detectionTime"], "0.800s");
        let shown = pair.agents[n].show("tunnels");
        assert!(shown.contains("up for "), "{shown}");
    }
    let start = since_epoch();
    for n in [0, 1] {
        way.cut(n, &["udp", "dport", "5000"]);
    }
    pair.wait(["DOWN", "DOWN"]);
    for n in [0, 1] {
        let link = pair.link(n);
        assert!(since(&link, start) <= SEEN, "{link} after {start:?}");
        assert!(link["reason"].as_str().unwrap().contains("nothing comes from the peer any more"), "{link}");
        assert!(time(&link["lastHeard"]) < time(&link["since"]), "{link}");
        // They would be those of before.
        assert!(["roundTrip", "sent", "received"].iter().all(|figure| link[*figure].is_null()), "{link}");
    }
    way.heal();
    pair.wait(["UP", "UP"]);
    for (n, states) in [(0, ["INIT", "DOWN"]), (1, ["DOWN", "INIT"])] {
        let start = since_epoch();
        way.cut(n, &["udp", "dport", "5000"]);
        pair.wait(states);
        for end in [0, 1] {
            let link = pair.link(end);
            assert!(since(&link, start) <= SEEN * 2, "{link} after {start:?}");
        }
        let unheard = pair.link(n);
        assert!(unheard["reason"].as_str().unwrap().contains("does not hear this host"), "{unheard}");
        let known = ["roundTrip", "sent", "received"].map(|figure| !unheard[figure].is_null());
        assert_eq!(known, [false, false, true], "{unheard}");
        way.heal();
        pair.wait(["UP", "UP"]);
    }
    let lossy = pair.link(0);
    for direction in ["sent", "received"] {
        assert!(
            lossy[direction]["lost"].as_u64() > Some(3),
            "what was cut is missed in each direction: {lossy}"
        );
    }
    ping_ok(way.host(0), "10.9.0.2");
    for n in [0, 1] {
        let status = pair.status(n);
        for direction in ["sent", "received"] {
            assert_eq!(status[direction]["drops"], Value::Null, "{status}");
        }
        let log = pair.agents[n].log();
        assert!(log.contains("the link has changed") && log.contains("does not hear this host"), "{log}");
    }
}

#[test]
fn case_14_a_cut_is_seen_with_its_direction() {
    says_what_the_way_does(false);
}

#[test]
fn case_14_a_cut_is_seen_with_its_direction_encrypted() {
    says_what_the_way_does(true);
}
