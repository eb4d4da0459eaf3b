//! `controller legacy` against a socket that plays the agent.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

mod lab;

use std::net::UdpSocket;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use lab::{CONTROLLER, Lab, Names};
use serde_json::{Value, json};

/// Runs the client with `arguments` against a server that answers with `reply`. What was sent, and what came of it.
fn run(arguments: &str, reply: Option<&str>) -> (Value, Output) {
    run_at("127.0.0.1:0", arguments, reply)
}

/// The same, with the server at an address.
fn run_at(address: &str, arguments: &str, reply: Option<&str>) -> (Value, Output) {
    let server = UdpSocket::bind(address).unwrap();
    server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let port = server.local_addr().unwrap().port().to_string();
    let reply = reply.map(str::to_owned);
    let serving = thread::spawn(move || {
        let mut buffer = [0; 2048];
        let (length, client) = server.recv_from(&mut buffer).unwrap();
        if let Some(reply) = reply {
            server.send_to(reply.as_bytes(), client).unwrap();
        }
        serde_json::from_slice(&buffer[..length]).unwrap()
    });
    let output = client(&format!("{arguments} -p {port}"));
    (serving.join().unwrap(), output)
}

fn client(arguments: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_controller"))
        .arg("legacy")
        .args(arguments.split_whitespace())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn sends_what_the_client_of_2015_sent() {
    let udp2 = json!({"op": "add", "tunnel": [{"name": "udp2", "tunnelIP": "10.0.0.1",
        "netmask": "255.255.255.252", "mtu": 1500, "remoteServer": "172.100.1.2"}]});
    let changed = json!({"op": "add", "tunnel": [{"name": "udp2", "tunnelIP": "10.0.0.1",
        "netmask": "255.255.255.0", "mtu": 1400, "remoteServer": "minion-2"}]});
    for (arguments, sent) in [
        ("-s 127.0.0.1 -o add -n udp2 -t 10.0.0.1 -r 172.100.1.2", &udp2),
        ("127.0.0.1 -o add -n udp2 -t 10.0.0.1 -r 172.100.1.2", &udp2),
        ("-s 127.0.0.1 -n udp2 -t 10.0.0.1 -r 172.100.1.2", &udp2),
        ("-s 127.0.0.1 -n udp2 -t 10.0.0.1 -r minion-2 -tm 255.255.255.0 -m 1400", &changed),
        (
            "--server 127.0.0.1 --operation add --name udp2 --tunnel 10.0.0.1 --remote minion-2 --mask 24 --mtu 1400",
            &changed,
        ),
    ] {
        let (received, output) = run(arguments, Some(r#"{"udp2": "ok"}"#));
        assert_eq!(received, *sent, "{arguments}");
        assert!(output.status.success(), "{arguments}: {output:?}");
        assert_eq!(text(&output.stdout), "udp2: ok\n");
    }
    let (received, _) = run("-s 127.0.0.1 -o del -n udp2", Some(r#"{"udp2": "ok"}"#));
    assert_eq!(received["op"], "del");
    assert_eq!(received["tunnel"][0]["name"], "udp2");
    let (received, _) = run("-s 127.0.0.1 -n udp2 -t fd00::1 -r fd01::2", Some(r#"{"udp2": "ok"}"#));
    assert_eq!(received["tunnel"][0]["tunnelIP"], "fd00::1");
}

#[test]
fn an_address_of_ipv6_may_stand_in_brackets() {
    for host in ["::1", "[::1]"] {
        let (received, output) =
            run_at("[::1]:0", &format!("-s {host} -o del -n udp2"), Some(r#"{"udp2": "ok"}"#));
        assert!(received["op"] == "del" && output.status.success(), "{host}: {output:?}");
    }
}

/// Whichever of its addresses comes first.
#[test]
fn a_name_is_asked_at_the_address_where_something_listens() {
    let lab = Lab::new();
    let (host, other) = (lab.host("host"), lab.host("other"));
    lab.link(&host, "172.100.1.1/24", &other, "172.100.1.2/24");
    other.address(&other.device_to(&host), "172.100.1.3/24");
    let _names = Names::new(&host, "172.100.1.2 minion-2\n172.100.1.3 minion-2\n");
    for address in ["172.100.1.2:5001", "172.100.1.3:5001"] {
        let server = other.enter(|| UdpSocket::bind(address)).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let serving = thread::spawn(move || {
            let (_, client) = server.recv_from(&mut [0; 2048])?;
            server.send_to(br#"{"udp2": "ok"}"#, client)
        });
        let told = host.try_run([CONTROLLER, "legacy", "minion-2", "-o", "del", "-n", "udp2"]);
        assert_eq!(told.map_err(|failed| failed.to_string()), Ok("udp2: ok\n".to_owned()), "{address}");
        serving.join().unwrap().unwrap();
    }
}

#[test]
fn shows_the_reply_and_has_an_exit_code() {
    const ADD: &str = "-s 127.0.0.1 -n udp2 -t 10.0.0.1 -r 172.100.1.2 --timeout 0.3";
    let (_, output) = run(ADD, Some(r#"{"udp2": "ok; mtu 1500 is more than the path carries"}"#));
    assert!(output.status.success());
    assert!(text(&output.stdout).contains("mtu 1500"));

    let (_, output) = run(ADD, Some(r#"{"udp2": "remoteServer \"172.100.1.2\" is already that of udp3"}"#));
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("udp3"));

    let (_, output) = run(ADD, Some("{\"udp2\": \"\\u001b[2Jcleared\"}"));
    assert!(text(&output.stdout).contains("u{1b}[2Jcleared"), "{output:?}");

    let (_, output) = run(ADD, Some("nonsense"));
    assert_eq!(output.status.code(), Some(1));

    let (_, output) = run(ADD, None);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(
        said.contains("--legacy-allow") && said.contains("2015") && said.contains("--no-reply"),
        "{said}"
    );

    let (_, output) = run(&format!("{ADD} --no-reply"), None);
    assert!(output.status.success());

    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let output = client(&format!("{ADD} -p {closed}"));
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("nothing listens"), "{output:?}");
}

#[test]
fn wrong_use_is_exit_code_2_and_names_the_flag() {
    for (arguments, flag) in [
        ("-n udp2 -t 10.0.0.1 -r 172.100.1.2", "HOST"),
        ("-s 127.0.0.1 -t 10.0.0.1 -r 172.100.1.2", "--name"),
        ("-s 127.0.0.1 -n udp2 -r 172.100.1.2", "--tunnel"),
        ("-s 127.0.0.1 -n udp2 -t 10.0.0.1", "--remote"),
        ("-s 127.0.0.1 -n udp2 -t 10.0.0 -r 172.100.1.2", "--tunnel"),
        ("-s 127.0.0.1 -n udp2 -t 10.0.0.1 -r 172.100.1.2 -tm 255.0.255.0", "--mask"),
        ("-s 127.0.0.1 -n udp2 -t 10.0.0.1 -r 172.100.1.2 -m 0", "--mtu"),
        ("-s 127.0.0.1 -n more-than-15-bytes -t 10.0.0.1 -r 172.100.1.2", "--name"),
        ("-s 127.0.0.1 -o mul -n udp2", "--operation"),
        ("127.0.0.1 -s 127.0.0.2 -o del -n udp2", "--server"),
        ("-s 127.0.0.1 -o del -n udp2 -p 0", "--port"),
    ] {
        let output = client(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments}: {output:?}");
        assert!(text(&output.stderr).contains(flag), "{arguments}: {output:?}");
    }
}
