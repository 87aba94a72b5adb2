//! Pieces for our own station, and pieces that never become whole: RFC 792, RFC 1122 3.3.2, RFC 4443 3.3.

use std::time::Duration;

use crate::errors::PIECES;
use crate::lab::{Family, Lab, Station};
use crate::packet::Packet;
use crate::{Verdict, ensure, probes};

probes! {
    Raw {
        "792" ANY a_ping_of_4000_octets_is_answered_by_our_station;
        "792" ANY pieces_that_never_become_whole_are_told_to_their_sender(
            "--timeouts", "rfc,fragment-v4=2,fragment-v6=2"
        );
    }
}

fn a_ping_of_4000_octets_is_answered_by_our_station(lab: &Lab, family: Family) -> Verdict {
    let container = lab.container(&format!("p{family:?}"));
    let ours = lab.external(family);
    let gateway = if family == Family::V4 { container.gateway } else { ours };
    for (netns, to) in [(&lab.outside, ours), (&container.netns, ours), (&container.netns, gateway)]
    {
        let to = to.to_string();
        let pinged = lab.scene.run_in(netns, "ping", ["-c", "2", "-W", "5", "-s", "4000", &to]);
        ensure!(pinged.status.success(), "ping -s 4000 {to}: {pinged:?}");
    }
    Ok(())
}

/// The first piece of a datagram, and nothing more of it.
fn begins(station: &Station, whole: &Packet) -> Result<(), String> {
    let first = &whole.pieces(600, 4711)[0];
    station.wire.send(first);
    // Both families are asked at once.
    let error = |packet: &Packet| packet.is_error() && packet.dst == whole.src;
    let told = station.wait("an error", error)?;
    let kind = PIECES.of(Family::of(whole.src));
    ensure!(told.icmp_kind() == Some(kind), "told {told:?}");
    let quoted = told.quoted()?;
    ensure!((quoted.src, quoted.dst) == (whole.src, whole.dst), "quotes {quoted:?}");
    ensure!(quoted.offset == 0 && quoted.more && quoted.id == 4711, "quotes {quoted:?}");
    let again = station.wire.within(Duration::from_secs(3), error);
    ensure!(again.is_none(), "told twice: {again:?}");
    Ok(())
}

fn pieces_that_never_become_whole_are_told_to_their_sender(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let data = [7; 2000];
    let (own, peer) = (inside.at(family, 40_000), outside.at(family, 9000));
    begins(&inside, &Packet::udp(own, peer, &data))?;
    let ours = std::net::SocketAddr::new(lab.external(family), 40_000);
    begins(&outside, &Packet::udp(peer, ours, &data))
}
