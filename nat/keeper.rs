//! Who keeps a flow, and what that needs to remember of it.
//!
//! Nobody pays for what is not used: only conntrack itself looks into segments, only some protocols have
//! anything to be followed, only a flow of an owner has another state elsewhere, and few lead from one container
//! to another. What is followed changes with every segment, behind the one lock a packet of a known flow takes.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::mapping::Mapping;
use crate::sctp::Tags;
use crate::tuple::{Protocol, SCTP};
use crate::window::Windows;
use crate::zone::Owner;

/// Who keeps a flow.
#[derive(Debug)]
pub(crate) enum Keeper {
    /// Somebody of the caller's.
    Owner(AtomicU64),
    /// Conntrack, which follows nothing of its packets; it is shown with that external port.
    Unfollowed(Option<Arc<Mapping>>),
    /// Conntrack, which follows its packets.
    Followed(Box<Kept>),
    /// Conntrack, which leads it from one container to another.
    Between(Box<Between>),
}

/// What conntrack needs of a flow whose packets it follows.
#[derive(Debug)]
pub(crate) struct Kept {
    tracking: Mutex<Tracking>,
    /// The external port its inside end is shown with.
    mapping: Option<Arc<Mapping>>,
}

/// What conntrack needs of a flow whose ends are both inside.
#[derive(Debug)]
pub(crate) struct Between {
    kept: Kept,
    /// The external port its other end is shown with.
    behind: Arc<Mapping>,
}

/// What is followed of a flow's packets, besides its state.
#[derive(Debug)]
pub(crate) enum Tracking {
    Nothing,
    Tcp(Windows),
    Sctp(Tags),
}

impl Keeper {
    pub(crate) fn of(owner: Owner, protocol: Protocol) -> Self {
        let tracking = match (owner, protocol) {
            (Owner::NONE, Protocol::Tcp) => Tracking::Tcp(Windows::default()),
            (Owner::NONE, Protocol::Other(SCTP)) => Tracking::Sctp(Tags::default()),
            (Owner::NONE, _) => return Self::Unfollowed(None),
            (owner, _) => return Self::Owner(AtomicU64::new(owner.0)),
        };
        Self::Followed(Box::new(Kept { tracking: Mutex::new(tracking), mapping: None }))
    }

    /// What is followed of the flow's packets, if anything is.
    pub(crate) fn tracking(&self) -> Option<MutexGuard<'_, Tracking>> {
        let kept = match self {
            Self::Followed(kept) => kept,
            Self::Between(between) => &between.kept,
            Self::Owner(_) | Self::Unfollowed(_) => return None,
        };
        // One connection's segments are one worker's, as a rule: nobody waits here.
        Some(kept.tracking.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn mapping(&self) -> Option<&Arc<Mapping>> {
        match self {
            Self::Owner(_) => None,
            Self::Unfollowed(mapping) => mapping.as_ref(),
            Self::Followed(kept) => kept.mapping.as_ref(),
            Self::Between(between) => between.kept.mapping.as_ref(),
        }
    }

    pub(crate) fn behind(&self) -> Option<&Arc<Mapping>> {
        match self {
            Self::Between(between) => Some(&between.behind),
            _ => None,
        }
    }

    /// Holds `mapping` from now on; false for a flow of an owner's, which holds what it needs itself.
    pub(crate) fn hold(&mut self, mapping: &Arc<Mapping>) -> bool {
        let place = match self {
            Self::Owner(_) => return false,
            Self::Unfollowed(mapping) => mapping,
            Self::Followed(kept) => &mut kept.mapping,
            Self::Between(between) => &mut between.kept.mapping,
        };
        *place = Some(Arc::clone(mapping));
        true
    }

    /// Holds the mapping of whom the flow leads to as well; false where [`hold`](Self::hold) is.
    pub(crate) fn lead(&mut self, behind: &Arc<Mapping>) -> bool {
        let kept = match std::mem::replace(self, Self::Unfollowed(None)) {
            Self::Unfollowed(mapping) => Kept { tracking: Mutex::new(Tracking::Nothing), mapping },
            Self::Followed(kept) => *kept,
            Self::Between(between) => between.kept,
            owner @ Self::Owner(_) => {
                *self = owner;
                return false;
            }
        };
        *self = Self::Between(Box::new(Between { kept, behind: Arc::clone(behind) }));
        true
    }
}
