//! A container that sends whatever it likes.

use std::io::{Read, Write};
use std::sync::Arc;

use datapath::IcmpError;
use nat::TcpFlags;
use proptest::prelude::*;
use smoltcp::time::Duration;

use super::super::segment::{Segment, SynOptions};
use super::super::seq::Seq;
use super::super::table::SYN;
use super::{Peer, Rig, Sent};
use crate::context::Readiness;
use crate::context::rig::{PORT, ZONE};

/// How far a connection is when it begins.
#[derive(Clone, Copy, Debug)]
enum Begin {
    /// The far side has not answered.
    Connecting,
    /// It has, and our SYN-ACK is out.
    Accepting,
    /// A client has come, and our SYN is out.
    Opening,
    Established,
}

fn begin(rig: &mut Rig, at: Begin) -> Peer {
    if let Begin::Opening = at {
        let (far, key, iss) = rig.client();
        return Peer { key, port: 80, seq: Seq(999), ack: iss + 1, window: 65_535, far };
    }
    if let Begin::Established = at {
        return rig.connect(4000);
    }
    let key = rig.tcp.flows.next_key();
    let syn = Rig::segment(SYN, Seq(999), Seq(0), 65_535);
    rig.inject(None, 4000, syn, &[]).0.unwrap();
    let (far, _) = rig.listener.accept().unwrap();
    let mut peer = Peer { key, port: 4000, seq: Seq(1000), ack: Seq(0), window: 65_535, far };
    if let Begin::Accepting = at {
        let connected = Readiness { writable: true, ..Readiness::default() };
        let ((), sent) = rig.act(|tcp, ctx| tcp.ready(key, connected, ctx));
        hear(&mut peer, &sent);
    }
    peer
}

/// What happens next.
#[derive(Clone, Debug)]
enum Event {
    /// A segment so far from where its fields should be.
    Segment {
        flags: u8,
        seq: i32,
        ack: i32,
        window: u16,
        len: u16,
        urgent: Option<u16>,
        sack: (i32, i32),
    },
    /// The far side writes, reads or ends.
    Write(u16),
    Read,
    Shut,
    /// An ICMP error: type, code, and about a segment so far from where our next begins.
    Told(u8, u8, u32, i32),
    /// Poll says whatever it likes.
    Ready(u8),
    /// So many milliseconds go by.
    Time(u32),
}

fn near() -> impl Strategy<Value = i32> {
    prop_oneof![4 => Just(0), 2 => -3..3_i32, 2 => -70_000..70_000_i32, 1 => any::<i32>()]
}

fn event() -> impl Strategy<Value = Event> {
    let segment = (
        prop_oneof![4 => Just(2_u8), 4 => any::<u8>()],
        near(),
        near(),
        prop_oneof![Just(0_u16), any::<u16>()],
        prop_oneof![Just(0_u16), 0..3000_u16, 0..60_000_u16],
        prop::option::weighted(0.1, any::<u16>()),
        (near(), near()),
    );
    let segment = segment.prop_map(|(flags, seq, ack, window, len, urgent, sack)| Event::Segment {
        flags,
        seq,
        ack,
        window,
        len,
        urgent,
        sack,
    });
    prop_oneof![
        8 => segment,
        2 => (1..60_000_u16).prop_map(Event::Write),
        1 => Just(Event::Read),
        1 => Just(Event::Shut),
        1 => (3..13_u8, 0..6_u8, any::<u32>(), near())
            .prop_map(|(kind, code, word, seq)| Event::Told(kind, code, word, seq)),
        2 => any::<u8>().prop_map(Event::Ready),
        2 => (0..300_000_u32).prop_map(Event::Time),
    ]
}

fn at(from: Seq, offset: i32) -> Seq {
    Seq(from.0.wrapping_add_signed(offset))
}

fn play(rig: &mut Rig, peer: &mut Peer, event: Event) {
    match event {
        Event::Segment { flags, seq, ack, window, len, urgent, sack } => {
            let bit = |n: u8| flags & 1 << n != 0;
            let segment = Segment {
                seq: at(peer.seq, seq),
                ack: at(peer.ack, ack),
                // Resets and SYNs are rare, or nothing else would ever come.
                flags: TcpFlags {
                    ack: bit(1),
                    fin: bit(2) && bit(6),
                    rst: bit(3) && bit(4) && bit(5),
                    syn: bit(3) && bit(4) && bit(7),
                },
                window,
                sacks: [
                    (sack != (0, 0)).then(|| (at(peer.ack, sack.0), at(peer.ack, sack.1))),
                    None,
                    None,
                    None,
                ],
                urgent,
            };
            let octets = if sack == (0, 0) { vec![7; usize::from(len)] } else { Vec::new() };
            let key = rig.tcp.flows.get(peer.key).map(|_| peer.key);
            let (_, sent) = rig.inject(key, peer.port, segment, &octets);
            hear(peer, &sent);
            if key.is_none() && !rig.tcp.flows.keys(|_| true).is_empty() {
                // It opened another one.
                peer.key = rig.tcp.flows.keys(|_| true)[0];
            }
        }
        Event::Write(len) => {
            peer.far.set_nonblocking(true).unwrap();
            let _ = peer.far.write(&vec![9; usize::from(len)]);
        }
        Event::Read => {
            peer.far.set_nonblocking(true).unwrap();
            let _ = peer.far.read(&mut [0; 50_000]);
        }
        Event::Shut => {
            let _ = peer.far.shutdown(std::net::Shutdown::Write);
        }
        Event::Told(kind, code, word, seq) => {
            // Only errors reach a flow, and only while it is there.
            if matches!(kind, 3 | 4 | 5 | 11 | 12) && rig.tcp.flows.get(peer.key).is_some() {
                let what = IcmpError::Told { kind, code, word };
                let (_, sent) = rig.tells(PORT, (peer.key, at(peer.ack, seq)), what);
                hear(peer, &sent);
            }
        }
        Event::Ready(bits) => {
            let ready = Readiness {
                readable: bits & 1 != 0,
                writable: bits & 2 != 0,
                hung_up: bits & 4 != 0,
                urgent: bits & 24 == 24,
            };
            let ((), sent) = rig.act(|tcp, ctx| tcp.ready(peer.key, ready, ctx));
            hear(peer, &sent);
        }
        Event::Time(millis) => {
            let told = rig.advance(Duration::from_millis(millis.into()));
            told.into_iter().for_each(|(_, sent)| hear(peer, &[sent]));
        }
    }
}

/// Takes note of where the other side is.
fn hear(peer: &mut Peer, sent: &[Sent]) {
    for one in sent {
        let Sent::Tcp(segment, octets) = one else { continue };
        if segment.flags.ack {
            peer.seq = segment.ack;
        }
        peer.ack = peer.ack.max(segment.end(octets.len()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever comes, nothing breaks, and nothing is left behind.
    #[test]
    fn whatever_a_container_sends_its_flows_end_and_leave_nothing(
        scale in prop::option::of(0..=16_u8),
        mss in any::<u16>(),
        sack in any::<bool>(),
        start in prop::sample::select(vec![
            Begin::Connecting,
            Begin::Accepting,
            Begin::Opening,
            Begin::Established,
        ]),
        events in prop::collection::vec(event(), 1..60),
    ) {
        let mut rig = Rig::new(100);
        rig.options = Some(SynOptions { mss, window_scale: scale, sack });
        let mut peer = begin(&mut rig, start);
        for event in events {
            play(&mut rig, &mut peer, event);
        }
        let limits = Arc::clone(&rig.limits);
        for key in rig.tcp.of_port(ZONE, Some(PORT)) {
            rig.act(|tcp, ctx| tcp.abandon(key, ctx));
        }
        prop_assert_eq!((rig.tcp.len(), limits.flows(), limits.waiting(ZONE, PORT)), (0, 0, 0));
        prop_assert!(rig.dp.network().conntrack.list(None).is_empty());
        prop_assert_eq!(rig.tcp.attempts.live((ZONE, PORT)), 0);
    }
}
