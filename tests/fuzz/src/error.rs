//! ICMP errors about packets that were sent: whatever they quote, they reach nobody but its sender.
//!
//! Input: the family (bit 0), which of three packets is quoted and whether the error comes from inside (bits 1 to
//! 3); ICMP type and code; how much is quoted; then pairs of a place and an octet that is changed there.

use std::net::IpAddr;
use std::sync::Arc;

use nat::checksum::Sum;
use nat::headers::Body;
use nat::{
    Account, Config, Conntrack, Egress, Headers, Ingress, Match, Nat, NoNotes, Profile, Rule,
    Rules, Source, Undone, Zone,
};
use smoltcp::time::Instant;

use crate::fingerprint;

const NOW: Instant = Instant::from_micros_const(1_000_000);
const NET: Zone = Zone(1);
const UPLINK: Zone = Zone(2);

fn addr(v6: bool, which: usize) -> IpAddr {
    let texts = match v6 {
        true => ["fd00:18::2", "2001:db8:9::2", "2001:db8:1::1", "2001:db8:9::fe"],
        false => ["172.18.0.2", "198.51.100.2", "203.0.113.1", "198.51.100.254"],
    };
    texts[which].parse().expect("an address")
}

/// An IP packet; the checksum behind its header is made if it has one at `field`.
fn ip(src: IpAddr, dst: IpAddr, protocol: u8, body: &[u8], field: usize) -> Vec<u8> {
    let mut body = body.to_vec();
    let pseudo =
        if protocol == 1 { Sum::ZERO } else { Sum::pseudo_header(src, dst, protocol, body.len()) };
    let sum = pseudo.and(Sum::of(&body)).checksum().for_udp();
    body[field..field + 2].copy_from_slice(&sum.0.to_be_bytes());
    let len = u16::try_from(body.len()).expect("short");
    let mut packet = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut header = vec![0x45, 0, 0, 0, 0, 7, 0, 0, 64, protocol, 0, 0];
            header[2..4].copy_from_slice(&(len + 20).to_be_bytes());
            header.extend_from_slice(&src.octets());
            header.extend_from_slice(&dst.octets());
            let sum = Sum::of(&header).checksum();
            header[10..12].copy_from_slice(&sum.0.to_be_bytes());
            header
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut header = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
            header[4..6].copy_from_slice(&len.to_be_bytes());
            header.extend_from_slice(&src.octets());
            header.extend_from_slice(&dst.octets());
            header
        }
        _ => Vec::new(),
    };
    packet.extend_from_slice(&body);
    packet
}

/// Sends three packets, has one of them quoted, and looks where the error goes.
pub fn error(input: &[u8]) -> u64 {
    let Some(([which, kind, code, len], changes)) = input.split_first_chunk::<4>() else {
        return 0;
    };
    let (v6, from_inside) = (which & 1 == 1, which & 8 == 8);
    let nat = Nat::new(Arc::new(Conntrack::new(16, Profile::Rfc)), Config::new(UPLINK, [7; 16]));
    let matches = Match { to: Some(UPLINK), ..Match::ANY };
    nat.set_rules(Rules::new(vec![], vec![Rule::new(matches, Source::Masquerade)]));
    let addresses = [addr(v6, 2)];
    let pass = |octets: &mut Vec<u8>, inside: bool| {
        let (from, to) = if inside { (NET, UPLINK) } else { (UPLINK, NET) };
        let ingress = Ingress { zone: from, inside, account: Account(1), mtu: 1500 };
        let egress = Egress { zone: to, inside: !inside, mtu: 1500, addresses: &addresses };
        let undone = Undone::default();
        let mut passage = nat.prerouting(octets, undone, &ingress, NOW, &mut NoNotes)?;
        nat.postrouting(octets, &mut passage, &egress, None, NOW, &mut NoNotes).map(drop)
    };
    let icmp = if v6 { 58 } else { 1 };
    let echo = if v6 { 128 } else { 8 };
    let (alice, far) = (addr(v6, 0), addr(v6, 1));
    let udp = [0x9c, 0x40, 0, 9, 0, 13, 0, 0, b'h', b'e', b'l', b'l', b'o'];
    let syn = [0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0];
    let query = [echo, 0, 0, 0, 0, 77, 0, 1];
    let mut sent =
        [ip(alice, far, 17, &udp, 6), ip(alice, far, 6, &syn, 16), ip(alice, far, icmp, &query, 2)];
    sent.iter_mut().for_each(|packet| assert!(pass(packet, true).is_ok(), "it is sent"));
    let mut about = sent[usize::from(which >> 1 & 3).min(2)].clone();
    if from_inside {
        // As the answer to it reads inside.
        let mut answer = match which >> 1 & 3 {
            0 => ip(far, addr(v6, 2), 17, &[0, 9, 0x9c, 0x40, 0, 8, 0, 0], 6),
            1 => ip(
                far,
                addr(v6, 2),
                6,
                &[0, 80, 0x9c, 0x40, 0, 0, 0, 9, 0, 0, 0, 2, 0x50, 0x12, 9, 9, 0, 0, 0, 0],
                16,
            ),
            _ => {
                ip(far, addr(v6, 2), icmp, &[echo + 1 - u8::from(!v6) * 9, 0, 0, 0, 0, 77, 0, 1], 2)
            }
        };
        assert!(pass(&mut answer, false).is_ok(), "it is answered");
        about = answer;
    }
    for [place, octet] in changes.as_chunks::<2>().0 {
        let place = usize::from(*place) % about.len();
        about[place] = *octet;
    }
    about.truncate(usize::from(*len));
    let message = [&[*kind, *code, 0, 0, 0, 0, 5, 0][..], &about].concat();
    let (src, dst) = if from_inside { (alice, far) } else { (addr(v6, 3), addr(v6, 2)) };
    let mut octets = ip(src, dst, icmp, &message, 2);
    let came = octets.clone();
    let flows = nat.conntrack().len();
    let passed = pass(&mut octets, from_inside);
    assert!(octets.len() == came.len(), "an error stays as long as it is");
    match passed {
        Ok(()) => {
            let headers = Headers::parse(&octets).expect("what passes is a packet");
            let to = if from_inside { far } else { alice };
            let is_error = headers.body == Body::Error;
            assert!(!is_error || headers.dst == to, "it reaches whom it concerns");
            assert!(!from_inside || headers.src == addr(v6, 2), "nobody inside is shown");
        }
        Err(refused) => assert!(refused.tell.is_none() || nat.conntrack().len() == flows),
    }
    fingerprint((passed.map_err(|refused| refused.reason.name()), from_inside, v6, octets != came))
}
