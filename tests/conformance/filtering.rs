//! Whom a mapping lets in: RFC 4787 5, and how two inside meet: 6.

use std::net::SocketAddr;
use std::time::Duration;

use crate::errors::{PORT, error};
use crate::icmp::{comes_in, meanwhile};
use crate::lab::{Family, Lab, Station};
use crate::mapping::{answered, map};
use crate::packet::Packet;
use crate::{Verdict, ensure, probes};

probes! {
    Both {
        "U8" ANY whoever_was_sent_to_may_answer_by_any_port;
        "U8" ANY whoever_was_not_sent_to_is_not_let_in;
        "U8" ANY nobody_comes_in_by_a_port_without_a_mapping;
        "U11" ANY a_thousand_flows_keep_to_one_behaviour;
        "U9" ANY two_inside_meet_by_their_external_addresses;
        "U8" ANY by_choice_anybody_may_come_in("--filtering", "eif");
        "U8" ANY by_choice_only_the_very_port_may_answer("--filtering", "apdf");
    }
    Raw {
        "I7" ANY an_error_between_two_inside_is_of_whom_each_knows;
    }
}

/// Address-dependent filtering, the default.
fn whoever_was_sent_to_may_answer_by_any_port(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let own = inside.at(family, 51_000);
    let mapped = map(&inside, own, &outside, outside.at(family, 9000))?;
    answered(&inside, own, &outside, outside.at(family, 9000), mapped)?;
    answered(&inside, own, &outside, outside.at(family, 9001), mapped)
}

fn whoever_was_not_sent_to_is_not_let_in(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let (outside, stranger) = (lab.outsider(66), lab.outsider(67));
    let own = inside.at(family, 51_100);
    let mapped = map(&inside, own, &outside, outside.at(family, 9000))?;
    stranger.says(stranger.at(family, 9000), mapped, b"unasked");
    let came = meanwhile(lab, &inside, family, |packet| packet.src == stranger.addr(family))?;
    ensure!(came.is_empty(), "let in: {came:?}");
    // Once it was sent to, it may.
    ensure!(map(&inside, own, &stranger, stranger.at(family, 9000))? == mapped, "another mapping");
    answered(&inside, own, &stranger, stranger.at(family, 9000), mapped)
}

fn by_choice_anybody_may_come_in(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let (outside, stranger) = (lab.outsider(66), lab.outsider(67));
    let own = inside.at(family, 51_400);
    let mapped = map(&inside, own, &outside, outside.at(family, 9000))?;
    answered(&inside, own, &stranger, stranger.at(family, 7), mapped)?;
    answered(&inside, own, &outside, outside.at(family, 7), mapped)
}

fn by_choice_only_the_very_port_may_answer(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let own = inside.at(family, 51_500);
    let mapped = map(&inside, own, &outside, outside.at(family, 9000))?;
    outside.says(outside.at(family, 9001), mapped, b"by another port");
    let came = meanwhile(lab, &inside, family, |p| p.datagram() == Some(b"by another port"))?;
    ensure!(came.is_empty(), "let in: {came:?}");
    ensure!(map(&inside, own, &outside, outside.at(family, 9001))? == mapped, "another mapping");
    answered(&inside, own, &outside, outside.at(family, 9001), mapped)?;
    answered(&inside, own, &outside, outside.at(family, 9000), mapped)
}

fn nobody_comes_in_by_a_port_without_a_mapping(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let own = inside.at(family, 51_200);
    let mapped = map(&inside, own, &outside, outside.at(family, 9000))?;
    for port in (mapped.port() - 20..mapped.port() + 20).filter(|port| *port != mapped.port()) {
        let to = SocketAddr::new(mapped.ip(), port);
        outside.says(outside.at(family, 9000), to, b"to no mapping");
    }
    let came = meanwhile(lab, &inside, family, |p| p.datagram() == Some(b"to no mapping"))?;
    ensure!(came.is_empty(), "let in: {came:?}");
    answered(&inside, own, &outside, outside.at(family, 9000), mapped)
}

/// REQ-9: each sees the other's external address and port. Filtering holds here, too: both send first.
fn two_inside_meet_by_their_external_addresses(lab: &Lab, family: Family) -> Verdict {
    let first = lab.insider(&format!("a{family:?}"))?;
    let second = lab.insider(&format!("b{family:?}"))?;
    let outside = lab.outsider(66);
    let (one, two) = (first.at(family, 51_300), second.at(family, 51_301));
    let one_outside = map(&first, one, &outside, outside.at(family, 9000))?;
    let two_outside = map(&second, two, &outside, outside.at(family, 9000))?;
    // Whose comes first is let in by neither.
    let mut knocks = 0;
    let heard = |station: &Station| {
        let knock = |packet: &Packet| packet.datagram() == Some(b"knock");
        station.wire.within(Duration::from_millis(100), knock).is_some()
    };
    let (mut by_first, mut by_second) = (false, false);
    while !(by_first && by_second) {
        knocks += 1;
        ensure!(knocks < 30, "they never meet: {by_first} {by_second}");
        first.says(one, two_outside, b"knock");
        second.says(two, one_outside, b"knock");
        by_first |= heard(&first);
        by_second |= heard(&second);
    }
    for n in 0..3 {
        let data = format!("to the second {n}");
        first.says(one, two_outside, data.as_bytes());
        let (from, to) = second.hears(data.as_bytes())?;
        ensure!((from, to) == (one_outside, two), "from {from} to {to}");
        let data = format!("to the first {n}");
        second.says(two, one_outside, data.as_bytes());
        let (from, to) = first.hears(data.as_bytes())?;
        ensure!((from, to) == (two_outside, one), "from {from} to {to}");
    }
    Ok(())
}

/// REQ-11, and REQ-1 for each of them: no port becomes another, or is shared, for there being many.
fn a_thousand_flows_keep_to_one_behaviour(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let (outside, other) = (lab.outsider(66), lab.outsider(67));
    let mut seen = std::collections::HashMap::new();
    for port in 33_000..33_500 {
        let own = inside.at(family, port);
        let mapped = map(&inside, own, &outside, outside.at(family, 9000))?;
        let again = map(&inside, own, &other, other.at(family, 9001))?;
        ensure!(mapped == again, "{port} is {mapped} and {again}");
        ensure!(mapped.port() == port, "{port} became {}", mapped.port());
        let shared = seen.insert(mapped, port);
        ensure!(shared.is_none(), "{mapped} is {port} and {shared:?}");
    }
    Ok(())
}

/// RFC 5508 REQ-7: by its external address, and quoting what was sent to that.
fn an_error_between_two_inside_is_of_whom_each_knows(lab: &Lab, family: Family) -> Verdict {
    let first = lab.insider(&format!("a{family:?}"))?;
    let second = lab.insider(&format!("b{family:?}"))?;
    let outside = lab.outsider(66);
    let (one, two) = (first.at(family, 51_600), second.at(family, 51_601));
    let one_outside = map(&first, one, &outside, outside.at(family, 9000))?;
    let two_outside = map(&second, two, &outside, outside.at(family, 9000))?;
    second.says(two, one_outside, b"knock");
    let sent = Packet::udp(one, two_outside, b"to a port that closes");
    first.wire.send(&sent);
    let heard = second.wait("it", |p| p.datagram() == Some(b"to a port that closes"))?;
    ensure!(heard.from() == Some(one_outside), "from {:?}", heard.from());
    second.wire.send(&error(second.addr(family), PORT, 0, &heard.octets()));
    comes_in(&first, two_outside.ip(), PORT.of(family), &sent, 500)
}
