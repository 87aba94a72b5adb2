//! UDP and echo through the socket uplink.
//!
//! Read RFC 4787 first. One unconnected host socket serves one inside address and port whatever it
//! speaks to, so the mapping is endpoint-independent; who may answer is decided here (address-dependent
//! filtering, REQ-8). Echo requests go by ping sockets (icmp(7)), one for an inside address and
//! identifier. Any worker may send on a mapping's socket; the worker that made it reads it.

use std::collections::VecDeque;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use datapath::emit::IpHeader;
use datapath::{DropReason, Gso, IcmpError, Packet, PortId, Received};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nat::{Conntrack, Direction, Entry, Protocol, TransportAddr, Tuple, Zone};
use nix::errno::Errno;
use nix::sys::socket::SockaddrStorage;
use smoltcp::time::Instant;

use crate::context::{Context, Readiness};
use crate::deliver::{self, Datagram};
use crate::errors;
use crate::key::{Arena, Key, Kind, account};
use crate::mapping::Mapping;
use crate::quote;
use crate::shared::Shared;
use crate::socket;

/// Datagrams read from one socket before others get their turn.
const SHARE: usize = 64;

/// Far sides one inside address and port may speak to at a time.
const MAX_FLOWS_PER_MAPPING: usize = 4096;

/// Octets of the largest datagram, its IP header not counted.
const MAX_DATAGRAM: usize = 65_535;

/// The mappings of one worker.
#[derive(Debug)]
pub(crate) struct Datagrams {
    udp: Arena<Arc<Mapping>>,
    echo: Arena<Arc<Mapping>>,
    shared: Arc<Shared>,
    registry: Registry,
    backlog: VecDeque<(Zone, Key)>,
    /// What is read next; a datagram whole.
    buffer: Box<[u8]>,
}

impl Datagrams {
    pub(crate) fn new(worker: u8, shared: Arc<Shared>, registry: Registry) -> Self {
        Self {
            udp: Arena::new(worker, Kind::Udp),
            echo: Arena::new(worker, Kind::Echo),
            shared,
            registry,
            backlog: VecDeque::new(),
            buffer: vec![0; MAX_DATAGRAM].into_boxed_slice(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.udp.len() + self.echo.len()
    }

    pub(crate) fn queued(&self) -> usize {
        self.backlog.len()
    }

    pub(crate) fn next_queued(&mut self) -> Option<(Zone, Key)> {
        self.backlog.pop_front()
    }

    fn arena(&mut self, kind: Option<Kind>) -> &mut Arena<Arc<Mapping>> {
        if kind == Some(Kind::Echo) { &mut self.echo } else { &mut self.udp }
    }

    pub(crate) fn zone_of(&self, key: Key) -> Option<Zone> {
        let arena = if key.kind() == Some(Kind::Echo) { &self.echo } else { &self.udp };
        arena.get(key).map(|mapping| mapping.zone)
    }

    /// A datagram or echo request from the container.
    pub(crate) fn outbound(
        &mut self,
        received: &Received<'_>,
        packet: &Packet,
        tuple: Tuple,
        ctx: &mut Context<'_>,
    ) -> Result<(), DropReason> {
        let mapping = self.mapping(received, packet, tuple, ctx)?;
        let conntrack = Arc::clone(&ctx.dp.network().conntrack);
        let entry = match conntrack.entry(mapping.zone, tuple) {
            Some(entry) => entry,
            None => self.join(&mapping, tuple, &conntrack, ctx.now)?,
        };
        entry.note(Direction::Original, 1, packet.ip_len() as u64, ctx.now);
        let octets = packet.transport(received.frame);
        // A UDP datagram is as long as its header says; an echo request is sent with its header, in
        // which the kernel puts the socket's own identifier.
        let payload = match tuple.protocol {
            Protocol::Udp if received.offload.gso == Gso::None => {
                let len = usize::from(u16::from_be_bytes([octets[4], octets[5]]));
                &octets[8..len]
            }
            Protocol::Udp => &octets[8..],
            _ => octets,
        };
        let to = match tuple.protocol {
            Protocol::Udp => SocketAddr::from(tuple.dst),
            _ => SocketAddr::new(tuple.dst.addr, 0),
        };
        let mut sent = mapping.send(to, payload, packet, received.offload);
        if sent.is_err() {
            // An error of an earlier datagram is reported by the next call (ip(7), IP_RECVERR): take
            // note of it, and send.
            Self::take_errors(&mapping, ctx);
            sent = mapping.send(to, payload, packet, received.offload);
        }
        sent.map_err(|errno| {
            let what = match errno {
                Errno::EMSGSIZE => Some(IcmpError::TooBig(u32::from(ctx.dp.config().mtu.0))),
                Errno::EAGAIN | Errno::ENOBUFS => None,
                errno => errors::icmp_for(errno),
            };
            if let Some(what) = what {
                ctx.dp.tell(received, packet, what, ctx.now, ctx.out);
            }
            DropReason::HostSendFailed
        })
    }

    /// The mapping of the packet's source, made now if there is none.
    fn mapping(
        &mut self,
        received: &Received<'_>,
        packet: &Packet,
        tuple: Tuple,
        ctx: &mut Context<'_>,
    ) -> Result<Arc<Mapping>, DropReason> {
        let name = (ctx.zone(), tuple.protocol, tuple.src);
        if let Some(known) = self.shared.mappings.get(&name) {
            return Ok(Arc::clone(&known));
        }
        let Some(lease) = self.shared.limits.lease(ctx.zone(), received.port) else {
            ctx.dp.tell(received, packet, IcmpError::AdminProhibited, ctx.now, ctx.out);
            return Err(DropReason::FlowLimit);
        };
        let inside = SocketAddr::from(tuple.src);
        let opened = match tuple.protocol {
            Protocol::Udp => socket::udp(inside),
            _ => socket::ping(inside),
        };
        let fd = opened.map_err(|_| {
            ctx.dp.tell(received, packet, IcmpError::AdminProhibited, ctx.now, ctx.out);
            match tuple.protocol {
                Protocol::Udp => DropReason::NoSocket,
                _ => DropReason::EchoNotPermitted,
            }
        })?;
        let kind = if tuple.protocol == Protocol::Udp { Kind::Udp } else { Kind::Echo };
        let arena = self.arena(Some(kind));
        let key = arena.next_key();
        let owner = (ctx.zone(), received.port);
        let mapping = Arc::new(Mapping::new(key, owner, tuple.protocol, tuple.src, fd, lease));
        arena.insert(Arc::clone(&mapping));
        let raw = mapping.fd.as_raw_fd();
        if self
            .registry
            .register(&mut SourceFd(&raw), Token::from(key), Interest::READABLE)
            .is_err()
        {
            self.arena(Some(kind)).remove(key);
            return Err(DropReason::NoSocket);
        }
        // If another worker was quicker, its mapping stays the one, and ours goes at the next sweep.
        let held = self.shared.mappings.entry(name).or_insert(mapping);
        Ok(Arc::clone(&held))
    }

    /// Enters a new far side in conntrack and in its mapping.
    fn join(
        &self,
        mapping: &Arc<Mapping>,
        tuple: Tuple,
        conntrack: &Conntrack,
        now: Instant,
    ) -> Result<Arc<Entry>, DropReason> {
        let mut flows = mapping.flows();
        if flows.closed || flows.entries.len() >= MAX_FLOWS_PER_MAPPING {
            return Err(DropReason::FlowLimit);
        }
        let local = Self::local_towards(mapping, tuple.dst.into());
        let answer_from = match tuple.protocol {
            Protocol::Udp => tuple.dst,
            _ => TransportAddr::new(tuple.dst.addr, local.port),
        };
        let reply = Tuple::new(tuple.protocol, answer_from, local);
        let entry =
            Entry::new(mapping.zone, Direction::Original, tuple, reply, mapping.key.into(), now);
        let account = account(mapping.zone, mapping.port);
        let entry = conntrack.insert(account, entry).map_err(|_| DropReason::FlowLimit)?;
        flows.entries.push(Arc::clone(&entry));
        Ok(entry)
    }

    /// The address the host sends from towards `to`: what a connected socket would say.
    fn local_towards(mapping: &Mapping, to: SocketAddr) -> TransportAddr {
        let port = nix::sys::socket::getsockname::<SockaddrStorage>(mapping.fd.as_raw_fd())
            .ok()
            .and_then(|addr| socket::to_std(&addr))
            .map_or(0, |addr| addr.port());
        let unspecified = socket::unspecified(to.ip());
        let routed = UdpSocket::bind((unspecified, 0)).and_then(|probe| {
            probe.connect(SocketAddr::new(to.ip(), to.port().max(1)))?;
            probe.local_addr()
        });
        TransportAddr::new(routed.map_or(unspecified, |addr| addr.ip()), port)
    }

    /// A mapping's socket has datagrams or errors.
    pub(crate) fn ready(&mut self, key: Key, readiness: Readiness, ctx: &mut Context<'_>) {
        let Some(mapping) = self.arena(key.kind()).get(key).map(Arc::clone) else { return };
        if readiness.hung_up {
            Self::take_errors(&mapping, ctx);
        }
        for _ in 0..SHARE {
            match deliver::receive(&mapping.fd, &mut self.buffer) {
                Ok(datagram) => Self::inbound(&mapping, &datagram, &self.buffer, ctx),
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                Err(_) => Self::take_errors(&mapping, ctx),
            }
            if ctx.out.built_octets() >= datapath::outbox::ARENA_TARGET {
                break;
            }
        }
        self.backlog.push_back((mapping.zone, key));
    }

    /// A datagram from outside.
    fn inbound(mapping: &Mapping, datagram: &Datagram, buffer: &[u8], ctx: &mut Context<'_>) {
        let payload = &buffer[..datagram.len];
        let from = match mapping.protocol {
            Protocol::Udp => datagram.from.into(),
            _ => TransportAddr::new(datagram.from.ip(), mapping.inside.port),
        };
        if !Self::admit(mapping, from, payload.len(), ctx) {
            ctx.dp.gateway_counters().not_sent(DropReason::Filtered);
            return;
        }
        let header = IpHeader {
            // One hop: the one through us.
            hop_limit: datagram.hop_limit.saturating_sub(1).max(1),
            identification: Some(ctx.dp.network().next_identification()),
            ..IpHeader::new(from.addr, mapping.inside.addr, mapping.protocol.number())
        };
        match mapping.protocol {
            Protocol::Udp => deliver::udp(&header, from.port, mapping.inside.port, payload, ctx),
            _ => deliver::echo(&header, mapping.inside.port, payload, ctx),
        }
    }

    /// Whether the container has sent to that far side's address before; if to that very port too, the
    /// flow takes note of its answer. An answer does not keep the mapping alive (RFC 4787 REQ-6).
    fn admit(mapping: &Mapping, from: TransportAddr, len: usize, ctx: &Context<'_>) -> bool {
        let conntrack = &ctx.dp.network().conntrack;
        let original = Tuple::new(mapping.protocol, mapping.inside, from);
        if let Some(entry) = conntrack.entry(mapping.zone, original) {
            entry.count(Direction::Reply, 1, (len + 28) as u64);
            return true;
        }
        mapping.flows().entries.iter().any(|entry| entry.original.dst.addr == from.addr)
    }

    /// Tells the container what the error queue has.
    fn take_errors(mapping: &Mapping, ctx: &mut Context<'_>) {
        for error in errors::read(&mapping.fd) {
            let (Some(dst), Some(what)) = (error.dst, error.as_icmp_for(mapping.protocol)) else {
                continue;
            };
            let rest = match mapping.protocol {
                Protocol::Udp => quote::datagram(error.len),
                _ => [0, 0, error.head[6], error.head[7]],
            };
            let quoted = quote::packet(mapping.protocol, mapping.inside, dst.into(), &rest);
            let to = mapping.inside.addr;
            ctx.dp.tell_about(to, error.offender, what, &quoted, ctx.now, ctx.out);
        }
    }

    /// Forgets silent flows, and mappings without any. Returns how many mappings are left.
    pub(crate) fn sweep(&mut self, conntrack: &Conntrack, now: Instant) -> usize {
        let timeouts = conntrack.timeouts();
        let idle = self.all(|mapping| {
            let mut flows = mapping.flows();
            flows.entries.retain(|entry| {
                let alive = entry.expires_at(timeouts) > now;
                if !alive {
                    conntrack.remove(entry);
                }
                alive
            });
            flows.closed = flows.entries.is_empty();
            flows.closed
        });
        idle.into_iter().for_each(|key| self.close(key, conntrack));
        self.len()
    }

    /// Ends the mappings of a port, or of a whole network.
    pub(crate) fn end(&mut self, zone: Zone, port: Option<PortId>, conntrack: &Conntrack) {
        let over = self
            .all(|mapping| mapping.zone == zone && port.is_none_or(|port| mapping.port == port));
        over.into_iter().for_each(|key| self.close(key, conntrack));
    }

    fn all(&self, mut which: impl FnMut(&Mapping) -> bool) -> Vec<Key> {
        let mut keys = self.udp.keys(|mapping| which(mapping));
        keys.extend(self.echo.keys(|mapping| which(mapping)));
        keys
    }

    fn close(&mut self, key: Key, conntrack: &Conntrack) {
        let Some(mapping) = self.arena(key.kind()).remove(key) else { return };
        let mut flows = mapping.flows();
        flows.closed = true;
        flows.entries.drain(..).for_each(|entry| conntrack.remove(&entry));
        drop(flows);
        let name = (mapping.zone, mapping.protocol, mapping.inside);
        self.shared.mappings.remove_if(&name, |_, held| Arc::ptr_eq(held, &mapping));
        // Others may hold the socket a moment longer; it must not wake us any more.
        let _ = self.registry.deregister(&mut SourceFd(&mapping.fd.as_raw_fd()));
    }
}
