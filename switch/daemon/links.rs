//! What becomes of the host's interfaces that stations and networks are on: followed, and taken anew.
//!
//! A number is what the kernel knows an interface by, and a name what a user gives. One that is renamed is
//! the same one. One that is gone, deleted or moved to another namespace, leaves those on it without a way out
//! until there is one of its name again, which is taken in its place: addresses, flows and rules stay.

use datapath::PortId;
use netns::Take;
use worker::{NetworkId, SegmentId};

use crate::error::Error;
use crate::log::log;
use crate::network::Bridged;
use crate::segment::Nic;
use crate::state::Daemon;

impl Daemon {
    /// Has all that is on an interface of the host's follow what has become of that.
    pub(crate) fn look_at_links(&self) {
        let (stations, bridged): (Vec<_>, Vec<_>) = {
            let registry = self.registry();
            let stations =
                registry.segments.values().map(|segment| (segment.id, segment.nic.clone()));
            let networks = registry.networks.values();
            let bridged =
                networks.filter_map(|network| Some((network.number, network.bridged?.ifindex)));
            (stations.collect(), bridged.collect())
        };
        if stations.is_empty() && bridged.is_empty() {
            return;
        }
        let there = match netns::interfaces() {
            Ok(there) => there,
            Err(error) => return log!("interfaces are not seen: {error:#}"),
        };
        let name_of = |ifindex| {
            there.iter().find(|found| found.ifindex == ifindex).map(|found| found.name.clone())
        };
        for (id, nic) in stations {
            match name_of(nic.ifindex) {
                Some(name) => self.follow(id, &nic, name),
                None => self.take_anew(id),
            }
        }
        for (number, ifindex) in bridged {
            if name_of(ifindex).is_none() {
                self.bridge_anew(number);
            }
        }
    }

    /// Tells a station how its interface is, which is called `name` by now.
    fn follow(&self, id: SegmentId, was: &Nic, name: String) {
        let is = match netns::look_at(&name) {
            Ok(facts) => Nic::of(&facts),
            Err(netns::Error::UplinkDown { .. }) => Nic { name, up: false, ..was.clone() },
            // It is gone meanwhile, of which we shall hear.
            Err(_) => return,
        };
        if is == *was {
            return;
        }
        if (is.up, is.mtu) != (was.up, was.mtu) {
            if self.switch.set_segment_link(id, is.up, is.mtu).is_err() {
                return;
            }
            let state = if is.up { "up" } else { "down, or without a carrier" };
            log!("raw:{}: {state}, MTU {}", is.name, is.mtu.0);
        }
        if is.name != was.name {
            log!("raw:{}: it is called {} now, and stays the uplink", was.name, is.name);
        }
        if let Some(segment) = self.registry().segments.get_mut(&id) {
            segment.nic = is;
        }
    }

    /// Takes the interface that has the name of a station's, whose own is gone; without, the station waits for
    /// one.
    fn take_anew(&self, id: SegmentId) {
        let _turn = self.changes();
        let (name, take, waits) = {
            let registry = self.registry();
            let Some(segment) = registry.segments.get(&id) else { return };
            (segment.raw.interface.clone(), segment.take(), segment.dead.clone())
        };
        let taken = self.take(&name, &take, |device| self.switch.set_segment_device(id, device));
        let said = match taken {
            Ok((nic, port)) => {
                let told = self.switch.set_segment_link(id, nic.up, nic.mtu);
                if let Some(segment) = self.registry().segments.get_mut(&id) {
                    (segment.nic, segment.port, segment.dead) = (nic, port, None);
                }
                told.err().map_or_else(|| "taken anew".to_owned(), |error| error.to_string())
            }
            Err(why) => {
                if waits.as_ref() == Some(&why) {
                    return;
                }
                let mut registry = self.registry();
                let Some(segment) = registry.segments.get_mut(&id) else { return };
                segment.nic.up = false;
                segment.dead = Some(why.clone());
                // It may be gone by now.
                let _ = self.switch.set_segment_link(id, false, segment.nic.mtu);
                why
            }
        };
        log!("raw:{name}: {said}");
        self.settled.notify_all();
    }

    /// The same for a network one of whose ports it was.
    fn bridge_anew(&self, number: NetworkId) {
        let _turn = self.changes();
        let (name, old) = {
            let registry = self.registry();
            let Some(network) = registry.by_number(number) else { return };
            let Some((name, old)) = network.uplink.interface().zip(network.bridged) else { return };
            (name.to_owned(), old.port)
        };
        let Ok(facts) = netns::look_at(&name) else { return };
        let taken = self.take(&name, &Take::AllBut(facts.mac), |device| {
            self.switch.remove_port(number, old);
            self.switch.add_port(number, device)
        });
        match taken {
            Ok((Nic { ifindex, .. }, port)) => {
                if let Some(network) = self.registry().by_number_mut(number) {
                    network.bridged = Some(Bridged { port, ifindex });
                }
                log!("bridge:{name}: taken anew");
            }
            Err(why) => log!("bridge:{name}: {why}"),
        }
    }

    /// Opens the interface of that name and gives it to `enter`; else says why it is not to be had, in a
    /// few words.
    fn take(
        &self,
        name: &str,
        take: &Take,
        enter: impl FnOnce(worker::PortConfig) -> std::io::Result<PortId>,
    ) -> Result<(Nic, PortId), String> {
        let facts = self.look_at(name).map_err(|error| match error {
            Error::Netns(netns::Error::NoSuchUplink { .. }) => format!("{name} is gone"),
            other => other.to_string(),
        })?;
        let device = self.open_interface(&facts, take).map_err(|error| error.to_string())?;
        let port = enter(device).map_err(|error| error.to_string())?;
        Ok((Nic::of(&facts), port))
    }

    /// The switch says that a segment's interface is gone or broken.
    pub(crate) fn segment_died(&self, id: SegmentId, error: &str) {
        let interface = {
            let registry = self.registry();
            registry.segments.get(&id).map(|segment| segment.raw.interface.clone())
        };
        if let Some(interface) = interface {
            log!("raw:{interface}: its interface is not read any more: {error}");
            self.take_anew(id);
        }
    }
}
