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

/// Asks for ICMP errors on the error queue (`IP_RECVERR` in ip(7)), and where their extension objects begin.
pub(crate) fn want_errors(fd: &impl AsFd, v4: bool, wanted: bool) -> io::Result<()> {
    if v4 {
        socket::setsockopt(fd, sockopt::Ipv4RecvErr, &wanted)?;
    } else {
        socket::setsockopt(fd, sockopt::Ipv6RecvErr, &wanted)?;
    }
    if wanted {
        // An older kernel knows nothing of them: then they are left behind.
        let _ = netns::sockopt::want_error_objects(fd, v4);
    }
    Ok(())
}

/// A TCP socket to connect to somebody of `to`'s family. ICMP errors end the attempt at once and stay
/// readable. It may share its port with others that lead elsewhere.
pub(crate) fn tcp(to: IpAddr) -> io::Result<TcpStream> {
    let fd = new(to, SockType::Stream, None)?;
    want_errors(&fd, to.is_ipv4(), true)?;
    socket::setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    prepare_stream(&fd)?;
    Ok(TcpStream::from(fd))
}

/// Begins to connect a socket to `to`.
pub(crate) fn connect(stream: &TcpStream, to: SocketAddr) -> Result<(), Errno> {
    match socket::connect(stream.as_raw_fd(), &SockaddrStorage::from(to)) {
        Err(Errno::EINPROGRESS) => Ok(()),
        result => result,
    }
}

/// The TTL or hop limit of what a stream sends from now on.
pub(crate) fn set_hop_limit(stream: &TcpStream, v4: bool, hops: u8) {
    let hops = i32::from(hops);
    // Refused only for what is no socket of that family.
    let _ = match v4 {
        true => socket::setsockopt(stream, sockopt::Ipv4Ttl, &hops),
        false => socket::setsockopt(stream, sockopt::Ipv6Ttl, &hops),
    };
}

/// The DSCP of what a stream sends from now on, as it stands in the traffic class; ECN is the kernel's own.
pub(crate) fn set_traffic_class(stream: &TcpStream, v4: bool, class: u8) {
    let class = i32::from(class & 0xfc);
    let _ = match v4 {
        true => socket::setsockopt(stream, sockopt::Ipv4Tos, &class),
        false => socket::setsockopt(stream, sockopt::Ipv6TClass, &class),
    };
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

/// Octets a published UDP port asks the host to keep while it is not served: strangers may send as fast as
/// they like. Without privilege there are fewer (`net.core.rmem_max`).
const RECEIVE_BUFFER: usize = 2 << 20;

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
    want_errors(&fd, addr.is_ipv4(), true)?;
    prepare_datagrams(&fd, addr.is_ipv4())?;
    want_trains(&fd);
    if socket::setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        let _ = socket::setsockopt(&fd, sockopt::RcvBuf, &RECEIVE_BUFFER);
    }
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(addr))?;
    Ok(fd)
}

/// A UDP socket of `inside`'s family, unconnected and not bound yet.
pub(crate) fn udp(inside: IpAddr) -> io::Result<OwnedFd> {
    let fd = new(inside, SockType::Datagram, None)?;
    want_errors(&fd, inside.is_ipv4(), true)?;
    prepare_datagrams(&fd, inside.is_ipv4())?;
    want_trains(&fd);
    Ok(fd)
}

/// A ping socket (icmp(7)) of `inside`'s family, with the same identifier if that is free.
pub(crate) fn ping(inside: SocketAddr) -> io::Result<(OwnedFd, u16)> {
    let protocol = if inside.is_ipv4() { SockProtocol::Icmp } else { SockProtocol::IcmpV6 };
    let fd = new(inside.ip(), SockType::Datagram, Some(protocol))?;
    // Such sockets are made to share an identifier (`inetsw_array`), and only one would hear the answers.
    socket::setsockopt(&fd, sockopt::ReuseAddr, &false)?;
    want_errors(&fd, inside.is_ipv4(), true)?;
    prepare_datagrams(&fd, inside.is_ipv4())?;
    let like = inside.ip();
    let identifier = match bind_port(&fd, like, inside.port())? {
        Some(identifier) => Some(identifier),
        None => bind_port(&fd, like, 0)?,
    };
    Ok((fd, identifier.ok_or(Errno::EADDRINUSE)?))
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

/// Binds to a port of any address of `like`'s family, 0 for whichever the kernel gives. `None` if it is
/// not to be had; else the port.
pub(crate) fn bind_port(fd: &impl AsRawFd, like: IpAddr, port: u16) -> io::Result<Option<u16>> {
    let addr = SocketAddr::new(unspecified(like), port);
    match socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(addr)) {
        Ok(()) if port != 0 => Ok(Some(port)),
        Ok(()) => {
            let bound = socket::getsockname::<SockaddrStorage>(fd.as_raw_fd())?;
            Ok(to_std(&bound).map(|bound| bound.port()))
        }
        Err(Errno::EADDRINUSE | Errno::EACCES) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// The MTU of the path to `to`, in octets of IP, as far as the host knows it (`IP_MTU` in ip(7)).
pub(crate) fn path_mtu(to: SocketAddr) -> io::Result<u32> {
    let fd = new(to.ip(), SockType::Datagram, None)?;
    socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
    netns::datagram::path_mtu(&fd, to.is_ipv4())
}

/// Whether the host's routes make `to` everybody on one of its segments, of whom no error may speak (RFC 1122
/// §3.2.2). A socket may only connect there if it says that it means to (`SO_BROADCAST`, socket(7)).
pub(crate) fn is_broadcast(to: SocketAddr) -> bool {
    let connects = |meant| -> io::Result<bool> {
        let fd = new(to.ip(), SockType::Datagram, None)?;
        socket::setsockopt(&fd, sockopt::Broadcast, &meant)?;
        match socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
            Err(Errno::EACCES) => Ok(false),
            connected => Ok(connected.map(|()| true)?),
        }
    };
    to.is_ipv4() && matches!((connects(false), connects(true)), (Ok(false), Ok(true)))
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
            let to = listener.local_addr().unwrap();
            let client = tcp(to.ip()).unwrap();
            connect(&client, to).unwrap();
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
