//! `pontoon fdb`.

use ::daemon::api::FdbRow;
use clap::Args;

use crate::failure::Outcome;
use crate::output::{Listing, daemon, table};

/// List the stations the bridges have learned, and the ports they are behind
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pontoon fdb\n  pontoon fdb bridge --format json")]
pub(crate) struct Fdb {
    /// Of this network only, or of the segment on this interface
    #[arg(value_name = "NETWORK|IF")]
    network: Option<String>,
    #[command(flatten)]
    listing: Listing,
}

impl Fdb {
    pub(crate) fn go(self) -> Outcome {
        let rows = daemon()?.fdb(self.network.as_deref())?;
        self.listing.print(&rows, text)
    }
}

fn text(rows: &[FdbRow]) -> String {
    let age = |row: &FdbRow| match row.permanent {
        true => "permanent".to_owned(),
        false => format!("{:.2}", row.age),
    };
    let cells = |row: &FdbRow| {
        vec![
            row.network.clone(),
            row.mac_address.clone(),
            row.port.to_string(),
            row.endpoint.clone(),
            age(row),
        ]
    };
    table(&["NETWORK", "MAC ADDRESS", "PORT", "ENDPOINT", "AGE"], rows.iter().map(cells))
}
