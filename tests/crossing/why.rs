//! Why a packet goes the way it goes, from the port it came in by to what it is shown as outside.

use datapath::fdb::Learned;
use datapath::{DropReason, MacAddr, Offload, Step};
use nat::Note;
use pnet::packet::tcp::TcpFlags;

use crate::town::{NET, P1, Plan, SEGMENT, Town, distant, on_link};
use crate::ways::up;
use crate::wire::{ALICE, Tcp, ip};

/// What the bridge, and then the NAT, says of a frame of Alice's.
fn told(town: &mut Town, frame: &[u8]) -> (Vec<Step>, Vec<String>, Option<DropReason>) {
    let (mut steps, mut notes) = (Vec::new(), Vec::<Note>::new());
    let outcome = town.ask(NET, P1, (frame, Offload::NONE), &mut steps, &mut notes);
    let dropped = outcome.err().map(|(reason, _)| reason);
    (steps, notes.iter().map(ToString::to_string).collect(), dropped)
}

#[test]
fn a_connection_to_the_world_names_its_rule_and_its_mapping() {
    let mut town = Town::new(Plan::default());
    let syn = Tcp { flags: TcpFlags::SYN, seq: 100, ack: 0 };
    let frame = up(&ip(ALICE.v4, distant(false)).tcp(4000, 80, syn, b""));
    let (steps, notes, dropped) = told(&mut town, &frame);
    let expected = [
        Step::Ingress { port: P1, len: frame.len() },
        Step::Learn { station: MacAddr(ALICE.mac), outcome: Learned::Refreshed },
        Step::Gateway,
        Step::Cross { segment: SEGMENT, dst: distant(false) },
    ];
    assert_eq!((&*steps, dropped), (&expected[..], None));
    let flow = "tcp 192.0.2.10:4000 > 203.0.113.7:80";
    let becomes = format!("{flow} becomes tcp 198.51.100.1:4000 > 203.0.113.7:80");
    let expected = [
        &*format!("{flow} is no known flow: the rules are asked"),
        "no rule of prerouting matches",
        "postrouting rule 0 matches: all: MASQUERADE",
        "192.0.2.10:4000 is shown as 198.51.100.1:4000, its port kept",
        &becomes,
    ];
    assert_eq!(notes, expected);
    let (_, notes, _) = told(&mut town, &frame);
    let known = format!("{flow} is the original direction of a known flow, SYN_SENT");
    assert_eq!(notes, [known, becomes], "no rule is asked twice");
}

#[test]
fn a_packet_that_does_not_get_through_says_how_far_it_came() {
    let mut town = Town::new(Plan { routes: on_link(), ..Plan::default() });
    let frame = up(&ip(ALICE.v4, distant(false)).udp(4000, 53, b"where?"));
    let (steps, notes, dropped) = told(&mut town, &frame);
    assert_eq!(steps.last(), Some(&Step::Cross { segment: SEGMENT, dst: distant(false) }));
    assert_eq!(notes.last().unwrap(), "no rule of prerouting matches", "and no route is there");
    assert_eq!(dropped, Some(DropReason::NoRoute));
}
