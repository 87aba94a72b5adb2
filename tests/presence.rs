//! Our station on a segment beside real machines: a DHCP server and router, and the kernel's own ARP and
//! NDP.
//!
//! The segment is the wire between host and world; the station stands on the host's interface, fed by its
//! packet socket in real time, and a gateway answers for the addresses it has.

mod net;

use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::Arc;
use std::time;

use datapath::neighbour::Reachability;
use datapath::presence::{Addressing, Change, Heard, Origin, Presence, PresenceConfig, Settled};
use datapath::{
    Body, Datapath, Fate, Gateway, IpMtu, Leg, MAX_FRAME_LEN, MacAddr, Network, NetworkConfig,
    OFFLOAD_HEADER_LEN, Offload, Offloads, Outbox, Port, PortId, PortRole, Received, Silent,
    Uplink,
};
use nat::{Conntrack, Profile, Zone};
use net::{PATIENCE, Running, Scene, WORLD, Who, client, clients, wait_for};
use netns::{HostInterface, Netns, Take, open_interface};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use smoltcp::time::Instant;

const PORT: PortId = PortId(1);
const ZONE: Zone = Zone(0x8001);
const US: [u8; 6] = [0x02, 0x42, 198, 51, 100, 5];

/// By which neighbour the station sends to `to`.
fn way(station: &Station, to: &str) -> Option<IpAddr> {
    let routes = station.presence.routes();
    datapath::hop::next_hop(routes, to.parse().unwrap(), |_| Reachability::Unknown)
}

/// The station, with all it takes.
struct Station {
    interface: HostInterface,
    presence: Presence,
    datapath: Datapath,
    out: Outbox,
    began: time::Instant,
    changes: Vec<Change>,
}

fn config() -> PresenceConfig {
    PresenceConfig {
        zone: ZONE,
        port: PORT,
        mac: MacAddr(US),
        mtu: IpMtu::ETHERNET,
        v4: Addressing::None,
        v6: Addressing::None,
        shown: Vec::new(),
        hostname: Some("pontoon".to_owned()),
        seed: 7,
    }
}

fn given<A: std::str::FromStr<Err = ()>>(addr: &str) -> Addressing<A> {
    Addressing::Static { addresses: vec![addr.parse().unwrap()], gateway: None }
}

impl Station {
    fn new(scene: &Scene, config: PresenceConfig) -> Self {
        Self::on(&scene.host, "up0", config)
    }

    fn on(netns: &Netns, ifname: &str, config: PresenceConfig) -> Self {
        let take = Take::Stations(vec![US]);
        let interface = netns.enter(|| open_interface(ifname, &take, 1)).unwrap();
        let network = Network::of_segment(ZONE, Arc::new(Conntrack::new(16, Profile::Rfc)));
        let gateway = Arc::default();
        let mut datapath = Datapath::new(
            Arc::new(network),
            Arc::new(network_config(&[], false)),
            Arc::clone(&gateway),
        );
        let port = Port {
            role: PortRole::Interface,
            mtu: IpMtu::ETHERNET,
            offloads: Offloads::Header,
            mac: MacAddr(US),
            addresses: Vec::new(),
        };
        datapath.attach(PORT, port, Arc::default());
        Self {
            interface,
            presence: Presence::new(config, gateway, Instant::ZERO),
            datapath,
            out: Outbox::default(),
            began: time::Instant::now(),
            changes: Vec::new(),
        }
    }

    fn now(&self) -> Instant {
        Instant::from_micros(i64::try_from(self.began.elapsed().as_micros()).unwrap())
    }

    /// Lives until `holds`.
    #[track_caller]
    fn live_until(&mut self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let deadline = time::Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(time::Instant::now() < deadline, "never {what}: {:?}", self.presence.rows());
            self.turn();
        }
    }

    /// One turn of what a worker does.
    fn turn(&mut self) {
        let mut buffer = vec![0; OFFLOAD_HEADER_LEN + MAX_FRAME_LEN];
        let queue = &self.interface.queues[0];
        let mut fds = [PollFd::new(queue.as_fd(), PollFlags::POLLIN)];
        // A bound, so that what else is waited for is looked at.
        poll(&mut fds, PollTimeout::from(20u8)).unwrap();
        let now = self.now();
        for _ in 0..64 {
            let Ok(len) = netns::recv_frame(&self.interface.queues[0], &mut buffer) else { break };
            let (header, frame) = buffer[..len].split_first_chunk().unwrap();
            let Ok(offload) = Offload::parse(header) else { continue };
            let received = Received { port: PORT, place: 0, frame, offload };
            if self.presence.handle(&received, now, &mut self.out) == Heard::Pass {
                let decision = self.datapath.ingress(&received, now, &mut self.out, &mut Silent);
                if matches!(decision, datapath::Decision::Flow(..) | datapath::Decision::Cross(..))
                {
                    self.datapath.decided(PORT, Fate::Consumed);
                }
            }
            self.flush();
        }
        self.presence.handle_timeout(now, &mut self.out);
        self.datapath.handle_timeout(now, &mut self.out);
        self.flush();
    }

    fn flush(&mut self) {
        let changes = self.presence.changes();
        if !changes.is_empty() {
            self.datapath.configure(Arc::new(network_config(
                &self.presence.addresses(),
                self.presence.link_local().is_some(),
            )));
            self.changes.extend(changes);
        }
        for departure in self.out.departures().to_vec() {
            let Body::Built(built) = departure.body else { continue };
            let octets = self.out.with_header(built, departure.offload);
            netns::send_frame(&self.interface.queues[0], octets).unwrap();
        }
        self.out.clear();
    }

    fn leave(&mut self) {
        self.presence.leave(self.now(), &mut self.out);
        self.flush();
    }

    fn addresses(&self) -> Vec<String> {
        self.presence.addresses().iter().map(ToString::to_string).collect()
    }

    fn settled(&self, wanted: Settled) -> bool {
        let is = |change: &Change| matches!(change, Change::Conflict { settled, .. } if *settled == wanted);
        self.changes.iter().any(is)
    }
}

fn network_config(addresses: &[smoltcp::wire::IpCidr], link_local: bool) -> NetworkConfig {
    NetworkConfig {
        gateway: Some(Gateway { mac: MacAddr(US), addresses: addresses.to_vec() }),
        uplink: Uplink::None,
        mtu: IpMtu::ETHERNET,
        host_addresses: Vec::new(),
        isolated_from: Vec::new(),
        leg: Leg::Uplink(datapath::Outside { link_local, ..datapath::Outside::default() }),
    }
}

/// Runs a program in the world; its output.
fn in_world(scene: &Scene, line: &str) -> String {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    let output = scene.world.with(|| command.args(words).output()).unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A DHCP server and router in the world.
fn dnsmasq(scene: &Scene, more: &[&str]) -> Option<Running> {
    let mut command = Command::new(client("dnsmasq")?);
    command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root"]);
    command.args(["--interface=down0", "--bind-interfaces", "--no-ping", "--log-dhcp"]);
    command.args(["--log-facility=-", "--pid-file="]).args(more);
    command.arg(format!("--dhcp-leasefile={}", scene.file("leases").display()));
    let server = Running::start(&scene.world, command);
    server.says("started");
    Some(server)
}

/// The world finds the station by ARP or NDP. (What becomes of the packet itself is not for us to say.)
#[track_caller]
fn is_found(station: &mut Station, scene: &Scene, addr: &str) {
    let mut ping = Command::new("ping");
    ping.args(["-c5", "-W1", addr]);
    let ping = Running::start(&scene.world, ping);
    station.live_until("found", |_| {
        let neighbours = in_world(scene, "ip neigh");
        neighbours.lines().any(|line| line.starts_with(addr) && line.contains("02:42:c6:33:64:05"))
    });
    drop(ping);
}

#[test]
fn a_lease_of_a_real_server_is_had_used_renewed_and_given_back() {
    let (true, Some(scene)) = (clients(&["dnsmasq", "ping"]), Scene::new(Who::Root)) else {
        return;
    };
    let server = dnsmasq(
        &scene,
        &[
            "--dhcp-range=198.51.100.50,198.51.100.59,255.255.255.0,120",
            "--dhcp-option=option:router,198.51.100.2",
            "--dhcp-option=option:dns-server,198.51.100.53",
            "--dhcp-option=option:mtu,1400",
            "--dhcp-option=option:classless-static-route,203.0.113.0/24,198.51.100.9,0.0.0.0/0,198.51.100.2",
            // T1 of RFC 2131 §4.4.5, so that the renewal is seen.
            "--dhcp-option=option:T1,12",
            "--dhcp-option=option:T2,60",
        ],
    );
    let Some(server) = server else { return };
    let mut station = Station::new(&scene, PresenceConfig { v4: Addressing::Auto, ..config() });
    station.live_until("an address", |station| !station.addresses().is_empty());
    let address = station.addresses().remove(0);
    let (addr, len) = address.split_once('/').unwrap();
    assert!(addr.starts_with("198.51.100.5") && len == "24", "{address}");
    assert_eq!(station.presence.mtu(), IpMtu(1400));
    assert_eq!(station.presence.dns(), ["198.51.100.53".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(way(&station, "203.0.113.7"), Some("198.51.100.9".parse().unwrap()));
    assert_eq!(way(&station, "192.0.2.1"), Some(WORLD.parse().unwrap()));
    let leases = std::fs::read_to_string(scene.file("leases")).unwrap();
    assert!(leases.contains(addr) && leases.contains("pontoon"), "{leases}");

    // It is there for others.
    is_found(&mut station, &scene, addr);

    let acks = || server.written().matches("DHCPACK(down0)").count();
    station.live_until("renewed", |_| acks() >= 2);
    assert_eq!(station.addresses()[0], address);
    station.leave();
    station.live_until("given back", |_| server.written().contains("DHCPRELEASE(down0)"));
    assert_eq!(std::fs::read_to_string(scene.file("leases")).unwrap(), "");
    server.interrupt();
}

/// A network that is the segment itself: a container of it asks the segment's own server, and has its lease.
#[test]
fn a_container_on_the_segment_leases_an_address_by_itself() {
    let (true, Some(scene)) = (clients(&["dnsmasq", "ping", "sleep"]), Scene::new(Who::Root))
    else {
        return;
    };
    let scene = scene.env("PONTOON_IDLE_EXIT", "1");
    let range = "--dhcp-range=198.51.100.50,198.51.100.59,255.255.255.0,120";
    let Some(server) = dnsmasq(&scene, &[range]) else { return };
    scene.run(["network", "create", "--uplink", "bridge:up0", "seg"]).succeeded();
    let run =
        ["run", "--network", "seg", "--mac-address", "02:42:c6:33:64:05", "--", "sleep", "600"];
    let container = scene.start(run);
    wait_for("the container", || scene.json(["ps"])[0]["Status"] == "up");
    let target = scene.json(["ps"])[0]["Target"].clone();
    let pid = target.as_str().and_then(|target| target.strip_prefix("pid:")).unwrap().to_owned();
    let inside = Netns::of_pid(pid.parse().unwrap()).unwrap();
    let auto = PresenceConfig { v4: Addressing::Auto, ..config() };
    let mut station = Station::on(&inside, "eth0", auto);
    station.live_until("an address", |station| !station.addresses().is_empty());
    let addr = station.addresses().remove(0).replace("/24", "");
    assert!(addr.starts_with("198.51.100.5"), "{addr}");
    is_found(&mut station, &scene, &addr);
    station.leave();
    station.live_until("given back", |_| server.written().contains("DHCPRELEASE(down0)"));
    server.interrupt();
    drop(container);
    wait_for("the endpoint to go", || scene.json(["ps"]) == serde_json::json!([]));
    scene.run(["network", "rm", "seg"]).succeeded();
    scene.is_clean();
}

#[test]
fn an_address_the_kernel_has_is_declined_and_another_is_leased() {
    let (true, Some(scene)) = (clients(&["dnsmasq", "ip"]), Scene::new(Who::Root)) else { return };
    // The kernel answers probes for any address that is its own, whatever interface it is on.
    in_world(&scene, "ip address add 198.51.100.51/32 dev lo");
    let server = dnsmasq(
        &scene,
        &[
            "--dhcp-range=198.51.100.50,198.51.100.59,255.255.255.0,120",
            "--dhcp-host=02:42:c6:33:64:05,198.51.100.51",
        ],
    );
    let Some(server) = server else { return };
    let mut station = Station::new(&scene, PresenceConfig { v4: Addressing::Auto, ..config() });
    station
        .live_until("declined", |_| server.written().contains("DHCPDECLINE(down0) 198.51.100.51"));
    assert!(station.settled(Settled::Avoided), "{:?}", station.changes);
    assert!(station.addresses().is_empty());
    station.live_until("another", |station| !station.addresses().is_empty());
    assert_ne!(station.addresses(), ["198.51.100.51/24"]);
    server.interrupt();
}

#[test]
fn a_real_routers_prefix_makes_an_address_and_a_way_out() {
    let (true, Some(scene)) = (clients(&["dnsmasq", "ip", "ping"]), Scene::new(Who::Root)) else {
        return;
    };
    in_world(&scene, "ip -6 address add fe80::2/64 dev down0 nodad");
    in_world(&scene, "ip -6 address add 2001:db8:77::2/64 dev down0 nodad");
    let server = dnsmasq(
        &scene,
        &[
            "--enable-ra",
            "--dhcp-range=2001:db8:77::,ra-only,64,7200",
            "--ra-param=down0,mtu:1420,high,10,1800",
            "--dhcp-option=option6:dns-server,[2001:db8:77::53]",
        ],
    );
    let Some(server) = server else { return };
    let mut station = Station::new(&scene, PresenceConfig { v6: Addressing::Auto, ..config() });
    station.live_until("an address", |station| !station.addresses().is_empty());
    assert_eq!(station.addresses(), ["2001:db8:77:0:42:c6ff:fe33:6405/64"]);
    let gained = Change::Gained {
        address: "2001:db8:77:0:42:c6ff:fe33:6405/64".parse().unwrap(),
        origin: Origin::Advertised,
    };
    assert!(station.changes.contains(&gained), "{:?}", station.changes);
    assert_eq!(station.presence.mtu(), IpMtu(1420));
    assert_eq!(station.presence.dns(), ["2001:db8:77::53".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(way(&station, "2001:db8:ffff::1"), Some("fe80::2".parse().unwrap()));
    is_found(&mut station, &scene, "2001:db8:77:0:42:c6ff:fe33:6405");
    server.interrupt();
}

/// RFC 4862 §5.4: the kernel asks for our link-local address, and hears nothing before it is ours.
#[test]
fn a_tentative_link_local_address_is_not_answered_for() {
    let (true, Some(scene)) = (clients(&["ip", "ping"]), Scene::new(Who::Root)) else { return };
    in_world(&scene, "ip -6 address add fe80::2/64 dev down0 nodad");
    let own = "fe80::42:c6ff:fe33:6405";
    let neighbour = || in_world(&scene, &format!("ip -6 neigh show {own} dev down0"));
    // Without IPv6 it is never ours.
    let without = PresenceConfig { v4: given("198.51.100.5/24"), ..config() };
    for (config, ours) in
        [(without, false), (PresenceConfig { v6: given("2001:db8:7::5/64"), ..config() }, true)]
    {
        in_world(&scene, &format!("ip -6 neigh flush {own} dev down0"));
        let mut station = Station::new(&scene, config);
        let ask = || {
            let mut ping = Command::new("ping");
            ping.args(["-6", "-c9", "-W1", &format!("{own}%down0")]);
            Running::start(&scene.world, ping)
        };
        let asking = ask();
        let mut early = String::new();
        station.live_until("asked for in vain, or ours", |station| {
            let ours = station.presence.link_local().is_some();
            if neighbour().contains("lladdr") && !ours {
                early = neighbour();
            }
            ours || neighbour().contains("FAILED")
        });
        assert_eq!((early.as_str(), station.presence.link_local().is_some()), ("", ours));
        drop(asking);
        if ours {
            let asking = ask();
            station.live_until("found", |_| neighbour().contains("lladdr 02:42:c6:33:64:05"));
            drop(asking);
        }
    }
}

#[test]
fn an_address_the_kernel_has_is_not_taken_in_either_family() {
    let (true, Some(scene)) = (clients(&["ip"]), Scene::new(Who::Root)) else { return };
    let v4 = PresenceConfig { v4: given("198.51.100.2/24"), ..config() };
    let v6 = PresenceConfig { v6: given("2001:db8:7::2/64"), ..config() };
    for config in [v4, v6] {
        let mut station = Station::new(&scene, config);
        station.live_until("a conflict", |station| station.settled(Settled::Avoided));
        assert!(station.addresses().is_empty());
        assert!(!station.changes.iter().any(|change| matches!(change, Change::Lost { .. })));
    }
}

/// The kernel's duplicate address detection against an address of ours: the gateway answers, the kernel
/// leaves it.
#[test]
fn the_kernel_does_not_take_an_address_of_ours() {
    let (true, Some(scene)) = (clients(&["ip", "ping"]), Scene::new(Who::Root)) else { return };
    let both =
        PresenceConfig { v4: given("198.51.100.5/24"), v6: given("2001:db8:7::5/64"), ..config() };
    let mut station = Station::new(&scene, both);
    station.live_until("two addresses", |station| station.addresses().len() == 2);
    in_world(&scene, "ip -6 address add 2001:db8:7::5/64 dev down0");
    station.live_until("left alone", |_| {
        in_world(&scene, "ip -6 address show dev down0").contains("dadfailed")
    });
    assert_eq!(station.addresses(), ["198.51.100.5/24", "2001:db8:7::5/64"]);

    // In IPv4 the kernel asks nobody: it says it has the address, and we defend it.
    in_world(&scene, "ip address add 198.51.100.5/24 dev down0");
    // Each question of its own is a claim.
    let claim = || in_world(&scene, "ping -c1 -W1 -I 198.51.100.5 198.51.100.77");
    claim();
    station.live_until("defended", |station| station.settled(Settled::Defended));
    claim();
    assert_eq!(station.addresses(), ["198.51.100.5/24", "2001:db8:7::5/64"]);
}
