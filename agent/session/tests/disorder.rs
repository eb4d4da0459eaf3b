//! Any messages in any order: what is kept is always something that was wanted, and an honest controller always
//! brings the agent into step.

use super::*;

/// What an arbitrary world does.
#[derive(Debug, Clone)]
enum Step {
    Pass(u64),
    Connected,
    Closed,
    Kept(bool),
    Welcome(bool),
    NotModified(u64),
    /// A part of the view of a revision: what to skip, how much, whether it ends it, and whether its digest is right.
    Chunk(u64, usize, usize, bool, bool),
    Snapshot(u64),
    /// From one revision to another, and whether its digest is right.
    Delta(u64, u64, bool),
    /// From what the agent has.
    Follow(u64),
    Ping,
    Request,
    GoAway,
}

const REVISIONS: u64 = 12;
const LAST: u64 = REVISIONS + 1;

/// What is wanted at a revision: some grow, some shrink by much.
fn view(revision: u64) -> Items {
    const TUNNELS: [u64; 12] = [2, 9, 9, 3, 4, 12, 1, 0, 7, 7, 8, 2];
    let at = usize::try_from(revision).unwrap() % TUNNELS.len();
    items(revision % 3..TUNNELS[at], revision / 4)
}

/// The digest of what was never wanted.
fn wrong() -> Digest {
    items([99], 99).digest()
}

/// Consent was given once, in the middle.
fn consent(revision: u64) -> u64 {
    if revision >= 6 { 6 } else { 0 }
}

fn step() -> impl Strategy<Value = Step> {
    let revision = || 1..REVISIONS;
    prop_oneof![
        1 => (0..4000_u64).prop_map(Step::Pass),
        2 => Just(Step::Connected),
        1 => Just(Step::Closed),
        4 => prop::bool::weighted(0.8).prop_map(Step::Kept),
        2 => prop::bool::weighted(0.9).prop_map(Step::Welcome),
        1 => revision().prop_map(Step::NotModified),
        1 => (revision(), 0..6_usize, 0..14_usize, any::<bool>(), any::<bool>())
            .prop_map(|(revision, skip, take, ends, right)| Step::Chunk(revision, skip, take, ends, right)),
        2 => revision().prop_map(Step::Snapshot),
        1 => (revision(), revision(), any::<bool>()).prop_map(|(from, to, right)| Step::Delta(from, to, right)),
        2 => revision().prop_map(Step::Follow),
        1 => Just(Step::Ping),
        1 => Just(Step::Request),
        1 => Just(Step::GoAway),
    ]
}

/// A session in such a world, with what must hold of it.
struct World {
    bench: Bench,
    keeping: Option<Base>,
    connected: bool,
    acked: Option<Generation>,
}

impl World {
    fn take(&mut self, step: Step) {
        let now = self.bench.now;
        match step {
            Step::Pass(ms) => {
                self.bench.now += Duration::from_millis(ms);
                self.bench.session.handle_timeout(self.bench.now);
            }
            Step::Connected => self.bench.session.handle_connected(now),
            Step::Closed => self.bench.session.handle_closed(lost(), None, now),
            Step::Kept(well) => {
                if let Some(base) = self.keeping.take()
                    && well
                {
                    self.check_next(&base);
                }
                let outcome = if well { Ok(BTreeMap::new()) } else { Err("no".to_owned()) };
                self.bench.session.handle_kept(outcome, now);
            }
            Step::Welcome(ours) => self.bench.say(welcome(if ours { "s1" } else { "s2" })),
            // Whoever says so has compared.
            Step::NotModified(revision) => {
                let has = self.bench.session.base().map(|base| base.have().digest);
                if has == Some(view(revision).digest()) {
                    self.bench.say(ControllerMessage::NotModified(generation(revision)));
                }
            }
            Step::Chunk(revision, skip, take, ends, right) => {
                let view = view(revision);
                let part: Vec<_> = view.iter().skip(skip).take(take).cloned().collect();
                let digest = if right { view.digest() } else { wrong() };
                self.bench.say(chunk(revision, &part, ends.then_some((digest, consent(revision)))));
            }
            Step::Snapshot(revision) => {
                self.bench.say(snapshot(revision, &view(revision), consent(revision)));
            }
            Step::Delta(from, to, right) => {
                let mut message = delta((from, &view(from)), (to, &view(to)), consent(to));
                if let ControllerMessage::Delta(delta) = &mut message
                    && !right
                {
                    delta.digest = wrong();
                }
                self.bench.say(message);
            }
            Step::Follow(to) => {
                if let Some(from) = self.bench.session.base().map(|base| base.generation.revision) {
                    self.bench.say(delta((from, &view(from)), (to, &view(to)), consent(to)));
                }
            }
            Step::Ping => self.bench.say(ping(1)),
            Step::Request => self.bench.say(ControllerMessage::ReportRequest(1)),
            Step::GoAway => {
                self.bench.say(ControllerMessage::GoAway { reason: String::new(), after_ms: 100 });
            }
        }
        self.settle();
    }

    /// Takes what it wants done.
    fn settle(&mut self) {
        for effect in self.bench.effects() {
            match effect {
                Effect::Dial(_) => assert!(self.keeping.is_none(), "dialled with something under way"),
                Effect::Close => self.connected = false,
                Effect::Operators(_) | Effect::Examine(_) => {}
                Effect::Keep(base) => {
                    assert!(self.keeping.is_none(), "two at a time");
                    assert_eq!(base.items, view(base.generation.revision));
                    self.keeping = Some(base);
                }
                Effect::Send(AgentMessage::Hello(hello)) => {
                    assert_eq!(hello.have, self.bench.session.base().map(Base::have));
                    self.connected = true;
                }
                Effect::Send(message) => {
                    assert!(self.connected, "{message:?} to nobody");
                    if let AgentMessage::Ack(ack) = message {
                        let has = self.bench.session.base().map(|base| base.generation);
                        assert_eq!(Some(ack.generation), has);
                        assert!(Some(ack.generation) >= self.acked);
                        self.acked = Some(ack.generation);
                    }
                }
            }
        }
    }

    /// What is about to be kept against what was.
    fn check_next(&self, next: &Base) {
        let Some(before) = self.bench.session.base() else { return };
        assert!(next.generation >= before.generation);
        // It comes with what says that nothing is different, or with consent, or without.
        if next.items == before.items && next.held == before.held {
            return;
        }
        if consent(next.generation.revision) > before.generation.revision {
            assert!(next.held.is_empty());
            return;
        }
        let is_tunnel = |item: &&Arc<Item>| matches!(item.id, ItemId::Tunnel(_));
        let after = next.all();
        let stays = |old: &Arc<Item>| after.iter().any(|new| new.id == old.id);
        let gone = before.all().iter().filter(is_tunnel).filter(|old| !stays(old)).count();
        let had = before.items.iter().filter(is_tunnel).count();
        assert!(gone <= 3 || gone * 2 <= had, "{gone} of {had} tunnels went without consent");
        assert!(before.held.iter().all(stays));
    }
}

proptest! {
    #[test]
    fn whatever_is_said_the_agent_has_what_was_wanted_and_comes_into_step(
        steps in prop::collection::vec(step(), 0..120),
        seed in any::<u64>(),
    ) {
        let bench = Bench::new(2, None, seed);
        let mut world = World { bench, keeping: None, connected: false, acked: None };
        for step in steps {
            world.take(step);
        }
        // From here on the controller is honest, and at a later revision than it ever was.
        for _ in 0..200 {
            if world.bench.state() == SessionState::Synced && world.acked == Some(generation(LAST)) {
                break;
            }
            let before = world.bench.state();
            world.take(Step::Kept(true));
            world.take(Step::Pass(2000));
            world.take(Step::Connected);
            if before != SessionState::Connected && world.bench.state() == SessionState::Connected {
                let is_ours = world.bench.session.base().is_none_or(|base| base.store_id == "s1");
                world.take(Step::Welcome(is_ours));
            }
            world.take(Step::Ping);
            world.take(Step::Snapshot(LAST));
            world.take(Step::Kept(true));
        }
        prop_assert_eq!(world.acked, Some(generation(LAST)));
        prop_assert_eq!(&world.bench.has().items, &view(LAST));
    }
}
