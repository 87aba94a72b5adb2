//! The raw uplink's station on somebody else's segment: RFC 826, RFC 4861, RFC 5227, RFC 1812.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::errors::{HOST, PORT, TTL};
use crate::icmp::meanwhile;
use crate::lab::{Family, Lab};
use crate::mapping::{answered, map};
use crate::packet::{Packet, SYN, Segment, UDP};
use crate::wire::{Mac, Wire};
use crate::{Verdict, ensure, probes};

probes! {
    Raw {
        "4.6" V4 it_answers_arp_for_its_own_address_alone;
        "4.6" V4 a_probe_for_its_address_is_answered;
        "4.6" V6 it_answers_neighbour_solicitations_of_neighbours_alone;
        "4.6" ANY a_frame_for_another_station_is_left_alone;
        "4.5" ANY a_martian_from_outside_is_not_let_in("--filtering", "eif");
        "4.5" ANY a_packet_for_elsewhere_is_not_forwarded;
        "4.5" V4 a_wrong_header_checksum_is_not_let_in;
        "4.5" ANY a_wrong_transport_checksum_is_not_made_right_inwards;
        "4.5" ANY what_must_never_be_answered_is_not_answered_outside;
        "4.5" ANY a_neighbour_that_does_not_answer_is_unreachable;
        "4.5" ANY the_host_keeps_its_own_traffic;
        "4.5" ANY a_syn_offers_no_more_than_the_links_mtu("--mtu", "9000");
    }
}

/// The segment as the router sees it, and the station's hardware address there.
fn neighbour(lab: &Lab) -> Result<(Wire, Mac), String> {
    let wire = Wire::on(lab.router(), "down0", &[]);
    let router = Family::V4.router();
    let mac = wire.find_gateway(router, lab.external(Family::V4))?;
    Ok((wire, mac))
}

/// ARP: the operation, and who asks for whom as who.
fn arp(wire: &Wire, to: Mac, sender: Ipv4Addr, target: IpAddr) {
    let IpAddr::V4(target) = target else { panic!("ARP is IPv4's") };
    let own = wire.mac();
    let body = [
        &[0, 1, 8, 0, 6, 4, 0, 1][..],
        &own,
        &sender.octets(),
        &[0; 6],
        &target.octets(),
        &[0; 18],
    ]
    .concat();
    wire.send_frame(to, [8, 6], &body);
}

/// Who answers a question for `target`.
fn answerer(wire: &Wire, target: IpAddr) -> Option<Mac> {
    let IpAddr::V4(target) = target else { panic!("ARP is IPv4's") };
    wire.frame_within(Duration::from_millis(400), |frame| {
        frame[12..14] == [8, 6] && frame[20..22] == [0, 2] && frame[28..32] == target.octets()
    })
    .map(|frame| frame[22..28].try_into().unwrap())
}

fn it_answers_arp_for_its_own_address_alone(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider("c4")?;
    let (wire, mac) = neighbour(lab)?;
    let IpAddr::V4(router) = family.router() else { unreachable!() };
    arp(&wire, [0xff; 6], router, lab.external(family));
    ensure!(answerer(&wire, lab.external(family)) == Some(mac), "it does not answer");
    // A unicast question is how an entry is kept.
    arp(&wire, mac, router, lab.external(family));
    ensure!(answerer(&wire, lab.external(family)) == Some(mac), "it does not answer unicast");
    for other in ["198.51.100.10", "10.9.0.1", "10.9.0.2", "203.0.113.66", "0.0.0.0"] {
        let other = other.parse().unwrap();
        arp(&wire, [0xff; 6], router, other);
        let found = answerer(&wire, other);
        ensure!(found.is_none(), "{found:?} answers for {other}");
    }
    let outside = lab.outsider(66);
    map(&inside, inside.at(family, 56_000), &outside, outside.at(family, 9000)).map(drop)
}

/// RFC 5227 2.4: somebody wants the address.
fn a_probe_for_its_address_is_answered(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider("c4")?;
    let (wire, mac) = neighbour(lab)?;
    arp(&wire, [0xff; 6], Ipv4Addr::UNSPECIFIED, lab.external(family));
    ensure!(answerer(&wire, lab.external(family)) == Some(mac), "it does not defend itself");
    // It was not learnt that nobody at all is the prober.
    let outside = lab.outsider(66);
    map(&inside, inside.at(family, 56_100), &outside, outside.at(family, 9000)).map(drop)
}

fn it_answers_neighbour_solicitations_of_neighbours_alone(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider("c6")?;
    let (wire, mac) = neighbour(lab)?;
    let (IpAddr::V6(target), from) = (lab.external(family), family.router()) else {
        unreachable!()
    };
    let solicitation = |target: std::net::Ipv6Addr, ttl| {
        let body = [&target.octets()[..], &[1, 1], &wire.mac()].concat();
        let [.., a, b, c] = target.octets();
        let group =
            std::net::Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
        let mut packet = Packet::icmp(from, group.into(), 135, 0, [0; 4], &body);
        packet.ttl = ttl;
        wire.send_frame([0x33, 0x33, 0xff, a, b, c], [0x86, 0xdd], &packet.octets());
    };
    let answer = || {
        wire.within(Duration::from_millis(500), |packet| {
            packet.icmp_kind() == Some((136, 0)) && packet.payload[8..24] == target.octets()
        })
    };
    solicitation(target, 255);
    let found = answer().ok_or("it does not answer")?;
    ensure!(found.ttl == 255, "hop limit {}", found.ttl);
    ensure!(found.payload.ends_with(&mac), "it tells {:02x?}", found.payload);
    ensure!(found.payload[4] & 0x40 != 0, "not said to be solicited: {:02x?}", found.payload);
    // From beyond a router: RFC 4861 7.1.1.
    solicitation(target, 254);
    ensure!(answer().is_none(), "it answers somebody far away");
    solicitation("2001:db8:7::10".parse().unwrap(), 255);
    let other =
        wire.within(Duration::from_millis(400), |packet| packet.icmp_kind() == Some((136, 0)));
    ensure!(other.is_none(), "it answers for another: {other:?}");
    let outside = lab.outsider(66);
    map(&inside, inside.at(family, 56_200), &outside, outside.at(family, 9000)).map(drop)
}

fn a_frame_for_another_station_is_left_alone(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 56_300), outside.at(family, 9000));
    let mapped = map(&inside, own, &outside, peer)?;
    let (wire, _) = neighbour(lab)?;
    let kind = if family == Family::V4 { [8, 0] } else { [0x86, 0xdd] };
    let datagram = Packet::udp(peer, mapped, b"for another station").octets();
    wire.send_frame([2, 0, 0, 0, 0, 0x99], kind, &datagram);
    wire.send_frame([0xff; 6], kind, &datagram);
    let came = meanwhile(lab, &inside, family, |p| p.datagram() == Some(b"for another station"))?;
    ensure!(came.is_empty(), "let in: {came:?}");
    Ok(())
}

/// Whom no other filter stops.
fn a_martian_from_outside_is_not_let_in(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 56_400), outside.at(family, 9000));
    let mapped = map(&inside, own, &outside, peer)?;
    let (wire, _) = neighbour(lab)?;
    let senders = match family {
        Family::V4 => ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "10.9.0.77"],
        Family::V6 => ["::", "::1", "ff02::1", "fe80::77", "fd00:9::77"],
    };
    for sender in senders {
        let from = SocketAddr::new(sender.parse().unwrap(), 9000);
        wire.send(&Packet::udp(from, mapped, b"from a martian"));
        wire.send(&Packet::udp(from, own, b"from a martian"));
    }
    // Its own address as sender: RFC 1812 5.3.8.
    wire.send(&Packet::udp(SocketAddr::new(mapped.ip(), 9000), mapped, b"from a martian"));
    let came = meanwhile(lab, &inside, family, |p| p.datagram() == Some(b"from a martian"))?;
    ensure!(came.is_empty(), "let in: {came:?}");
    answered(&inside, own, &outside, peer, mapped)?;
    let anybody = lab.outsider(67);
    answered(&inside, own, &anybody, anybody.at(family, 1), mapped)
}

/// Neither to a container's own address nor back out.
fn a_packet_for_elsewhere_is_not_forwarded(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let (wire, _) = neighbour(lab)?;
    let outside = lab.outsider(66);
    let from = outside.at(family, 9000);
    wire.send(&Packet::udp(from, inside.at(family, 56_500), b"for elsewhere"));
    wire.send(&Packet::udp(from, SocketAddr::new(family.outside(67), 9), b"for elsewhere"));
    wire.send(&Packet::tcp(from, inside.at(family, 80), &Segment::new(SYN, 1, 0)));
    let came = meanwhile(lab, &inside, family, |packet| {
        packet.datagram() == Some(b"for elsewhere") || packet.segment().is_some()
    })?;
    ensure!(came.is_empty(), "let in: {came:?}");
    let came = wire.all(|packet| packet.datagram() == Some(b"for elsewhere"));
    ensure!(came.is_empty(), "sent back: {came:?}");
    Ok(())
}

fn a_wrong_header_checksum_is_not_let_in(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider("c4")?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 56_600), outside.at(family, 9000));
    let mapped = map(&inside, own, &outside, peer)?;
    let (wire, _) = neighbour(lab)?;
    let mut octets = Packet::udp(peer, mapped, b"a bent header").octets();
    octets[10] ^= 0x20;
    wire.send_octets(&octets);
    let came = meanwhile(lab, &inside, family, |p| p.datagram() == Some(b"a bent header"))?;
    ensure!(came.is_empty() && inside.wire.bad().is_empty(), "let in: {came:?}");
    answered(&inside, own, &outside, peer, mapped)
}

fn a_wrong_transport_checksum_is_not_made_right_inwards(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 56_700), outside.at(family, 9000));
    let mapped = map(&inside, own, &outside, peer)?;
    let mut bent = Packet::udp(peer, mapped, b"a bent datagram");
    bent.payload[6] ^= 0x20;
    outside.wire.send(&bent);
    let came = meanwhile(lab, &inside, family, |p| p.datagram() == Some(b"a bent datagram"))?;
    ensure!(came.is_empty(), "made right: {came:?}");
    answered(&inside, own, &outside, peer, mapped)
}

fn what_must_never_be_answered_is_not_answered_outside(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 56_800), outside.at(family, 9000));
    let mapped = map(&inside, own, &outside, peer)?;
    let (wire, _) = neighbour(lab)?;
    let mut bad = Vec::new();
    let about = Packet::udp(mapped, peer, b"quoted").octets();
    let mut told = crate::errors::error(peer.ip(), PORT, 0, &about);
    told.ttl = 1;
    bad.push(told);
    let mut piece = Packet::new(peer.ip(), mapped.ip(), UDP, vec![0; 64]);
    (piece.ttl, piece.offset, piece.id) = (1, 1480, 77);
    bad.push(piece);
    let group = match family {
        Family::V4 => "224.0.0.251",
        Family::V6 => "ff02::fb",
    };
    bad.push(Packet::udp(peer, SocketAddr::new(group.parse().unwrap(), 9), b"to all"));
    wire.forget();
    for packet in &bad {
        wire.send(packet);
    }
    let kind = if family == Family::V4 { [8, 0] } else { [0x86, 0xdd] };
    let mut good = Packet::udp(peer, mapped, b"about what an error would be");
    good.ttl = 1;
    wire.send_frame([0xff; 6], kind, &good.octets());
    meanwhile(lab, &inside, family, |_| false)?;
    let came = wire.all(Packet::is_error);
    ensure!(came.is_empty(), "answered: {came:?}");
    wire.send(&good);
    let told = wire.wait("the one due answer", Packet::is_error)?;
    ensure!(told.icmp_kind() == Some(TTL.of(family)), "told {told:?}");
    Ok(())
}

/// After three seconds and as many questions: RFC 1812 4.3.3.1, RFC 4861 7.2.2.
fn a_neighbour_that_does_not_answer_is_unreachable(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let to = match family {
        Family::V4 => "198.51.100.99:9",
        Family::V6 => "[2001:db8:7::99]:9",
    };
    let own = inside.at(family, 56_900);
    inside.says(own, to.parse().unwrap(), b"to nobody");
    let told = inside.wait("an error", Packet::is_error)?;
    ensure!(told.icmp_kind() == Some(HOST.of(family)), "told {told:?}");
    ensure!(told.quoted()?.from() == Some(own), "quotes {:?}", told.quoted());
    Ok(())
}

fn the_host_keeps_its_own_traffic(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 57_000), outside.at(family, 9000));
    let mapped = map(&inside, own, &outside, peer)?;
    // The very port, by the host's own stack and address.
    let host = crate::lab::udp(&lab.scene.host, family.host(), mapped.port());
    host.send_to(b"from the host", peer).map_err(|error| format!("host: {error}"))?;
    let (from, _) = outside.hears(b"from the host")?;
    ensure!(from == SocketAddr::new(family.host(), mapped.port()), "seen as {from}");
    outside.says(peer, from, b"to the host");
    let mut buffer = [0; 100];
    let (len, _) = host.recv_from(&mut buffer).map_err(|error| format!("host: {error}"))?;
    ensure!(buffer[..len] == *b"to the host", "{:?} came", &buffer[..len]);
    answered(&inside, own, &outside, peer, mapped)?;
    let came = inside.wire.all(|packet| packet.datagram() == Some(b"to the host"));
    ensure!(came.is_empty(), "the container hears it: {came:?}");
    Ok(())
}

/// RFC 9293 3.7.1, with a container that could take more.
fn a_syn_offers_no_more_than_the_links_mtu(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 57_100), outside.at(family, 80));
    let mut syn = Segment::new(SYN, 1, 0);
    syn.options = vec![2, 4, 0x22, 0xd8, 1, 1, 1, 0];
    inside.wire.send(&Packet::tcp(own, peer, &syn));
    let seen = outside.wait("the SYN", |packet| packet.to() == Some(peer))?;
    let segment = seen.segment().unwrap();
    let offered = u16::from_be_bytes([segment.options[2], segment.options[3]]);
    let most = 1500 - family.header_len() - 20;
    ensure!(usize::from(offered) == most, "it offers {offered}, not {most}");
    Ok(())
}
