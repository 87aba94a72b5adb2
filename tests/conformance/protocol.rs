//! What is neither TCP, UDP nor echo (RFC 9260, RFC 4340, RFC 3828, RFC 2784, RFC 4303), and the fine print
//! of what is: checksums that come out as nought, numbers of pieces, questions nobody asks any more.
//!
//! A NAT carries all of it, by ports where there are ports, else by address. A relay has sockets for three
//! protocols, and tells the sender of the rest, which a silent loss would keep waiting.

use std::net::SocketAddr;

use crate::icmp::meanwhile;
use crate::lab::{Family, Lab};
use crate::mapping::map;
use crate::packet::{Packet, UDP, checksum};
use crate::{Verdict, ensure, probes};

probes! {
    Both {
        "4.5" ANY a_checksum_that_comes_out_as_nought_is_sent_as_its_complement;
        "6946" V6 a_datagram_of_one_piece_waits_for_no_other;
        "U14" ANY a_datagram_in_pieces_of_eight_octets_passes_both_ways;
        "6864" V4 pieces_of_two_containers_with_one_identification_are_not_mixed;
        "U9" ANY one_meets_itself_by_its_external_address;
    }
    Sockets {
        "S" ANY what_no_socket_carries_is_refused_by_an_error;
    }
    Raw {
        "S" ANY a_protocol_without_ports_passes_both_ways;
        "9260" ANY an_association_is_carried_by_its_ports;
        "I1" V4 a_question_for_the_time_passes;
    }
}

/// Two octets more, for which the checksum of `packet` with these addresses is nought.
fn summed_to_nought(from: SocketAddr, to: SocketAddr, data: &[u8]) -> Vec<u8> {
    let mut data = [data, &[0, 0]].concat();
    let packet = Packet::udp(from, to, &data);
    let sum = checksum(packet.src, packet.dst, UDP, &packet.payload, 3);
    let at = data.len() - 2;
    data[at..].copy_from_slice(&sum.to_be_bytes());
    data
}

/// RFC 768, RFC 8200 8.1: nought would be none.
fn a_checksum_that_comes_out_as_nought_is_sent_as_its_complement(
    lab: &Lab,
    family: Family,
) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 58_000), outside.at(family, 9000));
    let mapped = map(&inside, own, &outside, peer)?;
    let data = summed_to_nought(mapped, peer, b"outwards");
    inside.says(own, peer, &data);
    let seen = outside.wait("it", |packet| packet.datagram() == Some(&data))?;
    ensure!(seen.payload[6..8] == [0xff, 0xff], "sent as {:02x?}", &seen.payload[6..8]);
    let data = summed_to_nought(peer, own, b"inwards.");
    outside.says(peer, mapped, &data);
    let seen = inside.wait("it", |packet| packet.datagram() == Some(&data))?;
    ensure!(seen.payload[6..8] == [0xff, 0xff], "came as {:02x?}", &seen.payload[6..8]);
    Ok(())
}

/// An atomic fragment, and with the number of one that is being put together: RFC 6946 4.
fn a_datagram_of_one_piece_waits_for_no_other(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider("c6")?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 58_100), outside.at(family, 9000));
    let mapped = map(&inside, own, &outside, peer)?;
    for (near, far, from, to, end) in
        [(&inside, &outside, own, peer, peer), (&outside, &inside, peer, mapped, own)]
    {
        near.wire.send(&Packet::udp(from, to, &[1; 3000]).pieces(1400, 77)[0]);
        let mut atomic = Packet::udp(from, to, b"in one piece");
        atomic.id = 77;
        near.wire.send(&atomic);
        far.wait("it", |p| p.datagram() == Some(b"in one piece") && p.to() == Some(end))?;
    }
    Ok(())
}

fn a_datagram_in_pieces_of_eight_octets_passes_both_ways(lab: &Lab, family: Family) -> Verdict {
    let container = lab.container(&format!("c{family:?}"));
    let socket = crate::lab::udp(&container.netns, container.addr(family), 58_200);
    let station = lab.outsider(66);
    let peer = station.at(family, 9000);
    socket.send_to(b"map", peer).map_err(|error| format!("map: {error}"))?;
    let (mapped, _) = station.hears(b"map")?;
    let data: Vec<u8> = (0..=255).cycle().take(300).collect();
    for piece in Packet::udp(peer, mapped, &data).pieces(8, 7) {
        station.wire.send(&piece);
    }
    let mut buffer = vec![0; 1000];
    let (len, _) = socket.recv_from(&mut buffer).map_err(|error| format!("in: {error}"))?;
    ensure!(buffer[..len] == data, "{len} octets came in");
    drop(socket);
    let inside = lab.by_hand(&container)?;
    let server = crate::lab::udp(&lab.outside, family.outside(2), 9000);
    let to = SocketAddr::new(family.outside(2), 9000);
    for piece in Packet::udp(inside.at(family, 58_201), to, &data).pieces(8, 8) {
        inside.wire.send(&piece);
    }
    let (len, _) = server.recv_from(&mut buffer).map_err(|error| format!("out: {error}"))?;
    ensure!(buffer[..len] == data, "{len} octets came out");
    Ok(())
}

/// RFC 6864 5.3: behind one address two numbers must not meet.
fn pieces_of_two_containers_with_one_identification_are_not_mixed(
    lab: &Lab,
    family: Family,
) -> Verdict {
    let stations = [lab.insider("a4")?, lab.insider("b4")?];
    let server = crate::lab::udp(&lab.outside, family.outside(2), 9000);
    let to = SocketAddr::new(family.outside(2), 9000);
    let mut buffer = vec![0; 10_000];
    for station in &stations {
        station.says(station.at(family, 58_300), to, b"warm");
        server.recv_from(&mut buffer).map_err(|error| format!("warm: {error}"))?;
    }
    for id in [500, 501, 502] {
        let [one, two] = [0, 1].map(|n| {
            let data = vec![u8::try_from(n).unwrap(); 4000];
            Packet::udp(stations[n].at(family, 58_300), to, &data).pieces(1400, id)
        });
        for n in [0, 1, 2] {
            stations[0].wire.send(&one[n]);
            stations[1].wire.send(&two[n]);
        }
        let mut came = Vec::new();
        for _ in 0..2 {
            let heard = server.recv_from(&mut buffer);
            let (len, _) = heard.map_err(|error| format!("{id}: {} came: {error}", came.len()))?;
            ensure!(len == 4000 && buffer[..len] == vec![buffer[0]; len], "mixed: {len} octets");
            came.push(buffer[0]);
        }
        ensure!(came[0] != came[1], "{id}: one came twice");
    }
    Ok(())
}

/// REQ-9 makes no exception.
fn one_meets_itself_by_its_external_address(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let peer = outside.at(family, 9000);
    let (one, two) = (inside.at(family, 58_400), inside.at(family, 58_401));
    let one_outside = map(&inside, one, &outside, peer)?;
    let two_outside = map(&inside, two, &outside, peer)?;
    inside.says(one, two_outside, b"the first's");
    inside.says(two, one_outside, b"the second's");
    inside.says(one, two_outside, b"the first's again");
    for (data, due) in
        [(&b"the second's"[..], (two_outside, one)), (b"the first's again", (one_outside, two))]
    {
        let (from, to) = inside.hears(data)?;
        ensure!((from, to) == due, "from {from} to {to}");
    }
    Ok(())
}

/// Of a protocol, and what would be its header.
fn others() -> [(u8, Vec<u8>); 5] {
    let ports = [0xe3, 0x54, 0x00, 0x50];
    let sctp = [
        &ports[..],
        &[0; 4],
        &[0; 4],
        &[1, 0, 0, 20, 1, 2, 3, 4],
        &[0, 1, 0, 0],
        &[0, 1, 0, 1],
        &[9; 4],
    ]
    .concat();
    let dccp = [&ports[..], &[5, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1], &[0; 4]].concat();
    [
        (132, sctp),
        (33, dccp),
        (47, vec![0x20, 0, 8, 0, 0, 0, 0, 7]),
        (50, vec![1, 2, 3, 4, 0, 0, 0, 1, 9, 9, 9, 9]),
        (253, b"of no known protocol".to_vec()),
    ]
}

fn what_no_socket_carries_is_refused_by_an_error(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, to) = (inside.addr(family), outside.addr(family));
    for (protocol, payload) in others() {
        inside.wire.send(&Packet::new(own, to, protocol, payload));
        let told = inside.wait(&format!("an error about protocol {protocol}"), |packet| {
            packet.is_error() && packet.quoted().is_ok_and(|quoted| quoted.protocol == protocol)
        })?;
        ensure!(told.quoted()?.dst == to, "quotes {:?}", told.quoted());
    }
    meanwhile(lab, &inside, family, |_| false)?;
    let came = outside.wire.all(|packet| packet.dst == to && packet.datagram().is_none());
    ensure!(came.is_empty(), "it went out: {came:?}");
    Ok(())
}

fn a_protocol_without_ports_passes_both_ways(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, to) = (inside.addr(family), outside.addr(family));
    for (protocol, payload) in
        others().into_iter().filter(|(protocol, _)| *protocol >= 47 && *protocol != 132)
    {
        let sent = Packet::new(own, to, protocol, payload);
        inside.wire.send(&sent);
        let seen = outside.wait(&format!("protocol {protocol}"), |p| p.protocol == protocol)?;
        ensure!(seen.src == lab.external(family), "from {}", seen.src);
        ensure!(seen.payload == sent.payload, "{sent:02x?} became {seen:02x?}");
        let back = Packet::new(to, seen.src, protocol, sent.payload.clone());
        outside.wire.send(&back);
        let came = inside.wait(&format!("protocol {protocol}"), |p| p.protocol == protocol)?;
        ensure!(came.payload == sent.payload && came.dst == own, "{came:02x?} came");
    }
    Ok(())
}

/// SCTP's checksum covers no addresses, so that nothing of it changes where its ports do not.
fn an_association_is_carried_by_its_ports(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, to) = (inside.addr(family), outside.addr(family));
    let sealed = |mut octets: Vec<u8>| {
        octets[8..12].fill(0);
        let sum = crc32c(&octets).to_le_bytes();
        octets[8..12].copy_from_slice(&sum);
        octets
    };
    let (_, init) = others().into_iter().find(|(protocol, _)| *protocol == 132).unwrap();
    let init = sealed(init);
    inside.wire.send(&Packet::new(own, to, 132, init.clone()));
    let seen = outside.wait("INIT", |packet| packet.protocol == 132)?;
    ensure!(seen.src == lab.external(family), "from {}", seen.src);
    ensure!(seen.payload == init, "{init:02x?} became {:02x?}", seen.payload);
    // INIT ACK, with the tag INIT brought.
    let mut answer = init;
    answer.swap(0, 2);
    answer.swap(1, 3);
    answer[4..8].copy_from_slice(&[1, 2, 3, 4]);
    answer[12] = 2;
    let answer = sealed(answer);
    outside.wire.send(&Packet::new(to, seen.src, 132, answer.clone()));
    let came = inside.wait("INIT ACK", |packet| packet.protocol == 132)?;
    ensure!(came.payload == answer && came.dst == own, "{came:02x?} came");
    Ok(())
}

/// RFC 9260, appendix A; bit by bit.
fn crc32c(octets: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for octet in octets {
        sum ^= u32::from(*octet);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 };
        }
    }
    !sum
}

/// Timestamp: RFC 792, RFC 5508 REQ-10.
fn a_question_for_the_time_passes(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider("c4")?;
    let outside = lab.outsider(66);
    let (own, to) = (inside.addr(family), outside.addr(family));
    inside.wire.send(&Packet::icmp(own, to, 13, 0, [0, 9, 0, 1], &[3; 12]));
    let seen = outside.wait("the question", |packet| packet.icmp_kind() == Some((13, 0)))?;
    ensure!(seen.src == lab.external(family), "from {}", seen.src);
    let rest = seen.payload[4..8].try_into().unwrap();
    outside.wire.send(&Packet::icmp(to, seen.src, 14, 0, rest, &[4; 12]));
    let came = inside.wait("the answer", |packet| packet.icmp_kind() == Some((14, 0)))?;
    ensure!(came.payload[4..8] == [0, 9, 0, 1], "{:02x?} came", came.payload);
    Ok(())
}
