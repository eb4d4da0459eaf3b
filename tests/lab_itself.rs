//! The laboratory, tried by itself.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

mod lab;

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};
use tunmesh::proto::v1;
use tunmesh::proto::v1::tunnel_service_server::{TunnelService, TunnelServiceServer};

use lab::{
    Agent, Family, Lab, Peer2015, Pinger, SOON, ThreeHosts, grpcurl_at, holds_within, ping, ping_ok, secrets,
    transfer, try_transfer, wait_until,
};

/// Two hosts with a cable, 172.100.1.1 and 172.100.1.2.
fn two_hosts() -> (Lab, lab::Host, lab::Host) {
    let lab = Lab::new();
    let (h1, h2) = (lab.host("h1"), lab.host("h2"));
    lab.link(&h1, "172.100.1.1/24", &h2, "172.100.1.2/24");
    (lab, h1, h2)
}

#[test]
fn a_secret_that_is_told_is_noticed() {
    let (_lab, h1, _h2) = two_hosts();
    let directory = tempfile::tempdir().unwrap();
    let key = tunmesh::proto::host::credential::PrivateKey::generate().unwrap();
    let file = directory.path().join("identity.pem");
    let credential =
        tunmesh::proto::host::credential::Credential { key, chain: Vec::new(), roots: Vec::new() };
    credential.write(&file).unwrap();
    let of_tunnels = tunmesh::proto::host::wireguard::PrivateKey::generate().unwrap();
    let of_tunnels_file = directory.path().join("wireguard.key");
    std::fs::write(&of_tunnels_file, of_tunnels.to_text().as_bytes()).unwrap();
    secrets::learn_keys(directory.path());
    secrets::learn_token("tm1.id.a-token-for-the-laborato.pin");
    for words in [
        &["cat", file.to_str().unwrap()][..],
        &["cat", of_tunnels_file.to_str().unwrap()],
        &["echo", "has a-token-for-the-laborato in it"],
    ] {
        let told = std::panic::catch_unwind(|| h1.try_run(words)).unwrap_err();
        assert!(told.downcast_ref::<String>().unwrap().contains("tells a secret"));
    }
    assert!(h1.try_run(["echo", "tm1.id"]).is_ok());
    // Also in what a daemon has logged, once it ends.
    let agent = Agent::start(&h1, &[]);
    secrets::learn(agent.socket().to_str().unwrap());
    let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(agent))).unwrap_err();
    assert!(told.downcast_ref::<String>().unwrap().contains("tells a secret"));
}

#[test]
fn namespaces_are_gone_after_drop_and_after_a_panic() {
    let (lab, h1, h2) = two_hosts();
    let paths = [&h1, &h2].map(|host| Path::new("/run/netns").join(host.namespace()));
    assert!(paths.iter().all(|path| path.exists()));
    drop(lab);
    assert!(!paths.iter().any(|path| path.exists()));

    let panicked = std::thread::spawn(|| -> () {
        let lab = Lab::new();
        let host = lab.host("h1");
        std::panic::resume_unwind(Box::new(host.namespace().to_owned()));
    });
    let namespace = panicked.join().unwrap_err().downcast::<String>().unwrap();
    assert!(!Path::new("/run/netns").join(*namespace).exists());
}

#[test]
fn a_new_lab_removes_what_a_killed_run_left() {
    // No process has this id: Linux has at most 2^22 of them.
    let stale = "tm99999999-1-h1";
    let add = std::process::Command::new("ip").args(["netns", "add", stale]).status().unwrap();
    assert!(add.success());
    let _lab = Lab::new();
    assert!(!Path::new("/run/netns").join(stale).exists());
}

#[test]
fn traffic_passes_between_hosts_and_is_counted() {
    let (_lab, h1, h2) = two_hosts();
    ping_ok(&h1, "172.100.1.2");
    transfer(&h1, &h2, "172.100.1.2", 5_000_003);
    transfer(&h2, &h1, "172.100.1.1", 0);

    let requests = || {
        let text = h2.run(["cat", "/proc/net/snmp"]);
        let mut lines = text.lines().filter(|line| line.starts_with("Icmp:")).map(|line| line.split(' '));
        let mut counters = lines.next().unwrap().zip(lines.next().unwrap());
        counters.find(|(name, _)| *name == "InEchos").unwrap().1.parse::<u64>().unwrap()
    };
    let before = requests();
    let pinger = Pinger::start(&h1, "172.100.1.2", Duration::from_millis(50));
    wait_until(SOON, "eleven pings arrive", || requests() > before + 10);
    let report = pinger.stop();
    assert!(report.sent >= 10 && report.received == report.sent, "{report:?}");
}

#[test]
fn lost_traffic_is_seen() {
    let (_lab, h1, h2) = two_hosts();
    h2.run(["ip", "link", "set", "to-h1", "down"]);
    assert!(!ping(&h1, "172.100.1.2", &[]));
    assert!(try_transfer(&h1, &h2, "172.100.1.2", 1000, Duration::from_millis(500)).is_err());
    assert!(!holds_within(Duration::from_millis(100), || false));

    let pinger = Pinger::start(&h1, "172.100.1.2", Duration::from_millis(50));
    let out_requests = || h1.run(["cat", "/proc/net/arp"]).contains("172.100.1.2");
    wait_until(SOON, "the pings look for their target", out_requests);
    assert_eq!(pinger.stop().received, 0);
}

#[test]
fn three_hosts_reach_each_other_on_the_underlay_only() {
    for family in [Family::V4, Family::V6] {
        let three = ThreeHosts::new(family);
        for (from, to) in [(1, 2), (1, 3), (2, 3), (3, 1)] {
            ping_ok(three.host(from), three.underlay(to));
            assert!(!ping(three.inner(from), &three.inner_address(to), &[]));
        }
        ping_ok(three.host(2), &three.inner_address(2));
        // What an agent will do, with a route in place of a tunnel.
        three.host(1).route(&three.subnet(2), three.underlay(2));
        three.host(2).route(&three.subnet(1), three.underlay(1));
        ping_ok(three.inner(1), &three.inner_address(2));
        let addresses = three.host(1).ip_json(["address", "show", "dev", "to-s1"]);
        assert_eq!(addresses[0]["ifname"], "to-s1");
    }
}

#[test]
fn servers_of_2015_carry_pings_but_no_full_packets() {
    const MTU: u16 = 1500;
    let (_lab, h1, h2) = two_hosts();
    let one = Peer2015::start(&h1, "10.0.1.1/30", MTU, "172.100.1.2");
    let two = Peer2015::start(&h2, "10.0.1.2/30", MTU, "172.100.1.1");
    ping_ok(&h1, "10.0.1.2");
    // 20 bytes of IPv4, 8 of ICMP; of a packet of the MTU the last four bytes are lost.
    assert!(ping(&h1, "10.0.1.2", &["-s", "1468", "-M", "do"]));
    assert!(two.bad_datagrams().is_empty());
    assert!(!ping(&h1, "10.0.1.2", &["-s", "1472", "-M", "do"]));
    assert!(two.bad_datagrams().iter().all(|datagram| datagram.len() == usize::from(MTU)));
    assert!(!two.bad_datagrams().is_empty());
    assert!(try_transfer(&h1, &h2, "10.0.1.2", 1_000_000, Duration::from_secs(3)).is_err());
    assert_eq!((one.ended(), two.ended()), (None, None));
}

#[test]
fn a_server_of_2015_ends_at_a_datagram_that_its_tun_refuses() {
    let (_lab, h1, h2) = two_hosts();
    let peer = Peer2015::start(&h2, "10.0.1.2/30", 1500, "172.100.1.1");
    h1.enter(|| {
        let socket = std::net::UdpSocket::bind("172.100.1.1:0").unwrap();
        socket.send_to(&[0x80], "172.100.1.2:5000").unwrap();
    });
    wait_until(SOON, "the server ends", || peer.ended().is_some());
    assert_eq!(peer.bad_datagrams(), [[0x80]]);
    let stranger = Peer2015::start(&h1, "10.0.1.1/30", 1500, "172.100.1.9");
    h2.enter(|| {
        let socket = std::net::UdpSocket::bind("172.100.1.2:0").unwrap();
        socket.send_to(&[0x80], "172.100.1.1:5000").unwrap();
    });
    ping_ok(&h2, "172.100.1.1");
    assert_eq!((stranger.ended(), stranger.bad_datagrams().len()), (None, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcurl_shows_code_message_and_details() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(tunmesh::proto::v1::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        .build_v1alpha()
        .unwrap();
    let server = tonic::transport::Server::builder()
        .add_service(reflection)
        .add_service(TunnelServiceServer::new(Refuses))
        .serve_with_incoming(tokio_stream::wrappers::UnixListenerStream::new(listener));
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(server);

    let call = |method: &'static str, request: serde_json::Value| {
        let socket = socket.clone();
        tokio::task::spawn_blocking(move || {
            grpcurl_at(&socket, &format!("tunmesh.v1.TunnelService/{method}"), &request)
        })
    };
    let status = call("GetStatus", json!({})).await.unwrap().unwrap();
    assert_eq!(status, json!({"version": "1", "datagramsReceived": "7"}));
    let error = call("AddTunnel", json!({"tunnel": {"name": "udp2"}})).await.unwrap().unwrap_err();
    assert_eq!((error.code, error.message.as_str()), (Code::InvalidArgument, "remote is missing"));
    assert_eq!(error.details[0]["fieldViolations"][0]["field"], "tunnel.remote");
}

/// A service that knows its version and refuses everything else.
struct Refuses;

fn refuse<T>() -> Result<Response<T>, Status> {
    let details = ErrorDetails::with_bad_request_violation("tunnel.remote", "is missing");
    Err(Status::with_error_details(Code::InvalidArgument, "remote is missing", details))
}

#[tonic::async_trait]
impl TunnelService for Refuses {
    type WatchTunnelsStream = tokio_stream::Empty<Result<v1::WatchTunnelsResponse, Status>>;

    async fn add_tunnel(
        &self,
        _: Request<v1::AddTunnelRequest>,
    ) -> Result<Response<v1::AddTunnelResponse>, Status> {
        refuse()
    }

    async fn delete_tunnel(
        &self,
        _: Request<v1::DeleteTunnelRequest>,
    ) -> Result<Response<v1::DeleteTunnelResponse>, Status> {
        refuse()
    }

    async fn get_tunnel(
        &self,
        _: Request<v1::GetTunnelRequest>,
    ) -> Result<Response<v1::GetTunnelResponse>, Status> {
        refuse()
    }

    async fn list_tunnels(
        &self,
        _: Request<v1::ListTunnelsRequest>,
    ) -> Result<Response<v1::ListTunnelsResponse>, Status> {
        refuse()
    }

    async fn watch_tunnels(
        &self,
        _: Request<v1::WatchTunnelsRequest>,
    ) -> Result<Response<Self::WatchTunnelsStream>, Status> {
        refuse()
    }

    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let version = "1".to_owned();
        Ok(Response::new(v1::GetStatusResponse { version, datagrams_received: 7, ..Default::default() }))
    }

    async fn leave(&self, _: Request<v1::LeaveRequest>) -> Result<Response<v1::LeaveResponse>, Status> {
        refuse()
    }
}
