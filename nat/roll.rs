//! What each account holds, and which of its flows may make room for another of its own.
//!
//! Read `early_drop` in `net/netfilter/nf_conntrack_core.c`: the kernel, when full, drops any flow that
//! was never answered, whoever's it is. Here whoever wants the room gives it: the account's own flow
//! that has waited longest for an answer. Flows are noted in the order they came; what was
//! answered or has ended meanwhile is passed over, once.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use dashmap::DashMap;

use crate::entry::Entry;
use crate::zone::Account;

/// Every account's flows.
#[derive(Debug, Default)]
pub(crate) struct Rolls(DashMap<Account, Roll>);

/// One account's flows: how many, and which wait for an answer, oldest first.
#[derive(Debug, Default)]
struct Roll {
    held: usize,
    waiting: VecDeque<Weak<Entry>>,
}

impl Roll {
    /// Passes over what waits no longer, from the front; the front then waits.
    fn settle(&mut self) -> Option<Arc<Entry>> {
        loop {
            match self.waiting.front()?.upgrade() {
                Some(entry) if entry.is_tracked() && !entry.replied() => return Some(entry),
                _ => self.waiting.pop_front(),
            };
        }
    }
}

impl Rolls {
    /// Counts one more flow of `account` if it has fewer than `quota`.
    pub(crate) fn enter(&self, account: Account, quota: usize) -> bool {
        let mut roll = self.0.entry(account).or_default();
        let room = roll.held < quota;
        if room {
            roll.held += 1;
        }
        room
    }

    /// Counts one flow less.
    pub(crate) fn leave(&self, account: Account) {
        let Some(mut roll) = self.0.get_mut(&account) else { return };
        roll.held = roll.held.saturating_sub(1);
        if roll.held == 0 {
            drop(roll);
            self.0.remove_if(&account, |_, roll| roll.held == 0);
        }
    }

    /// Notes a flow that was entered and waits for an answer.
    pub(crate) fn wait(&self, entry: &Arc<Entry>) {
        let Some(mut roll) = self.0.get_mut(&entry.account()) else { return };
        roll.settle();
        // Behind one that waits long, others may have been answered.
        if roll.waiting.len() > 64 && roll.waiting.len() > 2 * roll.held {
            roll.waiting.retain(|waiting| {
                waiting.upgrade().is_some_and(|entry| entry.is_tracked() && !entry.replied())
            });
        }
        roll.waiting.push_back(Arc::downgrade(entry));
    }

    /// The account's flow that has waited longest for an answer; it is passed over from now on.
    pub(crate) fn oldest_waiting(&self, account: Account) -> Option<Arc<Entry>> {
        let mut roll = self.0.get_mut(&account)?;
        let oldest = roll.settle();
        roll.waiting.pop_front();
        oldest
    }

    /// Whoever wants anything of the account waits until this is dropped.
    #[cfg(test)]
    pub(crate) fn hold(&self, account: Account) -> impl Sized + '_ {
        self.0.get_mut(&account)
    }

    /// Flows the account holds.
    pub(crate) fn held(&self, account: Account) -> usize {
        self.0.get(&account).map_or(0, |roll| roll.held)
    }
}
