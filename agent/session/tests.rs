mod disorder;
mod removals;
mod reports;

use std::sync::Arc;

use proptest::prelude::*;

use super::push::SNAPSHOT_BYTES;
use super::*;
use crate::proto::model::{Owner, PublicKey, TunnelState};
use crate::proto::session::{
    Delta, Digest, Have, Item, Items, Removals, Report, SnapshotChunk, SnapshotEnd, Tag,
};

#[allow(clippy::disallowed_methods, reason = "any instant will do to count from")]
fn start() -> Instant {
    Instant::now()
}

fn lost() -> Trouble {
    Trouble::new(TroubleKind::Ended, "reset")
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn generation(revision: u64) -> Generation {
    Generation { incarnation: 1, revision }
}

fn item(id: &str, content: u64) -> Arc<Item> {
    let content = content.to_be_bytes().to_vec();
    Arc::new(Item { id: id.parse().unwrap(), tag: Tag::of(&content), content })
}

/// The device and tunnels by number, all with one content.
fn items(tunnels: impl IntoIterator<Item = u64>, content: u64) -> Items {
    let tunnels = tunnels.into_iter().map(|tunnel| item(&format!("tunnel m.n{tunnel}"), content));
    Items::new(tunnels.chain([item("device m", 0)]))
}

fn chunk(revision: u64, items: &[Arc<Item>], end: Option<(Digest, u64)>) -> ControllerMessage {
    ControllerMessage::Snapshot(SnapshotChunk {
        generation: generation(revision),
        items: items.to_vec(),
        end: end.map(|(digest, consent)| SnapshotEnd {
            digest,
            removals: Removals { consent, ..Removals::default() },
        }),
    })
}

fn snapshot(revision: u64, items: &Items, consent: u64) -> ControllerMessage {
    let all: Vec<_> = items.iter().cloned().collect();
    chunk(revision, &all, Some((items.digest(), consent)))
}

fn delta(before: (u64, &Items), after: (u64, &Items), consent: u64) -> ControllerMessage {
    let (set, delete) = before.1.changes_to(after.1);
    ControllerMessage::Delta(Delta {
        base: generation(before.0),
        generation: generation(after.0),
        set,
        delete,
        digest: after.1.digest(),
        removals: Removals { consent, ..Removals::default() },
    })
}

fn welcome(store_id: &str) -> ControllerMessage {
    ControllerMessage::Welcome(Welcome {
        protocol_version: 1,
        capabilities: BTreeSet::new(),
        store_id: store_id.to_owned(),
        epoch: 1,
        version: "0.1.0".to_owned(),
        timeline: "t1".to_owned(),
    })
}

fn ping(ping: u64) -> ControllerMessage {
    ControllerMessage::Heartbeat(Heartbeat { ping: Some(ping), answers: None })
}

/// A session at a time of its own.
struct Bench {
    session: Session,
    now: Instant,
}

impl Bench {
    fn new(controllers: usize, base: Option<Base>, seed: u64) -> Self {
        let identity = Identity {
            node: "n0".parse().unwrap(),
            labels: BTreeMap::new(),
            reach: Reach::default(),
            data_port: 5000,
            version: "0.1.0".to_owned(),
            run_id: RunId::new(1),
        };
        let now = start();
        Self { session: Session::new(identity, controllers, base, seed, now), now }
    }

    /// One that is welcome, with nothing kept.
    fn welcome() -> Self {
        let mut bench = Self::new(1, None, 1);
        bench.connect();
        bench
    }

    /// One that has `items` as generation 1.
    fn synced(items: &Items) -> Self {
        let mut bench = Self::welcome();
        bench.push(snapshot(1, items, 0));
        bench
    }

    fn effects(&mut self) -> Vec<Effect> {
        std::iter::from_fn(|| self.session.poll_effect()).collect()
    }

    fn sent(&mut self) -> Vec<AgentMessage> {
        let sent = self.effects().into_iter().filter_map(|effect| match effect {
            Effect::Send(message) => Some(message),
            Effect::Dial(_) | Effect::Close | Effect::Keep(_) | Effect::Operators(_) | Effect::Examine(_) => {
                None
            }
        });
        sent.collect()
    }

    /// Lets time pass, doing what is due when it is.
    fn pass(&mut self, time: Duration) -> Vec<Effect> {
        let until = self.now + time;
        let mut effects = Vec::new();
        while let Some(at) = self.session.poll_timeout().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.session.handle_timeout(self.now);
            effects.extend(self.effects());
        }
        self.now = until;
        effects
    }

    /// Waits for a dial, which controller it is of, and how long it took.
    fn dial(&mut self) -> (usize, Duration) {
        let before = self.now;
        let at = self.session.poll_timeout().unwrap();
        self.now = self.now.max(at);
        self.session.handle_timeout(self.now);
        match self.effects()[..] {
            [Effect::Dial(controller)] => (controller, self.now - before),
            ref other => panic!("{other:?}"),
        }
    }

    fn connect(&mut self) -> Hello {
        self.dial();
        self.session.handle_connected(self.now);
        let hello = match self.effects().pop() {
            Some(Effect::Send(AgentMessage::Hello(hello))) => *hello,
            other => panic!("{other:?}"),
        };
        self.say(welcome("s1"));
        hello
    }

    fn say(&mut self, message: ControllerMessage) {
        self.session.handle_message(message, self.now);
    }

    /// Says something that is kept without a failure, and returns what is acknowledged.
    fn push(&mut self, message: ControllerMessage) -> Ack {
        self.say(message);
        assert!(matches!(self.effects()[..], [Effect::Keep(_)]));
        self.session.handle_kept(Ok(BTreeMap::new()), self.now);
        match &self.sent()[..] {
            [AgentMessage::Ack(ack)] => ack.clone(),
            other => panic!("{other:?}"),
        }
    }

    fn state(&self) -> SessionState {
        self.session.standing().state
    }

    /// It tells the controller why it does not follow it, and lets go.
    fn refuses(&mut self) {
        let reason = self.trouble().strip_prefix("refused: ").expect("a refusal").to_owned();
        assert_eq!(self.effects(), [Effect::Send(AgentMessage::Refusal(reason)), Effect::Close]);
    }

    fn trouble(&self) -> String {
        self.session.standing().trouble.map(|trouble| trouble.words).unwrap_or_default()
    }

    fn has(&self) -> &Base {
        self.session.base().unwrap()
    }
}

#[test]
fn a_controller_that_is_there_and_never_says_what_it_wants_is_given_up() {
    let mut bench = Bench::welcome();
    let mut all = Vec::new();
    for _ in 0..3 {
        all.extend(bench.pass(seconds(5)));
        bench.say(ControllerMessage::Heartbeat(Heartbeat::default()));
    }
    assert_eq!(all.last(), Some(&Effect::Close));
    assert!(bench.trouble().contains("not said what it wants"), "{}", bench.trouble());
    // As long as parts come it is waited for.
    let (mut bench, wanted) = (Bench::welcome(), items(1..=5, 0));
    for item in wanted.iter() {
        bench.pass(seconds(10));
        bench.say(chunk(7, std::slice::from_ref(item), None));
    }
    bench.push(chunk(7, &[], Some((wanted.digest(), 0))));
}

#[test]
fn a_snapshot_without_an_end_is_refused() {
    let mut bench = Bench::welcome();
    let long = Arc::new(Item {
        content: vec![0; SNAPSHOT_BYTES / 4],
        ..items(1..=1, 0).iter().next().unwrap().as_ref().clone()
    });
    for _ in 0..4 {
        bench.say(chunk(7, std::slice::from_ref(&long), None));
        assert_eq!(bench.effects(), []);
    }
    bench.say(chunk(7, &[long], None));
    bench.refuses();
}

#[test]
fn a_snapshot_is_acknowledged_once_it_is_kept() {
    let wanted = items(1..=5, 0);
    let all: Vec<_> = wanted.iter().cloned().collect();
    let mut bench = Bench::welcome();
    bench.say(chunk(7, &all[..2], None));
    bench.say(chunk(7, &all[2..], None));
    assert_eq!(bench.effects(), []);
    bench.say(chunk(7, &[], Some((wanted.digest(), 0))));
    let base = Base {
        store_id: "s1".to_owned(),
        generation: generation(7),
        timeline: "t1".to_owned(),
        items: wanted,
        consents_after: None,
        held: Items::default(),
    };
    assert_eq!(bench.effects(), [Effect::Keep(base.clone())]);
    assert_eq!((bench.session.base(), bench.state()), (None, SessionState::Connected));
    let failures = BTreeMap::from([("tunnel m.n2".parse().unwrap(), "no route".to_owned())]);
    bench.session.handle_kept(Ok(failures.clone()), bench.now);
    let ack = Ack { generation: generation(7), failures, removals_held: BTreeSet::new() };
    assert_eq!(bench.sent(), [AgentMessage::Ack(ack)]);
    assert_eq!((bench.session.base(), bench.state()), (Some(&base), SessionState::Synced));
}

#[test]
fn what_cannot_be_kept_is_not_acknowledged_and_asked_for_again_later() {
    let (before, after) = (items(1..=2, 0), items(1..=3, 0));
    let mut bench = Bench::synced(&before);
    bench.say(delta((1, &before), (2, &after), 0));
    bench.effects();
    bench.session.handle_kept(Err("the disk is full".to_owned()), bench.now);
    assert_eq!(bench.effects(), []);
    assert_eq!((bench.has().generation, &bench.has().items), (generation(1), &before));
    assert!(bench.trouble().contains("the disk is full"));
    let is_resync = |effect: &Effect| matches!(effect, Effect::Send(AgentMessage::Resync(_)));
    assert!(!bench.pass(Duration::from_millis(4999)).iter().any(is_resync));
    assert!(bench.pass(Duration::from_millis(1)).iter().any(is_resync));
    assert_eq!(bench.push(snapshot(2, &after, 0)).generation, generation(2));
    assert_eq!((bench.state(), bench.trouble()), (SessionState::Synced, String::new()));
}

#[test]
fn what_comes_before_it_is_asked_for_is_not_asked_for_any_more() {
    let (before, after) = (items(1..=2, 0), items(1..=3, 0));
    let mut bench = Bench::synced(&before);
    bench.say(delta((1, &before), (2, &after), 0));
    bench.effects();
    bench.session.handle_kept(Err("the disk is full".to_owned()), bench.now);
    bench.push(snapshot(3, &after, 0));
    assert_eq!((bench.state(), bench.trouble()), (SessionState::Synced, String::new()));
    let effects = bench.pass(seconds(10));
    let is_resync = |effect: &Effect| matches!(effect, Effect::Send(AgentMessage::Resync(_)));
    assert!(!effects.iter().any(is_resync), "{effects:?}");
}

#[test]
fn what_does_not_fit_is_asked_for_anew_and_changes_nothing() {
    let (before, after, other) = (items(1..=2, 0), items(1..=3, 0), items(1..=4, 0));
    let bad = |message| {
        let ControllerMessage::Delta(delta) = message else { panic!("{message:?}") };
        ControllerMessage::Delta(Delta { digest: other.digest(), ..delta })
    };
    let all: Vec<_> = after.iter().cloned().collect();
    for messages in [
        vec![delta((5, &before), (6, &after), 0)],
        vec![bad(delta((1, &before), (2, &after), 0))],
        vec![chunk(2, &all[1..], Some((after.digest(), 0)))],
        vec![chunk(2, &all[..1], None), chunk(3, &all[1..], None)],
        vec![chunk(2, &all[..1], None), delta((1, &before), (2, &after), 0)],
        vec![ControllerMessage::NotModified(generation(2))],
    ] {
        let mut bench = Bench::synced(&before);
        for message in messages.clone() {
            bench.say(message);
        }
        let sent = bench.sent();
        assert!(matches!(sent[..], [AgentMessage::Resync(_)]), "{messages:?}: {sent:?}");
        assert_eq!((bench.has().generation, bench.state()), (generation(1), SessionState::Connected));
        assert_eq!(bench.push(snapshot(6, &after, 0)).generation, generation(6));
        assert_eq!((&bench.has().items, bench.state()), (&after, SessionState::Synced));
    }
}

#[test]
fn a_controller_that_never_fits_is_not_asked_in_a_loop() {
    let mut bench = Bench::synced(&items(1..=2, 0));
    let mut asked = 0;
    for _ in 0..60 {
        bench.say(delta((5, &items([], 0)), (6, &items([], 1)), 0));
        let effects: Vec<_> = bench.effects().into_iter().chain(bench.pass(seconds(1))).collect();
        asked += effects.iter().filter(|e| matches!(e, Effect::Send(AgentMessage::Resync(_)))).count();
    }
    assert!((10..=13).contains(&asked), "{asked}");
}

#[test]
fn a_push_amid_another_is_asked_for_again_after_the_acknowledgement() {
    let views = [items(1..=2, 0), items(1..=3, 0), items(1..=4, 0)];
    let mut bench = Bench::synced(&views[0]);
    bench.say(delta((1, &views[0]), (2, &views[1]), 0));
    bench.effects();
    bench.say(delta((1, &views[0]), (3, &views[2]), 0));
    assert_eq!(bench.effects(), []);
    bench.session.handle_kept(Ok(BTreeMap::new()), bench.now);
    let sent = bench.sent();
    assert!(matches!(sent[..], [AgentMessage::Ack(_), AgentMessage::Resync(_)]), "{sent:?}");
    assert_eq!((bench.has().generation, bench.state()), (generation(2), SessionState::Connected));
}

#[test]
fn a_session_that_ends_while_something_is_kept_goes_on_with_it() {
    let wanted = items(1..=2, 0);
    let mut bench = Bench::welcome();
    bench.say(snapshot(1, &wanted, 0));
    bench.effects();
    bench.session.handle_closed(lost(), None, bench.now);
    // A Hello says what is on disk.
    assert_eq!(bench.session.poll_timeout(), None);
    bench.now += seconds(60);
    bench.session.handle_timeout(bench.now);
    assert_eq!(bench.effects(), []);
    bench.session.handle_kept(Ok(BTreeMap::new()), bench.now);
    assert_eq!(bench.effects(), [Effect::Dial(0)]);
    bench.session.handle_connected(bench.now);
    let have = bench.has().have();
    match &bench.sent()[..] {
        [AgentMessage::Hello(hello)] => assert_eq!(hello.have.as_ref(), Some(&have)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn not_modified_takes_the_new_generation_and_is_acknowledged() {
    let wanted = items(1..=2, 0);
    let mut bench = Bench::new(1, Some(Bench::synced(&wanted).has().clone()), 1);
    let hello = bench.connect();
    let have = Have {
        store_id: "s1".to_owned(),
        generation: generation(1),
        digest: wanted.digest(),
        timeline: "t1".to_owned(),
    };
    assert_eq!(hello.have, Some(have));
    assert_eq!(bench.push(ControllerMessage::NotModified(generation(9))).generation, generation(9));
    assert_eq!((bench.has().generation, &bench.has().items), (generation(9), &wanted));
    bench.push(delta((9, &wanted), (10, &items(1..=3, 0)), 0));
    assert_eq!(bench.state(), SessionState::Synced);
}

#[test]
fn nothing_older_is_ever_taken() {
    let (wanted, older) = (items(1..=2, 0), items(1..=3, 0));
    let base = Base {
        generation: Generation { incarnation: 2, revision: 5 },
        ..Bench::synced(&wanted).has().clone()
    };
    for message in [snapshot(900, &older, 900), ControllerMessage::NotModified(generation(900))] {
        let mut bench = Bench::new(1, Some(base.clone()), 1);
        bench.connect();
        bench.say(message);
        bench.refuses();
        assert!(bench.trouble().contains("1.900, which is older than 2.5"), "{}", bench.trouble());
        assert_eq!(bench.has(), &base);
        assert!(bench.dial().1 >= seconds(30));
    }
}

#[test]
fn a_foreign_controller_is_refused_with_the_remedy_and_asked_again_later() {
    let base = Bench::synced(&items(1..=2, 0)).has().clone();
    let mut bench = Bench::new(1, Some(base.clone()), 1);
    bench.dial();
    bench.session.handle_connected(bench.now);
    bench.effects();
    bench.say(welcome("s2"));
    bench.refuses();
    assert!(bench.trouble().contains("store s2") && bench.trouble().contains("agent leave"));
    assert_eq!((bench.has(), bench.state()), (&base, SessionState::Waiting));
    assert!(bench.dial().1 >= seconds(30));
}

#[test]
fn a_controller_that_speaks_another_protocol_is_refused() {
    for version in [0, PROTOCOL_VERSION + 1] {
        let mut bench = Bench::new(1, None, 1);
        bench.dial();
        bench.session.handle_connected(bench.now);
        bench.effects();
        let ControllerMessage::Welcome(welcome) = welcome("s1") else { panic!() };
        bench.say(ControllerMessage::Welcome(Welcome { protocol_version: version, ..welcome }));
        bench.refuses();
        assert!(bench.trouble().contains("one release"));
    }
}

#[test]
fn a_controller_welcomes_once_and_before_anything_else() {
    let begun = |messages: &[ControllerMessage]| {
        let mut bench = Bench::new(1, None, 1);
        bench.dial();
        bench.session.handle_connected(bench.now);
        bench.effects();
        messages.iter().for_each(|message| bench.say(message.clone()));
        bench.effects()
    };
    for first in [
        snapshot(1, &items([], 0), 0),
        delta((1, &items([], 0)), (2, &items([], 1)), 0),
        ControllerMessage::NotModified(generation(1)),
        ControllerMessage::ReportRequest(1),
    ] {
        assert_eq!(begun(std::slice::from_ref(&first)), [Effect::Close], "{first:?}");
    }
    assert_eq!(begun(&[welcome("s1"), welcome("s1")]), [Effect::Close]);
    assert_eq!(begun(&[ping(0)]).len(), 1);
}

#[test]
fn an_agent_is_the_second_of_its_name_until_it_is_welcome() {
    let refused = |code| Trouble::new(TroubleKind::Refused(code), "refused");
    let mut bench = Bench::synced(&items(1..=2, 0));
    bench.session.handle_closed(refused(PERMISSION_DENIED + 1), None, bench.now);
    assert!(!bench.session.is_second(), "another refusal");
    bench.dial();
    // Of one that has not said yet who it is: its name is taken, by whomever.
    bench.session.handle_closed(refused(ALREADY_EXISTS), None, bench.now);
    assert!(!bench.session.is_second());
    bench.dial();
    bench.session.handle_connected(bench.now);
    bench.effects();
    bench.session.handle_closed(refused(ALREADY_EXISTS), None, bench.now);
    assert!(bench.session.is_second());
    bench.dial();
    bench.session.handle_closed(lost(), None, bench.now);
    assert!(bench.session.is_second(), "nobody has said otherwise");
    bench.dial();
    bench.session.handle_connected(bench.now);
    bench.effects();
    assert!(bench.session.is_second(), "it may be refused again");
    bench.say(welcome("s1"));
    assert!(!bench.session.is_second());
    // It is free again, if only with a controller that is not followed.
    bench.push(snapshot(2, &items(1..=2, 0), 0));
    bench.session.handle_closed(lost(), None, bench.now);
    bench.effects();
    bench.dial();
    bench.session.handle_connected(bench.now);
    bench.session.handle_closed(refused(ALREADY_EXISTS), None, bench.now);
    bench.effects();
    bench.dial();
    bench.session.handle_connected(bench.now);
    bench.say(welcome("another"));
    assert!(!bench.session.is_second());
}

#[test]
fn heartbeats_come_and_pings_are_answered_at_once() {
    let mut bench = Bench::synced(&items(1..=2, 0));
    let mut last = bench.now;
    for _ in 0..50 {
        bench.say(ping(0x1234));
        let answer = Heartbeat { ping: None, answers: Some(0x1234) };
        assert_eq!(bench.sent(), [AgentMessage::Heartbeat(answer)]);
        let at = bench.session.poll_timeout().unwrap();
        assert!((4500..=5500).contains(&(at - last).as_millis()), "{:?}", at - last);
        last = at;
        let effects = bench.pass(at - bench.now);
        assert_eq!(effects, [Effect::Send(AgentMessage::Heartbeat(Heartbeat::default()))]);
    }
}

#[test]
fn heartbeats_of_many_agents_are_spread() {
    let first = (0..100).map(|seed| {
        let mut bench = Bench::new(1, None, seed);
        bench.connect();
        bench.session.poll_timeout().unwrap() - bench.now
    });
    let first: Vec<Duration> = first.collect();
    let (least, most) = (*first.iter().min().unwrap(), *first.iter().max().unwrap());
    assert!(
        least >= Duration::from_millis(4500) && most <= Duration::from_millis(5500),
        "{least:?} {most:?}"
    );
    assert!(most - least > Duration::from_millis(500), "{least:?} {most:?}");
}

#[test]
fn silence_ends_a_session() {
    let mut bench = Bench::synced(&items(1..=2, 0));
    bench.pass(Duration::from_millis(14_999));
    assert_eq!(bench.state(), SessionState::Synced);
    assert!(bench.pass(Duration::from_millis(1)).contains(&Effect::Close));
    assert!(bench.trouble().contains("said nothing for 15 s"), "{}", bench.trouble());
    assert_eq!(bench.has().generation, generation(1));
}

#[test]
fn a_dial_without_answer_ends_and_the_next_controller_is_tried() {
    let mut bench = Bench::new(3, None, 1);
    for round in 0..7 {
        assert_eq!(bench.dial().0, round % 3);
        assert_eq!(bench.session.poll_timeout(), Some(bench.now + seconds(3)));
        bench.now += seconds(3);
        bench.session.handle_timeout(bench.now);
        assert_eq!(bench.effects(), [Effect::Close]);
        // Too late.
        bench.session.handle_connected(bench.now);
        bench.say(welcome("s1"));
        bench.session.handle_closed(lost(), None, bench.now);
        assert_eq!(bench.effects(), []);
        assert_eq!(
            (bench.state(), bench.trouble()),
            (SessionState::Waiting, "no answer within 3 s".to_owned())
        );
    }
}

#[test]
fn a_goodbye_ends_it_for_good() {
    let mut bench = Bench::synced(&items(1..=2, 0));
    bench.session.end(bench.now);
    assert_eq!(bench.effects(), [Effect::Send(AgentMessage::Goodbye), Effect::Close]);
    bench.say(ping(1));
    bench.session.handle_closed(lost(), None, bench.now);
    bench.session.handle_timeout(bench.now + seconds(600));
    assert_eq!((bench.effects(), bench.session.poll_timeout()), (vec![], None));
}

proptest! {
    #[test]
    fn waits_are_spread_grow_and_heed_what_is_asked(seed in any::<u64>(), asked in 0..1000_u64) {
        let mut bench = Bench::new(1, None, seed);
        let mut most = 500;
        for _ in 0..8 {
            bench.dial();
            bench.session.handle_closed(lost(), Some(seconds(asked)), bench.now);
            let waited = bench.session.poll_timeout().unwrap() - bench.now;
            let least = seconds(asked.min(300));
            prop_assert!(least <= waited && waited <= least + Duration::from_millis(most), "{waited:?}");
            most = (most * 2).min(6000);
        }
    }

    #[test]
    fn only_a_good_session_resets_the_wait(seed in any::<u64>(), lasted in 0..20_u64) {
        let wanted = items(1..=2, 0);
        let mut bench = Bench::new(1, None, seed);
        for _ in 0..10 {
            bench.dial();
            bench.session.handle_closed(lost(), None, bench.now);
        }
        bench.connect();
        bench.push(snapshot(1, &wanted, 0));
        for _ in 0..lasted {
            bench.pass(seconds(1));
            bench.say(ping(1));
        }
        bench.effects();
        bench.say(ControllerMessage::GoAway { reason: "restart".to_owned(), after_ms: 2000 });
        prop_assert_eq!(bench.effects(), [Effect::Close]);
        let waited = bench.session.poll_timeout().unwrap() - bench.now;
        let most = if lasted >= 10 { 2500 } else { 8000 };
        prop_assert!((2000..=most).contains(&waited.as_millis()), "{waited:?}");
    }

    #[test]
    fn a_base_is_read_as_it_was_written(tunnels in 0..20_u64, held in 0..20_u64, content in any::<u64>()) {
        let base = Base {
            store_id: "s1".to_owned(),
            generation: generation(content),
            timeline: format!("t{}", content % 2).split_off(usize::from(content % 3 == 0) * 2),
            consents_after: (content % 5 == 0).then_some(content),
            items: items(0..tunnels, content),
            held: items(20..20 + held, content),
        };
        let text = serde_json::to_string(&base).unwrap();
        prop_assert_eq!(serde_json::from_str::<Base>(&text).unwrap(), base);
    }
}

#[test]
fn keys_are_told_with_the_hello_and_when_they_have_changed() {
    let mut bench = Bench::new(1, None, 1);
    let keys = |number: u8| BTreeMap::from([("prod".parse().unwrap(), PublicKey::from([number; 32]))]);
    bench.session.handle_keys(keys(1));
    assert_eq!(bench.connect().keys, keys(1));
    bench.session.handle_keys(keys(1));
    assert_eq!(bench.sent(), []);
    bench.session.handle_keys(keys(2));
    assert_eq!(bench.sent(), [AgentMessage::Keys(keys(2))]);
}
