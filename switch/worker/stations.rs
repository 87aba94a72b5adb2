//! What the control side asks about segments of the world, and our stations there.

use std::io;
use std::sync::Arc;

use datapath::PortId;
use nat::Nat;

use crate::control::{PortConfig, SegmentId};
use crate::segments::{NatPublication, SegmentConfig, SegmentRow};
use crate::switch::Switch;

impl Switch {
    /// Puts a station of ours on the segment that `device` is an interface of, an
    /// [`Interface`](datapath::PortRole::Interface) port. Networks reach it once their uplink is
    /// [`Uplink::Raw`](crate::Uplink::Raw) of its zone.
    ///
    /// # Errors
    ///
    /// `AlreadyExists`; `InvalidInput` for a configuration that contradicts itself, in words; as
    /// [`add_port`](Self::add_port).
    pub fn add_segment(
        &self,
        id: SegmentId,
        config: SegmentConfig,
        device: PortConfig,
    ) -> io::Result<PortId> {
        let _ = (id, config, device);
        Err(unsupported())
    }

    /// Changes our station, or what becomes of packets. Flows go on where they can: those shown with an
    /// address that is gone end, and all end if the way of translating changes.
    ///
    /// # Errors
    ///
    /// `NotFound`; as [`add_segment`](Self::add_segment).
    pub fn set_segment(&self, id: SegmentId, config: SegmentConfig) -> io::Result<()> {
        let _ = (id, config);
        Err(unsupported())
    }

    /// Takes our station from a segment. Its flows end; networks behind it have no way out any more.
    /// Taking one that is not there does nothing.
    pub fn remove_segment(&self, id: SegmentId) {
        let _ = id;
    }

    /// The segments, with what our stations have there now.
    pub fn segment_rows(&self) -> Vec<SegmentRow> {
        Vec::new()
    }

    /// Publishes these ports at a segment's addresses, in place of those before. Flows by a port that is
    /// published no more, or leads elsewhere, end; all others go on.
    ///
    /// # Errors
    ///
    /// `NotFound`; `InvalidInput` for one that cannot be, in words: none is published then.
    pub fn publish_nat(&self, id: SegmentId, published: Vec<NatPublication>) -> io::Result<()> {
        let _ = (id, published);
        Err(unsupported())
    }

    /// A segment's NAT, for listings: its rules with their counts, its mappings.
    pub fn nat(&self, id: SegmentId) -> Option<Arc<Nat>> {
        let _ = id;
        None
    }
}

fn unsupported() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "the raw uplink is not there yet")
}
