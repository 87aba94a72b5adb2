//! Whatever octets come, at whatever times.

use datapath::presence::{Addressing, Heard, MAX_ADDRESSES, Presence, PresenceConfig};
use proptest::prelude::*;
use smoltcp::time::Duration;

use crate::craft::{Icmp, NOBODY, ROUTER, THEM, US, all_nodes, arp, dhcp, frame, link_local, v4};
use crate::lab::{Lab, config};

fn both() -> PresenceConfig {
    PresenceConfig { v4: Addressing::Auto, v6: Addressing::Auto, ..config() }
}

/// Frames that get past the door, with anything in them.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let octets = || prop::collection::vec(any::<u8>(), 0..200);
    let advert = octets().prop_map(|rest| {
        let (src, dst) = (link_local(ROUTER), all_nodes());
        let icmp = Icmp {
            from: ROUTER,
            src,
            dst,
            hop_limit: 255,
            kind: 134,
            code: 0,
            rest: &rest,
            extension: &[],
        };
        icmp.frame()
    });
    let neighbour = (135..=136u8, octets()).prop_map(|(kind, rest)| {
        let (src, dst) = (link_local(THEM), all_nodes());
        let icmp = Icmp {
            from: THEM,
            src,
            dst,
            hop_limit: 255,
            kind,
            code: 0,
            rest: &rest,
            extension: &[],
        };
        icmp.frame()
    });
    let lease = (2..=6u8, any::<u32>(), prop::collection::vec((any::<u8>(), octets()), 0..6));
    let lease = lease.prop_map(|(kind, xid, options)| {
        let options: Vec<_> = options.iter().map(|(kind, data)| (*kind, &data[..])).collect();
        dhcp(ROUTER, kind, xid, v4(5), &options)
    });
    let claim = (any::<bool>(), 1..=2u16, 4..7u8).prop_map(|(probe, operation, last)| {
        if probe {
            arp(1, (THEM, NOBODY), v4(last))
        } else {
            arp(operation, (THEM, v4(last)), v4(9))
        }
    });
    let any_kind = (prop::sample::select(vec![0x0806, 0x0800, 0x86dd, 0x8100]), octets());
    let any_kind = any_kind.prop_map(|(kind, octets)| frame(THEM, US, kind, &octets));
    prop_oneof![advert, neighbour, lease, claim, any_kind, octets()]
}

proptest! {
    /// No panic; no more is said than a few frames for each that comes; what is kept is bounded; time
    /// always goes on.
    #[test]
    fn hostile_frames_are_borne(
        steps in prop::collection::vec((frames(), 0..20_000u64), 1..60),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        let mut lab = Lab::new(both());
        for (mut octets, millis) in steps {
            for (at, with) in &flips {
                if !octets.is_empty() {
                    let at = at.index(octets.len());
                    octets[at] ^= with;
                }
            }
            let (heard, sent) = lab.bring_for(&octets);
            prop_assert!(sent.len() <= 1, "{sent:?}");
            prop_assert!(heard == Heard::Pass || Presence::concerns(&octets));
            let said = lab.pass(Duration::from_millis(millis)).len();
            prop_assert!(said <= 60, "{said} frames in {millis} ms");
            prop_assert!(lab.presence.rows().len() <= MAX_ADDRESSES + 10);
            prop_assert!(lab.presence.routes().len() <= 100);
            prop_assert!(lab.changes().len() <= Presence::MAX_CHANGES);
        }
    }

    /// The door lets through what it should, however short.
    #[test]
    fn the_look_at_the_door_bears_any_length(octets in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = Presence::concerns(&octets);
        for kind in [[0x08, 0x06], [0x08, 0x00], [0x86, 0xdd]] {
            let mut octets = octets.clone();
            if let Some(at) = octets.get_mut(12..14) {
                at.copy_from_slice(&kind);
            }
            let _ = Presence::concerns(&octets);
        }
    }
}

/// A valid conversation with a lease of any length, and a link that comes and goes, never stands still
/// nor rages.
#[test]
fn a_lease_of_any_length_is_borne() {
    for seconds in [1, 2, 5, 10, 59, 61, 3600, 100_000_000, u32::MAX - 1] {
        let mut lab = Lab::new(both());
        let lease = seconds.to_be_bytes();
        let options: [(u8, &[u8]); 2] = [(54, &[192, 0, 2, 1]), (51, &lease)];
        let mut said = 0;
        for minute in 0..30 {
            for _ in 0..60 {
                for what in lab.pass_seconds(1) {
                    said += 1;
                    if let crate::craft::What::Dhcp { message, .. } = what {
                        let answer = if message.kind() == 1 { 2 } else { 5 };
                        lab.bring(&dhcp(ROUTER, answer, message.xid, v4(5), &options));
                    }
                }
            }
            if minute % 7 == 6 {
                lab.presence.link_down();
                lab.presence.link_up(lab.now);
            }
        }
        assert!(said < 30 * 60 * 6, "{said} frames in half an hour, by leases of {seconds} s");
    }
}
