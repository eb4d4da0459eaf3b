//! The tools that an operator uses: grpcurl, and datagrams to the legacy control port.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, str};

use serde_json::{Value, json};
use tonic::Code;

use super::{Agent, Failed, Host, SOON, secrets};

/// Where an agent takes the JSON datagrams of 2015.
const LEGACY_PORT: u16 = 5001;

/// A call that was refused.
#[derive(Debug, Clone)]
pub struct GrpcError {
    /// The gRPC code.
    pub code: Code,
    /// What went wrong, in words.
    pub message: String,
    /// The rich error's parts as JSON; none: the error is plain.
    pub details: Vec<Value>,
}

/// Calls a method of an agent with the real grpcurl, as `grpcurl(&agent, "tunmesh.v1.TunnelService/GetStatus",
/// &json!({}))`.
pub fn grpcurl(agent: &Agent, method: &str, request: &Value) -> Result<Value, GrpcError> {
    grpcurl_at(&agent.socket(), method, request)
}

/// Calls a method at a Unix socket with the real grpcurl.
pub fn grpcurl_at(socket: &Path, method: &str, request: &Value) -> Result<Value, GrpcError> {
    let output = Command::new(grpcurl_path())
        .args(["-plaintext", "-unix", "-authority", "localhost", "-format-error", "-max-time", "20"])
        .args(["-d", &request.to_string()])
        .arg(socket)
        .arg(method)
        .output()
        .expect("grpcurl starts");
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    [stdout, stderr].iter().for_each(|printed| secrets::look(printed, method));
    if output.status.success() {
        return Ok(serde_json::from_str(stdout)
            .unwrap_or_else(|error| panic!("{method} {request}: grpcurl printed {stdout:?}: {error}")));
    }
    Err(error(stderr)
        .unwrap_or_else(|| panic!("{method} {request}: grpcurl ended with {}\n{stderr}", output.status)))
}

/// A 64-bit number, which JSON of protobuf has as a text; one that is not there is 0.
pub fn number(value: &Value) -> u64 {
    value.as_str().map_or(0, |text| text.parse().unwrap())
}

/// Reads google.rpc.Status as JSON, which `-format-error` prints. Errors of grpcurl itself have another form.
fn error(stderr: &str) -> Option<GrpcError> {
    let mut status: Value = serde_json::from_str(stderr).ok()?;
    let code = i32::try_from(status["code"].as_i64()?).ok()?;
    let message = status["message"].as_str().unwrap_or_default().to_owned();
    let details = status["details"].as_array_mut().map(std::mem::take).unwrap_or_default();
    Some(GrpcError { code: Code::from_i32(code), message, details })
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).expect("grpcurl prints text")
}

/// The real grpcurl; panics where it is missing.
pub fn grpcurl_path() -> PathBuf {
    let path = env::var_os("TUNMESH_GRPCURL").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/grpcurl/bin/grpcurl"),
        PathBuf::from,
    );
    assert!(path.exists(), "no grpcurl at {}: run scripts/test, which installs it", path.display());
    path
}

/// The methods of a service of ours, as its protocol in `proto/tunmesh/v1` has them.
pub fn methods(service: &str, file: &str) -> Vec<String> {
    let path = format!("{}/proto/tunmesh/v1/{file}", env!("CARGO_MANIFEST_DIR"));
    let source = fs::read_to_string(path).expect("a protocol");
    let after = source.split(&format!("service {service} {{")).nth(1).expect("a service of it");
    let lines = after.split("\n}").next().unwrap_or_default().lines();
    let names = lines.filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next());
    names.map(|name| format!("tunmesh.v1.{service}/{name}")).collect()
}

/// The methods of services that gRPC itself defines and ours are served beside.
pub const OF_GRPC: [&str; 4] = [
    "grpc.health.v1.Health/Check",
    "grpc.health.v1.Health/Watch",
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// Calls a method from a host with the real grpcurl, as whoever has the certificate and key in `identity`, and without
/// looking at what the server shows; the error has what grpcurl printed.
pub fn grpcurl_from(
    host: &Host,
    identity: Option<&Path>,
    target: &str,
    method: &str,
    request: &Value,
) -> Result<String, Failed> {
    let proto = concat!(env!("CARGO_MANIFEST_DIR"), "/proto");
    let (grpcurl, request) = (grpcurl_path(), request.to_string());
    let mut command = vec![grpcurl.to_str().unwrap(), "-insecure", "-max-time", "20"];
    if let Some(identity) = identity {
        let identity = identity.to_str().unwrap();
        command.extend(["-cert", identity, "-key", identity]);
    }
    let directory = tempfile::tempdir().expect("a directory for what grpcurl reads");
    if method.starts_with("tunmesh.") {
        command.extend(["-import-path", proto]);
        for file in ["tunmesh/v1/tunnel.proto", "tunmesh/v1/control.proto", "tunmesh/v1/admin.proto"] {
            command.extend(["-proto", file]);
        }
        command.extend(["-d", &request]);
    } else if let Some((service, method)) = method.split_once('/') {
        fs::write(directory.path().join("standard.proto"), protocol(service, method)).unwrap();
        command.extend(["-import-path", directory.path().to_str().unwrap(), "-proto", "standard.proto"]);
        command.extend(["-d", "{}"]);
    }
    command.extend([target, method]);
    host.try_run(command)
}

/// A protocol of one method, of which nothing but its name matters.
fn protocol(service: &str, method: &str) -> String {
    let (package, service) = service.rsplit_once('.').expect("a service is of a package");
    format!(
        "syntax = \"proto3\"; package {package}; message Nothing {{}} \
         service {service} {{ rpc {method}(Nothing) returns (stream Nothing); }}"
    )
}

/// Runs a command of one of our programs as a user outside all groups, with a socket that somebody has opened to all.
pub fn as_outsider(host: &Host, program: &str, command: &[&str], socket: &Path) -> Result<String, Failed> {
    fs::set_permissions(socket, fs::Permissions::from_mode(0o777)).unwrap();
    as_other(host, &["--clear-groups"], program, command, socket)
}

/// Runs one as a user who is nobody but a member of a group.
pub fn as_member(
    host: &Host,
    group: &str,
    program: &str,
    command: &[&str],
    socket: &Path,
) -> Result<String, Failed> {
    as_other(host, &["--groups", group], program, command, socket)
}

fn as_other(
    host: &Host,
    groups: &[&str],
    program: &str,
    command: &[&str],
    socket: &Path,
) -> Result<String, Failed> {
    let directory = socket.parent().unwrap();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).unwrap();
    // Where it was built may be closed to others. What this process had open to write a process of another test might have, too,
    // and then it could not be run.
    let copy = directory.join("program");
    host.run(["cp", program, copy.to_str().unwrap()]);
    let user = ["setpriv", "--reuid", "65534", "--regid", "65534"];
    let arguments = ["--socket", socket.to_str().unwrap()];
    host.try_run(user.iter().chain(groups).chain(&[copy.to_str().unwrap()]).chain(command).chain(&arguments))
}

/// Sends a datagram to the legacy control port from the host itself; the reply, if one comes soon.
pub fn legacy_send(host: &Host, datagram: &[u8]) -> Option<Value> {
    let mut buffer = vec![0; 1 << 16];
    let length = host.enter(|| {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port of the host");
        socket.set_read_timeout(Some(SOON)).expect("a timeout");
        socket.connect((Ipv4Addr::LOCALHOST, LEGACY_PORT)).expect("the host has loopback");
        socket.send(datagram).and_then(|_| socket.recv(&mut buffer)).ok()
    })?;
    let reply = &buffer[..length];
    Some(serde_json::from_slice(reply).unwrap_or_else(|e| panic!("{}: {e}", reply.escape_ascii())))
}

/// Adds a tunnel over the legacy port as the client of 2015 does, and returns the reply; panics where none comes.
pub fn legacy_add(host: &Host, name: &str, tunnel_ip: &str, remote: &str, mtu: u16) -> Value {
    let datagram = json!({
        "op": "add",
        "tunnel": [{
            "name": name,
            "tunnelIP": tunnel_ip,
            "netmask": "255.255.255.252",
            "mtu": mtu,
            "remoteServer": remote,
        }],
    });
    legacy_send(host, datagram.to_string().as_bytes())
        .unwrap_or_else(|| panic!("no reply on {} to {datagram}", host.role()))
}
