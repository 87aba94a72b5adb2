//! The switch's tables with the names of whom they are about.

use std::collections::BTreeMap;

use datapath::PortId;
use worker::{FlowRow, NetworkId};

use crate::api;
use crate::error::Error;
use crate::mac;
use crate::segment::Segment;
use crate::state::{Daemon, Registry};

impl Daemon {
    /// The stations of a network, or of the segment on an interface, or of all.
    ///
    /// # Errors
    ///
    /// There is no such network or segment.
    pub fn fdb(&self, network: Option<&str>) -> Result<Vec<api::FdbRow>, Error> {
        let mut rows = Vec::new();
        for (number, name) in self.selected(network)? {
            let owners = self.registry().port_names(number);
            rows.extend(self.switch.fdb(number).into_iter().map(|row| api::FdbRow {
                network: name.clone(),
                mac_address: mac::text(row.mac),
                port: row.port.0,
                endpoint: owner(&owners, row.port),
                permanent: row.permanent,
                age: row.age.as_secs_f64(),
            }));
        }
        Ok(rows)
    }

    /// The gateway's neighbours on a network, or on a segment, or on all.
    ///
    /// # Errors
    ///
    /// There is no such network or segment.
    pub fn neighbours(&self, network: Option<&str>) -> Result<Vec<api::NeighbourRow>, Error> {
        let mut rows = Vec::new();
        for (number, name) in self.selected(network)? {
            let neighbours = self.switch.neighbours(number).into_iter();
            rows.extend(neighbours.map(|row| api::NeighbourRow {
                network: name.clone(),
                ip_address: row.addr.to_string(),
                mac_address: row.mac.map(mac::text),
                state: row.state.to_owned(),
            }));
        }
        Ok(rows)
    }

    /// The flows of a network or of a segment, which begin or are answered there, or of all; and `why` they are
    /// translated as they are, if that is asked.
    ///
    /// # Errors
    ///
    /// There is no such network or segment.
    pub fn conntrack(&self, network: Option<&str>, why: bool) -> Result<Vec<api::Flow>, Error> {
        let one = network.map(|_| self.selected(network)).transpose()?;
        let one = one.and_then(|found| found.first().map(|(number, _)| *number));
        let flows = match why {
            true => self.switch.flows_and_why(one),
            false => self.switch.flows(one),
        };
        let names: BTreeMap<_, _> = self.selected(None)?.into_iter().collect();
        let name = |number: NetworkId| names.get(&number).cloned();
        let known = flows.into_iter().filter_map(|row| {
            Some(flow(name(row.network)?, name(row.answered_in).unwrap_or_default(), row))
        });
        Ok(known.collect())
    }

    /// The counts of the ports of a network or of a segment, or of all, and of the workers.
    ///
    /// # Errors
    ///
    /// There is no such network or segment.
    pub fn stats(&self, network: Option<&str>) -> Result<api::Stats, Error> {
        let mut ports = Vec::new();
        for (number, name) in self.selected(network)? {
            let owners = self.registry().port_names(number);
            let reasons = |counts: Vec<(&'static str, u64)>| {
                counts.into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect()
            };
            ports.extend(self.switch.stats(number).into_iter().map(|(port, counts)| {
                api::PortStats {
                    network: name.clone(),
                    port: port.0,
                    endpoint: owner(&owners, port),
                    rx_frames: counts.rx_frames,
                    rx_octets: counts.rx_octets,
                    tx_frames: counts.tx_frames,
                    tx_octets: counts.tx_octets,
                    forwarded: counts.forwarded,
                    consumed: counts.consumed,
                    dropped: reasons(counts.dropped),
                    tx_dropped: reasons(counts.tx_dropped),
                }
            }));
        }
        let workers = self.switch.worker_stats().into_iter().map(|worker| api::WorkerStats {
            turns: worker.turns,
            sleeps: worker.sleeps,
            flows: worker.flows,
            spliced: worker.spliced,
            spliced_octets: worker.spliced_octets,
        });
        Ok(api::Stats { ports, workers: workers.collect() })
    }

    fn selected(&self, network: Option<&str>) -> Result<Vec<(NetworkId, String)>, Error> {
        let registry = self.registry();
        let segment = |segment: &Segment| (segment.id.network(), segment.raw.interface.clone());
        match network {
            Some(name) => match (registry.network(name), registry.segment_on(name)) {
                (Ok(found), _) => Ok(vec![(found.number, found.name.clone())]),
                (Err(_), Some(found)) => Ok(vec![segment(found)]),
                (Err(error), None) => Err(error),
            },
            None => {
                let networks = registry.networks.values().map(|n| (n.number, n.name.clone()));
                Ok(networks.chain(registry.segments.values().map(segment)).collect())
            }
        }
    }
}

impl Registry {
    fn port_names(&self, network: NetworkId) -> BTreeMap<PortId, String> {
        let endpoints = self.on(network).filter_map(|e| Some((e.port?, e.name.clone())));
        let host = self.by_number(network).and_then(|network| network.host_port.as_ref());
        let host = host.map(|host| (host.port, "host".to_owned()));
        let bridged = self.by_number(network).and_then(|network| {
            Some((network.bridged?.port, network.uplink.interface()?.to_owned()))
        });
        let segment = self.segments.values().find(|segment| segment.id.network() == network);
        let segment = segment.map(|segment| (segment.port, segment.raw.interface.clone()));
        let gateway = (PortId::GATEWAY, "gateway".to_owned());
        endpoints.chain(host).chain(bridged).chain(segment).chain([gateway]).collect()
    }
}

/// Whose a port is; nothing where it went while the table was read.
fn owner(owners: &BTreeMap<PortId, String>, port: PortId) -> String {
    owners.get(&port).cloned().unwrap_or_default()
}

fn flow(network: String, answered_in: String, row: FlowRow) -> api::Flow {
    let side = |tuple: nat::Tuple, (packets, octets): (u64, u64)| api::FlowSide {
        src: tuple.src.addr.to_string(),
        dst: tuple.dst.addr.to_string(),
        src_port: tuple.src.port,
        dst_port: tuple.dst.port,
        packets,
        octets,
    };
    let protocol = row.original.protocol;
    api::Flow {
        network,
        zone: row.network.0,
        answered_in,
        reply_zone: row.answered_in.0,
        protocol: protocol.to_string(),
        protocol_number: protocol.number(),
        state: row.state.map(ToOwned::to_owned),
        expires_in: row.expires_in.as_secs(),
        original: side(row.original, row.sent),
        reply: side(row.reply, row.received),
        replied: row.replied,
        assured: row.assured,
        source_nat: row.reply.dst != row.original.src,
        destination_nat: row.reply.src != row.original.dst,
        why: row.why,
    }
}
