//! Ports of the host's that lead to a container.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use netns::{Netns, link};

use crate::lab::{Container, Family, Lab, accept, connect, listen, udp};
use crate::{Subject, Verdict, ensure, probes};

probes! {
    Both {
        "A38" ANY a_published_server_sees_the_clients_address_over_tcp;
        "A38" ANY a_published_server_sees_the_clients_address_over_udp;
        "PRODUCT 9" ANY a_container_reaches_a_published_port_of_another_and_its_own;
        "PRODUCT 9" ANY a_container_of_another_network_reaches_a_published_port;
        "A14" ANY the_host_itself_is_a_client_by_each_of_its_addresses;
        "S" ANY a_published_port_that_nobody_listens_on_refuses;
    }
    Sockets {
        "A38" ANY an_answer_comes_from_the_address_that_was_asked;
    }
}

/// The subject's container with ports 80 and 81 of either protocol behind 8080 and 8081.
pub(crate) fn published(lab: &Lab, family: Family) -> Container {
    let name = format!("p{family:?}");
    match lab.subject {
        Subject::Sockets | Subject::Raw => {
            let specs = match family {
                // One port is one container's: the families take turns.
                Family::V4 => ["0.0.0.0:8080:80/tcp", "0.0.0.0:8080:80/udp"],
                Family::V6 => ["[::]:8080:80/tcp", "[::]:8080:80/udp"],
            };
            lab.container_of_pontoon(&name, &["-p", specs[0], "-p", specs[1]])
        }
        Subject::Kernel | Subject::Nothing => {
            let container = lab.container(&name);
            let (word, to) = match family {
                Family::V4 => ("ip", container.v4.to_string()),
                Family::V6 => ("ip6", format!("[{}]", container.v6)),
            };
            let rule = |l4: &str| {
                format!(
                    "add rule inet nat published meta nfproto {} {l4} dport 8080 dnat {word} to {to}:80\n",
                    if family == Family::V4 { "ipv4" } else { "ipv6" }
                )
            };
            lab.nft(&(rule("tcp") + &rule("udp")));
            container
        }
        Subject::Pasta | Subject::Slirp => {
            // One at a time has the port.
            lab.end_containers();
            lab.container(&name)
        }
    }
}

fn a_published_server_sees_the_clients_address_over_tcp(lab: &Lab, family: Family) -> Verdict {
    let container = published(lab, family);
    let listener = listen(&container.netns, container.addr(family), 80);
    let to = SocketAddr::new(lab.external(family), 8080);
    for client in [2, 3] {
        let from = SocketAddr::new(family.outside(client), 52_000);
        let mut near = connect(&lab.outside, from, to).map_err(|e| format!("{from}: {e}"))?;
        let (mut far, peer) = accept(&listener)?;
        ensure!(peer == from, "{from} is seen as {peer}");
        near.write_all(b"question").unwrap();
        let mut octets = [0; 8];
        far.read_exact(&mut octets).map_err(|error| format!("question: {error}"))?;
        far.write_all(b"answered").unwrap();
        near.read_exact(&mut octets).map_err(|error| format!("answer: {error}"))?;
        ensure!(octets == *b"answered", "{octets:?} came");
    }
    Ok(())
}

fn a_published_server_sees_the_clients_address_over_udp(lab: &Lab, family: Family) -> Verdict {
    let container = published(lab, family);
    let server = udp(&container.netns, container.addr(family), 80);
    let to = SocketAddr::new(lab.external(family), 8080);
    let mut buffer = vec![0; 70_000];
    for client in [2, 3] {
        let socket = udp(&lab.outside, family.outside(client), 52_100);
        for size in [1, 1400, 5000] {
            let data = vec![client; size];
            socket.send_to(&data, to).map_err(|error| format!("send: {error}"))?;
            let (len, from) =
                server.recv_from(&mut buffer).map_err(|error| format!("{size}: {error}"))?;
            ensure!(buffer[..len] == data, "{len} octets came of {size}");
            ensure!(from == socket.local_addr().unwrap(), "seen as {from}");
            server.send_to(&data, from).map_err(|error| format!("answer: {error}"))?;
            let (len, from) =
                socket.recv_from(&mut buffer).map_err(|error| format!("{size} back: {error}"))?;
            ensure!(buffer[..len] == data, "{len} octets came back of {size}");
            ensure!(from == to, "the answer comes from {from}");
        }
    }
    Ok(())
}

fn an_answer_comes_from_the_address_that_was_asked(lab: &Lab, family: Family) -> Verdict {
    let second: IpAddr = match family {
        Family::V4 => "198.51.100.8".parse().unwrap(),
        Family::V6 => "2001:db8:7::8".parse().unwrap(),
    };
    let len = if family == Family::V4 { 24 } else { 64 };
    let address = format!("{second}/{len}").parse().unwrap();
    lab.scene.host.enter(|| link::add_address("up0", address)).unwrap();
    let container = published(lab, family);
    let server = udp(&container.netns, container.addr(family), 80);
    let client = udp(&lab.outside, family.outside(2), 52_200);
    let mut buffer = [0; 100];
    for addr in [second, family.host(), second] {
        let to = SocketAddr::new(addr, 8080);
        client.send_to(b"question", to).map_err(|error| format!("send: {error}"))?;
        let (_, from) = server.recv_from(&mut buffer).map_err(|error| format!("in: {error}"))?;
        server.send_to(b"answer", from).map_err(|error| format!("answer: {error}"))?;
        let (_, from) = client.recv_from(&mut buffer).map_err(|error| format!("out: {error}"))?;
        ensure!(from == to, "{to} was asked, {from} answers");
    }
    Ok(())
}

fn a_container_reaches_a_published_port_of_another_and_its_own(
    lab: &Lab,
    family: Family,
) -> Verdict {
    let server = published(lab, family);
    let other = lab.container(&format!("q{family:?}"));
    let listener = listen(&server.netns, server.addr(family), 80);
    let datagrams = udp(&server.netns, server.addr(family), 80);
    let to = SocketAddr::new(lab.external(family), 8080);
    for client in [&other, &server] {
        served(client, family, to, &listener, &datagrams)?;
    }
    Ok(())
}

/// A client asks and is answered by TCP, and by UDP from the very address it asked.
pub(crate) fn served(
    client: &Container,
    family: Family,
    to: SocketAddr,
    listener: &TcpListener,
    datagrams: &UdpSocket,
) -> Verdict {
    exchanged(&client.netns, client.at(family, 0), to, listener)
        .map_err(|error| format!("{}: {error}", client.name))?;
    let mut octet = [0; 1];
    let socket = udp(&client.netns, client.addr(family), 0);
    socket.send_to(b"?", to).map_err(|error| format!("send: {error}"))?;
    let (_, from) = datagrams.recv_from(&mut octet).map_err(|e| format!("datagram: {e}"))?;
    datagrams.send_to(b"!", from).map_err(|error| format!("send: {error}"))?;
    let (_, from) = socket.recv_from(&mut octet).map_err(|error| format!("back: {error}"))?;
    ensure!(from == to, "{to} was asked, {from} answers");
    Ok(())
}

/// An octet there and another back over a connection; whom the server sees.
pub(crate) fn exchanged(
    netns: &Netns,
    from: SocketAddr,
    to: SocketAddr,
    listener: &TcpListener,
) -> Result<SocketAddr, String> {
    let mut near = connect(netns, from, to).map_err(|error| format!("{from} to {to}: {error}"))?;
    let (mut far, seen) = accept(listener)?;
    near.write_all(b"?").unwrap();
    let mut octet = [0; 1];
    far.read_exact(&mut octet).map_err(|error| format!("question: {error}"))?;
    far.write_all(b"!").unwrap();
    near.read_exact(&mut octet).map_err(|error| format!("answer: {error}"))?;
    ensure!(octet == *b"!", "{octet:?} came");
    Ok(seen)
}

/// By loopback and by its own address, whatever the uplink.
fn the_host_itself_is_a_client_by_each_of_its_addresses(lab: &Lab, family: Family) -> Verdict {
    let container = published(lab, family);
    // A client on loopback may be connected from inside.
    let any: IpAddr = match family {
        Family::V4 => "0.0.0.0".parse().unwrap(),
        Family::V6 => "::".parse().unwrap(),
    };
    let listener = listen(&container.netns, any, 80);
    let loopback: IpAddr = match family {
        Family::V4 => "127.0.0.1".parse().unwrap(),
        Family::V6 => "::1".parse().unwrap(),
    };
    for addr in [loopback, family.host()] {
        let to = SocketAddr::new(addr, 8080);
        exchanged(&lab.scene.host, SocketAddr::new(any, 0), to, &listener)?;
    }
    Ok(())
}

fn a_container_of_another_network_reaches_a_published_port(lab: &Lab, family: Family) -> Verdict {
    ensure!(lab.subject.is_pontoon(), "no other network is made here");
    let server = published(lab, family);
    let (name, subnets) = match family {
        Family::V4 => ("other4", ["10.8.0.0/24", "fd00:8::/64"]),
        Family::V6 => ("other6", ["10.7.0.0/24", "fd00:7::/64"]),
    };
    lab.network(name, &["--subnet", subnets[0], "--subnet", subnets[1]]);
    let client = lab.container_on(name, &format!("o{family:?}"), &[]);
    let listener = listen(&server.netns, server.addr(family), 80);
    let datagrams = udp(&server.netns, server.addr(family), 80);
    let to = SocketAddr::new(lab.external(family), 8080);
    served(&client, family, to, &listener, &datagrams)
}

/// A NAT lets the container refuse (RFC 9293 3.10.7.1). Where the host's kernel has accepted by then, the
/// connection is reset at once.
fn a_published_port_that_nobody_listens_on_refuses(lab: &Lab, family: Family) -> Verdict {
    let container = published(lab, family);
    let to = SocketAddr::new(lab.external(family), 8080);
    let from = SocketAddr::new(family.outside(2), 0);
    let error = match connect(&lab.outside, from, to) {
        Ok(mut stream) if lab.subject != Subject::Raw => stream.read(&mut [0]).err(),
        connected => connected.err(),
    };
    let kind = error.map(|error| error.kind());
    ensure!(
        matches!(kind, Some(ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset)),
        "the client is told {kind:?}"
    );
    // The same port serves once somebody does.
    let listener = listen(&container.netns, container.addr(family), 80);
    let _stream = connect(&lab.outside, from, to).map_err(|error| format!("connect: {error}"))?;
    accept(&listener).map(drop)
}
