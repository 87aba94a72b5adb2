//! UDP sockets of a lab's namespaces.

#![allow(dead_code, unreachable_pub, missing_docs)]

use std::net::{SocketAddr, UdpSocket};

use nat::Protocol;
use worker::Publication;

use crate::lab::{Container, Lab, NET, PATIENCE};

pub fn socket_at(netns: &netns::Netns, addr: SocketAddr) -> UdpSocket {
    let socket = netns.with(|| UdpSocket::bind(addr)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

pub fn publish(lab: &Lab, container: &Container, protocol: Protocol, listen: SocketAddr) {
    let publication = Publication {
        network: NET,
        port: container.port,
        protocol,
        listen,
        to: vec![container.addr, container.addr6],
        to_port: 80,
        splice: None,
    };
    lab.host.with(|| lab.switch.publish(publication)).unwrap();
}

/// Asks `to` from `inside`, and returns whom the far side saw.
pub fn ask(inside: &UdpSocket, far: &UdpSocket, to: SocketAddr) -> SocketAddr {
    inside.send_to(b"question", to).unwrap();
    let mut buffer = [0; 64];
    let (len, from) = far.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"question");
    from
}
