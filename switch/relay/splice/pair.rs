//! Spliced connections: a client's socket and one inside the container's namespace.
//!
//! ```text
//!   client ══▶ end CLIENT ── ways[CLIENT] ──▶ end INSIDE ══▶ container
//!          ◀══            ◀── ways[INSIDE] ──            ◀══
//! ```
//!
//! Sockets are polled edge-triggered, so every readiness is remembered in the ways until a call says
//! otherwise. Each end has a key of its own kind, both with the same place in one arena.

use std::collections::VecDeque;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use datapath::{DropReason, PortId};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nat::{Direction, Entry, Protocol, TcpState, TransportAddr, Tuple, Zone};
use nix::errno::Errno;
use nix::sys::socket::{SockaddrStorage, connect};
use smoltcp::time::{Duration, Instant};

use super::pipe::Pipes;
use super::stock::Splice;
use super::way::{COPY, Tools, Turn, Way};
use crate::context::{Context, Readiness};
use crate::key::{Arena, Key, Kind, account};
use crate::limits::{Lease, Limits};
use crate::socket;
use crate::tcp::Client;
use crate::timers::Timers;

/// How long the container may take to answer. Its kernel does so within the call, unless it drops the
/// SYN: a listener is overrun, or `lo` is down.
const PATIENCE: Duration = Duration::from_millis(250);

/// The ends of a connection, and the ways that begin there.
const CLIENT: usize = 0;
const INSIDE: usize = 1;

/// A spliced connection.
#[derive(Debug)]
struct Pair {
    entry: Arc<Entry>,
    ends: [TcpStream; 2],
    ways: [Way; 2],
    /// The container has answered; before that, the client's socket is not polled.
    open: bool,
    queued: bool,
    lease: Lease,
}

/// All spliced connections of one worker.
#[derive(Debug)]
pub(crate) struct Splices {
    pairs: Arena<Pair>,
    pipes: Pipes,
    /// Made for the first connection.
    buffer: Box<[u8]>,
    timers: Timers,
    backlog: VecDeque<(Zone, Key)>,
    limits: Arc<Limits>,
    registry: Registry,
    /// Connections opened so far, and octets moved.
    counts: (u64, u64),
}

impl Splices {
    pub(crate) fn new(worker: u8, limits: Arc<Limits>, registry: Registry) -> Self {
        Self {
            pairs: Arena::new(worker, Kind::SpliceInside),
            pipes: Pipes::default(),
            buffer: Box::default(),
            timers: Timers::default(),
            backlog: VecDeque::new(),
            limits,
            registry,
            counts: (0, 0),
        }
    }

    /// Takes a client, if it is to be spliced and can be; else gives it back, for the bridge.
    pub(crate) fn accept(
        &mut self,
        splice: Option<&Splice>,
        client: Client,
        ctx: &mut Context<'_>,
    ) -> Option<Client> {
        let wanted = splice.filter(|splice| splice.everybody || client.peer.ip().is_loopback());
        let Some(splice) = wanted else { return Some(client) };
        let Some(inside) = splice.stock.take(client.inside.addr.is_ipv4()) else {
            return Some(client);
        };
        match self.open(client, inside, ctx) {
            Ok(key) => self.connected(key, ctx),
            Err(client) => Some(client),
        }
    }

    /// Begins to connect to the container.
    fn open(&mut self, client: Client, inside: OwnedFd, ctx: &Context<'_>) -> Result<Key, Client> {
        let Some(lease) = self.limits.lease(client.zone, client.port) else { return Err(client) };
        let inside = TcpStream::from(inside);
        let to = SockaddrStorage::from(std::net::SocketAddr::from(client.inside));
        let begun = socket::prepare_stream(&inside).is_ok()
            && matches!(connect(inside.as_raw_fd(), &to), Ok(()) | Err(Errno::EINPROGRESS));
        let Some(own) = inside.local_addr().ok().filter(|_| begun) else { return Err(client) };
        let key = self.pairs.next_key();
        let original = Tuple::new(Protocol::Tcp, client.peer.into(), client.local.into());
        let reply = Tuple::new(Protocol::Tcp, client.inside, TransportAddr::from(own));
        let entry = Entry::new(client.zone, Direction::Reply, original, reply, key.into(), ctx.now);
        let conntrack = &ctx.dp.network().conntrack;
        let Ok(entry) = conntrack.insert(account(client.zone, client.port), entry) else {
            return Err(client);
        };
        entry.set_state(TcpState::SynSent);
        if self.poll(&inside, key).is_err() {
            conntrack.remove(&entry);
            return Err(client);
        }
        let entered = self.pairs.insert(Pair {
            entry,
            ends: [client.stream, inside],
            ways: [Way::new(), Way::new()],
            open: false,
            queued: false,
            lease,
        });
        debug_assert_eq!(entered, key, "the key given before is the key got");
        Ok(key)
    }

    fn poll(&self, end: &TcpStream, key: Key) -> std::io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
        self.registry.register(&mut SourceFd(&end.as_raw_fd()), Token::from(key), interest)
    }

    /// Looks how the attempt to connect has ended, if it has. Gives back a client that the container
    /// cannot be reached for in this way.
    fn connected(&mut self, key: Key, ctx: &mut Context<'_>) -> Option<Client> {
        let pair = self.pairs.get_mut(key)?;
        match pair.ends[INSIDE].take_error() {
            Ok(None) if pair.ends[INSIDE].peer_addr().is_ok() => {}
            Ok(None) => {
                self.timers.arm(key, ctx.now + PATIENCE);
                return None;
            }
            Ok(Some(error)) if is_refusal(&error) => {
                // It would refuse a SYN on the bridge as well, to the same address and port.
                self.abort(key, ctx);
                return None;
            }
            Ok(Some(_)) | Err(_) => return self.give_back(key, ctx),
        }
        pair.open = true;
        pair.entry.set_state(TcpState::Established);
        pair.entry.note(Direction::Reply, 0, 0, ctx.now);
        let client_key = key.of_kind(Kind::SpliceClient);
        let pair = self.pairs.get(key)?;
        if self.poll(&pair.ends[CLIENT], client_key).is_err() {
            ctx.dp.gateway_counters().not_sent(DropReason::NoSocket);
            self.abort(key, ctx);
            return None;
        }
        if self.buffer.is_empty() {
            self.buffer = vec![0; COPY].into_boxed_slice();
        }
        self.counts.0 += 1;
        // Either may have spoken already; what poll reports from here on may come later.
        self.pump(key, ctx);
        None
    }

    /// An end is ready for something. Gives back a client to be relayed over the bridge.
    pub(crate) fn ready(
        &mut self,
        key: Key,
        readiness: Readiness,
        ctx: &mut Context<'_>,
    ) -> Option<Client> {
        let end = if key.kind() == Some(Kind::SpliceClient) { CLIENT } else { INSIDE };
        let key = key.of_kind(Kind::SpliceInside);
        let pair = self.pairs.get_mut(key)?;
        if !pair.open {
            return self.connected(key, ctx);
        }
        pair.ways[end].readable |= readiness.readable || readiness.hung_up;
        pair.ways[end].urgent |= readiness.urgent;
        pair.ways[1 - end].writable |= readiness.writable || readiness.hung_up;
        // Nobody reads any more from an end that has finished, so that its reset would go unnoticed.
        let reset = readiness.hung_up
            && pair.ways[end].ended
            && !matches!(pair.ends[end].take_error(), Ok(None));
        if reset {
            self.abort(key, ctx);
        } else {
            self.pump(key, ctx);
        }
        None
    }

    /// Moves what can be moved, both ways.
    fn pump(&mut self, key: Key, ctx: &mut Context<'_>) {
        let Some(Pair { ways, ends, entry, lease, queued, .. }) = self.pairs.get_mut(key) else {
            return;
        };
        let mut tools = Tools { buffer: &mut self.buffer, pipes: &mut self.pipes, lease };
        let mut carry = |ways: &mut [Way; 2], from: usize| {
            let (moved, turn) = ways[from].carry(&ends[from], &ends[1 - from], &mut tools);
            if moved > 0 {
                let way = if from == CLIENT { Direction::Original } else { Direction::Reply };
                entry.note(way, 1, moved as u64, ctx.now);
                self.counts.1 += moved as u64;
            }
            turn
        };
        let turns = [CLIENT, INSIDE].map(|from| carry(ways, from));
        // A sink that takes no more may have answered before it broke off, which poll has not said yet;
        // its answer is heard first.
        for (from, turn) in turns.iter().enumerate() {
            let back = 1 - from;
            if *turn == Turn::SinkFailed && turns[back] != Turn::SourceFailed {
                ways[back].readable = true;
                carry(ways, back);
            }
        }
        if turns.iter().any(|turn| matches!(turn, Turn::SourceFailed | Turn::SinkFailed)) {
            self.abort(key, ctx);
        } else if ways.iter().all(|way| way.closed) {
            entry.set_state(TcpState::TimeWait);
            // Dropping it closes both sockets, which have nothing left to say.
            drop(self.take(key, ctx));
        } else if turns.contains(&Turn::More) && !std::mem::replace(queued, true) {
            self.backlog.push_back((lease.zone(), key));
        }
    }

    /// Takes a connection out of every table; dropping it closes its sockets.
    fn take(&mut self, key: Key, ctx: &Context<'_>) -> Option<Pair> {
        let mut pair = self.pairs.remove(key)?;
        ctx.dp.network().conntrack.remove(&pair.entry);
        pair.ways.iter_mut().for_each(|way| way.give_back(&mut self.pipes));
        if self.pairs.len() == 0 {
            self.pipes.clear();
        }
        Some(pair)
    }

    /// Resets both sides.
    fn abort(&mut self, key: Key, ctx: &Context<'_>) {
        if let Some(pair) = self.take(key, ctx) {
            pair.entry.set_state(TcpState::Close);
            pair.ends.iter().for_each(socket::abort_on_close);
        }
    }

    /// Gives up a connection that is not open yet; the client has noticed nothing.
    fn give_back(&mut self, key: Key, ctx: &Context<'_>) -> Option<Client> {
        let pair = self.take(key, ctx)?;
        let [stream, inside] = pair.ends;
        socket::abort_on_close(&inside);
        Some(Client {
            zone: pair.lease.zone(),
            port: pair.lease.port(),
            inside: pair.entry.reply.src,
            stream,
            peer: pair.entry.original.src.into(),
            local: pair.entry.original.dst.into(),
        })
    }

    /// Ends every connection of a port (of a whole network, if `None`).
    pub(crate) fn end(&mut self, zone: Zone, port: Option<PortId>, ctx: &Context<'_>) {
        let of = |pair: &Pair| {
            pair.lease.zone() == zone && port.is_none_or(|port| pair.lease.port() == port)
        };
        for key in self.pairs.keys(of) {
            self.abort(key, ctx);
        }
    }

    pub(crate) fn zone_of(&self, key: Key) -> Option<Zone> {
        self.pairs.get(key.of_kind(Kind::SpliceInside)).map(|pair| pair.lease.zone())
    }

    pub(crate) fn queued(&self) -> usize {
        self.backlog.len()
    }

    /// Whose turn it is next, with its network.
    pub(crate) fn next_queued(&mut self) -> Option<(Zone, Key)> {
        self.backlog.pop_front()
    }

    /// Gives a connection its share.
    pub(crate) fn serve_queued(&mut self, key: Key, ctx: &mut Context<'_>) {
        if let Some(pair) = self.pairs.get_mut(key) {
            pair.queued = false;
            self.pump(key, ctx);
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.timers.poll_timeout()
    }

    /// A connection the container has not answered in time, with its network.
    pub(crate) fn next_due(&mut self, now: Instant) -> Option<(Zone, Key)> {
        while let Some((_, key)) = self.timers.pop(now) {
            if let Some(pair) = self.pairs.get(key).filter(|pair| !pair.open) {
                return Some((pair.lease.zone(), key));
            }
        }
        None
    }

    /// The container did not answer: its client is to be relayed over the bridge.
    pub(crate) fn timeout(&mut self, key: Key, ctx: &Context<'_>) -> Option<Client> {
        self.pairs.get(key).filter(|pair| !pair.open)?;
        self.give_back(key, ctx)
    }

    pub(crate) fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Connections opened so far, and octets moved.
    pub(crate) const fn counts(&self) -> (u64, u64) {
        self.counts
    }
}

fn is_refusal(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::ConnectionReset
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The product's bound is 512 octets of ours for an idle flow. A pipe is in use only while octets are in
    /// it; what is left is the pair, its conntrack entry, and their places wherever they are looked up.
    #[test]
    fn an_idle_spliced_connection_takes_at_most_512_octets() {
        const COUNTS: usize = 2 * size_of::<usize>();
        // A slab has a tag for each place, and doubles.
        let pair = 2 * size_of::<(usize, u16, Pair)>();
        let entry = size_of::<usize>() + COUNTS + size_of::<Entry>();
        // Two pointers in hash tables that are between 7/16 and 7/8 full.
        let names = 2 * size_of::<usize>() * 32 / 21;
        let all = pair + entry + names;
        assert!(all <= 512, "{all}: pair {pair}, entry {entry}, names {names}");
    }
}
