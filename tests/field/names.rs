//! Names that are longer than those of devices may be.

use serde_json::json;
use tonic::Code;

use crate::lab::{Agent, Host, Lab, Segment, grpcurl, legacy_add, ping_ok, wait_live};

const ADD: &str = "tunmesh.v1.TunnelService/AddTunnel";
/// What a device may be called: 15 bytes.
const SHARED: &str = "udp-minion-numb";
/// Two names that begin with it.
const NAMES: [&str; 2] = ["udp-minion-number-1", "udp-minion-number-2"];

/// The devices that the agent made.
fn devices(host: &Host) -> Vec<String> {
    let links = host.ip_json(["link"]);
    let own = links.as_array().unwrap().iter().filter(|link| link["link_type"] == "none");
    own.map(|link| link["ifname"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn case_05_of_names_that_share_fifteen_bytes_none_is_cut() {
    let lab = Lab::new();
    let (host, other) = (lab.host("host"), lab.host("other"));
    lab.link(&host, "172.100.1.1/24", &other, "172.100.1.2/24");
    other.address(&other.device_to(&host), "172.100.1.3/24");
    let (agent, their) = (Agent::start(&host, &[]), Agent::start(&other, &[]));
    let tunnel = |n: usize, device: &str| {
        json!({"tunnel": {
            "name": NAMES[n], "device": device, "addresses": [format!("10.0.{n}.1/30")],
            "remote": format!("172.100.1.{}", n + 2), "framing": "RAW",
        }})
    };

    // Without a device of its own a name would have to be one.
    for (n, name) in NAMES.iter().enumerate() {
        let refused = grpcurl(&agent, ADD, &tunnel(n, "")).unwrap_err();
        assert_eq!(refused.code, Code::InvalidArgument);
        for words in ["tunnel.name", *name, "15 bytes", "`device`"] {
            assert!(refused.message.contains(words), "{words}: {refused:?}");
        }
        let reply = legacy_add(&host, name, &format!("10.0.{n}.1"), &format!("172.100.1.{}", n + 2), 1400);
        let words = reply[*name].as_str().unwrap();
        assert!(words.contains(name) && words.contains("15"), "{reply}");
        assert_eq!(devices(&host), Vec::<String>::new());
    }
    // Nor has a second the device of the first.
    grpcurl(&agent, ADD, &tunnel(0, SHARED)).unwrap();
    let refused = grpcurl(&agent, ADD, &tunnel(1, SHARED)).unwrap_err();
    assert!(refused.message.contains("tunnel.device") && refused.message.contains(SHARED), "{refused:?}");
    let reply = legacy_add(&host, SHARED, "10.0.1.1", "172.100.1.3", 1400);
    assert!(reply[SHARED].as_str().unwrap().contains(SHARED), "{reply}");
    assert!(!reply[SHARED].as_str().unwrap().starts_with("ok"), "{reply}");
    assert_eq!((devices(&host), agent.tunnel_names()), (vec![SHARED.to_owned()], vec![NAMES[0].to_owned()]));

    // With one of its own each is up.
    grpcurl(&agent, ADD, &tunnel(1, "second")).unwrap();
    grpcurl(
        &their,
        ADD,
        &json!({"tunnel": {"name": "back", "addresses": ["10.0.0.2/30", "10.0.1.2/30"], "remote": "172.100.1.1",
                           "framing": "RAW"}}),
    )
    .unwrap();
    // What the other end sends comes from its first address: the first tunnel hears it.
    ping_ok(&host, "10.0.0.2");
    let states =
        agent.tunnels().into_iter().map(|status| (status["tunnel"]["name"].clone(), status["state"].clone()));
    let states: Vec<_> = states.collect();
    assert_eq!(states, [(json!(NAMES[0]), json!("PASSING")), (json!(NAMES[1]), json!("WAITING"))]);
    assert_eq!(devices(&host).len(), 2);
}

#[test]
fn case_05_nodes_of_names_that_share_fifteen_bytes_are_all_there() {
    let segment = Segment::new(3);
    let nodes = ["rack-17-machine-101", "rack-17-machine-102", "rack-17-machine-103"];
    let agents: Vec<_> = (1..)
        .zip(nodes)
        .map(|(n, node)| Agent::join(segment.host(n), Segment::CONTROLLER, node, &[]))
        .collect();
    wait_live(&segment.controller, &nodes.map(str::to_owned));
    let mesh = |name: &str| {
        let nodes = nodes.join(":\n  ");
        format!("mesh: {name}\noverlay: 10.9.0.0/24\nsecurity: plain\nnodes:\n  {nodes}:\n")
    };
    let refused = segment.controller.apply(&mesh("production-mesh-1")).unwrap_err();
    for words in ["mesh \"production-mesh-1\"", "at most 15 bytes"] {
        assert!(refused.stderr.contains(words), "{words}: {refused}");
    }
    segment.controller.apply_with(&mesh("production"), &["--wait"]).unwrap();
    for (n, agent) in (1..).zip(&agents) {
        let others =
            nodes.iter().filter(|node| **node != nodes[n - 1]).map(|node| format!("production.{node}"));
        assert_eq!(agent.tunnel_names(), others.collect::<Vec<_>>());
        for node in (1..=3).filter(|node| *node != n) {
            ping_ok(segment.host(n), &format!("10.9.0.{node}"));
        }
        assert_eq!(devices(segment.host(n)), ["production"]);
    }
}
