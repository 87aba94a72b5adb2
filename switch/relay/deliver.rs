//! Datagrams: read from a host socket, delivered to a container.

use std::io::IoSliceMut;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use datapath::emit::{self, IpHeader};
use datapath::{DropReason, Offload};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};

use crate::context::Context;
use crate::socket;

/// A datagram read from a host socket, its payload apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Datagram {
    pub(crate) from: SocketAddr,
    pub(crate) len: usize,
    pub(crate) hop_limit: u8,
    /// The address it was sent to, where the socket tells.
    pub(crate) to: Option<IpAddr>,
}

/// Reads one datagram.
pub(crate) fn receive(fd: &OwnedFd, buffer: &mut [u8]) -> Result<Datagram, Errno> {
    let mut control = nix::cmsg_space!([i32; 4], [nix::libc::in6_pktinfo; 2]);
    let mut slices = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let message =
        recvmsg::<SockaddrStorage>(fd.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
    let from = message.address.as_ref().and_then(socket::to_std).ok_or(Errno::EINVAL)?;
    let mut datagram =
        Datagram { from, len: message.bytes, hop_limit: emit::DEFAULT_TTL, to: None };
    for control in message.cmsgs()? {
        match control {
            ControlMessageOwned::Ipv4Ttl(ttl) | ControlMessageOwned::Ipv6HopLimit(ttl) => {
                datagram.hop_limit = u8::try_from(ttl).unwrap_or(emit::DEFAULT_TTL);
            }
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                datagram.to = Some(info.ipi_addr.s_addr.to_ne_bytes().into());
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                datagram.to = Some(info.ipi6_addr.s6_addr.into());
            }
            _ => {}
        }
    }
    Ok(datagram)
}

/// Sends a UDP datagram to the container, in fragments if it is longer than the MTU.
pub(crate) fn udp(
    header: &IpHeader,
    src_port: u16,
    dst_port: u16,
    payload: &[u8],
    ctx: &mut Context<'_>,
) {
    let Some(own_mac) = ctx.own_mac() else { return };
    let len = 8 + payload.len();
    // A client of the other family may send some octets more than fit behind this header.
    let fits = header.octets() + len <= usize::from(u16::MAX);
    let Some(wire_len) = u16::try_from(len).ok().filter(|_| fits) else {
        ctx.dp.gateway_counters().not_sent(DropReason::Oversized);
        return;
    };
    let built = ctx.out.build(header.transport() + len);
    let frame = ctx.out.frame_mut(built);
    header.emit(frame, own_mac);
    let datagram = &mut frame[header.transport()..];
    datagram[..2].copy_from_slice(&src_port.to_be_bytes());
    datagram[2..4].copy_from_slice(&dst_port.to_be_bytes());
    datagram[4..6].copy_from_slice(&wire_len.to_be_bytes());
    datagram[6..8].fill(0);
    datagram[8..].copy_from_slice(payload);
    let mtu = usize::from(ctx.dp.config().mtu.0);
    if header.octets() + len <= mtu {
        let size = u16::try_from(payload.len().max(1)).unwrap_or(u16::MAX);
        let Ok(offload) = Offload::for_udp(frame, size) else { return };
        ctx.dp.send_to(built, header.dst, offload, ctx.now, ctx.out);
    } else {
        emit::fill_checksum(header, datagram, 6);
        fragments(header, built, ctx);
    }
}

/// Sends an echo reply to the container, under the identifier it asked with.
pub(crate) fn echo(header: &IpHeader, identifier: u16, message: &[u8], ctx: &mut Context<'_>) {
    let Some(own_mac) = ctx.own_mac() else { return };
    if message.len() < 8 {
        return;
    }
    let built = ctx.out.build(header.transport() + message.len());
    let frame = ctx.out.frame_mut(built);
    header.emit(frame, own_mac);
    let reply = &mut frame[header.transport()..];
    reply.copy_from_slice(message);
    reply[2..4].fill(0);
    reply[4..6].copy_from_slice(&identifier.to_be_bytes());
    emit::fill_checksum(header, reply, 2);
    if built.len() - datapath::ETHERNET_HEADER_LEN <= usize::from(ctx.dp.config().mtu.0) {
        ctx.dp.send_to(built, header.dst, Offload::NONE, ctx.now, ctx.out);
    } else {
        fragments(header, built, ctx);
    }
}

fn fragments(header: &IpHeader, built: datapath::Built, ctx: &mut Context<'_>) {
    let identification = ctx.dp.network().next_identification();
    let mtu = ctx.dp.config().mtu;
    for piece in datapath::fragment::fragment(ctx.out, built, mtu, identification) {
        ctx.dp.send_to(piece, header.dst, Offload::NONE, ctx.now, ctx.out);
    }
}
