//! How long a silent flow is remembered.
//!
//! The RFCs and Linux disagree, so there are two named profiles and no third, hidden one. Every
//! figure states its source; Linux's are the defaults of
//! `Documentation/networking/nf_conntrack-sysctl.rst`.

use smoltcp::time::Duration;

use crate::sctp::SctpState;
use crate::state::TcpState;
use crate::tuple::{DCCP, GRE, Protocol, SCTP, UDP_LITE};

/// Which table of idle times is in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// The RFCs' floors (RFC 4787, 5382, 5508, 7857). The default.
    #[default]
    Rfc,
    /// The Linux kernel's defaults, for lessons and comparisons.
    Linux,
}

/// Idle times. Begin with a profile's and change what must differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP when only a SYN was seen, or one from either side.
    pub tcp_syn_sent: Duration,
    /// TCP when the SYN was answered.
    pub tcp_syn_recv: Duration,
    /// TCP while established.
    pub tcp_established: Duration,
    /// TCP once one side has sent a FIN.
    pub tcp_fin_wait: Duration,
    /// TCP once the FIN has been acknowledged and the other side still sends.
    pub tcp_close_wait: Duration,
    /// TCP when both sides have sent a FIN and the last ACK is awaited.
    pub tcp_last_ack: Duration,
    /// TCP when both FINs have been acknowledged.
    pub tcp_time_wait: Duration,
    /// TCP after a reset.
    pub tcp_close: Duration,
    /// TCP, at most, once one side has repeated itself three times in vain (`tcp_max_retrans`), or has no
    /// window.
    pub tcp_max_retrans: Duration,
    /// TCP, at most, while data is not acknowledged, or one side was never heard.
    pub tcp_unacknowledged: Duration,
    /// UDP and UDP-Lite that were never answered.
    pub udp_unreplied: Duration,
    /// UDP and UDP-Lite that were answered.
    pub udp_stream: Duration,
    /// UDP to a port of [`SHORT_LIVED_PORTS`] once answered (RFC 4787 REQ-5a allows it).
    pub udp_query: Duration,
    /// ICMP and ICMPv6 queries.
    pub icmp: Duration,
    /// SCTP when it is over, or picked up in the middle.
    pub sctp_closed: Duration,
    /// SCTP while it opens.
    pub sctp_cookie: Duration,
    /// SCTP while established.
    pub sctp_established: Duration,
    /// SCTP while it closes.
    pub sctp_shutdown: Duration,
    /// SCTP on a path that is tried.
    pub sctp_heartbeat: Duration,
    /// DCCP while it opens or closes.
    pub dccp_opening: Duration,
    /// DCCP while it is open.
    pub dccp_open: Duration,
    /// GRE that was never answered.
    pub gre: Duration,
    /// GRE that was answered.
    pub gre_stream: Duration,
    /// Every other protocol.
    pub generic: Duration,
    /// A piece of an IPv4 packet, waiting for the others.
    pub fragment_v4: Duration,
    /// A piece of an IPv6 packet, waiting for the others.
    pub fragment_v6: Duration,
}

/// UDP destinations whose exchange is one question and one answer: DNS and NTP.
pub const SHORT_LIVED_PORTS: [u16; 2] = [53, 123];

impl Timeouts {
    /// RFC 5382 REQ-5: 7,440 s established, 240 s otherwise; RFC 4787 REQ-5: UDP 120 s at least and
    /// 300 s advised; RFC 5508 REQ-2: ICMP queries 60 s; RFC 5597 REQ-5: DCCP 7,440 s open, 480 s otherwise.
    /// SCTP as Linux has it, and reassembly (`ipfrag_time`, `ip6frag_time`; RFC 8200 §4.5 says 60 s).
    ///
    /// An established connection gets a day, not just two hours and four minutes: a relay keeps it
    /// alive with probes of its own, and Linux would keep it for five days.
    pub const RFC: Self = Self {
        tcp_syn_sent: Duration::from_secs(240),
        tcp_syn_recv: Duration::from_secs(240),
        tcp_established: Duration::from_secs(86_400),
        tcp_fin_wait: Duration::from_secs(240),
        tcp_close_wait: Duration::from_secs(240),
        tcp_last_ack: Duration::from_secs(240),
        tcp_time_wait: Duration::from_secs(240),
        tcp_close: Duration::from_secs(240),
        tcp_max_retrans: Duration::from_secs(300),
        tcp_unacknowledged: Duration::from_secs(300),
        udp_unreplied: Duration::from_secs(120),
        udp_stream: Duration::from_secs(300),
        udp_query: Duration::from_secs(10),
        icmp: Duration::from_secs(60),
        sctp_closed: Duration::from_secs(10),
        sctp_cookie: Duration::from_secs(3),
        sctp_established: Duration::from_secs(210),
        sctp_shutdown: Duration::from_secs(3),
        sctp_heartbeat: Duration::from_secs(30),
        dccp_opening: Duration::from_secs(480),
        dccp_open: Duration::from_secs(7440),
        gre: Duration::from_secs(120),
        gre_stream: Duration::from_secs(300),
        generic: Duration::from_secs(600),
        fragment_v4: Duration::from_secs(30),
        fragment_v6: Duration::from_secs(60),
    };

    /// What an unconfigured Linux kernel does; DCCP as it did while it knew that.
    pub const LINUX: Self = Self {
        tcp_syn_sent: Duration::from_secs(120),
        tcp_syn_recv: Duration::from_secs(60),
        tcp_established: Duration::from_secs(432_000),
        tcp_fin_wait: Duration::from_secs(120),
        tcp_close_wait: Duration::from_secs(60),
        tcp_last_ack: Duration::from_secs(30),
        tcp_time_wait: Duration::from_secs(120),
        tcp_close: Duration::from_secs(10),
        tcp_max_retrans: Duration::from_secs(300),
        tcp_unacknowledged: Duration::from_secs(300),
        udp_unreplied: Duration::from_secs(30),
        udp_stream: Duration::from_secs(120),
        udp_query: Duration::from_secs(120),
        icmp: Duration::from_secs(30),
        sctp_closed: Duration::from_secs(10),
        sctp_cookie: Duration::from_secs(3),
        sctp_established: Duration::from_secs(210),
        sctp_shutdown: Duration::from_secs(3),
        sctp_heartbeat: Duration::from_secs(30),
        dccp_opening: Duration::from_secs(480),
        dccp_open: Duration::from_secs(43_200),
        gre: Duration::from_secs(30),
        gre_stream: Duration::from_secs(180),
        generic: Duration::from_secs(600),
        fragment_v4: Duration::from_secs(30),
        fragment_v6: Duration::from_secs(60),
    };

    /// The idle times of `profile`.
    #[must_use]
    pub const fn of(profile: Profile) -> &'static Self {
        match profile {
            Profile::Rfc => &Self::RFC,
            Profile::Linux => &Self::LINUX,
        }
    }

    /// How long a flow may stay silent.
    #[must_use]
    pub(crate) fn idle(&self, of: &Silent) -> Duration {
        match of.protocol {
            Protocol::Tcp => self.idle_tcp(of),
            Protocol::Udp | Protocol::Other(UDP_LITE) if !of.has(REPLIED) => self.udp_unreplied,
            Protocol::Udp if SHORT_LIVED_PORTS.contains(&of.dst_port) => self.udp_query,
            Protocol::Udp | Protocol::Other(UDP_LITE) => self.udp_stream,
            Protocol::Icmp | Protocol::Icmpv6 => self.icmp,
            Protocol::Other(SCTP) => match SctpState::from_u8(of.state) {
                SctpState::None | SctpState::Closed => self.sctp_closed,
                SctpState::CookieWait | SctpState::CookieEchoed => self.sctp_cookie,
                SctpState::Established => self.sctp_established,
                SctpState::ShutdownSent | SctpState::ShutdownRecd | SctpState::ShutdownAckSent => {
                    self.sctp_shutdown
                }
                SctpState::HeartbeatSent => self.sctp_heartbeat,
            },
            Protocol::Other(DCCP) if of.has(REPLIED) && !of.has(CLOSING) => self.dccp_open,
            Protocol::Other(DCCP) => self.dccp_opening,
            Protocol::Other(GRE) if of.has(REPLIED) => self.gre_stream,
            Protocol::Other(GRE) => self.gre,
            Protocol::Other(_) => self.generic,
        }
    }

    fn idle_tcp(&self, of: &Silent) -> Duration {
        let idle = match TcpState::from_u8(of.state) {
            TcpState::None | TcpState::SynSent | TcpState::SynSent2 => self.tcp_syn_sent,
            TcpState::SynRecv => self.tcp_syn_recv,
            TcpState::Established if !of.has(REPLIED) => {
                self.tcp_unacknowledged.min(self.tcp_established)
            }
            TcpState::Established => self.tcp_established,
            TcpState::FinWait => self.tcp_fin_wait,
            TcpState::CloseWait => self.tcp_close_wait,
            TcpState::LastAck => self.tcp_last_ack,
            TcpState::TimeWait => self.tcp_time_wait,
            TcpState::Close => self.tcp_close,
        };
        match () {
            () if of.has(STALLED) => idle.min(self.tcp_max_retrans),
            () if of.has(UNACKNOWLEDGED) => idle.min(self.tcp_unacknowledged),
            () => idle,
        }
    }
}

/// What of a flow decides how long it may be silent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Silent {
    pub(crate) protocol: Protocol,
    /// Where it stands, as its protocol numbers that.
    pub(crate) state: u8,
    /// Where its first packet went.
    pub(crate) dst_port: u16,
    pub(crate) marks: u8,
}

impl Silent {
    const fn has(&self, mark: u8) -> bool {
        self.marks & mark != 0
    }
}

/// An answer was seen.
pub(crate) const REPLIED: u8 = 1;
/// One side of a TCP connection has repeated itself too often, or has no window.
pub(crate) const STALLED: u8 = 1 << 1;
/// One side of a TCP connection has not acknowledged all.
pub(crate) const UNACKNOWLEDGED: u8 = 1 << 2;
/// A DCCP connection is being closed (RFC 4340 §8.3). The place is that of a mark of TCP's.
pub(crate) const CLOSING: u8 = STALLED;
