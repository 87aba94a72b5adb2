//! A container that is no kernel: it speaks TCP segment by segment over a port that is a socket pair, so
//! that a test can lose, repeat and forge what it likes, and see each segment it is sent.

#![allow(dead_code, unreachable_pub, missing_debug_implementations, missing_docs)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use datapath::{IpMtu, MacAddr, Offloads, PortId, PortRole};
use nix::sys::socket::{setsockopt, sockopt};
use worker::PortConfig;

use crate::lab::{self, Lab, NET, PATIENCE, WORLD, at};

const GATEWAY: [u8; 6] = [2, 0x42, 172, 18, 0, 1];

/// Octets of the offload header in front of each frame.
const OFFLOAD_HEADER: usize = 10;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;
pub const URG: u8 = 32;

pub struct Station {
    socket: UnixDatagram,
    mac: [u8; 6],
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    pub port: PortId,
}

/// A TCP segment, or an ICMP message if `flags` is 0 and `data` has it.
#[derive(Clone, Debug, Default)]
pub struct Segment {
    pub src_port: u16,
    pub dst_port: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub urgent: u16,
    pub options: Vec<u8>,
    pub data: Vec<u8>,
}

impl Segment {
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// What it acknowledges selectively.
    pub fn sacks(&self) -> Vec<(u32, u32)> {
        let mut options = &self.options[..];
        while let [kind, rest @ ..] = options {
            match (kind, rest) {
                (1, _) => options = rest,
                (5, [len, edges @ ..]) => {
                    let word = |octets: &[u8]| u32::from_be_bytes(octets.try_into().unwrap());
                    let edges = edges[..usize::from(*len) - 2].chunks_exact(8);
                    return edges.map(|edge| (word(&edge[..4]), word(&edge[4..]))).collect();
                }
                (0, _) | (_, []) => break,
                (_, [len, ..]) => options = &options[usize::from(*len)..],
            }
        }
        Vec::new()
    }
}

/// One connection of a station's, as far as a test does not do it by hand.
pub struct Connection<'s> {
    pub station: &'s Station,
    pub peer: SocketAddr,
    pub port: u16,
    /// Next octet to send.
    pub seq: u32,
    /// Next octet expected; what segments acknowledge.
    pub ack: u32,
    /// The window field of what is sent.
    pub window: u16,
}

pub fn sum(octets: &[u8], mut sum: u32) -> u32 {
    for pair in octets.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

pub fn checksum(sum: u32) -> [u8; 2] {
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}

impl Station {
    pub fn new(lab: &Lab, last: u8) -> Self {
        // Created in a namespace whose sockets hold more than ten datagrams.
        let (near, far) = lab
            .host
            .with(|| {
                std::fs::write("/proc/sys/net/unix/max_dgram_qlen", "4096")?;
                UnixDatagram::pair()
            })
            .unwrap();
        for socket in [&near, &far] {
            setsockopt(socket, sockopt::SndBuf, &(4 << 20)).unwrap();
        }
        near.set_nonblocking(true).unwrap();
        let mac = [2, 0x42, 172, 18, 0, last];
        let v4 = Ipv4Addr::new(172, 18, 0, last);
        let v6: Ipv6Addr = format!("fd00:18::{last}").parse().unwrap();
        let port = PortConfig {
            role: PortRole::Container,
            mtu: IpMtu(1500),
            mac: MacAddr(mac),
            addresses: vec![v4.into(), v6.into()],
            offloads: Offloads::Header,
            queues: vec![OwnedFd::from(near)],
        };
        let port = lab.switch.add_port(NET, port).unwrap();
        Self { socket: far, mac, v4, v6, port }
    }

    fn own(&self, like: IpAddr) -> IpAddr {
        if like.is_ipv4() { self.v4.into() } else { self.v6.into() }
    }

    /// An IP packet of the station's, with that protocol and hop limit.
    pub fn packet(
        &self,
        to: IpAddr,
        (protocol, hop_limit): (u8, u8),
        mut transport: Vec<u8>,
        checksum_at: Option<usize>,
    ) -> Vec<u8> {
        let len = u16::try_from(transport.len()).unwrap();
        let mut packet = Vec::new();
        let pseudo: Vec<u8> = match (self.own(to), to) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                packet.extend([0x45, 0]);
                packet.extend((20 + len).to_be_bytes());
                packet.extend([0, 0, 0x40, 0, hop_limit, protocol, 0, 0]);
                packet.extend(src.octets());
                packet.extend(dst.octets());
                let octets = checksum(sum(&packet, 0));
                packet[10..12].copy_from_slice(&octets);
                // ICMP has no pseudo-header.
                if protocol == 1 { Vec::new() } else { [src.octets(), dst.octets()].concat() }
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                packet.extend([0x60, 0, 0, 0]);
                packet.extend(len.to_be_bytes());
                packet.extend([protocol, hop_limit]);
                packet.extend(src.octets());
                packet.extend(dst.octets());
                [src.octets(), dst.octets()].concat()
            }
            _ => unreachable!("one family"),
        };
        if let Some(at) = checksum_at {
            let start = if pseudo.is_empty() { 0 } else { u32::from(protocol) + u32::from(len) };
            let octets = checksum(sum(&transport, sum(&pseudo, start)));
            transport[at..at + 2].copy_from_slice(&octets);
        }
        packet.extend(transport);
        packet
    }

    /// A UDP datagram of the station's.
    pub fn datagram(&self, from: u16, to: SocketAddr, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
        let mut octets = Vec::new();
        octets.extend(from.to_be_bytes());
        octets.extend(to.port().to_be_bytes());
        octets.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
        octets.extend([0, 0]);
        octets.extend(payload);
        self.packet(to.ip(), (17, hop_limit), octets, Some(6))
    }

    /// An echo request of the station's.
    pub fn echo(&self, id: u16, to: IpAddr, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
        let (kind, protocol) = if to.is_ipv4() { (8, 1) } else { (128, 58) };
        let mut octets = vec![kind, 0, 0, 0];
        octets.extend(id.to_be_bytes());
        octets.extend([0, 1]);
        octets.extend(payload);
        self.packet(to, (protocol, hop_limit), octets, Some(2))
    }

    /// Sends an IP packet to the gateway as it is.
    pub fn send_packet(&self, packet: &[u8]) {
        let mut frame = vec![0; OFFLOAD_HEADER];
        frame.extend(GATEWAY);
        frame.extend(self.mac);
        frame.extend(if packet[0] >> 4 == 4 { [0x08, 0] } else { [0x86, 0xdd] });
        frame.extend(packet);
        self.socket.send(&frame).unwrap();
    }

    /// The next IP packet for the station within `patience`.
    pub fn next_packet(&self, patience: Duration) -> Option<Vec<u8>> {
        let end = Instant::now() + patience;
        let mut buffer = vec![0; 70_000];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            self.socket.set_read_timeout(Some(left.max(Duration::from_millis(1)))).unwrap();
            let len = self.socket.recv(&mut buffer).ok()?;
            let frame = &buffer[OFFLOAD_HEADER..len];
            if matches!(frame[12..14], [0x08, 0] | [0x86, 0xdd]) {
                return Some(frame[14..].to_vec());
            }
        }
    }

    /// The next ICMP error for the station: who says so, type and code, and the packet it is about.
    #[track_caller]
    pub fn await_error(&self) -> (IpAddr, [u8; 2], Vec<u8>) {
        let end = Instant::now() + PATIENCE;
        while let Some(packet) = self.next_packet(end.saturating_duration_since(Instant::now())) {
            let v4 = packet[0] >> 4 == 4;
            let (protocol, header) = if v4 { (packet[9], 20) } else { (packet[6], 40) };
            let message = &packet[header..];
            let is_error = match protocol {
                1 => matches!(message[0], 3 | 11),
                58 => message[0] < 128,
                _ => false,
            };
            if is_error {
                let from = match v4 {
                    true => IpAddr::from(<[u8; 4]>::try_from(&packet[12..16]).unwrap()),
                    false => IpAddr::from(<[u8; 16]>::try_from(&packet[8..24]).unwrap()),
                };
                return (from, [message[0], message[1]], message[8..].to_vec());
            }
        }
        panic!("waited in vain for an ICMP error");
    }

    pub fn send(&self, to: IpAddr, segment: &Segment) {
        self.send_with(to, 64, segment);
    }

    /// Sends a segment with that hop limit.
    pub fn send_with(&self, to: IpAddr, hop_limit: u8, segment: &Segment) {
        let mut octets = Vec::new();
        octets.extend(segment.src_port.to_be_bytes());
        octets.extend(segment.dst_port.to_be_bytes());
        octets.extend(segment.seq.to_be_bytes());
        octets.extend(segment.ack.to_be_bytes());
        assert_eq!(segment.options.len() % 4, 0);
        octets.push(u8::try_from((20 + segment.options.len()) / 4 * 16).unwrap());
        octets.push(segment.flags);
        octets.extend(segment.window.to_be_bytes());
        octets.extend([0, 0]);
        octets.extend(segment.urgent.to_be_bytes());
        octets.extend(&segment.options);
        octets.extend(&segment.data);
        self.send_packet(&self.packet(to, (6, hop_limit), octets, Some(16)));
    }

    /// The next TCP segment or ICMP message for the station within `patience`.
    pub fn next_within(&self, patience: Duration) -> Option<Segment> {
        let end = Instant::now() + patience;
        let mut buffer = vec![0; 70_000];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            self.socket.set_read_timeout(Some(left.max(Duration::from_millis(1)))).unwrap();
            let len = self.socket.recv(&mut buffer).ok()?;
            let frame = &buffer[OFFLOAD_HEADER..len];
            let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
            let (protocol, octets) = match word(12) {
                0x0800 => (frame[23], &frame[34..14 + usize::from(word(16))]),
                0x86dd => (frame[20], &frame[54..54 + usize::from(word(18))]),
                _ => continue,
            };
            if protocol == 1 {
                return Some(Segment { data: octets.to_vec(), ..Segment::default() });
            }
            if protocol != 6 {
                continue;
            }
            let word = |at: usize| u16::from_be_bytes([octets[at], octets[at + 1]]);
            let long = |at: usize| u32::from(word(at)) << 16 | u32::from(word(at + 2));
            let header_len = usize::from(octets[12] >> 4) * 4;
            return Some(Segment {
                src_port: word(0),
                dst_port: word(2),
                seq: long(4),
                ack: long(8),
                flags: octets[13],
                window: word(14),
                urgent: word(18),
                options: octets[20..header_len].to_vec(),
                data: octets[header_len..].to_vec(),
            });
        }
    }

    /// The next segment `wanted` holds for; others before it are passed over.
    #[track_caller]
    pub fn await_segment(&self, what: &str, wanted: impl Fn(&Segment) -> bool) -> Segment {
        let end = Instant::now() + PATIENCE;
        let mut passed = Vec::new();
        while let Some(segment) = self.next_within(end.saturating_duration_since(Instant::now())) {
            if wanted(&segment) {
                return segment;
            }
            passed.push((segment.flags, segment.seq, segment.ack, segment.data.len()));
        }
        panic!("waited in vain for {what}; (flags, seq, ack, octets) seen: {passed:?}");
    }

    /// Sends a SYN from `port` with `options`, and returns the answer.
    #[track_caller]
    pub fn dial(&self, peer: SocketAddr, port: u16, options: &[u8]) -> Segment {
        self.send(
            peer.ip(),
            &Segment {
                src_port: port,
                dst_port: peer.port(),
                seq: 1000,
                flags: SYN,
                window: 65_535,
                options: options.to_vec(),
                ..Segment::default()
            },
        );
        self.await_segment("an answer to the SYN", |segment| {
            segment.dst_port == port || segment.flags == 0
        })
    }

    /// Opens a connection with a window of 64 KB, scaled if `options` say so (by 7, they must be then).
    #[track_caller]
    pub fn connect(&self, peer: SocketAddr, port: u16, options: &[u8]) -> Connection<'_> {
        let answer = self.dial(peer, port, options);
        assert!(answer.has(SYN | ACK), "{answer:?}");
        let connection = Connection {
            station: self,
            peer,
            port,
            seq: 1001,
            ack: answer.seq.wrapping_add(1),
            window: if options.windows(3).any(|option| option == [3, 3, 7]) { 512 } else { 65_535 },
        };
        connection.send(ACK, &[]);
        connection
    }

    /// Answers the SYN of a client that came by a published port.
    #[track_caller]
    pub fn accept(&self, peer: IpAddr, options: &[u8]) -> Connection<'_> {
        let syn = self.await_segment("a SYN", |segment| segment.flags == SYN);
        let connection = Connection {
            station: self,
            peer: SocketAddr::new(peer, syn.src_port),
            port: syn.dst_port,
            seq: 5001,
            ack: syn.seq.wrapping_add(1),
            window: 65_535,
        };
        let answer = connection.segment(SYN | ACK, 5000, connection.ack, &[]);
        self.send(peer, &Segment { options: options.to_vec(), ..answer });
        connection
    }
}

impl Connection<'_> {
    pub fn segment(&self, flags: u8, seq: u32, ack: u32, data: &[u8]) -> Segment {
        Segment {
            src_port: self.port,
            dst_port: self.peer.port(),
            seq,
            ack,
            flags,
            window: self.window,
            data: data.to_vec(),
            ..Segment::default()
        }
    }

    /// Sends a segment where the connection stands, and does not move it.
    pub fn send(&self, flags: u8, data: &[u8]) {
        self.send_at(flags, self.seq, self.ack, data);
    }

    pub fn send_at(&self, flags: u8, seq: u32, ack: u32, data: &[u8]) {
        self.station.send(self.peer.ip(), &self.segment(flags, seq, ack, data));
    }

    /// Sends octets and moves on.
    pub fn push(&mut self, data: &[u8]) {
        self.send(ACK | PSH, data);
        self.seq = self.seq.wrapping_add(u32::try_from(data.len()).unwrap());
    }

    pub fn next_within(&self, patience: Duration) -> Option<Segment> {
        self.station.next_within(patience)
    }

    #[track_caller]
    pub fn await_segment(&self, what: &str, wanted: impl Fn(&Segment) -> bool) -> Segment {
        self.station.await_segment(what, |segment| segment.dst_port == self.port && wanted(segment))
    }

    /// Receives `len` octets in order, acknowledging each segment; a FIN among them ends it early.
    #[track_caller]
    pub fn receive(&mut self, len: usize) -> Vec<u8> {
        let mut got = Vec::new();
        while got.len() < len {
            let segment = self.await_segment("octets", |segment| {
                segment.has(RST) || segment.has(FIN) || !segment.data.is_empty()
            });
            assert!(!segment.has(RST), "reset after {} octets", got.len());
            if segment.seq == self.ack {
                got.extend(&segment.data);
                let fin = u32::from(segment.has(FIN));
                self.ack = self.ack.wrapping_add(u32::try_from(segment.data.len()).unwrap() + fin);
                if fin > 0 {
                    self.send(ACK, &[]);
                    break;
                }
            }
            self.send(ACK, &[]);
        }
        got
    }
}

pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n.wrapping_mul(2_654_435_761) >> 7).to_le_bytes()[0]).collect()
}

pub fn listen(lab: &Lab, addr: &str) -> TcpListener {
    lab.world.with(|| TcpListener::bind(at(addr, 5000))).unwrap()
}

pub fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A lab, a station, and a connection of its to the world.
pub fn with_connection(options: &[u8], test: impl FnOnce(&Lab, Connection<'_>, TcpStream)) {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let station = Station::new(&lab, 10);
    let listener = listen(&lab, WORLD);
    let connection = station.connect(at(WORLD, 5000), 4000, options);
    let server = accept(&listener);
    test(&lab, connection, server);
}
