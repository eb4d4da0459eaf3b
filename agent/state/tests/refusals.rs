//! What is refused, and in which words.

use std::collections::BTreeMap;

use super::bench::Bench;
use super::kernel::Event;
use super::{add, allowed, free, net, policy, spec};
use crate::proto::command::{ErrorKind, Field, TunnelSpec};
use crate::proto::model::{Framing, Owner};

/// A refusal: what there is, what is asked for, and what the answer says.
struct Refusal {
    given: Vec<TunnelSpec>,
    asked: TunnelSpec,
    kind: ErrorKind,
    field: Field,
    /// The value, and then the words that say what is wrong and what to do.
    says: [&'static str; 3],
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn refusals_name_field_value_and_remedy() {
    use ErrorKind::{AlreadyExists, Clash, Invalid, NotAccepted};
    let a = || spec("a", "d0", &["10.31.0.1/24"], "10.20.0.5");
    let shared = || TunnelSpec { allowed_prefixes: allowed("10.40.0.0/16", 3), ..a() };
    let routed = || TunnelSpec { routes: vec![net("10.50.0.0/16")], ..a() };
    let route = |route: &str| TunnelSpec { routes: vec![net(route)], ..free() };
    let refusal = |given: &[TunnelSpec], asked, kind, field, says| Refusal {
        given: given.to_vec(),
        asked,
        kind,
        field,
        says,
    };
    let key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=".parse().unwrap();
    let table = [
        refusal(
            &[a()],
            TunnelSpec { name: a().name, ..free() },
            AlreadyExists,
            Field::Name,
            ["a", "remote 10.20.0.5, device d0", "set replace"],
        ),
        refusal(
            &[a()],
            TunnelSpec { device: a().device, allowed_prefixes: allowed("10.41.0.0/16", 0), ..free() },
            Clash,
            Field::Device,
            ["d0", "has other addresses (10.31.0.1/24)", "leave the addresses out"],
        ),
        refusal(
            &[a()],
            TunnelSpec { remote: a().remote, ..free() },
            Clash,
            Field::Remote,
            ["10.20.0.5", "is already the remote of tunnel a", "name another host"],
        ),
        refusal(
            &[a()],
            TunnelSpec { remote: Some("10.20.0.5:5000".parse().unwrap()), ..free() },
            Clash,
            Field::Remote,
            ["10.20.0.5:5000", "is already the remote of tunnel a", "name another host"],
        ),
        refusal(
            &[],
            TunnelSpec { remote: Some("10.9.0.9".parse().unwrap()), ..free() },
            Clash,
            Field::Remote,
            ["10.9.0.9", "is this host itself", "the other end"],
        ),
        refusal(
            &[a()],
            TunnelSpec { addresses: vec![net("10.31.0.2/24")], ..free() },
            Clash,
            Field::Address(0),
            ["10.31.0.2/24", "is already on device d0 (tunnel a)", "choose another network"],
        ),
        refusal(
            &[shared()],
            TunnelSpec {
                device: a().device,
                addresses: Vec::new(),
                allowed_prefixes: allowed("10.40.0.0/16", 3),
                ..free()
            },
            Clash,
            Field::AllowedPrefix(0),
            ["10.40.0.0/16", "that of tunnel a with the same preference, 3", "another preference"],
        ),
        refusal(
            &[shared()],
            TunnelSpec { allowed_prefixes: allowed("10.40.0.0/16", 4), ..free() },
            Clash,
            Field::AllowedPrefix(0),
            ["10.40.0.0/16", "is already on device d0 (tunnel a)", "choose another prefix"],
        ),
        refusal(
            &[routed()],
            route("10.50.0.0/16"),
            Clash,
            Field::Route(0),
            ["10.50.0.0/16", "is already on device d0 (tunnel a)", "choose another network"],
        ),
        refusal(
            &[],
            TunnelSpec { device: "eth0".parse().unwrap(), ..free() },
            Clash,
            Field::Device,
            ["eth0", "that the agent did not make", "choose another name"],
        ),
        refusal(
            &[],
            TunnelSpec { addresses: vec![net("10.30.0.1/24"), net("10.9.3.1/24")], ..free() },
            Clash,
            Field::Address(1),
            [
                "10.9.3.1/24",
                "lies in 10.9.0.0/16, to which this host is connected through eth0",
                "choose a network",
            ],
        ),
        refusal(
            &[],
            route("10.9.0.0/16"),
            Clash,
            Field::Route(0),
            ["10.9.0.0/16", "this host is connected through eth0", "choose a network"],
        ),
        refusal(
            &[],
            route("10.20.0.0/16"),
            Clash,
            Field::Route(0),
            ["10.20.0.0/16", "covers 10.20.0.9, the tunnel's own endpoint", "choose a network without it"],
        ),
        refusal(
            &[],
            TunnelSpec { addresses: vec![net("10.20.0.1/24")], ..free() },
            Clash,
            Field::Address(0),
            ["10.20.0.1/24", "covers 10.20.0.9, the tunnel's own endpoint", "choose a network without it"],
        ),
        refusal(
            &[a()],
            route("10.20.0.5/32"),
            Clash,
            Field::Route(0),
            ["10.20.0.5/32", "covers 10.20.0.5, the endpoint of tunnel a", "choose a network without it"],
        ),
        refusal(
            &[routed()],
            TunnelSpec { remote: Some("10.50.3.1".parse().unwrap()), ..free() },
            Clash,
            Field::Remote,
            ["10.50.3.1", "lies in 10.50.0.0/16, which tunnel a carries", "take that network from the other"],
        ),
        refusal(
            &[],
            TunnelSpec { echo: Some("fd00::9".parse().unwrap()), ..free() },
            Invalid,
            Field::Echo,
            ["fd00::9", "of a family of which device dnew has no address", "the other family"],
        ),
        refusal(
            &[],
            route("0.0.0.0/0"),
            NotAccepted,
            Field::Route(0),
            ["0.0.0.0/0", "is a default route", "name the networks behind the peer"],
        ),
        refusal(
            &[],
            route("::/0"),
            NotAccepted,
            Field::Route(0),
            ["::/0", "is a default route", "name the networks behind the peer"],
        ),
        refusal(
            &[],
            route("172.30.0.0/16"),
            NotAccepted,
            Field::Route(0),
            ["172.30.0.0/16", "(10.0.0.0/8, 192.168.0.0/16, fc00::/7)", "--accept-prefix 172.30.0.0/16"],
        ),
        refusal(
            &[],
            route("8.0.0.0/5"),
            NotAccepted,
            Field::Route(0),
            ["8.0.0.0/5", "lies in none of the networks", "--accept-prefix 8.0.0.0/5"],
        ),
        refusal(
            &[],
            TunnelSpec { addresses: vec![net("172.30.0.1/24")], ..free() },
            NotAccepted,
            Field::Address(0),
            ["172.30.0.1/24", "lies in none of the networks", "--accept-prefix 172.30.0.0/24"],
        ),
        refusal(
            &[],
            TunnelSpec { allowed_prefixes: allowed("2001:db8::/32", 0), ..free() },
            NotAccepted,
            Field::AllowedPrefix(0),
            ["2001:db8::/32", "lies in none of the networks", "--accept-prefix 2001:db8::/32"],
        ),
        refusal(
            &[],
            TunnelSpec { allowed_prefixes: allowed("10.40.0.0/16", 0), ..route("10.41.0.0/16") },
            Invalid,
            Field::Route(0),
            ["10.41.0.0/16", "lies in none of the tunnel's allowed prefixes", "add it to them"],
        ),
        refusal(
            &[],
            TunnelSpec { addresses: vec![net("fd00::1/64")], mtu: Some(1279.try_into().unwrap()), ..free() },
            Invalid,
            Field::Mtu,
            ["1279", "is too small for IPv6 addresses", "at least 1280"],
        ),
        refusal(
            &[],
            TunnelSpec { framing: Framing::Wireguard(policy().public_key), ..free() },
            Clash,
            Field::PeerPublicKey,
            [
                "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
                "is this host's own",
                "the key of the host at the other end",
            ],
        ),
        refusal(
            // Whose remote is another's matters for plain ones alone.
            &[TunnelSpec { framing: Framing::Wireguard(key), ..a() }],
            TunnelSpec { framing: Framing::Wireguard(key), ..free() },
            Clash,
            Field::PeerPublicKey,
            [
                "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
                "is already the key of tunnel a's peer",
                "another host's key",
            ],
        ),
        refusal(
            &[a()],
            TunnelSpec {
                device: a().device,
                addresses: Vec::new(),
                allowed_prefixes: allowed("10.40.0.0/16", 0),
                ..free()
            },
            Clash,
            Field::Device,
            ["d0", "carries everything to the peer of tunnel a", "name another device"],
        ),
        refusal(
            &[shared()],
            TunnelSpec { device: a().device, addresses: Vec::new(), ..free() },
            Clash,
            Field::AllowedPrefixes,
            ["d0", "is shared with tunnel a", "say with allowed prefixes"],
        ),
        refusal(
            &[],
            TunnelSpec { addresses: Vec::new(), ..free() },
            Invalid,
            Field::Addresses,
            ["", "is missing", "device dnew does not exist yet: give its addresses"],
        ),
    ];
    for Refusal { given, asked, kind, field, says } in table {
        let mut bench = Bench::new(true);
        for tunnel in given {
            bench.command(&add(tunnel), Owner::Local).unwrap();
        }
        // The bench checks that a refusal changes nothing.
        let Err(error) = bench.command(&add(asked.clone()), Owner::Local) else {
            panic!("accepted {asked:?}");
        };
        assert_eq!((error.kind, error.field), (kind, field), "{error:?}");
        assert_eq!(error.value, says[0]);
        let words = error.describe(field.name());
        assert!(says.iter().all(|said| words.contains(said)), "{words}");
    }
    Bench::new(true).command(&add(free()), Owner::Local).unwrap();
}

#[test]
fn what_is_close_to_a_clash_is_accepted() {
    let mut bench = Bench::new(true);
    let a = TunnelSpec {
        allowed_prefixes: allowed("10.40.0.0/16", 3),
        ..spec("a", "d0", &["10.31.0.1/24"], "10.20.0.5")
    };
    bench.command(&add(a.clone()), Owner::Local).unwrap();
    let same_prefix =
        TunnelSpec { allowed_prefixes: allowed("10.40.0.0/16", 4), ..spec("b", "d0", &[], "10.20.0.6") };
    bench.command(&add(same_prefix), Owner::Local).unwrap();
    let same_addresses = TunnelSpec {
        allowed_prefixes: allowed("10.40.7.0/24", 3),
        ..spec("c", "d0", &["10.31.0.1/24"], "10.20.0.7")
    };
    bench.command(&add(same_addresses), Owner::Local).unwrap();
    // Another process of this host may have another data port.
    let other_port = spec("d", "d1", &["10.32.0.1/24"], "10.9.0.9:6000");
    bench.command(&add(other_port), Owner::Local).unwrap();
    // The kernel prefers the host's own network.
    let wide =
        TunnelSpec { routes: vec![net("10.128.0.0/9")], ..spec("e", "d2", &["10.33.0.1/24"], "10.20.0.8") };
    bench.kernel.happen(&Event::Appears("eth1".to_owned(), net("10.200.0.1/16")));
    bench.command(&add(wide), Owner::Local).unwrap();
    assert_eq!(bench.command(&add(a), Owner::Local).unwrap(), [], "the same again");
    bench.converge();
    assert_eq!(bench.state.target().faults, BTreeMap::new());
}
