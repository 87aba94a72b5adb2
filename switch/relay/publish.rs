//! Published ports: the host listens, the container is reached, and sees the client's own address.
//!
//! A TCP listener accepts and hands the connection to `tcp/open.rs`; a UDP socket injects each datagram as
//! from its client and answers from the very address the client used (`IP_PKTINFO`, ip(7)).

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use datapath::emit::IpHeader;
use datapath::{DropReason, Gso, Packet, PortId, Received};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nat::{Conntrack, Direction, Entry, InsertError, Protocol, TransportAddr, Tuple, Zone};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use smoltcp::time::Instant;

use crate::context::Context;
use crate::deliver::{self, Datagram};
use crate::key::{Arena, Key, Kind, account};
use crate::published::{Publication, Published, Socket, TcpPublished, UdpPublished};
use crate::shared::Shared;
use crate::socket;
use crate::tcp::{Client, Tcp};

/// Connections or datagrams taken from one socket before others get their turn.
const SHARE: usize = 64;

/// Clients one published UDP port may have at a time.
const MAX_CLIENTS: usize = 8192;

/// What the spare descriptor is of: anything that opens.
const SPARE: &str = "/dev/null";

/// Source ports tried when the container already has a flow from the client's own.
const PORT_ATTEMPTS: u16 = 64;

/// The published ports one worker listens for.
#[derive(Debug)]
pub(crate) struct Publisher {
    tcp: Arena<TcpPublished>,
    udp: Arena<Arc<UdpPublished>>,
    shared: Arc<Shared>,
    registry: Registry,
    backlog: VecDeque<(Zone, Key)>,
    buffer: Box<[u8]>,
    /// A descriptor kept for the day when there is no other.
    spare: Option<File>,
}

impl Publisher {
    pub(crate) fn new(worker: u8, shared: Arc<Shared>, registry: Registry) -> Self {
        Self {
            tcp: Arena::new(worker, Kind::TcpListener),
            udp: Arena::new(worker, Kind::UdpListener),
            shared,
            registry,
            backlog: VecDeque::new(),
            buffer: vec![0; 65_535].into_boxed_slice(),
            spare: File::open(SPARE).ok(),
        }
    }

    pub(crate) fn publish(&mut self, published: Published) -> io::Result<Key> {
        let Published { publication, socket } = published;
        match socket {
            Socket::Tcp(listener) => {
                let raw = listener.as_raw_fd();
                let token = Token::from(self.tcp.next_key());
                self.registry.register(&mut SourceFd(&raw), token, Interest::READABLE)?;
                Ok(self.tcp.insert(TcpPublished { publication, listener }))
            }
            Socket::Udp(fd) => {
                let token = Token::from(self.udp.next_key());
                self.registry.register(
                    &mut SourceFd(&fd.as_raw_fd()),
                    token,
                    Interest::READABLE,
                )?;
                let published = Arc::new(UdpPublished::new(publication, fd));
                let key = self.udp.insert(Arc::clone(&published));
                self.shared.udp_published.insert(key, published);
                Ok(key)
            }
        }
    }

    pub(crate) fn unpublish(&mut self, key: Key, conntrack: &Conntrack) {
        if let Some(published) = self.tcp.remove(key) {
            let _ = self.registry.deregister(&mut SourceFd(&published.listener.as_raw_fd()));
        }
        if let Some(published) = self.udp.remove(key) {
            self.shared.udp_published.remove(&key);
            published.clients().drain(..).for_each(|entry| conntrack.remove(&entry));
            // Others may hold the socket a moment longer; it must not wake us any more.
            let _ = self.registry.deregister(&mut SourceFd(&published.fd.as_raw_fd()));
        }
    }

    pub(crate) fn end(&mut self, zone: Zone, port: Option<PortId>, conntrack: &Conntrack) {
        let of = |publication: &Publication| {
            publication.zone == zone && port.is_none_or(|port| publication.port == port)
        };
        let mut over = self.tcp.keys(|published| of(&published.publication));
        over.extend(self.udp.keys(|published| of(&published.publication)));
        over.into_iter().for_each(|key| self.unpublish(key, conntrack));
    }

    pub(crate) fn zone_of(&self, key: Key) -> Option<Zone> {
        match key.kind()? {
            Kind::TcpListener => self.tcp.get(key).map(|published| published.publication.zone),
            _ => self.udp.get(key).map(|published| published.publication.zone),
        }
    }

    pub(crate) fn queued(&self) -> usize {
        self.backlog.len()
    }

    pub(crate) fn next_queued(&mut self) -> Option<(Zone, Key)> {
        self.backlog.pop_front()
    }

    /// Takes waiting connections.
    pub(crate) fn accept(&mut self, key: Key, tcp: &mut Tcp, ctx: &mut Context<'_>) {
        let Some(published) = self.tcp.get(key) else { return };
        for _ in 0..SHARE {
            let (stream, peer) = match published.listener.accept() {
                Ok(accepted) => accepted,
                // A connection that died while it waited (accept(2)) is no reason to stop.
                Err(error) if is_passing(&error) => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    ctx.dp.gateway_counters().not_sent(DropReason::NoSocket);
                    if !turn_away(&mut self.spare, &published.listener) {
                        return;
                    }
                    continue;
                }
            };
            let reason = stream
                .set_nonblocking(true)
                .and_then(|()| socket::prepare_stream(&stream))
                .and_then(|()| stream.local_addr())
                .ok()
                .zip(published.publication.inside_for(peer.ip()))
                .ok_or(DropReason::NoSocket)
                .and_then(|(local, inside)| {
                    let Publication { zone, port, .. } = published.publication;
                    tcp.accept(Client { zone, port, inside, stream, peer, local }, ctx)
                });
            if let Err(reason) = reason {
                ctx.dp.gateway_counters().not_sent(reason);
            }
        }
        self.backlog.push_back((published.publication.zone, key));
    }

    /// Takes waiting datagrams.
    pub(crate) fn inbound(&mut self, key: Key, ctx: &mut Context<'_>) {
        let Some(published) = self.udp.get(key).map(Arc::clone) else { return };
        for _ in 0..SHARE {
            match deliver::receive(&published.fd, &mut self.buffer) {
                Ok(datagram) => {
                    let payload = &self.buffer[..datagram.len];
                    if let Err(reason) = inject(key, &published, &datagram, payload, ctx) {
                        ctx.dp.gateway_counters().not_sent(reason);
                    }
                }
                Err(Errno::EAGAIN) => return,
                Err(_) => {}
            }
            if ctx.out.built_octets() >= datapath::outbox::ARENA_TARGET {
                break;
            }
        }
        self.backlog.push_back((published.publication.zone, key));
    }

    /// The container answers a client.
    pub(crate) fn answer(
        &self,
        key: Key,
        received: &Received<'_>,
        packet: &Packet,
        tuple: Tuple,
        ctx: &Context<'_>,
    ) -> Result<(), DropReason> {
        let published = self.shared.udp_published.get(&key).ok_or(DropReason::NoFlow)?;
        let published = Arc::clone(&published);
        let entry =
            ctx.dp.network().conntrack.entry(ctx.zone(), tuple).ok_or(DropReason::NoFlow)?;
        entry.note(Direction::Reply, 1, packet.ip_len() as u64, ctx.now);
        let octets = packet.transport(received.frame);
        let (payload, size) = match received.offload.gso {
            Gso::Udp { size } => (&octets[8..], Some(size)),
            _ => {
                let len = usize::from(u16::from_be_bytes([octets[4], octets[5]]));
                (&octets[8..len], None)
            }
        };
        send_from(&published.fd, entry.original.dst.addr, entry.original.src.into(), payload, size)
            .map_err(|_| DropReason::HostSendFailed)
    }

    /// Forgets silent clients. Returns how many published UDP ports have any left.
    pub(crate) fn sweep(&self, conntrack: &Conntrack, now: Instant) -> usize {
        let timeouts = conntrack.timeouts();
        let with_clients = self.udp.keys(|published| {
            let mut clients = published.clients();
            clients.retain(|entry| {
                let alive = entry.expires_at(timeouts) > now;
                if !alive {
                    conntrack.remove(entry);
                }
                alive
            });
            !clients.is_empty()
        });
        with_clients.len()
    }
}

/// Without a descriptor left, a client would wait for nothing: the spare one is given up to take its
/// connection and reset it. Says whether that worked.
fn turn_away(spare: &mut Option<File>, listener: &TcpListener) -> bool {
    *spare = None;
    let turned_away = listener.accept().map(|(stream, _)| socket::abort_on_close(&stream)).is_ok();
    *spare = File::open(SPARE).ok();
    turned_away
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted)
}

/// Gives a client's datagram to the container.
fn inject(
    key: Key,
    published: &UdpPublished,
    datagram: &Datagram,
    payload: &[u8],
    ctx: &mut Context<'_>,
) -> Result<(), DropReason> {
    let client = TransportAddr::from(datagram.from);
    let used = datagram.to.unwrap_or(published.publication.listen.ip());
    let original = Tuple::new(
        Protocol::Udp,
        client,
        TransportAddr::new(used, published.publication.listen.port()),
    );
    let conntrack = Arc::clone(&ctx.dp.network().conntrack);
    let entry = match conntrack.entry(ctx.zone(), original) {
        Some(entry) => entry,
        None => admit(key, published, original, &conntrack, ctx)?,
    };
    entry.note(Direction::Original, 1, (payload.len() + 28) as u64, ctx.now);
    let (inside, outside) = (entry.reply.src, entry.reply.dst);
    let header = IpHeader {
        hop_limit: datagram.hop_limit.saturating_sub(1).max(1),
        identification: Some(ctx.dp.network().next_identification()),
        ..IpHeader::new(outside.addr, inside.addr, Protocol::Udp.number())
    };
    deliver::udp(&header, outside.port, inside.port, payload, ctx);
    Ok(())
}

/// Enters a new client in conntrack, under its own address and port if the container has no flow from
/// there yet.
fn admit(
    key: Key,
    published: &UdpPublished,
    original: Tuple,
    conntrack: &Conntrack,
    ctx: &Context<'_>,
) -> Result<Arc<Entry>, DropReason> {
    let client = original.src;
    let inside = published.publication.inside_for(client.addr).ok_or(DropReason::NoRoute)?;
    let outside =
        ctx.as_seen_inside(client, original.dst.addr, inside.addr).ok_or(DropReason::NoRoute)?;
    let account = account(ctx.zone(), published.publication.port);
    let mut clients = published.clients();
    if clients.len() >= MAX_CLIENTS {
        return Err(DropReason::FlowLimit);
    }
    for attempt in 0..PORT_ATTEMPTS {
        // Beside the client's own port, those that follow it are as good as any.
        let port = match attempt {
            0 => outside.port,
            _ => 49_152 + outside.port.wrapping_add(attempt) % 16_384,
        };
        let reply = Tuple::new(Protocol::Udp, inside, TransportAddr::new(outside.addr, port));
        let entry = Entry::new(ctx.zone(), Direction::Reply, original, reply, key.into(), ctx.now);
        match conntrack.insert(account, entry) {
            Ok(entry) => {
                clients.push(Arc::clone(&entry));
                return Ok(entry);
            }
            Err(InsertError::Clash) => {}
            Err(InsertError::Full | InsertError::Quota) => break,
        }
    }
    Err(DropReason::FlowLimit)
}

/// Sends a datagram from a given one of the host's addresses.
fn send_from(
    fd: &OwnedFd,
    from: IpAddr,
    to: SocketAddr,
    payload: &[u8],
    segment: Option<u16>,
) -> Result<(), Errno> {
    let slices = [IoSlice::new(payload)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let to = SockaddrStorage::from(to);
    let (v4, v6);
    let source = match from {
        IpAddr::V4(from) => {
            v4 = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(from.octets()) },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            ControlMessage::Ipv4PacketInfo(&v4)
        }
        IpAddr::V6(from) => {
            v6 = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: from.octets() },
                ipi6_ifindex: 0,
            };
            ControlMessage::Ipv6PacketInfo(&v6)
        }
    };
    match &segment {
        Some(size) => {
            let control = [source, ControlMessage::UdpGsoSegments(size)];
            sendmsg(fd.as_raw_fd(), &slices, &control, flags, Some(&to))?
        }
        None => sendmsg(fd.as_raw_fd(), &slices, &[source], flags, Some(&to))?,
    };
    Ok(())
}
