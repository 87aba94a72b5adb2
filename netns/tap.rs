//! TAP devices: an interface whose frames a descriptor reads and writes.
//!
//! Read `Documentation/networking/tuntap.rst` and `tun_set_iff` in `drivers/net/tun.c` first. A TAP
//! belongs to the namespace that was current when `/dev/net/tun` was *opened*, not when the
//! interface was named, so these functions run on a thread that is inside already.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::stat::{FileStat, fstat, major, minor};
use tun_tap::{Iface, Mode};

use crate::endpoint::Opened;
use crate::error::Error;
use crate::ifname::index_of;
use crate::ioctl;

/// Octets of `struct virtio_net_hdr` before each frame, without the count of merged buffers: what
/// AF_PACKET has too, so that one buffer layout fits all ports.
const VNET_HDR_SIZE: libc::c_int = 10;

/// One frame for each read and write, with a header before it.
const OFFLOADING: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// A TAP of the calling thread's namespace, opened.
#[derive(Debug)]
pub(crate) struct Tap {
    /// One for each queue.
    pub(crate) queues: Vec<OwnedFd>,
    /// How they are read.
    pub(crate) opened: Opened,
}

impl Tap {
    /// Creates `ifname` with offloads; where the kernel knows none, without.
    pub(crate) fn create(ifname: &str, queues: u16) -> Result<Self, Error> {
        // A device for many queues is made with 256 of them (MAX_TAP_QUEUES), each with its own
        // queueing discipline: ten times as long to bring up as a device for one.
        let many = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
        match Self::with_offloads(ifname, queues, OFFLOADING | many | libc::IFF_TUN_EXCL) {
            Err(Failed::Unsupported) => Self::create_plain(ifname),
            other => other.map_err(|failed| failed.while_opening(ifname)),
        }
    }

    /// Creates `ifname` without offloads, with one queue: each frame as it would be on the wire.
    pub(crate) fn create_plain(ifname: &str) -> Result<Self, Error> {
        // Asked first, because tun-tap cannot tell a missing device file from a refused name.
        drop(open_device().map_err(|failed| failed.while_opening(ifname))?);
        let iface = Iface::without_packet_info(ifname, Mode::Tap)
            .map_err(|source| Failed::Refused(source).while_opening(ifname))?;
        // SAFETY: `into_raw_fd` yields an open descriptor and gives up the only claim to it.
        let queue = unsafe { OwnedFd::from_raw_fd(iface.into_raw_fd()) };
        fcntl(&queue, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .and_then(|_| fcntl(&queue, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)))
            .map_err(|errno| Error::step(format!("set up the descriptor of {ifname}"), errno))?;
        Ok(Self { queues: vec![queue], opened: Opened::TapPlain })
    }

    /// Opens a TAP somebody has made persistent, with offloads where it takes them.
    pub(crate) fn existing(ifname: &str, queues: u16) -> Result<Self, Error> {
        // Without this the kernel would take the unknown name for a wish to create it.
        index_of(ifname)?;
        // A device is made for many queues or for one, and refuses the other (EINVAL).
        Self::with_offloads(ifname, queues, OFFLOADING | libc::IFF_MULTI_QUEUE)
            .or_else(|_| Self::with_offloads(ifname, 1, OFFLOADING))
            .map_err(|failed| failed.while_opening(ifname))
    }

    fn with_offloads(ifname: &str, queues: u16, flags: libc::c_int) -> Result<Self, Failed> {
        let mut flags = flags;
        let mut opened: Vec<OwnedFd> = Vec::new();
        for _ in 0..queues.max(1) {
            let queue = open_device()?;
            ioctl::tun_set_iff(&queue, ifname, flags)?;
            ioctl::tun_set_vnet_hdr_size(&queue, VNET_HDR_SIZE)?;
            opened.push(queue);
            // Only the first queue makes the interface.
            flags &= !libc::IFF_TUN_EXCL;
        }
        if let Some(queue) = opened.first() {
            take_offloads(queue)?;
        }
        Ok(Self { queues: opened, opened: Opened::TapOffload })
    }
}

/// Asks for every segmentation and checksum the kernel lets a reader take upon itself. UDP's came
/// with Linux 6.2, both families at once; the kernel refuses the whole word for one unknown bit.
fn take_offloads(queue: impl AsFd) -> io::Result<()> {
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    let udp = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    match ioctl::tun_set_offload(&queue, (tcp | udp).cast_signed()) {
        Err(err) if err.raw_os_error() == Some(libc::EINVAL) => {
            ioctl::tun_set_offload(&queue, tcp.cast_signed())
        }
        other => other,
    }
}

/// Opens `/dev/net/tun` for one queue, non-blocking and close-on-exec.
fn open_device() -> Result<OwnedFd, Failed> {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    match options.open("/dev/net/tun") {
        Ok(file) if is_tun(&file) => Ok(file.into()),
        Ok(_) => Err(Failed::NotTun),
        Err(source) => Err(match source.raw_os_error() {
            // The file is not there, or there is no driver behind it.
            Some(libc::ENOENT | libc::ENOTDIR | libc::ENXIO | libc::ENODEV) => Failed::Missing,
            Some(libc::EACCES | libc::EPERM) => Failed::Denied(source),
            _ => Failed::Refused(source),
        }),
    }
}

/// Whether it is the device that `mknod c 10 200` makes (`Documentation/admin-guide/devices.txt`).
fn is_tun(file: &File) -> bool {
    let rdev = |stat: FileStat| (major(stat.st_rdev), minor(stat.st_rdev));
    fstat(file).is_ok_and(|stat| rdev(stat) == (10, 200))
}

/// How opening a TAP ends early.
#[derive(Debug)]
enum Failed {
    Missing,
    NotTun,
    Denied(io::Error),
    Unsupported,
    Refused(io::Error),
}

impl Failed {
    fn while_opening(self, ifname: &str) -> Error {
        match self {
            Self::Missing => Error::TunMissing,
            Self::NotTun => Error::NotTun,
            Self::Denied(source) => Error::TunDenied { source },
            Self::Unsupported => {
                let source = io::Error::from_raw_os_error(libc::EOPNOTSUPP);
                Error::step(format!("open TAP {ifname}"), source)
            }
            Self::Refused(source) => match source.raw_os_error() {
                Some(libc::EBUSY) => Error::InterfaceExists { ifname: ifname.to_owned() },
                _ => Error::step(format!("open TAP {ifname}"), source),
            },
        }
    }
}

/// An ioctl a kernel (or what poses as one) does not know.
impl From<io::Error> for Failed {
    fn from(source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EINVAL | libc::ENOTTY | libc::ENOSYS | libc::EOPNOTSUPP) => {
                Self::Unsupported
            }
            _ => Self::Refused(source),
        }
    }
}
