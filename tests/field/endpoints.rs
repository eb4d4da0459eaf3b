//! Peers that are somewhere else than they were, and ways to them that go and come.

use std::time::Duration;

use tunmesh::proto::host::clock::since_epoch;

use crate::lab::{
    Agent, Host, Lab, Names, Pinger, SOON, Way, add_probed, ping, ping_ok, tunnel_status, wait_until,
};

fn wait_up(agent: &Agent, name: &str) {
    wait_until(SOON, &format!("{name} is up"), || tunnel_status(agent, name)["link"]["state"] == "UP");
}

/// A host whose name others have gets another address, and its name, too.
#[test]
fn case_13_a_host_whose_name_has_another_address_is_reached_again() {
    for is_encrypted in [false, true] {
        let way = Way::new();
        let (a, b) = (way.host(0), way.host(1));
        let mut names = Names::new(a, "172.100.2.2 minion-b\n");
        let agents = [Agent::start(a, &[]), Agent::start(b, &[])];
        let key = |n: usize| if is_encrypted { agents[n].public_key() } else { String::new() };
        add_probed(&agents[0], "link", "10.9.0.1/24", "minion-b", &key(1));
        add_probed(&agents[1], "link", "10.9.0.2/24", Way::ENDS[0], &key(0));
        wait_up(&agents[0], "link");
        ping_ok(a, "10.9.0.2");
        let device = b.device_to(&way.router);
        b.run(["ip", "address", "del", "172.100.2.2/24", "dev", &device]);
        b.address(&device, "172.100.2.7/24");
        b.route("172.100.0.0/16", "172.100.2.254");
        names.write("hosts", "172.100.2.7 minion-b\n");
        let start = since_epoch();
        wait_until(Duration::from_secs(15), "it is reached", || ping(a, "10.9.0.2", &[]));
        let took = since_epoch() - start;
        assert!(took < Duration::from_secs(10), "encrypted: {is_encrypted}: {took:?}");
        // Answers go from where they were asked.
        ping_ok(b, "10.9.0.1");
        wait_up(&agents[1], "link");
    }
}

/// A name with two addresses, of which one leads nowhere.
#[test]
fn case_13_of_the_addresses_of_a_name_one_is_found_that_answers() {
    let way = Way::new();
    let a = way.host(0);
    let _names = Names::new(a, "172.100.1.99 minion-b\n172.100.2.2 minion-b\n");
    let agents = [Agent::start(a, &[]), Agent::start(way.host(1), &[])];
    add_probed(&agents[0], "link", "10.9.0.1/24", "minion-b", "");
    add_probed(&agents[1], "link", "10.9.0.2/24", Way::ENDS[0], "");
    wait_until(Duration::from_secs(20), "the one that answers is in use", || {
        tunnel_status(&agents[0], "link")["link"]["state"] == "UP"
    });
    assert_eq!(tunnel_status(&agents[0], "link")["endpoint"], "172.100.2.2:5000");
}

/// A host without IPv4, one of whose peers is behind its default route and one beside it.
#[test]
fn case_16_a_default_route_that_goes_and_comes_costs_no_other_peer() {
    let lab = Lab::new();
    let [host, router, far, near] = ["host", "router", "far", "near"].map(|role| lab.host(role));
    lab.link(&host, "fd00:100:1::1/64", &router, "fd00:100:1::254/64");
    lab.link(&far, "fd00:100:2::2/64", &router, "fd00:100:2::254/64");
    lab.link(&host, "fd00:100:3::1/64", &near, "fd00:100:3::3/64");
    router.forwarding(true);
    let default = |host: &Host, via: &str| host.run(["ip", "-6", "route", "add", "default", "via", via]);
    default(&host, "fd00:100:1::254");
    default(&far, "fd00:100:2::254");
    let mut agent = Agent::start(&host, &[]);
    let others = [Agent::start(&far, &[]), Agent::start(&near, &[])];
    add_probed(&agent, "far", "10.9.2.1/24", "fd00:100:2::2", "");
    add_probed(&agent, "near", "10.9.3.1/24", "fd00:100:3::3", "");
    add_probed(&others[0], "back", "10.9.2.2/24", "fd00:100:1::1", "");
    add_probed(&others[1], "back", "10.9.3.2/24", "fd00:100:3::1", "");
    ["far", "near"].iter().for_each(|name| wait_up(&agent, name));
    ping_ok(&host, "10.9.2.2");
    let pinger = Pinger::start(&host, "10.9.3.2", Duration::from_millis(50));
    host.run(["ip", "-6", "route", "del", "default"]);
    let start = since_epoch();
    wait_until(SOON, "the other does not hear it", || {
        tunnel_status(&agent, "far")["link"]["state"] == "INIT"
    });
    let gone = tunnel_status(&agent, "far");
    assert!(gone["reason"].as_str().unwrap().contains("no route to fd00:100:2::2"), "{gone}");
    assert!(gone["link"]["reason"].as_str().unwrap().contains("was not sent: unreachable"), "{gone}");
    let lines = agent.log().lines().count();
    while since_epoch() - start < Duration::from_secs(30) {
        // What nobody can carry is sent all the same.
        let _ = ping(&host, "10.9.2.2", &[]);
        assert!(agent.alive());
    }
    assert!(agent.log().lines().count() < lines + 5, "a flood: {}", agent.log());
    default(&host, "fd00:100:1::254");
    let start = since_epoch();
    wait_until(SOON, "it is reached again", || ping(&host, "10.9.2.2", &[]));
    let took = since_epoch() - start;
    assert!(took < Duration::from_secs(5), "{took:?}");
    let report = pinger.stop();
    assert_eq!(report.received, report.sent, "nothing of the other peer is lost: {report:?}");
    wait_until(SOON, "nothing is wrong", || tunnel_status(&agent, "far")["reason"].is_null());
}
