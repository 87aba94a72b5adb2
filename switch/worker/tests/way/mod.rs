//! A bad way between a container's TAP and the switch: TCP frames get lost, come twice or late, both ways.
//!
//! A thread stands between the TAP and socket pairs that the switch takes for the device's queues. Its
//! dice are seeded, so that a run can be repeated as far as threads allow.

#![allow(dead_code, unreachable_pub, missing_debug_implementations, missing_docs)]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

use datapath::Offloads;
use netns::{Kind, Netns};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use crate::lab::{Container, Lab};

/// Frames of a thousand that are lost, come twice, or are overtaken by a few others.
#[derive(Clone, Copy)]
pub struct Odds {
    pub lost: u64,
    pub twice: u64,
    pub late: u64,
}

pub struct Way {
    stop: Arc<AtomicBool>,
    carrier: Option<JoinHandle<()>>,
}

impl Drop for Way {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let carried = self.carrier.take().map(JoinHandle::join);
        assert!(carried.is_none_or(|carried| carried.is_ok()) || std::thread::panicking());
    }
}

/// A container behind such a way, with a queue for each worker.
pub fn container(lab: &Lab, last: u8, kind: Kind, seed: u64, odds: Odds) -> (Container, Way) {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let mut carrier = None;
    let container = lab.container_over(last, kind, 1, |mut taps, offloads| {
        let pairs: Vec<_> = (0..lab.switch.workers()).map(|_| pair(&lab.host)).collect();
        let (near, far): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let carrying = Carrier {
            tap: File::from(taps.remove(0)),
            queues: far,
            header: if offloads == Offloads::Header { 10 } else { 0 },
            dice: seed | 1,
            odds,
            late: VecDeque::new(),
        };
        carrier = Some(std::thread::spawn(move || carrying.run(&stopped)));
        near.into_iter().map(OwnedFd::from).collect()
    });
    (container, Way { stop, carrier })
}

fn pair(netns: &Netns) -> (UnixDatagram, UnixDatagram) {
    let made = netns.with(|| {
        std::fs::write("/proc/sys/net/unix/max_dgram_qlen", "4096")?;
        UnixDatagram::pair()
    });
    let (near, far) = made.unwrap();
    for socket in [&near, &far] {
        socket.set_nonblocking(true).unwrap();
        setsockopt(socket, sockopt::SndBuf, &(8 << 20)).unwrap();
    }
    (near, far)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    Container,
    Switch,
}

struct Carrier {
    tap: File,
    queues: Vec<UnixDatagram>,
    /// Octets of the offload header in front of a frame.
    header: usize,
    dice: u64,
    odds: Odds,
    /// Frames held back, and how many others go before each.
    late: VecDeque<(u64, To, Vec<u8>)>,
}

impl Carrier {
    fn run(mut self, stopped: &AtomicBool) {
        let mut buffer = vec![0; 70_000];
        while !stopped.load(Relaxed) {
            let queues =
                self.queues.iter().map(|queue| PollFd::new(queue.as_fd(), PollFlags::POLLIN));
            let mut fds: Vec<_> =
                queues.chain([PollFd::new(self.tap.as_fd(), PollFlags::POLLIN)]).collect();
            let ready = poll(&mut fds, PollTimeout::from(3_u16)).unwrap();
            if ready == 0 {
                // Nobody is left to overtake them.
                while let Some((_, to, frame)) = self.late.pop_front() {
                    self.deliver(to, &frame);
                }
            }
            for _ in 0..64 {
                let Ok(len) = self.tap.read(&mut buffer) else { break };
                self.carry(To::Switch, &buffer[..len]);
            }
            for queue in 0..self.queues.len() {
                for _ in 0..64 {
                    let Ok(len) = self.queues[queue].recv(&mut buffer) else { break };
                    self.carry(To::Container, &buffer[..len]);
                }
            }
        }
    }

    /// xorshift64 (Marsaglia 2003).
    fn throw(&mut self) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice >> 16
    }

    fn carry(&mut self, to: To, frame: &[u8]) {
        let Odds { lost, twice, late } = self.odds;
        let throw = self.throw() % 1000;
        if !self.is_tcp(frame) || throw >= lost + twice + late {
            self.deliver(to, frame);
        } else if throw >= lost + twice {
            let others = 1 + self.throw() % 5;
            self.late.push_back((others, to, frame.to_vec()));
            return;
        } else if throw >= lost {
            self.deliver(to, frame);
            self.deliver(to, frame);
        }
        for (others, ..) in &mut self.late {
            *others -= 1;
        }
        while let Some(due) = self.late.iter().position(|late| late.0 == 0) {
            let (_, to, frame) = self.late.remove(due).unwrap();
            self.deliver(to, &frame);
        }
    }

    fn is_tcp(&self, frame: &[u8]) -> bool {
        let at = |offset: usize| frame.get(self.header + offset).copied();
        match (at(12), at(13)) {
            (Some(0x08), Some(0x00)) => at(23) == Some(6),
            (Some(0x86), Some(0xdd)) => at(20) == Some(6),
            _ => false,
        }
    }

    /// What finds no room is lost, too.
    fn deliver(&mut self, to: To, frame: &[u8]) {
        match to {
            To::Container => drop(self.tap.write(frame)),
            To::Switch => {
                // A flow's frames change workers now and then, as they do behind a kernel.
                let queue = (self.throw() / 64) as usize % self.queues.len();
                drop(self.queues[queue].send(frame));
            }
        }
    }
}
