//! Fragments: RFC 4787 REQ-14, RFC 791 3.2, RFC 5722.

use std::net::{SocketAddr, UdpSocket};

use crate::icmp::meanwhile;
use crate::lab::{Container, Family, Lab, Station, udp};
use crate::mapping::{answered, map};
use crate::packet::{Packet, UDP};
use crate::{Verdict, ensure, probes};

probes! {
    Both {
        "U14" ANY pieces_go_out_in_any_order;
        "U14" ANY pieces_come_in_in_any_order;
        "U14" ANY pieces_that_come_twice_are_one_datagram;
        "U14" ANY overlapping_pieces_are_dropped_on_the_way_out;
        "U14" ANY overlapping_pieces_are_dropped_on_the_way_in;
        "U14" ANY pieces_of_two_datagrams_are_not_mixed;
        "U14" ANY a_flood_of_orphans_outwards_stops_nothing_else;
        "U14" ANY a_flood_of_orphans_inwards_stops_nothing_else;
        "U14" ANY the_first_datagram_of_all_may_be_in_many_pieces;
    }
}

/// Orders of four pieces.
const ORDERS: [[usize; 4]; 5] =
    [[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2], [2, 3, 0, 1], [0, 3, 1, 2]];

fn data(seed: usize) -> Vec<u8> {
    (0..5000).map(|n| u8::try_from((n / 8 + n * 3 + seed * 17) % 253).unwrap()).collect()
}

/// What a socket hears.
fn hears(socket: &UdpSocket, data: &[u8], what: &str) -> Verdict {
    let mut buffer = vec![0; 70_000];
    let (len, _) = socket.recv_from(&mut buffer).map_err(|error| format!("{what}: {error}"))?;
    ensure!(buffer[..len] == *data, "{what}: {len} octets came, or others");
    Ok(())
}

fn outside(lab: &Lab, family: Family) -> (UdpSocket, SocketAddr) {
    (udp(&lab.outside, family.outside(2), 9000), SocketAddr::new(family.outside(2), 9000))
}

/// The ways out and in are found by now, so that it is the pieces alone that a probe is about.
fn warm_up(inside: &Station, family: Family, peer: SocketAddr, socket: &UdpSocket) -> Verdict {
    inside.says(inside.at(family, 50_999), peer, b"warm");
    hears(socket, b"warm", "a datagram in one piece")
}

fn the_first_datagram_of_all_may_be_in_many_pieces(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let (socket, peer) = outside(lab, family);
    for piece in Packet::udp(inside.at(family, 50_700), peer, &data(6)).pieces(600, 61) {
        inside.wire.send(&piece);
    }
    hears(&socket, &data(6), "nine pieces")
}

fn pieces_go_out_in_any_order(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let (socket, peer) = outside(lab, family);
    warm_up(&inside, family, peer, &socket)?;
    for (n, order) in (1..).zip(ORDERS) {
        let whole = Packet::udp(inside.at(family, 50_000), peer, &data(n));
        let pieces = whole.pieces(1400, u32::try_from(n).unwrap());
        for piece in order {
            inside.wire.send(&pieces[piece]);
        }
        hears(&socket, &data(n), &format!("{order:?}"))?;
    }
    Ok(())
}

/// A container's socket and the address outside by which it is reached from a station.
fn mapped(
    container: &Container,
    station: &Station,
    family: Family,
) -> Result<(UdpSocket, SocketAddr), String> {
    let socket = udp(&container.netns, container.addr(family), 50_100);
    socket.send_to(b"map", station.at(family, 9000)).map_err(|error| format!("send: {error}"))?;
    let (mapped, _) = station.hears(b"map")?;
    Ok((socket, mapped))
}

fn pieces_come_in_in_any_order(lab: &Lab, family: Family) -> Verdict {
    let container = lab.container(&format!("c{family:?}"));
    let station = lab.outsider(66);
    let (socket, mapped) = mapped(&container, &station, family)?;
    for (n, order) in (1..).zip(ORDERS) {
        let whole = Packet::udp(station.at(family, 9000), mapped, &data(n));
        let pieces = whole.pieces(1400, u32::try_from(n).unwrap());
        for piece in order {
            station.wire.send(&pieces[piece]);
        }
        hears(&socket, &data(n), &format!("{order:?}"))?;
    }
    Ok(())
}

fn pieces_that_come_twice_are_one_datagram(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let (socket, peer) = outside(lab, family);
    warm_up(&inside, family, peer, &socket)?;
    let whole = Packet::udp(inside.at(family, 50_200), peer, &data(1));
    let pieces = whole.pieces(1400, 11);
    // RFC 5722 lets an exact copy pass or end the datagram; what must not come is anything else.
    for piece in [0, 1, 1, 2] {
        inside.wire.send(&pieces[piece]);
    }
    inside.wire.send(&pieces[3]);
    inside.says(inside.at(family, 50_200), peer, b"afterwards");
    let mut buffer = vec![0; 70_000];
    let mut came = Vec::new();
    while came.last() != Some(&b"afterwards".to_vec()) {
        let (len, _) = socket.recv_from(&mut buffer).map_err(|error| format!("end: {error}"))?;
        came.push(buffer[..len].to_vec());
    }
    ensure!(came.len() <= 2, "{} datagrams came of two", came.len());
    ensure!(came.len() == 1 || came[0] == data(1), "other octets came");
    Ok(())
}

/// Four pieces, the third of which says again what the second said, and, if it lies, otherwise. Without a
/// lie no checksum is wrong: it is for the overlap that the whole is dropped.
fn overlapping(from: SocketAddr, to: SocketAddr, lies: bool) -> Vec<Packet> {
    let mut pieces = Packet::udp(from, to, &data(2)).pieces(1400, 21);
    let said = pieces[1].payload[1400 - 16..].to_vec();
    let second = &mut pieces[2];
    second.offset -= 16;
    let again = if lies { vec![0xee; 16] } else { said };
    second.payload = [again, second.payload.clone()].concat();
    pieces
}

/// Orders of them, and whether the third lies.
const OVERLAPPING: [([usize; 4], bool); 6] = [
    ([0, 1, 2, 3], true),
    ([0, 2, 1, 3], true),
    ([3, 2, 1, 0], true),
    ([0, 1, 2, 3], false),
    ([0, 2, 1, 3], false),
    ([3, 2, 1, 0], false),
];

fn overlapping_pieces_are_dropped_on_the_way_out(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let (socket, peer) = outside(lab, family);
    let from = inside.at(family, 50_300);
    warm_up(&inside, family, peer, &socket)?;
    for (id, (order, lies)) in (100..).zip(OVERLAPPING) {
        let pieces = overlapping(from, peer, lies);
        for piece in order {
            inside.wire.send(&Packet { id, ..pieces[piece].clone() });
        }
    }
    inside.says(from, peer, b"afterwards");
    hears(&socket, b"afterwards", "what was cut wrongly did not come, but after it")
}

fn overlapping_pieces_are_dropped_on_the_way_in(lab: &Lab, family: Family) -> Verdict {
    let container = lab.container(&format!("c{family:?}"));
    let station = lab.outsider(66);
    let (socket, mapped) = mapped(&container, &station, family)?;
    for (id, (order, lies)) in (31..).zip(OVERLAPPING) {
        let pieces = overlapping(station.at(family, 9000), mapped, lies);
        for piece in order {
            station.wire.send(&Packet { id, ..pieces[piece].clone() });
        }
    }
    station.says(station.at(family, 9000), mapped, b"afterwards");
    hears(&socket, b"afterwards", "what was cut wrongly did not come, but after it")
}

fn pieces_of_two_datagrams_are_not_mixed(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let (socket, peer) = outside(lab, family);
    let from = inside.at(family, 50_400);
    warm_up(&inside, family, peer, &socket)?;
    let one = Packet::udp(from, peer, &data(3)).pieces(1400, 41);
    let two = Packet::udp(from, peer, &data(4)).pieces(1400, 42);
    for n in [3, 1, 0, 2] {
        inside.wire.send(&one[n]);
        inside.wire.send(&two[n]);
    }
    let mut came = Vec::new();
    let mut buffer = vec![0; 70_000];
    for _ in 0..2 {
        let (len, _) = socket.recv_from(&mut buffer).map_err(|error| format!("{error}"))?;
        came.push(buffer[..len].to_vec());
    }
    ensure!(came.contains(&data(3)) && came.contains(&data(4)), "mixed, or one twice");
    Ok(())
}

/// Pieces whose others never come, each of another datagram.
fn orphans(station: &Station, from: SocketAddr, to: SocketAddr) {
    for id in 0..10_000 {
        let mut piece = Packet::new(from.ip(), to.ip(), UDP, vec![0; 1000]);
        piece.id = 1000 + id;
        piece.more = true;
        piece.offset = 1400;
        station.wire.send(&piece);
    }
}

fn a_flood_of_orphans_outwards_stops_nothing_else(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let other = lab.insider(&format!("d{family:?}"))?;
    let (socket, peer) = outside(lab, family);
    orphans(&inside, inside.at(family, 50_500), peer);
    inside.says(inside.at(family, 50_500), peer, b"in one piece");
    hears(&socket, b"in one piece", "the flooder's own datagram in one piece")?;
    other.says(other.at(family, 50_500), peer, b"in one piece, too");
    hears(&socket, b"in one piece, too", "the other's datagram in one piece")?;
    // And the other container's pieces are put together as ever.
    for piece in Packet::udp(other.at(family, 50_500), peer, &data(5)).pieces(1400, 51) {
        other.wire.send(&piece);
    }
    hears(&socket, &data(5), "the other's datagram in pieces")?;
    meanwhile(lab, &inside, family, |_| false).map(drop)
}

fn a_flood_of_orphans_inwards_stops_nothing_else(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let station = lab.outsider(66);
    let (own, peer) = (inside.at(family, 50_600), station.at(family, 9000));
    let mapped = map(&inside, own, &station, peer)?;
    orphans(&station, peer, mapped);
    answered(&inside, own, &station, peer, mapped)
}
