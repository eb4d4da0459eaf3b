//! `agent status`, `agent tunnels` and `agent check`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use tonic::transport::Channel;

use crate::agent::check::{self, Severity};
use crate::proto::host::client::connect;
use crate::proto::host::output::{Format, columns, write};
use crate::proto::v1;
use crate::proto::v1::tunnel_service_client::TunnelServiceClient;

async fn agent(socket: &Path) -> anyhow::Result<TunnelServiceClient<Channel>> {
    connect(socket, "agent", "agent").await.map(TunnelServiceClient::new)
}

pub(super) async fn status(socket: &Path, format: Format) -> anyhow::Result<ExitCode> {
    let answer = agent(socket).await?.get_status(v1::GetStatusRequest {}).await?.into_inner();
    write(format, &answer, status_table)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn tunnels(socket: &Path, format: Format) -> anyhow::Result<ExitCode> {
    let answer = agent(socket).await?.list_tunnels(v1::ListTunnelsRequest {}).await?.into_inner();
    write(format, &answer, tunnels_table)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn check(format: Format) -> anyhow::Result<ExitCode> {
    let findings = check::all();
    write(format, &findings, |findings| {
        columns(
            &["what", "", "found", "remedy"],
            findings.iter().map(|finding| {
                let mark = match finding.severity {
                    Severity::Ok => "ok",
                    Severity::Note => "note",
                    Severity::Problem => "PROBLEM",
                };
                vec![
                    finding.subject.to_owned(),
                    mark.to_owned(),
                    finding.found.clone(),
                    finding.remedy.clone(),
                ]
            }),
        )
    })?;
    let problem = findings.iter().any(|finding| finding.severity == Severity::Problem);
    Ok(if problem { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn status_table(status: &v1::GetStatusResponse) -> String {
    let mut rows = vec![
        vec!["version".to_owned(), status.version.clone()],
        vec!["running for".to_owned(), status.started.as_ref().map_or_else(String::new, age)],
        vec!["data port".to_owned(), status.data_ports.join(", ")],
        vec!["tunnels".to_owned(), format!("{} ({} failed)", status.tunnels, status.failed_tunnels)],
        vec![
            "datagrams".to_owned(),
            format!(
                "{} received, of no tunnel: {}",
                status.datagrams_received,
                reasons(&status.datagrams_dropped)
            ),
        ],
        vec!["packets".to_owned(), format!("of no tunnel: {}", reasons(&status.packets_dropped))],
    ];
    rows.extend(status.weakened.iter().map(|words| vec!["weakened".to_owned(), words.clone()]));
    rows.extend(status.findings.iter().map(|words| vec!["problem".to_owned(), words.clone()]));
    columns(&[], rows)
}

fn tunnels_table(answer: &v1::ListTunnelsResponse) -> String {
    if answer.tunnels.is_empty() {
        return "no tunnels".to_owned();
    }
    let rows = answer.tunnels.iter().map(|status| {
        let tunnel = status.tunnel.clone().unwrap_or_default();
        let (sent, received) =
            (status.sent.clone().unwrap_or_default(), status.received.clone().unwrap_or_default());
        let framing = tunnel.framing().as_str_name().to_lowercase();
        vec![
            tunnel.name,
            tunnel.device,
            tunnel.addresses.join(" "),
            if status.endpoint.is_empty() { tunnel.remote } else { status.endpoint.clone() },
            framing,
            format!("{}/{}", status.device_mtu, status.path_mtu),
            state(status),
            format!("{} / {}", sent.packets, reasons(&sent.drops)),
            format!("{} / {}", received.packets, reasons(&received.drops)),
        ]
    });
    columns(
        &[
            "name",
            "device",
            "address",
            "endpoint",
            "framing",
            "mtu/path",
            "state",
            "sent / drops",
            "received / drops",
        ],
        rows,
    )
}

fn state(status: &v1::TunnelStatus) -> String {
    use v1::tunnel_status::State;
    match status.state() {
        State::Passing => {
            format!(
                "passing, last packet {} ago",
                status.last_received.as_ref().map_or_else(String::new, age)
            )
        }
        State::Waiting if status.reason.is_empty() => "waiting for a first packet".to_owned(),
        State::Waiting => format!("waiting: {}", status.reason),
        State::Failed => format!("FAILED: {}", status.reason),
        State::Unspecified => "unknown".to_owned(),
    }
}

fn reasons(drops: &BTreeMap<String, u64>) -> String {
    if drops.is_empty() {
        return "0".to_owned();
    }
    drops.iter().map(|(reason, count)| format!("{count} {reason}")).collect::<Vec<_>>().join(", ")
}

#[allow(clippy::disallowed_methods, reason = "an age for people, counted by the clock of the one who looks")]
fn age(time: &pbjson_types::Timestamp) -> String {
    let then =
        Duration::new(u64::try_from(time.seconds).unwrap_or(0), u32::try_from(time.nanos).unwrap_or(0));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = now.saturating_sub(then).as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86400, seconds % 86400 / 3600),
    }
}
