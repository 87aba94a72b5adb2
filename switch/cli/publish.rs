//! `pontoon publish`: ports of running endpoints, added and taken back at any time.

use std::process::ExitCode;

use ::daemon::api::Endpoint;
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::failure::Outcome;
use crate::output::{Listing, daemon, print, table};
use crate::port;

/// Add, remove and list published ports of running endpoints
#[derive(Debug, Args)]
#[command(after_help = SPECS)]
pub(crate) struct Publish {
    #[command(subcommand)]
    command: Command,
}

const SPECS: &str = "\
SPEC is [IP:]HOST:CTR[/tcp|udp][,splice]; CTR alone takes a free host port. Both may be ranges of
equal length. Without IP it is every address of both families. All ports of a call are published, or
none. With splice a TCP port costs least, and its server sees every client under its own address, as
it does clients of the host's 127.0.0.1 in any case.

Examples:
  pontoon publish add web 8080:80 127.0.0.1:5353:53/udp
  pontoon publish add web 8000-8005:80-85 '[::1]:9000:90'
  pontoon publish add web 8081:81,splice
  pontoon publish rm web 8080:80
  pontoon publish ls";

#[derive(Debug, Subcommand)]
enum Command {
    /// Publish ports of an endpoint
    #[command(after_help = SPECS)]
    Add(Change),
    /// Take published ports back; CTR alone takes back every listener of that port
    #[command(after_help = SPECS)]
    Rm(Change),
    /// List published ports, of all endpoints or of one
    #[command(after_help = "Example:\n  pontoon publish ls web --format json")]
    Ls(Ls),
}

#[derive(Debug, Args)]
struct Change {
    /// Name or id of the endpoint
    #[arg(value_name = "ENDPOINT")]
    name: String,
    /// What to publish
    #[arg(required = true, value_name = "SPEC")]
    specs: Vec<String>,
}

#[derive(Debug, Args)]
struct Ls {
    /// Name or id of an endpoint
    #[arg(value_name = "ENDPOINT")]
    name: Option<String>,
    #[command(flatten)]
    listing: Listing,
}

/// A listener, and whose it is.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    endpoint: String,
    #[serde(flatten)]
    port: ::daemon::api::PublishedPort,
}

impl Publish {
    pub(crate) fn go(self) -> Outcome {
        match self.command {
            Command::Add(add) => print(&port::lines(&daemon()?.publish(&add.name, add.specs)?)),
            Command::Rm(rm) => {
                daemon()?.unpublish(&rm.name, rm.specs)?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Ls(ls) => {
                let daemon = daemon()?;
                let endpoints = match &ls.name {
                    Some(name) => vec![daemon.endpoint(name)?],
                    None => daemon.endpoints()?,
                };
                ls.listing.print(&rows(endpoints), text)
            }
        }
    }
}

fn rows(endpoints: Vec<Endpoint>) -> Vec<Row> {
    let of = |endpoint: Endpoint| {
        let name = endpoint.name;
        endpoint.ports.into_iter().map(move |port| Row { endpoint: name.clone(), port })
    };
    endpoints.into_iter().flat_map(of).collect()
}

fn text(rows: &[Row]) -> String {
    let cells =
        |row: &Row| vec![row.endpoint.clone(), port::inside(&row.port), port::host(&row.port)];
    table(&["ENDPOINT", "PORT", "HOST"], rows.iter().map(cells))
}
