//! What hours of silence, of retransmissions and of probes come to.

use std::io::{Read, Write};
use std::sync::Arc;

use datapath::DropReason;
use mio::event::Event;
use nat::Timeouts;
use smoltcp::time::Duration;

use super::super::seq::Seq;
use super::super::table::{ACK, RST, SYN};
use super::{READY, Rig, Sent, is_reset};
use crate::context::Readiness;
use crate::context::rig::{PORT, ZONE};
use crate::limits::MAX_PENDING_PER_PORT;
use crate::policy::Policy;

/// RFC 6298 §5.5, RFC 9293 §3.8.3: patience doubles up to a bound, and has an end both sides see.
#[test]
fn an_unanswered_segment_is_sent_again_ever_more_seldom_until_both_sides_see_a_reset() {
    let mut rig = Rig::new(100);
    let mut peer = rig.connect(4000);
    let sent = rig.far_writes(&mut peer, b"anybody there");
    assert_eq!(sent.len(), 1, "{sent:?}");
    let start = rig.now;
    let told = rig.advance(Duration::from_secs(3600));
    let (end, again) = told.split_last().unwrap();
    assert!(is_reset(&end.1), "{end:?}");
    assert_eq!(again.len(), 15, "as many as tcp_retries2");
    let mut before = start;
    let mut gap = Duration::ZERO;
    for (when, sent) in again {
        assert!(matches!(sent, Sent::Tcp(_, octets) if octets == b"anybody there"));
        let next = *when - before;
        assert!(next >= gap && next <= Duration::from_secs(60), "{next} after {gap}");
        (before, gap) = (*when, next);
    }
    assert!(again[4].0 - again[3].0 >= (again[1].0 - again[0].0) * 6, "it doubles");
    let error = peer.far.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

/// RFC 9293 §3.8.6: the far side's window opens again once the container has taken what was sent, in
/// whatever portions it did so.
#[test]
fn a_far_side_with_more_to_say_never_waits_for_a_container_that_has_room() {
    const OCTETS: usize = 256 << 10;
    let mut rig = Rig::new(100);
    for window in (1000..=65_000).step_by(1000) {
        let mut peer = rig.connect(window);
        peer.window = window;
        rig.say(&mut peer, ACK, &[]);
        let mut far = peer.far.try_clone().unwrap();
        let writer = std::thread::spawn(move || far.write_all(&[7; OCTETS]));
        let mut taken = 0;
        while taken < OCTETS {
            rig.await_event(peer.key, Event::is_readable);
            let ((), mut sent) = rig.act(|tcp, ctx| tcp.ready(peer.key, READY, ctx));
            while !sent.is_empty() {
                for one in &sent {
                    let Sent::Tcp(_, octets) = one else { panic!("{one:?}") };
                    taken += octets.len();
                    peer.ack += u32::try_from(octets.len()).unwrap();
                }
                sent = rig.say(&mut peer, ACK, &[]);
            }
        }
        writer.join().unwrap().unwrap();
        rig.say(&mut peer, RST, &[]);
    }
}

/// RFC 9293 §3.8.6.1: a window may stay closed for ever as long as its owner answers.
#[test]
fn answered_probes_of_a_closed_window_go_on_and_unanswered_ones_end_both_sides() {
    let mut rig = Rig::new(100);
    let mut peer = rig.connect(4000);
    peer.window = 0;
    rig.say(&mut peer, ACK, &[]);
    let sent = rig.far_writes(&mut peer, b"patience");
    assert!(sent.is_empty(), "{sent:?}");
    let mut probes = 0;
    for _ in 0..4 * 3600 {
        for (_, sent) in rig.advance(Duration::from_secs(1)) {
            let Sent::Tcp(probe, octets) = &sent else { panic!("{sent:?}") };
            assert!(!probe.flags.rst, "given up after {probes} answered probes");
            assert_eq!((probe.seq, octets.len()), (peer.ack - 1, 0));
            probes += 1;
            rig.say(&mut peer, ACK, &[]);
        }
    }
    assert!((4 * 60..4 * 80).contains(&probes), "{probes} in four hours, once a minute in the end");
    peer.window = 1000;
    let sent = rig.say(&mut peer, ACK, &[]);
    assert!(matches!(&sent[..], [Sent::Tcp(_, octets)] if octets == b"patience"), "{sent:?}");
    peer.ack += 8;
    peer.window = 0;
    rig.say(&mut peer, ACK, &[]);
    rig.far_writes(&mut peer, b"more");
    let told = rig.advance(Duration::from_secs(3600));
    assert_eq!(told.len(), 16, "fifteen probes and the reset");
    assert!(is_reset(&told[15].1));
    let error = peer.far.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

/// RFC 6298 §5.3: an acknowledgment of something new restarts the timer; nothing else does.
#[test]
fn only_progress_restarts_the_timer() {
    let mut rig = Rig::new(100);
    let mut peer = rig.connect(4000);
    rig.far_writes(&mut peer, &[1; 100]);
    let step = Duration::from_millis(60);
    let mut first = None;
    for _ in 0..10 {
        let told = rig.advance(step);
        first = first.or(told.first().map(|(when, _)| *when));
        rig.say(&mut peer, ACK, b"busy");
    }
    assert!(first.is_some(), "traffic upstream held the retransmission off");
    peer.ack += 100;
    rig.say(&mut peer, ACK, &[]);
    for _ in 0..10 {
        rig.far_writes(&mut peer, &[2; 100]);
        assert!(rig.advance(step * 3).is_empty(), "each acknowledgment sets it anew");
        peer.ack += 100;
        rig.say(&mut peer, ACK, &[]);
    }
}

/// RFC 5382 REQ-5, RFC 9293 §3.8.4: an idle connection is asked after by keepalives, and ends for both once
/// the container does not answer them. Until the first nothing is sent.
#[test]
fn t5_an_idle_connection_lives_as_long_as_its_container_answers() {
    let mut rig = Rig::new(100);
    let mut peer = rig.connect(4000);
    for _ in 0..100 {
        assert!(rig.advance(Duration::from_secs(7_199)).is_empty());
        let told = rig.advance(Duration::from_secs(2));
        let [(_, Sent::Tcp(probe, octets))] = &told[..] else { panic!("{told:?}") };
        assert_eq!((probe.flags, probe.seq, octets.len()), (ACK, peer.ack - 1, 0));
        rig.say(&mut peer, ACK, &[]);
    }
    let told = rig.advance(Duration::from_secs(7_200 + 9 * 75));
    let (end, probes) = told.split_last().unwrap();
    assert_eq!(probes.len(), 9, "as tcp(7) has it");
    assert!(is_reset(&end.1), "{end:?}");
    assert_eq!(rig.limits.flows(), 0);
    let error = peer.far.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

/// RFC 4787 REQ-5b, RFC 5382 REQ-5: whoever wants another idle time has it.
#[test]
fn t5_a_shorter_idle_time_holds_where_it_is_chosen() {
    let mut rig = Rig::new(100);
    let timeouts = Timeouts { tcp_established: Duration::from_secs(3600), ..Timeouts::RFC };
    rig.tcp.shared.set_policy(ZONE, Policy { timeouts, ..Policy::default() });
    let mut peer = rig.connect(4000);
    rig.advance(Duration::from_secs(3000));
    rig.say(&mut peer, ACK, b"x");
    assert!(rig.advance(Duration::from_secs(3599)).is_empty());
    let told = rig.advance(Duration::from_secs(40));
    assert!(matches!(&told[..], [(_, sent)] if is_reset(sent)), "{told:?}");
    assert_eq!(rig.limits.flows(), 0);
}

/// The timers hold one entry for a flow, and soon none for those that are gone.
#[test]
fn a_storm_of_short_flows_leaves_nothing_behind() {
    let mut rig = Rig::new(10_000);
    let mut chatty = rig.connect(3999);
    for port in 4000..4500 {
        let mut peer = rig.connect(port);
        rig.far_writes(&mut peer, b"hello");
        rig.say(&mut peer, RST, &[]);
    }
    assert_eq!((rig.tcp.len(), rig.limits.flows()), (1, 1));
    for _ in 0..400 {
        rig.far_writes(&mut chatty, b"tick");
        chatty.ack += 4;
        rig.advance(Duration::from_millis(1));
        rig.say(&mut chatty, ACK, &[]);
        rig.advance(Duration::from_millis(249));
    }
    assert!(rig.tcp.armed() < 16, "{} entries for one flow", rig.tcp.armed());
    assert_eq!(rig.dp.network().conntrack.list(None).len(), 1);
}

/// Room for octets that wait comes back however the flow ends.
#[test]
fn whatever_ends_a_flow_gives_its_room_back() {
    let mut rig = Rig::new(100);
    for (port, by_container) in [(4000, true), (4001, false)] {
        let mut peer = rig.connect(port);
        let octets = vec![7; 32 << 10];
        for _ in 0..2000 {
            if rig.limits.waiting(ZONE, PORT) > 0 {
                break;
            }
            rig.say(&mut peer, ACK, &octets);
        }
        assert!(rig.limits.waiting(ZONE, PORT) > 0, "the far side does not read");
        // And something beyond a gap.
        peer.seq += 100;
        rig.say(&mut peer, ACK, &octets[..100]);
        peer.seq = peer.seq - 200;
        if by_container {
            rig.say(&mut peer, RST, &[]);
        } else {
            drop(peer.far); // With octets unread: a reset.
            rig.await_event(peer.key, Event::is_read_closed);
            let gone = Readiness { hung_up: true, ..READY };
            let (_, sent) = rig.act(|tcp, ctx| tcp.ready(peer.key, gone, ctx));
            assert!(sent.iter().any(is_reset), "{sent:?}");
        }
        assert_eq!((rig.limits.waiting(ZONE, PORT), rig.limits.flows()), (0, 0));
    }
}

/// Where there is no room to keep what the host socket does not take, the window closes and the flow
/// lives: probes are answered, and room opens it again.
#[test]
fn without_room_the_window_closes() {
    let mut rig = Rig::new(100);
    let mut peer = rig.connect(4000);
    let flow = rig.tcp.flows.get(peer.key).unwrap();
    let mut others = crate::limits::Reservation::new(&flow.lease);
    assert!(others.grow(MAX_PENDING_PER_PORT));
    let octets = vec![7; 32 << 10];
    let mut sent = 0;
    let closed = loop {
        assert!(sent < 64 << 20, "the window never closed");
        let segment = Rig::segment(ACK, peer.seq, peer.ack, peer.window);
        let (taken, told) = rig.inject(Some(peer.key), peer.port, segment, &octets);
        let Some(Sent::Tcp(told, _)) = told.last() else { panic!("{told:?}") };
        sent += told.ack.after(peer.seq) as usize;
        peer.seq = told.ack;
        if taken == Err(DropReason::RelayBufferFull) {
            break *told;
        }
    };
    assert_eq!(closed.window, 0);
    let probe = Rig::segment(ACK, peer.seq - 1, peer.ack, peer.window);
    let (_, told) = rig.inject(Some(peer.key), peer.port, probe, &[]);
    assert!(matches!(&told[..], [Sent::Tcp(told, _)] if told.window == 0), "{told:?}");
    let mut got = vec![0; sent];
    peer.far.read_exact(&mut got).unwrap();
    let (_, told) = rig.act(|tcp, ctx| tcp.ready(peer.key, READY, ctx));
    assert!(matches!(&told[..], [Sent::Tcp(told, _)] if told.window > 0), "{told:?}");
    rig.say(&mut peer, ACK, b"on");
    peer.far.read_exact(&mut got[..2]).unwrap();
    assert_eq!(&got[..2], b"on");
}

/// RFC 6888 REQ-11: an attempt that conntrack gave up for a newer flow of its container's does not keep its
/// socket for as long as the host would wait for an answer.
#[test]
fn an_attempt_that_gave_way_in_conntrack_is_over_soon() {
    let mut rig = Rig::new(100);
    let syn = Rig::segment(SYN, Seq(999), Seq(0), 65_535);
    rig.inject(None, 4000, syn, &[]).0.unwrap();
    rig.inject(None, 4001, syn, &[]).0.unwrap();
    let conntrack = Arc::clone(&rig.dp.network().conntrack);
    let dropped = conntrack.list(None).into_iter().find(|entry| entry.original.src.port == 4000);
    conntrack.remove(&dropped.unwrap());
    assert!(rig.advance(Duration::from_secs(7)).is_empty(), "and nobody is told");
    assert_eq!((rig.tcp.len(), rig.limits.flows()), (1, 1));
    assert_eq!(rig.tcp.attempts.live((ZONE, PORT)), 1);
}

/// RFC 5508 REQ-8: whoever opens more than may be tracked is told (ICMP 3/13).
#[test]
fn a_full_conntrack_is_told_to_who_wants_more() {
    let mut rig = Rig::new(2);
    let _held = [rig.connect(4000), rig.connect(4001)];
    let syn = Rig::segment(SYN, Seq(999), Seq(0), 65_535);
    let (opened, told) = rig.inject(None, 4002, syn, &[]);
    assert_eq!(opened, Err(DropReason::FlowLimit));
    assert!(matches!(&told[..], [Sent::Icmp(message)] if message[..2] == [3, 13]), "{told:?}");
    assert_eq!(rig.limits.flows(), 2);
}

/// RFC 9293 §3.8.6: a container that closed its window has taken nothing of what was under way then (it had no
/// memory for it): that goes again once the window opens, and not an ever longer timeout later.
#[test]
fn what_a_closed_window_lost_goes_again_as_soon_as_it_opens() {
    let mut rig = Rig::new(100);
    let mut peer = rig.connect(4000);
    rig.far_writes(&mut peer, &[7; 100]);
    peer.window = 0;
    rig.say(&mut peer, ACK, &[]);
    let told = rig.advance(Duration::from_millis(500));
    let [(_, Sent::Tcp(probe, octets))] = &told[..] else { panic!("{told:?}") };
    assert_eq!((probe.seq, octets.len()), (peer.ack - 1, 0), "nothing is forced on it");
    rig.say(&mut peer, ACK, &[]);
    peer.window = 1000;
    let sent = rig.say(&mut peer, ACK, &[]);
    assert!(matches!(&sent[..], [Sent::Tcp(_, octets)] if octets == &[7; 100]), "{sent:?}");
}
