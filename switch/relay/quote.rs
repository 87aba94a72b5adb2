//! The packet an ICMP error is about, written again from what is known of its flow.
//!
//! A host socket tells of an error without the packet; the container's kernel finds its socket by the
//! quoted headers (RFC 792: the IP header and eight octets behind it), and a program such as tracepath(8)
//! finds its probe by the payload.

use datapath::emit::{self, DEFAULT_TTL, IpHeader};
use datapath::{ETHERNET_HEADER_LEN, IcmpError, MacAddr};
use nat::{Protocol, TransportAddr};
use smoltcp::wire::{Ipv4Packet, Ipv6Packet};

/// A packet of a container's, as far as an error about it is to quote it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quoted<'a> {
    pub(crate) protocol: Protocol,
    /// For ICMP, the port is the identifier.
    pub(crate) src: TransportAddr,
    pub(crate) dst: TransportAddr,
    /// Octets 4 to 7 of the transport header.
    pub(crate) rest: [u8; 4],
    /// What is known of the octets behind the first eight.
    pub(crate) behind: &'a [u8],
    /// Octets behind the IP header the packet had in all. All known, it has its checksum again.
    pub(crate) len: usize,
    /// Hops it had left; the most there are, where that is not known.
    pub(crate) hop_limit: u8,
}

impl<'a> Quoted<'a> {
    /// A datagram of `len` payload octets, of which `payload` is known. It has no checksum here.
    pub(crate) fn datagram(
        src: TransportAddr,
        dst: TransportAddr,
        (payload, len): (&'a [u8], usize),
    ) -> Self {
        let len = len + 8;
        let [high, low] = u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
        let rest = [high, low, 0, 0];
        Self {
            protocol: Protocol::Udp,
            src,
            dst,
            rest,
            behind: payload,
            len,
            hop_limit: DEFAULT_TTL,
        }
    }

    /// A segment without payload: what stands behind its ports is its sequence number.
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
        Self { protocol, src, dst, rest, behind, len: message.len().max(8), hop_limit: DEFAULT_TTL }
    }

    /// The same packet as whoever tells `what` had it: one whose hops ran out there had one left.
    pub(crate) const fn when(self, what: IcmpError) -> Self {
        let exceeded = if self.src.addr.is_ipv4() { 11 } else { 3 };
        match what {
            IcmpError::Told { kind, code: 0, .. } if kind == exceeded => {
                Self { hop_limit: 1, ..self }
            }
            _ => self,
        }
    }

    /// The packet, from its IP header on.
    pub(crate) fn packet(&self) -> Vec<u8> {
        let header = IpHeader {
            hop_limit: self.hop_limit,
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
            ip.fill_checksum();
        } else {
            Ipv6Packet::new_unchecked(&mut packet[..]).set_payload_len(len);
        }
        let transport = &mut packet[header.octets()..];
        match self.protocol {
            Protocol::Icmp | Protocol::Icmpv6 => {
                transport[0] = if self.protocol == Protocol::Icmp { 8 } else { 128 };
                transport[4..6].copy_from_slice(&self.src.port.to_be_bytes());
                transport[6..8].copy_from_slice(&self.rest[2..]);
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
            let whole = Quoted::datagram(src, dst, (b"payload", 7)).when(told);
            let mut frame = vec![0; ETHERNET_HEADER_LEN];
            frame[12..14].copy_from_slice(if src.addr.is_ipv4() { &[8, 0] } else { &[0x86, 0xdd] });
            frame.extend(whole.packet());
            // Lengths and checksums are right, or this would be refused.
            let packet = Packet::parse(&frame, &Offload::NONE).unwrap();
            assert_eq!(packet.tuple(), Some(Tuple::new(Protocol::Udp, src, dst)));
            assert_eq!((packet.hop_limit, &packet.transport(&frame)[8..]), (1, &b"payload"[..]));

            // Of a datagram of 1,000 octets, none came back: its length is told all the same.
            let octets = Quoted::datagram(src, dst, (&[], 1000)).packet();
            let at = if src.addr.is_ipv4() { 2 } else { 4 };
            let expected: u16 = if src.addr.is_ipv4() { 1028 } else { 1008 };
            assert_eq!(octets[at..at + 2], expected.to_be_bytes());
            assert_eq!(octets[octets.len() - 4..], [1008_u16.to_be_bytes(), [0, 0]].concat());
        }
    }
}
