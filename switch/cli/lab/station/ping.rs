//! An echo client that prints what iputils' ping prints: answers with their TTL, and who sent an ICMP
//! error instead.
//!
//! By a raw socket, which gets the IP header with the TTL and sees errors about its own requests
//! (`raw(7)`). A process of the lab is root in its namespace and may open one.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, socket,
};
use pnet::packet::Packet as _;
use pnet::packet::icmp::destination_unreachable::DestinationUnreachablePacket;
use pnet::packet::icmp::echo_reply::EchoReplyPacket;
use pnet::packet::icmp::echo_request::{EchoRequestPacket, MutableEchoRequestPacket};
use pnet::packet::icmp::{self, IcmpCode, IcmpPacket, IcmpType, IcmpTypes};
use pnet::packet::ip::IpNextHeaderProtocols;
use pnet::packet::ipv4::Ipv4Packet;

use super::patience::{PATIENCE, failure};
use crate::failure::Outcome;
use crate::output::print;

/// Octets of payload, as ping's default.
const PAYLOAD: usize = 56;

/// From one request to the next, once it was answered.
const INTERVAL: Duration = Duration::from_millis(100);

/// Ends with 0 when every request was answered, else with 1.
pub(super) fn run(addr: Ipv4Addr, count: u16) -> Outcome {
    // Asks the kernel for a route first and says what it says, as ping does.
    let probe = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
    let connected = probe.and_then(|probe| probe.connect(SocketAddrV4::new(addr, 1025)));
    connected.map_err(|error| failure("connect", &error))?;
    let mut pinger = Pinger::new(addr).map_err(|error| failure("open a raw socket", &error))?;
    print(&format!("PING {addr} ({addr}) {PAYLOAD}({}) bytes of data.", PAYLOAD + 8 + 20))?;
    let start = Instant::now();
    let mut tally = Tally::default();
    for sequence in 1..=count {
        if sequence > 1 {
            std::thread::sleep(INTERVAL);
        }
        let asked = Instant::now();
        pinger.ask(sequence).map_err(|error| failure("send", &error))?;
        tally.sent += 1;
        match pinger.hear(sequence, asked + PATIENCE).map_err(|error| failure("receive", &error))? {
            Some(Heard::Reply { ttl, octets }) => {
                let time = asked.elapsed().as_secs_f64() * 1e3;
                print(&format!(
                    "{octets} bytes from {addr}: icmp_seq={sequence} ttl={ttl} time={time:.3} ms"
                ))?;
                tally.received += 1;
            }
            Some(Heard::Error { from, what }) => {
                print(&format!("From {from} icmp_seq={sequence} {what}"))?;
                tally.errors += 1;
            }
            None => {}
        }
    }
    print(&format!("\n--- {addr} ping statistics ---\n{}", tally.text(start.elapsed())))?;
    Ok(if tally.received == tally.sent { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[derive(Debug, Default)]
struct Tally {
    sent: u32,
    received: u32,
    errors: u32,
}

impl Tally {
    fn text(&self, time: Duration) -> String {
        let errors = match self.errors {
            0 => String::new(),
            errors => format!("+{errors} errors, "),
        };
        let loss = (self.sent - self.received) * 100 / self.sent.max(1);
        format!(
            "{} packets transmitted, {} received, {errors}{loss}% packet loss, time {}ms",
            self.sent,
            self.received,
            time.as_millis()
        )
    }
}

/// What came back for a request.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Reply { ttl: u8, octets: usize },
    Error { from: Ipv4Addr, what: String },
}

struct Pinger {
    socket: OwnedFd,
    addr: Ipv4Addr,
    identifier: u16,
}

impl Pinger {
    fn new(addr: Ipv4Addr) -> Result<Self, io::Error> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Icmp)?;
        // The low half of our pid, as ping's.
        let [.., high, low] = std::process::id().to_be_bytes();
        Ok(Self { socket, addr, identifier: u16::from_be_bytes([high, low]) })
    }

    fn ask(&mut self, sequence: u16) -> io::Result<()> {
        let request = request(self.identifier, sequence);
        let to = SockaddrIn::from(SocketAddrV4::new(self.addr, 0));
        sendto(self.socket.as_raw_fd(), &request, &to, MsgFlags::empty())?;
        Ok(())
    }

    /// What comes back for request `sequence` until `deadline`.
    fn hear(&self, sequence: u16, deadline: Instant) -> io::Result<Option<Heard>> {
        let mut buffer = [0; 2048];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            let mut waiting = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            if poll(&mut waiting, wait)? == 0 {
                return Ok(None);
            }
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(len) => {
                    let packet = buffer.get(..len).unwrap_or_default();
                    if let Some(heard) = self.read(packet, sequence) {
                        return Ok(Some(heard));
                    }
                }
                Err(nix::errno::Errno::EAGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// What `packet` tells about request `sequence`; `None` where it is about something else.
    fn read(&self, packet: &[u8], sequence: u16) -> Option<Heard> {
        let packet = Ipv4Packet::new(packet)?;
        let message = IcmpPacket::new(packet.payload())?;
        if message.get_icmp_type() == IcmpTypes::EchoReply {
            let reply = EchoReplyPacket::new(packet.payload())?;
            let ours = reply.get_identifier() == self.identifier
                && reply.get_sequence_number() == sequence
                && packet.get_source() == self.addr;
            let octets = packet.payload().len();
            return ours.then(|| Heard::Reply { ttl: packet.get_ttl(), octets });
        }
        // An error: past four octets of its own it quotes the packet it is about (RFC 792).
        let about = DestinationUnreachablePacket::new(packet.payload())?;
        let what = error_in_words(message.get_icmp_type(), message.get_icmp_code(), &about)?;
        let quoted = Ipv4Packet::new(about.payload())?;
        let header = usize::from(quoted.get_header_length()) * 4;
        let request = EchoRequestPacket::new(about.payload().get(header..)?)?;
        let ours = quoted.get_destination() == self.addr
            && quoted.get_next_level_protocol() == IpNextHeaderProtocols::Icmp
            && request.get_icmp_type() == IcmpTypes::EchoRequest
            && request.get_identifier() == self.identifier
            && request.get_sequence_number() == sequence;
        ours.then(|| Heard::Error { from: packet.get_source(), what })
    }
}

fn request(identifier: u16, sequence: u16) -> [u8; PAYLOAD + 8] {
    let mut octets = [0; PAYLOAD + 8];
    for (octet, value) in octets.iter_mut().skip(8).zip(0x10..) {
        *octet = value;
    }
    if let Some(mut request) = MutableEchoRequestPacket::new(&mut octets) {
        request.set_icmp_type(IcmpTypes::EchoRequest);
        request.set_identifier(identifier);
        request.set_sequence_number(sequence);
    }
    let checksum = IcmpPacket::new(&octets).map_or(0, |packet| icmp::checksum(&packet));
    octets[2..4].copy_from_slice(&checksum.to_be_bytes());
    octets
}

/// The words of `pr_icmph` in iputils' `ping.c`; `None` for what is no error.
fn error_in_words(
    kind: IcmpType,
    code: IcmpCode,
    about: &DestinationUnreachablePacket<'_>,
) -> Option<String> {
    let words = match (kind, code.0) {
        (IcmpTypes::DestinationUnreachable, 0) => "Destination Net Unreachable",
        (IcmpTypes::DestinationUnreachable, 1) => "Destination Host Unreachable",
        (IcmpTypes::DestinationUnreachable, 2) => "Destination Protocol Unreachable",
        (IcmpTypes::DestinationUnreachable, 3) => "Destination Port Unreachable",
        (IcmpTypes::DestinationUnreachable, 4) => {
            return Some(format!("Frag needed and DF set (mtu = {})", about.get_next_hop_mtu()));
        }
        (IcmpTypes::DestinationUnreachable, 13) => "Packet filtered",
        (IcmpTypes::DestinationUnreachable, code) => {
            return Some(format!("Dest Unreachable, Bad Code: {code}"));
        }
        (IcmpTypes::TimeExceeded, 0) => "Time to live exceeded",
        (IcmpTypes::TimeExceeded, _) => "Frag reassembly time exceeded",
        _ => return None,
    };
    Some(words.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
    const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    fn pinger() -> Pinger {
        let (socket, _) = std::io::pipe().expect("a pipe, for want of a raw socket");
        Pinger { socket: socket.into(), addr: FAR, identifier: 0x1234 }
    }

    /// An IPv4 header without options before `payload`.
    fn packet(src: Ipv4Addr, dst: Ipv4Addr, ttl: u8, payload: &[u8]) -> Vec<u8> {
        let len = u8::try_from(20 + payload.len()).expect("a short packet");
        let mut octets = vec![0x45, 0, 0, len, 0, 0, 0, 0, ttl, 1, 0, 0];
        octets.extend(src.octets());
        octets.extend(dst.octets());
        octets.extend(payload);
        octets
    }

    fn error(from: Ipv4Addr, kind: u8, code: u8, about: &[u8]) -> Vec<u8> {
        let mut message = vec![kind, code, 0, 0, 0, 0, 0x05, 0x78];
        message.extend(about);
        packet(from, ROUTER, 64, &message)
    }

    #[test]
    fn a_request_has_the_checksum_of_rfc_1071() {
        let octets = request(0x1234, 7);
        let sum: u32 =
            octets.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        assert_eq!(octets[..2], [8, 0]);
        assert_eq!(octets[4..9], [0x12, 0x34, 0, 7, 0x10]);
    }

    #[test]
    fn only_the_answer_to_this_request_counts() {
        let reply = |identifier, sequence| {
            let mut message = request(identifier, sequence);
            message[0] = 0;
            message
        };
        let pinger = pinger();
        let heard = pinger.read(&packet(FAR, ROUTER, 63, &reply(0x1234, 1)), 1);
        assert_eq!(heard, Some(Heard::Reply { ttl: 63, octets: 64 }));
        for (from, identifier, sequence) in [(FAR, 0x1234, 2), (FAR, 1, 1), (ROUTER, 0x1234, 1)] {
            assert_eq!(
                pinger.read(&packet(from, ROUTER, 64, &reply(identifier, sequence)), 1),
                None
            );
        }
        for len in 0..28 {
            let short = packet(FAR, ROUTER, 64, &reply(0x1234, 1));
            assert_eq!(pinger.read(&short[..len], 1), None, "{len} octets");
        }
    }

    #[test]
    fn errors_about_this_request_name_who_sent_them() {
        let about = packet(ROUTER, FAR, 63, &request(0x1234, 3)[..8]);
        let pinger = pinger();
        for (kind, code, words) in [
            (3, 0, "Destination Net Unreachable"),
            (3, 1, "Destination Host Unreachable"),
            (3, 4, "Frag needed and DF set (mtu = 1400)"),
            (3, 13, "Packet filtered"),
            (11, 0, "Time to live exceeded"),
        ] {
            let heard = pinger.read(&error(ROUTER, kind, code, &about), 3);
            assert_eq!(heard, Some(Heard::Error { from: ROUTER, what: words.to_owned() }));
        }
        assert_eq!(pinger.read(&error(ROUTER, 3, 0, &about), 4), None, "another request");
        assert_eq!(pinger.read(&error(ROUTER, 5, 0, &about), 3), None, "a redirect is no error");
        let elsewhere = packet(ROUTER, ROUTER, 63, &request(0x1234, 3)[..8]);
        assert_eq!(pinger.read(&error(ROUTER, 3, 0, &elsewhere), 3), None, "another destination");
    }

    #[test]
    fn the_summary_is_pings() {
        let tally = Tally { sent: 2, received: 0, errors: 2 };
        assert_eq!(
            tally.text(Duration::from_millis(207)),
            "2 packets transmitted, 0 received, +2 errors, 100% packet loss, time 207ms"
        );
    }
}
