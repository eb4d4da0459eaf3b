//! Where others dial from.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Instant;

use crate::proto::rate::{Bucket, Rate};

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

/// What each source has taken of one rate.
#[derive(Debug)]
pub struct Shares {
    rate: Rate,
    /// A source is in it as long as it is not known that it may take as many as ever.
    sources: BTreeMap<Source, Bucket>,
    forgot_at: Option<Instant>,
}

impl Shares {
    /// All sources may take as much, each for itself.
    pub fn new(rate: Rate) -> Self {
        Self { rate, sources: BTreeMap::new(), forgot_at: None }
    }

    /// Whether a source may take one more, which it has then.
    pub fn take(&mut self, source: Source, now: Instant) -> bool {
        let whole = self.rate.every * self.rate.burst;
        if self.forgot_at.is_none_or(|forgot| now >= forgot + whole) {
            self.forgot_at = Some(now);
            self.sources.retain(|_, bucket| !bucket.is_whole(now));
        }
        self.sources.entry(source).or_default().take(self.rate, now).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "any time will do")]
    fn each_source_has_its_share_and_who_has_all_of_it_is_forgotten() {
        let rate = Rate { burst: 3, every: Duration::from_secs(1) };
        let (mut shares, start) = (Shares::new(rate), Instant::now());
        let source = |number: u32| Source::from(IpAddr::from(Ipv4Addr::from_bits(number)));
        let taken = |shares: &mut Shares, number, seconds| {
            shares.take(source(number), start + Duration::from_secs(seconds))
        };
        assert_eq!(
            [0, 0, 0, 0, 1, 1].map(|seconds| taken(&mut shares, 1, seconds)),
            [true, true, true, false, true, false]
        );
        assert!(taken(&mut shares, 2, 1));
        for number in 0..10_000 {
            taken(&mut shares, number, 10 + u64::from(number) / 100);
        }
        assert!(shares.sources.len() <= 700, "{}", shares.sources.len());
        assert_eq!(
            (0..5).filter(|_| taken(&mut shares, 1, 1_000)).count(),
            3,
            "it has its whole share again"
        );
        assert_eq!(shares.sources.len(), 1);
    }

    #[test]
    fn addresses_of_one_host_are_one_source() {
        let source = |text: &str| Source::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(source("172.100.1.1"), source("::ffff:172.100.1.1"));
        assert_ne!(source("172.100.1.1"), source("172.100.1.2"));
        assert_eq!(source("fd00:100::1"), source("fd00:100::ffff:0:0:1"));
        assert_ne!(source("fd00:100::1"), source("fd00:100:0:1::1"));
    }
}
