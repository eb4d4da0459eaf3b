//! A database that others have locked, or put something wrong into.

#![allow(clippy::disallowed_methods, reason = "real locks are waited for in real time")]

use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rusqlite::Connection;
use tunmesh::proto::host::client;
use tunmesh::proto::v1;
use tunmesh::proto::v1::mesh_admin_client::MeshAdminClient;

use crate::lab::{Controller, Lab, Pinger, SOON, Segment, ping_ok, secrets, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn case_12_a_database_that_is_locked_for_three_seconds_costs_none_of_a_hundred_writes() {
    const LOCKED: Duration = Duration::from_secs(3);
    const WRITES: usize = 100;
    let lab = Lab::new();
    let host = lab.host("brain");
    let mut controller = Controller::start(&host, &[]);
    let database = controller.state_dir().join("store.db");
    let channel_to = client::connect(&controller.socket(), "controller", "controller serve").await.unwrap();
    let service = MeshAdminClient::new(channel_to);
    let (is_locked, locked) = channel();
    let holder = thread::spawn(move || {
        let connection = Connection::open(database).unwrap();
        connection.execute_batch("begin exclusive").unwrap();
        is_locked.send(()).unwrap();
        thread::sleep(LOCKED);
        connection.execute_batch("rollback").unwrap();
    });
    locked.recv().unwrap();
    let start = Instant::now();
    let writes = (0..WRITES).map(|n| {
        let mut service = service.clone();
        let request = v1::CreateTokenRequest { names: format!("n{n}"), ..Default::default() };
        async move { service.create_token(request).await }
    });
    for (n, answer) in join_all(writes).await.into_iter().enumerate() {
        let token = answer.unwrap_or_else(|status| panic!("write {n}: {status:?}")).into_inner();
        secrets::learn_token(&token.secret_token);
    }
    assert!(start.elapsed() > LOCKED / 2, "nothing was locked");
    holder.join().unwrap();
    // They are on disk.
    controller.kill9();
    controller.restart();
    let kept = controller.json(&["token", "list"]);
    assert_eq!(kept["tokens"].as_array().unwrap().len(), WRITES, "{kept}");
}

/// The socket is there before the store has been read.
#[test]
fn case_12_what_is_asked_while_the_database_is_locked_at_the_start_waits_and_is_true() {
    const LOCKED: Duration = Duration::from_secs(3);
    let lab = Lab::new();
    let host = lab.host("brain");
    let mut controller = Controller::start(&host, &[]);
    controller.token(&["--name", "web-*"]);
    let file = controller.state_dir().with_file_name("admin.pem");
    controller
        .run(&["admin", "create", "ann", "--role", "viewer", "--file", file.to_str().unwrap()])
        .unwrap();
    controller.apply("mesh: m\noverlay: 10.9.0.0/24\nnodes: {n1:}\n").unwrap();
    let lists =
        [(&["token", "list"], "web-*"), (&["admin", "list"], "ann"), (&["mesh", "list"], "10.9.0.0/24")];
    controller.terminate();
    let connection = Connection::open(controller.state_dir().join("store.db")).unwrap();
    connection.execute_batch("begin exclusive").unwrap();
    controller.restart();
    let (start, controller) = (Instant::now(), &controller);
    thread::scope(|scope| {
        let asked = lists.map(|(list, _)| scope.spawn(move || controller.run(list).unwrap()));
        thread::sleep(LOCKED);
        connection.execute_batch("rollback").unwrap();
        for (answer, (list, words)) in asked.into_iter().zip(lists) {
            let answer = answer.join().unwrap();
            assert!(answer.contains(words), "{list:?}: {answer}");
        }
    });
    assert!(start.elapsed() < LOCKED + SOON);
}

/// Pings between two hosts, by the addresses of the good and of the bad mesh.
fn flows(segment: &Segment) -> Vec<Pinger> {
    let start = |network: u8| {
        let address = format!("10.{network}.0.2");
        ping_ok(segment.host(1), &address);
        Pinger::start(segment.host(1), &address, Duration::from_millis(100))
    };
    [8, 9].map(start).into()
}

#[test]
fn case_12_a_bad_row_is_named_and_costs_no_other() {
    let mut segment = Segment::new(3);
    let _agents = segment.agents(3);
    let mesh = |name: &str, network: u8, mtu: u16| {
        format!("mesh: {name}\noverlay: 10.{network}.0.0/24\nmtu: {mtu}\nnodes: {{n1:, n2:, n3:}}\n")
    };
    for (name, network) in [("good", 8), ("bad", 9)] {
        segment.controller.apply_with(&mesh(name, network, 1400), &["--wait"]).unwrap();
    }
    let before = flows(&segment);
    segment.controller.terminate();
    let rows = ["/meshes/bad", "/nodes/n3", "/nodes/no name at all", "/tokens/x"];
    let database = Connection::open(segment.controller.state_dir().join("store.db")).unwrap();
    for row in rows {
        let plant = "insert into kv (key, value, revision) values (?1, x'7b22ff', 1)
                     on conflict (key) do update set value = excluded.value";
        database.execute(plant, [row]).unwrap();
    }
    drop(database);
    segment.controller.restart();
    segment.wait_live(3);
    let controller = &segment.controller;
    let told = controller.run(&["status"]).unwrap();
    let log = controller.log();
    for row in rows {
        assert!(log.contains(row), "{row} is not in the log: {log}");
        // What a node is, it says itself when it is back.
        assert!(told.contains(row) || row == "/nodes/n3", "{row} is not named: {told}");
    }
    // All others are delivered.
    controller.apply(&mesh("good", 8, 1300)).unwrap();
    controller.apply(&mesh("late", 7, 1400)).unwrap();
    for n in 1..=3 {
        let host = segment.host(n);
        wait_until(SOON, "the change is there", || {
            let mtu = |device: &str| {
                let link = host.try_run(["ip", "-o", "link", "show", "dev", device]).unwrap_or_default();
                link.split(" mtu ").nth(1).map(|rest| rest.split(' ').next().unwrap_or_default().to_owned())
            };
            mtu("good").as_deref() == Some("1300") && mtu("late").as_deref() == Some("1400")
        });
    }
    ping_ok(segment.host(1), "10.7.0.2");
    // What the bad one was is kept as it is until somebody says what it is to be.
    let words = "the store's /meshes/bad cannot be read";
    let remedy = "no node removes anything until mesh bad is applied again, or deleted";
    assert!(told.lines().any(|line| line.contains(words) && line.contains(remedy)), "{told}");
    for n in 1..=3 {
        assert_eq!(controller.node(&format!("n{n}"))["removalsHeld"], 3, "a device and two tunnels");
    }
    before.into_iter().for_each(|flow| flow.lost_nothing("beside a bad row"));
    let mended = flows(&segment);
    controller.apply_with(&mesh("bad", 9, 1400), &["--wait"]).unwrap();
    let status = controller.run(&["status"]).unwrap();
    assert!(!status.contains("/meshes/bad") && !status.contains("are kept"), "{status}");
    mended.into_iter().for_each(|flow| flow.lost_nothing("when it is mended"));
}

/// A bad row may be of what nobody wants any more.
#[test]
fn case_12_what_a_bad_row_was_goes_when_it_is_deleted() {
    let mut segment = Segment::new(2);
    let _agents = segment.agents(2);
    let file = "mesh: bad\noverlay: 10.9.0.0/24\nnodes: {n1:, n2:}\n";
    segment.controller.apply_with(file, &["--wait"]).unwrap();
    segment.controller.terminate();
    let database = Connection::open(segment.controller.state_dir().join("store.db")).unwrap();
    database.execute("update kv set value = x'7b' where key = '/meshes/bad'", []).unwrap();
    drop(database);
    segment.controller.restart();
    segment.wait_live(2);
    ping_ok(segment.host(1), "10.9.0.2");
    segment.controller.run(&["mesh", "delete", "bad", "--allow-removals"]).unwrap();
    for n in [1, 2] {
        wait_until(SOON, "its device is gone", || {
            segment.host(n).try_run(["ip", "link", "show", "dev", "bad"]).is_err()
        });
    }
    wait_until(SOON, "nothing is wrong any more", || {
        let status = segment.controller.run(&["status"]).unwrap();
        !status.contains("/meshes/bad") && !status.contains("are kept")
    });
}
