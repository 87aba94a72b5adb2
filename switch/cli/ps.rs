//! `pontoon ps`.

use ::daemon::api::Endpoint;
use ::daemon::names::short_id;
use clap::Args;

use crate::failure::Outcome;
use crate::output::{Listing, daemon, table};
use crate::port;

/// List endpoints
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pontoon ps
  pontoon ps --quiet
  pontoon ps --format json | jq -r '.[] | .Name + \" \" + .IPAddress'")]
pub(crate) struct Ps {
    /// Print short ids only
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    listing: Listing,
}

impl Ps {
    pub(crate) fn go(self) -> Outcome {
        let endpoints = daemon()?.endpoints()?;
        self.listing.print(&endpoints, |endpoints| match self.quiet {
            true => endpoints.iter().map(|e| short_id(&e.id)).collect::<Vec<_>>().join("\n"),
            false => text(endpoints),
        })
    }
}

fn text(endpoints: &[Endpoint]) -> String {
    let header = ["ENDPOINT ID", "NAME", "NETWORK", "IP ADDRESS", "TARGET", "STATUS", "PORTS"];
    table(
        &header,
        endpoints.iter().map(|endpoint| {
            vec![
                short_id(&endpoint.id).to_owned(),
                endpoint.name.clone(),
                endpoint.network.clone(),
                addresses(endpoint),
                endpoint.target.clone(),
                endpoint.status.clone(),
                port::summary(&endpoint.ports),
            ]
        }),
    )
}

/// `172.17.0.2, fd00::2`.
fn addresses(endpoint: &Endpoint) -> String {
    let both = [&endpoint.ip_address, &endpoint.ipv6_address];
    both.into_iter().filter(|text| !text.is_empty()).cloned().collect::<Vec<_>>().join(", ")
}
