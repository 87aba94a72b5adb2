//! Addresses of another kind: an IPv6 client of a container without IPv6 (RFC 7915, NAT46), and one prefix
//! of IPv6 for another without state (RFC 6296).
//!
//! In NAT46 each error is told in its hearer's own version. What RFC 6296 asks for is that no octet behind
//! the addresses changes, checksums least of all.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};

use netns::link;

use crate::errors::{ADMIN, HOST, PORT, TOO_BIG, TTL, error, mtu_of};
use crate::icmp::{comes_in, comes_in_anew, meanwhile};
use crate::lab::{Container, Family, Lab, Station, accept, connect, listen, udp};
use crate::packet::{ACK, Packet, SYN, Segment};
use crate::{Verdict, ensure, probes};

probes! {
    RawAlone {
        "7915" V6 an_ipv6_client_is_served_by_a_container_without_ipv6("--nat46", "on");
        "7915" V6 each_is_told_errors_in_its_own_version("--nat46", "on");
        "7915" V6 too_long_is_told_by_what_the_headers_differ("--nat46", "on");
        "7915" V6 hop_limit_traffic_class_and_checksum_cross("--nat46", "on");
        "6296" V6 a_prefix_stands_for_a_prefix_and_no_other_octet_changes(
            "--prefix6", "fd00:9::/64=2001:db8:66::/64"
        );
        "6296" V6 an_error_about_a_prefixed_packet_quotes_what_was_sent(
            "--prefix6", "fd00:9::/64=2001:db8:66::/64"
        );
        "6296" V6 two_inside_meet_by_their_outside_prefix(
            "--prefix6", "fd00:9::/64=2001:db8:66::/64"
        );
    }
}

/// A container on a network without IPv6, with port 80 behind the station's 8080.
fn without_ipv6(lab: &Lab) -> Container {
    lab.network("four", &["--subnet", "10.8.0.0/24", "--uplink", "raw:up0"]);
    lab.container_on("four", "p4", &["-p", "8080:80/tcp", "-p", "8080:80/udp"])
}

/// Whether it is one of those that IPv6 clients are shown with: RFC 7335.
fn stands_for_a_client(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V4(addr) if addr.octets()[..3] == [192, 0, 0])
}

fn an_ipv6_client_is_served_by_a_container_without_ipv6(lab: &Lab, family: Family) -> Verdict {
    let container = without_ipv6(lab);
    let any = container.v4;
    let (listener, server) = (listen(&container.netns, any, 80), udp(&container.netns, any, 80));
    let to = SocketAddr::new(lab.external(family), 8080);
    let mut shown = Vec::new();
    for client in [2, 3] {
        let from = SocketAddr::new(family.outside(client), 52_000);
        let mut near = connect(&lab.outside, from, to).map_err(|e| format!("{from}: {e}"))?;
        let (mut far, peer) = accept(&listener)?;
        ensure!(stands_for_a_client(peer.ip()), "{from} is shown as {peer}");
        shown.push(peer);
        // Both ways, more than a packet, so that lengths and the largest segment are right.
        let data: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        for outwards in [false, true] {
            let (writer, reader) =
                if outwards { (&mut far, &mut near) } else { (&mut near, &mut far) };
            std::thread::scope(|scope| {
                let sending = scope.spawn(|| writer.write_all(&data));
                let mut came = vec![0; data.len()];
                reader.read_exact(&mut came).map_err(|error| format!("read: {error}"))?;
                sending.join().unwrap().map_err(|error| format!("write: {error}"))?;
                ensure!(came == data, "other octets came (outwards: {outwards})");
                Ok(())
            })?;
        }
        let socket = udp(&lab.outside, family.outside(client), 52_100);
        let mut buffer = vec![0; 70_000];
        // Within a packet of either, and in several.
        for size in [0, 1, 1452, 5000] {
            let data = vec![client; size];
            socket.send_to(&data, to).map_err(|error| format!("send: {error}"))?;
            let came = server.recv_from(&mut buffer);
            let (len, peer) = came.map_err(|error| format!("{size} octets in: {error}"))?;
            ensure!(buffer[..len] == data, "{len} octets came in of {size}");
            ensure!(stands_for_a_client(peer.ip()), "shown as {peer}");
            server.send_to(&data, peer).map_err(|error| format!("answer: {error}"))?;
            let came = socket.recv_from(&mut buffer);
            let (len, peer) = came.map_err(|error| format!("{size} octets out: {error}"))?;
            ensure!(buffer[..len] == data, "{len} octets came out of {size}");
            ensure!(peer == to, "the answer comes from {peer}");
        }
    }
    ensure!(shown[0] != shown[1], "two clients are one: {shown:?}");
    // The station answers for itself in either family as before.
    let ping = lab.scene.run_in(
        &lab.outside,
        "ping",
        ["-n", "-c", "1", "-W", "5", &lab.external(family).to_string()],
    );
    ensure!(ping.status.success(), "no echo of the station's: {}", ping.stdout);
    Ok(())
}

/// A question of the outside's as the container has it, and both as they are sent.
struct Asked {
    inside: Station,
    outside: Station,
    question: Packet,
    came: Packet,
}

fn asked(lab: &Lab, family: Family) -> Result<Asked, String> {
    let inside = lab.by_hand(&without_ipv6(lab))?;
    let outside = lab.outsider(66);
    let to = SocketAddr::new(lab.external(family), 8080);
    let question = Packet::udp(outside.at(family, 9000), to, b"question");
    outside.wire.send(&question);
    let came = inside.wait("the question", |packet| packet.datagram() == Some(b"question"))?;
    ensure!(came.to() == Some(inside.at(Family::V4, 80)), "to {:?}", came.to());
    ensure!(stands_for_a_client(came.src), "shown as {}", came.src);
    Ok(Asked { inside, outside, question, came })
}

impl Asked {
    /// The container's answer and how it is seen outside.
    fn answer(&self, data: &[u8]) -> Result<(Packet, Packet), String> {
        let (from, to) = (self.came.to().unwrap(), self.came.from().unwrap());
        let answer = Packet::udp(from, to, data);
        self.inside.wire.send(&answer);
        let seen = self.outside.wait("the answer", |packet| packet.datagram() == Some(data))?;
        ensure!(seen.from() == self.question.to(), "from {:?}", seen.from());
        ensure!(seen.to() == self.question.from(), "to {:?}", seen.to());
        Ok((answer, seen))
    }
}

/// RFC 7915 4.2 and 5.2, the quoted packet included: 4.3, 5.3.
fn each_is_told_errors_in_its_own_version(lab: &Lab, family: Family) -> Verdict {
    let asked = asked(lab, family)?;
    let Asked { inside, outside, question, came } = &asked;
    for kind in [HOST, PORT, ADMIN, TTL] {
        inside.wire.send(&error(came.dst, kind, 0, &came.octets()));
        let told = outside.wait("the container's error", Packet::is_error)?;
        // No host is no route there: RFC 7915 4.2.
        let due = if kind.v4 == HOST.v4 { (1, 0) } else { kind.v6 };
        ensure!(told.icmp_kind() == Some(due), "{:?} became {:?}", kind.v4, told.icmp_kind());
        ensure!(told.src == question.dst, "told by {}", told.src);
        let quoted = told.quoted()?;
        ensure!(quoted.from() == question.from(), "quotes {quoted:?}");
        ensure!(quoted.to() == question.to(), "quotes {quoted:?}");
        ensure!(quoted.datagram() == Some(b"question"), "quotes {quoted:?}");
    }
    let (answer, seen) = asked.answer(b"answer")?;
    for kind in [HOST, PORT, ADMIN, TTL] {
        outside.wire.send(&error(seen.dst, kind, 0, &seen.octets()));
        // It is the host that is not to be spoken to there: RFC 7915 5.2.
        let due = if kind.v4 == ADMIN.v4 { (3, 10) } else { kind.v4 };
        comes_in_anew(inside, answer.dst, due, &answer, 6)
            .map_err(|error| format!("{:?}: {error}", kind.v6))?;
    }
    // None of it has ended what there was.
    asked.answer(b"another answer").map(drop)
}

fn too_long_is_told_by_what_the_headers_differ(lab: &Lab, family: Family) -> Verdict {
    let asked = asked(lab, family)?;
    let Asked { inside, outside, question, came } = &asked;
    // What a link towards the client carries is twenty octets less for the container.
    let (answer, seen) = asked.answer(&[7; 1400])?;
    outside.wire.send(&error(seen.dst, TOO_BIG, 1400, &seen.octets()));
    let told = inside.wait("a word about it", Packet::is_error)?;
    ensure!(told.icmp_kind() == Some(TOO_BIG.v4), "told {told:?}");
    ensure!(mtu_of(&told) == 1380, "told of {}", mtu_of(&told));
    ensure!(told.quoted()?.from() == answer.from(), "quotes {:?}", told.quoted());
    // And what one behind the container carries is twenty more for the client.
    inside.wire.send(&error(came.dst, TOO_BIG, 1340, &came.octets()));
    let told = outside.wait("a word about it", Packet::is_error)?;
    ensure!(told.icmp_kind() == Some(TOO_BIG.v6), "told {told:?}");
    ensure!(mtu_of(&told) == 1360, "told of {}", mtu_of(&told));
    ensure!(told.quoted()?.from() == question.from(), "quotes {:?}", told.quoted());
    // Too long for the segment itself, once it is IPv6.
    let mut long = Packet::udp(came.to().unwrap(), came.from().unwrap(), &[8; 1472]);
    long.df = true;
    inside.wire.send(&long);
    let told = inside.wait("a word about it", Packet::is_error)?;
    ensure!(told.icmp_kind() == Some(TOO_BIG.v4), "told {told:?}");
    ensure!(mtu_of(&told) == 1480, "told of {}", mtu_of(&told));
    asked.answer(&[9; 1452]).map(drop)
}

fn hop_limit_traffic_class_and_checksum_cross(lab: &Lab, family: Family) -> Verdict {
    let asked = asked(lab, family)?;
    let Asked { inside, outside, question, came } = &asked;
    // The router, and the station.
    ensure!(came.ttl == question.ttl - 2, "{} became {}", question.ttl, came.ttl);
    for tos in [0xb8, 0x03] {
        let data = format!("with {tos:#x}");
        let mut packet =
            Packet::udp(question.from().unwrap(), question.to().unwrap(), data.as_bytes());
        packet.tos = tos;
        outside.wire.send(&packet);
        let seen = inside.wait(&data, |packet| packet.datagram() == Some(data.as_bytes()))?;
        ensure!(seen.tos == tos, "{tos:#x} became {:#x}", seen.tos);
        let mut back = Packet::udp(came.to().unwrap(), came.from().unwrap(), data.as_bytes());
        (back.tos, back.ttl) = (tos, 40);
        // IPv4 may leave a checksum out that IPv6 may not: RFC 7915 4.5.
        back.payload[6..8].fill(0);
        inside.wire.send(&back);
        let seen = outside.wait(&data, |packet| packet.datagram() == Some(data.as_bytes()))?;
        ensure!(seen.tos == tos, "{tos:#x} became {:#x}", seen.tos);
        ensure!(seen.ttl == 38, "40 became {}", seen.ttl);
    }
    // Its time over, it is the station that says so, by IPv6.
    let mut late = question.clone();
    late.ttl = 2;
    outside.wire.send(&late);
    let told = outside.wait("an error", Packet::is_error)?;
    ensure!(told.icmp_kind() == Some(TTL.v6) && told.src == question.dst, "told {told:?}");
    Ok(())
}

/// The router knows the outside prefix by the station.
fn announce(lab: &Lab) {
    let via = Some(lab.external(Family::V6));
    let prefix = "2001:db8:66::/64".parse().unwrap();
    lab.router().enter(|| link::add_route_through(prefix, via, "down0")).unwrap();
}

fn is_shown(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(addr) if addr.segments()[..4] == [0x2001, 0xdb8, 0x66, 0])
}

/// Sends it from inside; as it is outside, with every other octet as it was.
fn crosses(inside: &Station, outside: &Station, packet: &Packet) -> Result<Packet, String> {
    inside.wire.send(packet);
    let what = format!("protocol {}", packet.protocol);
    let seen = outside.wait(&what, |seen| seen.payload == packet.payload)?;
    ensure!(is_shown(seen.src), "from {}", seen.src);
    ensure!(seen.ttl == packet.ttl - 2, "{} became {}", packet.ttl, seen.ttl);
    Ok(seen)
}

/// Of every protocol, and begun by either side.
fn a_prefix_stands_for_a_prefix_and_no_other_octet_changes(lab: &Lab, family: Family) -> Verdict {
    announce(lab);
    let inside = lab.insider("c6")?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 46_000), outside.at(family, 9000));
    let packets = [
        Packet::udp(own, peer, b"a datagram"),
        Packet::tcp(own, peer, &Segment::new(SYN, 7, 0)),
        // Of no connection anybody knows.
        Packet::tcp(own, peer, &Segment::new(ACK, 7, 8).data(b"from the middle")),
        Packet::echo(own.ip(), peer.ip(), true, 66, 1, b"a question"),
        Packet::new(own.ip(), peer.ip(), 253, b"of no known protocol".to_vec()),
    ];
    let mut shown = Vec::new();
    for packet in &packets {
        shown.push(crosses(&inside, &outside, packet)?.src);
    }
    shown.dedup();
    ensure!(shown.len() == 1, "several outside addresses of {own}: {shown:?}");
    // In pieces, of which the later have no ports.
    let whole = Packet::udp(own, peer, &[6; 3000]);
    for piece in whole.pieces(1400, 5).iter().rev() {
        inside.wire.send(piece);
    }
    let first = outside.wait("the first piece", |p| p.more && p.offset == 0)?;
    ensure!(first.src == shown[0], "pieces from {}", first.src);
    for at in [1400, 2800] {
        outside.wait("a later piece", |p| p.offset == at && p.src == shown[0])?;
    }
    // By who was never spoken to.
    let stranger = lab.outsider(67);
    let (from, to) = (stranger.at(family, 77), SocketAddr::new(shown[0], 46_001));
    for packet in [
        Packet::udp(from, to, b"unasked"),
        Packet::tcp(from, to, &Segment::new(SYN, 9, 0)),
        Packet::tcp(from, to, &Segment::new(ACK, 9, 9).data(b"from the middle")),
        Packet::echo(from.ip(), to.ip(), true, 67, 1, b"unasked"),
        Packet::new(from.ip(), to.ip(), 253, b"unasked of no known protocol".to_vec()),
    ] {
        stranger.wire.send(&packet);
        let came = inside.wait("what nobody asked for", |p| p.payload == packet.payload)?;
        ensure!(came.dst == own.ip() && came.src == from.ip(), "{came:?}");
    }
    ensure!(inside.wire.bad().is_empty(), "unreadable: {:?}", inside.wire.bad());
    ensure!(outside.wire.bad().is_empty(), "unreadable: {:?}", outside.wire.bad());
    // Another container has another.
    let second = lab.insider("d6")?;
    let other = crosses(&second, &outside, &Packet::udp(second.at(family, 46_000), peer, b"too"))?;
    ensure!(other.src != shown[0], "two containers are {}", other.src);
    Ok(())
}

fn an_error_about_a_prefixed_packet_quotes_what_was_sent(lab: &Lab, family: Family) -> Verdict {
    announce(lab);
    let inside = lab.insider("c6")?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 46_100), outside.at(family, 9000));
    let sent = Packet::udp(own, peer, b"about which there is an error");
    let seen = crosses(&inside, &outside, &sent)?;
    for kind in [HOST, PORT, TTL] {
        outside.wire.send(&error(peer.ip(), kind, 0, &seen.octets()));
        comes_in(&inside, peer.ip(), kind.v6, &sent, 500)?;
    }
    // The router's own word about a narrow link.
    lab.set_far_mtu(1400);
    let long = Packet::udp(own, peer, &[6; 1440]);
    inside.wire.send(&long);
    comes_in(&inside, family.router(), TOO_BIG.v6, &long, 500)?;
    lab.set_far_mtu(1500);
    let question = Packet::udp(peer, SocketAddr::new(seen.src, 1), b"to a closed port");
    outside.wire.send(&question);
    let came = inside.wait("it", |p| p.datagram() == Some(b"to a closed port"))?;
    inside.wire.send(&error(own.ip(), PORT, 0, &came.octets()));
    let told = outside.wait("the error", Packet::is_error)?;
    ensure!(told.src == seen.src, "told by {}", told.src);
    let quoted = told.quoted()?;
    ensure!(quoted.dst == seen.src && quoted.payload == question.payload, "quotes {quoted:?}");
    // One that has come to its end here is told of by the station.
    let mut late = question;
    late.ttl = 2;
    outside.wire.send(&late);
    let told = outside.wait("an error", Packet::is_error)?;
    ensure!(told.icmp_kind() == Some(TTL.v6), "told {told:?}");
    ensure!(told.quoted()?.dst == seen.src, "quotes {:?}", told.quoted());
    Ok(())
}

/// RFC 6296 2.4 and 4: hairpinning.
fn two_inside_meet_by_their_outside_prefix(lab: &Lab, family: Family) -> Verdict {
    announce(lab);
    let (first, second) = (lab.insider("a6")?, lab.insider("b6")?);
    let outside = lab.outsider(66);
    let peer = outside.at(family, 9000);
    let port = 46_200;
    let mut shown = Vec::new();
    for station in [&first, &second] {
        let own = station.at(family, port);
        let packet = Packet::udp(own, peer, own.to_string().as_bytes());
        shown.push(SocketAddr::new(crosses(station, &outside, &packet)?.src, port));
    }
    first.says(first.at(family, port), shown[1], b"to the second");
    let (from, to) = second.hears(b"to the second")?;
    ensure!((from, to) == (shown[0], second.at(family, port)), "from {from} to {to}");
    second.says(second.at(family, port), shown[0], b"to the first");
    let (from, to) = first.hears(b"to the first")?;
    ensure!((from, to) == (shown[1], first.at(family, port)), "from {from} to {to}");
    let came = meanwhile(lab, &first, family, Packet::is_error)?;
    ensure!(came.is_empty(), "told {came:?}");
    Ok(())
}
