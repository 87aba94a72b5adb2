//! Without translation: a station that routes to containers (`nat=off`), and an interface that is a port of
//! their network (`bridge:IF`).
//!
//! The first is a router and no more: RFC 1812, RFC 4443. The second is a bridge: no octet changes.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;

use netns::link;

use crate::errors::{HOST, PORT, TTL, error};
use crate::icmp::{comes_in, meanwhile};
use crate::lab::{Container, Family, Lab, accept, connect, listen};
use crate::packet::{ACK, Packet, SYN, Segment};
use crate::wire::Wire;
use crate::{Verdict, ensure, probes};

probes! {
    RawAlone {
        "nat=off" ANY every_protocol_is_routed_both_ways("uplink:nat=off");
        "nat=off" ANY errors_are_routed_as_they_are("uplink:nat=off");
        "nat=off" ANY who_is_not_there_is_unreachable("uplink:nat=off");
        "nat=off" ANY an_inside_address_from_outside_is_not_let_in("uplink:nat=off");
        "nat=off" ANY pieces_are_routed_one_by_one("uplink:nat=off");
        "nat=off" ANY a_traceroute_from_outside_shows_each_hop("uplink:nat=off");
        "bridge" ANY a_container_is_a_station_of_the_segment;
        "bridge" V4 groups_pass_and_what_is_reserved_does_not;
    }
}

/// The router knows the containers by the station.
fn announce(lab: &Lab, family: Family) {
    let via = Some(lab.external(family));
    let prefix = if family == Family::V4 { "10.9.0.0/24" } else { "fd00:9::/64" };
    let add = || link::add_route_through(prefix.parse().unwrap(), via, "down0");
    lab.router().enter(add).unwrap();
}

/// A packet of each kind, none of which another has made known.
fn one_of_each(from: SocketAddr, to: SocketAddr) -> [Packet; 5] {
    let other = SocketAddr::new(from.ip(), from.port() + 1);
    [
        Packet::udp(from, to, b"a datagram"),
        Packet::tcp(from, to, &Segment::new(SYN, 7, 0)),
        Packet::tcp(other, to, &Segment::new(ACK, 7, 8).data(b"from the middle")),
        Packet::echo(from.ip(), to.ip(), true, 66, 1, b"a question"),
        Packet::new(from.ip(), to.ip(), 253, b"of no known protocol".to_vec()),
    ]
}

fn every_protocol_is_routed_both_ways(lab: &Lab, family: Family) -> Verdict {
    announce(lab, family);
    let inside = lab.insider(&format!("c{family:?}"))?;
    let (outside, other) = (lab.outsider(66), lab.outsider(67));
    let (own, peer) = (inside.at(family, 46_000), outside.at(family, 9000));
    for sent in one_of_each(own, peer) {
        inside.wire.send(&sent);
        let seen = outside.wait("it", |seen| seen.payload == sent.payload)?;
        ensure!(seen.src == own.ip(), "from {}", seen.src);
        ensure!(seen.ttl == sent.ttl - 2, "{} became {}", sent.ttl, seen.ttl);
    }
    let from = other.at(family, 77);
    for sent in one_of_each(from, own) {
        other.wire.send(&sent);
        let seen = inside.wait("it", |seen| seen.payload == sent.payload)?;
        ensure!(seen.src == from.ip() && seen.dst == own.ip(), "{seen:?}");
        ensure!(seen.ttl == sent.ttl - 2, "{} became {}", sent.ttl, seen.ttl);
    }
    // Octets of a stream, by kernels, begun outside.
    let container = lab.container(&format!("d{family:?}"));
    let listener = listen(&container.netns, container.addr(family), 80);
    let from = SocketAddr::new(family.outside(2), 52_000);
    let connected = connect(&lab.outside, from, container.at(family, 80));
    let mut near = connected.map_err(|error| format!("connect: {error}"))?;
    let (mut far, client) = accept(&listener)?;
    ensure!(client == from, "{from} is seen as {client}");
    let data = vec![7; 300_000];
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| near.write_all(&data));
        let mut came = vec![0; data.len()];
        far.read_exact(&mut came).map_err(|error| format!("read: {error}"))?;
        sending.join().unwrap().map_err(|error| format!("write: {error}"))?;
        ensure!(came == data, "other octets came");
        Ok(())
    })
}

fn errors_are_routed_as_they_are(lab: &Lab, family: Family) -> Verdict {
    announce(lab, family);
    let inside = lab.insider(&format!("c{family:?}"))?;
    let (outside, other) = (lab.outsider(66), lab.outsider(67));
    let (own, peer) = (inside.at(family, 46_100), outside.at(family, 9000));
    let sent = Packet::udp(own, peer, b"about which there is an error");
    inside.wire.send(&sent);
    let seen = outside.wait("it", |seen| seen.payload == sent.payload)?;
    other.wire.send(&error(other.addr(family), HOST, 0, &seen.octets()));
    comes_in(&inside, other.addr(family), HOST.of(family), &sent, 500)?;
    inside.wire.send(&error(own.ip(), PORT, 0, &Packet::udp(peer, own, b"asked").octets()));
    let told = outside.wait("the container's error", Packet::is_error)?;
    ensure!(told.src == own.ip() && told.icmp_kind() == Some(PORT.of(family)), "told {told:?}");
    let mut late = Packet::udp(peer, own, b"too late");
    late.ttl = 2;
    outside.wire.send(&late);
    let told = outside.wait("an error", Packet::is_error)?;
    ensure!(told.icmp_kind() == Some(TTL.of(family)), "told {told:?}");
    ensure!(told.src == lab.external(family), "told by {}", told.src);
    let came = meanwhile(lab, &inside, family, |p| p.datagram() == Some(b"too late"))?;
    ensure!(came.is_empty(), "went on: {came:?}");
    Ok(())
}

fn who_is_not_there_is_unreachable(lab: &Lab, family: Family) -> Verdict {
    announce(lab, family);
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let nobody = if family == Family::V4 { "10.9.0.77:9" } else { "[fd00:9::77]:9" };
    let from = outside.at(family, 9000);
    outside.says(from, nobody.parse().unwrap(), b"to nobody");
    let told = outside.wait("an error", Packet::is_error)?;
    ensure!(told.icmp_kind() == Some(HOST.of(family)), "told {told:?}");
    ensure!(told.src == lab.external(family), "told by {}", told.src);
    ensure!(told.quoted()?.from() == Some(from), "quotes {:?}", told.quoted());
    meanwhile(lab, &inside, family, |_| false).map(drop)
}

fn an_inside_address_from_outside_is_not_let_in(lab: &Lab, family: Family) -> Verdict {
    announce(lab, family);
    let inside = lab.insider(&format!("c{family:?}"))?;
    let other = lab.container(&format!("d{family:?}"));
    let wire = Wire::on(lab.router(), "down0", &[]);
    wire.find_gateway(Family::V4.router(), lab.external(Family::V4))?;
    let own = inside.at(family, 46_300);
    let send = |from, data: &[u8]| wire.send(&Packet::udp(from, own, data));
    send(SocketAddr::new(family.router(), 9), b"from the router");
    inside.hears(b"from the router")?;
    send(other.at(family, 9), b"as a neighbour");
    send(own, b"as oneself");
    let came = meanwhile(lab, &inside, family, |packet| {
        matches!(packet.datagram(), Some(b"as a neighbour" | b"as oneself"))
    })?;
    ensure!(came.is_empty(), "let in: {came:?}");
    send(SocketAddr::new(family.router(), 9), b"from the router again");
    inside.hears(b"from the router again").map(drop)
}

/// A router puts nothing together: RFC 1812 5.2.6, RFC 8200 4.5.
fn pieces_are_routed_one_by_one(lab: &Lab, family: Family) -> Verdict {
    announce(lab, family);
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 46_400), outside.at(family, 9000));
    let whole = Packet::udp(own, peer, &[3; 4000]);
    // The last comes first, and the second never.
    for n in [2, 0] {
        let piece = &whole.pieces(1400, 9)[n];
        inside.wire.send(piece);
        let seen = outside.wait("a piece", |p| (p.offset, p.more) == (piece.offset, piece.more))?;
        ensure!(seen.src == own.ip() && seen.payload == piece.payload, "{seen:?}");
    }
    let piece = &Packet::udp(peer, own, &[4; 4000]).pieces(1400, 10)[1];
    outside.wire.send(piece);
    inside.wait("a piece", |p| p.offset == 1400 && p.payload == piece.payload).map(drop)
}

fn a_traceroute_from_outside_shows_each_hop(lab: &Lab, family: Family) -> Verdict {
    announce(lab, family);
    let container = lab.container(&format!("c{family:?}"));
    let target = container.addr(family).to_string();
    for way in ["-U", "-I", "-T"] {
        let args = ["-n", "-q", "1", "-N", "1", "-w", "5", "-m", "6", way, &target];
        let ended = lab.scene.run_in(&lab.outside, "traceroute", args);
        let hops: Vec<_> = ended
            .stdout
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().nth(1)?.parse().ok())
            .collect::<Vec<std::net::IpAddr>>();
        let due = [family.outside(1), lab.external(family), container.addr(family)];
        ensure!(hops == due, "{way}: {}{}", ended.stdout, ended.stderr);
    }
    Ok(())
}

/// The wire of a second interface of the host's, `up1`, and a network that is a port of it.
fn bridged(lab: &Lab) -> Wire {
    let router = lab.router();
    link::create_veth_pair("up1", &lab.scene.host, "down1", router).unwrap();
    let up = || {
        link::no_own_link_local("down1")?;
        link::add_address("down1", "198.18.0.2/24".parse().unwrap())?;
        link::add_address("down1", "2001:db8:5::2/64".parse().unwrap())?;
        link::set_up("down1")
    };
    router.enter(up).unwrap();
    lab.scene.host.enter(|| link::set_up("up1")).unwrap();
    lab.network(
        "seg",
        &[
            "--uplink",
            "bridge:up1",
            "--subnet",
            "198.18.0.0/24",
            "--gateway",
            "198.18.0.2",
            "--subnet",
            "2001:db8:5::/64",
            "--gateway",
            "2001:db8:5::2",
        ],
    );
    Wire::on(router, "down1", &[])
}

fn mac_of(container: &Container) -> [u8; 6] {
    let interfaces = container.netns.enter(netns::interfaces).unwrap();
    interfaces.iter().find(|found| found.name == "eth0").unwrap().mac.unwrap()
}

fn a_container_is_a_station_of_the_segment(lab: &Lab, family: Family) -> Verdict {
    // One interface is one network's port: the families take turns.
    let wire =
        if family == Family::V4 { bridged(lab) } else { Wire::on(lab.router(), "down1", &[]) };
    let container = lab.container_on("seg", &format!("s{family:?}"), &[]);
    let router = if family == Family::V4 { "198.18.0.2" } else { "2001:db8:5::2" };
    let router: std::net::IpAddr = router.parse().unwrap();
    // By its own hardware address and untouched hop limit, to the router and beyond it.
    for to in [router, family.outside(2)] {
        let args = ["-n", "-c", "1", "-W", "5", "-t", "9", &to.to_string()];
        lab.shell(lab.router(), "ip route replace 198.18.0.0/24 dev down1");
        let _ = lab.scene.run_in(&container.netns, "ping", args);
        let seen = wire.frame_within(crate::patience(), |frame| {
            frame[6..12] == mac_of(&container)
                && Packet::read(&frame[14..])
                    .is_ok_and(|packet| packet.dst == to && packet.echo_parts().is_some())
        });
        let seen = seen.ok_or(format!("no echo request to {to}: {}", wire.story()))?;
        let packet = Packet::read(&seen[14..])?;
        ensure!(packet.src == container.addr(family), "from {}", packet.src);
        ensure!(packet.ttl == 9, "9 became {}", packet.ttl);
    }
    // Both ways, begun by either.
    let listener = listen(&container.netns, container.addr(family), 80);
    let from = SocketAddr::new(router, 52_000);
    let connected = connect(lab.router(), from, container.at(family, 80));
    let mut near = connected.map_err(|error| format!("connect: {error}"))?;
    let (mut far, client) = accept(&listener)?;
    ensure!(client == from, "{from} is seen as {client}");
    near.write_all(b"?").unwrap();
    far.read_exact(&mut [0]).map_err(|error| format!("read: {error}"))?;
    let listener = listen(lab.router(), router, 8000);
    let connected =
        connect(&container.netns, container.at(family, 0), SocketAddr::new(router, 8000));
    connected.map_err(|error| format!("connect: {error}"))?;
    let (_, client) = accept(&listener)?;
    ensure!(client.ip() == container.addr(family), "seen as {client}");
    Ok(())
}

/// IEEE 802.1D 7.12.6: what is addressed to bridges and links stays on its link.
fn groups_pass_and_what_is_reserved_does_not(lab: &Lab, _: Family) -> Verdict {
    let outer = bridged(lab);
    let container = lab.container_on("seg", "s4", &[]);
    let inner = Wire::on(&container.netns, "eth0", &[]);
    // An EtherType of nobody's: IEEE 802 local experimental.
    let kind = [0x88, 0xb5];
    for (from, to) in [(&outer, &inner), (&inner, &outer)] {
        let mut number = 0;
        let mut passes = |group: [u8; 6]| {
            number += 1;
            let mut body = [number; 64];
            body[..2].copy_from_slice(&from.mac()[4..]);
            from.send_frame(group, kind, &body);
            let wait = std::time::Duration::from_millis(if group[5] > 0x0f { 5000 } else { 200 });
            to.frame_within(wait, |frame| frame[12..14] == kind && frame[14..] == body).is_some()
        };
        for last in [0, 1, 2, 3, 0x0e, 0x0f] {
            ensure!(!passes([1, 0x80, 0xc2, 0, 0, last]), "01:80:c2:00:00:{last:02x} passes");
        }
        for group in [
            [0xff; 6],
            [1, 0, 0x5e, 0, 0, 0xfb],
            [0x33, 0x33, 0, 0, 0, 0xfb],
            [1, 0x80, 0xc2, 0, 0, 0x10],
            // Unknown: to everybody.
            [2, 0, 0, 0, 0, 0x77],
        ] {
            ensure!(passes(group), "{group:02x?} does not pass");
        }
    }
    Ok(())
}
