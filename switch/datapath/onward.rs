//! Packets of another network, sent on by the gateway to a neighbour of this one.
//!
//! A routed frame leaves where it lies if its neighbour's station is known. If it must wait, it is copied,
//! and whoever it came from pays for that.

use std::net::IpAddr;

use smoltcp::time::Instant;

use crate::bridge::Datapath;
use crate::drop::DropReason;
use crate::offload::Offload;
use crate::outbox::{Body, Outbox};
use crate::port::{ETHERNET_HEADER_LEN, IpMtu, MacAddr, Payer};
use crate::segment::segment;
use crate::slot::Slot;

impl Datapath {
    /// The neighbour by which a packet of ours gets to `to`; none if no router is known.
    pub(crate) fn next_hop(&self, to: IpAddr) -> Option<IpAddr> {
        self.config.next_hop(to, &self.network.neighbours)
    }

    /// The station of `next`, if it is known and fresh, and what its link carries, or else the network.
    pub(crate) fn way_to(&mut self, next: IpAddr, now: Instant) -> (Option<MacAddr>, IpMtu) {
        let whole = self.config.mtu;
        let Some(station) = self.network.neighbours.known(next, now) else { return (None, whole) };
        let port = self.port_behind(station, now);
        (Some(station), port.map_or(whole, |port| port.mtu.min(whole)))
    }

    /// Sends a frame to the neighbour `next`, whose station is `known` or has to be asked for.
    pub(crate) fn send_onward(
        &mut self,
        slot: &mut Slot<'_>,
        (next, known): (IpAddr, Option<MacAddr>),
        payer: Payer,
        offload: Offload,
        now: Instant,
        out: &mut Outbox,
    ) {
        let Some(gateway) = &self.config.gateway else {
            return self.gateway_counters().not_sent(DropReason::NoGateway);
        };
        slot.address(gateway.mac, known.unwrap_or(MacAddr([0; 6])));
        let len = slot.frame().len();
        match (known, slot.place()) {
            (Some(station), Some(place)) => {
                slot.emit(offload);
                self.depart(Body::Received(place), len, station, offload, now, out);
            }
            _ => {
                let built = out.build(len);
                out.frame_mut(built).copy_from_slice(slot.frame());
                self.send_for(payer, built, next, offload, now, out);
            }
        }
    }

    /// Does what is left undone on a frame, and sends the packets it holds to the neighbour `next`, each in the
    /// pieces that `cut` makes of it.
    ///
    /// # Errors
    ///
    /// As [`segment`]; nothing was sent then.
    #[expect(clippy::too_many_arguments, reason = "all of them differ from frame to frame")]
    pub(crate) fn send_in_pieces(
        &mut self,
        frame: &[u8],
        offload: Offload,
        cut: impl Fn(&[u8]) -> Option<Vec<Vec<u8>>>,
        next: IpAddr,
        payer: Payer,
        now: Instant,
        out: &mut Outbox,
    ) -> Result<(), DropReason> {
        let mut pieces = Vec::new();
        segment(frame, offload, &mut Vec::new(), &mut |plain| {
            pieces.extend(cut(&plain[ETHERNET_HEADER_LEN..]).unwrap_or_default());
        })?;
        for piece in pieces {
            self.send_packet(&piece, next, payer, now, out);
        }
        Ok(())
    }

    /// Sends a packet that has no frame yet to the neighbour `next`.
    pub(crate) fn send_packet(
        &mut self,
        packet: &[u8],
        next: IpAddr,
        payer: Payer,
        now: Instant,
        out: &mut Outbox,
    ) {
        let Some(gateway) = &self.config.gateway else {
            return self.gateway_counters().not_sent(DropReason::NoGateway);
        };
        let built = out.build(ETHERNET_HEADER_LEN + packet.len());
        let (header, payload) = out.frame_mut(built).split_at_mut(ETHERNET_HEADER_LEN);
        header[..6].fill(0);
        header[6..12].copy_from_slice(gateway.mac.as_bytes());
        let v6 = packet.first().is_some_and(|first| first >> 4 == 6);
        header[12..].copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[0x08, 0x00] });
        payload.copy_from_slice(packet);
        self.send_for(payer, built, next, Offload::NONE, now, out);
    }
}
