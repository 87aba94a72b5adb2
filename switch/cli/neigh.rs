//! `pontoon neigh`.

use ::daemon::api::NeighbourRow;
use clap::Args;

use crate::failure::Outcome;
use crate::output::{Listing, daemon, table};

/// List the neighbours the gateways know by ARP and NDP
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pontoon neigh\n  pontoon neigh bridge --format json")]
pub(crate) struct Neigh {
    /// Of this network only, or of the segment on this interface
    #[arg(value_name = "NETWORK|IF")]
    network: Option<String>,
    #[command(flatten)]
    listing: Listing,
}

impl Neigh {
    pub(crate) fn go(self) -> Outcome {
        let rows = daemon()?.neighbours(self.network.as_deref())?;
        self.listing.print(&rows, text)
    }
}

fn text(rows: &[NeighbourRow]) -> String {
    let cells = |row: &NeighbourRow| {
        let mac = row.mac_address.clone().unwrap_or_default();
        vec![row.ip_address.clone(), row.network.clone(), mac, row.state.clone()]
    };
    table(&["IP ADDRESS", "NETWORK", "MAC ADDRESS", "STATE"], rows.iter().map(cells))
}
