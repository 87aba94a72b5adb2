//! A published port: what it leads to, and its bound socket.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use datapath::PortId;
use nat::{Entry, Protocol, TransportAddr, Zone};

use crate::socket;

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
}

/// A published UDP port; any worker may answer on its socket.
#[derive(Debug)]
pub(crate) struct UdpPublished {
    pub(crate) publication: Publication,
    pub(crate) fd: OwnedFd,
    clients: Mutex<Vec<Arc<Entry>>>,
}

impl UdpPublished {
    /// A published port without clients.
    pub(crate) fn new(publication: Publication, fd: OwnedFd) -> Self {
        Self { publication, fd, clients: Mutex::default() }
    }

    pub(crate) fn clients(&self) -> MutexGuard<'_, Vec<Arc<Entry>>> {
        // Nothing that can panic runs under this lock.
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
