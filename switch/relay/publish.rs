//! Published ports: the host listens, the container is reached, and sees the client's own address.
//!
//! A TCP listener accepts and hands the connection to `tcp/open.rs`; a UDP socket injects each datagram as
//! from its client and answers from the very address the client used (`IP_PKTINFO`, ip(7)).

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use datapath::{DropReason, Packet, PortId, Received};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nat::{Conntrack, Direction, Entry, InsertError, Protocol, TransportAddr, Tuple, Zone};
use nix::errno::Errno;
use smoltcp::time::Instant;

use crate::context::{Context, Readiness};
use crate::datagram::tell_failed;
use crate::deliver::{self, Datagram, Inlet};
use crate::errors;
use crate::key::{Arena, Key, Kind, account};
use crate::outlet::Trouble;
use crate::published::{Publication, Published, Socket, TcpPublished, UdpPublished};
use crate::quote::Quoted;
use crate::shared::Shared;
use crate::socket;
use crate::splice::Splices;
use crate::tcp::{Client, Tcp};
use crate::train::{Load, Train};

/// Connections or datagrams taken from one socket before others get their turn.
const SHARE: usize = 128;

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
    inlet: Inlet,
    train: Train<(Arc<UdpPublished>, Arc<Entry>)>,
    /// A descriptor kept for the day when there is no other.
    spare: Option<File>,
    /// Listeners with clients that could not even be turned away: nothing else will announce them.
    stranded: Vec<Key>,
}

impl Publisher {
    pub(crate) fn new(worker: u8, shared: Arc<Shared>, registry: Registry) -> Self {
        Self {
            tcp: Arena::new(worker, Kind::TcpListener),
            udp: Arena::new(worker, Kind::UdpListener),
            shared,
            registry,
            backlog: VecDeque::new(),
            inlet: Inlet::default(),
            train: Train::default(),
            spare: File::open(SPARE).ok(),
            stranded: Vec::new(),
        }
    }

    pub(crate) fn publish(&mut self, published: Published) -> io::Result<Key> {
        let Published { publication, socket } = published;
        match socket {
            Socket::Tcp(listener) => {
                let raw = listener.as_raw_fd();
                let token = Token::from(self.tcp.next_key());
                self.registry.register(&mut SourceFd(&raw), token, Interest::READABLE)?;
                Ok(self.tcp.insert(TcpPublished { publication, listener, queued: false }))
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
            published.clients().keep(|entry| {
                conntrack.remove(entry);
                false
            });
            // Others may hold the socket a moment longer; it must not wake us any more.
            let _ = self.registry.deregister(&mut SourceFd(&published.outlet.raw_fd()));
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
        let (zone, key) = self.backlog.pop_front()?;
        if let Some(published) = self.tcp.get_mut(key) {
            published.queued = false;
        }
        if let Some(published) = self.udp.get(key) {
            published.outlet.queued.store(false, Relaxed);
        }
        Some((zone, key))
    }

    /// Takes waiting connections.
    pub(crate) fn accept(
        &mut self,
        key: Key,
        tcp: &mut Tcp,
        splices: &mut Splices,
        ctx: &mut Context<'_>,
    ) {
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
                        self.stranded.push(key);
                        return;
                    }
                    continue;
                }
            };
            let reason = stream
                .set_nonblocking(true)
                .and_then(|()| stream.local_addr())
                .ok()
                .zip(published.publication.inside_for(peer.ip()))
                .ok_or(DropReason::NoSocket)
                .and_then(|(local, inside)| {
                    let Publication { zone, port, splice, .. } = &published.publication;
                    let (zone, port) = (*zone, *port);
                    let client = Client { zone, port, inside, stream, peer, local };
                    match splices.accept(splice.as_ref(), client, ctx) {
                        Some(client) => tcp.accept(client, ctx),
                        None => Ok(()),
                    }
                });
            if let Err(reason) = reason {
                ctx.dp.gateway_counters().not_sent(reason);
            }
        }
        self.enqueue(key);
    }

    /// Puts a listener in line, once.
    fn enqueue(&mut self, key: Key) {
        if let Some(published) = self.tcp.get_mut(key)
            && !std::mem::replace(&mut published.queued, true)
        {
            self.backlog.push_back((published.publication.zone, key));
        }
    }

    /// Whether clients wait for nothing but a [`sweep`](Self::sweep).
    pub(crate) fn is_stranded(&self) -> bool {
        !self.stranded.is_empty()
    }

    /// Takes waiting datagrams.
    pub(crate) fn inbound(&mut self, key: Key, readiness: Readiness, ctx: &mut Context<'_>) {
        let Some(published) = self.udp.get(key).map(Arc::clone) else { return };
        if readiness.hung_up {
            take_errors(&published, ctx);
        }
        self.inlet.begin();
        let mut taken = 0;
        while taken < SHARE && ctx.out.built_octets() < datapath::outbox::ARENA_TARGET {
            match self.inlet.receive(&published.outlet.fd) {
                Ok(datagram) => {
                    taken += datagram.count();
                    self.hand_on(key, &published, &datagram, ctx);
                }
                Err(Errno::EAGAIN) => return,
                Err(_) => {
                    taken += 1;
                    take_errors(&published, ctx);
                }
            }
        }
        if let Some(datagram) = self.inlet.take_ahead() {
            self.hand_on(key, &published, &datagram, ctx);
        }
        if !published.outlet.queued.swap(true, Relaxed) {
            self.backlog.push_back((published.publication.zone, key));
        }
    }

    fn hand_on(
        &self,
        key: Key,
        published: &UdpPublished,
        datagram: &Datagram,
        ctx: &mut Context<'_>,
    ) {
        let payload = self.inlet.payload(datagram);
        if let Err(reason) = inject(key, published, datagram, payload, ctx) {
            let dropped = 0..datagram.count();
            dropped.for_each(|_| ctx.dp.gateway_counters().not_sent(reason));
        }
    }

    /// The container answers a client.
    pub(crate) fn answer(
        &mut self,
        key: Key,
        received: &Received<'_>,
        packet: &Packet,
        tuple: Tuple,
        ctx: &mut Context<'_>,
    ) -> Result<(), DropReason> {
        let load = Load::of(packet, received.frame, received.offload);
        if self.train.join(tuple, packet, load) {
            return Ok(());
        }
        self.send_train(ctx);
        let published = self.shared.udp_published.get(&key).map(|held| Arc::clone(&held));
        let published = published.ok_or(DropReason::NoFlow)?;
        let entry =
            ctx.dp.network().conntrack.entry(ctx.zone(), tuple).ok_or(DropReason::NoFlow)?;
        self.train.begin((published, entry), tuple, packet, load);
        Ok(())
    }

    /// Sends on the answers that wait for more of their kind.
    pub(crate) fn send_train(&mut self, ctx: &mut Context<'_>) {
        let Some((head, payload)) = self.train.take() else { return };
        let (published, entry) = &head.via;
        entry.note(Direction::Reply, head.datagrams as u64, head.ip_octets as u64, ctx.now);
        let scope = published.scope_of(entry.original);
        let mut to = SocketAddr::from(entry.original.src);
        if let SocketAddr::V6(to) = &mut to {
            to.set_scope_id(scope);
        }
        let source = Some((entry.original.dst.addr, scope));
        published.outlet.send_train(to, (&head, payload), source, |trouble| match trouble {
            Trouble::Earlier => take_errors(published, ctx),
            Trouble::Failed(errno, datagram) => {
                ctx.dp.gateway_counters().not_sent(DropReason::HostSendFailed);
                tell_failed(errno, (&head, datagram), to, ctx);
            }
        });
    }

    /// Forgets silent clients, and lets listeners try again that had no descriptor for a client. Returns
    /// how many published ports have reason to be looked at again.
    pub(crate) fn sweep(&mut self, conntrack: &Conntrack, now: Instant) -> usize {
        if self.spare.is_none() {
            self.spare = File::open(SPARE).ok();
        }
        for key in std::mem::take(&mut self.stranded) {
            self.enqueue(key);
        }
        let shared = &self.shared;
        let with_clients = self.udp.keys(|published| {
            let timeouts = shared.policy(published.publication.zone).timeouts;
            published.clients().keep(|entry| {
                let alive = entry.is_tracked() && !entry.is_over(&timeouts, now);
                if !alive {
                    conntrack.remove(entry);
                }
                alive
            })
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

/// Tells the container what became of its answers (RFC 5508 REQ-4). A message about a client it has none
/// for any more is nobody's.
fn take_errors(published: &UdpPublished, ctx: &mut Context<'_>) {
    let listen = published.publication.listen;
    for error in errors::read(&published.outlet.fd).filter(|error| !error.is_refusal()) {
        let (Some(client), Some(what)) = (error.dst, error.as_icmp_for(Protocol::Udp)) else {
            continue;
        };
        let used = TransportAddr::new(error.local.unwrap_or(listen.ip()), listen.port());
        let original = Tuple::new(Protocol::Udp, client.into(), used);
        let Some(entry) = ctx.dp.network().conntrack.entry(ctx.zone(), original) else { continue };
        let (inside, outside) = (entry.reply.src, entry.reply.dst);
        // Whom the container knows by another address speaks by that.
        let offender = error.offender.map(|offender| match offender == client.ip() {
            true => outside.addr,
            false => offender,
        });
        let quoted = Quoted::datagram(inside, outside, &error.payload);
        let quoted = quoted.like(&published.outlet.last, client.into(), error.is_padded());
        error.tell((inside.addr, offender), what, quoted.packet(), ctx);
    }
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
    let (used, ifindex) = datagram.used.unwrap_or((published.publication.listen.ip(), 0));
    let original = Tuple::new(
        Protocol::Udp,
        client,
        TransportAddr::new(used, published.publication.listen.port()),
    );
    let conntrack = Arc::clone(&ctx.dp.network().conntrack);
    let entry = match conntrack.entry(ctx.zone(), original) {
        Some(entry) => entry,
        None => admit(key, published, (original, ifindex), &conntrack, ctx)?,
    };
    let (count, octets) = (datagram.count() as u64, datagram.ip_octets() as u64);
    entry.note(Direction::Original, count, octets, ctx.now);
    let (inside, outside) = (entry.reply.src, entry.reply.dst);
    let header = datagram.header(outside.addr, inside.addr, Protocol::Udp.number());
    deliver::udp(&header, (outside.port, inside.port), (payload, datagram.size), ctx);
    Ok(())
}

/// Enters a new client in conntrack, under its own address and port if the container has no flow from
/// there yet.
fn admit(
    key: Key,
    published: &UdpPublished,
    (original, ifindex): (Tuple, u32),
    conntrack: &Conntrack,
    ctx: &Context<'_>,
) -> Result<Arc<Entry>, DropReason> {
    let client = original.src;
    let inside = published.publication.inside_for(client.addr).ok_or(DropReason::NoRoute)?;
    let outside =
        ctx.as_seen_inside(client, original.dst.addr, inside.addr).ok_or(DropReason::NoRoute)?;
    let account = account(ctx.zone(), published.publication.port);
    let mut clients = published.clients();
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
                clients.add(Arc::clone(&entry), ifindex);
                return Ok(entry);
            }
            Err(InsertError::Clash) => {}
            Err(InsertError::Full | InsertError::Quota) => break,
        }
    }
    Err(DropReason::FlowLimit)
}
