//! How large a packet may be: RFC 4787 REQ-13, RFC 1191, RFC 8201.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::thread;

use crate::errors::{TOO_BIG, mtu_of};
use crate::lab::{Family, Lab, accept, connect, listen, udp};
use crate::packet::Packet;
use crate::{Verdict, ensure, probes};

probes! {
    Both {
        "U13" ANY datagrams_of_every_size_pass_both_ways;
        "U13" ANY what_is_too_big_for_a_link_far_away_is_told_of("--mtu", "1500");
        "U13" V4 what_may_be_cut_is_cut_and_arrives;
        "U13" ANY tcp_finds_its_way_through_a_narrow_link;
        "U13" ANY a_datagram_larger_than_the_insides_mtu_comes_in("--mtu", "1300");
    }
    Raw {
        "U13" ANY what_is_too_big_for_the_inside_is_told_of("--mtu", "1300");
    }
}

/// Nothing, one octet, what fits into a packet of 1500 and one more, several packets, and the most.
fn sizes(family: Family) -> [usize; 6] {
    let whole = 1500 - family.header_len() - 8;
    [0, 1, whole, whole + 1, 8000, 65_507]
}

fn datagrams_of_every_size_pass_both_ways(lab: &Lab, family: Family) -> Verdict {
    let container = lab.container(&format!("c{family:?}"));
    let outside = udp(&lab.outside, family.outside(2), 9000);
    let inside = udp(&container.netns, container.addr(family), 40_000);
    let peer = SocketAddr::new(family.outside(2), 9000);
    let mut buffer = vec![0; 70_000];
    for size in sizes(family) {
        let octet = |n: usize| u8::try_from((n * 7 + n / 256 + size) % 251).unwrap();
        let data: Vec<u8> = (0..size).map(octet).collect();
        inside.send_to(&data, peer).map_err(|error| format!("send {size}: {error}"))?;
        let (len, from) =
            outside.recv_from(&mut buffer).map_err(|error| format!("out, {size}: {error}"))?;
        ensure!(buffer[..len] == data, "out: {len} octets came of {size}, or others");
        ensure!(from.ip() == lab.external(family), "from {from}");
        outside.send_to(&data, from).map_err(|error| format!("send {size}: {error}"))?;
        let (len, from) =
            inside.recv_from(&mut buffer).map_err(|error| format!("in, {size}: {error}"))?;
        ensure!(buffer[..len] == data, "in: {len} octets came of {size}, or others");
        ensure!(from == peer, "from {from}");
    }
    Ok(())
}

fn what_is_too_big_for_a_link_far_away_is_told_of(lab: &Lab, family: Family) -> Verdict {
    lab.set_far_mtu(1400);
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 49_000), outside.at(family, 9000));
    let room = |mtu: usize| vec![5; mtu - family.header_len() - 8];
    let mut packet = Packet::udp(own, peer, &room(1500));
    packet.df = true;
    inside.wire.send(&packet);
    // A socket of the host's may hear of the link only by the first datagram that was lost.
    let told = inside.wait("a word about it", Packet::is_error)?;
    ensure!(told.icmp_kind() == Some(TOO_BIG.of(family)), "told {told:?}");
    ensure!(mtu_of(&told) == 1400, "told of {}", mtu_of(&told));
    let quoted = told.quoted()?;
    ensure!(quoted.from() == Some(own) && quoted.to() == Some(peer), "quotes {quoted:?}");
    let mut packet = Packet::udp(own, peer, &room(1400));
    packet.df = true;
    inside.wire.send(&packet);
    let seen = outside.wait("what fits", |p| p.datagram() == Some(&room(1400)))?;
    ensure!(seen.df, "it may be cut by now");
    lab.set_far_mtu(1500);
    Ok(())
}

fn what_may_be_cut_is_cut_and_arrives(lab: &Lab, family: Family) -> Verdict {
    lab.set_far_mtu(1000);
    let inside = lab.insider("c4")?;
    let outside = udp(&lab.outside, family.outside(2), 9000);
    let peer = SocketAddr::new(family.outside(2), 9000);
    let mut buffer = vec![0; 70_000];
    for n in 0..4 {
        let data = vec![n; 1400];
        inside.says(inside.at(family, 49_100), peer, &data);
        let came = outside.recv_from(&mut buffer);
        let (len, _) = came.map_err(|error| format!("datagram {n}: {error}"))?;
        ensure!(buffer[..len] == data, "{len} octets came, or others");
    }
    lab.set_far_mtu(1500);
    Ok(())
}

fn tcp_finds_its_way_through_a_narrow_link(lab: &Lab, family: Family) -> Verdict {
    lab.set_far_mtu(1300);
    let container = lab.container(&format!("c{family:?}"));
    let listener = listen(&lab.outside, family.outside(2), 8000);
    let to = SocketAddr::new(family.outside(2), 8000);
    let near = connect(&container.netns, container.at(family, 0), to)
        .map_err(|error| format!("connect: {error}"))?;
    let (far, _) = accept(&listener)?;
    let data: Vec<u8> = (0..1_000_000_u32).flat_map(|n| n.to_le_bytes()).collect();
    for (mut writer, mut reader) in [(&near, &far), (&far, &near)] {
        thread::scope(|scope| {
            let data = &data;
            let sending = scope.spawn(move || {
                writer.write_all(data)?;
                writer.shutdown(Shutdown::Write)
            });
            let mut came = Vec::new();
            reader.read_to_end(&mut came).map_err(|error| format!("read: {error}"))?;
            sending.join().unwrap().map_err(|error| format!("write: {error}"))?;
            ensure!(came == *data, "{} octets came of {}", came.len(), data.len());
            Ok(())
        })?;
    }
    lab.set_far_mtu(1500);
    Ok(())
}

/// As large as the outside's link takes, and so it may not have to be told of the inside's.
fn a_datagram_larger_than_the_insides_mtu_comes_in(lab: &Lab, family: Family) -> Verdict {
    let container = lab.container(&format!("c{family:?}"));
    let inside = udp(&container.netns, container.addr(family), 40_000);
    let outside = udp(&lab.outside, family.outside(2), 9000);
    inside.send_to(b"map", (family.outside(2), 9000)).map_err(|error| format!("send: {error}"))?;
    let mut buffer = vec![0; 70_000];
    let (_, mapped) = outside.recv_from(&mut buffer).map_err(|error| format!("out: {error}"))?;
    let data = vec![9; 1500 - family.header_len() - 8];
    // A sender that is told of a smaller MTU cuts the next ones: ip(7), IP_PMTUDISC_WANT.
    for _ in 0..5 {
        outside.send_to(&data, mapped).map_err(|error| format!("send: {error}"))?;
        inside.set_read_timeout(Some(crate::patience() / 5)).unwrap();
        if let Ok((len, _)) = inside.recv_from(&mut buffer) {
            ensure!(buffer[..len] == data, "{len} octets came, or others");
            return Ok(());
        }
    }
    Err("it never came".to_owned())
}

fn what_is_too_big_for_the_inside_is_told_of(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 49_200), outside.at(family, 9000));
    let mapped = crate::mapping::map(&inside, own, &outside, peer)?;
    let mut packet = Packet::udp(peer, mapped, &[6; 1400]);
    packet.df = true;
    outside.wire.send(&packet);
    let told = outside.wait("a word about it", Packet::is_error)?;
    ensure!(told.icmp_kind() == Some(TOO_BIG.of(family)), "told {told:?}");
    ensure!(mtu_of(&told) == 1300, "told of {}", mtu_of(&told));
    ensure!(told.src == lab.external(family), "told by {}", told.src);
    let quoted = told.quoted()?;
    ensure!(quoted.from() == Some(peer) && quoted.to() == Some(mapped), "quotes {quoted:?}");
    Ok(())
}
