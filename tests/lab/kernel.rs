//! Kernels that refuse what the one that runs here takes.

use std::path::Path;
use std::process::Command;

/// What to run an agent by so that nothing cuts its datagrams to one IPv4 address; what that takes is made in `directory`.
pub fn refusing_trains_to(address: &str, directory: &Path) -> [String; 3] {
    refusing("REFUSES_TRAINS_TO", address, directory)
}

/// What to run an agent by so that one of its devices refuses packets that are many, which it seems to take at first.
pub fn refusing_merged_to(device: &str, directory: &Path) -> [String; 3] {
    refusing("REFUSES_MERGED_TO", device, directory)
}

fn refusing(what: &str, value: &str, directory: &Path) -> [String; 3] {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/kernel.c");
    let library = directory.join("kernel.so");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    assert!(built.expect("cc starts").success(), "{} is built", source.display());
    ["env".to_owned(), format!("LD_PRELOAD={}", library.display()), format!("{what}={value}")]
}
