//! RFC 5382, RFC 7857 and RFC 5961: TCP.

use nat::window::OutOfWindow;
use nat::{Config, Conntrack, Profile, Protocol, Reason, TcpState};

use crate::lab::{EXTERNAL, Lab, NET, UPLINK, publish};
use crate::wire::{ACK, FIN_ACK, RST, SYN, SYN_ACK, Tcp, at, control, dont_fragment, read, tcp};

const ALICE: &str = "172.18.0.2:40000";
const SERVER: &str = "198.51.100.2:80";
const SHOWN: &str = "203.0.113.1:40000";

/// Alice is connected to the server: her numbers go on at 101, the server's at 501.
fn connected() -> Lab {
    let mut lab = Lab::default();
    connect(&mut lab);
    lab
}

fn connect(lab: &mut Lab) {
    lab.out(&control(ALICE, SERVER, SYN, 100, 0)).goes(SHOWN, SERVER);
    lab.back(&control(SERVER, SHOWN, SYN_ACK, 500, 101)).goes(SERVER, ALICE);
    lab.out(&control(ALICE, SERVER, ACK, 101, 501));
}

fn state(lab: &Lab) -> TcpState {
    let flows = lab.nat.conntrack().list(Some(NET));
    assert_eq!(flows.len(), 1);
    flows[0].state()
}

fn data(from: &str, to: &str, seq: u32, ack: u32, len: usize) -> Vec<u8> {
    tcp(from, to, &Tcp { flags: ACK, seq, ack, payload: vec![7; len], options: vec![] })
}

#[test]
fn t1_a_mapping_is_endpoint_independent() {
    let mut lab = Lab::default();
    for server in ["198.51.100.2:80", "198.51.100.2:443", "198.51.100.3:80"] {
        lab.out(&control(ALICE, server, SYN, 100, 0)).goes(SHOWN, server);
    }
    assert_eq!(lab.nat.mappings().len(), 1);
}

#[test]
fn t2_every_valid_sequence_passes() {
    let mut lab = connected();
    assert_eq!(state(&lab), TcpState::Established);
    lab.out(&data(ALICE, SERVER, 101, 501, 1000));
    lab.back(&data(SERVER, SHOWN, 501, 1101, 1400));
    lab.out(&control(ALICE, SERVER, FIN_ACK, 1101, 1901));
    assert_eq!(state(&lab), TcpState::FinWait);
    lab.back(&control(SERVER, SHOWN, ACK, 1901, 1102));
    assert_eq!(state(&lab), TcpState::CloseWait);
    // Half-closed: the server goes on.
    lab.back(&data(SERVER, SHOWN, 1901, 1102, 1400));
    lab.out(&control(ALICE, SERVER, ACK, 1102, 3301));
    lab.back(&control(SERVER, SHOWN, FIN_ACK, 3301, 1102));
    lab.out(&control(ALICE, SERVER, ACK, 1102, 3302));
    assert_eq!(state(&lab), TcpState::TimeWait);
    // The same ports may connect again.
    lab.out(&control(ALICE, SERVER, SYN, 900_000, 0));
    assert_eq!(state(&lab), TcpState::SynSent);
}

#[test]
fn t2_both_sides_may_open_at_once() {
    let mut lab = Lab::default();
    lab.out(&control(ALICE, SERVER, SYN, 100, 0));
    lab.back(&control(SERVER, SHOWN, SYN, 500, 0)).goes(SERVER, ALICE);
    assert_eq!(state(&lab), TcpState::SynSent2);
    lab.out(&control(ALICE, SERVER, SYN_ACK, 100, 501));
    lab.back(&control(SERVER, SHOWN, SYN_ACK, 500, 101));
    lab.out(&data(ALICE, SERVER, 101, 501, 10));
    assert_eq!(state(&lab), TcpState::Established);
}

/// RFC 9293 §3.5.1: Alice has lost the connection, by a crash, and the server has not; it asks her, she resets it,
/// and her next attempt opens a new one.
#[test]
fn t2_who_has_lost_a_connection_may_begin_it_anew() {
    let mut lab = connected();
    lab.out(&data(ALICE, SERVER, 101, 501, 1000));
    lab.out(&control(ALICE, SERVER, FIN_ACK, 1101, 501));
    let syn = control(ALICE, SERVER, SYN, 3_000_000_000, 0);
    lab.out(&syn).goes(SHOWN, SERVER);
    lab.back(&control(SERVER, SHOWN, ACK, 501, 1102)).goes(SERVER, ALICE);
    assert_ne!(state(&lab), TcpState::SynSent, "not before the server has answered");
    lab.out(&control(ALICE, SERVER, RST, 1102, 0)).goes(SHOWN, SERVER);
    assert_eq!(state(&lab), TcpState::Close);
    lab.out(&syn).goes(SHOWN, SERVER);
    lab.back(&control(SERVER, SHOWN, SYN_ACK, 77, 3_000_000_001)).goes(SERVER, ALICE);
    lab.out(&control(ALICE, SERVER, ACK, 3_000_000_001, 78)).goes(SHOWN, SERVER);
    assert_eq!(state(&lab), TcpState::Established);
}

/// The same where the server has lost it, too: it accepts at once, and what nobody has asked for it does not.
#[test]
fn t2_both_may_have_lost_a_connection() {
    let mut lab = connected();
    lab.back(&control(SERVER, SHOWN, FIN_ACK, 501, 101));
    lab.arrive(&control(SERVER, SHOWN, SYN_ACK, 2_000_000_000, 70_001)).unwrap_err();
    lab.out(&control(ALICE, SERVER, SYN, 3_000_000_000, 0)).goes(SHOWN, SERVER);
    lab.arrive(&control(SERVER, SHOWN, SYN_ACK, 2_000_000_000, 70_001)).unwrap_err();
    lab.back(&control(SERVER, SHOWN, SYN_ACK, 2_000_000_000, 3_000_000_001)).goes(SERVER, ALICE);
    assert_eq!(state(&lab), TcpState::SynRecv);
    lab.out(&control(ALICE, SERVER, ACK, 3_000_000_001, 2_000_000_001)).goes(SHOWN, SERVER);
    assert_eq!(state(&lab), TcpState::Established);
    lab.back(&data(SERVER, SHOWN, 2_000_000_001, 3_000_000_001, 1400)).goes(SERVER, ALICE);
    lab.out(&data(ALICE, SERVER, 3_000_000_001, 2_000_001_401, 10)).goes(SHOWN, SERVER);
}

/// RFC 9293 §3.5.1, figure 9: the flow is new, to us, and the server has an older one in mind.
#[test]
fn t2_a_server_may_remember_another_connection() {
    let mut lab = Lab::default();
    let syn = control(ALICE, SERVER, SYN, 100, 0);
    lab.out(&syn);
    lab.back(&control(SERVER, SHOWN, ACK, 800_000, 900_000)).goes(SERVER, ALICE);
    lab.out(&control(ALICE, SERVER, RST, 900_000, 0)).goes(SHOWN, SERVER);
    assert_eq!(state(&lab), TcpState::SynSent);
    lab.out(&syn).goes(SHOWN, SERVER);
    lab.back(&control(SERVER, SHOWN, SYN_ACK, 500, 101)).goes(SERVER, ALICE);
    lab.out(&control(ALICE, SERVER, ACK, 101, 501));
    assert_eq!(state(&lab), TcpState::Established);
}

/// An attempt from a port whose last one was given up begins wherever it likes.
#[test]
fn t2_an_unanswered_attempt_may_be_made_anew_from_any_number() {
    for iss in [50, 3_000_000_000] {
        let mut lab = Lab::default();
        lab.out(&control(ALICE, SERVER, SYN, 100, 0));
        lab.out(&control(ALICE, SERVER, SYN, iss, 0)).goes(SHOWN, SERVER);
        lab.back(&control(SERVER, SHOWN, SYN_ACK, 500, iss + 1)).goes(SERVER, ALICE);
        lab.out(&control(ALICE, SERVER, ACK, iss + 1, 501));
        lab.back(&data(SERVER, SHOWN, 501, iss + 1, 1000)).goes(SERVER, ALICE);
        assert_eq!(state(&lab), TcpState::Established);
    }
}

#[test]
fn t3_filtering_is_address_dependent() {
    let mut lab = connected();
    lab.back(&control("198.51.100.2:9999", SHOWN, SYN, 1, 0)).goes("198.51.100.2:9999", ALICE);
    lab.arrive(&control("198.51.100.3:80", SHOWN, SYN, 1, 0)).unwrap_err();
    lab.arrive(&control("198.51.100.2:9998", SHOWN, ACK, 1, 1)).unwrap_err();
}

#[test]
fn t4_a_syn_nobody_asked_for_is_answered_after_six_seconds() {
    let mut lab = connected();
    for to in ["203.0.113.1:40000", "203.0.113.1:9"] {
        let syn = control("198.51.100.7:1000", to, SYN, 1, 0);
        assert_eq!(lab.arrive(&syn).unwrap_err().tell, None);
        lab.wait_millis(5900);
        assert!(lab.nat.due(lab.now).is_none(), "quiet for six seconds");
        // Asked again, it is the same question.
        lab.arrive(&syn).unwrap_err();
        lab.wait_millis(100);
        assert_eq!(lab.nat.due(lab.now), Some((UPLINK, syn)));
        assert!(lab.nat.due(lab.now).is_none());
    }
}

#[test]
fn t4_nothing_is_said_if_the_inside_opens_meanwhile() {
    let mut lab = connected();
    let peer = "198.51.100.7:1000";
    lab.arrive(&control(peer, SHOWN, SYN, 1, 0)).unwrap_err();
    lab.wait(3);
    lab.out(&control(ALICE, peer, SYN, 100, 0));
    lab.wait(4);
    assert!(lab.nat.due(lab.now).is_none());
    // The peer's next SYN gets through.
    lab.back(&control(peer, SHOWN, SYN, 1, 0)).goes(peer, ALICE);
}

#[test]
fn t4a_policy_may_say_nothing_at_all() {
    let mut lab = Lab::with(Config { answer_unsolicited: false, ..Config::new(UPLINK, [0; 16]) });
    lab.arrive(&control("198.51.100.7:1000", SHOWN, SYN, 1, 0)).unwrap_err();
    lab.wait(7);
    assert!(lab.nat.due(lab.now).is_none());
}

#[test]
fn t5_an_established_connection_may_be_silent_for_two_hours_and_four_minutes() {
    let mut lab = connected();
    lab.wait(7440);
    lab.expire();
    lab.back(&data(SERVER, SHOWN, 501, 101, 10));
}

/// However long the switch has been running: past the 49 days of a clock of 32 bits that counts milliseconds, the
/// 497 of one that counts hundredths of a second, and on the edge of either.
#[test]
fn t5_an_idle_time_is_as_long_in_any_year() {
    const DAY: u64 = 86_400;
    for began in [49, 50, 248, 496, 497, 498, 1988, 36_500] {
        for seconds in [0, 1 << 14, 1 << 15] {
            let mut lab = Lab::default();
            lab.wait(began * DAY + seconds);
            connect(&mut lab);
            lab.wait(DAY - 1);
            lab.expire();
            assert_eq!(lab.flows(), 1, "a day less a second, begun at {}", lab.now);
            lab.out(&data(ALICE, SERVER, 101, 501, 1));
            lab.back(&data(SERVER, SHOWN, 501, 102, 1));
            lab.out(&data(ALICE, SERVER, 102, 502, 0));
            lab.wait(DAY);
            lab.expire();
            assert_eq!(lab.flows(), 0, "a day, begun at {}", lab.now);
        }
    }
}

#[test]
fn t5_one_that_is_opening_or_closing_for_four_minutes() {
    let mut lab = Lab::default();
    lab.out(&control(ALICE, SERVER, SYN, 100, 0));
    lab.wait(239);
    lab.back(&control(SERVER, SHOWN, SYN_ACK, 500, 101));
    let mut lab = Lab::default();
    lab.out(&control(ALICE, SERVER, SYN, 100, 0));
    lab.wait(241);
    lab.expire();
    assert_eq!(lab.nat.mappings().len(), 0);
    let mut lab = connected();
    lab.out(&control(ALICE, SERVER, FIN_ACK, 101, 501));
    lab.wait(239);
    lab.back(&control(SERVER, SHOWN, ACK, 501, 102));
    lab.wait(241);
    lab.expire();
    assert_eq!(lab.flows(), 0);
}

#[test]
fn t5_the_linux_profile_keeps_linux_times() {
    let mut lab = Lab::new(Conntrack::new(9, Profile::Linux), Config::new(UPLINK, [0; 16]));
    connect(&mut lab);
    lab.wait(400_000);
    lab.out(&control(ALICE, SERVER, RST, 101, 0));
    lab.wait(11);
    lab.expire();
    assert_eq!(lab.flows(), 0);
}

/// STANDARDS of the kernel: `tcp_timeout_unacknowledged`, five minutes.
#[test]
fn t5_data_that_is_not_acknowledged_ends_sooner() {
    for (acknowledged, after) in [(1101, 7440), (1100, 301)] {
        let mut lab = connected();
        lab.out(&data(ALICE, SERVER, 101, 501, 1000));
        lab.back(&control(SERVER, SHOWN, ACK, 501, acknowledged));
        lab.wait(299);
        lab.expire();
        assert_eq!(lab.flows(), 1);
        lab.wait(after - 299);
        lab.expire();
        assert_eq!(lab.flows(), usize::from(acknowledged == 1101), "acknowledged {acknowledged}");
    }
}

/// `nf_conntrack_tcp_max_retrans`, and a side without a window.
#[test]
fn t5_a_connection_that_gets_nowhere_ends_sooner() {
    let mut timeouts = nat::Timeouts::RFC;
    timeouts.tcp_max_retrans = smoltcp::time::Duration::from_secs(100);
    let config = || Config { timeouts: Some(timeouts), ..Config::new(UPLINK, [0; 16]) };
    for (repeated, seconds) in [(2, 200), (3, 100)] {
        let mut lab = Lab::with(config());
        connect(&mut lab);
        for _ in 0..=repeated {
            lab.out(&data(ALICE, SERVER, 101, 501, 1000));
        }
        lab.wait(seconds + 1);
        lab.expire();
        assert_eq!(lab.flows(), usize::from(repeated < 3), "repeated {repeated} times");
    }
    let mut lab = Lab::with(config());
    connect(&mut lab);
    let mut shut = control(SERVER, SHOWN, ACK, 501, 101);
    // No window: 64,000 less in the checksum.
    let sum = u32::from(!u16::from_be_bytes([shut[36], shut[37]])) + u32::from(!64_000u16);
    let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    shut[34..36].fill(0);
    shut[36..38].copy_from_slice(&(!sum).to_be_bytes());
    lab.back(&shut);
    lab.wait(101);
    lab.expire();
    assert_eq!(lab.flows(), 0);
}

#[test]
fn t7_no_port_is_overloaded() {
    let mut lab = connected();
    let other = lab.out(&control("172.18.0.3:40000", SERVER, SYN, 100, 0));
    assert_ne!(other.src, at(SHOWN));
}

#[test]
fn t8_hairpin_to_a_published_port() {
    let mut lab = Lab::publishing(vec![publish(Protocol::Tcp, 8080..=8080, "172.18.0.3:80")]);
    let (outer, shown) = (format!("{EXTERNAL}:8080"), format!("{EXTERNAL}:40000"));
    lab.out(&control(ALICE, &outer, SYN, 100, 0)).goes(&shown, "172.18.0.3:80");
    lab.out(&control("172.18.0.3:80", &shown, SYN_ACK, 500, 101)).goes(&outer, ALICE);
    lab.out(&control(ALICE, &outer, ACK, 101, 501)).goes(&shown, "172.18.0.3:80");
    assert_eq!(lab.flows(), 1);
}

#[test]
fn t11_a_segment_out_of_its_window_is_invalid_and_why_is_told_in_numbers() {
    let mut lab = connected();
    let refused = lab.arrive(&data(SERVER, SHOWN, 501 + 70_000, 101, 10)).unwrap_err();
    let why = OutOfWindow::BeyondWindow { seq: 70_501, limit: 64_502 };
    assert_eq!(refused.reason, Reason::Invalid(why));
    assert_eq!(
        refused.reason.to_string(),
        "it cannot belong to its connection: it begins at 70501, and the receiver takes nothing from \
         64502 on"
    );
    let refused = lab.arrive(&data(SERVER, SHOWN, 501, 9999, 10)).unwrap_err();
    assert!(refused.reason.to_string().contains("acknowledges 9999"), "{}", refused.reason);
    lab.back(&data(SERVER, SHOWN, 501, 101, 10));
}

#[test]
fn t11_a_liberal_nat_lets_it_pass() {
    let mut lab = Lab::with(Config { liberal: true, ..Config::new(UPLINK, [0; 16]) });
    connect(&mut lab);
    lab.back(&data(SERVER, SHOWN, 501 + 70_000, 101, 10));
}

/// RFC 7857 §2.2: after a reset the entry stays four minutes; traffic says that it was not meant.
#[test]
fn r7857_2_2_a_reset_is_translated_and_the_entry_stays() {
    let mut lab = connected();
    lab.back(&control(SERVER, SHOWN, RST, 501, 0)).goes(SERVER, ALICE);
    assert_eq!(state(&lab), TcpState::Close);
    lab.wait(239);
    lab.expire();
    lab.out(&data(ALICE, SERVER, 101, 501, 10));
    assert_eq!(state(&lab), TcpState::Established);
    lab.back(&control(SERVER, SHOWN, RST, 501, 0));
    lab.wait(241);
    lab.expire();
    assert_eq!(lab.flows(), 0);
}

/// RFC 5961 §3.2, RFC 7857 §2.2: a blind reset ends nothing.
#[test]
fn r5961_a_guessed_reset_changes_nothing() {
    let mut lab = connected();
    // In the window, but not where it is expected: the receiver will ask back.
    lab.back(&control(SERVER, SHOWN, RST, 501 + 5000, 0));
    assert_eq!(state(&lab), TcpState::Established);
    lab.arrive(&control(SERVER, SHOWN, RST, 501 + 5_000_000, 0)).unwrap_err();
    assert_eq!(state(&lab), TcpState::Established);
}

#[test]
fn t12_a_refused_connection_is_refused() {
    let mut lab = Lab::default();
    lab.out(&control(ALICE, SERVER, SYN, 100, 0));
    lab.back(&control(SERVER, SHOWN, RST | ACK, 0, 101)).goes(SERVER, ALICE);
    assert_eq!(state(&lab), TcpState::Close);
}

#[test]
fn t13_a_connection_is_picked_up_in_the_middle_unless_strict() {
    let mut lab = Lab::default();
    lab.out(&data(ALICE, SERVER, 7000, 9000, 100)).goes(SHOWN, SERVER);
    assert_eq!(state(&lab), TcpState::Established);
    lab.back(&data(SERVER, SHOWN, 9000, 7100, 100)).goes(SERVER, ALICE);
    // One that is never answered is none.
    let mut unanswered = Lab::default();
    unanswered.out(&data(ALICE, SERVER, 7000, 9000, 100));
    unanswered.wait(301);
    unanswered.expire();
    assert_eq!(unanswered.flows(), 0);
    for (flags, loose) in [(RST, true), (FIN_ACK, true), (SYN_ACK, true), (ACK, false)] {
        let mut lab = Lab::with(Config { loose, ..Config::new(UPLINK, [0; 16]) });
        let refused = lab.leave(&control(ALICE, SERVER, flags, 7000, 9000)).unwrap_err();
        assert_eq!(refused.reason, Reason::NoFlow);
        assert_eq!((lab.flows(), lab.nat.mappings().len()), (0, 0));
    }
}

/// Nobody has seen what its windows are scaled by.
#[test]
fn t13_a_connection_picked_up_in_the_middle_is_not_held_to_windows_unscaled() {
    let mut lab = Lab::default();
    lab.out(&data(ALICE, SERVER, 1000, 501, 1000));
    lab.back(&data(SERVER, SHOWN, 501, 2000, 1000)).goes(SERVER, ALICE);
    lab.out(&data(ALICE, SERVER, 500_000, 1501, 1000)).goes(SHOWN, SERVER);
    lab.back(&data(SERVER, SHOWN, 400_000, 501_000, 1000)).goes(SERVER, ALICE);
    // Though not to any number.
    lab.arrive(&control(SERVER, SHOWN, ACK, 400_000, 501_001)).unwrap_err();
}

#[test]
fn t14_mss_is_lowered_to_what_the_way_carries() {
    for (client, server, most) in
        [(ALICE, SERVER, 1360), ("[fd00:18::2]:40000", "[2001:db8:9::1]:80", 1340)]
    {
        let mut lab = Lab { mtu: 1400, ..Lab::default() };
        // At an odd place, too.
        for options in [vec![2, 4, 5, 180], vec![1, 2, 4, 5, 180, 0, 0, 0]] {
            let place = options.iter().position(|octet| *octet == 2).unwrap();
            let syn = Tcp { flags: SYN, seq: 100, options, ..Tcp::default() };
            let seen = lab.out(&tcp(client, server, &syn));
            let said = &seen.body[20 + place + 2..20 + place + 4];
            assert_eq!(u16::from_be_bytes([said[0], said[1]]), most);
        }
        let small = Tcp { flags: SYN, seq: 100, options: vec![2, 4, 2, 24], ..Tcp::default() };
        assert_eq!(lab.out(&tcp(client, server, &small)).body[20..24], [2, 4, 2, 24]);
    }
}

/// A frame still to be segmented is one packet: one header rewritten, its length not the egress' concern.
#[test]
fn t15_a_super_frame_is_one_packet_and_a_partial_checksum_stays_one() {
    let mut lab = connected();
    let mut packet = dont_fragment(data(ALICE, SERVER, 101, 501, 20_000));
    // What the kernel leaves: the sum of the pseudo-header, not complemented.
    let pseudo = |src: &str, dst: &str, len: u16| {
        let words: Vec<u16> = [at(src).ip(), at(dst).ip()]
            .iter()
            .flat_map(|addr| match addr {
                std::net::IpAddr::V4(addr) => {
                    let [a, b, c, d] = addr.octets();
                    [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]
                }
                std::net::IpAddr::V6(_) => unreachable!("IPv4 only"),
            })
            .chain([6, len])
            .collect();
        let sum = words.iter().fold(0u32, |sum, word| sum + u32::from(*word));
        let sum = (sum & 0xffff) + (sum >> 16);
        u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
    };
    packet[36..38].copy_from_slice(&pseudo(ALICE, SERVER, 20_020).to_be_bytes());
    lab.undone = nat::Undone { partial: true, segment: Some(1460) };
    let out = lab.leave(&packet).unwrap();
    assert_eq!(out[36..38], pseudo(SHOWN, SERVER, 20_020).to_be_bytes());
    lab.mtu = 1400;
    let refused = lab.leave(&{
        let mut next = packet.clone();
        next[24..28].copy_from_slice(&20_101u32.to_be_bytes());
        next
    });
    assert!(matches!(refused.unwrap_err().reason, Reason::TooBig(1400)));
}

#[test]
fn a_published_port_leads_to_the_container_and_back() {
    let mut lab = Lab::publishing(vec![
        publish(Protocol::Tcp, 8080..=8089, "172.18.0.2:80"),
        publish(Protocol::Tcp, 8080..=8089, "[fd00:18::2]:80"),
    ]);
    for (client, outer, inner) in [
        ("198.51.100.9:5555", "203.0.113.1:8083", "172.18.0.2:83"),
        ("[2001:db8:9::1]:5555", "[2001:db8:1::1]:8083", "[fd00:18::2]:83"),
    ] {
        lab.back(&control(client, outer, SYN, 1, 0)).goes(client, inner);
        lab.out(&control(inner, client, SYN_ACK, 9, 2)).goes(outer, client);
        lab.back(&control(client, outer, ACK, 2, 10)).goes(client, inner);
    }
    lab.arrive(&control("198.51.100.9:5555", "203.0.113.1:8090", SYN, 1, 0)).unwrap_err();
}

#[test]
fn what_is_not_published_is_not_reached_by_its_own_address_either() {
    let mut lab = Lab::default();
    let refused = lab.arrive(&control("198.51.100.9:5555", ALICE, SYN, 1, 0)).unwrap_err();
    assert!(matches!(refused.reason, Reason::Filtered(_)));
    let mut open = Lab::with(Config { open: true, ..Config::new(UPLINK, [0; 16]) });
    let routed = open.arrive(&control("198.51.100.9:5555", ALICE, SYN, 1, 0)).unwrap();
    read(&routed).goes("198.51.100.9:5555", ALICE);
}
