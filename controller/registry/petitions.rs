//! Hosts that ask to join and wait for an operator.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::proto::model::NodeName;
use crate::proto::source::Source;
use crate::proto::trust::{CodeHead, KeyId};

/// How many hosts wait at most.
const MOST: usize = 10_000;
/// How many of them come from one source.
const OF_SOURCE: usize = 100;
/// After which time one that does not ask again waits no more.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// How often those are forgotten.
const FORGET: Duration = Duration::from_secs(1);
/// How often one asks again, as long as few wait.
const AGAIN: Duration = Duration::from_secs(2);
/// How many ask again in a second, as they are told.
const A_SECOND: u32 = 200;

/// A host that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Petition {
    /// The node that it wants to be.
    pub node: NodeName,
    /// Its agent's key.
    pub key: KeyId,
    /// Where it comes from.
    pub source: IpAddr,
    /// What it shows on its own host, as far as it is known here.
    pub code: CodeHead,
    /// When it asked first.
    pub since: Instant,
    asked: Instant,
}

/// That too many wait already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany;

/// The hosts that wait, by key: whoever has two keys waits twice.
#[derive(Debug, Default)]
pub struct Petitions {
    waiting: BTreeMap<KeyId, Petition>,
    /// When those that ask no more were last forgotten.
    forgot_at: Option<Instant>,
}

impl Petitions {
    /// A host asks, for the first time or again. Returns whether it is the first, and when it is to ask again.
    ///
    /// # Errors
    /// Where too many wait, in all or from this source.
    pub fn ask(
        &mut self,
        node: &NodeName,
        key: KeyId,
        source: IpAddr,
        code: CodeHead,
        now: Instant,
    ) -> Result<(bool, Duration), TooMany> {
        if self.forgot_at.is_none_or(|forgot| now >= forgot + FORGET) {
            self.forgot_at = Some(now);
            self.waiting.retain(|_, petition| petition.asked + FORGOTTEN > now);
        }
        let waiting = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
        let again = AGAIN.max(Duration::from_secs(1) * waiting / A_SECOND);
        let known = self.waiting.get_mut(&key).filter(|petition| petition.node == *node);
        if let Some(petition) = known {
            // After a change of the root the code is another.
            (petition.asked, petition.source, petition.code) = (now, source, code);
            return Ok((false, again));
        }
        let of_source =
            self.waiting.values().filter(|one| Source::from(one.source) == Source::from(source)).count();
        if self.waiting.len() >= MOST || of_source >= OF_SOURCE {
            return Err(TooMany);
        }
        let petition = Petition { node: node.clone(), key, source, code, since: now, asked: now };
        self.waiting.insert(key, petition);
        Ok((true, again))
    }

    /// The host that wants to be `node` and shows this code.
    pub fn find(&self, node: &NodeName, code: CodeHead) -> Option<&Petition> {
        self.waiting.values().find(|petition| petition.node == *node && petition.code == code)
    }

    /// It waits no more.
    pub fn end(&mut self, key: &KeyId) {
        self.waiting.remove(key);
    }

    /// Those who wait, by key.
    pub fn waiting(&self, now: Instant) -> impl Iterator<Item = &Petition> {
        self.waiting.values().filter(move |petition| petition.asked + FORGOTTEN > now)
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "any time will do")]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn ask(petitions: &mut Petitions, number: u32, source: u32, now: Instant) -> Result<bool, TooMany> {
        let key = KeyId::of(&number.to_be_bytes());
        let code = CodeHead::of(&key, &KeyId::of(b"root"));
        let node = format!("n{number}").parse().unwrap();
        let asked = petitions.ask(&node, key, IpAddr::from(Ipv4Addr::from_bits(source)), code, now);
        asked.map(|(is_first, _)| is_first)
    }

    #[test]
    fn one_waits_as_long_as_it_asks() {
        let (mut petitions, start) = (Petitions::default(), Instant::now());
        assert_eq!(ask(&mut petitions, 1, 1, start), Ok(true));
        assert_eq!(ask(&mut petitions, 1, 2, start + FORGOTTEN / 2), Ok(false));
        let node = "n1".parse().unwrap();
        let code = CodeHead::of(&KeyId::of(&1_u32.to_be_bytes()), &KeyId::of(b"root"));
        let other = CodeHead::of(&KeyId::of(&1_u32.to_be_bytes()), &KeyId::of(b"false root"));
        assert!(petitions.find(&node, code).is_some() && petitions.find(&node, other).is_none());
        assert!(petitions.find(&"n2".parse().unwrap(), code).is_none());
        assert_eq!(petitions.waiting(start + FORGOTTEN).count(), 1);
        assert_eq!(petitions.waiting(start + FORGOTTEN * 3 / 2).count(), 0);
        assert_eq!(ask(&mut petitions, 1, 1, start + FORGOTTEN * 2), Ok(true));
    }

    #[test]
    fn a_source_that_takes_all_it_can_leaves_room_for_others() {
        let (mut petitions, now) = (Petitions::default(), Instant::now());
        let all = (0..1_000).filter(|number| ask(&mut petitions, *number, 1, now).is_ok()).count();
        assert_eq!(all, OF_SOURCE);
        assert_eq!(ask(&mut petitions, 2_000, 2, now), Ok(true));
        assert_eq!(ask(&mut petitions, 1, 1, now), Ok(false), "those who wait go on");
        let many = (0..200).flat_map(|source| (0..OF_SOURCE as u32).map(move |one| (source + 10, one)));
        for (source, one) in many {
            let _ = ask(&mut petitions, source * 1_000 + one, source, now);
        }
        assert_eq!(petitions.waiting(now).count(), MOST);
    }
}
