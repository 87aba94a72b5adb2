//! Mappings on a clock that stands still until it is told: how long they last, and what keeps them.
//! RFC 4787 REQ-5, REQ-6 and REQ-12.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use datapath::emit::{self, IpHeader};
use datapath::{Body, Datapath, DropReason, Offload, Outbox, Packet, PortTotals, Received};
use mio::{Events, Poll};
use nat::{Direction, Profile, Protocol, Timeouts, TransportAddr, Tuple};
use smoltcp::time::{Duration, Instant};

use super::Datagrams;
use crate::context::rig::{self, CONTAINER, GATEWAY, PORT, ZONE};
use crate::context::{Context, Readiness};
use crate::key::Key;
use crate::limits::Limits;
use crate::policy::Policy;
use crate::shared::Shared;

/// The container's port.
const INSIDE: u16 = 40_000;

struct Rig {
    datagrams: Datagrams,
    shared: Arc<Shared>,
    dp: Datapath,
    out: Outbox,
    now: Instant,
    poll: Poll,
    far: UdpSocket,
    /// What the container got last, from behind its IP header on.
    heard: Vec<Vec<u8>>,
}

impl Rig {
    fn new() -> Self {
        let now = Instant::from_secs(1000);
        let (dp, out) = rig::network(100, now);
        let shared = Arc::new(Shared::new(Arc::new(Limits::new(100, 100))));
        let poll = Poll::new().unwrap();
        let registry = poll.registry().try_clone().unwrap();
        let datagrams = Datagrams::new(0, Arc::clone(&shared), registry);
        let heard = Vec::new();
        let far = UdpSocket::bind("127.0.0.1:0").unwrap();
        far.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        Self { datagrams, shared, dp, out, now, poll, far, heard }
    }

    /// The container sends to the far side, or to somebody else.
    fn send(&mut self, to: SocketAddr) {
        self.send_from(INSIDE, to, b"hello");
    }

    /// The same from a port of its choice. Returns what it is told of it.
    fn send_from(&mut self, from: u16, to: SocketAddr, octets: &[u8]) -> Vec<Vec<u8>> {
        self.send_as(IpHeader::new(CONTAINER.into(), to.ip(), 17), from, to, octets).1
    }

    /// The same under a header of its choice. Returns the packet, too.
    fn send_as(
        &mut self,
        header: IpHeader,
        from: u16,
        to: SocketAddr,
        octets: &[u8],
    ) -> (Vec<u8>, Vec<Vec<u8>>) {
        let mut frame = vec![0; header.transport() + 8 + octets.len()];
        header.emit(&mut frame, GATEWAY);
        let datagram = &mut frame[header.transport()..];
        let len = u16::try_from(8 + octets.len()).unwrap();
        datagram[..2].copy_from_slice(&from.to_be_bytes());
        datagram[2..4].copy_from_slice(&to.port().to_be_bytes());
        datagram[4..6].copy_from_slice(&len.to_be_bytes());
        datagram[8..].copy_from_slice(octets);
        emit::fill_checksum(&header, datagram, 6);
        let packet = Packet::parse(&frame, &Offload::NONE).unwrap();
        let received = Received { port: PORT, place: 0, frame: &frame, offload: Offload::NONE };
        let mut ctx = Context { dp: &mut self.dp, out: &mut self.out, now: self.now };
        let tuple = packet.tuple().unwrap();
        self.datagrams.outbound(&received, &packet, tuple, &mut ctx).unwrap();
        self.datagrams.send_train(&mut ctx);
        let departures = self.out.departures().iter();
        let told = departures.filter_map(|departure| match departure.body {
            Body::Built(built) => Some(self.out.frame(built)[34..].to_vec()),
            _ => None,
        });
        let told = told.collect();
        self.out.clear();
        (frame.split_off(Packet::IP), told)
    }

    /// The container sends to the far side, which hears it, and from whom.
    fn ask(&mut self) -> SocketAddr {
        self.send(self.far.local_addr().unwrap());
        let (_, from) = self.far.recv_from(&mut [0; 16]).unwrap();
        from
    }

    /// The far side sends, and the container gets it. Returns how many frames it got.
    fn answer(&mut self, to: SocketAddr) -> usize {
        self.poll.poll(&mut Events::with_capacity(8), Some(std::time::Duration::ZERO)).unwrap();
        self.far.send_to(b"answer", to).unwrap();
        self.heard(Readiness { readable: true, ..Readiness::default() })
    }

    /// What poll says of the mapping's socket is handled. Returns how many frames the container gets.
    fn heard(&mut self, readiness: Readiness) -> usize {
        let mut events = Events::with_capacity(8);
        self.poll.poll(&mut events, Some(std::time::Duration::from_secs(10))).unwrap();
        let key = events.iter().next().map(|event| Key::from(event.token())).unwrap();
        let mut ctx = Context { dp: &mut self.dp, out: &mut self.out, now: self.now };
        self.datagrams.ready(key, readiness, &mut ctx);
        let got = self.out.departures().iter().filter_map(|departure| match departure.body {
            Body::Built(built) => Some(self.out.frame(built)[34..].to_vec()),
            _ => None,
        });
        self.heard = got.collect();
        self.out.clear();
        self.heard.len()
    }

    /// Whether the mapping lives, so many seconds later.
    fn lives_after(&mut self, seconds: u64) -> bool {
        self.now += Duration::from_secs(seconds);
        let conntrack = Arc::clone(&self.dp.network().conntrack);
        self.datagrams.sweep(&conntrack, self.now);
        self.datagrams.len() > 0
    }

    fn of(&self, profile: Profile) {
        let timeouts = *Timeouts::of(profile);
        self.shared.set_policy(ZONE, Policy { timeouts, ..Policy::default() });
    }
}

/// REQ-5, REQ-5b, REQ-5c: two minutes unanswered, five answered; less where the kernel's times are wanted.
#[test]
fn u5_a_silent_mapping_lasts_as_long_as_its_profile_says() {
    for (profile, unanswered, answered) in [(Profile::Rfc, 120, 300), (Profile::Linux, 30, 120)] {
        let mut rig = Rig::new();
        rig.of(profile);
        rig.ask();
        assert!(rig.lives_after(unanswered - 1));
        assert!(!rig.lives_after(2));
        let outside = rig.ask();
        assert_eq!(rig.answer(outside), 1);
        assert!(rig.lives_after(answered - 1));
        assert!(!rig.lives_after(2));
        assert!(rig.dp.network().conntrack.is_empty());
        assert_eq!(rig.shared.limits.flows(), 0);
    }
}

/// REQ-5a: a question and its answer are not remembered for long, if it was one of a kind that is known.
#[test]
fn u5a_an_answered_query_is_over_after_ten_seconds() {
    for port in [53, 123] {
        let mut rig = Rig::new();
        let to = SocketAddr::from(([127, 77, 0, 1], port));
        rig.send(to);
        assert!(rig.lives_after(119), "unanswered, it waits like any other");
        rig.send(to);
        let inside = TransportAddr::new(CONTAINER.into(), INSIDE);
        let tuple = Tuple::new(Protocol::Udp, inside, to.into());
        let entry = rig.dp.network().conntrack.entry(ZONE, tuple).unwrap();
        entry.count(Direction::Reply, 1, 100);
        assert!(rig.lives_after(9));
        assert!(!rig.lives_after(2));
    }
}

/// REQ-6: what the container sends keeps its mapping; whatever comes from outside does not.
#[test]
fn u6_only_what_goes_out_keeps_a_mapping() {
    let mut rig = Rig::new();
    let outside = rig.ask();
    rig.answer(outside);
    for _ in 0..5 {
        assert!(rig.lives_after(299));
        assert_eq!(rig.ask(), outside, "kept");
    }
    for _ in 0..29 {
        assert!(rig.lives_after(10));
        assert_eq!(rig.answer(outside), 1, "it comes in as long as the mapping lives");
    }
    assert!(!rig.lives_after(11));
}

/// REQ-12, RFC 5508 REQ-6: an error is told, and neither keeps the mapping nor ends it.
#[test]
fn u12_an_error_neither_ends_a_mapping_nor_keeps_it() {
    let mut rig = Rig::new();
    let outside = rig.ask();
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for _ in 0..11 {
        assert!(rig.lives_after(10));
        rig.send(closed);
        assert_eq!(rig.heard(Readiness { hung_up: true, ..Readiness::default() }), 1, "told");
    }
    assert_eq!(rig.ask(), outside, "the same mapping");
    for _ in 0..11 {
        assert!(rig.lives_after(10));
        // Late words about what was sent long ago.
        let mapping = rig.shared.mappings.iter().next().map(|held| Arc::clone(held.value()));
        let fd = mapping.unwrap().outlet.fd.as_raw_fd();
        let to = nix::sys::socket::SockaddrStorage::from(closed);
        let flags = nix::sys::socket::MsgFlags::empty();
        nix::sys::socket::sendto(fd, b"late", &to, flags).unwrap();
        rig.heard(Readiness { hung_up: true, ..Readiness::default() });
    }
    assert!(!rig.lives_after(11), "two minutes after the last that went out");
}

/// RFC 5508 REQ-4: however many refusals wait to be told, a datagram for somebody else leaves.
#[test]
fn refusals_that_wait_cost_no_other_datagram() {
    let mut rig = Rig::new();
    let outside = rig.ask();
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mapping = rig.shared.mappings.iter().next().map(|held| Arc::clone(held.value()));
    let fd = mapping.unwrap().outlet.fd.as_raw_fd();
    let to = nix::sys::socket::SockaddrStorage::from(closed);
    let flags = nix::sys::socket::MsgFlags::empty();
    for _ in 0..101 {
        // Every other call says what became of the one before.
        let _ = nix::sys::socket::sendto(fd, b"refused", &to, flags);
    }
    for _ in 0..3 {
        assert_eq!(rig.ask(), outside);
    }
}

/// RFC 768: no octets are a datagram, too; port 0 is nobody's to answer to, and to send to is refused.
#[test]
fn datagrams_without_octets_or_ports_are_no_exception() {
    let mut rig = Rig::new();
    let far = rig.far.local_addr().unwrap();
    for (from, octets) in
        [(INSIDE, &b""[..]), (0, b"from nobody"), (0, b""), (INSIDE, &[7; 60_000])]
    {
        assert!(rig.send_from(from, far, octets).is_empty());
        let mut buffer = vec![0; 70_000];
        let (len, back) = rig.far.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], octets);
        assert_eq!(rig.answer(back), 1, "from {from}, {len} octets");
    }
    let told = rig.send_from(INSIDE, SocketAddr::new(far.ip(), 0), b"to nobody");
    let [message] = &told[..] else { panic!("{told:?}") };
    assert_eq!(message[0], 3, "unreachable");
    let mut totals = PortTotals::default();
    rig.dp.gateway_counters().add_to(&mut totals);
    assert_eq!(totals.tx_dropped[DropReason::HostSendFailed as usize], 1, "and counted");
}

/// RFC 1122 §3.2.2: no error about what was for everybody on a segment of the host's.
#[test]
fn a_datagram_for_everybody_on_a_segment_is_dropped_in_silence() {
    let mut rig = Rig::new();
    // Of the loopback.
    let everybody = SocketAddr::from(([127, 255, 255, 255], 9));
    assert!(rig.send_from(INSIDE, everybody, b"all of you").is_empty());
    let mut totals = PortTotals::default();
    rig.dp.gateway_counters().add_to(&mut totals);
    assert_eq!(totals.tx_dropped[DropReason::HostSendFailed as usize], 1, "and counted");
    assert!(!crate::socket::is_broadcast(rig.far.local_addr().unwrap()));
}

/// RFC 792, RFC 5508 REQ-4: an error quotes what the container sent, octet for octet where all is known.
#[test]
fn i4_an_error_quotes_the_containers_own_packet() {
    let mut rig = Rig::new();
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused = Readiness { hung_up: true, ..Readiness::default() };
    let header = |to: SocketAddr, identification| IpHeader {
        traffic_class: 0x28,
        identification,
        ..IpHeader::new(CONTAINER.into(), to.ip(), 17)
    };
    for (identification, octets) in
        [(Some(0xabcd), &b"probe"[..]), (Some(7), b""), (None, &[7; 300])]
    {
        // By the error queue.
        let (sent, told) = rig.send_as(header(closed, identification), INSIDE, closed, octets);
        assert!(told.is_empty());
        assert_eq!(rig.heard(refused), 1);
        assert_eq!(rig.heard[0][8..], sent);
        // In the same turn: nobody is port 0.
        let nobody = SocketAddr::new(closed.ip(), 0);
        let (sent, told) = rig.send_as(header(nobody, identification), INSIDE, nobody, octets);
        assert_eq!(told.len(), 1);
        assert_eq!(told[0][8..], sent);
    }
    // What comes back is cut; lengths, class and identification are not.
    let (sent, _) = rig.send_as(header(closed, Some(9)), INSIDE, closed, &[9; 9000]);
    assert_eq!(rig.heard(refused), 1);
    let quoted = &rig.heard[0][8..];
    assert_eq!(quoted[..26], sent[..26]);
    assert!(quoted.len() >= 28 + 500 && quoted[28..] == sent[28..quoted.len()]);
}
