//! A controller's life: takes what it needs, serves, and sends the agents away for a moment when it ends.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::config::Config;
use super::credentials::{self, Credentials};
use super::runtime::{self, Runtime};
use super::service::Facts;
use super::service::admin::Admin;
use super::service::callers::Dialled;
use super::service::control::Control;
use super::service::enrolment::Enroller;
use super::service::listen;
use super::store::Store;
use super::store::sqlite::SqliteStore;
use super::stored::Stored;
use crate::proto::host::accept::Gate;
use crate::proto::host::clock;
use crate::proto::host::socket::SocketFile;
use crate::proto::host::{limits, metrics, random, signals};
use crate::proto::session::CONTROLLER_PORT;

/// How many connections agents may have at most, where as many files may be open: each takes up to 64 KiB.
const CONNECTIONS: usize = 40_000;
/// How many files are kept for the store, the log and operators.
const OWN_FILES: usize = 128;
/// How long agents and operators may take to hear that the controller ends.
const DRAIN: Duration = Duration::from_secs(5);

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What is missing or taken, in words.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let open_files = limits::raise_open_files();
    let stop = CancellationToken::new();
    signals::stop_on(&stop)?;
    let directory = config.state_dir.clone();
    // First of all: it keeps out a second controller, with words that say so.
    let store = tokio::task::spawn_blocking(move || SqliteStore::open(&directory)).await??;
    let store: Arc<dyn Store> = Arc::new(store);
    let directory = config.state_dir.join(credentials::DIRECTORY);
    let open = move || Credentials::open(&directory, clock::since_epoch());
    let credentials = Arc::new(tokio::task::spawn_blocking(open).await??);
    let mut listeners = Vec::new();
    for address in &config.listen {
        listeners.push(bind(*address).await?);
    }
    let scraped = match config.metrics_listen {
        Some(address) => Some(metrics::bind(address).await?),
        None => None,
    };
    let socket = SocketFile::bind(&config.socket)?;
    for words in config.weakened() {
        tracing::warn!("{words}");
    }
    let facts = facts(&config, &listeners);
    let reached = listeners.iter().find_map(reached).unwrap_or_else(|| "ADDRESS".to_owned());

    let (controller, requests) = runtime::channel();
    let mut services = JoinSet::new();
    let listening = facts.listen.join(", ");
    if let Some(listener) = scraped {
        let (controller, stop) = (controller.clone(), stop.clone());
        let served = metrics::serve(listener, move || super::metrics::read(controller.clone()), stop);
        services.spawn(async move { served.await.context("metrics cannot be served any more") });
    }
    let admin =
        Admin::new(controller.clone(), facts, Arc::clone(&credentials), Arc::clone(&store), stop.clone());
    let (health, operators) = listen::local(admin.clone(), controller.clone(), socket, stop.clone()).await?;
    services.spawn(operators);
    let (stored, start) = load(store.as_ref()).await?;
    let revision = stored.revision;
    let runtime = Runtime::new(stored, start, store, requests);
    let handshakes = credentials.handshakes();
    let gate = Gate::new(&config.insecure, connections(open_files), handshakes, Dialled(controller.clone()));
    let enroller = Enroller::new(controller.clone(), Arc::clone(&credentials), &config.approve_any);
    services.spawn(Arc::clone(&credentials).keep(stop.clone()));
    let control = Control::new(controller.clone());
    for listener in listeners {
        let served = listen::Served {
            control: control.clone(),
            enroller: enroller.clone(),
            admin: admin.clone(),
            controller: controller.clone(),
        };
        services.spawn(listen::dialled(served, gate.clone(), listener, stop.clone()));
    }
    health.set(true).await;
    tracing::info!(
        listen = listening,
        socket = %config.socket.display(),
        revision,
        "controller is ready"
    );
    tracing::info!(
        "a host joins with `agent --controller {reached} --token TOKEN`; `controller token create` prints a TOKEN"
    );

    let running = runtime.run(stop.clone().cancelled_owned());
    let watching = async {
        let outcome = tokio::select! {
            () = stop.cancelled() => Ok(()),
            Some(ended) = services.join_next() => ended.map_err(anyhow::Error::from).flatten(),
        };
        stop.cancel();
        outcome
    };
    let ((), outcome) = tokio::join!(running, watching);
    health.set(false).await;
    let drained = async { while services.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN, drained).await;
    tracing::info!("controller has ended; the agents' tunnels stay as they are");
    outcome
}

/// How many connections agents may have, of so many files that may be open.
fn connections(open_files: usize) -> usize {
    open_files.saturating_sub(OWN_FILES).clamp(1, CONNECTIONS)
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        if error.kind() == io::ErrorKind::AddrInUse {
            anyhow::anyhow!(
                "{address}/tcp is taken, by another controller or program (`ss -tlnp` names it): end that, or \
                 choose another with --listen"
            )
        } else {
            anyhow::anyhow!("{address}/tcp cannot be listened on: {error}; choose another with --listen")
        }
    })
}

/// Where other hosts reach a listener, as far as this one can tell: at the address from which it reaches others itself.
fn reached(listener: &TcpListener) -> Option<String> {
    /// Of no host, and nothing is sent to it (RFC 5737).
    const ELSEWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);
    let mut address = listener.local_addr().ok()?;
    if address.ip().is_unspecified() {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        socket.connect(ELSEWHERE).ok()?;
        address.set_ip(socket.local_addr().ok()?.ip());
    }
    Some(match address.port() {
        CONTROLLER_PORT => address.ip().to_string(),
        _ => address.to_string(),
    })
}

fn facts(config: &Config, listeners: &[TcpListener]) -> Facts {
    Facts {
        started: clock::since_epoch(),
        listen: listeners.iter().filter_map(|one| Some(one.local_addr().ok()?.to_string())).collect(),
        store: config.state_dir.display().to_string(),
        weakened: config.weakened(),
    }
}

/// Reads the store and counts this start in it. Returns what it holds, and the start's number.
async fn load(store: &dyn Store) -> anyhow::Result<(Stored, u64)> {
    let read = async || {
        let (entries, revision) = store.read("").await.context("the store cannot be read")?;
        anyhow::Ok(Stored::from_entries(entries, revision))
    };
    let new_id = format!("{:032x}", random::bits().context("this host has no random numbers")?);
    let (start, transaction) = read().await?.start(&new_id).map_err(anyhow::Error::msg)?;
    // Epochs begin with the number of the start: without it on disk there could be two sessions of one epoch.
    let uncounted = "the store cannot be written, and the controller does not start without; the agents' tunnels stay \
                     as they are";
    store.commit(transaction).await.context(uncounted)?;
    let stored = read().await?;
    for (key, reason) in &stored.faults {
        tracing::error!(%key, %reason, "a value of the store cannot be read and is passed over");
        if let Some(remedy) = stored.remedy(key) {
            tracing::error!(%key, "no node removes anything until {remedy}");
        }
    }
    Ok((stored, start))
}
