//! Flows on a clock that stands still until it is told. The container is this file; the far side is a socket
//! on the loopback.

mod deadlines;
mod ends;
mod hostile;
mod losses;
mod refusal;

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use datapath::{Body, Datapath, DropReason, Offload, Outbox, Packet, Received};
use mio::event::Event;
use mio::{Events, Poll};
use nat::{TcpFlags, TransportAddr};
use smoltcp::time::{Duration, Instant};

use super::segment::{Outgoing, Segment, SynOptions, read};
use super::seq::Seq;
use super::table::{ACK, SYN, Tcp};
use crate::context::rig::{self, CONTAINER, GATEWAY, PORT};
use crate::context::{Context, Readiness};
use crate::key::Key;
use crate::limits::Limits;
use crate::shared::Shared;

const READY: Readiness =
    Readiness { readable: true, writable: true, hung_up: false, urgent: false };

/// What the container was sent: a segment and the octets it carries, or an ICMP message.
#[derive(Debug)]
enum Sent {
    Tcp(Segment, Vec<u8>),
    Icmp(Vec<u8>),
}

struct Rig {
    tcp: Tcp,
    limits: Arc<Limits>,
    dp: Datapath,
    out: Outbox,
    now: Instant,
    listener: TcpListener,
    poll: Poll,
    /// What the container's SYNs say.
    options: Option<SynOptions>,
}

/// One connection, as the container has it.
struct Peer {
    key: Key,
    port: u16,
    seq: Seq,
    ack: Seq,
    window: u16,
    far: TcpStream,
}

impl Rig {
    fn new(max_tracked: usize) -> Self {
        let now = Instant::from_secs(1000);
        let (dp, out) = rig::network(max_tracked, now);
        let poll = Poll::new().unwrap();
        let limits = Arc::new(Limits::new(10_000, 10_000));
        let registry = poll.registry().try_clone().unwrap();
        let tcp = Tcp::new(0, Arc::new(Shared::new(Arc::clone(&limits))), registry);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self { tcp, limits, dp, out, now, listener, poll, options: None }
    }

    /// Does one thing as a worker does, and returns what was sent.
    fn act<T>(&mut self, work: impl FnOnce(&mut Tcp, &mut Context<'_>) -> T) -> (T, Vec<Sent>) {
        let mut ctx = Context { dp: &mut self.dp, out: &mut self.out, now: self.now };
        let done = work(&mut self.tcp, &mut ctx);
        self.tcp.end_burst(&mut ctx);
        let departures = self.out.departures().to_vec();
        let sent = departures.iter().filter_map(|departure| {
            let Body::Built(built) = departure.body else { return None };
            let frame = self.out.frame(built);
            if frame[12..14] != [8, 0] || frame[23] == 1 {
                return (frame[12..14] == [8, 0]).then(|| Sent::Icmp(frame[34..].to_vec()));
            }
            let packet = Packet::parse(frame, &departure.offload).unwrap();
            let (segment, payload) = read(&packet, frame).unwrap();
            Some(Sent::Tcp(segment, payload.to_vec()))
        });
        let sent = sent.collect();
        self.out.clear();
        (done, sent)
    }

    /// The container sends a segment, of the flow `key` or of none yet.
    fn inject(
        &mut self,
        key: Option<Key>,
        from: u16,
        segment: Segment,
        payload: &[u8],
    ) -> (Result<(), DropReason>, Vec<Sent>) {
        let (frame, offload) = self.frame(key, from, segment, payload);
        let packet = Packet::parse(&frame, &offload).unwrap();
        let received = Received { port: PORT, place: 0, frame: &frame, offload };
        self.act(|tcp, ctx| match key {
            Some(key) => tcp.segment(key, &received, &packet, ctx),
            None => tcp.open(&received, &packet, packet.tuple().unwrap(), ctx),
        })
    }

    /// A container's segment as it comes.
    fn frame(
        &self,
        key: Option<Key>,
        from: u16,
        segment: Segment,
        payload: &[u8],
    ) -> (Vec<u8>, Offload) {
        let mut scratch = Outbox::default();
        let flow = key.and_then(|key| self.tcp.flows.get(key));
        let [first, second, third, _] = segment.sacks;
        let outgoing = Outgoing {
            from: TransportAddr::new(CONTAINER.into(), from),
            to: flow.map_or(self.listener.local_addr().unwrap().into(), |flow| flow.outside()),
            segment,
            options: self.options.filter(|_| segment.flags.syn),
            blocks: [first, second, third],
            push: false,
        };
        let at = outgoing.payload_offset();
        let plain = outgoing.options.is_none() && first.is_none();
        let built = match plain {
            true => scratch.build(at + payload.len()),
            false => outgoing.build(&mut scratch, GATEWAY),
        };
        let frame = scratch.frame_mut(built);
        let offload = if plain {
            frame[at..].copy_from_slice(payload);
            // A long one is cut where it was sent; one with a SYN or a reset never is.
            let cut = if segment.flags.syn || segment.flags.rst { u16::MAX } else { 1460 };
            outgoing.finish(frame, GATEWAY, cut).unwrap()
        } else {
            Offload::NONE
        };
        (frame.to_vec(), offload)
    }

    fn segment(flags: TcpFlags, seq: Seq, ack: Seq, window: u16) -> Segment {
        Segment { seq, ack, flags, window, ..Segment::default() }
    }

    fn connect(&mut self, port: u16) -> Peer {
        let key = self.tcp.flows.next_key();
        let syn = Self::segment(SYN, Seq(999), Seq(0), 65_535);
        let (opened, _) = self.inject(None, port, syn, &[]);
        opened.unwrap();
        let (far, _) = self.listener.accept().unwrap();
        far.set_nodelay(true).unwrap();
        let connected = Readiness { readable: false, ..READY };
        let ((), sent) = self.act(|tcp, ctx| tcp.ready(key, connected, ctx));
        let [Sent::Tcp(answer, _)] = &sent[..] else { panic!("{sent:?}") };
        assert!(answer.flags.syn && answer.flags.ack);
        let mut peer = Peer { key, port, seq: Seq(1000), ack: answer.seq + 1, window: 65_535, far };
        let sent = self.say(&mut peer, ACK, &[]);
        assert!(sent.is_empty(), "{sent:?}");
        peer
    }

    /// The container sends octets of a connection.
    fn say(&mut self, peer: &mut Peer, flags: TcpFlags, payload: &[u8]) -> Vec<Sent> {
        let segment = Self::segment(flags, peer.seq, peer.ack, peer.window);
        peer.seq += u32::try_from(payload.len()).unwrap();
        let (taken, sent) = self.inject(Some(peer.key), peer.port, segment, payload);
        taken.unwrap();
        sent
    }

    /// The far side writes, and the host socket is ready.
    fn far_writes(&mut self, peer: &mut Peer, octets: &[u8]) -> Vec<Sent> {
        self.poll.poll(&mut Events::with_capacity(1024), Some(std::time::Duration::ZERO)).unwrap();
        peer.far.write_all(octets).unwrap();
        self.await_event(peer.key, Event::is_readable);
        self.act(|tcp, ctx| tcp.ready(peer.key, READY, ctx)).1
    }

    /// Waits until the loopback has delivered.
    fn await_event(&mut self, key: Key, wanted: fn(&Event) -> bool) {
        let mut events = Events::with_capacity(1024);
        let told = (0..10).any(|_| {
            self.poll.poll(&mut events, Some(std::time::Duration::from_secs(1))).unwrap();
            events.iter().any(|event| wanted(event) && Key::from(event.token()) == key)
        });
        assert!(told, "nothing was heard of the host socket");
    }

    /// Lets time go by; each thing sent meanwhile with its time.
    fn advance(&mut self, time: Duration) -> Vec<(Instant, Sent)> {
        let end = self.now + time;
        let mut told = Vec::new();
        while let Some(when) = self.tcp.poll_timeout().filter(|when| *when <= end) {
            self.now = self.now.max(when);
            while let Some((_, key)) = self.tcp.next_due(self.now) {
                let ((), sent) = self.act(|tcp, ctx| tcp.timeout(key, ctx));
                told.extend(sent.into_iter().map(|sent| (self.now, sent)));
            }
        }
        self.now = end;
        told
    }
}

fn is_reset(sent: &Sent) -> bool {
    matches!(sent, Sent::Tcp(segment, _) if segment.flags.rst)
}
