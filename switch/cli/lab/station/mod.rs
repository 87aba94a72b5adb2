//! Stations: small programs that play a container's process, a host's user or a server of the
//! Internet.
//!
//! Inside this binary, so that a lab needs no ping, curl, ip or python where it runs. They print what
//! those print, work with the kernel's sockets alone, and know nothing of the switch: what they see is
//! what any program in their place would. ICMP is taken apart by pnet, not by the codec the switch
//! uses, so that the switch does not judge itself.

mod dial;
mod patience;
mod ping;
mod serve;
mod show;

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::ExitCode;

use clap::Subcommand;

use crate::failure::Outcome;

/// What a station does.
#[derive(Debug, Subcommand)]
pub(crate) enum Station {
    /// Send echo requests, as ping does
    Ping {
        /// How many
        #[arg(short, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1000))]
        count: u16,
        /// Whom
        addr: Ipv4Addr,
    },
    /// Make a TCP connection and close it
    Dial {
        /// To whom
        to: SocketAddrV4,
    },
    /// Get a page, as curl does
    Get {
        /// Which: http:, an address, perhaps a port and a path
        url: dial::Url,
    },
    /// Serve a page that tells every client who it is
    Serve {
        /// Where to listen
        at: SocketAddrV4,
    },
    /// Show the interfaces, as ip address does
    Links,
    /// Show the routes, as ip route does
    Routes,
    /// Show the neighbours, as ip neigh does
    Neighbours,
}

impl Station {
    pub(crate) fn go(self) -> Outcome {
        let (name, outcome) = match self {
            Self::Ping { count, addr } => ("ping", ping::run(addr, count)),
            Self::Dial { to } => ("dial", dial::dial(to)),
            Self::Get { url } => ("get", dial::get(&url)),
            Self::Serve { at } => ("serve", serve::run(at)),
            Self::Links => ("links", show::links()),
            Self::Routes => ("routes", show::routes()),
            Self::Neighbours => ("neighbours", show::neighbours()),
        };
        // It is the station that speaks, not the switch.
        outcome.or_else(|failure| {
            let _ = writeln!(io::stderr(), "{name}: {}", failure.message());
            Ok(ExitCode::FAILURE)
        })
    }
}
