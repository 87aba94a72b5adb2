//! Packets on which a device has left work undone: partial checksums, and frames still to be segmented.
//!
//! What comes out is finished here as the kernel would finish it, and must then be right.

use nat::{Protocol, Reason, Tell, Undone};

use crate::lab::{ALICE, EXTERNAL6, Lab, NET, publish};
use crate::wire::{ACK, SYN, SYN_ACK, Tcp, control, dont_fragment, read, tcp, udp};

const PATHS: [[&str; 3]; 2] = [
    ["172.18.0.2:40000", "198.51.100.2:80", "203.0.113.1:40000"],
    ["[fd00:18::2]:40000", "[2001:db8:9::2]:80", "[2001:db8:1::1]:40000"],
];

const PARTIAL: Undone = Undone { partial: true, segment: None };

/// Where the transport header begins, and where its checksum is.
fn places(packet: &[u8]) -> (usize, usize) {
    let (begin, protocol) = if packet[0] >> 4 == 4 { (20, packet[9]) } else { (40, packet[6]) };
    (begin, begin + if protocol == 6 { 16 } else { 6 })
}

/// The folded sum of a packet's pseudo-header, by RFC 9293 §3.1 and RFC 8200 §8.1.
fn pseudo_header(packet: &[u8]) -> u16 {
    let (begin, _) = places(packet);
    let (addresses, protocol) =
        if begin == 20 { (&packet[12..20], packet[9]) } else { (&packet[8..40], packet[6]) };
    let words = addresses.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let len = u32::try_from(packet.len() - begin).unwrap();
    let mut sum = words.sum::<u32>() + u32::from(protocol) + len;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// A packet as the kernel leaves it with NEEDS_CSUM.
pub(crate) fn partial(mut packet: Vec<u8>) -> Vec<u8> {
    let (_, field) = places(&packet);
    let sum = pseudo_header(&packet);
    packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The same, finished: the complement of the sum of all from the transport header on.
pub(crate) fn finish(mut packet: Vec<u8>) -> Vec<u8> {
    let (begin, field) = places(&packet);
    assert_eq!(packet[field..field + 2], pseudo_header(&packet).to_be_bytes(), "partial");
    let mut padded = packet[begin..].to_vec();
    padded.resize(padded.len().next_multiple_of(2), 0);
    let words = padded.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = !u16::try_from(sum).unwrap();
    packet[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
    packet
}

fn data(from: &str, to: &str, seq: u32, ack: u32, len: usize) -> Vec<u8> {
    tcp(from, to, &Tcp { flags: ACK, seq, ack, payload: vec![7; len], options: vec![] })
}

fn connect(lab: &mut Lab, client: &str, server: &str, shown: &str) {
    lab.out(&control(client, server, SYN, 100, 0)).goes(shown, server);
    lab.back(&control(server, shown, SYN_ACK, 500, 101)).goes(server, client);
    lab.out(&control(client, server, ACK, 101, 501)).goes(shown, server);
}

/// The packet as one that may not be cut.
fn in_one_piece(packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 { dont_fragment(packet) } else { packet }
}

/// What must fit the egress is a segment, not what is still to be cut into segments.
#[test]
fn a_frame_of_64_kb_is_one_packet_of_the_flow() {
    for [client, server, shown] in PATHS {
        let mut lab = Lab::default();
        connect(&mut lab, client, server, shown);
        let own = if client.starts_with('[') { 40 } else { 20 };
        lab.undone = Undone { partial: true, segment: Some(1500 - own - 20) };
        // The longest there is; of IPv4, the length field holds it with the header.
        let len = 65_535 - 20 - if own == 20 { 20 } else { 0 };
        let first = lab.leave(&partial(data(client, server, 101, 501, len))).unwrap();
        read(&finish(first)).goes(shown, server);
        let acknowledged = 101 + u32::try_from(len).unwrap();
        lab.undone = Undone::default();
        lab.back(&control(server, shown, ACK, 501, acknowledged)).goes(server, client);
        lab.undone = Undone { partial: true, segment: Some(1500 - own - 20) };
        let back = lab.arrive(&partial(data(server, shown, 501, acknowledged, 20_000))).unwrap();
        read(&finish(back)).goes(server, client);
        // One octet more in a segment is too much.
        lab.undone.segment = Some(1500 - own - 20 + 1);
        let long = in_one_piece(data(client, server, acknowledged, 501, 3000));
        let refused = lab.leave(&partial(long));
        assert_eq!(refused.unwrap_err().tell, Some(Tell::TooBig(1500)));
    }
}

/// TCP options are part of every segment.
#[test]
fn a_segment_counts_with_all_its_headers() {
    let mut lab = Lab::default();
    let [client, server, shown] = PATHS[0];
    connect(&mut lab, client, server, shown);
    let options = [[1, 1, 8, 10].as_slice(), &[0; 8]].concat();
    let segment = Tcp { flags: ACK, seq: 101, ack: 501, payload: vec![7; 5000], options };
    for (size, fits) in [(1448, true), (1449, false)] {
        lab.undone = Undone { partial: true, segment: Some(size) };
        let sent = lab.leave(&partial(in_one_piece(tcp(client, server, &segment))));
        assert_eq!(sent.is_ok(), fits, "segments of {size}");
    }
    // One segment's worth is no longer than it is.
    lab.undone = Undone { partial: true, segment: Some(9000) };
    lab.leave(&partial(data(client, server, 101, 501, 1000))).unwrap();
}

#[test]
fn datagrams_still_to_be_segmented_keep_their_partial_checksum() {
    for [client, server, shown] in PATHS {
        let mut lab =
            Lab { undone: Undone { partial: true, segment: Some(1200) }, ..Lab::default() };
        let sent = lab.leave(&partial(udp(client, server, &[7; 60_000]))).unwrap();
        read(&finish(sent)).goes(shown, server);
        let back = lab.arrive(&partial(udp(server, shown, &[9; 12_000]))).unwrap();
        read(&finish(back)).goes(server, client);
        lab.mtu = 1227;
        let long = in_one_piece(udp(client, server, &[7; 60_000]));
        let refused = lab.leave(&partial(long)).unwrap_err();
        assert_eq!(refused.reason, Reason::TooBig(1227));
        assert_eq!(refused.tell, Some(Tell::TooBig(1227)));
    }
}

/// RFC 791 §3.2: a sender that lets its packets be cut is not told that they are too long (RFC 1191 §4), and no
/// two of them have the same identification (RFC 6864 §4.1).
#[test]
fn segments_that_may_be_cut_are_left_to_be_cut() {
    let [client, server, shown] = PATHS[0];
    let mut lab = Lab { undone: Undone { partial: true, segment: Some(1400) }, ..Lab::default() };
    lab.mtu = 600;
    let mut identification = |len: usize| {
        let sent = lab.leave(&partial(udp(client, server, &vec![7; len]))).unwrap();
        read(&finish(sent.clone())).goes(shown, server);
        u16::from_be_bytes([sent[4], sent[5]])
    };
    let first = identification(14_001);
    let next = identification(100);
    assert_eq!(next.wrapping_sub(first), 11, "eleven segments");
    assert_eq!(identification(100).wrapping_sub(next), 1);
    // Each segment by itself, and none that fits.
    let segment = udp(shown, server, &[7; 1400]);
    let pieces = lab.nat.cut(&segment, 600).unwrap();
    assert_eq!(pieces.iter().map(Vec::len).collect::<Vec<_>>(), [596, 596, 276]);
    let small = udp(shown, server, b"small");
    assert_eq!(lab.nat.cut(&small, 600), Some(vec![small]));
}

/// The sum of a pseudo-header has no ports in it: another port leaves a partial checksum as it is.
#[test]
fn another_port_is_no_matter_of_a_partial_checksum() {
    for ([client, server, shown], bob) in PATHS.into_iter().zip(["172.18.0.3", "[fd00:18::3]"]) {
        for packet in [control, |from: &str, to: &str, _, _, _| udp(from, to, b"hello")] {
            let mut lab = Lab { undone: PARTIAL, ..Lab::default() };
            lab.leave(&partial(packet(client, server, SYN, 1, 0))).unwrap();
            let bobs = format!("{bob}:40000");
            let sent = lab.leave(&partial(packet(&bobs, server, SYN, 1, 0))).unwrap();
            let seen = read(&finish(sent)).src;
            assert_ne!(seen.to_string(), shown, "a port of his own");
            let answer = partial(packet(server, &seen.to_string(), SYN_ACK, 9, 2));
            read(&finish(lab.arrive(&answer).unwrap())).goes(server, &bobs);
        }
    }
}

/// RFC 6691: a SYN whose checksum is still to be made says what the way carries, too.
#[test]
fn t14_the_mss_of_an_offloaded_syn_is_lowered() {
    for ([client, server, shown], most) in PATHS.into_iter().zip([1360u16, 1340]) {
        let mut lab = Lab { mtu: 1400, undone: PARTIAL, ..Lab::default() };
        let syn = Tcp { flags: SYN, seq: 1, options: vec![2, 4, 5, 180], ..Tcp::default() };
        let seen = read(&finish(lab.leave(&partial(tcp(client, server, &syn))).unwrap()));
        seen.goes(shown, server);
        assert_eq!(seen.body[22..24], most.to_be_bytes());
    }
}

/// RFC 4787 REQ-13: a piece has no room for a checksum still to be made.
#[test]
fn u13_a_partial_checksum_is_finished_before_the_packet_is_cut() {
    let mut lab = Lab { mtu: 1400, undone: PARTIAL, ..Lab::default() };
    let packet = partial(udp("172.18.0.2:40000", "198.51.100.2:9", &[7; 1452]));
    let inside = nat::Ingress { zone: NET, inside: true, account: ALICE, mtu: 1500 };
    let pieces = lab.pass_in_pieces(&packet, &inside).unwrap();
    assert_eq!(pieces.len(), 2);
    let whole = pieces.iter().find_map(|piece| {
        let outside = nat::Ingress { zone: crate::lab::UPLINK, inside: false, ..inside };
        match lab.nat.gather(piece, &Lab::parse(piece), &outside, lab.now) {
            nat::Gathered::Complete(whole) => Some(whole.packet),
            _ => None,
        }
    });
    read(&whole.unwrap()).goes("203.0.113.1:40000", "198.51.100.2:9");
    let refused = lab.leave(&partial(dont_fragment(packet))).unwrap_err();
    assert_eq!(refused.tell, Some(Tell::TooBig(1400)));
}

/// RFC 7915 with a frame still to be segmented: the checksum stays partial, the length is the other
/// version's.
#[test]
fn nat46_translates_offloaded_packets() {
    let pool = "198.18.0.1".parse().unwrap()..="198.18.0.254".parse().unwrap();
    let config = nat::Config { nat46: Some(pool), ..nat::Config::new(crate::lab::UPLINK, [3; 16]) };
    let mut lab = Lab::with(config);
    let mut rule = publish(Protocol::Tcp, 8080..=8080, "172.18.0.2:80");
    rule.matches.dst = None;
    lab.nat.set_rules(nat::Rules::new(vec![rule], vec![crate::lab::masquerade()]));
    let (client, outer) = ("[2001:db8:9::1]:5555", &format!("[{EXTERNAL6}]:8080"));
    let shown = lab.back(&control(client, outer, SYN, 100, 0)).src.to_string();
    let inner = "172.18.0.2:80";
    lab.out(&control(inner, &shown, SYN_ACK, 500, 101)).goes(outer, client);
    lab.back(&control(client, outer, ACK, 101, 501)).goes(&shown, inner);
    lab.undone = Undone { partial: true, segment: Some(1420) };
    let answer = lab.leave(&partial(data(inner, &shown, 501, 101, 60_000))).unwrap();
    read(&finish(answer)).goes(outer, client);
    let question = lab.arrive(&partial(data(client, outer, 101, 501, 30_000))).unwrap();
    read(&finish(question)).goes(&shown, inner);
    // What IPv4's length field cannot say.
    let refused = lab.arrive(&partial(data(client, outer, 101, 501, 65_510))).unwrap_err();
    assert_eq!(refused.reason, Reason::Untranslatable);
    // A segment of 1,460 octets fits IPv4, and not IPv6.
    lab.undone.segment = Some(1460);
    let long = in_one_piece(data(inner, &shown, 501, 101, 60_000));
    let refused = lab.leave(&partial(long)).unwrap_err();
    assert_eq!(refused.tell, Some(Tell::TooBig(1480)));
}

/// The MSS each side is told leaves room for the headers of the other's version.
#[test]
fn nat46_the_mss_counts_the_headers_of_both_versions() {
    let pool = "198.18.0.1".parse().unwrap()..="198.18.0.254".parse().unwrap();
    let config = nat::Config { nat46: Some(pool), ..nat::Config::new(crate::lab::UPLINK, [3; 16]) };
    let mut lab = Lab::with(config);
    let mut rule = publish(Protocol::Tcp, 8080..=8080, "172.18.0.2:80");
    rule.matches.dst = None;
    lab.nat.set_rules(nat::Rules::new(vec![rule], vec![crate::lab::masquerade()]));
    let (client, outer) = ("[2001:db8:9::1]:5555", &format!("[{EXTERNAL6}]:8080"));
    let syn = Tcp { flags: SYN, seq: 1, options: vec![2, 4, 5, 180], ..Tcp::default() };
    let seen = lab.back(&tcp(client, outer, &syn));
    assert_eq!(seen.body[22..24], 1440u16.to_be_bytes(), "what 1,500 octets of IPv6 leave");
}
