//! How an answer is written.

use std::io::{self, Write};

use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde::Serialize;

/// The forms of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for people.
    Table,
    /// JSON, as protobuf defines it.
    Json,
    /// YAML of the same shape.
    Yaml,
}

/// Writes `value`, or for people what `table` makes of it. A reader that has seen enough is no error.
///
/// # Errors
/// Where it cannot be written.
pub fn write<T: Serialize>(
    format: Format,
    value: &T,
    table: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    let text = match format {
        Format::Table => table(value),
        Format::Json => serde_json::to_string_pretty(value)?,
        Format::Yaml => serde_saphyr::to_string(value)?,
    };
    print(&text)?;
    Ok(())
}

/// Writes lines; whether the reader takes more.
///
/// # Errors
/// Where they cannot be written.
pub fn print(text: &str) -> io::Result<bool> {
    match writeln!(io::stdout(), "{}", text.trim_end()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

/// A text with its control characters written out: nothing that came over a wire steers the terminal.
pub fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// A table without lines, with a header where there is one.
pub fn columns(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if !header.is_empty() {
        table.set_header(header.iter().map(|name| name.to_uppercase()));
    }
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    table.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}
