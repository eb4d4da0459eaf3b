//! What is wrong between two nodes, by what both have told and tried, and a third one beside them.
//!
//! Whoever has no session says nothing, and what is not known is not taken for anything: a fault is named where something was
//! seen that it alone explains, the one nearest to the cause first.

use std::fmt;
use std::time::Duration;

use crate::controller::registry::Health;
use crate::controller::state::{LinkStanding, Passage, Verdict};
use crate::proto::model::NodeName;
use crate::proto::session::{HostFinding, HostSubject, PeerFinding, Ping, Port};
use crate::proto::words::{fine, span};

/// What is known of one of both nodes.
#[derive(Debug, Clone)]
pub struct End {
    /// Its name.
    pub name: NodeName,
    /// Whether its agent is there; absent: it has none.
    pub health: Option<Health>,
    /// How long ago it was heard; absent: never since the controller's start.
    pub last_heard: Option<Duration>,
    /// That its clock is off, in words.
    pub clock: Option<String>,
    /// Whether a network behind it is reached through it.
    pub offers: bool,
    /// Why its tunnel to the other one cannot be had.
    pub failure: Option<String>,
    /// From which size on the path loses packets to the other one without a word, and how many bytes come through.
    pub loses: Option<(u16, u16)>,
    /// What it found wrong with its host; absent: it did not answer.
    pub host: Option<Vec<HostFinding>>,
    /// How it reaches the other one; absent: it did not say.
    pub peer: Option<PeerFinding>,
}

/// What a third node says of both.
#[derive(Debug, Clone)]
pub struct Third {
    /// Its name.
    pub name: NodeName,
    /// How it reaches each of both; absent: it did not say.
    pub peers: [Option<PeerFinding>; 2],
    /// Whether what it sends arrives at each of both.
    pub arrives: [Passage; 2],
}

/// All that is known.
#[derive(Debug, Clone)]
pub struct Evidence {
    /// Both nodes.
    pub ends: [End; 2],
    /// Their link, from the first to the second.
    pub link: Verdict,
    /// Who was asked, too.
    pub third: Option<Third>,
}

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A host is down or reaches nobody.
    HostDown,
    /// The agent of a host that is there does not run.
    AgentDown,
    /// An agent has no session, though its tunnels work.
    Away,
    /// A tunnel cannot be had on a host.
    Tunnel,
    /// The ends do not have each other's keys.
    WrongKey,
    /// Packets for the overlay go elsewhere.
    OverlappingRoute,
    /// Something drops what goes to the data port.
    Firewall,
    /// Nobody listens where datagrams go.
    NobodyListens,
    /// One direction is cut.
    OneWay,
    /// Nothing passes between both hosts.
    PathCut,
    /// The path loses large packets without a word.
    SmallPath,
    /// A host does not forward what it offers.
    ForwardingOff,
    /// The reverse-path filter of a host is strict.
    ReversePath,
    /// A firewall drops what a host is to forward.
    ForwardFirewall,
    /// A clock is off.
    ClockOff,
    /// The link is not up, and nothing says why.
    Unclear,
}

impl Kind {
    /// As it is told.
    pub fn name(self) -> &'static str {
        match self {
            Self::HostDown => "host-down",
            Self::AgentDown => "agent-down",
            Self::Away => "away",
            Self::Tunnel => "tunnel",
            Self::WrongKey => "wrong-key",
            Self::OverlappingRoute => "overlapping-route",
            Self::Firewall => "firewall",
            Self::NobodyListens => "nobody-listens",
            Self::OneWay => "one-way",
            Self::PathCut => "path-cut",
            Self::SmallPath => "small-path",
            Self::ForwardingOff => "forwarding-off",
            Self::ReversePath => "reverse-path",
            Self::ForwardFirewall => "forward-firewall",
            Self::ClockOff => "clock-off",
            Self::Unclear => "unclear",
        }
    }
}

/// Something that is wrong, and what to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What kind of fault it is.
    pub kind: Kind,
    /// What is wrong, in a sentence.
    pub words: String,
    /// What to try, in another; empty: nothing is known.
    pub remedy: String,
}

impl Fault {
    fn new(kind: Kind, words: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { kind, words: words.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, " {}", self.remedy) }
    }
}

/// What is wrong, what keeps everything from passing first. Empty: nothing is.
pub fn judge(evidence: &Evidence) -> Vec<Fault> {
    let mut faults = absent(evidence);
    if faults.is_empty() {
        faults.extend(connection(evidence));
    }
    faults
        .extend(evidence.ends.iter().zip(others(evidence)).filter_map(|(end, other)| small_path(end, other)));
    faults.extend(evidence.ends.iter().flat_map(host));
    faults.extend(evidence.ends.iter().filter_map(clock));
    faults
}

/// All of it in one paragraph.
pub fn paragraph(evidence: &Evidence, faults: &[Fault]) -> String {
    if !faults.is_empty() {
        return faults.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    }
    let [a, b] = &evidence.ends;
    let trip = evidence.link.round_trip.map(|trip| format!(", there and back in {}", fine(trip)));
    format!(
        "Nothing is wrong between {} and {}: both hear each other{}.",
        a.name,
        b.name,
        trip.unwrap_or_default()
    )
}

fn others(evidence: &Evidence) -> [&End; 2] {
    let [a, b] = &evidence.ends;
    [b, a]
}

impl Evidence {
    /// What is said by others of the way to an end.
    fn ways_to(&self, end: usize) -> impl Iterator<Item = &PeerFinding> {
        let third = self.third.as_ref().and_then(|third| third.peers.get(end)?.as_ref());
        let other = self.ends.get(1 - end).and_then(|other| other.peer.as_ref());
        other.into_iter().chain(third)
    }

    /// Whether the host of an end has answered anybody; `None`: nobody has asked it.
    fn answers(&self, end: usize) -> Option<bool> {
        let mut asked = self.ways_to(end).filter_map(|way| way.ping.as_ref()).peekable();
        asked.peek()?;
        Some(asked.any(|ping| *ping == Ping::Answered))
    }

    fn is_up(&self) -> bool {
        self.link.state == Some(LinkStanding { passages: [Passage::Heard; 2] })
    }

    /// By whom an end was asked, in words.
    fn askers(&self, end: usize) -> String {
        let other = self.ends.get(1 - end).filter(|other| other.peer.is_some()).map(|other| &other.name);
        let third = self.third.as_ref().filter(|third| third.peers.get(end).is_some_and(Option::is_some));
        let names: Vec<&str> =
            other.into_iter().chain(third.map(|third| &third.name)).map(NodeName::as_str).collect();
        if names.is_empty() { "nobody".to_owned() } else { names.join(" and ") }
    }
}

/// Ends that are not there.
fn absent(evidence: &Evidence) -> Vec<Fault> {
    let judged = evidence.ends.iter().enumerate().filter_map(|(n, end)| {
        let name = &end.name;
        let answers = evidence.answers(n);
        if end.health? == Health::Live {
            // It may have gone a moment ago: then it has not answered, and answers nobody.
            let is_gone = end.host.is_none() && evidence.third.is_some() && answers == Some(false);
            return is_gone.then(|| host_down(evidence, n));
        }
        let heard = end.last_heard.map_or_else(
            || "not since the controller started".to_owned(),
            |ago| format!("last {} ago", span(ago)),
        );
        match answers {
            _ if evidence.is_up() => Some(Fault::new(
                Kind::Away,
                format!("The agent of {name} has no session with the controller, which heard of it {heard}, but its tunnels carry packets."),
                format!("Try `agent status` on {name}: it says why it does not reach the controller."),
            )),
            Some(true) => {
                let is_refused = evidence.ways_to(n).any(|way| way.port == Some(Port::Refused));
                let sign = match is_refused {
                    true => "nobody listens at its data port",
                    false => "nothing else comes from it",
                };
                Some(Fault::new(
                    Kind::AgentDown,
                    format!(
                        "The agent of {name} does not run: its host answers {}, but {sign}, and the controller heard of it {heard}.",
                        evidence.askers(n)
                    ),
                    format!("Start the agent on {name}, and see in its log why it ended."),
                ))
            }
            Some(false) => Some(host_down(evidence, n)),
            None => Some(Fault::new(
                Kind::HostDown,
                format!("Nothing is known of {name}: the controller heard of it {heard}, and nobody else can ask its host."),
                format!("See whether the host of {name} and its agent run."),
            )),
        }
    });
    judged.collect()
}

fn host_down(evidence: &Evidence, end: usize) -> Fault {
    let Some(End { name, last_heard, .. }) = evidence.ends.get(end) else {
        return Fault::new(Kind::Unclear, "Nothing is known.", "");
    };
    let heard = last_heard
        .map_or_else(String::new, |ago| format!(", and the controller heard of it last {} ago", span(ago)));
    Fault::new(
        Kind::HostDown,
        format!(
            "The host of {name} is down or cut off from everybody: it answers no ping of {}{heard}.",
            evidence.askers(end)
        ),
        format!("See whether the host of {name} runs and has its network."),
    )
}

/// What keeps packets from passing between ends that are there.
fn connection(evidence: &Evidence) -> Option<Fault> {
    let ends = evidence.ends.iter().zip(others(evidence));
    for (end, other) in ends.clone() {
        if let Some(reason) = &end.failure {
            return Some(Fault::new(
                Kind::Tunnel,
                format!("On {} the tunnel to {} cannot be had: {reason}.", end.name, other.name),
                "",
            ));
        }
    }
    for (end, other) in ends.clone() {
        if !evidence.is_up() && end.peer.as_ref().is_some_and(|peer| peer.other_key) {
            return Some(Fault::new(
                Kind::WrongKey,
                format!(
                    "The keys of {} and {} do not fit: handshakes come to {} from the address of {} with another key \
                     than the tunnel has.",
                    end.name, other.name, end.name, other.name
                ),
                match other.health.or(end.health) {
                    Some(_) if other.health.is_some() && end.health.is_some() => format!(
                        "See on both with `agent status` that they follow this controller; a restart of the agent of {} tells its \
                         key anew.",
                        other.name
                    ),
                    Some(_) | None => format!(
                        "Compare the public_key of {} in the mesh file with `wg show` there, and the key that it has for {} \
                         with `controller export wireguard {}`.",
                        other.name, end.name, other.name
                    ),
                },
            ));
        }
    }
    for (end, other) in ends {
        if let Some((address, taken)) = end.peer.as_ref().and_then(|peer| peer.strayed.as_ref()) {
            return Some(Fault::new(
                Kind::OverlappingRoute,
                format!(
                    "On {} packets for {address}, which is {}'s, do not go into the tunnel: another route takes them to {taken}.",
                    end.name, other.name
                ),
                format!(
                    "See `ip route get {address}` and `ip rule` on {}, and remove that route or renumber the mesh.",
                    end.name
                ),
            ));
        }
    }
    if evidence.is_up() {
        return None;
    }
    Some(cut(evidence))
}

/// Why a link is not up whose ends are there and set up rightly.
fn cut(evidence: &Evidence) -> Fault {
    let [a, b] = &evidence.ends;
    let passages = evidence.link.passages();
    let way = |from: usize| [&a.name, &b.name].get(from).copied().zip([&b.name, &a.name].get(from).copied());
    let is_cut = |from: usize| passages.get(from) == Some(&Passage::Cut);
    let pings = evidence
        .ends
        .iter()
        .any(|end| end.peer.as_ref().is_some_and(|peer| peer.ping == Some(Ping::Answered)));
    for (from, end) in evidence.ends.iter().enumerate() {
        let peer = end.peer.as_ref();
        let Some((_, to)) = way(from) else { continue };
        if let Some(endpoint) =
            peer.filter(|peer| peer.port == Some(Port::Refused)).and_then(|peer| peer.endpoint)
        {
            return Fault::new(
                Kind::NobodyListens,
                format!(
                    "{} sends to {endpoint}, and the host there says that nobody listens: that is not the data port of {to}.",
                    end.name
                ),
                format!(
                    "See the endpoint of {to} in the mesh file, --endpoint and --data-port of its agent, and what forwards ports to it."
                ),
            );
        }
    }
    let arrives =
        |end: usize| evidence.third.as_ref().and_then(|third| Some((third, *third.arrives.get(end)?)));
    if pings {
        let ways: Vec<usize> = (0..2).filter(|from| is_cut(*from)).collect();
        let (from, to) = match ways.as_slice() {
            [from] => way(*from).unwrap_or((&a.name, &b.name)),
            _ => (&a.name, &b.name),
        };
        let both = if ways.len() == 1 { "what" } else { "in both directions what" };
        let target = ways.first().map_or(1, |from| 1 - from);
        let place = match arrives(target) {
            Some((third, Passage::Cut)) => format!(
                "What {} sends there is lost, too, so it is at the host of {to} or close to it.",
                third.name
            ),
            Some((third, Passage::Heard)) => {
                format!("What {} sends there arrives, so it is on the way from {from}.", third.name)
            }
            Some((_, Passage::Unknown)) | None => String::new(),
        };
        let endpoint = evidence.ends.get(1 - target).and_then(|end| end.peer.as_ref()?.endpoint);
        let port = endpoint
            .map_or_else(|| "its data port".to_owned(), |endpoint| format!("UDP port {}", endpoint.port()));
        return Fault::new(
            Kind::Firewall,
            join([
                format!(
                    "Pings pass between the hosts of {} and {}, but {both} {from} sends to the data port of {to} is lost: a firewall drops it.",
                    a.name, b.name
                ),
                place,
            ]),
            format!("Let {port} in at {to}, and through what is between."),
        );
    }
    match passages {
        [Passage::Cut, Passage::Heard] | [Passage::Heard, Passage::Cut] => {
            let from = if is_cut(0) { 0 } else { 1 };
            let (from, to) = way(from).unwrap_or((&a.name, &b.name));
            Fault::new(
                Kind::OneWay,
                format!(
                    "One direction is cut: what {from} sends does not reach {to}, pings included; what {to} sends reaches {from}."
                ),
                format!(
                    "See routes and filters for what goes from {from} to {to}; `traceroute` from {from} shows where it ends."
                ),
            )
        }
        [Passage::Cut | Passage::Unknown, Passage::Cut] | [Passage::Cut, Passage::Unknown] => {
            let third = evidence.third.as_ref();
            let reach = third.map(|third| {
                let reaches = |n: usize| {
                    third.peers.get(n).and_then(Option::as_ref).and_then(|peer| peer.ping.as_ref())
                };
                match [0, 1].map(|n| reaches(n) == Some(&Ping::Answered)) {
                    [true, true] => format!("{} reaches both, so it is the path between them.", third.name),
                    [true, false] => format!(
                        "{} reaches {} and not {}, so it is the network of {}.",
                        third.name, a.name, b.name, b.name
                    ),
                    [false, true] => format!(
                        "{} reaches {} and not {}, so it is the network of {}.",
                        third.name, b.name, a.name, a.name
                    ),
                    [false, false] => format!("{} reaches neither.", third.name),
                }
            });
            let no_way = evidence.ends.iter().find_map(|end| match end.peer.as_ref()?.ping.as_ref()? {
                Ping::NoWay(words) => Some(format!("The host of {} says: {words}.", end.name)),
                Ping::Answered | Ping::Silent => None,
            });
            Fault::new(
                Kind::PathCut,
                join([
                    format!(
                        "Nothing passes between the hosts of {} and {} in either direction, pings included.",
                        a.name, b.name
                    ),
                    reach.unwrap_or_default(),
                    no_way.unwrap_or_default(),
                ]),
                format!(
                    "See routers and filters between them; `traceroute` from {} shows where it ends.",
                    a.name
                ),
            )
        }
        [Passage::Heard, _] | [_, Passage::Heard | Passage::Unknown] => Fault::new(
            Kind::Unclear,
            format!(
                "It is not known whether packets pass between {} and {}: {}.",
                a.name, b.name, evidence.link.reason
            ),
            "Ask again in a few seconds.",
        ),
    }
}

fn join(sentences: impl IntoIterator<Item = String>) -> String {
    let sentences: Vec<String> = sentences.into_iter().filter(|sentence| !sentence.is_empty()).collect();
    sentences.join(" ")
}

fn small_path(end: &End, other: &End) -> Option<Fault> {
    let (loses, carries) = end.loses?;
    Some(Fault::new(
        Kind::SmallPath,
        format!(
            "Packets of {loses} bytes and more from {} to {} are lost on the way, and no router says so: {carries} bytes are sent \
             at most, so that tunnels work.",
            end.name, other.name
        ),
        "Have whoever runs that path let ICMP \"fragmentation needed\" and \"packet too big\" pass, or raise its MTU.",
    ))
}

fn host(end: &End) -> Vec<Fault> {
    let findings =
        end.host.iter().flatten().filter(|finding| end.offers || finding.subject == HostSubject::ReversePath);
    let fault = |finding: &HostFinding| {
        let kind = match finding.subject {
            HostSubject::Forwarding => Kind::ForwardingOff,
            HostSubject::ReversePath => Kind::ReversePath,
            HostSubject::Firewall => Kind::ForwardFirewall,
        };
        Fault::new(
            kind,
            format!("On {} {}.", end.name, finding.found),
            format!("Try there: {}.", finding.remedy),
        )
    };
    findings.map(fault).collect()
}

fn clock(end: &End) -> Option<Fault> {
    let (what, _) = end.clock.as_ref()?.split_once(':')?;
    Some(Fault::new(
        Kind::ClockOff,
        format!("{}: {what}; packets pass all the same, but certificates may not be believed.", end.name),
        "Set the clock that is wrong, as with NTP.",
    ))
}

#[cfg(test)]
mod tests;
