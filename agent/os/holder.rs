//! Who has a tun device open.

use std::fs;
use std::path::Path;

use crate::proto::model::DeviceName;

/// The process of this network that holds a tun device, as "process 4711 (openvpn)". `None`: there is none, or this process
/// may not look at it.
pub fn of(device: &DeviceName) -> Option<String> {
    // Of an interface of another kind all need not be asked.
    fs::metadata(format!("/sys/class/net/{device}/tun_flags")).ok()?;
    let network = |process: &Path| fs::read_link(process.join("ns/net")).ok();
    let own = network(Path::new("/proc/self"))?;
    let processes = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
    let holder = processes
        .filter(|process| network(process).is_some_and(|other| other == own))
        .find(|process| holds(process, device).is_some())?;
    let name = fs::read_to_string(holder.join("comm")).ok()?;
    Some(format!("process {} ({})", holder.file_name()?.to_str()?, name.trim()))
}

/// Looks for a descriptor of the device's name, which is in `/proc/PID/fdinfo/FD` as "iff:\tNAME", `tun_chr_show_fdinfo` of
/// drivers/net/tun.c.
fn holds(process: &Path, device: &DeviceName) -> Option<()> {
    let descriptors = fs::read_dir(process.join("fdinfo")).ok()?.flatten();
    let mut texts = descriptors.filter_map(|descriptor| {
        let link = fs::read_link(process.join("fd").join(descriptor.file_name())).ok()?;
        // Not all descriptors of the host have to be asked what they are.
        link.ends_with("net/tun").then(|| fs::read_to_string(descriptor.path()).ok()).flatten()
    });
    texts
        .find(|text| {
            text.lines()
                .any(|line| line.strip_prefix("iff:").is_some_and(|name| name.trim() == device.as_str()))
        })
        .map(|_| ())
}
