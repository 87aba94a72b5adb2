//! What every subject is probed in:
//!
//! ```text
//!  containers ── host 198.51.100.1 ═ up0 ═ router 198.51.100.2 ═ far0 ═ outside 203.0.113.2 and .3
//!               2001:db8:7::1             2001:db8:7::2                2001:db8:9::2 and ::3
//! ```
//! The outside also has stations that are no kernel's, `.66` and `.67`: they hear all and say only what
//! a probe makes them. So has a container whose kernel was told to forget its addresses.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Mutex;
use std::sync::atomic::AtomicU8;
use std::time::Duration;

use netns::{Netns, link};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};

use crate::net::{HOST, HOST6, Running, Scene, WORLD, WORLD6, clients, wait_for};
use crate::packet::Packet;
use crate::subject::Subject;
use crate::wire::Wire;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

use Family::{V4, V6};

impl Family {
    pub(crate) fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { V4 } else { V6 }
    }

    /// Octets of a header without options.
    pub(crate) fn header_len(self) -> usize {
        if self == V4 { 20 } else { 40 }
    }

    fn choose(self, v4: &str, v6: &str) -> IpAddr {
        if self == V4 { v4 } else { v6 }.parse().unwrap()
    }

    /// The host's own address.
    pub(crate) fn host(self) -> IpAddr {
        self.choose(HOST, HOST6)
    }

    /// The router's address on the host's side.
    pub(crate) fn router(self) -> IpAddr {
        self.choose(WORLD, WORLD6)
    }

    /// An outside host with a kernel of its own: 2 or 3.
    pub(crate) fn outside(self, last: u8) -> IpAddr {
        match self {
            V4 => Ipv4Addr::new(203, 0, 113, last).into(),
            V6 => format!("2001:db8:9::{last}").parse().unwrap(),
        }
    }

    /// Where nobody is, on a network the router knows.
    pub(crate) fn nobody(self) -> IpAddr {
        self.outside(250)
    }

    /// Where no route of the router's leads.
    pub(crate) fn nowhere(self) -> IpAddr {
        self.choose("192.0.2.77", "2001:db8:dead::77")
    }
}

#[derive(Debug)]
pub(crate) struct Lab {
    /// Programs that must live as long as the lab; they end before what they are in.
    pub(crate) running: Mutex<Vec<Running>>,
    pub(crate) scene: Scene,
    pub(crate) outside: Netns,
    pub(crate) subject: Subject,
    /// How many containers there have been.
    pub(crate) containers: AtomicU8,
}

/// A network namespace behind the subject.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) netns: Netns,
    pub(crate) v4: IpAddr,
    pub(crate) v6: IpAddr,
    /// Its default router's IPv4 address.
    pub(crate) gateway: IpAddr,
}

/// Somebody who is no kernel.
#[derive(Debug)]
pub(crate) struct Station {
    pub(crate) wire: Wire,
    v4: IpAddr,
    v6: IpAddr,
}

impl Container {
    pub(crate) fn addr(&self, family: Family) -> IpAddr {
        if family == V4 { self.v4 } else { self.v6 }
    }

    pub(crate) fn at(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.addr(family), port)
    }
}

impl Station {
    pub(crate) fn addr(&self, family: Family) -> IpAddr {
        if family == V4 { self.v4 } else { self.v6 }
    }

    pub(crate) fn at(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.addr(family), port)
    }

    /// Waits for a packet to one of its addresses.
    pub(crate) fn wait(
        &self,
        what: &str,
        mut wanted: impl FnMut(&Packet) -> bool,
    ) -> Result<Packet, String> {
        let ours = [self.v4, self.v6];
        self.wire.wait(what, |packet| ours.contains(&packet.dst) && wanted(packet))
    }

    /// Waits for a datagram with this data; returns where it came from and went to.
    pub(crate) fn hears(&self, data: &[u8]) -> Result<(SocketAddr, SocketAddr), String> {
        let what = format!("a datagram {:?}", String::from_utf8_lossy(&data[..data.len().min(40)]));
        let packet = self.wait(&what, |packet| packet.datagram() == Some(data))?;
        Ok((packet.from().unwrap(), packet.to().unwrap()))
    }

    pub(crate) fn says(&self, from: SocketAddr, to: SocketAddr, data: &[u8]) {
        self.wire.send(&Packet::udp(from, to, data));
    }
}

pub(crate) const FAR: &str = "far0";
pub(crate) const NEAR: &str = "near0";

impl Lab {
    /// `None` after saying why there can be none here.
    pub(crate) fn new(subject: Subject, options: &[&str]) -> Option<Self> {
        let (true, Some(scene)) =
            (clients(&["ip", "ping", "traceroute"]), Scene::new(subject.who()))
        else {
            return None;
        };
        let outside = Netns::create().unwrap();
        let lab = Self {
            scene,
            outside,
            subject,
            containers: AtomicU8::new(0),
            running: Mutex::default(),
        };
        lab.connect();
        lab.start(options);
        Some(lab)
    }

    fn connect(&self) {
        let router = &self.scene.world;
        link::create_veth_pair(NEAR, router, FAR, &self.outside).unwrap();
        let up = |netns: &Netns, ifname: &'static str, lasts: &'static [u8]| {
            let set_up = || {
                link::no_own_link_local(ifname)?;
                for last in lasts {
                    for (family, len) in [(V4, 24), (V6, 64)] {
                        let address = format!("{}/{len}", family.outside(*last));
                        link::add_address(ifname, address.parse().unwrap())?;
                    }
                }
                link::set_up(ifname)?;
                netns::interfaces()
            };
            let interfaces = netns.enter(set_up).unwrap();
            interfaces.iter().find(|found| found.name == ifname).unwrap().mac.unwrap()
        };
        up(router, NEAR, &[1]);
        let mac = up(&self.outside, FAR, &[2, 3]);
        let routes = || {
            for family in [V4, V6] {
                let via = family.outside(1);
                link::add_route(link::default_route(via), via).unwrap();
            }
            Ok(())
        };
        self.outside.with(routes).unwrap();
        let mac = mac.map(|octet| format!("{octet:02x}")).join(":");
        for family in [V4, V6] {
            for last in [66, 67] {
                let addr = family.outside(last).to_string();
                let args =
                    ["neigh", "replace", &addr, "lladdr", &mac, "nud", "permanent", "dev", NEAR];
                self.scene.run_in(router, "ip", args).succeeded();
            }
        }
        // A router asks for neighbours from a link-local address, or not at all: RFC 4861 4.3.
        for (netns, ifname, last) in [
            (&self.scene.host, "up0", 1),
            (router, "down0", 2),
            (router, NEAR, 3),
            (&self.outside, FAR, 4),
        ] {
            let address = format!("fe80::{last}/64").parse().unwrap();
            netns.enter(|| link::add_address(ifname, address)).unwrap();
        }
        let unlimited = || {
            // What a router tells is the probe's business, however often.
            fs::write("/proc/sys/net/ipv4/icmp_ratelimit", "0")?;
            fs::write("/proc/sys/net/ipv6/icmp/ratelimit", "0")
        };
        router.with(unlimited).unwrap();
        self.outside.with(unlimited).unwrap();
    }

    pub(crate) fn router(&self) -> &Netns {
        &self.scene.world
    }

    /// What pontoon dropped, for a probe that failed.
    pub(crate) fn dropped(&self) -> String {
        if !self.subject.is_pontoon() {
            return String::new();
        }
        let stats = self.scene.json(["stats"]);
        let ports = stats["Ports"].as_array().unwrap().iter();
        let drops = ports.map(|port| {
            let counts = port["Dropped"].as_object().unwrap().iter();
            let counts =
                counts.filter(|(_, count)| **count != 0).map(|(why, n)| format!("{why}={n}"));
            format!("{} {}", port["Endpoint"], counts.collect::<Vec<_>>().join(" "))
        });
        format!("; dropped: {}", drops.collect::<Vec<_>>().join(", "))
    }

    /// The subject's address that the outside sees.
    pub(crate) fn external(&self, family: Family) -> IpAddr {
        self.subject.external(family)
    }

    /// An outside station: 66 or 67.
    pub(crate) fn outsider(&self, last: u8) -> Station {
        let (v4, v6) = (V4.outside(last), V6.outside(last));
        let wire = Wire::on(&self.outside, FAR, &[v4, v6]);
        let interfaces = self.router().enter(netns::interfaces).unwrap();
        let near = interfaces.iter().find(|found| found.name == NEAR).unwrap();
        wire.set_gateway(near.mac.unwrap());
        Station { wire, v4, v6 }
    }

    /// A container whose kernel has forgotten its addresses.
    pub(crate) fn insider(&self, name: &str) -> Result<Station, String> {
        let container = self.container(name);
        self.by_hand(&container)
    }

    pub(crate) fn by_hand(&self, container: &Container) -> Result<Station, String> {
        let wire = Wire::on(&container.netns, "eth0", &[container.v4, container.v6]);
        let flush = |family: &str| {
            let args = [family, "address", "flush", "dev", "eth0"];
            self.scene.run_in(&container.netns, "ip", args).succeeded();
        };
        flush("-4");
        flush("-6");
        wire.find_gateway(container.v4, container.gateway)?;
        Ok(Station { wire, v4: container.v4, v6: container.v6 })
    }

    /// Ends every container there is.
    pub(crate) fn end_containers(&self) {
        self.running.lock().unwrap().clear();
        if self.subject.is_pontoon() {
            wait_for("the endpoints to go", || self.scene.json(["ps"]) == serde_json::json!([]));
        }
    }

    /// Sets the MTU of the link between router and outside.
    pub(crate) fn set_far_mtu(&self, mtu: u32) {
        self.router().enter(|| link::set_mtu(NEAR, mtu)).unwrap();
        self.outside.enter(|| link::set_mtu(FAR, mtu)).unwrap();
    }
}

/// How long a socket of a probe's waits.
fn limited<T>(socket: T, set: impl Fn(&T, Option<Duration>) -> io::Result<()>) -> T {
    set(&socket, Some(crate::patience())).unwrap();
    socket
}

pub(crate) fn udp(netns: &Netns, addr: IpAddr, port: u16) -> UdpSocket {
    let socket = netns.with(|| UdpSocket::bind((addr, port))).unwrap();
    limited(socket, UdpSocket::set_read_timeout)
}

pub(crate) fn listen(netns: &Netns, addr: IpAddr, port: u16) -> TcpListener {
    netns.with(|| TcpListener::bind((addr, port))).unwrap()
}

/// Accepts within the time anything is waited for.
pub(crate) fn accept(listener: &TcpListener) -> Result<(TcpStream, SocketAddr), String> {
    // As accept(2) does by the listener's SO_RCVTIMEO.
    let patience =
        nix::sys::time::TimeVal::new(i64::try_from(crate::patience().as_secs()).unwrap(), 0);
    socket::setsockopt(listener, sockopt::ReceiveTimeout, &patience).unwrap();
    let (stream, peer) = listener.accept().map_err(|error| format!("accept: {error}"))?;
    Ok((limited(stream, TcpStream::set_read_timeout), peer))
}

/// Connects from a port of its own choice (0: the kernel's).
pub(crate) fn connect(netns: &Netns, from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    netns.with(|| {
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let fd = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        socket::setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(from))?;
        // SO_SNDTIMEO bounds connect(2), too.
        let stream = TcpStream::from(fd);
        let stream = limited(stream, TcpStream::set_write_timeout);
        socket::connect(stream.as_raw_fd(), &SockaddrStorage::from(to))?;
        Ok(limited(stream, TcpStream::set_read_timeout))
    })
}
