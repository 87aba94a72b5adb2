//! Protocols besides TCP, UDP and ICMP: SCTP (RFC 9260), DCCP (RFC 5597), UDP-Lite (RFC 3828), and those told apart
//! by addresses alone.

use std::net::IpAddr;

use nat::{Config, Protocol, Reason, SctpState, Tell};

use crate::lab::{EXTERNAL, EXTERNAL6, Lab, NET, UPLINK, publish};
use crate::wire::{Seen, ip, read};

const ALICE: &str = "172.18.0.2";
const BOB: &str = "172.18.0.3";
const FAR: &str = "198.51.100.2";

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn protocols_without_ports_are_translated_by_address() {
    // GRE, ESP, AH, and one nobody knows.
    for protocol in [47, 50, 51, 253] {
        for [alice, bob, far, other, shown] in [
            [ALICE, BOB, FAR, "198.51.100.3", EXTERNAL],
            ["fd00:18::2", "fd00:18::3", "2001:db8:9::2", "2001:db8:9::3", EXTERNAL6],
        ] {
            let mut lab = Lab::default();
            let seen = lab.out(&ip(addr(alice), addr(far), protocol, b"payload"));
            assert_eq!((seen.src.ip(), &seen.body[..]), (addr(shown), &b"payload"[..]));
            let back = lab.back(&ip(addr(far), addr(shown), protocol, b"answer"));
            assert_eq!(back.dst.ip(), addr(alice));
            // A second container to the same far side could not be told from the first.
            let refused = lab.leave(&ip(addr(bob), addr(far), protocol, b"")).unwrap_err();
            assert_eq!(refused.tell, Some(Tell::AdminProhibited));
            assert_eq!(
                refused.reason.to_string(),
                format!(
                    "another container is the one that speaks IP protocol {protocol} with {far} by {shown}: \
                     nothing but the addresses tells whose answers are whose"
                )
            );
            lab.out(&ip(addr(bob), addr(other), protocol, b""));
            // Nor does it find one that nobody has spoken to.
            lab.arrive(&ip(addr("192.0.2.7"), addr(EXTERNAL), protocol, b"")).unwrap_err();
        }
    }
}

#[test]
fn gre_lives_two_minutes_unanswered_and_five_answered_and_what_nobody_knows_ten() {
    for (protocol, unanswered, answered) in [(47, 120, 300), (50, 600, 600)] {
        let mut lab = Lab::default();
        let out = ip(addr(ALICE), addr(FAR), protocol, b"");
        lab.out(&out);
        lab.wait(unanswered - 1);
        lab.back(&ip(addr(FAR), addr(EXTERNAL), protocol, b""));
        lab.out(&out);
        lab.wait(answered - 1);
        lab.expire();
        assert_eq!(lab.flows(), 1);
        lab.wait(2);
        lab.expire();
        assert_eq!(lab.flows(), 0);
    }
}

/// RFC 9260 appendix A, bit by bit.
fn crc32c(octets: &[u8]) -> u32 {
    let mut crc = !0u32;
    for octet in octets {
        crc ^= u32::from(*octet);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

/// An SCTP packet of one chunk: its type and flags, and the tag an INIT chooses.
fn sctp(
    from: &str,
    to: &str,
    ports: [u16; 2],
    tag: u32,
    (kind, flags, word): (u8, u8, u32),
) -> Vec<u8> {
    let mut octets = [ports[0].to_be_bytes(), ports[1].to_be_bytes()].concat();
    octets.extend_from_slice(&tag.to_be_bytes());
    octets.extend_from_slice(&[0; 4]);
    octets.extend_from_slice(&[kind, flags, 0, 8]);
    octets.extend_from_slice(&word.to_be_bytes());
    let sum = crc32c(&octets);
    octets[8..12].copy_from_slice(&sum.to_le_bytes());
    ip(addr(from), addr(to), 132, &octets)
}

fn assert_crc(seen: &Seen) {
    let mut octets = seen.body.clone();
    octets[8..12].fill(0);
    assert_eq!(seen.body[8..12], crc32c(&octets).to_le_bytes(), "CRC32c");
}

const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const HEARTBEAT: u8 = 4;
const HEARTBEAT_ACK: u8 = 5;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
const SHUTDOWN_COMPLETE: u8 = 14;

/// Tags that the server and Alice have chosen.
const SERVERS: u32 = 0x5e;
const ALICES: u32 = 0xa1;

fn out(lab: &mut Lab, tag: u32, chunk: (u8, u8, u32)) {
    let seen = lab.out(&sctp(ALICE, FAR, [5000, 80], tag, chunk));
    seen.goes("203.0.113.1:5000", "198.51.100.2:80");
    assert_crc(&seen);
}

fn back(lab: &mut Lab, tag: u32, chunk: (u8, u8, u32)) {
    let seen = lab.back(&sctp(FAR, EXTERNAL, [80, 5000], tag, chunk));
    seen.goes("198.51.100.2:80", "172.18.0.2:5000");
    assert_crc(&seen);
}

fn state(lab: &Lab) -> SctpState {
    let flows = lab.nat.conntrack().list(Some(NET));
    assert_eq!(flows.len(), 1);
    assert_eq!(flows[0].state_name(), Some(flows[0].sctp_state().name()));
    flows[0].sctp_state()
}

fn associated() -> Lab {
    let mut lab = Lab::default();
    out(&mut lab, 0, (INIT, 0, ALICES));
    assert_eq!(state(&lab), SctpState::CookieWait);
    back(&mut lab, ALICES, (INIT_ACK, 0, SERVERS));
    out(&mut lab, SERVERS, (COOKIE_ECHO, 0, 0));
    assert_eq!(state(&lab), SctpState::CookieEchoed);
    back(&mut lab, ALICES, (COOKIE_ACK, 0, 0));
    assert_eq!(state(&lab), SctpState::Established);
    lab
}

#[test]
fn sctp_is_followed_from_init_to_shutdown_complete() {
    let mut lab = associated();
    out(&mut lab, SERVERS, (DATA, 3, 1));
    back(&mut lab, ALICES, (3, 0, 1));
    out(&mut lab, SERVERS, (SHUTDOWN, 0, 1));
    assert_eq!(state(&lab), SctpState::ShutdownSent);
    back(&mut lab, ALICES, (SHUTDOWN_ACK, 0, 0));
    assert_eq!(state(&lab), SctpState::ShutdownAckSent);
    out(&mut lab, SERVERS, (SHUTDOWN_COMPLETE, 0, 0));
    assert_eq!(state(&lab), SctpState::Closed);
    let mut lab = associated();
    back(&mut lab, ALICES, (ABORT, 0, 0));
    assert_eq!(state(&lab), SctpState::Closed);
}

/// Each state's idle time, of both profiles the same.
#[test]
fn sctp_is_remembered_for_as_long_as_its_state_says() {
    type Story<'a> = &'a dyn Fn(&mut Lab);
    let stories: [(u64, Story<'_>); 5] = [
        (3, &|lab| out(lab, 0, (INIT, 0, ALICES))),
        (30, &|lab| out(lab, SERVERS, (HEARTBEAT, 0, 0))),
        (210, &|lab| *lab = associated()),
        (3, &|lab| {
            *lab = associated();
            out(lab, SERVERS, (SHUTDOWN, 0, 1));
        }),
        (10, &|lab| {
            *lab = associated();
            back(lab, ALICES, (ABORT, 0, 0));
        }),
    ];
    for (seconds, story) in stories {
        let mut lab = Lab::default();
        story(&mut lab);
        lab.wait_millis(seconds * 1000 - 100);
        lab.expire();
        assert_eq!(lab.flows(), 1, "{seconds} s are not over");
        lab.wait_millis(200);
        lab.expire();
        assert_eq!(lab.flows(), 0, "{seconds} s are over");
    }
}

/// Another path of an association is known by its heartbeats, and held by them.
#[test]
fn sctp_s_other_paths_are_tried_by_heartbeats() {
    let mut lab = Lab::default();
    out(&mut lab, SERVERS, (HEARTBEAT, 0, 0));
    assert_eq!(state(&lab), SctpState::HeartbeatSent);
    back(&mut lab, ALICES, (HEARTBEAT_ACK, 0, 0));
    assert_eq!(state(&lab), SctpState::Established);
    out(&mut lab, SERVERS, (DATA, 3, 0));
}

/// RFC 9260 §8.5: whoever does not know the tag moves nothing.
#[test]
fn sctp_with_another_s_tag_is_refused() {
    let mut lab = associated();
    let forged = lab.arrive(&sctp(FAR, EXTERNAL, [80, 5000], 0xbad, (ABORT, 0, 0))).unwrap_err();
    assert!(matches!(forged.reason, Reason::WrongTag(_)), "{}", forged.reason);
    assert!(forged.reason.to_string().contains("0x000000a1"), "{}", forged.reason);
    assert_eq!(state(&lab), SctpState::Established);
    // A forged INIT cannot put another's tags in their place.
    back(&mut lab, 0, (INIT, 0, 0xbad));
    out(&mut lab, SERVERS, (DATA, 3, 0));
    back(&mut lab, ALICES, (DATA, 3, 0));
}

/// An association may have several addresses, which only its ports hold together (RFC 9260 §1.3): another
/// container's from the same port to the same server has another one, and the checksum is right.
#[test]
fn sctp_keeps_its_ports_where_they_are_free() {
    let mut lab = associated();
    let seen = lab.out(&sctp(BOB, FAR, [5000, 80], 0, (INIT, 0, 7)));
    let moved = seen.src.port();
    assert!(moved != 5000 && seen.src.ip() == addr(EXTERNAL), "shown as {}", seen.src);
    assert_crc(&seen);
    let seen = lab.back(&sctp(FAR, EXTERNAL, [80, moved], 7, (INIT_ACK, 0, 8)));
    seen.goes("198.51.100.2:80", "172.18.0.3:5000");
    assert_crc(&seen);
    let seen = lab.out(&sctp(BOB, FAR, [5000, 80], 8, (COOKIE_ECHO, 0, 0)));
    seen.goes(&format!("{EXTERNAL}:{moved}"), "198.51.100.2:80");
    assert_crc(&seen);
    back(&mut lab, ALICES, (DATA, 3, 1));
    let seen = lab.out(&sctp(BOB, FAR, [5001, 80], 0, (INIT, 0, 7)));
    seen.goes("203.0.113.1:5001", "198.51.100.2:80");
    let seen = lab.out(&sctp(BOB, "198.51.100.3", [5000, 80], 0, (INIT, 0, 7)));
    seen.goes("203.0.113.1:5000", "198.51.100.3:80");
    assert_eq!(lab.nat.mappings().len(), 0);
}

/// A published port may differ inside; the checksum is then made anew, and one that was wrong stays wrong.
#[test]
fn sctp_may_be_published() {
    let sctp_protocol = Protocol::Other(132);
    let mut lab = Lab::publishing(vec![publish(sctp_protocol, 3868..=3868, "172.18.0.2:80")]);
    let init = sctp(FAR, EXTERNAL, [5000, 3868], 0, (INIT, 0, 7));
    let seen = lab.back(&init);
    seen.goes("198.51.100.2:5000", "172.18.0.2:80");
    assert_crc(&seen);
    let answer = sctp(ALICE, FAR, [80, 5000], 7, (INIT_ACK, 0, 8));
    let seen = lab.out(&answer);
    seen.goes("203.0.113.1:3868", "198.51.100.2:5000");
    assert_crc(&seen);
    let mut wrong = sctp(FAR, EXTERNAL, [5000, 3868], 8, (COOKIE_ECHO, 0, 0));
    wrong[28] ^= 1;
    let seen = lab.back(&wrong);
    let mut octets = seen.body.clone();
    octets[8..12].fill(0);
    assert_ne!(seen.body[8..12], crc32c(&octets).to_le_bytes());
}

#[test]
fn sctp_without_a_chunk_is_malformed() {
    let mut lab = Lab::default();
    let bare = ip(addr(ALICE), addr(FAR), 132, &[0x13, 0x88, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(lab.leave(&bare).unwrap_err().reason, Reason::Malformed);
    assert_eq!(lab.flows(), 0);
}

/// A DCCP packet of that type (RFC 4340 §5.1), checksum and all.
fn dccp(from: &str, to: &str, ports: [u16; 2], kind: u8) -> Vec<u8> {
    let mut octets = [ports[0].to_be_bytes(), ports[1].to_be_bytes()].concat();
    octets.extend_from_slice(&[5, 0, 0, 0, kind << 1 | 1, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0]);
    finish_at_6(&mut octets, from, to, 33);
    ip(addr(from), addr(to), 33, &octets)
}

fn sum(octets: &[u8], from: &str, to: &str, protocol: u8) -> u16 {
    let ip = |text: &str| match addr(text) {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    };
    let len = u16::try_from(octets.len()).unwrap().to_be_bytes();
    let all = [ip(from), ip(to), vec![0, protocol, len[0], len[1]], octets.to_vec()].concat();
    let words = all.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

fn finish_at_6(octets: &mut [u8], from: &str, to: &str, protocol: u8) {
    let checksum = !sum(octets, from, to, protocol);
    octets[6..8].copy_from_slice(&checksum.to_be_bytes());
}

fn assert_sum(seen: &Seen) {
    let (src, dst) = (seen.src.ip().to_string(), seen.dst.ip().to_string());
    assert_eq!(sum(&seen.body, &src, &dst, seen.protocol), 0xffff, "checksum");
}

/// RFC 5597 REQ-1 to REQ-5: as TCP, with 480 s and 124 minutes.
#[test]
fn dccp_has_ports_and_two_idle_times() {
    let [request, response, ack, close, reset] = [0, 1, 3, 6, 7];
    let mut lab = Lab::default();
    let first = lab.out(&dccp(ALICE, FAR, [5000, 80], request));
    assert_sum(&first);
    let shown = u16::from_be_bytes([first.body[0], first.body[1]]);
    assert_eq!(shown, 5000);
    let bobs = lab.out(&dccp(BOB, FAR, [5000, 80], request));
    assert_sum(&bobs);
    assert_ne!(bobs.body[..2], first.body[..2], "each its own port");
    lab.wait(479);
    assert_sum(&lab.back(&dccp(FAR, EXTERNAL, [80, 5000], response)));
    lab.out(&dccp(ALICE, FAR, [5000, 80], ack));
    lab.wait(7439);
    lab.expire();
    assert_eq!(lab.flows(), 1, "Alice's; Bob was never answered");
    lab.out(&dccp(ALICE, FAR, [5000, 80], close));
    lab.back(&dccp(FAR, EXTERNAL, [80, 5000], reset));
    lab.wait(479);
    lab.expire();
    assert_eq!(lab.flows(), 1);
    lab.wait(2);
    lab.expire();
    assert_eq!((lab.flows(), lab.nat.mappings().len()), (0, 0));
}

/// RFC 3828 §3.1: a checksum is never zero. With UDP's idle times.
#[test]
fn udp_lite_is_translated_as_udp_is() {
    let mut zeros = 0;
    for word in 0..=u16::MAX {
        let mut lab =
            Lab::with(Config { answer_unsolicited: false, ..Config::new(UPLINK, [1; 16]) });
        let mut octets = [5000u16.to_be_bytes(), 80u16.to_be_bytes(), [0, 8], [0, 0]].concat();
        octets.extend_from_slice(&word.to_be_bytes());
        finish_at_6(&mut octets, ALICE, FAR, 136);
        // Coverage: the header and two octets.
        let seen = lab.out(&ip(addr(ALICE), addr(FAR), 136, &octets));
        assert_sum(&seen);
        assert_ne!(seen.body[6..8], [0, 0]);
        zeros += usize::from(seen.body[6..8] == [0xff, 0xff]);
        if word % 4096 != 0 && zeros > 0 {
            break;
        }
    }
    assert!(zeros > 0, "the case has come");
    let mut lab = Lab::default();
    let mut octets = [5000u16.to_be_bytes(), 80u16.to_be_bytes(), [0, 8], [0, 0]].concat();
    finish_at_6(&mut octets, ALICE, FAR, 136);
    let sent = lab.leave(&ip(addr(ALICE), addr(FAR), 136, &octets)).unwrap();
    assert_eq!(read(&sent).src.ip(), addr(EXTERNAL));
    lab.wait(121);
    lab.expire();
    assert_eq!(lab.flows(), 0);
}
