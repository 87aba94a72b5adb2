//! Several workers at one table and one pool of ports, at the same time.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

use nat::{
    Account, Conntrack, Direction, Entry, External, InsertError, Inside, Mappings, Owner, Profile,
    Protocol, TransportAddr, Tuple, Zone,
};
use smoltcp::time::Instant;

const THREADS: u16 = 4;
const ROUNDS: u16 = 4000;
const NOW: Instant = Instant::ZERO;

fn at(last: u8, port: u16) -> TransportAddr {
    TransportAddr::new(Ipv4Addr::new(192, 0, 2, last).into(), port)
}

fn each(work: impl Fn(u16) + Sync) {
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let work = &work;
            scope.spawn(move || work(thread));
        }
    });
}

/// All want the same names; whoever gets one is the only one, and in the end nothing is counted twice.
#[test]
fn one_name_is_one_flow_s_whoever_asks_at_the_same_time() {
    let table = Conntrack::new(100, Profile::Rfc).with_quota(30);
    let refused = AtomicUsize::new(0);
    each(|thread| {
        for round in 0..ROUNDS {
            let original = Tuple::new(Protocol::Udp, at(1, round % 64), at(2, 53));
            let reply = Tuple::new(Protocol::Udp, at(2, 53), at(9, round % 48));
            let owner = Owner::NONE;
            let entry = Entry::new(Zone(1), Direction::Original, original, reply, owner, NOW);
            match table.insert(Account(thread.into()), entry) {
                Ok(entry) if round % 3 > 0 => table.remove(&entry),
                Ok(entry) if round % 2 == 0 => entry.note(Direction::Reply, 1, 1, NOW),
                Ok(_) => {}
                Err(InsertError::Clash) => {
                    let found = table.entry(Zone(1), original);
                    found.into_iter().for_each(|entry| table.remove(&entry));
                }
                Err(InsertError::Full | InsertError::Quota) => {
                    refused.fetch_add(1, Relaxed);
                }
            }
            assert!(table.len() <= 100 + usize::from(THREADS));
        }
    });
    let left = table.list(None);
    assert_eq!(left.len(), table.len());
    for entry in &left {
        assert!(entry.is_tracked());
        for direction in [Direction::Original, Direction::Reply] {
            let (zone, tuple) = entry.named(direction);
            let found = table.entry(zone, tuple).expect("a listed flow is found");
            assert!(Arc::ptr_eq(&found, entry), "both names are one flow's");
        }
    }
    left.iter().for_each(|entry| table.remove(entry));
    assert!(table.is_empty());
    for thread in 0..THREADS {
        assert_eq!(table.len_of(Account(thread.into())), 0);
    }
    for port in 0..64 {
        let tuple = Tuple::new(Protocol::Udp, at(1, port), at(2, 53));
        assert!(table.lookup(Zone(1), tuple).is_none(), "a name left behind");
    }
}

#[test]
fn one_port_is_one_mapping_s_and_comes_back() {
    let mappings = Mappings::new(1000, [7; 16]);
    let external = External { zone: Zone(9), addr: at(9, 0).addr };
    each(|thread| {
        let mut held = Vec::new();
        for round in 0..ROUNDS {
            // Some inside addresses are everybody's, so that several make one mapping at once.
            let host = if round % 2 == 0 { 1 } else { u8::try_from(thread).expect("few") + 2 };
            let inside =
                Inside { zone: Zone(1), protocol: Protocol::Udp, at: at(host, 2000 + round % 32) };
            let account = Account(thread.into());
            let mapping = mappings.lease(inside, external, account, NOW).expect("room");
            assert_eq!(mapping.inside(), inside);
            held.push(mapping);
            if held.len() > 40 {
                held.drain(..30);
            }
            for pair in held.windows(2) {
                let same = pair[0].inside() == pair[1].inside();
                assert!(same || pair[0].external() != pair[1].external(), "overloaded");
            }
        }
    });
    assert!(mappings.is_empty());
    assert_eq!(mappings.held(external, Protocol::Udp), 0);
    for thread in 0..THREADS {
        assert_eq!(mappings.len_of(Account(thread.into())), 0);
    }
}
