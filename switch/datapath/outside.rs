//! Our station on a segment of the world: what is told apart there from a container network.
//!
//! The gateway of a segment is one station among many. Its packets may come from any address but those
//! that can only be behind us; whatever is sent to our station is the NAT's to judge, whether it answers
//! a container or is for the station itself; and what we send beyond the segment goes by a router
//! (RFC 1122 §3.3.1).

use smoltcp::time::Instant;
use smoltcp::wire::IpAddress;

use crate::bridge::{Datapath, Decision, Received};
use crate::drop::DropReason;
use crate::leg::Leg;
use crate::outbox::Outbox;
use crate::packet::{Fragment, Packet, is_link_local, is_martian_destination, is_martian_source};
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
        if is_near(&packet) {
            return match (self.config.has(dst), packet.fragment) {
                (true, Fragment::Whole) => {
                    let answered = self.answer_near(received, &packet, now, out, why);
                    answered.map(|()| Decision::Consumed)
                }
                // Once they are gathered: `answer_gathered`.
                (true, _) => Ok(Decision::Cross(self.network.zone, packet)),
                (false, _) if is_link_local(src) => Err(DropReason::ForeignSource),
                (false, _) => Err(DropReason::MartianDestination),
            };
        }
        if is_martian_destination(dst) || gateway.is_broadcast(dst) {
            return Err(DropReason::MartianDestination);
        }
        if W::ASKED {
            why.step(Step::Cross { segment: self.network.zone, dst });
        }
        Ok(Decision::Cross(self.network.zone, packet))
    }

    /// Answers a packet that is for our station and goes no further.
    pub(crate) fn answer_near<W: Why>(
        &mut self,
        received: &Received<'_>,
        packet: &Packet,
        now: Instant,
        out: &mut Outbox,
        why: &mut W,
    ) -> Result<(), DropReason> {
        match self.answer_echo(received, packet, now, out, why) {
            true => Ok(()),
            false => Err(DropReason::NoFlow),
        }
    }
}

/// Whether a packet goes no further than our station, or may not even come so far: link-local ones
/// (RFC 4291 §2.5.6).
pub(crate) fn is_near(packet: &Packet) -> bool {
    is_link_local(packet.src) || is_link_local(packet.dst)
}
