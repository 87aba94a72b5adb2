//! A worker: one thread that receives, decides and sends, with no other thread in a frame's path.
//!
//! mio is edge-triggered: whatever is left undone within a turn's budget is remembered here, because
//! no event will announce it again. A full or dead port costs only itself.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant as HostInstant};

use crossbeam_channel::{Receiver, Sender};
use datapath::{Decision, DropReason, Fate, Outbox, Packet, PortId, Received, Silent};
use mio::event::Event as Readable;
use mio::{Events, Poll, Token, Waker};
use nat::{Conntrack, Zone};
use relay::{Context, Key, Readiness, Relay};
use smoltcp::time::{Duration as Span, Instant};

use crate::burst::{Burst, Drained};
use crate::command::{Command, Handed};
use crate::control::{Event, NetworkId, SegmentId};
use crate::egress::Egress;
use crate::nets::{Nets, PortQueue, port_of};
use crate::queue::QueueError;
use crate::stations::Stations;
use crate::urgency::Urgency;

/// The waker's token; keys of the relay and tokens of ports are never 0.
pub(crate) const WAKER: Token = Token(0);

/// Bursts of one port in one turn: its budget, [`crate::burst::MAX_FRAMES`] frames each.
const BURSTS_PER_TURN: usize = 4;

/// Relay sockets served in one turn beyond those that became ready.
const QUEUED_PER_TURN: usize = 64;

/// Events taken from poll at once.
const EVENTS: usize = 1024;

/// How often stations and neighbours are looked at for their age.
const HOUSEKEEPING: Span = Span::from_secs(1);

/// What a worker tells of its work, written by it alone.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) turns: AtomicU64,
    pub(crate) sleeps: AtomicU64,
    pub(crate) flows: AtomicU64,
    pub(crate) spliced: AtomicU64,
    pub(crate) spliced_octets: AtomicU64,
}

/// What a worker is made of.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) index: u8,
    pub(crate) poll: Poll,
    pub(crate) relay: Relay,
    pub(crate) conntrack: Arc<Conntrack>,
    pub(crate) commands: Receiver<Command>,
    pub(crate) events: Sender<Event>,
    /// Frames that other workers read of flows this one owns.
    pub(crate) handed: Receiver<Handed>,
    /// The same of every worker, by number.
    pub(crate) others: Vec<(Sender<Handed>, Arc<Waker>)>,
    pub(crate) tally: Arc<Tally>,
    pub(crate) epoch: HostInstant,
    pub(crate) busy_poll: Duration,
    pub(crate) housekeeper: bool,
}

impl Setup {
    /// Takes a packet of the flow `key` names, whoever owns it: a flow of another worker's is handed over.
    /// The TAP steers a flow's frames to the queue its answers were written to, so that is for the first
    /// frames after a pause.
    pub(crate) fn relayed(
        &mut self,
        key: Key,
        (received, with_header): (&Received<'_>, &[u8]),
        packet: &Packet,
        mut ctx: Context<'_>,
    ) -> Result<(), DropReason> {
        if !self.relay.is_elsewhere(key) {
            return self.relay.flow(key, received, packet, &mut ctx);
        }
        let owner = self.others.get(usize::from(key.worker()));
        let (frames, waker) = owner.ok_or(DropReason::NoFlow)?;
        let zone = ctx.dp.network().zone;
        let with_header = with_header.into();
        let handed = Handed { zone, port: received.port, key, with_header };
        frames.try_send(handed).map_err(|_| DropReason::RelayBufferFull)?;
        // It fails only with the worker gone, and then nothing is left to be carried.
        let _ = waker.wake();
        Ok(())
    }
}

/// The state of one worker thread.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) setup: Setup,
    pub(crate) networks: Nets,
    pub(crate) stations: Stations,
    pub(crate) burst: Burst,
    pub(crate) out: Outbox,
    /// Ports with more to read.
    backlog: VecDeque<(Zone, PortId)>,
    egress: Egress,
    next_housekeeping: Instant,
    last_work: Instant,
}

impl Worker {
    pub(crate) fn new(setup: Setup) -> Self {
        Self {
            setup,
            networks: Nets::default(),
            stations: Stations::default(),
            burst: Burst::default(),
            out: Outbox::default(),
            backlog: VecDeque::new(),
            egress: Egress::default(),
            next_housekeeping: Instant::ZERO,
            last_work: Instant::ZERO,
        }
    }

    /// Works until told to stop, or until nobody is left who could tell.
    pub(crate) fn run(mut self, mut urgency: Urgency) {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            let timeout = self.patience();
            if timeout != Some(Duration::ZERO) {
                add(&self.setup.tally.sleeps);
            }
            match self.setup.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // Without its poll a worker can do nothing: its ports are dead, and say so.
                    self.give_up(&error);
                    return;
                }
            }
            add(&self.setup.tally.turns);
            let now = self.now();
            let mut told = false;
            for event in &events {
                told |= event.token() == WAKER;
                self.note(event, now);
            }
            if told {
                if !self.obey(now) {
                    return;
                }
                self.take_over_all(now);
            }
            self.look_at_stations();
            let frames = self.serve_ports(now);
            self.serve_relay(now);
            self.serve_time(now);
            self.setup.tally.flows.store(self.setup.relay.len() as u64, Relaxed);
            let (spliced, octets) = self.setup.relay.spliced();
            self.setup.tally.spliced.store(spliced, Relaxed);
            self.setup.tally.spliced_octets.store(octets, Relaxed);
            urgency.turn(frames, octets, now);
            if !events.is_empty() {
                self.last_work = now;
            }
        }
    }

    fn now(&self) -> Instant {
        let micros = self.setup.epoch.elapsed().as_micros();
        Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    /// How long to sleep: not at all with work at hand, else until something is due.
    fn patience(&self) -> Option<Duration> {
        if !self.backlog.is_empty() || self.setup.relay.queued() > 0 {
            return Some(Duration::ZERO);
        }
        let now = self.now();
        let busy = Span::from(self.setup.busy_poll);
        if busy > Span::ZERO && now < self.last_work + busy {
            return Some(Duration::ZERO);
        }
        let housekeeping =
            (self.setup.housekeeper && !self.networks.is_empty()).then_some(self.next_housekeeping);
        let stations = if self.setup.housekeeper { self.stations.poll_timeout() } else { None };
        let next = [self.setup.relay.poll_timeout(), housekeeping, stations];
        let next = next.into_iter().flatten().min()?;
        // A sleep cut to whole milliseconds would end before its time, and spin.
        Some(Duration::from_micros((next - now).total_micros()).max(Duration::from_millis(1)))
            .filter(|_| next > now)
            .or(Some(Duration::ZERO))
    }

    /// Serves a ready socket, and puts a ready port in line.
    fn note(&mut self, event: &Readable, now: Instant) {
        let token = event.token();
        if token == WAKER {
            return;
        }
        if let Some((zone, port)) = port_of(token) {
            self.enqueue(zone, port);
            return;
        }
        let key = Key::from(token);
        let readiness = Readiness {
            readable: event.is_readable(),
            writable: event.is_writable(),
            hung_up: event.is_read_closed() || event.is_write_closed() || event.is_error(),
            urgent: event.is_priority(),
        };
        self.with_flow(key, now, |relay, ctx| relay.ready(key, readiness, ctx));
    }

    pub(crate) fn enqueue(&mut self, zone: Zone, port: PortId) {
        let Some(held) = self.port_queue(zone, port) else { return };
        if held.polled && !held.dead && !held.queued {
            held.queued = true;
            self.backlog.push_back((zone, port));
        }
    }

    fn port_queue(&mut self, zone: Zone, port: PortId) -> Option<&mut PortQueue> {
        self.networks.get_mut(&zone)?.queue(port)
    }

    /// Calls `work` with the network of `key`, and sends what it leaves.
    fn with_flow(
        &mut self,
        key: Key,
        now: Instant,
        work: impl FnOnce(&mut Relay, &mut Context<'_>),
    ) {
        let Some(zone) = self.setup.relay.zone_of(key) else { return };
        let Some(net) = self.networks.get_mut(&zone) else { return };
        let mut ctx = Context { dp: &mut net.dp, out: &mut self.out, now };
        work(&mut self.setup.relay, &mut ctx);
        self.setup.relay.end_burst(&mut ctx);
        self.flush();
    }

    /// Gives each port in line its turn. Returns how many frames they had.
    fn serve_ports(&mut self, now: Instant) -> usize {
        let mut frames = 0;
        for _ in 0..self.backlog.len() {
            let Some((zone, port)) = self.backlog.pop_front() else { break };
            if let Some(held) = self.port_queue(zone, port) {
                held.queued = false;
            }
            for turn in 1..=BURSTS_PER_TURN {
                let drained = self.serve_port(zone, port, now);
                frames += self.burst.len();
                match drained {
                    Some(Drained::More) if turn == BURSTS_PER_TURN => self.enqueue(zone, port),
                    Some(Drained::More) => {}
                    Some(Drained::Failed(error)) => {
                        self.failed(zone, port, error);
                        break;
                    }
                    Some(Drained::Empty) | None => break,
                }
            }
        }
        frames
    }

    /// Carries one burst of a port to its end.
    fn serve_port(&mut self, zone: Zone, port: PortId, now: Instant) -> Option<Drained> {
        let held = self.networks.get(&zone)?.queues.get(port.index())?.as_ref()?;
        let drained = self.burst.fill(&held.queue);
        let segment = SegmentId::of(zone).is_some();
        for index in 0..self.burst.len() {
            if segment && self.hear(zone, port, index, now) {
                continue;
            }
            let net = self.networks.get_mut(&zone)?;
            let (frame, offload) = self.burst.frame(index);
            let offload = match offload {
                Ok(offload) => offload,
                Err(reason) => {
                    net.dp.refuse(port, frame.len(), reason);
                    continue;
                }
            };
            let place = u16::try_from(index).expect("a burst is 32 frames");
            let received = Received { port, place, frame, offload };
            let decision = net.dp.ingress(&received, now, &mut self.out, &mut Silent);
            let (packet, key) = match decision {
                Decision::Flow(owner, _, packet) => (packet, Some(Key::from(owner))),
                Decision::Uplink(packet) => {
                    let out = &mut self.out;
                    if !self.setup.relay.is_outside(&packet)
                        && net.dp.pass_to_host(&received, &packet, now, out)
                    {
                        continue;
                    }
                    (packet, None)
                }
                Decision::Cross(segment, packet) => {
                    self.cross(segment, (zone, port), place, packet, now);
                    continue;
                }
                _ => continue,
            };
            let mut ctx = Context { dp: &mut net.dp, out: &mut self.out, now };
            let outcome = match key {
                None => self.setup.relay.uplink(&received, &packet, &mut ctx),
                Some(key) => {
                    let with_header = self.burst.with_header(index);
                    self.setup.relayed(key, (&received, with_header), &packet, ctx)
                }
            };
            let fate = match outcome {
                Ok(()) => Fate::Consumed,
                Err(reason) => Fate::Dropped(reason),
            };
            net.dp.decided(port, fate);
        }
        if let Some(net) = self.networks.get_mut(&zone) {
            let mut ctx = Context { dp: &mut net.dp, out: &mut self.out, now };
            self.setup.relay.end_burst(&mut ctx);
        }
        self.flush();
        Some(drained)
    }

    /// Takes what other workers have handed over; what comes meanwhile wakes us again.
    fn take_over_all(&mut self, now: Instant) {
        for _ in 0..self.setup.handed.len() {
            let Ok(handed) = self.setup.handed.try_recv() else { return };
            self.take_over(&handed, now);
        }
    }

    /// A frame that another worker read, of a flow this one owns.
    fn take_over(&mut self, handed: &Handed, now: Instant) {
        // A network that was removed meanwhile took its counters along.
        let Some(net) = self.networks.get_mut(&handed.zone) else { return };
        self.burst.hold(&handed.with_header);
        let (frame, offload) = self.burst.frame(0);
        let mut ctx = Context { dp: &mut net.dp, out: &mut self.out, now };
        let relay = &mut self.setup.relay;
        let taken = offload.and_then(|offload| {
            let packet = Packet::parse(frame, &offload)?;
            let received = Received { port: handed.port, place: 0, frame, offload };
            relay.flow(handed.key, &received, &packet, &mut ctx)
        });
        if let Err(reason) = taken {
            // Its reception was counted where it was read; here it is a copy that did not arrive.
            ctx.dp.gateway_counters().not_sent(reason);
        }
        relay.end_burst(&mut ctx);
        self.flush();
    }

    /// Sends what is in the outbox.
    pub(crate) fn flush(&mut self) {
        let failed = self.egress.flush(&mut self.networks, &self.burst, &mut self.out);
        self.out.clear();
        for (zone, port, error) in failed {
            self.failed(zone, port, error);
        }
    }

    /// A device failed: if it is gone, the port is dead and somebody is told once.
    fn failed(&mut self, zone: Zone, port: PortId, error: QueueError) {
        let QueueError::Gone(errno) = error else { return };
        let Some(held) = self.port_queue(zone, port) else { return };
        if !std::mem::replace(&mut held.dead, true) {
            let event = died(zone, port, errno.to_string());
            // Nobody listens any more only when the switch is coming down.
            let _ = self.setup.events.send(event);
        }
    }

    /// Gives waiting flows their share.
    fn serve_relay(&mut self, now: Instant) {
        for _ in 0..self.setup.relay.queued().min(QUEUED_PER_TURN) {
            let Some((_, key)) = self.setup.relay.next_queued() else { return };
            self.with_flow(key, now, |relay, ctx| relay.serve_queued(key, ctx));
        }
    }

    /// Does what is due.
    fn serve_time(&mut self, now: Instant) {
        while let Some((_, key)) = self.setup.relay.next_late_ack(now) {
            self.with_flow(key, now, |relay, ctx| relay.acknowledge(key, ctx));
        }
        while let Some((_, key)) = self.setup.relay.next_due(now) {
            self.with_flow(key, now, |relay, ctx| relay.timeout(key, ctx));
        }
        self.setup.relay.sweep(&self.setup.conntrack, now);
        if self.setup.housekeeper && now >= self.next_housekeeping {
            self.next_housekeeping = now + HOUSEKEEPING;
            let zones: Vec<_> = self.networks.keys().copied().collect();
            zones.into_iter().for_each(|zone| self.keep_house(zone, now));
        }
        if self.setup.housekeeper && self.stations.poll_timeout().is_some_and(|due| due <= now) {
            self.serve_stations(now);
        }
    }

    fn give_up(&self, error: &io::Error) {
        for (zone, net) in self.networks.iter() {
            let ports = net.queues.iter().enumerate().filter(|(_, held)| held.is_some());
            for (index, _) in ports {
                let port = PortId(u16::try_from(index).unwrap_or(u16::MAX));
                let error = format!("worker {} cannot poll: {error}", self.setup.index);
                let event = died(*zone, port, error);
                let _ = self.setup.events.send(event);
            }
        }
    }
}

/// A port's device is gone: the one of a segment is all it has.
fn died(zone: Zone, port: PortId, error: String) -> Event {
    match SegmentId::of(zone) {
        Some(segment) => Event::SegmentDied { segment, error },
        None => Event::PortDied { network: NetworkId(zone.0), port, error },
    }
}

fn add(count: &AtomicU64) {
    count.store(count.load(Relaxed) + 1, Relaxed);
}
