//! Why a frame went no further, and how often.
//!
//! Each early return of the data path names one of these; each has a counter per port
//! (`include/net/dropreason-core.h` is the kernel's list of the same kind). The names are stable:
//! they appear in `pontoon stats`, and others script them.

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Why a frame went no further.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[$doc])* $name,)*
        }

        impl DropReason {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The reason's stable name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }
        }
    };
}

reasons! {
    /// Shorter than an Ethernet header.
    Runt = "runt",
    /// Longer than the largest frame a port can carry.
    Oversized = "oversized",
    /// Shorter than its own headers claim, or a header that contradicts itself.
    Malformed = "malformed",
    /// The offload header in front of the frame contradicts the frame.
    BadOffload = "bad_offload",
    /// The frame is to be cut into more or smaller TCP segments than Linux itself would ask for.
    TooManySegments = "too_many_segments",
    /// The source is a group address or all zeros, which no station may use (IEEE 802.3 §3.2.3).
    BadSource = "bad_source",
    /// The source station, or the address an ARP or NDP message claims, is the gateway's own, and the
    /// gateway did not send it.
    SpoofedGateway = "spoofed_gateway",
    /// An ARP or NDP message claims the address of another endpoint, or a packet to be routed has it for its
    /// source.
    SpoofedNeighbour = "spoofed_neighbour",
    /// A container speaks as a router, where the gateway is one: a router advertisement or a redirect, or what
    /// may be one behind what can be seen of it (RFC 6105, RFC 7113).
    RaGuard = "ra_guard",
    /// The destination is one of 01:80:C2:00:00:00-0F, which no bridge forwards (802.1Q §8.6.3).
    ReservedGroup = "reserved_group",
    /// The only way out is the port it came in by.
    SamePort = "same_port",
    /// No other port is attached.
    NoPort = "no_port",
    /// Larger than the egress port's MTU, and at layer 2 nobody can be told.
    MtuExceeded = "mtu_exceeded",
    /// Addressed to the gateway, which does not speak this EtherType.
    UnknownEtherType = "unknown_ethertype",
    /// The network has no gateway.
    NoGateway = "no_gateway",
    /// An IP header checksum is wrong.
    BadIpChecksum = "bad_ip_checksum",
    /// A TCP, UDP or ICMP checksum is wrong.
    BadL4Checksum = "bad_l4_checksum",
    /// The source address cannot be a sender's: multicast, broadcast, loopback, unspecified, or the
    /// gateway's own.
    MartianSource = "martian_source",
    /// The source is no address of this network (reverse path check).
    ForeignSource = "foreign_source",
    /// The destination cannot be routed: loopback, unspecified, broadcast, multicast, link-local.
    MartianDestination = "martian_destination",
    /// An IP option asks for source routing (RFC 1812 §5.3.13.4, RFC 5095).
    SourceRoute = "source_route",
    /// The hop limit or TTL ran out.
    TtlExceeded = "ttl_exceeded",
    /// No route leads there.
    NoRoute = "no_route",
    /// Policy forbids it.
    AdminProhibited = "admin_prohibited",
    /// Larger than the next hop's MTU and not to be fragmented.
    TooBig = "too_big",
    /// A fragment, which this leg cannot carry.
    Fragment = "fragment",
    /// The protocol above IP cannot cross the socket uplink.
    UnsupportedProtocol = "unsupported_protocol",
    /// An ARP or NDP message that the RFC says to ignore.
    BadNeighbour = "bad_neighbour",
    /// The next hop did not answer ARP or NDP, or too much waits for its answer.
    NeighbourFailed = "neighbour_failed",
    /// An ICMP error about a flow nobody knows.
    UnknownError = "unknown_error",
    /// A packet of no known flow that may not open one.
    NoFlow = "no_flow",
    /// A segment outside the window, beyond a gap, or not allowed by the connection's state.
    OutOfWindow = "out_of_window",
    /// The sender's part of the flow table is full.
    FlowLimit = "flow_limit",
    /// The host refused another socket.
    NoSocket = "no_socket",
    /// The host lets this user open no ping socket (`net.ipv4.ping_group_range`).
    EchoNotPermitted = "echo_not_permitted",
    /// The host's socket would not take the datagram.
    HostSendFailed = "host_send_failed",
    /// A datagram from an outside address this inside address never sent to (RFC 4787 REQ-8).
    Filtered = "filtered",
    /// No room for octets the host's socket has not taken yet.
    RelayBufferFull = "relay_buffer_full",
    /// An ICMP error of the gateway's, beyond the limit of the port that caused it
    /// (RFC 1812 §4.3.2.8, RFC 4443 §2.4 (f)).
    ErrorLimit = "error_limit",
    /// A TCP segment that cannot belong to its connection, by what its other side has said.
    Invalid = "invalid",
    /// An SCTP packet whose tag is not its association's (RFC 9260 §8.5).
    WrongTag = "wrong_tag",
    /// An ICMP error that quotes no packet of a flow.
    Unrelated = "unrelated",
    /// Every external port of its range is held (RFC 5508 REQ-8).
    PortsExhausted = "ports_exhausted",
    /// Its container holds as many external ports as it may (RFC 6888 REQ-4).
    PortQuota = "port_quota",
    /// Its container has as many tracked flows as it may, all answered.
    FlowQuota = "flow_quota",
    /// There are as many tracked flows as there may be, and none of its container's can give way.
    TableFull = "table_full",
    /// Its answers could not be told from another flow's.
    Clash = "clash",
    /// It is to be masqueraded, and the segment has no address of its family.
    NoAddress = "no_address",
    /// What it says cannot be said in the other IP version (RFC 7915).
    Untranslatable = "untranslatable",
    /// The port is gone, or its device refuses frames.
    EgressDown = "egress_down",
    /// The egress device had no room.
    EgressFull = "egress_full",
}

/// Number of drop reasons.
pub const REASONS: usize = DropReason::ALL.len();

impl From<nat::Reason> for DropReason {
    fn from(reason: nat::Reason) -> Self {
        use nat::Reason;
        match reason {
            Reason::Malformed => Self::Malformed,
            Reason::BadChecksum => Self::BadL4Checksum,
            Reason::Invalid(_) => Self::Invalid,
            Reason::WrongTag(_) => Self::WrongTag,
            Reason::NoFlow => Self::NoFlow,
            Reason::Filtered(_) => Self::Filtered,
            Reason::Unrelated => Self::Unrelated,
            Reason::Exhausted(_) => Self::PortsExhausted,
            Reason::PortQuota => Self::PortQuota,
            Reason::FlowQuota => Self::FlowQuota,
            Reason::TableFull => Self::TableFull,
            Reason::Clash(_) => Self::Clash,
            Reason::NoAddress => Self::NoAddress,
            Reason::TooBig(_) => Self::TooBig,
            Reason::Fragment => Self::Fragment,
            Reason::Untranslatable => Self::Untranslatable,
        }
    }
}

impl std::fmt::Display for DropReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_index_their_counter() {
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            let same = DropReason::ALL.iter().filter(|other| other.name() == reason.name());
            assert_eq!(same.count(), 1, "{reason}");
        }
    }

    /// What the NAT says and what is counted is the same word.
    #[test]
    fn a_refusal_of_the_nat_keeps_its_name() {
        use nat::{Protocol, Reason, TransportAddr, Tuple};
        let at = TransportAddr::new([192, 0, 2, 1].into(), 1);
        let reasons = [
            Reason::Malformed,
            Reason::BadChecksum,
            Reason::NoFlow,
            Reason::Filtered(at),
            Reason::Unrelated,
            Reason::Exhausted(at),
            Reason::PortQuota,
            Reason::FlowQuota,
            Reason::TableFull,
            Reason::Clash(Tuple::new(Protocol::Udp, at, at)),
            Reason::NoAddress,
            Reason::TooBig(1500),
            Reason::Fragment,
            Reason::Untranslatable,
        ];
        for reason in reasons {
            assert_eq!(DropReason::from(reason).name(), reason.name());
        }
    }
}
