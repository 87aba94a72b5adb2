//! TCP through a NAT, segment by segment: RFC 5382 and RFC 7857.

use std::collections::HashSet;
use std::time::Duration;

use crate::conn::{Conn, End, MSS};
use crate::errors::{ADMIN, HOST, NET, PORT, TTL, error};
use crate::lab::{Family, Lab, Station};
use crate::packet::{ACK, FIN, PSH, Packet, RST, SYN, Segment, TCP};
use crate::{Verdict, ensure, probes};

probes! {
    Both {
        "T2" ANY simultaneous_open_connects;
        "T2" ANY a_connection_opens_carries_and_closes_in_order;
        "T3" ANY a_segment_of_a_stranger_is_not_let_in;
        "T7" ANY two_containers_with_one_port_do_not_share_the_external_one;
        "T10" ANY icmp_errors_do_not_end_a_connection;
        "7857-2.2" ANY a_reset_outside_the_window_ends_nothing;
        "7857-2.2" ANY a_reset_inside_the_window_but_not_next_ends_nothing;
        "7857-2.2" ANY the_far_sides_reset_arrives_in_sequence;
        "7857-2.2" ANY the_near_sides_reset_arrives_in_sequence;
        "4.8" ANY data_outside_the_window_is_not_delivered;
        "S" ANY a_segment_of_no_connection_gets_no_answer_but_a_reset;
        "T1" ANY connections_from_one_port_have_one_external_port;
    }
    Raw {
        "T4" ANY an_unsolicited_syn_is_answered_after_six_seconds_by_icmp;
        "T4" ANY an_unsolicited_syn_is_forgotten_when_the_inside_opens_too;
        "7857-2.2" ANY traffic_after_a_reset_keeps_the_mapping;
        "T2" ANY a_connection_is_picked_up_midway;
    }
}

fn stations(lab: &Lab, family: Family) -> Result<(Station, Station), String> {
    Ok((lab.insider(&format!("c{family:?}"))?, lab.outsider(66)))
}

fn connections_from_one_port_have_one_external_port(lab: &Lab, family: Family) -> Verdict {
    let (inside, outside) = stations(lab, family)?;
    let other = lab.outsider(67);
    let own = inside.at(family, 40_100);
    let mut seen = HashSet::new();
    let mut all = Vec::new();
    for station in [&outside, &other] {
        for port in [80, 81] {
            let conn = Conn::open(&inside, own, station, station.at(family, port))?;
            seen.insert(conn.outside.peer);
            all.push(conn);
        }
    }
    ensure!(seen.len() == 1, "several external addresses of {own}: {seen:?}");
    all.iter_mut().try_for_each(Conn::lives)
}

fn simultaneous_open_connects(lab: &Lab, family: Family) -> Verdict {
    let (inside, outside) = stations(lab, family)?;
    let (own, peer) = (inside.at(family, 40_200), outside.at(family, 80));
    let mut near = End { station: &inside, own, peer, seq: 1000, ack: 0 };
    near.send(&near.segment(SYN));
    let first = outside.wait("a SYN", |packet| {
        packet.to() == Some(peer) && packet.segment().is_some_and(|segment| segment.flags == SYN)
    });
    // Explicit congestion notification may be offered: RFC 3168 6.1.1.
    let first = first.or_else(|_| outside.wait("a SYN", |packet| packet.to() == Some(peer)))?;
    let mapped = first.from().unwrap();
    let ack = first.segment().unwrap().seq.wrapping_add(1);
    let mut far = End { station: &outside, own: peer, peer: mapped, seq: 700_000, ack };
    far.send(&Segment::new(SYN, far.seq, 0));
    far.seq += 1;
    near.seq += 1;
    // A NAT lets the SYN in, and the inside answers it; a relay's own end does.
    let syn = inside.wire.within(Duration::from_millis(500), |packet| {
        packet.to() == Some(own) && packet.segment().is_some_and(|segment| segment.has(SYN))
    });
    if let Some(syn) = &syn {
        let syn = syn.segment().unwrap();
        near.ack = syn.seq.wrapping_add(1);
        if !syn.has(ACK) {
            near.send(&Segment::new(SYN | ACK, near.seq - 1, near.ack));
        }
    }
    let due = far.seq;
    far.wait("SYN and ACK", |segment| segment.has(SYN | ACK) && segment.ack == due)?;
    far.send(&far.segment(ACK));
    far.send(&Segment::new(SYN | ACK, far.seq - 1, far.ack));
    if near.ack == 0 {
        let answer = near.wait("SYN and ACK", |segment| segment.has(SYN | ACK))?;
        near.ack = answer.seq.wrapping_add(1);
    }
    near.send(&near.segment(ACK));
    Conn { inside: near, outside: far }.lives()
}

fn a_connection_opens_carries_and_closes_in_order(lab: &Lab, family: Family) -> Verdict {
    let (inside, outside) = stations(lab, family)?;
    let (own, peer) = (inside.at(family, 40_300), outside.at(family, 80));
    let mut conn = Conn::open(&inside, own, &outside, peer)?;
    ensure!(conn.outside.peer.ip() == lab.external(family), "from {}", conn.outside.peer);
    conn.lives()?;
    conn.inside.send(&conn.inside.segment(FIN | ACK));
    conn.inside.seq += 1;
    conn.outside.finishes()?;
    conn.inwards(b"after the inside's end")?;
    conn.outside.send(&conn.outside.segment(FIN | ACK));
    conn.outside.seq += 1;
    conn.inside.finishes()?;
    let due = conn.outside.seq;
    conn.outside.wait("the last acknowledgement", |segment| segment.ack == due)?;
    ensure!(inside.wire.bad().is_empty(), "unreadable: {:?}", inside.wire.bad());
    ensure!(outside.wire.bad().is_empty(), "unreadable: {:?}", outside.wire.bad());
    Ok(())
}

/// Waits until a connection's octets have gone both ways, and says what came to the inside by then.
fn meanwhile(conn: &mut Conn<'_>, seen: impl Fn(&Packet) -> bool) -> Result<Vec<Packet>, String> {
    conn.lives()?;
    // Time enough for what took another thread's way.
    conn.inside.station.wire.within(Duration::from_millis(150), |_| false);
    Ok(conn.inside.station.wire.all(seen))
}

fn a_segment_of_a_stranger_is_not_let_in(lab: &Lab, family: Family) -> Verdict {
    let (inside, outside) = stations(lab, family)?;
    let stranger = lab.outsider(67);
    let own = inside.at(family, 40_400);
    let mut conn = Conn::open(&inside, own, &outside, outside.at(family, 80))?;
    let mapped = conn.outside.peer;
    let from = stranger.at(family, 80);
    for flags in [SYN, ACK, RST, FIN | ACK, SYN | ACK] {
        let segment = Segment::new(flags, conn.outside.seq, conn.outside.ack);
        stranger.wire.send(&Packet::tcp(from, mapped, &segment));
    }
    let strange = meanwhile(&mut conn, |packet| packet.src == from.ip())?;
    ensure!(strange.is_empty(), "let in: {strange:?}");
    Ok(())
}

fn two_containers_with_one_port_do_not_share_the_external_one(
    lab: &Lab,
    family: Family,
) -> Verdict {
    let (first, outside) = stations(lab, family)?;
    let second = lab.insider(&format!("d{family:?}"))?;
    let other = lab.outsider(67);
    let mut one = Conn::open(&first, first.at(family, 40_500), &outside, outside.at(family, 80))?;
    let mut two = Conn::open(&second, second.at(family, 40_500), &other, other.at(family, 80))?;
    ensure!(one.outside.peer != two.outside.peer, "both are {}", one.outside.peer);
    one.lives()?;
    two.lives()
}

fn icmp_errors_do_not_end_a_connection(lab: &Lab, family: Family) -> Verdict {
    let (inside, outside) = stations(lab, family)?;
    let other = lab.outsider(67);
    let own = inside.at(family, 40_600);
    let mut conn = Conn::open(&inside, own, &outside, outside.at(family, 80))?;
    for kind in [NET, HOST, PORT, ADMIN, TTL] {
        // Quotes what is on its way; the answer to the last octets is not acknowledged yet.
        conn.inside.send(&conn.inside.segment(ACK | PSH).data(b"quoted"));
        let due = conn.outside.ack;
        let packet = outside.wait("octets to quote", |packet| {
            packet.segment().is_some_and(|s| s.seq == due && !s.data.is_empty())
        })?;
        other.wire.send(&error(other.addr(family), kind, 0, &packet.octets()));
        conn.inside.seq += 6;
        conn.outside.ack = due.wrapping_add(6);
        conn.outside.send(&conn.outside.segment(ACK));
        let reset = meanwhile(&mut conn, |packet| packet.segment().is_some_and(|s| s.has(RST)))
            .map_err(|error| format!("after {kind:?}: {error}"))?;
        ensure!(reset.is_empty(), "{kind:?} became {reset:?}");
    }
    Ok(())
}

fn a_reset_outside_the_window_ends_nothing(lab: &Lab, family: Family) -> Verdict {
    let (inside, outside) = stations(lab, family)?;
    let own = inside.at(family, 40_700);
    let mut conn = Conn::open(&inside, own, &outside, outside.at(family, 80))?;
    for away in [1_u32 << 31, 1 << 30, 1 << 24, 0_u32.wrapping_sub(20_000_000)] {
        let seq = conn.outside.seq.wrapping_add(away);
        conn.outside.send(&Segment::new(RST, seq, 0));
        conn.outside.send(&Segment::new(RST | ACK, seq, conn.outside.ack));
    }
    let resets = meanwhile(&mut conn, |packet| packet.segment().is_some_and(|s| s.has(RST)))?;
    ensure!(resets.is_empty(), "let in: {resets:?}");
    conn.lives()
}

/// RFC 5961 3.2: such a reset is challenged by an end; a NAT that lets it in leaves that to the inside,
/// and must not forget the mapping for it.
fn a_reset_inside_the_window_but_not_next_ends_nothing(lab: &Lab, family: Family) -> Verdict {
    let (inside, outside) = stations(lab, family)?;
    let own = inside.at(family, 40_800);
    let mut conn = Conn::open(&inside, own, &outside, outside.at(family, 80))?;
    conn.outside.send(&Segment::new(RST, conn.outside.seq.wrapping_add(1000), 0));
    conn.lives()?;
    conn.lives()
}

fn the_far_sides_reset_arrives_in_sequence(lab: &Lab, family: Family) -> Verdict {
    let (inside, outside) = stations(lab, family)?;
    let own = inside.at(family, 40_900);
    let mut conn = Conn::open(&inside, own, &outside, outside.at(family, 80))?;
    conn.lives()?;
    conn.outside.send(&Segment::new(RST, conn.outside.seq, 0));
    let reset = conn.inside.wait("a reset", |segment| segment.has(RST))?;
    ensure!(reset.seq == conn.inside.ack, "{} where {} is due", reset.seq, conn.inside.ack);
    Ok(())
}

fn the_near_sides_reset_arrives_in_sequence(lab: &Lab, family: Family) -> Verdict {
    let (inside, outside) = stations(lab, family)?;
    let own = inside.at(family, 41_000);
    let mut conn = Conn::open(&inside, own, &outside, outside.at(family, 80))?;
    conn.lives()?;
    conn.inside.send(&Segment::new(RST, conn.inside.seq, 0));
    let reset = conn.outside.wait("a reset", |segment| segment.has(RST))?;
    ensure!(reset.seq == conn.outside.ack, "{} where {} is due", reset.seq, conn.outside.ack);
    Ok(())
}

fn data_outside_the_window_is_not_delivered(lab: &Lab, family: Family) -> Verdict {
    let (inside, outside) = stations(lab, family)?;
    let own = inside.at(family, 41_100);
    let mut conn = Conn::open(&inside, own, &outside, outside.at(family, 80))?;
    for away in [1_u32 << 31, 1 << 30, 0_u32.wrapping_sub(20_000_000)] {
        let seq = conn.outside.seq.wrapping_add(away);
        let ack = conn.outside.ack;
        conn.outside.send(&Segment::new(ACK | PSH, seq, ack).data(b"forged"));
        // In order, but for an acknowledgement of what was never sent: RFC 5961 5.
        let ack = ack.wrapping_add(1 << 30);
        conn.outside.send(&Segment::new(ACK | PSH, conn.outside.seq, ack).data(b"forged"));
    }
    let forged =
        meanwhile(&mut conn, |packet| packet.segment().is_some_and(|s| s.data == b"forged"))?;
    ensure!(forged.is_empty(), "let in: {forged:?}");
    Ok(())
}

fn a_segment_of_no_connection_gets_no_answer_but_a_reset(lab: &Lab, family: Family) -> Verdict {
    let (inside, outside) = stations(lab, family)?;
    let own = inside.at(family, 41_200);
    let mut conn =
        Conn::open(&inside, inside.at(family, 41_201), &outside, outside.at(family, 80))?;
    let stray = Segment::new(RST, 77, 0);
    inside.wire.send(&Packet::tcp(own, outside.at(family, 80), &stray));
    let stray = Segment::new(SYN | ACK, 77, 78);
    inside.wire.send(&Packet::tcp(own, outside.at(family, 80), &stray));
    let answers = meanwhile(&mut conn, |packet| packet.to() == Some(own))?;
    let wrong = answers.iter().find(|packet| !packet.segment().is_some_and(|s| s.has(RST)));
    ensure!(wrong.is_none(), "answered by {wrong:?}");
    ensure!(answers.len() <= 1, "a reset is answered: {answers:?}");
    Ok(())
}

fn an_unsolicited_syn_is_answered_after_six_seconds_by_icmp(lab: &Lab, family: Family) -> Verdict {
    let (inside, outside) = stations(lab, family)?;
    let stranger = lab.outsider(67);
    let conn = Conn::open(&inside, inside.at(family, 41_300), &outside, outside.at(family, 80))?;
    let mapped = conn.outside.peer;
    let mut syn = Segment::new(SYN, 99, 0);
    syn.options = MSS.to_vec();
    let packet = Packet::tcp(stranger.at(family, 7777), mapped, &syn);
    let answer = |packet: &Packet| packet.src == mapped.ip() && packet.dst == stranger.addr(family);
    stranger.wire.send(&packet);
    let early = stranger.wire.within(Duration::from_millis(5900), answer);
    ensure!(early.is_none(), "answered before six seconds: {early:?}");
    let told = stranger.wait("ICMP", answer)?;
    ensure!(told.icmp_kind() == Some(PORT.of(family)), "answered by {told:?}");
    let quoted = told.quoted()?;
    ensure!(quoted.from() == Some(stranger.at(family, 7777)), "quotes {quoted:?}");
    ensure!(quoted.to() == Some(mapped), "quotes {quoted:?}");
    Ok(())
}

fn an_unsolicited_syn_is_forgotten_when_the_inside_opens_too(lab: &Lab, family: Family) -> Verdict {
    let (inside, outside) = stations(lab, family)?;
    let stranger = lab.outsider(67);
    let own = inside.at(family, 41_400);
    let conn = Conn::open(&inside, own, &outside, outside.at(family, 80))?;
    let mapped = conn.outside.peer;
    let from = stranger.at(family, 7777);
    stranger.wire.send(&Packet::tcp(from, mapped, &Segment::new(SYN, 99, 0)));
    let mut late = Conn::open(&inside, own, &stranger, from)?;
    ensure!(late.outside.peer == mapped, "{} and {mapped}", late.outside.peer);
    let told = stranger.wire.within(Duration::from_millis(7000), |packet| packet.is_error());
    ensure!(told.is_none(), "answered: {told:?}");
    late.lives()
}

fn traffic_after_a_reset_keeps_the_mapping(lab: &Lab, family: Family) -> Verdict {
    let (inside, outside) = stations(lab, family)?;
    let own = inside.at(family, 41_500);
    let mut conn = Conn::open(&inside, own, &outside, outside.at(family, 80))?;
    conn.lives()?;
    conn.outside.send(&Segment::new(RST, conn.outside.seq, 0));
    conn.inside.wait("the reset", |segment| segment.has(RST))?;
    // From outside first, as nothing from inside has made it anew.
    conn.inwards(b"after the reset")?;
    conn.lives()?;
    let mut next = Conn::open(&inside, own, &outside, outside.at(family, 81))?;
    ensure!(next.outside.peer == conn.outside.peer, "another mapping: {}", next.outside.peer);
    next.lives()
}

fn a_connection_is_picked_up_midway(lab: &Lab, family: Family) -> Verdict {
    let (inside, outside) = stations(lab, family)?;
    let (own, peer) = (inside.at(family, 41_600), outside.at(family, 80));
    let near = End { station: &inside, own, peer, seq: 1000, ack: 500_000 };
    near.send(&near.segment(ACK));
    let first = outside
        .wait("the segment", |packet| packet.protocol == TCP && packet.to() == Some(peer))?;
    let far =
        End { station: &outside, own: peer, peer: first.from().unwrap(), seq: 500_000, ack: 1000 };
    Conn { inside: near, outside: far }.lives()
}
