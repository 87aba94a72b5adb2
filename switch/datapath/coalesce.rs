//! Datagrams of one flow made one frame, for a device that cuts them again (USO).
//!
//! The price of a small datagram is the system call that writes it, so a burst's run of equal datagrams
//! of one flow leaves as one frame; the receiving kernel cuts it where a socket asks for single ones
//! (`udp_unexpected_gso`, `include/linux/udp.h`). The order within a flow is kept because a run ends
//! at the first frame that does not fit it, and nothing waits for more to come: a run lies within one
//! burst. Read `udp_gro_receive_segment` in `net/ipv4/udp_offload.c` for the kernel's own rules.

use crate::checksum::{Checksum, PartialChecksum, PseudoSum};
use crate::offload::{Gso, Offload};
use crate::port::ETHERNET_HEADER_LEN;

/// Datagrams of one run: half of what the newest kernels cut (`UDP_MAX_SEGMENTS` was 64 until 6.9).
pub const MAX_RUN: usize = 64;

/// Octets of IP in one run, below the 65,535 that a length field holds.
const MAX_OCTETS: usize = 65_000;

const UDP: u8 = 17;
const UDP_HEADER_LEN: usize = 8;

/// A run of datagrams, as far as it has come.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    v4: bool,
    /// Where the payload begins in each frame.
    payload_at: usize,
    /// Payload octets of every datagram but the last.
    size: usize,
    /// Payload octets of all.
    total: usize,
    count: usize,
    /// A shorter datagram was the last: none may follow.
    closed: bool,
}

impl Run {
    /// A run of the one datagram in `frame`, if it can be joined at all: UDP without IP options or
    /// fragmentation, its checksum still to be made. A checksum already made would have to be verified
    /// first, which costs more than it saves.
    #[must_use]
    pub fn start(frame: &[u8], offload: &Offload) -> Option<Self> {
        if offload.gso != Gso::None || offload.checksum.is_none() {
            return None;
        }
        let v4 = match (frame.get(12..14)?, frame.get(ETHERNET_HEADER_LEN)?) {
            ([0x08, 0x00], 0x45) => true,
            ([0x86, 0xdd], first) if first >> 4 == 6 => false,
            _ => return None,
        };
        let ip_len = if v4 { 20 } else { 40 };
        let payload_at = ETHERNET_HEADER_LEN + ip_len + UDP_HEADER_LEN;
        let headers = frame.get(..payload_at)?;
        let ip = &headers[ETHERNET_HEADER_LEN..];
        let (protocol, fragment) =
            if v4 { (ip[9], [ip[6] & 0x3f, ip[7]]) } else { (ip[6], [0, 0]) };
        let size = frame.len() - payload_at;
        let udp_len = usize::from(u16::from_be_bytes([ip[ip_len + 4], ip[ip_len + 5]]));
        let plain = protocol == UDP && fragment == [0, 0] && udp_len == size + UDP_HEADER_LEN;
        let partial =
            PartialChecksum { start: u16::try_from(ETHERNET_HEADER_LEN + ip_len).ok()?, offset: 6 };
        (plain && size > 0 && offload.checksum == Some(partial)).then_some(Self {
            v4,
            payload_at,
            size,
            total: size,
            count: 1,
            closed: false,
        })
    }

    /// Takes in one more datagram, if it is the next of this run: the same headers as `first`, as long
    /// as the others or, as the last one, shorter.
    pub fn join(&mut self, first: &[u8], frame: &[u8], offload: &Offload) -> bool {
        let Some(next) = Self::start(frame, offload) else { return false };
        let fits = !self.closed
            && self.count < MAX_RUN
            && next.v4 == self.v4
            && next.size <= self.size
            && self.payload_at + self.total + next.size <= MAX_OCTETS
            && same_flow(&first[..self.payload_at], &frame[..self.payload_at], self.v4);
        if fits {
            self.total += next.size;
            self.count += 1;
            self.closed = next.size < self.size;
        }
        fits
    }

    /// Datagrams in it.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Where the payload of each frame begins.
    #[must_use]
    pub const fn payload_at(&self) -> usize {
        self.payload_at
    }

    /// Makes the headers of the first frame those of the whole run, and says how it is to be cut.
    pub fn finish(&self, first: &mut [u8], offload: Offload) -> Offload {
        let ip_len = self.payload_at - UDP_HEADER_LEN - ETHERNET_HEADER_LEN;
        let Ok(udp_len) = u16::try_from(UDP_HEADER_LEN + self.total) else { return offload };
        let Ok(size) = u16::try_from(self.size) else { return offload };
        let ip = &mut first[ETHERNET_HEADER_LEN..];
        if self.v4 {
            let total_len = udp_len + 20;
            let before = word(ip, 2);
            let checksum = Checksum(word(ip, 10)).replace(before, total_len);
            ip[2..4].copy_from_slice(&total_len.to_be_bytes());
            ip[10..12].copy_from_slice(&checksum.0.to_be_bytes());
        } else {
            ip[4..6].copy_from_slice(&udp_len.to_be_bytes());
        }
        let udp = &mut ip[ip_len..];
        let sum = PseudoSum(word(udp, 6)).replace(word(udp, 4), udp_len);
        udp[4..6].copy_from_slice(&udp_len.to_be_bytes());
        udp[6..8].copy_from_slice(&sum.0.to_be_bytes());
        Offload { gso: Gso::Udp { size }, ..offload }
    }
}

fn word(octets: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([octets[at], octets[at + 1]])
}

/// Whether two headers differ at most in lengths, identification and checksums.
fn same_flow(one: &[u8], other: &[u8], v4: bool) -> bool {
    let same = |from: usize, to: usize| one[from..to] == other[from..to];
    let ip = ETHERNET_HEADER_LEN;
    if v4 {
        same(0, ip + 2) && same(ip + 6, ip + 10) && same(ip + 12, ip + 24)
    } else {
        same(0, ip + 4) && same(ip + 6, ip + 44)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emit::IpHeader;
    use crate::port::MacAddr;
    use crate::segment::segment;
    use proptest::prelude::*;
    use std::net::IpAddr;

    fn datagram(
        src: IpAddr,
        dst: IpAddr,
        port: u16,
        payload: &[u8],
        id: u16,
    ) -> (Vec<u8>, Offload) {
        let header = IpHeader { identification: Some(id), ..IpHeader::new(src, dst, UDP) };
        let mut frame = vec![0; header.transport() + 8 + payload.len()];
        header.emit(&mut frame, MacAddr([2, 0, 0, 0, 0, 1]));
        let len = u16::try_from(8 + payload.len()).unwrap();
        let udp = &mut frame[header.transport()..];
        udp[..2].copy_from_slice(&port.to_be_bytes());
        udp[2..4].copy_from_slice(&53u16.to_be_bytes());
        udp[4..6].copy_from_slice(&len.to_be_bytes());
        udp[8..].copy_from_slice(payload);
        let offload = Offload::for_udp(&mut frame, u16::MAX - 1).unwrap();
        (frame, offload)
    }

    fn addresses(v6: bool) -> (IpAddr, IpAddr) {
        match v6 {
            false => ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()),
            true => ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap()),
        }
    }

    proptest! {
        /// What is joined and cut again is what it was, but for the identification.
        #[test]
        fn cutting_undoes_joining(
            v6: bool,
            size in 1usize..1400,
            count in 2usize..40,
            last in 1usize..1400,
            seed: u8,
        ) {
            let (src, dst) = addresses(v6);
            let last = last.min(size);
            let frames: Vec<_> = (0..count)
                .map(|n| {
                    let len = if n + 1 == count { last } else { size };
                    let payload: Vec<u8> =
                        (0..len).map(|at| (at + n).to_le_bytes()[0] ^ seed).collect();
                    datagram(src, dst, 7, &payload, u16::try_from(n).unwrap())
                })
                .collect();
            let (mut first, offload) = frames[0].clone();
            let mut run = Run::start(&first, &offload).unwrap();
            let joined = 1 + frames[1..]
                .iter()
                .take_while(|(frame, offload)| run.join(&frames[0].0, frame, offload))
                .count();
            prop_assert_eq!(run.count(), joined);
            prop_assert!(joined == count || run.payload_at() + joined * size + size > MAX_OCTETS);
            for (frame, _) in &frames[1..joined] {
                first.extend_from_slice(&frame[run.payload_at()..]);
            }
            let offload = run.finish(&mut first, offload);
            let mut cut = Vec::new();
            segment(&first, offload, &mut Vec::new(), &mut |frame| cut.push(frame.to_vec())).unwrap();
            prop_assert_eq!(cut.len(), joined);
            for (got, (mut want, offload)) in cut.iter().zip(frames) {
                offload.complete(&mut want).unwrap();
                prop_assert_eq!(got, &want);
            }
        }
    }

    #[test]
    fn another_flow_a_longer_datagram_or_a_made_checksum_ends_a_run() {
        let (src, dst) = addresses(false);
        let (first, offload) = datagram(src, dst, 7, b"four", 1);
        let run = Run::start(&first, &offload).unwrap();
        let others = [
            datagram(src, dst, 8, b"four", 2),
            datagram(dst, src, 7, b"four", 2),
            datagram(src, dst, 7, b"fiver", 2),
            datagram(src, dst, 7, b"", 2),
        ];
        for (frame, offload) in &others {
            assert!(!run.clone().join(&first, frame, offload));
        }
        let (frame, _) = datagram(src, dst, 7, b"four", 2);
        assert!(!run.clone().join(&first, &frame, &Offload::NONE));
        let mut closed = run;
        let (short, offload) = datagram(src, dst, 7, b"two", 2);
        assert!(closed.join(&first, &short, &offload));
        let (frame, offload) = datagram(src, dst, 7, b"two", 3);
        assert!(!closed.join(&first, &frame, &offload), "nothing behind a shorter one");
        let (mut fragment, offload) = datagram(src, dst, 7, b"four", 1);
        fragment[ETHERNET_HEADER_LEN + 6] |= 0x20;
        assert!(Run::start(&fragment, &offload).is_none());
    }
}
