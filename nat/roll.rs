//! What each account holds, and which of its flows may make room for another of its own.
//!
//! Read `early_drop` in `net/netfilter/nf_conntrack_core.c`: the kernel, when full, drops any flow that
//! is not assured, whoever's it is. Here whoever wants the room gives it: of the account's own flows that
//! are not assured, the oldest. Flows are noted in the order they came; what is assured or has ended
//! meanwhile is passed over, once.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use dashmap::DashMap;

use crate::entry::Entry;
use crate::zone::Account;

/// Every account's flows.
#[derive(Debug, Default)]
pub(crate) struct Rolls(DashMap<Account, Roll>);

/// One account's flows: how many, and which may give way, oldest first.
#[derive(Debug, Default)]
struct Roll {
    held: usize,
    /// Those of an owner's.
    owned: usize,
    unassured: VecDeque<Weak<Entry>>,
}

impl Roll {
    /// Passes over what may not give way any more, from the front; the front then may.
    fn settle(&mut self) -> Option<Arc<Entry>> {
        loop {
            match self.unassured.front()?.upgrade() {
                Some(entry) if entry.is_tracked() && !entry.assured() => return Some(entry),
                _ => self.unassured.pop_front(),
            };
        }
    }
}

impl Rolls {
    /// Counts one more flow of its account's if that has fewer than `quota`.
    pub(crate) fn enter(&self, entry: &Entry, quota: usize) -> bool {
        let mut roll = self.0.entry(entry.account()).or_default();
        let room = roll.held < quota;
        if room {
            roll.held += 1;
            roll.owned += usize::from(entry.is_owned());
        }
        room
    }

    /// Counts one flow less.
    pub(crate) fn leave(&self, entry: &Entry) {
        let account = entry.account();
        let Some(mut roll) = self.0.get_mut(&account) else { return };
        roll.held = roll.held.saturating_sub(1);
        roll.owned = roll.owned.saturating_sub(entry.is_owned().into());
        if roll.held == 0 {
            drop(roll);
            self.0.remove_if(&account, |_, roll| roll.held == 0);
        }
    }

    /// Notes a flow that was entered and may give way until it is assured.
    pub(crate) fn note(&self, entry: &Arc<Entry>) {
        let Some(mut roll) = self.0.get_mut(&entry.account()) else { return };
        roll.settle();
        // Behind one that stays as it is, others may have been assured.
        if roll.unassured.len() > 64 && roll.unassured.len() > 2 * roll.held {
            roll.unassured.retain(|flow| {
                flow.upgrade().is_some_and(|entry| entry.is_tracked() && !entry.assured())
            });
        }
        roll.unassured.push_back(Arc::downgrade(entry));
    }

    /// The account's oldest flow that is not assured; it is passed over from now on.
    pub(crate) fn oldest_unassured(&self, account: Account) -> Option<Arc<Entry>> {
        let mut roll = self.0.get_mut(&account)?;
        let oldest = roll.settle();
        roll.unassured.pop_front();
        oldest
    }

    /// Whoever wants anything of the account waits until this is dropped.
    #[cfg(test)]
    pub(crate) fn hold(&self, account: Account) -> impl Sized + '_ {
        self.0.get_mut(&account)
    }

    /// Whether any flow of the account is an owner's.
    pub(crate) fn any_owned(&self, account: Account) -> bool {
        self.0.get(&account).is_some_and(|roll| roll.owned > 0)
    }

    /// Flows the account holds.
    pub(crate) fn held(&self, account: Account) -> usize {
        self.0.get(&account).map_or(0, |roll| roll.held)
    }
}
