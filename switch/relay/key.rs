//! How flows and sockets are named across workers, conntrack and poll.
//!
//! One 64-bit word serves as conntrack [`Owner`] and as mio [`Token`]: the worker, the kind, a
//! generation and a place in that worker's arena. The generation makes a word of something gone name
//! nothing, instead of whatever took its place.

use datapath::PortId;
use mio::Token;
use nat::{Account, Owner, Zone};
use slab::Slab;

/// What a key names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A TCP flow.
    Tcp = 1,
    /// A UDP mapping: one host socket for one inside address and port.
    Udp = 2,
    /// An echo mapping: one ping socket for one inside address and identifier.
    Echo = 3,
    /// A published TCP port's listener.
    TcpListener = 4,
    /// A published UDP port's socket.
    UdpListener = 5,
    /// The client's end of a spliced connection.
    SpliceClient = 6,
    /// The container's end of a spliced connection, which also names the whole.
    SpliceInside = 7,
    /// Packets whose missing pieces have not come in time.
    Pieces = 8,
}

impl Kind {
    const fn from_u8(kind: u8) -> Option<Self> {
        match kind {
            1 => Some(Self::Tcp),
            2 => Some(Self::Udp),
            3 => Some(Self::Echo),
            4 => Some(Self::TcpListener),
            5 => Some(Self::UdpListener),
            6 => Some(Self::SpliceClient),
            7 => Some(Self::SpliceInside),
            8 => Some(Self::Pieces),
            _ => None,
        }
    }
}

/// A name: worker (8 bits), kind (8), generation (16), place (32).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(u64);

impl Key {
    fn new(worker: u8, kind: Kind, generation: u16, place: usize) -> Self {
        let place = u32::try_from(place).expect("arenas are bounded far below 2^32");
        Self(
            u64::from(worker) << 56
                | u64::from(kind as u8) << 48
                | u64::from(generation) << 32
                | u64::from(place),
        )
    }

    /// The one name of the packets of all containers that were given up.
    pub(crate) fn pieces(worker: u8) -> Self {
        Self::new(worker, Kind::Pieces, 0, 0)
    }

    /// The worker that owns it.
    #[must_use]
    pub const fn worker(self) -> u8 {
        (self.0 >> 56) as u8
    }

    /// What it names; none for a word that is no key.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "takes the field apart")]
    pub const fn kind(self) -> Option<Kind> {
        Kind::from_u8((self.0 >> 48) as u8)
    }

    /// The key of another kind with the same place, for what has an end of each.
    pub(crate) const fn of_kind(self, kind: Kind) -> Self {
        Self(self.0 & !(0xff << 48) | (kind as u64) << 48)
    }

    #[expect(clippy::cast_possible_truncation, reason = "takes the field apart")]
    const fn place(self) -> (u16, usize) {
        ((self.0 >> 32) as u16, self.0 as u32 as usize)
    }
}

impl From<Owner> for Key {
    fn from(owner: Owner) -> Self {
        Self(owner.0)
    }
}

impl From<Key> for Owner {
    fn from(key: Key) -> Self {
        Self(key.0)
    }
}

impl From<Key> for Token {
    #[expect(clippy::cast_possible_truncation, reason = "64-bit targets only, see the assertion")]
    fn from(key: Key) -> Self {
        const { assert!(size_of::<usize>() == 8) }
        Self(key.0 as usize)
    }
}

impl From<Token> for Key {
    fn from(token: Token) -> Self {
        Self(token.0 as u64)
    }
}

/// Whose quota of conntrack a port's flows count against.
pub(crate) fn account(zone: Zone, port: PortId) -> Account {
    port.account(zone)
}

/// Things whose memory an arena keeps when it is empty; of more it gives all back.
const KEPT: usize = 1024;

/// Things of one kind, named by [`Key`]s.
#[derive(Debug)]
pub(crate) struct Arena<T> {
    worker: u8,
    kind: Kind,
    next_generation: u16,
    things: Slab<(u16, T)>,
}

impl<T> Arena<T> {
    pub(crate) const fn new(worker: u8, kind: Kind) -> Self {
        Self { worker, kind, next_generation: 0, things: Slab::new() }
    }

    /// The key the next [`insert`](Self::insert) will give.
    pub(crate) fn next_key(&self) -> Key {
        Key::new(self.worker, self.kind, self.next_generation, self.things.vacant_key())
    }

    pub(crate) fn insert(&mut self, thing: T) -> Key {
        let key = self.next_key();
        self.things.insert((self.next_generation, thing));
        self.next_generation = self.next_generation.wrapping_add(1);
        key
    }

    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        let (generation, place) = self.own_place(key)?;
        self.things.get(place).filter(|(held, _)| *held == generation).map(|(_, thing)| thing)
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let (generation, place) = self.own_place(key)?;
        self.things.get_mut(place).filter(|(held, _)| *held == generation).map(|(_, thing)| thing)
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        self.get(key)?;
        let (_, place) = key.place();
        let removed = self.things.try_remove(place).map(|(_, thing)| thing);
        if self.things.is_empty() && self.things.capacity() > KEPT {
            self.things = Slab::new();
        }
        removed
    }

    /// Where the key's thing is, if it is one of ours.
    fn own_place(&self, key: Key) -> Option<(u16, usize)> {
        (key.kind() == Some(self.kind) && key.worker() == self.worker).then(|| key.place())
    }

    pub(crate) fn len(&self) -> usize {
        self.things.len()
    }

    /// The keys of all things `which` holds for.
    pub(crate) fn keys(&self, mut which: impl FnMut(&T) -> bool) -> Vec<Key> {
        self.things
            .iter()
            .filter(|(_, (_, thing))| which(thing))
            .map(|(place, (generation, _))| Key::new(self.worker, self.kind, *generation, place))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_outlives_its_thing_and_then_names_nothing() {
        let mut arena = Arena::new(3, Kind::Udp);
        let first = arena.insert("first");
        assert_eq!((first.worker(), first.kind()), (3, Some(Kind::Udp)));
        assert_eq!(arena.remove(first), Some("first"));
        let second = arena.insert("second");
        assert_ne!(first, second);
        assert_eq!(arena.get(first), None);
        assert_eq!(arena.remove(first), None);
        let mut of_another_kind = Arena::new(3, Kind::Tcp);
        of_another_kind.insert("first");
        of_another_kind.insert("second");
        assert_eq!(of_another_kind.remove(second), None, "the same place and generation");
        assert_eq!(Arena::<&str>::new(4, Kind::Udp).get(second), None);
        assert_eq!(Key::from(Token::from(second)), second);
        assert_eq!(arena.get(Key::from(Owner::from(second))), Some(&"second"));
    }
    #[test]
    fn an_arena_that_was_large_gives_its_memory_back_once_it_is_empty() {
        let mut arena = Arena::new(0, Kind::Tcp);
        let keys: Vec<_> = (0..3 * KEPT).map(|thing| arena.insert(thing)).collect();
        for key in &keys {
            assert!(arena.remove(*key).is_some());
        }
        assert!(arena.things.capacity() <= KEPT);
        let next = arena.insert(7);
        assert!(!keys.contains(&next));
        assert_eq!((arena.get(next), arena.get(keys[0])), (Some(&7), None));
    }
}
