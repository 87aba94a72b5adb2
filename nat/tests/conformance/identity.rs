//! Translation undone is the identity, whatever the protocol, the family, and what an offload has left undone.

use nat::{Buffer, Config, Egress, Ingress, NoNotes, Sent, Undone};
use proptest::prelude::*;

use crate::lab::{ALICE, EXTERNAL, EXTERNAL6, Frame, Lab, NET, UPLINK};
use crate::offload::{finish, partial};
use crate::wire::{SYN, SYN_ACK, Tcp, echo, ip, read, tcp, udp};

#[derive(Clone, Copy, Debug)]
enum Kind {
    Tcp,
    Udp,
    Echo,
    Sctp,
    UdpLite,
    Dccp,
    Gre,
}

fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(vec![
        Kind::Tcp,
        Kind::Udp,
        Kind::Echo,
        Kind::Sctp,
        Kind::UdpLite,
        Kind::Dccp,
        Kind::Gre,
    ])
}

/// A packet between two addresses and ports, or its answer.
fn packet(kind: Kind, from: (&str, u16), to: (&str, u16), payload: &[u8], answer: bool) -> Vec<u8> {
    let at = |(addr, port): (&str, u16)| {
        std::net::SocketAddr::new(addr.parse().unwrap(), port).to_string()
    };
    let raw = |protocol, fixed: &[u8]| {
        let ports = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
        let octets = [&ports, fixed, payload].concat();
        ip(from.0.parse().unwrap(), to.0.parse().unwrap(), protocol, &octets)
    };
    match kind {
        Kind::Tcp => {
            let flags = if answer { SYN_ACK } else { SYN };
            let ack = if answer { 101 + u32::try_from(payload.len()).unwrap() } else { 0 };
            let payload = payload.to_vec();
            tcp(&at(from), &at(to), &Tcp { flags, seq: 100, ack, payload, options: vec![] })
        }
        Kind::Udp => udp(&at(from), &at(to), payload),
        Kind::Echo => echo(from.0, to.0, if answer { to.1 } else { from.1 }, answer),
        Kind::Sctp if answer => raw(132, &[0, 0, 0, 9, 1, 2, 3, 4, 2, 0, 0, 8, 0, 0, 0, 7][..16]),
        Kind::Sctp => raw(132, &[0, 0, 0, 0, 1, 2, 3, 4, 1, 0, 0, 8, 0, 0, 0, 9]),
        Kind::UdpLite => raw(136, &[0, 8, 0x12, 0x34]),
        Kind::Dccp => raw(33, &[5, 0, 0x12, 0x34, if answer { 3 } else { 1 }, 0, 0, 1, 0, 0, 0, 2]),
        Kind::Gre => ip(from.0.parse().unwrap(), to.0.parse().unwrap(), 47, payload),
    }
}

/// Without what may differ: the identification of an IPv4 packet that may be cut, and so its checksum.
fn plain(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// Both hooks, and undoing them between and behind; returns the packet behind both.
fn there_and_back(lab: &Lab, packet: &[u8], undone: Undone, inside: bool) -> Vec<u8> {
    let (from, to) = if inside { (NET, UPLINK) } else { (UPLINK, NET) };
    let ingress = Ingress { zone: from, inside, account: ALICE, mtu: 1500 };
    let addresses = [EXTERNAL.parse().unwrap(), EXTERNAL6.parse().unwrap()];
    let egress = Egress { zone: to, inside: !inside, mtu: 1500, addresses: &addresses };
    let mut sent = None;
    for half_way in [false, true, false] {
        let mut frame = Frame::of(packet);
        let mut passage =
            lab.nat.prerouting(&mut frame, undone, &ingress, lab.now, &mut NoNotes).unwrap();
        if !half_way {
            let passed =
                lab.nat.postrouting(&mut frame, &mut passage, &egress, None, lab.now, &mut NoNotes);
            assert_eq!(passed, Ok(Sent::Whole));
            sent = Some(frame.octets().to_vec());
        }
        passage.restore(&mut frame);
        assert!(frame.octets() == packet, "restored, it reads as it came");
    }
    sent.unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn translation_undone_is_the_identity(
        kind in kind(),
        host in 2..250u8,
        far in 2..250u8,
        ports in (1u16.., 1u16..),
        v6 in any::<bool>(),
        payload in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let lab = Lab::with(Config { liberal: true, ..Config::new(UPLINK, [5; 16]) });
        let (inner, outer) = match v6 {
            true => (format!("fd00:18::{host:x}"), format!("2001:db8:9::{far:x}")),
            false => (format!("172.18.0.{host}"), format!("198.51.100.{far}")),
        };
        let shown = if v6 { EXTERNAL6 } else { EXTERNAL };
        let (from, to) = ((&*inner, ports.0), (&*outer, ports.1));
        // SCTP's chunks are whole words here, and nothing follows them.
        let payload = if matches!(kind, Kind::Sctp) { &[][..] } else { &payload };
        let question = packet(kind, from, to, payload, false);
        let sent = there_and_back(&lab, &question, Undone::default(), true);
        // Everything is kept: out and in again with the external port makes what an answer would be.
        let expected = packet(kind, (shown, ports.0), to, payload, false);
        if !matches!(kind, Kind::UdpLite | Kind::Dccp) {
            prop_assert_eq!(plain(sent), plain(expected));
        }
        let answer = packet(kind, to, (shown, ports.0), payload, true);
        let back = there_and_back(&lab, &answer, Undone::default(), false);
        let expected = packet(kind, to, from, payload, true);
        if !matches!(kind, Kind::UdpLite | Kind::Dccp) {
            prop_assert_eq!(plain(back), plain(expected));
        }
    }

    #[test]
    fn with_work_left_undone_it_is_the_same_work(
        stream in any::<bool>(),
        v6 in any::<bool>(),
        size in 100..1400u16,
        segmented in any::<bool>(),
        payload in prop::collection::vec(any::<u8>(), 1..1400),
        times in 1..40usize,
        ports in (1u16.., 1u16..),
    ) {
        let lab = Lab::with(Config { liberal: true, ..Config::new(UPLINK, [5; 16]) });
        let (inner, outer, shown) = match v6 {
            true => ("fd00:18::2", "2001:db8:9::2", EXTERNAL6),
            false => ("172.18.0.2", "198.51.100.2", EXTERNAL),
        };
        let kind = if stream { Kind::Tcp } else { Kind::Udp };
        let payload = if segmented { payload.repeat(times) } else { payload };
        let undone = Undone { partial: true, segment: segmented.then_some(size) };
        let (from, to) = ((inner, ports.0), (outer, ports.1));
        let question = partial(packet(kind, from, to, &payload, false));
        let sent = finish(there_and_back(&lab, &question, undone, true));
        prop_assert_eq!(read(&sent).src.to_string(), read(&packet(kind, (shown, ports.0), to, b"", false)).src.to_string());
        prop_assert_eq!(plain(sent), plain(packet(kind, (shown, ports.0), to, &payload, false)));
        let answer = partial(packet(kind, to, (shown, ports.0), &payload, true));
        let back = finish(there_and_back(&lab, &answer, undone, false));
        prop_assert_eq!(plain(back), plain(packet(kind, to, from, &payload, true)));
    }
}
