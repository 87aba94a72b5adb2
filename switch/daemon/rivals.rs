//! Whether another station of a host's segment has an address, asked before a container of ours gets it.
//!
//! A network that is a segment of the host's hands out addresses on it that others may have all the same,
//! and a container's kernel asks nobody: Linux has no conflict detection for IPv4, and what we add of IPv6 is
//! usable at once. So we ask in its stead, from its own station and nobody's address, sooner than RFC 5227 §2.1
//! and RFC 4862 §5.4 have it, whose times are for a host that has nothing better to do for seven seconds.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use datapath::resolve::{self, Announcement};
use datapath::{Body, MacAddr, OFFLOAD_HEADER_LEN, Offload, Outbox, Packet, PortId};
use nat::Zone;
use netns::{Take, open_interface};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::Error;

/// Questions, and how long each waits for an answer.
const PROBES: usize = 3;
const WAIT: Duration = Duration::from_millis(200);

/// Octets of an answer that are read; a longer frame is none.
const LONGEST: usize = 1600;

/// Frames looked at in all, whoever floods the segment.
const MOST_FRAMES: usize = 4096;

/// The first of `addrs` that a station on the segment of `interface` has, and which; `mac` is that of who is to
/// get them. Takes as long as the questions wait where nobody has any.
pub(crate) fn rival(
    interface: &str,
    mac: MacAddr,
    addrs: &[IpAddr],
) -> Result<Option<(IpAddr, MacAddr)>, Error> {
    if addrs.is_empty() {
        return Ok(None);
    }
    let opened = open_interface(interface, &Take::Stations(vec![mac.0]), 1)?;
    let Some(queue) = opened.queues.first() else { return Ok(None) };
    let asked = |source| Error::System { what: "ask who has an address", source };
    let (mut out, mut buffer, mut seen) = (Outbox::default(), [0; LONGEST], 0);
    for _ in 0..PROBES {
        for addr in addrs {
            let built = resolve::probe(&mut out, mac, *addr);
            out.push((Zone(0), PortId::GATEWAY), Body::Built(built), Offload::NONE);
            netns::send_frame(queue, out.with_header(built, Offload::NONE)).map_err(asked)?;
        }
        out.clear();
        let until = Instant::now() + WAIT;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || seen >= MOST_FRAMES {
                break;
            }
            let mut readable = [PollFd::new(queue.as_fd(), PollFlags::POLLIN)];
            let patience = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            poll(&mut readable, patience).map_err(|error| asked(error.into()))?;
            let len = match netns::recv_frame(queue, &mut buffer) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(asked(error)),
            };
            seen += 1;
            if let Some(message) = read(buffer.get(..len).unwrap_or_default())
                && message.station != mac
                && let Some(addr) = addrs.iter().find(|addr| claims(&message, **addr))
            {
                return Ok(Some((*addr, message.station)));
            }
        }
    }
    Ok(None)
}

/// Whether whoever says so has `addr`, or means to have it just now.
fn claims(message: &Announcement, addr: IpAddr) -> bool {
    match message.sender {
        Some(sender) => sender == addr,
        None => message.asks && message.target == addr,
    }
}

/// The ARP or NDP message of a frame behind its offload header.
fn read(octets: &[u8]) -> Option<Announcement> {
    const HEADER: usize = datapath::ETHERNET_HEADER_LEN;
    let (header, frame) = octets.split_first_chunk::<OFFLOAD_HEADER_LEN>()?;
    let offload = Offload::parse(header).ok()?;
    let (head, payload) = frame.split_at_checked(HEADER)?;
    if head[12..] == [0x08, 0x06] {
        return resolve::read_arp(payload).ok();
    }
    if head[12..] != [0x86, 0xdd] || !resolve::may_be_ndp(payload) {
        return None;
    }
    let packet = Packet::parse(frame, &offload).ok()?;
    let src = MacAddr(*head[6..].first_chunk()?);
    resolve::read_ndp(&packet, frame, src)?.ok()
}
