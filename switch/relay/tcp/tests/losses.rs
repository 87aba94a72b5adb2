//! A container behind a queue that loses segments.

use std::io::Write;

use mio::event::Event;
use proptest::prelude::*;
use smoltcp::time::{Duration, Instant};

use super::super::segment::SynOptions;
use super::super::seq::Seq;
use super::super::table::ACK;
use super::{Peer, READY, Rig, Sent};

const MSS: u16 = 1000;

/// What has arrived of a stream of a container's.
struct Stream {
    base: Seq,
    arrived: Vec<bool>,
}

impl Stream {
    fn of(rig: &mut Rig, port: u16, octets: usize) -> (Self, Peer) {
        rig.options = Some(SynOptions { mss: MSS, window_scale: Some(4), sack: true });
        let peer = rig.connect(port);
        (Self { base: peer.ack, arrived: vec![false; octets] }, peer)
    }

    /// The container gets those segments that are not lost, and acknowledges each frame of which any came.
    /// Returns what it is sent for that.
    fn take(
        &mut self,
        rig: &mut Rig,
        peer: &mut Peer,
        sent: &[Sent],
        mut lost: impl FnMut() -> bool,
    ) -> Vec<Sent> {
        let mut told = Vec::new();
        for one in sent {
            let Sent::Tcp(segment, octets) = one else { panic!("{one:?}") };
            assert!(!segment.flags.rst, "given up");
            let first = usize::try_from(segment.seq.since(self.base)).unwrap();
            let mut any = octets.is_empty();
            for at in (0..octets.len()).step_by(MSS.into()).filter(|_| !lost()) {
                let end = (at + usize::from(MSS)).min(octets.len());
                for (n, octet) in octets[at..end].iter().enumerate() {
                    assert_eq!(*octet, Self::octet(first + at + n));
                }
                self.arrived[first + at..first + end].fill(true);
                any = true;
            }
            if any {
                told.extend(self.acknowledge(rig, peer));
            }
        }
        told
    }

    fn octet(at: usize) -> u8 {
        u8::try_from(at % 251).unwrap()
    }

    fn acknowledge(&self, rig: &mut Rig, peer: &mut Peer) -> Vec<Sent> {
        let mut at = self.arrived.iter().take_while(|here| **here).count();
        peer.ack = self.seq(at);
        let mut ack = Rig::segment(ACK, peer.seq, peer.ack, peer.window);
        for block in ack.sacks.iter_mut().take(3) {
            let Some(gap) = self.arrived[at..].iter().position(|here| *here) else { break };
            let len = self.arrived[at + gap..].iter().take_while(|here| **here).count();
            *block = Some((self.seq(at + gap), self.seq(at + gap + len)));
            at += gap + len;
        }
        let (taken, sent) = rig.inject(Some(peer.key), peer.port, ack, &[]);
        taken.unwrap();
        sent
    }

    fn seq(&self, at: usize) -> Seq {
        self.base + u32::try_from(at).unwrap()
    }

    fn is_whole(&self) -> bool {
        self.arrived.iter().all(|here| *here)
    }

    /// The far side writes octets from `at` on.
    fn written(rig: &mut Rig, peer: &mut Peer, from: usize, len: usize) -> Vec<Sent> {
        let octets: Vec<u8> = (from..from + len).map(Self::octet).collect();
        rig.far_writes(peer, &octets)
    }

    /// Lets time go by until something is sent.
    fn wait(rig: &mut Rig) -> Vec<Sent> {
        let start = rig.now;
        while rig.now - start < Duration::from_secs(300) {
            let next = rig.tcp.poll_timeout().unwrap_or(Instant::ZERO).max(rig.now);
            let told = rig.advance(next - rig.now);
            if !told.is_empty() {
                return told.into_iter().map(|(_, sent)| sent).collect();
            }
        }
        panic!("nothing is sent any more");
    }
}

/// RFC 8985 §7: the end of a flight, if that is more than a segment, is missed long before the retransmission timeout, whichever part of it is
/// lost; and if what is sent once more is lost as well, that timeout holds.
#[test]
fn a_lost_end_is_sent_again_within_a_few_round_trips() {
    for (arrives, probe_is_lost) in [(0, false), (7, false), (8, false), (0, true)] {
        let mut rig = Rig::new(100);
        let (mut stream, mut peer) = Stream::of(&mut rig, 4000, 20_000);
        let sent = Stream::written(&mut rig, &mut peer, 0, 10_000);
        assert!(stream.take(&mut rig, &mut peer, &sent, || false).is_empty());
        let sent = Stream::written(&mut rig, &mut peer, 10_000, 10_000);
        let start = rig.now;
        let mut segment = 0;
        let mut sent = stream.take(&mut rig, &mut peer, &sent, || {
            segment += 1;
            segment > arrives
        });
        assert!(sent.is_empty(), "{sent:?}");
        let mut lost = probe_is_lost;
        for _ in 0..10 {
            if sent.is_empty() {
                sent = Stream::wait(&mut rig);
            }
            sent = stream.take(&mut rig, &mut peer, &sent, || lost);
            lost = false;
            if stream.is_whole() {
                break;
            }
        }
        assert!(stream.is_whole());
        let most = if probe_is_lost { 250 } else { 50 };
        assert!(rig.now - start < Duration::from_millis(most), "it took {}", rig.now - start);
        assert!(rig.advance(Duration::from_secs(60)).is_empty(), "nothing is left to be said");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever is lost, however often: all of the stream arrives, unharmed.
    #[test]
    fn a_stream_survives_every_pattern_of_losses(
        lost in prop::collection::vec(prop::bool::weighted(0.3), 0..300),
        writes in prop::collection::vec(1..20_000_usize, 1..6),
    ) {
        let mut rig = Rig::new(100);
        let (mut stream, mut peer) = Stream::of(&mut rig, 4000, writes.iter().sum());
        let mut lost = lost.into_iter();
        let mut run = 0;
        // Whoever is lost ever so often is given up.
        let mut lose = || {
            let lost = run < 8 && lost.next().unwrap_or(false);
            run = if lost { run + 1 } else { 0 };
            lost
        };
        let mut from = 0;
        for len in writes {
            let octets: Vec<u8> = (from..from + len).map(Stream::octet).collect();
            peer.far.write_all(&octets).unwrap();
            from += len;
            rig.await_event(peer.key, Event::is_readable);
            let ((), mut sent) = rig.act(|tcp, ctx| tcp.ready(peer.key, READY, ctx));
            for _ in 0..5 {
                sent = stream.take(&mut rig, &mut peer, &sent, &mut lose);
            }
        }
        for _ in 0..2000 {
            if stream.is_whole() {
                break;
            }
            let mut sent = Stream::wait(&mut rig);
            for _ in 0..20 {
                sent = stream.take(&mut rig, &mut peer, &sent, &mut lose);
            }
        }
        prop_assert!(stream.is_whole());
    }
}
