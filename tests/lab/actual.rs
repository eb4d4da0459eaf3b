//! What agents made in the kernel of a host.

use serde_json::{Value, json};

use super::Host;

/// The agent's devices with their addresses, MTU and state, and all routes over them; without numbers that the kernel
/// gives anew.
pub fn actual(host: &Host) -> Value {
    let mut devices: Vec<Value> = Vec::new();
    for link in host.ip_json(["addr"]).as_array().unwrap() {
        let is_device = link["link_type"] == "none";
        if is_device {
            let addresses: Vec<String> = link["addr_info"]
                .as_array()
                .unwrap()
                .iter()
                .map(|address| format!("{}/{}", address["local"].as_str().unwrap(), address["prefixlen"]))
                .collect();
            devices.push(json!([link["ifname"], link["mtu"], link["flags"], addresses]));
        }
    }
    let mut routes: Vec<String> = Vec::new();
    for family in ["-4", "-6"] {
        let listed = host.run(["ip", family, "-d", "route", "show", "table", "all"]);
        let of_devices = listed.lines().filter(|line| {
            devices.iter().any(|device| line.contains(&format!("dev {} ", device[0].as_str().unwrap())))
        });
        // The kernel's multicast and link-local defaults follow the device.
        routes
            .extend(of_devices.filter(|line| !line.contains("ff00::/8")).map(|line| line.trim().to_owned()));
    }
    routes.sort();
    devices.sort_by_key(Value::to_string);
    json!([devices, routes])
}
