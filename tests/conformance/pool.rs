//! Which external address and port a flow gets, and what happens when there is none left: RFC 4787
//! REQ-2 to REQ-4, RFC 5508 REQ-8, RFC 6888 REQ-4.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::conn::Conn;
use crate::errors::ADMIN;
use crate::lab::{Family, Lab};
use crate::mapping::{answered, map};
use crate::packet::Packet;
use crate::{Verdict, ensure, probes};

probes! {
    Both {
        "U4" ANY a_port_that_is_taken_becomes_one_of_the_same_parity;
        "I8" ANY a_container_at_its_bound_is_told_and_keeps_what_it_has(
            "daemon:--max-flows-per-container=20", "daemon:--max-tracked-per-container=20"
        );
        "6888-4" ANY a_container_at_its_bound_is_alone_in_that(
            "daemon:--max-flows-per-container=20", "daemon:--max-tracked-per-container=20"
        );
        "6888-8" ANY a_port_rests_before_another_has_it("--timeouts", "rfc,udp-unreplied=3,udp-stream=3");
        "6056" ANY a_port_that_is_not_the_insides_cannot_be_guessed;
    }
    Raw {
        "U3a" ANY a_well_known_port_becomes_a_well_known_port;
        "U2" ANY all_flows_of_a_container_have_one_external_address(
            "--snat-to", "198.51.100.20-198.51.100.23",
            "--snat-to", "2001:db8:7::20-2001:db8:7::23"
        );
    }
}

fn a_port_that_is_taken_becomes_one_of_the_same_parity(lab: &Lab, family: Family) -> Verdict {
    let outside = lab.outsider(66);
    let first = lab.insider(&format!("a{family:?}"))?;
    let second = lab.insider(&format!("b{family:?}"))?;
    for port in (41_200..41_220).step_by(3) {
        let peer = outside.at(family, 9000);
        let one = map(&first, first.at(family, port), &outside, peer)?.port();
        let two = map(&second, second.at(family, port), &outside, peer)?.port();
        ensure!(one == port, "{port} became {one}");
        ensure!(two != one && two % 2 == port % 2, "{port} became {two}");
    }
    Ok(())
}

fn a_well_known_port_becomes_a_well_known_port(lab: &Lab, family: Family) -> Verdict {
    let outside = lab.outsider(66);
    let first = lab.insider(&format!("a{family:?}"))?;
    let second = lab.insider(&format!("b{family:?}"))?;
    for port in [500, 123] {
        let peer = outside.at(family, 9000);
        let one = map(&first, first.at(family, port), &outside, peer)?.port();
        let two = map(&second, second.at(family, port), &outside, peer)?.port();
        ensure!(one == port, "{port} became {one}");
        ensure!(two != one && two < 1024, "{port} became {two}");
    }
    Ok(())
}

fn all_flows_of_a_container_have_one_external_address(lab: &Lab, family: Family) -> Verdict {
    let (outside, other) = (lab.outsider(66), lab.outsider(67));
    let range: (IpAddr, IpAddr) = match family {
        Family::V4 => {
            (Ipv4Addr::new(198, 51, 100, 20).into(), Ipv4Addr::new(198, 51, 100, 23).into())
        }
        Family::V6 => {
            let addr = |last| Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, last).into();
            (addr(0x20), addr(0x23))
        }
    };
    for name in ["a", "b", "c"] {
        let inside = lab.insider(&format!("{name}{family:?}"))?;
        let mut seen = Vec::new();
        for port in 42_000..42_010 {
            let own = inside.at(family, port);
            for (station, to) in [(&outside, 9000), (&other, 9001)] {
                let mapped = map(&inside, own, station, station.at(family, to))?;
                answered(&inside, own, station, station.at(family, to), mapped)?;
                seen.push(mapped.ip());
            }
        }
        let mut conn =
            Conn::open(&inside, inside.at(family, 42_020), &outside, outside.at(family, 80))?;
        conn.lives()?;
        seen.push(conn.outside.peer.ip());
        let (own, peer) = (inside.addr(family), outside.addr(family));
        inside.wire.send(&Packet::echo(own, peer, true, 9, 1, name.as_bytes()));
        let request = outside.wait("an echo request", |packet| {
            packet.echo_parts().is_some_and(|(_, _, data)| data == name.as_bytes())
        })?;
        seen.push(request.src);
        ensure!((range.0..=range.1).contains(&seen[0]), "{} is not of the pool", seen[0]);
        seen.dedup();
        ensure!(seen.len() == 1, "{own} has several addresses: {seen:?}");
    }
    Ok(())
}

/// Each flow is in use: one without an answer may go for a newer one.
fn a_container_at_its_bound_is_told_and_keeps_what_it_has(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let peer = outside.at(family, 9000);
    let mut held = Vec::new();
    for port in 43_000..43_040 {
        let own = inside.at(family, port);
        let data = format!("by {port}");
        inside.says(own, peer, data.as_bytes());
        let seen = outside.wire.within(std::time::Duration::from_millis(200), |packet| {
            packet.datagram() == Some(data.as_bytes())
        });
        let Some(seen) = seen else {
            let told = inside.wait("an error", Packet::is_error)?;
            ensure!(told.icmp_kind() == Some(ADMIN.of(family)), "told {told:?}");
            ensure!(told.quoted()?.from() == Some(own), "quotes {:?}", told.quoted());
            break;
        };
        let mapped = seen.from().unwrap();
        answered(&inside, own, &outside, peer, mapped)?;
        held.push((own, mapped));
    }
    ensure!((10..=20).contains(&held.len()), "{} flows of 20", held.len());
    for (own, mapped) in held {
        answered(&inside, own, &outside, peer, mapped)?;
        let again = map(&inside, own, &outside, peer)?;
        ensure!(again == mapped, "{mapped} was taken away: {again}");
    }
    lab.end_containers();
    Ok(())
}

fn a_container_at_its_bound_is_alone_in_that(lab: &Lab, family: Family) -> Verdict {
    let greedy = lab.insider(&format!("a{family:?}"))?;
    let modest = lab.insider(&format!("b{family:?}"))?;
    let outside = lab.outsider(66);
    let peer = outside.at(family, 9000);
    let own = modest.at(family, 44_000);
    let before = map(&modest, own, &outside, peer)?;
    for port in 43_000..43_100 {
        greedy.says(greedy.at(family, port), peer, b"mine");
    }
    ensure!(map(&modest, own, &outside, peer)? == before, "{before} was taken away");
    map(&modest, modest.at(family, 44_001), &outside, peer)?;
    lab.end_containers();
    Ok(())
}

/// For two minutes, but for whoever had it.
fn a_port_rests_before_another_has_it(lab: &Lab, family: Family) -> Verdict {
    let first = lab.insider(&format!("a{family:?}"))?;
    let second = lab.insider(&format!("b{family:?}"))?;
    let outside = lab.outsider(66);
    let peer = outside.at(family, 9000);
    let own = first.at(family, 44_100);
    let had = map(&first, own, &outside, peer)?;
    // Over after its three seconds, at the latest once it is looked for.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(9);
    let mut open = true;
    while open {
        ensure!(std::time::Instant::now() < end, "it is never over");
        std::thread::sleep(std::time::Duration::from_millis(300));
        outside.says(peer, had, b"is it over?");
        let came = |packet: &Packet| packet.datagram() == Some(b"is it over?");
        open = first.wire.within(std::time::Duration::from_millis(200), came).is_some();
    }
    let other = map(&second, second.at(family, 44_100), &outside, peer)?;
    ensure!(other != had, "{had} is another's at once");
    let again = map(&first, own, &outside, peer)?;
    ensure!(again == had, "{had} is {again} now");
    Ok(())
}

/// RFC 6056 3: neither the next nor one at a constant distance.
fn a_port_that_is_not_the_insides_cannot_be_guessed(lab: &Lab, family: Family) -> Verdict {
    let first = lab.insider(&format!("a{family:?}"))?;
    let second = lab.insider(&format!("b{family:?}"))?;
    let outside = lab.outsider(66);
    let peer = outside.at(family, 9000);
    let mut distances = std::collections::HashSet::new();
    let mut from_own = std::collections::HashSet::new();
    let mut last = 0;
    for port in 44_200..44_220 {
        map(&first, first.at(family, port), &outside, peer)?;
        let found = map(&second, second.at(family, port), &outside, peer)?.port();
        distances.insert(found.wrapping_sub(last));
        from_own.insert(found.wrapping_sub(port));
        last = found;
    }
    ensure!(distances.len() > 15, "distances of {distances:?}");
    ensure!(from_own.len() > 15, "distances of {from_own:?}");
    Ok(())
}
