//! Our station on a segment of the world: what is told apart there from a container network.
//!
//! The gateway of a segment is one station among many. Its packets may come from any address but those
//! that can only be behind us; whatever is sent to our station is the NAT's to judge, whether it answers
//! a container or is for the station itself; and what we send beyond the segment goes by a router
//! (RFC 1122 §3.3.1).

use std::net::IpAddr;

use smoltcp::time::Instant;
use smoltcp::wire::IpAddress;

use crate::bridge::{Datapath, Decision, Received};
use crate::drop::DropReason;
use crate::leg::Leg;
use crate::outbox::Outbox;
use crate::packet::{Packet, is_link_local_v6, is_martian_destination, is_martian_source};
use crate::why::{Step, Why};

impl Datapath {
    /// Decides a packet that was sent to our station on a segment.
    pub(crate) fn outside_packet<W: Why>(
        &mut self,
        received: &Received<'_>,
        packet: Packet,
        now: Instant,
        out: &mut Outbox,
        why: &mut W,
    ) -> Result<Decision, DropReason> {
        let gateway = self.config.gateway.as_ref().ok_or(DropReason::NoGateway)?;
        let Leg::Uplink(outside) = &self.config.leg else { return Err(DropReason::NoRoute) };
        let (src, dst) = (packet.src, packet.dst);
        if self.config.answers_for(src) || is_martian_source(src) || gateway.is_broadcast(src) {
            return Err(DropReason::MartianSource);
        }
        let addr = IpAddress::from(src);
        if outside.behind.iter().any(|subnet| subnet.contains_addr(&addr)) {
            return Err(DropReason::ForeignSource);
        }
        // Link-local packets go no further than our station (RFC 4291 §2.5.6).
        let near = |addr| matches!(addr, IpAddr::V6(addr) if is_link_local_v6(addr));
        if gateway.has(dst) && (near(src) || near(dst)) {
            if !self.answer_echo(received, &packet, now, out, why) {
                return Err(DropReason::NoFlow);
            }
            return Ok(Decision::Consumed);
        }
        if near(src) {
            return Err(DropReason::ForeignSource);
        }
        if is_martian_destination(dst) || gateway.is_broadcast(dst) {
            return Err(DropReason::MartianDestination);
        }
        if W::ASKED {
            why.step(Step::Cross { segment: self.network.zone, dst });
        }
        Ok(Decision::Cross(self.network.zone, packet))
    }
}
