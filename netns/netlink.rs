//! Requests and dumps of rtnetlink(7), one at a time and waited for.
//!
//! A socket belongs to the namespace its thread was in when it was made, so each [`Rtnl`] serves one
//! namespace and is dropped with its task. The kernel answers each request before it serves the
//! next, which is why no sequence numbers are matched beyond skipping what is older.

use std::io;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NlaBuffer, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::sockopt;

/// A socket to the kernel's routing tables.
pub(crate) struct Rtnl {
    socket: Socket,
    sequence: u32,
}

/// The kernel's No.
#[derive(Debug)]
pub(crate) struct Refused {
    /// Its number.
    pub(crate) errno: i32,
    /// Its reason in words, where it gave one (`NLMSGERR_ATTR_MSG`).
    pub(crate) text: Option<String>,
}

/// Dumps that changed while being read are read again, up to so many times. A table that changes
/// that often has no consistent state to show.
const DUMP_ATTEMPTS: u32 = 5;

/// Longest wait for one answer. The kernel answers within the system call that asks; this guards
/// against a bug here, not against a slow kernel.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

impl Rtnl {
    /// Opens a socket in the calling thread's namespace.
    pub(crate) fn open() -> Result<Self, Refused> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Both only improve the error text, and old kernels lack them.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        sockopt::set_receive_timeout(&socket, ANSWER_TIMEOUT)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends a request that changes something and waits for the kernel's word on it. `flags` are
    /// added to REQUEST and ACK.
    pub(crate) fn request(&mut self, ask: RouteNetlinkMessage, flags: u16) -> Result<(), Refused> {
        self.send(ask, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        self.answers(|_| ()).map(|_consistent| ())
    }

    /// Asks for all objects of a kind.
    pub(crate) fn dump(
        &mut self,
        ask: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Refused> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut all = Vec::new();
            self.send(ask.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            if self.answers(|answer| all.push(answer))? == Consistent::Yes {
                return Ok(all);
            }
        }
        Err(Refused { errno: libc::EAGAIN, text: Some("the table keeps changing".to_owned()) })
    }

    fn send(&mut self, ask: RouteNetlinkMessage, flags: u16) -> Result<(), Refused> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(ask));
        message.finalize();
        let mut octets = vec![0; message.buffer_len()];
        message.serialize(&mut octets);
        match self.socket.send(&octets, 0)? {
            sent if sent == octets.len() => Ok(()),
            _ => Err(Refused::from(io::Error::from(io::ErrorKind::WriteZero))),
        }
    }

    /// Reads until the kernel says it is done, handing each object to `take`.
    fn answers(
        &mut self,
        mut take: impl FnMut(RouteNetlinkMessage),
    ) -> Result<Consistent, Refused> {
        let mut consistent = Consistent::Yes;
        loop {
            let (octets, _) = self.socket.recv_from_full()?;
            let mut rest = octets.as_slice();
            while let Ok(view) = NetlinkBuffer::new_checked(rest) {
                // Messages are padded to four octets, save perhaps the last.
                let length = usize::try_from(view.length()).map_err(io::Error::other)?;
                let (message, flags) = (&rest[..length], view.flags());
                let ours = view.sequence_number() == self.sequence;
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                if !ours {
                    continue;
                }
                if flags & NLM_F_DUMP_INTR != 0 {
                    consistent = Consistent::No;
                }
                // What this version of the decoder cannot read (a newer kernel's attribute) is
                // left out: the other objects are as true without it.
                let Ok(message) = NetlinkMessage::deserialize(message) else { continue };
                match message.payload {
                    NetlinkPayload::InnerMessage(answer) => take(answer),
                    NetlinkPayload::Done(done) if done.code == 0 => return Ok(consistent),
                    NetlinkPayload::Done(done) => return Err(Refused::errno(-done.code)),
                    NetlinkPayload::Error(err) => match err.code {
                        None => return Ok(consistent),
                        Some(code) => {
                            return Err(Refused { errno: -code.get(), text: reason(&err.header) });
                        }
                    },
                    NetlinkPayload::Overrun(_) => return Err(Refused::errno(libc::ENOBUFS)),
                    _ => {}
                }
            }
        }
    }
}

/// Whether a dump is of one moment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Consistent {
    Yes,
    No,
}

/// The words in an extended acknowledgement: attributes behind the capped request's header, which is
/// 16 octets (`struct nlmsgerr`, `<linux/netlink.h>`).
fn reason(echo: &[u8]) -> Option<String> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let attributes = NlasIterator::new(echo.get(16..)?);
    let said = attributes
        .filter_map(|attribute: Result<NlaBuffer<&[u8]>, _>| attribute.ok())
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)?;
    let text = String::from_utf8_lossy(said.value());
    Some(text.trim_end_matches('\0').to_owned())
}

impl Refused {
    fn errno(errno: i32) -> Self {
        Self { errno, text: None }
    }

    /// As the cause of an error that says `what` was attempted.
    pub(crate) fn while_trying(self, what: impl Into<String>) -> crate::Error {
        let mut what = what.into();
        if let Some(text) = self.text {
            what = format!("{what} ({text})");
        }
        crate::Error::step(what, io::Error::from_raw_os_error(self.errno))
    }
}

impl From<io::Error> for Refused {
    fn from(err: io::Error) -> Self {
        match err.raw_os_error() {
            Some(errno) => Self { errno, text: None },
            None => Self { errno: libc::EIO, text: Some(err.to_string()) },
        }
    }
}
