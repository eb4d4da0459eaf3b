//! An agent's life: takes what it needs, brings up what was kept, serves, and leaves nothing behind.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::agent::config::{Config, ControllerConfig};
use crate::agent::credentials::Credentials;
use crate::agent::datapath::Datapath;
use crate::agent::datapath::peer::{OwnKey, Receivers};
use crate::agent::datapath::stats::AgentStats;
use crate::agent::keys::Keys;
use crate::agent::os::netlink::Netlink;
use crate::agent::os::netlink::watch::Watch;
use crate::agent::os::udp::{Purpose, SocketPair};
use crate::agent::os::{preflight, probe};
use crate::agent::platform::Platform;
use crate::agent::runtime::{Runtime, Uplink};
use crate::agent::service::controller::{Dialler, Way};
use crate::agent::service::legacy::Legacy;
use crate::agent::service::listen::{Tcp, serve};
use crate::agent::service::local::{Facts, Local};
use crate::agent::session::{Base, Identity};
use crate::agent::state::{AgentState, Wanted};
use crate::agent::store::{Loaded, Store};
use crate::agent::target::Policy;
use crate::proto::host::clock;
use crate::proto::host::limits;
use crate::proto::host::lock::DirectoryError;
use crate::proto::host::metrics;
use crate::proto::host::random;
use crate::proto::host::signals;
use crate::proto::host::socket::SocketFile;
use crate::proto::model::{Offload, OffloadState};
use crate::proto::session::RunId;

/// How long services may take to end.
const DRAIN: Duration = Duration::from_secs(2);
/// How long a start waits at most for an agent that is ending: a thousand devices take half a minute.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it looks.
const PAUSE: Duration = Duration::from_millis(50);
/// How many events of the data path wait at most; each of them says the same.
const EVENTS: usize = 32;

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What is missing or taken, in words.
pub async fn run(config: Config) -> anyhow::Result<()> {
    preflight::check()?;
    limits::raise_open_files();
    limits::keep_memory_private();
    let stop = CancellationToken::new();
    signals::stop_on(&stop)?;
    let store = patiently(|| Store::open(&config.state_dir), DirectoryError::holder).await?;
    let predecessor = store.predecessor();
    let data = bind_port(config.data_port, Purpose::Data, "--data-port", predecessor).await?;
    let control = match config.control_port {
        Some(port) => {
            let flag = "--control-port, or close it with --no-legacy";
            Some(bind_port(port, Purpose::Control, flag, predecessor).await?)
        }
        None => None,
    };
    let credentials = Arc::new(Credentials::open(&config.state_dir)?);
    let keys = Keys::new(&config.state_dir);
    let key = keys.own().context("this host has no random numbers")?;
    let public_key = key.private.public();
    let tcp = match config.grpc_listen {
        Some(address) => Some(Tcp::bind(address, &credentials).await?),
        None => None,
    };
    let scraped = match config.metrics_listen {
        Some(address) => Some(metrics::bind(address).await?),
        None => None,
    };
    let socket = SocketFile::bind(&config.socket)?;
    let has_joined = credentials.has_joined();
    let insecure: Vec<String> =
        config.controller.iter().flat_map(|controller| controller.weakened(has_joined)).collect();
    for words in config.weakened().iter().chain(&insecure) {
        tracing::warn!("{words}");
    }
    let without = without(&config).await;
    let facts = Facts {
        started: clock::since_epoch(),
        data_ports: data.iter().filter_map(|socket| Some(socket.local_addr().ok()?.to_string())).collect(),
        weakened: config.weakened(),
        insecure,
        offloads: offloads(&without),
        public_key,
        key_fault: key.fault,
    };

    let (events, device_events) = mpsc::channel(EVENTS);
    let stats = Arc::new(AgentStats::default());
    let receivers = Arc::<Receivers>::default();
    let datapath = Datapath::start(data, Arc::clone(&stats), Arc::clone(&receivers), events)
        .context("the data path cannot start")?;
    let netlink = Netlink::connect().context("netlink cannot be had")?;
    let watch = Watch::start().context("netlink cannot be listened to")?;
    let platform = Platform::new(netlink, datapath, stats, (keys, OwnKey::new(key.private)), receivers);
    let policy = Policy {
        data_port: config.data_port,
        public_key,
        accept: config.accept_prefixes.clone(),
        without: without.clone(),
    };
    let state = AgentState::new(policy, load(&store)?, clock::now());
    let (mut runtime, agent) =
        Runtime::new(state, platform, store, Arc::clone(&credentials), device_events, watch);
    runtime.restore().await.context("the interfaces of this host cannot be read")?;
    match (&config.controller, runtime.base().cloned()) {
        (Some(controller), base) => {
            runtime.follow(uplink(controller, config.data_port, base, Arc::clone(&credentials))?);
        }
        (None, Some(base)) => tracing::warn!(
            generation = %base.generation,
            store = base.store_id,
            "started without --controller: what a controller last wanted stays as it is; `agent leave` forgets it"
        ),
        (None, None) => {}
    }

    let mut services = JoinSet::new();
    if let Some(listener) = scraped {
        let (agent, stop) = (agent.clone(), stop.clone());
        let served = metrics::serve(listener, move || super::metrics::read(agent.clone()), stop);
        services.spawn(async move { served.await.context("metrics cannot be served any more") });
    }
    let local = Local::new(agent.clone(), facts, stop.clone());
    services.spawn(serve(local, socket, tcp, stop.clone()));
    if let Some(sockets) = control {
        let legacy = Legacy::new(agent, config.legacy_allow.clone());
        let stop = stop.clone();
        services
            .spawn(async move { legacy.serve(sockets, stop).await.context("the legacy control port ended") });
    }
    tracing::info!(
        data_port = config.data_port,
        socket = %config.socket.display(),
        "agent is ready"
    );
    let ended = async {
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            Some(ended) = services.join_next() => ended.map_err(anyhow::Error::from).flatten(),
        }
    };
    let (ended_sender, shutdown) = tokio::sync::oneshot::channel::<()>();
    let running = runtime.run(async move {
        // A dropped sender means the same as a sent value: stop.
        let _ = shutdown.await;
    });
    let watching = async {
        let outcome = ended.await;
        stop.cancel();
        drop(ended_sender);
        outcome
    };
    let running = async {
        let ended = running.await;
        // Without its data path the agent carries nothing: it ends, and whoever watches it starts it anew.
        stop.cancel();
        ended.map_err(|why| anyhow::anyhow!("{why}; no packet was carried any more: start the agent again"))
    };
    let (ended, outcome) = tokio::join!(running, watching);
    let drained = async { while services.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN, drained).await;
    tracing::info!("agent has ended, and its devices are gone");
    ended.and(outcome)
}

#[allow(clippy::disallowed_methods, reason = "a session begins with the agent")]
fn uplink(
    config: &ControllerConfig,
    data_port: u16,
    base: Option<Base>,
    credentials: Arc<Credentials>,
) -> anyhow::Result<Uplink> {
    let random = random::bits().context("this host has no random numbers")?;
    let identity = Identity {
        node: config.node.clone(),
        labels: config.labels.clone(),
        reach: config.reach.clone(),
        data_port,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        run_id: RunId::new(random),
    };
    let way = Way {
        node: config.node.clone(),
        credentials: Arc::clone(&credentials),
        introduction: config.introduction.clone(),
        insecure: config.insecure.clone(),
        share: random as u16,
    };
    let dialler = Dialler::new(config.addresses.clone(), way);
    let seed = u64::try_from(random >> 64).unwrap_or_default();
    Ok(Uplink::new(identity, dialler, credentials, base, seed, clock::now()))
}

fn load(store: &Store) -> anyhow::Result<Wanted> {
    Ok(match store.load()? {
        Loaded::Kept(wanted) => wanted,
        Loaded::SetAside(path, reason) => {
            tracing::error!(
                path = %path.display(),
                %reason,
                "the kept state cannot be read and was set aside; the agent starts without tunnels"
            );
            Wanted::default()
        }
    })
}

/// Tries again as long as the process that has what is wanted is ending, whose number `holder` tells from the error:
/// the kernel takes its time to remove the devices of an agent that was killed.
async fn patiently<T, E>(
    mut attempt: impl FnMut() -> Result<T, E>,
    holder: impl Fn(&E) -> Option<u32>,
) -> Result<T, E> {
    for round in 0..PATIENCE.as_millis() / PAUSE.as_millis() {
        match attempt() {
            Err(error) if holder(&error).is_some_and(is_ending) => {
                if round == 0 {
                    tracing::info!("waiting for an agent that is ending");
                }
                tokio::time::sleep(PAUSE).await;
            }
            other => return other,
        }
    }
    attempt()
}

/// Whether a process has given up its memory already and is about to close its files, `proc_pid_cmdline(5)`.
fn is_ending(process: u32) -> bool {
    std::fs::read(format!("/proc/{process}/cmdline")).is_ok_and(|arguments| arguments.is_empty())
}

/// What is not used for any tunnel, and why.
async fn without(config: &Config) -> BTreeMap<Offload, String> {
    let mut without = tokio::task::spawn_blocking(probe::lacking).await.unwrap_or_default();
    for (offload, why) in &without {
        tracing::warn!(%offload, %why, "not used: packets go one by one there");
    }
    without.extend(config.without.iter().map(|offload| (*offload, "switched off by --without".to_owned())));
    without
}

fn offloads(without: &BTreeMap<Offload, String>) -> Vec<OffloadState> {
    Offload::ALL.map(|offload| OffloadState { offload, why_off: without.get(&offload).cloned() }).to_vec()
}

async fn bind_port(
    port: u16,
    purpose: Purpose,
    flag: &str,
    predecessor: Option<u32>,
) -> anyhow::Result<SocketPair> {
    let is_taken = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
    let holder = |error: &io::Error| predecessor.filter(|_| is_taken(error));
    let what = match purpose {
        Purpose::Data => "data",
        Purpose::Control => "legacy control",
    };
    patiently(|| SocketPair::bind(port, purpose), holder).await.map_err(|error| {
        if is_taken(&error) {
            anyhow::anyhow!(
                "the {what} port {port}/udp is taken, by another agent or program (`ss -ulnp` names it): \
                 end that, or choose another with {flag}"
            )
        } else {
            anyhow::anyhow!("the {what} port {port}/udp cannot be had: {error}; choose another with {flag}")
        }
    })
}
