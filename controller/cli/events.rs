//! `controller events`.

use super::{AskArgs, Error};
use crate::proto::host::output::{Format, print, printable};
use crate::proto::v1;

/// Show what happened since the controller started, the oldest first
///
/// With -o json one object a line.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Go on with what happens
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    ask: AskArgs,
}

impl Args {
    pub(super) async fn run(&self) -> Result<(), Error> {
        let request = v1::WatchEventsRequest { follow: self.follow, after: 0 };
        let mut events = self.ask.connect().await?.watch_events(request).await?.into_inner();
        while let Some(event) = events.message().await? {
            if !print(&text(self.ask.output, &event)?)? {
                return Ok(());
            }
        }
        if self.follow {
            return Err(Error::Failed("the controller ended; ask again when it runs".to_owned()));
        }
        Ok(())
    }
}

/// One event: lines that end with it, for they are written as they come.
fn text(format: Format, event: &v1::Event) -> Result<String, Error> {
    Ok(match format {
        Format::Table => line(event),
        Format::Json => serde_json::to_string(event).map_err(anyhow::Error::from)?,
        Format::Yaml => format!("---\n{}", serde_saphyr::to_string(event).map_err(anyhow::Error::from)?),
    })
}

/// Time, kind, node and message. The columns fit the usual names; longer ones push the rest.
fn line(event: &v1::Event) -> String {
    let time = event.time.as_ref().map_or_else(String::new, time);
    let node = if event.node.is_empty() { "-" } else { &event.node };
    let named = |what: &str, name: &str| (!name.is_empty()).then(|| format!("{what}{name}"));
    let parts = [named("mesh ", &event.mesh), named("tunnel ", &event.tunnel), named("", &event.message)];
    let words: Vec<String> = parts.into_iter().flatten().collect();
    let line = format!("{time}  {:<18}  {node:<12}  {}", event.kind, words.join(": "));
    printable(line.trim_end())
}

/// A time as people read it, to the second.
pub(super) fn time(time: &pbjson_types::Timestamp) -> String {
    let whole = pbjson_types::Timestamp { nanos: 0, ..*time };
    let text = serde_json::to_value(whole).ok().and_then(|text| Some(text.as_str()?.to_owned()));
    text.unwrap_or_default().replace("+00:00", "Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_lines() {
        let event = v1::Event {
            number: 7,
            time: Some(pbjson_types::Timestamp { seconds: 1_800_000_000, nanos: 5 }),
            kind: "node-stale".to_owned(),
            node: "minion-2".to_owned(),
            tunnel: "prod.a".to_owned(),
            message: "not heard of\nfor 12 s".to_owned(),
            ..Default::default()
        };
        assert_eq!(
            text(Format::Table, &event).unwrap(),
            "2027-01-15T08:00:00Z  node-stale          minion-2      tunnel prod.a: not heard of\\nfor 12 s"
        );
        let json = text(Format::Json, &event).unwrap();
        assert!(!json.contains('\n') && json.contains("\"number\":\"7\""), "{json}");
        assert!(text(Format::Yaml, &event).unwrap().starts_with("---\n"));
    }
}
