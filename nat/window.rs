//! Whether a TCP segment can belong to its connection, by what both sides have sent, acknowledged and
//! offered.
//!
//! Read G. van Rooij, "Real Stateful TCP Packet Filtering in IP Filter", and `tcp_in_window` in
//! `net/netfilter/nf_conntrack_proto_tcp.c`, whose names `end`, `maxend` and `maxwin` are kept here. RFC
//! 5961 §3 is why a reset is believed only where its receiver would believe it. Sequence numbers are
//! compared as RFC 9293 §3.4 does.

use std::fmt;

use crate::state::{Direction, TcpFlags};

/// An acknowledgment may lag behind by at least this much (`MAXACKWINCONST` in the kernel).
const MIN_ACK_LAG: u32 = 66_000;

/// So many segments sent again without any being acknowledged, and their sender is not heard any more
/// (`nf_conntrack_tcp_max_retrans`).
const MAX_RETRANSMISSIONS: u8 = 3;

const ACK: TcpFlags = TcpFlags { syn: false, ack: true, fin: false, rst: false };

/// Largest window scale there is (RFC 7323 §2.3).
const MAX_SCALE: u8 = 14;

/// What of a segment says where it lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Its control bits.
    pub flags: TcpFlags,
    /// Sequence number of its first octet.
    pub seq: u32,
    /// Acknowledgment number, where the flag says it means something.
    pub ack: u32,
    /// Right edge of the highest block selectively acknowledged (RFC 2018), if any.
    pub sack: Option<u32>,
    /// The window field, not scaled.
    pub window: u16,
    /// Octets of payload.
    pub len: u32,
    /// The window scale option; only a SYN's counts.
    pub scale: Option<u8>,
}

impl Segment {
    /// One past the sequence number of its last octet; SYN and FIN count one.
    fn end(&self) -> u32 {
        let control = u32::from(self.flags.syn) + u32::from(self.flags.fin);
        self.seq.wrapping_add(self.len).wrapping_add(control)
    }
}

/// Why a segment cannot belong to its connection, with the numbers that say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutOfWindow {
    /// It begins beyond what the receiver has offered to take.
    BeyondWindow {
        /// Its sequence number.
        seq: u32,
        /// The first the receiver would not take.
        limit: u32,
    },
    /// All of it was acknowledged long ago.
    LongAcknowledged {
        /// One past its last octet.
        end: u32,
        /// What it would have to reach.
        limit: u32,
    },
    /// It acknowledges what was never sent.
    AckOfUnsent {
        /// Its acknowledgment number.
        ack: u32,
        /// One past the last octet the other side has sent.
        sent: u32,
    },
    /// It acknowledges less than anything still on its way could.
    AckTooOld {
        /// Its acknowledgment number.
        ack: u32,
        /// The least it might be.
        limit: u32,
    },
}

impl fmt::Display for OutOfWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BeyondWindow { seq, limit } => {
                write!(f, "it begins at {seq}, and the receiver takes nothing from {limit} on")
            }
            Self::LongAcknowledged { end, limit } => {
                write!(
                    f,
                    "it ends at {end}, and what ends before {limit} was acknowledged long ago"
                )
            }
            Self::AckOfUnsent { ack, sent } => {
                write!(f, "it acknowledges {ack}, and the other side has sent up to {sent} only")
            }
            Self::AckTooOld { ack, limit } => {
                write!(
                    f,
                    "it acknowledges {ack}, and no acknowledgment before {limit} can be on its way"
                )
            }
        }
    }
}

/// One side of a connection, as its segments have shown it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Side {
    /// One past the highest octet it has sent.
    end: u32,
    /// One past the highest octet it may send.
    maxend: u32,
    /// The widest window it has offered, scaled; 0 before its first segment.
    maxwin: u32,
    /// The highest acknowledgment it has sent: the next octet it expects.
    acked: u32,
    scale: u8,
    flags: u8,
    /// Half of what is kept of the number a SYN has begun anew with, whichever side it is of.
    anew: u8,
    /// Whether it offers no window at all.
    closed: bool,
}

/// Its SYN had the window scale option.
const SCALES: u8 = 1;
/// It has acknowledged something.
const HAS_ACKED: u8 = 2;
/// It has sent what was not acknowledged yet.
const WAITS: u8 = 4;
/// Its last SYN was not the connection's first.
const BEGINS_ANEW: u8 = 8;
/// How many segments it has sent again since one of its was acknowledged; three is the most.
const REPEATED: u8 = 0x30;
const REPEATED_ONCE: u8 = 0x10;

/// What a segment's control bits are worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Believed {
    /// It is no reset, or one where its receiver believes it.
    Yes,
    /// It lies in the window, but not where the receiver expects it: the receiver will ask back
    /// (RFC 5961 §3.2), and the connection stays what it is.
    No,
    /// It accepts a SYN that begins the connection anew.
    Anew,
}

/// Both sides of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Windows {
    sides: [Side; 2],
}

impl Windows {
    /// Judges a segment travelling `travelling`; one that passes is taken note of, but a reset. Says
    /// whether what its control bits say is to be believed, which is a question of resets only, and of the
    /// answer to a SYN that [begins anew](Self::begins_anew).
    ///
    /// # Errors
    ///
    /// The segment cannot belong to the connection; nothing is noted then.
    pub fn judge(
        &mut self,
        travelling: Direction,
        segment: &Segment,
    ) -> Result<Believed, OutOfWindow> {
        let judged = self.judge_known(travelling, segment);
        if judged.is_err() && self.is_begun_anew_by(travelling, segment) {
            *self = Self::default();
            let seq = segment.seq.wrapping_add(1);
            self.judge_known(travelling, &Segment { flags: ACK, seq, ..*segment })?;
            return Ok(Believed::Anew);
        }
        judged
    }

    /// Notes a SYN in a connection both sides know of, as far as we do: its sender has lost it, and what its
    /// addressee answers will show whether that has, too (RFC 9293 §3.5.1).
    pub fn begins_anew(&mut self, travelling: Direction, seq: u32) {
        let [high, low] = brief(seq);
        let (mut sender, mut receiver) = self.sides(travelling);
        sender.flags |= BEGINS_ANEW;
        receiver.flags &= !BEGINS_ANEW;
        (sender.anew, receiver.anew) = (high, low);
        self.set(travelling, sender, receiver);
    }

    /// Whether a segment accepts the SYN that begins anew.
    fn is_begun_anew_by(&self, travelling: Direction, segment: &Segment) -> bool {
        let (answering, asking) = self.sides(travelling);
        let TcpFlags { syn, ack, rst, .. } = segment.flags;
        asking.flags & BEGINS_ANEW != 0
            && (syn && ack && !rst)
            && brief(segment.ack.wrapping_sub(1)) == [asking.anew, answering.anew]
    }

    fn judge_known(
        &mut self,
        travelling: Direction,
        segment: &Segment,
    ) -> Result<Believed, OutOfWindow> {
        let (mut sender, mut receiver) = self.sides(travelling);
        let flags = segment.flags;
        let mut end = segment.end();
        let mut seq = segment.seq;
        // A new SYN replaces an older one that was not answered, whatever number it begins with.
        let reopens = flags.syn && sender.maxwin != 0 && !receiver.has_acked();
        if sender.maxwin == 0 || (reopens && after(end, sender.end)) {
            if flags.syn {
                sender.end = end;
                // The other side's SYN has offered its window already, not scaled.
                sender.maxend = end.wrapping_add(receiver.maxwin);
                sender.maxwin = u32::from(segment.window).max(1);
                sender.take_options(segment);
                if !flags.ack {
                    // The first of a connection, or of a simultaneous open (RFC 9293 §3.5).
                    self.set(travelling, sender, receiver);
                    return Ok(Believed::Yes);
                }
                if sender.flags & receiver.flags & SCALES == 0 {
                    sender.scale = 0;
                    receiver.scale = 0;
                }
            } else {
                // Picked up in the middle: nobody has seen how it scales its windows.
                sender.scale = MAX_SCALE;
                sender.end = end;
                sender.maxwin = (u32::from(segment.window) << sender.scale).max(1);
                sender.maxend = end.wrapping_add(sender.maxwin);
                if receiver.maxwin == 0 {
                    receiver.end = segment.sack.unwrap_or(segment.ack);
                    receiver.maxend = receiver.end;
                }
            }
        }
        let (mut ack, mut sack) = (segment.ack, segment.sack.unwrap_or(segment.ack));
        if !flags.ack || (flags.rst && ack == 0) {
            (ack, sack) = (receiver.end, receiver.end);
        }
        if flags.rst && seq == 0 && !receiver.has_acked() {
            // An answer to a SYN, which has nothing to number it by (RFC 9293 §3.10.7.1).
            (seq, end) = (sender.end, sender.end);
        }
        Self::check(&sender, &receiver, seq, end, sack)?;
        if flags.rst {
            return Ok(Self::believes(&sender, &receiver, seq));
        }
        let window = if flags.syn {
            u32::from(segment.window)
        } else {
            u32::from(segment.window) << sender.scale
        };
        sender.maxwin = sender.maxwin.max(window.wrapping_add(sack.wrapping_sub(ack)));
        if after(end, sender.end) {
            sender.end = end;
            sender.flags |= WAITS;
        } else if segment.len > 0 {
            sender.repeats();
        }
        if flags.ack && after(ack, sender.acked) {
            receiver.flags &= !REPEATED;
        }
        if ack == receiver.end {
            receiver.flags &= !(WAITS | REPEATED);
        }
        sender.closed = segment.window == 0;
        if flags.ack && (!sender.has_acked() || after(ack, sender.acked)) {
            sender.acked = ack;
            sender.flags |= HAS_ACKED;
        }
        if receiver.maxwin != 0 && after(end, sender.maxend) {
            receiver.maxwin = receiver.maxwin.wrapping_add(end.wrapping_sub(sender.maxend));
        }
        let offered = sack.wrapping_add(window.max(1));
        if after(offered, receiver.maxend) {
            receiver.maxend = offered;
        }
        self.set(travelling, sender, receiver);
        Ok(Believed::Yes)
    }

    /// Whether a side has sent what the other has not acknowledged.
    #[must_use]
    pub const fn is_unacknowledged(&self) -> bool {
        (self.sides[0].flags | self.sides[1].flags) & WAITS != 0
    }

    /// Whether a side repeats itself in vain, or has no window, so that nothing is to be expected.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        let in_vain = MAX_RETRANSMISSIONS * REPEATED_ONCE;
        self.sides.iter().any(|side| side.closed || side.flags & REPEATED >= in_vain)
    }

    /// The four bounds of the paper, in its order.
    fn check(
        sender: &Side,
        receiver: &Side,
        seq: u32,
        end: u32,
        sack: u32,
    ) -> Result<(), OutOfWindow> {
        let limit = sender.maxend.wrapping_add(1);
        if !before(seq, limit) {
            return Err(OutOfWindow::BeyondWindow { seq, limit });
        }
        // A keep-alive is an octet before all that was acknowledged (RFC 9293 §3.8.4).
        let limit = sender.end.wrapping_sub(receiver.maxwin).wrapping_sub(1);
        if before(end, limit) {
            return Err(OutOfWindow::LongAcknowledged { end, limit });
        }
        if after(sack, receiver.end) {
            return Err(OutOfWindow::AckOfUnsent { ack: sack, sent: receiver.end });
        }
        let limit = receiver.end.wrapping_sub(sender.maxwin.max(MIN_ACK_LAG));
        if before(sack, limit) {
            return Err(OutOfWindow::AckTooOld { ack: sack, limit });
        }
        Ok(())
    }

    /// Whether the receiver of a reset believes it: it must lie between what the receiver has
    /// acknowledged and what was sent to it.
    fn believes(sender: &Side, receiver: &Side, seq: u32) -> Believed {
        let answers_syn = !receiver.has_acked();
        let expected = !before(seq, receiver.acked) && !after(seq, sender.end);
        if answers_syn || expected { Believed::Yes } else { Believed::No }
    }

    fn sides(&self, travelling: Direction) -> (Side, Side) {
        (self.sides[travelling as usize], self.sides[travelling.other() as usize])
    }

    fn set(&mut self, travelling: Direction, sender: Side, receiver: Side) {
        self.sides[travelling as usize] = sender;
        self.sides[travelling.other() as usize] = receiver;
    }
}

impl Side {
    const fn has_acked(&self) -> bool {
        self.flags & HAS_ACKED != 0
    }

    const fn repeats(&mut self) {
        if self.flags & REPEATED != REPEATED {
            self.flags += REPEATED_ONCE;
        }
    }

    fn take_options(&mut self, segment: &Segment) {
        self.scale = segment.scale.unwrap_or(0).min(MAX_SCALE);
        self.flags = WAITS | if segment.scale.is_some() { SCALES } else { 0 };
    }
}

/// What is kept of a sequence number, to know it again.
const fn brief(seq: u32) -> [u8; 2] {
    let [a, b, c, d] = seq.to_be_bytes();
    [a ^ c, b ^ d]
}

/// Whether `a` comes before `b`.
const fn before(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) > i32::MAX as u32
}

/// Whether `a` comes after `b`.
const fn after(a: u32, b: u32) -> bool {
    before(b, a)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Original, Reply};

    const SYN: TcpFlags = TcpFlags { syn: true, ack: false, fin: false, rst: false };
    const SYN_ACK: TcpFlags = TcpFlags { ack: true, ..SYN };
    const ACK: TcpFlags = TcpFlags { syn: false, ..SYN_ACK };
    const RST: TcpFlags = TcpFlags { syn: false, ack: false, fin: false, rst: true };

    fn segment(flags: TcpFlags, seq: u32, ack: u32, len: u32) -> Segment {
        Segment { flags, seq, ack, window: 1000, len, ..Segment::default() }
    }

    /// Established: the client sends from 101 on, the server from 501, across the wrap of numbers.
    fn open(base: u32) -> Windows {
        let mut windows = Windows::default();
        let at = |n: u32| base.wrapping_add(n);
        windows.judge(Original, &segment(SYN, at(100), 0, 0)).unwrap();
        windows.judge(Reply, &segment(SYN_ACK, at(500), at(101), 0)).unwrap();
        windows.judge(Original, &segment(ACK, at(101), at(501), 0)).unwrap();
        windows
    }

    #[test]
    fn what_fits_passes_and_what_does_not_says_why() {
        for base in [0, u32::MAX - 300] {
            let at = |n: u32| base.wrapping_add(n);
            let mut windows = open(base);
            windows.judge(Original, &segment(ACK, at(101), at(501), 1000)).unwrap();
            let judged = windows.judge(Original, &segment(ACK, at(1102), at(501), 10));
            let (seq, limit) = (at(1102), at(1102));
            assert_eq!(judged, Err(OutOfWindow::BeyondWindow { seq, limit }));
            let judged = windows.judge(Reply, &segment(ACK, at(501), at(1102), 0));
            let (ack, sent) = (at(1102), at(1101));
            assert_eq!(judged, Err(OutOfWindow::AckOfUnsent { ack, sent }));
            windows.judge(Reply, &segment(ACK, at(501), at(1101), 0)).unwrap();
            let judged = windows.judge(Original, &segment(ACK, at(60), at(501), 39));
            let (end, limit) = (at(99), at(100));
            assert_eq!(judged, Err(OutOfWindow::LongAcknowledged { end, limit }));
        }
    }

    #[test]
    fn an_acknowledgment_may_be_old_but_not_ancient() {
        let mut windows = open(0);
        let old = segment(ACK, 101, 501u32.wrapping_sub(70_000), 0);
        let said = windows.judge(Original, &old).unwrap_err();
        assert!(matches!(said, OutOfWindow::AckTooOld { .. }), "{said}");
        windows.judge(Original, &segment(ACK, 101, 501u32.wrapping_sub(60_000), 0)).unwrap();
    }

    #[test]
    fn windows_scale_only_if_both_sides_say_so() {
        let judge_far = |scales: [Option<u8>; 2]| {
            let mut windows = Windows::default();
            let syn = Segment { scale: scales[0], ..segment(SYN, 0, 0, 0) };
            let syn_ack = Segment { scale: scales[1], ..segment(SYN_ACK, 0, 1, 0) };
            windows.judge(Original, &syn).unwrap();
            windows.judge(Reply, &syn_ack).unwrap();
            windows.judge(Original, &segment(ACK, 1, 1, 0)).unwrap();
            windows.judge(Original, &segment(ACK, 1, 1, 900)).unwrap();
            windows.judge(Reply, &segment(ACK, 1, 901, 0)).unwrap();
            windows.judge(Original, &segment(ACK, 40_901, 1, 10))
        };
        assert!(judge_far([Some(7), Some(7)]).is_ok());
        assert!(judge_far([Some(7), None]).is_err());
        assert!(judge_far([None, Some(7)]).is_err());
    }

    #[test]
    fn a_connection_is_picked_up_in_the_middle() {
        let mut windows = Windows::default();
        windows.judge(Original, &segment(ACK, 7_000, 9_000, 100)).unwrap();
        windows.judge(Reply, &segment(ACK, 9_000, 7_100, 50)).unwrap();
        windows.judge(Original, &segment(ACK, 7_100, 9_050, 100)).unwrap();
        assert!(windows.judge(Reply, &segment(ACK, 9_050, 70_000, 0)).is_err());
    }

    /// RFC 5961 §3.2: a guess that falls in the window does not end a connection.
    #[test]
    fn a_reset_is_believed_only_where_it_is_expected() {
        let mut windows = open(0);
        for (seq, believed) in [(501, Believed::Yes), (900, Believed::No)] {
            let reset = segment(RST, seq, 0, 0);
            assert_eq!(windows.judge(Reply, &reset), Ok(believed), "at {seq}");
        }
        windows.judge(Reply, &segment(RST, 90_000, 0, 0)).unwrap_err();
        let mut opening = Windows::default();
        opening.judge(Original, &segment(SYN, 100, 0, 0)).unwrap();
        let refusal = segment(TcpFlags { ack: true, ..RST }, 0, 101, 0);
        assert_eq!(opening.judge(Reply, &refusal), Ok(Believed::Yes));
    }

    #[test]
    fn both_sides_may_open_at_once() {
        let mut windows = Windows::default();
        windows.judge(Original, &segment(SYN, 100, 0, 0)).unwrap();
        windows.judge(Reply, &segment(SYN, 500, 0, 0)).unwrap();
        windows.judge(Original, &segment(SYN_ACK, 100, 501, 0)).unwrap();
        windows.judge(Reply, &segment(SYN_ACK, 500, 101, 0)).unwrap();
        windows.judge(Original, &segment(ACK, 101, 501, 10)).unwrap();
    }
}
