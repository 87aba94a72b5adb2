//! Where an SCTP association stands, as far as a watcher in the middle can tell.
//!
//! Read RFC 9260 §4, §8.4 and §8.5, and `net/netfilter/nf_conntrack_proto_sctp.c`, whose names are kept. Each packet
//! carries a tag that its receiver has chosen; whoever does not know it cannot move the association. An
//! association has several addresses at either end, which only their ports tell to belong together: they are
//! never changed (RFC 3257 §4).

use std::fmt;

use crate::state::Direction;

/// Chunks of a packet that are looked at: those that move an association come first (RFC 9260 §6.10).
const MAX_CHUNKS: usize = 16;

/// Octets of the common header.
const HEADER: usize = 12;

/// Where an SCTP association stands, by the names `conntrack -L` prints.
///
/// ```text
///   None ─INIT→ CookieWait ─COOKIE ECHO⇄ CookieEchoed ─COOKIE ACK⇄ Established
///   None ─HEARTBEAT→ HeartbeatSent ─HEARTBEAT ACK← Established   (another path of an association)
///   Established ─SHUTDOWN→ ShutdownSent ─┐
///   Established ─SHUTDOWN← ShutdownRecd ─┴─SHUTDOWN ACK⇄ ShutdownAckSent ─SHUTDOWN COMPLETE⇄ Closed
///   None ─SHUTDOWN ACK→ ShutdownAckSent                          (out of the blue, RFC 9260 §8.4)
///   CookieEchoed ─ERROR← Closed        any ─ABORT⇄ Closed        Closed, Shutdown… ─INIT→ CookieWait
///   None ─anything else→ Closed                                  (picked up in the middle)
/// ```
/// `→` is the original direction, `←` the reply, `⇄` either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum SctpState {
    /// Nothing seen yet; also the state of every flow that is not SCTP.
    #[default]
    None,
    /// It is over, or was picked up in the middle.
    Closed,
    /// An INIT went out.
    CookieWait,
    /// The cookie went back.
    CookieEchoed,
    /// Both sides know of each other.
    Established,
    /// The initiator wants to end it.
    ShutdownSent,
    /// The other side wants to end it.
    ShutdownRecd,
    /// That was acknowledged.
    ShutdownAckSent,
    /// A path is being tried that nothing was seen of before.
    HeartbeatSent,
}

impl SctpState {
    const ALL: [Self; 9] = [
        Self::None,
        Self::Closed,
        Self::CookieWait,
        Self::CookieEchoed,
        Self::Established,
        Self::ShutdownSent,
        Self::ShutdownRecd,
        Self::ShutdownAckSent,
        Self::HeartbeatSent,
    ];

    /// The state whose discriminant `state` is.
    pub(crate) fn from_u8(state: u8) -> Self {
        Self::ALL.get(usize::from(state)).copied().unwrap_or_default()
    }

    /// The name in `conntrack -L`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Closed => "CLOSED",
            Self::CookieWait => "COOKIE_WAIT",
            Self::CookieEchoed => "COOKIE_ECHOED",
            Self::Established => "ESTABLISHED",
            Self::ShutdownSent => "SHUTDOWN_SENT",
            Self::ShutdownRecd => "SHUTDOWN_RECD",
            Self::ShutdownAckSent => "SHUTDOWN_ACK_SENT",
            Self::HeartbeatSent => "HEARTBEAT_SENT",
        }
    }

    /// State after one chunk. A chunk on no edge changes nothing.
    #[must_use]
    pub const fn next(self, travelling: Direction, chunk: Chunk) -> Self {
        use Direction::{Original, Reply};
        match (self, travelling, chunk) {
            (_, _, Chunk::Abort) => Self::Closed,
            (
                Self::None
                | Self::Closed
                | Self::HeartbeatSent
                | Self::ShutdownSent
                | Self::ShutdownRecd
                | Self::ShutdownAckSent,
                Original,
                Chunk::Init,
            ) => Self::CookieWait,
            (Self::None, Original, Chunk::Heartbeat) => Self::HeartbeatSent,
            (Self::None, Original, Chunk::ShutdownAck) => Self::ShutdownAckSent,
            (Self::None, Original, _) => Self::Closed,
            (Self::CookieWait, _, Chunk::CookieEcho) => Self::CookieEchoed,
            (Self::CookieEchoed, _, Chunk::CookieAck)
            | (Self::HeartbeatSent, Reply, Chunk::HeartbeatAck) => Self::Established,
            (Self::CookieEchoed, Reply, Chunk::Error)
            | (Self::ShutdownAckSent, _, Chunk::ShutdownComplete) => Self::Closed,
            (Self::Established, Original, Chunk::Shutdown) => Self::ShutdownSent,
            (Self::Established, Reply, Chunk::Shutdown) => Self::ShutdownRecd,
            (Self::ShutdownSent | Self::ShutdownRecd, _, Chunk::ShutdownAck) => {
                Self::ShutdownAckSent
            }
            (unchanged, _, _) => unchanged,
        }
    }
}

impl fmt::Display for SctpState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a chunk means to an association (RFC 9260 §3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// It opens an association.
    Init,
    /// The answer to that.
    InitAck,
    /// A path is tried.
    Heartbeat,
    /// The answer to that.
    HeartbeatAck,
    /// It ends an association at once.
    Abort,
    /// Its sender has no more data.
    Shutdown,
    /// The answer to that.
    ShutdownAck,
    /// Something was wrong, as a cookie that is too old.
    Error,
    /// The cookie goes back to whom it is from.
    CookieEcho,
    /// The answer to that.
    CookieAck,
    /// The end.
    ShutdownComplete,
    /// Any other: data, as a rule.
    Other,
}

impl Chunk {
    const fn of(kind: u8) -> Self {
        match kind {
            1 => Self::Init,
            2 => Self::InitAck,
            4 => Self::Heartbeat,
            5 => Self::HeartbeatAck,
            6 => Self::Abort,
            7 => Self::Shutdown,
            8 => Self::ShutdownAck,
            9 => Self::Error,
            10 => Self::CookieEcho,
            11 => Self::CookieAck,
            14 => Self::ShutdownComplete,
            _ => Self::Other,
        }
    }
}

/// A tag that its addressee has not chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongTag {
    /// The tag.
    pub tag: u32,
    /// The one its addressee has chosen.
    pub chosen: u32,
}

impl fmt::Display for WrongTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "its tag is {:#010x}, and its addressee has chosen {:#010x}",
            self.tag, self.chosen
        )
    }
}

/// What is looked at of a packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet {
    tag: u32,
    /// The tag its sender chooses, in an INIT or INIT ACK.
    chooses: u32,
    /// An ABORT or SHUTDOWN COMPLETE that carries its own sender's tag instead (the T bit).
    reflected: bool,
    chunks: [Chunk; MAX_CHUNKS],
    len: usize,
}

impl Packet {
    /// Reads an SCTP packet from its common header on. None if it has no chunk, or one that is not whole.
    pub(crate) fn read(octets: &[u8]) -> Option<Self> {
        let word =
            |at: usize| octets.get(at..)?.first_chunk().map(|word| u32::from_be_bytes(*word));
        let mut packet = Self {
            tag: word(4)?,
            chooses: 0,
            reflected: false,
            chunks: [Chunk::Other; MAX_CHUNKS],
            len: 0,
        };
        let mut at = HEADER;
        while packet.len < MAX_CHUNKS && at < octets.len() {
            let [kind, flags, high, low] = *octets.get(at..)?.first_chunk()?;
            let len = usize::from(u16::from_be_bytes([high, low]));
            if len < 4 || at + len > octets.len() {
                return None;
            }
            let chunk = Chunk::of(kind);
            match chunk {
                // RFC 9260 §3.3.2: alone in its packet, and its sender's tag is not zero.
                Chunk::Init | Chunk::InitAck => {
                    packet.chooses = word(at + 4).filter(|tag| *tag != 0 && packet.len == 0)?;
                }
                Chunk::Abort | Chunk::ShutdownComplete => packet.reflected |= flags & 1 == 1,
                _ => {}
            }
            packet.chunks[packet.len] = chunk;
            packet.len += 1;
            at += len.next_multiple_of(4);
        }
        (packet.len > 0).then_some(packet)
    }

    /// What it carries, in order.
    pub(crate) fn chunks(&self) -> &[Chunk] {
        &self.chunks[..self.len]
    }

    fn is_init(&self) -> bool {
        self.chunks[0] == Chunk::Init
    }
}

/// The tags that packets of each direction carry; zero while unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tags {
    known: [u32; 2],
    /// Chosen since, by an INIT or INIT ACK; in force once a packet carries it (RFC 9260 §5.2: whoever sends
    /// an INIT need not be who he says).
    chosen: [u32; 2],
}

impl Tags {
    /// Judges a packet by its tag and takes note of it.
    pub(crate) fn judge(&mut self, travelling: Direction, packet: &Packet) -> Result<(), WrongTag> {
        let (there, back) = (travelling as usize, travelling.other() as usize);
        let tag = packet.tag;
        if packet.is_init() {
            if tag != 0 {
                return Err(WrongTag { tag, chosen: 0 });
            }
        } else if packet.reflected {
            let unknown = self.known[back] == 0 && self.chosen[back] == 0;
            if !unknown && tag != self.known[back] && tag != self.chosen[back] {
                return Err(WrongTag { tag, chosen: self.known[back] });
            }
        } else if tag != 0 && (tag == self.chosen[there] || self.is_unknown(there)) {
            self.known[there] = tag;
            self.chosen[there] = 0;
        } else if tag != self.known[there] || tag == 0 {
            let chosen =
                if self.known[there] == 0 { self.chosen[there] } else { self.known[there] };
            return Err(WrongTag { tag, chosen });
        }
        if packet.chooses != 0 {
            self.chosen[back] = packet.chooses;
        }
        Ok(())
    }

    const fn is_unknown(&self, way: usize) -> bool {
        self.known[way] == 0 && self.chosen[way] == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Original, Reply};

    fn packet(tag: u32, chunks: &[(u8, u8, u32)]) -> Packet {
        let mut octets = vec![0, 1, 0, 2];
        octets.extend_from_slice(&tag.to_be_bytes());
        octets.extend_from_slice(&[0; 4]);
        for (kind, flags, word) in chunks {
            octets.extend_from_slice(&[*kind, *flags, 0, 8]);
            octets.extend_from_slice(&word.to_be_bytes());
        }
        Packet::read(&octets).unwrap()
    }

    #[test]
    fn an_association_opens_and_closes_through_every_named_state() {
        let story = [
            (Original, Chunk::Init, SctpState::CookieWait),
            (Reply, Chunk::InitAck, SctpState::CookieWait),
            (Original, Chunk::CookieEcho, SctpState::CookieEchoed),
            (Reply, Chunk::CookieAck, SctpState::Established),
            (Original, Chunk::Other, SctpState::Established),
            (Reply, Chunk::Shutdown, SctpState::ShutdownRecd),
            (Original, Chunk::ShutdownAck, SctpState::ShutdownAckSent),
            (Reply, Chunk::ShutdownComplete, SctpState::Closed),
            (Original, Chunk::Init, SctpState::CookieWait),
            (Original, Chunk::Abort, SctpState::Closed),
        ];
        let mut state = SctpState::None;
        for (travelling, chunk, expected) in story {
            state = state.next(travelling, chunk);
            assert_eq!(state, expected, "after {travelling:?} {chunk:?}");
        }
        let path = SctpState::None.next(Original, Chunk::Heartbeat);
        assert_eq!(path, SctpState::HeartbeatSent);
        assert_eq!(path.next(Reply, Chunk::HeartbeatAck), SctpState::Established);
        assert_eq!(SctpState::None.next(Original, Chunk::Other), SctpState::Closed);
        for state in SctpState::ALL {
            assert_eq!(SctpState::from_u8(state as u8), state);
        }
    }

    #[test]
    fn who_does_not_know_the_tag_is_not_believed() {
        let mut tags = Tags::default();
        tags.judge(Original, &packet(0, &[(1, 0, 0xa)])).unwrap();
        tags.judge(Reply, &packet(0xb, &[(2, 0, 0xc)])).unwrap_err();
        tags.judge(Reply, &packet(0xa, &[(2, 0, 0xc)])).unwrap();
        tags.judge(Original, &packet(0xc, &[(10, 0, 0)])).unwrap();
        tags.judge(Reply, &packet(0xa, &[(11, 0, 0)])).unwrap();
        let forged = tags.judge(Reply, &packet(0xbad, &[(6, 0, 0)])).unwrap_err();
        assert_eq!(forged, WrongTag { tag: 0xbad, chosen: 0xa });
        tags.judge(Original, &packet(0, &[(3, 0, 0)])).unwrap_err();
        // Who has lost his memory sends the tag that was sent to him (RFC 9260 §8.4).
        tags.judge(Reply, &packet(0xc, &[(6, 1, 0)])).unwrap();
        tags.judge(Reply, &packet(0xd, &[(6, 1, 0)])).unwrap_err();
    }

    #[test]
    fn an_init_that_is_not_followed_up_changes_nothing() {
        let mut tags = Tags::default();
        tags.judge(Original, &packet(0, &[(1, 0, 0xa)])).unwrap();
        tags.judge(Reply, &packet(0xa, &[(2, 0, 0xc)])).unwrap();
        tags.judge(Original, &packet(0xc, &[(10, 0, 0)])).unwrap();
        tags.judge(Reply, &packet(0, &[(1, 0, 0xbad)])).unwrap();
        tags.judge(Original, &packet(0xc, &[(0, 0, 0)])).unwrap();
        tags.judge(Reply, &packet(0xa, &[(0, 0, 0)])).unwrap();
        // One that is: the association begins anew.
        tags.judge(Original, &packet(0, &[(1, 0, 0x1a)])).unwrap();
        tags.judge(Reply, &packet(0x1a, &[(2, 0, 0x1c)])).unwrap();
        tags.judge(Original, &packet(0x1c, &[(10, 0, 0)])).unwrap();
        tags.judge(Reply, &packet(0xa, &[(0, 0, 0)])).unwrap_err();
    }

    #[test]
    fn packets_that_lie_about_their_chunks_are_none() {
        let mut octets = vec![0; 12];
        assert!(Packet::read(&octets).is_none());
        octets.extend_from_slice(&[0, 0, 0, 3]);
        assert!(Packet::read(&octets).is_none());
        octets[15] = 5;
        assert!(Packet::read(&octets).is_none());
        octets.push(9);
        assert!(Packet::read(&octets).is_some());
        assert!(Packet::read(&[0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 4]).is_none());
        assert!(Packet::read(&octets[..11]).is_none());
    }
}
