//! What a packet of a known flow does not wait for: anything but its flow's own tracking, of TCP.
//!
//! Everything else that could be waited for is held by somebody meanwhile: the index as by others that look
//! something up, all the rest as by others that change it.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use smoltcp::time::Instant;

use crate::{
    Account, Config, Conntrack, Egress, Entry, Ingress, Match, Nat, NoNotes, Profile, Rule, Rules,
    Sent, Source, Undone, Zone,
};

#[path = "../conformance/wire.rs"]
#[allow(dead_code)]
mod wire;

const UPLINK: Zone = Zone(100);
const INSIDE: Ingress = Ingress { zone: Zone(1), inside: true, account: Account(1), mtu: 1500 };
const OUTSIDE: Ingress = Ingress { zone: UPLINK, inside: false, ..INSIDE };

fn pass(nat: &Nat, octets: &[u8], from_inside: bool) -> Arc<Entry> {
    let addresses = ["203.0.113.1", "2001:db8:1::1"].map(|addr| addr.parse().unwrap());
    let out = Egress { zone: UPLINK, inside: false, mtu: 1500, addresses: &addresses };
    let back = Egress { zone: INSIDE.zone, inside: true, ..out };
    let (ingress, egress) = if from_inside { (&INSIDE, &out) } else { (&OUTSIDE, &back) };
    let (mut packet, now) = (octets.to_vec(), Instant::from_secs(1));
    let passage = nat.prerouting(&mut packet, Undone::default(), ingress, now, &mut NoNotes);
    let mut passage = passage.unwrap();
    let sent = nat.postrouting(&mut packet, &mut passage, egress, None, now, &mut NoNotes);
    assert_eq!(sent, Ok(Sent::Whole));
    let (entry, _) = passage.entry().unwrap();
    assert!(entry.translated());
    Arc::clone(entry)
}

#[test]
fn a_known_flow_waits_for_nobody() {
    let conntrack = Arc::new(Conntrack::new(1000, Profile::Rfc));
    let nat = Nat::new(conntrack, Config::new(UPLINK, [7; 16]));
    let matches = Match { to: Some(UPLINK), ..Match::ANY };
    nat.set_rules(Rules::new(vec![], vec![Rule::new(matches, Source::Masquerade)]));
    for ends in wire::TALKS {
        let [alice, far, shown] = ends;
        pass(&nat, &wire::control(alice, far, wire::SYN, 100, 0), true);
        pass(&nat, &wire::control(far, shown, wire::SYN_ACK, 500, 101), false);
        for [there, here] in wire::talks(ends) {
            let flow = pass(&nat, &there, true);
            pass(&nat, &here, false);
            let held = nat.hold(&flow);
            let (tell, told) = mpsc::channel();
            let in_time = thread::scope(|scope| {
                scope.spawn(|| {
                    for _ in 0..10 {
                        pass(&nat, &there, true);
                        pass(&nat, &here, false);
                    }
                    tell.send(()).unwrap();
                });
                let in_time = told.recv_timeout(Duration::from_secs(10));
                drop(held);
                in_time
            });
            assert_eq!(in_time, Ok(()), "{} waits", flow.original);
        }
    }
}
