//! What goes to the container: how far it got, how far it may go, what must go again.
//!
//! Pure: it is told of acknowledgments, timeouts and sent octets, and says what to send next. The octets
//! themselves stay in the host socket's queue, from `head` on. Read RFC 9293 §3.3.1 (the variables),
//! RFC 5681 and 6675 (losses), RFC 8985 §7 (losses at the end); `net/ipv4/tcp_input.c` where they leave a choice.

use smoltcp::time::{Duration, Instant};

use super::board::Board;
use super::rtt::Rtt;
use super::segment::{MAX_SACKS, Segment};
use super::seq::Seq;

/// Octets of payload in one frame: 65,535 less the longest headers without options.
pub(crate) const MAX_PAYLOAD: u32 = 65_535 - 60;

/// Duplicate acknowledgments that mean a loss (RFC 5681 §3.2).
const DUP_ACKS: u8 = 3;

/// Where the far side's octets end, once that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// In order: the sequence number our FIN takes.
    Fin(Seq),
    /// The far side has reset, or the host gave up: a reset follows the octet before this one.
    Reset(Seq),
}

/// What to send next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// At most so many octets from there on: new ones, or lost ones again.
    Octets(Seq, u32),
    /// The FIN.
    Fin(Seq),
    /// The reset: all before it has arrived.
    Reset,
    /// Nothing now: what is in flight must be acknowledged first, or the window opened.
    Wait,
    /// Nothing ever again, but what is lost.
    Done,
}

/// What became of the end of a flight, of which nothing behind it tells that it is lost (RFC 8985 §7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tail {
    /// It is awaited.
    Awaited,
    /// It is to be sent once more.
    Due,
    /// It was.
    Probed,
}

/// Towards the container.
#[derive(Debug)]
pub(crate) struct Sending {
    /// First octet still in the host socket's queue.
    pub(crate) head: Seq,
    /// Octets gone from that queue since it was last seen empty.
    pub(crate) cut: u32,
    /// First octet the container has not acknowledged (SND.UNA).
    pub(crate) una: Seq,
    /// Next new octet (SND.NXT).
    pub(crate) nxt: Seq,
    /// Where the host socket's next peek begins.
    pub(crate) peek: Seq,
    /// The container's window, scaled (SND.WND), and the widest it ever was.
    wnd: u32,
    max_wnd: u32,
    /// Sequence number of the segment the window is from (SND.WL1).
    wl1: Seq,
    /// What may be in flight (RFC 5681, cwnd): the way to a container has no rate, but its queues have
    /// an end. Without a loss, no bound.
    cwnd: u32,
    ssthresh: u32,
    pub(crate) mss: u16,
    pub(crate) scale: u8,
    dup_acks: u8,
    pub(crate) end: Option<End>,
    /// The octet the far side sent as urgent, until it is acknowledged.
    pub(crate) urgent: Option<Seq>,
    /// Losses; none, nearly always.
    board: Option<Box<Board>>,
    tail: Tail,
    pub(crate) rtt: Rtt,
}

impl Sending {
    pub(crate) const fn new(iss: Seq) -> Self {
        Self {
            head: Seq(iss.0.wrapping_add(1)),
            cut: 0,
            una: iss,
            nxt: iss,
            peek: Seq(iss.0.wrapping_add(1)),
            wnd: 0,
            max_wnd: 0,
            wl1: Seq(0),
            cwnd: u32::MAX,
            ssthresh: u32::MAX,
            mss: 536,
            scale: 0,
            dup_acks: 0,
            end: None,
            urgent: None,
            board: None,
            tail: Tail::Awaited,
            rtt: Rtt::new(),
        }
    }

    /// The container's SYN: its window is never scaled (RFC 7323 §2.2).
    pub(crate) fn synchronise(&mut self, syn: &Segment) {
        self.wnd = u32::from(syn.window);
        self.max_wnd = self.wnd;
        self.wl1 = syn.seq;
    }

    /// Our SYN was acknowledged, for the first time at `now`.
    pub(crate) fn opened(&mut self, ack: Seq, now: Instant) {
        self.una = ack;
        self.rtt.acknowledged(ack, now);
    }

    /// Octets sent and not acknowledged.
    pub(crate) fn in_flight(&self) -> u32 {
        self.nxt.after(self.una)
    }

    /// The container takes nothing at all now.
    pub(crate) const fn is_closed(&self) -> bool {
        self.wnd == 0
    }

    /// Whether an acknowledgment number says anything (RFC 5961 §5.2): not beyond what was sent, nor
    /// older than a window.
    pub(crate) fn accepts(&self, ack: Seq) -> bool {
        ack.since(self.nxt) <= 0 && self.una.after(ack) <= self.max_wnd
    }

    /// Takes note of an acknowledgment that [`accepts`](Self::accepts) let pass, of the window and the
    /// blocks with it. `bare`: it carries nothing else. Says whether it acknowledged anything new.
    pub(crate) fn acknowledge(&mut self, segment: &Segment, bare: bool, now: Instant) -> bool {
        let fresh = segment.ack.after(self.una);
        let old = segment.ack.since(self.una) < 0;
        let window = u32::from(segment.window) << self.scale;
        let same_window = window == self.wnd;
        // `tcp_may_update_window`: an older segment's window is not the container's last word.
        let newer = segment.seq.since(self.wl1);
        if old {
            return false;
        }
        if fresh > 0 || newer > 0 || (newer == 0 && (window > self.wnd || window == 0)) {
            self.wnd = window;
            self.max_wnd = self.max_wnd.max(window);
            self.wl1 = segment.seq;
        }
        if fresh > 0 {
            self.advance(segment.ack, fresh, now);
        } else if bare && same_window && self.in_flight() > 0 {
            self.dup_acks = self.dup_acks.saturating_add(1);
        }
        self.learn_losses(&segment.sacks);
        fresh > 0
    }

    fn advance(&mut self, una: Seq, fresh: u32, now: Instant) {
        self.una = una;
        self.urgent = self.urgent.filter(|urgent| urgent.since(una) >= 0);
        self.rtt.acknowledged(una, now);
        self.dup_acks = 0;
        self.tail = Tail::Awaited;
        let mut recovering = false;
        if let Some(board) = &mut self.board {
            board.advance(una);
            recovering = board.recovering();
            if recovering {
                board.partial(una, self.mss.into());
            } else if board.is_blank() {
                self.board = None;
            }
        }
        if self.cwnd < self.ssthresh {
            self.cwnd = self.cwnd.saturating_add(fresh); // Slow start (RFC 3465 with no limit).
        } else if !recovering && self.cwnd < u32::MAX {
            let more = u64::from(self.mss) * u64::from(fresh) / u64::from(self.cwnd.max(1));
            self.cwnd = self.cwnd.saturating_add(u32::try_from(more).unwrap_or(u32::MAX).max(1));
        }
    }

    fn learn_losses(&mut self, sacks: &[Option<(Seq, Seq)>; MAX_SACKS]) {
        if sacks[0].is_some() {
            let board = self.board.get_or_insert_with(|| Box::new(Board::new(self.una)));
            for block in sacks.iter().flatten() {
                board.note(*block, self.una, self.nxt);
            }
            board.update(self.una, self.nxt);
        }
        let (recovering, beyond) = match &self.board {
            Some(board) => (board.recovering(), board.octets()),
            None => (false, 0),
        };
        // RFC 6675 §4, IsLost: duplicates may be few where each acknowledges a frame of 64 KB.
        let found = self.dup_acks >= DUP_ACKS || beyond > 2 * u32::from(self.mss);
        if recovering || !found || self.in_flight() == 0 {
            return;
        }
        self.slow_down();
        self.cwnd = self.ssthresh;
        let (una, nxt) = (self.una, self.nxt);
        let next = (una + u32::from(self.mss)).min(nxt);
        self.board.get_or_insert_with(|| Box::new(Board::new(una))).begin(una, next, nxt);
    }

    fn slow_down(&mut self) {
        self.rtt.cancel();
        self.ssthresh = (self.in_flight() / 2).max(2 * u32::from(self.mss));
    }

    /// How long to wait before the end of what is under way is sent once more, if it shall be: of a single
    /// segment the container may be slow to acknowledge the arrival.
    fn probe_timeout(&self) -> Option<Duration> {
        let several = self.in_flight() > self.mss.into() && self.wnd > 0;
        let plain = self.tail == Tail::Awaited && self.board.is_none();
        self.rtt.probe_timeout().filter(|_| several && plain)
    }

    /// The timer ran out: the end of what is under way goes once more, or all that is not known to have
    /// arrived is lost (RFC 5681 §3.1).
    pub(crate) fn time_out(&mut self) {
        if self.probe_timeout().is_some() {
            self.tail = Tail::Due;
            return;
        }
        let again = self.rtt.doubled() > 0;
        if !again {
            self.slow_down();
        }
        self.rtt.cancel();
        self.rtt.back_off();
        self.cwnd = self.mss.into();
        self.dup_acks = 0;
        let (una, nxt) = (self.una, self.nxt);
        let board = self.board.get_or_insert_with(|| Box::new(Board::new(una)));
        if again {
            board.distrust();
        }
        board.begin(una, nxt, nxt);
    }

    /// A router inside takes no segments longer than `mss`: what is under way goes again so
    /// (`tcp_simple_retransmit`). No queue has overflown.
    pub(crate) fn shorten(&mut self, mss: u16) {
        if mss >= self.mss {
            return;
        }
        self.mss = mss;
        self.rtt.cancel();
        let (una, nxt) = (self.una, self.nxt);
        self.board.get_or_insert_with(|| Box::new(Board::new(una))).begin(una, nxt, nxt);
    }

    /// Octets believed to be under way (RFC 6675 §4, pipe).
    fn pipe(&self) -> u32 {
        let arrived = match &self.board {
            Some(board) => board.missing() + board.octets().max(self.duplicates()),
            None => self.duplicates(),
        };
        self.in_flight().saturating_sub(arrived)
    }

    /// Each duplicate acknowledgment tells of a segment that arrived.
    fn duplicates(&self) -> u32 {
        u32::from(self.dup_acks) * u32::from(self.mss)
    }

    /// What to send next, lost octets first. `more`: the host socket may have new ones.
    pub(crate) fn next(&self, more: bool) -> Step {
        let mss = u32::from(self.mss);
        if self.tail == Tail::Due {
            // Three segments that arrive tell of all that did not (RFC 6675 §4, IsLost).
            let end = match self.end {
                Some(End::Fin(fin)) => self.nxt.min(fin),
                _ => self.nxt,
            };
            let octets = end.after(self.una).min(3 * mss).min(self.longest());
            return Step::Octets(end - octets, octets);
        }
        let allowed = self.cwnd.saturating_sub(self.pipe());
        if let Some(board) = &self.board
            && let Some((start, end)) = board.hole()
        {
            if self.wnd == 0 || (allowed < mss && !board.is_first()) {
                return Step::Wait;
            }
            if self.end == Some(End::Fin(start)) {
                return Step::Fin(start);
            }
            let end = match self.end {
                Some(End::Fin(fin)) => end.min(fin),
                _ => end,
            };
            let octets = end.after(start).min(allowed.max(mss)).min(self.wnd.max(mss));
            return Step::Octets(start, octets.min(self.longest()));
        }
        let room = self.wnd.saturating_sub(self.in_flight());
        match self.end {
            Some(End::Fin(fin)) if self.nxt != fin => return Step::Done,
            Some(End::Fin(fin)) => return if room > 0 { Step::Fin(fin) } else { Step::Wait },
            Some(End::Reset(end)) => return if self.una == end { Step::Reset } else { Step::Wait },
            None if !more => return Step::Wait,
            None => {}
        }
        let room = room.min(allowed);
        // A silly window is not worth a segment while others are under way (RFC 9293 §3.8.6.2.1).
        let silly = room < mss && room < self.max_wnd / 2 && self.in_flight() > 0;
        if room == 0 || silly {
            return Step::Wait;
        }
        let whole_segments = (room / mss).max(1) * mss;
        Step::Octets(self.nxt, room.min(whole_segments).min(self.longest()))
    }

    /// As long as something urgent lies ahead, octets go out a segment at a time and no farther than that,
    /// and each segment says where it is (as `tcp_urg_mode` has it: a pointer is true for one segment).
    pub(crate) fn up_to_urgent(&self, start: Seq, want: u32) -> (u32, Option<u16>) {
        let Some(urgent) = self.urgent.filter(|urgent| urgent.since(start) >= 0) else {
            return (want, None);
        };
        let ahead = urgent.after(start) + 1;
        (want.min(self.mss.into()).min(ahead), u16::try_from(ahead).ok())
    }

    /// Octets of whole segments that fit one frame.
    fn longest(&self) -> u32 {
        let mss = u32::from(self.mss);
        (MAX_PAYLOAD / mss).max(1).saturating_mul(mss).min(MAX_PAYLOAD)
    }

    /// The octets from `start` to `end` (or the FIN) were sent at `now`.
    pub(crate) fn sent(&mut self, start: Seq, end: Seq, now: Instant) {
        if self.tail == Tail::Due {
            self.tail = Tail::Probed;
            self.rtt.cancel();
        } else if start == self.nxt {
            self.nxt = end;
            if self.board.is_none() {
                self.rtt.start(end, now);
            }
        } else if let Some(board) = &mut self.board {
            board.resent(end, self.nxt);
        }
    }

    /// How long to wait for an acknowledgment.
    pub(crate) fn timeout(&self) -> Duration {
        let timeout = self.rtt.timeout();
        self.probe_timeout().map_or(timeout, |probe| probe.min(timeout))
    }

    /// The far side's octets end behind what was sent of them.
    pub(crate) const fn ends(&mut self, reset: bool) {
        if self.end.is_none() {
            self.end = Some(if reset { End::Reset(self.nxt) } else { End::Fin(self.nxt) });
        }
    }

    /// Our FIN is out.
    pub(crate) fn fin_sent(&self) -> bool {
        matches!(self.end, Some(End::Fin(fin)) if self.nxt.since(fin) > 0)
    }

    /// Our FIN was acknowledged.
    pub(crate) fn fin_acknowledged(&self) -> bool {
        matches!(self.end, Some(End::Fin(fin)) if self.una.since(fin) > 0)
    }

    /// First octet of the host socket's that is still needed: the FIN is none of them.
    pub(crate) fn needed(&self) -> Seq {
        match self.end {
            Some(End::Fin(fin)) => self.una.min(fin),
            _ => self.una,
        }
    }
}
