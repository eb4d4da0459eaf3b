//! Programs whose wall clock is another than the host's.

use std::fs;

/// The command of a program by a setting of libfaketime, as `FAKETIME=+1h`; its other clocks go on as they are.
pub fn faked(setting: &str, program: &str, arguments: &[&str]) -> Vec<String> {
    let directories = fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
    let library =
        directories.map(|directory| directory.join("faketime/libfaketime.so.1")).find(|path| path.exists());
    let library = library.expect("libfaketime is there: run scripts/test, which installs it");
    let preload = format!("LD_PRELOAD={}", library.display());
    let command =
        ["env", "FAKETIME_DONT_FAKE_MONOTONIC=1", "FAKETIME_NO_CACHE=1", &preload, setting, program];
    command.iter().chain(arguments).map(|word| (*word).to_owned()).collect()
}
