//! Packets between networks and segments: the NAT's part of a worker.
//!
//! What the data path leaves to a raw uplink is carried by the segment's `Crossing` (in `datapath`), in the
//! buffer it was read into; packets of relayed flows, which published ports have there as well, go on to
//! the relay.

use std::sync::Arc;

use datapath::{
    Arrival, Change, Crossed, DropReason, Fate, Heard, Packet, PortId, Presence, Received, Uplink,
};
use nat::{NoNotes, Zone};
use relay::{Context, Key};
use smoltcp::time::Instant;

use crate::control::Event;
use crate::station::Station;
use crate::worker::Worker;

impl Worker {
    /// Takes in a station, whose network is there already.
    pub(crate) fn add_station(&mut self, station: Arc<Station>) {
        self.stations.add(station);
        self.share_stations();
    }

    pub(crate) fn remove_station(&mut self, segment: Zone) {
        self.stations.remove(segment);
        self.share_stations();
    }

    /// Lets every network know our stations.
    fn share_stations(&mut self) {
        let stations = self.stations.configs();
        for net in self.networks.values_mut() {
            net.dp.set_stations(Arc::clone(&stations));
        }
    }

    /// Takes what is new of the stations.
    pub(crate) fn look_at_stations(&mut self) {
        let networks = &mut self.networks;
        let mut changed = false;
        self.stations.look(|segment, config| {
            changed = true;
            if let Some(net) = networks.get_mut(&segment) {
                net.dp.configure(Arc::clone(config));
            }
        });
        if changed {
            self.share_stations();
        }
    }

    /// Carries a frame of the burst across, and counts what became of it.
    pub(crate) fn cross(
        &mut self,
        segment: Zone,
        (zone, port): (Zone, PortId),
        place: u16,
        packet: Packet,
        now: Instant,
    ) {
        let fate = match self.crossed(segment, (zone, port), place, packet, now) {
            Ok(()) => Fate::Consumed,
            Err(reason) => Fate::Dropped(reason),
        };
        if let Some(net) = self.networks.get_mut(&zone) {
            net.dp.decided(port, fate);
        }
    }

    fn crossed(
        &mut self,
        segment: Zone,
        (zone, port): (Zone, PortId),
        place: u16,
        packet: Packet,
        now: Instant,
    ) -> Result<(), DropReason> {
        let (_, offload) = self.burst.frame(usize::from(place));
        let arrival = Arrival { zone, port, offload: offload?, packet };
        let current = self.stations.current(segment).ok_or(DropReason::NoRoute)?;
        let mut slot = self.burst.slot(place);
        let crossed = current.crossing.carry(
            &mut self.networks,
            &arrival,
            &mut slot,
            now,
            &mut self.out,
            &mut NoNotes,
        )?;
        match crossed {
            Crossed::Done => Ok(()),
            Crossed::Owned(owner, _, None) => {
                let (frame, offload) = self.burst.frame(usize::from(place));
                let received = Received { port, place, frame, offload: offload? };
                let net = self.networks.get_mut(&zone).ok_or(DropReason::NoRoute)?;
                let ctx = Context { dp: &mut net.dp, out: &mut self.out, now };
                let with_header = self.burst.with_header(usize::from(place));
                self.setup.relayed(Key::from(owner), (&received, with_header), &packet, ctx)
            }
            Crossed::Owned(owner, _, Some(with_header)) => {
                let frame = &with_header[datapath::OFFLOAD_HEADER_LEN..];
                let offload = datapath::Offload::NONE;
                let received = Received { port, place, frame, offload };
                let packet = Packet::parse(frame, &offload)?;
                let net = self.networks.get_mut(&zone).ok_or(DropReason::NoRoute)?;
                let ctx = Context { dp: &mut net.dp, out: &mut self.out, now };
                self.setup.relayed(Key::from(owner), (&received, &with_header), &packet, ctx)
            }
        }
    }

    /// Ages a network's stations and neighbours; who has sent in vain from another network is told.
    pub(crate) fn keep_house(&mut self, zone: Zone, now: Instant) {
        let Some(net) = self.networks.get_mut(&zone) else { return };
        let waited = net.dp.handle_timeout(now, &mut self.out);
        if let Uplink::Raw(segment) = net.dp.config().uplink
            && let Some(current) = self.stations.current(segment)
        {
            for pending in waited {
                let out = &mut self.out;
                current.crossing.unreachable(&mut self.networks, zone, &pending, now, out);
            }
        }
        self.flush();
    }

    /// Shows a frame of a segment's to our station's presence there, if it concerns that; true if it was for
    /// the presence alone.
    pub(crate) fn hear(&mut self, segment: Zone, port: PortId, index: usize, now: Instant) -> bool {
        let (frame, offload) = self.burst.frame(index);
        let (Ok(offload), true) = (offload, Presence::concerns(frame)) else { return false };
        let Some(station) = self.stations.of(segment).cloned() else { return false };
        let place = u16::try_from(index).expect("a burst is 32 frames");
        let received = Received { port, place, frame, offload };
        let (heard, changes) = station.hear(&received, now, &mut self.out);
        let fate = match heard {
            Heard::Pass => None,
            Heard::Consumed => Some(Fate::Consumed),
            Heard::Drop(reason) => Some(Fate::Dropped(reason)),
        };
        if let (Some(fate), Some(net)) = (fate, self.networks.get(&segment)) {
            net.dp.took(port, frame.len(), fate);
        }
        self.tell_changes(&station, &changes);
        fate.is_some()
    }

    /// Tells of what has changed by itself, and lets every worker look.
    fn tell_changes(&mut self, station: &Station, changes: &[Change]) {
        if changes.is_empty() {
            return;
        }
        let segment = station.segment;
        for change in changes {
            if let Change::Conflict { address, station: rival, .. } = change
                && station.tells_of_conflict()
            {
                let event = Event::AddressConflict { segment, addr: *address, station: *rival };
                // Nobody listens any more only when the switch is coming down.
                let _ = self.setup.events.send(event);
            }
        }
        if station.tells_of_change() {
            let _ = self.setup.events.send(Event::SegmentChanged { segment });
        }
        for (_, waker) in &self.setup.others {
            // It fails only with the worker gone, which then has nothing to look at.
            let _ = waker.wake();
        }
        self.look_at_stations();
    }

    /// Gives back what our station on a segment has leased, before it goes. One worker calls it.
    pub(crate) fn leave(&mut self, segment: Zone, now: Instant) {
        if let Some(station) = self.stations.of(segment).cloned() {
            station.leave(now, &mut self.out);
            self.flush();
        }
    }

    /// Does what time asks of the NATs. One worker calls it.
    pub(crate) fn serve_stations(&mut self, now: Instant) {
        let expire = self.stations.expires(now);
        for crossing in self.stations.crossings() {
            crossing.tell_unsolicited(&mut self.networks, now, &mut self.out);
            if expire {
                crossing.nat().expire(now);
                crossing.tell_overdue(&mut self.networks, now, &mut self.out);
            }
        }
        for station in self.stations.all() {
            let changes = station.handle_timeout(now, &mut self.out);
            self.tell_changes(&station, &changes);
        }
        self.flush();
    }
}
