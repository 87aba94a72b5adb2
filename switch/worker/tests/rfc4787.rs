//! UDP to the world by the socket uplink, requirement by requirement: RFC 4787, and what RFC 7857 adds.
//!
//! The far sides are sockets of the world's namespace; REQ-n is in a test's name by its n.

mod lab;
mod udp;

use std::net::{SocketAddr, UdpSocket};

use lab::{HOST, HOST6, Lab, NET, WORLD, WORLD6, at, wait_for};
use nat::Filtering;
use netns::Kind;
use udp::{ask, socket_at};
use worker::Policy;

/// Another host of the world.
const OTHER: &str = "198.51.100.3";
const OTHER6: &str = "2001:db8:7::3";

/// A lab whose world has two hosts, and a container with a socket that has spoken to the first.
fn with_two_far_hosts(workers: usize) -> Lab {
    let lab = Lab::new(workers);
    for (addr, len) in [(OTHER, 24), (OTHER6, 64)] {
        lab.world
            .enter(|| netns::link::add_address("down", format!("{addr}/{len}").parse().unwrap()))
            .unwrap();
    }
    lab
}

fn gateway_drops(lab: &Lab, reason: &str) -> u64 {
    let stats = lab.switch.stats(NET);
    let found = stats[0].1.tx_dropped.iter().find(|(name, _)| *name == reason);
    found.map_or(0, |(_, count)| *count)
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 2048];
    let (len, from) = socket.recv_from(&mut buffer).unwrap();
    (buffer[..len].to_vec(), from)
}

/// REQ-1: one outside address and port, whomever an inside one speaks to.
#[test]
fn u1_a_mapping_is_the_same_towards_every_far_side() {
    if !lab::possible() {
        return;
    }
    for workers in [1, 3] {
        let lab = with_two_far_hosts(workers);
        let container = lab.container(10, Kind::Tap);
        for (any, hosts, far) in
            [("0.0.0.0", HOST, [WORLD, OTHER]), ("::", HOST6, [WORLD6, OTHER6])]
        {
            for inside_port in [40_000, 5353] {
                let inside = socket_at(&container.netns, at(any, inside_port));
                let mut seen = Vec::new();
                for to in far.into_iter().flat_map(|addr| [at(addr, 7001), at(addr, 7002)]) {
                    let far = socket_at(&lab.world, to);
                    seen.push(ask(&inside, &far, to));
                }
                assert!(seen.iter().all(|one| *one == seen[0]), "{seen:?}");
                assert_eq!(seen[0].ip(), at(hosts, 0).ip());
            }
        }
    }
}

/// REQ-8: who may send to a mapping. The container has spoken to one port of the first host.
#[test]
fn u8_filtering_is_by_address_unless_chosen_otherwise() {
    if !lab::possible() {
        return;
    }
    let lab = with_two_far_hosts(2);
    let container = lab.container(10, Kind::Tap);
    for (any, [first, second]) in [("0.0.0.0", [WORLD, OTHER]), ("::", [WORLD6, OTHER6])] {
        let asked = socket_at(&lab.world, at(first, 7001));
        let port = socket_at(&lab.world, at(first, 7002));
        let stranger = socket_at(&lab.world, at(second, 7001));
        let inside = socket_at(&container.netns, at(any, 40_000));
        let outside = ask(&inside, &asked, at(first, 7001));
        let cases = [
            (Policy::default(), [true, true, false]),
            (of(Filtering::EndpointIndependent), [true, true, true]),
            (of(Filtering::AddressAndPortDependent), [true, false, false]),
            (of(Filtering::AddressDependent), [true, true, false]),
        ];
        // The same mapping all the time: a change of policy loses none.
        for (policy, admitted) in cases {
            lab.switch.set_policy(NET, policy);
            for (socket, admitted) in
                [&port, &stranger, &asked].into_iter().zip([admitted[1], admitted[2], admitted[0]])
            {
                let before = gateway_drops(&lab, "filtered");
                socket.send_to(b"hello", outside).unwrap();
                if admitted {
                    let (octets, from) = receive(&inside);
                    assert_eq!((&octets[..], from), (&b"hello"[..], socket.local_addr().unwrap()));
                } else {
                    wait_for("the drop", || gateway_drops(&lab, "filtered") == before + 1);
                }
            }
        }
    }
}

fn of(filtering: Filtering) -> Policy {
    Policy { filtering, ..Policy::default() }
}
