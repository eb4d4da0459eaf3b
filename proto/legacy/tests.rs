use proptest::prelude::*;

use super::*;

fn one(datagram: &str) -> Entry {
    let mut entries = parse(datagram.as_bytes()).unwrap().entries;
    assert_eq!(entries.len(), 1, "{datagram}");
    entries.remove(0)
}

/// An `add` of udp2 in which `fields` replace those of the same name.
fn add(fields: Value) -> Result<Command, CommandError> {
    let mut tunnel = json!({ "name": "udp2", "tunnelIP": "10.0.1.1", "remoteServer": "172.100.1.2" });
    tunnel.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    one(&json!({ "op": "add", "tunnel": [tunnel] }).to_string()).command
}

fn spec_of(fields: Value) -> TunnelSpec {
    match add(fields.clone()) {
        Ok(Command::Add { tunnel, replace: true }) => *tunnel,
        other => panic!("{fields} gave {other:?}"),
    }
}

fn error_of(fields: Value) -> String {
    let error = add(fields.clone()).expect_err(&fields.to_string());
    error.describe(field_name(error.field))
}

#[test]
fn add_becomes_a_command() {
    let entry =
        one(r#"{"op": "add", "tunnel": [{"name": "udp2", "tunnelIP": "10.0.1.1", "netmask": "255.255.255.0",
            "mtu": "1400", "remoteServer": "172.100.1.2", "colour": ["red"]}], "version": 2}"#);
    assert_eq!(entry.key, "udp2");
    let tunnel = TunnelSpec {
        name: "udp2".parse().unwrap(),
        device: "udp2".parse().unwrap(),
        addresses: vec!["10.0.1.1/24".parse().unwrap()],
        mtu: Some(Mtu::try_from(1400).unwrap()),
        remote: Some("172.100.1.2".parse().unwrap()),
        framing: Framing::Pi,
        keepalive: None,
        also_plain: false,
        probed: false,
        echo: None,
        allowed_prefixes: vec![],
        routes: vec![],
        without: Offloads::new(),
    };
    assert_eq!(entry.command, Ok(Command::Add { tunnel: Box::new(tunnel), replace: true }));
}

#[test]
fn del_needs_only_the_name() {
    let delete = Ok(Command::Delete { name: "a-name-too-long-for-a-device".parse().unwrap() });
    for fields in [r#""#, r#", "mtu": [], "tunnelIP": 5, "netmask": "?", "remoteServer": null"#] {
        let datagram =
            format!(r#"{{"op": "del", "tunnel": [{{"name": "a-name-too-long-for-a-device"{fields}}}]}}"#);
        assert_eq!(one(&datagram).command, delete, "{datagram}");
    }
}

#[test]
fn addresses_and_netmasks() {
    let cases = [
        (json!({}), "10.0.1.1/30"),
        (json!({ "netmask": null }), "10.0.1.1/30"),
        (json!({ "netmask": "255.255.255.252" }), "10.0.1.1/30"),
        (json!({ "netmask": "255.255.0.0" }), "10.0.1.1/16"),
        (json!({ "netmask": "255.255.255.255" }), "10.0.1.1/32"),
        (json!({ "netmask": "24" }), "10.0.1.1/24"),
        (json!({ "netmask": 24 }), "10.0.1.1/24"),
        (json!({ "tunnelIP": "10.0.1.1/29" }), "10.0.1.1/29"),
        (json!({ "tunnelIP": "10.0.1.1/29", "netmask": "255.255.255.248" }), "10.0.1.1/29"),
        (json!({ "tunnelIP": "10.0.1.0", "netmask": 31 }), "10.0.1.0/31"),
        (json!({ "tunnelIP": "fd00:1::1" }), "fd00:1::1/126"),
        (json!({ "tunnelIP": "fd00:1::1", "netmask": 64 }), "fd00:1::1/64"),
        (json!({ "tunnelIP": "fd00:1::1", "netmask": "64" }), "fd00:1::1/64"),
        (json!({ "tunnelIP": "fd00:1::1", "netmask": "ffff:ffff:ffff::" }), "fd00:1::1/48"),
        (json!({ "tunnelIP": "fd00:1::1/64" }), "fd00:1::1/64"),
    ];
    for (fields, address) in cases {
        assert_eq!(spec_of(fields.clone()).addresses, [address.parse().unwrap()], "{fields}");
    }
}

#[test]
fn mtus() {
    let cases = [
        (json!({}), 1500),
        (json!({ "mtu": null }), 1500),
        (json!({ "mtu": 1400 }), 1400),
        (json!({ "mtu": "1400" }), 1400),
        (json!({ "mtu": 68 }), 68),
        (json!({ "mtu": 65535 }), 65535),
    ];
    for (fields, mtu) in cases {
        assert_eq!(spec_of(fields.clone()).mtu.map(Mtu::get), Some(mtu), "{fields}");
    }
}

#[test]
fn remotes() {
    for remote in ["172.100.1.2", "minion-2", "minion-2.example.net:5000", "fd00::2", "[fd00::2]:6000"] {
        assert_eq!(spec_of(json!({ "remoteServer": remote })).remote, Some(remote.parse().unwrap()));
    }
}

#[test]
fn a_fault_names_its_field_and_value() {
    let cases = [
        (json!({ "name": null }), "name is missing; "),
        (json!({ "name": "" }), "name is empty; "),
        (json!({ "name": 5 }), r#"name "5" is a number; "#),
        (
            json!({ "name": "sixteen-bytes-xy" }),
            r#"name "sixteen-bytes-xy" is 16 bytes long; use at most 15"#,
        ),
        (json!({ "name": "a/b" }), r#"name "a/b" has the character '/'"#),
        (json!({ "tunnelIP": null }), "tunnelIP is missing; "),
        (json!({ "tunnelIP": 10 }), r#"tunnelIP "10" is a number; "#),
        (json!({ "tunnelIP": "10.0.1" }), r#"tunnelIP "10.0.1" is not an address; "#),
        (json!({ "tunnelIP": "10.0.1.1/33" }), r#"tunnelIP "10.0.1.1/33" is not an address; "#),
        (json!({ "tunnelIP": "10.0.1.0" }), r#"tunnelIP "10.0.1.0/30" is the address of the network itself"#),
        (json!({ "tunnelIP": "10.0.1.3" }), r#"tunnelIP "10.0.1.3/30" is the network's broadcast address"#),
        (json!({ "tunnelIP": "127.0.0.1" }), r#"tunnelIP "127.0.0.1/30" is no single host's address"#),
        (json!({ "netmask": "255.0.255.0" }), r#"netmask "255.0.255.0" is no netmask for the address; "#),
        (json!({ "netmask": "0.0.0.255" }), r#"netmask "0.0.0.255" is no netmask"#),
        (json!({ "netmask": "wide" }), r#"netmask "wide" is no netmask"#),
        (json!({ "netmask": "" }), r#"netmask is no netmask"#),
        (json!({ "netmask": 33 }), r#"netmask "33" is out of range; "#),
        (json!({ "netmask": "33" }), r#"netmask "33" is out of range; "#),
        (json!({ "netmask": 256 }), r#"netmask "256" is no netmask"#),
        (json!({ "netmask": -1 }), r#"netmask "-1" is no netmask"#),
        (json!({ "netmask": 24.5 }), r#"netmask "24.5" is no netmask"#),
        (json!({ "netmask": [24] }), r#"netmask "[24]" is no netmask"#),
        (json!({ "netmask": true }), r#"netmask "true" is no netmask"#),
        (json!({ "netmask": "ffff::" }), r#"netmask "ffff::" is no netmask for the address; "#),
        (
            json!({ "tunnelIP": "fd00::1", "netmask": "255.255.255.252" }),
            r#"netmask "255.255.255.252" is no"#,
        ),
        (json!({ "tunnelIP": "fd00::1", "netmask": 129 }), r#"netmask "129" is out of range; give a prefix"#),
        (
            json!({ "tunnelIP": "10.0.1.1/24", "netmask": 30 }),
            r#"netmask "30" differs from the address's own"#,
        ),
        (json!({ "mtu": 0 }), r#"mtu "0" is out of range; use 68 to 65535"#),
        (json!({ "mtu": "0" }), r#"mtu "0" is out of range"#),
        (json!({ "mtu": 67 }), r#"mtu "67" is out of range"#),
        (json!({ "mtu": 65536 }), r#"mtu "65536" is out of range"#),
        (json!({ "mtu": -1500 }), r#"mtu "-1500" is out of range"#),
        (json!({ "mtu": 4294968796_u64 }), r#"mtu "4294968796" is out of range"#),
        (json!({ "mtu": 1500.5 }), r#"mtu "1500.5" is no number of bytes"#),
        (json!({ "mtu": "" }), r#"mtu is no number of bytes"#),
        (json!({ "mtu": "big" }), r#"mtu "big" is no number of bytes"#),
        (json!({ "mtu": {} }), r#"mtu "{}" is no number of bytes"#),
        (json!({ "mtu": false }), r#"mtu "false" is no number of bytes"#),
        (json!({ "remoteServer": null }), "remoteServer is missing; "),
        (json!({ "remoteServer": ["172.100.1.2"] }), r#"remoteServer "[\"172.100.1.2\"]" is an array; "#),
        (
            json!({ "remoteServer": "172.100.1" }),
            r#"remoteServer "172.100.1" is neither an address nor a host"#,
        ),
        (json!({ "remoteServer": "0.0.0.0" }), r#"remoteServer "0.0.0.0" is no host's address"#),
    ];
    for (fields, words) in cases {
        let error = error_of(fields.clone());
        assert!(error.starts_with(words), "{fields} gave: {error}");
        assert!(error.contains("; "), "{fields} has no remedy: {error}");
    }
}

#[test]
fn one_faulty_entry_leaves_the_others() {
    let request = parse(
        br#"{"op": "del", "tunnel": [{"name": "udp1"}, 7, {}, {"name": ["x"]}, {"name": "/"}, {"name": "udp5"}]}"#,
    )
    .unwrap();
    let read: Vec<_> =
        request.entries.iter().map(|entry| (entry.key.as_str(), entry.command.is_ok())).collect();
    let wanted = [("udp1", true), ("#1", false), ("#2", false), ("#3", false), ("/", false), ("udp5", true)];
    assert_eq!(read, wanted);
    let not_object = request.entries[1].command.clone().unwrap_err();
    assert!(not_object.describe(field_name(not_object.field)).starts_with(r#"tunnel "7" is a number; "#));
}

#[test]
fn the_last_of_two_equal_fields_wins() {
    let entry = one(r#"{"op": "add", "op": "del", "tunnel": [{"name": "a", "name": "b"}]}"#);
    assert_eq!(entry.key, "b");
    assert_eq!(entry.command, Ok(Command::Delete { name: "b".parse().unwrap() }));
}

#[test]
fn malformed_datagrams() {
    let deep = [b"[".repeat(60_000), b"]".repeat(60_000)].concat();
    let cases: [(&[u8], &str); 17] = [
        (b"", "the datagram is not JSON ("),
        (b"hello", "the datagram is not JSON ("),
        (b"{'op': 'add'}", "the datagram is not JSON ("),
        (b"{\"op\": \"\xff\"}", "the datagram is not JSON ("),
        (b"{} {}", "the datagram is not JSON ("),
        (&deep, "the datagram is not JSON (recursion limit"),
        (b"null", "the datagram is null; "),
        (b"[1]", "the datagram is an array; "),
        (b"{}", "op is missing; "),
        (br#"{"op": null}"#, "op is missing; "),
        (br#"{"op": 1}"#, r#"op "1" is a number; "#),
        (br#"{"op": "ADD"}"#, r#"op "ADD" is not known; use add or del"#),
        (b"{\"op\": \"a\\nb\"}", r#"op "a\nb" is not known; "#),
        (br#"{"op": "add"}"#, "tunnel is missing; "),
        (br#"{"op": "add", "tunnel": {"name": "udp2"}}"#, r#"tunnel "{\"name\":\"udp2\"}" is an object; "#),
        (br#"{"op": "add", "tunnel": "udp2"}"#, r#"tunnel "udp2" is a string; "#),
        (br#"{"op": "add", "tunnel": []}"#, "tunnel is empty; "),
    ];
    for (datagram, words) in cases {
        let shown = String::from_utf8_lossy(&datagram[..datagram.len().min(80)]);
        let malformed = parse(datagram).expect_err(&shown).to_string();
        assert!(malformed.starts_with(words), "{shown} gave: {malformed}");
        assert!(!malformed.contains('\n'), "{shown} takes more than a line");
    }
}

fn ok(notes: &[&str]) -> Answer {
    Answer::Ok(notes.iter().map(|note| (*note).to_owned()).collect())
}

fn rendered(answers: &[(&str, Answer)], longest: Option<usize>) -> Option<String> {
    let answers: Vec<_> = answers.iter().map(|(key, answer)| ((*key).to_owned(), answer.clone())).collect();
    reply(&answers, longest).map(|bytes| String::from_utf8(bytes).unwrap())
}

#[test]
fn a_reply_has_an_entry_a_tunnel() {
    let refused = Answer::Error(r#"remoteServer "x" is bad; mend it"#.to_owned());
    let cases: [(&[(&str, Answer)], &str); 5] = [
        (&[("udp2", ok(&[]))], r#"{"udp2":"ok"}"#),
        (&[("udp2", ok(&["large", "slow"]))], r#"{"udp2":"ok; large; slow"}"#),
        (
            &[("udp2", ok(&[])), ("udp3", refused.clone())],
            r#"{"udp2":"ok","udp3":"remoteServer \"x\" is bad; mend it"}"#,
        ),
        (&[("udp2", ok(&["a"])), ("udp2", ok(&["b"]))], r#"{"udp2":"ok; a; b"}"#),
        (
            &[
                ("udp2", ok(&["a"])),
                ("udp2", refused),
                ("udp2", Answer::Error("later".into())),
                ("udp2", ok(&[])),
            ],
            r#"{"udp2":"remoteServer \"x\" is bad; mend it"}"#,
        ),
    ];
    for (answers, wanted) in cases {
        assert_eq!(rendered(answers, None).as_deref(), Some(wanted));
    }
}

#[test]
fn a_short_reply_loses_notes_then_the_ends_of_errors() {
    let answers = [
        ("a", ok(&["note"])),
        ("b", Answer::Error("0123456789".into())),
        ("c", Answer::Error("øøøøø".into())),
    ];
    let cases = [
        (100, Some(r#"{"a":"ok; note","b":"0123456789","c":"øøøøø"}"#)),
        (50, Some(r#"{"a":"ok; note","b":"0123456789","c":"øøøøø"}"#)),
        (49, Some(r#"{"a":"ok","b":"0123456789","c":"øøøøø"}"#)),
        (44, Some(r#"{"a":"ok","b":"0123456789","c":"øøøøø"}"#)),
        (43, Some(r#"{"a":"ok","b":"012345…","c":"øøø…"}"#)),
        (42, Some(r#"{"a":"ok","b":"012345…","c":"øøø…"}"#)),
        (41, Some(r#"{"a":"ok","b":"01234…","c":"error"}"#)),
        (36, Some(r#"{"a":"ok","b":"error","c":"error"}"#)),
        (34, Some(r#"{"a":"ok","b":"error","c":"error"}"#)),
        (33, None),
        (0, None),
    ];
    for (longest, wanted) in cases {
        assert_eq!(rendered(&answers, Some(longest)).as_deref(), wanted, "{longest} bytes");
    }
}

#[test]
fn a_reply_fits_a_datagram_even_on_loopback() {
    let answers: Vec<_> =
        (0..2000).map(|position| (format!("#{position}"), Answer::Error("w".repeat(100)))).collect();
    let bytes = reply(&answers, None).unwrap();
    assert!(bytes.len() <= 65_507);
    assert_eq!(parse_reply(&bytes).unwrap().entries.len(), 2000);
}

#[test]
fn a_malformed_datagram_is_answered() {
    let malformed = parse(b"{}").unwrap_err();
    let whole = format!(r#"{{"error":"{malformed}"}}"#);
    assert_eq!(malformed_reply(&malformed, None), Some(whole.into_bytes()));
    assert_eq!(malformed_reply(&malformed, Some(17)).as_deref(), Some(br#"{"error":"error"}"#.as_slice()));
    assert_eq!(malformed_reply(&malformed, Some(16)), None);
}

#[test]
fn outcomes_become_answers() {
    assert_eq!(Answer::from(Ok(Outcome::Deleted)), ok(&[]));
    let refused =
        CommandError::invalid(Field::Route(0), "0.0.0.0/0", Invalid::new("is refused", "be modest"));
    assert_eq!(
        Answer::from(Err(refused)),
        Answer::Error(r#"name "0.0.0.0/0" is refused; be modest"#.to_owned())
    );
}

#[test]
fn requests_are_those_of_2015() {
    let spec = |name: &str, address: &str| Command::Add {
        tunnel: Box::new(spec_of(json!({ "name": name, "tunnelIP": address }))),
        replace: true,
    };
    let cases = [
        (
            spec("udp2", "10.0.1.1/24"),
            json!({ "op": "add", "tunnel": [{ "name": "udp2", "tunnelIP": "10.0.1.1", "netmask": "255.255.255.0",
                "mtu": 1500, "remoteServer": "172.100.1.2" }] }),
        ),
        (
            spec("udp2", "fd00::1"),
            json!({ "op": "add", "tunnel": [{ "name": "udp2", "tunnelIP": "fd00::1", "mtu": 1500,
                "remoteServer": "172.100.1.2" }] }),
        ),
        (
            spec("udp2", "fd00::1/64"),
            json!({ "op": "add", "tunnel": [{ "name": "udp2", "tunnelIP": "fd00::1", "netmask": 64, "mtu": 1500,
                "remoteServer": "172.100.1.2" }] }),
        ),
        (
            Command::Delete { name: "udp2".parse().unwrap() },
            json!({ "op": "del", "tunnel": [{ "name": "udp2" }] }),
        ),
    ];
    for (command, wanted) in cases {
        assert_eq!(serde_json::from_slice::<Value>(&request(&command)).unwrap(), wanted);
    }
}

#[test]
fn replies_are_read() {
    /// A reply, its entries, and whether all of them are done.
    type Case = (&'static str, &'static [(&'static str, &'static str)], bool);
    let cases: [Case; 6] = [
        (r#"{"udp2": "ok"}"#, &[("udp2", "ok")], true),
        (r#"{"udp3": "ok; note", "udp2": "ok"}"#, &[("udp2", "ok"), ("udp3", "ok; note")], true),
        (r#"{"udp2": "ok", "udp3": "mtu is bad"}"#, &[("udp2", "ok"), ("udp3", "mtu is bad")], false),
        (r#"{"error": "op is missing"}"#, &[("error", "op is missing")], false),
        (r#"{"udp2": "okay"}"#, &[("udp2", "okay")], false),
        ("{}", &[], false),
    ];
    for (text, entries, all_ok) in cases {
        let reply = parse_reply(text.as_bytes()).unwrap();
        let read: Vec<_> = reply.entries.iter().map(|(key, words)| (key.as_str(), words.as_str())).collect();
        assert_eq!(read, entries, "{text}");
        assert_eq!(reply.is_ok(), all_ok, "{text}");
    }
    for text in ["", "ok", "[]", r#"{"udp2": 1}"#, r#"{"udp2": {"state": "ok"}}"#] {
        assert!(parse_reply(text.as_bytes()).is_err(), "{text}");
    }
}

fn any_command() -> impl Strategy<Value = Command> {
    let address = prop_oneof![
        (any::<[u8; 4]>(), 0..=32u8)
            .prop_map(|(address, prefix)| IpNet::new(address.into(), prefix).unwrap()),
        (any::<[u8; 16]>(), 0..=128u8)
            .prop_map(|(address, prefix)| IpNet::new(address.into(), prefix).unwrap()),
    ];
    let address = address.prop_filter("no interface's address", |net| check_interface_address(*net).is_ok());
    let remote = prop_oneof![
        any::<std::net::IpAddr>().prop_map(|address| address.to_string()),
        any::<std::net::SocketAddr>().prop_map(|socket| socket.to_string()),
        "[a-z]([a-zA-Z0-9_-]{0,20}\\.){0,3}[a-z]{1,9}(:[1-9][0-9]{0,3})?",
    ];
    let remote = remote.prop_filter_map("no remote", |text| text.parse().ok().map(Some));
    let add = ("[a-zA-Z0-9][a-zA-Z0-9._-]{0,14}", address, 68..=65_535u32, remote).prop_map(
        |(name, address, mtu, remote)| Command::Add {
            tunnel: Box::new(TunnelSpec {
                name: name.parse().unwrap(),
                device: name.parse().unwrap(),
                addresses: vec![address],
                mtu: Some(Mtu::try_from(mtu).unwrap()),
                remote,
                framing: Framing::Pi,
                keepalive: None,
                also_plain: false,
                probed: false,
                echo: None,
                allowed_prefixes: vec![],
                routes: vec![],
                without: Offloads::new(),
            }),
            replace: true,
        },
    );
    let delete =
        "[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}".prop_map(|name| Command::Delete { name: name.parse().unwrap() });
    prop_oneof![4 => add, 1 => delete]
}

/// JSON that is nearly a datagram, so that more than the outermost brackets is read.
fn near_datagram() -> impl Strategy<Value = String> {
    let scalar = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        "[0-9./:]{0,20}".prop_map(Value::from),
        Just(json!("10.0.1.1")),
        Just(json!([{}])),
    ];
    let keys = prop::sample::select(vec![NAME, TUNNEL_IP, NETMASK, MTU, REMOTE_SERVER]);
    let entry = prop_oneof![
        4 => prop::collection::btree_map(keys.prop_map(str::to_owned), scalar.clone(), 0..6)
            .prop_map(|fields| json!(fields)),
        1 => scalar,
    ];
    (prop::sample::select(vec!["add", "del"]), prop::collection::vec(entry, 0..5))
        .prop_map(|(op, tunnel)| json!({ OP: op, TUNNEL: tunnel }).to_string())
}

fn any_answers() -> impl Strategy<Value = Vec<(String, Answer)>> {
    let answer = prop_oneof![
        prop::collection::vec("\\PC{0,30}", 0..3).prop_map(Answer::Ok),
        "(?s).{0,80}".prop_map(Answer::Error),
    ];
    prop::collection::vec(("(?s).{0,6}", answer), 1..6)
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_reply(&bytes);
        if let Err(malformed) = parse(&bytes) {
            prop_assert!(malformed_reply(&malformed, None).is_some());
        }
    }

    #[test]
    fn near_datagrams_are_read_or_refused(text in near_datagram()) {
        if let Ok(request) = parse(text.as_bytes()) {
            for entry in request.entries {
                if let Err(error) = entry.command {
                    prop_assert!(!error.describe(field_name(error.field)).is_empty());
                }
            }
        }
    }

    #[test]
    fn a_request_reads_as_its_command(command in any_command()) {
        let read = parse(&request(&command)).unwrap();
        let name = match &command {
            Command::Add { tunnel, replace: _ } => &tunnel.name,
            Command::Delete { name } => name,
        };
        prop_assert_eq!(read.entries, [Entry { key: name.to_string(), command: Ok(command) }]);
    }

    #[test]
    fn a_reply_is_json_and_no_longer_than_allowed(answers in any_answers(), longest in 0..400usize) {
        let keys: std::collections::BTreeSet<_> = answers.iter().map(|(key, _)| key.as_str()).collect();
        if let Some(bytes) = reply(&answers, Some(longest)) {
            prop_assert!(bytes.len() <= longest);
            let read = parse_reply(&bytes).unwrap();
            let read: std::collections::BTreeSet<_> = read.entries.iter().map(|(key, _)| key.as_str()).collect();
            prop_assert_eq!(read, keys);
        } else {
            let least: Vec<_> = answers
                .iter()
                .map(|(key, answer)| (key.clone(), match answer {
                    Answer::Ok(_) => Answer::Ok(vec![]),
                    Answer::Error(_) => Answer::Error(String::new()),
                }))
                .collect();
            // Five bytes more an entry: the word "error" in place of none.
            let least = reply(&least, None).unwrap().len() + 5 * keys.len();
            prop_assert!(least > longest, "{least} bytes would fit {longest}");
        }
    }
}

#[test]
fn an_answer_to_a_reply_is_never_answered() {
    for request in [
        &br#"{"op":"add"}"#[..],
        br#"{"op":"add","tunnel":"udp2"}"#,
        br#"{"op":"del","tunnel":[{"name":"udp2"}]}"#,
        b"{}",
        b"[]",
        b"?",
    ] {
        assert!(!is_reply(request), "{}", request.escape_ascii());
    }
    // Whoever asks chooses the keys of the reply.
    for key in ["udp2", "error", TUNNEL, OP, "", "{"] {
        for answer in [Answer::Ok(vec!["note".to_owned()]), Answer::Error("no".repeat(50))] {
            for longest in [None, Some(60), Some(24)] {
                let Some(first) = reply(&[(key.to_owned(), answer.clone())], longest) else { continue };
                let second = parse(&first).map_err(|malformed| malformed_reply(&malformed, None).unwrap());
                let second = second.expect_err("a reply is no request");
                assert!(is_reply(&first) || is_reply(&second), "{}", first.escape_ascii());
            }
        }
    }
}
