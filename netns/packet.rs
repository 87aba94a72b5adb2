//! Frames of an interface by AF_PACKET: the outer end of a veth pair, or an interface of the host.
//!
//! Read packet(7) and `net/packet/af_packet.c` first. Each socket is bound to the one interface, sees all
//! it receives and nothing it sends, and exchanges frames with a `virtio_net_hdr` of 10 octets
//! before them, so that neither segmentation nor checksum is done on the way.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socket};

use crate::error::Error;
use crate::filter::{self, Take};
use crate::ifname::index_of;
use crate::sockopt;

/// Octets of receive and send buffer asked for: room for some sixty frames of 64 KB. Without
/// `CAP_NET_ADMIN` the kernel gives no more than `net.core.rmem_max`.
const BUFFER: libc::c_int = 8 << 20;

/// Opens sockets on an interface of the calling thread's namespace, to be read by [`recv_frame`] and
/// written by [`send_frame`]; non-blocking and close-on-exec.
///
/// They receive every frame the interface does, whosever station it is for (`PACKET_MR_PROMISC`,
/// undone by closing). Several share the frames by flow hash, so that each flow keeps its order.
///
/// # Errors
/// [`Error::NoSuchInterface`]; [`Error::Step`] without `CAP_NET_RAW`.
pub fn packet_sockets(ifname: &str, queues: u16) -> Result<Vec<OwnedFd>, Error> {
    let ifindex = index_of(ifname)?;
    open(ifindex, None, queues)
        .map_err(|source| Error::step(format!("open a packet socket on {ifname}"), source))
}

/// The same, of those frames alone that `take` says. A station's sockets are told no VLAN tag: the frames
/// they get have none that means a VLAN.
pub(crate) fn choosing_sockets(ifindex: u32, take: &Take, queues: u16) -> io::Result<Vec<OwnedFd>> {
    open(ifindex, Some(take), queues)
}

/// The same on the outer end of a veth pair, sending around its queueing discipline
/// (`PACKET_QDISC_BYPASS`). There is nothing to queue for; and the end, brought up before the other,
/// has a discipline that drops everything until the kernel gets round to its carrier.
pub(crate) fn outer_sockets(ifname: &str, queues: u16) -> Result<Vec<OwnedFd>, Error> {
    let sockets = packet_sockets(ifname, queues)?;
    for socket in &sockets {
        sockopt::set_int(socket, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)
            .map_err(|source| Error::step("send around the queue of the outer end", source))?;
    }
    Ok(sockets)
}

fn open(ifindex: u32, take: Option<&Take>, queues: u16) -> io::Result<Vec<OwnedFd>> {
    let sockets: Vec<OwnedFd> =
        (0..queues.max(1)).map(|_| open_one(ifindex, take)).collect::<io::Result<_>>()?;
    let mut sharing = sockets.iter();
    if let (Some(first), 2..) = (sharing.next(), sockets.len()) {
        // The kernel finds a number for the group that no other program has, and says which.
        let shared = libc::PACKET_FANOUT_HASH | libc::PACKET_FANOUT_FLAG_IGNORE_OUTGOING;
        let found = shared | libc::PACKET_FANOUT_FLAG_UNIQUEID;
        let set = |socket: &OwnedFd, how: libc::c_uint, group: libc::c_uint| {
            let fanout = (how << 16 | group).cast_signed();
            sockopt::set_int(socket, libc::SOL_PACKET, libc::PACKET_FANOUT, fanout)
        };
        set(first, found, 0)?;
        let group = sockopt::get_int(first, libc::SOL_PACKET, libc::PACKET_FANOUT)?;
        let group = group.cast_unsigned() & 0xffff;
        sharing.try_for_each(|socket| set(socket, shared, group))?;
    }
    Ok(sockets)
}

fn open_one(ifindex: u32, take: Option<&Take>) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    // Protocol 0 receives nothing until bound, so no frame of another interface slips in.
    let fd = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
    sockopt::set_int(&fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
    if !matches!(take, Some(Take::Stations(_))) {
        sockopt::set_int(&fd, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
    }
    // Linux 4.20; before it each frame we send comes back to us, and the bridge would learn from it.
    sockopt::set_int(&fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
    for (forced, modest) in
        [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)]
    {
        sockopt::set_int(&fd, libc::SOL_SOCKET, forced, BUFFER)
            .or_else(|_| sockopt::set_int(&fd, libc::SOL_SOCKET, modest, BUFFER))?;
    }
    if let Some(take) = take {
        filter::attach(&fd, take)?;
    }
    match take {
        Some(Take::Stations(stations)) => {
            join(&fd, ifindex, libc::PACKET_MR_ALLMULTI, &[])?;
            for station in stations {
                join(&fd, ifindex, libc::PACKET_MR_UNICAST, station)?;
            }
        }
        Some(Take::AllBut(_)) | None => join(&fd, ifindex, libc::PACKET_MR_PROMISC, &[])?,
    }
    bind(&fd, ifindex)?;
    Ok(fd)
}

/// Has the interface let in what it would else filter, until `fd` is closed: `PACKET_ADD_MEMBERSHIP`.
fn join(fd: impl AsFd, ifindex: u32, kind: libc::c_int, station: &[u8]) -> io::Result<()> {
    let mut membership = libc::packet_mreq {
        mr_ifindex: i32::try_from(ifindex).map_err(io::Error::other)?,
        mr_type: libc::c_ushort::try_from(kind).map_err(io::Error::other)?,
        mr_alen: libc::c_ushort::try_from(station.len()).map_err(io::Error::other)?,
        mr_address: [0; 8],
    };
    membership.mr_address[..station.len()].copy_from_slice(station);
    sockopt::set(fd, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &membership)
}

fn bind(fd: impl AsFd, ifindex: u32) -> io::Result<()> {
    #[expect(clippy::cast_possible_truncation, reason = "AF_PACKET is 17 and ETH_P_ALL is 3")]
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: i32::try_from(ifindex).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let octets = libc::socklen_t::try_from(mem::size_of_val(&address)).map_err(io::Error::other)?;
    let at: *const libc::sockaddr_ll = &raw const address;
    // SAFETY: `at` points at a whole sockaddr_ll of `octets` octets that outlives the call.
    let done = unsafe { libc::bind(fd.as_fd().as_raw_fd(), at.cast(), octets) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Octets of `struct virtio_net_hdr` before each frame.
const VNET_HDR: usize = 10;
/// Where a VLAN tag sits: behind the two MAC addresses (IEEE 802.1Q 9.3).
const TAG_AT: usize = VNET_HDR + 12;
/// Octets of a VLAN tag.
const VLAN_TAG: usize = 4;

/// Receives one frame with its `virtio_net_hdr` from a queue opened as
/// [`Opened::Packet`](crate::Opened::Packet); returns the octets of both.
///
/// The kernel takes a VLAN tag out of the frame before a packet socket sees it; this puts it back,
/// which plain recv(2) does not. `buf` should hold 10 + 18 + 65535 octets: what does not fit is lost.
///
/// # Errors
/// `WouldBlock`; `ENETDOWN` once, when the interface went down, from where it may come back; `ENODEV` once,
/// when it was deleted or moved to another namespace, and nothing will come any more.
pub fn recv_frame(fd: impl AsFd, buf: &mut [u8]) -> io::Result<usize> {
    let (len, tag) = recv_untagged(fd.as_fd(), buf).map_err(|err| match err.raw_os_error() {
        // The kernel says the same of both, but forgets the interface of one that is gone
        // (packet_notifier, net/packet/af_packet.c).
        Some(libc::ENETDOWN) if is_bound_to_nothing(fd) => {
            io::Error::from_raw_os_error(libc::ENODEV)
        }
        _ => err,
    })?;
    match tag {
        Some(tag) if len >= TAG_AT && len + VLAN_TAG <= buf.len() => {
            put_back(tag, buf, len);
            Ok(len + VLAN_TAG)
        }
        _ => Ok(len),
    }
}

/// Whether the interface a packet socket was bound to is gone.
fn is_bound_to_nothing(fd: impl AsFd) -> bool {
    let mut address = mem::MaybeUninit::<libc::sockaddr_ll>::zeroed();
    let mut octets = libc::socklen_t::try_from(mem::size_of_val(&address)).unwrap_or(0);
    // SAFETY: `address` has room for `octets` octets, of which the kernel writes no more, and both
    // outlive the call.
    let done = unsafe {
        libc::getsockname(fd.as_fd().as_raw_fd(), address.as_mut_ptr().cast(), &raw mut octets)
    };
    // SAFETY: a sockaddr_ll is integers, and all of it was zeroed before the kernel wrote some of it.
    let address = unsafe { address.assume_init() };
    done == 0 && address.sll_ifindex == -1
}

/// What PACKET_AUXDATA puts behind a frame. It is the only control message asked for.
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    aux: libc::tpacket_auxdata,
}

fn recv_untagged(fd: impl AsFd, buf: &mut [u8]) -> io::Result<(usize, Option<[u8; 4]>)> {
    let mut slice = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let mut control = mem::MaybeUninit::<Control>::zeroed();
    let mut message = mem::MaybeUninit::<libc::msghdr>::zeroed();
    // SAFETY: a msghdr of zeros is one without name, buffers or control: null and 0 throughout.
    let message = unsafe { message.assume_init_mut() };
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = mem::size_of::<Control>() as _;
    // SAFETY: `message` leads to the one iovec, that to the caller's slice with its length, and to
    // `control` with its size; all three outlive the call, which writes no further.
    let got = unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), message, libc::MSG_DONTWAIT) };
    let len = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: both parts of a Control are integers, and all of it was zeroed before the kernel
    // wrote some of it.
    let Control { header, aux } = unsafe { control.assume_init() };
    let tagged = header.cmsg_level == libc::SOL_PACKET
        && header.cmsg_type == libc::PACKET_AUXDATA
        && aux.tp_status & libc::TP_STATUS_VLAN_VALID != 0;
    let tag = tagged.then(|| {
        let kind = match aux.tp_status & libc::TP_STATUS_VLAN_TPID_VALID {
            0 => 0x8100, // Linux before 3.14 knows no other.
            _ => aux.tp_vlan_tpid,
        };
        let ([a, b], [c, d]) = (kind.to_be_bytes(), aux.tp_vlan_tci.to_be_bytes());
        [a, b, c, d]
    });
    Ok((len, tag))
}

/// Puts a VLAN tag into the frame of `len` octets (header included) in `buf`, and moves what the
/// header says of places behind it: `hdr_len` of a segmented frame, `csum_start` of a partial
/// checksum (virtio 1.2, 5.1.6).
fn put_back(tag: [u8; VLAN_TAG], buf: &mut [u8], len: usize) {
    const NEEDS_CSUM: u8 = 1;
    const MOVED_BY: u16 = 4;
    buf.copy_within(TAG_AT..len, TAG_AT + VLAN_TAG);
    buf[TAG_AT..TAG_AT + VLAN_TAG].copy_from_slice(&tag);
    let (partial, segmented) = (buf[0] & NEEDS_CSUM != 0, buf[1] != 0);
    for (at, moves) in [(2, segmented), (6, partial)] {
        if moves {
            let place = u16::from_ne_bytes([buf[at], buf[at + 1]]).wrapping_add(MOVED_BY);
            buf[at..at + 2].copy_from_slice(&place.to_ne_bytes());
        }
    }
}

/// Sends one frame with its `virtio_net_hdr`.
///
/// # Errors
/// `WouldBlock` where the send buffer is full; `EMSGSIZE` for a frame over the MTU that the header
/// does not call segmented; `ENETDOWN`; `ENXIO` once the interface is gone.
pub fn send_frame(fd: impl AsFd, frame: &[u8]) -> io::Result<usize> {
    Ok(send(fd.as_fd().as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_goes_back_behind_the_addresses_and_moves_the_header() {
        let mut buf = [0u8; 64];
        buf[0] = 1; // NEEDS_CSUM
        buf[1] = 1; // GSO_TCPV4
        buf[2..4].copy_from_slice(&54u16.to_ne_bytes());
        buf[6..8].copy_from_slice(&34u16.to_ne_bytes());
        buf[22..26].copy_from_slice(&[8, 0, 0x45, 0]);
        put_back([0x81, 0, 0, 10], &mut buf, 40);
        assert_eq!(buf[22..30], [0x81, 0, 0, 10, 8, 0, 0x45, 0]);
        assert_eq!(buf[2..4], 58u16.to_ne_bytes());
        assert_eq!(buf[6..8], 38u16.to_ne_bytes());
    }
}
