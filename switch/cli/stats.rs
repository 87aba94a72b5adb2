//! `pontoon stats`.

use std::collections::BTreeMap;

use ::daemon::api::{PortStats, Stats as Counts};
use clap::Args;

use crate::failure::Outcome;
use crate::output::{Listing, daemon, table};

/// Show what each port received, sent and dropped, and why
#[derive(Debug, Args)]
#[command(after_help = "\
A received frame is forwarded, consumed by the gateway, or dropped for a reason; the three add up.

Examples:
  pontoon stats
  pontoon stats bridge --format json")]
pub(crate) struct Stats {
    /// Of this network only, or of the segment on this interface
    #[arg(value_name = "NETWORK|IF")]
    network: Option<String>,
    #[command(flatten)]
    listing: Listing,
}

impl Stats {
    pub(crate) fn go(self) -> Outcome {
        let stats = daemon()?.stats(self.network.as_deref())?;
        self.listing.print_one(&stats, text)
    }
}

fn text(stats: &Counts) -> String {
    let header = [
        "NETWORK",
        "ENDPOINT",
        "PORT",
        "RX FRAMES",
        "RX OCTETS",
        "FORWARDED",
        "CONSUMED",
        "DROPPED",
        "TX FRAMES",
        "TX OCTETS",
        "TX DROPPED",
    ];
    let total = |counts: &BTreeMap<String, u64>| counts.values().sum::<u64>().to_string();
    let cells = |port: &PortStats| {
        let numbers = [port.rx_frames, port.rx_octets, port.forwarded, port.consumed];
        let mut cells = vec![port.network.clone(), port.endpoint.clone(), port.port.to_string()];
        cells.extend(numbers.map(|number| number.to_string()));
        cells.push(total(&port.dropped));
        cells.extend([port.tx_frames, port.tx_octets].map(|number| number.to_string()));
        cells.push(total(&port.tx_dropped));
        cells
    };
    let mut text = table(&header, stats.ports.iter().map(cells));
    let drops: Vec<_> = stats.ports.iter().flat_map(drops).collect();
    if !drops.is_empty() {
        text += "\n\n";
        text += &table(&["NETWORK", "ENDPOINT", "DROPPED", "REASON", "FRAMES"], drops);
    }
    text
}

fn drops(port: &PortStats) -> impl Iterator<Item = Vec<String>> {
    let rows = |way: &'static str, counts: &BTreeMap<String, u64>| {
        let row = |(reason, frames): (&String, &u64)| {
            let (network, endpoint) = (port.network.clone(), port.endpoint.clone());
            vec![network, endpoint, way.to_owned(), reason.clone(), frames.to_string()]
        };
        counts.iter().map(row).collect::<Vec<_>>()
    };
    rows("received", &port.dropped).into_iter().chain(rows("to be sent", &port.tx_dropped))
}
