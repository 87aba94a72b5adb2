//! One queue of a port's device: where frames are read and written.
//!
//! A TAP and a packet socket are both read and written a frame at a time; both put an offload header
//! in front if they have one. A device takes all of a frame or none of it.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use datapath::{MAX_FRAME_LEN, OFFLOAD_HEADER_LEN, Offloads};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getsockname};
use nix::sys::uio::writev;
use nix::unistd;

/// Octets a buffer must hold: the longest frame behind its offload header.
pub(crate) const BUFFER_LEN: usize = OFFLOAD_HEADER_LEN + MAX_FRAME_LEN;

/// A queue.
#[derive(Debug)]
pub(crate) struct Queue {
    fd: OwnedFd,
    offloads: Offloads,
    /// A packet socket, from which a VLAN tag must be put back.
    packet: bool,
}

/// Why a frame was not written or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueueError {
    /// Nothing to read, or no room.
    WouldBlock,
    /// The device takes nothing now: its interface is down, or it refused this frame.
    Refused(Errno),
    /// The device is gone.
    Gone(Errno),
}

impl From<Errno> for QueueError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::EAGAIN | Errno::ENOBUFS => Self::WouldBlock,
            // A TAP whose interface was deleted says EBADFD; a packet socket ENXIO or ENODEV.
            Errno::EBADFD | Errno::EBADF | Errno::ENODEV | Errno::ENXIO => Self::Gone(errno),
            _ => Self::Refused(errno),
        }
    }
}

impl Queue {
    pub(crate) fn new(fd: OwnedFd, offloads: Offloads) -> Self {
        let packet = getsockname::<SockaddrStorage>(fd.as_raw_fd())
            .is_ok_and(|addr| addr.family() == Some(AddressFamily::Packet));
        Self { fd, offloads, packet }
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub(crate) const fn offloads(&self) -> Offloads {
        self.offloads
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        let Self { ref fd, offloads, packet } = *self;
        Ok(Self { fd: fd.try_clone()?, offloads, packet })
    }

    /// Reads one frame behind an offload header (an empty one, if the device has none) and returns
    /// the octets of both.
    pub(crate) fn recv(&self, buffer: &mut [u8]) -> Result<usize, QueueError> {
        let at = match self.offloads {
            Offloads::Header => 0,
            Offloads::None => {
                buffer[..OFFLOAD_HEADER_LEN].fill(0);
                OFFLOAD_HEADER_LEN
            }
        };
        loop {
            let read = if self.packet {
                netns::recv_frame(&self.fd, buffer)
                    .map_err(|error| Errno::try_from(error).unwrap_or(Errno::EIO))
            } else {
                unistd::read(&self.fd, &mut buffer[at..])
            };
            match read {
                Ok(0) => return Err(QueueError::Gone(Errno::ENODEV)),
                Ok(octets) => return Ok(at + octets),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Writes one frame that has its offload header in front, if the device takes one; else the frame
    /// alone, which must be plain.
    pub(crate) fn send(&self, with_header: &[u8]) -> Result<(), QueueError> {
        let octets = match self.offloads {
            Offloads::Header => with_header,
            Offloads::None => &with_header[OFFLOAD_HEADER_LEN..],
        };
        loop {
            match unistd::write(&self.fd, octets) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Writes one frame that lies in pieces, its offload header first; for a device that takes one.
    pub(crate) fn send_pieces(&self, pieces: &[IoSlice<'_>]) -> Result<(), QueueError> {
        writev(&self.fd, pieces).map(drop).map_err(QueueError::from)
    }

    /// Writes a frame that needs no offload header, to a device that takes none.
    pub(crate) fn send_plain(&self, frame: &[u8]) -> Result<(), QueueError> {
        unistd::write(&self.fd, frame).map(drop).map_err(QueueError::from)
    }
}
