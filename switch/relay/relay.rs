//! One worker's relay: where packets and ready sockets are handed to TCP, datagrams and listeners.

use std::sync::Arc;

use datapath::packet::Fragment;
use datapath::{DropReason, Offload, Packet, PortId, Received};
use mio::Registry;
use nat::{Protocol, Zone};
use smoltcp::time::{Duration, Instant};

use crate::context::{Context, Readiness};
use crate::datagram::Datagrams;
use crate::key::{Key, Kind};
use crate::pieces;
use crate::publish::Publisher;
use crate::published::Published;
use crate::shared::Shared;
use crate::splice::Splices;
use crate::tcp::{Client, Tcp};

/// How often silent datagram flows are looked for.
const SWEEP: Duration = Duration::from_secs(2);

/// One worker's flows.
#[derive(Debug)]
pub struct Relay {
    worker: u8,
    shared: Arc<Shared>,
    tcp: Tcp,
    datagrams: Datagrams,
    publisher: Publisher,
    splices: Splices,
    next_sweep: Option<Instant>,
    /// Senders of packets that never became whole are to be told.
    overdue: bool,
    /// Whose turn it is of those with more to do: TCP, datagrams, listeners, spliced connections.
    turn: usize,
}

impl Relay {
    /// The relay of worker number `worker`, whose poll `registry` belongs to.
    ///
    /// # Errors
    ///
    /// The registry cannot be cloned.
    pub fn new(worker: u8, shared: &Arc<Shared>, registry: &Registry) -> std::io::Result<Self> {
        Ok(Self {
            worker,
            shared: Arc::clone(shared),
            tcp: Tcp::new(worker, Arc::clone(shared), registry.try_clone()?),
            datagrams: Datagrams::new(worker, Arc::clone(shared), registry.try_clone()?),
            publisher: Publisher::new(worker, Arc::clone(shared), registry.try_clone()?),
            splices: Splices::new(worker, Arc::clone(&shared.limits), registry.try_clone()?),
            next_sweep: None,
            overdue: false,
            turn: 0,
        })
    }

    /// Whether a datagram leads to a port of the host's by which a container is known outside.
    #[must_use]
    pub fn is_outside(&self, packet: &Packet) -> bool {
        let to = packet.tuple().filter(|tuple| tuple.protocol == Protocol::Udp);
        to.is_some_and(|tuple| self.shared.ports.is_held(tuple.protocol, tuple.dst))
    }

    /// Takes a packet of no flow to the world.
    ///
    /// # Errors
    ///
    /// Why it went no further; its sender was told where a rule says so.
    pub fn uplink(
        &mut self,
        received: &Received<'_>,
        packet: &Packet,
        ctx: &mut Context<'_>,
    ) -> Result<(), DropReason> {
        if packet.fragment != Fragment::Whole {
            self.next_sweep.get_or_insert(ctx.now + SWEEP);
            return match pieces::gather(&self.shared, received, packet, ctx)? {
                None => Ok(()),
                Some((frame, packet)) => {
                    let offload = Offload::NONE;
                    self.gathered(&Received { frame: &frame, offload, ..*received }, &packet, ctx)
                }
            };
        }
        let tuple = packet.tuple().ok_or(DropReason::UnsupportedProtocol)?;
        match packet.protocol {
            Protocol::Tcp => self.tcp.open(received, packet, tuple, ctx),
            _ => {
                self.next_sweep.get_or_insert(ctx.now + SWEEP);
                self.datagrams.outbound(received, packet, tuple, ctx)
            }
        }
    }

    /// Takes a packet that came in pieces, of whose flow nobody could know before.
    fn gathered(
        &mut self,
        received: &Received<'_>,
        packet: &Packet,
        ctx: &mut Context<'_>,
    ) -> Result<(), DropReason> {
        if let Some(answered) = ctx.dp.answer_gathered(received, packet, ctx.now, ctx.out) {
            return answered;
        }
        if packet.is_icmp_error(received.frame) {
            return Err(DropReason::UnknownError);
        }
        let tuple = packet.tuple().ok_or(DropReason::UnsupportedProtocol)?;
        match ctx.dp.network().conntrack.lookup(ctx.zone(), tuple) {
            Some(found) if found.from_inside => {
                let key = Key::from(found.owner);
                // TCP is not cut by any sender of today, and its flow may be another worker's.
                match self.is_elsewhere(key) {
                    true => Err(DropReason::Fragment),
                    false => self.flow(key, received, packet, ctx),
                }
            }
            _ => self.uplink(received, packet, ctx),
        }
    }

    /// Takes a packet of the flow `key` names. A TCP flow must be this worker's
    /// ([`Key::worker`]); the others any worker may carry.
    ///
    /// # Errors
    ///
    /// As [`uplink`](Self::uplink).
    pub fn flow(
        &mut self,
        key: Key,
        received: &Received<'_>,
        packet: &Packet,
        ctx: &mut Context<'_>,
    ) -> Result<(), DropReason> {
        let Some(tuple) = packet.tuple() else {
            return match key.kind() {
                Some(Kind::Tcp) => self.tcp.told(key, received, packet, ctx),
                // No socket tells the sender of a datagram what became of it.
                _ => Err(DropReason::UnknownError),
            };
        };
        match key.kind() {
            Some(Kind::Tcp) => self.tcp.segment(key, received, packet, ctx),
            Some(Kind::Udp | Kind::Echo) => self.datagrams.outbound(received, packet, tuple, ctx),
            Some(Kind::UdpListener) => self.publisher.answer(key, received, packet, tuple, ctx),
            Some(Kind::TcpListener | Kind::SpliceClient | Kind::SpliceInside | Kind::Pieces)
            | None => Err(DropReason::NoFlow),
        }
    }

    /// Whether a packet of that flow must be handed to another worker.
    #[must_use]
    pub fn is_elsewhere(&self, key: Key) -> bool {
        key.kind() == Some(Kind::Tcp) && key.worker() != self.worker
    }

    /// The network of whatever `key` names, which an event on it must be handled with.
    #[must_use]
    pub fn zone_of(&self, key: Key) -> Option<Zone> {
        match key.kind()? {
            Kind::Tcp => self.tcp.zone_of(key),
            Kind::Udp | Kind::Echo => self.datagrams.zone_of(key),
            Kind::TcpListener | Kind::UdpListener => self.publisher.zone_of(key),
            Kind::SpliceClient | Kind::SpliceInside => self.splices.zone_of(key),
            Kind::Pieces => self.shared.pieces().overdue_zone(),
        }
    }

    /// A socket is ready.
    pub fn ready(&mut self, key: Key, readiness: Readiness, ctx: &mut Context<'_>) {
        match key.kind() {
            Some(Kind::Tcp) => self.tcp.ready(key, readiness, ctx),
            Some(Kind::Udp | Kind::Echo) => self.datagrams.ready(key, readiness, ctx),
            Some(Kind::TcpListener) => {
                self.publisher.accept(key, &mut self.tcp, &mut self.splices, ctx);
                if self.publisher.is_stranded() {
                    self.next_sweep.get_or_insert(ctx.now + SWEEP);
                }
            }
            Some(Kind::UdpListener) => {
                self.next_sweep.get_or_insert(ctx.now + SWEEP);
                self.publisher.inbound(key, readiness, ctx);
            }
            Some(Kind::SpliceClient | Kind::SpliceInside) => {
                if let Some(client) = self.splices.ready(key, readiness, ctx) {
                    self.over_the_bridge(client, ctx);
                }
            }
            Some(Kind::Pieces) | None => {}
        }
    }

    /// A client that could not be spliced is relayed as if that had never been tried.
    fn over_the_bridge(&mut self, client: Client, ctx: &mut Context<'_>) {
        if let Err(reason) = self.tcp.accept(client, ctx) {
            ctx.dp.gateway_counters().not_sent(reason);
        }
    }

    /// A burst is through: what it brought is sent on and acknowledged.
    pub fn end_burst(&mut self, ctx: &mut Context<'_>) {
        self.datagrams.send_train(ctx);
        self.publisher.send_train(ctx);
        self.tcp.end_burst(ctx);
    }

    /// Flows and sockets with more to do than their share of a turn.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.tcp.queued()
            + self.datagrams.queued()
            + self.publisher.queued()
            + self.splices.queued()
    }

    /// The next of those, with its network: of each kind in turn, so that none waits for all of another.
    pub fn next_queued(&mut self) -> Option<(Zone, Key)> {
        let Self { tcp, datagrams, publisher, splices, turn, .. } = self;
        in_turn(
            turn,
            [
                &mut || tcp.next_queued(),
                &mut || datagrams.next_queued(),
                &mut || publisher.next_queued(),
                &mut || splices.next_queued(),
            ],
        )
    }

    /// Gives one of those its share.
    pub fn serve_queued(&mut self, key: Key, ctx: &mut Context<'_>) {
        match key.kind() {
            Some(Kind::Tcp) => self.tcp.serve_queued(key),
            Some(Kind::SpliceClient | Kind::SpliceInside) => self.splices.serve_queued(key, ctx),
            _ => self.ready(key, Readiness { readable: true, ..Readiness::default() }, ctx),
        }
    }

    /// When something is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let overdue = self.overdue.then_some(Instant::ZERO);
        [self.tcp.poll_timeout(), self.splices.poll_timeout(), self.next_sweep, overdue]
            .into_iter()
            .flatten()
            .min()
    }

    /// A flow that is due, with its network; call until there is none.
    pub fn next_due(&mut self, now: Instant) -> Option<(Zone, Key)> {
        if std::mem::take(&mut self.overdue)
            && let Some(zone) = self.shared.pieces().overdue_zone()
        {
            return Some((zone, Key::pieces(self.worker)));
        }
        self.tcp.next_due(now).or_else(|| self.splices.next_due(now))
    }

    /// A flow whose acknowledgment has waited long enough for something to go with, with its network;
    /// call until there is none.
    pub fn next_late_ack(&mut self, now: Instant) -> Option<(Zone, Key)> {
        self.tcp.next_late_ack(now)
    }

    /// Acknowledges what the container of that flow has sent.
    pub fn acknowledge(&mut self, key: Key, ctx: &mut Context<'_>) {
        self.tcp.acknowledge_if_due(key, ctx);
    }

    /// What was awaited of that flow did not happen.
    pub fn timeout(&mut self, key: Key, ctx: &mut Context<'_>) {
        match key.kind() {
            Some(Kind::SpliceInside) => {
                if let Some(client) = self.splices.timeout(key, ctx) {
                    self.over_the_bridge(client, ctx);
                }
            }
            Some(Kind::Pieces) => self.overdue = pieces::tell_overdue(&self.shared, ctx),
            _ => self.tcp.timeout(key, ctx),
        }
    }

    /// Forgets silent datagram flows, if it is time. Call it once a turn: it takes note of the time, and does
    /// nothing else early.
    pub fn sweep(&mut self, conntrack: &nat::Conntrack, now: Instant) {
        self.shared.ports.tick(now);
        if self.next_sweep.is_some_and(|next| next <= now) {
            let mut pieces = self.shared.pieces();
            pieces.expire(now);
            self.overdue = pieces.overdue_zone().is_some();
            let left = pieces.octets();
            drop(pieces);
            let left =
                left + self.datagrams.sweep(conntrack, now) + self.publisher.sweep(conntrack, now);
            self.next_sweep = (left > 0).then(|| now + SWEEP);
        }
    }

    /// Starts serving a published port on this worker.
    ///
    /// # Errors
    ///
    /// The socket cannot be polled.
    pub fn publish(&mut self, published: Published) -> std::io::Result<Key> {
        self.publisher.publish(published)
    }

    /// Stops serving a published port; flows that came by it stay until they end, except UDP ones,
    /// which have no other way back.
    pub fn unpublish(&mut self, key: Key, conntrack: &nat::Conntrack) {
        self.publisher.unpublish(key, conntrack);
    }

    /// Gives up the UDP port `port` of the host in one family, if a mapping holds it: a published port
    /// has the better claim. The container's next datagram makes another mapping.
    pub fn give_up_port(&mut self, v4: bool, port: u16, conntrack: &nat::Conntrack) {
        self.datagrams.give_up_port(v4, port, conntrack);
    }

    /// Ends every flow of a port (of a whole network, if `None`).
    pub fn end(&mut self, port: Option<PortId>, ctx: &Context<'_>) {
        for key in self.tcp.of_port(ctx.zone(), port) {
            self.tcp.abandon(key, ctx);
        }
        self.splices.end(ctx.zone(), port, ctx);
        if port.is_none() {
            self.shared.pieces().forget_overdue(ctx.zone());
        }
        let conntrack = &ctx.dp.network().conntrack;
        self.datagrams.end(ctx.zone(), port, conntrack);
        self.publisher.end(ctx.zone(), port, conntrack);
    }

    /// Flows and mappings of this worker.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tcp.len() + self.datagrams.len() + self.splices.len()
    }

    /// Connections spliced so far, and octets moved so.
    #[must_use]
    pub const fn spliced(&self) -> (u64, u64) {
        self.splices.counts()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Takes from the first that has something, beginning behind the one that was taken from last.
fn in_turn<T, const N: usize>(
    turn: &mut usize,
    from: [&mut dyn FnMut() -> Option<T>; N],
) -> Option<T> {
    for _ in 0..N {
        *turn = (*turn + 1) % N;
        if let Some(next) = from[*turn]() {
            return Some(next);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_much_to_do_leaves_turns_to_the_others() {
        let mut queues = [vec!['a'; 100], vec!['b'; 3], vec!['c'; 2]];
        let mut turn = 0;
        let mut served = String::new();
        let [a, b, c] = &mut queues;
        for _ in 0..9 {
            let next = in_turn(&mut turn, [&mut || a.pop(), &mut || b.pop(), &mut || c.pop()]);
            served.extend(next);
        }
        assert_eq!(served, "bcabcabaa");
        assert_eq!(in_turn::<char, 2>(&mut 0, [&mut || None, &mut || None]), None);
    }
}
