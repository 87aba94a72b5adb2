//! A packet socket on an interface: what comes in there, and whatever a probe wants to send.
//!
//! Offloads are undone as hardware would: a checksum left to the device is completed before it is looked
//! at. A frame of several segments stays one. What was not asked for is kept until it is.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use netns::Netns;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pnet::util;

use crate::packet::Packet;

/// Octets of the offload header before each frame: `struct virtio_net_hdr`.
const OFFLOAD: usize = 10;

/// Frames kept that nobody asked for.
const MOST_KEPT: usize = 20_000;

pub(crate) type Mac = [u8; 6];

#[derive(Debug)]
pub(crate) struct Wire {
    socket: OwnedFd,
    own: Mac,
    /// Addresses it answers for when asked who has them.
    answers: Vec<IpAddr>,
    /// Who routes for us.
    gateway: RefCell<Mac>,
    kept: RefCell<VecDeque<Packet>>,
    /// What came and could not be read.
    bad: RefCell<Vec<String>>,
}

impl Wire {
    /// On an interface of a namespace.
    pub(crate) fn on(netns: &Netns, ifname: &str, answers: &[IpAddr]) -> Self {
        let open = || Ok((netns::packet_sockets(ifname, 1)?.remove(0), netns::interfaces()?));
        let (socket, interfaces) = netns.enter(open).unwrap();
        let mac = interfaces.iter().find(|found| found.name == ifname).unwrap().mac.unwrap();
        Self {
            socket,
            own: mac,
            answers: answers.to_vec(),
            gateway: RefCell::new([0xff; 6]),
            kept: RefCell::default(),
            bad: RefCell::default(),
        }
    }

    pub(crate) fn mac(&self) -> Mac {
        self.own
    }

    pub(crate) fn set_gateway(&self, mac: Mac) {
        *self.gateway.borrow_mut() = mac;
    }

    pub(crate) fn gateway(&self) -> Mac {
        *self.gateway.borrow()
    }

    pub(crate) fn send(&self, packet: &Packet) {
        self.send_octets(&packet.octets());
    }

    /// Sends an IP packet to the gateway as it is.
    pub(crate) fn send_octets(&self, packet: &[u8]) {
        let kind = if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
        self.send_frame(self.gateway(), kind, packet);
    }

    pub(crate) fn send_frame(&self, to: Mac, kind: [u8; 2], body: &[u8]) {
        let frame = [&[0; OFFLOAD][..], &to, &self.own, &kind, body].concat();
        for _ in 0..200 {
            match netns::send_frame(&self.socket, &frame) {
                Ok(_) => return,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
                    let _ = poll(&mut fds, PollTimeout::from(50_u16));
                }
                Err(error) => panic!("send a frame of {} octets: {error}", frame.len()),
            }
        }
        panic!("nobody takes frames");
    }

    /// Asks by ARP who `addr` is, as `own`, and routes by it from now on.
    pub(crate) fn find_gateway(&self, own: IpAddr, addr: IpAddr) -> Result<Mac, String> {
        let (IpAddr::V4(own), IpAddr::V4(addr)) = (own, addr) else {
            panic!("ARP is IPv4's: {addr}")
        };
        let ask = [
            &[0, 1, 8, 0, 6, 4, 0, 1][..],
            &self.own,
            &own.octets(),
            &[0; 6],
            &addr.octets(),
            &[0; 18],
        ]
        .concat();
        let end = Instant::now() + crate::patience();
        while Instant::now() < end {
            self.send_frame([0xff; 6], [8, 6], &ask);
            let again = Instant::now() + Duration::from_millis(300);
            while let Some(frame) = self.frame(again) {
                let answer = frame.get(12..14) == Some(&[8, 6])
                    && frame.get(20..22) == Some(&[0, 2])
                    && frame.get(28..32) == Some(&addr.octets());
                if answer {
                    let mac = frame[22..28].try_into().unwrap();
                    self.set_gateway(mac);
                    return Ok(mac);
                }
                self.keep(&frame);
            }
        }
        Err(format!("nobody is {addr}"))
    }

    /// The first frame from now on that `wanted` holds for; what is IP besides is kept.
    pub(crate) fn frame_within(
        &self,
        patience: Duration,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Option<Vec<u8>> {
        let end = Instant::now() + patience;
        while let Some(frame) = self.frame(end) {
            if frame.len() >= 42 && wanted(&frame) {
                return Some(frame);
            }
            self.keep(&frame);
        }
        None
    }

    /// The next frame that came in, its checksum completed.
    fn frame(&self, until: Instant) -> Option<Vec<u8>> {
        let mut buffer = vec![0; OFFLOAD + 18 + 65_535];
        loop {
            match netns::recv_frame(&self.socket, &mut buffer) {
                Ok(len) if len > OFFLOAD + 14 => {
                    let mut frame = buffer[OFFLOAD..len].to_vec();
                    if buffer[0] & 1 != 0 {
                        let at =
                            |n: usize| usize::from(u16::from_ne_bytes([buffer[n], buffer[n + 1]]));
                        let (start, place) = (at(6), at(6) + at(8));
                        let sum = util::checksum(&frame[start..], usize::MAX);
                        // A sum of nought is sent as its complement (RFC 768), which suits TCP as well.
                        let sum = if sum == 0 { 0xffff } else { sum };
                        frame[place..place + 2].copy_from_slice(&sum.to_be_bytes());
                    }
                    self.introduce(&frame);
                    return Some(frame);
                }
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    let left = u16::try_from(left.as_millis().min(1000) + 1).unwrap();
                    let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
                    let _ = poll(&mut fds, PollTimeout::from(left));
                }
                Err(_) => return None,
            }
        }
    }

    /// Answers who asks for us: RFC 826 and RFC 4861 7.2.
    fn introduce(&self, frame: &[u8]) {
        let ours = |octets: Option<&[u8]>| {
            self.answers.iter().find(|addr| match addr {
                IpAddr::V4(addr) => octets == Some(&addr.octets()),
                IpAddr::V6(addr) => octets == Some(&addr.octets()),
            })
        };
        let asker = frame[6..12].try_into().unwrap();
        if frame[12..14] == [8, 6]
            && frame.get(20..22) == Some(&[0, 1])
            && let Some(IpAddr::V4(addr)) = ours(frame.get(38..42))
        {
            let head = [0, 1, 8, 0, 6, 4, 0, 2];
            let body = [&head[..], &self.own, &addr.octets(), &frame[22..32]].concat();
            self.send_frame(asker, [8, 6], &body);
        } else if frame[12..14] == [0x86, 0xdd]
            && frame.get(54) == Some(&135)
            && let Some(IpAddr::V6(addr)) = ours(frame.get(62..78))
        {
            let to = <[u8; 16]>::try_from(&frame[22..38]).unwrap();
            let body = [&addr.octets()[..], &[2, 1], &self.own].concat();
            let mut answer =
                Packet::icmp((*addr).into(), to.into(), 136, 0, [0x60, 0, 0, 0], &body);
            answer.ttl = 255;
            self.send_frame(asker, [0x86, 0xdd], &answer.octets());
        }
    }

    fn keep(&self, frame: &[u8]) {
        if !matches!(frame[12..14], [8, 0] | [0x86, 0xdd]) {
            return;
        }
        match Packet::read(&frame[14..]) {
            Ok(packet) => {
                let mut kept = self.kept.borrow_mut();
                if kept.len() < MOST_KEPT {
                    kept.push_back(packet);
                }
            }
            Err(error) => self.bad.borrow_mut().push(error),
        }
    }

    /// The first packet, of those that have come and those that do, that `wanted` holds for.
    pub(crate) fn within(
        &self,
        patience: Duration,
        mut wanted: impl FnMut(&Packet) -> bool,
    ) -> Option<Packet> {
        let end = Instant::now() + patience;
        let mut seen = 0;
        loop {
            {
                let mut kept = self.kept.borrow_mut();
                while seen < kept.len() {
                    if wanted(&kept[seen]) {
                        return kept.remove(seen);
                    }
                    seen += 1;
                }
            }
            let frame = self.frame(end)?;
            self.keep(&frame);
        }
    }

    /// As [`within`](Self::within), for as long as anything is waited for.
    pub(crate) fn wait(
        &self,
        what: &str,
        wanted: impl FnMut(&Packet) -> bool,
    ) -> Result<Packet, String> {
        self.within(crate::patience(), wanted)
            .ok_or_else(|| format!("waited in vain for {what}; {}", self.story()))
    }

    /// All that have come by now that `wanted` holds for.
    pub(crate) fn all(&self, mut wanted: impl FnMut(&Packet) -> bool) -> Vec<Packet> {
        while let Some(frame) = self.frame(Instant::now()) {
            self.keep(&frame);
        }
        self.kept.borrow().iter().filter(|packet| wanted(packet)).cloned().collect()
    }

    /// Forgets what has come.
    pub(crate) fn forget(&self) {
        self.all(|_| false);
        self.kept.borrow_mut().clear();
        self.bad.borrow_mut().clear();
    }

    /// What came in that is no right packet.
    pub(crate) fn bad(&self) -> Vec<String> {
        self.all(|_| false);
        self.bad.borrow().clone()
    }

    /// What has come that nobody asked for, in few words.
    pub(crate) fn story(&self) -> String {
        let line = |packet: &Packet| {
            let Packet { src, dst, protocol, ttl, payload, .. } = packet;
            let head = &payload[..payload.len().min(24)];
            format!("{src} > {dst} proto {protocol} ttl {ttl} {} octets {head:02x?}", payload.len())
        };
        let kept = self.all(|_| true);
        let from = kept.len().saturating_sub(8);
        let lines: Vec<_> = kept[from..].iter().map(line).collect();
        let bad = self.bad.borrow();
        format!("came besides: {lines:#?}; unreadable: {:?}", &bad[..bad.len().min(4)])
    }
}
