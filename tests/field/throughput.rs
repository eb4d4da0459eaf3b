//! Streams that come as they were sent, also where the kernel does not take many packets as one.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::{
    AGENT, Agent, Faults, Flow, Host, Probed, Relayed, SOON, Way, add_probed, number, refusing_merged_to,
    transfer, tunnel_status, wait_until,
};

/// What the kernel of a host counts under "TcpExt:" of /proc/net/netstat, in sum of these.
fn tcp(host: &Host, names: &[&str]) -> u64 {
    let text = host.run(["cat", "/proc/net/netstat"]);
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (keys, values) = (lines.next().unwrap(), lines.next().unwrap());
    let values: Vec<_> = keys.split(' ').zip(values.split(' ')).collect();
    let value = |name: &&str| values.iter().find(|(key, _)| key == name).unwrap().1.parse::<u64>().unwrap();
    names.iter().map(value).sum()
}

/// A stream over a way that takes 20 ms in each direction.
fn keeps_a_stream_in_order(framing: &str, time: Duration) {
    let faults = Faults { delay: Duration::from_millis(20), ..Faults::default() };
    let Relayed { hosts: [a, b], agents, relay, .. } = &Relayed::new(framing, faults, 18);
    // What is under way fits every buffer: nothing is lost for want of room, so that whatever is out of order was put so.
    for host in [a, b] {
        host.sysctl("net.ipv4.tcp_rmem", "4096 131072 1048576");
        host.sysctl("net.ipv4.tcp_wmem", "4096 131072 1048576");
    }
    let flow = Flow::start(a, b, "10.0.1.2");
    thread::sleep(time);
    let received = flow.received();
    drop(flow);
    // The way carries a window each 40 ms.
    let least = 1_000_000 * time.as_secs();
    assert!(received > least, "{framing}: {received} bytes in {time:?}");
    let out_of_order = tcp(b, &["TCPOFOQueue"]) + tcp(a, &["TCPSACKReorder", "TCPTSReorder"]);
    assert_eq!(out_of_order, 0, "{framing}");
    for (from, to) in [(0, 1), (1, 0)] {
        let passed = &relay.passed[from];
        let counts = || {
            let (sent, came) = (tunnel_status(&agents[from], "link"), tunnel_status(&agents[to], "link"));
            let drops: Vec<_> =
                [&sent["sent"], &came["received"]].iter().map(|way| way["drops"].clone()).collect();
            assert_eq!(drops, [Value::Null, Value::Null], "{framing}");
            let [came_in, went_out] = [&passed.came, &passed.went].map(|count| count.load(Ordering::Relaxed));
            [number(&sent["sent"]["packets"]), came_in, went_out, number(&came["received"]["packets"])]
        };
        wait_until(SOON, "what was sent has come", || {
            let counts = counts();
            counts.iter().all(|count| *count == counts[0])
        });
    }
}

fn keeps_streams_in_order(time: Duration) {
    thread::scope(|scope| {
        for framing in ["RAW", "WIREGUARD"] {
            scope.spawn(move || keeps_a_stream_in_order(framing, time));
        }
    });
}

#[test]
fn case_18_a_stream_over_a_slow_way_keeps_its_order_and_is_counted() {
    keeps_streams_in_order(Duration::from_secs(10));
}

#[test]
#[ignore = "takes a minute"]
fn case_18_a_minute_of_a_stream_over_a_slow_way_keeps_its_order_and_is_counted() {
    keeps_streams_in_order(Duration::from_secs(60));
}

/// It seems to take packets that are many at first, and then answers EINVAL.
#[test]
fn case_18_a_kernel_that_comes_to_refuse_packets_that_are_many_gets_them_one_by_one() {
    for is_encrypted in [false, true] {
        let way = Way::new();
        let directory = tempfile::tempdir().unwrap();
        let kernel = refusing_merged_to("link", directory.path());
        let command = [&kernel.each_ref().map(String::as_str)[..], &[AGENT]].concat();
        let agents = [Agent::start(way.host(0), &[]), Agent::start_by(way.host(1), &command)];
        for n in [0, 1] {
            let key = if is_encrypted { agents[1 - n].public_key() } else { String::new() };
            add_probed(&agents[n], "link", &format!("10.9.0.{}/24", n + 1), Way::ENDS[1 - n], &key);
        }
        let pair = Probed { way, agents };
        pair.wait(["UP", "UP"]);
        let tso = |n: usize| pair.status(n)["offloads"][0].clone();
        assert_eq!((&tso(1)["name"], &tso(1)["inUse"]), (&json!("tun-tso"), &json!(true)));
        transfer(pair.way.host(0), pair.way.host(1), "10.9.0.2", 20_000_000);
        let status = pair.status(1);
        let lost = number(&status["received"]["drops"]["malformed"]);
        assert!(lost > 0, "nothing was refused: {status}");
        assert_eq!((&tso(1)["inUse"], &tso(0)["inUse"]), (&Value::Null, &json!(true)), "{status}");
        assert!(tso(1)["reason"].is_string(), "{status}");
        // Once it is known nothing is lost any more, and the other way goes on as it was.
        transfer(pair.way.host(0), pair.way.host(1), "10.9.0.2", 20_000_000);
        transfer(pair.way.host(1), pair.way.host(0), "10.9.0.1", 20_000_000);
        let status = pair.status(1);
        assert_eq!(number(&status["received"]["drops"]["malformed"]), lost, "{status}");
    }
}
