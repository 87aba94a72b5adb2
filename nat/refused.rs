//! Why a packet is not translated, in words and numbers, and what its sender is told.
//!
//! RFC 5508 REQ-8: who finds no place hears so, with ICMP 3/13. What comes unasked from outside hears
//! nothing.

use std::fmt;

use crate::sctp::WrongTag;
use crate::tuple::{TransportAddr, Tuple};
use crate::window::OutOfWindow;

/// Why a packet goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its headers contradict it or end early.
    Malformed,
    /// An ICMP message whose checksum is wrong, or a UDP datagram over IPv6 without one.
    BadChecksum,
    /// A TCP segment that cannot belong to its connection.
    Invalid(OutOfWindow),
    /// An SCTP packet whose tag is not its association's.
    WrongTag(WrongTag),
    /// A TCP segment of no connection that does not open one, or an answer to no question.
    NoFlow,
    /// It comes from outside, for an external address and port that has not spoken to its sender.
    Filtered(TransportAddr),
    /// An ICMP error that quotes no packet of a flow.
    Unrelated,
    /// Every external port of its range is held.
    Exhausted(TransportAddr),
    /// Its container holds as many external ports as it may.
    PortQuota,
    /// Its container has as many flows as it may, all assured.
    FlowQuota,
    /// There are as many flows as there may be.
    TableFull,
    /// Another flow has this tuple, which it would be answered with. Where nothing but addresses tells flows
    /// apart (GRE, ESP, AH), one container speaks to a far side at a time.
    Clash(Tuple),
    /// It is to be masqueraded, and the egress has no address of its family.
    NoAddress,
    /// It is longer than the egress carries, and may not be cut.
    TooBig(u16),
    /// A piece that overlaps another, or for which there is no room.
    Fragment,
    /// What it says cannot be said in the other family (RFC 7915).
    Untranslatable,
}

impl Reason {
    /// A name that stays, for counters and scripts.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::BadChecksum => "bad_l4_checksum",
            Self::Invalid(_) => "invalid",
            Self::WrongTag(_) => "wrong_tag",
            Self::NoFlow => "no_flow",
            Self::Filtered(_) => "filtered",
            Self::Unrelated => "unrelated",
            Self::Exhausted(_) => "ports_exhausted",
            Self::PortQuota => "port_quota",
            Self::FlowQuota => "flow_quota",
            Self::TableFull => "table_full",
            Self::Clash(_) => "clash",
            Self::NoAddress => "no_address",
            Self::TooBig(_) => "too_big",
            Self::Fragment => "fragment",
            Self::Untranslatable => "untranslatable",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => write!(f, "its headers contradict it or end early"),
            Self::BadChecksum => write!(f, "its checksum is wrong"),
            Self::Invalid(why) => write!(f, "it cannot belong to its connection: {why}"),
            Self::WrongTag(why) => write!(f, "it cannot belong to its association: {why}"),
            Self::NoFlow => write!(f, "it belongs to no flow and begins none"),
            Self::Filtered(to) => write!(f, "nobody behind {to} has spoken to its sender"),
            Self::Unrelated => write!(f, "it is an error about no known flow"),
            Self::Exhausted(of) => {
                write!(f, "no external port of {}'s range is left on {}", of.port, of.addr)
            }
            Self::PortQuota => write!(f, "its container holds as many external ports as it may"),
            Self::FlowQuota => write!(f, "its container has as many flows as it may"),
            Self::TableFull => write!(f, "there are as many flows as there may be"),
            Self::Clash(Tuple { protocol, src, dst })
                if protocol.is_query() || protocol.has_ports() =>
            {
                write!(f, "its answers, {protocol} {src} > {dst}, would be another flow's")
            }
            Self::Clash(Tuple { protocol, src, dst }) => {
                let number = protocol.number();
                write!(
                    f,
                    "another container is the one that speaks IP protocol {number} with {} by {}: nothing \
                     but the addresses tells whose answers are whose",
                    src.addr, dst.addr
                )
            }
            Self::NoAddress => write!(f, "the egress has no address of its family to show"),
            Self::TooBig(mtu) => write!(f, "it is longer than the {mtu} octets the egress carries"),
            Self::Fragment => write!(f, "it is a piece that cannot be kept"),
            Self::Untranslatable => write!(f, "the other IP version cannot say what it says"),
        }
    }
}

/// What a packet's sender is told about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tell {
    /// ICMP 3/13, ICMPv6 1/1.
    AdminProhibited,
    /// ICMP 3/4, ICMPv6 2/0, with this MTU.
    TooBig(u16),
}

/// A packet that is not translated. It reads as its sender sent it, so that an error may quote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub reason: Reason,
    /// What its sender is told, where an error may be sent about it at all.
    pub tell: Option<Tell>,
}

impl Refused {
    pub(crate) const fn silently(reason: Reason) -> Self {
        Self { reason, tell: None }
    }

    pub(crate) const fn telling(reason: Reason) -> Self {
        Self { reason, tell: Some(Tell::AdminProhibited) }
    }
}

/// A packet does not fit an egress of that MTU. Where its IP version has changed, `now_v6` says to which, and its
/// sender is told what that leaves of the MTU in its own version (RFC 7915 §4.2, §5.2).
pub(crate) const fn too_big(mtu: u16, now_v6: Option<bool>) -> Refused {
    let told = match now_v6 {
        None => mtu,
        Some(false) => mtu.saturating_add(DIFFERENCE),
        Some(true) => mtu.saturating_sub(DIFFERENCE),
    };
    Refused { reason: Reason::TooBig(mtu), tell: Some(Tell::TooBig(told)) }
}

/// Octets by which IPv6's header is longer than IPv4's.
pub(crate) const DIFFERENCE: u16 = 20;
