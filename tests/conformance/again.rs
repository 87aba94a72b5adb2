//! TCP as it is when nothing goes as drawn: what comes twice, late, or again from the beginning.
//!
//! Read RFC 9293 3.8 and 3.10, and 3.4.1 for a port that is used once more. A NAT that follows connections
//! must believe all of it; a relay has it from its own ends.

use std::time::Duration;

use crate::conn::{Conn, End};
use crate::lab::{Family, Lab, Station};
use crate::packet::{ACK, FIN, PSH, Packet, RST, SYN, Segment};
use crate::{Verdict, ensure, probes};

probes! {
    Both {
        "T2" ANY a_port_connects_again_once_its_connection_has_ended;
        "T2" ANY a_port_connects_again_after_a_reset;
        "T2" ANY an_attempt_nobody_answered_is_made_anew;
        "T2" ANY a_segment_before_the_next_is_answered;
        "T2" ANY both_may_end_at_once;
        "T2" ANY what_comes_out_of_order_arrives;
        "T2" ANY who_has_forgotten_a_connection_may_begin_it_anew;
    }
    Raw {
        "T2" ANY an_end_that_was_not_acknowledged_comes_again;
        "T2" ANY options_and_flags_are_left_alone;
        "T2" ANY data_may_come_with_the_first_segment;
    }
}

fn stations(lab: &Lab, family: Family) -> Result<(Station, Station), String> {
    Ok((lab.insider(&format!("c{family:?}"))?, lab.outsider(66)))
}

/// Ends a connection in order, the inside first.
fn end(conn: &mut Conn<'_>) -> Verdict {
    conn.inside.send(&conn.inside.segment(FIN | ACK));
    conn.inside.seq = conn.inside.seq.wrapping_add(1);
    conn.outside.finishes()?;
    conn.outside.send(&conn.outside.segment(FIN | ACK));
    conn.outside.seq = conn.outside.seq.wrapping_add(1);
    conn.inside.finishes().map(drop)
}

/// Opens it with other sequence numbers than a connection before had.
fn open_anew<'s>(
    inside: &'s Station,
    outside: &'s Station,
    family: Family,
    port: u16,
) -> Result<Conn<'s>, String> {
    inside.wire.forget();
    outside.wire.forget();
    Conn::open_at(inside, inside.at(family, port), outside, outside.at(family, 80), 9_000_000)
}

fn a_port_connects_again_once_its_connection_has_ended(lab: &Lab, family: Family) -> Verdict {
    let (inside, outside) = stations(lab, family)?;
    let own = inside.at(family, 42_000);
    let mut conn = Conn::open(&inside, own, &outside, outside.at(family, 80))?;
    conn.lives()?;
    end(&mut conn)?;
    let mut next = open_anew(&inside, &outside, family, 42_000)?;
    next.lives()
}

fn a_port_connects_again_after_a_reset(lab: &Lab, family: Family) -> Verdict {
    let (inside, outside) = stations(lab, family)?;
    for (port, by_inside) in [(42_100, true), (42_101, false)] {
        let own = inside.at(family, port);
        let mut conn = Conn::open(&inside, own, &outside, outside.at(family, 80))?;
        conn.lives()?;
        let (near, far) = match by_inside {
            true => (&conn.inside, &conn.outside),
            false => (&conn.outside, &conn.inside),
        };
        near.send(&Segment::new(RST, near.seq, 0));
        far.wait("the reset", |segment| segment.has(RST))?;
        let mut next = open_anew(&inside, &outside, family, port)
            .map_err(|error| format!("by the inside: {by_inside}: {error}"))?;
        next.lives()?;
    }
    Ok(())
}

fn an_attempt_nobody_answered_is_made_anew(lab: &Lab, family: Family) -> Verdict {
    let (inside, outside) = stations(lab, family)?;
    let (own, peer) = (inside.at(family, 42_200), outside.at(family, 80));
    inside.wire.send(&Packet::tcp(own, peer, &Segment::new(SYN, 77, 0)));
    outside.wait("the first SYN", |packet| packet.to() == Some(peer))?;
    // Given up, and with another number from the same port.
    inside.wire.send(&Packet::tcp(own, peer, &Segment::new(RST, 78, 0)));
    let mut next = open_anew(&inside, &outside, family, 42_200)?;
    next.lives()
}

/// Keep-alives: RFC 9293 3.8.4, with an octet and without.
fn a_segment_before_the_next_is_answered(lab: &Lab, family: Family) -> Verdict {
    let (inside, outside) = stations(lab, family)?;
    let own = inside.at(family, 42_300);
    let mut conn = Conn::open(&inside, own, &outside, outside.at(family, 80))?;
    conn.lives()?;
    for data in [&b""[..], b"."] {
        for inward in [false, true] {
            let (near, far) = match inward {
                false => (&conn.inside, &conn.outside),
                true => (&conn.outside, &conn.inside),
            };
            near.station.wire.forget();
            far.station.wire.forget();
            near.send(&Segment::new(ACK, near.seq.wrapping_sub(1), near.ack).data(data));
            if lab.subject != crate::Subject::Sockets {
                // The very end is asked.
                let due = near.seq.wrapping_sub(1);
                far.wait("the question", |segment| segment.seq == due)
                    .map_err(|error| format!("inward {inward}, {} octets: {error}", data.len()))?;
                far.send(&far.segment(ACK));
            }
            let due = near.seq;
            near.wait("the answer", |segment| segment.has(ACK) && segment.ack == due)
                .map_err(|error| format!("inward {inward}, {} octets: {error}", data.len()))?;
        }
    }
    conn.lives()
}

/// RFC 9293 3.6, figure 13.
fn both_may_end_at_once(lab: &Lab, family: Family) -> Verdict {
    let (inside, outside) = stations(lab, family)?;
    let own = inside.at(family, 42_400);
    let mut conn = Conn::open(&inside, own, &outside, outside.at(family, 80))?;
    conn.lives()?;
    conn.inside.send(&conn.inside.segment(FIN | ACK));
    conn.outside.send(&conn.outside.segment(FIN | ACK));
    conn.inside.seq = conn.inside.seq.wrapping_add(1);
    conn.outside.seq = conn.outside.seq.wrapping_add(1);
    let acknowledged = [conn.inside.finishes()?, conn.outside.finishes()?];
    for (end, acknowledged) in [&conn.inside, &conn.outside].into_iter().zip(acknowledged) {
        let due = end.seq;
        if acknowledged == due {
            continue; // A relay's end may have heard of the one before it said the other.
        }
        end.wait("the last acknowledgement", |segment| segment.has(ACK) && segment.ack == due)?;
    }
    let mut next = open_anew(&inside, &outside, family, 42_400)?;
    next.lives()
}

fn what_comes_out_of_order_arrives(lab: &Lab, family: Family) -> Verdict {
    let (inside, outside) = stations(lab, family)?;
    let own = inside.at(family, 42_500);
    let mut conn = Conn::open(&inside, own, &outside, outside.at(family, 80))?;
    let (words, whole) = ([&b"three"[..], b"one", b"two"], b"onetwothree");
    for inward in [false, true] {
        let (near, far) = match inward {
            false => (&mut conn.inside, &mut conn.outside),
            true => (&mut conn.outside, &mut conn.inside),
        };
        for (word, at) in words.iter().zip([6, 0, 3]) {
            near.send(&Segment::new(ACK | PSH, near.seq.wrapping_add(at), near.ack).data(word));
        }
        near.seq = near.seq.wrapping_add(11);
        far.takes(whole).map_err(|error| format!("inward {inward}: {error}"))?;
        let due = near.seq;
        near.wait("the acknowledgement of all", |segment| segment.ack == due)?;
    }
    conn.lives()
}

/// RFC 9293 3.5.1: a SYN in the midst of a connection is told of where that is, and reset.
fn who_has_forgotten_a_connection_may_begin_it_anew(lab: &Lab, family: Family) -> Verdict {
    let (inside, outside) = stations(lab, family)?;
    let (own, peer) = (inside.at(family, 42_600), outside.at(family, 80));
    let mut conn = Conn::open(&inside, own, &outside, peer)?;
    conn.lives()?;
    let syn = Segment::new(SYN, 80_000_000, 0);
    inside.wire.forget();
    outside.wire.forget();
    conn.inside.send(&syn);
    if lab.subject != crate::Subject::Sockets {
        conn.outside.wait("the SYN", |segment| segment.has(SYN))?;
        conn.outside.send(&conn.outside.segment(ACK));
    }
    // RFC 5961 4: the challenge.
    let challenge = conn.inside.wait("an acknowledgement", |segment| segment.has(ACK))?;
    ensure!(challenge.ack == conn.inside.seq, "{} for {}", challenge.ack, conn.inside.seq);
    conn.inside.send(&Segment::new(RST, challenge.ack, 0));
    conn.outside.wait("the reset", |segment| segment.has(RST))?;
    let mut next = open_anew(&inside, &outside, family, 42_600)?;
    next.lives()
}

fn an_end_that_was_not_acknowledged_comes_again(lab: &Lab, family: Family) -> Verdict {
    let (inside, outside) = stations(lab, family)?;
    let own = inside.at(family, 42_700);
    let mut conn = Conn::open(&inside, own, &outside, outside.at(family, 80))?;
    conn.lives()?;
    end(&mut conn)?;
    // As if the last acknowledgement were lost: RFC 9293 3.10.7.8, TIME-WAIT.
    for _ in 0..3 {
        let again = Segment::new(FIN | ACK, conn.outside.seq.wrapping_sub(1), conn.outside.ack);
        inside.wire.forget();
        conn.outside.send(&again);
        conn.inside.wait("the end again", |segment| segment.has(FIN))?;
        outside.wire.forget();
        conn.inside.send(&conn.inside.segment(ACK));
        let due = conn.outside.seq;
        conn.outside.wait("its acknowledgement", |segment| segment.ack == due)?;
    }
    Ok(())
}

/// Selective acknowledgements, time stamps, window scale, multipath, one nobody knows; ECN and urgent.
fn options_and_flags_are_left_alone(lab: &Lab, family: Family) -> Verdict {
    let (inside, outside) = stations(lab, family)?;
    let (own, peer) = (inside.at(family, 42_800), outside.at(family, 80));
    let options = [
        &[2, 4, 5, 0x60][..],
        &[4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0],
        &[1, 3, 3, 9],
        &[30, 4, 0, 1],
        &[253, 4, 7, 7],
    ]
    .concat();
    let mut syn = Segment::new(SYN | 0x40 | 0x80, 5000, 0);
    syn.options.clone_from(&options);
    inside.wire.send(&Packet::tcp(own, peer, &syn));
    let seen = outside.wait("the SYN", |packet| packet.to() == Some(peer))?;
    let (mapped, seen) = (seen.from().unwrap(), seen.segment().unwrap());
    ensure!(seen == syn, "{syn:?} became {seen:?}");
    let mut answer = Segment::new(SYN | ACK | 0x40, 90_000, 5001);
    answer.options.clone_from(&options);
    outside.wire.send(&Packet::tcp(peer, mapped, &answer));
    let seen = inside.wait("the answer", |packet| packet.to() == Some(own))?.segment().unwrap();
    ensure!(seen == answer, "{answer:?} became {seen:?}");
    // In blocks, of what has come beyond a gap.
    let beyond = Segment::new(ACK, 90_501, 5001).data(&[7; 100]);
    outside.wire.send(&Packet::tcp(peer, mapped, &beyond));
    inside.wait("what is beyond a gap", |packet| {
        packet.to() == Some(own) && packet.segment().as_ref() == Some(&beyond)
    })?;
    let mut ack = Segment::new(ACK, 5001, 90_001);
    ack.options =
        [&[1, 1, 5, 10][..], &90_501_u32.to_be_bytes(), &90_601_u32.to_be_bytes()].concat();
    inside.wire.send(&Packet::tcp(own, peer, &ack));
    let seen = outside.wait("the acknowledgement", |packet| packet.to() == Some(peer))?;
    ensure!(seen.from() == Some(mapped), "from {:?}", seen.from());
    ensure!(seen.segment().as_ref() == Some(&ack), "{ack:?} became {:?}", seen.segment());
    let mut urgent = Segment::new(ACK | PSH | 0x20 | 0x40, 90_001, 5001).data(b"urgent");
    urgent.urgent = 3;
    outside.wire.send(&Packet::tcp(peer, mapped, &urgent));
    let seen = inside.wait("urgent octets", |packet| packet.to() == Some(own))?;
    ensure!(seen.segment().as_ref() == Some(&urgent), "{urgent:?} became {:?}", seen.segment());
    Ok(())
}

/// RFC 7413.
fn data_may_come_with_the_first_segment(lab: &Lab, family: Family) -> Verdict {
    let (inside, outside) = stations(lab, family)?;
    let (own, peer) = (inside.at(family, 42_900), outside.at(family, 80));
    let syn = Segment::new(SYN, 5000, 0).data(b"early");
    inside.wire.send(&Packet::tcp(own, peer, &syn));
    let seen = outside.wait("the SYN", |packet| packet.to() == Some(peer))?;
    let (mapped, first) = (seen.from().unwrap(), seen.segment().unwrap());
    ensure!(first.data == b"early", "{first:?} came");
    let answer = Segment::new(SYN | ACK, 90_000, 5006).data(b"early, too");
    outside.wire.send(&Packet::tcp(peer, mapped, &answer));
    let seen = inside.wait("the answer", |packet| packet.to() == Some(own))?;
    ensure!(seen.segment().unwrap().data == b"early, too", "{seen:?} came");
    let near = End { station: &inside, own, peer, seq: 5006, ack: 90_011 };
    near.send(&near.segment(ACK));
    let far = End { station: &outside, own: peer, peer: mapped, seq: 90_011, ack: 5006 };
    far.wait("the last of three", |segment| segment.flags == ACK)?;
    outside.wire.within(Duration::from_millis(50), |_| false);
    Conn { inside: near, outside: far }.lives()
}
