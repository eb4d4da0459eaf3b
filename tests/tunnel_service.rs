//! TunnelService as a user of grpcurl meets it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

mod lab;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};

use lab::{Agent, GrpcError, Host, Lab, SOON, grpcurl, grpcurl_at, ping, ping_ok, wait_until};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tonic::Code;
use tunmesh::proto::host::client;
use tunmesh::proto::v1;
use tunmesh::proto::v1::tunnel_service_client::TunnelServiceClient;

const ADD: &str = "tunmesh.v1.TunnelService/AddTunnel";
const DELETE: &str = "tunmesh.v1.TunnelService/DeleteTunnel";
const GET: &str = "tunmesh.v1.TunnelService/GetTunnel";
const LIST: &str = "tunmesh.v1.TunnelService/ListTunnels";
const WATCH: &str = "tunmesh.v1.TunnelService/WatchTunnels";
const STATUS: &str = "tunmesh.v1.TunnelService/GetStatus";

struct Setup {
    _lab: Lab,
    host: Host,
    other: Host,
    agent: Agent,
}

fn setup(arguments: &[&str]) -> Setup {
    let lab = Lab::new();
    let (host, other) = (lab.host("host"), lab.host("other"));
    lab.link(&host, "172.100.1.1/24", &other, "172.100.1.2/24");
    host.address(&host.device_to(&other), "10.77.0.1/16");
    let agent = Agent::start(&host, arguments);
    Setup { _lab: lab, host, other, agent }
}

fn tunnel(name: &str, network: u8, remote: &str) -> Value {
    json!({"name": name, "addresses": [format!("10.0.{network}.1/30")], "remote": remote, "framing": "RAW"})
}

fn shared(name: &str, remote: &str, prefixes: &[&str]) -> Value {
    let allowed: Vec<Value> = prefixes.iter().map(|prefix| json!({"prefix": prefix})).collect();
    json!({"name": name, "device": "mesh0", "addresses": ["10.9.0.1/24"], "remote": remote, "framing": "RAW",
           "allowedPrefixes": allowed})
}

fn with(mut tunnel: Value, fields: Value) -> Value {
    for (field, value) in fields.as_object().unwrap() {
        tunnel[field] = value.clone();
    }
    tunnel
}

fn add(agent: &Agent, tunnel: Value) -> Result<Value, GrpcError> {
    grpcurl(agent, ADD, &json!({ "tunnel": tunnel }))
}

/// Everything that a refused call must leave as it was.
fn everything(host: &Host, agent: &Agent) -> (Value, Value, Value, Vec<u8>) {
    let mut listed = grpcurl(agent, LIST, &json!({})).unwrap();
    for status in listed["tunnels"].as_array_mut().into_iter().flatten() {
        for changing in ["sent", "received"] {
            status[changing] = json!(null);
        }
    }
    let kept = std::fs::read(agent.state_dir().join("state")).unwrap_or_default();
    (listed, host.ip_json(["addr"]), host.ip_json(["route", "show", "table", "all"]), kept)
}

/// Checks that the error names the field, the value and what to do, also as google.rpc.BadRequest.
#[track_caller]
fn assert_names(error: &GrpcError, code: Code, field: &str, words: &[&str]) {
    assert_eq!(error.code, code, "{error:?}");
    for word in words.iter().chain([&field]) {
        assert!(error.message.contains(word), "{word:?} is not in {:?}", error.message);
    }
    assert!(error.message.contains("; "), "no remedy in {:?}", error.message);
    let violations: Vec<&Value> =
        error.details.iter().filter_map(|detail| detail["fieldViolations"].as_array()).flatten().collect();
    assert!(violations.iter().any(|violation| violation["field"] == field), "{:?}", error.details);
}

#[test]
fn refusals_name_field_value_and_remedy_and_change_nothing() {
    // The underlay of the laboratory is not among what is accepted by default.
    let accept = "10.0.0.0/8,192.168.0.0/16,172.100.0.0/16,fc00::/7";
    let Setup { host, agent, .. } = &setup(&["--accept-prefix", accept]);
    add(agent, tunnel("udp2", 2, "172.100.1.2")).unwrap();
    add(agent, shared("to-3", "172.100.1.3", &["10.9.0.3/32", "192.168.3.0/24"])).unwrap();
    host.run(["ip", "link", "add", "theirs", "type", "bridge"]);
    let new = || tunnel("new", 7, "172.100.1.7");
    let before = everything(host, agent);
    let cases = [
        // Names.
        (
            with(new(), json!({"name": "more-than-15-bytes"})),
            Code::InvalidArgument,
            "tunnel.name",
            vec!["more-than-15-bytes", "15"],
        ),
        (with(new(), json!({"name": ""})), Code::InvalidArgument, "tunnel.name", vec![]),
        (with(new(), json!({"name": "a b"})), Code::InvalidArgument, "tunnel.name", vec!["a b"]),
        (
            with(new(), json!({"device": "more-than-15-bytes"})),
            Code::InvalidArgument,
            "tunnel.device",
            vec!["more-than-15-bytes", "15"],
        ),
        (
            with(tunnel("udp2", 2, "172.100.1.2"), json!({"mtu": 1300})),
            Code::AlreadyExists,
            "tunnel.name",
            vec!["udp2", "replace"],
        ),
        // Devices.
        (with(new(), json!({"device": "theirs"})), Code::FailedPrecondition, "tunnel.device", vec!["theirs"]),
        (
            with(new(), json!({"device": "udp2", "addresses": []})),
            Code::FailedPrecondition,
            "tunnel.device",
            vec!["udp2"],
        ),
        (
            with(shared("to-4", "172.100.1.4", &["10.9.0.4/32"]), json!({"addresses": ["10.9.0.2/24"]})),
            Code::FailedPrecondition,
            "tunnel.device",
            vec!["mesh0", "10.9.0.1/24"],
        ),
        (
            shared("to-4", "172.100.1.4", &[]),
            Code::FailedPrecondition,
            "tunnel.allowed_prefixes",
            vec!["mesh0"],
        ),
        (
            with(new(), json!({"addresses": []})),
            Code::InvalidArgument,
            "tunnel.addresses",
            vec!["10.0.1.1/30"],
        ),
        // Remotes.
        (
            with(new(), json!({"remote": "172.100.1.2"})),
            Code::FailedPrecondition,
            "tunnel.remote",
            vec!["172.100.1.2", "udp2"],
        ),
        (
            with(new(), json!({"remote": "172.100.1.2:5000"})),
            Code::FailedPrecondition,
            "tunnel.remote",
            vec!["172.100.1.2:5000", "udp2"],
        ),
        (
            with(new(), json!({"remote": "172.100.1.1"})),
            Code::FailedPrecondition,
            "tunnel.remote",
            vec!["172.100.1.1"],
        ),
        (
            with(new(), json!({"remote": "172.100.1"})),
            Code::InvalidArgument,
            "tunnel.remote",
            vec!["172.100.1"],
        ),
        (
            with(new(), json!({"remote": "minion-2:0"})),
            Code::InvalidArgument,
            "tunnel.remote",
            vec!["minion-2:0"],
        ),
        (with(new(), json!({"remote": ""})), Code::InvalidArgument, "tunnel.remote", vec![]),
        // Addresses and prefixes.
        (
            with(new(), json!({"addresses": ["10.0.7.1"]})),
            Code::InvalidArgument,
            "tunnel.addresses[0]",
            vec!["10.0.7.1", "prefix length"],
        ),
        (
            with(new(), json!({"addresses": ["10.0.7.1/30", "nowhere/8"]})),
            Code::InvalidArgument,
            "tunnel.addresses[1]",
            vec!["nowhere/8"],
        ),
        (
            with(new(), json!({"addresses": ["10.0.7.0/30"]})),
            Code::InvalidArgument,
            "tunnel.addresses[0]",
            vec!["10.0.7.0/30"],
        ),
        (
            with(new(), json!({"addresses": ["8.8.8.9/30"]})),
            Code::PermissionDenied,
            "tunnel.addresses[0]",
            vec!["8.8.8.9/30", "--accept-prefix"],
        ),
        (
            with(new(), json!({"addresses": ["10.0.2.1/30"]})),
            Code::FailedPrecondition,
            "tunnel.addresses[0]",
            vec!["10.0.2.1/30", "udp2"],
        ),
        (
            with(new(), json!({"addresses": ["10.77.3.1/24"]})),
            Code::FailedPrecondition,
            "tunnel.addresses[0]",
            vec!["10.77.3.1/24", "10.77.0.0/16"],
        ),
        (
            with(shared("to-4", "172.100.1.4", &["10.9.0.3/32"]), json!({})),
            Code::FailedPrecondition,
            "tunnel.allowed_prefixes[0].prefix",
            vec!["10.9.0.3/32", "to-3"],
        ),
        (
            with(new(), json!({"allowedPrefixes": [{"prefix": "192.168.3.0/24"}]})),
            Code::FailedPrecondition,
            "tunnel.allowed_prefixes[0].prefix",
            vec!["192.168.3.0/24", "mesh0"],
        ),
        (
            shared("to-4", "172.100.1.4", &["10.9.0.4/24"]),
            Code::InvalidArgument,
            "tunnel.allowed_prefixes[0].prefix",
            vec!["10.9.0.4/24", "10.9.0.0/24"],
        ),
        (
            shared("to-4", "172.100.1.4", &["10.9.0.4/32", "8.8.0.0/16"]),
            Code::PermissionDenied,
            "tunnel.allowed_prefixes[1].prefix",
            vec!["8.8.0.0/16", "--accept-prefix"],
        ),
        (
            with(new(), json!({"routes": ["8.8.8.0/24"]})),
            Code::PermissionDenied,
            "tunnel.routes[0]",
            vec!["8.8.8.0/24", "--accept-prefix"],
        ),
        (
            with(new(), json!({"routes": ["0.0.0.0/0"]})),
            Code::PermissionDenied,
            "tunnel.routes[0]",
            vec!["0.0.0.0/0"],
        ),
        (
            with(new(), json!({"routes": ["172.100.0.0/16"]})),
            Code::FailedPrecondition,
            "tunnel.routes[0]",
            vec!["172.100.0.0/16", "endpoint"],
        ),
        (
            with(new(), json!({"routes": ["10.77.0.0/16"]})),
            Code::FailedPrecondition,
            "tunnel.routes[0]",
            vec!["10.77.0.0/16"],
        ),
        (
            with(new(), json!({"routes": ["192.168.7.0/24", "192.168.7.1"]})),
            Code::InvalidArgument,
            "tunnel.routes[1]",
            vec!["192.168.7.1"],
        ),
        (
            with(shared("to-4", "172.100.1.4", &["10.9.0.4/32"]), json!({"routes": ["192.168.4.0/24"]})),
            Code::InvalidArgument,
            "tunnel.routes[0]",
            vec!["192.168.4.0/24", "allowed"],
        ),
        // The rest.
        (with(new(), json!({"mtu": 67})), Code::InvalidArgument, "tunnel.mtu", vec!["67", "68"]),
        (with(new(), json!({"mtu": 70000})), Code::InvalidArgument, "tunnel.mtu", vec!["70000", "65535"]),
        (
            with(new(), json!({"mtu": 1279, "addresses": ["fd00:7::1/64"]})),
            Code::InvalidArgument,
            "tunnel.mtu",
            vec!["1279", "1280"],
        ),
        (
            with(new(), json!({"framing": "FRAMING_UNSPECIFIED"})),
            Code::InvalidArgument,
            "tunnel.framing",
            vec!["RAW"],
        ),
        (with(new(), json!({"framing": 9})), Code::InvalidArgument, "tunnel.framing", vec!["9"]),
        (
            with(new(), json!({"framing": "WIREGUARD"})),
            Code::InvalidArgument,
            "tunnel.peer_public_key",
            vec![],
        ),
        (
            with(new(), json!({"framing": "WIREGUARD", "peerPublicKey": "short"})),
            Code::InvalidArgument,
            "tunnel.peer_public_key",
            vec!["short"],
        ),
        (
            with(
                new(),
                json!({"framing": "WIREGUARD", "peerPublicKey": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}),
            ),
            Code::InvalidArgument,
            "tunnel.peer_public_key",
            vec!["AAAA", "is no host's key"],
        ),
    ];
    for (tunnel, code, field, words) in cases {
        let error = add(agent, tunnel.clone()).expect_err(&tunnel.to_string());
        assert_names(&error, code, field, &words);
        assert_eq!(everything(host, agent), before, "{tunnel} changed something");
    }
    for (method, request, code) in [
        (DELETE, json!({"name": "udp9"}), Code::NotFound),
        (DELETE, json!({}), Code::InvalidArgument),
        (GET, json!({"name": "udp9"}), Code::NotFound),
        (WATCH, json!({"interval": "0.01s"}), Code::InvalidArgument),
    ] {
        let error = grpcurl(agent, method, &request).unwrap_err();
        assert_eq!(error.code, code, "{method} {request}: {error:?}");
        assert!(!error.details.is_empty(), "{error:?}");
    }
    assert_eq!(everything(host, agent), before);
}

#[test]
fn the_same_again_is_no_error_and_replace_changes() {
    let Setup { host, agent, .. } = &setup(&[]);
    let first = tunnel("udp2", 2, "172.100.1.2");
    add(agent, first.clone()).unwrap();
    let index = |host: &Host| host.ip_json(["link", "show", "dev", "udp2"])[0]["ifindex"].clone();
    let made = index(host);
    add(agent, first.clone()).unwrap();
    let changed = with(first, json!({"mtu": 1300, "routes": ["192.168.2.0/24"]}));
    let reply = grpcurl(agent, ADD, &json!({"tunnel": changed, "replace": true})).unwrap();
    assert_eq!(reply["status"]["deviceMtu"], 1300);
    assert_eq!(index(host), made);
    let routes = host.ip_json(["route", "show", "proto", "152"]);
    assert_eq!(routes[0]["dst"], "192.168.2.0/24");
    // Above what the path carries: kept, and said.
    let above = tunnel("udp3", 3, "172.100.1.3");
    let reply = grpcurl(agent, ADD, &json!({"tunnel": with(above, json!({"mtu": 1500}))})).unwrap();
    assert!(reply["notes"][0].as_str().unwrap().contains("1472"), "{reply}");
    grpcurl(agent, DELETE, &json!({"name": "udp2"})).unwrap();
    assert_eq!(host.ip_json(["route", "show", "proto", "152"]), json!([]));
    assert!(host.try_run(["ip", "link", "show", "dev", "udp2"]).is_err());
}

#[test]
fn the_longest_prefix_and_the_lowest_preference_send() {
    let Setup { host, other, agent, .. } = &setup(&[]);
    // One host answers for three peers; each counts what it gets.
    for peer in ["172.100.1.3/24", "172.100.1.4/24"] {
        other.address(&other.device_to(host), peer);
    }
    for (name, remote, prefix, preference) in [
        ("wide", "172.100.1.2", "192.168.0.0/16", 0),
        ("standby", "172.100.1.3", "192.168.4.0/24", 20),
        ("narrow", "172.100.1.4", "192.168.4.0/24", 10),
    ] {
        let tunnel = with(
            shared(name, remote, &[]),
            json!({"allowedPrefixes": [{"prefix": prefix, "preference": preference}], "routes": [prefix]}),
        );
        add(agent, tunnel).unwrap();
    }
    let sent = |name: &str| {
        let status = grpcurl(agent, GET, &json!({ "name": name })).unwrap()["status"].clone();
        status["sent"]["packets"].as_str().map_or(0, |packets| packets.parse::<u64>().unwrap())
    };
    ping(host, "192.168.5.1", &[]);
    assert_eq!((sent("wide"), sent("standby"), sent("narrow")), (1, 0, 0));
    ping(host, "192.168.4.1", &[]);
    assert_eq!((sent("wide"), sent("standby"), sent("narrow")), (1, 0, 1));
    grpcurl(agent, DELETE, &json!({"name": "narrow"})).unwrap();
    ping(host, "192.168.4.1", &[]);
    assert_eq!((sent("wide"), sent("standby")), (1, 1));
    // The device's network is wider than its tunnels: an address of nobody is unreachable at once.
    let refused = host.try_run(["ping", "-c", "1", "-W", "5", "10.9.0.99"]).unwrap_err().to_string();
    assert!(refused.contains("Unreachable"), "{refused}");
}

#[test]
fn watches_show_what_changes() {
    let Setup { host, other, agent, .. } = &setup(&[]);
    add(agent, tunnel("udp2", 2, "172.100.1.2")).unwrap();
    let socket = agent.socket();
    let mut watch = Command::new(lab::grpcurl_path())
        .args(["-plaintext", "-unix", "-authority", "localhost", "-max-time", "30"])
        .args(["-d", r#"{"interval": "0.1s"}"#])
        .arg(&socket)
        .arg(WATCH)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut messages =
        serde_json::Deserializer::from_reader(watch.stdout.take().unwrap()).into_iter::<Value>();
    let first = messages.next().unwrap().unwrap();
    assert_eq!(first["changed"][0]["tunnel"]["name"], "udp2");
    add(agent, tunnel("udp3", 3, "172.100.1.3")).unwrap();
    let second = messages.next().unwrap().unwrap();
    assert_eq!(second["changed"].as_array().unwrap().len(), 1, "{second}");
    assert_eq!(second["changed"][0]["tunnel"]["name"], "udp3");
    ping(host, "10.0.2.2", &[]);
    let third = messages.next().unwrap().unwrap();
    assert_eq!(third["changed"][0]["tunnel"]["name"], "udp2", "{third}");
    // A tunnel that received something once, and nothing since, does not change.
    other.enter(|| {
        let packet = etherparse::PacketBuilder::ipv4([10, 0, 2, 2], [10, 0, 2, 1], 64).udp(1, 2);
        let mut bytes = Vec::new();
        packet.write(&mut bytes, b"once").unwrap();
        let socket = std::net::UdpSocket::bind("172.100.1.2:0").unwrap();
        socket.send_to(&bytes, "172.100.1.1:5000").unwrap();
    });
    let received = messages.next().unwrap().unwrap();
    assert_eq!(received["changed"][0]["state"], "PASSING", "{received}");
    ping(host, "10.0.3.2", &[]);
    let other_alone = messages.next().unwrap().unwrap();
    assert_eq!(other_alone["changed"].as_array().unwrap().len(), 1, "{other_alone}");
    assert_eq!(other_alone["changed"][0]["tunnel"]["name"], "udp3", "{other_alone}");
    grpcurl(agent, DELETE, &json!({"name": "udp3"})).unwrap();
    let fourth = messages.find(|message| message.as_ref().is_ok_and(|m| m["removed"] != json!(null)));
    assert_eq!(fourth.unwrap().unwrap()["removed"], json!(["udp3"]));
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[test]
fn has_reflection_health_and_status_on_socket_and_loopback() {
    let Setup { host, agent, .. } = &setup(&["--grpc-listen", "127.0.0.1:5002"]);
    let grpcurl_path = lab::grpcurl_path();
    let path = grpcurl_path.to_str().unwrap();
    let socket = agent.socket();
    let by_socket = ["-plaintext", "-unix", "-authority", "localhost", socket.to_str().unwrap()];
    for target in [&by_socket[..], &["-plaintext", "127.0.0.1:5002"]] {
        let call = |more: &[&str]| host.run([&[path][..], target, more].concat());
        let services = call(&["list"]);
        assert!(services.contains("tunmesh.v1.TunnelService"), "{services}");
        assert!(services.contains("grpc.health.v1.Health"), "{services}");
        assert!(call(&["describe", "tunmesh.v1.TunnelService"]).contains("rpc AddTunnel"));
        assert!(call(&["grpc.health.v1.Health/Check"]).contains("SERVING"));
    }
    let status = grpcurl(agent, STATUS, &json!({})).unwrap();
    assert!(status["weakened"][0].as_str().unwrap().contains("--grpc-listen"), "{status}");
    assert!(agent.log().contains("--grpc-listen"));

    let metadata = std::fs::metadata(&socket).unwrap();
    assert_eq!((metadata.permissions().mode() & 0o777, metadata.uid()), (0o660, 0));
}

#[test]
fn a_foreign_address_is_not_listened_on_in_plain_text() {
    let lab = Lab::new();
    let host = lab.host("host");
    let error =
        Agent::try_start(&host, &["--grpc-listen", "0.0.0.0:5002"]).err().expect("it refuses").to_string();
    assert!(error.contains("needs --controller") && error.contains("127.0.0.1:5002"), "{error}");
}

#[test]
fn the_socket_is_for_root_and_the_group_whatever_its_mode() {
    let Setup { host, agent, .. } = &setup(&[]);
    add(agent, tunnel("udp2", 2, "172.100.1.2")).unwrap();
    for command in ["status", "leave"] {
        let told = lab::as_outsider(host, lab::AGENT, &[command], &agent.socket()).unwrap_err().to_string();
        assert!(told.contains("is neither root nor a member of the group tunmesh"), "{told}");
    }
    assert_eq!(agent.tunnel_names(), ["udp2"]);
    assert!(agent.log().contains("a call was refused"));
}

#[test]
fn wrong_use_is_exit_code_2() {
    for arguments in [
        &["--data-port", "6000", "--control-port", "6000"][..],
        &["--data-port", "70000"],
        &["--no-such-flag"],
        &["--legacy-allow", "x"],
    ] {
        let output = Command::new(lab::AGENT).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn the_command_line_shows_what_the_service_tells() {
    let Setup { host, other, agent, .. } = &setup(&[]);
    let their = Agent::start(other, &[]);
    add(agent, tunnel("udp2", 2, "172.100.1.2")).unwrap();
    let back =
        json!({"name": "udp1", "addresses": ["10.0.2.2/30"], "remote": "172.100.1.1", "framing": "RAW"});
    add(&their, back).unwrap();
    ping_ok(host, "10.0.2.2");
    let socket = agent.socket();
    let show =
        |more: &[&str]| host.run([&[lab::AGENT][..], more, &["--socket", socket.to_str().unwrap()]].concat());
    let table = show(&["tunnels"]);
    assert!(table.contains("NAME") && table.contains("udp2") && table.contains("passing"), "{table}");
    let listed: Value = serde_json::from_str(&show(&["tunnels", "-o", "json"])).unwrap();
    assert_eq!(listed["tunnels"][0]["tunnel"]["remote"], "172.100.1.2");
    assert!(show(&["tunnels", "-o", "yaml"]).contains("name: udp2"));
    assert!(show(&["status"]).contains("1 (0 failed)"));
    // What is missing on the host is named, with the way to mend it.
    let check = [lab::AGENT, "check"];
    host.forwarding(false);
    let missing = host.try_run(check).unwrap_err().to_string();
    assert!(missing.contains("sysctl -w net.ipv4.ip_forward=1"), "{missing}");
    assert!(show(&["status"]).contains("net.ipv4.ip_forward=1"));
    host.forwarding(true);
    host.run(check);
    host.run(["nft", "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }"]);
    host.sysctl("net.ipv4.conf.all.rp_filter", "1");
    let missing = host.try_run(check).unwrap_err().to_string();
    assert!(missing.contains("ip filter FORWARD") && missing.contains("rp_filter=2"), "{missing}");
    // Nobody there.
    let nobody = host.try_run([lab::AGENT, "tunnels", "--socket", "/nonexistent/agent.sock"]).unwrap_err();
    assert!(nobody.to_string().contains("--socket"), "{nobody}");
    wait_until(SOON, "both agents live", || grpcurl_at(&socket, STATUS, &json!({})).is_ok());
}

/// What clients of gRPC take by default is 4 MiB; five of these are longer.
fn long(number: usize) -> v1::Tunnel {
    let prefix = |at: usize| v1::AllowedPrefix {
        prefix: format!("10.{}.{}.{}/32", 100 + number, at / 250, at % 250 + 1),
        preference: 0,
    };
    v1::Tunnel {
        name: format!("udp{number}"),
        addresses: vec![format!("10.0.{number}.1/30")],
        remote: format!("172.100.1.{}", 10 + number),
        framing: v1::tunnel::Framing::Raw.into(),
        allowed_prefixes: (0..50_000).map(prefix).collect(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_into_one_answer_comes_in_several() {
    let Setup { agent, .. } = &setup(&[]);
    let channel = client::connect(&agent.socket(), "agent", "agent").await.unwrap();
    let mut service = TunnelServiceClient::new(channel);
    for number in 0..5 {
        let request = v1::AddTunnelRequest { tunnel: Some(long(number)), replace: false };
        service.add_tunnel(request).await.unwrap();
    }
    let name = |status: &v1::TunnelStatus| status.tunnel.as_ref().unwrap().name.clone();
    let all = ["udp0", "udp1", "udp2", "udp3", "udp4"];
    let (mut listed, mut answers) = (Vec::new(), 0);
    loop {
        let after = listed.last().map(name).unwrap_or_default();
        let answer = service.list_tunnels(v1::ListTunnelsRequest { after }).await.unwrap().into_inner();
        listed.extend(answer.tunnels);
        answers += 1;
        assert_eq!(listed.len() + answer.more as usize, all.len());
        if answer.more == 0 {
            break;
        }
    }
    assert!(answers > 1 && listed.iter().map(name).eq(all), "{answers} answers");

    let mut watch = service.watch_tunnels(v1::WatchTunnelsRequest::default()).await.unwrap().into_inner();
    let mut watched = Vec::new();
    while watched.len() < all.len() {
        watched.extend(watch.message().await.unwrap().expect("more tunnels").changed);
    }
    assert!(watched.iter().map(name).eq(all));
    let shown = agent.show("tunnels");
    assert!(all.iter().all(|name| shown.contains(name)), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_adds_a_tunnel_and_who_deletes_it_at_once_are_both_answered() {
    let Setup { agent, .. } = &setup(&[]);
    let channel = client::connect(&agent.socket(), "agent", "agent").await.unwrap();
    let service = TunnelServiceClient::new(channel);
    let mut adding = JoinSet::new();
    let mut deleting = JoinSet::new();
    for number in 0..200 {
        let tunnel =
            v1::Tunnel { name: format!("both{number}"), allowed_prefixes: Vec::new(), ..long(number) };
        let name = tunnel.name.clone();
        let (mut add, mut delete) = (service.clone(), service.clone());
        let request = v1::AddTunnelRequest { tunnel: Some(tunnel), replace: false };
        adding.spawn(async move { add.add_tunnel(request).await });
        deleting.spawn(async move { delete.delete_tunnel(v1::DeleteTunnelRequest { name }).await });
    }
    while let Some(added) = adding.join_next().await {
        added.unwrap().unwrap();
    }
    let mut deleted = 0;
    while let Some(answer) = deleting.join_next().await {
        match answer.unwrap() {
            Ok(_) => deleted += 1,
            // It came first.
            Err(status) => assert_eq!(status.code(), Code::NotFound),
        }
    }
    assert_eq!(agent.tunnel_names().len(), 200 - deleted);
}
