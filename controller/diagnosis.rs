//! What is wrong between two nodes, by what both have told and tried, and a third one beside them.
//!
//! Whoever has no session says nothing, and what is not known is not taken for anything: a fault is named where something was
//! seen that it alone explains, the one nearest to the cause first.

use std::fmt;
use std::time::Duration;

use crate::controller::registry::Health;
use crate::controller::state::{LinkStanding, Passage, Verdict};
use crate::proto::model::{MeshName, NodeName};
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
    /// Whether networks behind it are reached through it, of IPv4 and of IPv6.
    pub offers: [bool; 2],
    /// Why its tunnel to the other one cannot be had.
    pub failure: Option<String>,
    /// Why it cannot send to the other one, in words; empty: it can.
    pub unsent: String,
    /// Where it sends to the other one, and the endpoint that it would prefer; absent: it uses that.
    pub diverted: Option<[String; 2]>,
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
    /// The mesh whose tunnel joins both.
    pub mesh: MeshName,
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
    /// An agent has no session, though something comes from it.
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
    /// A host cannot send.
    Unsent,
    /// Another endpoint than the preferred one is in use.
    OtherEndpoint,
    /// A host does not forward what it offers.
    ForwardingOff,
    /// The reverse-path filter of a host is strict.
    ReversePath,
    /// A firewall drops what a host is to forward.
    ForwardFirewall,
    /// A clock is off.
    ClockOff,
    /// A peer without an agent is silent.
    Silent,
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
            Self::Unsent => "unsent",
            Self::OtherEndpoint => "other-endpoint",
            Self::ForwardingOff => "forwarding-off",
            Self::ReversePath => "reverse-path",
            Self::ForwardFirewall => "forward-firewall",
            Self::ClockOff => "clock-off",
            Self::Silent => "silent",
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
    // Who is only away from the controller has a path that may be cut as well.
    if faults.iter().all(|fault| fault.kind == Kind::Away) {
        faults.extend(connection(evidence));
    }
    let ends = || evidence.ends.iter().zip(others(evidence));
    faults.extend(ends().filter_map(|(end, other)| small_path(end, other)));
    if evidence.is_up() {
        faults.extend(ends().filter_map(|(end, other)| other_endpoint(end, other)));
    }
    faults.extend(evidence.ends.iter().flat_map(|end| host(end, evidence.is_up())));
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
    let ways = [(a, b), (b, a)].into_iter().zip(evidence.link.hearing);
    let lost = ways.filter_map(|((from, to), way)| {
        let way = way.filter(|way| way.lost > 0)?;
        Some(format!(
            "Of the latest {} probes from {} to {} {} were lost.",
            way.known, from.name, to.name, way.lost
        ))
    });
    let right = format!(
        "Nothing is wrong between {} and {} in mesh {}: both hear each other{}.",
        a.name,
        b.name,
        evidence.mesh,
        trip.unwrap_or_default()
    );
    join(std::iter::once(right).chain(lost))
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
        let mut asked = self.ways_to(end).filter(|way| way.ping.is_some() || way.port.is_some()).peekable();
        asked.peek()?;
        Some(asked.any(|way| way.ping == Some(Ping::Answered) || way.port == Some(Port::Refused)))
    }

    /// Whether what an end sends arrives at the other one.
    fn is_heard(&self, end: usize) -> bool {
        self.link.passages().get(end) == Some(&Passage::Heard)
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
            // It may have gone a moment ago: then it has not answered, answers nobody, and is heard by nobody.
            let is_gone = end.host.is_none() && evidence.third.is_some() && answers == Some(false);
            return (is_gone && !evidence.is_heard(n)).then(|| host_down(evidence, n));
        }
        let heard = end.last_heard.map_or_else(
            || "not since it started".to_owned(),
            |ago| format!("last {} ago", span(ago)),
        );
        match answers {
            _ if evidence.is_heard(n) => Some(Fault::new(
                Kind::Away,
                format!(
                    "The agent of {name} has no session with the controller, which heard of it {heard}, but what it sends \
                     reaches its peer."
                ),
                format!("Try `agent status` on {name}: it says why it does not reach the controller."),
            )),
            Some(true) => {
                let is_refused = evidence.ways_to(n).any(|way| way.port == Some(Port::Refused));
                let what = match is_refused {
                    true => format!("The agent of {name} does not run"),
                    false => format!("The agent of {name} does not run, or reaches neither the controller nor its peers"),
                };
                let sign = if is_refused { "nobody listens at its data port" } else { "nothing else comes from it" };
                Some(Fault::new(
                    Kind::AgentDown,
                    format!(
                        "{what}: its host answers {}, but {sign}, and the controller heard of it {heard}.",
                        evidence.askers(n)
                    ),
                    format!("Start the agent on {name}, and see in its log why it ended."),
                ))
            }
            Some(false) => Some(host_down(evidence, n)),
            None => Some(Fault::new(
                Kind::HostDown,
                format!(
                    "Nothing is known of {name}: the controller heard of it {heard}, and nobody knows where to ask its host."
                ),
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
    let ends = || evidence.ends.iter().zip(others(evidence));
    let failed = ends().find_map(|(end, other)| {
        let reason = end.failure.as_ref()?;
        let words = format!("On {} the tunnel to {} cannot be had: {reason}.", end.name, other.name);
        Some(Fault::new(Kind::Tunnel, words, ""))
    });
    let strayed = || ends().find_map(|(end, other)| strayed(end, other));
    let is_up = evidence.is_up();
    let unfit = || ends().filter(|_| !is_up).find_map(|(end, other)| wrong_key(end, other));
    failed.or_else(unfit).or_else(strayed).or_else(|| (!is_up).then(|| cut(evidence)))
}

fn wrong_key(end: &End, other: &End) -> Option<Fault> {
    let peer = end.peer.as_ref().filter(|peer| peer.other_key)?;
    // Anybody can seem to be at the address of a host that is not there.
    if matches!(peer.ping, Some(Ping::Silent | Ping::NoWay(_))) {
        return None;
    }
    let remedy = match end.health.is_some() && other.health.is_some() {
        true => format!(
            "See on both with `agent status` that they follow this controller; a restart of the agent of {} tells its key anew.",
            other.name
        ),
        false => format!(
            "Compare the public_key of {} in the mesh file with `wg show` there, and the key that it has for {} with \
             `controller export wireguard {}`.",
            other.name, end.name, other.name
        ),
    };
    let words = format!(
        "The keys of {0} and {1} do not fit: handshakes come to {0} from the address of {1} with another key than the tunnel \
         has.",
        end.name, other.name
    );
    Some(Fault::new(Kind::WrongKey, words, remedy))
}

fn strayed(end: &End, other: &End) -> Option<Fault> {
    let (address, taken) = end.peer.as_ref()?.strayed.as_ref()?;
    let what = match taken.as_str() {
        "" => "no route leads there".to_owned(),
        device => format!("another route takes them to device {device}"),
    };
    Some(Fault::new(
        Kind::OverlappingRoute,
        format!(
            "On {} packets for {address}, which is at {}, do not go into the tunnel: {what}.",
            end.name, other.name
        ),
        format!(
            "See `ip route get {address}` and `ip rule` on {}, and remove what stands in the way or renumber the mesh.",
            end.name
        ),
    ))
}

/// Why a link is not up whose ends are set up rightly.
fn cut(evidence: &Evidence) -> Fault {
    let [a, b] = &evidence.ends;
    let names = [&a.name, &b.name];
    let passages = evidence.link.passages();
    let pings = || evidence.ends.iter().filter_map(|end| end.peer.as_ref()?.ping.as_ref());
    let answered = pings().any(|ping| *ping == Ping::Answered);
    if let Some(end) = evidence.ends.iter().find(|end| end.health.is_none()) {
        let sign = if answered { " Its host, or what is before it, answers pings." } else { "" };
        let words = format!("{}.{sign}", evidence.link.reason);
        return Fault::new(Kind::Silent, words, format!("See whether {} is on, and awake.", end.name));
    }
    let cut: Vec<[usize; 2]> =
        [[0, 1], [1, 0]].into_iter().filter(|[from, _]| passages.get(*from) == Some(&Passage::Cut)).collect();
    if let Some(unsent) = cut.iter().find_map(|[from, to]| unsent(evidence.ends.get(*from)?, names.get(*to)?))
    {
        return unsent;
    }
    if let Some(refused) = cut.iter().find_map(|way| refused(evidence, *way)) {
        return refused;
    }
    // Whether the words of pings are to be believed: some were sent.
    let included = if pings().next().is_some() { ", pings included" } else { "" };
    match (cut.as_slice(), passages) {
        ([way, ..], _) if answered => firewall(evidence, *way, cut.len() > 1),
        ([[from, to]], [_, Passage::Heard] | [Passage::Heard, _]) => {
            let [from, to] = [from, to].map(|end| names.get(*end).map_or("", |name| name.as_str()));
            Fault::new(
                Kind::OneWay,
                format!(
                    "One direction is cut: what {from} sends does not reach {to}{included}; what {to} sends reaches {from}."
                ),
                format!(
                    "See routes and filters for what goes from {from} to {to}; `traceroute` from {from} shows where it ends."
                ),
            )
        }
        ([_, ..], _) => path_cut(evidence, included),
        ([], _) => Fault::new(
            Kind::Unclear,
            format!(
                "It is not known whether packets pass between {} and {}: {}.",
                a.name, b.name, evidence.link.reason
            ),
            "Ask again in a few seconds.",
        ),
    }
}

/// A host says that it cannot send.
fn unsent(from: &End, to: &NodeName) -> Option<Fault> {
    let words = format!("The agent of {} cannot send to {to}: {}.", from.name, from.unsent);
    let remedy =
        format!("See routes and what goes out through filters on {}; its tunnels use UDP.", from.name);
    (!from.unsent.is_empty()).then(|| Fault::new(Kind::Unsent, words, remedy))
}

/// Somebody says that nobody listens where what is lost goes to.
fn refused(evidence: &Evidence, [from, to]: [usize; 2]) -> Option<Fault> {
    let (from, name) = (evidence.ends.get(from)?, &evidence.ends.get(to)?.name);
    let peer = from.peer.as_ref().filter(|peer| peer.port == Some(Port::Refused))?;
    let endpoint = peer.endpoint?;
    let third = evidence.third.as_ref();
    if third.is_some_and(|third| third.arrives.get(to) == Some(&Passage::Heard)) || evidence.is_heard(to) {
        return Some(Fault::new(
            Kind::Firewall,
            format!(
                "What {} sends to the data port of {name}, {endpoint}, is refused, though the agent there runs: a firewall \
                 rejects it.",
                from.name
            ),
            format!("Let UDP port {} in at {name}, and through what is between.", endpoint.port()),
        ));
    }
    Some(Fault::new(
        Kind::NobodyListens,
        format!(
            "{} sends to {endpoint}, and the host there, or a firewall before it, says that nobody listens.",
            from.name
        ),
        format!(
            "See the endpoint of {name} in the mesh file, --endpoint and --data-port of its agent, and what forwards or rejects \
             UDP port {} on the way.",
            endpoint.port()
        ),
    ))
}

/// Pings pass, and what goes to the data port is lost.
fn firewall(evidence: &Evidence, [from, to]: [usize; 2], is_both: bool) -> Fault {
    let name = |end: usize| evidence.ends.get(end).map_or("", |end| end.name.as_str());
    let third = evidence.third.as_ref();
    let arrives = |end: usize| third.and_then(|third| third.arrives.get(end));
    let place = match (third, arrives(to), arrives(from)) {
        // Who reaches nobody is cut off itself.
        (Some(third), Some(Passage::Cut), Some(Passage::Heard)) => format!(
            "What {} sends there is lost, too, so it is at the host of {} or close to it.",
            third.name,
            name(to)
        ),
        (Some(third), Some(Passage::Heard), _) => {
            format!("What {} sends there arrives, so it is on the way from {}.", third.name, name(from))
        }
        _ => String::new(),
    };
    let both = if is_both { "in both directions what" } else { "what" };
    let endpoint = evidence.ends.get(from).and_then(|end| end.peer.as_ref()?.endpoint);
    let port = endpoint
        .map_or_else(|| "its data port".to_owned(), |endpoint| format!("UDP port {}", endpoint.port()));
    Fault::new(
        Kind::Firewall,
        join([
            format!(
                "Pings pass between the hosts of {} and {}, but {both} {} sends to the data port of {} is lost: a firewall \
                 drops it.",
                name(0),
                name(1),
                name(from),
                name(to)
            ),
            place,
        ]),
        format!("Let {port} in at {}, and through what is between.", name(to)),
    )
}

/// Nothing passes, as far as is known.
fn path_cut(evidence: &Evidence, included: &str) -> Fault {
    let [a, b] = &evidence.ends;
    let reach = evidence.third.as_ref().and_then(|third| {
        let reaches = |n: usize| match third.peers.get(n)?.as_ref()?.ping.as_ref()? {
            Ping::Answered => Some(true),
            Ping::Silent | Ping::NoWay(_) => Some(false),
        };
        let (c, a, b) = (&third.name, &a.name, &b.name);
        match (reaches(0)?, reaches(1)?) {
            (true, true) => Some(format!("{c} reaches both, so it is the path between them.")),
            (true, false) => Some(format!("{c} reaches {a} and not {b}, so it is the network of {b}.")),
            (false, true) => Some(format!("{c} reaches {b} and not {a}, so it is the network of {a}.")),
            (false, false) => Some(format!("{c} reaches neither.")),
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
                "Nothing passes between the hosts of {} and {} in either direction{included}.",
                a.name, b.name
            ),
            reach.unwrap_or_default(),
            no_way.unwrap_or_default(),
        ]),
        format!("See routers and filters between them; `traceroute` from {} shows where it ends.", a.name),
    )
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
            "Packets of {loses} bytes and more from {} to {} are lost on the way, and no router says so, as was found at most ten minutes \
             ago: {carries} bytes are sent at most, so that tunnels work.",
            end.name, other.name
        ),
        "Have whoever runs that path let ICMP \"fragmentation needed\" and \"packet too big\" pass, or raise its MTU.",
    ))
}

fn other_endpoint(end: &End, other: &End) -> Option<Fault> {
    let [used, preferred] = end.diverted.as_ref()?;
    Some(Fault::new(
        Kind::OtherEndpoint,
        format!(
            "{} sends to {} at {used}, since it does not reach it at {preferred}, which comes first.",
            end.name, other.name
        ),
        format!(
            "See what stands in the way to {preferred}; once it has answered for 10 s it is used again, by itself."
        ),
    ))
}

/// What of a host keeps packets from networks behind it. A strict filter lets what goes straight into its tunnel pass, so where the
/// link is up and nothing is offered nothing is wrong with it.
fn host(end: &End, is_up: bool) -> Vec<Fault> {
    let offers = end.offers.contains(&true);
    let matters = |finding: &&HostFinding| match finding.subject {
        HostSubject::ForwardingV4 => end.offers[0],
        HostSubject::ForwardingV6 => end.offers[1],
        HostSubject::ReversePath => offers || !is_up,
        HostSubject::Firewall => offers,
    };
    let fault = |finding: &HostFinding| {
        // What to do is not for the host to say.
        let (kind, remedy) = match finding.subject {
            HostSubject::ForwardingV4 => (Kind::ForwardingOff, "sysctl -w net.ipv4.ip_forward=1"),
            HostSubject::ForwardingV6 => (Kind::ForwardingOff, "sysctl -w net.ipv6.conf.all.forwarding=1"),
            HostSubject::ReversePath => (Kind::ReversePath, "sysctl -w net.ipv4.conf.all.rp_filter=2"),
            HostSubject::Firewall => {
                (Kind::ForwardFirewall, "to accept what comes from and goes to the devices of tunnels")
            }
        };
        Fault::new(kind, format!("On {} {}.", end.name, finding.found), format!("Try there: {remedy}."))
    };
    end.host.iter().flatten().filter(matters).map(fault).collect()
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
