//! Watches, without a network.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use futures_util::FutureExt;
use tokio_stream::StreamExt;

use super::*;
use crate::controller::registry::{Origin, Path};
use crate::controller::runtime::{BEHIND, Link, Outgoing};
use crate::controller::service::tests::{Controller, controller};
use crate::proto::session::{Ack, AgentMessage, ControllerMessage, Hello, PROTOCOL_VERSION, Reach, RunId};
use crate::proto::trust::Asker;

/// How long to wait for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

async fn running() -> (Controller, Admin) {
    let controller = controller().await;
    let facts =
        Facts { started: Duration::ZERO, listen: Vec::new(), store: String::new(), weakened: Vec::new() };
    let wall = Duration::from_secs(1_800_000_000);
    let credentials = Credentials::open(&controller.directory.path().join("pki"), wall).unwrap();
    let (credentials, store) = (Arc::new(credentials), Arc::clone(&controller.store));
    let admin = Admin::new(controller.handle.clone(), facts, credentials, store, CancellationToken::new());
    (controller, admin)
}

/// The session of an agent, and what the controller says on it.
struct Agent {
    connection: crate::controller::state::Connection,
    outgoing: mpsc::Receiver<Outgoing>,
}

impl Agent {
    async fn begin(handle: &ControllerHandle, number: u16) -> Self {
        let (outgoing, receiver) = mpsc::channel(BEHIND);
        let [high, low] = number.to_be_bytes();
        let source = Ipv4Addr::new(172, 100, high, low).into();
        let local = Ipv4Addr::new(172, 99, 9, 9).into();
        let origin = Origin { path: Path { source, local }, key: None };
        let link = Link { origin, outgoing, ended: CancellationToken::new() };
        let hello = Hello {
            protocol_version: PROTOCOL_VERSION,
            capabilities: BTreeSet::new(),
            node: format!("n{number}").parse().unwrap(),
            run_id: RunId::new(number.into()),
            have: None,
            version: "9.9.9".to_owned(),
            labels: BTreeMap::new(),
            reach: Reach::default(),
            local: None,
            data_port: 5000,
            clock: None,
            keys: BTreeMap::new(),
        };
        Self { connection: handle.connected(link, hello).await.unwrap(), outgoing: receiver }
    }

    /// The next generation that it is brought to.
    async fn generation(&mut self) -> Generation {
        loop {
            match tokio::time::timeout(PATIENCE, self.outgoing.recv()).await.expect("it is told").unwrap() {
                Outgoing::Snapshot(snapshot) => return snapshot.generation,
                Outgoing::Message(ControllerMessage::Delta(delta)) => return delta.generation,
                Outgoing::Message(_) => {}
                Outgoing::End(refusal) => panic!("{refusal}"),
            }
        }
    }

    async fn ack(&self, handle: &ControllerHandle, generation: Generation) {
        let ack = Ack { generation, failures: BTreeMap::new(), removals_held: BTreeSet::new() };
        handle.message(self.connection, AgentMessage::Ack(ack)).await.unwrap();
    }
}

#[tokio::test]
async fn all_events_are_told_and_so_many_at_once() {
    const AGENTS: u16 = 400;
    const AT_ONCE: usize = 1_000;
    let (Controller { handle, .. }, admin) = &running().await;
    for number in 0..AGENTS {
        let agent = Agent::begin(handle, number).await;
        let refusal = AgentMessage::Refusal("it has another".to_owned());
        handle.message(agent.connection, refusal).await.unwrap();
    }
    // Each has joined, has refused, and is not there any more.
    let start = handle.events_after(0).await.unwrap()[0].number;
    let mut progress = handle.progress();
    let all = progress.wait_for(|now| now.last_event >= start + 3 * u64::from(AGENTS));
    tokio::time::timeout(PATIENCE, all).await.expect("all is an event").unwrap();
    let first = handle.events_after(0).await.unwrap();
    assert_eq!(first.len(), AT_ONCE);
    let events = admin.watch_events(Request::new(v1::WatchEventsRequest { follow: false, after: 0 })).await;
    let events: Vec<_> =
        tokio::time::timeout(PATIENCE, events.unwrap().into_inner().collect()).await.expect("an end");
    assert!(events.len() > AT_ONCE, "{}", events.len());
    let numbers: Vec<u64> = events.into_iter().map(|event| event.unwrap().number).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
}

#[tokio::test]
async fn the_watch_of_convergence_ends_once_all_have_acknowledged_what_was_asked_for() {
    let (Controller { handle, .. }, admin) = &running().await;
    let mut agents = [Agent::begin(handle, 1).await, Agent::begin(handle, 2).await];
    let follow = async |agents: &mut [Agent]| {
        for agent in agents {
            let generation = agent.generation().await;
            agent.ack(handle, generation).await;
        }
    };
    let apply = async |mtu: u16| {
        let text = format!(
            "{{mesh: a, mtu: {mtu}, overlay: 10.9.0.0/24, security: plain, nodes: {{n1: {{}}, n2: {{}}}}}}"
        );
        handle.apply(mesh::parse(&text).unwrap(), None, false, Asker::default()).await.unwrap().generation
    };
    follow(&mut agents).await;
    // What they say of themselves is a change, too.
    let is_known = async || handle.look(|state, _, _| state.stored().wanted.nodes.len() == 2).await.unwrap();
    let known = async {
        while !is_known().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, known).await.expect("it is stored");
    apply(1400).await;
    follow(&mut agents).await;
    let watch = async |generation| {
        let request = Request::new(v1::WatchConvergenceRequest { generation });
        admin.watch_convergence(request).await.unwrap().into_inner()
    };
    let all = |last: &v1::Convergence| (last.nodes, last.converged) == (2, 2);
    let told: Vec<_> = tokio::time::timeout(PATIENCE, watch(None).await.collect()).await.expect("it ends");
    assert!(all(told.last().unwrap().as_ref().unwrap()), "{told:?}");

    // What the store has not yet is waited for, though all have what there is.
    let now = handle.convergence().await.unwrap().generation;
    let later = Generation { revision: now.revision + 1, ..now };
    let mut watched = watch(Some(later.into())).await;
    assert!(all(&watched.next().await.unwrap().unwrap()));
    assert_eq!(apply(1300).await, later);
    for (position, agent) in agents.iter_mut().enumerate() {
        let told = async {
            while let Some(told) = watched.next().await {
                if told.unwrap().converged == u32::try_from(position).unwrap() {
                    return;
                }
            }
            panic!("it has ended, and {} have not acknowledged", 2 - position);
        };
        tokio::time::timeout(PATIENCE, told).await.expect("it is told");
        assert!(watched.next().now_or_never().is_none(), "it goes on");
        let generation = agent.generation().await;
        agent.ack(handle, generation).await;
    }
    let rest: Vec<_> = tokio::time::timeout(PATIENCE, watched.collect()).await.expect("it ends");
    assert!(all(rest.last().unwrap().as_ref().unwrap()));
}
