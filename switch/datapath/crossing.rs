//! A segment of the world and the networks behind it: what becomes of a packet between them.
//!
//! Read `nat::hooks` first. Prerouting, the route among both sides, postrouting, the next hop; every
//! refusal is told to the packet's sender on the side it came from, quoting it as it came (RFC 5508 §7,
//! RFC 1812 §4.3). Any worker may carry any packet: what is shared is the NAT and conntrack. A packet of an
//! established flow is rewritten in the buffer it was received into; nothing is allocated and no lock is
//! taken but its flow's.

use std::net::IpAddr;
use std::sync::Arc;

use nat::{
    Buffer, Egress, Gathered, Headers, Ingress, Nat, NoNotes, Notes, Passage, Refused, Sent, Tell,
    Undone, Zone,
};
use nat::{Direction, Owner};
use smoltcp::time::Instant;
use smoltcp::wire::{IpAddress, IpCidr};

use crate::bridge::{Datapath, Received};
use crate::drop::DropReason;
use crate::icmp::{self, IcmpError};
use crate::leg::Leg;
use crate::neighbour::Pending;
use crate::offload::{Gso, OFFLOAD_HEADER_LEN, Offload};
use crate::outbox::Outbox;
use crate::packet::{Fragment, Packet};
use crate::port::{ETHERNET_HEADER_LEN, MacAddr, Payer, PortId};
use crate::slot::{self, SPARE, Slot};
use crate::why::Silent;

/// Octets of an ICMP error before the packet it quotes.
const ICMP_HEADER_LEN: usize = 8;

/// Where a crossing finds its networks.
pub trait Legs {
    /// The worker's view of a network or a segment.
    fn leg(&mut self, zone: Zone) -> Option<&mut Datapath>;
}

/// Where a frame that crosses has come in.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// The network, or the segment.
    pub zone: Zone,
    /// The port.
    pub port: PortId,
    /// What was left undone on it.
    pub offload: Offload,
    /// What its headers say.
    pub packet: Packet,
}

/// What became of a packet that was to cross.
#[derive(Debug)]
#[must_use]
pub enum Crossed {
    /// It was sent on, answered, or is kept.
    Done,
    /// It is of a flow of this owner's, who must take it. If it came in pieces, this is the frame they
    /// make, behind an empty offload header; else it is as it came.
    Owned(Owner, Direction, Option<Vec<u8>>),
}

/// A segment, and the networks whose uplink it is.
#[derive(Debug)]
pub struct Crossing {
    nat: Arc<Nat>,
    segment: Zone,
    /// What masquerade shows.
    addresses: Vec<IpAddr>,
    /// Subnets of the networks it knows, in order; no two overlap.
    networks: Vec<Known>,
}

/// A subnet of a container network's.
#[derive(Clone, Copy, Debug)]
struct Known {
    subnet: IpCidr,
    zone: Zone,
    /// The segment is its uplink. Else it has another way out, and comes here for our station alone.
    behind: bool,
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// It is for our station itself.
    Own,
    /// To a container of that network.
    Inside(Zone),
    /// To the segment and beyond.
    Outside,
    /// Nowhere: it came from the segment and is for none of us.
    Nowhere,
}

impl Crossing {
    /// The crossing between `segment`, where our station has `addresses`, and the networks with these
    /// subnets: those `behind` it have it for their uplink, those `beside` it another, and find our station
    /// and what is published there all the same.
    #[must_use]
    pub fn new(
        nat: Arc<Nat>,
        segment: Zone,
        addresses: Vec<IpAddr>,
        behind: &[(IpCidr, Zone)],
        beside: &[(IpCidr, Zone)],
    ) -> Self {
        let known =
            |behind| move |(subnet, zone): &_| Known { subnet: *subnet, zone: *zone, behind };
        let behind = behind.iter().map(known(true));
        let mut networks: Vec<_> = behind.chain(beside.iter().map(known(false))).collect();
        networks.sort_by_key(|known| first(&known.subnet));
        Self { nat, segment, addresses, networks }
    }

    /// The NAT between both sides.
    #[must_use]
    pub const fn nat(&self) -> &Arc<Nat> {
        &self.nat
    }

    /// The segment.
    #[must_use]
    pub const fn segment(&self) -> Zone {
        self.segment
    }

    /// Carries a packet that [`Datapath::ingress`] left to it.
    ///
    /// # Errors
    ///
    /// Why it went no further; its sender was told where a rule says so.
    pub fn carry<L: Legs, N: Notes>(
        &self,
        legs: &mut L,
        arrival: &Arrival,
        slot: &mut Slot<'_>,
        now: Instant,
        out: &mut Outbox,
        notes: &mut N,
    ) -> Result<Crossed, DropReason> {
        let dp = legs.leg(arrival.zone).ok_or(DropReason::NoRoute)?;
        let ingress = Ingress {
            zone: arrival.zone,
            inside: arrival.zone != self.segment,
            account: arrival.port.account(arrival.zone),
            mtu: dp.config().mtu.0,
        };
        if arrival.packet.fragment == Fragment::Whole {
            let undone = undone(arrival);
            return self.pass(legs, (arrival, &ingress), slot, undone, None, now, out, notes);
        }
        let octets = slot.octets();
        let headers = Headers::parse(octets).map_err(|_| DropReason::Malformed)?;
        let ours = dp.config().answers_for(headers.dst)
            || matches!(self.way(legs, ingress.inside, headers.dst), Way::Own);
        if !ours && self.nat.routes_pieces(ingress.account) {
            let arrived = (arrival, &ingress);
            return self.pass(legs, arrived, slot, Undone::default(), None, now, out, notes);
        }
        let whole = match self.nat.gather(octets, &headers, &ingress, now) {
            Gathered::Kept => return Ok(Crossed::Done),
            Gathered::Refused => return Err(DropReason::Fragment),
            Gathered::Complete(whole) => whole,
        };
        let mut len = OFFLOAD_HEADER_LEN + ETHERNET_HEADER_LEN + whole.packet.len();
        let mut frame = Vec::with_capacity(len + SPARE);
        frame.resize(OFFLOAD_HEADER_LEN, 0);
        frame.extend_from_slice(&slot.frame()[..ETHERNET_HEADER_LEN]);
        frame.extend_from_slice(&whole.packet);
        frame.resize(len + SPARE, 0);
        let packet = Packet::parse(&frame[OFFLOAD_HEADER_LEN..len], &Offload::NONE)?;
        let gathered = Arrival { packet, offload: Offload::NONE, ..*arrival };
        let mut slot = Slot::new(&mut frame, &mut len, None);
        let dp = legs.leg(arrival.zone).ok_or(DropReason::NoRoute)?;
        let whole_frame = received(&gathered, &slot);
        if let Some(answered) = dp.answer_gathered(&whole_frame, &packet, now, out) {
            return answered.map(|()| Crossed::Done);
        }
        let largest = Some(whole.largest);
        let arrived = (&gathered, &ingress);
        let crossed =
            self.pass(legs, arrived, &mut slot, Undone::default(), largest, now, out, notes)?;
        Ok(match crossed {
            Crossed::Owned(owner, direction, _) => {
                frame.truncate(len);
                Crossed::Owned(owner, direction, Some(frame))
            }
            done => done,
        })
    }

    /// A whole packet through both hooks.
    #[expect(clippy::too_many_arguments, reason = "all of them differ from packet to packet")]
    fn pass<L: Legs, N: Notes>(
        &self,
        legs: &mut L,
        (arrival, ingress): (&Arrival, &Ingress),
        slot: &mut Slot<'_>,
        undone: Undone,
        largest: Option<u16>,
        now: Instant,
        out: &mut Outbox,
        notes: &mut N,
    ) -> Result<Crossed, DropReason> {
        let mut teller = Teller { arrival, now, out };
        let mut passage = match self.nat.prerouting(slot, undone, ingress, now, notes) {
            Ok(passage) => passage,
            Err(refused) => return Err(teller.refuse(legs, slot, refused)),
        };
        let last_hop = arrival.packet.hop_limit <= 1;
        if let Some((owner, direction)) = passage.owner() {
            return match last_hop {
                true => Err(teller.last_hop(legs, slot)),
                false => Ok(Crossed::Owned(owner, direction, None)),
            };
        }
        let dst = passage.destination();
        let way = self.way(legs, ingress.inside, dst);
        if way == Way::Own {
            passage.restore(slot);
            return self.own(legs, teller, slot, &passage).map(|()| Crossed::Done);
        }
        if last_hop {
            passage.restore(slot);
            return Err(teller.last_hop(legs, slot));
        }
        let (zone, addresses) = match way {
            Way::Inside(zone) => (zone, &[][..]),
            Way::Outside => (self.segment, &*self.addresses),
            Way::Own | Way::Nowhere => return Err(DropReason::NoRoute),
        };
        let dp = legs.leg(zone).ok_or(DropReason::NoRoute)?;
        let Some(next) = dp.next_hop(dst) else {
            passage.restore(slot);
            teller.tell(legs, slot, IcmpError::NoRoute);
            return Err(DropReason::NoRoute);
        };
        let (station, mtu) = dp.way_to(next, now);
        let egress = Egress { zone, inside: zone != self.segment, mtu: mtu.0, addresses };
        match self.nat.postrouting(slot, &mut passage, &egress, largest, now, notes) {
            Err(refused) => return Err(teller.refuse(legs, slot, refused)),
            Ok(sent @ (Sent::Whole | Sent::LongSegments)) => {
                slot.age();
                let mut offload = arrival.offload;
                if passage.changed_version() {
                    let headers = passage.headers();
                    offload = slot::undone_in_version(offload, headers.v6(), headers.transport);
                }
                let payer = payer_of(arrival, zone);
                if sent == Sent::Whole {
                    dp.send_onward(slot, (next, station), payer, offload, now, teller.out);
                } else {
                    // Each piece is addressed by itself; the frame shall say what it is by now.
                    slot.address(MacAddr([0; 6]), MacAddr([0; 6]));
                    let cut = |packet: &[u8]| self.nat.cut(packet, mtu.0);
                    let frame = slot.frame();
                    dp.send_in_pieces(frame, offload, cut, next, payer, now, teller.out)?;
                }
            }
            Ok(Sent::Pieces(pieces)) => {
                let payer = payer_of(arrival, zone);
                for mut piece in pieces {
                    slot::age(&mut piece);
                    dp.send_packet(&piece, next, payer, now, teller.out);
                }
            }
        }
        Ok(Crossed::Done)
    }

    /// Where a packet goes that has this destination by now.
    fn way<L: Legs>(&self, legs: &mut L, from_inside: bool, dst: IpAddr) -> Way {
        if let Some(known) = self.network_of(dst)
            && (known.behind || from_inside)
        {
            return Way::Inside(known.zone);
        }
        let station = legs.leg(self.segment);
        if station.is_some_and(|station| station.config().answers_for(dst)) {
            return Way::Own;
        }
        if from_inside { Way::Outside } else { Way::Nowhere }
    }

    /// The network that has this address.
    fn network_of(&self, dst: IpAddr) -> Option<&Known> {
        let place = self.networks.partition_point(|known| first(&known.subnet) <= dst);
        let known = self.networks.get(place.checked_sub(1)?)?;
        known.subnet.contains_addr(&IpAddress::from(dst)).then_some(known)
    }

    /// A packet for our station itself, of no flow. Containers are answered as by any host; others hear
    /// nothing but an echo, or late.
    fn own<L: Legs>(
        &self,
        legs: &mut L,
        teller: Teller<'_>,
        slot: &Slot<'_>,
        passage: &Passage,
    ) -> Result<(), DropReason> {
        let Teller { arrival, now, out } = teller;
        let dp = legs.leg(arrival.zone).ok_or(DropReason::NoRoute)?;
        let received = received(arrival, slot);
        let packet = &arrival.packet;
        if dp.answer_echo(&received, packet, now, out, &mut Silent) {
            return Ok(());
        }
        if dp.config().leg == Leg::Inside {
            return dp.refuse_local(&received, packet, now, out).map(|_| ());
        }
        Err(self.nat.unsolicited(slot.octets(), passage, now).reason.into())
    }

    /// Tells the sender of a packet that has waited in vain for a neighbour in `zone`
    /// ([`Datapath::handle_timeout`]) that it is unreachable.
    ///
    /// The packet was translated already. So the error goes the way an error from beyond would, which
    /// translates it back and finds its sender.
    pub fn unreachable<L: Legs>(
        &self,
        legs: &mut L,
        zone: Zone,
        pending: &Pending,
        now: Instant,
        out: &mut Outbox,
    ) {
        let Some(dp) = legs.leg(zone) else { return };
        let Ok(packet) = Packet::parse(&pending.frame, &pending.offload) else { return };
        if !icmp::may_answer(&packet, &pending.frame) {
            return;
        }
        let (Some(gateway), mtu) = (&dp.config().gateway, dp.config().mtu.0) else { return };
        let from = dp.config().source_for(packet.src).unwrap_or(packet.dst);
        let mut quoted = pending.frame[Packet::IP..packet.end].to_vec();
        slot::rejuvenate(&mut quoted);
        let what = IcmpError::HostUnreachable;
        let built = icmp::error(out, gateway.mac, from, packet.src, what, &quoted);
        let mut error = out.frame(built)[ETHERNET_HEADER_LEN..].to_vec();
        let _ = out.shorten(built, 0);
        let inside = zone != self.segment;
        let ingress = Ingress { zone, inside, account: PortId::GATEWAY.account(zone), mtu };
        let undone = Undone::default();
        let Ok(passage) = self.nat.prerouting(&mut error, undone, &ingress, now, &mut NoNotes)
        else {
            return;
        };
        let headers = passage.headers();
        let to = headers.dst;
        let Some(quoted) = error.get(headers.transport + ICMP_HEADER_LEN..headers.end) else {
            return;
        };
        let back = self.network_of(to).map_or(self.segment, |known| known.zone);
        if let Some(dp) = legs.leg(back) {
            dp.tell_about(to, None, what, quoted, now, out);
        }
    }

    /// Tells those whose packets came in pieces, some of which never came (RFC 792, RFC 4443 §3.3).
    pub fn tell_overdue<L: Legs>(&self, legs: &mut L, now: Instant, out: &mut Outbox) {
        while let Some(overdue) = self.nat.overdue() {
            let Ok(headers) = Headers::parse_quoted(&overdue.piece) else { continue };
            if let Some(dp) = legs.leg(overdue.zone) {
                let from = Some(headers.dst).filter(|dst| dp.config().answers_for(*dst));
                let what = IcmpError::ReassemblyTimeExceeded;
                dp.tell_about(overdue.src, from, what, &overdue.piece, now, out);
            }
        }
    }

    /// Tells those whose SYN nobody wanted six seconds ago that the port is unreachable (RFC 5382 REQ-4).
    pub fn tell_unsolicited<L: Legs>(&self, legs: &mut L, now: Instant, out: &mut Outbox) {
        while let Some((zone, quoted)) = self.nat.due(now) {
            let Ok(headers) = Headers::parse_quoted(&quoted) else { continue };
            if let Some(dp) = legs.leg(zone) {
                let from = Some(headers.dst);
                dp.tell_about(headers.src, from, IcmpError::PortUnreachable, &quoted, now, out);
            }
        }
    }
}

/// What is needed to tell a packet's sender what became of it.
struct Teller<'a> {
    arrival: &'a Arrival,
    now: Instant,
    out: &'a mut Outbox,
}

impl Teller<'_> {
    /// Tells the sender of a packet, which reads as it came.
    fn tell<L: Legs>(&mut self, legs: &mut L, slot: &Slot<'_>, what: IcmpError) {
        if let Some(dp) = legs.leg(self.arrival.zone) {
            let received = received(self.arrival, slot);
            dp.tell(&received, &self.arrival.packet, what, self.now, self.out);
        }
    }

    /// Tells the sender of a packet that it may go no further.
    fn last_hop<L: Legs>(&mut self, legs: &mut L, slot: &Slot<'_>) -> DropReason {
        self.tell(legs, slot, IcmpError::TimeExceeded);
        DropReason::TtlExceeded
    }

    /// Tells the sender of a packet the NAT refused what it may know, and says why it goes no further.
    fn refuse<L: Legs>(&mut self, legs: &mut L, slot: &Slot<'_>, refused: Refused) -> DropReason {
        match refused.tell {
            Some(Tell::AdminProhibited) => self.tell(legs, slot, IcmpError::AdminProhibited),
            Some(Tell::TooBig(mtu)) => self.tell(legs, slot, IcmpError::TooBig(mtu.into())),
            None => {}
        }
        refused.reason.into()
    }
}

fn received<'a>(arrival: &Arrival, slot: &'a Slot<'_>) -> Received<'a> {
    Received {
        port: arrival.port,
        place: slot.place().unwrap_or(0),
        frame: slot.frame(),
        offload: arrival.offload,
    }
}

/// Who pays for what is kept for a packet in `zone`.
fn payer_of(arrival: &Arrival, zone: Zone) -> Payer {
    match arrival.zone == zone {
        true => Payer::Port(arrival.port),
        false => Payer::Foreign(arrival.port.account(arrival.zone)),
    }
}

/// What the offload left undone, in the NAT's words. A checksum further in, within a tunnel, is none of
/// its concern.
fn undone(arrival: &Arrival) -> Undone {
    let partial = arrival.offload.checksum;
    Undone {
        partial: partial
            .is_some_and(|partial| usize::from(partial.start) == arrival.packet.transport),
        segment: match arrival.offload.gso {
            Gso::None => None,
            gso => gso.size(),
        },
    }
}

/// The first address of a subnet.
fn first(subnet: &IpCidr) -> IpAddr {
    match subnet {
        IpCidr::Ipv4(subnet) => subnet.network().address().into(),
        IpCidr::Ipv6(subnet) => {
            let host = u128::MAX.checked_shr(subnet.prefix_len().into()).unwrap_or(0);
            IpAddr::V6((subnet.address().to_bits() & !host).into())
        }
    }
}
