//! Host sockets, each with an owner from its first instant.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, Backlog, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage,
    sockopt,
};

/// Pending connections of a listener; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Creates a non-blocking socket of `addr`'s family.
fn new(addr: IpAddr, kind: SockType, protocol: Option<SockProtocol>) -> io::Result<OwnedFd> {
    let family = if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    Ok(socket::socket(family, kind, flags, protocol)?)
}

/// Asks for ICMP errors on the error queue (`IP_RECVERR` in ip(7)).
pub(crate) fn want_errors(fd: &impl AsFd, v4: bool, wanted: bool) -> io::Result<()> {
    if v4 {
        socket::setsockopt(fd, sockopt::Ipv4RecvErr, &wanted)?;
    } else {
        socket::setsockopt(fd, sockopt::Ipv6RecvErr, &wanted)?;
    }
    Ok(())
}

/// Begins to connect to `to`. ICMP errors end the attempt at once and stay readable.
pub(crate) fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let fd = new(to.ip(), SockType::Stream, None)?;
    want_errors(&fd, to.is_ipv4(), true)?;
    let stream = TcpStream::from(fd);
    prepare_stream(&stream)?;
    match socket::connect(stream.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(stream),
        Err(errno) => Err(errno.into()),
    }
}

/// What every TCP socket that carries a flow has: no delay of small segments (the container's own stack
/// has already decided), urgent octets where they stand in the stream, so that none is lost, and
/// keepalive, so that a dead far side is found (RFC 5382 REQ-5 lets an idle connection live; 7,200 s is
/// RFC 9293 §3.8.4's default). A listener's connections have what it has (`sk_clone_lock`).
pub(crate) fn prepare_stream(fd: &impl AsFd) -> io::Result<()> {
    socket::setsockopt(fd, sockopt::TcpNoDelay, &true)?;
    socket::setsockopt(fd, sockopt::OobInline, &true)?;
    socket::setsockopt(fd, sockopt::KeepAlive, &true)?;
    Ok(())
}

/// A listener for a published TCP port. An IPv6 listener takes IPv6 only.
///
/// # Errors
///
/// As `bind(2)` and `listen(2)`.
pub(crate) fn listen_tcp(addr: SocketAddr) -> io::Result<TcpListener> {
    let fd = new(addr.ip(), SockType::Stream, None)?;
    if addr.is_ipv6() {
        socket::setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    socket::setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    prepare_stream(&fd)?;
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(addr))?;
    socket::listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(TcpListener::from(fd))
}

/// A socket for a published UDP port, which tells the address each datagram was sent to.
///
/// # Errors
///
/// As `bind(2)`.
pub(crate) fn listen_udp(addr: SocketAddr) -> io::Result<OwnedFd> {
    let fd = new(addr.ip(), SockType::Datagram, None)?;
    if addr.is_ipv6() {
        socket::setsockopt(&fd, sockopt::Ipv6RecvPacketInfo, &true)?;
    } else {
        socket::setsockopt(&fd, sockopt::Ipv4PacketInfo, &true)?;
    }
    prepare_datagrams(&fd, addr.is_ipv4())?;
    want_trains(&fd);
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(addr))?;
    Ok(fd)
}

/// An unconnected UDP socket of `inside`'s family, and the first of the port numbers it could have.
pub(crate) fn udp(inside: IpAddr, ports: impl Iterator<Item = u16>) -> io::Result<(OwnedFd, u16)> {
    let fd = new(inside, SockType::Datagram, None)?;
    want_errors(&fd, inside.is_ipv4(), true)?;
    prepare_datagrams(&fd, inside.is_ipv4())?;
    want_trains(&fd);
    bind_first(fd, inside, ports)
}

/// A ping socket (icmp(7)) of `inside`'s family, with the same identifier if that is free.
pub(crate) fn ping(inside: SocketAddr) -> io::Result<(OwnedFd, u16)> {
    let protocol = if inside.is_ipv4() { SockProtocol::Icmp } else { SockProtocol::IcmpV6 };
    let fd = new(inside.ip(), SockType::Datagram, Some(protocol))?;
    want_errors(&fd, inside.is_ipv4(), true)?;
    prepare_datagrams(&fd, inside.is_ipv4())?;
    bind_first(fd, inside.ip(), [inside.port(), 0].into_iter())
}

/// What every datagram socket tells of what it receives: TTL and traffic class (ip(7), ipv6(7)).
fn prepare_datagrams(fd: &OwnedFd, v4: bool) -> io::Result<()> {
    if v4 {
        socket::setsockopt(fd, sockopt::Ipv4RecvTtl, &true)?;
        socket::setsockopt(fd, sockopt::IpRecvTos, &true)?;
    } else {
        socket::setsockopt(fd, sockopt::Ipv6V6Only, &true)?;
        socket::setsockopt(fd, sockopt::Ipv6RecvHopLimit, &true)?;
        socket::setsockopt(fd, sockopt::Ipv6RecvTClass, &true)?;
    }
    Ok(())
}

/// Asks for datagrams in trains (`UDP_GRO`, udp(7)); a kernel that makes none gives them one by one.
fn want_trains(fd: &OwnedFd) {
    let _ = socket::setsockopt(fd, sockopt::UdpGroSegment, &true);
}

fn bind_first(
    fd: OwnedFd,
    like: IpAddr,
    mut ports: impl Iterator<Item = u16>,
) -> io::Result<(OwnedFd, u16)> {
    loop {
        let port = ports.next().ok_or(Errno::EADDRINUSE)?;
        let addr = SocketAddr::new(unspecified(like), port);
        match socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(addr)) {
            Ok(()) => {
                let bound = socket::getsockname::<SockaddrStorage>(fd.as_raw_fd())?;
                return Ok((fd, to_std(&bound).map_or(port, |bound| bound.port())));
            }
            Err(Errno::EADDRINUSE | Errno::EACCES) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The MTU of the path to `to`, in octets of IP, as far as the host knows it (`IP_MTU` in ip(7)).
pub(crate) fn path_mtu(to: SocketAddr) -> io::Result<u32> {
    let fd = new(to.ip(), SockType::Datagram, None)?;
    socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
    netns::datagram::path_mtu(&fd, to.is_ipv4())
}

pub(crate) const fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

/// The standard library's form of an IP socket address.
pub(crate) fn to_std(addr: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = addr.as_sockaddr_in() {
        return Some(SocketAddr::V4((*v4).into()));
    }
    addr.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into()))
}

/// Makes the coming close a reset instead of an orderly end (RFC 9293 §3.10.5, ABORT).
pub(crate) fn abort_on_close(fd: &impl AsFd) {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    // If it is refused the far side sees an orderly end, which is the best left to do.
    let _ = socket::setsockopt(fd, sockopt::Linger, &linger);
}

/// Writes to a stream what the kernel takes now. `flags` say how, beyond not to wait and not to raise a
/// signal.
pub(crate) fn write_some(
    fd: &impl AsRawFd,
    octets: &[u8],
    flags: MsgFlags,
) -> Result<usize, Errno> {
    let flags = flags | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    match socket::send(fd.as_raw_fd(), octets, flags) {
        Err(Errno::EAGAIN) => Ok(0),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listeners_connections_have_what_every_flows_socket_has() {
        for addr in ["127.0.0.1:0", "[::1]:0"] {
            let listener = listen_tcp(addr.parse().unwrap()).unwrap();
            let client = connect(listener.local_addr().unwrap()).unwrap();
            listener.set_nonblocking(false).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            for stream in [client, accepted] {
                assert!(socket::getsockopt(&stream, sockopt::TcpNoDelay).unwrap());
                assert!(socket::getsockopt(&stream, sockopt::OobInline).unwrap());
                assert!(socket::getsockopt(&stream, sockopt::KeepAlive).unwrap());
            }
        }
    }
}
