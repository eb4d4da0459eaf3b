//! How hosts join, and who does not.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

mod lab;

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lab::{
    AGENT, Agent, CONTROLLER as PROGRAM, Capture, Controller, DIALLED, Lab, MESH, OF_GRPC, SOON, Site,
    as_member, as_outsider, code, grpcurl_from, methods, ping, ping_ok, wait_live, wait_trouble, wait_until,
};
use serde_json::json;
use tunmesh::proto::host::credential::{Facts, PrivateKey};
use tunmesh::proto::trust::{JoinToken, Principal};

#[test]
fn hosts_join_with_a_token_and_stay_joined() {
    let mut site = Site::new(3, &[]);
    let says = |controller: &Controller, host: &str| {
        let words = format!("a host joins with `agent --controller {host} --token TOKEN`");
        wait_until(SOON, &words, || controller.log().contains(&words));
    };
    // From there no other host is reached.
    says(&site.controller, "ADDRESS");
    says(&Controller::start_secure(&site.router, &["--listen", "172.100.1.254:7445"]), "172.100.1.254:7445");
    let mut agents = site.joined(3);
    site.controller.apply_with(MESH, &["--wait"]).unwrap();
    ping_ok(&site.hosts[0], "10.9.0.2");
    let identity = |agent: &Agent| fs::read(agent.state_dir().join("identity.pem")).unwrap();
    let before: Vec<_> = agents.iter().map(identity).collect();
    // Neither side needs the token again.
    for agent in &mut agents {
        agent.kill9();
    }
    site.controller.kill9();
    site.controller.restart();
    for agent in &mut agents {
        agent.restart();
    }
    site.wait_live(3);
    ping_ok(&site.hosts[0], "10.9.0.3");
    assert_eq!(agents.iter().map(identity).collect::<Vec<_>>(), before, "nobody has joined again");
}

#[test]
fn a_token_is_refused_in_words_where_it_does_not_hold() {
    let site = Site::new(1, &[]);
    let controller = &site.controller;
    let spent = controller.token(&["--uses", "1"]);
    let first = site.agent(1, "first", &["--token", &spent]);
    wait_live(controller, &["first".to_owned()]);
    drop(first);
    wait_until(SOON, "its session ends", || controller.node("first")["health"] != "LIVE");
    let revoked = controller.token(&[]);
    controller.run(&["token", "revoke", revoked.split('.').nth(1).unwrap()]).unwrap();
    let expired = controller.token(&["--ttl", "1s"]);
    let other = controller.token(&["--name", "db-*"]);
    let id = |token: &str| token.split('.').nth(1).unwrap().to_owned();
    let is_expired = || controller.run(&["token", "list"]).unwrap().contains("ago");
    wait_until(SOON, "it expires", is_expired);
    let (listed, generation) =
        (controller.run(&["token", "list", "-o", "json"]).unwrap(), site.controller.generation());
    for (token, words) in [
        (&spent, "have joined with it"),
        (&revoked, "it was revoked"),
        (&expired, "has expired"),
        (&other, "it is for nodes named db-*"),
    ] {
        let agent = site.agent(1, "web-1", &["--token", token]);
        wait_trouble(&agent, words);
        let events = controller.events("access-refused", "web-1");
        let told = events.iter().any(|event| event["message"].as_str().unwrap().contains(&id(token)));
        assert!(told, "{words}: {events:?}");
        assert!(!site.is_known("web-1"));
        assert_eq!(site.controller.generation(), generation, "{words}: something changed");
    }
    assert_eq!(controller.run(&["token", "list", "-o", "json"]).unwrap(), listed, "nothing was used up");
    // No part of a secret is told anywhere, or stored.
    lab::secrets::learn_keys(&controller.state_dir());
    let told = [controller.log(), controller.run(&["events", "-o", "json"]).unwrap()];
    told.iter().for_each(|text| lab::secrets::look(text, "the controller"));
    for name in ["store.db", "store.db-wal"] {
        let stored = fs::read(controller.state_dir().join(name)).unwrap();
        lab::secrets::look(&String::from_utf8_lossy(&stored), name);
        for token in [&spent, &revoked, &expired, &other] {
            let token: JoinToken = token.parse().unwrap();
            let secret = token.secret.as_bytes();
            assert!(!stored.windows(secret.len()).any(|bytes| bytes == secret), "{name} has a token");
        }
    }
}

/// A token says which controller it is for: another one is sent nothing of it.
#[test]
fn a_token_with_another_pin_is_shown_to_nobody() {
    let site = Site::new(1, &[]);
    let token = site.controller.token(&[]);
    let (rest, pin) = token.rsplit_once('.').unwrap();
    let other = if pin.starts_with('A') { 'B' } else { 'A' };
    let agent = site.agent(1, "web-1", &["--token", &format!("{rest}.{other}{}", &pin[1..])]);
    wait_trouble(&agent, "nothing was sent to it");
    let told = |event: &serde_json::Value| {
        event["message"].as_str().unwrap().contains("172.100.1.1: it does not believe this certificate")
    };
    let is_told = || site.controller.events("access-refused", "").iter().any(told);
    wait_until(SOON, "the controller tells that it is not believed", is_told);
    assert!(!site.is_known("web-1"));
    assert!(site.controller.run(&["token", "list"]).unwrap().contains("0 of 1"));
}

/// A host that has not heard the answer asks again.
#[test]
fn who_asks_again_to_join_is_the_same_node_and_uses_nothing_up() {
    let site = Site::new(1, &[]);
    let token: JoinToken = site.controller.token(&[]).parse().unwrap();
    let enrol = |key: &PrivateKey| {
        let request = json!({
            "node": "web-1",
            "request": STANDARD.encode(key.request().unwrap()),
            "token": {"id": token.id.as_str(), "secret": STANDARD.encode(token.secret.as_bytes())},
        });
        grpcurl_from(&site.hosts[0], None, DIALLED, "tunmesh.v1.Enrolment/Enrol", &request)
    };
    let key = PrivateKey::generate().unwrap();
    let principals: Vec<_> = (0..3)
        .map(|_| {
            let answer: serde_json::Value = serde_json::from_str(&enrol(&key).unwrap()).unwrap();
            let own = STANDARD.decode(answer["certificate"]["chain"][0].as_str().unwrap()).unwrap();
            let facts = Facts::of(&own.into()).unwrap();
            assert_eq!(facts.key, key.id());
            facts.principal.unwrap()
        })
        .collect();
    assert!(principals.iter().all(|one| *one == Principal::Agent("web-1".parse().unwrap())));
    assert!(site.controller.run(&["token", "list"]).unwrap().contains("1 of 1"));
    assert_eq!(site.controller.events("node-enrolled", "web-1").len(), 1);
    let refusal = enrol(&PrivateKey::generate().unwrap()).unwrap_err().to_string();
    assert!(refusal.contains("have joined with it"), "{refusal}");
}

#[test]
fn two_hosts_with_one_token_for_one_are_told_apart() {
    let site = Site::new(2, &[]);
    let token = site.controller.token(&[]);
    let agents = [1, 2].map(|n| site.agent(n, &format!("web-{n}"), &["--token", &token]));
    let live = |n: usize| site.controller.node(&format!("web-{n}"))["health"] == "LIVE";
    wait_until(SOON, "one joins", || live(1) || live(2));
    let (joined, other) = if live(1) { (0, 1) } else { (1, 0) };
    wait_trouble(&agents[other], "have joined with it");
    assert!(live(joined + 1) && !live(other + 1));
}

#[test]
fn a_host_without_a_token_waits_for_an_operator_who_types_its_code() {
    let site = Site::new(1, &[]);
    let agent = site.agent(1, "web-1", &[]);
    let code = code(&agent);
    let head = &code[..19];
    let waits = || site.controller.run(&["status"]).unwrap().contains(head);
    wait_until(SOON, "the controller shows the beginning of the code", waits);
    assert!(!site.controller.run(&["status"]).unwrap().contains(&code), "and no more");
    assert_eq!(site.controller.events("approval-wanted", "web-1").len(), 1);
    let other = code.replace(&code[..1], if code.starts_with('7') { "8" } else { "7" });
    for (code, words) in [(head, "not all of it"), (&other, "no host that asks to be it")] {
        let refusal = site.controller.run(&["node", "approve", "web-1", code]).unwrap_err().to_string();
        assert!(refusal.contains(words), "{refusal}");
    }
    site.controller.run(&["node", "approve", "web-1", &code, "--label", "role=web"]).unwrap();
    site.wait_live(1);
    assert_eq!(site.controller.node("web-1")["labels"]["role"], "web");
    assert!(agent.log().contains("has joined"));
}

/// A word that is wrong is as good as none: the agent does not take the controller for its own.
#[test]
fn a_host_whose_code_was_typed_wrong_at_its_end_does_not_join() {
    let site = Site::new(1, &[]);
    let agent = site.agent(1, "web-1", &[]);
    let code = code(&agent);
    let end = if code.ends_with('7') { '8' } else { '7' };
    let wrong = format!("{}{end}", &code[..code.len() - 1]);
    let wait = || site.controller.run(&["node", "approve", "web-1", &wrong]).is_ok();
    wait_until(SOON, "it is let in", wait);
    // It asks again within 8 s, is given a certificate, and does not take it.
    assert!(!lab::holds_within(Duration::from_secs(12), || site.is_known("web-1")));
    wait_trouble(&agent, "waits for approval");
    // The operator types it again.
    site.controller.run(&["node", "approve", "web-1", &code]).unwrap();
    site.wait_live(1);
}

#[test]
fn a_false_controller_gets_no_session_and_no_token() {
    let site = Site::new(2, &[]);
    // It would let everybody in.
    let everybody = ["--approve-any", "172.100.0.0/16"];
    let listen = ["--listen", "0.0.0.0:7444"];
    let false_one = Controller::start_secure(&site.router, &[&everybody[..], &listen].concat());
    let token = site.controller.token(&["--uses", "9"]);
    let to_false = ["--controller", "172.100.1.254:7444", "--name", "web-1"];
    let joining = Agent::start(&site.hosts[0], &[&to_false[..], &["--token", &token]].concat());
    wait_trouble(&joining, "nothing was sent to it");
    drop(joining);
    let told = false_one.run(&["events", "-o", "json"]).unwrap();
    assert!(told.contains("172.100.1.1: it does not believe this certificate"), "{told}");
    assert!(!told.contains(token.split('.').nth(1).unwrap()), "not even its name: {told}");
    assert_eq!(false_one.json(&["audit"])["records"], serde_json::Value::Null);
    // The bare agent asks it, and is not satisfied by a yes that nobody has given it the word for.
    let mut bare = Agent::start(&site.hosts[0], &to_false);
    let shown = code(&bare);
    assert_eq!(false_one.node("web-1")["lastHeard"], serde_json::Value::Null);
    bare.terminate();
    // Whoever types what it shows where they mean it to be lets nobody in: there it shows another one.
    let meant =
        Agent::start_copy(&site.hosts[0], &bare.state_dir(), &["--controller", DIALLED, "--name", "web-1"]);
    let own = code(&meant);
    assert!(own[..19] != shown[..19], "{own} {shown}");
    let approve = |code: &str| site.controller.run(&["node", "approve", "web-1", code]);
    let refusal = approve(&shown).unwrap_err().to_string();
    assert!(refusal.contains("no host that asks to be it shows this code"), "{refusal}");
    approve(&own).unwrap();
    wait_live(&site.controller, &["web-1".to_owned()]);
    drop(meant);
    // One that has joined does not take another for its own.
    let mut agent = site.agent(2, "web-2", &["--token", &token]);
    wait_live(&site.controller, &["web-2".to_owned()]);
    agent.terminate();
    let turned = ["--controller", "172.100.1.254:7444", "--name", "web-2"];
    let turned = Agent::start_copy(&site.hosts[1], &agent.state_dir(), &turned);
    wait_trouble(&turned, "not the controller that this agent has joined");
    assert_eq!(false_one.node("web-2"), serde_json::Value::Null);
    assert!(!false_one.log().contains(token.split('.').nth(2).unwrap()));
}

#[test]
fn where_any_host_may_join_and_any_controller_is_believed_nobody_is_asked() {
    let site = Site::new(1, &["--approve-any", "172.100.1.0/24"]);
    let agent = site.agent(1, "web-1", &["--approve-any", "172.100.1.0/24"]);
    site.wait_live(1);
    assert!(agent.show("status").contains("--approve-any"));
    assert!(site.controller.run(&["status"]).unwrap().contains("--approve-any"));
    // What the node says of itself counts here.
    let labelled = ["--approve-any", "172.100.1.0/24", "--label", "role=web"];
    drop(agent);
    let _agent = site.agent(1, "web-2", &labelled);
    wait_live(&site.controller, &["web-2".to_owned()]);
    assert_eq!(site.controller.node("web-2")["labels"]["role"], "web");
    let audit = site.controller.run(&["audit"]).unwrap();
    assert!(audit.contains("node web-1 by its network"), "{audit}");
}

#[test]
fn a_host_or_a_controller_elsewhere_is_asked_for_all_that() {
    let (here, elsewhere) = ("172.100.1.0/24", "172.100.9.0/24");
    for (controller, agent) in [(here, elsewhere), (elsewhere, here)] {
        let site = Site::new(1, &["--approve-any", controller]);
        let agent = site.agent(1, "web-1", &["--approve-any", agent]);
        wait_trouble(&agent, "waits for approval");
        assert!(!site.is_known("web-1"));
    }
}

#[test]
fn a_removed_node_is_off_its_peers_at_once_and_does_not_come_back() {
    let site = Site::new(4, &[]);
    let mut agents = site.joined(4);
    site.controller.apply_with(&MESH.replace("web-3: {}", "web-3: {}, web-4: {}"), &["--wait"]).unwrap();
    ping_ok(&site.hosts[0], "10.9.0.2");
    ping_ok(&site.hosts[3], "10.9.0.2");
    agents[2].kill9();
    wait_until(Duration::from_secs(30), "it is gone", || site.controller.node("web-3")["health"] != "LIVE");
    let told = site.controller.run(&["node", "remove", "web-2"]).unwrap();
    let gone = || [0, 3].iter().all(|n| !agents[*n].tunnel_names().contains(&"prod.web-2".to_owned()));
    wait_until(Duration::from_secs(2), "the tunnels to it are gone", gone);
    assert!(told.contains("web-3"), "those that drop it later are named: {told}");
    assert!(!told.contains("web-1") && !told.contains("web-4"), "and no others: {told}");
    assert!(!ping(&site.hosts[0], "10.9.0.2", &[]));
    wait_trouble(&agents[1], "was removed");
    agents[1].restart();
    wait_trouble(&agents[1], "was removed");
    assert_eq!(site.controller.events("node-removed", "web-2").len(), 1);
    agents[2].restart();
    wait_live(&site.controller, &["web-3".to_owned()]);
    wait_until(SOON, "the one that was away drops it", || {
        agents[2].tunnel_names() == ["prod.web-1", "prod.web-4"]
    });
    // It comes back as any other host does.
    let token = site.controller.token(&["--name", "web-2"]);
    agents[1].terminate();
    let _again = site.agent(2, "web-2", &["--token", &token]);
    wait_live(&site.controller, &["web-2".to_owned()]);
}

#[test]
fn an_agent_is_no_other_node_than_its_certificate_says() {
    let site = Site::new(2, &[]);
    let mut agents = site.joined(2);
    agents[1].terminate();
    let claiming = ["--controller", DIALLED, "--name", "web-1"];
    let claimed = Agent::start_copy(&site.hosts[1], &agents[1].state_dir(), &claiming);
    wait_trouble(&claimed, "certificate is that of web-2");
    let events = site.controller.events("access-refused", "web-2");
    assert!(events[0]["message"].as_str().unwrap().contains("node web-1"), "{events:?}");
    assert_eq!(site.controller.node("web-1")["endpoint"], "172.100.1.1");
}

#[test]
fn plain_text_is_nothing_to_a_controller_that_was_not_told_of_it() {
    let site = Site::new(1, &[]);
    let agent = site.agent(1, "web-1", &["--insecure", "172.100.0.0/16"]);
    wait_trouble(&agent, "closed the connection before it answered");
    assert!(!site.is_known("web-1"));
    assert!(site.controller.log().contains("it speaks plain text"), "{}", site.controller.log());
}

#[test]
fn where_plain_text_may_be_nobody_joins_in_it_and_whoever_has_joined_speaks_none() {
    let site = Site::new(2, &[]);
    let mut joined = site.agent(1, "web-1", &["--token", &site.controller.token(&[])]);
    wait_live(&site.controller, &["web-1".to_owned()]);
    joined.terminate();
    // This controller would not understand it.
    let may = ["--controller", DIALLED, "--name", "web-1", "--insecure", "172.100.0.0/16"];
    let again = Agent::start_copy(&site.hosts[0], &joined.state_dir(), &may);
    wait_live(&site.controller, &["web-1".to_owned()]);
    drop(again);

    let plain = Controller::start(&site.router, &["--listen", "172.100.1.254:7444"]);
    for told in [plain.log(), plain.run(&["status"]).unwrap()] {
        assert!(told.contains("--insecure") && told.contains("172.100.0.0/16"), "{told}");
    }
    let request = STANDARD.encode(PrivateKey::generate().unwrap().request().unwrap());
    let request = json!({"node": "web-2", "request": request}).to_string();
    let proto = concat!(env!("CARGO_MANIFEST_DIR"), "/proto");
    let grpcurl = lab::grpcurl_path();
    let call = [
        grpcurl.to_str().unwrap(),
        "-plaintext",
        "-import-path",
        proto,
        "-proto",
        "tunmesh/v1/control.proto",
    ];
    let what = ["-d", &request, "172.100.1.254:7444", "tunmesh.v1.Enrolment/Enrol"];
    let refusal = site.hosts[1].try_run(call.iter().chain(&what)).unwrap_err().to_string();
    assert!(refusal.contains("nobody joins in plain text"), "{refusal}");
    assert_eq!(plain.json(&["audit"])["records"], serde_json::Value::Null);
}

#[test]
fn a_host_that_is_told_the_pin_asks_no_other_controller() {
    let site = Site::new(1, &[]);
    let shown = site.controller.json(&["ca", "show"]);
    let pin = shown["roots"][0]["pin"].as_str().unwrap();
    let other = format!("{}{}", if pin.starts_with('A') { 'B' } else { 'A' }, &pin[1..]);
    let agent = site.agent(1, "web-1", &["--pin", &other]);
    wait_trouble(&agent, "nothing was sent to it");
    assert!(site.controller.events("approval-wanted", "").is_empty());
    drop(agent);
    let agent = site.agent(1, "web-1", &["--pin", pin]);
    site.controller.run(&["node", "approve", "web-1", &code(&agent)]).unwrap();
    site.wait_live(1);
}

#[test]
fn whoever_shows_no_certificate_is_refused_by_every_method() {
    let site = Site::new(1, &[]);
    let served = [("AgentControl", "control.proto"), ("MeshAdmin", "admin.proto")];
    let served: Vec<_> = served.iter().flat_map(|(service, file)| methods(service, file)).collect();
    assert!(served.len() > 14, "{served:?}");
    let all = |commands: &[&[&str]]| -> Vec<_> {
        commands.iter().map(|command| site.controller.run(command).unwrap()).collect()
    };
    let state: [&[&str]; 5] =
        [&["nodes"], &["ca", "show"], &["token", "list"], &["admin", "list"], &["mesh", "list"]];
    let (before, generation) = (all(&state), site.controller.generation());
    for method in served.iter().map(String::as_str).chain(OF_GRPC).chain(["list"]) {
        let refusal =
            grpcurl_from(&site.hosts[0], None, DIALLED, method, &json!({})).unwrap_err().to_string();
        assert!(refusal.contains("no certificate was shown"), "{method}: {refusal}");
    }
    let events = site.controller.events("access-refused", "");
    for method in &served {
        let method = method.rsplit('/').next().unwrap();
        let is_of = |event: &serde_json::Value| {
            let told = event["message"].as_str().unwrap();
            told.contains("172.100.1.1") && told.contains(method)
        };
        assert!(events.iter().any(is_of), "{method}: {events:?}");
    }
    assert_eq!((all(&state), site.controller.generation()), (before, generation), "nothing changed");
}

#[test]
fn the_socket_is_for_root_and_the_group_whatever_its_mode() {
    let site = Site::new(0, &[]);
    let socket = site.controller.socket();
    let generation = site.controller.generation();
    for (command, method) in [
        (&["status"][..], "GetControllerStatus"),
        (&["token", "create"], "CreateToken"),
        (&["ca", "rotate"], "RotateRoot"),
    ] {
        let refusal = as_outsider(&site.router, PROGRAM, command, &socket).unwrap_err().to_string();
        assert!(refusal.contains("is neither root nor a member of the group tunmesh"), "{refusal}");
        let events = site.controller.events("access-refused", "");
        let told = events.last().unwrap()["message"].as_str().unwrap();
        assert!(told.contains(&format!("{method} on the socket")), "{told}");
    }
    assert_eq!(site.controller.generation(), generation);
}

#[test]
fn a_member_of_the_group_steers_the_controller() {
    const GROUP: &str = "4242";
    let directory = tempfile::tempdir().unwrap();
    let groups = directory.path().join("group");
    fs::write(&groups, format!("root:x:0:\ntunmesh:x:{GROUP}:\n")).unwrap();
    // The file is this process's own, and whose program it becomes.
    let script = r#"mount --bind "$0" /etc/group && exec "$@""#;
    let site = Site::start_by(
        0,
        &["unshare", "--mount", "sh", "-c", script, groups.to_str().unwrap(), PROGRAM, "serve"],
    );
    let socket = site.controller.socket();
    let create = ["token", "create"];
    let token = as_member(&site.router, GROUP, PROGRAM, &create, &socket).unwrap();
    lab::secrets::learn_token(token.trim());
    assert!(as_member(&site.router, "4243", PROGRAM, &create, &socket).is_err());
    assert_eq!(site.controller.json(&["audit"])["records"].as_array().unwrap().len(), 1);
}

#[test]
fn what_crosses_the_control_channel_cannot_be_read() {
    let site = Site::new(2, &[]);
    let capture = Capture::start(&site.router, "tcp port 7443");
    let token = site.controller.token(&["--uses", "2"]);
    let agents = site.joined_with(&token, 2);
    site.controller.apply_with(MESH, &["--wait"]).unwrap();
    ping_ok(&site.hosts[0], "10.9.0.2");
    drop(agents);
    let captured = capture.stop();
    let has = |bytes: &[u8]| captured.has(bytes);
    // The one name in a handshake, which shows that something was captured.
    assert!(has(b"controller.tunmesh"));
    for text in ["web-1", "web-2", "prod", "10.9.0", "172.100.1.1", "tunmesh issuer"] {
        assert!(!has(text.as_bytes()), "{text} can be read");
    }
    let token: JoinToken = token.parse().unwrap();
    assert!(!has(token.secret.as_bytes()) && !has(token.id.as_str().as_bytes()), "the token can be read");
}

#[test]
fn an_agent_that_has_left_is_a_stranger_until_it_joins_again() {
    let site = Site::new(1, &[]);
    let mut agents = site.joined(1);
    assert!(agents[0].show("leave").contains("forgotten"));
    agents[0].terminate();
    let state = agents[0].state_dir();
    let again = ["--controller", DIALLED, "--name", "web-1"];
    let bare = Agent::start_copy(&site.hosts[0], &state, &again);
    wait_trouble(&bare, "waits for approval");
    let status = site.controller.run(&["status"]).unwrap();
    assert!(status.contains("a host of that name has joined, with another key"), "{status}");
    drop(bare);
    let token = site.controller.token(&["--name", "web-1"]);
    let with = [&again[..], &["--token", &token]].concat();
    let taken = Agent::start_copy(&site.hosts[0], &state, &with);
    wait_trouble(&taken, "it has joined already, with another key");
    site.controller.run(&["node", "remove", "web-1"]).unwrap();
    wait_until(SOON, "it has joined again", || site.controller.node("web-1")["health"] == "LIVE");
}

#[test]
fn another_process_of_its_user_reads_no_memory_of_ours() {
    // Who reads has what who is read has: otherwise it would be refused for that.
    const USER: [&str; 10] = [
        "setpriv",
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
        "--inh-caps",
        "+net_admin",
        "--ambient-caps",
        "+net_admin",
    ];
    let lab = Lab::new();
    let router = lab.host("router");
    // Where it was built, where its directory is and what makes devices may all be closed to this user.
    let script = format!(
        r#"d=$(dirname "$2") && chmod 777 "$d" && cp "$0" "$d/program" && mknod -m 666 "$d/tun" c 10 200 &&
           mount --bind "$d/tun" /dev/net/tun && exec {} "$d/program" $MORE "$@""#,
        USER.join(" ")
    );
    let by = |more| ["env", more, "unshare", "--mount", "sh", "-c", &script];
    let controller = Controller::start_by(&router, &[&by("MORE=serve")[..], &[PROGRAM]].concat());
    let agent = Agent::start_by(&router, &[&by("MORE=--no-legacy")[..], &[AGENT]].concat());
    let start = |command: &[&str]| {
        let mut process = router.command(USER[0]);
        process.args(&USER[1..]).args(command).stdin(Stdio::piped()).spawn().unwrap()
    };
    // The kernel asks the same for it as for the memory, and as before it writes a core dump.
    let reads =
        |pid: u32| router.try_run(USER.iter().chain(&["cat", &format!("/proc/{pid}/environ")])).is_ok();
    let mut other = start(&["sleep", "60"]);
    wait_until(SOON, "that of a process that keeps nothing private can be read", || reads(other.id()));
    assert!(!reads(controller.pid()) && !reads(agent.pid()));
    // An operator's command may have their key. This one waits for a mesh file.
    let program = controller.socket().with_file_name("program");
    let mut command = start(&[program.to_str().unwrap(), "apply", "-f", "-"]);
    let name = || fs::read_to_string(format!("/proc/{}/comm", command.id())).unwrap();
    wait_until(SOON, "it is private", || name().trim() == "program" && !reads(command.id()));
    assert!(command.try_wait().unwrap().is_none(), "it is still there");
    for process in [&mut other, &mut command] {
        process.kill().unwrap();
        process.wait().unwrap();
    }
}
