//! Connections whose far side has not answered yet, for each container, the oldest first.
//!
//! A far side that never answers holds a socket for two minutes (`tcp_syn_retries`, tcp(7)). So that a
//! container which speaks to many such has room for the one that answers, its oldest attempt gives way to
//! its newest, as in conntrack (RFC 6888 REQ-11): another container's never does. Whoever gives way sends
//! its SYN again, and is tried again.

use std::collections::{HashMap, VecDeque};

use datapath::PortId;
use nat::Zone;

use crate::key::Key;

/// Names in a line that are of attempts no more, before it is cleared of them.
const STALE: usize = 64;

/// The attempts of one worker's containers. As many as flows, and names of those that ended, half of all
/// at most.
#[derive(Debug, Default)]
pub(super) struct Attempts(HashMap<(Zone, PortId), Line>);

#[derive(Debug, Default)]
struct Line {
    keys: VecDeque<Key>,
    live: usize,
}

impl Attempts {
    /// One more; `lives` says of which keys are attempts still.
    pub(super) fn add(&mut self, of: (Zone, PortId), key: Key, lives: impl Fn(Key) -> bool) {
        let line = self.0.entry(of).or_default();
        line.keys.push_back(key);
        line.live += 1;
        if line.keys.len() > 2 * line.live + STALE {
            line.keys.retain(|key| lives(*key));
        }
    }

    /// One is none any more.
    pub(super) fn ended(&mut self, of: (Zone, PortId)) {
        let Some(line) = self.0.get_mut(&of) else { return };
        line.live = line.live.saturating_sub(1);
        if line.live == 0 {
            self.0.remove(&of);
        }
    }

    /// How many there are of a container.
    pub(super) fn live(&self, of: (Zone, PortId)) -> usize {
        self.0.get(&of).map_or(0, |line| line.live)
    }

    /// The oldest of a container, which is to be ended now.
    pub(super) fn oldest(
        &mut self,
        of: (Zone, PortId),
        lives: impl Fn(Key) -> bool,
    ) -> Option<Key> {
        let line = self.0.get_mut(&of)?;
        while let Some(key) = line.keys.pop_front() {
            if lives(key) {
                return Some(key);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Arena, Kind};

    #[test]
    fn the_oldest_that_lives_gives_way_and_names_of_the_ended_do_not_pile_up() {
        let of = (Zone(1), PortId(1));
        let mut arena = Arena::new(0, Kind::Tcp);
        let mut attempts = Attempts::default();
        let old = arena.insert(());
        attempts.add(of, old, |_| true);
        let mut kept = old;
        for _ in 0..10_000 {
            let key = arena.insert(());
            attempts.add(of, key, |key| arena.get(key).is_some());
            arena.remove(kept);
            attempts.ended(of);
            kept = key;
        }
        assert_eq!(attempts.live(of), 1);
        assert!(attempts.0[&of].keys.len() <= STALE + 3);
        assert_eq!(attempts.oldest(of, |key| arena.get(key).is_some()), Some(kept));
        assert_eq!(attempts.oldest((Zone(1), PortId(2)), |_| true), None);
        attempts.ended(of);
        assert!(attempts.0.is_empty());
    }
}
