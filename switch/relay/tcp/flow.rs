//! One TCP flow between a container and a host socket.
//!
//! There is no TCP stack here: the host socket's receive queue is the retransmission buffer towards the
//! container, and its send queue is where the container's octets go at once. What is kept is just where
//! both sequence spaces stand (RFC 9293 §3.3.1 names the variables).

use std::collections::VecDeque;
use std::net::TcpStream;
use std::sync::Arc;

use nat::{Direction, Entry, TcpFlags, TransportAddr, Zone};
use smoltcp::time::{Duration, Instant};

use super::ahead::{Ahead, Block, MAX_BLOCKS};
use super::segment::{Outgoing, Segment, SynOptions, WINDOW_SCALE};
use super::seq::Seq;
use crate::limits::Lease;
use datapath::PortId;

/// First retransmission timeout (RFC 6298 §2.1 says 1 s) while a connection opens.
pub(crate) const OPENING_TIMEOUT: Duration = Duration::from_secs(1);

/// Retransmission timeout towards a container that has answered: it is a memory copy away, so the floor
/// is Linux's `TCP_RTO_MIN` and not RFC 6298's second.
pub(crate) const RETRANSMIT_TIMEOUT: Duration = Duration::from_millis(200);

/// Longest retransmission timeout (RFC 6298 §2.5).
pub(crate) const MAX_TIMEOUT: Duration = Duration::from_secs(60);

/// Segments that open a connection before giving up; Linux `tcp_syn_retries` is 6.
pub(crate) const MAX_OPENING_ATTEMPTS: u8 = 6;

/// Retransmissions before a silent container is given up; Linux `tcp_retries2`.
pub(crate) const MAX_ATTEMPTS: u8 = 15;

/// The window first offered: what a header holds without scaling (RFC 7323 §2.2).
const FIRST_WINDOW: u32 = 65_535;

/// The widest window offered, which is also the most that may wait for a host socket. Twice what Linux
/// lets a socket grow to by itself (`tcp_wmem`, 4 MiB) would only add delay; this holds 20 Gbit/s over
/// 1.6 ms.
const MAX_WINDOW: u32 = 4 << 20;

/// Where the flow stands, as far as the handshakes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The container sent a SYN; the host socket is connecting.
    Connecting,
    /// The far side answered; our SYN-ACK to the container is out.
    Accepting,
    /// A client came by a published port; our SYN to the container is out.
    Opening,
    /// Both sides are connected.
    Established,
}

/// Towards the container.
#[derive(Debug)]
pub(crate) struct Sending {
    /// First octet still in the host socket's queue.
    pub(crate) head: Seq,
    /// First octet the container has not acknowledged (SND.UNA).
    pub(crate) una: Seq,
    /// Next octet to send (SND.NXT).
    pub(crate) nxt: Seq,
    /// The farthest ever sent; `nxt` goes back for a retransmission.
    pub(crate) max: Seq,
    /// The container's window, scaled (SND.WND).
    pub(crate) wnd: u32,
    pub(crate) scale: u8,
    pub(crate) mss: u16,
    /// What may be in flight after a loss: the way to a container has no rate, but its queues have an
    /// end (RFC 5681 calls it cwnd). Without a loss, no bound.
    pub(crate) cwnd: u32,
    pub(crate) dup_acks: u8,
    /// Where the far side's octets end, once that is known: the sequence number our FIN takes.
    pub(crate) fin: Option<Seq>,
}

/// From the container.
#[derive(Debug)]
pub(crate) struct Receiving {
    /// First octet the host socket has not taken; what we acknowledge.
    pub(crate) taken: Seq,
    /// The farthest octet the container was ever allowed to send.
    pub(crate) edge: Seq,
    /// What we offer from `taken` on.
    pub(crate) window: u32,
    pub(crate) scale: u8,
    /// The container understands selective acknowledgments.
    pub(crate) sack: bool,
    /// Received beyond a gap; nothing, nearly always.
    pub(crate) ahead: Option<Box<Ahead>>,
    /// Received in order, not taken by the host socket yet.
    pub(crate) pending: VecDeque<u8>,
    /// The container has finished; its FIN comes behind `pending`.
    pub(crate) fin: bool,
    /// The host socket was told so.
    pub(crate) shut: bool,
}

impl Receiving {
    /// Next octet expected (RCV.NXT), the FIN counted.
    pub(crate) fn nxt(&self) -> Seq {
        let pending = u32::try_from(self.pending.len()).unwrap_or(u32::MAX);
        self.taken + pending + u32::from(self.fin)
    }

    /// What we acknowledge: what the host socket took, and the FIN once it was told.
    pub(crate) fn ack(&self) -> Seq {
        self.taken + u32::from(self.shut)
    }

    /// Octets of the container's that wait here.
    pub(crate) fn waiting(&self) -> usize {
        self.pending.len() + self.ahead.as_ref().map_or(0, |ahead| ahead.len())
    }

    /// What to acknowledge selectively.
    fn blocks(&self) -> [Option<Block>; MAX_BLOCKS] {
        match &self.ahead {
            Some(ahead) if self.sack => ahead.blocks(),
            _ => [None; MAX_BLOCKS],
        }
    }

    /// The header's window field. A window once offered is never taken back (RFC 9293 §3.8.6).
    pub(crate) fn offer(&mut self) -> u16 {
        self.edge = self.edge.max(self.taken + self.window);
        let window = self.edge.after(self.ack()) >> self.scale;
        u16::try_from(window).unwrap_or(u16::MAX)
    }

    /// The host socket took all it was given: it has room for more at once.
    pub(crate) fn widen(&mut self) {
        if self.scale > 0 {
            self.window = (self.window * 2).min(MAX_WINDOW);
        }
    }

    /// The host socket is slower than the container: less shall wait here.
    pub(crate) fn narrow(&mut self) {
        self.window = (self.window / 2).max(FIRST_WINDOW);
    }
}

/// One flow.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) zone: Zone,
    pub(crate) port: PortId,
    pub(crate) entry: Arc<Entry>,
    pub(crate) stream: TcpStream,
    /// Held, not read.
    pub(crate) _lease: Lease,
    pub(crate) inside: TransportAddr,
    pub(crate) outside: TransportAddr,
    pub(crate) stage: Stage,
    pub(crate) snd: Sending,
    pub(crate) rcv: Receiving,
    /// The host socket may have something to read.
    pub(crate) readable: bool,
    /// The far side has finished, or the host socket is in error.
    pub(crate) hung_up: bool,
    pub(crate) ack_due: bool,
    /// It waits for its next share of a turn.
    pub(crate) queued: bool,
    pub(crate) attempts: u8,
    pub(crate) timeout: Duration,
    pub(crate) deadline: Instant,
    pub(crate) armed: Option<Instant>,
}

/// What is known of a flow before its first segment.
#[derive(Debug)]
pub(crate) struct Birth {
    pub(crate) zone: Zone,
    pub(crate) port: PortId,
    pub(crate) entry: Arc<Entry>,
    pub(crate) stream: TcpStream,
    pub(crate) lease: Lease,
    pub(crate) inside: TransportAddr,
    pub(crate) outside: TransportAddr,
    pub(crate) stage: Stage,
    /// Our initial sequence number (ISS).
    pub(crate) iss: Seq,
    pub(crate) now: Instant,
}

impl Flow {
    pub(crate) fn new(birth: Birth) -> Self {
        let iss = birth.iss;
        Self {
            zone: birth.zone,
            port: birth.port,
            entry: birth.entry,
            stream: birth.stream,
            _lease: birth.lease,
            inside: birth.inside,
            outside: birth.outside,
            stage: birth.stage,
            snd: Sending {
                head: iss + 1,
                una: iss,
                nxt: iss,
                max: iss,
                wnd: 0,
                scale: 0,
                mss: 536,
                cwnd: u32::MAX,
                dup_acks: 0,
                fin: None,
            },
            rcv: Receiving {
                taken: Seq(0),
                edge: Seq(0),
                window: FIRST_WINDOW,
                scale: 0,
                sack: false,
                ahead: None,
                pending: VecDeque::new(),
                fin: false,
                shut: false,
            },
            readable: false,
            hung_up: false,
            ack_due: false,
            queued: false,
            attempts: 0,
            timeout: OPENING_TIMEOUT,
            deadline: birth.now + OPENING_TIMEOUT,
            armed: None,
        }
    }

    /// Takes over what the container's SYN says.
    pub(crate) fn synchronise(&mut self, syn: &Segment, options: SynOptions, own_mss: u16) {
        self.rcv.taken = syn.seq + 1;
        self.rcv.edge = self.rcv.taken;
        self.snd.mss = options.mss.min(own_mss);
        // A SYN's own window is never scaled (RFC 7323 §2.2).
        self.snd.wnd = u32::from(syn.window);
        self.rcv.sack = options.sack;
        if let Some(scale) = options.window_scale {
            self.snd.scale = scale;
            self.rcv.scale = WINDOW_SCALE;
        }
    }

    /// A segment to the container that carries no payload.
    pub(crate) fn control(&mut self, flags: TcpFlags, seq: Seq) -> Outgoing {
        let mut window = self.rcv.offer();
        if flags.syn {
            // Not scaled in a SYN: offer the same octets, as far as 16 bits hold them.
            self.rcv.edge = self.rcv.taken + FIRST_WINDOW;
            window = u16::MAX;
        }
        Outgoing {
            from: self.outside,
            to: self.inside,
            segment: Segment { seq, ack: self.rcv.ack(), flags, window },
            options: None,
            blocks: self.rcv.blocks(),
            push: false,
        }
    }

    /// Octets sent and not acknowledged.
    pub(crate) fn in_flight(&self) -> u32 {
        self.snd.nxt.after(self.snd.una)
    }

    /// Our FIN is out, as far as `nxt` tells.
    pub(crate) fn fin_sent(&self) -> bool {
        self.snd.fin.is_some_and(|fin| self.snd.nxt.since(fin) > 0)
    }

    /// Our FIN was acknowledged.
    pub(crate) fn fin_acknowledged(&self) -> bool {
        self.snd.fin.is_some_and(|fin| self.snd.una.since(fin) > 0)
    }

    /// Nothing is left to say in either direction.
    pub(crate) fn finished(&self) -> bool {
        self.rcv.shut && self.fin_acknowledged()
    }

    /// Notes a segment in conntrack.
    pub(crate) fn note(&self, travelling: Direction, octets: usize, flags: TcpFlags, now: Instant) {
        self.entry.note(travelling, 1, octets as u64, now);
        let settled = self.entry.state() == nat::TcpState::Established;
        if !settled || flags.syn || flags.fin || flags.rst {
            self.entry.segment(travelling, flags);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_once_offered_is_never_taken_back() {
        let mut rcv = Receiving {
            taken: Seq(1000),
            edge: Seq(1000),
            window: 1 << 20,
            scale: WINDOW_SCALE,
            sack: false,
            ahead: None,
            pending: VecDeque::new(),
            fin: false,
            shut: false,
        };
        assert_eq!(u32::from(rcv.offer()) << WINDOW_SCALE, 1 << 20);
        rcv.narrow();
        assert_eq!(u32::from(rcv.offer()) << WINDOW_SCALE, 1 << 20);
        rcv.pending.extend([0; 500]);
        rcv.fin = true;
        assert_eq!(rcv.nxt(), Seq(1501));
        assert_eq!(rcv.ack(), Seq(1000), "only what the host took is acknowledged");
    }

    #[test]
    fn a_flow_is_small() {
        assert!(size_of::<Flow>() <= 320, "{}", size_of::<Flow>());
    }
}
