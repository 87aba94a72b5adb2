//! UDP mappings: RFC 4787 4 and RFC 7857.

use std::collections::HashSet;
use std::net::SocketAddr;

use crate::lab::{Family, Lab, Station};
use crate::{Verdict, ensure, probes};

probes! {
    Both {
        "U1" ANY all_hosts_and_ports_see_one_external_port;
        "U3" ANY two_containers_with_one_port_get_two_external_ports;
        "U4b" ANY the_port_inside_is_the_port_outside;
    }
}

/// Sends a datagram from inside and returns the external address it came from.
pub(crate) fn map(
    inside: &Station,
    from: SocketAddr,
    outside: &Station,
    to: SocketAddr,
) -> Result<SocketAddr, String> {
    let data = format!("{from} to {to}");
    inside.says(from, to, data.as_bytes());
    Ok(outside.hears(data.as_bytes())?.0)
}

/// Answers by a mapping and waits until the answer is inside.
pub(crate) fn answered(
    inside: &Station,
    within: SocketAddr,
    outside: &Station,
    from: SocketAddr,
    to: SocketAddr,
) -> Verdict {
    let data = format!("answer from {from} to {to}");
    outside.says(from, to, data.as_bytes());
    let (source, destination) = inside.hears(data.as_bytes())?;
    ensure!(source == from, "the answer from {from} comes from {source}");
    ensure!(destination == within, "the answer for {within} came to {destination}");
    Ok(())
}

fn all_hosts_and_ports_see_one_external_port(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = [lab.outsider(66), lab.outsider(67)];
    let own = inside.at(family, 40_000);
    let mut seen = HashSet::new();
    for station in &outside {
        for port in [9000, 9001] {
            let peer = station.at(family, port);
            let mapped = map(&inside, own, station, peer)?;
            ensure!(mapped.ip() == lab.external(family), "{mapped} is not the external address");
            seen.insert(mapped);
            answered(&inside, own, station, peer, mapped)?;
        }
    }
    ensure!(seen.len() == 1, "several external addresses of {own}: {seen:?}");
    Ok(())
}

fn two_containers_with_one_port_get_two_external_ports(lab: &Lab, family: Family) -> Verdict {
    let first = lab.insider(&format!("a{family:?}"))?;
    let second = lab.insider(&format!("b{family:?}"))?;
    let outside = lab.outsider(66);
    // The same destination, and different ones: overloading is forbidden in either case.
    let other = lab.outsider(67);
    let one = map(&first, first.at(family, 41_000), &outside, outside.at(family, 9000))?;
    let two = map(&second, second.at(family, 41_000), &outside, outside.at(family, 9000))?;
    ensure!(one != two, "both have {one}");
    let three = map(&second, second.at(family, 41_000), &other, other.at(family, 9000))?;
    ensure!(one != three, "both have {one}, towards different hosts");
    answered(&first, first.at(family, 41_000), &outside, outside.at(family, 9000), one)?;
    answered(&second, second.at(family, 41_000), &outside, outside.at(family, 9000), two)
}

fn the_port_inside_is_the_port_outside(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    for port in [40_000, 50_001] {
        let mapped = map(&inside, inside.at(family, port), &outside, outside.at(family, 9000))?;
        ensure!(mapped.port() == port, "{port} became {}", mapped.port());
    }
    Ok(())
}
