//! ICMP through a NAT: RFC 5508, and RFC 4787 REQ-12.

use std::net::SocketAddr;
use std::time::Duration;

use crate::errors::{ADMIN, HOST, NET, PORT, TTL, error};
use crate::lab::{Family, Lab, Station};
use crate::mapping::{answered, map};
use crate::packet::{Packet, SYN, Segment};
use crate::{Subject, Verdict, ensure, probes};

probes! {
    Both {
        "I1" ANY one_echo_identifier_for_all_hosts;
        "I1" ANY an_echo_of_many_octets_comes_back_whole;
        "I3" ANY icmp_with_a_wrong_checksum_goes_no_further;
        "I4" ANY an_error_about_a_syn_comes_in;
        "I4" ANY an_error_about_nothing_is_dropped;
        "I4" ANY an_error_that_quotes_eight_octets_is_enough;
        "U12" ANY errors_do_not_end_a_udp_mapping;
        "I1" ANY two_containers_with_one_identifier_get_their_own_answers;
        "I4" ANY an_error_about_a_datagram_comes_in_as_it_is_inside;
        "I4" ANY an_error_about_an_echo_comes_in_as_it_is_inside;
        "I4" ANY an_errors_extension_objects_come_in_unharmed;
    }
    Raw {
        "I3" V4 an_error_with_a_wrong_quoted_checksum_is_dropped;
        "I5" ANY the_insides_error_goes_out_as_it_is_outside;
    }
}

/// An echo request from inside, as the outside hears it.
fn ping(
    inside: &Station,
    outside: &Station,
    family: Family,
    id: u16,
    seq: u16,
) -> Result<Packet, String> {
    let (from, to) = (inside.addr(family), outside.addr(family));
    let data = format!("{from} asks {to} {seq}");
    inside.wire.send(&Packet::echo(from, to, true, id, seq, data.as_bytes()));
    outside.wait("an echo request", |packet| {
        packet.echo_parts().is_some_and(|(_, _, found)| found == data.as_bytes())
    })
}

/// Answers it and waits until the answer is inside as it must be.
fn pong(inside: &Station, outside: &Station, family: Family, request: &Packet, id: u16) -> Verdict {
    let (outer, seq, data) = request.echo_parts().unwrap();
    outside.wire.send(&Packet::echo(request.dst, request.src, false, outer, seq, data));
    let answer = inside.wait("the answer", |packet| {
        packet.echo_parts().is_some_and(|(_, found, same)| (found, same) == (seq, data))
    })?;
    ensure!(answer.echo_parts().unwrap().0 == id, "{answer:?} is not {id}'s");
    ensure!(answer.src == outside.addr(family), "it comes from {}", answer.src);
    Ok(())
}

fn one_echo_identifier_for_all_hosts(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let mut seen = Vec::new();
    for outside in [lab.outsider(66), lab.outsider(67)] {
        for seq in [1, 2, 70] {
            let request = ping(&inside, &outside, family, 0x1234, seq)?;
            let (id, found, _) = request.echo_parts().unwrap();
            ensure!(found == seq, "sequence number {seq} became {found}");
            ensure!(request.src == lab.external(family), "from {}", request.src);
            seen.push(id);
            pong(&inside, &outside, family, &request, 0x1234)?;
        }
    }
    seen.dedup();
    ensure!(seen.len() == 1, "several identifiers: {seen:?}");
    Ok(())
}

fn two_containers_with_one_identifier_get_their_own_answers(lab: &Lab, family: Family) -> Verdict {
    let first = lab.insider(&format!("a{family:?}"))?;
    let second = lab.insider(&format!("b{family:?}"))?;
    let outside = lab.outsider(66);
    let one = ping(&first, &outside, family, 77, 1)?;
    let two = ping(&second, &outside, family, 77, 1)
        .map_err(|error| format!("the second: {error} {}", second.wire.story()))?;
    let (id, other) = (one.echo_parts().unwrap().0, two.echo_parts().unwrap().0);
    ensure!(id != other, "both are {id}");
    pong(&second, &outside, family, &two, 77)?;
    pong(&first, &outside, family, &one, 77)
}

fn an_echo_of_many_octets_comes_back_whole(lab: &Lab, family: Family) -> Verdict {
    let container = lab.container(&format!("c{family:?}"));
    for size in ["0", "1472", "4000", "30000", "65507"] {
        let addr = family.outside(2).to_string();
        let args = ["-n", "-c", "1", "-W", "9", "-s", size, &addr];
        let ended = lab.scene.run_in(&container.netns, "ping", args);
        ensure!(ended.status.success(), "{size} octets: {}", ended.stdout);
    }
    Ok(())
}

/// What came to a station meanwhile, once a datagram has gone there and back.
pub(crate) fn meanwhile(
    lab: &Lab,
    inside: &Station,
    family: Family,
    seen: impl Fn(&Packet) -> bool,
) -> Result<Vec<Packet>, String> {
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 44_444), outside.at(family, 4444));
    let mapped = map(inside, own, &outside, peer)?;
    answered(inside, own, &outside, peer, mapped)?;
    // Time enough for what took another thread's way.
    inside.wire.within(Duration::from_millis(150), |_| false);
    Ok(inside.wire.all(seen))
}

fn icmp_with_a_wrong_checksum_goes_no_further(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let request = ping(&inside, &outside, family, 99, 1)?;
    let (id, seq, data) = request.echo_parts().unwrap();
    let mut answer = Packet::echo(request.dst, request.src, false, id, seq, data);
    answer.payload[2] ^= 0x40;
    outside.wire.send(&answer);
    let (own, peer) = (inside.at(family, 45_000), outside.at(family, 9000));
    map(&inside, own, &outside, peer)?;
    let packet = Packet::udp(own, peer, b"about this");
    inside.wire.send(&packet);
    let seen = outside.wait("a datagram", |p| p.datagram() == Some(b"about this"))?;
    let mut wrong = error(outside.addr(family), HOST, 0, &seen.octets());
    wrong.payload[2] ^= 0x40;
    outside.wire.send(&wrong);
    let came = meanwhile(lab, &inside, family, |p| p.icmp_kind().is_some())?;
    let came: Vec<_> = came.iter().filter(|p| p.echo_parts().is_some() || p.is_error()).collect();
    ensure!(came.is_empty(), "let in: {came:?}");
    // And on the way out.
    let mut request =
        Packet::echo(inside.addr(family), outside.addr(family), true, 99, 9, b"wrongly summed");
    request.payload[2] ^= 0x40;
    inside.wire.send(&request);
    meanwhile(lab, &inside, family, |_| false)?;
    let out = outside.wire.all(|p| p.echo_parts().is_some_and(|(_, seq, _)| seq == 9));
    ensure!(out.is_empty(), "let out, made right: {out:?}");
    ensure!(outside.wire.bad().is_empty(), "let out: {:?}", outside.wire.bad());
    // Once right, it passes.
    let request = ping(&inside, &outside, family, 99, 10)?;
    pong(&inside, &outside, family, &request, 99)
}

/// The error about `sent`, as the inside must see it: from whom, of what kind, quoting what it sent.
pub(crate) fn comes_in(
    inside: &Station,
    from: std::net::IpAddr,
    kind: (u8, u8),
    sent: &Packet,
    quoted_len: usize,
) -> Verdict {
    let quoted = comes_in_anew(inside, from, kind, sent, quoted_len)?;
    // IPv6 has no DF to compare.
    let df = |packet: &Packet| packet.df && packet.src.is_ipv4();
    let header = |packet: &Packet| (packet.tos, packet.id, df(packet));
    ensure!(header(&quoted) == header(sent), "quotes {quoted:?}");
    Ok(())
}

/// The same of an error that comes from the other IP version, which has no place for all that a header says.
pub(crate) fn comes_in_anew(
    inside: &Station,
    from: std::net::IpAddr,
    kind: (u8, u8),
    sent: &Packet,
    quoted_len: usize,
) -> Result<Packet, String> {
    let told = inside.wait(&format!("ICMP {kind:?}"), |packet| {
        packet.is_error() && packet.icmp_kind() == Some(kind)
    })?;
    ensure!(told.src == from, "it comes from {}, not from {from}", told.src);
    let quoted = told.quoted()?;
    ensure!(quoted.src == sent.src && quoted.dst == sent.dst, "quotes {quoted:?}");
    ensure!(quoted.protocol == sent.protocol, "quotes {quoted:?}");
    let len = quoted.payload.len().min(quoted_len).min(sent.payload.len());
    ensure!(quoted.payload.len() >= 8, "quotes {len} octets");
    ensure!(
        quoted.payload[..len] == sent.payload[..len],
        "quotes {:02x?} where {:02x?} was sent",
        &quoted.payload[..len],
        &sent.payload[..len]
    );
    Ok(quoted)
}

fn an_error_about_a_datagram_comes_in_as_it_is_inside(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let (outside, other) = (lab.outsider(66), lab.outsider(67));
    for (n, kind) in [NET, HOST, PORT, ADMIN, TTL].into_iter().enumerate() {
        let data = format!("about datagram {n}");
        let own = inside.at(family, 45_100);
        let mut sent = Packet::udp(own, outside.at(family, 9000), data.as_bytes());
        sent.tos = 0x28;
        if family == Family::V4 {
            (sent.id, sent.df) = (0x1234 + u32::from(kind.v4.1), n % 2 == 0);
        }
        inside.wire.send(&sent);
        let seen = outside.wait("a datagram", |p| p.datagram() == Some(data.as_bytes()))?;
        // Whoever is on the way may say it: RFC 4787 REQ-12a.
        other.wire.send(&error(other.addr(family), kind, 0, &seen.octets()));
        comes_in(&inside, other.addr(family), kind.of(family), &sent, 500)?;
    }
    Ok(())
}

fn an_error_that_quotes_eight_octets_is_enough(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let own = inside.at(family, 45_200);
    let sent = Packet::udp(own, outside.at(family, 9000), b"of which eight octets come back");
    inside.wire.send(&sent);
    let seen = outside.wait("a datagram", |p| p.from().is_some() && p.datagram().is_some())?;
    let octets = seen.octets();
    let quoted = &octets[..family.header_len() + 8];
    outside.wire.send(&error(outside.addr(family), PORT, 0, quoted));
    // Length and checksum are lost with the rest where only a socket is told.
    let known = if lab.subject == Subject::Raw { 8 } else { 4 };
    comes_in(&inside, outside.addr(family), PORT.of(family), &sent, known)
}

fn an_error_about_an_echo_comes_in_as_it_is_inside(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let (outside, other) = (lab.outsider(66), lab.outsider(67));
    for (seq, kind) in (1..).zip([NET, HOST, ADMIN, TTL]) {
        let (from, to) = (inside.addr(family), outside.addr(family));
        let data = format!("{from} asks {to} {seq}");
        let sent = Packet::echo(from, to, true, 321, seq, data.as_bytes());
        let seen = ping(&inside, &outside, family, 321, seq)?;
        other.wire.send(&error(other.addr(family), kind, 0, &seen.octets()));
        comes_in(&inside, other.addr(family), kind.of(family), &sent, 500)?;
    }
    Ok(())
}

fn an_error_about_a_syn_comes_in(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    for (port, kind) in (45_300..).zip([NET, HOST, ADMIN, TTL]) {
        let (own, peer) = (inside.at(family, port), outside.at(family, port));
        let sent = Packet::tcp(own, peer, &Segment::new(SYN, 1000, 0));
        inside.wire.send(&sent);
        let seen = outside.wait("a SYN", |packet| packet.to() == Some(peer))?;
        outside.wire.send(&error(outside.addr(family), kind, 0, &seen.octets()));
        comes_in(&inside, outside.addr(family), kind.of(family), &sent, 8)
            .map_err(|error| format!("{kind:?}: {error}"))?;
    }
    Ok(())
}

fn an_error_about_nothing_is_dropped(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 45_400), outside.at(family, 9000));
    let mapped = map(&inside, own, &outside, peer)?;
    // Another port than the mapping's, and the mapping's towards where it never sent.
    for (from, to) in [
        (SocketAddr::new(mapped.ip(), mapped.port() ^ 1), peer),
        (mapped, outside.at(family, 9999)),
    ] {
        let never = Packet::udp(from, to, b"never sent");
        outside.wire.send(&error(outside.addr(family), PORT, 0, &never.octets()));
    }
    let never = Packet::echo(mapped.ip(), peer.ip(), true, 4711, 1, b"never sent");
    outside.wire.send(&error(outside.addr(family), HOST, 0, &never.octets()));
    let came = meanwhile(lab, &inside, family, Packet::is_error)?;
    // The port's own mapping may be told of what is sent from it, wherever to: it is one socket.
    let wrong = came.iter().find(|told| {
        told.quoted().is_ok_and(|quoted| quoted.to() != Some(outside.at(family, 9999)))
    });
    ensure!(wrong.is_none(), "let in: {wrong:?}");
    Ok(())
}

fn errors_do_not_end_a_udp_mapping(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 45_500), outside.at(family, 9000));
    let mapped = map(&inside, own, &outside, peer)?;
    for kind in [NET, HOST, PORT, ADMIN, TTL] {
        let about = Packet::udp(mapped, peer, b"quoted");
        outside.wire.send(&error(outside.addr(family), kind, 0, &about.octets()));
        // Right behind the error.
        answered(&inside, own, &outside, peer, mapped).map_err(|e| format!("{kind:?}: {e}"))?;
        let again = map(&inside, own, &outside, peer).map_err(|e| format!("{kind:?}: {e}"))?;
        ensure!(again == mapped, "after {kind:?} {mapped} is {again}");
    }
    Ok(())
}

fn an_error_with_a_wrong_quoted_checksum_is_dropped(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 45_600), outside.at(family, 9000));
    let mapped = map(&inside, own, &outside, peer)?;
    let about = Packet::udp(mapped, peer, b"quoted").octets();
    let mut wrong = error(outside.addr(family), HOST, 0, &about);
    // The quoted header's checksum; the message's own is right.
    wrong.payload[8 + 10] ^= 0x11;
    wrong.seal();
    outside.wire.send(&wrong);
    let came = meanwhile(lab, &inside, family, Packet::is_error)?;
    ensure!(came.is_empty(), "let in: {came:?}");
    let right = error(outside.addr(family), HOST, 0, &about);
    outside.wire.send(&right);
    inside.wait("the right error", Packet::is_error)?;
    Ok(())
}

/// RFC 4884: the length of what is quoted stands in the header, and objects behind it.
fn an_errors_extension_objects_come_in_unharmed(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 45_700), outside.at(family, 9000));
    let sent = Packet::udp(own, peer, &[7; 300]);
    inside.wire.send(&sent);
    let seen = outside.wait("a datagram", |packet| packet.datagram() == Some(&[7; 300]))?;
    let mut about = seen.octets();
    about.resize(128, 0);
    // Version 2; an MPLS label stack object (RFC 4950).
    let mut objects = vec![0x20, 0, 0, 0, 0, 8, 1, 1, 0x01, 0x23, 0x45, 0xff];
    let sum = pnet::util::checksum(&objects, 1).to_be_bytes();
    objects[2..4].copy_from_slice(&sum);
    let (kind, code) = TTL.of(family);
    let rest = if family == Family::V4 { [0, 32, 0, 0] } else { [16, 0, 0, 0] };
    let body = [about, objects.clone()].concat();
    outside.wire.send(&Packet::icmp(outside.addr(family), seen.src, kind, code, rest, &body));
    let told = inside.wait("the error", Packet::is_error)?;
    ensure!(told.payload[4..8] == rest, "the length is {:02x?}", &told.payload[4..8]);
    ensure!(told.payload.ends_with(&objects), "objects: {:02x?}", &told.payload[136..]);
    ensure!(told.quoted()?.from() == Some(own), "quotes {:?}", told.quoted());
    Ok(())
}

fn the_insides_error_goes_out_as_it_is_outside(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 45_800), outside.at(family, 9000));
    let mapped = map(&inside, own, &outside, peer)?;
    let sent = Packet::udp(peer, mapped, b"to a closed port");
    outside.wire.send(&sent);
    let came = inside.wait("the datagram", |p| p.datagram() == Some(b"to a closed port"))?;
    inside.wire.send(&error(own.ip(), PORT, 0, &came.octets()));
    let told = outside.wait("the error", Packet::is_error)?;
    ensure!(told.src == lab.external(family), "it comes from {}", told.src);
    ensure!(told.icmp_kind() == Some(PORT.of(family)), "it says {:?}", told.icmp_kind());
    let quoted = told.quoted()?;
    ensure!(quoted.from() == Some(peer) && quoted.to() == Some(mapped), "quotes {quoted:?}");
    ensure!(quoted.payload == sent.payload, "quotes {quoted:02x?} for {sent:02x?}");
    // RFC 7857 8: nor has it refreshed or ended the mapping.
    answered(&inside, own, &outside, peer, mapped)
}
