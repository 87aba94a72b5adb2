//! The packet an ICMP error is about, written again from what is known of its flow.
//!
//! A host socket tells of an error without the packet; the container's kernel finds its socket by the
//! quoted headers (RFC 792: the IP header and eight octets behind it), and a program such as tracepath(8)
//! finds its probe by the payload. What is not known of a header is as a Linux host would have sent it. Of a
//! connection's SYN the packet itself is kept, until the far side has answered.

use datapath::emit::{self, DEFAULT_TTL, IpHeader};
use datapath::{ETHERNET_HEADER_LEN, IcmpError, MacAddr, Packet, Received};
use nat::{Protocol, TransportAddr};
use smoltcp::wire::{Ipv4Packet, Ipv6Packet};

use crate::last::{Last, Seen};

/// The octets of a container's packet to be quoted later, from its IP header on: more than any SYN's headers
/// are, and its checksum is made.
pub(crate) fn kept(received: &Received<'_>, packet: &Packet) -> Box<[u8]> {
    const MOST: usize = 128;
    let mut octets = received.frame[Packet::IP..packet.end].to_vec();
    if packet.protocol == Protocol::Tcp && received.offload.checksum.is_some() {
        let header = IpHeader::new(packet.src, packet.dst, packet.protocol.number());
        let segment = &mut octets[packet.transport - Packet::IP..];
        segment[16..18].fill(0);
        emit::fill_checksum(&header, segment, 16);
    }
    octets.truncate(MOST);
    octets.into()
}

/// Leaves a packet, from its IP header on, as whoever tells `what` had it: one whose hops ran out there had one
/// left.
pub(crate) fn arrive(what: IcmpError, packet: &mut [u8]) {
    let v4 = packet.first().is_some_and(|first| first >> 4 == 4);
    match what {
        IcmpError::Told { kind: 11, code: 0, .. } if v4 => {
            let mut ip = Ipv4Packet::new_unchecked(packet);
            ip.set_hop_limit(1);
            ip.fill_checksum();
        }
        IcmpError::Told { kind: 3, code: 0, .. } if !v4 => {
            Ipv6Packet::new_unchecked(packet).set_hop_limit(1);
        }
        _ => {}
    }
}

/// A packet of a container's, as far as an error about it is to quote it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quoted<'a> {
    pub(crate) protocol: Protocol,
    /// For ICMP, the port is the identifier.
    pub(crate) src: TransportAddr,
    pub(crate) dst: TransportAddr,
    /// Octets 4 to 7 of the transport header; of a datagram, they follow from its length.
    pub(crate) rest: [u8; 4],
    /// What is known of the octets behind the first eight.
    pub(crate) behind: &'a [u8],
    /// Octets behind the IP header the packet had in all. All known, it has its checksum again.
    pub(crate) len: usize,
    /// Hops it had left; what a host gives, where that is not known.
    pub(crate) hop_limit: u8,
    pub(crate) seen: Seen,
}

impl<'a> Quoted<'a> {
    /// A datagram of which no more is known than its payload. It has its checksum here.
    pub(crate) fn datagram(src: TransportAddr, dst: TransportAddr, payload: &'a [u8]) -> Self {
        Self {
            protocol: Protocol::Udp,
            src,
            dst,
            rest: [0; 4],
            behind: payload,
            len: payload.len() + 8,
            hop_limit: DEFAULT_TTL,
            seen: Seen::default(),
        }
    }

    /// With what the socket's last one says of it, if it is about that: `to` is whom the socket sent it to.
    pub(crate) fn like(self, last: &Last, to: TransportAddr, padded: bool) -> Self {
        let about = match self.protocol {
            Protocol::Udp => to,
            _ => TransportAddr::new(to.addr, u16::from_be_bytes([self.rest[2], self.rest[3]])),
        };
        let (len, seen) = last.about(about, self.behind, padded);
        Self { len: len + 8, seen, ..self }
    }

    /// A segment without payload: what stands behind its ports is its sequence number.
    #[cfg(test)]
    pub(crate) const fn segment(src: TransportAddr, dst: TransportAddr, seq: u32) -> Self {
        let rest = seq.to_be_bytes();
        Self {
            protocol: Protocol::Tcp,
            src,
            dst,
            rest,
            behind: &[],
            len: 20,
            hop_limit: DEFAULT_TTL,
            seen: Seen { traffic_class: 0, dont_fragment: true, label: 0 },
        }
    }

    /// An echo request, of which the host's came back as `message`.
    pub(crate) fn echo(
        protocol: Protocol,
        src: TransportAddr,
        dst: TransportAddr,
        message: &'a [u8],
    ) -> Self {
        let sequence = message.get(6..8).unwrap_or(&[0, 0]);
        let rest = [0, 0, sequence[0], sequence[1]];
        let behind = message.get(8..).unwrap_or_default();
        let (len, seen) = (message.len().max(8), Seen::default());
        Self { protocol, src, dst, rest, behind, len, hop_limit: DEFAULT_TTL, seen }
    }

    /// The packet, from its IP header on.
    pub(crate) fn packet(&self) -> Vec<u8> {
        let header = IpHeader {
            hop_limit: self.hop_limit,
            traffic_class: self.seen.traffic_class,
            ..IpHeader::new(self.src.addr, self.dst.addr, self.protocol.number())
        };
        let known = self.behind.len().min(self.len.saturating_sub(8));
        let mut frame = vec![0; header.transport() + 8 + known];
        header.emit(&mut frame, MacAddr([0; 6]));
        let mut packet = frame.split_off(ETHERNET_HEADER_LEN);
        let counted = if header.src.is_ipv4() { header.octets() } else { 0 };
        let len = u16::try_from(counted + self.len).unwrap_or(u16::MAX);
        if header.src.is_ipv4() {
            let mut ip = Ipv4Packet::new_unchecked(&mut packet[..]);
            ip.set_total_len(len);
            ip.set_dont_frag(self.seen.dont_fragment);
            ip.set_ident((self.seen.label & 0xffff) as u16);
            ip.fill_checksum();
        } else {
            let mut ip = Ipv6Packet::new_unchecked(&mut packet[..]);
            ip.set_payload_len(len);
            ip.set_flow_label(self.seen.label);
        }
        let transport = &mut packet[header.octets()..];
        match self.protocol {
            Protocol::Icmp | Protocol::Icmpv6 => {
                transport[0] = if self.protocol == Protocol::Icmp { 8 } else { 128 };
                transport[4..6].copy_from_slice(&self.src.port.to_be_bytes());
                transport[6..8].copy_from_slice(&self.rest[2..]);
            }
            Protocol::Udp => {
                let len = u16::try_from(self.len).unwrap_or(u16::MAX);
                transport[..2].copy_from_slice(&self.src.port.to_be_bytes());
                transport[2..4].copy_from_slice(&self.dst.port.to_be_bytes());
                transport[4..6].copy_from_slice(&len.to_be_bytes());
            }
            _ => {
                transport[..2].copy_from_slice(&self.src.port.to_be_bytes());
                transport[2..4].copy_from_slice(&self.dst.port.to_be_bytes());
                transport[4..8].copy_from_slice(&self.rest);
            }
        }
        transport[8..].copy_from_slice(&self.behind[..known]);
        if known + 8 == self.len {
            match self.protocol {
                Protocol::Udp => emit::fill_checksum(&header, transport, 6),
                Protocol::Icmp | Protocol::Icmpv6 => emit::fill_checksum(&header, transport, 2),
                _ => {}
            }
        }
        packet
    }
}

#[cfg(test)]
mod tests {
    use datapath::{Offload, Packet};
    use nat::Tuple;

    use super::*;

    #[test]
    fn i3_i4_a_quote_is_the_containers_packet_as_far_as_that_is_known() {
        for (inside, outside) in
            [("192.0.2.1:5000", "198.51.100.9:53"), ("[2001:db8::1]:5000", "[2001:db8::9]:53")]
        {
            let [src, dst] = [inside, outside]
                .map(|addr| TransportAddr::from(addr.parse::<std::net::SocketAddr>().unwrap()));
            let told =
                IcmpError::Told { kind: if src.addr.is_ipv4() { 11 } else { 3 }, code: 0, word: 0 };
            let seen = Seen { traffic_class: 0x28, dont_fragment: false, label: 0xabcd };
            let whole = Quoted { seen, ..Quoted::datagram(src, dst, b"payload") };
            let mut whole = whole.packet();
            arrive(told, &mut whole);
            let mut frame = vec![0; ETHERNET_HEADER_LEN];
            frame[12..14].copy_from_slice(if src.addr.is_ipv4() { &[8, 0] } else { &[0x86, 0xdd] });
            frame.extend(whole);
            // Lengths and checksums are right, or this would be refused.
            let packet = Packet::parse(&frame, &Offload::NONE).unwrap();
            assert_eq!(packet.tuple(), Some(Tuple::new(Protocol::Udp, src, dst)));
            let dont_fragment = src.addr.is_ipv6();
            assert_eq!(Seen::of(&packet, &frame), Seen { dont_fragment, ..seen });
            assert_eq!((packet.hop_limit, &packet.transport(&frame)[8..]), (1, &b"payload"[..]));

            // Of a datagram of 1,000 octets, none came back: its length is told all the same.
            let octets = Quoted { len: 1008, ..Quoted::datagram(src, dst, &[]) }.packet();
            let at = if src.addr.is_ipv4() { 2 } else { 4 };
            let expected: u16 = if src.addr.is_ipv4() { 1028 } else { 1008 };
            assert_eq!(octets[at..at + 2], expected.to_be_bytes());
            assert_eq!(octets[octets.len() - 4..], [1008_u16.to_be_bytes(), [0, 0]].concat());
        }
    }
}
