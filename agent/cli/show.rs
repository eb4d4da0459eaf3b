//! `agent status`, `agent tunnels`, `agent leave` and `agent check`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use tonic::transport::Channel;

use crate::agent::check::{self, Severity};
use crate::proto::host::client::{connect, pages};
use crate::proto::host::output::{Format, columns, write};
use crate::proto::host::words::{age, diverted, endpoint_in_use, link, tunnel_state};
use crate::proto::v1;
use crate::proto::v1::tunnel_service_client::TunnelServiceClient;
use crate::proto::words::span;

async fn agent(socket: &Path) -> anyhow::Result<TunnelServiceClient<Channel>> {
    connect(socket, "agent", "agent").await.map(TunnelServiceClient::new)
}

pub(super) async fn status(socket: &Path, format: Format) -> anyhow::Result<ExitCode> {
    let answer = agent(socket).await?.get_status(v1::GetStatusRequest {}).await?.into_inner();
    write(format, &answer, status_table)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn tunnels(socket: &Path, format: Format) -> anyhow::Result<ExitCode> {
    let mut agent = agent(socket).await?;
    let page = async |after| {
        let answer = agent.list_tunnels(v1::ListTunnelsRequest { after }).await?.into_inner();
        Ok::<_, anyhow::Error>((answer.tunnels, answer.more))
    };
    let all = v1::ListTunnelsResponse { tunnels: pages(page, name).await?, more: 0 };
    write(format, &all, tunnels_table)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn leave(socket: &Path, format: Format) -> anyhow::Result<ExitCode> {
    let answer = agent(socket).await?.leave(v1::LeaveRequest {}).await?.into_inner();
    write(format, &answer, |answer| {
        format!(
            "the controller is forgotten, and {} of its tunnels are gone. An agent that is started with --controller \
             joins anew, under another name or once `controller node remove` has removed this one",
            answer.tunnels
        )
    })?;
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
        vec![
            "running for".to_owned(),
            status.started.as_ref().map_or_else(String::new, |started| span(age(started))),
        ],
        vec!["data port".to_owned(), status.data_ports.join(", ")],
        vec![
            "tunnels".to_owned(),
            format!(
                "{} ({} failed{})",
                status.tunnels,
                status.failed_tunnels,
                diverted(status.diverted_tunnels)
            ),
        ],
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
    rows.push(vec!["offloads".to_owned(), offloads(&status.offloads)]);
    rows.push(vec!["public key".to_owned(), status.public_key.clone()]);
    let of_meshes = status.mesh_public_keys.iter();
    rows.extend(of_meshes.map(|(mesh, key)| vec![format!("public key in {mesh}"), key.clone()]));
    rows.extend(status.controller.iter().flat_map(controller_rows));
    rows.extend(status.weakened.iter().map(|words| vec!["weakened".to_owned(), words.clone()]));
    rows.extend(status.findings.iter().map(|words| vec!["problem".to_owned(), words.clone()]));
    columns(&[], rows)
}

/// Those in use, and those that are not with the reason.
fn offloads(offloads: &[v1::OffloadState]) -> String {
    let words = offloads.iter().map(|offload| match offload.in_use {
        true => offload.name.clone(),
        false => format!("{} off ({})", offload.name, offload.reason),
    });
    words.collect::<Vec<_>>().join(", ")
}

fn controller_rows(controller: &v1::ControllerStatus) -> Vec<Vec<String>> {
    use v1::controller_status::State;
    let since = controller.since.as_ref().map_or_else(String::new, |since| span(age(since)));
    let state = match controller.state() {
        State::NotDialled if controller.address.is_empty() => {
            "none is dialled: the agent was started without --controller".to_owned()
        }
        State::NotDialled => "none is dialled: this agent has left".to_owned(),
        State::Waiting => format!("{}, not connected for {since}", controller.address),
        State::Dialling => format!("{}, dialling", controller.address),
        State::Connected => format!("{}, connected for {since}, not in step", controller.address),
        State::Synced => format!("{}, in step for {since}", controller.address),
        State::Unspecified => "unknown".to_owned(),
    };
    let mut rows = vec![vec!["controller".to_owned(), state]];
    let mut row = |name: &str, value: String| {
        if !value.is_empty() {
            rows.push(vec![name.to_owned(), value]);
        }
    };
    row("", controller.trouble.clone());
    row("node", controller.node.clone());
    row(
        "last heard",
        controller.last_heard.as_ref().map_or_else(String::new, |time| format!("{} ago", span(age(time)))),
    );
    let generation = &controller.generation;
    row(
        "generation",
        if generation.is_empty() {
            String::new()
        } else {
            format!("{generation} of store {}", controller.store_id)
        },
    );
    if !controller.held.is_empty() {
        row(
            "held",
            format!(
                "{}{}: not wanted any more, and kept until it goes with --allow-removals on the controller, or what that has \
                 stored can be read whole: `controller status` says which",
                controller.held.join(", "),
                if controller.more_held > 0 {
                    format!(" and {} more", controller.more_held)
                } else {
                    String::new()
                }
            ),
        );
    }
    for (item, why) in &controller.failures {
        row("fails", format!("{item}: {why}"));
    }
    if controller.more_failures > 0 {
        row("fails", format!("and {} more", controller.more_failures));
    }
    rows
}

/// A tunnel's name.
fn name(status: &v1::TunnelStatus) -> &str {
    status.tunnel.as_ref().map_or("", |tunnel| &tunnel.name)
}

fn tunnels_table(answer: &v1::ListTunnelsResponse) -> String {
    if answer.tunnels.is_empty() {
        return "no tunnels".to_owned();
    }
    let rows = answer.tunnels.iter().map(|status| {
        let tunnel = status.tunnel.clone().unwrap_or_default();
        let (sent, received) =
            (status.sent.clone().unwrap_or_default(), status.received.clone().unwrap_or_default());
        let framing = framing(tunnel.framing(), status);
        vec![
            tunnel.name,
            status.owner().as_str_name().to_lowercase(),
            tunnel.device,
            tunnel.addresses.join(" "),
            if status.endpoint.is_empty() {
                tunnel.remote
            } else {
                endpoint_in_use(&status.endpoint, &status.preferred)
            },
            framing,
            format!("{}/{}", status.device_mtu, status.path_mtu),
            tunnel_state(status.state(), &status.reason, status.last_received.as_ref().map(age)),
            match &status.link {
                Some(measured) => link(measured),
                None if tunnel.echo.is_empty() => "not probed".to_owned(),
                None => "no answer yet".to_owned(),
            },
            format!("{} / {}", sent.packets, reasons(&sent.drops)),
            format!("{} / {}", received.packets, reasons(&received.drops)),
        ]
    });
    let table = columns(
        &[
            "name",
            "owner",
            "device",
            "address",
            "endpoint",
            "framing",
            "mtu/path",
            "state",
            "link",
            "sent / drops",
            "received / drops",
        ],
        rows,
    );
    let notes = answer.tunnels.iter().flat_map(|status| {
        let name = status.tunnel.as_ref().map_or("", |tunnel| tunnel.name.as_str());
        let off = status.offloads.iter().filter(|offload| !offload.in_use);
        let off = off.map(move |offload| format!("{name}: without {}: {}", offload.name, offload.reason));
        status.notes.iter().map(move |note| format!("{name}: {note}")).chain(off)
    });
    std::iter::once(table).chain(notes).collect::<Vec<_>>().join("\n")
}

/// The framing, and of an encrypted tunnel how old its keys are.
fn framing(framing: v1::tunnel::Framing, status: &v1::TunnelStatus) -> String {
    let mut name = framing.as_str_name().to_lowercase();
    if status.tunnel.as_ref().is_some_and(|tunnel| tunnel.also_plain)
        && framing == v1::tunnel::Framing::Wireguard
    {
        name += ", also unencrypted";
    }
    match (&status.last_handshake, framing) {
        (Some(handshake), _) => format!("{name}, keys {} old", span(age(handshake))),
        (None, v1::tunnel::Framing::Wireguard) => format!("{name}, no keys"),
        (None, _) => name,
    }
}

fn reasons(drops: &BTreeMap<String, u64>) -> String {
    if drops.is_empty() {
        return "0".to_owned();
    }
    drops.iter().map(|(reason, count)| format!("{count} {reason}")).collect::<Vec<_>>().join(", ")
}
