//! DHCP messages: those a server sends read, ours written.
//!
//! Read RFC 2131 §2 and RFC 2132 first, then RFC 3396 (an option in pieces), RFC 3442 (classless routes)
//! and RFC 2131 §4.1 (options that go on in `file` and `sname`). The head is read and the whole written
//! by smoltcp; of what it reads of options it keeps one router and three name servers, drops a list
//! of routers, and knows no pieces, so options are gathered here.

use std::net::Ipv4Addr;

use smoltcp::time::Duration;
use smoltcp::wire::{DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr, Ipv4Cidr};

use crate::drop::DropReason;
use crate::emit::{self, IpHeader};
use crate::outbox::{Built, Outbox};
use crate::packet::is_martian_source;
use crate::port::MacAddr;

/// Ports of server and client (RFC 2131 §4.1).
pub(crate) const SERVER_PORT: u16 = 67;
pub(crate) const CLIENT_PORT: u16 = 68;

/// Routers, name servers and classless routes kept of one lease.
pub(crate) const MAX_ROUTERS: usize = 4;
pub(crate) const MAX_NAME_SERVERS: usize = 8;
pub(crate) const MAX_ROUTES: usize = 32;

/// Octets of a BOOTP message, below which some relays and servers take none (RFC 1542 §2.1).
const LEAST_LEN: usize = 300;
/// Longest IP packet we take, as option 57 says it.
const MAX_SIZE: u16 = 1500;
/// Octets of the host name that are told.
const MAX_HOSTNAME: usize = 63;

const SUBNET_MASK: u8 = 1;
const ROUTER: u8 = 3;
const NAME_SERVER: u8 = 6;
const HOST_NAME: u8 = 12;
const INTERFACE_MTU: u8 = 26;
const LEASE_TIME: u8 = 51;
const OVERLOAD: u8 = 52;
const MESSAGE_TYPE: u8 = 53;
const SERVER_IDENTIFIER: u8 = 54;
const RENEWAL_TIME: u8 = 58;
const REBINDING_TIME: u8 = 59;
const CLASSLESS_ROUTES: u8 = 121;

/// What is asked for; RFC 3442 wants classless routes before routers.
const WANTED: [u8; 8] = [
    SUBNET_MASK,
    CLASSLESS_ROUTES,
    ROUTER,
    NAME_SERVER,
    INTERFACE_MTU,
    LEASE_TIME,
    RENEWAL_TIME,
    REBINDING_TIME,
];

/// What a server may say to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Offer,
    Ack,
    Nak,
}

/// A server's message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) kind: Kind,
    pub(crate) xid: u32,
    pub(crate) server: Ipv4Addr,
    /// `yiaddr`, unspecified in a NAK.
    pub(crate) address: Ipv4Addr,
    /// The subnet's; of the address's class where the server says none.
    pub(crate) prefix_len: u8,
    pub(crate) routers: Vec<Ipv4Addr>,
    pub(crate) name_servers: Vec<Ipv4Addr>,
    /// Destination and next hop, `None` on the segment; with any of these, `routers` do not count.
    pub(crate) routes: Vec<(Ipv4Cidr, Option<Ipv4Addr>)>,
    pub(crate) mtu: Option<u16>,
    /// `None`: for ever, or not said (an offer need not, an ACK must).
    pub(crate) lease: Option<Duration>,
    pub(crate) for_ever: bool,
    pub(crate) renewal: Option<Duration>,
    pub(crate) rebinding: Option<Duration>,
}

/// Reads a server's message to the client `mac`. `Ok(None)`: one to somebody else, or of another kind.
///
/// # Errors
///
/// [`DropReason::Malformed`] if it is none, or claims what no server can.
pub(crate) fn read(octets: &[u8], mac: MacAddr) -> Result<Option<Reply>, DropReason> {
    const REPLY: u8 = 2;
    const COOKIE: u32 = 0x6382_5363;
    let packet = DhcpPacket::new_checked(octets).map_err(|_| DropReason::Malformed)?;
    if octets[..3] != [REPLY, 1, 6] || packet.magic_number() != COOKIE {
        return Err(DropReason::Malformed);
    }
    if packet.client_hardware_address() != mac {
        return Ok(None);
    }
    let options = Options::gather(octets);
    let kind = match options.get(MESSAGE_TYPE) {
        Some([2]) => Kind::Offer,
        Some([5]) => Kind::Ack,
        Some([6]) => Kind::Nak,
        Some([_]) => return Ok(None),
        _ => return Err(DropReason::Malformed),
    };
    let address = packet.your_ip();
    let server = options.addresses(SERVER_IDENTIFIER, 1);
    let server = server.first().copied().ok_or(DropReason::Malformed)?;
    if kind != Kind::Nak && is_martian_source(address.into()) {
        return Err(DropReason::Malformed);
    }
    let lease = options.word(LEASE_TIME);
    let time = |kind| options.word(kind).map(|seconds| Duration::from_secs(seconds.into()));
    Ok(Some(Reply {
        kind,
        xid: packet.transaction_id(),
        server,
        address,
        prefix_len: options
            .word(SUBNET_MASK)
            .filter(|mask| mask.leading_ones() == mask.count_ones() && *mask != 0)
            .and_then(|mask| u8::try_from(mask.count_ones()).ok())
            .unwrap_or_else(|| class_of(address)),
        routers: options.addresses(ROUTER, MAX_ROUTERS),
        name_servers: options.addresses(NAME_SERVER, MAX_NAME_SERVERS),
        routes: options.get(CLASSLESS_ROUTES).map(classless).unwrap_or_default(),
        mtu: options
            .get(INTERFACE_MTU)
            .and_then(|mtu| Some(u16::from_be_bytes(*mtu.first_chunk()?))),
        lease: lease
            .filter(|seconds| *seconds != u32::MAX)
            .map(|seconds| Duration::from_secs(seconds.into())),
        for_ever: lease == Some(u32::MAX),
        renewal: time(RENEWAL_TIME),
        rebinding: time(REBINDING_TIME),
    }))
}

/// The prefix length of an address's class (RFC 950 §2.1), which holds where no mask is given.
const fn class_of(address: Ipv4Addr) -> u8 {
    match address.octets()[0] {
        0..=127 => 8,
        128..=191 => 16,
        _ => 24,
    }
}

/// The options of one message, pieces of the same one put together (RFC 3396).
struct Options(Vec<(u8, Vec<u8>)>);

impl Options {
    fn gather(octets: &[u8]) -> Self {
        let mut options = Self(Vec::new());
        // Fields of RFC 2131 figure 1.
        let (sname, file, rest) = (&octets[44..108], &octets[108..236], &octets[240..]);
        options.walk(rest);
        let overload = options.get(OVERLOAD).and_then(|option| option.first().copied());
        let overload = overload.unwrap_or(0);
        if overload & 1 != 0 {
            options.walk(file);
        }
        if overload & 2 != 0 {
            options.walk(sname);
        }
        options
    }

    /// Adds the options of one field, until its end or the first that is not whole.
    fn walk(&mut self, field: &[u8]) {
        const PAD: u8 = 0;
        const END: u8 = 255;
        let mut rest = field;
        while let [kind, tail @ ..] = rest {
            match *kind {
                PAD => rest = tail,
                END => return,
                kind => {
                    let Some((len, tail)) = tail.split_first() else { return };
                    let Some((data, tail)) = tail.split_at_checked(usize::from(*len)) else {
                        return;
                    };
                    match self.0.iter_mut().find(|(known, _)| *known == kind) {
                        Some((_, known)) => known.extend_from_slice(data),
                        None => self.0.push((kind, data.to_vec())),
                    }
                    rest = tail;
                }
            }
        }
    }

    fn get(&self, kind: u8) -> Option<&[u8]> {
        self.0.iter().find(|(known, _)| *known == kind).map(|(_, data)| &data[..])
    }

    fn word(&self, kind: u8) -> Option<u32> {
        self.get(kind)?.first_chunk().map(|word| u32::from_be_bytes(*word))
    }

    /// The first `most` addresses of an option that stations can have.
    fn addresses(&self, kind: u8, most: usize) -> Vec<Ipv4Addr> {
        let words = self.get(kind).unwrap_or_default().as_chunks::<4>().0;
        let addresses = words.iter().copied().map(Ipv4Addr::from);
        addresses.filter(|addr| !is_martian_source((*addr).into())).take(most).collect()
    }
}

/// Destination descriptors and their routers (RFC 3442), until the first that is not whole.
fn classless(option: &[u8]) -> Vec<(Ipv4Cidr, Option<Ipv4Addr>)> {
    let mut routes = Vec::new();
    let mut rest = option;
    while let [len @ 0..=32, tail @ ..] = rest
        && routes.len() < MAX_ROUTES
    {
        let Some((given, tail)) = tail.split_at_checked(usize::from(*len).div_ceil(8)) else {
            break;
        };
        let Some((via, tail)) = tail.split_first_chunk::<4>() else { break };
        let mut octets = [0; 4];
        octets[..given.len()].copy_from_slice(given);
        let mask = u32::MAX.checked_shl(32 - u32::from(*len)).unwrap_or(0);
        let to = Ipv4Addr::from(u32::from_be_bytes(octets) & mask);
        let via = Ipv4Addr::from(*via);
        if via.is_unspecified() || !is_martian_source(via.into()) {
            let via = (!via.is_unspecified()).then_some(via);
            routes.push((Ipv4Cidr::new(to, *len), via));
        }
        rest = tail;
    }
    routes
}

/// A message of ours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) kind: DhcpMessageType,
    pub(crate) mac: MacAddr,
    pub(crate) xid: u32,
    /// Seconds since we began to ask.
    pub(crate) secs: u16,
    /// Our address, where it is ours and we can be reached by it; else unspecified.
    pub(crate) own: Ipv4Addr,
    /// The address asked for, or declined.
    pub(crate) wanted: Option<Ipv4Addr>,
    /// Which server is meant.
    pub(crate) server: Option<Ipv4Addr>,
    /// Whom it is sent to, and that one's station; `None`: everybody.
    pub(crate) to: Option<(Ipv4Addr, MacAddr)>,
    pub(crate) hostname: Option<&'a str>,
}

impl Ask<'_> {
    /// Builds the frame.
    pub(crate) fn build(&self, out: &mut Outbox) -> Built {
        use DhcpMessageType::{Discover, Request};
        let asks = matches!(self.kind, Discover | Request);
        let hostname = self.hostname.filter(|name| !name.is_empty() && asks);
        let hostname = hostname.map(|name| &name.as_bytes()[..name.len().min(MAX_HOSTNAME)]);
        let name = hostname.map(|data| DhcpOption { kind: HOST_NAME, data });
        let repr = DhcpRepr {
            message_type: self.kind,
            transaction_id: self.xid,
            secs: self.secs,
            client_hardware_address: self.mac,
            client_ip: self.own,
            your_ip: Ipv4Addr::UNSPECIFIED,
            server_ip: Ipv4Addr::UNSPECIFIED,
            router: None,
            subnet_mask: None,
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            // A frame for our station reaches us before the address is ours.
            broadcast: false,
            requested_ip: self.wanted,
            client_identifier: Some(self.mac),
            server_identifier: self.server,
            parameter_request_list: asks.then_some(&WANTED[..]),
            dns_servers: None,
            max_size: asks.then_some(MAX_SIZE),
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: name.as_slice(),
        };
        const UDP: u8 = 17;
        const UDP_HEADER: usize = 8;
        let (dst, station) = self.to.unwrap_or((Ipv4Addr::BROADCAST, MacAddr::BROADCAST));
        let header = IpHeader::new(self.own.into(), dst.into(), UDP);
        let len = UDP_HEADER + repr.buffer_len().max(LEAST_LEN);
        let built = out.build(header.transport() + len);
        let frame = out.frame_mut(built);
        header.emit(frame, self.mac);
        frame[..6].copy_from_slice(station.as_bytes());
        let datagram = &mut frame[header.transport()..];
        datagram.fill(0);
        let octets = u16::try_from(len).expect("some three hundred");
        for (at, word) in [SERVER_PORT, octets].into_iter().enumerate() {
            datagram[2 + 2 * at..][..2].copy_from_slice(&word.to_be_bytes());
        }
        datagram[..2].copy_from_slice(&CLIENT_PORT.to_be_bytes());
        let mut message = DhcpPacket::new_unchecked(&mut datagram[UDP_HEADER..]);
        repr.emit(&mut message).expect("the buffer is as long as it asks");
        emit::fill_checksum(&header, datagram, 6);
        built
    }
}
