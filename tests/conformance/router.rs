//! The container's gateway as a router: RFC 792, RFC 1812, RFC 4443, RFC 8200.

use std::net::{IpAddr, SocketAddr};

use crate::errors::{PORT, TTL, error};
use crate::icmp::meanwhile;
use crate::lab::{Family, Lab, Station};
use crate::packet::{Packet, RST, SYN, Segment, TCP, UDP};
use crate::wire::Wire;
use crate::{Verdict, ensure, probes};

probes! {
    Both {
        "4.5" ANY a_hop_takes_one_from_the_time_to_live;
        "4.5" ANY a_packet_whose_time_is_over_is_told_of_and_goes_no_further;
        "4.5" ANY what_must_never_be_answered_is_not;
        "4.5" ANY a_martians_packet_goes_no_further;
        "4.5" V4 a_wrong_header_checksum_goes_no_further;
        "4.5" ANY a_wrong_transport_checksum_is_not_made_right;
        "4.5" ANY a_length_that_lies_goes_no_further;
        "4.5" V4 a_source_route_is_not_followed;
        "4.5" V6 a_routing_header_is_not_followed;
        "4.5" V6 a_datagram_without_a_checksum_is_dropped;
        "4.5" V4 a_datagram_without_a_checksum_passes_both_ways;
        "4.5" ANY the_type_of_service_passes_both_ways;
        "4.5" ANY options_and_extensions_are_no_hindrance;
        "4.5" ANY errors_are_limited_in_number;
        "PRODUCT 14" ANY a_traceroute_shows_each_hop;
        "4.5" ANY the_gateway_answers_for_itself_alone;
        "4.5" ANY a_neighbours_address_is_not_ones_own;
    }
    Raw {
        "4.5" ANY a_hop_takes_one_on_the_way_in;
        "4.5" V4 the_checksum_left_out_stays_out;
    }
}

/// The gateway's own address inside.
fn gateway(lab: &Lab, family: Family) -> IpAddr {
    let v6 = if lab.subject == crate::Subject::Slirp { "fd00::2" } else { "fd00:9::1" };
    match family {
        Family::V6 => v6.parse().unwrap(),
        Family::V4 if lab.subject == crate::Subject::Slirp => "10.0.2.2".parse().unwrap(),
        Family::V4 => "10.9.0.1".parse().unwrap(),
    }
}

fn a_hop_takes_one_from_the_time_to_live(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    for ttl in [3, 10, 255] {
        let data = format!("sent with {ttl}");
        let (own, peer) = (inside.at(family, 47_000), outside.at(family, 9000));
        let mut packet = Packet::udp(own, peer, data.as_bytes());
        packet.ttl = ttl;
        inside.wire.send(&packet);
        let seen = outside.wait(&data, |packet| packet.datagram() == Some(data.as_bytes()))?;
        // One hop is the router's.
        ensure!(seen.ttl == ttl - 2, "{ttl} became {}", seen.ttl);
    }
    Ok(())
}

fn a_packet_whose_time_is_over_is_told_of_and_goes_no_further(
    lab: &Lab,
    family: Family,
) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 47_100), outside.at(family, 9000));
    let all = [
        Packet::udp(own, peer, b"too late"),
        Packet::tcp(own, peer, &Segment::new(SYN, 1, 0)),
        Packet::echo(own.ip(), peer.ip(), true, 5, 6, b"too late"),
    ];
    for mut packet in all {
        for (ttl, from) in
            [(0, gateway(lab, family)), (1, gateway(lab, family)), (2, family.router())]
        {
            if ttl == 2 && packet.protocol == TCP {
                // Asked for by the traceroute below.
                continue;
            }
            packet.ttl = ttl;
            inside.wire.send(&packet);
            let told = inside.wait(&format!("an error for ttl {ttl}"), Packet::is_error)?;
            ensure!(told.icmp_kind() == Some(TTL.of(family)), "ttl {ttl}: told {told:?}");
            ensure!(told.src == from, "ttl {ttl}: told by {}, not {from}", told.src);
            let quoted = told.quoted()?;
            ensure!(quoted.src == own.ip() && quoted.dst == peer.ip(), "quotes {quoted:?}");
            // The router's word comes by a socket's queue or on the wire: `icmp.rs` asks what of it.
            let len = if ttl == 2 { 4 } else { quoted.payload.len().min(packet.payload.len()) };
            let same = quoted.payload.get(..len) == packet.payload.get(..len);
            ensure!(same && quoted.payload.len() >= 8, "quotes {quoted:?} of {packet:?}");
            if ttl == 1 {
                ensure!(quoted.ttl == 1, "quotes a ttl of {}", quoted.ttl);
                // RFC 1812 4.3.2.5: precedence of internetwork control.
                ensure!(family == Family::V6 || told.tos == 0xc0, "tos {:#x}", told.tos);
            }
        }
    }
    let came = outside.wire.all(|packet| packet.dst == peer.ip());
    ensure!(came.is_empty(), "went on: {came:?}");
    Ok(())
}

/// All of these would have to be answered with "time exceeded", were they anything else: RFC 1812
/// 4.3.2.7, RFC 4443 2.4 e.
fn what_must_never_be_answered_is_not(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let own = inside.at(family, 47_200);
    let peer = SocketAddr::new(family.outside(66), 9000);
    let mut good = Packet::udp(own, peer, b"about what an error would be");
    good.ttl = 1;
    let mut bad = Vec::new();
    // ICMP errors, and pieces that are not the first.
    let mut told = error(own.ip(), PORT, 0, &Packet::udp(peer, own, b"x").octets());
    told.ttl = 1;
    bad.push(told);
    let mut piece = Packet::new(own.ip(), peer.ip(), UDP, vec![0; 64]);
    (piece.ttl, piece.offset, piece.id) = (1, 1480, 77);
    bad.push(piece);
    // Senders nobody could answer.
    let senders = match family {
        Family::V4 => ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"],
        Family::V6 => ["::", "::1", "ff02::1", "ff0e::1"],
    };
    for sender in senders {
        let from = SocketAddr::new(sender.parse().unwrap(), 47_200);
        let mut packet = Packet::udp(from, peer, b"from nobody");
        packet.ttl = 1;
        bad.push(packet);
    }
    // Groups, and everybody.
    let groups: &[&str] = match family {
        Family::V4 => &["224.0.0.251", "239.1.1.1", "255.255.255.255", "10.9.0.255"],
        Family::V6 => &["ff02::fb", "ff0e::1"],
    };
    for group in groups {
        let mut packet = Packet::udp(own, SocketAddr::new(group.parse().unwrap(), 9), b"to all");
        packet.ttl = 1;
        bad.push(packet);
    }
    inside.wire.forget();
    for packet in &bad {
        inside.wire.send(packet);
    }
    // To everybody's station, though to one address.
    let kind = if family == Family::V4 { [8, 0] } else { [0x86, 0xdd] };
    inside.wire.send_frame([0xff; 6], kind, &good.octets());
    let came = meanwhile(lab, &inside, family, Packet::is_error)?;
    ensure!(came.is_empty(), "answered: {came:?}");
    inside.wire.send(&good);
    inside.wait("the one due answer", Packet::is_error)?;
    Ok(())
}

fn a_martians_packet_goes_no_further(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let senders = match family {
        Family::V4 => ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "192.0.2.99"],
        Family::V6 => ["::", "::1", "ff02::1", "fe80::99", "2001:db8:99::1"],
    };
    let segment = Wire::on(lab.router(), "down0", &[]);
    for sender in senders {
        let from = SocketAddr::new(sender.parse().unwrap(), 47_300);
        inside.says(from, outside.at(family, 9000), b"from elsewhere");
    }
    meanwhile(lab, &inside, family, |_| false)?;
    for wire in [&segment, &outside.wire] {
        let came = wire.all(|packet| packet.datagram() == Some(b"from elsewhere"));
        ensure!(came.is_empty(), "went on: {came:?}");
    }
    inside.says(inside.at(family, 47_300), outside.at(family, 9000), b"from oneself");
    outside.hears(b"from oneself").map(drop)
}

/// Sends octets as they are; nothing with `data` may come out.
fn goes_no_further(
    lab: &Lab,
    inside: &Station,
    family: Family,
    octets: &[Vec<u8>],
    data: &[u8],
) -> Verdict {
    let outside = lab.outsider(66);
    // As far as the host's own segment: the router there has its own mind about such packets.
    let segment = Wire::on(lab.router(), "down0", &[]);
    for octets in octets {
        inside.wire.send_octets(octets);
    }
    meanwhile(lab, inside, family, |_| false)?;
    let has = |packet: &Packet| packet.payload.windows(data.len()).any(|window| window == data);
    let came = segment.all(has);
    ensure!(came.is_empty() && segment.bad().is_empty(), "went on: {came:?} {:?}", segment.bad());
    let came = outside.wire.all(has);
    ensure!(came.is_empty(), "went on: {came:?}");
    ensure!(outside.wire.bad().is_empty(), "went on: {:?}", outside.wire.bad());
    let (own, peer) = (inside.at(family, 47_900), outside.at(family, 9000));
    inside.says(own, peer, data);
    outside.hears(data).map(drop)
}

fn a_wrong_header_checksum_goes_no_further(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let to = SocketAddr::new(family.outside(66), 9000);
    let mut octets = Packet::udp(inside.at(family, 47_400), to, b"a bent header").octets();
    octets[10] ^= 0x20;
    goes_no_further(lab, &inside, family, &[octets], b"a bent header")
}

fn a_wrong_transport_checksum_is_not_made_right(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 47_500), outside.at(family, 9000));
    let mut datagram = Packet::udp(own, peer, b"a bent datagram");
    datagram.payload[6] ^= 0x20;
    let mut syn = Packet::tcp(own, peer, &Segment::new(SYN, 1, 0));
    syn.payload[16] ^= 0x20;
    inside.wire.send(&datagram);
    inside.wire.send(&syn);
    // A datagram of a mapping that is there takes another way than the first.
    crate::mapping::map(&inside, own, &outside, peer)?;
    inside.wire.send(&datagram);
    meanwhile(lab, &inside, family, |_| false)?;
    let came = outside
        .wire
        .all(|packet| packet.segment().is_some() || packet.datagram() == Some(b"a bent datagram"));
    ensure!(came.is_empty(), "made right: {came:?}");
    let bad = outside.wire.bad();
    ensure!(!bad.iter().any(|packet| packet.contains("10.9.0.")), "went out as it was: {bad:?}");
    Ok(())
}

fn a_length_that_lies_goes_no_further(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let to = SocketAddr::new(family.outside(66), 9000);
    let packet = Packet::udp(inside.at(family, 47_600), to, b"of a lying length");
    let good = packet.octets();
    let mut all = Vec::new();
    // More than there is, in the IP header and in the datagram's.
    let mut long = good.clone();
    let at = if family == Family::V4 { 2 } else { 4 };
    long[at + 1] += 40;
    all.push(long);
    let mut long = packet.clone();
    long.payload[5] += 40;
    long.seal();
    all.push(long.octets());
    // A header cut short, a header longer than the packet, another version.
    all.push(good[..family.header_len() + 4].to_vec());
    if family == Family::V4 {
        let mut header = good.clone();
        header[0] = 0x44;
        all.push(header);
        let mut header = good.clone();
        header[0] = 0x4f;
        all.push(header);
    }
    // Sums that cover the change, so that the length is all that is wrong.
    for octets in &mut all {
        if family == Family::V4 {
            let len = (usize::from(octets[0] & 15) * 4).min(octets.len()).max(20);
            let sum = pnet::util::checksum(&octets[..len], 5).to_be_bytes();
            octets[10..12].copy_from_slice(&sum);
        }
    }
    goes_no_further(lab, &inside, family, &all, b"of a lying length")
}

fn a_source_route_is_not_followed(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let to = SocketAddr::new(family.outside(66), 9000);
    let route = |kind| {
        let mut packet = Packet::udp(inside.at(family, 47_700), to, b"by another way");
        // Loose and strict, with one address still to come: RFC 791 3.1.
        packet.options = vec![1, kind, 7, 4, 203, 0, 113, 67];
        packet.octets()
    };
    goes_no_further(lab, &inside, family, &[route(131), route(137)], b"by another way")
}

fn a_routing_header_is_not_followed(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let via = SocketAddr::new(family.outside(66), 9000);
    let datagram = Packet::udp(inside.at(family, 47_700), via, b"by another way");
    // Type 0 with a segment left: RFC 5095 3.
    let last = family.outside(67);
    let IpAddr::V6(last) = last else { unreachable!() };
    let header = [&[UDP, 2, 0, 1, 0, 0, 0, 0][..], &last.octets(), &datagram.payload].concat();
    let packet = Packet::new(datagram.src, datagram.dst, 43, header);
    goes_no_further(lab, &inside, family, &[packet.octets()], b"by another way")
}

/// RFC 8200 8.1.
fn a_datagram_without_a_checksum_is_dropped(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let to = SocketAddr::new(family.outside(66), 9000);
    let mut packet = Packet::udp(inside.at(family, 47_800), to, b"without a checksum");
    packet.payload[6..8].fill(0);
    goes_no_further(lab, &inside, family, &[packet.octets()], b"without a checksum")
}

fn a_datagram_without_a_checksum_passes_both_ways(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 47_800), outside.at(family, 9000));
    let mut out = Packet::udp(own, peer, b"out without a checksum");
    out.payload[6..8].fill(0);
    inside.wire.send(&out);
    let (mapped, _) = outside.hears(b"out without a checksum")?;
    let mut back = Packet::udp(peer, mapped, b"back without a checksum");
    back.payload[6..8].fill(0);
    outside.wire.send(&back);
    inside.hears(b"back without a checksum").map(drop)
}

fn the_checksum_left_out_stays_out(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 47_850), outside.at(family, 9000));
    let mut out = Packet::udp(own, peer, b"out");
    out.payload[6..8].fill(0);
    inside.wire.send(&out);
    let seen = outside.wait("it", |packet| packet.datagram() == Some(b"out"))?;
    ensure!(seen.payload[6..8] == [0, 0], "a checksum was made: {:02x?}", &seen.payload[6..8]);
    let mut back = Packet::udp(peer, seen.from().unwrap(), b"back");
    back.payload[6..8].fill(0);
    outside.wire.send(&back);
    let seen = inside.wait("it", |packet| packet.datagram() == Some(b"back"))?;
    ensure!(seen.payload[6..8] == [0, 0], "a checksum was made: {:02x?}", &seen.payload[6..8]);
    Ok(())
}

/// All eight bits: a code point (RFC 2474) and congestion notification (RFC 3168).
fn the_type_of_service_passes_both_ways(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 47_950), outside.at(family, 9000));
    for tos in [0, 0xb8, 0x2a, 0x01, 0x03] {
        let data = format!("with tos {tos:#x}");
        let mut packet = Packet::udp(own, peer, data.as_bytes());
        packet.tos = tos;
        inside.wire.send(&packet);
        let seen = outside.wait(&data, |packet| packet.datagram() == Some(data.as_bytes()))?;
        ensure!(seen.tos == tos, "out: {tos:#x} became {:#x}", seen.tos);
        let mut packet = Packet::udp(peer, seen.from().unwrap(), data.as_bytes());
        packet.tos = tos;
        outside.wire.send(&packet);
        let seen = inside.wait(&data, |packet| packet.datagram() == Some(data.as_bytes()))?;
        ensure!(seen.tos == tos, "in: {tos:#x} became {:#x}", seen.tos);
    }
    Ok(())
}

fn the_gateway_answers_for_itself_alone(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let own = inside.at(family, 48_000);
    let to = SocketAddr::new(gateway(lab, family), 9);
    inside.wire.send(&Packet::echo(own.ip(), to.ip(), true, 9, 1, b"are you there"));
    let answer = inside.wait("an answer", |packet| packet.echo_parts().is_some())?;
    ensure!(answer.echo_parts() == Some((9, 1, b"are you there")), "{answer:?}");
    inside.says(own, to, b"to a closed port");
    let told = inside.wait("an error", Packet::is_error)?;
    ensure!(told.icmp_kind() == Some(PORT.of(family)), "told {told:?}");
    ensure!(told.src == to.ip(), "told by {}", told.src);
    inside.wire.send(&Packet::tcp(own, to, &Segment::new(SYN, 10, 0)));
    let reset = inside.wait("a reset", |packet| packet.from() == Some(to))?;
    ensure!(reset.segment().is_some_and(|s| s.has(RST) && s.ack == 11), "{reset:?}");
    // A protocol it does not know: RFC 1122 3.2.2.1; RFC 4443 3.4.
    inside.wire.send(&Packet::new(own.ip(), to.ip(), 253, vec![0; 20]));
    let told = inside.wait("an error about a protocol", Packet::is_error)?;
    let due = if family == Family::V4 { (3, 2) } else { (4, 1) };
    ensure!(told.icmp_kind() == Some(due), "told {told:?}");
    Ok(())
}

/// A recorded route (RFC 791 3.1), and options for the destination (RFC 8200 4.6).
fn options_and_extensions_are_no_hindrance(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 48_300), outside.at(family, 9000));
    let mut packet = Packet::udp(own, peer, b"with options");
    match family {
        Family::V4 => packet.options = vec![7, 7, 4, 0, 0, 0, 0, 0],
        Family::V6 => {
            // Six octets of padding.
            let header = [UDP, 0, 1, 4, 0, 0, 0, 0];
            packet.payload = [&header[..], &packet.payload].concat();
            packet.protocol = 60;
        }
    }
    inside.wire.send(&packet);
    let seen = outside.wait("the datagram", |packet| {
        packet.payload.windows(12).any(|window| window == b"with options")
    })?;
    ensure!(seen.src == lab.external(family), "from {}", seen.src);
    Ok(())
}

fn a_neighbours_address_is_not_ones_own(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let other = lab.insider(&format!("d{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (other.at(family, 48_400), outside.at(family, 9000));
    inside.says(own, peer, b"as a neighbour");
    meanwhile(lab, &inside, family, |_| false)?;
    let came = outside.wire.all(|packet| packet.datagram() == Some(b"as a neighbour"));
    ensure!(came.is_empty(), "went on: {came:?}");
    other.says(own, peer, b"as oneself");
    outside.hears(b"as oneself").map(drop)
}

fn errors_are_limited_in_number(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let to = SocketAddr::new(family.outside(66), 9000);
    let mut packet = Packet::udp(inside.at(family, 48_100), to, b"too late");
    packet.ttl = 1;
    let begin = std::time::Instant::now();
    for _ in 0..5000 {
        inside.wire.send(&packet);
    }
    let came = meanwhile(lab, &inside, family, Packet::is_error)?.len();
    // RFC 1812 4.3.2.8; a thousand a second and a burst, as Linux does it.
    let most = 1000.0 * (begin.elapsed().as_secs_f64() + 1.0);
    ensure!(came > 0, "no error at all");
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    let came = came as f64;
    ensure!(came < most && came < 4900.0, "{came} errors within {:?}", begin.elapsed());
    Ok(())
}

fn a_traceroute_shows_each_hop(lab: &Lab, family: Family) -> Verdict {
    let container = lab.container(&format!("c{family:?}"));
    let target = family.outside(2).to_string();
    for way in ["-U", "-I", "-T"] {
        let args = ["-n", "-q", "1", "-N", "1", "-w", "5", "-m", "6", way, &target];
        let ended = lab.scene.run_in(&container.netns, "traceroute", args);
        let hops: Vec<_> = ended
            .stdout
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().nth(1)?.parse().ok())
            .collect::<Vec<IpAddr>>();
        let due = [gateway(lab, family), family.router(), family.outside(2)];
        ensure!(hops == due, "{way}: {}{}", ended.stdout, ended.stderr);
    }
    Ok(())
}

fn a_hop_takes_one_on_the_way_in(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 48_200), outside.at(family, 9000));
    let mapped = crate::mapping::map(&inside, own, &outside, peer)?;
    let mut packet = Packet::udp(peer, mapped, b"with fifty");
    packet.ttl = 50;
    outside.wire.send(&packet);
    let seen = inside.wait("it", |packet| packet.datagram() == Some(b"with fifty"))?;
    ensure!(seen.ttl == 48, "50 became {}", seen.ttl);
    packet.ttl = 2;
    outside.wire.send(&packet);
    let told = outside.wait("an error", Packet::is_error)?;
    ensure!(told.icmp_kind() == Some(TTL.of(family)), "told {told:?}");
    ensure!(told.src == lab.external(family), "told by {}", told.src);
    Ok(())
}
