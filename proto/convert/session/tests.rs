use std::collections::BTreeMap;
use std::time::Duration;

use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::proto::command::ErrorKind;
use crate::proto::model::{AllowedPrefix, Framing, Host, Mtu, NodeName, Offload, Offloads, Remote, Remotes};
use crate::proto::session::{Examination, Reach};
use crate::proto::trust::{KeyId, Role};

fn of_agent(bytes: &[u8]) -> Result<Option<AgentMessage>, MessageError> {
    agent_message(v1::AgentMessage::decode(bytes).unwrap())
}

fn of_controller(bytes: &[u8]) -> Result<Option<ControllerMessage>, MessageError> {
    controller_message(v1::ControllerMessage::decode(bytes).unwrap())
}

/// A field that no message has yet.
const LATER: &[u8] = &[0xfa, 0x3f, 3, b'n', b'e', b'w'];

fn node() -> impl Strategy<Value = NodeName> {
    "[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}".prop_map(|name| name.parse().unwrap())
}

fn device() -> impl Strategy<Value = DeviceName> {
    "[a-zA-Z0-9][a-zA-Z0-9._-]{0,14}"
        .prop_filter_map("a name that the kernel keeps", |name| name.parse().ok())
}

fn tunnel() -> impl Strategy<Value = TunnelName> {
    "[a-zA-Z0-9][a-zA-Z0-9._-]{0,78}".prop_map(|name| name.parse().unwrap())
}

fn remote() -> impl Strategy<Value = Remote> {
    let host = prop_oneof![
        (1..0xe000_0000_u32).prop_map(|bits| Host::Address(std::net::Ipv4Addr::from_bits(bits).into())),
        (1..u128::MAX >> 4).prop_map(|bits| Host::Address(std::net::Ipv6Addr::from_bits(bits << 3).into())),
        "[a-z][a-z0-9_-]{0,20}(\\.[a-z0-9]{1,5})?".prop_map(Host::Name),
    ];
    (host, option::of(1..=u16::MAX)).prop_filter_map("no host's address", |(host, port)| {
        // Addresses have one form each: an IPv4 one is never written as IPv6.
        Remote { host, port }.to_string().parse().ok()
    })
}

fn remotes() -> impl Strategy<Value = Remotes> {
    vec(remote(), 1..=Remotes::MOST).prop_map(|mut remotes| {
        remotes.sort();
        remotes.dedup();
        Remotes::new(remotes).unwrap()
    })
}

fn generation() -> impl Strategy<Value = Generation> {
    any::<(u64, u64)>().prop_map(|(incarnation, revision)| Generation { incarnation, revision })
}

fn id() -> impl Strategy<Value = ItemId> {
    prop_oneof![device().prop_map(ItemId::Device), tunnel().prop_map(ItemId::Tunnel)]
}

fn any_item() -> impl Strategy<Value = Arc<Item>> {
    (id(), any::<[u8; 16]>(), vec(any::<u8>(), 0..40))
        .prop_map(|(id, tag, content)| Arc::new(Item { id, tag: Tag::from_bytes(&tag).unwrap(), content }))
}

fn any_removals() -> impl Strategy<Value = Removals> {
    any::<(u64, bool)>().prop_map(|(consent, are_held)| Removals { consent, are_held })
}

fn any_digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 16]>().prop_map(|bytes| Digest::from_bytes(&bytes).unwrap())
}

/// A number that is not 0, which stands for none.
fn number() -> impl Strategy<Value = Option<u64>> {
    option::of(1..=u64::MAX)
}

fn any_heartbeat() -> impl Strategy<Value = Heartbeat> {
    (number(), number()).prop_map(|(ping, answers)| Heartbeat { ping, answers })
}

fn any_keys() -> impl Strategy<Value = BTreeMap<MeshName, PublicKey>> {
    let key = any::<[u8; 32]>().prop_filter_map("no key", |bytes| PublicKey::from_bytes(&bytes));
    btree_map("[a-z][a-z0-9]{0,14}".prop_filter_map("reserved", |name| name.parse().ok()), key, 0..3)
}

fn any_hello() -> impl Strategy<Value = Hello> {
    let have = (any::<String>(), generation(), any_digest(), any::<String>())
        .prop_map(|(store_id, generation, digest, timeline)| Have { store_id, generation, digest, timeline });
    let who = (1..=u32::MAX, btree_set(any::<String>(), 0..3), node(), any::<u128>(), option::of(have));
    let reach = prop_oneof![Just(Reach::BySession), remotes().prop_map(Reach::At), Just(Reach::Nowhere)];
    let labels = btree_map("[a-z0-9./_-]{1,63}", "[a-z0-9./_-]{0,63}", 0..3);
    let what = (any::<String>(), labels, reach, option::of(any::<std::net::IpAddr>()), any_keys());
    (who, what, 1..=u16::MAX).prop_map(
        |(
            (protocol_version, capabilities, node, run_id, have),
            (version, labels, reach, local, keys),
            data_port,
        )| {
            Hello {
                protocol_version,
                capabilities,
                node,
                run_id: RunId::new(run_id),
                have,
                version,
                labels,
                reach,
                local,
                data_port,
                clock: Some(Duration::from_secs(u64::from(data_port))),
                keys,
            }
        },
    )
}

fn any_tunnel_report() -> impl Strategy<Value = TunnelReport> {
    let owner = prop_oneof![Just(Owner::Local), Just(Owner::Controller)];
    let state = prop_oneof![
        Just(TunnelState::Waiting(None)),
        ".+".prop_map(|reason| TunnelState::Waiting(Some(reason))),
        Just(TunnelState::Passing),
        any::<String>().prop_map(TunnelState::Failed),
    ];
    let endpoints = any::<[String; 2]>();
    (device(), owner, state, endpoints, option::of(any::<u64>()), any::<bool>()).prop_map(
        |(device, owner, state, [endpoint, preferred], last_received_ms, keyed)| TunnelReport {
            device,
            owner,
            state,
            endpoint,
            preferred,
            last_received_ms,
            keyed,
        },
    )
}

fn any_agent_message() -> impl Strategy<Value = AgentMessage> {
    prop_oneof![
        any_hello().prop_map(|hello| AgentMessage::Hello(Box::new(hello))),
        any_keys().prop_map(AgentMessage::Keys),
        (generation(), btree_map(id(), any::<String>(), 0..4), btree_set(id(), 0..4)).prop_map(
            |(generation, failures, removals_held)| AgentMessage::Ack(Ack {
                generation,
                failures,
                removals_held
            })
        ),
        any::<String>().prop_map(AgentMessage::Resync),
        any_heartbeat().prop_map(AgentMessage::Heartbeat),
        (
            btree_map(tunnel(), any_tunnel_report(), 0..4),
            btree_set(tunnel(), 0..4),
            any::<bool>(),
            number(),
            any::<Option<[bool; 2]>>()
        )
            .prop_map(|(tunnels, gone, whole, request, forwarding)| AgentMessage::Report(Report {
                tunnels,
                gone,
                whole,
                request,
                forwarding: forwarding.map(|[ipv4, ipv6]| Forwarding { ipv4, ipv6 })
            })),
        Just(AgentMessage::Goodbye),
        ".{0,20}".prop_map(AgentMessage::Refusal),
    ]
}

fn any_operators() -> impl Strategy<Value = ControllerMessage> {
    let rights = (any::<[u8; 4]>(), 0..3_usize)
        .prop_map(|(key, role)| Rights { key: KeyId::of(&key), role: Role::ALL[role] });
    let name = "[a-z]{1,9}".prop_map(|name| name.parse().unwrap());
    btree_map(name, rights, 0..4).prop_map(|operators| ControllerMessage::Operators(Arc::new(operators)))
}

fn any_controller_message() -> impl Strategy<Value = ControllerMessage> {
    let names = (any::<String>(), any::<String>(), any::<String>());
    let welcome = (any::<u32>(), btree_set(any::<String>(), 0..3), any::<u64>(), names).prop_map(
        |(protocol_version, capabilities, epoch, (store_id, version, timeline))| Welcome {
            protocol_version,
            capabilities,
            store_id,
            epoch,
            version,
            timeline,
        },
    );
    let end = (any_digest(), any_removals()).prop_map(|(digest, removals)| SnapshotEnd { digest, removals });
    let chunk = (generation(), vec(any_item(), 0..4), option::of(end))
        .prop_map(|(generation, items, end)| SnapshotChunk { generation, items, end });
    let delta = (
        generation(),
        generation(),
        vec(any_item(), 0..4),
        btree_set(id(), 0..4),
        any_digest(),
        any_removals(),
    )
        .prop_map(|(base, generation, set, delete, digest, removals)| Delta {
            base,
            generation,
            set,
            delete,
            digest,
            removals,
        });
    prop_oneof![
        welcome.prop_map(ControllerMessage::Welcome),
        generation().prop_map(ControllerMessage::NotModified),
        chunk.prop_map(ControllerMessage::Snapshot),
        delta.prop_map(ControllerMessage::Delta),
        any_heartbeat().prop_map(ControllerMessage::Heartbeat),
        any::<u64>().prop_map(ControllerMessage::ReportRequest),
        (1..u64::MAX, "[a-z]{1,9}").prop_map(|(request, name)| {
            ControllerMessage::Examination(Examination { request, tunnels: vec![name.parse().unwrap()] })
        }),
        any_operators(),
        (any::<String>(), any::<u64>())
            .prop_map(|(reason, after_ms)| ControllerMessage::GoAway { reason, after_ms }),
    ]
}

fn networks() -> impl Strategy<Value = Vec<IpNet>> {
    let v4 = (any::<u32>(), 0..=32_u8)
        .prop_map(|(bits, length)| IpNet::new(std::net::Ipv4Addr::from_bits(bits).into(), length));
    let v6 = (any::<u128>(), 0..=128_u8)
        .prop_map(|(bits, length)| IpNet::new(std::net::Ipv6Addr::from_bits(bits).into(), length));
    btree_set(prop_oneof![v4, v6].prop_map(|net| net.unwrap().trunc()), 0..5)
        .prop_map(|networks| networks.into_iter().collect())
}

fn offloads() -> impl Strategy<Value = Offloads> {
    btree_set(select(Offload::ALL.to_vec()), 0..3)
}

fn any_tunnel_spec() -> impl Strategy<Value = TunnelSpec> {
    let framing = prop_oneof![
        Just(Framing::Raw),
        Just(Framing::Pi),
        Just(Framing::Wireguard("xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=".parse().unwrap())),
    ];
    let mtu = option::of((68..=65_535_u32).prop_map(|bytes| Mtu::try_from(bytes).unwrap()));
    let allowed = (networks(), vec(any::<u32>(), 5)).prop_map(|(networks, preferences)| {
        let both = networks.into_iter().zip(preferences);
        both.map(|(prefix, preference)| AllowedPrefix { prefix, preference }).collect::<Vec<_>>()
    });
    let remote = (remotes(), any::<bool>(), option::of(any::<std::num::NonZeroU16>()), any::<bool>());
    (tunnel(), device(), mtu, remote, framing, allowed, networks(), offloads()).prop_map(
        |(name, device, mtu, remote, framing, allowed_prefixes, routes, without)| TunnelSpec {
            name,
            device,
            addresses: Vec::new(),
            mtu,
            remote: Some(remote.0).filter(|_| remote.1 || !matches!(framing, Framing::Wireguard(_))),
            keepalive: remote.2.filter(|_| matches!(framing, Framing::Wireguard(_))),
            also_plain: remote.1 && remote.3 && framing != Framing::Pi,
            probed: remote.3 && framing != Framing::Pi,
            echo: (!remote.3 && remote.1 && allowed_prefixes.is_empty()).then_some([10, 9, 0, 2].into()),
            framing,
            allowed_prefixes,
            routes,
            without,
        },
    )
}

/// An item to which a later release has added a field.
fn extended(mut item: Item) -> Item {
    item.content.extend_from_slice(LATER);
    Item { tag: Tag::of(&item.content), ..item }
}

/// What of an item arrives on the other side.
fn carried(item: &Item) -> Item {
    let bytes = v1::Item::from(item).encode_to_vec();
    super::item(v1::Item::decode(bytes.as_slice()).unwrap()).unwrap().as_ref().clone()
}

proptest! {
    #[test]
    fn what_an_agent_says_arrives(message in any_agent_message()) {
        let bytes = v1::AgentMessage::from(message.clone()).encode_to_vec();
        prop_assert_eq!(of_agent(&bytes).unwrap(), Some(message));
    }

    #[test]
    fn what_a_controller_says_arrives(message in any_controller_message()) {
        let bytes = v1::ControllerMessage::from(message.clone()).encode_to_vec();
        prop_assert_eq!(of_controller(&bytes).unwrap(), Some(message));
    }

    #[test]
    fn garbage_is_refused_or_read_and_no_more(bytes in vec(any::<u8>(), 0..200)) {
        let _ = v1::AgentMessage::decode(bytes.as_slice()).map(agent_message);
        let _ = v1::ControllerMessage::decode(bytes.as_slice()).map(controller_message);
        for id in ["device d", "tunnel t"] {
            let item = Item { id: id.parse().unwrap(), tag: Tag::of(&bytes), content: bytes.clone() };
            let _ = meaning(&item);
        }
    }

    /// Most bytes of any kind say nothing; those of a message with a slip say much that is wrong.
    #[test]
    fn a_damaged_message_is_refused_or_read_and_no_more(
        agent in any_agent_message(),
        controller in any_controller_message(),
        tunnel in any_tunnel_spec(),
        slips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let damaged = |mut bytes: Vec<u8>| {
            for (place, byte) in &slips {
                if !bytes.is_empty() {
                    let place = place.index(bytes.len());
                    bytes[place] = *byte;
                }
            }
            bytes
        };
        let bytes = damaged(v1::AgentMessage::from(agent).encode_to_vec());
        let _ = v1::AgentMessage::decode(bytes.as_slice()).map(agent_message);
        let bytes = damaged(v1::ControllerMessage::from(controller).encode_to_vec());
        let _ = v1::ControllerMessage::decode(bytes.as_slice()).map(controller_message);
        let item = tunnel_item(&tunnel);
        let _ = meaning(&Item { content: damaged(item.content.clone()), ..item });
    }

    #[test]
    fn a_device_is_meant_as_it_was_written(
        name in device(), networks in networks(), key in option::of(Just("prod".parse().unwrap())),
    ) {
        let addresses: Vec<IpNet> = networks
            .iter()
            .filter(|net| parse_interface_address(&net.to_string()).is_ok())
            .copied()
            .collect();
        prop_assume!(!addresses.is_empty());
        let device = DeviceSpec { addresses, key };
        let item = device_item(&name, &device);
        prop_assert_eq!(&item.id, &ItemId::Device(name.clone()));
        prop_assert_eq!(item.tag, Tag::of(&item.content));
        for item in [item.clone(), extended(item)] {
            prop_assert_eq!(&carried(&item), &item);
            prop_assert_eq!(meaning(&item), Ok(Meaning::Device(name.clone(), device.clone())));
        }
    }

    #[test]
    fn a_tunnel_is_meant_as_it_was_written(tunnel in any_tunnel_spec()) {
        let item = tunnel_item(&tunnel);
        prop_assert_eq!(&item.id, &ItemId::Tunnel(tunnel.name.clone()));
        prop_assert_eq!(item.tag, Tag::of(&item.content));
        for item in [item.clone(), extended(item)] {
            prop_assert_eq!(&carried(&item), &item);
            prop_assert_eq!(meaning(&item), Ok(Meaning::Tunnel(tunnel.clone())));
        }
    }

    #[test]
    fn tags_tell_different_tunnels_apart(one in any_tunnel_spec(), other in any_tunnel_spec()) {
        prop_assert_eq!(tunnel_item(&one).tag == tunnel_item(&other).tag, one == other);
    }
}

#[test]
fn what_only_a_later_release_says_is_passed_over() {
    for bytes in [&[][..], LATER] {
        assert_eq!(of_agent(bytes), Ok(None));
        assert_eq!(of_controller(bytes), Ok(None));
    }
    // A field that this release does not know, inside a message that it knows.
    let mut goodbye = vec![0x32, u8::try_from(LATER.len()).unwrap()];
    goodbye.extend_from_slice(LATER);
    assert_eq!(of_agent(&goodbye), Ok(Some(AgentMessage::Goodbye)));
}

fn tunnel_content(change: impl FnOnce(&mut v1::Tunnel)) -> Item {
    let mut tunnel = v1::Tunnel {
        name: "prod.minion-2".to_owned(),
        device: "prod".to_owned(),
        remote: "172.100.1.2:5000".to_owned(),
        framing: v1::tunnel::Framing::Raw.into(),
        ..v1::Tunnel::default()
    };
    change(&mut tunnel);
    let content = tunnel.encode_to_vec();
    Item { id: "tunnel prod.minion-2".parse().unwrap(), tag: Tag::of(&content), content }
}

#[test]
fn a_tunnel_of_a_later_framing_is_refused_by_name_and_kept_whole() {
    let item = tunnel_content(|tunnel| tunnel.framing = 9);
    assert_eq!(carried(&item), item);
    let error = meaning(&item).unwrap_err();
    assert_eq!((error.kind, error.field, error.value.as_str()), (ErrorKind::Invalid, Field::Framing, "9"));
}

#[test]
fn an_item_that_cannot_be_meant_says_why() {
    let device = |wire: v1::Device| {
        let content = wire.encode_to_vec();
        Item { id: "device prod".parse().unwrap(), tag: Tag::of(&content), content }
    };
    let named = |name: &str, addresses: &[&str]| v1::Device {
        name: name.to_owned(),
        addresses: addresses.iter().map(|address| (*address).to_owned()).collect(),
        key: String::new(),
    };
    let keyed = v1::Device { key: "no mesh".to_owned(), ..named("prod", &["10.9.0.1/24"]) };
    let cases = [
        (
            tunnel_content(|tunnel| tunnel.name = "prod.minion-3".to_owned()),
            Field::Name,
            "tunnel prod.minion-2",
        ),
        (tunnel_content(|tunnel| tunnel.remote.clear()), Field::Remote, "is missing"),
        (
            tunnel_content(|tunnel| tunnel.addresses.push("10.9.0.1/24".to_owned())),
            Field::Addresses,
            "a device's, not a tunnel's",
        ),
        (Item { content: vec![0xff], ..tunnel_content(|_| ()) }, Field::Command, "cannot be read"),
        (device(named("dev", &["10.9.0.1/24"])), Field::Name, "device prod"),
        (device(keyed), Field::Device, "has the character"),
        (device(named("prod", &[])), Field::Addresses, "is missing"),
        (device(named("prod", &["10.9.0.1"])), Field::Address(0), "no prefix length"),
        (device(named("prod", &["10.9.0.1/24", "10.9.0.1/24"])), Field::Address(1), "stands twice"),
    ];
    for (item, field, problem) in cases {
        let error = meaning(&item).unwrap_err();
        assert_eq!(error.field, field, "{error:?}");
        assert!(error.fault.problem.contains(problem), "{error:?}");
    }
}

fn agent(message: v1::agent_message::Message) -> MessageError {
    agent_message(v1::AgentMessage { message: Some(message) }).unwrap_err()
}

fn controller(message: v1::controller_message::Message) -> MessageError {
    controller_message(v1::ControllerMessage { message: Some(message) }).unwrap_err()
}

#[test]
fn errors_name_field_and_problem() {
    use v1::agent_message::Message as FromAgent;
    use v1::controller_message::Message as FromController;
    let hello = || v1::Hello {
        protocol_version: 1,
        node: "minion-1".to_owned(),
        run_id: vec![1; 16],
        data_port: 5000,
        ..v1::Hello::default()
    };
    let some = Some(v1::Generation { incarnation: 1, revision: 1 });
    let tunnel = || v1::TunnelReport {
        name: "t".to_owned(),
        device: "d".to_owned(),
        owner: 1,
        state: 1,
        ..v1::TunnelReport::default()
    };
    let report = |tunnel| FromAgent::Report(v1::Report { tunnels: vec![tunnel], ..v1::Report::default() });
    let of_agent = [
        (FromAgent::Hello(v1::Hello { protocol_version: 0, ..hello() }), "protocol_version", "is missing"),
        (FromAgent::Hello(v1::Hello { node: String::new(), ..hello() }), "node", "is empty"),
        (FromAgent::Hello(v1::Hello { run_id: vec![1; 15], ..hello() }), "run_id", "not 16 bytes"),
        (FromAgent::Hello(v1::Hello { have: some, ..hello() }), "digest", "not 16 bytes"),
        (FromAgent::Hello(v1::Hello { data_port: 0, ..hello() }), "data_port", "is no port"),
        (FromAgent::Hello(v1::Hello { data_port: 65_536, ..hello() }), "data_port", "is no port"),
        (
            FromAgent::Hello(v1::Hello { endpoint: "a b".to_owned(), ..hello() }),
            "endpoint",
            "\"a b\" is neither",
        ),
        (FromAgent::Ack(v1::Ack::default()), "generation", "is missing"),
        (
            FromAgent::Ack(v1::Ack {
                generation: some,
                failures: vec![v1::Failure::default()],
                removals_held: Vec::new(),
            }),
            "item",
            "is missing",
        ),
        (report(v1::TunnelReport { name: String::new(), ..tunnel() }), "name", "is empty"),
        (report(v1::TunnelReport { owner: 0, ..tunnel() }), "owner", "is missing"),
        (report(v1::TunnelReport { owner: 9, ..tunnel() }), "owner", "9 is none of this version"),
        (report(v1::TunnelReport { state: 0, ..tunnel() }), "state", "is missing"),
        (report(v1::TunnelReport { state: 9, ..tunnel() }), "state", "9 is none of this version"),
        (report(v1::TunnelReport { device: "a/b".to_owned(), ..tunnel() }), "device", "character '/'"),
    ];
    let of_agent = of_agent.map(|(message, field, problem)| (agent(message), field, problem));
    let item = |id: Option<v1::item_id::Id>, tag| v1::Item {
        id: Some(v1::ItemId { id }),
        tag: vec![1; tag],
        content: Vec::new(),
    };
    let snapshot = |item| {
        FromController::Snapshot(v1::SnapshotChunk {
            generation: some,
            items: vec![item],
            ..v1::SnapshotChunk::default()
        })
    };
    let device = |name: &str| Some(v1::item_id::Id::Device(name.to_owned()));
    let of_controller = [
        (FromController::NotModified(v1::NotModified::default()), "generation", "is missing"),
        (FromController::Snapshot(v1::SnapshotChunk::default()), "generation", "is missing"),
        (
            FromController::Snapshot(v1::SnapshotChunk {
                generation: some,
                last: true,
                ..v1::SnapshotChunk::default()
            }),
            "digest",
            "not 16 bytes",
        ),
        (snapshot(item(device("d"), 15)), "tag", "not 16 bytes"),
        (snapshot(item(None, 16)), "item", "is missing"),
        (snapshot(item(device("all"), 16)), "item.device", "\"all\" "),
        (FromController::Delta(v1::Delta::default()), "base", "is missing"),
        (FromController::Delta(v1::Delta { base: some, ..v1::Delta::default() }), "generation", "is missing"),
    ];
    let of_controller = of_controller.map(|(message, field, problem)| (controller(message), field, problem));
    for (error, field, problem) in of_agent.into_iter().chain(of_controller) {
        assert_eq!(error.field, field, "{error}");
        assert!(error.to_string().contains(problem), "{error}");
    }
}

#[test]
fn a_flood_of_a_value_is_shown_cut() {
    let hello = v1::Hello { protocol_version: 1, node: "x y".repeat(100_000), ..v1::Hello::default() };
    let words = agent(v1::agent_message::Message::Hello(hello)).to_string();
    assert!(words.len() < 400 && words.contains('…'), "{words}");
}

/// What is said twice of one thing counts once, as the later has it.
#[test]
fn of_two_the_later_counts() {
    let id = || Some(v1::ItemId::from("tunnel t".parse::<ItemId>().unwrap()));
    let ack = v1::Ack {
        generation: Some(v1::Generation::default()),
        failures: ["a", "b"].map(|reason| v1::Failure { item: id(), reason: reason.to_owned() }).into(),
        removals_held: Vec::new(),
    };
    let message = v1::AgentMessage { message: Some(v1::agent_message::Message::Ack(ack)) };
    let Some(AgentMessage::Ack(ack)) = agent_message(message).unwrap() else { panic!("no ack") };
    assert_eq!(ack.failures, BTreeMap::from([("tunnel t".parse().unwrap(), "b".to_owned())]));
}

/// A node of several large meshes, of which nothing works.
#[test]
fn an_acknowledgement_with_many_failures_fits_a_message() {
    let items = (0..8000).map(|n| format!("tunnel a-mesh-of-many.{n:063}").parse().unwrap());
    let failures: BTreeMap<ItemId, String> = items.map(|item| (item, "ä".repeat(500))).collect();
    let ack = Ack { generation: Generation::default(), failures, removals_held: BTreeSet::new() };
    let wire = v1::AgentMessage::from(AgentMessage::Ack(ack.clone()));
    assert!(wire.encoded_len() < 1 << 20, "{}", wire.encoded_len());
    let Ok(Some(AgentMessage::Ack(read))) = agent_message(wire) else { panic!() };
    assert!(read.failures.keys().eq(ack.failures.keys()));
    assert!(read.failures.values().all(|words| words.starts_with("ää")), "each says something");
}

/// An agent that wants to fill the controller's memory or disk.
#[test]
fn what_an_agent_says_in_words_is_short_or_cut() {
    let long = "ä".repeat(1_000_000);
    let resync = v1::Resync { reason: long.clone() };
    let message = v1::AgentMessage { message: Some(v1::agent_message::Message::Resync(resync)) };
    let Ok(Some(AgentMessage::Resync(reason))) = agent_message(message) else { panic!() };
    assert_eq!(reason, "ä".repeat(500));
    let failure = v1::Failure {
        item: Some(v1::ItemId::from("device m".parse::<ItemId>().unwrap())),
        reason: long.clone(),
    };
    let generation = Some(v1::Generation { incarnation: 1, revision: 1 });
    let ack = v1::Ack { generation, failures: vec![failure], ..v1::Ack::default() };
    let message = v1::AgentMessage { message: Some(v1::agent_message::Message::Ack(ack)) };
    let Ok(Some(AgentMessage::Ack(ack))) = agent_message(message) else { panic!() };
    assert_eq!(ack.failures.into_values().collect::<Vec<_>>(), ["ä".repeat(500)]);
    let with_labels = |labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let hello = v1::Hello {
            protocol_version: 1,
            node: "n1".to_owned(),
            run_id: vec![0; 16],
            data_port: 5000,
            labels,
            version: long.clone(),
            ..v1::Hello::default()
        };
        agent_message(v1::AgentMessage { message: Some(v1::agent_message::Message::Hello(hello)) })
    };
    let Ok(Some(AgentMessage::Hello(hello))) = with_labels(&[("role", "web"), ("a/b.c-d_e", "")]) else {
        panic!()
    };
    assert_eq!(hello.version, "ä".repeat(500));
    for bad in [("role", long.as_str()), (long.as_str(), "web"), ("", "web"), ("ro le", "web")] {
        assert_eq!(with_labels(&[bad]).unwrap_err().field, "labels");
    }
    let many: Vec<String> = (0..65).map(|number| format!("l{number}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|key| (key.as_str(), "")).collect();
    assert!(with_labels(&many[..64]).is_ok());
    assert_eq!(with_labels(&many).unwrap_err().field, "labels");
}
