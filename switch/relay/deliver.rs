//! Datagrams: read from a host socket, delivered to a container.
//!
//! Consecutive datagrams of one sender and size go on as one frame, to be cut by whoever needs them cut. A
//! socket with `UDP_GRO` (udp(7)) may give them so; where it does not, they are read behind one another.
//! A datagram longer than the container's MTU goes in fragments.

use std::io::IoSliceMut;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use datapath::emit::{self, IpHeader};
use datapath::{DropReason, Offload};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};

use crate::context::Context;
use crate::socket;

/// Octets of the largest datagram or train, its IP header not counted.
const MAX_DATAGRAM: usize = 65_535;

/// Octets of payload of one train: with its headers it is one IP packet.
const MAX_TRAIN: usize = 65_000;

/// Datagrams of one frame to a container (`UDP_MAX_SEGMENTS` was 64 up to Linux 6.8).
const MAX_SEGMENTS: usize = 64;

/// A datagram read from a host socket, or a train of them from one sender.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Datagram {
    pub(crate) from: SocketAddr,
    /// Octets of payload in all.
    pub(crate) len: usize,
    /// Octets of each but the last, which may be shorter.
    pub(crate) size: usize,
    /// TTL or hop limit as it came.
    pub(crate) hop_limit: u8,
    pub(crate) traffic_class: u8,
    /// Where to answer from: the address and interface it came by, where the socket tells.
    pub(crate) used: Option<(IpAddr, u32)>,
}

impl Datagram {
    /// How many datagrams it is.
    pub(crate) fn count(&self) -> usize {
        self.len.div_ceil(self.size.max(1)).max(1)
    }

    /// Octets of IP, had each come by itself.
    pub(crate) fn ip_octets(&self) -> usize {
        self.len + self.count() * if self.from.is_ipv4() { 28 } else { 48 }
    }

    /// Whether what was read next may follow in the same train.
    fn is_followed_by(&self, next: &Self) -> bool {
        self.from == next.from
            && next.len <= self.size
            && next.len > 0
            && self.hop_limit == next.hop_limit
            && self.traffic_class == next.traffic_class
            && self.used == next.used
            && next.count() == 1
    }

    /// Whether more may follow at all: the last of a train is the only one that may be shorter.
    fn is_open(&self) -> bool {
        self.len > 0
            && self.len.is_multiple_of(self.size)
            && self.len + self.size <= MAX_TRAIN
            && self.count() < MAX_SEGMENTS
    }

    /// The header it has inside, one hop older.
    pub(crate) fn header(&self, src: IpAddr, dst: IpAddr, protocol: u8) -> IpHeader {
        IpHeader {
            hop_limit: self.hop_limit.saturating_sub(1).max(1),
            traffic_class: self.traffic_class,
            ..IpHeader::new(src, dst, protocol)
        }
    }
}

/// What one worker reads datagrams into.
#[derive(Debug)]
pub(crate) struct Inlet {
    octets: Box<[u8]>,
    control: Vec<u8>,
    /// Read behind a train it is no part of, and where it lies.
    ahead: Option<(Datagram, usize)>,
    /// The socket had no more.
    dry: bool,
}

impl Default for Inlet {
    fn default() -> Self {
        Self {
            octets: vec![0; MAX_TRAIN + MAX_DATAGRAM].into_boxed_slice(),
            control: nix::cmsg_space!(
                [libc::c_int; 1],
                [u8; 1],
                [libc::c_int; 1],
                libc::in6_pktinfo
            ),
            ahead: None,
            dry: false,
        }
    }
}

impl Inlet {
    /// Begins with a socket. What was read of another one must have been taken.
    pub(crate) fn begin(&mut self) {
        debug_assert!(self.ahead.is_none(), "taken to the last");
        self.dry = false;
    }

    /// Reads what waits at a socket: one datagram, or a train of them.
    pub(crate) fn receive(&mut self, fd: &OwnedFd) -> Result<Datagram, Errno> {
        let mut train = match self.take_ahead() {
            Some(datagram) => datagram,
            None if self.dry => return Err(Errno::EAGAIN),
            None => self.read(fd, 0)?,
        };
        while train.is_open() && !self.dry {
            match self.read(fd, train.len) {
                Ok(next) if train.is_followed_by(&next) => train.len += next.len,
                Ok(next) => {
                    self.ahead = Some((next, train.len));
                    break;
                }
                Err(Errno::EAGAIN) => self.dry = true,
                // What the error queue has is announced by itself.
                Err(_) => break,
            }
        }
        Ok(train)
    }

    /// What was read already and not given yet: to be taken before another socket is read.
    pub(crate) fn take_ahead(&mut self) -> Option<Datagram> {
        let (datagram, at) = self.ahead.take()?;
        self.octets.copy_within(at..at + datagram.len, 0);
        Some(datagram)
    }

    /// Reads one datagram, or what the kernel gives as a train, to `at`.
    fn read(&mut self, fd: &OwnedFd, at: usize) -> Result<Datagram, Errno> {
        let mut slices = [IoSliceMut::new(&mut self.octets[at..])];
        let flags = MsgFlags::MSG_DONTWAIT;
        let control = Some(&mut self.control[..]);
        let message = recvmsg::<SockaddrStorage>(fd.as_raw_fd(), &mut slices, control, flags)?;
        let from = message.address.as_ref().and_then(socket::to_std).ok_or(Errno::EINVAL)?;
        let len = message.bytes;
        let mut datagram = Datagram {
            from,
            len,
            size: len,
            hop_limit: emit::DEFAULT_TTL,
            traffic_class: 0,
            used: None,
        };
        for control in message.cmsgs()? {
            match control {
                ControlMessageOwned::Ipv4Ttl(ttl) | ControlMessageOwned::Ipv6HopLimit(ttl) => {
                    datagram.hop_limit = u8::try_from(ttl).unwrap_or(emit::DEFAULT_TTL);
                }
                ControlMessageOwned::Ipv4Tos(class) => datagram.traffic_class = class,
                ControlMessageOwned::Ipv6TClass(class) => {
                    datagram.traffic_class = u8::try_from(class).unwrap_or(0);
                }
                ControlMessageOwned::UdpGroSegments(size) => {
                    datagram.size = usize::try_from(size).unwrap_or(len).min(len);
                }
                // Of what came by broadcast or multicast, the address to answer from (ip(7)); of all
                // else, the address it was sent to.
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    let local = IpAddr::from(info.ipi_spec_dst.s_addr.to_ne_bytes());
                    datagram.used = Some((local, u32::try_from(info.ipi_ifindex).unwrap_or(0)));
                }
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    // A group can be no source: then the kernel chooses (RFC 3542 §6.1).
                    let local = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr));
                    let local = local.filter(|addr| !addr.is_multicast());
                    let local = local.unwrap_or(Ipv6Addr::UNSPECIFIED).into();
                    datagram.used = Some((local, info.ipi6_ifindex));
                }
                _ => {}
            }
        }
        Ok(datagram)
    }

    /// What was given last.
    pub(crate) fn payload(&self, datagram: &Datagram) -> &[u8] {
        &self.octets[..datagram.len]
    }
}

/// Sends UDP datagrams of `size` payload octets each (the last may have fewer) to the container.
pub(crate) fn udp(
    header: &IpHeader,
    ports: (u16, u16),
    (payload, size): (&[u8], usize),
    ctx: &mut Context<'_>,
) {
    let headers = header.octets() + 8;
    let fit = (usize::from(u16::MAX) - headers) / size.max(1);
    let together = match headers + size <= usize::from(ctx.dp.config().mtu.0) {
        true => size * fit.clamp(1, MAX_SEGMENTS),
        false => size,
    };
    let empty = payload.is_empty().then_some(payload);
    for octets in payload.chunks(together.max(1)).chain(empty) {
        if let Err(reason) = udp_frame(header, ports, (octets, size), ctx) {
            for _ in octets.chunks(size.max(1)).chain(empty) {
                ctx.dp.gateway_counters().not_sent(reason);
            }
        }
    }
}

fn udp_frame(
    header: &IpHeader,
    (src_port, dst_port): (u16, u16),
    (payload, size): (&[u8], usize),
    ctx: &mut Context<'_>,
) -> Result<(), DropReason> {
    let own_mac = ctx.own_mac().ok_or(DropReason::NoGateway)?;
    let len = 8 + payload.len();
    // A client of the other family may send some octets more than fit behind this header. IPv6 does not
    // count it (RFC 8200 §3).
    let counted = if header.src.is_ipv4() { header.octets() } else { 0 };
    let fits = counted + len <= usize::from(u16::MAX);
    let wire_len = u16::try_from(len).ok().filter(|_| fits).ok_or(DropReason::Oversized)?;
    let header =
        IpHeader { identification: Some(ctx.dp.network().next_identification()), ..*header };
    let built = ctx.out.build(header.transport() + len);
    let frame = ctx.out.frame_mut(built);
    header.emit(frame, own_mac);
    let datagram = &mut frame[header.transport()..];
    datagram[..2].copy_from_slice(&src_port.to_be_bytes());
    datagram[2..4].copy_from_slice(&dst_port.to_be_bytes());
    datagram[4..6].copy_from_slice(&wire_len.to_be_bytes());
    datagram[6..8].fill(0);
    datagram[8..].copy_from_slice(payload);
    if header.octets() + 8 + size <= usize::from(ctx.dp.config().mtu.0) {
        let size = u16::try_from(size.max(1)).map_err(|_| DropReason::Oversized)?;
        let offload = Offload::for_udp(frame, size)?;
        ctx.dp.send_to(built, header.dst, offload, ctx.now, ctx.out);
    } else {
        emit::fill_checksum(&header, datagram, 6);
        fragments(&header, built, ctx);
    }
    Ok(())
}

/// Sends an echo reply to the container, under the identifier it asked with.
///
/// # Errors
///
/// It is no reply (a ping socket is given others, too: RFC 8335), or too short to be one.
pub(crate) fn echo(
    header: &IpHeader,
    identifier: u16,
    message: &[u8],
    ctx: &mut Context<'_>,
) -> Result<(), DropReason> {
    let own_mac = ctx.own_mac().ok_or(DropReason::NoGateway)?;
    let reply = if header.src.is_ipv4() { 0 } else { 129 };
    match message {
        [kind, 0, _, _, _, _, _, _, ..] if *kind == reply => {}
        [_, _, _, _, _, _, _, _, ..] => return Err(DropReason::Filtered),
        _ => return Err(DropReason::Malformed),
    }
    let header =
        IpHeader { identification: Some(ctx.dp.network().next_identification()), ..*header };
    let built = ctx.out.build(header.transport() + message.len());
    let frame = ctx.out.frame_mut(built);
    header.emit(frame, own_mac);
    let reply = &mut frame[header.transport()..];
    reply.copy_from_slice(message);
    reply[2..4].fill(0);
    reply[4..6].copy_from_slice(&identifier.to_be_bytes());
    emit::fill_checksum(&header, reply, 2);
    if built.len() - datapath::ETHERNET_HEADER_LEN <= usize::from(ctx.dp.config().mtu.0) {
        ctx.dp.send_to(built, header.dst, Offload::NONE, ctx.now, ctx.out);
    } else {
        fragments(&header, built, ctx);
    }
    Ok(())
}

fn fragments(header: &IpHeader, built: datapath::Built, ctx: &mut Context<'_>) {
    let identification = ctx.dp.network().next_identification();
    let mtu = ctx.dp.config().mtu;
    for piece in datapath::fragment::fragment(ctx.out, built, mtu, identification) {
        ctx.dp.send_to(piece, header.dst, Offload::NONE, ctx.now, ctx.out);
    }
}
