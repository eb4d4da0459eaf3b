//! Sessions on real streams, without a network.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Server};

use super::*;
use crate::controller::mesh;
use crate::controller::runtime;
use crate::controller::service::tests::{Controller, controller};
use crate::proto::model::NodeName;
use crate::proto::session::{Ack, Delta, Heartbeat, ItemId, PROTOCOL_VERSION, Reach, Report, RunId, Tag};
use crate::proto::trust::Asker;
use crate::proto::v1::agent_control_client::AgentControlClient;
use crate::proto::v1::agent_control_server::AgentControlServer;

/// How long to wait for what must come.
const PATIENCE: Duration = Duration::from_secs(20);
/// Less than an answer takes that is waited for in vain.
const AT_ONCE: Duration = Duration::from_millis(900);

fn peer(number: u8) -> Peer {
    Peer::new(Ipv4Addr::new(172, 100, 1, number).into(), Ipv4Addr::new(172, 100, 9, 9).into())
}

fn hello(number: u8) -> Hello {
    Hello {
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
    }
}

/// An agent's end of a connection to `controller`, over a pipe.
async fn connect(
    controller: ControllerHandle,
    tasks: &mut JoinSet<()>,
    peer: Peer,
) -> AgentControlClient<Channel> {
    let (near, far) = tokio::io::duplex(64 << 10);
    let service =
        AgentControlServer::with_interceptor(Control::new(controller), move |mut request: Request<()>| {
            request.extensions_mut().insert(peer.clone());
            request.extensions_mut().insert(Caller::Claimant);
            Ok(request)
        });
    let serving = Server::builder()
        .add_service(service)
        .serve_with_incoming(tokio_stream::once(Ok::<_, std::io::Error>(far)));
    tasks.spawn(async move { serving.await.unwrap() });
    let mut near = Some(near);
    let connector = tower::service_fn(move |_| {
        let near = near.take();
        async move { near.map(TokioIo::new).ok_or_else(|| std::io::Error::other("one connection")) }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
    AgentControlClient::new(channel.unwrap())
}

/// An agent's end of a stream.
struct Agent {
    up: mpsc::Sender<v1::AgentMessage>,
    down: Streaming<v1::ControllerMessage>,
}

impl Agent {
    /// Dials `controller` over a pipe.
    async fn dial(controller: ControllerHandle, tasks: &mut JoinSet<()>, peer: Peer) -> Self {
        Self::begin(&mut connect(controller, tasks, peer).await).await.unwrap()
    }

    /// Begins one more stream of a connection.
    async fn begin(connection: &mut AgentControlClient<Channel>) -> Result<Self, Status> {
        let (up, messages) = mpsc::channel(16);
        let answer = connection.session(ReceiverStream::new(messages)).await?;
        Ok(Self { up, down: answer.into_inner() })
    }

    async fn say(&self, message: AgentMessage) {
        self.up.send(message.into()).await.unwrap();
    }

    /// The next message; an error: the stream's end.
    async fn hear(&mut self) -> Result<ControllerMessage, Status> {
        let message = tokio::time::timeout(PATIENCE, self.down.message()).await.expect("something is said");
        let message = message?.ok_or_else(|| Status::ok("the end"))?;
        Ok(convert::session::controller_message(message).unwrap().unwrap())
    }

    /// The next message that `pick` picks.
    async fn until<T>(&mut self, pick: impl Fn(ControllerMessage) -> Option<T>) -> T {
        loop {
            if let Some(picked) = pick(self.hear().await.unwrap()) {
                return picked;
            }
        }
    }

    async fn ack(&self, generation: Generation) {
        let ack = Ack { generation, failures: BTreeMap::new(), removals_held: BTreeSet::new() };
        self.say(AgentMessage::Ack(ack)).await;
    }
}

fn chunk(message: ControllerMessage) -> Option<SnapshotChunk> {
    if let ControllerMessage::Snapshot(chunk) = message { Some(chunk) } else { None }
}

fn delta(message: ControllerMessage) -> Option<Delta> {
    if let ControllerMessage::Delta(delta) = message { Some(delta) } else { None }
}

fn request(message: ControllerMessage) -> Option<u64> {
    if let ControllerMessage::ReportRequest(request) = message { Some(request) } else { None }
}

#[tokio::test]
async fn an_agent_is_brought_to_what_is_wanted_and_asked_how_it_is() {
    let Controller { handle, stop: _, mut tasks, directory: _directory, .. } = controller().await;
    let mut agent = Agent::dial(handle.clone(), &mut tasks, peer(1)).await;
    agent.say(AgentMessage::Hello(Box::new(hello(1)))).await;
    assert!(matches!(agent.hear().await, Ok(ControllerMessage::Welcome(_))));
    let first = agent.until(chunk).await;
    assert!(first.items.is_empty() && first.end.is_some());
    agent.ack(first.generation).await;

    let text =
        "{mesh: a, overlay: 10.9.0.0/24, security: plain, nodes: {n1: {}, n2: {endpoint: 172.100.1.2}}}";
    let applied = handle.apply(mesh::parse(text).unwrap(), None, false, Asker::default()).await.unwrap();
    let delta = agent.until(delta).await;
    // The node's own record may have come before; then there is one more.
    assert_eq!(delta.base, first.generation);
    assert_eq!(delta.set.len(), 2, "{delta:?}");
    agent.ack(delta.generation).await;
    let mut progress = handle.progress();
    let is_there = async {
        while !handle.look(|state, now, _| state.nodes(now)).await.unwrap().iter().any(|node| node.converged)
        {
            progress.changed().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, is_there).await.expect("it has acknowledged");
    assert!(applied.generation <= handle.convergence().await.unwrap().generation);

    let node: NodeName = "n1".parse().unwrap();
    let answering = async {
        let request = agent.until(request).await;
        let report = Report { whole: true, request: Some(request), ..Report::default() };
        agent.say(AgentMessage::Report(report)).await;
    };
    let asked = now();
    let (tunnels, ()) = tokio::join!(handle.node_tunnels(node), answering);
    assert!(tunnels.unwrap().unwrap().age.is_some(), "a fresh report");
    // Nor is one waited for that is not there to answer.
    handle.node_tunnels("n2".parse().unwrap()).await.unwrap();
    assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());

    // The same agent on a second stream, and this one ends.
    let mut again = Agent::dial(handle.clone(), &mut tasks, peer(1)).await;
    again.say(AgentMessage::Hello(Box::new(hello(1)))).await;
    assert!(matches!(again.hear().await, Ok(ControllerMessage::Welcome(_))));
    let end = loop {
        if let Err(end) = agent.hear().await {
            break end;
        }
    };
    assert_eq!(end.code(), Code::Aborted, "{end:?}");
    again.say(AgentMessage::Goodbye).await;
    let end = loop {
        if let Err(end) = again.hear().await {
            break end;
        }
    };
    assert_eq!(end.code(), Code::Ok, "{end:?}");
}

#[tokio::test]
async fn whoever_is_there_when_the_controller_ends_is_told_and_when_to_come_again() {
    let Controller { handle, stop, mut tasks, directory: _directory, .. } = controller().await;
    let mut agents = Vec::new();
    for number in 1..=2 {
        let mut agent = Agent::dial(handle.clone(), &mut tasks, peer(number)).await;
        agent.say(AgentMessage::Hello(Box::new(hello(number)))).await;
        agent.until(chunk).await;
        agents.push(agent);
    }
    stop.cancel();
    let mut afters = BTreeSet::new();
    for agent in &mut agents {
        let after = |message| {
            if let ControllerMessage::GoAway { after_ms, .. } = message { Some(after_ms) } else { None }
        };
        afters.insert(agent.until(after).await);
        assert_eq!(agent.hear().await.unwrap_err().code(), Code::Unavailable);
    }
    assert_eq!(afters.len(), 2, "one after the other: {afters:?}");
}

#[tokio::test]
async fn a_connection_with_a_session_is_not_silent() {
    let Controller { handle, stop: _, mut tasks, directory: _directory, .. } = controller().await;
    let peer = peer(1);
    assert!(peer.is_silent());
    let mut agent = Agent::dial(handle, &mut tasks, peer.clone()).await;
    agent.say(AgentMessage::Hello(Box::new(hello(1)))).await;
    agent.until(chunk).await;
    // The first look would also pass over one whose session has just ended.
    assert_eq!([peer.is_silent(), peer.is_silent()], [false, false]);
    agent.say(AgentMessage::Goodbye).await;
    let is_silent = async {
        while !peer.is_silent() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, is_silent).await.expect("its session has ended");
}

#[tokio::test]
async fn hello_comes_first_and_says_what_can_be_meant() {
    let mut tasks = JoinSet::new();
    // Nobody is behind the handle: such streams never get that far.
    let (handle, _requests) = runtime::channel();
    let beat = AgentMessage::Heartbeat(Heartbeat::default()).into();
    let garbled = v1::Hello { node: "no name".to_owned(), ..hello(1).into() };
    let garbled = v1::AgentMessage { message: Some(v1::agent_message::Message::Hello(garbled)) };
    for message in [beat, garbled, v1::AgentMessage { message: None }] {
        let mut agent = Agent::dial(handle.clone(), &mut tasks, peer(1)).await;
        agent.up.send(message).await.unwrap();
        let end = agent.hear().await.unwrap_err();
        assert_eq!(end.code(), Code::InvalidArgument, "{end:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_connection_begins_few_streams() {
    let mut tasks = JoinSet::new();
    let (handle, _requests) = runtime::channel();
    let mut connection = connect(handle.clone(), &mut tasks, peer(1)).await;
    let mut streams = Vec::new();
    let end = loop {
        match Agent::begin(&mut connection).await {
            Ok(stream) if streams.len() < 100 => streams.push(stream),
            Ok(_) => panic!("there is no end"),
            Err(end) => break end,
        }
    };
    assert_eq!((streams.len(), end.code()), (10, Code::ResourceExhausted), "{end:?}");
    let details = end.get_error_details();
    let wait = details.retry_info().and_then(|info| info.retry_delay).unwrap();
    // Another connection, also of the same host, is another matter.
    assert!(Agent::begin(&mut connect(handle, &mut tasks, peer(1)).await).await.is_ok());
    tokio::time::sleep(wait).await;
    assert!(Agent::begin(&mut connection).await.is_ok());
}

/// What one agent says fills no queue in which others wait.
#[tokio::test(start_paused = true)]
#[allow(clippy::disallowed_methods, reason = "the clock of the test")]
async fn an_agent_that_says_much_is_listened_to_at_a_pace() {
    let Controller { handle, stop: _, mut tasks, directory: _directory, .. } = controller().await;
    let mut agent = Agent::dial(handle, &mut tasks, peer(1)).await;
    agent.say(AgentMessage::Hello(Box::new(hello(1)))).await;
    let first = agent.until(chunk).await;
    agent.ack(first.generation).await;
    let start = tokio::time::Instant::now();
    for number in 1..=1_000 {
        let ping = Heartbeat { ping: Some(number), answers: None };
        agent.say(AgentMessage::Heartbeat(ping)).await;
        let answers =
            |message| if let ControllerMessage::Heartbeat(beat) = message { beat.answers } else { None };
        while agent.until(answers).await != number {}
    }
    assert!(start.elapsed() > Duration::from_secs(10), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
#[allow(clippy::disallowed_methods, reason = "the clock of the test")]
async fn a_stream_without_a_word_ends_soon() {
    let mut tasks = JoinSet::new();
    let (handle, _requests) = runtime::channel();
    let mut agent = Agent::dial(handle, &mut tasks, peer(1)).await;
    let before = tokio::time::Instant::now();
    let end = agent.hear().await.unwrap_err();
    assert_eq!(end.code(), Code::InvalidArgument, "{end:?}");
    assert!((HELLO..HELLO * 2).contains(&before.elapsed()));
}

#[tokio::test]
async fn an_agent_that_does_not_read_is_let_go_and_holds_up_nobody() {
    let Controller { handle, stop: _, tasks: _tasks, directory: _directory, .. } = controller().await;
    let (outgoing, _unread) = mpsc::channel(1);
    let ended = CancellationToken::new();
    let Peer { source, local, .. } = peer(1);
    // Its queue has room for the welcome alone.
    let origin = Origin { path: Path { source, local }, key: None };
    handle.connected(Link { origin, outgoing, ended: ended.clone() }, hello(1)).await.unwrap();
    tokio::time::timeout(PATIENCE, ended.cancelled()).await.expect("it is let go");
    assert_eq!(handle.convergence().await.unwrap().nodes, 0, "the others are answered");
}

#[test]
fn those_that_are_put_off_are_told_for_how_long() {
    let retry_after = Duration::from_millis(1234);
    let status = status(&Refusal::TooMany { retry_after }).unwrap();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let details = status.get_error_details();
    assert_eq!(details.retry_info().unwrap().retry_delay, Some(retry_after));
}

const REMOVALS: Removals = Removals { consent: 9, are_held: true };

fn snapshot(lengths: &[usize]) -> Snapshot {
    let items = lengths.iter().enumerate().map(|(number, length)| {
        let content = vec![7; *length];
        let id = ItemId::Tunnel(format!("t{number:05}").parse().unwrap());
        Arc::new(Item { id, tag: Tag::of(&content), content })
    });
    Snapshot { generation: Generation::default(), items: Items::new(items), removals: REMOVALS }
}

#[test]
fn cuts_snapshots_into_chunks_that_make_the_whole() {
    for lengths in [&[][..], &[10], &[CHUNK], &[CHUNK + 1, 1, CHUNK, 1], &[100_000; 20], &[60; 10_000]] {
        let snapshot = snapshot(lengths);
        let chunks: Vec<_> = Chunks::new(snapshot.clone()).collect();
        let (last, others) = chunks.split_last().unwrap();
        assert!(others.iter().all(|chunk| chunk.end.is_none() && !chunk.items.is_empty()));
        assert_eq!(last.end, Some(SnapshotEnd { digest: snapshot.items.digest(), removals: REMOVALS }));
        for chunk in &chunks {
            let length: usize = chunk.items.iter().map(|item| item.content.len()).sum();
            assert!(length <= CHUNK || chunk.items.len() == 1, "{length}");
        }
        let all = chunks.iter().flat_map(|chunk| chunk.items.iter().cloned());
        assert_eq!(Items::new(all), snapshot.items);
    }
    assert_eq!(Chunks::new(snapshot(&[CHUNK / 2; 20])).count(), 10);
}
