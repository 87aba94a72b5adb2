//! No external port is left: RFC 4787 REQ-3, RFC 5508 REQ-8, RFC 6888 REQ-11.
//!
//! The well-known ports are a range of their own (RFC 4787 REQ-3a), small enough to be used up.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::errors::ADMIN;
use crate::lab::{Family, Lab, Station};
use crate::mapping::{answered, map};
use crate::packet::Packet;
use crate::{Verdict, ensure, probes};

probes! {
    Raw {
        "I8" ANY whoever_finds_no_port_is_told_and_nobody_loses_one(
            "--timeouts", "rfc,udp-unreplied=12,udp-stream=12"
        );
    }
}

/// A mapping's time, and that of looking for what is over, with some to spare.
const RETURNED_WITHIN: Duration = Duration::from_secs(12 + 10 + 8);

/// What comes at all comes within that.
const HEARD_WITHIN: Duration = Duration::from_secs(1);

fn whoever_finds_no_port_is_told_and_nobody_loses_one(lab: &Lab, family: Family) -> Verdict {
    let outside = lab.outsider(66);
    let first = lab.insider(&format!("a{family:?}"))?;
    let second = lab.insider(&format!("b{family:?}"))?;
    let peer = outside.at(family, 9000);
    // Each takes what it gets. A NAT that shares ports out keeps some from the first for the second (RFC 6888 REQ-4).
    let mut held: Vec<(&Station, SocketAddr, SocketAddr)> = Vec::new();
    let mut refused = None;
    for inside in [&first, &second] {
        for port in 1..1024 {
            let own = inside.at(family, port);
            inside.says(own, peer, own.to_string().as_bytes());
            let heard = outside.wire.within(HEARD_WITHIN, |packet| {
                packet.datagram() == Some(own.to_string().as_bytes())
            });
            let Some(heard) = heard else {
                refused = Some(own);
                break;
            };
            held.push((inside, own, heard.from().unwrap()));
        }
    }
    let own = refused.ok_or("there is no end of ports")?;
    let externals: HashSet<_> = held.iter().map(|(_, _, external)| external.port()).collect();
    ensure!(externals.len() == held.len(), "{} external ports for {}", externals.len(), held.len());
    ensure!(externals.len() > 511, "no more than {} external ports", externals.len());
    ensure!(externals.iter().all(|port| *port < 1024), "out of the range: {externals:?}");
    ensure!(own.ip() == second.at(family, 0).ip(), "the second finds no end");
    // One more is told, about what it sent.
    second.wire.forget();
    second.says(own, peer, b"one more");
    let told = second.wait("an error", Packet::is_error)?;
    ensure!(told.icmp_kind() == Some(ADMIN.of(family)), "told {told:?}");
    ensure!(told.quoted()?.from() == Some(own), "quotes {:?}", told.quoted());
    // High ports are others.
    map(&second, second.at(family, 40_000), &outside, peer)?;
    for (inside, own, external) in &held {
        answered(inside, *own, &outside, peer, *external)?;
    }
    for (inside, own, external) in held.iter().step_by(100) {
        let again = map(inside, *own, &outside, peer)?;
        ensure!(again == *external, "{external} was taken away: {again}");
    }
    // Once they have been silent for long enough, their ports are to be had again.
    let data = format!("{own} at last");
    let end = Instant::now() + RETURNED_WITHIN;
    let external = loop {
        second.says(own, peer, data.as_bytes());
        let heard = outside.wire.within(Duration::from_millis(250), |packet| {
            packet.datagram() == Some(data.as_bytes())
        });
        if let Some(heard) = heard {
            break heard.from().unwrap();
        }
        ensure!(Instant::now() < end, "no port came back within {RETURNED_WITHIN:?}");
    };
    ensure!(external.port() < 1024, "{own} became {external}");
    answered(&second, own, &outside, peer, external)
}
