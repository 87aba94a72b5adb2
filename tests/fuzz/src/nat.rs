//! Packets of any kind through both hooks of the NAT.
//!
//! Input: packets one behind the other, each with three octets before it: which leg it comes by, whether
//! its checksum is partial and how long to wait before (in eights of a minute), and its length.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use nat::{
    Account, Config, Conntrack, Destination, Egress, Gathered, Headers, Ingress, Match, Nat, Note,
    Npt, Passage, Profile, Refused, Rule, Rules, Sent, Source, Undone, Zone,
};
use smoltcp::time::{Duration, Instant};

use crate::fingerprint;

const NET: Zone = Zone(1);
const UPLINK: Zone = Zone(2);
const CAPACITY: usize = 16;

fn engine() -> Nat {
    let mut config = Config::new(UPLINK, [7; 16]);
    config.nat46 = Some(Ipv4Addr::new(198, 18, 0, 1)..=Ipv4Addr::new(198, 18, 0, 9));
    config.max_mappings_of_account = 8;
    let nat = Nat::new(Arc::new(Conntrack::new(CAPACITY, Profile::Rfc)), config);
    let addr = Ipv4Addr::new(172, 18, 0, 2).into();
    let to = Destination::To { addr, first_port: Some(80), account: Account(2), zone: NET };
    let published = Match { from: Some(UPLINK), dst_ports: 8080..=8089, ..Match::ANY };
    let masquerade = Match { to: Some(UPLINK), ..Match::ANY };
    nat.set_rules(Rules::new(
        vec![Rule::new(published, to)],
        vec![Rule::new(masquerade, Source::Masquerade)],
    ));
    let prefix = |text: &str| text.parse().expect("a prefix");
    nat.set_prefixes(
        Npt::new(UPLINK, prefix("fd00:77::/48"), prefix("2001:db8:77::/48")).into_iter().collect(),
    );
    nat
}

fn is_inside(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => addr.octets()[..2] == [172, 18],
        IpAddr::V6(addr) => addr.segments()[0] == 0xfd00,
    }
}

/// What is refused reads as it came; what passes reads as a packet; no table outgrows its bound.
pub fn nat(input: &[u8]) -> u64 {
    let nat = engine();
    let mut now = Instant::from_secs(1000);
    let mut rest = input;
    let mut ways = Vec::new();
    while let Some(([leg, wait, len], tail)) = rest.split_first_chunk::<3>() {
        let (packet, tail) = tail.split_at(tail.len().min(usize::from(*len) * 4));
        rest = tail;
        now += Duration::from_secs(u64::from(wait >> 3) * 8);
        let inside = leg & 1 == 0;
        let ingress = Ingress {
            zone: if inside { NET } else { UPLINK },
            inside,
            account: Account(u32::from(leg >> 1)),
            mtu: 1500,
        };
        let undone = Undone { partial: wait & 1 == 1, segment: None };
        ways.push(offer(&nat, packet, undone, &ingress, now));
        if wait & 2 == 2 {
            nat.expire(now);
        }
        let _ = nat.due(now);
        assert!(nat.conntrack().len() <= CAPACITY);
        assert!(nat.mappings().len() <= CAPACITY);
        assert!(nat.fragment_octets() <= 4 << 20);
    }
    fingerprint(ways)
}

/// Passes a packet, put together first if it is a piece, and says what became of it.
fn offer(nat: &Nat, packet: &[u8], undone: Undone, ingress: &Ingress, now: Instant) -> String {
    let whole = match Headers::parse(packet) {
        Ok(headers) if headers.piece.is_some() => {
            match nat.gather(packet, &headers, ingress, now) {
                Gathered::Complete(whole) => whole,
                Gathered::Kept => return "kept".to_owned(),
                Gathered::Refused => return "refused piece".to_owned(),
            }
        }
        _ => nat::Whole { packet: packet.to_vec(), largest: 0 },
    };
    let largest = Some(whole.largest).filter(|largest| *largest > 0);
    let mut octets = whole.packet.clone();
    let mut notes = Vec::<Note>::new();
    let passed = nat
        .prerouting(&mut octets, undone, ingress, now, &mut notes)
        .and_then(|passage| leave(nat, &mut octets, passage, largest, now, &mut notes));
    let mut said: Vec<_> = notes.iter().map(|note| format!("{:.6}", format!("{note:?}"))).collect();
    match passed {
        Ok(Sent::Whole | Sent::LongSegments) => {
            assert!(Headers::parse(&octets).is_ok(), "what passes is a packet");
        }
        Ok(Sent::Pieces(pieces)) => {
            for piece in pieces {
                let headers = Headers::parse(&piece).expect("a piece is a packet");
                assert!(headers.end <= 1280);
            }
        }
        Err(refused) => {
            assert!(reads_as(&octets, &whole.packet), "what is refused reads as it came");
            said.push(refused.reason.name().to_owned());
        }
    }
    said.concat()
}

/// Whether both say the same. A checksum has two zeros (RFC 1624 §3), and one that was wrong may come
/// back as the other.
pub(crate) fn reads_as(one: &[u8], other: &[u8]) -> bool {
    let zero = |word: &[u8]| matches!(word, [0, 0] | [0xff, 0xff]);
    one.len() == other.len()
        && one.chunks(2).zip(other.chunks(2)).all(|(a, b)| a == b || (zero(a) && zero(b)))
}

fn leave(
    nat: &Nat,
    octets: &mut Vec<u8>,
    mut passage: Passage,
    largest: Option<u16>,
    now: Instant,
    notes: &mut Vec<Note>,
) -> Result<Sent, Refused> {
    let addresses =
        [Ipv4Addr::new(203, 0, 113, 1).into(), "2001:db8:1::1".parse().expect("an address")];
    let to = passage.destination();
    if addresses.contains(&to) {
        let refused = nat.unsolicited(octets, &passage, now);
        passage.restore(octets);
        return Err(refused);
    }
    let inside = is_inside(to);
    let zone = if inside { NET } else { UPLINK };
    let egress = Egress { zone, inside, mtu: 1280, addresses: &addresses };
    nat.postrouting(octets, &mut passage, &egress, largest, now, notes)
}
