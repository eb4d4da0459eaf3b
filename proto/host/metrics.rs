//! Metrics over HTTP at `/metrics`, in the text format of OpenMetrics 1.0.

use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::Router;
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What tells the values of one metric apart.
pub type Labels = Vec<(&'static str, String)>;

const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Values as they are now.
pub struct Metrics(Registry);

impl Metrics {
    /// None yet. All names begin with `prefix`, as `tunmesh_agent`.
    pub fn new(prefix: &str) -> Self {
        Self(Registry::with_prefix(prefix))
    }

    /// Adds a metric whose values may fall, in the unit that its name ends with. `help` is a sentence without its full stop.
    pub fn gauge(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, f64)>) {
        let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(value);
        }
        self.0.register(name, help, family);
    }

    /// Adds a metric whose values only rise, from the start of the program.
    pub fn counter(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, u64)>) {
        let family = Family::<Labels, Counter<u64>>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).inc_by(value);
        }
        self.0.register(name, help, family);
    }

    /// All of them as text.
    ///
    /// # Errors
    /// None that comes from a value.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.0)?;
        Ok(text)
    }
}

/// What is weaker than the defaults where metrics are served at an address, in words.
pub fn weakened_by_metrics(address: SocketAddr) -> Option<String> {
    let words = "whoever reaches it reads names and figures of all tunnels";
    (!address.ip().is_loopback()).then(|| format!("--metrics-listen {address}: {words}"))
}

/// Listens where metrics are to be served.
///
/// # Errors
/// What the kernel says, in words.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        anyhow::anyhow!("{address}/tcp cannot be listened on: {error}; choose another with --metrics-listen")
    })
}

/// Seconds, as metrics have all times.
pub fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

/// Serves what `read` gives, until it is stopped. `None`: the program is ending.
///
/// # Errors
/// Where nobody can connect any more.
pub async fn serve<F>(
    listener: TcpListener,
    read: impl Fn() -> F + Clone + Send + Sync + 'static,
    stop: CancellationToken,
) -> std::io::Result<()>
where
    F: Future<Output = Option<Metrics>> + Send,
{
    let local = listener.local_addr()?;
    let answer = move |headers: HeaderMap| {
        let read = read.clone();
        async move {
            if !is_meant(local, headers.get(HOST).and_then(|host| host.to_str().ok())) {
                let words = "ask for this host by its address, or as localhost\n".to_owned();
                return (StatusCode::FORBIDDEN, [(CONTENT_TYPE, "text/plain")], words);
            }
            match read().await.and_then(|metrics| metrics.text().ok()) {
                Some(text) => (StatusCode::OK, [(CONTENT_TYPE, TYPE)], text),
                None => (StatusCode::SERVICE_UNAVAILABLE, [(CONTENT_TYPE, "text/plain")], String::new()),
            }
        }
    };
    let router = Router::new().route("/metrics", get(answer));
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// Whether a request is meant for whom it reached. On loopback a name may be that of a page whose scripts somebody's browser
/// runs, and which was made to lead here.
fn is_meant(local: SocketAddr, host: Option<&str>) -> bool {
    if !local.ip().is_loopback() {
        return true;
    }
    let Some(host) = host else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => name,
        Some(_) | None => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_elsewhere_reads_nothing() {
        let local = |address: &str| address.parse::<SocketAddr>().unwrap();
        for host in ["localhost", "localhost:7480", "127.0.0.1:7480", "127.0.0.1", "[::1]:7480", "::1"] {
            assert!(is_meant(local("127.0.0.1:7480"), Some(host)), "{host}");
        }
        for host in [Some("evil.example"), Some("evil.example:7480"), Some("localhost.evil.example"), None] {
            assert!(!is_meant(local("[::1]:7480"), host), "{host:?}");
            assert!(is_meant(local("10.0.0.1:7480"), host), "{host:?}");
        }
    }

    #[test]
    fn values_are_told_by_their_labels() {
        let mut metrics = Metrics::new("tunmesh_test");
        let labels = |name: &str| vec![("tunnel", name.to_owned())];
        metrics.counter("packets", "Packets", [(labels("a"), 3), (labels("b\"c"), 4)]);
        metrics.gauge("round_trip_seconds", "There and back", [(labels("a"), 0.25)]);
        let text = metrics.text().unwrap();
        for line in [
            "tunmesh_test_packets_total{tunnel=\"a\"} 3",
            "tunmesh_test_packets_total{tunnel=\"b\\\"c\"} 4",
            "tunmesh_test_round_trip_seconds{tunnel=\"a\"} 0.25",
            "# HELP tunmesh_test_packets Packets.",
            "# EOF",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}: {text}");
        }
    }
}
