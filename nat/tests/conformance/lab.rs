//! A NAT between two networks of containers and the world.

use std::net::IpAddr;
use std::sync::Arc;

use nat::{
    Account, Buffer, Config, Conntrack, Destination, Egress, Headers, Ingress, Match, Nat, NoNotes,
    Note, Profile, Protocol, Refused, Rule, Rules, Sent, Source, Undone, Zone,
};
use smoltcp::time::{Duration, Instant};

use crate::wire::{self, Seen};

/// The network of Alice (172.18.0.2, fd00:18::2) and Bob (172.18.0.3, fd00:18::3).
pub(crate) const NET: Zone = Zone(1);
/// The network of Carol (172.19.0.2, fd00:19::2).
pub(crate) const OTHER: Zone = Zone(2);
/// The uplink, with 203.0.113.1 and 2001:db8:1::1.
pub(crate) const UPLINK: Zone = Zone(100);

pub(crate) const ALICE: Account = Account(2);

pub(crate) const EXTERNAL: &str = "203.0.113.1";
pub(crate) const EXTERNAL6: &str = "2001:db8:1::1";

/// What a data path keeps in front of a packet.
const ETHERNET: [u8; 14] = [0xee; 14];

/// A packet where a data path has it: in a frame, with nothing behind it.
pub(crate) struct Frame(Vec<u8>);

impl Frame {
    pub(crate) fn of(packet: &[u8]) -> Self {
        Self([&ETHERNET, packet].concat())
    }
}

impl Buffer for Frame {
    fn octets(&self) -> &[u8] {
        &self.0[ETHERNET.len()..]
    }

    fn octets_mut(&mut self) -> &mut [u8] {
        &mut self.0[ETHERNET.len()..]
    }

    fn resize(&mut self, len: usize) -> bool {
        // What is added may be anything.
        self.0.resize(ETHERNET.len() + len, 0xbb);
        true
    }
}

pub(crate) struct Lab {
    pub(crate) nat: Nat,
    pub(crate) now: Instant,
    pub(crate) mtu: u16,
    pub(crate) undone: Undone,
    pub(crate) notes: Vec<Note>,
}

/// Masquerades whatever leaves by the uplink.
pub(crate) fn masquerade() -> Rule<Source> {
    Rule::new(Match { to: Some(UPLINK), ..Match::ANY }, Source::Masquerade)
}

/// Publishes external ports as those of a container from `to` on.
pub(crate) fn publish(
    protocol: Protocol,
    ports: std::ops::RangeInclusive<u16>,
    to: &str,
) -> Rule<Destination> {
    let to = wire::at(to);
    let dst = if to.is_ipv6() { format!("{EXTERNAL6}/128") } else { format!("{EXTERNAL}/32") };
    let matches = Match {
        dst: Some(dst.parse().unwrap()),
        protocol: Some(protocol),
        dst_ports: ports,
        ..Match::ANY
    };
    let (addr, first_port) = (to.ip(), Some(to.port()));
    let account = account_of(addr);
    Rule::new(matches, Destination::To { addr, first_port, account, zone: zone_of(addr) })
}

pub(crate) fn zone_of(addr: IpAddr) -> Zone {
    match addr {
        IpAddr::V4(addr) => match addr.octets() {
            [172, 18, ..] => NET,
            [172, 19, ..] => OTHER,
            _ => UPLINK,
        },
        IpAddr::V6(addr) => match addr.segments() {
            [0xfd00, 0x18, ..] => NET,
            [0xfd00, 0x19, ..] => OTHER,
            _ => UPLINK,
        },
    }
}

fn account_of(addr: IpAddr) -> Account {
    let last = match addr {
        IpAddr::V4(addr) => addr.octets()[3],
        IpAddr::V6(addr) => addr.octets()[15],
    };
    Account(u32::from(zone_of(addr).0) << 16 | u32::from(last))
}

impl Default for Lab {
    fn default() -> Self {
        Self::with(Config::new(UPLINK, *b"sixteen octets!!"))
    }
}

impl Lab {
    pub(crate) fn with(config: Config) -> Self {
        Self::new(Conntrack::new(200_000, Profile::Rfc), config)
    }

    pub(crate) fn new(conntrack: Conntrack, config: Config) -> Self {
        let nat = Nat::new(Arc::new(conntrack), config);
        nat.set_rules(Rules::new(vec![], vec![masquerade()]));
        let (now, undone) = (Instant::from_secs(1000), Undone::default());
        Self { nat, now, mtu: 1500, undone, notes: Vec::new() }
    }

    pub(crate) fn publishing(rules: Vec<Rule<Destination>>) -> Self {
        let lab = Self::default();
        lab.nat.set_rules(Rules::new(rules, vec![masquerade()]));
        lab
    }

    pub(crate) fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    pub(crate) fn wait_millis(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
    }

    /// A packet from a container; where it goes out is told by its destination.
    pub(crate) fn leave(&mut self, packet: &[u8]) -> Result<Vec<u8>, Refused> {
        let src = wire::read_quoted(packet, false).src.ip();
        let (zone, account) = (zone_of(src), account_of(src));
        self.pass(packet, &Ingress { zone, inside: true, account, mtu: 1500 })
    }

    /// A packet from the world.
    pub(crate) fn arrive(&mut self, packet: &[u8]) -> Result<Vec<u8>, Refused> {
        let ingress = Ingress { zone: UPLINK, inside: false, account: Account(0), mtu: self.mtu };
        self.pass(packet, &ingress)
    }

    /// What a container's packet looks like behind the NAT.
    pub(crate) fn out(&mut self, packet: &[u8]) -> Seen {
        wire::read(&self.leave(packet).unwrap())
    }

    /// What the world's packet looks like behind the NAT.
    pub(crate) fn back(&mut self, packet: &[u8]) -> Seen {
        wire::read(&self.arrive(packet).unwrap())
    }

    pub(crate) fn pass(&mut self, packet: &[u8], ingress: &Ingress) -> Result<Vec<u8>, Refused> {
        let mut pieces = self.pass_in_pieces(packet, ingress)?;
        assert_eq!(pieces.len(), 1, "one packet");
        Ok(pieces.remove(0))
    }

    pub(crate) fn pass_in_pieces(
        &mut self,
        packet: &[u8],
        ingress: &Ingress,
    ) -> Result<Vec<Vec<u8>>, Refused> {
        self.pass_whole(packet, ingress, None)
    }

    /// Passes both hooks, with a route between that knows three prefixes. What is refused must read as
    /// it came.
    pub(crate) fn pass_whole(
        &mut self,
        packet: &[u8],
        ingress: &Ingress,
        largest: Option<u16>,
    ) -> Result<Vec<Vec<u8>>, Refused> {
        let mut frame = Frame::of(packet);
        let result = self.hooks(&mut frame, ingress, largest);
        assert!(frame.0.starts_with(&ETHERNET), "what is in front is not the NAT's");
        if result.is_err() {
            assert!(frame.octets() == packet, "a refused packet reads as it came");
        }
        result
    }

    fn hooks(
        &mut self,
        frame: &mut Frame,
        ingress: &Ingress,
        largest: Option<u16>,
    ) -> Result<Vec<Vec<u8>>, Refused> {
        let (nat, now, undone) = (&self.nat, self.now, self.undone);
        let mut passage = nat.prerouting(frame, undone, ingress, now, &mut self.notes)?;
        let to = passage.destination();
        let zone = zone_of(to);
        let addresses = [EXTERNAL.parse().unwrap(), EXTERNAL6.parse().unwrap()];
        if addresses.contains(&to) {
            return Err(nat.unsolicited(frame.octets(), &passage, now));
        }
        let inside = zone != UPLINK;
        let mtu = if inside { 1500 } else { self.mtu };
        let egress = Egress { zone, inside, mtu, addresses: &addresses };
        match nat.postrouting(frame, &mut passage, &egress, largest, now, &mut NoNotes)? {
            Sent::Whole | Sent::LongSegments => Ok(vec![frame.octets().to_vec()]),
            Sent::Pieces(pieces) => Ok(pieces),
        }
    }

    /// Everything that has been silent for too long is forgotten.
    pub(crate) fn expire(&self) {
        (0..200).for_each(|_| self.nat.expire(self.now));
    }

    pub(crate) fn flows(&self) -> usize {
        self.nat.conntrack().len()
    }

    pub(crate) fn parse(packet: &[u8]) -> Headers {
        Headers::parse(packet).unwrap()
    }
}
