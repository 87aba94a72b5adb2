//! Where a container's packets must not go: to the host's own loopback, to everybody, beyond their scope.
//!
//! RFC 1122 3.2.1.3, RFC 1812 5.3.5, RFC 2644, RFC 3927 7, RFC 4291 2.5. A relay has a trap of its own: an
//! address that, given to a socket, means another.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use crate::icmp::meanwhile;
use crate::lab::{Family, Lab, Station};
use crate::packet::{Packet, SYN, Segment};
use crate::wire::Wire;
use crate::{Verdict, ensure, probes};

probes! {
    Both {
        "4.5" ANY the_hosts_loopback_is_not_reached;
        "4.5" ANY what_is_for_everybody_stays_inside;
        "4.5" ANY an_address_of_no_scope_beyond_the_link_stays_inside;
        "I10" V4 redirects_and_source_quench_are_not_let_in;
    }
}

/// Sends a datagram, a SYN and an echo request.
fn sends_each(inside: &Station, family: Family, to: SocketAddr) {
    let own = inside.at(family, 57_500);
    inside.says(own, to, b"where it must not go");
    inside.wire.send(&Packet::tcp(own, to, &Segment::new(SYN, 1, 0)));
    inside.wire.send(&Packet::echo(own.ip(), to.ip(), true, 57, 5, b"where it must not go"));
}

fn the_hosts_loopback_is_not_reached(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let port = 7777;
    let bind = || {
        let any = SocketAddr::new("::".parse().unwrap(), port);
        let sockets = (UdpSocket::bind(any)?, TcpListener::bind(any)?);
        sockets.0.set_nonblocking(true)?;
        sockets.1.set_nonblocking(true)?;
        Ok(sockets)
    };
    // Of both families, on every address of the host's.
    let (datagrams, connections) = lab.scene.host.with(bind).unwrap();
    let addrs: &[&str] = match family {
        Family::V4 => &["127.0.0.1", "127.1.2.3", "0.0.0.0", "0.1.2.3"],
        Family::V6 => &["::1", "::", "::ffff:127.0.0.1", "::127.0.0.1", "::ffff:198.51.100.1"],
    };
    for addr in addrs {
        sends_each(&inside, family, SocketAddr::new(addr.parse().unwrap(), port));
    }
    let came = meanwhile(lab, &inside, family, |packet| {
        packet.echo_parts().is_some_and(|(id, ..)| id == 57)
            || packet.segment().is_some_and(|segment| segment.has(SYN))
    })?;
    ensure!(came.is_empty(), "answered: {came:?}");
    let came = datagrams.recv_from(&mut [0; 100]).map(|(_, from)| from);
    ensure!(came.is_err(), "the host hears {came:?}");
    let came = connections.accept().map(|(_, from)| from);
    ensure!(came.is_err(), "the host is connected by {came:?}");
    // It would have heard.
    let loopback: IpAddr =
        if family == Family::V4 { [127, 0, 0, 1].into() } else { "::1".parse().unwrap() };
    let own = crate::lab::udp(&lab.scene.host, loopback, 0);
    own.send_to(b"!", (loopback, port)).unwrap();
    let end = std::time::Instant::now() + crate::patience();
    while datagrams.recv_from(&mut [0; 100]).is_err() {
        ensure!(std::time::Instant::now() < end, "the host is deaf");
        std::thread::yield_now();
    }
    Ok(())
}

/// What is seen on the host's segment meanwhile that goes to one of these.
fn seen_outside(
    lab: &Lab,
    inside: &Station,
    family: Family,
    addrs: &[&str],
) -> Result<Vec<Packet>, String> {
    let wire = Wire::on(lab.router(), "down0", &[]);
    let addrs: Vec<IpAddr> = addrs.iter().map(|addr| addr.parse().unwrap()).collect();
    for addr in &addrs {
        sends_each(inside, family, SocketAddr::new(*addr, 9));
    }
    meanwhile(lab, inside, family, |_| false)?;
    let came = wire.all(|packet| addrs.contains(&packet.dst));
    // The container's own traffic is seen there.
    let ours = wire.all(|packet| packet.dst == family.outside(66));
    ensure!(!ours.is_empty(), "nothing is seen there at all");
    // A host's own questions for neighbours and groups are not its containers'.
    let ours = |packet: &Packet| {
        packet.payload.windows(20).any(|window| window == b"where it must not go")
            || packet.segment().is_some()
    };
    Ok(came.into_iter().filter(ours).collect())
}

fn what_is_for_everybody_stays_inside(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let addrs: &[&str] = match family {
        Family::V4 => &[
            "255.255.255.255",
            "10.9.0.255",
            "10.9.0.0",
            "198.51.100.255",
            "224.0.0.251",
            "239.255.255.250",
        ],
        Family::V6 => &["ff02::1", "ff02::fb", "ff05::2", "ff0e::1"],
    };
    let came = seen_outside(lab, &inside, family, addrs)?;
    ensure!(came.is_empty(), "it went out: {came:?}");
    Ok(())
}

fn an_address_of_no_scope_beyond_the_link_stays_inside(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let addrs: &[&str] = match family {
        Family::V4 => &["169.254.7.7", "127.0.0.1", "0.0.0.0", "240.0.0.1"],
        Family::V6 => &["fe80::77", "::1", "::", "::ffff:203.0.113.66"],
    };
    let came = seen_outside(lab, &inside, family, addrs)?;
    ensure!(came.is_empty(), "it went out: {came:?}");
    Ok(())
}

/// RFC 5508 REQ-10 c; RFC 1812 5.2.7.2.
fn redirects_and_source_quench_are_not_let_in(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider("c4")?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 57_600), outside.at(family, 9000));
    let mapped = crate::mapping::map(&inside, own, &outside, peer)?;
    let about = Packet::udp(mapped, peer, b"quoted").octets();
    for (kind, code) in [(4, 0), (5, 1)] {
        let rest = [203, 0, 113, 67];
        outside.wire.send(&Packet::icmp(peer.ip(), mapped.ip(), kind, code, rest, &about));
    }
    let came = meanwhile(lab, &inside, family, Packet::is_error)?;
    ensure!(came.is_empty(), "let in: {came:?}");
    crate::mapping::answered(&inside, own, &outside, peer, mapped)
}
