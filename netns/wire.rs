//! Messages between a process and its re-executed child: JSON with a length before it, descriptors
//! beside it.
//!
//! Both ends are the same program, so there is no version. Descriptors travel with the length
//! (`SCM_RIGHTS`, unix(7)) and arrive close-on-exec.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Descriptors one message can carry: `SCM_MAX_FD`, `<net/scm.h>`.
pub(crate) const MAX_DESCRIPTORS: usize = 253;

/// Longest message believed, in octets: a routing table of a hundred thousand entries.
const MAX_MESSAGE: u32 = 64 << 20;

/// Sends `message` and `descriptors`.
pub(crate) fn send(
    socket: &UnixStream,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let octets = serde_json::to_vec(message)?;
    let length = u32::try_from(octets.len()).map_err(io::Error::other)?.to_ne_bytes();
    let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    let flags = MsgFlags::MSG_NOSIGNAL;
    let sent =
        sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(&length)], control, flags, None)?;
    let mut socket = socket;
    socket.write_all(&length[sent..])?;
    socket.write_all(&octets)
}

/// Receives one message and its descriptors; `None` where the other end has closed.
///
/// # Errors
/// `WouldBlock` past the socket's timeout.
pub(crate) fn receive<T: DeserializeOwned>(
    socket: &UnixStream,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut length = [0; 4];
    let (got, descriptors) = receive_rights(socket, &mut length)?;
    if got == 0 {
        return Ok(None);
    }
    let mut socket = socket;
    socket.read_exact(&mut length[got..])?;
    let length = u32::from_ne_bytes(length);
    if length > MAX_MESSAGE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut octets = Vec::new();
    let read = socket.take(length.into()).read_to_end(&mut octets)?;
    if u32::try_from(read) != Ok(length) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some((serde_json::from_slice(&octets)?, descriptors)))
}

fn receive_rights(socket: &UnixStream, buf: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = nix::cmsg_space!([std::os::fd::RawFd; MAX_DESCRIPTORS]);
    let mut slices = [IoSliceMut::new(buf)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let got = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
    let mut descriptors = Vec::new();
    for message in got.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = message {
            // SAFETY: each number is a descriptor this very recvmsg(2) has installed; the vector is
            // consumed here, so nothing else will claim it.
            descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((got.bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (near, far) = UnixStream::pair().expect("socketpair");
        let (mut write, read) = UnixStream::pair().expect("socketpair");
        send(&near, &vec!["one", "two"], &[read.as_fd()]).expect("send");
        drop(read);
        let (text, mut fds) = receive::<Vec<String>>(&far).expect("receive").expect("a message");
        assert_eq!(text, ["one", "two"]);
        let mut read = UnixStream::from(fds.pop().expect("a descriptor"));
        write.write_all(b"x").expect("write");
        let mut octet = [0];
        read.read_exact(&mut octet).expect("read what came through the passed descriptor");
        assert_eq!(octet, *b"x");
    }

    #[test]
    fn a_closed_end_is_no_message() {
        let (near, far) = UnixStream::pair().expect("socketpair");
        drop(near);
        assert!(receive::<String>(&far).expect("end of stream").is_none());
    }

    #[test]
    fn a_message_cut_short_is_an_error() {
        let (mut near, far) = UnixStream::pair().expect("socketpair");
        near.write_all(&8u32.to_ne_bytes()).expect("write");
        near.write_all(b"\"abc").expect("write");
        drop(near);
        receive::<String>(&far).expect_err("half a message");
    }
}
