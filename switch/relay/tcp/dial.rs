//! The host socket of a container's connection: which port it has, and what the container's SYN says of
//! the way.
//!
//! Read RFC 5382 REQ-1 first: connections of one inside port leave by one outside port, whomever they lead
//! to. Only a far side the host has just had a connection with by that port (TIME-WAIT) is reached by
//! another.

use std::io;
use std::net::{SocketAddr, TcpStream};

use datapath::{Packet, PortId, emit};
use nat::{Protocol, TransportAddr, Tuple, Zone};
use nix::errno::Errno;

use crate::claims::Claim;
use crate::ports::Wanted;
use crate::shared::Shared;
use crate::socket;

/// Sockets tried for one connection.
const ATTEMPTS: usize = 4;

/// The part of the traffic class that is the container's to choose (RFC 2474 §3); the rest is ECN, which
/// each connection negotiates (RFC 3168 §6.1).
pub(super) const DSCP: u8 = 0xfc;

/// A socket that begins to connect.
#[derive(Debug)]
pub(super) struct Dialled {
    pub(super) stream: TcpStream,
    /// What it leaves from.
    pub(super) local: TransportAddr,
    pub(super) claim: Claim,
}

/// Begins to connect to whom a container's SYN is for.
///
/// # Errors
///
/// As connect(2); `EADDRINUSE` if there is no port left.
pub(super) fn dial(
    shared: &Shared,
    (zone, port): (Zone, PortId),
    tuple: Tuple,
    syn: &Packet,
) -> io::Result<Dialled> {
    let wanted = Wanted { zone, port, protocol: Protocol::Tcp, inside: tuple.src };
    let to = SocketAddr::from(tuple.dst);
    let mut stream = socket_for(syn)?;
    let mut attempts = 0;
    let found = shared.ports.find(wanted, |port| {
        if socket::bind_port(&stream, to.ip(), port)?.is_none() {
            return Ok(None);
        }
        attempts += 1;
        match socket::connect(&stream, to) {
            Ok(()) => Ok(Some(())),
            Err(Errno::EADDRNOTAVAIL) if attempts < ATTEMPTS => {
                stream = socket_for(syn)?;
                Ok(None)
            }
            Err(errno) => Err(errno.into()),
        }
    })?;
    let ((), claim) = found.ok_or(Errno::EADDRINUSE)?;
    let local = stream.local_addr()?;
    if local == to {
        // Nobody listens there: the host's kernel has let the socket speak to itself.
        return Err(Errno::ECONNREFUSED.into());
    }
    Ok(Dialled { stream, local: local.into(), claim })
}

/// A socket whose own SYN goes as far as the container's would, and is of the same class. What it sends by
/// default costs no call.
fn socket_for(syn: &Packet) -> io::Result<TcpStream> {
    let stream = socket::tcp(syn.dst)?;
    if syn.hop_limit != emit::DEFAULT_TTL {
        socket::set_hop_limit(&stream, syn.dst.is_ipv4(), syn.hop_limit.saturating_sub(1).max(1));
    }
    if syn.traffic_class & DSCP != 0 {
        socket::set_traffic_class(&stream, syn.dst.is_ipv4(), syn.traffic_class);
    }
    Ok(stream)
}
