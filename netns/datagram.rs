//! Datagrams on their way out of a host socket, each with what its sender wants to go along with it.
//!
//! Read ip(7), ipv6(7), udp(7) (`UDP_SEGMENT`) and cmsg(3). What holds for one datagram goes along with
//! it as ancillary data, so that threads that share a socket need not agree; what only a socket option
//! can say is set apart. Nothing here allocates.

use std::io;
use std::mem::{MaybeUninit, offset_of};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

use nix::libc;
use nix::sys::socket::{SockaddrLike, SockaddrStorage, connect, getsockname};

use crate::sockopt::{get_int, set_int};

/// What goes along with a datagram, or with each of a train of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Along {
    /// TTL or hop limit, 1 to 255; the socket's own, if `None`.
    pub hop_limit: Option<u8>,
    /// TOS or traffic class, ECN included.
    pub traffic_class: u8,
    /// The address to send from, of the destination's family, and the interface to leave by (0 for
    /// whichever the route says); what is bound, if `None`.
    pub source: Option<(IpAddr, u32)>,
    /// Payload octets of each datagram of a train but the last, which may be shorter (`UDP_SEGMENT`).
    pub segment: Option<u16>,
}

/// Sends one datagram, or a train of them, without waiting: one `sendmsg(2)`.
///
/// # Errors
/// As sendmsg(2). `EMSGSIZE`: longer than the path's MTU on a socket that must not fragment
/// ([`set_may_fragment`]). `EINVAL` or `EIO`: the kernel or the device cannot take the train.
pub fn send_datagrams(
    fd: impl AsFd,
    to: SocketAddr,
    payload: &[u8],
    along: &Along,
) -> io::Result<()> {
    let mut control = Control::for_datagrams(to.is_ipv4(), along);
    let to = SockaddrStorage::from(to);
    let mut slice =
        libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    let mut message = MaybeUninit::<libc::msghdr>::zeroed();
    // SAFETY: a msghdr of zeros is one without name, buffers or control: null and 0 throughout.
    let message = unsafe { message.assume_init_mut() };
    message.msg_name = to.as_ptr().cast_mut().cast();
    message.msg_namelen = to.len();
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.octets.0.as_mut_ptr().cast();
    message.msg_controllen = control.len as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `message` leads to `to`, to the caller's whole slice, and to the first `len` of
    // `control`'s octets, which are aligned as a cmsghdr must be. All outlive the call, which writes to
    // none of them.
    let sent = unsafe { libc::sendmsg(fd.as_fd().as_raw_fd(), message, flags) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Says whether the host may cut this socket's datagrams: `IP_MTU_DISCOVER`, `IPV6_MTU_DISCOVER`.
///
/// Those that may not be cut carry DF in IPv4, and are refused with `EMSGSIZE` where they are longer
/// than the path's MTU as far as it is known; those that may be carry none.
///
/// # Errors
/// `ENOPROTOOPT` on a socket of the other family.
pub fn set_may_fragment(fd: impl AsFd, v4: bool, may: bool) -> io::Result<()> {
    match (v4, may) {
        (true, true) => {
            set_int(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)
        }
        (true, false) => set_int(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO),
        (false, true) => {
            set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT)
        }
        (false, false) => {
            set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)
        }
    }
}

/// The address the host sends from towards `to`, as its routes are now. `fd` is a UDP socket of that family,
/// neither bound nor connected, and is left so: in between it has a port of the kernel's choice.
///
/// # Errors
/// `ENETUNREACH` and the like where no route leads there.
pub fn source_towards(fd: impl AsFd, to: SocketAddr) -> io::Result<IpAddr> {
    let fd = fd.as_fd().as_raw_fd();
    connect(fd, &SockaddrStorage::from(to))?;
    let local = getsockname::<SockaddrStorage>(fd)?;
    // Connected again as it is, it would keep its address: connect(2), `AF_UNSPEC`.
    let nobody = libc::sockaddr {
        sa_family: libc::sa_family_t::try_from(libc::AF_UNSPEC).map_err(io::Error::other)?,
        sa_data: [0; 14],
    };
    let len = libc::socklen_t::try_from(size_of_val(&nobody)).map_err(io::Error::other)?;
    // SAFETY: `nobody` is a local of `len` octets that outlives the call, which only reads it.
    if unsafe { libc::connect(fd, &raw const nobody, len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let v4 = local.as_sockaddr_in().map(|local| IpAddr::V4(local.ip()));
    v4.or_else(|| local.as_sockaddr_in6().map(|local| IpAddr::V6(local.ip())))
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// The MTU, in octets of IP, of the path of a connected socket as far as it is known: `IP_MTU`,
/// `IPV6_MTU`.
///
/// # Errors
/// `ENOTCONN` on a socket that is not connected.
pub fn path_mtu(fd: impl AsFd, v4: bool) -> io::Result<u32> {
    let mtu = match v4 {
        true => get_int(fd, libc::IPPROTO_IP, libc::IP_MTU)?,
        false => get_int(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU)?,
    };
    u32::try_from(mtu).map_err(io::Error::other)
}

/// Octets of all the ancillary data there may be: four messages, the longest an `in6_pktinfo`.
const CONTROL_LEN: usize = 128;

/// Octets aligned as a `cmsghdr`.
#[repr(align(8))]
struct Aligned([u8; CONTROL_LEN]);

/// Ancillary data.
struct Control {
    octets: Aligned,
    len: usize,
}

impl Control {
    fn for_datagrams(v4: bool, along: &Along) -> Self {
        let mut control = Self { octets: Aligned([0; CONTROL_LEN]), len: 0 };
        let (level, hop_limit, traffic_class) = match v4 {
            true => (libc::IPPROTO_IP, libc::IP_TTL, libc::IP_TOS),
            false => (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, libc::IPV6_TCLASS),
        };
        if let Some(hops) = along.hop_limit {
            control.push(level, hop_limit, libc::c_int::from(hops).to_ne_bytes());
        }
        if along.traffic_class != 0 {
            let class = libc::c_int::from(along.traffic_class).to_ne_bytes();
            control.push(level, traffic_class, class);
        }
        match along.source {
            Some((IpAddr::V4(addr), ifindex)) => {
                // struct in_pktinfo: ipi_ifindex, ipi_spec_dst, ipi_addr.
                let mut info = [0; 12];
                info[..4].copy_from_slice(&ifindex.to_ne_bytes());
                info[4..8].copy_from_slice(&addr.octets());
                control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, info);
            }
            Some((IpAddr::V6(addr), ifindex)) => {
                // struct in6_pktinfo: ipi6_addr, ipi6_ifindex.
                let mut info = [0; 20];
                info[..16].copy_from_slice(&addr.octets());
                info[16..].copy_from_slice(&ifindex.to_ne_bytes());
                control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
            }
            None => {}
        }
        if let Some(size) = along.segment {
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, size.to_ne_bytes());
        }
        control
    }

    /// Puts one message behind the others, padded as `CMSG_SPACE` says.
    fn push<const N: usize>(&mut self, level: libc::c_int, kind: libc::c_int, data: [u8; N]) {
        const HEADER: usize = size_of::<libc::cmsghdr>();
        let octets = &mut self.octets.0[self.len..];
        octets[..size_of::<usize>()].copy_from_slice(&(HEADER + N).to_ne_bytes());
        octets[offset_of!(libc::cmsghdr, cmsg_level)..][..4].copy_from_slice(&level.to_ne_bytes());
        octets[offset_of!(libc::cmsghdr, cmsg_type)..][..4].copy_from_slice(&kind.to_ne_bytes());
        octets[HEADER..][..N].copy_from_slice(&data);
        self.len += HEADER + N.next_multiple_of(size_of::<usize>());
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use nix::cmsg_space;
    use nix::sys::socket::{
        AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, setsockopt,
        socket, sockopt,
    };

    use super::*;

    #[test]
    fn what_goes_along_arrives_with_each_datagram() {
        for (at, v4) in [("127.0.0.1:0", true), ("[::1]:0", false)] {
            let near = UdpSocket::bind(at).expect("a loopback");
            let far = UdpSocket::bind(at).expect("a loopback");
            if v4 {
                setsockopt(&far, sockopt::Ipv4RecvTtl, &true).expect("an IPv4 socket");
                setsockopt(&far, sockopt::IpRecvTos, &true).expect("an IPv4 socket");
            } else {
                setsockopt(&far, sockopt::Ipv6RecvHopLimit, &true).expect("an IPv6 socket");
                setsockopt(&far, sockopt::Ipv6RecvTClass, &true).expect("an IPv6 socket");
            }
            let to = far.local_addr().expect("bound");
            let source = near.local_addr().expect("bound").ip();
            for segment in [None, Some(3)] {
                let along = Along {
                    hop_limit: Some(7),
                    traffic_class: 0xb9,
                    source: Some((source, 0)),
                    segment,
                };
                send_datagrams(&near, to, b"octets", &along).expect("sent");
                let size = usize::from(segment.unwrap_or(6));
                for _ in 0..6 / size {
                    let mut buffer = [0; 64];
                    let mut slices = [io::IoSliceMut::new(&mut buffer)];
                    let mut space = cmsg_space!([libc::c_int; 8]);
                    let message = recvmsg::<SockaddrStorage>(
                        far.as_raw_fd(),
                        &mut slices,
                        Some(&mut space),
                        MsgFlags::empty(),
                    )
                    .expect("received");
                    assert_eq!(message.bytes, size);
                    let (mut hops, mut class) = (0, 0);
                    for control in message.cmsgs().expect("whole") {
                        match control {
                            ControlMessageOwned::Ipv4Ttl(value)
                            | ControlMessageOwned::Ipv6HopLimit(value) => hops = value,
                            ControlMessageOwned::Ipv4Tos(value) => class = value.into(),
                            ControlMessageOwned::Ipv6TClass(value) => class = value,
                            _ => {}
                        }
                    }
                    assert_eq!((hops, class), (7, 0xb9), "{at} {segment:?}");
                }
            }
        }
    }

    #[test]
    fn the_source_towards_one_far_side_says_nothing_of_the_next() {
        let families = [(AddressFamily::Inet, "127.0.0.1:9"), (AddressFamily::Inet6, "[::1]:9")];
        for (family, to) in families {
            let flags = SockFlag::SOCK_CLOEXEC;
            let probe = socket(family, SockType::Datagram, flags, None).expect("a family");
            let to: SocketAddr = to.parse().expect("an address");
            for _ in 0..2 {
                assert_eq!(source_towards(&probe, to).expect("a loopback"), to.ip());
                let left = getsockname::<SockaddrStorage>(probe.as_raw_fd()).expect("a socket");
                let v4 = left.as_sockaddr_in().map(|left| (IpAddr::V4(left.ip()), left.port()));
                let v6 = left.as_sockaddr_in6().map(|left| (IpAddr::V6(left.ip()), left.port()));
                let (addr, port) = v4.or(v6).expect("one of both");
                assert!(addr.is_unspecified() && port == 0, "as it was: {addr} {port}");
            }
        }
    }

    #[test]
    fn the_mtu_of_a_path_is_told_of_a_connected_socket() {
        for (at, v4) in [("127.0.0.1:0", true), ("[::1]:0", false)] {
            let near = UdpSocket::bind(at).expect("a loopback");
            let unknown = path_mtu(&near, v4).expect_err("not connected");
            assert_eq!(unknown.raw_os_error(), Some(libc::ENOTCONN));
            near.connect(near.local_addr().expect("bound")).expect("connected");
            assert!(path_mtu(&near, v4).expect("connected") >= 1280);
            set_may_fragment(&near, v4, false).expect("its own family");
            set_may_fragment(&near, v4, true).expect("its own family");
        }
    }
}
