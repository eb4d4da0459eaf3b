#![allow(clippy::disallowed_methods, reason = "any time will do")]

use super::*;
use crate::agent::wireguard::message::Message;
use crate::agent::wireguard::tunnel::{Indices, Noise, Tunnel};

/// A host, and one that knows its key.
struct World {
    checker: CookieChecker,
    limits: Limits,
    host: PrivateKey,
    peer: PrivateKey,
    sessions: Noise,
    now: Instant,
}

fn world() -> World {
    let [host, peer] = [(); 2].map(|()| PrivateKey::generate().unwrap());
    let sessions = Noise::new(&peer, &host.public(), None, &Indices::default());
    let (checker, limits) = (CookieChecker::new(&host), Limits::default());
    World { checker, limits, host, peer, sessions, now: Instant::now() }
}

fn source(number: u32) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::from_bits(0xac64_0000 + number).into(), 5000)
}

impl World {
    fn initiation(&mut self) -> Vec<u8> {
        self.sessions.initiate().unwrap()
    }

    fn judge(&mut self, number: u32, message: &[u8]) -> Result<Verdict, Refused> {
        self.checker.judge(&mut self.limits, source(number), message, self.now)
    }

    /// As many handshakes as are heeded without more, all at once.
    fn is_busy(&mut self) {
        let initiation = self.initiation();
        let heeded = (0..1000).take_while(|n| self.judge(*n, &initiation) == Ok(Verdict::Heed)).count();
        assert_eq!(heeded, 200);
    }

    /// The same a little later, when only some are heeded.
    fn is_busy_again(&mut self) {
        let initiation = self.initiation();
        while self.judge(9, &initiation) == Ok(Verdict::Heed) {}
    }

    /// The cookie that `number` is sent for an initiation.
    fn cookie(&mut self, number: u32, initiation: &[u8]) -> Vec<u8> {
        match self.judge(number, initiation) {
            Ok(Verdict::Cookie(cookie)) => cookie,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn only_who_knows_the_key_of_the_host_is_heeded() {
    let mut world = world();
    let initiation = world.initiation();
    assert_eq!(world.judge(1, &initiation), Ok(Verdict::Heed));
    let mut other = CookieChecker::new(&world.peer);
    assert_eq!(other.judge(&mut world.limits, source(1), &initiation, world.now), Err(Refused::Forged));
    for at in [4, 20, 60, 110, 130] {
        let mut changed = initiation.clone();
        changed[at] ^= 1;
        assert_eq!(world.judge(1, &changed), Err(Refused::Forged), "{at}");
    }
    assert_eq!(world.judge(1, &initiation[1..]), Err(Refused::Forged));
}

#[test]
fn above_the_rate_only_who_hears_what_it_is_sent_is_heeded() {
    let mut world = world();
    world.is_busy();
    let initiation = world.initiation();
    let cookie = world.cookie(1, &initiation);
    assert!(matches!(Message::parse(&cookie), Ok(Message::Cookie { .. })));
    assert_eq!(world.sessions.shake(&cookie), Ok(None));
    let proven = world.initiation();
    assert!(matches!(world.judge(2, &proven), Ok(Verdict::Cookie(_))), "it is another's");
    for n in 0..5 {
        let initiation = world.initiation();
        assert_eq!(world.judge(1, &initiation), Ok(Verdict::Heed), "{n}");
    }
    let proven = world.initiation();
    assert_eq!(world.judge(1, &proven), Err(Refused::TooMany));
    world.now += Duration::from_millis(50);
    world.is_busy_again();
    let proven = world.initiation();
    assert_eq!(world.judge(1, &proven), Ok(Verdict::Heed));
}

#[test]
fn whoever_does_not_know_the_key_uses_up_nothing() {
    let mut world = world();
    let mut forged = world.initiation();
    forged[130] ^= 1;
    for n in 0..1_000 {
        assert_eq!(world.judge(n, &forged), Err(Refused::Forged));
    }
    world.is_busy();
}

#[test]
fn a_flood_of_good_ones_is_looked_at_within_bounds() {
    let mut world = world();
    world.is_busy();
    let initiation = world.initiation();
    let looked_at =
        (0..10_000).filter(|n| matches!(world.judge(*n, &initiation), Ok(Verdict::Cookie(_)))).count();
    assert_eq!(looked_at, 2_000 - 1);
    assert_eq!(world.judge(1, &initiation), Err(Refused::TooMany));
    world.now += Duration::from_secs(1);
    world.is_busy();
}

#[test]
fn an_answer_is_checked_however_many_initiations_there_are() {
    let mut world = world();
    let mut back = Noise::new(&world.host, &world.peer.public(), None, &Indices::default());
    let response = world.sessions.shake(&back.initiate().unwrap()).unwrap().unwrap();
    world.is_busy();
    assert_eq!(world.checker.check(&response), Ok(()));
    let mut forged = response.clone();
    forged[70] ^= 1;
    assert_eq!(world.checker.check(&forged), Err(Refused::Forged));
    assert!(matches!(back.shake(&response), Ok(Some(_))));
}
