//! How connections end: whoever is first, in whatever order, and what was said before.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;

use datapath::{DropReason, Packet, Received};
use mio::event::Event;
use nat::TcpState;
use nix::sys::socket::{MsgFlags, send, setsockopt, sockopt};
use smoltcp::time::Duration;

use super::super::seq::Seq;
use super::super::table::{ACK, FIN_ACK, RST, RST_ACK, SYN};
use super::{Peer, READY, Rig, Sent, is_reset};
use crate::context::Readiness;
use crate::context::rig::PORT;

const HUNG_UP: Readiness = Readiness { hung_up: true, ..READY };

impl Rig {
    /// The far side has finished or gone, and the host socket says so.
    fn far_ends(&mut self, peer: &Peer, wanted: fn(&Event) -> bool) -> Vec<Sent> {
        self.await_event(peer.key, wanted);
        self.act(|tcp, ctx| tcp.ready(peer.key, HUNG_UP, ctx)).1
    }

    /// What poll has said so far is nothing new.
    fn forget_events(&mut self) {
        let mut events = mio::Events::with_capacity(1024);
        self.poll.poll(&mut events, Some(std::time::Duration::ZERO)).unwrap();
    }

    /// A stream to take a far side's place, which closes it.
    fn nobody(&self) -> TcpStream {
        let stream = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        drop(self.listener.accept().unwrap());
        stream
    }

    fn is_over(&self) -> bool {
        (self.tcp.len(), self.limits.flows()) == (0, 0)
            && self.dp.network().conntrack.list(None).is_empty()
    }
}

fn is_fin(sent: &[Sent], octets: &[u8]) -> bool {
    let mut carried = Vec::new();
    for one in sent {
        let Sent::Tcp(_, octets) = one else { return false };
        carried.extend_from_slice(octets);
    }
    carried == octets && matches!(sent.last(), Some(Sent::Tcp(last, _)) if last.flags.fin)
}

/// RFC 9293 §3.6: an orderly end is one for both, whoever begins it, also where both do at once and where a
/// FIN comes with the last octets.
#[test]
fn every_order_of_ending_is_orderly_for_both() {
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum First {
        Container,
        Far,
        Both,
    }
    for (first, last) in [First::Container, First::Far, First::Both]
        .into_iter()
        .flat_map(|first| [(first, &b""[..]), (first, b"last words")])
    {
        let mut rig = Rig::new(100);
        let mut peer = rig.connect(4000);
        let mut heard = Vec::new();
        if first == First::Container {
            rig.say(&mut peer, FIN_ACK, last);
            peer.seq += 1;
            peer.far.read_to_end(&mut heard).unwrap();
            assert_eq!(heard, last);
        }
        rig.forget_events();
        peer.far.write_all(last).unwrap();
        peer.far.shutdown(Shutdown::Write).unwrap();
        let sent = rig.far_ends(&peer, Event::is_read_closed);
        assert!(is_fin(&sent, last), "{sent:?}");
        let end = peer.ack + u32::try_from(last.len()).unwrap() + 1;
        match first {
            First::Container => {
                peer.ack = end;
                rig.say(&mut peer, ACK, &[]);
            }
            First::Far => {
                peer.ack = end;
                rig.say(&mut peer, ACK, &[]);
                assert!(!rig.is_over(), "the other half is open");
                rig.say(&mut peer, FIN_ACK, last);
            }
            First::Both => {
                // Its FIN has crossed ours, which it acknowledges then.
                rig.say(&mut peer, FIN_ACK, last);
                peer.seq += 1;
                assert!(!rig.is_over(), "our FIN may be lost");
                peer.ack = end;
                rig.say(&mut peer, ACK, &[]);
            }
        }
        assert!(rig.is_over());
        if first != First::Container {
            peer.far.read_to_end(&mut heard).unwrap();
            assert_eq!(heard, last);
        }
    }
}

/// The same, where urgent octets have made the host's kernel count the stream in two parts: what the
/// container said last is on its way still, and must not be thrown away for octets that were read.
#[test]
fn an_end_behind_an_urgent_octet_is_no_reset() {
    let mut rig = Rig::new(100);
    let mut peer = rig.connect(4000);
    rig.forget_events();
    peer.far.write_all(b"before").unwrap();
    send(peer.far.as_raw_fd(), b"!", MsgFlags::MSG_OOB).unwrap();
    peer.far.write_all(b"behind").unwrap();
    peer.far.shutdown(Shutdown::Write).unwrap();
    rig.await_event(peer.key, Event::is_read_closed);
    let ready = Readiness { urgent: true, ..HUNG_UP };
    let ((), sent) = rig.act(|tcp, ctx| tcp.ready(peer.key, ready, ctx));
    assert!(is_fin(&sent, b"before!behind"), "{sent:?}");
    peer.ack += 14;
    let octets = vec![7; 60_000];
    (0..20).for_each(|_| drop(rig.say(&mut peer, ACK, &octets)));
    rig.say(&mut peer, FIN_ACK, b"the end");
    assert!(rig.is_over());
    let mut heard = Vec::new();
    peer.far.read_to_end(&mut heard).unwrap();
    assert_eq!(heard.len(), 20 * octets.len() + 7);
}

/// RFC 9293 §3.10.7.1: what is said to a far side that is gone is answered by a reset, whatever the container
/// does next.
#[test]
fn octets_for_a_far_side_that_is_gone_are_answered_by_a_reset() {
    let mut rig = Rig::new(100);
    let mut peer = rig.connect(4000);
    rig.forget_events();
    peer.far.shutdown(Shutdown::Both).unwrap();
    let sent = rig.far_ends(&peer, Event::is_read_closed);
    assert!(is_fin(&sent, b""), "{sent:?}");
    peer.ack += 1;
    rig.say(&mut peer, ACK, &[]);
    rig.forget_events();
    rig.say(&mut peer, ACK, b"anybody there");
    let sent = rig.far_ends(&peer, Event::is_error);
    assert!(sent.iter().any(is_reset), "{sent:?}");
    assert!(rig.is_over());
}

/// RFC 5961 §3: a reset that is not believed moves nothing, in no table.
#[test]
fn a_reset_elsewhere_in_the_window_is_asked_back_about_and_moves_nothing() {
    let mut rig = Rig::new(100);
    let peer = rig.connect(4000);
    for (seq, answered) in [(peer.seq + 1, true), (peer.seq - 1, false), (peer.seq + 70_000, false)]
    {
        let reset = Rig::segment(RST, seq, Seq(0), 0);
        let (taken, sent) = rig.inject(Some(peer.key), peer.port, reset, &[]);
        assert_eq!(taken, Err(DropReason::OutOfWindow));
        assert_eq!(sent.len(), usize::from(answered), "{sent:?}");
        let listed = rig.dp.network().conntrack.list(None);
        assert_eq!(listed[0].state(), TcpState::Established);
    }
    let beyond = Rig::segment(FIN_ACK, peer.seq + 70_000, peer.ack, 1000);
    rig.inject(Some(peer.key), peer.port, beyond, &[]).0.unwrap_err();
    assert_eq!(rig.dp.network().conntrack.list(None)[0].state(), TcpState::Established);
    let reset = Rig::segment(RST_ACK, peer.seq, peer.ack, 0);
    rig.inject(Some(peer.key), peer.port, reset, &[]).0.unwrap();
    assert!(rig.is_over());
}

/// RFC 5961 §4, RFC 9293 §3.10.7.4: a container that has forgotten the connection opens it anew: told where
/// we are, it resets, and its SYN again is a new one.
#[test]
fn a_new_incarnation_of_a_connection_follows_a_challenge_and_a_reset() {
    let mut rig = Rig::new(100);
    let mut peer = rig.connect(4000);
    for seq in [Seq(5_000_000), peer.seq + 10, peer.seq - 1] {
        let syn = Rig::segment(SYN, seq, Seq(0), 65_535);
        let (_, sent) = rig.inject(Some(peer.key), peer.port, syn, &[]);
        let [Sent::Tcp(challenge, _)] = &sent[..] else { panic!("{sent:?}") };
        assert_eq!((challenge.flags, challenge.ack), (ACK, peer.seq));
        assert_eq!(challenge.seq, peer.ack);
    }
    let reset = Rig::segment(RST, peer.seq, Seq(0), 0);
    rig.inject(Some(peer.key), peer.port, reset, &[]).0.unwrap();
    assert!(rig.is_over());
    assert_eq!(peer.far.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    rig.connect(4000);
}

/// RFC 9293 §3.8.4, §3.8.6.1: whoever asks whether we are there, with an octet or without, is told.
#[test]
fn a_keepalive_and_a_probe_are_answered() {
    let mut rig = Rig::new(100);
    let mut peer = rig.connect(4000);
    rig.say(&mut peer, ACK, b"x");
    for (seq, octets) in [(peer.seq - 1, &b""[..]), (peer.seq - 1, b"x")] {
        let ask = Rig::segment(ACK, seq, peer.ack, peer.window);
        let (taken, sent) = rig.inject(Some(peer.key), peer.port, ask, octets);
        taken.unwrap();
        let [Sent::Tcp(answer, _)] = &sent[..] else { panic!("{sent:?}") };
        assert_eq!((answer.flags, answer.seq, answer.ack), (ACK, peer.ack, peer.seq));
    }
    assert!(rig.advance(Duration::from_secs(60)).is_empty());
}

/// A far side that resets with octets on the way to a container which reads nothing holds neither for ever:
/// what it said waits for a while, and is followed by its reset.
#[test]
fn a_reset_behind_octets_nobody_reads_is_told_in_the_end() {
    let mut rig = Rig::new(100);
    let mut peer = rig.connect(4000);
    peer.window = 0;
    rig.say(&mut peer, ACK, &[]);
    rig.far_writes(&mut peer, b"unread");
    rig.forget_events();
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&peer.far, sockopt::Linger, &linger).unwrap();
    peer.far = rig.nobody();
    let sent = rig.far_ends(&peer, Event::is_error);
    assert!(!sent.iter().any(is_reset), "its octets come first");
    for _ in 0..120 {
        for (_, sent) in rig.advance(Duration::from_secs(1)) {
            if is_reset(&sent) {
                assert!(rig.is_over());
                return;
            }
            rig.say(&mut peer, ACK, &[]);
        }
    }
    panic!("probed for ever");
}

/// RFC 9293 §3.4.1: a port is used again as soon as its connection has ended, also where the end and the new SYN
/// come together.
#[test]
fn a_port_connects_again_right_behind_its_end() {
    let mut rig = Rig::new(100);
    let mut peer = rig.connect(4000);
    rig.say(&mut peer, FIN_ACK, &[]);
    rig.forget_events();
    peer.far.shutdown(Shutdown::Write).unwrap();
    rig.far_ends(&peer, Event::is_read_closed);
    let last = Rig::segment(ACK, peer.seq + 1, peer.ack + 1, 65_535);
    let syn = Rig::segment(SYN, Seq(9_000_000), Seq(0), 65_535);
    let (outcomes, sent) = {
        let frames = [last, syn].map(|segment| rig.frame(Some(peer.key), peer.port, segment, &[]));
        rig.act(|tcp, ctx| {
            frames.each_ref().map(|(frame, offload)| {
                let packet = Packet::parse(frame, offload).unwrap();
                let received = Received { port: PORT, place: 0, frame, offload: *offload };
                tcp.segment(peer.key, &received, &packet, ctx)
            })
        })
    };
    assert_eq!((outcomes, sent.len()), ([Ok(()), Ok(())], 0));
    assert_eq!((rig.tcp.len(), rig.limits.flows()), (1, 1));
    rig.listener.accept().unwrap();
}
