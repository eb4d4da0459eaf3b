//! The operator's commands: the real binary against a real controller.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

mod lab;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use futures_util::future::join_all;
use lab::{Agent, CONTROLLER, Controller, Failed, Host, Lab, SOON, grpcurl_at, wait_until};
use serde_json::{Value, json};
use tonic::Code;
use tunmesh::controller::mesh::NODES;
use tunmesh::proto::host::client;
use tunmesh::proto::v1;
use tunmesh::proto::v1::mesh_admin_client::MeshAdminClient;

/// A host with a controller, alone.
fn controller(lab: &Lab) -> Controller {
    Controller::start(&lab.host("ctl"), &[])
}

/// A mesh of the nodes n1 to `count`.
fn mesh(count: usize) -> String {
    let nodes: String =
        (1..=count).map(|n| format!("  n{n}: {{endpoint: 172.100.1.{n}, address: 10.9.0.{n}}}\n")).collect();
    format!("mesh: prod\noverlay: 10.9.0.0/24\nsecurity: plain\nnodes:\n{nodes}")
}

/// A command that ends with `code`.
fn ends_with(code: i32, controller: &Controller, command: &[&str]) -> Failed {
    match controller.run(command) {
        Ok(printed) => panic!("{command:?} was done: {printed}"),
        Err(failed) => {
            assert_eq!(failed.code, Some(code), "{failed}");
            failed
        }
    }
}

/// `plan` of a mesh in a file; what it prints and whether there are changes.
fn plan(controller: &Controller, mesh: &str, options: &[&str]) -> (String, bool) {
    let file = controller.mesh_file(mesh);
    match controller.run(&[&["plan", "-f", file.to_str().unwrap()], options].concat()) {
        Ok(printed) => (printed, false),
        Err(Failed { code: Some(3), stdout, .. }) => (stdout, true),
        Err(failed) => panic!("{failed}"),
    }
}

/// The hash at the end of a plan.
fn hash(plan: &str) -> String {
    plan.trim_end().rsplit(' ').next().unwrap().to_owned()
}

#[test]
fn plan_and_apply_tell_what_changes_and_whether_anything_does() {
    let lab = Lab::new();
    let controller = controller(&lab);
    let (printed, changes) = plan(&controller, &mesh(2), &[]);
    assert!(changes);
    for line in
        ["n1\n", "  + device prod: 10.9.0.1/24\n", "\nwarning: n1 has never connected", "\nweakened: "]
    {
        assert!(printed.contains(line), "{printed}");
    }
    assert!(printed.contains("\n4 to add, 0 to change, 0 to remove on 2 nodes; plan "), "{printed}");
    // A plan changes nothing.
    assert_eq!(controller.json(&["mesh", "list"]), json!({}));

    let applied = controller.apply_with(&mesh(2), &["--plan", &hash(&printed)]).unwrap();
    assert!(applied.contains("\n4 added, 0 changed, 0 removed on 2 nodes; generation 1."), "{applied}");
    let (printed, changes) = plan(&controller, &mesh(2), &[]);
    assert!(!changes);
    assert!(printed.contains("nothing to change"), "{printed}");

    let moved = mesh(2).replace("172.100.1.2", "172.100.1.9");
    let (printed, _) = plan(&controller, &moved, &[]);
    assert!(printed.starts_with("mesh prod: nodes.n2.endpoint: 172.100.1.2 -> 172.100.1.9\n"), "{printed}");
    let change = "  ~ tunnel prod.n2: to 172.100.1.2:5000";
    assert!(printed.contains(change) && printed.contains("-> to 172.100.1.9:5000"), "{printed}");
    // A change of the file that nobody has to do anything for is one.
    let labelled = mesh(2) + "members: [{labels: {role: web}}]\n";
    let (printed, changes) = plan(&controller, &labelled, &[]);
    assert!(changes && printed.contains("mesh prod: members: none -> "), "{printed}");
    assert!(printed.contains("nothing to change on any node"), "{printed}");
    let deleted = controller.run(&["mesh", "delete", "prod"]).unwrap();
    assert!(deleted.contains("0 added, 0 changed, 4 removed on 2 nodes"), "{deleted}");
    let unknown = ends_with(1, &controller, &["mesh", "delete", "prod"]);
    assert!(unknown.stderr.contains("name \"prod\" is no mesh"), "{unknown}");
}

#[test]
fn faults_of_a_file_are_lines_with_their_place() {
    let lab = Lab::new();
    let controller = controller(&lab);
    let head = "mesh: prod\noverlay: 10.9.0.0/24\nsecurity: plain\n";
    for (content, faults) in [
        (format!("{head}nodes:\n  n1: {{endpoint: x/y}}\n"), vec![":5:18: nodes.n1.endpoint \"x/y\" "]),
        (
            format!("{head}nodes:\n  n1: {{address: 10.8.0.1}}\n  n2: {{routes: [here]}}\n"),
            vec![":5:17: nodes.n1.address \"10.8.0.1\" ", ":6:17: nodes.n2.routes[0] \"here\" "],
        ),
        (format!("{head}node: {{}}\n"), vec![":4:1: node is not known here; use "]),
        ("mesh: prod\nsecurity: plain\nnodes: {n1: {}}\n".to_owned(), vec![":1:7: overlay is missing; "]),
        (mesh(2).replace("plain", "none"), vec![":3:11: security \"none\" is no kind "]),
        (format!("{head}nodes:\n\tn1: {{}}\n"), vec![":5:"]),
        ("mesh: [\n".to_owned(), vec![":"]),
        (String::new(), vec![": the file is empty; "]),
        (
            "{\"mesh\": \"\\u001b[2J\", \"overlay\": \"10.9.0.0/24\", \"security\": \"plain\", \"nodes\": {\"n1\": {}}}"
                .to_owned(),
            vec![":1:10: mesh "],
        ),
    ] {
        let file = controller.mesh_file(&content);
        let file = file.to_str().unwrap();
        for command in ["plan", "apply"] {
            let failed = ends_with(1, &controller, &[command, "-f", file]);
            let lines: Vec<_> = failed.stderr.lines().collect();
            assert_eq!((lines.len(), failed.stdout.as_str()), (faults.len(), ""), "{failed}");
            for (line, fault) in lines.iter().zip(&faults) {
                assert!(line.starts_with(&format!("{file}{fault}")), "{line}");
                assert!(!line.contains('\u{1b}'), "{line:?}");
            }
        }
    }
    assert_eq!(controller.json(&["mesh", "list"]), json!({}));
}

/// However many faults there are, some are told and the others counted: they fit into what a client takes.
#[test]
fn of_many_faults_some_are_told() {
    let lab = Lab::new();
    let controller = controller(&lab);
    let nodes: String = (0..1_000).map(|n| format!("  n{n}: {{address: here}}\n")).collect();
    let file =
        controller.mesh_file(&format!("mesh: prod\noverlay: 10.0.0.0/16\nsecurity: plain\nnodes:\n{nodes}"));
    let failed = ends_with(1, &controller, &["plan", "-f", file.to_str().unwrap()]);
    let lines: Vec<_> = failed.stderr.lines().collect();
    let (last, told) = lines.split_last().unwrap();
    assert!(told.len() > 10 && told.iter().all(|line| line.contains(" \"here\" is no address")), "{failed}");
    assert_eq!(*last, format!("and {} more", 1_000 - told.len()));
}

#[test]
fn wrong_use_is_exit_code_2_and_what_cannot_be_done_is_1() {
    let lab = Lab::new();
    let controller = controller(&lab);
    for (command, words) in [
        (vec!["plan"], "--file"),
        (vec!["nodes", "-o", "xml"], "--output"),
        (vec!["apply", "-f", "x", "--wait", "5"], "as 90s, 5m, 1h or 7d"),
        (vec!["apply", "-f", "x", "--plan", "xyz"], "as 4-25e281cac04d"),
        (vec!["tunnels"], "<NODE>"),
        (vec!["serve", "--insecure", "nowhere"], "--insecure"),
        (vec!["admin", "create", "anna", "--role", "root"], "use viewer, operator or admin"),
        (vec!["nodes", "--server", "172.100.1.254"], "--identity"),
        (vec!["token", "create", "--name", "a b"], "with * for any characters"),
    ] {
        let failed = ends_with(2, &controller, &command);
        assert!(failed.stderr.contains(words), "{failed}");
    }
    for (command, words) in [
        (vec!["plan", "-f", "/no/such/file"], "/no/such/file cannot be read"),
        (vec!["tunnels", "n9"], "node \"n9\" is not known; `controller nodes` has their names"),
        (vec!["tunnels", "n 9"], "node \"n 9\" has the character ' '"),
        (vec!["mesh", "delete", "prod"], "`controller mesh list` has their names"),
    ] {
        let failed = ends_with(1, &controller, &command);
        assert!(failed.stderr.contains(words) && failed.stderr.lines().count() == 1, "{failed}");
    }
    // A plan that would be refused is none to apply.
    let covering = mesh(2).replace("10.9.0.", "172.100.1.");
    let file = controller.mesh_file(&covering);
    let planned = ends_with(1, &controller, &["plan", "-f", file.to_str().unwrap()]);
    assert!(planned.stdout.contains("ERROR: overlay 172.100.1.0/24 covers"), "{planned}");
    assert!(!planned.stdout.contains("; plan "), "{planned}");
    let refused = controller.apply(&covering).unwrap_err();
    assert!(refused.code == Some(1) && refused.stderr.contains("inside themselves"), "{refused}");

    let alone = lab.host("alone");
    let failed = alone.try_run([CONTROLLER, "status", "--socket", "/no/such/socket"]).unwrap_err();
    assert!(failed.code == Some(1) && failed.stderr.contains("no controller answers"), "{failed}");
}

#[test]
fn of_two_changes_at_once_one_is_done_and_the_other_hears_of_it() {
    let lab = Lab::new();
    let controller = controller(&lab);
    controller.apply(&mesh(3)).unwrap();
    let files = tempfile::tempdir().unwrap();
    let changes: Vec<(String, String)> = ["172.100.1.7", "172.100.1.8"]
        .iter()
        .map(|endpoint| {
            let content = mesh(3).replace("172.100.1.2", endpoint);
            let file = files.path().join(endpoint);
            std::fs::write(&file, &content).unwrap();
            (file.to_str().unwrap().to_owned(), hash(&plan(&controller, &content, &[]).0))
        })
        .collect();
    let results: Vec<Result<String, Failed>> = thread::scope(|scope| {
        let apply = |(file, hash)| controller.run(&["apply", "-f", file, "--plan", hash]);
        let threads: Vec<_> = changes.iter().map(|(f, h)| scope.spawn(move || apply((f, h)))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let won = results.iter().position(Result::is_ok).expect("one is done");
    let lost = results[1 - won].as_ref().expect_err("the other is refused");
    assert_eq!(lost.code, Some(1), "{lost}");
    assert!(lost.stderr.contains("look at a new plan"), "{lost}");
    assert!(lost.stderr.contains("changed meanwhile: ") && lost.stderr.contains("n2"), "{lost}");
    let meshes = controller.json(&["mesh", "list"]);
    assert_eq!(meshes["meshes"][0]["nodes"][1]["endpoint"], ["172.100.1.7", "172.100.1.8"][won]);
}

#[test]
fn many_removals_need_consent() {
    let lab = Lab::new();
    let controller = controller(&lab);
    controller.apply(&mesh(6)).unwrap();
    let file = controller.mesh_file(&mesh(2));
    let planned = ends_with(1, &controller, &["plan", "-f", file.to_str().unwrap()]);
    assert!(planned.stdout.contains("ERROR: n1, n2, n3, n4, n5, n6 would lose"), "{planned}");
    for refused in
        [controller.apply(&mesh(2)), controller.run(&["mesh", "delete", "prod"])].map(Result::unwrap_err)
    {
        assert_eq!(refused.code, Some(1), "{refused}");
        assert!(refused.stderr.contains("--allow-removals"), "{refused}");
    }
    assert_eq!(controller.json(&["mesh", "list"])["meshes"][0]["nodes"].as_array().unwrap().len(), 6);

    assert!(plan(&controller, &mesh(2), &["--allow-removals"]).1);
    controller.apply_with(&mesh(2), &["--allow-removals"]).unwrap();
    assert_eq!(controller.json(&["mesh", "list"])["meshes"][0]["nodes"].as_array().unwrap().len(), 2);
    controller.apply(&mesh(6)).unwrap();
    controller.run(&["mesh", "delete", "prod", "--allow-removals"]).unwrap();
    assert_eq!(controller.json(&["mesh", "list"]), json!({}));
}

#[test]
fn a_mesh_file_is_read_from_stdin_too() {
    let lab = Lab::new();
    let controller = controller(&lab);
    let apply = |content: &str| {
        let mut process = controller
            .host()
            .command(CONTROLLER)
            .args(["apply", "-f", "-", "--socket"])
            .arg(controller.socket())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        process.stdin.take().unwrap().write_all(content.as_bytes()).unwrap();
        process.wait_with_output().unwrap()
    };
    let done = apply(&mesh(2));
    assert!(done.status.success(), "{done:?}");
    assert_eq!(controller.json(&["mesh", "list"])["meshes"][0]["name"], "prod");
    let faulty = apply("mesh: prod\n");
    let stderr = String::from_utf8(faulty.stderr).unwrap();
    assert_eq!(faulty.status.code(), Some(1));
    assert!(stderr.lines().all(|line| line.starts_with("stdin:")), "{stderr}");
}

#[test]
fn every_answer_is_json_and_yaml_too() {
    let lab = Lab::new();
    let controller = controller(&lab);
    let file = controller.mesh_file(&mesh(2));
    let file = file.to_str().unwrap();
    let applied = controller.json(&["apply", "-f", file]);
    assert_eq!(applied["plan"]["nodes"][0]["operations"][0]["kind"], "ADD");
    for command in [
        vec!["plan", "-f", file],
        vec!["mesh", "list"],
        vec!["status"],
        vec!["nodes"],
        vec!["tunnels", "n1"],
        vec!["mesh", "delete", "prod"],
    ] {
        let yaml = controller.run(&[&command[..], &["-o", "yaml"]].concat());
        let yaml: Value = serde_saphyr::from_str(&yaml.unwrap()).unwrap();
        assert!(yaml.is_object(), "{command:?}: {yaml}");
        if command[0] != "mesh" {
            assert!(controller.json(&command).is_object(), "{command:?}");
        }
    }
    let events = controller.run(&["events", "-o", "json"]).unwrap();
    let kinds: Vec<Value> =
        events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["kind"].clone()).collect();
    assert_eq!(kinds, ["controller-started", "mesh-applied", "mesh-deleted"]);

    let services = grpcurl_at(&controller.socket(), "grpc.health.v1.Health/Check", &json!({})).unwrap();
    assert_eq!(services["status"], "SERVING");
    let apply = json!({"file": {"name": "m.yaml", "content": mesh(2)}, "plan": "xyz"});
    let error = grpcurl_at(&controller.socket(), "tunmesh.v1.MeshAdmin/Apply", &apply).unwrap_err();
    assert_eq!(error.code, tonic::Code::InvalidArgument);
    assert_eq!(error.details[0]["fieldViolations"][0]["field"], "plan");
    let faulty = json!({"file": {"name": "m.yaml", "content": "mesh: prod\nsecurity: plain"}});
    let error = grpcurl_at(&controller.socket(), "tunmesh.v1.MeshAdmin/Plan", &faulty).unwrap_err();
    assert_eq!(error.code, tonic::Code::InvalidArgument);
    assert_eq!(error.details[0]["fieldViolations"][0]["field"], "overlay");
}

/// A command that goes on, and its lines as they come.
struct Following {
    process: Child,
    lines: mpsc::Receiver<String>,
}

impl Following {
    fn start(controller: &Controller, command: &[&str]) -> Self {
        let mut process = controller
            .host()
            .command(CONTROLLER)
            .args(command)
            .arg("--socket")
            .arg(controller.socket())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let reader = BufReader::new(process.stdout.take().unwrap());
        thread::spawn(move || reader.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { process, lines }
    }

    fn wait_for(&self, words: &str) {
        let mut lines = std::iter::from_fn(|| self.lines.recv_timeout(SOON).ok());
        let found = lines.any(|line| {
            lab::secrets::look(&line, "a command that goes on");
            line.contains(words)
        });
        assert!(found, "no line with {words:?}");
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn events_are_followed_until_the_controller_ends() {
    let lab = Lab::new();
    let mut controller = controller(&lab);
    let mut events = Following::start(&controller, &["events", "-f"]);
    events.wait_for("controller-started");
    controller.apply(&mesh(2)).unwrap();
    events.wait_for("mesh-applied");
    controller.terminate();
    wait_until(SOON, "the command ends", || events.process.try_wait().unwrap().is_some());
    assert_eq!(events.process.wait().unwrap().code(), Some(1));
}

#[test]
fn an_agent_that_the_controller_does_not_hear_says_what_may_be_missing_there() {
    let lab = Lab::new();
    let controller = controller(&lab);
    let host = lab.host("elsewhere");
    lab.link(controller.host(), "172.101.1.9/24", &host, "172.101.1.1/24");
    let agent =
        Agent::start(&host, &["--controller", "172.101.1.9", "--insecure", "172.101.0.0/16", "--name", "n1"]);
    let words = "its --insecure may have no network with this host's address, 172.101.1.1";
    let mut attempts = BTreeSet::new();
    wait_until(Duration::from_secs(60), "it dials some times, and its status says why it fails", || {
        let session = agent.session();
        let trouble = session["trouble"].as_str().unwrap_or_default();
        if session["state"] == "WAITING" && trouble.contains(words) {
            attempts.insert(session["since"].to_string());
        }
        attempts.len() > 5
    });
    // How the kernel words it differs from time to time.
    let log = agent.log();
    assert_eq!(log.matches("not in step with the controller").count(), 1, "{log}");
}

#[test]
fn lists_go_on_after_a_name() {
    let lab = Lab::new();
    let controller = controller(&lab);
    controller.apply(&mesh(3)).unwrap();
    let names = |method: &str, after: &str, list: &str| -> Vec<String> {
        let method = format!("tunmesh.v1.MeshAdmin/{method}");
        let answer = grpcurl_at(&controller.socket(), &method, &json!({ "after": after })).unwrap();
        assert_eq!(answer["more"], Value::Null, "{answer}");
        let all = answer[list].as_array().into_iter().flatten();
        all.map(|one| one["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("ListNodes", "", "nodes"), ["n1", "n2", "n3"]);
    assert_eq!(names("ListNodes", "n1", "nodes"), ["n2", "n3"]);
    assert_eq!(names("ListNodes", "n10", "nodes"), ["n2", "n3"], "it need not be there");
    assert!(names("ListNodes", "n3", "nodes").is_empty());
    assert_eq!(names("ListMeshes", "mesh", "meshes"), ["prod"]);
    assert!(names("ListMeshes", "prod", "meshes").is_empty());
}

#[test]
fn what_cannot_be_meant_is_wrong_use_of_both_programs() {
    let agent = env!("CARGO_BIN_EXE_agent");
    let misnamed =
        ["legacy", "-s", "127.0.0.1", "-o", "add", "-n", "a b", "-t", "10.0.0.1", "-r", "172.100.1.2"];
    for (program, arguments, said) in [
        (env!("CARGO_BIN_EXE_controller"), &misnamed[..], "--name \"a b\" has the character"),
        (agent, &["--data-port", "5001"][..], "--data-port and --control-port are both 5001"),
        (agent, &["--controller", "172.100.1.1", "--token", "tm1.x"], "--token is no token"),
        (agent, &["--controller", "172.100.1.1", "--token-file", "/no/such"], "--token-file /no/such"),
    ] {
        let ended = Command::new(program).args(arguments).output().unwrap();
        let words = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(2), "{program}: {words}");
        assert!(words.starts_with("error: ") && words.contains(said), "{program}: {words}");
        assert!(words.contains("Usage: ") && words.contains("try '--help'"), "{program}: {words}");
    }
}

/// Hosts on one segment, 172.100.1.1 and so on, with a controller on its router.
fn segment(lab: &Lab, count: usize) -> (Controller, Vec<Host>) {
    let router = lab.host("router");
    let hosts: Vec<_> = (1..=count).map(|n| lab.host(&format!("n{n}"))).collect();
    let addresses: Vec<_> = (1..=count).map(|n| format!("172.100.1.{n}/24")).collect();
    let ends: Vec<_> = hosts.iter().zip(addresses.iter().map(String::as_str)).collect();
    lab.segment(&router, "172.100.1.254/24", &ends);
    (Controller::start(&router, &[]), hosts)
}

#[test]
fn apply_waits_for_the_nodes_and_names_who_lags_and_what_fails() {
    let lab = Lab::new();
    let (controller, hosts) = segment(&lab, 2);
    let mut agents: Vec<Agent> =
        hosts.iter().map(|host| Agent::join(host, "172.100.1.254:7443", host.role(), &[])).collect();
    let applied = controller.apply_with(&mesh(2), &["--wait"]).unwrap();
    assert!(applied.contains("4 added"), "{applied}");
    let nodes = controller.run(&["nodes"]).unwrap();
    assert!(nodes.contains("live") && nodes.contains("172.100.1.1"), "{nodes}");
    let tunnels = controller.run(&["tunnels", "n1"]).unwrap();
    assert!(tunnels.contains("prod.n2") && tunnels.contains("172.100.1.2:5000"), "{tunnels}");

    // Outside of what agents accept.
    let refused = mesh(2).replace("address: 10.9.0.2", "address: 10.9.0.2, routes: [203.0.113.0/24]");
    let failed = controller.apply_with(&refused, &["--wait"]).unwrap_err();
    assert_eq!(failed.code, Some(1), "{failed}");
    assert!(
        failed.stderr.contains("waiting for 2 nodes") && failed.stderr.contains("up to date: 2 of 2 nodes")
    );
    assert!(failed.stderr.contains("n1: tunnel prod.n2: "), "{failed}");
    let status = controller.run(&["status"]).unwrap();
    assert!(status.contains("n1: tunnel prod.n2: "), "{status}");

    agents[1].terminate();
    let failed = controller.apply_with(&mesh(3), &["--wait", "1s"]).unwrap_err();
    assert_eq!(failed.code, Some(1), "{failed}");
    assert!(failed.stderr.contains("1 s are over, up to date: 1 of 3 nodes"), "{failed}");
    assert!(failed.stderr.contains("controller: n2: it is not connected"), "{failed}");
    assert!(failed.stderr.contains("controller: n3: it has not connected"), "{failed}");
    assert!(controller.run(&["nodes"]).unwrap().contains("offline 0 s") || !agents[1].alive());
}

/// Clients of gRPC take 4 MiB unless they are told otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_of_the_largest_mesh_fits_into_a_usual_message() {
    let lab = Lab::new();
    let host = lab.host("controller");
    let controller = Controller::start(&host, &["--listen", "127.0.0.1:7443"]);
    let channel = client::connect(&controller.socket(), "controller", "serve").await.unwrap();
    let mut client = MeshAdminClient::new(channel);
    let nodes: String = (0..NODES)
        .map(|n| format!("  n{n:0>62}: {{endpoint: 172.20.{}.{}}}\n", n / 250, n % 250 + 1))
        .collect();
    let content = format!("mesh: prod\noverlay: 10.0.0.0/16\nsecurity: plain\nnodes:\n{nodes}");
    let file = Some(v1::MeshFile { name: "mesh.yaml".to_owned(), content: content.clone() });
    let request = v1::PlanRequest { file: file.clone(), allow_removals: false };
    let planned = client.plan(request).await.unwrap().into_inner();
    let all = u32::try_from(NODES * NODES).unwrap();
    assert_eq!(planned.count, Some(v1::OperationCount { add: all, change: 0, remove: 0 }));
    assert_eq!((planned.nodes.len(), planned.shared.len()), (NODES, NODES));
    let request = v1::ApplyRequest { file, plan: planned.hash.clone(), allow_removals: false };
    let applied = client.apply(request).await.unwrap().into_inner();
    assert_eq!(applied.plan.unwrap(), planned, "the same is said of what was done");

    let more = controller.mesh_file(&format!("{content}  more:\n"));
    let refused = ends_with(1, &controller, &["apply", "-f", more.to_str().unwrap()]);
    let fault = format!("mesh.yaml:{}:3: nodes \"more\" is one of {} nodes; ", NODES + 5, NODES + 1);
    assert!(refused.stderr.contains(&fault) && refused.stderr.contains("at most 2000"), "{refused}");

    let request = v1::DeleteMeshRequest { name: "prod".to_owned(), allow_removals: true };
    let deleted = client.delete_mesh(request).await.unwrap().into_inner().plan.unwrap();
    assert_eq!(deleted.count, Some(v1::OperationCount { add: 0, change: 0, remove: all }));
}

fn request_of_two(name: &str, position: usize, nodes: [&str; 2]) -> v1::ApplyRequest {
    let [one, other] = nodes;
    let content = format!(
        "mesh: {name}\noverlay: 10.{position}.0.0/24\nsecurity: plain\nnodes:\n  {one}: {{}}\n  {other}: {{}}\n"
    );
    let file = v1::MeshFile { name: name.to_owned(), content };
    v1::ApplyRequest { file: Some(file), plan: String::new(), allow_removals: false }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_meshes_that_exclude_each_other_one_is_applied() {
    const MESHES: usize = 8;
    let lab = Lab::new();
    let host = lab.host("controller");
    let controller = Controller::start(&host, &["--listen", "127.0.0.1:7443"]);
    let channel = client::connect(&controller.socket(), "controller", "serve").await.unwrap();
    let apply = async |request| MeshAdminClient::new(channel.clone()).apply(request).await;
    // Two nodes cannot be in two plain meshes together.
    let requests = (0..MESHES).map(|n| apply(request_of_two(&format!("m{n}"), n, ["a", "b"])));
    let (done, refused): (Vec<_>, Vec<_>) = join_all(requests).await.into_iter().partition(Result::is_ok);
    assert_eq!(done.len(), 1, "{done:?}");
    for status in refused.into_iter().map(Result::unwrap_err) {
        assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
        assert!(status.message().contains("a and b are both in mesh"), "{status:?}");
    }
    // Those that go together are all applied, whatever comes in between.
    let nodes: Vec<_> = (0..MESHES).map(|n| [format!("c{n}"), format!("d{n}")]).collect();
    let requests =
        (0..MESHES).map(|n| apply(request_of_two(&format!("n{n}"), 100 + n, [&nodes[n][0], &nodes[n][1]])));
    for answer in join_all(requests).await {
        answer.unwrap();
    }
    assert_eq!(controller.json(&["mesh", "list"])["meshes"].as_array().unwrap().len(), MESHES + 1);
}

/// The numbers of events after `after`, as far as there are some within `SOON`; with `follow` the first alone.
fn event_numbers(controller: &Controller, after: u64, follow: bool) -> Vec<u64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let channel = client::connect(&controller.socket(), "controller", "serve").await.unwrap();
        let request = v1::WatchEventsRequest { follow, after };
        let mut events = MeshAdminClient::new(channel).watch_events(request).await.unwrap().into_inner();
        let mut numbers = Vec::new();
        while let Some(event) =
            tokio::time::timeout(SOON, events.message()).await.expect("it does not hang").unwrap()
        {
            numbers.push(event.number);
            if follow {
                break;
            }
        }
        numbers
    })
}

#[test]
fn whoever_watches_events_over_a_restart_misses_none_that_there_are() {
    let lab = Lab::new();
    let mut controller = controller(&lab);
    for nodes in 1..=5 {
        controller.apply(&mesh(nodes)).unwrap();
    }
    let before = event_numbers(&controller, 0, false);
    assert_eq!(before.len(), 6, "the start and five meshes");
    let last = *before.last().unwrap();
    controller.restart();
    let after = event_numbers(&controller, last, false);
    assert_eq!(after.len(), 1, "the start");
    assert!(after[0] > last, "{after:?} after {before:?}");
    assert_eq!(event_numbers(&controller, last, true), after);
    // One of a time that was taken back with the store.
    assert_eq!(event_numbers(&controller, u64::MAX, true), after);
}
