use proptest::prelude::*;

use super::super::message::{Index, Message, OVERHEAD, sealed_length, sender};
use super::*;

const LONGEST: u16 = 1420;

/// Two hosts that know each other's key.
struct Pair {
    keys: [PrivateKey; 2],
    ends: [Noise; 2],
}

impl Pair {
    fn new() -> Self {
        let keys = [(); 2].map(|()| PrivateKey::generate().unwrap());
        let end = |own: usize| Noise::new(&keys[own], &keys[1 - own].public(), None, &Indices::default());
        let ends = [end(0), end(1)];
        Self { ends, keys }
    }

    /// With a session that the first has begun.
    fn joined() -> Self {
        let mut pair = Self::new();
        let initiation = pair.ends[0].initiate().unwrap();
        pair.answer(initiation);
        pair
    }

    /// Has the second answer an initiation of the first, which it takes in.
    fn answer(&mut self, initiation: Vec<u8>) {
        let response = self.ends[1].shake(&initiation).unwrap().unwrap();
        let mut keepalive = self.ends[0].shake(&response).unwrap().unwrap();
        assert!(self.ends[1].open(&mut keepalive).unwrap().is_empty());
    }

    /// What has waited at one and can go now.
    fn released(&mut self, from: usize) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.ends[from].released()).map(|(datagram, _)| datagram).collect()
    }

    fn seal(&mut self, from: usize, packet: &[u8]) -> Vec<u8> {
        let mut datagram = Vec::new();
        assert_eq!(self.ends[from].seal([packet, &[]], LONGEST, &mut datagram), Sealed::Datagram);
        datagram
    }

    fn open(&mut self, to: usize, datagram: &[u8]) -> Result<Vec<u8>, Refused> {
        let mut datagram = datagram.to_vec();
        self.ends[to].open(&mut datagram).map(|place| datagram[place].to_vec())
    }
}

#[test]
fn what_one_seals_the_other_opens_and_nobody_else() {
    let (mut pair, mut other) = (Pair::joined(), Pair::joined());
    for from in [0, 1] {
        let datagram = pair.seal(from, b"known text");
        assert!(!datagram.windows(5).any(|bytes| bytes == b"known"));
        assert!(matches!(Message::parse(&datagram), Ok(Message::Data { .. })));
        assert_eq!(other.open(1 - from, &datagram), Err(Refused::NoSession));
        assert_eq!(pair.open(from, &datagram), Err(Refused::NoSession), "it is not the sender's");
        assert_eq!(pair.open(1 - from, &datagram).unwrap(), b"known text\0\0\0\0\0\0");
    }
}

#[test]
fn packets_wait_for_a_session_and_then_go_in_order() {
    let mut pair = Pair::new();
    let mut room = Vec::new();
    let mut seal =
        |end: &mut Noise, n: usize| end.seal([b"number ", n.to_string().as_bytes()], LONGEST, &mut room);
    let initiations = pair.ends.each_mut().map(|end| match seal(end, 0) {
        Sealed::Waits { initiation: Some(initiation), has_lost: false } => initiation,
        other @ (Sealed::Datagram | Sealed::Waits { .. }) => panic!("{other:?}"),
    });
    for n in 1..WAITING + 5 {
        let waits = Sealed::Waits { initiation: None, has_lost: n >= WAITING };
        assert_eq!(seal(&mut pair.ends[0], n), waits, "a handshake is under way");
    }
    assert!(room.is_empty());
    assert!(pair.released(0).is_empty());
    // Both have begun; the first one's comes through.
    assert_eq!(initiations.len(), 2);
    let [initiation, _] = initiations;
    pair.answer(initiation);
    for (from, numbers) in [(0, 5..WAITING + 5), (1, 0..1)] {
        let released = pair.released(from);
        assert_eq!(released.len(), numbers.len());
        for (datagram, n) in released.iter().zip(numbers) {
            let packet = pair.open(1 - from, datagram).unwrap();
            assert!(packet.starts_with(format!("number {n}\0").as_bytes()), "{n}: {packet:?}");
        }
    }
}

#[test]
fn who_has_answered_sends_nothing_before_the_other_has_shown_that_it_is_there() {
    let mut pair = Pair::new();
    let initiation = pair.ends[0].initiate().unwrap();
    let response = pair.ends[1].shake(&initiation).unwrap().unwrap();
    let mut room = Vec::new();
    let waits = pair.ends[1].seal([b"early", b""], LONGEST, &mut room);
    assert!(matches!(waits, Sealed::Waits { initiation: Some(_), .. }), "{waits:?}");
    assert_eq!(pair.ends[1].age(), None);
    let mut keepalive = pair.ends[0].shake(&response).unwrap().unwrap();
    assert!(pair.released(1).is_empty());
    pair.ends[1].open(&mut keepalive).unwrap();
    let released = pair.released(1);
    assert!(pair.open(0, &released[0]).unwrap().starts_with(b"early"));
    assert!(pair.ends[1].age().is_some());
}

#[test]
fn an_answer_that_is_not_heard_makes_no_keys_new() {
    let mut pair = Pair::joined();
    std::thread::sleep(std::time::Duration::from_millis(50));
    for _ in 0..3 {
        // What time it is the sessions know since the last look at the clock.
        pair.ends[1].tick();
        let initiation = pair.ends[0].initiate().unwrap();
        let answer = pair.ends[1].shake(&initiation).unwrap();
        assert!(answer.is_some(), "and it is lost");
        assert!(pair.ends[1].age().unwrap() >= std::time::Duration::from_millis(50));
    }
    pair.ends[1].tick();
    let initiation = pair.ends[0].initiate().unwrap();
    pair.answer(initiation);
    assert!(pair.ends[1].age().unwrap() < std::time::Duration::from_millis(50));
}

#[test]
fn what_has_been_here_is_refused_and_what_comes_in_disorder_is_not() {
    const WINDOW: usize = 8_192;
    let mut pair = Pair::joined();
    let datagrams: Vec<_> =
        (0..WINDOW + 200).map(|n| pair.seal(0, format!("{n:08} of many").as_bytes())).collect();
    for n in [5, 3, 4, 64, 63, 1] {
        assert!(pair.open(1, &datagrams[n]).is_ok(), "{n}");
        assert_eq!(pair.open(1, &datagrams[n]), Err(Refused::Repeated), "{n}");
    }
    let last = datagrams.len() - 1;
    assert!(pair.open(1, &datagrams[last]).is_ok());
    for n in [2, 3, last - WINDOW - 1] {
        assert_eq!(pair.open(1, &datagrams[n]), Err(Refused::TooLate), "{n}");
    }
    assert!(pair.open(1, &datagrams[last - WINDOW + 2]).is_ok());
}

#[test]
fn an_initiation_tells_to_its_receiver_alone_whose_it_is() {
    let mut pair = Pair::new();
    let initiation = pair.ends[0].initiate().unwrap();
    let [own, other] = &pair.keys;
    assert_eq!(initiator(other, &initiation), Ok(own.public()));
    assert_eq!(initiator(own, &initiation), Err(Refused::Forged));
    assert_eq!(initiator(other, &initiation[1..]), Err(Refused::Malformed));
}

#[test]
fn an_old_initiation_and_that_of_a_stranger_change_nothing() {
    let mut pair = Pair::new();
    let initiation = pair.ends[0].initiate().unwrap();
    let later = pair.ends[0].initiate().unwrap();
    pair.answer(later.clone());
    for old in [&initiation, &later] {
        assert_eq!(pair.ends[1].shake(old), Err(Refused::Repeated));
    }
    let stranger = PrivateKey::generate().unwrap();
    let mut theirs = Noise::new(&stranger, &pair.keys[1].public(), None, &Indices::default());
    assert_eq!(pair.ends[1].shake(&theirs.initiate().unwrap()), Err(Refused::Forged));
    let datagram = pair.seal(0, b"it goes on");
    assert!(pair.open(1, &datagram).is_ok());
}

#[test]
fn a_new_session_takes_over_and_what_the_old_one_sealed_still_arrives() {
    let mut pair = Pair::joined();
    let old = pair.seal(0, b"the old");
    let initiation = pair.ends[0].initiate().unwrap();
    assert!(sender(&initiation).is_some());
    pair.answer(initiation);
    let new = pair.seal(0, b"the new");
    let session = |datagram: &[u8]| Message::parse(datagram).unwrap();
    assert_ne!(session(&old), session(&new));
    assert!(pair.open(1, &new).is_ok());
    assert!(pair.open(1, &old).is_ok());
    assert!(pair.ends.iter().all(|end| end.age().is_some()));
}

#[test]
fn the_sender_of_a_handshake_is_answered_by_the_index_that_it_has_chosen() {
    let mut pair = Pair::new();
    let initiation = pair.ends[0].initiate().unwrap();
    let response = pair.ends[1].shake(&initiation).unwrap().unwrap();
    let answered = sender(&initiation).unwrap();
    assert_eq!(Message::parse(&response), Ok(Message::Response { receiver: answered }));
    let chosen: Index = sender(&response).unwrap();
    let first = pair.ends[0].shake(&response).unwrap().unwrap();
    assert_eq!(Message::parse(&first), Ok(Message::Data { receiver: chosen }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_packet_is_the_same_at_the_other_end(
        packet in prop::collection::vec(any::<u8>(), 1..3000), cut in any::<prop::sample::Index>(),
        longest in 68_u16..9000,
    ) {
        let mut pair = Pair::joined();
        let (front, back) = packet.split_at(cut.index(packet.len()));
        let mut datagram = b"before".to_vec();
        prop_assert_eq!(pair.ends[0].seal([front, back], longest, &mut datagram), Sealed::Datagram);
        let datagram = &datagram[b"before".len()..];
        prop_assert_eq!(datagram.len(), sealed_length(packet.len(), longest.into()));
        let opened = pair.open(1, datagram).unwrap();
        prop_assert_eq!(&opened[..packet.len()], &packet[..]);
        prop_assert!(opened[packet.len()..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn whatever_is_changed_on_the_way_is_refused(
        length in 1_usize..200, at in any::<prop::sample::Index>(), bit in 0..8, end in any::<prop::sample::Index>(),
    ) {
        let mut pair = Pair::joined();
        let datagram = pair.seal(0, &vec![7; length]);
        let mut changed = datagram.clone();
        changed[at.index(datagram.len())] ^= 1_u8 << bit;
        prop_assert!(pair.open(1, &changed).is_err());
        prop_assert!(pair.open(1, &datagram[..end.index(datagram.len())]).is_err());
        let longer = [&datagram[..], &[0]].concat();
        prop_assert!(pair.open(1, &longer).is_err());
        prop_assert_eq!(pair.open(1, &datagram).map(|opened| opened.len()), Ok(datagram.len() - OVERHEAD));
    }

    #[test]
    fn nothing_that_arrives_panics_or_changes_anything(
        kind in 0_u8..6, length in prop::sample::select(vec![0, 4, 31, 32, 64, 92, 100, 148, 1500]), seed in any::<u8>(),
    ) {
        let mut pair = Pair::joined();
        let mut bytes: Vec<u8> = (0..length).map(|n: usize| (n as u8).wrapping_mul(seed)).collect();
        bytes.iter_mut().zip([kind, 0, 0, 0]).for_each(|(byte, first)| *byte = first);
        prop_assert!(pair.ends[1].open(&mut bytes.clone()).is_err());
        prop_assert!(pair.ends[1].shake(&bytes).is_err());
        let datagram = pair.seal(0, b"it goes on");
        prop_assert!(pair.open(1, &datagram).is_ok());
    }
}
