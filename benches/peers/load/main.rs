//! Load generators for the side-by-side: what iperf3, nginx and wrk do not do.
//!
//! Each is one process in one namespace and prints one JSON object a result on standard output.
//! Whatever it times it times here, so the harness's own language costs nothing. `echo` is the far
//! side of `ping`, `connect` and `hold`; `sink` is the far side of `blast`.

#![forbid(unsafe_code)]

mod blast;
mod connect;
mod echo;
mod hold;
mod ping;

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use serde_json::Value;

const USAGE: &str = "\
usage: load echo PORT                          TCP and UDP: send back what comes, until killed
       load sink PORT SECS                     count datagrams until half a second without any
       load blast ADDR:PORT SECS SIZE FLOWS    send datagrams as fast as the kernel takes them
       load ping tcp|udp ADDR:PORT SECS SIZE   one message at a time, there and back
       load connect ADDR:PORT SECS HELD        open connections, keep the newest HELD
       load reach ADDR:PORT SECS               try until a connection works
       load hold tcp|udp ADDR:PORT COUNT       open COUNT flows; a line on standard input asks each";

/// The transport of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Connections.
    Tcp,
    /// Datagrams from a connected socket.
    Udp,
}

impl FromStr for Transport {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(format!("{word:?} is neither tcp nor udp")),
        }
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match answer(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("load: {why}");
            ExitCode::FAILURE
        }
    }
}

fn answer(words: &[&str]) -> Result<(), String> {
    let done = match *words {
        ["echo", port] => echo::serve(number(port)?),
        ["sink", port, secs] => blast::sink(number(port)?, seconds(secs)?).map(print),
        ["blast", to, secs, size, flows] => {
            blast::blast(number(to)?, seconds(secs)?, number(size)?, number(flows)?).map(print)
        }
        ["ping", transport, to, secs, size] => {
            ping::ping(number(transport)?, number(to)?, seconds(secs)?, number(size)?).map(print)
        }
        ["connect", to, secs, held] => {
            connect::connect(number(to)?, seconds(secs)?, number(held)?).map(print)
        }
        ["reach", to, secs] => connect::reach(number(to)?, seconds(secs)?).map(print),
        ["hold", transport, to, count] => {
            hold::hold(number(transport)?, number(to)?, number(count)?, print)
        }
        _ => return Err(USAGE.to_owned()),
    };
    done.map_err(|error: io::Error| format!("{}: {error}", words.join(" ")))
}

fn print(result: Value) {
    println!("{result}");
}

fn number<T: FromStr<Err: Display>>(word: &str) -> Result<T, String> {
    word.parse().map_err(|error| format!("{word:?}: {error}"))
}

fn seconds(word: &str) -> Result<Duration, String> {
    Duration::try_from_secs_f64(number(word)?).map_err(|error| format!("{word:?}: {error}"))
}

/// A socket's address to bind to, before its flow has a far side.
fn any(like: SocketAddr) -> SocketAddr {
    match like {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0; 16], 0).into(),
    }
}
