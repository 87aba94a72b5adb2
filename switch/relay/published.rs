//! A published port: what it leads to, and its bound socket.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use datapath::PortId;
use nat::{Entry, Protocol, TransportAddr, Tuple, Zone};

use crate::outlet::Outlet;
use crate::socket;
use crate::splice::Splice;

/// A port to be published.
#[derive(Clone, Debug)]
pub struct Publication {
    /// Whose container.
    pub zone: Zone,
    /// The container's port on the bridge.
    pub port: PortId,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where to listen on the host.
    pub listen: SocketAddr,
    /// The container's addresses, of which the one of the client's family is taken first.
    pub to: Vec<IpAddr>,
    /// The container's port number.
    pub to_port: u16,
    /// How TCP clients may be relayed past the bridge: those of the host's loopback, or all.
    pub splice: Option<Splice>,
}

/// A published port whose socket is bound, ready to be served by a worker.
#[derive(Debug)]
pub struct Published {
    pub(crate) publication: Publication,
    pub(crate) socket: Socket,
}

/// The bound socket.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpListener),
    Udp(OwnedFd),
}

impl Published {
    /// Binds the host socket, in the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// As `bind(2)`; `InvalidInput` for a protocol without ports.
    pub fn bind(publication: Publication) -> io::Result<Self> {
        let socket = match publication.protocol {
            Protocol::Tcp => Socket::Tcp(socket::listen_tcp(publication.listen)?),
            Protocol::Udp => Socket::Udp(socket::listen_udp(publication.listen)?),
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        Ok(Self { publication, socket })
    }
}

impl Publication {
    /// The container's address for a client: of its own family if there is one.
    pub(crate) fn inside_for(&self, client: IpAddr) -> Option<TransportAddr> {
        let same = self.to.iter().find(|addr| addr.is_ipv4() == client.is_ipv4());
        let addr = same.or_else(|| self.to.first())?;
        Some(TransportAddr::new(*addr, self.to_port))
    }
}

/// A published TCP port.
#[derive(Debug)]
pub(crate) struct TcpPublished {
    pub(crate) publication: Publication,
    pub(crate) listener: TcpListener,
    /// In line for its next share.
    pub(crate) queued: bool,
}

/// A published UDP port; any worker may answer on its socket.
#[derive(Debug)]
pub(crate) struct UdpPublished {
    pub(crate) publication: Publication,
    pub(crate) outlet: Outlet,
    clients: Mutex<Clients>,
}

/// Who speaks to a published UDP port.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    entries: Vec<Arc<Entry>>,
    /// Of those whose address alone does not say where they are (RFC 4007 §6): the interface they came
    /// by.
    scopes: HashMap<Tuple, u32>,
}

impl UdpPublished {
    /// A published port without clients.
    pub(crate) fn new(publication: Publication, fd: OwnedFd) -> Self {
        Self { publication, outlet: Outlet::new(fd), clients: Mutex::default() }
    }

    pub(crate) fn clients(&self) -> MutexGuard<'_, Clients> {
        // Nothing that can panic runs under this lock.
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The interface an answer to the client of this flow must leave by; 0 for whichever the route says.
    pub(crate) fn scope_of(&self, original: Tuple) -> u32 {
        match needs_scope(original) {
            true => self.clients().scopes.get(&original).copied().unwrap_or(0),
            false => 0,
        }
    }
}

impl Clients {
    /// Takes note of a new client and the interface it came by.
    pub(crate) fn add(&mut self, entry: Arc<Entry>, ifindex: u32) {
        if self.entries.len() == self.entries.capacity() {
            // Those that were dropped early need not wait for the next sweep.
            self.keep(|entry| entry.is_tracked());
        }
        if needs_scope(entry.original) {
            self.scopes.insert(entry.original, ifindex);
        }
        self.entries.push(entry);
    }

    /// Keeps those clients `which` holds for, and says whether there are any.
    pub(crate) fn keep(&mut self, mut which: impl FnMut(&Arc<Entry>) -> bool) -> bool {
        let Self { entries, scopes } = self;
        entries.retain(|entry| {
            let kept = which(entry);
            if !kept && needs_scope(entry.original) {
                scopes.remove(&entry.original);
            }
            kept
        });
        !entries.is_empty()
    }
}

/// Whether client or used address says nothing without its interface: it is link-local, or a group's.
fn needs_scope(original: Tuple) -> bool {
    [original.src.addr, original.dst.addr].into_iter().any(|addr| match addr {
        IpAddr::V4(addr) => addr.is_link_local(),
        IpAddr::V6(addr) => addr.is_unicast_link_local() || addr.is_unspecified(),
    })
}
