use std::time::Duration;

use super::*;
use crate::proto::command::ErrorKind;

const KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

/// A tunnel as a client would write it.
fn wire() -> v1::Tunnel {
    v1::Tunnel {
        name: "udp2".to_owned(),
        addresses: vec!["10.0.1.1/30".to_owned()],
        remote: "172.100.1.2".to_owned(),
        framing: v1::tunnel::Framing::Raw.into(),
        ..v1::Tunnel::default()
    }
}

fn spec(tunnel: v1::Tunnel) -> Result<TunnelSpec, CommandError> {
    match add_tunnel(v1::AddTunnelRequest { tunnel: Some(tunnel), replace: false })? {
        Command::Add { tunnel, .. } => Ok(*tunnel),
        Command::Delete { .. } => panic!("a deletion"),
    }
}

fn prefix(text: &str, preference: u32) -> v1::AllowedPrefix {
    v1::AllowedPrefix { prefix: text.to_owned(), preference }
}

#[test]
fn what_is_left_out_is_the_usual() {
    let spec = spec(wire()).unwrap();
    assert_eq!(spec.device.as_str(), "udp2");
    assert_eq!(spec.mtu, None);
    assert_eq!((spec.allowed_prefixes, spec.routes), (Vec::new(), Vec::new()));
    assert_eq!(spec.remote, Some("172.100.1.2".parse().unwrap()));
    for replace in [false, true] {
        let request = v1::AddTunnelRequest { tunnel: Some(wire()), replace };
        assert!(matches!(add_tunnel(request), Ok(Command::Add { replace: read, .. }) if read == replace));
    }
}

#[test]
fn framings() {
    use v1::tunnel::Framing as Wire;
    let key: PublicKey = KEY.parse().unwrap();
    for (framing, text, expected) in [
        (Wire::Raw, "", Framing::Raw),
        (Wire::Pi, "", Framing::Pi),
        (Wire::Wireguard, KEY, Framing::Wireguard(key)),
        (Wire::Unspecified, KEY, Framing::Wireguard(key)),
    ] {
        let tunnel = v1::Tunnel { framing: framing.into(), peer_public_key: text.to_owned(), ..wire() };
        assert_eq!(spec(tunnel).unwrap().framing, expected);
    }
}

#[test]
fn errors_name_field_value_and_remedy() {
    use v1::tunnel::Framing as Wire;
    let text = |text: &str| text.to_owned();
    let cases = [
        (v1::Tunnel { name: text(""), ..wire() }, "tunnel.name", "", "is missing", "as udp2"),
        (v1::Tunnel { name: text("a b"), ..wire() }, "tunnel.name", "a b", "character ' '", "use letters"),
        (
            v1::Tunnel { name: text("a-name-of-a-tunnel"), ..wire() },
            "tunnel.name",
            "a-name-of-a-tunnel",
            "is 18 bytes long, and names the device, too",
            "at most 15 bytes, or give `device`",
        ),
        (
            v1::Tunnel { device: text("tun/0"), ..wire() },
            "tunnel.device",
            "tun/0",
            "character '/'",
            "use letters",
        ),
        (
            v1::Tunnel { addresses: vec![text("10.0.1.1/30"), text("10.0.1.2")], ..wire() },
            "tunnel.addresses[1]",
            "10.0.1.2",
            "has no prefix length",
            "as 10.0.1.1/30",
        ),
        (
            v1::Tunnel { addresses: vec![text("10.0.1.1/30"), text("10.0.1.1/30")], ..wire() },
            "tunnel.addresses[1]",
            "10.0.1.1/30",
            "stands twice",
            "give it once",
        ),
        (v1::Tunnel { mtu: 67, ..wire() }, "tunnel.mtu", "67", "is out of range", "use 68 to 65535"),
        (v1::Tunnel { mtu: 65_536, ..wire() }, "tunnel.mtu", "65536", "is out of range", "use 68 to 65535"),
        (v1::Tunnel { remote: text(""), ..wire() }, "tunnel.remote", "", "is missing", "as 172.100.1.2"),
        (
            v1::Tunnel { remote: text("172.100.1"), ..wire() },
            "tunnel.remote",
            "172.100.1",
            "is neither",
            "write an",
        ),
        (
            v1::Tunnel { remote: text("172.100.1.2,172.100.2.2"), ..wire() },
            "tunnel.remote",
            "172.100.1.2,172.100.2.2",
            "is neither",
            "write an",
        ),
        (
            v1::Tunnel { remote: text(""), more_remotes: vec![text("172.100.2.2")], ..wire() },
            "tunnel.remote",
            "",
            "is missing",
            "as 172.100.1.2",
        ),
        (
            v1::Tunnel { more_remotes: vec![text("172.100.2.2"), text("0.0.0.0")], ..wire() },
            "tunnel.more_remotes[1]",
            "0.0.0.0",
            "is no host's address",
            "write an",
        ),
        (
            v1::Tunnel { more_remotes: vec![text("172.100.2.2"), text("172.100.1.2")], ..wire() },
            "tunnel.more_remotes[1]",
            "172.100.1.2",
            "stands twice",
            "give it once",
        ),
        (
            v1::Tunnel { more_remotes: ["a", "b", "c", "d"].map(str::to_owned).to_vec(), ..wire() },
            "tunnel.more_remotes[3]",
            "d",
            "is one too many",
            "give at most 4",
        ),
        (
            v1::Tunnel { framing: Wire::Unspecified.into(), ..wire() },
            "tunnel.framing",
            "",
            "is missing",
            "unencrypted is asked for by name: write RAW, or PI",
        ),
        (
            v1::Tunnel { framing: 9, ..wire() },
            "tunnel.framing",
            "9",
            "is no framing",
            "write WIREGUARD, RAW or PI",
        ),
        (
            v1::Tunnel { framing: Wire::Wireguard.into(), ..wire() },
            "tunnel.peer_public_key",
            "",
            "is missing",
            "give the peer's key",
        ),
        (
            v1::Tunnel { peer_public_key: text(KEY), ..wire() },
            "tunnel.peer_public_key",
            KEY,
            "has no use in a tunnel that is not encrypted",
            "leave it out",
        ),
        (
            v1::Tunnel { peer_public_key: text("secret"), ..wire() },
            "tunnel.peer_public_key",
            "secret",
            "is not 32 bytes in base64",
            "wg pubkey",
        ),
        (
            v1::Tunnel { allowed_prefixes: vec![prefix("10.0.0.0/8", 0), prefix("10.0.0.1/8", 0)], ..wire() },
            "tunnel.allowed_prefixes[1].prefix",
            "10.0.0.1/8",
            "has bits behind its prefix length",
            "write 10.0.0.0/8",
        ),
        (
            v1::Tunnel { allowed_prefixes: vec![prefix("10.0.0.0/8", 0), prefix("10.0.0.0/8", 1)], ..wire() },
            "tunnel.allowed_prefixes[1].prefix",
            "10.0.0.0/8",
            "stands twice",
            "give it once",
        ),
        (
            v1::Tunnel { routes: vec![text("192.168.2.0/24"), text("192.168.3.0")], ..wire() },
            "tunnel.routes[1]",
            "192.168.3.0",
            "is not a network",
            "write a network as 192.168.2.0/24",
        ),
    ];
    for (tunnel, field, value, problem, remedy) in cases {
        let error = spec(tunnel).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{error:?}");
        assert_eq!((field_name(error.field).as_str(), error.value.as_str()), (field, value), "{error:?}");
        assert!(error.fault.problem.contains(problem), "{error:?}");
        assert!(error.fault.remedy.contains(remedy), "{error:?}");
    }
    let missing = add_tunnel(v1::AddTunnelRequest::default()).unwrap_err();
    assert_eq!(field_name(missing.field), "tunnel.name");
}

#[test]
fn a_flood_of_a_value_is_shown_cut() {
    let error = spec(v1::Tunnel { remote: "x y".repeat(1000), ..wire() }).unwrap_err();
    let words = error.describe("tunnel.remote");
    assert!(words.len() < 400 && words.contains('…'), "{words}");
}

/// The status of a tunnel that was asked for.
fn status(spec: TunnelSpec) -> TunnelStatus {
    TunnelStatus {
        tunnel: spec.tunnel(Owner::Local),
        name: spec.name,
        addresses: spec.addresses,
        state: TunnelState::Waiting(None),
        endpoint: None,
        preferred: None,
        device_mtu: None,
        path_mtu: None,
        sent: Traffic::default(),
        received: Traffic::default(),
        last_received: None,
        last_handshake: None,
        link: None,
        offloads: Vec::new(),
        notes: Vec::new(),
    }
}

#[test]
fn a_status_shows_a_tunnel_that_can_be_asked_for_again() {
    use v1::tunnel::Framing as Wire;
    let full = v1::Tunnel {
        device: "mesh0".to_owned(),
        addresses: vec!["10.0.1.1/30".to_owned(), "fd00:1::1/64".to_owned()],
        mtu: 1400,
        remote: "Minion-2:6000".to_owned(),
        framing: Wire::Pi.into(),
        allowed_prefixes: vec![prefix("192.168.2.0/24", 7), prefix("fd00:2::/64", 0)],
        routes: vec!["192.168.2.0/24".to_owned()],
        without: vec!["tun-uso".to_owned(), "udp-gso".to_owned()],
        ..wire()
    };
    let encrypted = v1::Tunnel {
        framing: Wire::Unspecified.into(),
        peer_public_key: KEY.to_owned(),
        remote: "[FD00::2]:5000".to_owned(),
        ..wire()
    };
    let both = v1::Tunnel { also_plain: true, ..encrypted.clone() };
    let several = v1::Tunnel { more_remotes: vec!["minion-2".to_owned(), "fd00::2".to_owned()], ..wire() };
    for tunnel in [wire(), full, encrypted, both, several] {
        let asked = spec(tunnel).unwrap();
        let shown = v1::TunnelStatus::from(status(asked.clone())).tunnel.unwrap();
        assert_eq!(spec(shown).unwrap(), asked);
    }
}

#[test]
fn a_status_says_what_is_and_leaves_out_what_is_not() {
    let known = status(spec(wire()).unwrap());
    let bare = v1::TunnelStatus::from(known.clone());
    assert_eq!((bare.reason.as_str(), bare.endpoint.as_str()), ("", ""));
    assert_eq!((bare.device_mtu, bare.path_mtu, bare.last_received.is_none()), (0, 0, true));
    let mut full = TunnelStatus {
        endpoint: Some("172.100.1.2:5000".parse().unwrap()),
        preferred: Some("minion-2".parse().unwrap()),
        device_mtu: Some(Mtu::ETHERNET),
        path_mtu: Some(1472.try_into().unwrap()),
        sent: Traffic { packets: 3, bytes: 300, drops: [("too_big", 2)].into() },
        last_received: Some(Duration::new(1_700_000_000, 5)),
        ..known
    };
    full.tunnel.owner = Owner::Controller;
    for (state, shown, reason) in [
        (TunnelState::Waiting(None), v1::tunnel_status::State::Waiting, ""),
        (TunnelState::Waiting(Some("a".to_owned())), v1::tunnel_status::State::Waiting, "a"),
        (TunnelState::Passing, v1::tunnel_status::State::Passing, ""),
        (TunnelState::Failed("b".to_owned()), v1::tunnel_status::State::Failed, "b"),
    ] {
        let wire = v1::TunnelStatus::from(TunnelStatus { state, ..full.clone() });
        assert_eq!((wire.state(), wire.reason.as_str()), (shown, reason));
        assert_eq!(wire.owner(), v1::tunnel_status::Owner::Controller);
        assert_eq!([wire.endpoint.as_str(), &wire.preferred], ["172.100.1.2:5000", "minion-2"]);
        assert_eq!((wire.device_mtu, wire.path_mtu), (1500, 1472));
        let (sent, last) = (wire.sent.unwrap(), wire.last_received.unwrap());
        assert_eq!((sent.packets, sent.bytes, sent.drops["too_big"]), (3, 300, 2));
        assert_eq!((last.seconds, last.nanos), (1_700_000_000, 5));
    }
}
