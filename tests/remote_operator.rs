//! Who steers from elsewhere, and what they may do.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

mod lab;

use std::path::{Path, PathBuf};
use std::time::Duration;

use lab::{
    Agent, CONTROLLER as PROGRAM, Controller, Failed, Host, Lab, OF_GRPC, SOON, grpcurl_from, grpcurl_path,
    methods, wait_live, wait_until,
};
use serde_json::json;

const SERVER: &str = "172.100.1.254:7443";
const MESH: &str = "
mesh: prod
overlay: 10.9.0.0/24
security: plain
nodes: {web-1: {endpoint: 172.100.1.1}, web-2: {endpoint: 172.100.1.2}}
";

/// A controller, and a host from which operators ask it.
struct Site {
    _lab: Lab,
    router: Host,
    desk: Host,
    controller: Controller,
}

impl Site {
    fn new() -> Self {
        let lab = Lab::new();
        let (router, desk) = (lab.host("router"), lab.host("desk"));
        lab.segment(&router, "172.100.1.254/24", &[(&desk, "172.100.1.9/24")]);
        let controller = Controller::start_secure(&router, &[]);
        Self { _lab: lab, router, desk, controller }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.controller.state_dir().with_file_name(name)
    }

    /// Makes somebody an operator, and returns their identity.
    fn operator(&self, name: &str, role: &str, options: &[&str]) -> PathBuf {
        let file = self.file(&format!("{name}.pem"));
        let create = ["admin", "create", name, "--role", role, "--file", file.to_str().unwrap()];
        self.controller.run(&[&create[..], options].concat()).unwrap();
        file
    }

    /// What a command answers whoever has this identity, asked from elsewhere.
    fn ask(&self, identity: &Path, command: &[&str]) -> Result<String, Failed> {
        let who = ["--server", SERVER, "--identity", identity.to_str().unwrap()];
        let printed = self.desk.try_run([PROGRAM].iter().chain(command).chain(&who));
        if let (["token", "create", ..], Ok(token)) = (command, &printed) {
            lab::secrets::learn_token(token.trim());
        }
        printed
    }

    /// What was said last of somebody who was refused.
    fn told(&self) -> String {
        let events = self.controller.events("access-refused", "");
        events.last().unwrap()["message"].as_str().unwrap().to_owned()
    }

    fn refusal(&self, identity: &Path, command: &[&str]) -> String {
        self.ask(identity, command).unwrap_err().to_string()
    }
}

#[test]
fn each_role_may_what_it_says_and_no_more() {
    let site = Site::new();
    let mesh = site.controller.mesh_file(MESH);
    let mesh = mesh.to_str().unwrap();
    let commands: [(&str, &[&str]); 9] = [
        ("viewer", &["status"]),
        ("viewer", &["nodes"]),
        ("viewer", &["events"]),
        ("viewer", &["mesh", "list"]),
        ("operator", &["apply", "-f", mesh]),
        ("operator", &["mesh", "delete", "prod"]),
        ("admin", &["token", "create"]),
        ("admin", &["token", "list"]),
        ("admin", &["admin", "list"]),
    ];
    let roles = ["viewer", "operator", "admin"];
    for (may, role) in roles.iter().enumerate() {
        let identity = site.operator(&format!("{role}-1"), role, &[]);
        for (needs, command) in &commands {
            let needed = roles.iter().position(|role| role == needs).unwrap();
            let before = site.controller.generation();
            let answer = site.ask(&identity, command);
            if may >= needed {
                assert!(answer.is_ok(), "{role}: {command:?}: {}", answer.unwrap_err());
                continue;
            }
            let refusal = answer.unwrap_err().to_string();
            let words = format!("{role}-1 has the role {role}, and this needs the role {needs}");
            assert!(refusal.contains(&words), "{command:?}: {refusal}");
            assert_eq!(site.controller.generation(), before, "{command:?} changed something");
            assert!(site.told().contains(&words), "{}", site.told());
        }
    }
    let list = site.controller.run(&["token", "list"]).unwrap();
    assert!(list.contains("admin-1"), "who made it: {list}");
}

#[test]
fn an_identity_is_worth_nothing_once_it_was_taken_or_has_expired_or_elsewhere() {
    let site = Site::new();
    let anna = site.operator("anna", "admin", &[]);
    assert!(site.ask(&anna, &["status"]).is_ok());
    assert!(site.controller.run(&["admin", "list"]).unwrap().contains("anna"));
    site.controller.run(&["admin", "remove", "anna"]).unwrap();
    assert!(site.refusal(&anna, &["status"]).contains("there is none with this key, or no more"));
    // One of the same name is another.
    let second = site.file("anna-2.pem");
    let create = ["admin", "create", "anna", "--role", "viewer", "--file", second.to_str().unwrap()];
    site.controller.run(&create).unwrap();
    assert!(site.refusal(&anna, &["status"]).contains("there is none with this key, or no more"));
    assert!(site.ask(&second, &["status"]).is_ok());

    let brief = site.operator("brief", "admin", &["--ttl", "2s"]);
    wait_until(SOON, "it expires", || site.ask(&brief, &["status"]).is_err());
    let generation = site.controller.generation();
    assert!(site.refusal(&brief, &["token", "create"]).contains("does not hold at this time"));
    assert!(site.told().contains("does not hold at this time"), "{}", site.told());
    assert_eq!(site.controller.generation(), generation);

    // Another controller's admin is nobody here, and does not take this one for theirs.
    let other = Controller::start_secure(&site.router, &["--listen", "0.0.0.0:7444"]);
    let foreign = site.file("foreign.pem");
    let create = ["admin", "create", "eve", "--role", "admin", "--file", foreign.to_str().unwrap()];
    other.run(&create).unwrap();
    assert!(site.refusal(&foreign, &["status"]).contains("is not the controller of"));
    // Also where it does not look.
    let method = "tunmesh.v1.MeshAdmin/CreateToken";
    let refusal = grpcurl_from(&site.desk, Some(&foreign), SERVER, method, &json!({})).unwrap_err();
    assert!(refusal.to_string().contains("the certificate is of another authority"), "{refusal}");
    assert!(site.told().contains("another authority"), "{}", site.told());
    assert_eq!(site.controller.generation(), generation);
}

#[test]
fn whoever_watches_from_elsewhere_goes_on_doing_so() {
    let site = Site::new();
    let anna = site.operator("anna", "viewer", &[]);
    let who = ["--server", SERVER, "--identity", anna.to_str().unwrap()];
    let (file, errors) = (site.file("events"), site.file("errors"));
    let mut watch = site
        .desk
        .command(PROGRAM)
        .args(["events", "-f", "-o", "json"])
        .args(who)
        .stdout(std::fs::File::create(&file).unwrap())
        .stderr(std::fs::File::create(&errors).unwrap())
        .spawn()
        .unwrap();
    // Twice as long as a connection stays on which nobody is.
    assert!(!lab::holds_within(Duration::from_secs(16), || watch.try_wait().unwrap().is_some()), "it ended");
    let mesh = site.controller.mesh_file(MESH);
    site.controller.run(&["apply", "-f", mesh.to_str().unwrap()]).unwrap();
    wait_until(SOON, "it is told", || std::fs::read_to_string(&file).unwrap().contains("mesh-applied"));
    lab::secrets::look(&std::fs::read_to_string(&file).unwrap(), "a watch");
    // As long as they may.
    site.controller.run(&["admin", "remove", "anna"]).unwrap();
    wait_until(SOON, "it ends with their rights", || watch.try_wait().unwrap().is_some());
    let told = std::fs::read_to_string(&errors).unwrap();
    assert!(told.contains("there is none with this key, or no more"), "{told}");
}

#[test]
fn an_identity_serves_grpcurl_as_it_is() {
    let site = Site::new();
    let anna = site.operator("anna", "viewer", &[]);
    let anna = anna.to_str().unwrap();
    let grpcurl = grpcurl_path();
    let who = ["-cacert", anna, "-cert", anna, "-key", anna, "-servername", "controller.tunmesh"];
    let call = [grpcurl.to_str().unwrap()];
    let listed = site.desk.run(call.iter().chain(&who).chain(&[SERVER, "list"]));
    assert!(listed.contains("tunmesh.v1.MeshAdmin"), "{listed}");
    let method = "tunmesh.v1.MeshAdmin/ListNodes";
    let nodes = site.desk.run(call.iter().chain(&who).chain(&[SERVER, method]));
    assert_eq!(nodes.split_whitespace().collect::<String>(), "{}");
}

/// What an agent's host serves to those who come from elsewhere, which is nothing without a certificate.
#[test]
fn an_agent_heeds_operators_from_elsewhere_and_nobody_else() {
    const AGENT: &str = "172.100.1.9:5002";
    let mut site = Site::new();
    let [viewer, operator] =
        ["viewer", "operator"].map(|role| site.operator(&format!("{role}-1"), role, &[]));
    let other = Controller::start_secure(&site.router, &["--listen", "0.0.0.0:7444"]);
    let foreign = site.file("foreign.pem");
    let create = ["admin", "create", "eve", "--role", "admin", "--file", foreign.to_str().unwrap()];
    other.run(&create).unwrap();
    let listening = ["--controller", SERVER, "--name", "web-1", "--grpc-listen", "0.0.0.0:5002"];
    let bare = Agent::start(&site.desk, &listening);
    let call = |identity, method: &str| grpcurl_from(&site.router, identity, AGENT, method, &json!({}));
    let list = "tunmesh.v1.TunnelService/ListTunnels";
    // It has nothing to show yet, and so nobody is asked for anything.
    assert!(call(Some(&operator), list).is_err());
    assert!(bare.log().contains("there is no certificate here yet"), "{}", bare.log());
    drop(bare);

    let token = site.controller.token(&["--name", "web-1"]);
    let mut agent = Agent::start(&site.desk, &[&listening[..], &["--token", &token]].concat());
    wait_live(&site.controller, &["web-1".to_owned()]);
    assert!(!agent.show("status").contains("--grpc-listen"), "nothing is weaker for it");
    let refusal = |identity, method: &str| call(identity, method).unwrap_err().to_string();
    let served = methods("TunnelService", "tunnel.proto");
    assert!(served.len() > 5, "{served:?}");
    for method in served.iter().map(String::as_str).chain(OF_GRPC).chain(["list"]) {
        for (identity, words) in
            [(None, "no certificate was shown"), (Some(&*foreign), "the certificate is of another authority")]
        {
            let refusal = refusal(identity, method);
            assert!(refusal.contains("Unauthenticated") && refusal.contains(words), "{method}: {refusal}");
        }
    }
    let own = agent.state_dir().join("identity.pem");
    assert!(refusal(Some(&own), list).contains("the agent of web-1 is no operator"));
    assert!(agent.log().contains("a call was refused"));

    // Who is believed is told by name which agent it is.
    let grpcurl = grpcurl_path();
    let as_named = |name: &str, identity: &Path, more: &[&str], method: &str| {
        let identity = identity.to_str().unwrap();
        let who = ["-cacert", identity, "-cert", identity, "-key", identity, "-servername", name];
        let command = [grpcurl.to_str().unwrap()];
        site.router.try_run(command.iter().chain(&who).chain(more).chain(&[AGENT, method]))
    };
    let name = "web-1.agent.tunmesh";
    let tunnel = r#"{"tunnel": {"name": "udp2", "addresses": ["10.0.1.1/30"], "remote": "172.100.1.7", "framing": "RAW"}}"#;
    let add = "tunmesh.v1.TunnelService/AddTunnel";
    assert!(as_named(name, &viewer, &[], "list").unwrap().contains("tunmesh.v1.TunnelService"));
    let refused = as_named(name, &viewer, &["-d", tunnel], add).unwrap_err().to_string();
    assert!(refused.contains("has the role viewer, and this needs the role operator"), "{refused}");
    assert_eq!(agent.tunnel_names(), Vec::<String>::new());
    as_named(name, &operator, &["-d", tunnel], add).unwrap();
    assert!(as_named(name, &viewer, &[], list).unwrap().contains("udp2"));
    let mistaken = as_named("web-2.agent.tunmesh", &viewer, &[], list).unwrap_err().to_string();
    assert!(mistaken.contains("web-1.agent.tunmesh, not web-2.agent.tunmesh"), "{mistaken}");

    // One that watches goes on doing so: twice as long as a connection stays on which nobody is.
    let watch = ["-max-time", "16", "-d", r#"{"interval": "1s"}"#];
    let watched = as_named(name, &viewer, &watch, "tunmesh.v1.TunnelService/WatchTunnels").unwrap_err();
    assert!(watched.to_string().contains("DeadlineExceeded"), "{watched}");
    // What the controller says of an operator counts, not what a certificate says; also while it is away.
    site.controller.run(&["admin", "remove", "operator-1"]).unwrap();
    let is_refused = || as_named(name, &operator, &[], list).is_err();
    wait_until(Duration::from_secs(2), "whose rights were taken is refused", is_refused);
    let refused = as_named(name, &operator, &[], list).unwrap_err().to_string();
    assert!(refused.contains("knows none with this key"), "{refused}");
    site.controller.terminate();
    agent.restart();
    assert!(as_named(name, &viewer, &[], list).is_ok() && is_refused());
    // What it has forgotten it shows no more.
    assert!(agent.show("leave").contains("forgotten"));
    assert!(as_named(name, &viewer, &[], list).is_err());
}

#[test]
fn an_identity_is_its_owners_alone_and_never_written_over() {
    use std::os::unix::fs::PermissionsExt;
    let site = Site::new();
    let anna = site.operator("anna", "viewer", &[]);
    let mode = std::fs::metadata(&anna).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let again = ["admin", "create", "bob", "--role", "viewer", "--file", anna.to_str().unwrap()];
    assert!(site.controller.run(&again).unwrap_err().to_string().contains("it is there already"));
    assert!(!site.controller.run(&["admin", "list"]).unwrap().contains("bob"));
    std::fs::set_permissions(&anna, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(site.refusal(&anna, &["status"]).contains("chmod 600"));
}

#[test]
fn the_root_changes_under_agents_and_operators_and_its_key_can_be_away() {
    let site = Site::new();
    let anna = site.operator("anna", "admin", &[]);
    let old = site.controller.token(&["--uses", "9"]);
    let join = |name: &str, token: &str| {
        Agent::start(&site.desk, &["--controller", SERVER, "--name", name, "--token", token])
    };
    let mut first = join("web-1", &old);
    wait_live(&site.controller, &["web-1".to_owned()]);
    let state = site.controller.state_dir();
    let key = site.file("root.pem");
    let away = |command: &str| {
        site.controller.host().try_run([
            PROGRAM,
            "ca",
            command,
            key.to_str().unwrap(),
            "--state-dir",
            state.to_str().unwrap(),
        ])
    };
    away("export").unwrap();
    assert!(site.refusal(&anna, &["ca", "rotate"]).contains("controller ca import"));
    assert!(site.ask(&anna, &["ca", "show"]).unwrap().contains("is elsewhere"));
    assert!(away("export").unwrap_err().to_string().contains("ca import"));
    away("import").unwrap();
    let rotated = site.ask(&anna, &["ca", "rotate"]).unwrap();
    let pins: Vec<&str> = rotated.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let pin = old.rsplit('.').next().unwrap();
    assert!(pins.contains(&pin) && pins.iter().filter(|pin| pin.len() == 43).count() == 2, "{rotated}");
    // Who knows only the last root is believed and believes, and so is whoever comes with an old token or a new one.
    assert!(site.ask(&anna, &["status"]).is_ok());
    first.restart();
    wait_live(&site.controller, &["web-1".to_owned()]);
    first.terminate();
    let second = join("web-2", &old);
    wait_live(&site.controller, &["web-2".to_owned()]);
    drop(second);
    let new = site.controller.token(&[]);
    assert!(!new.ends_with(pin));
    let _third = join("web-3", &new);
    wait_live(&site.controller, &["web-3".to_owned()]);
}

#[test]
fn every_change_is_told_with_who_made_it_and_nothing_else_is() {
    let site = Site::new();
    let anna = site.operator("anna", "admin", &[]);
    let viewer = site.operator("victor", "viewer", &[]);
    let mesh = site.controller.mesh_file(MESH);
    let mesh = mesh.to_str().unwrap();
    site.ask(&anna, &["apply", "-f", mesh]).unwrap();
    // Nothing changes by these.
    site.ask(&anna, &["apply", "-f", mesh]).unwrap();
    site.ask(&anna, &["plan", "-f", mesh]).unwrap();
    site.ask(&viewer, &["mesh", "delete", "prod"]).unwrap_err();
    site.ask(&anna, &["mesh", "delete", "other"]).unwrap_err();
    let token = site.controller.token(&["--name", "web-*"]);
    let agent = Agent::start(&site.desk, &["--controller", SERVER, "--name", "web-1", "--token", &token]);
    wait_live(&site.controller, &["web-1".to_owned()]);
    site.ask(&anna, &["node", "remove", "web-1"]).unwrap();
    drop(agent);
    site.controller.run(&["mesh", "delete", "prod"]).unwrap();
    assert!(site.refusal(&viewer, &["audit"]).contains("needs the role admin"));
    let id = token.split('.').nth(1).unwrap();
    site.controller.run(&["token", "revoke", id]).unwrap();
    // Whoever asks may give the request a name, but not every one.
    let remove = |request: &str, name: &str| {
        let grpcurl = grpcurl_path();
        let (socket, header) = (site.controller.socket(), format!("x-request-id: {request}"));
        let call =
            [grpcurl.to_str().unwrap(), "-plaintext", "-unix", "-authority", "localhost", "-H", &header];
        let name = json!({"name": name}).to_string();
        let what = ["-d", &name, socket.to_str().unwrap(), "tunmesh.v1.MeshAdmin/RemoveOperator"];
        site.router.run(call.iter().chain(&what));
    };
    site.operator("walter", "viewer", &[]);
    remove("r-7", "victor");
    remove(&"r".repeat(1_000), "walter");
    let rotated = site.ask(&anna, &["ca", "rotate"]).unwrap();
    let pin = rotated.split_whitespace().find(|word| word.len() == 43).unwrap();
    let bare = Agent::start(&site.desk, &["--controller", SERVER, "--name", "web-9"]);
    let code = || {
        let trouble = bare.session()["trouble"].as_str().unwrap_or_default().to_owned();
        Some(trouble.split("approve web-9 ").nth(1)?.split_whitespace().next()?.to_owned())
    };
    wait_until(SOON, "it asks", || code().is_some());
    site.controller.run(&["node", "approve", "web-9", &code().unwrap()]).unwrap();
    wait_live(&site.controller, &["web-9".to_owned()]);
    let audit = site.controller.json(&["audit"]);
    let records = audit["records"].as_array().unwrap();
    let told: Vec<String> = records
        .iter()
        .map(|record| {
            let text = |field: &str| record[field].as_str().unwrap().to_owned();
            let is_named = text("what") == "operator victor";
            assert!(
                if is_named { text("request") == "r-7" } else { text("request").len() == 16 },
                "{record}"
            );
            let revision = |field: &str| text(field).parse::<u64>().unwrap();
            assert!(revision("before") < revision("after"), "{record}");
            format!("{} {} {}", text("who"), text("method"), text("what"))
        })
        .collect();
    let expected = [
        "root CreateOperator admin anna".to_owned(),
        "root CreateOperator viewer victor".to_owned(),
        "anna Apply mesh prod".to_owned(),
        format!("root CreateToken token {id} for 1 nodes named web-*"),
        format!("host at 172.100.1.9 Enrol node web-1 with the token {id}"),
        "anna RemoveNode node web-1".to_owned(),
        "root DeleteMesh mesh prod".to_owned(),
        format!("root RevokeToken token {id}"),
        "root CreateOperator viewer walter".to_owned(),
        "root RemoveOperator operator victor".to_owned(),
        "root RemoveOperator operator walter".to_owned(),
        format!("anna RotateRoot root {pin}"),
        "root ApproveNode node web-9".to_owned(),
    ];
    assert_eq!(told, expected);
    assert!(!audit.to_string().contains(token.split('.').nth(2).unwrap()));
    // It goes on where it was, also after a restart.
    let mut site = site;
    site.controller.kill9();
    site.controller.restart();
    site.ask(&anna, &["apply", "-f", mesh]).unwrap();
    assert_eq!(site.controller.json(&["audit"])["records"].as_array().unwrap().len(), 14);
    // Who changes the store behind its back is seen.
    site.controller.terminate();
    let database = rusqlite::Connection::open(site.controller.state_dir().join("store.db")).unwrap();
    let changed = "update kv set value = cast(replace(cast(value as text), 'anna', 'eves') as blob) \
                   where key = '/audit/00000000000000000003'";
    assert_eq!(database.execute(changed, []).unwrap(), 1);
    drop(database);
    site.controller.restart();
    let told = site.controller.run(&["audit"]).unwrap_err().to_string();
    assert!(told.contains("record 3 is not as it was written"), "{told}");
}
