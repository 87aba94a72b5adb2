//! The offload header in front of a frame: which work was left undone on it.
//!
//! Read virtio 1.2 §5.1.6 (`struct virtio_net_hdr`) and `include/linux/virtio_net.h` first: a TAP
//! opened with IFF_VNET_HDR and a packet socket with PACKET_VNET_HDR speak it in host octet order.
//! A header that goes out again must pass the kernel's own checks, or the whole write fails with
//! EINVAL; [`Offload::check`] therefore refuses what `virtio_net_hdr_to_skb` refuses, and besides
//! whatever would let a later checksum overwrite a header that was already judged.

use smoltcp::wire::{IPV4_HEADER_LEN, IpProtocol, IpVersion, TcpPacket, UDP_HEADER_LEN, UdpPacket};

use crate::checksum::{self, ICMP_FIELD, TCP_FIELD, UDP_FIELD};
use crate::drop::DropReason;
use crate::layout::{Layout, network_offset};
use crate::port::ETHERNET_HEADER_LEN;

pub use crate::checksum::PartialChecksum;

/// Octets of the header: `sizeof(struct virtio_net_hdr)`. A device whose header was set to 12
/// (TUNSETVNETHDRSZ) has two more behind it, which stay zero.
pub const OFFLOAD_HEADER_LEN: usize = 10;

/// Datagrams one frame may be cut into: the kernel refuses more (`UDP_MAX_SEGMENTS` in
/// `include/linux/udp.h`).
pub const MAX_DATAGRAMS: usize = 128;

/// The least payload of a TCP segment, in octets: Linux never asks for less (`TCP_MIN_GSO_SIZE` in
/// `include/net/tcp.h`, its least MSS less all options).
pub const MIN_TCP_SEGMENT: usize = 8;

/// Segments one frame may be cut into: a 64 KB frame at the smallest MSS that connections are known to
/// use, 88 (`TCP_MIN_MSS`) less timestamps, has fewer. Each costs a system call where the device
/// cannot cut, so a frame of more is refused wherever it goes.
pub const MAX_SEGMENTS: usize = 1024;

/// What one segment costs besides its octets, in octets copied for the same time: a system call.
const SEGMENT_COST: usize = 128;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// A segment size the kernel keeps for itself (`include/linux/skbuff.h`).
const GSO_BY_FRAGS: u16 = 0xffff;

/// How a frame is to be cut before it reaches a wire. `size` is the payload, in octets, of every
/// segment but the last, which may be shorter; a frame with no more payload than that is one
/// segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gso {
    /// Not at all.
    None,
    /// TCP over IPv4.
    Tcp4 {
        /// Payload octets per segment.
        size: u16,
        /// Whether the CWR flag is set, which then belongs to the first segment only.
        ecn: bool,
    },
    /// TCP over IPv6.
    Tcp6 {
        /// Payload octets per segment.
        size: u16,
        /// Whether the CWR flag is set, which then belongs to the first segment only.
        ecn: bool,
    },
    /// UDP over either: each piece is a datagram of its own, not an IP fragment.
    Udp {
        /// Payload octets per datagram.
        size: u16,
    },
}

impl Gso {
    /// Payload octets per segment, if it is to be cut.
    #[must_use]
    pub const fn size(self) -> Option<u16> {
        match self {
            Self::None => None,
            Self::Tcp4 { size, .. } | Self::Tcp6 { size, .. } | Self::Udp { size } => Some(size),
        }
    }

    /// The type octet, as the kernel numbers it.
    const fn kind(self) -> u8 {
        match self {
            Self::None => GSO_NONE,
            Self::Tcp4 { ecn: false, .. } => GSO_TCPV4,
            Self::Tcp4 { ecn: true, .. } => GSO_TCPV4 | GSO_ECN,
            Self::Tcp6 { ecn: false, .. } => GSO_TCPV6,
            Self::Tcp6 { ecn: true, .. } => GSO_TCPV6 | GSO_ECN,
            Self::Udp { .. } => GSO_UDP_L4,
        }
    }
}

/// What was left undone on a frame, or need not be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offload {
    /// The checksum still to be made.
    pub checksum: Option<PartialChecksum>,
    /// The segmentation still to be done.
    pub gso: Gso,
    /// Whether somebody trusted has verified the checksums (DATA_VALID).
    pub valid: bool,
    /// Octets of all headers, or more: a hint how much the kernel should keep in one piece.
    pub header_len: u16,
}

impl Offload {
    /// A plain frame: nothing left undone, nothing vouched for.
    pub const NONE: Self = Self { checksum: None, gso: Gso::None, valid: false, header_len: 0 };

    /// Reads the header. Says nothing yet about the frame: [`Offload::check`] does.
    ///
    /// # Errors
    ///
    /// [`DropReason::BadOffload`] for flags and types not asked for with TUNSETOFFLOAD, the
    /// obsolete UDP fragmentation (type 3) among them.
    pub fn parse(header: &[u8; OFFLOAD_HEADER_LEN]) -> Result<Self, DropReason> {
        let [flags, kind, rest @ ..] = *header;
        let word = |at: usize| u16::from_ne_bytes([rest[at], rest[at + 1]]);
        let (header_len, size, start, offset) = (word(0), word(2), word(4), word(6));
        if flags & !(NEEDS_CSUM | DATA_VALID) != 0 {
            return Err(DropReason::BadOffload);
        }
        let ecn = kind & GSO_ECN != 0;
        let gso = match kind & !GSO_ECN {
            GSO_NONE if !ecn => Gso::None,
            GSO_TCPV4 => Gso::Tcp4 { size, ecn },
            GSO_TCPV6 => Gso::Tcp6 { size, ecn },
            GSO_UDP_L4 if !ecn => Gso::Udp { size },
            _ => return Err(DropReason::BadOffload),
        };
        let partial = flags & NEEDS_CSUM != 0;
        Ok(Self {
            checksum: partial.then_some(PartialChecksum { start, offset }),
            gso,
            valid: flags & DATA_VALID != 0,
            header_len,
        })
    }

    /// Writes the header.
    pub fn emit(self, header: &mut [u8; OFFLOAD_HEADER_LEN]) {
        let mut flags = 0;
        if self.checksum.is_some() {
            flags |= NEEDS_CSUM;
        }
        if self.valid {
            flags |= DATA_VALID;
        }
        let PartialChecksum { start, offset } =
            self.checksum.unwrap_or(PartialChecksum { start: 0, offset: 0 });
        header[0] = flags;
        header[1] = self.gso.kind();
        header[2..4].copy_from_slice(&self.header_len.to_ne_bytes());
        header[4..6].copy_from_slice(&self.gso.size().unwrap_or(0).to_ne_bytes());
        header[6..8].copy_from_slice(&start.to_ne_bytes());
        header[8..10].copy_from_slice(&offset.to_ne_bytes());
    }

    /// Finishes a TCP segment of our own: writes its pseudo-header sum and says how to cut it.
    ///
    /// `size` is the MSS less the options every segment carries. The IP header must be complete;
    /// its length covers all of the payload.
    ///
    /// # Errors
    ///
    /// [`DropReason::Malformed`] if `frame` is not TCP over IP to its last octet;
    /// [`DropReason::BadOffload`] if it is a fragment, or cannot be cut so.
    pub fn for_tcp(frame: &mut [u8], size: u16) -> Result<Self, DropReason> {
        let layout = Layout::of(frame)?.ok_or(DropReason::Malformed)?;
        if layout.protocol != IpProtocol::Tcp {
            return Err(DropReason::Malformed);
        }
        let segment = TcpPacket::new_checked(&frame[layout.transport..layout.end])
            .map_err(|_| DropReason::Malformed)?;
        let ecn = segment.cwr();
        let gso = match layout.version {
            IpVersion::Ipv4 => Gso::Tcp4 { size, ecn },
            IpVersion::Ipv6 => Gso::Tcp6 { size, ecn },
        };
        let header_len = usize::from(segment.header_len());
        Self::finish(frame, &layout, TCP_FIELD, header_len, gso)
    }

    /// Finishes UDP datagrams of our own, which share one header: writes the pseudo-header sum and
    /// says how to cut them. `size` is the payload octets of each but the last.
    ///
    /// # Errors
    ///
    /// [`DropReason::Malformed`] if `frame` is not UDP over IP to its last octet;
    /// [`DropReason::BadOffload`] if it is a fragment, or cannot be cut so (more than
    /// [`MAX_DATAGRAMS`]).
    pub fn for_udp(frame: &mut [u8], size: u16) -> Result<Self, DropReason> {
        let layout = Layout::of(frame)?.ok_or(DropReason::Malformed)?;
        let datagram = UdpPacket::new_checked(&frame[layout.transport..layout.end])
            .map_err(|_| DropReason::Malformed)?;
        if layout.protocol != IpProtocol::Udp || usize::from(datagram.len()) != layout.len() {
            return Err(DropReason::Malformed);
        }
        Self::finish(frame, &layout, UDP_FIELD, UDP_HEADER_LEN, Gso::Udp { size })
    }

    fn finish(
        frame: &mut [u8],
        layout: &Layout,
        offset: u16,
        header_len: usize,
        gso: Gso,
    ) -> Result<Self, DropReason> {
        // The kernel would sum what follows, and the pseudo-header takes the final destination.
        if layout.end != frame.len() || layout.source_routed {
            return Err(DropReason::Malformed);
        }
        let payload = layout.len() - header_len;
        let whole = gso.size().is_some_and(|size| payload <= usize::from(size));
        let word = |octets: usize| u16::try_from(octets).map_err(|_| DropReason::Malformed);
        let checksum = PartialChecksum { start: word(layout.transport)?, offset };
        let offload = Self {
            checksum: Some(checksum),
            gso: if whole { Gso::None } else { gso },
            valid: false,
            header_len: word(layout.transport + header_len)?,
        };
        offload.check(frame)?;
        let sum = layout.pseudo_header(frame, layout.len()).partial();
        frame[checksum.field()..][..2].copy_from_slice(&sum.0.to_be_bytes());
        Ok(offload)
    }

    /// Whether this header fits this frame, so that whoever acts on it stays inside the frame and
    /// overwrites no field but a transport checksum.
    ///
    /// # Errors
    ///
    /// [`DropReason::BadOffload`]; [`DropReason::TooManySegments`] beyond [`MIN_TCP_SEGMENT`] and
    /// [`MAX_SEGMENTS`].
    pub fn check(&self, frame: &[u8]) -> Result<(), DropReason> {
        self.fit(frame).map(|_| ())
    }

    /// What a frame of `len` octets costs whoever has to cut it in software, in octets copied for the
    /// same time: a budget that counts octets alone is no bound on a frame of a thousand segments.
    #[must_use]
    pub const fn cost(&self, len: usize) -> usize {
        match self.gso.size() {
            None | Some(0) => len,
            Some(size) => {
                let segments = len.div_ceil(size as usize);
                let most = if segments < MAX_SEGMENTS { segments } else { MAX_SEGMENTS };
                len + most * SEGMENT_COST
            }
        }
    }

    /// The same, with what was found out about the frame if there is work to do on an IP packet.
    pub(crate) fn fit(&self, frame: &[u8]) -> Result<Option<Layout>, DropReason> {
        // tun_get_user() refuses a hint that ends in the Ethernet header or behind the frame.
        let hint = usize::from(self.header_len);
        if hint > frame.len() || (1..ETHERNET_HEADER_LEN).contains(&hint) {
            return Err(DropReason::BadOffload);
        }
        if self.checksum.is_none() && self.gso == Gso::None {
            return Ok(None);
        }
        let layout = Layout::of(frame).map_err(|_| DropReason::BadOffload)?;
        let fits = self.checksum.is_none_or(|partial| is_field(partial, frame, layout.as_ref()));
        match (fits, self.gso, &layout) {
            (true, Gso::None, _) => Ok(layout),
            (true, _, Some(known)) if self.can_cut(frame, known) => {
                self.is_moderate(frame, known).then_some(layout).ok_or(DropReason::TooManySegments)
            }
            _ => Err(DropReason::BadOffload),
        }
    }

    /// Whether TCP is to be cut into segments no smaller and no more than Linux would.
    fn is_moderate(&self, frame: &[u8], layout: &Layout) -> bool {
        let (Gso::Tcp4 { size, .. } | Gso::Tcp6 { size, .. }) = self.gso else { return true };
        let size = usize::from(size);
        let headers = layout.transport_header_len(frame).unwrap_or(0);
        size >= MIN_TCP_SEGMENT && layout.len() - headers <= MAX_SEGMENTS * size
    }

    /// Whether the packet is of the kind, size and checksum that [`Offload::gso`] calls for. A
    /// partial checksum, if any, has been found to lie in the transport header.
    fn can_cut(&self, frame: &[u8], layout: &Layout) -> bool {
        let Some(size) = self.gso.size() else { return false };
        if size == 0 || size == GSO_BY_FRAGS || layout.fragment {
            return false;
        }
        // A tunnel's inner checksum lies further in, and its outer header is not to be cut.
        let at_transport =
            |partial: PartialChecksum| usize::from(partial.start) == layout.transport;
        if !self.checksum.is_none_or(at_transport) {
            return false;
        }
        let octets = &frame[layout.transport..layout.end];
        match (self.gso, layout.version, layout.protocol) {
            (Gso::Tcp4 { .. }, IpVersion::Ipv4, IpProtocol::Tcp)
            | (Gso::Tcp6 { .. }, IpVersion::Ipv6, IpProtocol::Tcp) => {
                // Without a partial sum the pseudo-header has to be made here, which takes the
                // final destination. SYN and RST are never cut: each would take a sequence number.
                (self.checksum.is_some() || !layout.source_routed)
                    && TcpPacket::new_checked(octets).is_ok_and(|tcp| !tcp.syn() && !tcp.rst())
            }
            (Gso::Udp { .. }, _, IpProtocol::Udp) => {
                self.checksum.is_some()
                    && octets.len() <= UDP_HEADER_LEN + MAX_DATAGRAMS * usize::from(size)
                    && UdpPacket::new_checked(octets)
                        .is_ok_and(|udp| usize::from(udp.len()) == octets.len())
            }
            _ => false,
        }
    }

    /// Octets of the longest IP packet this frame is on a wire, which is what an MTU bounds: as
    /// `skb_gso_validate_network_len` in `net/core/gso.c`. Without segmentation, all behind the
    /// Ethernet header and tag.
    #[must_use]
    pub fn longest_packet(&self, frame: &[u8]) -> usize {
        let whole = frame.len().saturating_sub(network_offset(frame));
        let Some(size) = self.gso.size() else { return whole };
        let Ok(Some(layout)) = Layout::of(frame) else { return whole };
        let Some(header_len) = layout.transport_header_len(frame) else { return whole };
        whole.min(layout.transport + header_len + usize::from(size) - layout.network)
    }

    /// Makes the checksum that was left partial, over the packet and not the padding behind it;
    /// afterwards the frame goes with [`Offload::NONE`].
    ///
    /// # Errors
    ///
    /// [`DropReason::BadOffload`] if the header does not fit the frame, or if the frame has to be
    /// cut first ([`crate::segment::segment`]).
    pub fn complete(&self, frame: &mut [u8]) -> Result<(), DropReason> {
        let layout = self.fit(frame)?;
        let end = layout.map_or(frame.len(), |layout| layout.end);
        match (self.gso, self.checksum) {
            (Gso::None, None) => Ok(()),
            (Gso::None, Some(partial)) => checksum::complete(&mut frame[..end], partial),
            _ => Err(DropReason::BadOffload),
        }
    }

    /// Verifies the transport checksum, unless it is still to be made or was verified already.
    /// Passes what cannot be verified here: other EtherTypes and protocols, fragments, a packet
    /// with a routing header under way (its final destination counts).
    ///
    /// # Errors
    ///
    /// [`DropReason::BadL4Checksum`], or [`DropReason::Malformed`] if a header is not whole.
    pub fn verify(&self, frame: &[u8]) -> Result<(), DropReason> {
        if self.valid || self.checksum.is_some() {
            return Ok(());
        }
        match Layout::of(frame)? {
            Some(layout) if !layout.fragment && !layout.source_routed => {
                checksum::verify_transport(
                    layout.src(frame),
                    layout.dst(frame),
                    layout.protocol.into(),
                    &frame[layout.transport..layout.end],
                )
            }
            _ => Ok(()),
        }
    }
}

/// Whether a checksum field may lie there: in the frame, and in an IP packet nowhere but where the
/// transport header has it or, behind a header that may carry a tunnel, further in.
fn is_field(partial: PartialChecksum, frame: &[u8], layout: Option<&Layout>) -> bool {
    let start = usize::from(partial.start);
    let Some(layout) = layout else {
        // virtio_net_hdr_to_skb() wants room for an IPv4 header, whatever the EtherType.
        let earliest = network_offset(frame).max(ETHERNET_HEADER_LEN + IPV4_HEADER_LEN);
        return start >= earliest && partial.field() + 2 <= frame.len();
    };
    if partial.field() + 2 > layout.end || layout.fragment {
        return false;
    }
    let (offset, behind) = match layout.protocol {
        IpProtocol::Tcp => (TCP_FIELD, None),
        IpProtocol::Udp => (UDP_FIELD, Some(UDP_HEADER_LEN)),
        IpProtocol::Icmp | IpProtocol::Icmpv6 => (ICMP_FIELD, None),
        _ => return start >= layout.transport,
    };
    if start == layout.transport {
        return partial.offset == offset;
    }
    behind.is_some_and(|header_len| start >= layout.transport + header_len)
}
