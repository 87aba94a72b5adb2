//! UDP and echo through the socket uplink.
//!
//! Read RFC 4787 first. One unconnected host socket serves one inside address and port whatever it
//! speaks to, so the mapping is endpoint-independent; who may answer is decided here (filtering, REQ-8). Echo requests go by ping sockets (icmp(7)), one for an inside address and
//! identifier. Any worker may send on a mapping's socket; the worker that made it reads it.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use datapath::{DropReason, IcmpError, Packet, PortId, Received};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nat::{Conntrack, Direction, Entry, Filtering, Protocol, TransportAddr, Tuple, Zone};
use netns::datagram::{Along, source_towards};
use nix::errno::Errno;
use smoltcp::time::Instant;

use crate::claims::Claim;
use crate::context::{Context, Readiness};
use crate::deliver::{self, Datagram, Inlet};
use crate::errors;
use crate::key::{Arena, Key, Kind, account};
use crate::last::Seen;
use crate::mapping::Mapping;
use crate::outlet::{self, Outlet, Trouble};
use crate::ports::Wanted;
use crate::quote::Quoted;
use crate::shared::Shared;
use crate::socket;
use crate::train::{Head, Load, Train};

#[cfg(test)]
mod tests;

/// Datagrams read from one socket before others get their turn.
const SHARE: usize = 128;

/// Far sides one inside address and port may speak to at a time.
const MAX_FLOWS_PER_MAPPING: usize = 65_536;

/// Mappings tried for one packet: one that is about to close is left to close.
const ATTEMPTS: usize = 3;

/// The mappings of one worker.
#[derive(Debug)]
pub(crate) struct Datagrams {
    udp: Arena<Arc<Mapping>>,
    echo: Arena<Arc<Mapping>>,
    shared: Arc<Shared>,
    registry: Registry,
    backlog: VecDeque<(Zone, Key)>,
    inlet: Inlet,
    train: Train<(Arc<Mapping>, Arc<Entry>)>,
    /// Sockets that are asked for the host's routes, one of each family once it is needed.
    probes: [Option<OwnedFd>; 2],
}

impl Datagrams {
    pub(crate) fn new(worker: u8, shared: Arc<Shared>, registry: Registry) -> Self {
        Self {
            udp: Arena::new(worker, Kind::Udp),
            echo: Arena::new(worker, Kind::Echo),
            shared,
            registry,
            backlog: VecDeque::new(),
            inlet: Inlet::default(),
            train: Train::default(),
            probes: [None, None],
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.udp.len() + self.echo.len()
    }

    pub(crate) fn queued(&self) -> usize {
        self.backlog.len()
    }

    pub(crate) fn next_queued(&mut self) -> Option<(Zone, Key)> {
        let (zone, key) = self.backlog.pop_front()?;
        if let Some(mapping) = self.arena(key.kind()).get(key) {
            mapping.outlet.queued.store(false, Relaxed);
        }
        Some((zone, key))
    }

    fn arena(&mut self, kind: Option<Kind>) -> &mut Arena<Arc<Mapping>> {
        if kind == Some(Kind::Echo) { &mut self.echo } else { &mut self.udp }
    }

    pub(crate) fn zone_of(&self, key: Key) -> Option<Zone> {
        let arena = if key.kind() == Some(Kind::Echo) { &self.echo } else { &self.udp };
        arena.get(key).map(|mapping| mapping.zone())
    }

    /// A datagram or echo request from the container.
    pub(crate) fn outbound(
        &mut self,
        received: &Received<'_>,
        packet: &Packet,
        tuple: Tuple,
        ctx: &mut Context<'_>,
    ) -> Result<(), DropReason> {
        if tuple.protocol != Protocol::Udp {
            return self.echo_request(received, packet, tuple, ctx);
        }
        let load = Load::of(packet, received.frame, received.offload);
        if self.train.join(tuple, packet, load) {
            return Ok(());
        }
        self.send_train(ctx);
        let via = self.flow(received, packet, tuple, ctx)?;
        self.train.begin(via, tuple, packet, load);
        Ok(())
    }

    /// Sends on the datagrams that wait for more of their kind.
    pub(crate) fn send_train(&mut self, ctx: &mut Context<'_>) {
        let Some((head, payload)) = self.train.take() else { return };
        let (mapping, entry) = &head.via;
        entry.note(Direction::Original, head.datagrams as u64, head.ip_octets as u64, ctx.now);
        let to = SocketAddr::from(head.tuple.dst);
        mapping.outlet.send_train(to, (&head, payload), None, |trouble| match trouble {
            Trouble::Earlier => Self::take_errors(mapping, ctx),
            Trouble::Failed(errno, datagram) => {
                ctx.dp.gateway_counters().not_sent(DropReason::HostSendFailed);
                tell_failed(errno, (&head, datagram), to, ctx);
            }
        });
    }

    fn echo_request(
        &mut self,
        received: &Received<'_>,
        packet: &Packet,
        tuple: Tuple,
        ctx: &mut Context<'_>,
    ) -> Result<(), DropReason> {
        let request = if tuple.protocol == Protocol::Icmp { (8, 0) } else { (128, 0) };
        if packet.icmp(received.frame) != Some(request) {
            return Err(DropReason::NoFlow);
        }
        let (mapping, entry) = self.flow(received, packet, tuple, ctx)?;
        entry.note(Direction::Original, 1, packet.ip_len() as u64, ctx.now);
        // It is sent with its header, in which the kernel puts the socket's own identifier.
        let message = packet.transport(received.frame);
        let to = SocketAddr::new(tuple.dst.addr, 0);
        let along = Along {
            hop_limit: Some(packet.hop_limit - 1),
            traffic_class: packet.traffic_class,
            ..Along::default()
        };
        let earlier = || Self::take_errors(&mapping, ctx);
        let sent = mapping.outlet.send(to, message, &along, !packet.dont_fragment, earlier);
        if let [_, _, _, _, _, _, high, low, payload @ ..] = message {
            let about = TransportAddr::new(tuple.dst.addr, u16::from_be_bytes([*high, *low]));
            mapping.outlet.last.note(about, payload, Seen::of(packet, received.frame));
        }
        sent.map_err(|errno| {
            if let Some(what) = outlet::as_icmp(errno, to, ctx.dp.config().mtu.0) {
                ctx.dp.tell(received, packet, what, ctx.now, ctx.out);
            }
            DropReason::HostSendFailed
        })
    }

    /// The flow of a packet, entered now if it is new. Its sender is told if it may not be.
    fn flow(
        &mut self,
        received: &Received<'_>,
        packet: &Packet,
        tuple: Tuple,
        ctx: &mut Context<'_>,
    ) -> Result<(Arc<Mapping>, Arc<Entry>), DropReason> {
        let conntrack = Arc::clone(&ctx.dp.network().conntrack);
        for _ in 0..ATTEMPTS {
            let mapping = self.mapping(received, packet, tuple, ctx)?;
            if let Some(entry) = conntrack.entry(mapping.zone(), tuple) {
                return Ok((mapping, entry));
            }
            match self.join(&mapping, tuple, &conntrack, ctx.now) {
                Join::Entered(entry) => return Ok((mapping, entry)),
                Join::Closing => self.forget(&mapping),
                Join::Refused => break,
            }
        }
        ctx.dp.tell(received, packet, IcmpError::AdminProhibited, ctx.now, ctx.out);
        Err(DropReason::FlowLimit)
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
        let owner = (ctx.zone(), received.port);
        let Some(lease) = self.shared.limits.lease(owner.0, owner.1) else {
            ctx.dp.tell(received, packet, IcmpError::AdminProhibited, ctx.now, ctx.out);
            return Err(DropReason::FlowLimit);
        };
        let opened = match tuple.protocol {
            Protocol::Udp => self.open_udp(owner, tuple.src),
            _ => socket::ping(SocketAddr::from(tuple.src)).map(|(fd, id)| (fd, id, None)),
        };
        let (fd, outside_port, claim) = opened.map_err(|_| {
            ctx.dp.tell(received, packet, IcmpError::AdminProhibited, ctx.now, ctx.out);
            match tuple.protocol {
                Protocol::Udp => DropReason::NoSocket,
                _ => DropReason::EchoNotPermitted,
            }
        })?;
        let kind = if tuple.protocol == Protocol::Udp { Kind::Udp } else { Kind::Echo };
        let arena = self.arena(Some(kind));
        let key = arena.next_key();
        let inside = (tuple.protocol, tuple.src);
        let outside = (Outlet::new(fd), outside_port, claim);
        let mapping = Arc::new(Mapping::new(key, inside, outside, lease));
        arena.insert(Arc::clone(&mapping));
        let raw = mapping.outlet.raw_fd();
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

    /// A socket for a container's inside address and port: by the outside port it should have, or else by
    /// whichever the kernel gives.
    fn open_udp(
        &self,
        (zone, port): (Zone, PortId),
        inside: TransportAddr,
    ) -> io::Result<(OwnedFd, u16, Option<Claim>)> {
        let wanted = Wanted { zone, port, protocol: Protocol::Udp, inside };
        let fd = socket::udp(inside.addr)?;
        let ports = &self.shared.ports;
        let found = ports.find(wanted, |port| socket::bind_port(&fd, inside.addr, port))?;
        if let Some((bound, claim)) = found {
            return Ok((fd, bound, Some(claim)));
        }
        let any = socket::bind_port(&fd, inside.addr, 0)?.ok_or(Errno::EADDRINUSE)?;
        Ok((fd, any, ports.note(wanted, any)))
    }

    /// Enters a new far side in conntrack and in its mapping.
    fn join(
        &mut self,
        mapping: &Mapping,
        tuple: Tuple,
        conntrack: &Conntrack,
        now: Instant,
    ) -> Join {
        let known = mapping.flows().towards(tuple.dst.addr).map(|entry| entry.reply.dst);
        let local = known.unwrap_or_else(|| self.local_towards(mapping, tuple.dst.into()));
        let mut flows = mapping.flows();
        if flows.closed() {
            return Join::Closing;
        }
        if flows.len() >= MAX_FLOWS_PER_MAPPING {
            return Join::Refused;
        }
        let answer_from = match tuple.protocol {
            Protocol::Udp => tuple.dst,
            _ => TransportAddr::new(tuple.dst.addr, local.port),
        };
        let reply = Tuple::new(tuple.protocol, answer_from, local);
        let entry =
            Entry::new(mapping.zone(), Direction::Original, tuple, reply, mapping.key.into(), now);
        let account = account(mapping.zone(), mapping.port());
        let Ok(entry) = conntrack.insert(account, entry) else { return Join::Refused };
        flows.add(Arc::clone(&entry));
        Join::Entered(entry)
    }

    /// The address the host sends from towards `to`: what a connected socket would say. Only listings show
    /// it, so that it may be older than the host's routes.
    fn local_towards(&mut self, mapping: &Mapping, to: SocketAddr) -> TransportAddr {
        let unspecified = socket::unspecified(to.ip());
        let probe = &mut self.probes[usize::from(to.is_ipv6())];
        if probe.is_none() {
            *probe = socket::udp(unspecified).ok();
        }
        let to = SocketAddr::new(to.ip(), to.port().max(1));
        let known = probe.as_ref().and_then(|probe| source_towards(probe, to).ok());
        TransportAddr::new(known.unwrap_or(unspecified), mapping.outside_port)
    }

    /// A mapping's socket has datagrams or errors.
    pub(crate) fn ready(&mut self, key: Key, readiness: Readiness, ctx: &mut Context<'_>) {
        let Some(mapping) = self.arena(key.kind()).get(key).map(Arc::clone) else { return };
        if readiness.hung_up {
            Self::take_errors(&mapping, ctx);
        }
        self.inlet.begin();
        let mut taken = 0;
        while taken < SHARE && ctx.out.built_octets() < datapath::outbox::ARENA_TARGET {
            match self.inlet.receive(&mapping.outlet.fd) {
                Ok(datagram) => {
                    taken += datagram.count();
                    self.hand_on(&mapping, &datagram, ctx);
                }
                Err(Errno::EAGAIN) => return,
                Err(errno) => {
                    taken += 1;
                    if errno != Errno::EINTR {
                        Self::take_errors(&mapping, ctx);
                    }
                }
            }
        }
        if let Some(datagram) = self.inlet.take_ahead() {
            self.hand_on(&mapping, &datagram, ctx);
        }
        if !mapping.outlet.queued.swap(true, Relaxed) {
            self.backlog.push_back((mapping.zone(), key));
        }
    }

    fn hand_on(&self, mapping: &Mapping, datagram: &Datagram, ctx: &mut Context<'_>) {
        let payload = self.inlet.payload(datagram);
        if let Err(reason) = self.inbound(mapping, datagram, payload, ctx) {
            let dropped = 0..datagram.count();
            dropped.for_each(|_| ctx.dp.gateway_counters().not_sent(reason));
        }
    }

    /// A datagram from outside, or a train of them.
    fn inbound(
        &self,
        mapping: &Mapping,
        datagram: &Datagram,
        payload: &[u8],
        ctx: &mut Context<'_>,
    ) -> Result<(), DropReason> {
        let from = match mapping.protocol {
            Protocol::Udp => datagram.from.into(),
            _ => TransportAddr::new(datagram.from.ip(), mapping.inside.port),
        };
        if !self.admit(mapping, from, datagram, ctx) {
            return Err(DropReason::Filtered);
        }
        let inside = mapping.inside;
        let header = datagram.header(from.addr, inside.addr, mapping.protocol.number());
        match mapping.protocol {
            Protocol::Udp => {
                let ports = (from.port, inside.port);
                deliver::udp(&header, ports, (payload, datagram.size), ctx);
                Ok(())
            }
            _ => deliver::echo(&header, inside.port, payload, ctx),
        }
    }

    /// Whether that far side may send to the container (RFC 4787 REQ-8): the network's filtering says, but
    /// whom the container has sent to itself may. Such a flow takes note of its answer, which does not keep
    /// the mapping alive (REQ-6).
    fn admit(
        &self,
        mapping: &Mapping,
        from: TransportAddr,
        datagram: &Datagram,
        ctx: &Context<'_>,
    ) -> bool {
        let conntrack = &ctx.dp.network().conntrack;
        let original = Tuple::new(mapping.protocol, mapping.inside, from);
        if let Some(entry) = conntrack.entry(mapping.zone(), original) {
            let (count, octets) = (datagram.count() as u64, datagram.ip_octets() as u64);
            entry.count(Direction::Reply, count, octets);
            return true;
        }
        match self.shared.policy(mapping.zone()).filtering {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => mapping.flows().towards(from.addr).is_some(),
            Filtering::AddressAndPortDependent => false,
        }
    }

    /// Tells the container what the error queue has.
    fn take_errors(mapping: &Mapping, ctx: &mut Context<'_>) {
        // What our own kernel would not send, whoever wanted to send it was told at once.
        for error in errors::read(&mapping.outlet.fd).filter(|error| !error.is_refusal()) {
            let (Some(dst), Some(what)) = (error.dst, error.as_icmp_for(mapping.protocol)) else {
                continue;
            };
            let (src, dst) = (mapping.inside, TransportAddr::from(dst));
            let quoted = match mapping.protocol {
                Protocol::Udp => Quoted::datagram(src, dst, &error.payload),
                protocol => Quoted::echo(protocol, src, dst, &error.payload),
            };
            let quoted = quoted.like(&mapping.outlet.last, dst, error.is_padded());
            error.tell((mapping.inside.addr, error.offender), what, quoted.packet(), ctx);
        }
    }

    /// Forgets silent flows, and mappings without any. Returns how many mappings are left.
    pub(crate) fn sweep(&mut self, conntrack: &Conntrack, now: Instant) -> usize {
        let idle = self.all(|mapping| {
            let timeouts = self.shared.policy(mapping.zone()).timeouts;
            let mut flows = mapping.flows();
            flows.keep(|entry| {
                let alive = entry.is_tracked() && !entry.is_over(&timeouts, now);
                if !alive {
                    conntrack.remove(entry);
                }
                alive
            });
            flows.closed()
        });
        idle.into_iter().for_each(|key| self.close(key, conntrack));
        self.len()
    }

    /// Ends the mappings of a port, or of a whole network.
    pub(crate) fn end(&mut self, zone: Zone, port: Option<PortId>, conntrack: &Conntrack) {
        let over = self.all(|mapping| {
            mapping.zone() == zone && port.is_none_or(|port| mapping.port() == port)
        });
        over.into_iter().for_each(|key| self.close(key, conntrack));
    }

    /// Gives up the mapping that holds a UDP port of the host, for somebody with a better claim to it;
    /// the container's next datagram makes another.
    pub(crate) fn give_up_port(&mut self, v4: bool, port: u16, conntrack: &Conntrack) {
        let holders = self
            .udp
            .keys(|mapping| mapping.outside_port == port && mapping.inside.addr.is_ipv4() == v4);
        holders.into_iter().for_each(|key| self.close(key, conntrack));
    }

    fn all(&self, mut which: impl FnMut(&Mapping) -> bool) -> Vec<Key> {
        let mut keys = self.udp.keys(|mapping| which(mapping));
        keys.extend(self.echo.keys(|mapping| which(mapping)));
        keys
    }

    fn close(&mut self, key: Key, conntrack: &Conntrack) {
        let Some(mapping) = self.arena(key.kind()).remove(key) else { return };
        let mut flows = mapping.flows();
        flows.keep(|entry| {
            conntrack.remove(entry);
            false
        });
        drop(flows);
        self.forget(&mapping);
        // Others may hold the socket a moment longer; it must not wake us any more.
        let _ = self.registry.deregister(&mut SourceFd(&mapping.outlet.raw_fd()));
    }

    /// Sees to it that nobody finds this mapping any more.
    fn forget(&self, mapping: &Arc<Mapping>) {
        let name = (mapping.zone(), mapping.protocol, mapping.inside);
        self.shared.mappings.remove_if(&name, |_, held| Arc::ptr_eq(held, mapping));
    }
}

/// What came of a new far side.
enum Join {
    Entered(Arc<Entry>),
    /// The mapping is about to close.
    Closing,
    /// There is no room.
    Refused,
}

/// Tells a container of a datagram of its own the host would not send: which of a train's, and its payload.
pub(crate) fn tell_failed<V>(
    errno: Errno,
    (head, (nth, payload)): (&Head<V>, (usize, &[u8])),
    to: SocketAddr,
    ctx: &mut Context<'_>,
) {
    if let Some(what) = outlet::as_icmp(errno, to, ctx.dp.config().mtu.0) {
        let (src, dst) = (head.tuple.src, head.tuple.dst);
        let quoted = Quoted {
            hop_limit: head.hop_limit + 1,
            seen: head.seen(nth),
            ..Quoted::datagram(src, dst, payload)
        };
        ctx.dp.tell_about(src.addr, None, what, &quoted.packet(), ctx.now, ctx.out);
    }
}
