//! Two TCPs that keep to the rules, a network that loses, doubles and reorders, and the NAT between them.
//!
//! Whatever honest segments meet on their way, none that tells its receiver anything may be called invalid:
//! that would break a connection to protect it.

use std::collections::BTreeMap;

use nat::window::{Segment, Windows};
use nat::{Direction, TcpFlags};
use proptest::prelude::*;

const ACK: TcpFlags = TcpFlags { syn: false, ack: true, fin: false, rst: false };

/// One side: what it has sent and what it has got.
#[derive(Debug)]
struct Peer {
    iss: u32,
    una: u32,
    nxt: u32,
    /// One past the last octet the other side takes.
    allowed: u32,
    rcv: u32,
    /// Octets in order that nobody has read yet.
    unread: u32,
    room: u32,
    scale: u8,
    /// Received out of order, by where they begin.
    ahead: BTreeMap<u32, u32>,
    sack: bool,
}

impl Peer {
    fn new(iss: u32, other: u32, room: u32, other_room: u32, scale: u8, sack: bool) -> Self {
        let nxt = iss.wrapping_add(1);
        let rcv = other.wrapping_add(1);
        // What fits the field of a SYN, which is not scaled.
        let allowed = nxt.wrapping_add(other_room.min(65_535));
        let ahead = BTreeMap::new();
        Self { iss, una: nxt, nxt, allowed, rcv, unread: 0, room, scale, ahead, sack }
    }

    fn window(&self) -> u16 {
        u16::try_from(((self.room - self.unread) >> self.scale).min(65_535)).unwrap()
    }

    fn segment(&self, seq: u32, len: u32) -> Segment {
        let edge = self.ahead.iter().map(|(at, len)| at.wrapping_add(*len));
        let far = |edge: &u32| edge.wrapping_sub(self.rcv);
        let sack = edge.max_by_key(far).filter(|_| self.sack);
        Segment { flags: ACK, seq, ack: self.rcv, sack, window: self.window(), len, scale: None }
    }

    /// As much new data as may be sent, up to `len`.
    fn send(&mut self, len: u32) -> Option<Segment> {
        let room = self.allowed.wrapping_sub(self.nxt);
        let room = if room > 1 << 31 { 0 } else { room };
        let len = len.min(room);
        let segment = (len > 0).then(|| self.segment(self.nxt, len));
        self.nxt = self.nxt.wrapping_add(len);
        segment
    }

    fn retransmit(&self, len: u32) -> Option<Segment> {
        let len = len.min(self.nxt.wrapping_sub(self.una));
        (len > 0).then(|| self.segment(self.una, len))
    }

    /// An octet before what is awaited, to see whether the other side lives (RFC 9293 §3.8.4); only who
    /// waits for nothing asks.
    fn keep_alive(&self) -> Option<Segment> {
        (self.una == self.nxt).then(|| self.segment(self.una.wrapping_sub(1), 0))
    }

    /// Takes a segment, and says whether it is to be acknowledged.
    fn take(&mut self, segment: &Segment) -> bool {
        if segment.ack.wrapping_sub(self.una) <= self.nxt.wrapping_sub(self.una) {
            self.una = segment.ack;
        }
        let offered = |scale: u8| segment.ack.wrapping_add(u32::from(segment.window) << scale);
        let edge = offered(self.scale);
        if edge.wrapping_sub(self.allowed) < 1 << 31 {
            self.allowed = edge;
        }
        if segment.len == 0 {
            return segment.seq != self.rcv;
        }
        let end = segment.seq.wrapping_add(segment.len);
        let limit = self.rcv.wrapping_add(self.room - self.unread);
        if after(segment.seq, self.rcv) && !after(end, limit) {
            self.ahead.insert(segment.seq, segment.len);
        } else if after(end, self.rcv) && !after(end, limit) {
            self.advance(end);
        }
        while let Some((at, len)) =
            self.ahead.iter().find(|(at, _)| !after(**at, self.rcv)).map(|(at, len)| (*at, *len))
        {
            self.ahead.remove(&at);
            let end = at.wrapping_add(len);
            if after(end, self.rcv) {
                self.advance(end);
            }
        }
        true
    }

    /// Whether a segment tells it anything: new data, a new acknowledgment, a wider window.
    fn needs(&self, segment: &Segment) -> bool {
        let edge = segment.ack.wrapping_add(u32::from(segment.window) << self.scale);
        after(segment.seq.wrapping_add(segment.len), self.rcv)
            || after(segment.ack, self.una)
            || after(edge, self.allowed)
    }

    fn advance(&mut self, to: u32) {
        self.unread += to.wrapping_sub(self.rcv);
        self.rcv = to;
    }
}

fn after(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).wrapping_sub(1) < (1 << 31) - 1
}

#[derive(Clone, Debug)]
enum Event {
    Send {
        side: usize,
        len: u32,
    },
    Retransmit {
        side: usize,
        len: u32,
    },
    KeepAlive {
        side: usize,
    },
    /// Passes the NAT, whichever segment of those on their way is meant; then arrives or not.
    Deliver {
        side: usize,
        which: prop::sample::Index,
        arrives: bool,
        again: bool,
    },
    LoseBefore {
        side: usize,
        which: prop::sample::Index,
    },
    Read {
        side: usize,
        len: u32,
    },
}

fn event() -> impl Strategy<Value = Event> {
    let side = || 0..2usize;
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => (side(), 1..3000u32).prop_map(|(side, len)| Event::Send { side, len }),
        1 => (side(), 1..1500u32).prop_map(|(side, len)| Event::Retransmit { side, len }),
        1 => side().prop_map(|side| Event::KeepAlive { side }),
        8 => (side(), index(), prop::bool::weighted(0.9), prop::bool::weighted(0.1))
            .prop_map(|(side, which, arrives, again)| Event::Deliver { side, which, arrives, again }),
        1 => (side(), index()).prop_map(|(side, which)| Event::LoseBefore { side, which }),
        2 => (side(), 1..5000u32).prop_map(|(side, len)| Event::Read { side, len }),
    ]
}

const WAYS: [Direction; 2] = [Direction::Original, Direction::Reply];

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_honest_segment_is_invalid(
        events in prop::collection::vec(event(), 1..400),
        iss in (any::<u32>(), any::<u32>()),
        room in (2000..60_000u32, 2000..60_000u32),
        scale in 0..5u8,
        sack in any::<bool>(),
    ) {
        let mut windows = Windows::default();
        let mut peers = [
            Peer::new(iss.0, iss.1, room.0, room.1, scale, sack),
            Peer::new(iss.1, iss.0, room.1, room.0, scale, sack),
        ];
        let syn = |peer: &Peer, ack: Option<u32>| Segment {
            flags: TcpFlags { syn: true, ack: ack.is_some(), ..TcpFlags::default() },
            seq: peer.iss,
            ack: ack.unwrap_or(0),
            sack: None,
            window: u16::try_from(peer.room).unwrap(),
            len: 0,
            scale: Some(scale),
        };
        windows.judge(WAYS[0], &syn(&peers[0], None)).unwrap();
        windows.judge(WAYS[1], &syn(&peers[1], Some(peers[0].nxt))).unwrap();
        windows.judge(WAYS[0], &peers[0].segment(peers[0].nxt, 0)).unwrap();
        let mut flying: [Vec<Segment>; 2] = Default::default();
        for event in events {
            match event {
                Event::Send { side, len } => {
                    flying[side].extend(peers[side].send(len));
                }
                Event::Retransmit { side, len } => {
                    flying[side].extend(peers[side].retransmit(len));
                }
                Event::KeepAlive { side } => {
                    flying[side].extend(peers[side].keep_alive());
                }
                Event::Read { side, len } => {
                    let peer = &mut peers[side];
                    peer.unread -= len.min(peer.unread);
                    flying[side].push(peer.segment(peer.nxt, 0));
                }
                Event::LoseBefore { side, which } => {
                    if !flying[side].is_empty() {
                        let at = which.index(flying[side].len());
                        flying[side].remove(at);
                    }
                }
                Event::Deliver { side, which, arrives, again } => {
                    if flying[side].is_empty() {
                        continue;
                    }
                    let at = which.index(flying[side].len().min(12));
                    let segment = if again { flying[side][at] } else { flying[side].remove(at) };
                    let judged = windows.judge(WAYS[side], &segment);
                    if let Err(why) = judged {
                        prop_assert!(!peers[1 - side].needs(&segment), "{segment:?}: {why}");
                        continue;
                    }
                    if arrives && peers[1 - side].take(&segment) {
                        let answer = peers[1 - side].segment(peers[1 - side].nxt, 0);
                        flying[1 - side].push(answer);
                    }
                }
            }
        }
    }
}
