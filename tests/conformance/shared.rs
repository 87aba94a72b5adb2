//! Several networks behind one station: what they share is its addresses, and nothing else.
//!
//! No port of theirs is two networks' at a time (RFC 4787 REQ-3), and each is found by the station's
//! address, from outside and from the other; by an inside address nobody is.

use std::net::SocketAddr;

use crate::conn::Conn;
use crate::icmp::meanwhile;
use crate::lab::{Container, Family, Lab, Station, listen, udp};
use crate::mapping::{answered, map};
use crate::packet::{Packet, SYN, Segment};
use crate::published::{exchanged, served};
use crate::{Verdict, ensure, probes};

probes! {
    RawAlone {
        "U3" ANY two_networks_with_one_port_get_two_external_ports;
        "U9" ANY two_of_two_networks_meet_by_their_external_addresses;
        "PRODUCT 9" ANY each_network_publishes_and_reaches_what_the_other_publishes;
        "PRODUCT 9" ANY a_network_is_not_reached_by_inside_addresses;
        "6888-4" ANY one_network_at_its_bound_is_alone_in_that("daemon:--max-tracked-per-container=20");
    }
}

/// A container of another network on the same station.
fn neighbour(lab: &Lab, family: Family, options: &[&str]) -> Container {
    let name = format!("next{family:?}");
    let subnets = match family {
        Family::V4 => ["10.8.0.0/24", "fd00:8::/64"],
        Family::V6 => ["10.7.0.0/24", "fd00:7::/64"],
    };
    lab.network(&name, &["--subnet", subnets[0], "--subnet", subnets[1], "--uplink", "raw:up0"]);
    lab.container_on(&name, &format!("n{family:?}"), options)
}

/// One by hand of each network.
fn both(lab: &Lab, family: Family) -> Result<[Station; 2], String> {
    let other = neighbour(lab, family, &[]);
    Ok([lab.insider(&format!("c{family:?}"))?, lab.by_hand(&other)?])
}

fn two_networks_with_one_port_get_two_external_ports(lab: &Lab, family: Family) -> Verdict {
    let [first, second] = both(lab, family)?;
    let outside = lab.outsider(66);
    let (one, two) = (first.at(family, 41_000), second.at(family, 41_000));
    let peer = outside.at(family, 9000);
    let (one_mapped, two_mapped) =
        (map(&first, one, &outside, peer)?, map(&second, two, &outside, peer)?);
    ensure!(one_mapped != two_mapped, "both have {one_mapped}");
    for mapped in [one_mapped, two_mapped] {
        ensure!(mapped.ip() == lab.external(family), "{mapped} is not the station's");
    }
    answered(&second, two, &outside, peer, two_mapped)?;
    answered(&first, one, &outside, peer, one_mapped)?;
    let peer = outside.at(family, 80);
    let mut one = Conn::open(&first, one, &outside, peer)?;
    let mut two = Conn::open(&second, two, &outside, peer)?;
    ensure!(one.outside.peer != two.outside.peer, "both are {}", one.outside.peer);
    one.lives()?;
    two.lives()?;
    // One echo identifier of both.
    let mut requests = Vec::new();
    for (station, data) in [(&first, b"first "), (&second, b"second")] {
        let request = Packet::echo(station.addr(family), peer.ip(), true, 7, 7, data);
        station.wire.send(&request);
        let wanted =
            |p: &Packet| p.dst == peer.ip() && p.echo_parts().is_some_and(|(.., d)| d == data);
        requests.push(outside.wait("the request", wanted)?);
    }
    for (station, request) in [(&first, &requests[0]), (&second, &requests[1])] {
        let (id, seq, data) = request.echo_parts().unwrap();
        outside.wire.send(&Packet::echo(request.dst, request.src, false, id, seq, data));
        let answer = station.wait("its own answer", |p| p.echo_parts().is_some())?;
        ensure!(answer.echo_parts() == Some((7, 7, data)), "{answer:?} came");
    }
    // Each flow is listed with its own network's, and with the station's.
    let next = format!("next{family:?}");
    for (network, own, other) in [("both", &first, &second), (&next, &second, &first)] {
        let listed = lab.scene.json(["conntrack", network]);
        let of = |station: &Station| {
            let src = station.addr(family).to_string();
            listed.as_array().unwrap().iter().filter(|row| row["Original"]["Src"] == *src).count()
        };
        ensure!(of(own) >= 3 && of(other) == 0, "{network}: {listed:#}");
    }
    Ok(())
}

fn two_of_two_networks_meet_by_their_external_addresses(lab: &Lab, family: Family) -> Verdict {
    let [first, second] = both(lab, family)?;
    let outside = lab.outsider(66);
    let (one, two) = (first.at(family, 51_300), second.at(family, 51_301));
    let one_outside = map(&first, one, &outside, outside.at(family, 9000))?;
    let two_outside = map(&second, two, &outside, outside.at(family, 9000))?;
    // The first to knock is a stranger yet.
    first.says(one, two_outside, b"knock");
    let came = meanwhile(lab, &second, family, |packet| packet.datagram() == Some(b"knock"))?;
    ensure!(came.is_empty(), "let in: {came:?}");
    second.says(two, one_outside, b"answer");
    let (from, to) = first.hears(b"answer")?;
    ensure!((from, to) == (two_outside, one), "from {from} to {to}");
    first.says(one, two_outside, b"and back");
    let (from, to) = second.hears(b"and back")?;
    ensure!((from, to) == (one_outside, two), "from {from} to {to}");
    Ok(())
}

fn each_network_publishes_and_reaches_what_the_other_publishes(
    lab: &Lab,
    family: Family,
) -> Verdict {
    let any = if family == Family::V4 { "0.0.0.0" } else { "[::]" };
    let specs = |port| ["tcp", "udp"].map(|protocol| format!("{any}:{port}:80/{protocol}"));
    let (first, second) = (specs(8080), specs(8081));
    let one =
        lab.container_of_pontoon(&format!("p{family:?}"), &["-p", &first[0], "-p", &first[1]]);
    let two = neighbour(lab, family, &["-p", &second[0], "-p", &second[1]]);
    let servers: Vec<_> = [(&one, 8080), (&two, 8081)]
        .map(|(server, port)| {
            let addr = server.addr(family);
            let to = SocketAddr::new(lab.external(family), port);
            (to, listen(&server.netns, addr, 80), udp(&server.netns, addr, 80))
        })
        .into();
    for (to, listener, datagrams) in &servers {
        // Of the outside, of the other network, and itself.
        let from = SocketAddr::new(family.outside(2), 0);
        let seen = exchanged(&lab.outside, from, *to, listener)?;
        ensure!(seen.ip() == from.ip(), "the outside is seen as {seen}");
        served(&one, family, *to, listener, datagrams)?;
        served(&two, family, *to, listener, datagrams)?;
    }
    // Asked for at once, with nothing listening there, it refuses; other ports do nothing of the kind.
    let (to, listener, _) = servers.into_iter().next().unwrap();
    drop(listener);
    let refused = crate::lab::connect(&two.netns, two.at(family, 0), to).err();
    let kind = refused.map(|error| error.kind());
    ensure!(kind == Some(std::io::ErrorKind::ConnectionRefused), "told {kind:?}");
    Ok(())
}

/// Networks are apart: what is inside the one is not for the other, nor for its neighbours outside.
fn a_network_is_not_reached_by_inside_addresses(lab: &Lab, family: Family) -> Verdict {
    let [first, second] = both(lab, family)?;
    let outside = lab.outsider(66);
    let (own, there) = (first.at(family, 46_500), second.at(family, 80));
    first.says(own, there, b"by its inside address");
    first.wire.send(&Packet::tcp(own, there, &Segment::new(SYN, 1, 0)));
    first.wire.send(&Packet::echo(own.ip(), there.ip(), true, 1, 1, b"by its inside address"));
    let senders = [own.ip(), lab.external(family)];
    let came = meanwhile(lab, &second, family, |packet| senders.contains(&packet.src))?;
    ensure!(came.is_empty(), "it is reached: {came:?}");
    let told = first.wait("a word about it", Packet::is_error)?;
    ensure!(told.quoted()?.dst == there.ip(), "quotes {:?}", told.quoted());
    // Nor does it leave.
    let came = outside.wire.all(|packet| packet.dst == there.ip());
    ensure!(came.is_empty(), "it went out: {came:?}");
    map(&first, own, &outside, outside.at(family, 9000)).map(drop)
}

fn one_network_at_its_bound_is_alone_in_that(lab: &Lab, family: Family) -> Verdict {
    let [greedy, modest] = both(lab, family)?;
    let outside = lab.outsider(66);
    let peer = outside.at(family, 9000);
    let own = modest.at(family, 44_000);
    let before = map(&modest, own, &outside, peer)?;
    for port in 43_000..43_100 {
        greedy.says(greedy.at(family, port), peer, b"mine");
    }
    ensure!(map(&modest, own, &outside, peer)? == before, "{before} was taken away");
    answered(&modest, own, &outside, peer, before)?;
    map(&modest, modest.at(family, 44_001), &outside, peer).map(drop)
}
