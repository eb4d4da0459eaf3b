//! The tokens and private keys that tests use, which nothing that anybody prints or logs may hold.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

/// Where the 32 bytes of a private key lie in PKCS #8 of P-256 (RFC 5958, RFC 5915).
const KEY: std::ops::Range<usize> = 36..68;

static KNOWN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Takes note of a secret.
pub fn learn(secret: &str) {
    assert!(secret.len() >= 12, "{secret:?} is no secret");
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner).insert(secret.to_owned());
}

/// Takes note of the secret of a token, however it may be written.
pub fn learn_token(token: &str) {
    let text = token.split('.').nth(2).expect("a token has four parts");
    learn(text);
    let bytes = URL_SAFE_NO_PAD.decode(text).expect("the secret of a token");
    learn(STANDARD.encode(&bytes).trim_end_matches('='));
    learn_bytes(&bytes);
}

/// Takes note of bytes in hexadecimal, and as Rust shows them.
fn learn_bytes(bytes: &[u8]) {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    learn(&hex);
    let list: Vec<_> = bytes.iter().map(ToString::to_string).collect();
    learn(&list.join(", "));
}

/// Takes note of all private keys in a directory and those below.
pub fn learn_keys(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => learn_keys(&path),
            false => match path.extension().and_then(OsStr::to_str) {
                Some("pem") => learn_key(&path),
                Some("key") => learn_wireguard_key(&path),
                Some(_) | None => {}
            },
        }
    }
}

/// Takes note of the private key in a PEM file, however it may be written.
pub fn learn_key(file: &Path) {
    const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
    let text = fs::read_to_string(file).unwrap_or_default();
    let Some(body) = text.split(BEGIN).nth(1).and_then(|after| after.split("-----").next()) else { return };
    let lines: Vec<_> = body.split_whitespace().collect();
    let whole = STANDARD.decode(lines.concat()).expect("PEM");
    let key = whole.get(KEY).expect("a key of P-256");
    // As it is in the file, and its halves in hexadecimal and as Rust shows bytes.
    learn(lines.get(1).expect("a key has several lines"));
    key.chunks(16).for_each(learn_bytes);
}

/// Takes note of the key in a file as `wg genkey` prints it.
fn learn_wireguard_key(file: &Path) {
    learn_wireguard_text(fs::read_to_string(file).unwrap_or_default().trim_end());
}

/// Takes note of a key as `wg genkey` prints it.
pub fn learn_wireguard_text(text: &str) {
    learn(text.trim_end_matches('='));
    STANDARD.decode(text).expect("32 bytes in base64").chunks(16).for_each(learn_bytes);
}

/// Panics where a text has a secret that is known so far.
pub fn look(text: &str, what: &str) {
    let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let told = known.iter().find(|secret| text.contains(secret.as_str()));
    assert!(told.is_none(), "{what} tells a secret: {told:?}");
}
