//! The laws of the packet path's pure parts hold for all bytes that fuzzing has found.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a fault ends the test")]

use std::fs;
use std::path::Path;

#[path = "../fuzz/laws.rs"]
mod laws;

fn hold_for_all(target: &str, law: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut count = 0;
    for file in fs::read_dir(corpus).expect("a corpus") {
        let path = file.expect("a file").path();
        // Named before, for a panic says nothing of it.
        println!("{}", path.display());
        law(&fs::read(&path).expect("bytes"));
        count += 1;
    }
    assert!(count > 10, "a corpus of {count}");
}

#[test]
fn what_a_device_hands_out() {
    hold_for_all("device", laws::device);
}

#[test]
fn what_arrives_at_the_data_port() {
    hold_for_all("datagram", laws::datagram);
}

#[test]
fn packets_one_after_the_other() {
    hold_for_all("trains", laws::trains);
}
