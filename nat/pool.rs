//! The external ports of one address and protocol: which are held, and which to hand out next.
//!
//! Read RFC 4787 §4.2 (ranges, parity, preservation), RFC 6056 §3.3 (choosing what nobody can guess) and
//! RFC 6888 REQ-8 (a port rests before somebody else has it; sooner only where no other is left, which it
//! allows to a NAT that filters by address, and without which one container could keep all from the others). Also serves
//! ICMP identifiers, which have neither ranges nor parity.
//!
//! Who may have one more (REQ-4): whoever holds none of that range, and else an account that holds less of it than
//! twice the square of what is free, both as parts of the range. So one alone has half of them, one
//! beside it half as many again, and those that take all they can get leave 1 in 2n free behind n of them.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use smoltcp::time::{Duration, Instant};

use crate::ports::Ports;
use crate::zone::Account;

/// How long a port rests, at least, before another container may have it (RFC 6888 REQ-8); twice as
/// long at most.
const REST: Duration = Duration::from_secs(120);

/// Well-known ports; RFC 4787 REQ-3a: who sends from one of those is shown with one of those.
const LOW: RangeInclusive<u16> = 1..=1023;
const HIGH: RangeInclusive<u16> = 1024..=65_535;

/// Why there is no port to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoMapping {
    /// Every port of that range is held.
    Exhausted,
    /// The account holds as many as it may: in all, or beside what others hold of that range.
    Quota,
}

/// What a pool's numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ports,
    Identifiers,
}

/// The external ports, or identifiers, of one address and protocol.
#[derive(Debug)]
pub(crate) struct Pool {
    kind: Kind,
    /// Whose first port it was made for.
    pub(crate) account: Account,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    held: Ports,
    /// Published ports, which are not to be handed out.
    reserved: Arc<Ports>,
    /// Ports that were given back: in this period and in the one before.
    resting: [Resting; 2],
    /// Ports each account holds: low ones, and others.
    shares: HashMap<Account, [usize; 2]>,
    period_began: Instant,
}

/// Ports that rest.
#[derive(Debug, Default)]
struct Resting {
    ports: Ports,
    /// Who had them.
    holders: HashMap<u16, u64>,
}

/// What is asked of a pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    /// The port the container uses itself.
    pub(crate) port: u16,
    /// Who asks: a number that differs from other containers'.
    pub(crate) who: u64,
    /// Whose share of the ports it is of.
    pub(crate) account: Account,
    /// Where to begin looking if that port is not to be had; nobody outside can guess it.
    pub(crate) random: u64,
}

impl Pool {
    pub(crate) fn new(kind: Kind, account: Account, reserved: Arc<Ports>) -> Self {
        let state = State {
            held: Ports::default(),
            reserved,
            resting: Default::default(),
            shares: HashMap::new(),
            period_began: Instant::ZERO,
        };
        Self { kind, account, state: Mutex::new(state) }
    }

    /// Whether nobody holds a port of it, and none rests: nothing is lost with it.
    pub(crate) fn is_idle(&self, now: Instant) -> bool {
        let mut state = self.state();
        state.rest(now);
        state.held.len() == 0 && state.resting.iter().all(|period| period.ports.len() == 0)
    }

    /// Takes a port: the one wished for if it is free, else one of its range and, if possible, its parity.
    /// Nobody loses one for it.
    pub(crate) fn take(&self, wish: Wish, now: Instant) -> Result<u16, NoMapping> {
        let mut state = self.state();
        state.rest(now);
        let (range, parities) = self.choices(wish.port);
        let share = state.share(wish.account, &range);
        if !state.has_room_beside(share, &range) {
            return Err(NoMapping::Quota);
        }
        let port = if range.contains(&wish.port) && state.may_have(wish.port, wish.who) {
            wish.port
        } else {
            // A port that does not rest, whoever had it, is better than the right parity.
            [(parities, false), (Parities::Both, false), (parities, true), (Parities::Both, true)]
                .into_iter()
                .find_map(|(parities, rested)| state.search(&range, parities, wish.random, rested))
                .ok_or(NoMapping::Exhausted)?
        };
        state.held.set(port);
        state.shares.entry(wish.account).or_default()[class(&range)] = share + 1;
        Ok(port)
    }

    /// Gives a port back.
    pub(crate) fn give(&self, port: u16, who: u64, account: Account, now: Instant) {
        let (range, _) = self.choices(port);
        let mut state = self.state();
        state.rest(now);
        state.held.clear(port);
        if let Some(shares) = state.shares.get_mut(&account) {
            let share = &mut shares[class(&range)];
            *share = share.saturating_sub(1);
            if *shares == [0, 0] {
                state.shares.remove(&account);
            }
        }
        if self.kind == Kind::Ports {
            state.resting[0].ports.set(port);
            state.resting[0].holders.insert(port, who);
        }
    }

    /// Replaces the ports that are not to be handed out; who holds one keeps it.
    pub(crate) fn reserve(&self, reserved: Arc<Ports>) {
        self.state().reserved = reserved;
    }

    /// Ports held.
    pub(crate) fn held(&self) -> usize {
        self.state().held.len()
    }

    fn choices(&self, port: u16) -> (RangeInclusive<u16>, Parities) {
        match self.kind {
            Kind::Identifiers => (0..=u16::MAX, Parities::Both),
            Kind::Ports => {
                let parities = if port.is_multiple_of(2) { Parities::Even } else { Parities::Odd };
                (if LOW.contains(&port) { LOW } else { HIGH }, parities)
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Ends the rest of those that have rested long enough.
    fn rest(&mut self, now: Instant) {
        if now < self.period_began + REST {
            return;
        }
        let young = std::mem::take(&mut self.resting[0]);
        let long_ago = now >= self.period_began + REST * 2;
        self.resting[1] = if long_ago { Resting::default() } else { young };
        self.period_began = now;
    }

    /// Ports of `range` an account holds.
    fn share(&self, account: Account, range: &RangeInclusive<u16>) -> usize {
        self.shares.get(&account).map_or(0, |shares| shares[class(range)])
    }

    /// Whether an account that holds `share` ports of `range` may have one more: see the module's text.
    fn has_room_beside(&self, share: usize, range: &RangeInclusive<u16>) -> bool {
        let all = range.len().saturating_sub(self.reserved.len_in(range));
        let free = all.saturating_sub(self.held.len_in(range));
        share == 0 || share * all < 2 * free * free
    }

    /// Whether that port may be had by `who`.
    fn may_have(&self, port: u16, who: u64) -> bool {
        let last = self.resting.iter().find_map(|period| period.holders.get(&port));
        !self.held.has(port) && !self.reserved.has(port) && last.is_none_or(|last| *last == who)
    }

    /// A free port of the range, or one that rests if `rested`. However many are taken or rest, that takes a look
    /// at each word of bits and no more: the pool is locked meanwhile.
    fn search(
        &self,
        range: &RangeInclusive<u16>,
        parities: Parities,
        random: u64,
        rested: bool,
    ) -> Option<u16> {
        let (first, last) = (u32::from(*range.start()), u32::from(*range.end()));
        let span = last - first + 1;
        let begin = first + u32::try_from(random % u64::from(span)).unwrap_or(0);
        // From there on to the end, then from the beginning up to there.
        self.first_in(begin, last, parities, rested)
            .or_else(|| self.first_in(first, begin, parities, rested))
    }

    /// The first port there, both bounds included.
    fn first_in(&self, first: u32, last: u32, parities: Parities, rested: bool) -> Option<u16> {
        (first / 64..=last / 64).find_map(|word| {
            let at = u16::try_from(word).unwrap_or(0);
            let mut taken = self.held.word(at) | self.reserved.word(at);
            if !rested {
                taken |= self.resting[0].ports.word(at) | self.resting[1].ports.word(at);
            }
            let mut free = !taken & parities.mask();
            if word == first / 64 {
                free &= u64::MAX << (first % 64);
            }
            if word == last / 64 {
                free &= u64::MAX >> (63 - last % 64);
            }
            let port = u16::try_from(word * 64 + free.trailing_zeros());
            port.ok().filter(|_| free != 0)
        })
    }
}

/// Which of an account's shares ports of `range` are of.
fn class(range: &RangeInclusive<u16>) -> usize {
    usize::from(*range != LOW)
}

/// Which ports of a word of 64 will do.
#[derive(Clone, Copy, Debug)]
enum Parities {
    Even,
    Odd,
    Both,
}

impl Parities {
    const fn mask(self) -> u64 {
        match self {
            Self::Even => 0x5555_5555_5555_5555,
            Self::Odd => 0xaaaa_aaaa_aaaa_aaaa,
            Self::Both => u64::MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant::ZERO;

    fn wish(port: u16, who: u64) -> Wish {
        let random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(u64::from(port) + who);
        Wish { port, who, account: Account(1), random }
    }

    /// All that are to be had for that wish, each for an account of its own.
    fn all(pool: &Pool, wish: Wish) -> Vec<u16> {
        let each = (0..=65_536).map_while(|n| {
            let taken = pool.take(Wish { account: Account(n), ..wish }, NOW);
            taken.inspect_err(|why| assert_eq!(*why, NoMapping::Exhausted)).ok()
        });
        each.collect()
    }

    fn give(pool: &Pool, port: u16, now: Instant) {
        pool.give(port, 1, Account(1), now);
    }

    fn pool_of(kind: Kind, reserved: &[RangeInclusive<u16>]) -> Pool {
        Pool::new(kind, Account(1), Arc::new(Ports::of(reserved)))
    }

    #[test]
    fn every_port_is_handed_out_once_and_in_its_own_range() {
        let pool = pool_of(Kind::Ports, &[8000..=8999]);
        let mut high = all(&pool, wish(40_000, 1));
        assert_eq!(high[0], 40_000);
        assert!(high[..31_000].iter().all(|port| port % 2 == 0), "parity while it lasts");
        high.sort_unstable();
        high.dedup();
        assert_eq!(high.len(), 64_512 - 1000);
        assert!(high.iter().all(|port| HIGH.contains(port) && !(8000..=8999).contains(port)));
        let low = all(&pool, wish(53, 1)).len();
        assert_eq!((low, pool.held()), (1023, 64_512 + 1023 - 1000));
        give(&pool, 40_001, NOW);
        assert_eq!(pool.take(Wish { account: Account(70_000), ..wish(2000, 1) }, NOW), Ok(40_001));
    }

    #[test]
    fn a_port_rests_unless_its_last_holder_wants_it_or_there_is_no_other() {
        let pool = pool_of(Kind::Ports, &[]);
        let taken = pool.take(wish(5000, 1), NOW).unwrap();
        give(&pool, taken, NOW);
        assert_ne!(pool.take(wish(5000, 2), NOW), Ok(5000));
        assert_eq!(pool.take(wish(5000, 1), NOW), Ok(5000));
        // However long before anybody has asked for one.
        let later = NOW + REST * 9;
        give(&pool, 5000, later);
        let soon = later + REST - Duration::from_millis(1);
        assert_ne!(pool.take(wish(5000, 2), soon), Ok(5000));
        assert_eq!(pool.take(wish(5000, 2), later + REST * 2), Ok(5000));
        let busy = pool_of(Kind::Ports, &[1..=1021, 1023..=1023]);
        assert_eq!(busy.take(wish(80, 1), NOW), Ok(1022));
        give(&busy, 1022, NOW);
        assert_eq!(busy.take(wish(80, 2), NOW), Ok(1022));
        let other = Wish { account: Account(2), ..wish(80, 2) };
        assert_eq!(busy.take(other, NOW), Err(NoMapping::Exhausted));
    }

    #[test]
    fn a_port_that_does_not_rest_is_found_among_those_that_do() {
        let other = |port| Wish { account: Account(70_000), ..wish(port, 2) };
        let pool = pool_of(Kind::Ports, &[]);
        let taken = all(&pool, wish(400, 1));
        assert_eq!(taken.len(), 1023);
        taken.iter().for_each(|port| give(&pool, *port, NOW));
        // All rest: one of them, then, of the same parity.
        assert!(pool.take(other(400), NOW).is_ok_and(|port| port % 2 == 0));
        assert_eq!(pool.take(other(401), NOW + REST * 2), Ok(401));
        // One does not rest, and is better than the right parity.
        let pool = pool_of(Kind::Ports, &[501..=501]);
        all(&pool, wish(400, 1)).iter().for_each(|port| give(&pool, *port, NOW));
        pool.reserve(Arc::default());
        assert_eq!(pool.take(other(400), NOW), Ok(501));
    }

    #[test]
    fn identifiers_know_no_ranges() {
        let pool = pool_of(Kind::Identifiers, &[]);
        assert_eq!(all(&pool, wish(0, 1)).len(), 65_536);
    }

    #[test]
    fn an_account_has_half_of_a_range_and_less_beside_others() {
        let pool = pool_of(Kind::Ports, &[2000..=2999]);
        let takes = |account, port| {
            let wish = Wish { account: Account(account), ..wish(port, 1) };
            std::iter::from_fn(|| pool.take(wish, NOW).ok()).take(70_000).count()
        };
        let shares: Vec<_> = (0..64).map(|account| takes(account, 40_000)).collect();
        assert_eq!(shares[0], (64_512 - 1000) / 2);
        assert!(shares.is_sorted_by(|a, b| a >= b) && shares[63] >= 7, "{shares:?}");
        assert_eq!(takes(1, 53), 512, "low ports are shared by themselves");
        // What is given back may be had by whoever has least.
        let before = pool.held();
        pool.give(40_000, 1, Account(0), NOW);
        assert_eq!((takes(0, 40_000), takes(64, 40_000) >= 7), (0, true));
        assert!(pool.held() > before);
    }
}
