use super::*;
use crate::proto::model::Hearing;

fn end(name: &str) -> End {
    End {
        name: name.parse().unwrap(),
        health: Some(Health::Live),
        last_heard: Some(Duration::from_secs(1)),
        clock: None,
        offers: [false; 2],
        unsent: String::new(),
        diverted: None,
        failure: None,
        loses: None,
        host: Some(Vec::new()),
        peer: Some(way(Ping::Answered)),
    }
}

fn way(ping: Ping) -> PeerFinding {
    PeerFinding {
        endpoint: Some("172.100.1.2:5000".parse().unwrap()),
        ping: Some(ping),
        port: Some(Port::OpenOrSilent),
        ..PeerFinding::default()
    }
}

/// Two nodes whose link passes so, and a third that reaches both.
fn evidence(passages: [Passage; 2]) -> Evidence {
    Evidence {
        mesh: "m".parse().unwrap(),
        ends: [end("a"), end("b")],
        link: Verdict { state: Some(LinkStanding { passages }), ..Verdict::default() },
        third: Some(Third {
            name: "c".parse().unwrap(),
            peers: [Some(way(Ping::Answered)), Some(way(Ping::Answered))],
            arrives: [Passage::Heard; 2],
        }),
    }
}

fn kinds(evidence: &Evidence) -> Vec<Kind> {
    judge(evidence).iter().map(|fault| fault.kind).collect()
}

const UP: [Passage; 2] = [Passage::Heard; 2];
const DOWN: [Passage; 2] = [Passage::Cut; 2];
const THERE_CUT: [Passage; 2] = [Passage::Cut, Passage::Heard];

#[test]
fn where_nothing_is_wrong_nothing_is_said_to_be() {
    let right = evidence(UP);
    assert_eq!(kinds(&right), []);
    let said = "Nothing is wrong between a and b in mesh m: both hear each other.";
    assert_eq!(paragraph(&right, &[]), said);
    let mut lossy = right;
    lossy.link.hearing[1] = Some(Hearing { known: 256, lost: 52, ..Hearing::default() });
    let lost = format!("{said} Of the latest 256 probes from b to a 52 were lost.");
    assert_eq!(paragraph(&lossy, &[]), lost);
}

#[test]
fn a_host_that_cannot_send_is_named_before_what_is_on_the_way() {
    let mut unsent = evidence(THERE_CUT);
    unsent.ends[0].unsent = "a firewall of its host refuses it".to_owned();
    assert_eq!(kinds(&unsent), [Kind::Unsent]);
    let words = paragraph(&unsent, &judge(&unsent));
    assert!(
        words.starts_with("The agent of a cannot send to b: a firewall of its host refuses it."),
        "{words}"
    );
    // Of the other direction it says nothing.
    let back = Evidence { link: evidence([Passage::Heard, Passage::Cut]).link, ..unsent };
    assert!(!kinds(&back).contains(&Kind::Unsent));
}

#[test]
fn an_endpoint_that_is_not_the_preferred_one_is_named_while_the_link_is_up() {
    let mut diverted = evidence(UP);
    diverted.ends[0].diverted = Some(["10.2.0.2:5000", "10.1.0.2:5000"].map(str::to_owned));
    assert_eq!(kinds(&diverted), [Kind::OtherEndpoint]);
    let words = paragraph(&diverted, &judge(&diverted));
    assert!(
        words.starts_with("a sends to b at 10.2.0.2:5000, since it does not reach it at 10.1.0.2"),
        "{words}"
    );
    let cut = Evidence { link: evidence(DOWN).link, ..diverted };
    assert!(!kinds(&cut).contains(&Kind::OtherEndpoint));
}

#[test]
fn who_is_not_there_is_told_by_what_its_host_answers() {
    let gone = |ping: Ping, port: Port, passages| {
        let mut evidence = evidence(passages);
        evidence.ends[1].health = Some(Health::Offline);
        (evidence.ends[1].host, evidence.ends[1].peer) = (None, None);
        let way = PeerFinding { port: Some(port), ..way(ping) };
        evidence.ends[0].peer = Some(way.clone());
        evidence.third.as_mut().unwrap().peers[1] = Some(way);
        kinds(&evidence)
    };
    let unheard = [Passage::Unknown, Passage::Cut];
    assert_eq!(gone(Ping::Answered, Port::Refused, unheard), [Kind::AgentDown]);
    assert_eq!(gone(Ping::Answered, Port::OpenOrSilent, unheard), [Kind::AgentDown]);
    assert_eq!(gone(Ping::Silent, Port::OpenOrSilent, unheard), [Kind::HostDown]);
    assert_eq!(gone(Ping::Answered, Port::OpenOrSilent, UP), [Kind::Away]);
    // It is heard, and does not hear.
    assert_eq!(gone(Ping::Answered, Port::OpenOrSilent, THERE_CUT), [Kind::Away, Kind::Firewall]);
}

#[test]
fn who_does_not_answer_an_examination_is_not_gone_for_that() {
    let mut silent = evidence(UP);
    (silent.ends[1].host, silent.ends[1].peer) = (None, None);
    let unanswered = Some(way(Ping::Silent));
    (silent.ends[0].peer, silent.third.as_mut().unwrap().peers[1]) = (unanswered.clone(), unanswered);
    assert_eq!(kinds(&silent), [], "its tunnels carry packets");
    silent.link = evidence(DOWN).link;
    assert_eq!(kinds(&silent), [Kind::HostDown]);
}

#[test]
fn a_peer_without_an_agent_may_be_asleep() {
    for (passages, ping) in [
        ([Passage::Unknown, Passage::Cut], Some(Ping::Answered)),
        ([Passage::Unknown, Passage::Cut], Some(Ping::Silent)),
        ([Passage::Unknown, Passage::Heard], Some(Ping::Answered)),
        ([Passage::Unknown, Passage::Cut], None),
    ] {
        let mut asleep = evidence(passages);
        asleep.ends[1].health = None;
        (asleep.ends[1].host, asleep.ends[1].peer) = (None, None);
        asleep.ends[0].peer = Some(PeerFinding { ping: ping.clone(), ..PeerFinding::default() });
        assert_eq!(kinds(&asleep), [Kind::Silent], "{passages:?} {ping:?}");
    }
}

#[test]
fn pings_that_were_not_sent_are_not_told_of() {
    for passages in [THERE_CUT, DOWN] {
        let mut unasked = evidence(passages);
        unasked.ends.iter_mut().for_each(|end| end.peer = Some(PeerFinding::default()));
        unasked.third = None;
        let told = paragraph(&unasked, &judge(&unasked));
        assert!(!told.contains("pings"), "{told}");
    }
}

#[test]
fn pings_that_pass_tell_a_firewall_from_a_cut() {
    for (passages, ping, kind) in [
        (THERE_CUT, Ping::Answered, Kind::Firewall),
        (THERE_CUT, Ping::Silent, Kind::OneWay),
        (DOWN, Ping::Answered, Kind::Firewall),
        (DOWN, Ping::Silent, Kind::PathCut),
        (DOWN, Ping::NoWay("no route to host".to_owned()), Kind::PathCut),
        ([Passage::Unknown, Passage::Cut], Ping::Silent, Kind::PathCut),
        ([Passage::Unknown; 2], Ping::Silent, Kind::Unclear),
        ([Passage::Unknown; 2], Ping::Answered, Kind::Unclear),
    ] {
        let mut evidence = evidence(passages);
        evidence.ends.iter_mut().for_each(|end| end.peer = Some(way(ping.clone())));
        assert_eq!(kinds(&evidence), [kind], "{passages:?} {ping:?}");
    }
}

#[test]
fn where_a_firewall_is_the_third_one_says() {
    let said = |arrives: Passage| {
        let mut evidence = evidence(THERE_CUT);
        evidence.third.as_mut().unwrap().arrives[1] = arrives;
        judge(&evidence)[0].words.clone()
    };
    assert!(said(Passage::Cut).contains("at the host of b or close to it"), "{}", said(Passage::Cut));
    assert!(said(Passage::Heard).contains("on the way from a"), "{}", said(Passage::Heard));
}

#[test]
fn what_is_set_up_wrong_comes_before_what_follows_from_it() {
    let mut wrong = evidence(DOWN);
    wrong.ends[1].peer = Some(PeerFinding { other_key: true, ..way(Ping::Answered) });
    assert_eq!(kinds(&wrong), [Kind::WrongKey]);
    // Somebody else may use the address of a peer that is heard.
    wrong.link = evidence(UP).link;
    assert_eq!(kinds(&wrong), []);
    let mut strayed = evidence(UP);
    let finding = PeerFinding {
        strayed: Some(([10, 9, 0, 2].into(), "device eth0".to_owned())),
        ..way(Ping::Answered)
    };
    strayed.ends[0].peer = Some(finding);
    assert_eq!(kinds(&strayed), [Kind::OverlappingRoute]);
    let mut failed = evidence(DOWN);
    failed.ends[0].failure = Some("device m is another's".to_owned());
    assert_eq!(kinds(&failed), [Kind::Tunnel]);
    let refusing = || Some(PeerFinding { port: Some(Port::Refused), ..way(Ping::Answered) });
    let mut elsewhere = evidence(DOWN);
    elsewhere.ends[0].peer = refusing();
    elsewhere.third.as_mut().unwrap().arrives = [Passage::Unknown; 2];
    assert_eq!(kinds(&elsewhere), [Kind::NobodyListens]);
    // The agent runs: somebody before it says so.
    let mut rejected = evidence(THERE_CUT);
    rejected.ends[0].peer = refusing();
    assert_eq!(kinds(&rejected), [Kind::Firewall]);
}

#[test]
fn what_stands_beside_a_link_is_told_with_it() {
    let mut beside = evidence(THERE_CUT);
    beside.ends[0].loses = Some((1401, 1400));
    beside.ends[1].clock =
        Some("its clock is 1 h 0 min behind the controller's: set the one that is wrong".to_owned());
    let subjects = [
        HostSubject::ForwardingV4,
        HostSubject::ForwardingV6,
        HostSubject::ReversePath,
        HostSubject::Firewall,
    ];
    let findings = |subject| HostFinding { subject, found: "f".to_owned() };
    beside.ends[0].host = Some(subjects.map(findings).into());
    assert_eq!(kinds(&beside), [Kind::Firewall, Kind::SmallPath, Kind::ReversePath, Kind::ClockOff]);
    beside.ends[0].offers = [true, false];
    let all =
        [Kind::SmallPath, Kind::ForwardingOff, Kind::ReversePath, Kind::ForwardFirewall, Kind::ClockOff];
    beside.link = evidence(UP).link;
    assert_eq!(kinds(&beside), all);
    beside.ends[0].offers = [false; 2];
    assert_eq!(
        kinds(&beside),
        [Kind::SmallPath, Kind::ClockOff],
        "what goes straight into its tunnel passes"
    );
    let faults = judge(&beside);
    let text = paragraph(&beside, &faults);
    assert!(faults.iter().all(|fault| text.contains(&fault.words) && text.contains(&fault.remedy)), "{text}");
}
