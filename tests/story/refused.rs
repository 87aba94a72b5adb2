//! What is refused, by what name, and whom nobody is told about (RFC 1122 §3.2.2, RFC 1812 §4.3.2.7).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath::offload::PartialChecksum;
use datapath::{Decision, DropReason, Gso, Offload};
use pnet::packet::tcp::TcpFlags;

use crate::lab::{Lab, P1, P2, P3};
use crate::wire::{
    ALICE, BOB, BROADCAST, GATEWAY, Tcp, WORLD, arp_request, framed, ip, solicitation,
};

fn up(packet: &[u8]) -> Vec<u8> {
    framed(ALICE.mac, GATEWAY.mac, packet)
}

fn lab() -> Lab {
    let mut lab = Lab::new();
    lab.introduce(P1, ALICE);
    lab
}

const SYN: Tcp = Tcp { flags: TcpFlags::SYN, seq: 1, ack: 0 };

#[test]
fn nobody_is_told_about_an_error() {
    let mut lab = lab();
    for (v6, kinds) in [(false, &[3, 4, 5, 11, 12][..]), (true, &[1, 2, 3, 4, 100, 127, 137])] {
        let quoted = ip(WORLD.addr(v6), ALICE.addr(v6)).udp(53, 4000, b"late");
        let rest = [&[0; 4][..], &quoted].concat();
        for kind in kinds {
            let header = ip(ALICE.addr(v6), WORLD.addr(v6));
            let last_hop = header.clone().ttl(1).icmp(*kind, 0, &rest);
            lab.inject(P1, &up(&last_hop)).dropped(DropReason::TtlExceeded);
            lab.inject(P1, &up(&header.icmp(*kind, 0, &rest))).dropped(DropReason::UnknownError);
            // For the gateway itself it is news, and no reason to talk.
            let to_us = ip(ALICE.addr(v6), GATEWAY.addr(v6)).icmp(*kind, 0, &rest);
            lab.inject(P1, &up(&to_us)).taken();
        }
    }
}

#[test]
fn nobody_is_told_about_a_packet_for_everybody() {
    let mut lab = lab();
    let limited = Ipv4Addr::BROADCAST.into();
    let directed = Ipv4Addr::new(192, 0, 2, 255).into();
    let multicast = Ipv4Addr::new(224, 0, 0, 251).into();
    let multicast6 = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb).into();
    for dst in [limited, directed, multicast, multicast6] {
        let src = ALICE.addr(IpAddr::is_ipv6(&dst));
        for packet in [ip(src, dst).ttl(1).udp(1, 2, b""), ip(src, dst).echo(1, 1, b"")] {
            // In a group's frame the bridge carries it and the gateway says nothing;
            lab.inject(P1, &framed(ALICE.mac, BROADCAST, &packet)).flooded(&[P2, P3]);
            // in one for the gateway's station it is nothing a router carries.
            lab.inject(P1, &up(&packet)).dropped(DropReason::MartianDestination);
        }
    }
    // A packet for one, in a frame for all.
    for v6 in [false, true] {
        let packet = ip(ALICE.addr(v6), GATEWAY.addr(v6)).udp(1, 2, b"");
        lab.inject(P1, &framed(ALICE.mac, BROADCAST, &packet)).flooded(&[P2, P3]);
    }
}

#[test]
fn only_about_the_first_fragment_anybody_is_told() {
    let mut lab = lab();
    for v6 in [false, true] {
        let header = || ip(ALICE.addr(v6), WORLD.addr(v6)).ttl(1);
        // The front of a datagram of twice the size, and its back.
        let mut datagram = header().udp(1, 2, &[0; 1016]);
        let transport = datagram.split_off(if v6 { 40 } else { 20 });
        let first = header().fragment(0, true).carrying(17, &transport[..512]);
        let later = header().fragment(512, false).carrying(17, &transport[512..]);
        lab.inject(P1, &up(&first)).dropped_telling(DropReason::TtlExceeded);
        lab.inject(P1, &up(&later)).dropped(DropReason::TtlExceeded);
        // With hops left they are the uplink's, which puts them together.
        for (offset, more, piece) in [(0, true, &transport[..512]), (512, false, &transport[512..])]
        {
            let packet = ip(ALICE.addr(v6), WORLD.addr(v6)).fragment(offset, more);
            let frame = up(&packet.carrying(17, piece));
            lab.inject(P1, &frame).for_uplink();
        }
    }
    // An atomic fragment is whole (RFC 6946).
    let whole = ip(ALICE.v6, WORLD.v6).udp(1, 2, b"whole");
    let atomic = ip(ALICE.v6, WORLD.v6).fragment(0, false).carrying(17, &whole[40..]);
    lab.inject(P1, &up(&atomic)).for_uplink();
}

#[test]
fn a_source_that_is_nobodys_is_refused_in_silence() {
    let mut lab = lab();
    let martians = [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "192.0.2.255",
        "::",
        "::1",
        "ff02::1",
        "::ffff:192.0.2.10",
    ];
    let foreign = ["198.51.100.1", "192.0.3.10", "10.0.0.1", "2001:db8:1::9", "fd00::1"];
    let told = [(&martians[..], DropReason::MartianSource), (&foreign, DropReason::ForeignSource)];
    for (sources, reason) in told {
        for source in sources {
            let source: IpAddr = source.parse().unwrap();
            let v6 = source.is_ipv6();
            for dst in [WORLD.addr(v6), GATEWAY.addr(v6), BOB.addr(v6)] {
                for packet in [
                    ip(source, dst).udp(1, 2, b""),
                    ip(source, dst).tcp(1, 2, SYN, b""),
                    ip(source, dst).echo(1, 1, b""),
                    ip(source, dst).ttl(1).udp(1, 2, b""),
                ] {
                    lab.inject(P1, &up(&packet)).dropped(reason);
                }
            }
        }
    }
}

#[test]
fn a_destination_no_router_serves_is_refused_in_silence() {
    let mut lab = lab();
    let v4 = ["0.0.0.0", "127.0.0.1", "169.254.1.1", "240.0.0.1"];
    // To a socket of the host's a mapped address would be the IPv4 one in it.
    let v6 = ["::", "::1", "fe80::99", "ff05::2", "::ffff:127.0.0.1", "::ffff:198.51.100.1"];
    for dst in v4.into_iter().chain(v6) {
        let dst: IpAddr = dst.parse().unwrap();
        let packet = ip(ALICE.addr(dst.is_ipv6()), dst).udp(1, 2, b"");
        lab.inject(P1, &up(&packet)).dropped(DropReason::MartianDestination);
    }
    // What is heard on the link alone is spoken to on the link alone.
    let packet = ip(ALICE.link_local(), WORLD.v6).udp(1, 2, b"");
    lab.inject(P1, &up(&packet)).dropped(DropReason::ForeignSource);
}

#[test]
fn a_wrong_checksum_is_refused_by_name_wherever_it_is() {
    let mut lab = lab();
    for v6 in [false, true] {
        for dst in [WORLD, GATEWAY, BOB] {
            let header = || ip(ALICE.addr(v6), dst.addr(v6));
            for packet in [
                header().udp(1, 2, b"hello"),
                header().tcp(1, 2, SYN, b""),
                header().echo(1, 1, b"hello"),
            ] {
                let transport = if v6 { 40 } else { 20 };
                for at in transport..packet.len() {
                    // A UDP length that lies is another matter.
                    let udp_length = packet[if v6 { 6 } else { 9 }] == 17
                        && (transport + 4..transport + 6).contains(&at);
                    // So is a TCP header that says where it ends.
                    let data_offset = packet[if v6 { 6 } else { 9 }] == 6 && at == transport + 12;
                    if udp_length || data_offset {
                        continue;
                    }
                    let mut bent = packet.clone();
                    bent[at] ^= 0x40;
                    lab.inject(P1, &up(&bent)).dropped(DropReason::BadL4Checksum);
                }
            }
        }
    }
    let good = ip(ALICE.v4, WORLD.v4).udp(1, 2, b"hello");
    for at in [1, 4, 5, 6, 8, 9, 10, 11, 12, 15, 16, 19] {
        let mut bent = good.clone();
        bent[at] ^= 0x01;
        lab.inject(P1, &up(&bent)).dropped(DropReason::BadIpChecksum);
    }
}

#[test]
fn a_udp_checksum_of_zero_was_never_made_and_in_ipv6_must_have_been() {
    let mut lab = lab();
    let unmade = |v6: bool| {
        let mut packet = ip(ALICE.addr(v6), WORLD.addr(v6)).udp(1, 2, b"hello");
        let at = if v6 { 46 } else { 26 };
        packet[at..at + 2].fill(0);
        up(&packet)
    };
    lab.inject(P1, &unmade(false)).for_uplink();
    lab.inject(P1, &unmade(true)).dropped(DropReason::BadL4Checksum);
}

#[test]
fn a_checksum_that_is_still_to_be_made_is_not_missed() {
    let mut lab = lab();
    for v6 in [false, true] {
        let mut frame = up(&ip(ALICE.addr(v6), WORLD.addr(v6)).tcp(1, 2, SYN, b""));
        let start = if v6 { 54 } else { 34 };
        frame[start + 16] ^= 0x55;
        lab.inject(P1, &frame).dropped(DropReason::BadL4Checksum);
        let partial = PartialChecksum { start: u16::try_from(start).unwrap(), offset: 16 };
        let offload = Offload { checksum: Some(partial), ..Offload::NONE };
        let outcome = lab.inject_with(P1, &frame, offload);
        assert!(matches!(outcome.decision(), Decision::Uplink(_)), "{}", lab.report());
    }
}

#[test]
fn an_offload_header_that_lies_about_its_frame_is_refused() {
    let mut lab = lab();
    let frame = up(&ip(ALICE.v4, WORLD.v4).tcp(1, 2, SYN, b"some payload"));
    let partial = |start, offset| Offload {
        checksum: Some(PartialChecksum { start, offset }),
        ..Offload::NONE
    };
    let gso = |gso| Offload { gso, ..partial(34, 16) };
    for offload in [
        partial(34, 0xffff),
        partial(0xffff, 0),
        partial(12, 0),
        partial(34, 4),
        partial(34, 40),
        gso(Gso::Tcp4 { size: 0, ecn: false }),
        gso(Gso::Tcp6 { size: 1448, ecn: false }),
        gso(Gso::Udp { size: 1448 }),
        Offload { header_len: 0xffff, ..Offload::NONE },
    ] {
        for dst in [GATEWAY.mac, BOB.mac, BROADCAST] {
            let mut frame = frame.clone();
            frame[..6].copy_from_slice(&dst);
            lab.inject_with(P1, &frame, offload).dropped(DropReason::BadOffload);
        }
    }
}

#[test]
fn a_packet_cut_short_at_any_octet_is_refused_and_never_answered() {
    let mut lab = lab();
    lab.introduce(P2, BOB);
    for v6 in [false, true] {
        for dst in [WORLD, GATEWAY, BOB] {
            let header = || ip(ALICE.addr(v6), dst.addr(v6));
            for packet in [
                header().udp(1, 2, b"hello"),
                header().tcp(1, 2, SYN, b"hello"),
                header().echo(1, 1, b"hello"),
                header().fragment(0, true).carrying(17, &[0; 16]),
            ] {
                let frame = up(&packet);
                for len in 0..frame.len() {
                    let reason = if len < 14 { DropReason::Runt } else { DropReason::Malformed };
                    lab.inject(P1, &frame[..len]).dropped(reason);
                }
            }
        }
    }
}

/// The IP length says where the packet ends; inside it, each header says what it needs.
#[test]
fn a_header_that_claims_more_than_there_is_is_refused() {
    let mut lab = lab();
    let bent = |packet: &[u8], at: usize, octets: &[u8]| {
        let mut packet = packet.to_vec();
        packet[at..at + octets.len()].copy_from_slice(octets);
        up(&packet)
    };
    let udp6 = ip(ALICE.v6, WORLD.v6).udp(1, 2, b"hello");
    let tcp6 = ip(ALICE.v6, WORLD.v6).tcp(1, 2, SYN, b"hello");
    let mut wrong = vec![
        bent(&udp6, 44, &[0, 14]), // UDP length beyond the packet
        bent(&udp6, 44, &[0, 7]),  // and shorter than its header
        bent(&tcp6, 52, &[0xf0]),  // TCP header beyond the packet
        bent(&tcp6, 52, &[0x40]),  // and shorter than itself
        bent(&udp6, 4, &[0xff, 0xff]),
        bent(&udp6, 0, &[0x50]), // no version of IP
    ];
    // Extension headers that lead out of the packet, or nowhere.
    for kind in [0, 43, 51, 60] {
        wrong.push(up(&ip(ALICE.v6, WORLD.v6).carrying(kind, &[17, 9, 0, 0, 0, 0, 0, 0])));
        wrong.push(up(&ip(ALICE.v6, WORLD.v6).carrying(kind, &[17])));
        wrong.push(up(&ip(ALICE.v6, WORLD.v6).carrying(kind, &[])));
    }
    for frame in wrong {
        lab.inject(P1, &frame).dropped(DropReason::Malformed);
    }
}

#[test]
fn a_source_route_is_refused_in_silence() {
    let mut lab = lab();
    let world = WORLD.v4.octets();
    for kind in [131, 137] {
        let hops = [&[1, kind, 7, 4][..], &world].concat();
        let packet = ip(ALICE.v4, BOB.v4).options(&hops).udp(1, 2, b"");
        lab.inject(P1, &up(&packet)).dropped(DropReason::SourceRoute);
    }
    // Record route is harmless, and so is a no-operation.
    let packet = ip(ALICE.v4, WORLD.v4).options(&[7, 7, 4, 0, 0, 0, 0, 1]).udp(1, 2, b"");
    lab.inject(P1, &up(&packet)).for_uplink();
    let routing = |kind: u8, left: u8| {
        let mut header = vec![17, 2, kind, left, 0, 0, 0, 0];
        header.extend(BOB.v6.octets());
        header.extend(&ip(ALICE.v6, WORLD.v6).udp(1, 2, b"")[40..]);
        up(&ip(ALICE.v6, WORLD.v6).carrying(43, &header))
    };
    lab.inject(P1, &routing(0, 1)).dropped(DropReason::SourceRoute);
    lab.inject(P1, &routing(0, 0)).for_uplink();
}

#[test]
fn what_the_gateway_does_not_speak_is_refused() {
    let mut lab = lab();
    for ethertype in [0x88cc, 0x0842, 0x8847, 0x0600, 0x002e] {
        let frame = crate::wire::frame(ALICE.mac, GATEWAY.mac, ethertype, &[0; 46]);
        lab.inject(P1, &frame).dropped(DropReason::UnknownEtherType);
    }
    // An EtherType that contradicts the packet behind it.
    let packet = ip(ALICE.v6, GATEWAY.v6).echo(1, 1, b"");
    let frame = crate::wire::frame(ALICE.mac, GATEWAY.mac, 0x0800, &packet);
    lab.inject(P1, &frame).dropped(DropReason::Malformed);
}

/// What is said by anybody about anything must not reach the tables by way of a refused frame.
#[test]
fn a_refused_message_teaches_the_gateway_nothing() {
    let mut lab = Lab::new();
    let mut bad_checksum = solicitation(ALICE.mac, Some(ALICE.v6), GATEWAY.v6);
    *bad_checksum.last_mut().unwrap() ^= 1;
    lab.inject(P1, &bad_checksum).flooded(&[P2, P3]);
    let mut bad_arp = arp_request(ALICE, GATEWAY.v4);
    bad_arp[14 + 8] |= 1;
    lab.inject(P1, &bad_arp).flooded(&[P2, P3]);
    assert!(lab.network.neighbours.list(lab.now).is_empty(), "{}", lab.report());
}
