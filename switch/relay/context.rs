//! What a packet or an event is handled with, and what it says.

use std::net::IpAddr;

use datapath::{Datapath, MacAddr, Offload, Outbox, Packet, Received};
use nat::{TransportAddr, Zone};
use smoltcp::time::Instant;

/// What a packet or an event is handled with.
#[derive(Debug)]
pub struct Context<'a> {
    /// The network it belongs to.
    pub dp: &'a mut Datapath,
    /// Where frames for its ports go.
    pub out: &'a mut Outbox,
    /// The time.
    pub now: Instant,
}

impl Context<'_> {
    pub(crate) fn own_mac(&self) -> Option<MacAddr> {
        self.dp.config().gateway.as_ref().map(|gateway| gateway.mac)
    }

    pub(crate) fn zone(&self) -> Zone {
        self.dp.network().zone
    }

    /// Resets a TCP segment nobody waits for.
    pub(crate) fn reset(&mut self, received: &Received<'_>, packet: &Packet) {
        let Some(own_mac) = self.own_mac() else { return };
        if let Some(built) = datapath::reset::reset(self.out, own_mac, packet, received.frame) {
            self.dp.send_to(built, packet.src, Offload::NONE, self.now, self.out);
        }
    }

    /// A client's address as its packets inside carry it: its own, if it is one the container can
    /// answer by its default route. A client on the container's own network shows the address it used
    /// (RFC 4787 REQ-9a: hairpin with the external source); one that is the host by loopback, or of the
    /// other family, shows the gateway's.
    pub(crate) fn as_seen_inside(
        &self,
        client: TransportAddr,
        used: IpAddr,
        inside: IpAddr,
    ) -> Option<TransportAddr> {
        let gateway = self.dp.config().gateway.as_ref()?;
        let routable = |addr: IpAddr| {
            addr.is_ipv4() == inside.is_ipv4()
                && !datapath::packet::is_martian_destination(addr)
                && !gateway.on_link(addr)
        };
        let addr = [client.addr, used]
            .into_iter()
            .find(|addr| routable(*addr))
            .filter(|addr| *addr == client.addr || gateway.on_link(client.addr))
            .or_else(|| gateway.source_for(inside))?;
        Some(TransportAddr::new(addr, client.port))
    }
}

/// What poll said of a socket.
#[derive(Clone, Copy, Debug, Default)]
pub struct Readiness {
    /// There is something to read.
    pub readable: bool,
    /// There is room to write.
    pub writable: bool,
    /// The far side has finished, or there is an error.
    pub hung_up: bool,
    /// Urgent octets are on the way, at which a read stops short.
    pub urgent: bool,
}

/// A network with one container, whose clock stands still until it is told: what the tests of this crate
/// work on. Nothing but the loopback is touched.
#[cfg(test)]
pub(crate) mod rig {
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    use datapath::stats::PortCounters;
    use datapath::{
        Datapath, Gateway, IpMtu, Leg, MacAddr, Network, NetworkConfig, Offloads, Outbox, Port,
        PortId, PortRole, Uplink,
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
            gateway: Some(Gateway {
                mac: GATEWAY,
                addresses: vec!["192.0.2.1/24".parse().unwrap()],
            }),
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
}
