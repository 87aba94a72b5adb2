//! Socket options and calls of Linux that `nix` does not offer, in safe form.
//!
//! Each function is one system call (or says which), takes any borrowed descriptor, and gives the
//! kernel only pointers to its own locals or to the caller's slices. Byte counts are octets.

use std::cell::UnsafeCell;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket};
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
/// [`peek_off_supported`] says no. The kernel copies the skipped octets too, and they are lost sight
/// of at once; that is the price of such a kernel.
///
/// Returns the octets put into `buf`; 0 while no more than `skip` are there, or after the peer's FIN.
///
/// # Errors
/// `WouldBlock` where nothing at all is there; `EINVAL` for more than 64 MB to skip.
pub fn peek_after(fd: impl AsFd, skip: usize, buf: &mut [u8]) -> io::Result<usize> {
    const SCRATCH: usize = 64 << 10;
    /// `UIO_MAXIOV` of `<linux/uio.h>` is 1024.
    const MOST: usize = 1000;
    thread_local! {
        static SKIPPED: UnsafeCell<[u8; SCRATCH]> = const { UnsafeCell::new([0; SCRATCH]) };
    }
    if skip > SCRATCH * MOST {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let got = SKIPPED.with(|skipped| {
        let skipped: *mut libc::c_void = skipped.get().cast();
        let mut slices: Vec<libc::iovec> = (0..skip.div_ceil(SCRATCH))
            .map(|nth| libc::iovec {
                iov_base: skipped,
                iov_len: SCRATCH.min(skip - nth * SCRATCH),
            })
            .collect();
        slices.push(libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() });
        let mut message = mem::MaybeUninit::<libc::msghdr>::zeroed();
        // SAFETY: a msghdr of zeros is one without name, buffers or control: null and 0 throughout.
        let message = unsafe { message.assume_init_mut() };
        message.msg_iov = slices.as_mut_ptr();
        message.msg_iovlen = slices.len() as _;
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: `message` leads to `slices`; each of those is a part of this thread's scratch, to
        // which no reference is ever made, or the caller's whole slice. All outlive the call.
        let got = unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), message, flags) };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    })?;
    Ok(got.saturating_sub(skip))
}

/// Throws away up to `octets` unread octets of a TCP socket without copying them:
/// `recv(NULL, MSG_TRUNC | MSG_DONTWAIT)`, tcp(7).
///
/// Returns how many; 0 is the peer's FIN. Moves the offset of [`set_peek_off`] back as far.
///
/// # Errors
/// `WouldBlock` where none is there. `EFAULT` on a socket that is not TCP.
pub fn recv_discard(fd: impl AsFd, octets: usize) -> io::Result<usize> {
    let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    // SAFETY: with MSG_TRUNC tcp_recvmsg_locked() (net/ipv4/tcp.c) copies nothing; what copies all
    // the same finds no memory at null and says EFAULT. No memory of ours is named.
    let got = unsafe { libc::recv(fd.as_fd().as_raw_fd(), ptr::null_mut(), octets, flags) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// Unread octets of a TCP socket: `SIOCINQ`, tcp(7). Where urgent octets are not read in line, no more
/// than those before the next urgent one.
///
/// # Errors
/// `EINVAL` on a listening socket.
pub fn unread(fd: impl AsFd) -> io::Result<usize> {
    count(fd, libc::FIONREAD as libc::Ioctl)
}

/// Octets written to a TCP socket that the far side has not acknowledged: `SIOCOUTQ`.
///
/// # Errors
/// `EINVAL` on a listening socket.
pub fn unsent(fd: impl AsFd) -> io::Result<usize> {
    count(fd, libc::TIOCOUTQ)
}

/// Octets written to a TCP socket that have not been sent even once: `SIOCOUTQNSD`.
///
/// # Errors
/// `EINVAL` on a listening socket.
pub fn notsent(fd: impl AsFd) -> io::Result<usize> {
    // <linux/sockios.h>; libc has only the other one, under its terminal name.
    const SIOCOUTQNSD: libc::Ioctl = 0x894b;
    count(fd, SIOCOUTQNSD)
}

/// Asks for where the extension objects of an ICMP error begin, which is told with it on the error queue:
/// `IP_RECVERR_RFC4884`, `IPV6_RECVERR_RFC4884` (ip(7); `struct sock_ee_data_rfc4884`).
///
/// # Errors
/// `ENOPROTOOPT` before Linux 5.9.
pub fn want_error_objects(fd: impl AsFd, v4: bool) -> io::Result<()> {
    // <linux/in.h>, <linux/in6.h>; libc has neither.
    const IP_RECVERR_RFC4884: libc::c_int = 26;
    const IPV6_RECVERR_RFC4884: libc::c_int = 31;
    match v4 {
        true => set_int(fd, libc::IPPROTO_IP, IP_RECVERR_RFC4884, 1),
        false => set_int(fd, libc::IPPROTO_IPV6, IPV6_RECVERR_RFC4884, 1),
    }
}

fn count(fd: impl AsFd, request: libc::Ioctl) -> io::Result<usize> {
    let mut octets: libc::c_int = 0;
    // SAFETY: `octets` lives across the call and is the one int each of these requests writes (tcp_ioctl).
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

/// Raises the limit of open descriptors to what this process may have, and returns that: with
/// `CAP_SYS_RESOURCE` what the kernel lets anybody have (`fs.nr_open`, proc_sys_fs(5)), else the hard limit.
///
/// # Errors
/// What getrlimit(2) or setrlimit(2) says.
pub fn raise_nofile_limit() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open").ok();
    if let Some(most) = most.and_then(|text| text.trim().parse().ok())
        && most > hard
        && setrlimit(Resource::RLIMIT_NOFILE, most, most).is_ok()
    {
        return Ok(most);
    }
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

/// A value the kernel takes octet by octet.
///
/// # Safety
/// It has no padding, and no pointer for the kernel to follow.
pub(crate) unsafe trait Plain: Copy {}

// SAFETY: an integer.
unsafe impl Plain for libc::c_int {}
// SAFETY: an `int`, two `unsigned short` and eight octets, one behind the other (packet(7)).
unsafe impl Plain for libc::packet_mreq {}

/// `setsockopt(2)` with a plain value.
pub(crate) fn set<T: Plain>(
    fd: impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    let octets = libc::socklen_t::try_from(mem::size_of::<T>()).map_err(io::Error::other)?;
    let value: *const T = value;
    // SAFETY: `value` points at `octets` octets, all initialised as `T` is plain, that outlive the call, which
    // reads them and, for the same reason, nothing else.
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    /// Two ends of a connection on the loopback.
    fn connection(at: &str) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(at).expect("a loopback");
        let near = TcpStream::connect(listener.local_addr().expect("bound")).expect("connect");
        (near, listener.accept().expect("accept").0)
    }

    fn octets(count: usize) -> Vec<u8> {
        (0..count).map(|at| u8::try_from(at % 251).expect("below 251")).collect()
    }

    /// Waits until `count` octets can be peeked at.
    fn arrived(stream: &TcpStream, count: usize) {
        let mut buf = vec![0; count];
        for _ in 0..10_000 {
            let mut readable = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
            poll(&mut readable, PollTimeout::from(1000u16)).expect("poll");
            if stream.peek(&mut buf).is_ok_and(|got| got == count) {
                return;
            }
        }
        panic!("{count} octets never arrived");
    }

    #[test]
    fn peeking_skips_what_was_seen_with_either_method() {
        for at in ["127.0.0.1:0", "[::1]:0"] {
            let (mut near, mut far) = connection(at);
            let sent = octets(100_000);
            near.write_all(&sent).expect("send");
            arrived(&far, sent.len());
            let mut buf = [0; 1000];
            for skip in [0, 1, 65_535, 65_536, 65_537, 99_000] {
                assert_eq!(peek_after(&far, skip, &mut buf).expect("peek"), 1000, "{skip}");
                assert_eq!(buf, sent[skip..skip + 1000], "{skip}");
            }
            assert_eq!(peek_after(&far, 99_500, &mut buf).expect("peek"), 500);
            assert_eq!(peek_after(&far, 100_000, &mut buf).expect("peek"), 0);
            assert_eq!(peek_after(&far, 200_000, &mut buf).expect("peek"), 0);
            if peek_off_supported() {
                set_peek_off(&far, Some(70_000)).expect("supported");
                assert_eq!(far.peek(&mut buf).expect("peek"), 1000);
                assert_eq!(buf, sent[70_000..71_000]);
                assert_eq!(far.peek(&mut buf).expect("peek"), 1000);
                assert_eq!(buf, sent[71_000..72_000], "it moves along");
                assert_eq!(recv_discard(&far, 70_000).expect("discard"), 70_000);
                assert_eq!(far.peek(&mut buf).expect("peek"), 1000);
                assert_eq!(buf, sent[72_000..73_000], "and stays where it was in the stream");
                set_peek_off(&far, None).expect("supported");
            } else {
                assert_eq!(recv_discard(&far, 70_000).expect("discard"), 70_000);
            }
            let mut rest = vec![0; 30_000];
            far.read_exact(&mut rest).expect("the rest");
            assert_eq!(rest, sent[70_000..]);
            let none = recv_discard(&far, 1).expect_err("nothing there");
            assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
            let none = peek_after(&far, 0, &mut buf).expect_err("nothing there");
            assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
            drop(near);
            assert_eq!(far.read(&mut buf).expect("FIN"), 0);
            assert_eq!(recv_discard(&far, 1).expect("FIN"), 0);
        }
    }

    #[test]
    fn discarding_is_for_tcp() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a loopback");
        socket.send_to(b"datagram", socket.local_addr().expect("bound")).expect("send");
        let err = recv_discard(&socket, 8).expect_err("not TCP");
        assert_eq!(err.raw_os_error(), Some(libc::EFAULT));
    }

    #[test]
    fn what_was_sent_is_counted_until_acknowledged() {
        let (mut near, mut far) = connection("127.0.0.1:0");
        near.set_nonblocking(true).expect("non-blocking");
        let mut sent = 0;
        while let Ok(more) = near.write(&[0; 65_536]) {
            sent += more;
        }
        // The far side reads nothing, so what its buffer has no room for is still here.
        let waiting = unsent(&near).expect("TCP");
        assert!(0 < waiting && waiting <= sent, "{waiting} of {sent}");
        assert!(notsent(&near).expect("TCP") <= waiting);
        let info = tcp_info(&near).expect("TCP");
        assert_eq!(info.state, 1);
        assert!(info.snd_mss >= 536 && info.snd_cwnd > 0, "{info:?}");
        assert!(usize::try_from(info.notsent).is_ok_and(|notsent| notsent <= sent), "{info:?}");
        let mut rest = vec![0; sent];
        far.read_exact(&mut rest).expect("all of it");
        for _ in 0..100_000 {
            if unsent(&near).expect("TCP") == 0 {
                let info = tcp_info(&near).expect("TCP");
                assert!(info.rtt > Duration::ZERO && info.snd_wnd > 0, "{info:?}");
                return;
            }
            std::thread::yield_now();
        }
        panic!("never acknowledged");
    }

    #[test]
    fn a_process_that_ends_makes_its_descriptor_readable() {
        let mut child = std::process::Command::new("true").spawn().expect("coreutils");
        let pidfd = pidfd_open(child.id()).expect("our child");
        let mut ended = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut ended, PollTimeout::from(10_000u16)), Ok(1));
        child.wait().expect("our child");
        // Above pid_max (2^22).
        let err = pidfd_open(4_194_305).expect_err("no process");
        assert_eq!(err.raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn the_limit_of_descriptors_is_the_hard_one_or_beyond() {
        let (_, before) = getrlimit(Resource::RLIMIT_NOFILE).expect("one's own limit");
        let limit = raise_nofile_limit().expect("never above what is allowed");
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE), Ok((limit, limit)));
        assert!(limit >= before);
        assert_eq!(raise_nofile_limit().ok(), Some(limit), "and once is enough");
    }
}
