//! Where others dial from.

use std::net::{IpAddr, Ipv6Addr};

/// What counts as one host, however many addresses it has: an address of IPv4, or a /64 of IPv6, out of which a host
/// takes as many as it likes (RFC 4291, RFC 8981). Hosts behind one NAT are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source(IpAddr);

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_host_are_one_source() {
        let source = |text: &str| Source::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(source("172.100.1.1"), source("::ffff:172.100.1.1"));
        assert_ne!(source("172.100.1.1"), source("172.100.1.2"));
        assert_eq!(source("fd00:100::1"), source("fd00:100::ffff:0:0:1"));
        assert_ne!(source("fd00:100::1"), source("fd00:100:0:1::1"));
    }
}
