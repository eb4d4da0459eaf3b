//! Which handshakes are worth a key exchange. Whoever sends one can make a host work for it; above a rate only those are
//! heeded who show that they hear what is sent to them (section 5.3).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use gotatun::noise::TunnResult;
use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::packet::Packet;

use super::Refused;
use crate::proto::host::wireguard::PrivateKey;
use crate::proto::rate::{Bucket, Rate};
use crate::proto::source::{Shares, Source};

/// The initiations of all hosts together that are heeded without more: a key exchange takes a tenth of a millisecond.
const ALL: Rate = Rate { burst: 200, every: Duration::from_millis(5) };
/// Those of one source that has shown that it is there, as Linux has it (drivers/net/wireguard/ratelimiter.c).
const PROVEN: Rate = Rate { burst: 5, every: Duration::from_millis(50) };
/// Those of all sources together that have shown that they are there.
const ALL_PROVEN: Rate = Rate { burst: 1_000, every: Duration::from_millis(1) };
/// Those of which the second authentication is looked at, which takes some microseconds: who is left out asks again.
const LOOKED_AT: Rate = Rate { burst: 2_000, every: Duration::from_micros(50) };

/// What is to be done about an initiation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// To go on with it.
    Heed,
    /// To send this instead.
    Cookie(Vec<u8>),
}

/// How many handshakes there are, to all keys of this host together.
pub struct Limits {
    all: Bucket,
    looked_at: Bucket,
    all_proven: Bucket,
    proven: Shares,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            all: Bucket::default(),
            looked_at: Bucket::default(),
            all_proven: Bucket::default(),
            proven: Shares::new(PROVEN),
        }
    }
}

/// Judges the handshakes that come to one key.
pub struct CookieChecker {
    /// Looks at the first authentication alone.
    first: RateLimiter,
    /// Asks everybody for the second one.
    second: RateLimiter,
}

impl CookieChecker {
    /// For the handshakes of the host with this key.
    pub fn new(own: &PrivateKey) -> Self {
        Self { first: RateLimiter::new(own.point(), u64::MAX), second: RateLimiter::new(own.point(), 0) }
    }

    /// Judges an initiation from `source`. Costs no key exchange, and nothing is kept for longer than a second of a source that has
    /// not shown that it is there.
    ///
    /// # Errors
    /// `Forged` where its sender does not know the key, and `TooMany`.
    pub fn judge(
        &mut self,
        limits: &mut Limits,
        source: SocketAddr,
        message: &[u8],
        now: Instant,
    ) -> Result<Verdict, Refused> {
        self.check(message)?;
        if limits.all.take(ALL, now).is_ok() {
            return Ok(Verdict::Heed);
        }
        limits.looked_at.take(LOOKED_AT, now).map_err(|_| Refused::TooMany)?;
        // What it has counted by source is of no use here.
        self.second.try_reset_count();
        match self.second.verify_packet(source, Packet::copy_from(message)) {
            Ok(_) => {
                let is_within = limits.proven.take(Source::from(source.ip()), now)
                    && limits.all_proven.take(ALL_PROVEN, now).is_ok();
                if is_within { Ok(Verdict::Heed) } else { Err(Refused::TooMany) }
            }
            Err(TunnResult::WriteToNetwork(cookie)) => Ok(Verdict::Cookie(Packet::from(cookie).to_vec())),
            Err(TunnResult::Done | TunnResult::Err(_) | TunnResult::WriteToTunnel(_)) => Err(Refused::Forged),
        }
    }

    /// Checks that the sender of an initiation or response knows the key. Costs no key exchange.
    ///
    /// # Errors
    /// `Forged` where it does not.
    pub fn check(&self, message: &[u8]) -> Result<(), Refused> {
        // It counts by source what it never refuses: as one, it keeps nothing.
        let nobody = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        match self.first.verify_packet(nobody, Packet::copy_from(message)) {
            Ok(_) => Ok(()),
            Err(TunnResult::Err(_)) => Err(Refused::Forged),
            Err(TunnResult::Done | TunnResult::WriteToNetwork(_) | TunnResult::WriteToTunnel(_)) => {
                Err(Refused::Malformed)
            }
        }
    }
}

#[cfg(test)]
mod tests;
