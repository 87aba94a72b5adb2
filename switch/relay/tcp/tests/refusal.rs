//! What a container says by ICMP. RFC 1122 §4.2.3.9, RFC 5927.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;

use datapath::{DropReason, IcmpError, Offload, Outbox, Packet, PortId, Received, icmp};
use nat::TransportAddr;
use nix::errno::Errno;
use smoltcp::time::Duration;

use super::super::open::Client;
use super::super::seq::Seq;
use super::super::table::{ACK, SYN, SYN_ACK};
use super::{Rig, Sent, SynOptions, is_reset};
use crate::context::rig::{CONTAINER, GATEWAY, PORT, ZONE};
use crate::key::Key;
use crate::quote::Quoted;

impl Rig {
    /// A client of a published port, the flow it has, and the SYN the container got.
    pub(super) fn client(&mut self) -> (TcpStream, Key, Seq) {
        let local = self.listener.local_addr().unwrap();
        let far = TcpStream::connect(local).unwrap();
        far.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        let (stream, peer) = self.listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let inside = TransportAddr::new(CONTAINER.into(), 80);
        let client = Client { zone: ZONE, port: PORT, inside, stream, peer, local };
        let key = self.tcp.flows.next_key();
        let (accepted, sent) = self.act(|tcp, ctx| tcp.accept(client, ctx));
        accepted.unwrap();
        let [Sent::Tcp(syn, _)] = &sent[..] else { panic!("{sent:?}") };
        assert!(syn.flags.syn && !syn.flags.ack);
        (far, key, syn.seq)
    }

    /// A container's error about the segment of a flow that begins at `seq`.
    pub(super) fn tells(
        &mut self,
        port: PortId,
        (key, seq): (Key, Seq),
        what: IcmpError,
    ) -> (Result<(), DropReason>, Vec<Sent>) {
        let flow = self.tcp.flows.get(key).unwrap();
        let quoted = Quoted::segment(flow.outside(), flow.inside(), seq.0).packet();
        let mut scratch = Outbox::default();
        let (from, to) = (flow.inside().addr, flow.outside().addr);
        let built = icmp::error(&mut scratch, GATEWAY, from, to, what, &quoted);
        let frame = scratch.frame(built);
        let packet = Packet::parse(frame, &Offload::NONE).unwrap();
        let concerns = packet.concerns(frame).map(|tuple| (tuple.src, tuple.dst));
        let ours = packet.is_icmp_error(frame).then(|| (flow.inside(), flow.outside()));
        assert_eq!(concerns, ours);
        let received = Received { port, place: 0, frame, offload: Offload::NONE };
        self.act(|tcp, ctx| tcp.told(key, &received, &packet, ctx))
    }
}

#[test]
fn a_client_whose_syn_is_refused_by_icmp_is_reset_at_once() {
    for what in [
        IcmpError::PortUnreachable,
        IcmpError::HostUnreachable,
        IcmpError::ProtocolUnreachable(9),
        IcmpError::AdminProhibited,
        IcmpError::TimeExceeded,
    ] {
        let mut rig = Rig::new(100);
        let (mut far, key, iss) = rig.client();
        let (taken, sent) = rig.tells(PORT, (key, iss), what);
        taken.unwrap();
        assert!(sent.is_empty(), "{sent:?}");
        assert_eq!((rig.tcp.len(), rig.limits.flows()), (0, 0));
        assert_eq!(far.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}

/// RFC 5927 §4.1, and what one container says of another's connection.
#[test]
fn an_error_about_nothing_that_is_under_way_ends_nothing() {
    let mut rig = Rig::new(100);
    let (_far, key, iss) = rig.client();
    let what = IcmpError::PortUnreachable;
    for (port, seq) in [(PORT, iss + 1), (PORT, iss - 1), (PortId(7), iss)] {
        assert_eq!(rig.tells(port, (key, seq), what).0, Err(DropReason::UnknownError));
    }
    let quench = IcmpError::Told { kind: 4, code: 0, word: 0 };
    assert_eq!(rig.tells(PORT, (key, iss), quench).0, Err(DropReason::UnknownError));
    let answer = Rig::segment(SYN_ACK, Seq(999), iss + 1, 65_535);
    rig.inject(Some(key), 80, answer, &[]).0.unwrap();
    assert_eq!(rig.tcp.len(), 1);
}

/// RFC 1122 §4.2.3.9: to an open connection an unreachable host is a hint.
#[test]
fn an_open_connection_outlives_errors() {
    let mut rig = Rig::new(100);
    let mut peer = rig.connect(4000);
    rig.far_writes(&mut peer, b"hello");
    let at = (peer.key, peer.ack);
    rig.tells(PORT, at, IcmpError::HostUnreachable).0.unwrap();
    peer.ack += 5;
    let sent = rig.say(&mut peer, ACK, &[]);
    assert!(!sent.iter().any(is_reset) && rig.tcp.len() == 1, "{sent:?}");
}

/// RFC 1191 §6.4, RFC 5927 §7: what a router inside could not forward goes again in shorter segments, and no
/// forged word makes them tiny.
#[test]
fn segments_too_long_for_a_router_inside_go_again_shorter() {
    for (mtu, mss) in [(1300, 1260), (68, 512), (9000, 1460)] {
        let mut rig = Rig::new(100);
        rig.options = Some(SynOptions { mss: 1460, window_scale: None, sack: true });
        let mut peer = rig.connect(4000);
        rig.far_writes(&mut peer, &[7; 5000]);
        let (taken, sent) = rig.tells(PORT, (peer.key, peer.ack), IcmpError::TooBig(mtu));
        taken.unwrap();
        assert_eq!(rig.tcp.flows.get(peer.key).unwrap().snd.mss, mss);
        if mtu < 1500 {
            let [Sent::Tcp(again, octets)] = &sent[..] else { panic!("{sent:?}") };
            assert_eq!((again.seq, octets.len()), (peer.ack, 5000));
        } else {
            assert!(sent.is_empty(), "{sent:?}");
        }
        peer.ack += 5000;
        rig.say(&mut peer, ACK, &[]);
        assert!(rig.advance(Duration::from_secs(60)).is_empty());
    }
}

/// RFC 792, RFC 5508 REQ-4: whose SYN is refused by ICMP is shown it as it was sent, options and all.
#[test]
fn i4_a_refused_syn_is_quoted_octet_for_octet() {
    let mut rig = Rig::new(100);
    rig.options = Some(SynOptions { mss: 1460, window_scale: Some(7), sack: true });
    let syn = Rig::segment(SYN, Seq(999), Seq(0), 65_535);
    let (frame, _) = rig.frame(None, 4000, syn, &[]);
    let key = rig.tcp.flows.next_key();
    rig.inject(None, 4000, syn, &[]).0.unwrap();
    let ((), sent) = rig.act(|tcp, ctx| tcp.refuse(key, Errno::EHOSTUNREACH, ctx));
    let [Sent::Icmp(told)] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!(told[8..], frame[Packet::IP..]);
}
