//! What is told to whom: each sender on its own side, about its packet as it sent it.

use datapath::DropReason;
use pnet::packet::tcp::TcpFlags;

use crate::town::{NET, OURS, P1, Plan, ROUTER, SEGMENT, Sent, Town, distant, on_link};
use crate::ways::{down, one, relay, up};
use crate::wire::{ALICE, GATEWAY, Tcp, What, ip};

const FAMILIES: [bool; 2] = [false, true];
const SYN: Tcp = Tcp { flags: TcpFlags::SYN, seq: 100, ack: 0 };

/// The error of this type and code that went to Alice, about her packet.
#[track_caller]
pub(crate) fn told_alice(said: Vec<Sent>, v6: bool, (kind, code): (u8, u8), about: &[u8]) -> u32 {
    let seen = one(said, NET, P1);
    assert_eq!((seen.src, seen.dst), (GATEWAY.mac, ALICE.mac));
    let What::Icmp { ip, kind: told, code: with, word, body } = seen.what else {
        panic!("{seen:?}")
    };
    assert_eq!((told, with, ip.src, ip.dst), (kind, code, GATEWAY.addr(v6), ALICE.addr(v6)));
    assert_eq!(body, &about[..about.len().min(body.len())]);
    assert!(body.len() >= about.len().min(500), "{} octets quoted", body.len());
    word
}

/// RFC 1812 §5.3.1, §4.3.3.5.
#[test]
fn a_packet_at_its_last_hop_dies_on_either_side() {
    for (v6, error) in FAMILIES.into_iter().zip([(11, 0), (3, 0)]) {
        let mut town = Town::new(Plan::default());
        let packet = ip(ALICE.addr(v6), distant(v6)).ttl(1).udp(4000, 53, b"one hop");
        let Err((why, said)) = town.bring(NET, P1, &up(&packet)) else { panic!() };
        assert_eq!(why, DropReason::TtlExceeded);
        told_alice(said, v6, error, &packet);
        // An answer that was to reach her, too: its sender is told about what it sent.
        let question = ip(ALICE.addr(v6), distant(v6)).udp(4000, 53, b"q");
        assert!(town.bring(NET, P1, &up(&question)).is_ok());
        let packet = ip(distant(v6), OURS.addr(v6)).ttl(1).udp(53, 4000, b"a");
        let Err((why, said)) = town.bring(SEGMENT, P1, &down(&packet)) else { panic!() };
        assert_eq!(why, DropReason::TtlExceeded);
        let seen = one(said, SEGMENT, P1);
        assert_eq!((seen.src, seen.dst), (OURS.mac, ROUTER.mac));
        let What::Icmp { ip, kind, code, body, .. } = seen.what else { panic!("{seen:?}") };
        assert_eq!(((kind, code), ip.src, ip.dst), (error, OURS.addr(v6), distant(v6)));
        assert_eq!(body, packet, "as it came");
    }
}

/// Nor has the relay any more of it.
#[test]
fn a_relayed_flow_s_packet_dies_at_its_last_hop() {
    let mut town = Town::new(Plan::default());
    relay(&town);
    let data = Tcp { flags: TcpFlags::ACK, seq: 1, ack: 1 };
    let packet = ip(ALICE.v4, distant(false)).ttl(1).tcp(80, 999, data, b"hello");
    let Err((why, said)) = town.bring(NET, P1, &up(&packet)) else { panic!("it is passed on") };
    assert_eq!((why, town.owned), (DropReason::TtlExceeded, None));
    told_alice(said, false, (11, 0), &packet);
}

/// RFC 4787 REQ-13, RFC 1191, RFC 8201.
#[test]
fn what_may_not_be_cut_and_does_not_fit_is_told_the_mtu() {
    for (v6, error) in FAMILIES.into_iter().zip([(3, 4), (2, 0)]) {
        let mut town = Town::new(Plan { mtu: 1400, ..Plan::default() });
        let mut packet = ip(ALICE.addr(v6), distant(v6)).udp(4000, 53, &[7; 1420]);
        if !v6 {
            dont_fragment(&mut packet);
        }
        let Err((why, said)) = town.bring(NET, P1, &up(&packet)) else { panic!() };
        assert_eq!(why, DropReason::TooBig);
        assert_eq!(told_alice(said, v6, error, &packet), 1400);
        assert!(town.nat.conntrack().len() <= 1);
    }
}

/// Sets DF, and with it the header's checksum right: RFC 1624.
pub(crate) fn dont_fragment(packet: &mut [u8]) {
    packet[6] |= 0x40;
    packet[10..12].fill(0);
    let header = pnet::packet::ipv4::Ipv4Packet::new(packet).unwrap();
    let checksum = pnet::packet::ipv4::checksum(&header);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
}

#[test]
fn without_a_router_there_is_no_way() {
    for (v6, error) in FAMILIES.into_iter().zip([(3, 0), (1, 0)]) {
        let mut town = Town::new(Plan { routes: on_link(), ..Plan::default() });
        let packet = ip(ALICE.addr(v6), distant(v6)).udp(4000, 53, b"where?");
        let Err((why, said)) = town.bring(NET, P1, &up(&packet)) else { panic!() };
        assert_eq!(why, DropReason::NoRoute);
        told_alice(said, v6, error, &packet);
        assert!(town.nat.conntrack().is_empty(), "no flow for what goes nowhere");
    }
}

/// RFC 1122 §2.3.2.2, RFC 1812 §4.3.3.1: what waits for a neighbour that does not answer.
#[test]
fn a_neighbour_that_does_not_answer_is_unreachable() {
    for (v6, error) in FAMILIES.into_iter().zip([(3, 1), (1, 3)]) {
        let mut town = Town::new(Plan::default());
        let nobody = if v6 { "2001:db8:7::77" } else { "198.51.100.77" };
        let nobody: std::net::IpAddr = nobody.parse().unwrap();
        let mut packet = ip(ALICE.addr(v6), nobody).ttl(9).udp(4000, 53, b"anybody?");
        if !v6 {
            // Else it has another identification by now (RFC 6864 §4.1).
            dont_fragment(&mut packet);
        }
        let asked = town.bring(NET, P1, &up(&packet)).unwrap();
        assert_eq!((asked.len(), asked[0].zone), (1, SEGMENT), "asked for at once");
        let said = town.advance(2);
        assert!(said.iter().all(|sent| sent.zone == SEGMENT), "asked for twice more");
        assert_eq!(said.len(), 2);
        told_alice(town.advance(2), v6, error, &packet);
    }
}

/// RFC 5382 REQ-4.
#[test]
fn an_unsolicited_syn_is_answered_after_six_seconds() {
    for (v6, error) in FAMILIES.into_iter().zip([(3, 3), (1, 4)]) {
        let mut town = Town::new(Plan::default());
        let packet = ip(distant(v6), OURS.addr(v6)).tcp(999, 22, SYN, b"");
        let Err((why, said)) = town.bring(SEGMENT, P1, &down(&packet)) else { panic!() };
        assert_eq!((why, said.len()), (DropReason::Filtered, 0));
        assert_eq!(town.advance(5).len(), 0);
        let seen = one(town.advance(2), SEGMENT, P1);
        assert_eq!(seen.dst, ROUTER.mac);
        let What::Icmp { ip: header, kind, code, body, .. } = seen.what else { panic!("{seen:?}") };
        assert_eq!(((kind, code), header.src, header.dst), (error, OURS.addr(v6), distant(v6)));
        assert_eq!(body, packet);
        // Not if somebody inside opens the same connection meanwhile.
        let packet = ip(distant(v6), OURS.addr(v6)).tcp(999, 4001, SYN, b"");
        assert!(town.bring(SEGMENT, P1, &down(&packet)).is_err());
        let other = ip(ALICE.addr(v6), distant(v6)).tcp(4001, 999, SYN, b"");
        assert!(town.bring(NET, P1, &up(&other)).is_ok());
        assert_eq!(town.advance(10).len(), 0);
    }
}

/// RFC 5508 REQ-4, REQ-6: an error from beyond reaches Alice, about the packet as she sent it.
#[test]
fn an_error_from_beyond_is_translated_back() {
    for (v6, error) in FAMILIES.into_iter().zip([(3, 3), (1, 4)]) {
        let mut town = Town::new(Plan::default());
        let packet = ip(ALICE.addr(v6), distant(v6)).udp(4000, 53, b"question");
        let sent = town.bring(NET, P1, &up(&packet)).unwrap();
        let mut rest = vec![0; 4];
        rest.extend(&sent[0].octets[14..]);
        let told = ip(ROUTER.addr(v6), OURS.addr(v6)).icmp(error.0, error.1, &rest);
        let sent = town.bring(SEGMENT, P1, &down(&told)).unwrap();
        let seen = one(sent, NET, P1);
        let What::Icmp { ip: header, kind, code, body, .. } = seen.what else { panic!("{seen:?}") };
        assert_eq!(
            ((kind, code), header.src, header.dst),
            (error, ROUTER.addr(v6), ALICE.addr(v6))
        );
        let hop = if v6 { 7 } else { 8 };
        assert_eq!(body[hop], 63, "one hop older, as the router saw it");
        assert_eq!(body[body.len() - 8..], *b"question");
        let addresses = if v6 { 8..40 } else { 12..20 };
        assert_eq!(body[addresses.clone()], packet[addresses]);
        // About nobody's packet: in silence.
        rest[if v6 { 4 + 40 } else { 4 + 20 }] ^= 1;
        let told = ip(ROUTER.addr(v6), OURS.addr(v6)).icmp(error.0, error.1, &rest);
        let Err((why, said)) = town.bring(SEGMENT, P1, &down(&told)) else { panic!() };
        assert_eq!((why, said.len()), (DropReason::Unrelated, 0));
    }
}

/// RFC 5508 REQ-8: who finds no place hears so.
#[test]
fn where_no_place_is_left_the_sender_hears_so() {
    for (v6, error) in FAMILIES.into_iter().zip([(3, 13), (1, 1)]) {
        let mut town = Town::new(Plan { flows_of_port: 1, ..Plan::default() });
        let question = ip(ALICE.addr(v6), distant(v6)).udp(4000, 53, b"q");
        assert!(town.bring(NET, P1, &up(&question)).is_ok());
        let answer = ip(distant(v6), OURS.addr(v6)).udp(53, 4000, b"a");
        assert!(town.bring(SEGMENT, P1, &down(&answer)).is_ok());
        let packet = ip(ALICE.addr(v6), distant(v6)).udp(4001, 53, b"one more");
        let Err((why, said)) = town.bring(NET, P1, &up(&packet)) else { panic!() };
        assert_eq!(why, DropReason::FlowQuota);
        told_alice(said, v6, error, &packet);
    }
}
