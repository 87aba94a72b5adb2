//! Whole checksums, as pnet makes them: what is let through and what is not.

use std::net::IpAddr;

use datapath::DropReason;
use datapath::checksum::verify_transport;
use datapath::offload::Offload;
use pnet::packet::Packet;
use pnet::packet::icmp::{IcmpPacket, IcmpTypes, MutableIcmpPacket};
use pnet::packet::icmpv6::{Icmpv6Packet, Icmpv6Types, MutableIcmpv6Packet};
use pnet::packet::{icmp, icmpv6};

use crate::craft::{Craft, DST4, DST6, Extension, SRC4, SRC6};

const ICMP: u8 = 1;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

#[test]
fn icmp_has_no_pseudo_header() {
    let mut octets = [0x5a; 41];
    let mut echo = MutableIcmpPacket::new(&mut octets).unwrap();
    echo.set_icmp_type(IcmpTypes::EchoRequest);
    let sum = icmp::checksum(&IcmpPacket::new(echo.packet()).unwrap());
    echo.set_checksum(sum);
    for src in [SRC4, DST4] {
        assert_eq!(verify_transport(src.into(), DST4.into(), ICMP, &octets), Ok(()));
    }
    octets[40] ^= 1;
    let verdict = verify_transport(SRC4.into(), DST4.into(), ICMP, &octets);
    assert_eq!(verdict, Err(DropReason::BadL4Checksum));
}

#[test]
fn icmpv6_has_one() {
    let mut octets = [0x5a; 41];
    let mut echo = MutableIcmpv6Packet::new(&mut octets).unwrap();
    echo.set_icmpv6_type(Icmpv6Types::EchoRequest);
    let sum = icmpv6::checksum(&Icmpv6Packet::new(echo.packet()).unwrap(), &SRC6, &DST6);
    echo.set_checksum(sum);
    assert_eq!(verify_transport(SRC6.into(), DST6.into(), ICMPV6, &octets), Ok(()));
    let verdict = verify_transport(DST6.into(), DST6.into(), ICMPV6, &octets);
    assert_eq!(verdict, Err(DropReason::BadL4Checksum));
}

/// RFC 768 counts by the header's own length, which may leave octets of the packet uncovered.
#[test]
fn udp_ends_where_it_says() {
    for craft in [Craft::udp4(9), Craft::udp6(9)] {
        let mut datagram = craft.frame()[craft.transport()..].to_vec();
        datagram.extend([0xee; 5]);
        let (src, dst): (IpAddr, IpAddr) =
            if craft.v6 { (SRC6.into(), DST6.into()) } else { (SRC4.into(), DST4.into()) };
        assert_eq!(verify_transport(src, dst, UDP, &datagram), Ok(()));
        datagram[4..6].copy_from_slice(&100_u16.to_be_bytes());
        assert_eq!(verify_transport(src, dst, UDP, &datagram), Err(DropReason::Malformed));
        datagram[4..6].copy_from_slice(&7_u16.to_be_bytes());
        assert_eq!(verify_transport(src, dst, UDP, &datagram), Err(DropReason::Malformed));
    }
}

#[test]
fn a_header_that_is_not_whole_is_malformed() {
    for protocol in [ICMP, 6, UDP] {
        let verdict = verify_transport(SRC4.into(), DST4.into(), protocol, &[0; 3]);
        assert_eq!(verdict, Err(DropReason::Malformed));
    }
    assert_eq!(verify_transport(SRC4.into(), DST4.into(), 47, &[0; 3]), Ok(()), "GRE has none");
}

#[test]
fn what_cannot_be_verified_passes() {
    let mut frame = Craft::udp4(30).frame();
    frame[40] ^= 1;
    assert_eq!(Offload::NONE.verify(&frame), Err(DropReason::BadL4Checksum));
    for flags_and_offset in [[0x20, 0x00], [0x00, 0x01]] {
        frame[20..22].copy_from_slice(&flags_and_offset);
        assert_eq!(Offload::NONE.verify(&frame), Ok(()), "the sum is the whole packet's");
    }
    frame[12..14].copy_from_slice(&[0x08, 0x06]);
    assert_eq!(Offload::NONE.verify(&frame), Ok(()), "not IP");

    let mut frame = Craft { extensions: vec![Extension::Routing], ..Craft::udp6(30) }.frame();
    let last = frame.len() - 1;
    frame[last] ^= 1;
    assert_eq!(Offload::NONE.verify(&frame), Ok(()), "the final destination counts");
    frame[14 + 40 + 3] = 0;
    assert_eq!(Offload::NONE.verify(&frame), Err(DropReason::BadL4Checksum), "it has arrived");
}

/// RFC 6946: a fragment header on a packet that was not cut.
#[test]
fn an_atomic_fragment_is_a_whole_packet() {
    let mut frame =
        Craft { extensions: vec![Extension::AtomicFragment], ..Craft::udp6(30) }.frame();
    assert_eq!(Offload::NONE.verify(&frame), Ok(()));
    let last = frame.len() - 1;
    frame[last] ^= 1;
    assert_eq!(Offload::NONE.verify(&frame), Err(DropReason::BadL4Checksum));
    frame[14 + 40 + 3] |= 1;
    assert_eq!(Offload::NONE.verify(&frame), Ok(()), "now it is the first of several");
}
