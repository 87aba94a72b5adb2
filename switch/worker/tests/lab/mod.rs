//! A host, a world behind it, and containers on a switch, each a namespace of its own.
//!
//! ```text
//!   containers ── switch (threads of the host's namespace) ── host 198.51.100.1 ══ world 198.51.100.2
//!   172.18.0.x    gateway 172.18.0.1, fd00:18::1              2001:db8:7::1         2001:db8:7::2
//! ```

#![allow(dead_code, unreachable_pub, missing_debug_implementations, missing_docs)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use datapath::{Gateway, IpMtu, MacAddr, Offloads, PortId, PortRole, Uplink};
use netns::{EndpointConfig, Kind, Netns, Opened};
use worker::{Config, NetworkConfig, NetworkId, PortConfig, Switch};

pub const NET: NetworkId = NetworkId(1);
pub const HOST: &str = "198.51.100.1";
pub const HOST6: &str = "2001:db8:7::1";
pub const WORLD: &str = "198.51.100.2";
pub const WORLD6: &str = "2001:db8:7::2";
pub const PATIENCE: Duration = Duration::from_secs(10);

pub struct Lab {
    pub switch: Switch,
    pub host: Netns,
    pub world: Netns,
    pub events: crossbeam_channel::Receiver<worker::Event>,
}

pub struct Container {
    pub netns: Netns,
    pub port: PortId,
    pub addr: IpAddr,
    pub addr6: IpAddr,
}

/// Whether namespaces can be made here. Where they were promised, that is a failure.
pub fn possible() -> bool {
    match Netns::create() {
        Ok(_) => true,
        Err(error) => {
            assert!(
                std::env::var_os("PONTOON_REQUIRE_NETNS").is_none(),
                "namespaces were promised: {error}"
            );
            eprintln!("SKIP: {error}");
            false
        }
    }
}

impl Lab {
    pub fn new(workers: usize) -> Self {
        let host = Netns::create().unwrap();
        let world = Netns::create().unwrap();
        netns::link::create_veth_pair("up", &host, "down", &world).unwrap();
        let addresses = [(&host, "up", [HOST, HOST6]), (&world, "down", [WORLD, WORLD6])];
        for (netns, ifname, addresses) in addresses {
            netns
                .enter(|| {
                    netns::link::no_own_link_local(ifname)?;
                    for (addr, len) in addresses.iter().zip([24, 64]) {
                        netns::link::add_address(ifname, format!("{addr}/{len}").parse().unwrap())?;
                    }
                    netns::link::set_up(ifname)
                })
                .unwrap();
        }
        host.with(|| {
            netns::link::add_route("0.0.0.0/0".parse().unwrap(), WORLD.parse().unwrap())
                .map_err(io::Error::other)?;
            // The host lets its users ping, as distributions do.
            std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0")
        })
        .unwrap();
        world
            .with(|| {
                // A router that knows no way says so.
                std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")
            })
            .unwrap();
        await_link(&host, &world);
        let (switch, events) = host
            .with(|| {
                Switch::start(Config {
                    workers,
                    max_tracked: 10_000,
                    max_tracked_per_port: 4000,
                    max_flows: 2000,
                    max_flows_per_port: 1500,
                    busy_poll: Duration::ZERO,
                    cpus: Vec::new(),
                    nice: 0,
                })
            })
            .unwrap();
        switch.set_network(NET, config(Uplink::Sockets));
        Self { switch, host, world, events }
    }

    pub fn container(&self, last: u8, kind: Kind) -> Container {
        self.container_over(last, kind, self.switch.workers(), |queues, _| queues)
    }

    /// A container whose device has so many queues, which the switch gets as `way` makes them.
    pub fn container_over(
        &self,
        last: u8,
        kind: Kind,
        queues: usize,
        way: impl FnOnce(Vec<OwnedFd>, Offloads) -> Vec<OwnedFd>,
    ) -> Container {
        let netns = Netns::create().unwrap();
        let addr: IpAddr = format!("172.18.0.{last}").parse().unwrap();
        let addr6: IpAddr = format!("fd00:18::{last}").parse().unwrap();
        let mac = MacAddr([2, 0x42, 172, 18, 0, last]);
        let endpoint = netns::attach(
            &netns,
            &EndpointConfig {
                ifname: "eth0".into(),
                mac: mac.0,
                mtu: 1500,
                addresses: vec![
                    format!("{addr}/16").parse().unwrap(),
                    format!("{addr6}/64").parse().unwrap(),
                ],
                gateways: vec!["172.18.0.1".parse().unwrap(), "fd00:18::1".parse().unwrap()],
                queues: u16::try_from(queues).unwrap(),
                kind,
            },
        )
        .unwrap();
        let offloads = match endpoint.opened {
            Opened::TapPlain => Offloads::None,
            Opened::TapOffload | Opened::Packet => Offloads::Header,
        };
        let port = self
            .switch
            .add_port(
                NET,
                PortConfig {
                    role: PortRole::Container,
                    mtu: IpMtu(1500),
                    mac,
                    addresses: vec![addr, addr6],
                    offloads,
                    queues: way(endpoint.queues, offloads),
                },
            )
            .unwrap();
        Container { netns, port, addr, addr6 }
    }
}

pub fn config(uplink: Uplink) -> NetworkConfig {
    NetworkConfig {
        gateway: Some(Gateway {
            mac: MacAddr([2, 0x42, 172, 18, 0, 1]),
            addresses: vec!["172.18.0.1/16".parse().unwrap(), "fd00:18::1/64".parse().unwrap()],
        }),
        uplink,
        mtu: IpMtu(1500),
        host_addresses: Vec::new(),
    }
}

/// The end of a pair that was brought up first drops what it is to send until the kernel gets round to
/// its carrier (`linkwatch_event`). An ARP request lost so is repeated after a second.
fn await_link(host: &Netns, world: &Netns) {
    let to = SocketAddr::from((Ipv4Addr::BROADCAST, 9));
    let here = host.with(|| UdpSocket::bind(at(HOST, 0))).unwrap();
    let there = world.with(|| UdpSocket::bind(to)).unwrap();
    here.set_broadcast(true).unwrap();
    there.set_nonblocking(true).unwrap();
    wait_for("the link", || here.send_to(&[0], to).is_ok() && there.recv(&mut [0]).is_ok());
}

/// Runs `work` inside `netns` on a thread of its own; its end is waited for when the handle is joined.
pub fn spawn_in<T: Send + 'static>(
    netns: &Netns,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> thread::JoinHandle<io::Result<T>> {
    let netns = netns.try_clone().unwrap();
    thread::spawn(move || netns.with(work))
}

/// Runs `serve` inside `netns` once it listens: `serve` is given what `listen` made.
pub fn serve<L: Send + 'static, T: Send + 'static>(
    netns: &Netns,
    listen: impl FnOnce() -> io::Result<L> + Send + 'static,
    serve: impl FnOnce(L) -> io::Result<T> + Send + 'static,
) -> thread::JoinHandle<io::Result<T>> {
    let (ready, wait) = mpsc::channel();
    let server = spawn_in(netns, move || {
        let listener = listen()?;
        ready.send(()).map_err(io::Error::other)?;
        serve(listener)
    });
    wait.recv_timeout(PATIENCE).unwrap();
    server
}

/// Waits until `holds` does.
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

pub fn at(addr: &str, port: u16) -> SocketAddr {
    SocketAddr::new(addr.parse().unwrap(), port)
}
