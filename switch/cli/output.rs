//! Tables for people, JSON for programs, and the way to the daemon.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use ::daemon::client::Client;
use ::daemon::{socket, start};
use clap::ValueEnum;
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Row, Table};
use serde::Serialize;

use crate::failure::{Failure, Outcome, note};

/// How a listing is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns.
    #[default]
    Table,
    /// JSON.
    Json,
}

/// The `--format` of every listing.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Listing {
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

impl Listing {
    /// Prints `rows` as JSON, or what `table` makes of them.
    pub(crate) fn print<T: Serialize>(
        self,
        rows: &[T],
        table: impl FnOnce(&[T]) -> String,
    ) -> Outcome {
        match self.format {
            Format::Json => print_json(rows),
            Format::Table => print(&table(rows)),
        }
    }

    /// Prints one thing as JSON, or what `text` makes of it.
    pub(crate) fn print_one<T: Serialize>(
        self,
        one: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Outcome {
        match self.format {
            Format::Json => print_json(one),
            Format::Table => print(&text(one)),
        }
    }
}

/// Prints JSON.
pub(crate) fn print_json<T: Serialize + ?Sized>(what: &T) -> Outcome {
    print(&serde_json::to_string_pretty(what)?)
}

/// Prints lines; a reader that has gone away, as `head` does, is no failure.
pub(crate) fn print(text: &str) -> Outcome {
    let mut stdout = io::stdout().lock();
    let written = match text {
        "" => Ok(()),
        text => writeln!(stdout, "{text}").and_then(|()| stdout.flush()),
    };
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("write the answer: {error}")))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Aligned columns under a header, without lines; the header stands even over nothing.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    table.add_rows(rows.into_iter().map(Row::from));
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines = table.to_string();
    let mut lines: Vec<_> = lines.lines().map(|line| line.trim_end().to_owned()).collect();
    if let Some(head) = lines.first_mut().filter(|_| colour()) {
        *head = format!("\x1b[1m{head}\x1b[0m");
    }
    lines.join("\n")
}

/// Whether standard output is a terminal whose user wants colour (no-color.org).
fn colour() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
    io::stdout().is_terminal() && !unwanted
}

/// A client of the daemon, which is started where none runs.
pub(crate) fn daemon() -> Result<Client, Failure> {
    let (client, notes) = start::ensure(&socket::path()?)?;
    for text in notes {
        note(text);
    }
    Ok(client)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_where_the_text_does() {
        let rows =
            vec![vec!["a".to_owned(), "1".to_owned()], vec!["long".to_owned(), String::new()]];
        assert_eq!(table(&["NAME", "N"], rows), "NAME  N\na     1\nlong");
        assert_eq!(table(&["NAME", "N"], []), "NAME  N");
    }
}
