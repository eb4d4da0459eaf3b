//! Real controllers.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::{fs, iter};

use serde_json::Value;

use super::daemon::Daemon;
use super::{AGENT, Agent, Failed, Host, secrets};

/// The controller's binary, for `host.run([CONTROLLER, …])`.
pub const CONTROLLER: &str = env!("CARGO_BIN_EXE_controller");

/// Where the laboratories' underlays lie, in which the control channel may be plain text.
pub const UNDERLAYS: &str = "172.100.0.0/16,fd00:100::/32";

/// A running controller with a directory of its own for socket, state and log. Dropping it ends it.
pub struct Controller(Daemon);

impl Controller {
    /// Starts a controller on `host` with `arguments` more than socket, state directory and `--insecure`, and waits
    /// until its socket answers.
    pub fn start(host: &Host, arguments: &[&str]) -> Self {
        Self::start_by(host, &[&[CONTROLLER, "serve", "--insecure", UNDERLAYS], arguments].concat())
    }

    /// Starts a controller to which nothing is plain text, with `arguments` more than socket and state directory.
    pub fn start_secure(host: &Host, arguments: &[&str]) -> Self {
        Self::start_by(host, &[&[CONTROLLER, "serve"], arguments].concat())
    }

    /// A token, made with options as `["--name", "web-*"]`.
    pub fn token(&self, options: &[&str]) -> String {
        let made = self.run(&[&["token", "create"], options].concat());
        let token = made.unwrap_or_else(|failed| panic!("{failed}")).trim().to_owned();
        secrets::learn_token(&token);
        token
    }

    /// The same by a command that ends in a controller, to which socket and state directory are added.
    pub fn start_by(host: &Host, command: &[&str]) -> Self {
        let started = Daemon::try_start(host, "controller", command);
        Self(started.unwrap_or_else(|error| panic!("on {}: {error}", host.role())))
    }

    /// Runs a command of the operator's to its end, as `["status"]`, and returns what it printed.
    pub fn run(&self, command: &[&str]) -> Result<String, Failed> {
        let socket = self.socket();
        let socket = ["--socket", socket.to_str().unwrap()];
        let printed = self.host().try_run(iter::once(&CONTROLLER).chain(command).chain(&socket));
        if let Some(file) = command.iter().skip_while(|word| **word != "--file").nth(1) {
            secrets::learn_key(Path::new(file));
        }
        printed
    }

    /// What a command of the operator's answers, as JSON.
    pub fn json(&self, command: &[&str]) -> Value {
        let text = self.run(&[command, &["-o", "json"]].concat()).unwrap_or_else(|failed| panic!("{failed}"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{command:?} printed {text:?}: {error}"))
    }

    /// Applies a mesh file.
    pub fn apply(&self, mesh: &str) -> Result<String, Failed> {
        self.apply_with(mesh, &[])
    }

    /// Applies a mesh file, with options as `["--wait"]`.
    pub fn apply_with(&self, mesh: &str, options: &[&str]) -> Result<String, Failed> {
        let file = self.mesh_file(mesh);
        self.run(&[&["apply", "-f", file.to_str().unwrap()], options].concat())
    }

    /// A file with this content, which the next replaces.
    pub fn mesh_file(&self, mesh: &str) -> PathBuf {
        let file = self.socket().with_file_name("mesh.yaml");
        fs::write(&file, mesh).unwrap();
        file
    }

    /// What the store is at: whoever changes anything raises it.
    pub fn generation(&self) -> Value {
        self.json(&["status"])["generation"].clone()
    }

    /// The events so far of a kind, as `controller events` has them; an empty `node` is all.
    pub fn events(&self, kind: &str, node: &str) -> Vec<Value> {
        let text = self.run(&["events", "-o", "json"]).unwrap_or_else(|failed| panic!("{failed}"));
        let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events.filter(|event| event["kind"] == kind && (node.is_empty() || event["node"] == node)).collect()
    }

    /// A node as `controller nodes` has it; null where it does not know it.
    pub fn node(&self, name: &str) -> Value {
        let nodes = self.json(&["nodes"]);
        let found = nodes["nodes"].as_array().into_iter().flatten().find(|node| node["name"] == name);
        found.cloned().unwrap_or(Value::Null)
    }

    /// What `controller status` has to say of a node and item, as "tunnel prod.b: why"; an empty `node` is all.
    pub fn problems(&self, node: &str) -> Vec<String> {
        let status = self.json(&["status"]);
        let problems = status["problems"].as_array().into_iter().flatten();
        let of_node = problems.filter(|problem| node.is_empty() || problem["node"] == node);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        of_node
            .map(|problem| {
                let item = &problem["item"];
                let (kind, name) =
                    if item["device"].is_string() { ("device", "device") } else { ("tunnel", "tunnel") };
                format!("{kind} {}: {}", text(&item[name]), text(&problem["message"]))
            })
            .collect()
    }
}

impl Agent {
    /// Starts an agent that is the node `name` of the controller at `address`, with `arguments` more.
    pub fn join(host: &Host, address: &str, name: &str, arguments: &[&str]) -> Self {
        let joining = ["--controller", address, "--insecure", UNDERLAYS, "--name", name];
        Self::start(host, &[&joining, arguments].concat())
    }

    /// The same, for one that logs all that it does.
    pub fn join_verbose(host: &Host, address: &str, name: &str) -> Self {
        let command = ["env", "TUNMESH_LOG=tunmesh=debug", AGENT, "--controller", address];
        let command = [&command[..], &["--insecure", UNDERLAYS, "--name", name]].concat();
        let started = Daemon::try_start(host, "agent", &command);
        Self(started.unwrap_or_else(|error| panic!("on {}: {error}", host.role())))
    }
}

impl Deref for Controller {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.0
    }
}

impl DerefMut for Controller {
    fn deref_mut(&mut self) -> &mut Daemon {
        &mut self.0
    }
}
