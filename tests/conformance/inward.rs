//! A published port as a way of its own: what is asked of the way out, asked of the way in.
//!
//! Pieces, lengths, errors, hop limits and floods, and that nobody's mapping takes the port (RFC 4787
//! REQ-3, REQ-12 to 14; RFC 5508 REQ-4).

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::thread;

use crate::errors::{HOST, PORT, TTL, error};
use crate::icmp::comes_in;
use crate::lab::{Family, Lab, Station, accept, connect, listen};
use crate::mapping::{answered, map};
use crate::packet::{ACK, Packet, SYN, Segment};
use crate::published::published;
use crate::{Verdict, ensure, probes};

probes! {
    Both {
        "U14" ANY pieces_reach_a_published_port_in_any_order;
        "U12" ANY an_error_about_an_answer_comes_in_as_it_is_inside;
        "A38" ANY five_hundred_clients_are_answered_each;
        "4.5" ANY the_type_of_service_reaches_a_published_port;
        "U13" ANY a_published_server_finds_its_way_through_a_narrow_link;
        "U3" ANY nobodys_mapping_takes_a_published_port;
        "4.8" ANY a_flood_of_strangers_shuts_nobody_out("daemon:--max-tracked-per-container=300");
        "4.8" ANY half_open_connections_shut_nobody_out(
            "daemon:--max-tracked-per-container=300", "daemon:--max-flows-per-container=300"
        );
    }
    Raw {
        "4.5" ANY a_hop_takes_one_towards_a_published_port;
        "I5" ANY a_closed_ports_error_goes_out_as_it_is_outside;
        "4.5" ANY a_published_connection_offers_no_more_than_the_links_mtu("--mtu", "1300");
    }
}

/// The server behind the published port, by hand, and the address outside.
fn server(lab: &Lab, family: Family) -> Result<(Station, SocketAddr), String> {
    let container = published(lab, family);
    Ok((lab.by_hand(&container)?, SocketAddr::new(lab.external(family), 8080)))
}

/// A question of `from`'s as the server hears it.
fn asks(
    outside: &Station,
    from: SocketAddr,
    to: SocketAddr,
    inside: &Station,
    data: &[u8],
) -> Result<Packet, String> {
    outside.says(from, to, data);
    let heard = inside.wait("the question", |packet| packet.datagram() == Some(data))?;
    ensure!(heard.from() == Some(from), "{from} is seen as {:?}", heard.from());
    Ok(heard)
}

fn pieces_reach_a_published_port_in_any_order(lab: &Lab, family: Family) -> Verdict {
    let container = published(lab, family);
    let server = crate::lab::udp(&container.netns, container.addr(family), 80);
    let to = SocketAddr::new(lab.external(family), 8080);
    let outside = lab.outsider(66);
    let from = outside.at(family, 9000);
    let mut buffer = vec![0; 70_000];
    for (n, order) in (1..).zip([[0, 1, 2], [2, 1, 0], [1, 0, 2]]) {
        let data: Vec<u8> = (0..4000).map(|at| u8::try_from((at + n) % 251).unwrap()).collect();
        let pieces = Packet::udp(from, to, &data).pieces(1400, u32::try_from(n).unwrap());
        for piece in order {
            outside.wire.send(&pieces[piece]);
        }
        let came = server.recv_from(&mut buffer);
        let (len, seen) = came.map_err(|error| format!("{order:?}: {error}"))?;
        ensure!(buffer[..len] == data && seen == from, "{order:?}: {len} octets of {seen}");
    }
    Ok(())
}

fn an_error_about_an_answer_comes_in_as_it_is_inside(lab: &Lab, family: Family) -> Verdict {
    let (inside, to) = server(lab, family)?;
    let (outside, other) = (lab.outsider(66), lab.outsider(67));
    let from = outside.at(family, 9000);
    for (n, kind) in [PORT, HOST, TTL].into_iter().enumerate() {
        let heard = asks(&outside, from, to, &inside, format!("question {n}").as_bytes())?;
        let data = format!("answer {n}");
        let answer = Packet::udp(heard.to().unwrap(), from, data.as_bytes());
        inside.wire.send(&answer);
        let seen = outside.wait("the answer", |p| p.datagram() == Some(data.as_bytes()))?;
        ensure!(seen.from() == Some(to), "answered from {:?}", seen.from());
        other.wire.send(&error(other.addr(family), kind, 0, &seen.octets()));
        comes_in(&inside, other.addr(family), kind.of(family), &answer, 4)?;
    }
    // And the port serves on.
    asks(&outside, from, to, &inside, b"a question more").map(drop)
}

fn five_hundred_clients_are_answered_each(lab: &Lab, family: Family) -> Verdict {
    let (inside, to) = server(lab, family)?;
    let outside = [lab.outsider(66), lab.outsider(67)];
    for station in &outside {
        for port in 20_000..20_250 {
            let (from, data) = (station.at(family, port), port.to_be_bytes());
            let heard = asks(station, from, to, &inside, &data)?;
            inside.says(heard.to().unwrap(), from, &data);
        }
        for port in 20_000..20_250_u16 {
            let seen = station
                .wait("an answer", |packet| packet.datagram() == Some(&port.to_be_bytes()))?;
            ensure!(seen.from() == Some(to), "answered from {:?}", seen.from());
            ensure!(seen.to().unwrap().port() == port, "{:?} has {port}'s", seen.to());
        }
    }
    Ok(())
}

fn the_type_of_service_reaches_a_published_port(lab: &Lab, family: Family) -> Verdict {
    let (inside, to) = server(lab, family)?;
    let outside = lab.outsider(66);
    let from = outside.at(family, 9000);
    for tos in [0xb8, 0x03] {
        let data = format!("with {tos:#x}");
        let mut packet = Packet::udp(from, to, data.as_bytes());
        packet.tos = tos;
        outside.wire.send(&packet);
        let heard = inside.wait(&data, |p| p.datagram() == Some(data.as_bytes()))?;
        ensure!(heard.tos == tos, "{tos:#x} became {:#x}", heard.tos);
        let mut answer = Packet::udp(heard.to().unwrap(), from, data.as_bytes());
        answer.tos = tos;
        inside.wire.send(&answer);
        let seen = outside.wait(&data, |p| p.datagram() == Some(data.as_bytes()))?;
        ensure!(seen.tos == tos, "{tos:#x} became {:#x} on the way out", seen.tos);
    }
    Ok(())
}

fn a_published_server_finds_its_way_through_a_narrow_link(lab: &Lab, family: Family) -> Verdict {
    lab.set_far_mtu(1300);
    let container = published(lab, family);
    let listener = listen(&container.netns, container.addr(family), 80);
    let to = SocketAddr::new(lab.external(family), 8080);
    let from = SocketAddr::new(family.outside(2), 0);
    let near = connect(&lab.outside, from, to).map_err(|error| format!("connect: {error}"))?;
    let (far, _) = accept(&listener)?;
    let data: Vec<u8> = (0..500_000_u32).flat_map(u32::to_le_bytes).collect();
    for (mut writer, mut reader) in [(&far, &near), (&near, &far)] {
        thread::scope(|scope| {
            let sending = scope.spawn(|| writer.write_all(&data));
            let mut came = vec![0; data.len()];
            reader.read_exact(&mut came).map_err(|error| format!("read: {error}"))?;
            sending.join().unwrap().map_err(|error| format!("write: {error}"))?;
            ensure!(came == data, "other octets came");
            Ok(())
        })?;
    }
    lab.set_far_mtu(1500);
    Ok(())
}

fn nobodys_mapping_takes_a_published_port(lab: &Lab, family: Family) -> Verdict {
    let (inside, to) = server(lab, family)?;
    let other = lab.insider(&format!("q{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (other.at(family, 8080), outside.at(family, 9000));
    let mapped = map(&other, own, &outside, peer)?;
    answered(&other, own, &outside, peer, mapped)?;
    // Of the very host and port the other spoke to, and of another.
    let stranger = lab.outsider(67);
    asks(&stranger, stranger.at(family, 9000), to, &inside, b"a stranger's question")?;
    if mapped != to {
        asks(&outside, peer, to, &inside, b"a known one's question")?;
    }
    answered(&other, own, &outside, peer, mapped)
}

/// Addresses nobody has, outside.
fn stranger(family: Family, n: u16) -> IpAddr {
    let [high, low] = n.to_be_bytes();
    match family {
        Family::V4 => IpAddr::from([192, 0, 2 + high, low]),
        Family::V6 => format!("2001:db8:bad::{n:x}").parse().unwrap(),
    }
}

/// Datagrams of forged senders: who was there is not shut out, nor who comes after.
fn a_flood_of_strangers_shuts_nobody_out(lab: &Lab, family: Family) -> Verdict {
    let (inside, to) = server(lab, family)?;
    let outside = lab.outsider(66);
    let peer = outside.at(family, 9000);
    let own = inside.at(family, 53_200);
    let mapped = map(&inside, own, &outside, peer)?;
    answered(&inside, own, &outside, peer, mapped)?;
    let heard = asks(&outside, peer, to, &inside, b"before")?;
    inside.says(heard.to().unwrap(), peer, b"answer before");
    outside.hears(b"answer before")?;
    for n in 1..1000 {
        outside.says(SocketAddr::new(stranger(family, n % 250 + 1), 1000 + n), to, b"flood");
    }
    for (port, data) in [(9000, &b"who was there"[..]), (9001, b"who is new")] {
        let from = outside.at(family, port);
        let heard = asks(&outside, from, to, &inside, data)?;
        inside.says(heard.to().unwrap(), from, data);
        let seen = outside.wait("the answer", |packet| packet.datagram() == Some(data))?;
        ensure!(seen.from() == Some(to), "answered from {:?}", seen.from());
    }
    answered(&inside, own, &outside, peer, mapped)
}

/// SYNs of forged senders, whom nobody answers.
fn half_open_connections_shut_nobody_out(lab: &Lab, family: Family) -> Verdict {
    let container = published(lab, family);
    let listener = listen(&container.netns, container.addr(family), 80);
    let to = SocketAddr::new(lab.external(family), 8080);
    let from = SocketAddr::new(family.outside(2), 0);
    let mut there = connect(&lab.outside, from, to).map_err(|error| format!("before: {error}"))?;
    let (mut served, _) = accept(&listener)?;
    let outside = lab.outsider(66);
    for n in 1..1000 {
        let from = SocketAddr::new(stranger(family, n % 250 + 1), 1000 + n);
        outside.wire.send(&Packet::tcp(from, to, &Segment::new(SYN, 1, 0)));
    }
    there.write_all(b"!").unwrap();
    served.read_exact(&mut [0]).map_err(|error| format!("who was there: {error}"))?;
    let mut new =
        connect(&lab.outside, from, to).map_err(|error| format!("who is new: {error}"))?;
    new.write_all(b"!").unwrap();
    let (mut served, _) = accept(&listener)?;
    served.read_exact(&mut [0]).map_err(|error| format!("who is new: {error}"))
}

fn a_hop_takes_one_towards_a_published_port(lab: &Lab, family: Family) -> Verdict {
    let (inside, to) = server(lab, family)?;
    let outside = lab.outsider(66);
    let from = outside.at(family, 9000);
    let mut packet = Packet::udp(from, to, b"with fifty");
    packet.ttl = 50;
    outside.wire.send(&packet);
    let heard = inside.wait("it", |packet| packet.datagram() == Some(b"with fifty"))?;
    ensure!(heard.ttl == 48, "50 became {}", heard.ttl);
    packet.ttl = 2;
    outside.wire.send(&packet);
    let told = outside.wait("an error", Packet::is_error)?;
    ensure!(told.icmp_kind() == Some(TTL.of(family)), "told {told:?}");
    ensure!(told.quoted()?.to() == Some(to), "quotes {:?}", told.quoted());
    Ok(())
}

fn a_closed_ports_error_goes_out_as_it_is_outside(lab: &Lab, family: Family) -> Verdict {
    let (inside, to) = server(lab, family)?;
    let outside = lab.outsider(66);
    let from = outside.at(family, 9000);
    let heard = asks(&outside, from, to, &inside, b"to nobody there")?;
    inside.wire.send(&error(inside.addr(family), PORT, 0, &heard.octets()));
    let told = outside.wait("the error", Packet::is_error)?;
    ensure!(told.src == to.ip(), "it comes from {}", told.src);
    ensure!(told.icmp_kind() == Some(PORT.of(family)), "it says {:?}", told.icmp_kind());
    let quoted = told.quoted()?;
    ensure!(quoted.from() == Some(from) && quoted.to() == Some(to), "quotes {quoted:?}");
    Ok(())
}

/// Both ends are told of the narrower side: RFC 6691.
fn a_published_connection_offers_no_more_than_the_links_mtu(lab: &Lab, family: Family) -> Verdict {
    let (inside, to) = server(lab, family)?;
    let outside = lab.outsider(66);
    let from = outside.at(family, 9000);
    let most = 1300 - family.header_len() - 20;
    let offers = |segment: &Segment| {
        usize::from(u16::from_be_bytes([segment.options[2], segment.options[3]]))
    };
    let mut syn = Segment::new(SYN, 1, 0);
    syn.options = crate::conn::MSS.to_vec();
    outside.wire.send(&Packet::tcp(from, to, &syn));
    let heard = inside.wait("the SYN", |packet| packet.from() == Some(from))?;
    let offered = offers(&heard.segment().unwrap());
    ensure!(offered == most, "the client offers {offered}, not {most}");
    let mut answer = Segment::new(SYN | ACK, 5, 2);
    answer.options = crate::conn::MSS.to_vec();
    inside.wire.send(&Packet::tcp(heard.to().unwrap(), from, &answer));
    let seen = outside.wait("the answer", |packet| packet.from() == Some(to))?;
    let offered = offers(&seen.segment().unwrap());
    ensure!(offered == most, "the server offers {offered}, not {most}");
    Ok(())
}
