//! Socket options and calls of Linux that `nix` does not offer, in safe form.
//!
//! Each function is one system call (or says which), takes any borrowed descriptor, and gives the
//! kernel only pointers to its own locals or to the caller's slices. Byte counts are octets.

use std::io::{self, IoSliceMut};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recvmsg, setsockopt, socket};
use nix::sys::time::{TimeVal, TimeValLike};

/// Sets where `MSG_PEEK` starts: that many octets after the first unread one, moving along with each
/// peek; `None` switches back to the first unread one (`SO_PEEK_OFF`, socket(7)).
///
/// # Errors
/// `EOPNOTSUPP` on TCP before Linux 6.9 (IPv6: 6.11); see [`peek_off_supported`].
pub fn set_peek_off(fd: impl AsFd, offset: Option<i32>) -> io::Result<()> {
    set_int(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, offset.unwrap_or(-1))
}

/// Whether TCP sockets of both families know `SO_PEEK_OFF`. Asked of the kernel once.
#[must_use]
pub fn peek_off_supported() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        [AddressFamily::Inet, AddressFamily::Inet6].into_iter().all(|family| {
            match socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None) {
                Ok(probe) => set_peek_off(&probe, Some(0)).is_ok(),
                // No such family on this host: nothing that could lack the option.
                Err(errno) => errno == nix::errno::Errno::EAFNOSUPPORT,
            }
        })
    })
}

/// Peeks what follows the first `skip` unread octets, without moving anything: for kernels where
/// [`peek_off_supported`] says no. The skipped octets are copied to a scratch page, again and again.
///
/// Returns the octets put into `buf`; 0 while no more than `skip` are there.
///
/// # Errors
/// `WouldBlock` where nothing at all is there; what recvmsg(2) says.
pub fn peek_after(fd: impl AsFd, skip: usize, buf: &mut [u8]) -> io::Result<usize> {
    // Overlapping targets are the kernel's to write in order; for Rust each must be its own memory.
    const PAGE: usize = 16 * 1024;
    // IOV_MAX is 1024 (limits.h): what a scratch of that many pages cannot skip is not asked for.
    const PAGES: usize = 1000;
    if skip > PAGE * PAGES {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut scratch = vec![0; skip];
    let mut slices = [IoSliceMut::new(&mut scratch), IoSliceMut::new(buf)];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    let got = recvmsg::<()>(fd.as_fd().as_raw_fd(), &mut slices, None, flags)?.bytes;
    match got {
        0 => Ok(0),
        got => Ok(got.saturating_sub(skip)),
    }
}

/// Throws away up to `octets` unread octets of a TCP socket without copying them:
/// `recv(NULL, MSG_TRUNC | MSG_DONTWAIT)`, tcp(7).
///
/// Returns how many; 0 is the peer's FIN.
///
/// # Errors
/// `WouldBlock` where none is there. `EINVAL` on a socket that is not TCP, where the call would
/// mean something else.
pub fn recv_discard(fd: impl AsFd, octets: usize) -> io::Result<usize> {
    let fd = fd.as_fd();
    if get_int(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL)? != libc::IPPROTO_TCP {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    // SAFETY: `fd` is a TCP socket, open for the call; with MSG_TRUNC tcp_recvmsg_locked()
    // (net/ipv4/tcp.c) copies nothing, so the null buffer is never written to.
    let got = unsafe { libc::recv(fd.as_raw_fd(), std::ptr::null_mut(), octets, flags) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// Octets written to a TCP socket that the far side has not acknowledged: `SIOCOUTQ`.
///
/// # Errors
/// `EINVAL` on a listening socket.
pub fn unsent(fd: impl AsFd) -> io::Result<usize> {
    outq(fd, libc::TIOCOUTQ)
}

/// Octets written to a TCP socket that have not been sent even once: `SIOCOUTQNSD`.
///
/// # Errors
/// `EINVAL` on a listening socket.
pub fn notsent(fd: impl AsFd) -> io::Result<usize> {
    // <linux/sockios.h>; libc has only the other one, under its terminal name.
    const SIOCOUTQNSD: libc::Ioctl = 0x894b;
    outq(fd, SIOCOUTQNSD)
}

fn outq(fd: impl AsFd, request: libc::Ioctl) -> io::Result<usize> {
    let mut octets: libc::c_int = 0;
    // SAFETY: `octets` lives across the call and is the one int both requests write (tcp_ioctl).
    let done = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, &raw mut octets) };
    match done {
        0 => Ok(usize::try_from(octets).unwrap_or(0)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What a relay needs to know of a TCP connection: a few fields of `TCP_INFO`, tcp(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpInfo {
    /// State as `enum` in `<netinet/tcp.h>` numbers it: 1 is ESTABLISHED.
    pub state: u8,
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Smallest round-trip time seen; zero where the kernel does not say (before 4.6).
    pub min_rtt: Duration,
    /// Largest segment sent, in octets.
    pub snd_mss: u32,
    /// Congestion window, in segments.
    pub snd_cwnd: u32,
    /// Window the far side offers, in octets; zero where the kernel does not say (before 5.4).
    pub snd_wnd: u32,
    /// Octets not sent even once.
    pub notsent: u32,
    /// Segments sent again so far.
    pub total_retrans: u32,
}

/// Reads [`TcpInfo`].
///
/// # Errors
/// `ENOPROTOOPT` where `fd` is no TCP socket.
pub fn tcp_info(fd: impl AsFd) -> io::Result<TcpInfo> {
    // Older kernels fill a shorter struct, and what they leave out stays zero.
    let info = get::<Info>(fd, libc::IPPROTO_TCP, libc::TCP_INFO)?;
    Ok(TcpInfo {
        state: info.head[0],
        rtt: Duration::from_micros(info.words[15].into()),
        min_rtt: Duration::from_micros(info.min_rtt.into()),
        snd_mss: info.words[2],
        snd_cwnd: info.words[18],
        snd_wnd: info.snd_wnd,
        notsent: info.notsent_bytes,
        total_retrans: info.words[23],
    })
}

/// The beginning of `struct tcp_info`, `<linux/tcp.h>`, as far as `tcpi_snd_wnd` (Linux 5.4).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Info {
    /// tcpi_state … the two bit-field octets.
    head: [u8; 8],
    /// tcpi_rto (0), ato, snd_mss (2), rcv_mss, unacked (4), sacked, lost, retrans, fackets,
    /// last_data_sent (9), last_ack_sent, last_data_recv, last_ack_recv, pmtu (13), rcv_ssthresh,
    /// rtt (15), rttvar, snd_ssthresh, snd_cwnd (18), advmss, reordering, rcv_rtt, rcv_space,
    /// total_retrans (23).
    words: [u32; 24],
    pacing_rate: u64,
    max_pacing_rate: u64,
    bytes_acked: u64,
    bytes_received: u64,
    segs_out: u32,
    segs_in: u32,
    notsent_bytes: u32,
    min_rtt: u32,
    data_segs_in: u32,
    data_segs_out: u32,
    delivery_rate: u64,
    busy_time: u64,
    rwnd_limited: u64,
    sndbuf_limited: u64,
    delivered: u32,
    delivered_ce: u32,
    bytes_sent: u64,
    bytes_retrans: u64,
    dsack_dups: u32,
    reord_seen: u32,
    rcv_ooopack: u32,
    snd_wnd: u32,
}

/// Raises the limit of open descriptors to what this process may have, and returns that.
///
/// # Errors
/// What getrlimit(2) or setrlimit(2) says.
pub fn raise_nofile_limit() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// A descriptor of process `pid`, readable (for poll(2)) once it has ended: pidfd_open(2).
///
/// # Errors
/// `ESRCH` where there is no such process; `ENOSYS` before Linux 5.3.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
    // SAFETY: pidfd_open takes two numbers and no pointer.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is a descriptor the kernel has just made for us alone, close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Longest wait of a receive call: `SO_RCVTIMEO`, socket(7). Beyond it the call says `WouldBlock`.
///
/// # Errors
/// `EDOM` for more seconds than the kernel counts.
pub fn set_receive_timeout(fd: impl AsFd, timeout: Duration) -> io::Result<()> {
    let micros = i64::try_from(timeout.as_micros()).unwrap_or(i64::MAX);
    setsockopt(&fd, ReceiveTimeout, &TimeVal::microseconds(micros))?;
    Ok(())
}

/// `setsockopt(2)` with an `int`.
pub(crate) fn set_int(
    fd: impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    set(fd, level, name, &value)
}

/// `setsockopt(2)` with any plain value.
pub(crate) fn set<T: Copy>(
    fd: impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    let octets = libc::socklen_t::try_from(mem::size_of::<T>()).map_err(io::Error::other)?;
    let value: *const T = value;
    // SAFETY: `value` points at `octets` initialised octets that outlive the call, which only reads.
    let done =
        unsafe { libc::setsockopt(fd.as_fd().as_raw_fd(), level, name, value.cast(), octets) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `getsockopt(2)` of an `int`.
pub(crate) fn get_int(
    fd: impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
) -> io::Result<libc::c_int> {
    get(fd, level, name)
}

/// `getsockopt(2)` of a type for which any octets are a value.
fn get<T: Copy + Default>(fd: impl AsFd, level: libc::c_int, name: libc::c_int) -> io::Result<T> {
    let mut octets = libc::socklen_t::try_from(mem::size_of::<T>()).map_err(io::Error::other)?;
    let mut value = T::default();
    let to: *mut T = &raw mut value;
    // SAFETY: `to` points at `octets` writable octets, and the kernel writes no more than that;
    // both callers' types (an int; Info, only integers) hold any bit pattern.
    let done = unsafe {
        libc::getsockopt(fd.as_fd().as_raw_fd(), level, name, to.cast(), &raw mut octets)
    };
    if done == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}
