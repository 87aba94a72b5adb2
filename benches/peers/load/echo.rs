//! The far side: whatever comes by TCP or UDP goes back where it came from.
//!
//! One thread and one epoll, so that its cost is the same whoever carries the octets.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{Backlog, listen};

const LISTENER: u64 = u64::MAX;
const DATAGRAMS: u64 = u64::MAX - 1;
/// Connections that may wait to be accepted: what a loaded server would ask for.
const BACKLOG: i32 = 4096;
/// Octets taken in one read.
const ROOM: usize = 64 << 10;

/// Answers on `port` until killed.
pub(crate) fn serve(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    listen(&listener, Backlog::new(BACKLOG)?)?;
    listener.set_nonblocking(true)?;
    let datagrams = UdpSocket::bind(("0.0.0.0", port))?;
    datagrams.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    epoll.add(&datagrams, EpollEvent::new(EpollFlags::EPOLLIN, DATAGRAMS))?;
    let mut streams = HashMap::new();
    let mut events = [EpollEvent::empty(); 256];
    let mut room = vec![0; ROOM];
    loop {
        let ready = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            ready => ready?,
        };
        for event in events.iter().take(ready) {
            match event.data() {
                LISTENER => accept(&listener, &epoll, &mut streams),
                DATAGRAMS => {
                    if let Ok((length, from)) = datagrams.recv_from(&mut room) {
                        // A client that has gone is no matter of ours.
                        let _ = datagrams.send_to(&room[..length], from);
                    }
                }
                key => {
                    if streams.get_mut(&key).is_some_and(|stream| !back(stream, &mut room)) {
                        streams.remove(&key);
                    }
                }
            }
        }
    }
}

/// Takes every connection that waits. One that cannot be kept is closed, so that its client knows.
fn accept(listener: &TcpListener, epoll: &Epoll, streams: &mut HashMap<u64, TcpStream>) {
    while let Ok((stream, _)) = listener.accept() {
        let Ok(key) = u64::try_from(stream.as_raw_fd()) else { continue };
        if stream.set_nonblocking(true).is_ok()
            && stream.set_nodelay(true).is_ok()
            && epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, key)).is_ok()
        {
            streams.insert(key, stream);
        }
    }
}

/// Sends back what one read gives; whether the connection lives on.
fn back(stream: &mut TcpStream, room: &mut [u8]) -> bool {
    match stream.read(room) {
        Ok(0) => false,
        Ok(length) => stream.write_all(&room[..length]).is_ok(),
        Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
    }
}
