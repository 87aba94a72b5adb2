//! A frame at the door: checked once, trusted behind it.

use smoltcp::wire::{EthernetFrame, EthernetProtocol};

use crate::drop::DropReason;
use crate::port::{MAX_FRAME_LEN, MacAddr};

/// An Ethernet frame whose header is whole and whose source is a station.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The station that sent it.
    pub src: MacAddr,
    /// The station or group it is for.
    pub dst: MacAddr,
    /// What the payload is; a VLAN tag counts as payload.
    pub ethertype: EthernetProtocol,
    /// Everything behind the header, padding included.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Checks the header.
    ///
    /// # Errors
    ///
    /// [`DropReason::Runt`], [`DropReason::Oversized`] or, if the source is a group address or all
    /// zeros, [`DropReason::BadSource`] (as `is_valid_ether_addr` in `net/bridge/br_input.c`).
    pub fn parse(octets: &'a [u8]) -> Result<Self, DropReason> {
        if octets.len() > MAX_FRAME_LEN {
            return Err(DropReason::Oversized);
        }
        let frame = EthernetFrame::new_checked(octets).map_err(|_| DropReason::Runt)?;
        let src = frame.src_addr();
        if !src.is_unicast() || src.0 == [0; 6] {
            return Err(DropReason::BadSource);
        }
        Ok(Self {
            src,
            dst: frame.dst_addr(),
            ethertype: frame.ethertype(),
            payload: frame.payload(),
        })
    }

    /// Whether it is for one of the group addresses 01:80:C2:00:00:00-0F, which end at the bridge
    /// (802.1Q §8.6.3, table 8-1).
    #[must_use]
    pub fn is_link_local_group(&self) -> bool {
        self.dst.0[..5] == [0x01, 0x80, 0xc2, 0, 0] && self.dst.0[5] < 0x10
    }
}
