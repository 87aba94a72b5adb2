//! Where a flow is seen, whose it is, and who handles it: three small names, all of the caller's making.

/// A network, or an uplink, whose flows are told apart from every other's, as `nf_conntrack_zone` does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Zone(pub u16);

/// Who handles the packets of a flow, in terms of the caller; this crate only keeps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Owner(pub u64);

impl Owner {
    /// Nobody: conntrack itself forgets the flow when it has been silent for its idle time.
    pub const NONE: Self = Self(0);
}

/// Whose quota a flow counts against, in terms of the caller: a container's port, as a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Account(pub u32);
