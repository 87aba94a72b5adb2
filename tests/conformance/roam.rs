//! A host that moves: its addresses, routes and link change, and nothing is started again.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};

use netns::link;

use crate::lab::{Family, Lab, accept, connect, listen};
use crate::mapping::{answered, map};
use crate::packet::Packet;
use crate::{Verdict, ensure, probes};

probes! {
    Both {
        "PRODUCT 13" ANY a_route_that_goes_and_comes_back_is_followed;
        "PRODUCT 13" ANY a_link_that_goes_and_comes_back_is_used;
    }
    Sockets {
        "PRODUCT 13" ANY another_address_of_the_hosts_is_taken_for_what_is_new;
    }
}

fn prefix(addr: IpAddr) -> ipnet::IpNet {
    format!("{addr}/{}", if addr.is_ipv4() { 24 } else { 64 }).parse().unwrap()
}

/// Gives the host another address on its way out than it had, and its routes anew.
pub(crate) fn move_host(lab: &Lab, family: Family) -> IpAddr {
    let new: IpAddr = match family {
        Family::V4 => "198.51.100.7".parse().unwrap(),
        Family::V6 => "2001:db8:7::7".parse().unwrap(),
    };
    let move_on = || {
        // In this order: the kernel takes what is secondary along with the first, and its routes.
        link::remove_address("up0", prefix(family.host()))?;
        link::add_address("up0", prefix(new))?;
        let _ = link::add_route(link::default_route(new), family.router());
        Ok(())
    };
    lab.scene.host.enter(move_on).unwrap();
    new
}

fn another_address_of_the_hosts_is_taken_for_what_is_new(lab: &Lab, family: Family) -> Verdict {
    let container = lab.container(&format!("c{family:?}"));
    let inside = lab.insider(&format!("d{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 54_000), outside.at(family, 9000));
    map(&inside, own, &outside, peer)?;
    let new = move_host(lab, family);
    // The mapping that there was, and a new one; connections.
    for port in [54_000, 54_001] {
        let own = inside.at(family, port);
        let mapped = map(&inside, own, &outside, peer)?;
        ensure!(mapped.ip() == new, "{port} is still {mapped}");
        answered(&inside, own, &outside, peer, mapped)?;
    }
    let listener = listen(&lab.outside, family.outside(2), 8000);
    let to = SocketAddr::new(family.outside(2), 8000);
    let mut near = connect(&container.netns, container.at(family, 0), to)
        .map_err(|error| format!("connect: {error}"))?;
    let (mut far, from) = accept(&listener)?;
    ensure!(from.ip() == new, "from {from}");
    near.write_all(b"!").unwrap();
    far.read_exact(&mut [0]).map_err(|error| format!("read: {error}"))
}

fn a_route_that_goes_and_comes_back_is_followed(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 54_100), outside.at(family, 9000));
    let mapped = map(&inside, own, &outside, peer)?;
    // The router's way out goes; what a packet is told then is the router's or the subject's word.
    let far = prefix(family.outside(1));
    lab.router().enter(|| link::remove_address(crate::lab::NEAR, far)).unwrap();
    inside.says(own, peer, b"nowhere to");
    let told = inside.wait("an error", Packet::is_error)?;
    let due = if family == Family::V4 { (3, 0) } else { (1, 0) };
    ensure!(told.icmp_kind() == Some(due), "told {told:?}");
    lab.router().enter(|| link::add_address(crate::lab::NEAR, far)).unwrap();
    let again = map(&inside, own, &outside, peer)?;
    ensure!(again == mapped, "{mapped} is {again}");
    answered(&inside, own, &outside, peer, mapped)
}

fn a_link_that_goes_and_comes_back_is_used(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 54_200), outside.at(family, 9000));
    map(&inside, own, &outside, peer)?;
    // The other end's carrier, as a cable pulled; addresses of the host's stay.
    lab.router().enter(|| link::set_down("down0")).unwrap();
    inside.says(own, peer, b"into the void");
    let up = || {
        link::set_up("down0")?;
        // An interface that goes down loses its IPv6 addresses.
        link::add_address("down0", "fe80::2/64".parse().unwrap())?;
        link::add_address("down0", prefix(Family::V6.router()))
    };
    lab.router().enter(up).unwrap();
    let mut tries = 0;
    // What is sent while the link comes back may be lost.
    let mapped = loop {
        tries += 1;
        let data = format!("try {tries}");
        inside.says(own, peer, data.as_bytes());
        let seen = outside.wire.within(std::time::Duration::from_millis(500), |packet| {
            packet.datagram() == Some(data.as_bytes())
        });
        match seen {
            Some(packet) => break packet.from().unwrap(),
            None => ensure!(tries < 20, "nothing comes out any more"),
        }
    };
    answered(&inside, own, &outside, peer, mapped)
}
