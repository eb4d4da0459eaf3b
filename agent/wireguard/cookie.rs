//! Which handshakes are worth a key exchange. Whoever sends one can make a host work for it; above a rate only those are
//! heeded who show that they hear what is sent to them (section 5.3).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use gotatun::noise::TunnResult;
use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::packet::Packet;

use super::Refused;
use super::key::PrivateKey;
use crate::proto::rate::{Bucket, Rate};
use crate::proto::source::{Shares, Source};

/// The handshakes of all hosts together that are heeded without more: a key exchange takes a tenth of a millisecond.
const ALL: Rate = Rate { burst: 200, every: Duration::from_millis(5) };
/// Those of one source that has shown that it is there, as Linux has it (drivers/net/wireguard/ratelimiter.c).
const PROVEN: Rate = Rate { burst: 5, every: Duration::from_millis(50) };
/// Those of which the second authentication is looked at, which takes some microseconds: who is left out asks again.
const LOOKED_AT: Rate = Rate { burst: 2_000, every: Duration::from_micros(50) };

/// What is to be done about a handshake's message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// To go on with it.
    Heed,
    /// To send this instead.
    Cookie(Vec<u8>),
}

/// Judges the handshakes that come to one key.
pub struct CookieChecker {
    /// Looks at the first authentication alone.
    first: RateLimiter,
    /// Asks everybody for the second one.
    second: RateLimiter,
    all: Bucket,
    looked_at: Bucket,
    proven: Shares,
}

impl CookieChecker {
    /// For the handshakes of the host with this key.
    pub fn new(own: &PrivateKey) -> Self {
        Self {
            first: RateLimiter::new(own.point(), u64::MAX),
            second: RateLimiter::new(own.point(), 0),
            all: Bucket::default(),
            looked_at: Bucket::default(),
            proven: Shares::new(PROVEN),
        }
    }

    /// Judges an initiation or response from `source`. Costs no key exchange, and nothing is kept of a source that has not
    /// shown that it is there.
    ///
    /// # Errors
    /// Where its sender does not know the key of this host, or there are too many.
    pub fn judge(&mut self, source: SocketAddr, message: &[u8], now: Instant) -> Result<Verdict, Refused> {
        // It counts by source what it never refuses: as one, it keeps nothing.
        let nobody = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        match self.first.verify_packet(nobody, Packet::copy_from(message)) {
            Ok(_) => {}
            Err(TunnResult::Err(_)) => return Err(Refused::Forged),
            Err(TunnResult::Done | TunnResult::WriteToNetwork(_) | TunnResult::WriteToTunnel(_)) => {
                return Err(Refused::Malformed);
            }
        }
        if self.all.take(ALL, now).is_ok() {
            return Ok(Verdict::Heed);
        }
        self.looked_at.take(LOOKED_AT, now).map_err(|_| Refused::TooMany)?;
        // What it has counted by source is of no use here.
        self.second.try_reset_count();
        match self.second.verify_packet(source, Packet::copy_from(message)) {
            Ok(_) if self.proven.take(Source::from(source.ip()), now) => Ok(Verdict::Heed),
            Ok(_) => Err(Refused::TooMany),
            Err(TunnResult::WriteToNetwork(cookie)) => Ok(Verdict::Cookie(Packet::from(cookie).to_vec())),
            Err(TunnResult::Done | TunnResult::Err(_) | TunnResult::WriteToTunnel(_)) => Err(Refused::Forged),
        }
    }
}

#[cfg(test)]
mod tests;
