//! A host's datagram socket, as several workers send on it.
//!
//! TTL, traffic class and source go along with each datagram. Whether it may be cut can only be said of
//! the socket (`IP_MTU_DISCOVER`, ip(7)): that is set under a lock which every sender holds, so that no
//! datagram leaves under another one's setting.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{PoisonError, RwLock};

use datapath::IcmpError;
use netns::datagram::{Along, send_datagrams, set_may_fragment};
use nix::errno::Errno;
use nix::libc;

use crate::last::Last;
use crate::train::Head;
use crate::{errors, socket};

/// A datagram socket of the host's.
#[derive(Debug)]
pub(crate) struct Outlet {
    pub(crate) fd: OwnedFd,
    pub(crate) last: Last,
    /// What was last said of fragmenting; nothing at first.
    may_fragment: RwLock<Option<bool>>,
    /// The kernel or the device does not take trains.
    one_by_one: AtomicBool,
    /// In line for its next share.
    pub(crate) queued: AtomicBool,
}

/// What went wrong on the way out.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trouble<'a> {
    /// A call failed, perhaps for an earlier datagram (ip(7), `IP_RECVERR`): the error queue is to be
    /// read.
    Earlier,
    /// A datagram did not leave: which of the train, from 0 on, and its payload.
    Failed(Errno, (usize, &'a [u8])),
}

impl Outlet {
    /// Of a bound socket.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            last: Last::default(),
            may_fragment: RwLock::default(),
            one_by_one: AtomicBool::new(false),
            queued: AtomicBool::new(false),
        }
    }

    /// Sends a datagram, or a train of them, cut by the host only if it may. `earlier` is told if the call
    /// failed, perhaps for an earlier datagram.
    pub(crate) fn send(
        &self,
        to: SocketAddr,
        payload: &[u8],
        along: &Along,
        may_fragment: bool,
        earlier: impl FnOnce(),
    ) -> Result<(), Errno> {
        let send = || self.send_once(to, payload, along, may_fragment);
        match send() {
            Err(errno) if is_perhaps_of_an_earlier_one(errno) => {
                earlier();
                // What was not read of a long queue makes one more call fail (`sock_dequeue_err_skb`).
                send().or_else(|_| send())
            }
            sent => sent,
        }
    }

    fn send_once(
        &self,
        to: SocketAddr,
        payload: &[u8],
        along: &Along,
        may_fragment: bool,
    ) -> Result<(), Errno> {
        let send = || match send_datagrams(&self.fd, to, payload, along) {
            // The address is the host's no more (`ip_route_output_key_hash_rcu`, `ip6_datagram_send_ctl`): whoever
            // still hears the answer hears it from another.
            Err(error) if along.source.is_some() && is_about_source(&error) => {
                send_datagrams(&self.fd, to, payload, &Along { source: None, ..*along })
            }
            sent => sent,
        };
        // Nothing that can panic runs under this lock.
        let held = self.may_fragment.read().unwrap_or_else(PoisonError::into_inner);
        let sent = if *held == Some(may_fragment) {
            send()
        } else {
            drop(held);
            let mut held = self.may_fragment.write().unwrap_or_else(PoisonError::into_inner);
            set_may_fragment(&self.fd, to.is_ipv4(), may_fragment).and_then(|()| {
                *held = Some(may_fragment);
                send()
            })
        };
        sent.map_err(|error| Errno::try_from(error).unwrap_or(Errno::EIO))
    }

    /// Sends a train on, and tells what went wrong.
    pub(crate) fn send_train<V>(
        &self,
        to: SocketAddr,
        (head, payload): (&Head<V>, &[u8]),
        source: Option<(IpAddr, u32)>,
        mut tell: impl FnMut(Trouble<'_>),
    ) {
        let along = Along {
            hop_limit: Some(head.hop_limit),
            traffic_class: head.traffic_class,
            source,
            segment: None,
        };
        for (place, share) in shares(payload, head.share()).enumerate() {
            let numbered = || (place * Head::<V>::MOST..).zip(shares(share, head.size));
            let segment = u16::try_from(head.size).ok().filter(|_| share.len() > head.size);
            let mut about_trains = false;
            let as_train = segment.filter(|_| !self.one_by_one.load(Relaxed));
            if segment.is_some() == as_train.is_some() {
                let along = Along { segment: as_train, ..along };
                let earlier = || tell(Trouble::Earlier);
                match self.send(to, share, &along, head.may_fragment, earlier) {
                    Ok(()) => continue,
                    Err(errno) if as_train.is_some() && is_about_trains(errno) => {
                        // One too long for the path is so for a train on it, too, and others are not.
                        about_trains = errno != Errno::EMSGSIZE;
                    }
                    Err(errno) => {
                        numbered().for_each(|datagram| tell(Trouble::Failed(errno, datagram)));
                        continue;
                    }
                }
            }
            for datagram in numbered() {
                let earlier = || tell(Trouble::Earlier);
                match self.send(to, datagram.1, &along, head.may_fragment, earlier) {
                    Ok(()) if about_trains => self.one_by_one.store(true, Relaxed),
                    Ok(()) => {}
                    Err(errno) => tell(Trouble::Failed(errno, datagram)),
                }
            }
        }
        let nth = head.datagrams - 1;
        let last = payload.get(nth * head.size..).unwrap_or_default();
        self.last.note(to.into(), last, head.seen(nth));
    }

    pub(crate) fn raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

/// The octets in pieces of `len`; nothing at all is one empty piece.
fn shares(octets: &[u8], len: usize) -> impl Iterator<Item = &[u8]> {
    let empty = octets.is_empty().then_some(octets);
    octets.chunks(len.max(1)).chain(empty)
}

/// Whether an error may be what became of an earlier datagram, and not be about room.
const fn is_perhaps_of_an_earlier_one(errno: Errno) -> bool {
    !matches!(errno, Errno::EAGAIN | Errno::ENOBUFS)
}

/// Whether a datagram may leave from another address.
fn is_about_source(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENETUNREACH | libc::EINVAL | libc::EADDRNOTAVAIL))
}

/// Whether a train may leave in another form: the kernel knows no trains, the device makes no checksums,
/// or its datagrams are too long not to be cut.
const fn is_about_trains(errno: Errno) -> bool {
    matches!(errno, Errno::EINVAL | Errno::EIO | Errno::EMSGSIZE | Errno::EOPNOTSUPP)
}

/// What the container is told of a datagram the host would not send; nothing where it would do so a
/// moment later, or where it was for everybody.
pub(crate) fn as_icmp(errno: Errno, to: SocketAddr, own_mtu: u16) -> Option<IcmpError> {
    match errno {
        Errno::EMSGSIZE => {
            Some(IcmpError::TooBig(socket::path_mtu(to).unwrap_or_else(|_| u32::from(own_mtu))))
        }
        Errno::EAGAIN | Errno::ENOBUFS => None,
        Errno::EACCES if socket::is_broadcast(to) => None,
        errno => errors::icmp_for(errno),
    }
}
