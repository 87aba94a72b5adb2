//! Many flows that do nothing, and whether each of them still works when asked.
//!
//! The harness weighs the forwarder while they are silent: after the first result it sends a line,
//! and only then is each flow asked for an octet.

use std::collections::HashSet;
use std::io::{self, BufRead, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use serde_json::{Value, json};

use crate::{Transport, any};

/// Connections being opened at any time.
const AT_ONCE: usize = 32;
/// How long opening all of them may take, and how long one may.
const OPENING: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(5);
/// Flows asked at once: fewer than any queue on the way holds.
const BATCH: usize = 64;
/// How long the next batch waits for the answers of the last.
const GLANCE: Duration = Duration::from_millis(30);
/// Time without any answer after which no more is expected.
const SILENCE: Duration = Duration::from_secs(2);

/// One flow of ours.
#[derive(Debug)]
enum Flow {
    Stream(TcpStream),
    Datagrams(UdpSocket),
}

impl Flow {
    fn open(transport: Transport, to: SocketAddr) -> io::Result<Self> {
        match transport {
            Transport::Tcp => {
                let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                Ok(Self::Stream(stream))
            }
            Transport::Udp => {
                let socket = UdpSocket::bind(any(to))?;
                socket.connect(to)?;
                socket.set_nonblocking(true)?;
                Ok(Self::Datagrams(socket))
            }
        }
    }

    fn ask(&mut self) -> io::Result<usize> {
        match self {
            Self::Stream(stream) => stream.write(b"?"),
            Self::Datagrams(socket) => socket.send(b"?"),
        }
    }

    fn answer(&mut self) -> io::Result<usize> {
        match self {
            Self::Stream(stream) => stream.read(&mut [0; 16]),
            Self::Datagrams(socket) => socket.recv(&mut [0; 16]),
        }
    }
}

impl AsFd for Flow {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stream(stream) => stream.as_fd(),
            Self::Datagrams(socket) => socket.as_fd(),
        }
    }
}

/// Opens `count` flows and says so; says for each further line of standard input how many of them
/// answer; ends with standard input.
pub(crate) fn hold(
    transport: Transport,
    to: SocketAddr,
    count: usize,
    say: fn(Value),
) -> io::Result<()> {
    let begin = Instant::now();
    let mut flows = open_all(transport, to, count)?;
    let seconds = begin.elapsed().as_secs_f64();
    // A datagram's flow begins with the datagram, not with the socket.
    let opened = if transport == Transport::Udp { ask_all(&mut flows)? } else { flows.len() };
    say(json!({ "opened": opened, "asked": count, "seconds": seconds }));
    for line in io::stdin().lock().lines() {
        line?;
        say(json!({ "answered": ask_all(&mut flows)? }));
    }
    Ok(())
}

fn open_all(transport: Transport, to: SocketAddr, count: usize) -> io::Result<Vec<Flow>> {
    let end = Instant::now() + OPENING;
    let (next, flows) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(count)));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < count && Instant::now() < end {
                    if let (Ok(flow), Ok(mut flows)) = (Flow::open(transport, to), flows.lock()) {
                        flows.push(flow);
                    }
                }
            });
        }
    });
    flows.into_inner().map_err(|_| io::Error::other("an opener died"))
}

/// Asks every flow for an octet, twice if it must; how many gave one.
fn ask_all(flows: &mut [Flow]) -> io::Result<usize> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for (key, flow) in flows.iter().enumerate() {
        epoll.add(flow, EpollEvent::new(EpollFlags::EPOLLIN, key as u64))?;
    }
    let mut answered = HashSet::new();
    for _ in 0..2 {
        let silent: Vec<_> = (0..flows.len()).filter(|key| !answered.contains(key)).collect();
        for batch in silent.chunks(BATCH) {
            for &key in batch {
                // One that is dead is not answered, which is what is counted.
                let _ = flows[key].ask();
            }
            // What a datagram's queue cannot hold is lost, so the next batch waits for this one.
            let (asked, all) = (Instant::now(), answered.len() + batch.len());
            while answered.len() < all && asked.elapsed() < GLANCE {
                take(&epoll, flows, &mut answered, EpollTimeout::from(5_u8))?;
            }
        }
        let mut last = Instant::now();
        while answered.len() < flows.len() && last.elapsed() < SILENCE {
            if take(&epoll, flows, &mut answered, EpollTimeout::from(100_u8))? {
                last = Instant::now();
            }
        }
    }
    Ok(answered.len())
}

/// Takes the answers that are there; whether there were new ones.
fn take(
    epoll: &Epoll,
    flows: &mut [Flow],
    answered: &mut HashSet<usize>,
    wait: EpollTimeout,
) -> io::Result<bool> {
    let mut events = [EpollEvent::empty(); 256];
    let mut any = false;
    let ready = epoll.wait(&mut events, wait)?;
    for event in events.iter().take(ready) {
        let Ok(key) = usize::try_from(event.data()) else { continue };
        match flows[key].answer() {
            Ok(length) if length > 0 => any |= answered.insert(key),
            // The end of a connection stays readable: look at it no more.
            Ok(_) => epoll.delete(&flows[key])?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => epoll.delete(&flows[key])?,
        }
    }
    Ok(any)
}
