//! Examinations and what agents find: v1 to the session's messages and back.

use super::{MessageError, cut, fault, parse};
use crate::proto::model::TunnelName;
use crate::proto::session::{
    EXAMINED, Examination, Findings, HostFinding, HostSubject, PeerFinding, Ping, Port,
};
use crate::proto::v1;
use crate::proto::v1::host_finding::Subject;
use crate::proto::v1::peer_finding::{Ping as WirePing, Port as WirePort};

/// How much may be wrong with a host at most.
const HOST: usize = 16;

pub(super) fn examination(wire: v1::Examination) -> Result<Examination, MessageError> {
    if wire.request == 0 || wire.tunnels.len() > EXAMINED {
        return Err(fault("examination", format!("has no number, or more than {EXAMINED} tunnels")));
    }
    let tunnels = wire.tunnels.iter().map(|name| parse("tunnels", name)).collect::<Result<_, _>>()?;
    Ok(Examination { request: wire.request, tunnels })
}

pub(super) fn findings(wire: v1::Findings) -> Result<Findings, MessageError> {
    if wire.peers.len() > EXAMINED || wire.host.len() > HOST {
        return Err(fault("findings", "are more than were asked for"));
    }
    Ok(Findings {
        request: wire.request,
        host: wire.host.into_iter().filter_map(host).collect(),
        peers: wire.peers.into_iter().map(peer).collect::<Result<_, _>>()?,
    })
}

/// `None`: it is about what only a later release knows.
fn host(wire: v1::HostFinding) -> Option<HostFinding> {
    let subject = match wire.subject() {
        Subject::ForwardingV4 => HostSubject::ForwardingV4,
        Subject::ForwardingV6 => HostSubject::ForwardingV6,
        Subject::ReversePath => HostSubject::ReversePath,
        Subject::Firewall => HostSubject::Firewall,
        Subject::Unspecified => return None,
    };
    Some(HostFinding { subject, found: cut(wire.found) })
}

fn peer(wire: v1::PeerFinding) -> Result<(TunnelName, PeerFinding), MessageError> {
    let (ping, port) = (wire.ping(), wire.port());
    let strayed = wire.strayed.parse().ok().map(|address| (address, cut(wire.strays_to)));
    let finding = PeerFinding {
        endpoint: wire.endpoint.parse().ok(),
        ping: match ping {
            WirePing::Unspecified => None,
            WirePing::Answered => Some(Ping::Answered),
            WirePing::Silent => Some(Ping::Silent),
            WirePing::NoWay => Some(Ping::NoWay(cut(wire.no_way))),
        },
        port: match port {
            WirePort::Unspecified => None,
            WirePort::OpenOrSilent => Some(Port::OpenOrSilent),
            WirePort::Refused => Some(Port::Refused),
        },
        strayed,
        other_key: wire.other_key,
    };
    Ok((parse("tunnel", &wire.tunnel)?, finding))
}

pub(super) fn wire_examination(examination: Examination) -> v1::Examination {
    let tunnels = examination.tunnels.into_iter().map(String::from).collect();
    v1::Examination { request: examination.request, tunnels }
}

pub(super) fn wire_findings(findings: Findings) -> v1::Findings {
    let host = findings.host.into_iter().map(|finding| v1::HostFinding {
        subject: match finding.subject {
            HostSubject::ForwardingV4 => Subject::ForwardingV4,
            HostSubject::ForwardingV6 => Subject::ForwardingV6,
            HostSubject::ReversePath => Subject::ReversePath,
            HostSubject::Firewall => Subject::Firewall,
        }
        .into(),
        found: finding.found,
    });
    v1::Findings {
        request: findings.request,
        host: host.collect(),
        peers: findings.peers.into_iter().map(wire_peer).collect(),
    }
}

fn wire_peer((tunnel, finding): (TunnelName, PeerFinding)) -> v1::PeerFinding {
    let (ping, no_way) = match finding.ping {
        None => (WirePing::Unspecified, String::new()),
        Some(Ping::Answered) => (WirePing::Answered, String::new()),
        Some(Ping::Silent) => (WirePing::Silent, String::new()),
        Some(Ping::NoWay(words)) => (WirePing::NoWay, words),
    };
    let port = match finding.port {
        None => WirePort::Unspecified,
        Some(Port::OpenOrSilent) => WirePort::OpenOrSilent,
        Some(Port::Refused) => WirePort::Refused,
    };
    let (strayed, strays_to) = finding.strayed.unzip();
    v1::PeerFinding {
        tunnel: tunnel.into(),
        endpoint: finding.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default(),
        ping: ping.into(),
        no_way,
        port: port.into(),
        strayed: strayed.map(|address| address.to_string()).unwrap_or_default(),
        strays_to: strays_to.unwrap_or_default(),
        other_key: finding.other_key,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn peer_finding()(
            endpoint in prop::option::of(any::<SocketAddr>()),
            ping in prop::option::of(prop_oneof![
                Just(Ping::Answered), Just(Ping::Silent), "[a-z ]{1,20}".prop_map(Ping::NoWay),
            ]),
            port in prop::option::of(prop_oneof![Just(Port::OpenOrSilent), Just(Port::Refused)]),
            strayed in prop::option::of((any::<IpAddr>(), "[a-z0-9]{1,15}")), other_key in any::<bool>(),
        ) -> PeerFinding {
            PeerFinding { endpoint: endpoint.map(plain), ping, port, strayed, other_key }
        }
    }

    /// Without what a text of it does not have.
    fn plain(endpoint: SocketAddr) -> SocketAddr {
        SocketAddr::new(endpoint.ip(), endpoint.port())
    }

    proptest! {
        #[test]
        fn what_is_found_is_understood_as_it_was_told(
            peers in prop::collection::btree_map("[a-z]{1,10}", peer_finding(), 0..EXAMINED), request in any::<u64>(),
            found in "[a-z ]{0,30}",
        ) {
            let subjects = [HostSubject::ForwardingV4, HostSubject::ForwardingV6, HostSubject::ReversePath, HostSubject::Firewall];
            let host = subjects.map(|subject| HostFinding { subject, found: found.clone() });
            let peers = peers.into_iter().map(|(name, finding)| (name.parse().unwrap(), finding)).collect();
            let told = Findings { request, host: host.into(), peers };
            prop_assert_eq!(findings(wire_findings(told.clone())).unwrap(), told);
        }
    }

    #[test]
    fn an_examination_has_a_number_and_few_tunnels() {
        let asked = Examination { request: 7, tunnels: vec!["m.a".parse().unwrap()] };
        assert_eq!(examination(wire_examination(asked.clone())).unwrap(), asked);
        let many = vec!["m.a".parse().unwrap(); EXAMINED + 1];
        assert!(examination(wire_examination(Examination { request: 7, tunnels: many })).is_err());
        assert!(examination(wire_examination(Examination { request: 0, ..asked })).is_err());
    }
}
