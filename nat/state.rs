//! Where a TCP connection stands, as far as a watcher in the middle can tell.
//!
//! Read `net/netfilter/nf_conntrack_proto_tcp.c` first. One function owns the transitions; the drawing
//! is above it.

use std::fmt;

/// Which way a packet of a flow travels (`IP_CT_DIR_ORIGINAL`, `IP_CT_DIR_REPLY`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// As the flow's first packet did.
    Original,
    /// The other way.
    Reply,
}

impl Direction {
    /// The opposite way.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Original => Self::Reply,
            Self::Reply => Self::Original,
        }
    }
}

/// Where a TCP connection stands, by the names `conntrack -L` prints.
///
/// ```text
///   None ─SYN→ SynSent ─SYN,ACK← SynRecv ─ACK→ Established ─FIN⇄ FinWait ─ACK⇄ CloseWait
///                 └─SYN← SynSent2 ─SYN,ACK⇄ SynRecv          FinWait, CloseWait ─FIN⇄ LastAck ─ACK⇄ TimeWait
///   None ─ACK→ Established            (picked up in the middle)
///    any ─RST⇄ Close ─ACK⇄ Established (the reset was not meant, RFC 7857 §2.2)
/// ```
/// `→` is the original direction, `←` the reply, `⇄` either. `SynSent2` is a simultaneous open (RFC 9293
/// §3.5, figure 8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum TcpState {
    /// Nothing seen yet; also the state of every flow that is not TCP.
    #[default]
    None,
    /// A SYN went out.
    SynSent,
    /// SYNs went both ways, and neither was acknowledged yet.
    SynSent2,
    /// The SYN was answered.
    SynRecv,
    /// Both sides know of each other.
    Established,
    /// One side has finished sending.
    FinWait,
    /// The finished side's FIN was acknowledged.
    CloseWait,
    /// The second side has finished too.
    LastAck,
    /// All is acknowledged.
    TimeWait,
    /// A side has reset the connection.
    Close,
}

impl TcpState {
    const ALL: [Self; 10] = [
        Self::None,
        Self::SynSent,
        Self::SynSent2,
        Self::SynRecv,
        Self::Established,
        Self::FinWait,
        Self::CloseWait,
        Self::LastAck,
        Self::TimeWait,
        Self::Close,
    ];

    /// The state whose discriminant `state` is.
    pub(crate) fn from_u8(state: u8) -> Self {
        Self::ALL.get(usize::from(state)).copied().unwrap_or_default()
    }

    /// The name in `conntrack -L`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::SynSent => "SYN_SENT",
            Self::SynSent2 => "SYN_SENT2",
            Self::SynRecv => "SYN_RECV",
            Self::Established => "ESTABLISHED",
            Self::FinWait => "FIN_WAIT",
            Self::CloseWait => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::TimeWait => "TIME_WAIT",
            Self::Close => "CLOSE",
        }
    }

    /// State after one segment. A segment on no edge changes nothing.
    #[must_use]
    pub const fn next(self, travelling: Direction, flags: TcpFlags) -> Self {
        use Direction::{Original, Reply};
        if flags.rst {
            return Self::Close;
        }
        match (self, travelling) {
            (Self::None | Self::Close | Self::TimeWait, Original) if flags.syn => Self::SynSent,
            (Self::None, Original) if flags.ack && !flags.fin => Self::Established,
            (Self::SynSent, Reply) if flags.syn && flags.ack => Self::SynRecv,
            (Self::SynSent, Reply) if flags.syn => Self::SynSent2,
            (Self::SynSent2, _) if flags.syn && flags.ack => Self::SynRecv,
            (Self::SynRecv, Original) if flags.fin => Self::FinWait,
            (Self::SynRecv, Original) if flags.ack => Self::Established,
            (Self::Established, _) if flags.fin => Self::FinWait,
            (Self::FinWait | Self::CloseWait, _) if flags.fin => Self::LastAck,
            (Self::FinWait, _) if flags.ack => Self::CloseWait,
            (Self::LastAck, _) if flags.ack => Self::TimeWait,
            (Self::Close, _) if flags.ack && !flags.syn => Self::Established,
            (unchanged, _) => unchanged,
        }
    }
}

impl fmt::Display for TcpState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The control bits of a segment that move a connection (RFC 9293 §3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "they are the header's bits")]
pub struct TcpFlags {
    /// Synchronise sequence numbers.
    pub syn: bool,
    /// Acknowledgment field significant.
    pub ack: bool,
    /// No more data from the sender.
    pub fin: bool,
    /// Reset the connection.
    pub rst: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYN: TcpFlags = TcpFlags { syn: true, ack: false, fin: false, rst: false };
    const SYN_ACK: TcpFlags = TcpFlags { ack: true, ..SYN };
    const ACK: TcpFlags = TcpFlags { syn: false, ..SYN_ACK };
    const FIN_ACK: TcpFlags = TcpFlags { fin: true, ..ACK };
    const RST: TcpFlags = TcpFlags { syn: false, ack: false, fin: false, rst: true };

    #[test]
    fn a_connection_opens_and_closes_through_every_named_state() {
        use Direction::{Original, Reply};
        let story = [
            (Original, SYN, TcpState::SynSent),
            (Reply, SYN_ACK, TcpState::SynRecv),
            (Original, ACK, TcpState::Established),
            (Reply, ACK, TcpState::Established),
            (Original, FIN_ACK, TcpState::FinWait),
            (Reply, ACK, TcpState::CloseWait),
            (Reply, FIN_ACK, TcpState::LastAck),
            (Original, ACK, TcpState::TimeWait),
            (Original, SYN, TcpState::SynSent),
        ];
        let mut state = TcpState::None;
        for (travelling, flags, expected) in story {
            state = state.next(travelling, flags);
            assert_eq!(state, expected, "after {travelling:?} {flags:?}");
        }
    }

    #[test]
    fn both_sides_may_open_at_once() {
        use Direction::{Original, Reply};
        let story = [
            (Original, SYN, TcpState::SynSent),
            (Reply, SYN, TcpState::SynSent2),
            (Original, SYN_ACK, TcpState::SynRecv),
            (Reply, SYN_ACK, TcpState::SynRecv),
            (Original, ACK, TcpState::Established),
        ];
        let mut state = TcpState::None;
        for (travelling, flags, expected) in story {
            state = state.next(travelling, flags);
            assert_eq!(state, expected, "after {travelling:?} {flags:?}");
        }
    }

    #[test]
    fn traffic_after_a_reset_says_that_it_was_not_meant() {
        let reset = TcpState::Established.next(Direction::Reply, RST);
        assert_eq!(reset, TcpState::Close);
        assert_eq!(reset.next(Direction::Original, ACK), TcpState::Established);
        assert_eq!(reset.next(Direction::Reply, RST), TcpState::Close);
        assert_eq!(reset.next(Direction::Original, SYN), TcpState::SynSent);
    }

    #[test]
    fn a_reset_closes_from_any_state_and_a_stray_segment_changes_none() {
        for state in TcpState::ALL {
            assert_eq!(state.next(Direction::Reply, RST), TcpState::Close);
            assert_eq!(state.next(Direction::Reply, TcpFlags::default()), state);
        }
    }
}
