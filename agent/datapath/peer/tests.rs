use super::*;

/// Two hosts that know each other's keys.
fn peers(receivers: &Arc<Receivers>) -> [Peer; 2] {
    let keys = [(); 2].map(|()| Arc::new(OwnKey::new(PrivateKey::generate().unwrap())));
    [0, 1].map(|own| {
        let other = keys[1 - own].private.public();
        Peer::new(own as u64, Arc::clone(&keys[own]), other, None, Arc::clone(receivers))
    })
}

fn known(receivers: &Receivers) -> usize {
    receivers.peers.read().unwrap().len()
}

#[test]
fn indices_are_a_peers_as_long_as_they_may_be_answered() {
    let receivers = Arc::<Receivers>::default();
    let [peer, other] = peers(&receivers);
    let initiations: Vec<_> = (0..100).map(|_| peer.sessions().initiate().unwrap()).collect();
    let index = |message: &[u8]| message::sender(message).unwrap();
    assert_eq!(known(&receivers), INDICES);
    for initiation in &initiations[100 - INDICES..] {
        assert_eq!(receivers.peer(index(initiation)), Some(peer.id));
    }
    assert_eq!(receivers.peer(index(&initiations[0])), None);
    let response = other.sessions().shake(&initiations[99]).unwrap().unwrap();
    assert_eq!(receivers.peer(index(&response)), Some(other.id));
    drop(peer);
    assert_eq!(known(&receivers), 1);
    drop(other);
    assert_eq!(known(&receivers), 0);
}

#[test]
fn an_answer_is_looked_at_while_one_is_awaited_and_not_for_ever() {
    let [peer, other] = peers(&Arc::default());
    let initiation = peer.sessions().initiate().unwrap();
    let index = message::sender(&initiation).unwrap();
    let expected = |index| peer.sessions().expect_answer(index);
    assert_eq!(expected(Index(index.0 ^ 1)), Err(Refused::NoSession));
    for _ in 0..ANSWERS {
        assert_eq!(expected(index), Ok(()));
    }
    assert_eq!(expected(index), Err(Refused::TooMany));
    let again = peer.sessions().initiate().unwrap();
    let next = message::sender(&again).unwrap();
    assert_eq!((expected(index), expected(next)), (Err(Refused::NoSession), Ok(())));
    let response = other.sessions().shake(&again).unwrap().unwrap();
    peer.sessions().shake(&response).unwrap();
    assert_eq!(expected(next), Err(Refused::NoSession), "it has been answered");
}

#[test]
fn a_peer_is_greeted_once_and_not_where_it_has_been_heard() {
    let [peer, other] = peers(&Arc::default());
    let greeting = peer.sessions().greet().unwrap();
    assert_eq!(peer.sessions().greet(), None);
    let response = other.sessions().shake(&greeting).unwrap().unwrap();
    let mut keepalive = peer.sessions().shake(&response).unwrap().unwrap();
    assert_eq!(other.sessions().open(&mut keepalive), Ok(16..16));
    assert_eq!(other.sessions().greet(), None, "there are keys");
}

#[test]
fn a_peer_whose_clock_seems_to_be_set_back_is_asked_now_and_then() {
    let [peer, other] = peers(&Arc::default());
    let old = peer.sessions().initiate().unwrap();
    let new = peer.sessions().initiate().unwrap();
    other.sessions().shake(&new).unwrap();
    assert_eq!(other.sessions().shake(&old), Err(Refused::Repeated));
    let now = Duration::from_secs(100);
    assert!(other.sessions().revive(now).is_some());
    assert_eq!(other.sessions().revive(now + REVIVAL - Duration::from_millis(1)), None);
    assert!(other.sessions().revive(now + REVIVAL).is_some());
}

#[test]
fn when_keys_were_agreed_on_is_told_the_same_each_time() {
    let [peer, other] = peers(&Arc::default());
    let now = Duration::from_secs(100);
    assert_eq!(peer.sessions().established(now), None);
    let agree = || {
        let initiation = peer.sessions().initiate().unwrap();
        let response = other.sessions().shake(&initiation).unwrap().unwrap();
        peer.sessions().shake(&response).unwrap();
    };
    agree();
    let first = peer.sessions().established(now).unwrap();
    assert!(first.abs_diff(now) < ROUNDING);
    assert_eq!(peer.sessions().established(now + Duration::from_millis(900)), Some(first));
    // Its age is by a clock of its own, which this one has left behind.
    let later = now + Duration::from_secs(5);
    assert!(peer.sessions().established(later).unwrap().abs_diff(later) < ROUNDING);
}

#[test]
fn a_peer_is_met_once_both_can_send_by_keys() {
    let [peer, other] = peers(&Arc::default());
    let initiation = peer.sessions().greet().unwrap();
    let response = other.sessions().shake(&initiation).unwrap().unwrap();
    assert_eq!((peer.is_met(), other.is_met()), (false, false), "an initiation may be an old one");
    let mut first = peer.sessions().shake(&response).unwrap().unwrap();
    assert_eq!((peer.is_met(), other.is_met()), (true, false));
    other.sessions().open(&mut first).unwrap();
    assert!(other.is_met());
    other.sessions().forget();
    assert!(other.is_met(), "it is never again as if it had not been");
}

#[test]
fn one_to_whom_packets_go_unencrypted_until_then_is_asked_until_it_is_met() {
    let [peer, other] = peers(&Arc::default());
    let asks = |seconds: u64| {
        let message = peer.sessions().tick(Duration::from_secs(seconds), true).message;
        message.filter(|message| message::is_initiation(message))
    };
    assert_eq!(asks(100), None);
    assert!(asks(105).is_some() && asks(106).is_none());
    let response = other.sessions().shake(&asks(110).unwrap()).unwrap().unwrap();
    peer.sessions().shake(&response).unwrap();
    assert_eq!(asks(1_000), None);
}

#[test]
fn a_silent_peer_to_whom_something_is_sent_in_any_case_is_asked_now_and_then() {
    let [own, theirs] = [(); 2].map(|()| Arc::new(OwnKey::new(PrivateKey::generate().unwrap())));
    let receivers = Arc::<Receivers>::default();
    let keepalive = NonZeroU16::new(25);
    let peer = Peer::new(1, Arc::clone(&own), theirs.private.public(), keepalive, Arc::clone(&receivers));
    let other = Peer::new(2, theirs, own.private.public(), None, receivers);
    let asks = |seconds: u64| {
        let message = peer.sessions().tick(Duration::from_secs(seconds), false).message;
        message.filter(|message| message::is_initiation(message))
    };
    assert!(asks(100).is_some(), "what is sent needs keys");
    assert_eq!(asks(129), None);
    let initiation = asks(130).unwrap();
    assert_eq!(asks(131), None, "it has been asked");
    let response = other.sessions().shake(&initiation).unwrap().unwrap();
    let mut first = peer.sessions().shake(&response).unwrap().unwrap();
    other.sessions().open(&mut first).unwrap();
    assert_eq!(asks(150), None);
    assert_eq!(asks(179), None, "it was heard");
    assert!(asks(180).is_some());
    assert_eq!(other.sessions().tick(Duration::from_secs(1_000), false).message, None, "it may be silent");
}
