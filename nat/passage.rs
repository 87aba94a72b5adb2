//! A packet between both hooks: what prerouting knows of it, and how to undo what was done.
//!
//! Whatever refuses a packet leaves it as its sender sent it, so that an ICMP error can quote it (RFC 5508 REQ-5,
//! RFC 792). Nothing is copied for that: a rewrite is undone by rewriting, and what it would lose is kept here.

use std::net::IpAddr;
use std::sync::Arc;

use crate::buffer::Buffer;
use crate::entry::Entry;
use crate::headers::Headers;
use crate::hooks::Ingress;
use crate::mapping::Mapping;
use crate::refused::{Refused, too_big};
use crate::rewrite::{self, Undone};
use crate::siit::Former;
use crate::state::Direction;
use crate::tcp::Lowered;
use crate::tuple::Tuple;
use crate::zone::{Account, Owner};

/// What prerouting leaves for postrouting.
#[derive(Debug)]
#[must_use]
pub struct Passage {
    pub(crate) headers: Headers,
    pub(crate) ingress: Ingress,
    pub(crate) undone: Undone,
    /// Whether its sender allows it to be cut on its way.
    pub(crate) may_cut: bool,
    /// The tuple the packet came with, where it has one.
    pub(crate) came: Option<Tuple>,
    /// What the packet was, where its IP version has changed.
    pub(crate) former: Option<Former>,
    /// The identification it came with, where it has another.
    pub(crate) renumbered: Option<u16>,
    /// The MSS it came with, where that was lowered.
    pub(crate) lowered: Option<Lowered>,
    pub(crate) standing: Standing,
}

/// How a packet stands to conntrack.
#[derive(Debug)]
pub(crate) enum Standing {
    /// Of a known flow, and translated already.
    Known(Arc<Entry>, Direction),
    /// It begins a flow.
    New { account: Account, via: Via },
    /// An ICMP error about a packet of a known flow, translated already.
    Related,
    /// Nothing tracked: between neighbours, or translated without state.
    Untracked,
}

/// Why a new flow has the destination it has.
#[derive(Debug)]
pub(crate) enum Via {
    /// As its sender wrote it, and no rule says anything.
    Straight,
    /// By a rule.
    Rule,
    /// By a prefix translated without state, for a sender that has none.
    Prefix,
    /// By the mapping of an inside address and port.
    Mapping(Arc<Mapping>),
}

impl Passage {
    /// The packet's destination by now: what to look up the route by.
    #[must_use]
    pub const fn destination(&self) -> IpAddr {
        self.headers.dst
    }

    /// What the packet's headers say by now. Behind a change of the IP version this tells the frame's new
    /// EtherType, and where a partial checksum now begins ([`Headers::transport`]).
    #[must_use]
    pub const fn headers(&self) -> &Headers {
        &self.headers
    }

    /// Whether the packet is of another IP version than it came with.
    #[must_use]
    pub const fn changed_version(&self) -> bool {
        self.former.is_some()
    }

    /// Who handles the packet's flow, if not the NAT.
    #[must_use]
    pub fn owner(&self) -> Option<(Owner, Direction)> {
        match &self.standing {
            Standing::Known(entry, direction) if entry.owner() != Owner::NONE => {
                Some((entry.owner(), *direction))
            }
            _ => None,
        }
    }

    /// The packet's flow, if it is known; behind postrouting, if it has one.
    #[must_use]
    pub const fn entry(&self) -> Option<(&Arc<Entry>, Direction)> {
        match &self.standing {
            Standing::Known(entry, direction) => Some((entry, *direction)),
            _ => None,
        }
    }

    /// Makes the packet read as it came, so that an error about it can quote it: between the hooks or behind
    /// both. Only an ICMP error stays as it is, about which there is none.
    pub fn restore<B: Buffer + ?Sized>(&mut self, packet: &mut B) {
        if let Some(lowered) = self.lowered.take() {
            lowered.restore(packet.octets_mut(), &self.headers, self.undone);
        }
        if let Some(id) = self.renumbered.take() {
            rewrite::renumber(packet.octets_mut(), id);
        }
        if let Some(former) = self.former.take() {
            former.restore(packet, &self.headers);
            if let Ok(headers) = Headers::parse(packet.octets()) {
                self.headers = headers;
            }
        } else if let Some(came) = self.came
            && !matches!(self.standing, Standing::Related)
        {
            self.headers = rewrite::rewrite(packet.octets_mut(), &self.headers, &came, self.undone);
        }
    }

    /// It does not fit an egress of that MTU; told in the sender's own IP version.
    pub(crate) fn too_big(&self, mtu: u16) -> Refused {
        too_big(mtu, self.changed_version().then(|| self.headers.v6()))
    }
}
