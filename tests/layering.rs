//! The dependency rule of `lib.rs`, held against the source files.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

use std::fs;
use std::path::{Path, PathBuf};

/// Files and folders whose code takes time as an argument and returns values.
const PURE: [&str; 5] = ["proto", "agent/reconcile.rs", "agent/state.rs", "agent/target.rs", "agent/packet"];
/// Those of them that see the generated protobuf code.
const PROTOBUF: [&str; 2] = ["proto/mod.rs", "proto/convert.rs"];
/// Where unsafe code may stand.
const UNSAFE: [&str; 2] = ["agent/os/", "agent/packet/checksum.rs"];

/// What a pure file must not name.
const EFFECTS: [&str; 21] = [
    "tokio",
    "tun",
    "socket2",
    "libc",
    "rustix",
    "rtnetlink",
    "futures_util",
    "rand",
    "std::fs",
    "fs",
    "std::env",
    "std::process",
    "std::thread",
    "thread",
    "UdpSocket",
    "TcpStream",
    "TcpListener",
    "Instant::now",
    "SystemTime::now",
    "File",
    "agent::os",
];
/// What only the files that know protobuf may name.
const WIRE: [&str; 4] = ["tonic", "prost", "pbjson", "pbjson_types"];

/// The paths of a Rust source: runs of identifiers joined by `::`, with comments, texts and test modules left out.
fn paths(source: &str) -> Vec<String> {
    let mut paths = Vec::new();
    let mut path = String::new();
    let code = code_of(source);
    let mut characters = code.chars().peekable();
    while let Some(c) = characters.next() {
        if c.is_alphanumeric() || c == '_' {
            path.push(c);
        } else if c == ':' && characters.peek() == Some(&':') {
            characters.next();
            path.push_str("::");
        } else if !path.is_empty() {
            paths.push(std::mem::take(&mut path));
        }
    }
    paths.push(path);
    paths
}

/// The code up to its test module, without comments and texts.
fn code_of(source: &str) -> String {
    let mut rest = source.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let mut code = String::new();
    while let Some(c) = rest.chars().next() {
        if rest.starts_with("//") {
            rest = rest.find('\n').map_or("", |end| &rest[end..]);
        } else if let Some(behind) = ["'\"'", "b'\"'"].iter().find_map(|quote| rest.strip_prefix(quote)) {
            rest = behind;
        } else if let Some(text) = rest.strip_prefix('"') {
            let mut escaped = false;
            let end = text.find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            rest = end.map_or("", |end| &text[end + 1..]);
        } else {
            code.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    code
}

/// Whether a path names `forbidden`: as its beginning, or anywhere behind `::`.
fn names(path: &str, forbidden: &str) -> bool {
    path.match_indices(forbidden).any(|(at, _)| {
        let starts = at == 0 || path[..at].ends_with("::");
        let rest = &path[at + forbidden.len()..];
        starts && (rest.is_empty() || rest.starts_with("::"))
    })
}

/// What a file has that its place forbids.
fn violations(file: &str, source: &str) -> Vec<String> {
    let paths = paths(source);
    let mut found = Vec::new();
    let mut forbid = |what: &str, why: &str| {
        if let Some(path) = paths.iter().find(|path| names(path, what)) {
            found.push(format!("{file}: {path} ({why})"));
        }
    };
    let is_pure = PURE
        .iter()
        .any(|pure| file == *pure || file.starts_with(&format!("{}/", pure.trim_end_matches(".rs"))));
    if is_pure {
        EFFECTS.iter().for_each(|effect| forbid(effect, "a pure file"));
        if !PROTOBUF.contains(&file) {
            WIRE.iter().for_each(|wire| forbid(wire, "only proto/mod.rs and proto/convert.rs know protobuf"));
        }
    }
    if file.starts_with("agent/") {
        forbid("controller", "agent and controller never import each other");
    }
    if file.starts_with("controller/") {
        forbid("agent", "agent and controller never import each other");
    }
    if file.starts_with("proto/") {
        forbid("crate::agent", "proto knows neither side");
        forbid("crate::controller", "proto knows neither side");
    }
    if file.ends_with("/main.rs") {
        forbid("mod", "a module of a main is compiled twice");
    }
    if !UNSAFE.iter().any(|place| file.starts_with(place)) {
        forbid("unsafe", "unsafe code stands in agent/os");
    }
    found
}

fn sources(root: &Path) -> Vec<PathBuf> {
    if root.is_file() {
        return vec![root.to_owned()];
    }
    let entries = fs::read_dir(root).unwrap_or_else(|error| panic!("{}: {error}", root.display()));
    let mut files: Vec<PathBuf> = entries.flat_map(|entry| sources(&entry.unwrap().path())).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "rs"));
    files
}

fn is_test(file: &str) -> bool {
    file.ends_with("/tests.rs") || file.contains("/tests/") || file.ends_with("/sample.rs")
}

#[test]
fn every_file_keeps_to_its_place() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    for root in PURE {
        assert!(!sources(&top.join(root)).is_empty(), "no files in {root}");
    }
    let mut found = Vec::new();
    for root in ["proto", "agent", "controller"] {
        for path in sources(&top.join(root)) {
            let file = path.strip_prefix(top).unwrap().to_str().unwrap();
            if !is_test(file) {
                found.extend(violations(file, &fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn planted_violations_are_found() {
    for (file, source) in [
        ("agent/state.rs", "use tokio::time::sleep;"),
        ("agent/state.rs", "fn f() { let now = std::time::Instant::now(); }"),
        ("agent/state.rs", "fn f() { let now = Instant::now(); }"),
        ("agent/state/parts.rs", "use std::{fs, io};"),
        ("agent/target.rs", "use std::net::{IpAddr, UdpSocket};"),
        ("agent/packet/icmp.rs", "use crate::agent::os::clock;"),
        ("agent/reconcile.rs", "use libc::EPERM;"),
        ("proto/model.rs", "use prost::Message;"),
        ("proto/convert.rs", "use tokio::sync::mpsc;"),
        ("proto/model.rs", "use crate::agent::state::AgentState;"),
        ("agent/runtime.rs", "use crate::controller::cli::Cli;"),
        ("controller/cli/legacy.rs", "use crate::agent::cli::Cli;"),
        ("agent/main.rs", "mod cli;"),
        ("agent/runtime.rs", "fn f() { unsafe { g() } }"),
    ] {
        assert!(!violations(file, source).is_empty(), "{source} in {file} was not found");
    }
    for (file, source) in [
        ("agent/state.rs", "// tokio::time::sleep\nuse std::time::Instant;"),
        ("agent/state.rs", "fn f() -> &'static str { \"tokio::spawn \\\" \\\n libc::x\" }"),
        ("agent/state.rs", "#[cfg(test)]\nmod tests { use std::fs; }"),
        ("agent/runtime.rs", "use tokio::sync::mpsc; #[allow(unsafe_code)] fn f() {}"),
        ("agent/os/tun.rs", "fn f() { unsafe { g() } }"),
        ("proto/convert.rs", "use super::v1; fn f() -> pbjson_types::Timestamp { g() }"),
    ] {
        assert_eq!(violations(file, source), Vec::<String>::new(), "{source} in {file}");
    }
}
