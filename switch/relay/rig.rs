//! A network with one container, whose clock stands still until it is told: what the tests of this crate
//! work on. Nothing but the loopback is touched.

use std::net::Ipv4Addr;
use std::sync::Arc;

use datapath::stats::PortCounters;
use datapath::{
    Datapath, Gateway, IpMtu, Leg, MacAddr, Network, NetworkConfig, Offloads, Outbox, Port, PortId,
    PortRole, Uplink,
};
use nat::{Conntrack, Profile, Zone};
use smoltcp::time::Instant;

pub(crate) const PORT: PortId = PortId(1);
pub(crate) const ZONE: Zone = Zone(1);
pub(crate) const CONTAINER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
pub(crate) const GATEWAY: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
pub(crate) const STATION: MacAddr = MacAddr([2, 0, 0, 0, 0, 10]);

/// Such a network at `now`, with room for so many tracked flows.
pub(crate) fn network(max_tracked: usize, now: Instant) -> (Datapath, Outbox) {
    let conntrack = Arc::new(Conntrack::new(max_tracked, Profile::Rfc));
    let network = Arc::new(Network::new(ZONE, conntrack));
    let config = NetworkConfig {
        gateway: Some(Gateway { mac: GATEWAY, addresses: vec!["192.0.2.1/24".parse().unwrap()] }),
        uplink: Uplink::Sockets,
        mtu: IpMtu(1500),
        host_addresses: Vec::new(),
        isolated_from: Vec::new(),
        leg: Leg::Inside,
    };
    let mut dp = Datapath::new(network, Arc::new(config), Arc::<PortCounters>::default());
    let port = Port {
        role: PortRole::Container,
        mtu: IpMtu(1500),
        offloads: Offloads::Header,
        mac: STATION,
        addresses: vec![CONTAINER.into()],
    };
    dp.attach(PORT, port, Arc::default());
    let mut out = Outbox::default();
    dp.introduce(PORT, now, &mut out);
    out.clear();
    (dp, out)
}
