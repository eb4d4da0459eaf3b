//! A change of one tunnel touches that tunnel alone.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

mod lab;

use std::time::Duration;

use lab::{Agent, Host, Lab, Pinger, SOON, grpcurl, ping_ok, wait_until};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tunmesh::proto::host::client;
use tunmesh::proto::v1;
use tunmesh::proto::v1::tunnel_service_client::TunnelServiceClient;

const ADD: &str = "tunmesh.v1.TunnelService/AddTunnel";

fn set(agent: &Agent, tunnel: Value) {
    grpcurl(agent, ADD, &json!({"tunnel": tunnel, "replace": true})).unwrap();
}

/// Every interface but `changed` with its index, flags, MTU and addresses, and every route that is not its.
fn all_but(host: &Host, changed: &str) -> Value {
    let is_other = |entry: &Value, key: &str| entry[key] != changed;
    let keep = |list: Value, key: &str| -> Vec<Value> {
        list.as_array().unwrap().iter().filter(|entry| is_other(entry, key)).cloned().collect()
    };
    json!([
        keep(host.ip_json(["addr"]), "ifname"),
        keep(host.ip_json(["route", "show", "table", "all"]), "dev")
    ])
}

fn index(host: &Host, device: &str) -> u64 {
    host.ip_json(["link", "show", "dev", device])[0]["ifindex"].as_u64().unwrap()
}

#[test]
fn mtu_route_and_remote_of_one_of_three() {
    let lab = Lab::new();
    let (host, other) = (lab.host("host"), lab.host("other"));
    lab.link(&host, "172.100.1.1/24", &other, "172.100.1.2/24");
    for n in 3..=5 {
        other.address(&other.device_to(&host), &format!("172.100.1.{n}/24"));
    }
    // The other end plays three hosts, each at an address of its own, with one device.
    let agent = Agent::start(&host, &[]);
    let their = Agent::start(&other, &[]);
    for n in 2..=4 {
        let tunnel = json!({"name": format!("udp{n}"), "addresses": [format!("10.0.{n}.1/30")],
                            "remote": format!("172.100.1.{n}"), "framing": "RAW"});
        set(&agent, tunnel);
    }
    set(
        &their,
        json!({"name": "back", "addresses": ["10.0.2.2/30", "10.0.3.2/30", "10.0.4.2/30"],
                       "remote": "172.100.1.1", "framing": "RAW"}),
    );
    // Datagrams of the far end come from its first address, whatever address was asked: only udp2 hears it.
    ping_ok(&host, "10.0.2.2");
    let pinger = Pinger::start(&host, "10.0.2.2", Duration::from_millis(50));

    let before = all_but(&host, "udp3");
    let made = index(&host, "udp3");
    let udp3 = |fields: Value| {
        let mut tunnel = json!({"name": "udp3", "addresses": ["10.0.3.1/30"], "remote": "172.100.1.3",
                                "framing": "RAW"});
        for (field, value) in fields.as_object().unwrap() {
            tunnel[field] = value.clone();
        }
        tunnel
    };
    for round in 0..10 {
        set(&agent, udp3(json!({"mtu": 1300 + round})));
        assert_eq!(host.ip_json(["link", "show", "dev", "udp3"])[0]["mtu"], 1300 + round);
        assert_eq!(all_but(&host, "udp3"), before);

        set(&agent, udp3(json!({"mtu": 1300, "routes": [format!("192.168.{}.0/24", 10 + round)]})));
        let routes = host.ip_json(["route", "show", "proto", "152"]);
        assert_eq!(routes.as_array().unwrap().len(), 1);
        assert_eq!(routes[0]["dst"], format!("192.168.{}.0/24", 10 + round));
        assert_eq!(all_but(&host, "udp3"), before);

        set(&agent, udp3(json!({"remote": "172.100.1.5", "framing": "PI"})));
        assert_eq!(all_but(&host, "udp3"), before);

        set(&agent, udp3(json!({"addresses": ["10.0.5.1/30", "10.0.3.1/30"]})));
        set(&agent, udp3(json!({"addresses": ["10.0.3.1/30"]})));
        assert_eq!(all_but(&host, "udp3"), before);
        assert_eq!(index(&host, "udp3"), made);
    }
    let report = pinger.stop();
    assert!(report.sent > 20, "{report:?}");
    assert_eq!(report.received, report.sent, "{report:?}");
}

#[test]
fn tunnels_of_a_shared_device_come_and_go_beside_one_another() {
    let lab = Lab::new();
    let (host, other) = (lab.host("host"), lab.host("other"));
    lab.link(&host, "172.100.1.1/24", &other, "172.100.1.2/24");
    let (agent, their) = (Agent::start(&host, &[]), Agent::start(&other, &[]));
    let shared = |name: &str, own: &str, remote: &str, peer: &str, mtu: u32| {
        json!({"name": name, "device": "mesh0", "addresses": [format!("{own}/24")], "remote": remote,
               "framing": "RAW", "mtu": mtu, "allowedPrefixes": [{"prefix": format!("{peer}/32")}]})
    };
    set(&agent, shared("to-2", "10.9.0.1", "172.100.1.2", "10.9.0.2", 1400));
    set(&their, shared("to-1", "10.9.0.2", "172.100.1.1", "10.9.0.1", 1400));
    ping_ok(&host, "10.9.0.2");
    let pinger = Pinger::start(&host, "10.9.0.2", Duration::from_millis(50));
    let made = index(&host, "mesh0");
    for n in 3..30_u32 {
        let worse = json!({"routes": ["192.168.3.0/24"]});
        let mut tunnel = shared("to-n", "10.9.0.1", &format!("172.100.1.{n}"), &format!("10.9.0.{n}"), 1300);
        tunnel["allowedPrefixes"].as_array_mut().unwrap().push(json!({"prefix": "192.168.3.0/24"}));
        tunnel["routes"] = worse["routes"].clone();
        set(&agent, tunnel);
        // The device's MTU is the best of its tunnels; the route into the worse one has its own.
        assert_eq!(host.ip_json(["link", "show", "dev", "mesh0"])[0]["mtu"], 1400);
        let routes = host.ip_json(["route", "show", "proto", "152"]);
        assert_eq!(routes[0]["metrics"][0]["mtu"], 1300, "{routes}");
    }
    grpcurl(&agent, "tunmesh.v1.TunnelService/DeleteTunnel", &json!({"name": "to-n"})).unwrap();
    assert_eq!(index(&host, "mesh0"), made);
    let report = pinger.stop();
    assert!(report.sent > 20 && report.received == report.sent, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_tunnels_that_come_and_go_at_once_disturb_no_other() {
    const MANY: u16 = 1000;
    let lab = Lab::new();
    let (host, other) = (lab.host("host"), lab.host("other"));
    lab.link(&host, "172.100.1.1/24", &other, "172.100.1.2/24");
    host.run(["ip", "route", "add", "172.101.0.0/16", "via", "172.100.1.2"]);
    let (agent, their) = (Agent::start(&host, &[]), Agent::start(&other, &[]));
    set(&agent, pair_tunnel("quiet", 1, 2));
    set(&their, pair_tunnel("quiet", 2, 1));
    set(
        &agent,
        json!({"name": "first", "device": "shared", "addresses": ["10.9.0.1/16"], "remote": "172.101.255.1",
               "framing": "RAW", "allowedPrefixes": [{"prefix": "10.9.255.1/32"}]}),
    );
    ping_ok(&host, "10.0.1.2");
    let pinger = Pinger::start(&host, "10.0.1.2", Duration::from_millis(10));
    let channel = client::connect(&agent.socket(), "agent", "agent").await.unwrap();
    let service = TunnelServiceClient::new(channel);
    // Half of them on a device that is there, half on devices of their own.
    let tunnel = |number: u16| {
        let [high, low] = number.to_be_bytes();
        let is_shared = number.is_multiple_of(2);
        v1::Tunnel {
            name: format!("t{number}"),
            device: if is_shared { "shared".to_owned() } else { format!("own{number}") },
            addresses: if is_shared { Vec::new() } else { vec![format!("10.10.{high}.{low}/32")] },
            remote: format!("172.101.{high}.{low}"),
            framing: v1::tunnel::Framing::Raw.into(),
            allowed_prefixes: vec![v1::AllowedPrefix {
                prefix: format!("10.11.{high}.{low}/32"),
                preference: 0,
            }],
            ..Default::default()
        }
    };
    let mut under_way = JoinSet::new();
    for number in 0..MANY {
        let (mut own, tunnel) = (service.clone(), tunnel(number));
        under_way.spawn(async move {
            own.add_tunnel(v1::AddTunnelRequest { tunnel: Some(tunnel), replace: false }).await
        });
        // One in ten cannot be had, and is refused alone.
        if number.is_multiple_of(10) {
            let mut service = service.clone();
            let impossible = v1::Tunnel {
                name: format!("no{number}"),
                device: format!("no{number}"),
                // The other's network.
                addresses: vec!["10.0.1.77/24".to_owned()],
                remote: "172.101.254.1".to_owned(),
                framing: v1::tunnel::Framing::Raw.into(),
                ..Default::default()
            };
            under_way.spawn(async move {
                let request = v1::AddTunnelRequest { tunnel: Some(impossible), replace: false };
                service.add_tunnel(request).await
            });
        }
    }
    let (mut added, mut refused) = (0, 0);
    while let Some(answer) = under_way.join_next().await {
        match answer.unwrap() {
            Ok(_) => added += 1,
            Err(status) => {
                assert!(status.message().contains("10.0.1."), "{status:?}");
                refused += 1;
            }
        }
    }
    assert_eq!((added, refused), (MANY, MANY / 10));
    let devices = || host.ip_json(["link"]).as_array().unwrap().len();
    let before = devices();
    assert_eq!(agent.tunnel_names().len(), usize::from(MANY) + 2);
    for number in 0..MANY {
        let (mut service, name) = (service.clone(), format!("t{number}"));
        under_way.spawn(async move {
            let answer = service.delete_tunnel(v1::DeleteTunnelRequest { name }).await?;
            Ok(answer.map(|_| v1::AddTunnelResponse::default()))
        });
    }
    while let Some(answer) = under_way.join_next().await {
        answer.unwrap().unwrap();
    }
    assert_eq!(devices(), before - usize::from(MANY / 2));
    assert_eq!(agent.tunnel_names(), ["first", "quiet"]);
    pinger.lost_nothing("while a thousand came and went");
}

/// A tunnel with a device of its own between two hosts that have addresses of the same last byte on the underlay.
fn pair_tunnel(name: &str, own: u8, peer: u8) -> Value {
    json!({"name": name, "addresses": [format!("10.0.1.{own}/24")], "remote": format!("172.100.1.{peer}"),
           "framing": "RAW"})
}

#[test]
fn routes_of_others_stay_when_an_address_changes() {
    let lab = Lab::new();
    let (host, other) = (lab.host("host"), lab.host("other"));
    lab.link(&host, "172.100.1.1/24", &other, "172.100.1.2/24");
    let agent = Agent::start(&host, &[]);
    let tunnel = |address: &str| json!({"name": "udp2", "addresses": [address], "remote": "172.100.1.2", "framing": "PI"});
    set(&agent, tunnel("10.0.1.1/30"));
    host.run(["ip", "route", "add", "192.168.2.0/24", "dev", "udp2"]);
    for address in ["10.0.1.2/30", "10.0.1.1/30", "10.0.9.1/24"] {
        set(&agent, tunnel(address));
        let addresses = host.ip_json(["addr", "show", "dev", "udp2"])[0]["addr_info"].clone();
        assert_eq!(addresses.as_array().unwrap().len(), 1, "{addresses}");
        assert_eq!(
            format!("{}/{}", addresses[0]["local"].as_str().unwrap(), addresses[0]["prefixlen"]),
            address
        );
        let routes = host.run(["ip", "route", "show", "192.168.2.0/24"]);
        assert!(routes.contains("dev udp2"), "{address}: the user's route is gone");
    }
}

#[test]
fn an_mtu_that_comes_to_carry_ipv6_brings_no_address() {
    let lab = Lab::new();
    let (host, other) = (lab.host("host"), lab.host("other"));
    lab.link(&host, "172.100.1.1/24", &other, "172.100.1.2/24");
    let agent = Agent::start(&host, &[]);
    for mtu in [1200, 1500, 1279, 1280] {
        set(
            &agent,
            json!({"name": "udp2", "addresses": ["10.0.1.1/30"], "remote": "172.100.1.2", "framing": "PI", "mtu": mtu}),
        );
        let link = host.ip_json(["addr", "show", "dev", "udp2"])[0].clone();
        assert_eq!((&link["mtu"], link["addr_info"].as_array().unwrap().len()), (&json!(mtu), 1), "{link}");
    }
}

#[test]
fn a_device_that_others_delete_comes_back() {
    let lab = Lab::new();
    let (host, other) = (lab.host("host"), lab.host("other"));
    lab.link(&host, "172.100.1.1/24", &other, "172.100.1.2/24");
    let (mut agent, their) = (Agent::start(&host, &[]), Agent::start(&other, &[]));
    set(
        &agent,
        json!({"name": "udp2", "addresses": ["10.0.1.1/30"], "remote": "172.100.1.2", "framing": "RAW",
                       "routes": ["192.168.2.0/24"]}),
    );
    set(
        &their,
        json!({"name": "udp1", "addresses": ["10.0.1.2/30"], "remote": "172.100.1.1", "framing": "RAW"}),
    );
    ping_ok(&host, "10.0.1.2");
    host.run(["ip", "link", "del", "udp2"]);
    ping_ok(&host, "10.0.1.2");
    wait_until(SOON, "its route is back", || {
        host.run(["ip", "route", "show", "proto", "152"]).contains("192.168.2.0/24")
    });
    assert!(agent.log().lines().count() < 20, "a flood: {}", agent.log());
    assert!(agent.alive());
}
