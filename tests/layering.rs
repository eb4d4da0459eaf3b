//! The dependency rule of `lib.rs`, held against the source files.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

use std::fs;
use std::path::{Path, PathBuf};

/// Modules whose code takes time as an argument and returns values.
const PURE: [&str; 18] = [
    "proto",
    "agent/link",
    "agent/packet",
    "agent/reconcile",
    "agent/session",
    "agent/state",
    "agent/target",
    "agent/wireguard/message",
    "controller/alloc",
    "controller/audit",
    "controller/diagnosis",
    "controller/mesh",
    "controller/plan",
    "controller/registry",
    "controller/state",
    "controller/store/transaction",
    "controller/stored",
    "controller/trust",
];
/// The module that, beside `proto` itself, sees the generated protobuf code.
const CONVERT: &str = "proto/convert";
/// The part of `proto` that acts, and that no pure module may name.
const HOST: &str = "proto/host";
/// Where unsafe code may stand.
const UNSAFE: [&str; 2] = ["agent/os/", "agent/packet/checksum.rs"];

/// Crates that a pure file must not name. Those of a family count with it: `tokio` is also `tokio_util`.
const EFFECTS: [&str; 14] = [
    "tokio",
    "tun",
    "socket2",
    "libc",
    "nix",
    "rustix",
    "rtnetlink",
    "futures",
    "hyper",
    "tower",
    "tempfile",
    "rand",
    "rcgen",
    "rustls",
];
/// Crates that only the files that know protobuf may name.
const WIRE: [&str; 3] = ["tonic", "prost", "pbjson"];
/// Modules of std that do something.
const STD: [&str; 5] = ["fs", "env", "process", "thread", "os"];
/// Types that do something, wherever they come from.
const TYPES: [&str; 6] =
    ["UdpSocket", "TcpStream", "TcpListener", "UnixStream", "UnixListener", "UnixDatagram"];

/// A path of a Rust source.
#[derive(Debug, PartialEq, Eq)]
enum Name {
    /// In this package, from its root on.
    Inside(Vec<String>),
    /// In another crate, or what only the file itself can say: a local name.
    Outside(Vec<String>),
    /// The name of a method or field.
    Member(String),
    /// A single word: a keyword, a local name or an imported one.
    Word(String),
}

/// The tokens of a Rust source that matter here: words, `::`, and single marks. Comments, texts and characters are
/// left out.
fn tokens(source: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = raw_text(rest) {
            length
        } else if c == '"' {
            text(rest, '"')
        } else if c == '\'' && is_character(rest) {
            text(rest, '\'')
        } else if c.is_alphanumeric() || c == '_' {
            let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            tokens.push(&rest[..length]);
            length
        } else if rest.starts_with("::") {
            tokens.push("::");
            2
        } else {
            if !c.is_whitespace() {
                tokens.push(&rest[..c.len_utf8()]);
            }
            c.len_utf8()
        };
        rest = &rest[length..];
    }
    tokens
}

/// The length of a comment that may have others inside.
fn block_comment(source: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < source.len() {
        if source[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if source[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += source[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

/// The length of `r"…"`, `br#"…"#` and their like, where `source` begins with one.
fn raw_text(source: &str) -> Option<usize> {
    let opening = source.strip_prefix(['b', 'c']).unwrap_or(source).strip_prefix('r')?;
    let marks = opening.len() - opening.trim_start_matches('#').len();
    let body = opening[marks..].strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(marks));
    let end = body.find(&close).map_or(body.len(), |at| at + close.len());
    Some(source.len() - body.len() + end)
}

/// The length of a text or character that ends at the next `quote` without a backslash before it.
fn text(source: &str, quote: char) -> usize {
    let mut escaped = false;
    let end = source[1..].find(|c| {
        let ends = c == quote && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    });
    end.map_or(source.len(), |end| end + 2)
}

/// Whether an apostrophe opens a character, not a lifetime.
fn is_character(source: &str) -> bool {
    let mut following = source.chars().skip(1);
    following.next() == Some('\\') || following.next() == Some('\'')
}

/// `code` without the items under `#[cfg(test)]`, and the names of the modules among them that are files.
fn without_tests<'a>(code: &[&'a str]) -> (Vec<&'a str>, Vec<&'a str>) {
    const TEST: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let (mut kept, mut files) = (Vec::new(), Vec::new());
    let mut rest = code;
    while let Some(&token) = rest.first() {
        let Some(item) = rest.strip_prefix(&TEST) else {
            kept.push(token);
            rest = &rest[1..];
            continue;
        };
        if let ["mod", name, ";", ..] = item {
            files.push(*name);
        }
        rest = &item[item_length(item)..];
    }
    (kept, files)
}

/// The number of tokens of an item: to its `;`, or to the end of its braces.
fn item_length(item: &[&str]) -> usize {
    let mut depth = 0_usize;
    for (at, &token) in item.iter().enumerate() {
        match token {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => {
                depth = depth.saturating_sub(1);
                if depth == 0 && token == "}" {
                    return at + 1;
                }
            }
            ";" if depth == 0 => return at + 1,
            _ => {}
        }
    }
    item.len()
}

/// The paths that `code` names; those of `use` are written out.
fn names(file: &str, code: &[&str]) -> Vec<Name> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(&token) = code.get(at) {
        at += 1;
        // `impl Trait + use<'a>` imports nothing.
        if token == "use" && code.get(at) != Some(&"<") {
            let mut paths = Vec::new();
            tree(code, &mut at, &[], &mut paths);
            found.extend(paths.iter().map(|path| resolve(file, path)));
        } else if is_word(token) {
            let after = at.checked_sub(2).map(|before| code[before]);
            let mut path = vec![token.to_owned()];
            while code.get(at) == Some(&"::") && code.get(at + 1).is_some_and(|next| is_word(next)) {
                path.push(code[at + 1].to_owned());
                at += 2;
            }
            found.push(match (after, path.len()) {
                (Some("."), _) => Name::Member(token.to_owned()),
                (_, 1) => Name::Word(token.to_owned()),
                _ => resolve(file, &path),
            });
        }
    }
    found
}

/// Reads a tree of `use` from `at` on; `at` is then behind it.
fn tree(code: &[&str], at: &mut usize, prefix: &[String], paths: &mut Vec<Vec<String>>) {
    let mut path = prefix.to_vec();
    let mut prefix_itself = false;
    while let Some(&token) = code.get(*at) {
        if token == "}" {
            break;
        }
        *at += 1;
        match token {
            "{" => {
                while code.get(*at).is_some_and(|&token| token != "}") {
                    tree(code, at, &path, paths);
                }
                *at += 1;
                return;
            }
            "," | ";" => break,
            "as" => *at += 1,
            "self" if !path.is_empty() => prefix_itself = true,
            word if is_word(word) => path.push(word.to_owned()),
            _ => {}
        }
    }
    if path != prefix || prefix_itself {
        paths.push(path);
    }
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Where a path of `file` leads.
fn resolve(file: &str, path: &[String]) -> Name {
    let mut module: Vec<String> = module(file).split('/').map(str::to_owned).collect();
    let mut rest = path;
    match path.first().map(String::as_str) {
        Some("crate" | "tunmesh") => {
            module.clear();
            rest = &path[1..];
        }
        Some("self") => rest = &path[1..],
        Some("super") => {
            while rest.first().is_some_and(|segment| segment == "super") {
                module.pop();
                rest = &rest[1..];
            }
        }
        _ => return Name::Outside(path.to_vec()),
    }
    module.extend_from_slice(rest);
    Name::Inside(module)
}

/// The module that a file is, as a path: `agent/os` for `agent/os/mod.rs`.
fn module(file: &str) -> &str {
    let stem = file.strip_suffix(".rs").unwrap_or(file);
    stem.strip_suffix("/mod").unwrap_or(stem)
}

/// Whether `module` is `root` or in it.
fn is_in(module: &str, root: &str) -> bool {
    module.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn is_pure(module: &str) -> bool {
    PURE.iter().any(|root| is_in(module, root)) && !is_in(module, HOST)
}

/// Whether a crate is one of `families` or begins with one and an underscore.
fn is_of(name: &str, families: &[&str]) -> bool {
    families
        .iter()
        .any(|family| name.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest.starts_with('_')))
}

/// What a pure file must not do with `name`.
fn impurity(file: &str, name: &Name) -> Option<&'static str> {
    const PROTOBUF_ONLY: &str = "only proto/mod.rs and proto/convert know protobuf";
    const CLOCK: &str = "a pure file takes `now` as an argument";
    const EFFECT: &str = "a pure file has no effects";
    let knows_protobuf = module(file) == "proto" || is_in(module(file), CONVERT);
    match name {
        Name::Member(name) => (name == "elapsed").then_some(CLOCK),
        Name::Word(word) if word == "extern" => {
            Some("a pure file calls no foreign code and renames no crate")
        }
        Name::Word(word) => TYPES.contains(&word.as_str()).then_some(EFFECT),
        Name::Inside(path) if path.iter().any(|segment| segment == "v1") && !knows_protobuf => {
            Some(PROTOBUF_ONLY)
        }
        Name::Inside(path) => (!is_pure(&path.join("/"))).then_some("a pure file names pure files only"),
        Name::Outside(path) => {
            let segments: Vec<_> = path.iter().map(String::as_str).collect();
            match segments[..] {
                [.., "Instant" | "SystemTime", "now"] => Some(CLOCK),
                [name, ..] if is_of(name, &WIRE) => (!knows_protobuf).then_some(PROTOBUF_ONLY),
                [name, ..] if is_of(name, &EFFECTS) => Some(EFFECT),
                // Renamed, or with all that is in it.
                ["std" | "core"] => Some("a pure file names what it takes from std"),
                ["std", module, ..] if STD.contains(&module) => Some(EFFECT),
                _ => segments.iter().any(|segment| TYPES.contains(segment)).then_some(EFFECT),
            }
        }
    }
}

/// What the place of any file forbids.
fn displacement(file: &str, name: &Name) -> Option<&'static str> {
    let side = file.split('/').next().unwrap_or_default();
    match name {
        Name::Inside(path) => match (side, path.first().map(String::as_str)) {
            ("agent", Some("controller")) | ("controller", Some("agent")) => {
                Some("agent and controller never import each other")
            }
            ("proto", Some("agent" | "controller")) => Some("proto knows neither side"),
            _ => None,
        },
        Name::Word(word) if word == "unsafe" => {
            (!UNSAFE.iter().any(|place| file.starts_with(place))).then_some("unsafe code stands in agent/os")
        }
        Name::Word(word) if word == "mod" => {
            file.ends_with("/main.rs").then_some("a module of a main is compiled twice")
        }
        Name::Word(_) | Name::Outside(_) | Name::Member(_) => None,
    }
}

/// What a file has that its place forbids.
fn violations(file: &str, source: &str) -> Vec<String> {
    let code = tokens(source);
    let (code, _) = without_tests(&code);
    let pure = is_pure(module(file));
    let mut found: Vec<String> = names(file, &code)
        .iter()
        .filter_map(|name| {
            let why = displacement(file, name).or_else(|| impurity(file, name).filter(|_| pure))?;
            Some(format!("{file}: {name:?} ({why})"))
        })
        .collect();
    found.dedup();
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

#[test]
fn every_file_keeps_to_its_place() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files: Vec<(String, String)> = ["lib.rs", "proto", "agent", "controller"]
        .iter()
        .flat_map(|root| sources(&top.join(root)))
        .map(|path| {
            let file = path.strip_prefix(top).unwrap().to_str().unwrap().to_owned();
            (file, fs::read_to_string(&path).unwrap())
        })
        .collect();
    for root in PURE {
        assert!(files.iter().any(|(file, _)| is_in(module(file), root)), "no files in {root}");
    }
    // Only what is declared under #[cfg(test)] is test code, whatever it is called.
    let mut tests = Vec::new();
    for (file, source) in &files {
        let code = tokens(source);
        tests.extend(without_tests(&code).1.into_iter().map(|name| format!("{}/{name}", module(file))));
    }
    let mut found = Vec::new();
    for (file, source) in &files {
        if !tests.iter().any(|test| is_in(module(file), test)) {
            found.extend(violations(file, source));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn planted_violations_are_found() {
    for (file, source) in [
        ("agent/state.rs", "use tokio::time::sleep;"),
        ("agent/state.rs", "use tokio_util::sync::CancellationToken;"),
        ("agent/state.rs", "fn f() { let now = std::time::Instant::now(); }"),
        ("agent/state.rs", "fn f() { let now = Instant::now(); }"),
        ("agent/state.rs", "fn f(at: Instant) { at.elapsed(); }"),
        ("agent/state/parts.rs", "use std::{fs, io};"),
        ("agent/state.rs", "use std::{io::{self, Read}, fs as files};"),
        ("agent/state.rs", "use std::fs::{self};"),
        ("agent/target.rs", "use std::net::{IpAddr, UdpSocket};"),
        ("agent/target.rs", "use std::net::*; fn f(s: UdpSocket) {}"),
        ("agent/packet/icmp.rs", "use crate::agent::os::clock;"),
        ("agent/state.rs", "use super::os::clock;"),
        ("agent/state.rs", "use super::{reconcile, runtime::Runtime};"),
        ("agent/reconcile.rs", "use libc::EPERM;"),
        ("agent/state.rs", "use std as s; fn f() { s::fs::read(PATH); }"),
        ("agent/state.rs", "use std::*;"),
        ("agent/state.rs", "extern crate tokio as t;"),
        ("proto/legacy.rs", "extern \"C\" { fn f(); }"),
        ("proto/model.rs", "use prost::Message;"),
        ("proto/model.rs", "use tonic_types::ErrorDetails;"),
        ("proto/model.rs", "use super::v1::Tunnel;"),
        ("agent/state.rs", "use crate::proto::v1::Tunnel;"),
        ("proto/convert/mod.rs", "use tokio::sync::mpsc;"),
        ("proto/convert/session.rs", "use crate::proto::host::lock::Lock;"),
        ("proto/host/lock.rs", "use crate::agent::store::Store;"),
        ("proto/model.rs", "use crate::agent::state::AgentState;"),
        ("agent/runtime.rs", "use crate::controller::cli::Cli;"),
        ("agent/service/local.rs", "use super::super::super::controller::cli;"),
        ("agent/main.rs", "use tunmesh::controller::cli;"),
        ("controller/cli/legacy.rs", "use crate::agent::cli::Cli;"),
        ("agent/main.rs", "mod cli;"),
        ("agent/runtime.rs", "fn f() { unsafe { g() } }"),
        ("lib.rs", "fn f() { unsafe { g() } }"),
        ("agent/state.rs", "#[cfg(test)]\nmod tests;\nuse tokio::time::sleep;"),
        ("agent/state.rs", "#[cfg(test)] mod tests { fn f() {} } use tokio::time::sleep;"),
        ("agent/state.rs", "const A: &str = r\"\\\"; use tokio::time::sleep; const B: &str = \"\";"),
        ("agent/state.rs", "const A: char = '\"'; const B: char = '\\''; use tokio::time::sleep; // \""),
        ("agent/state.rs", "/* \" /* */ */ use tokio::time::sleep; /* \" */"),
    ] {
        assert!(!violations(file, source).is_empty(), "{source} in {file} was not found");
    }
    for (file, source) in [
        ("agent/state.rs", "// tokio::time::sleep\nuse std::time::Instant;"),
        ("agent/state.rs", "fn f() -> &'static str { \"tokio::spawn \\\" \\\n libc::x\" }"),
        ("agent/state.rs", "const A: &str = r#\"\" tokio::spawn\"#; /* libc::x */"),
        ("agent/state.rs", "#[cfg(test)]\nmod tests { use std::fs; fn f() { g({}); } }"),
        ("agent/state.rs", "#[cfg(test)]\nuse std::{fs, thread};\nuse super::reconcile::Op;"),
        ("agent/runtime.rs", "use tokio::sync::mpsc; #[allow(unsafe_code)] fn f() {}"),
        ("agent/os/tun.rs", "fn f() { unsafe { g() } }"),
        ("agent/state.rs", "use crate::{proto::{model, command}, agent::{reconcile::Op as O, target}};"),
        ("agent/state.rs", "use super::target::Tunnel as v1;"),
        ("agent/state.rs", "use std::{fmt, net::*, time::Duration};"),
        ("agent/packet/frame.rs", "fn f(tun: u8) -> u8 { tun }"),
        ("agent/service/mod.rs", "pub mod controller;"),
        ("agent/service/local.rs", "use super::controller::Session;"),
        ("controller/mod.rs", "fn f(agent: &str) { g(agent) }"),
        ("proto/convert/session.rs", "use prost::Message;"),
        ("proto/host/lock.rs", "use std::fs::File; use tokio::net::UnixListener;"),
        ("proto/convert/mod.rs", "use super::v1; fn f() -> pbjson_types::Timestamp { g() }"),
    ] {
        assert_eq!(violations(file, source), Vec::<String>::new(), "{source} in {file}");
    }
}
