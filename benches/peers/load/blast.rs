//! Datagrams, one way: a sender that never waits and a sink that counts what arrived.
//!
//! One flow is sent 64 datagrams a system call, as a media server would; many flows are one datagram
//! a call, each from another source port, so that no two neighbours on the wire belong together.

use std::array;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg, setsockopt};
use serde_json::{Value, json};

use crate::any;

/// Datagrams of one system call.
const BATCH: usize = 64;
/// Octets of the largest datagram the sink takes whole.
const LARGEST: usize = 2048;
/// Octets the sink's socket may queue.
const QUEUE: usize = 4 << 20;
/// Silence that ends a count.
const SILENCE_MS: u16 = 500;

/// Sends datagrams of `size` octets for as long as `lasting`, from `flows` source ports in turn.
pub(crate) fn blast(
    to: SocketAddr,
    lasting: Duration,
    size: usize,
    flows: usize,
) -> io::Result<Value> {
    let sockets = (0..flows.max(1))
        .map(|_| {
            let socket = UdpSocket::bind(any(to))?;
            socket.connect(to)?;
            Ok(socket)
        })
        .collect::<io::Result<Vec<_>>>()?;
    let payload = vec![0x5a; size];
    let begin = Instant::now();
    let mut sent = 0_u64;
    if let [socket] = &*sockets {
        let slices = [[IoSlice::new(&payload)]; BATCH];
        let to = [None::<SockaddrStorage>; BATCH];
        let mut headers = MultiHeaders::preallocate(BATCH, None);
        while begin.elapsed() < lasting {
            let fd = socket.as_raw_fd();
            // A full queue or an ICMP error costs this batch, never the run.
            if let Ok(taken) = sendmmsg(fd, &mut headers, &slices, to, [], MsgFlags::empty()) {
                sent += taken.count() as u64;
            }
        }
    } else {
        for (turn, socket) in sockets.iter().cycle().enumerate() {
            if turn % BATCH == 0 && begin.elapsed() >= lasting {
                break;
            }
            sent += u64::from(socket.send(&payload).is_ok());
        }
    }
    Ok(json!({ "sent": sent, "seconds": begin.elapsed().as_secs_f64() }))
}

/// Counts what arrives on `port` until there has been silence, or nothing at all for `patience`.
pub(crate) fn sink(port: u16, patience: Duration) -> io::Result<Value> {
    let socket = UdpSocket::bind(("0.0.0.0", port))?;
    socket.set_nonblocking(true)?;
    if setsockopt(&socket, RcvBufForce, &QUEUE).is_err() {
        setsockopt(&socket, RcvBuf, &QUEUE)?;
    }
    let mut buffers = Box::new([[0_u8; LARGEST]; BATCH]);
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let (started, mut first, mut last) = (Instant::now(), None, Instant::now());
    let (mut received, mut octets) = (0_u64, 0_u64);
    loop {
        let mut waiting = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let silent = poll(&mut waiting, PollTimeout::from(SILENCE_MS))? == 0;
        if silent && (first.is_some() || started.elapsed() > patience) {
            break;
        }
        let mut slices: [_; BATCH] = {
            let mut each = buffers.iter_mut();
            array::from_fn(|_| each.next().map(|buffer| [IoSliceMut::new(buffer)]))
                .map(|slice| slice.unwrap_or_else(|| [IoSliceMut::new(&mut [])]))
        };
        let fd = socket.as_raw_fd();
        let taken = recvmmsg(fd, &mut headers, &mut slices, MsgFlags::MSG_DONTWAIT, None);
        let Ok(taken) = taken else { continue };
        last = Instant::now();
        first.get_or_insert(last);
        for message in taken {
            received += 1;
            octets += message.bytes as u64;
        }
    }
    let seconds = first.map_or(0.0, |first| (last - first).as_secs_f64());
    Ok(json!({ "received": received, "octets": octets, "seconds": seconds }))
}
