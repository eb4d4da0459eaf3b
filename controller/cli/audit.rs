//! `controller audit`.

use super::events::time;
use super::{AskArgs, Error};
use crate::proto::host::output::columns;
use crate::proto::v1;

/// Show what was changed, and by whom
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    ask: AskArgs,
}

impl Args {
    pub(super) async fn run(&self) -> Result<(), Error> {
        let mut controller = self.ask.connect().await?;
        let mut all = v1::ListAuditResponse::default();
        loop {
            let after = all.records.last().map_or(0, |record| record.number);
            let mut page = controller.list_audit(v1::ListAuditRequest { after }).await?.into_inner();
            all.records.append(&mut page.records);
            all.broken_at = page.broken_at;
            if page.more == 0 {
                break;
            }
        }
        self.ask.write(&all, table)?;
        match all.broken_at {
            0 => Ok(()),
            number => Err(Error::Failed(format!(
                "record {number} is not as it was written, or one before it is missing: somebody has changed the store"
            ))),
        }
    }
}

fn table(answer: &v1::ListAuditResponse) -> String {
    if answer.records.is_empty() {
        return "nothing was changed yet".to_owned();
    }
    let rows = answer.records.iter().map(|record| {
        vec![
            record.number.to_string(),
            record.time.as_ref().map_or_else(String::new, time),
            record.who.clone(),
            record.method.clone(),
            record.what.clone(),
            format!("{} to {}", record.before, record.after),
            record.request.clone(),
        ]
    });
    columns(&["number", "time", "who", "method", "what", "revision", "request"], rows)
}
