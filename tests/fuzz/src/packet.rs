//! One IP packet, through everything of the NAT that reads, cuts, joins or rewrites one.
//!
//! Input: an octet of what an offload has left undone (bit 0) and what the MTU is (the others, in 20 octets), and
//! the packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use nat::fragments::cut;
use nat::{
    Account, Config, Conntrack, Egress, Gathered, Headers, Ingress, Match, Nat, NoNotes, Profile,
    Rule, Rules, Sent, Source, Undone, Zone,
};
use smoltcp::time::Instant;

use crate::fingerprint;
use crate::nat::reads_as;

const NOW: Instant = Instant::from_micros_const(1_000_000);

/// Offsets lie within the packet; what is cut and put together again says the same; what is translated and
/// restored reads as it came.
pub fn packet(input: &[u8]) -> u64 {
    let Some((how, packet)) = input.split_first() else { return 0 };
    let quoted = Headers::parse_quoted(packet);
    let Ok(headers) = Headers::parse(packet) else { return fingerprint(quoted.is_ok()) };
    assert!(headers.transport <= headers.end && headers.end <= packet.len());
    let mtu = u16::from(how >> 1) * 20;
    let whole = rejoined(packet, &headers, mtu);
    fingerprint((
        quoted.is_ok(),
        headers.protocol,
        std::mem::discriminant(&headers.body),
        whole,
        passed(packet, how & 1 == 1, mtu),
    ))
}

/// Cuts a whole packet, and puts its pieces together, the last one first.
fn rejoined(packet: &[u8], headers: &Headers, mtu: u16) -> Option<usize> {
    if headers.piece.is_some() || headers.fragment_header.is_some() {
        return None;
    }
    let pieces = cut(packet, headers, mtu, 7)?;
    let mut fragments = nat::fragments::Fragments::default();
    let timeouts = nat::Timeouts::RFC;
    let mut whole = None;
    for piece in pieces.iter().rev() {
        assert!(piece.len() <= usize::from(mtu));
        let Ok(headers) = Headers::parse(piece) else { return Some(0) };
        if headers.piece.is_none() {
            return Some(1);
        }
        let from = (Zone(1), Account(1));
        if let Gathered::Complete(joined) = fragments.gather(piece, &headers, from, NOW, &timeouts)
        {
            whole = Some(joined.packet);
        }
    }
    if let Some(whole) = &whole {
        let joined = Headers::parse(whole).expect("what was put together is a packet");
        assert_eq!(
            (joined.src, joined.dst, joined.protocol),
            (headers.src, headers.dst, headers.protocol)
        );
        assert_eq!(fragments.octets(), 0);
    }
    Some(pieces.len())
}

/// Takes it through both hooks, to an uplink of that MTU, and restores it between and behind.
fn passed(packet: &[u8], partial: bool, mtu: u16) -> String {
    let (net, uplink) = (Zone(1), Zone(2));
    let mut config = Config::new(uplink, [7; 16]);
    config.nat46 = Some(Ipv4Addr::new(198, 18, 0, 1)..=Ipv4Addr::new(198, 18, 0, 9));
    let nat = Nat::new(Arc::new(Conntrack::new(4, Profile::Rfc)), config);
    let addr = IpAddr::V4(Ipv4Addr::new(172, 18, 0, 2));
    let to = nat::Destination::To { addr, first_port: Some(80), account: Account(2), zone: net };
    let published = Match { from: Some(uplink), dst_ports: 8080..=8089, ..Match::ANY };
    let masquerade = Match { to: Some(uplink), ..Match::ANY };
    nat.set_rules(Rules::new(
        vec![Rule::new(published, to)],
        vec![Rule::new(masquerade, Source::Masquerade)],
    ));
    let addresses = [Ipv4Addr::new(203, 0, 113, 1).into(), Ipv6Addr::LOCALHOST.into()];
    let mut said = String::new();
    for inside in [true, false] {
        let (from, to) = if inside { (net, uplink) } else { (uplink, net) };
        let ingress = Ingress { zone: from, inside, account: Account(1), mtu: 1500 };
        let egress = Egress { zone: to, inside: !inside, mtu, addresses: &addresses };
        let undone = Undone { partial, segment: None };
        let mut octets = packet.to_vec();
        let passage = nat.prerouting(&mut octets, undone, &ingress, NOW, &mut NoNotes);
        let sent = passage.and_then(|mut passage| {
            let sent =
                nat.postrouting(&mut octets, &mut passage, &egress, None, NOW, &mut NoNotes)?;
            if !matches!(sent, Sent::Pieces(_)) {
                assert!(Headers::parse(&octets).is_ok(), "what passes is a packet");
                passage.restore(&mut octets);
            }
            Ok(sent)
        });
        match sent {
            Ok(Sent::Pieces(pieces)) => {
                assert!(pieces.iter().all(|piece| piece.len() <= usize::from(mtu)));
                said.push_str("pieces");
            }
            Ok(Sent::Whole | Sent::LongSegments) => {
                assert!(reads_as(&octets, packet), "restored, it reads as it came");
                said.push_str("whole");
            }
            Err(refused) => {
                assert!(reads_as(&octets, packet), "what is refused reads as it came");
                said.push_str(refused.reason.name());
            }
        }
    }
    said
}
