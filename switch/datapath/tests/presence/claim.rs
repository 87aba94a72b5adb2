//! RFC 5227: IPv4 address conflict detection.

use datapath::presence::{Change, Heard, Origin, PresenceConfig, Settled, Standing};
use smoltcp::time::{Duration, Instant};

use crate::craft::{BROADCAST, NOBODY, Seen, THEM, US, What, arp, v4};
use crate::lab::{Lab, T0, given_v4};

fn probe() -> Seen {
    let what = What::Arp { operation: 1, sender: (US, NOBODY), target: ([0; 6], v4(5)) };
    Seen { dst: BROADCAST, what }
}

fn announcement() -> Seen {
    let what = What::Arp { operation: 1, sender: (US, v4(5)), target: ([0; 6], v4(5)) };
    Seen { dst: BROADCAST, what }
}

fn seconds(from: Instant, to: Instant) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a few seconds in microseconds")]
    let micros = (to.total_micros() - from.total_micros()) as f64;
    micros / 1e6
}

/// A presence that has 192.0.2.5.
fn settled() -> Lab {
    let mut lab = Lab::new(given_v4());
    lab.pass(Duration::from_secs(20));
    assert_eq!(lab.addresses(), ["192.0.2.5/24"]);
    lab.changes();
    lab
}

#[test]
fn section_2_1_1_three_probes_one_to_two_seconds_apart_and_then_a_silence_of_two() {
    let mut firsts = Vec::new();
    for seed in 0..200 {
        let mut lab = Lab::new(PresenceConfig { seed, ..given_v4() });
        let sent = lab.pass(Duration::from_secs(20));
        let (at, frames): (Vec<_>, Vec<_>) = sent.into_iter().unzip();
        assert_eq!(frames, [probe(), probe(), probe(), announcement(), announcement()]);
        let gaps: Vec<_> = at.windows(2).map(|two| seconds(two[0], two[1])).collect();
        assert!((1.0..=2.0).contains(&gaps[0]) && (1.0..=2.0).contains(&gaps[1]), "{gaps:?}");
        assert_eq!(gaps[2..], [2.0, 2.0], "ANNOUNCE_WAIT, ANNOUNCE_INTERVAL");
        firsts.push(seconds(T0, at[0]));
    }
    assert!(firsts.iter().all(|first| (0.0..=1.0).contains(first)), "PROBE_WAIT");
    let early = firsts.iter().filter(|first| **first < 0.5).count();
    assert!((50..150).contains(&early), "{early} of 200 before half of it");
}

#[test]
fn section_2_1_an_address_is_not_used_before_it_was_probed_for() {
    let mut lab = Lab::new(given_v4());
    assert_eq!(lab.addresses(), [""; 0]);
    assert_eq!(lab.presence.rows()[0].standing, Standing::Tentative);
    assert_eq!(lab.routes(), [""; 0], "nor is its router");
    let mut claimed = None;
    for _ in 0..100 {
        let sent = lab.pass(Duration::from_millis(100));
        if sent.iter().any(|(_, seen)| *seen == announcement()) {
            claimed = claimed.or(Some(lab.addresses()));
        } else if claimed.is_none() {
            assert_eq!(lab.addresses(), [""; 0]);
        }
    }
    assert_eq!(claimed.unwrap(), ["192.0.2.5/24"], "from the first announcement on (§2.3)");
    assert_eq!(lab.routes(), ["192.0.2.0/24", "0.0.0.0/0 via 192.0.2.1"]);
    let address = "192.0.2.5/24".parse().unwrap();
    assert_eq!(lab.changes(), [Change::Gained { address, origin: Origin::Static }, Change::Routes]);
}

#[test]
fn section_2_1_1_whoever_has_the_address_keeps_it() {
    // Any ARP message with the address as its sender's, asking or answering.
    for operation in [1, 2] {
        let mut lab = Lab::new(given_v4());
        lab.pass(Duration::from_millis(1_500));
        assert_eq!(lab.bring(&arp(operation, (THEM, v4(5)), v4(77))), []);
        let conflict = Change::Conflict {
            address: v4(5).into(),
            station: THEM.into_mac(),
            settled: Settled::Avoided,
        };
        assert_eq!(lab.changes(), [conflict]);
        assert_eq!(lab.presence.rows()[0].standing, Standing::Conflict);
        assert_eq!(lab.pass(Duration::from_secs(59)), [], "RATE_LIMIT_INTERVAL");
        assert_eq!(lab.addresses(), [""; 0]);
        // It may have gone meanwhile.
        lab.pass(Duration::from_secs(20));
        assert_eq!(lab.addresses(), ["192.0.2.5/24"]);
    }
}

#[test]
fn section_2_1_1_of_two_who_probe_at_once_neither_gets_the_address() {
    let mut lab = Lab::new(given_v4());
    lab.pass(Duration::from_millis(1_500));
    lab.bring(&arp(1, (THEM, NOBODY), v4(5)));
    assert_eq!(lab.presence.rows()[0].standing, Standing::Conflict);
}

#[test]
fn section_2_1_1_our_own_probe_coming_back_is_no_conflict() {
    let mut lab = Lab::new(given_v4());
    lab.pass(Duration::from_millis(1_500));
    lab.bring(&arp(1, (US, NOBODY), v4(5)));
    // Mirrored by something that puts its own station in front.
    let mut mirrored = arp(1, (US, NOBODY), v4(5));
    mirrored[6..12].copy_from_slice(&THEM);
    lab.bring(&mirrored);
    lab.pass(Duration::from_secs(20));
    assert_eq!(lab.addresses(), ["192.0.2.5/24"]);
}

#[test]
fn section_2_1_1_a_question_for_the_address_is_no_claim() {
    let mut lab = Lab::new(given_v4());
    lab.pass(Duration::from_millis(1_500));
    assert_eq!(lab.bring_for(&arp(1, (THEM, v4(77)), v4(5))), (Heard::Pass, vec![]));
    lab.pass(Duration::from_secs(20));
    assert_eq!(lab.addresses(), ["192.0.2.5/24"]);
}

#[test]
fn section_2_4_a_claim_of_ours_is_answered_by_one_announcement() {
    let mut lab = settled();
    assert_eq!(lab.bring(&arp(2, (THEM, v4(5)), v4(5))), [announcement()]);
    let conflict = Change::Conflict {
        address: v4(5).into(),
        station: THEM.into_mac(),
        settled: Settled::Defended,
    };
    assert_eq!(lab.changes(), [conflict]);
    assert_eq!(lab.addresses(), ["192.0.2.5/24"]);
    // DEFEND_INTERVAL later the same again.
    lab.pass(Duration::from_secs(10));
    assert_eq!(lab.bring(&arp(1, (THEM, v4(5)), v4(9))), [announcement()]);
    assert_eq!(lab.addresses(), ["192.0.2.5/24"]);
}

#[test]
fn section_2_4_c_a_chosen_address_is_kept_and_defended_once_in_ten_seconds() {
    let mut lab = settled();
    assert_eq!(lab.bring(&arp(2, (THEM, v4(5)), v4(5))), [announcement()]);
    lab.changes();
    for _ in 0..9 {
        lab.pass(Duration::from_secs(1));
        assert_eq!(lab.bring(&arp(2, (THEM, v4(5)), v4(5))), [], "nothing is said any more");
    }
    assert_eq!((lab.changes(), lab.addresses()), (vec![], vec!["192.0.2.5/24".to_owned()]));
    lab.pass(Duration::from_secs(1));
    assert_eq!(lab.bring(&arp(2, (THEM, v4(5)), v4(5))), [announcement()]);
}

#[test]
fn section_2_4_a_newcomers_probe_is_no_claim() {
    let mut lab = settled();
    // The gateway answers it.
    assert_eq!(lab.bring_for(&arp(1, (THEM, NOBODY), v4(5))), (Heard::Pass, vec![]));
    assert_eq!((lab.changes(), lab.addresses()), (vec![], vec!["192.0.2.5/24".to_owned()]));
}

#[test]
fn section_2_1_a_link_that_comes_back_is_probed_again() {
    let mut lab = settled();
    lab.presence.link_down();
    assert_eq!(lab.pass(Duration::from_secs(3600)), []);
    assert_eq!(lab.bring(&arp(2, (THEM, v4(5)), v4(5))), [], "what arrives late is nothing");
    lab.presence.link_up(lab.now);
    let sent = lab.pass_seconds(20);
    assert_eq!(sent.len(), 5, "{sent:?}");
    assert_eq!(sent[..3], [probe().what, probe().what, probe().what]);
    assert_eq!((lab.addresses(), lab.changes()), (vec!["192.0.2.5/24".to_owned()], vec![]));
    // On another segment it may be somebody else's: the newcomer yields at once.
    lab.presence.link_down();
    lab.presence.link_up(lab.now);
    lab.pass(Duration::from_millis(1_500));
    assert_eq!(lab.bring(&arp(2, (THEM, v4(5)), NOBODY)), []);
    assert_eq!(lab.addresses(), [""; 0]);
}

trait IntoMac {
    fn into_mac(self) -> datapath::MacAddr;
}

impl IntoMac for [u8; 6] {
    fn into_mac(self) -> datapath::MacAddr {
        datapath::MacAddr(self)
    }
}
