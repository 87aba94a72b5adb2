//! What the switch knows, for listings: stations, neighbours, flows, counts.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use datapath::{DropReason, PortCounters, PortId, PortTotals};
use nat::{Direction, Nat, Zone};
use smoltcp::time::Instant;

use crate::control::{FdbRow, FlowRow, NeighbourRow, NetworkId, PortStats, WorkerStats};
use crate::switch::Switch;

impl Switch {
    /// The stations of a network, the gateway's own first.
    pub fn fdb(&self, network: NetworkId) -> Vec<FdbRow> {
        let state = self.state();
        let Some(known) = state.networks.get(&network) else { return Vec::new() };
        let now = self.now();
        let own = known.config.gateway.iter().map(|gateway| FdbRow {
            mac: gateway.mac,
            port: PortId::GATEWAY,
            permanent: true,
            age: Duration::ZERO,
        });
        let mut learned: Vec<_> = known
            .network
            .fdb
            .list()
            .into_iter()
            .map(|(mac, port, seen)| FdbRow { mac, port, permanent: false, age: since(seen, now) })
            .collect();
        learned.sort_by_key(|row| (row.port, row.mac));
        own.chain(learned).collect()
    }

    /// The gateway's neighbours on a network.
    pub fn neighbours(&self, network: NetworkId) -> Vec<NeighbourRow> {
        let state = self.state();
        let Some(known) = state.networks.get(&network) else { return Vec::new() };
        let mut rows: Vec<_> = known
            .network
            .neighbours
            .list(self.now())
            .into_iter()
            .map(|(addr, mac, state)| NeighbourRow { addr, mac, state: state.name() })
            .collect();
        rows.sort_by_key(|row| row.addr);
        rows
    }

    /// The flows of a network, which begin or are answered there, or of all.
    pub fn flows(&self, network: Option<NetworkId>) -> Vec<FlowRow> {
        self.flow_rows(network, &HashMap::new())
    }

    /// The same, and why each is translated as it is.
    pub fn flows_and_why(&self, network: Option<NetworkId>) -> Vec<FlowRow> {
        let nats = {
            let state = self.state();
            let stations = state.networks.values().filter_map(|known| known.station.as_ref());
            stations.map(|station| station.nat()).map(|nat| (nat.uplink(), nat)).collect()
        };
        self.flow_rows(network, &nats)
    }

    fn flow_rows(
        &self,
        network: Option<NetworkId>,
        asked: &HashMap<Zone, Arc<Nat>>,
    ) -> Vec<FlowRow> {
        let now = self.now();
        let timeouts = |entry: &nat::Entry| match entry.owner() {
            nat::Owner::NONE => *self.conntrack.timeouts(),
            _ => self.shared.policy(entry.zone).timeouts,
        };
        let entries = self.conntrack.list(network.map(|network| Zone(network.0)));
        let mut rows: Vec<_> = entries
            .iter()
            .map(|entry| FlowRow {
                network: NetworkId(entry.zone.0),
                answered_in: NetworkId(entry.reply_zone().0),
                original: entry.original,
                reply: entry.reply,
                state: entry.state_name(),
                replied: entry.replied(),
                assured: entry.assured(),
                expires_in: entry.left(&timeouts(entry), now).into(),
                sent: entry.counts(Direction::Original),
                received: entry.counts(Direction::Reply),
                why: asked.get(&entry.nat()).map_or_else(Vec::new, |nat| {
                    nat.explain(entry).iter().map(ToString::to_string).collect()
                }),
            })
            .collect();
        rows.sort_by_key(|row| (row.network, row.original.protocol, row.original.src));
        rows
    }

    /// The counts of a network's ports, the gateway ([`PortId::GATEWAY`]) among them.
    pub fn stats(&self, network: NetworkId) -> Vec<(PortId, PortStats)> {
        let state = self.state();
        let Some(known) = state.networks.get(&network) else { return Vec::new() };
        let gateway = (PortId::GATEWAY, sum(&known.gateway));
        let ports = known.ports.iter().map(|(id, (counters, _))| (*id, sum(counters)));
        std::iter::once(gateway).chain(ports).collect()
    }

    /// What the workers did.
    pub fn worker_stats(&self) -> Vec<WorkerStats> {
        self.workers
            .iter()
            .map(|worker| WorkerStats {
                turns: worker.tally.turns.load(Relaxed),
                sleeps: worker.tally.sleeps.load(Relaxed),
                flows: worker.tally.flows.load(Relaxed),
                spliced: worker.tally.spliced.load(Relaxed),
                spliced_octets: worker.tally.spliced_octets.load(Relaxed),
            })
            .collect()
    }
}

fn since(earlier: Instant, later: Instant) -> Duration {
    if later > earlier { Duration::from(later - earlier) } else { Duration::ZERO }
}

fn sum(counters: &[Arc<PortCounters>]) -> PortStats {
    let mut totals = PortTotals::default();
    counters.iter().for_each(|counters| counters.add_to(&mut totals));
    let named = |counts: &[u64]| {
        DropReason::ALL
            .iter()
            .zip(counts)
            .filter(|(_, count)| **count > 0)
            .map(|(reason, count)| (reason.name(), *count))
            .collect()
    };
    PortStats {
        rx_frames: totals.rx_frames,
        rx_octets: totals.rx_octets,
        tx_frames: totals.tx_frames,
        tx_octets: totals.tx_octets,
        forwarded: totals.forwarded,
        consumed: totals.consumed,
        dropped: named(&totals.dropped),
        tx_dropped: named(&totals.tx_dropped),
    }
}
