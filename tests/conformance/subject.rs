//! Who is probed: pontoon by either uplink, and others to compare with.
//!
//! The others need root and programs of their own: the kernel's masquerade (`nft`), `pasta` and
//! `slirp4netns`, looked for in the folder that `PONTOON_PEERS` names, then on the path. `Nothing` is a
//! host that lets nothing through, which no probe may find right.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use netns::{Netns, link};

use crate::lab::{Container, Family, Lab};
use crate::net::{Ended, Running, Who};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Sockets,
    Raw,
    Kernel,
    Pasta,
    Slirp,
    Nothing,
}

use Subject::{Kernel, Nothing, Pasta, Raw, Slirp, Sockets};

/// The raw uplink's own addresses.
const STATION: [&str; 2] = ["198.51.100.9", "2001:db8:7::9"];

impl Subject {
    pub(crate) const ALL: [Self; 6] = [Sockets, Raw, Kernel, Pasta, Slirp, Nothing];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Sockets => "sockets",
            Raw => "raw",
            Kernel => "kernel",
            Pasta => "pasta",
            Slirp => "slirp4netns",
            Nothing => "nothing",
        }
    }

    pub(crate) fn is_pontoon(self) -> bool {
        matches!(self, Sockets | Raw)
    }

    pub(crate) fn who(self) -> Who {
        if self == Sockets { Who::User } else { Who::Root }
    }

    /// Whether its program is here.
    pub(crate) fn is_here(self) -> bool {
        match self {
            Sockets | Raw => true,
            Kernel | Nothing => program("nft").is_some(),
            Pasta | Slirp => self.program().is_some(),
        }
    }

    /// The program it is, if it is one of others'.
    pub(crate) fn program(self) -> Option<PathBuf> {
        matches!(self, Pasta | Slirp).then(|| program(self.name())).flatten()
    }

    pub(crate) fn external(self, family: Family) -> IpAddr {
        match self {
            Raw => STATION[usize::from(family == Family::V6)].parse().unwrap(),
            _ => family.host(),
        }
    }
}

fn program(name: &str) -> Option<PathBuf> {
    let peers = std::env::var_os("PONTOON_PEERS").map(PathBuf::from);
    let folders = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let folders = peers.into_iter().chain(folders.map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|file| file.exists())
}

/// As Docker sets it up, without what guards against neighbours on the host's own segment.
const MASQUERADE: &str = "
table inet nat {
    chain published { }
    chain prerouting { type nat hook prerouting priority -100; fib daddr type local jump published; }
    chain postrouting {
        type nat hook postrouting priority 100;
        ip saddr 10.9.0.0/24 oifname != \"br0\" masquerade
        ip6 saddr fd00:9::/64 oifname != \"br0\" masquerade
        ct status dnat iifname \"br0\" oifname \"br0\" masquerade
    }
}
";

const SILENCE: &str = "
table inet nothing {
    chain silent { type filter hook prerouting priority -300; policy drop; }
}
";

impl Lab {
    /// Starts the subject; `options` are for `pontoon network create`.
    pub(crate) fn start(&self, options: &[&str]) {
        match self.subject {
            Sockets | Raw => self.start_pontoon(options),
            Kernel | Nothing => self.start_kernel(),
            Pasta | Slirp => {}
        }
    }

    fn start_pontoon(&self, options: &[&str]) {
        let mut raw = format!(
            "raw:up0,address={}/24,gateway={},address6={}/64,gateway6={}",
            STATION[0],
            Family::V4.router(),
            STATION[1],
            Family::V6.router(),
        );
        let (daemon, options): (Vec<&str>, Vec<&str>) =
            options.iter().partition(|option| option.starts_with("daemon:"));
        let (uplink, options): (Vec<&str>, Vec<&str>) =
            options.into_iter().partition(|option| option.starts_with("uplink:"));
        for option in uplink {
            raw = format!("{raw},{}", &option["uplink:".len()..]);
        }
        if !daemon.is_empty() {
            let daemon = daemon.into_iter().map(|option| &option["daemon:".len()..]);
            self.scene.run(["daemon"].into_iter().chain(daemon)).succeeded();
        }
        let mut args = vec!["network", "create", "--no-host-port"];
        args.extend(["--subnet", "10.9.0.0/24", "--subnet", "fd00:9::/64"]);
        if self.subject == Raw {
            args.extend(["--uplink", &raw]);
        }
        args.extend(options);
        args.push("both");
        self.scene.run(args).succeeded();
    }

    fn start_kernel(&self) {
        let host = &self.scene.host;
        self.shell(
            host,
            "ip link add br0 type bridge && ip link set br0 addrgenmode none up
             ip address add 10.9.0.1/24 dev br0 && ip address add fd00:9::1/64 dev br0 nodad
             sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
             sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0 || :
             sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0
             ip -6 route replace default via 2001:db8:7::2",
        );
        self.nft(MASQUERADE);
    }

    pub(crate) fn nft(&self, rules: &str) -> Ended {
        let file = self.scene.file("rules");
        std::fs::write(&file, rules).unwrap();
        let nft = program("nft").unwrap();
        let args = ["-f", file.to_str().unwrap()];
        self.scene.run_in(&self.scene.host, nft.to_str().unwrap(), args).succeeded()
    }

    pub(crate) fn shell(&self, netns: &Netns, script: &str) -> Ended {
        self.scene.run_in(netns, "sh", ["-ec", script]).succeeded()
    }

    /// A container on the subject's network. Only pontoon and the kernel put two on the same one.
    pub(crate) fn container(&self, name: &str) -> Container {
        match self.subject {
            Sockets | Raw => self.container_of_pontoon(name, &[]),
            Kernel | Nothing => self.container_of_kernel(name),
            Pasta => self.container_of_pasta(name),
            Slirp => self.container_of_slirp(name),
        }
    }

    /// With options of `pontoon run`.
    pub(crate) fn container_of_pontoon(&self, name: &str, options: &[&str]) -> Container {
        self.container_on("both", name, options)
    }

    /// Another of pontoon's networks.
    pub(crate) fn network(&self, name: &str, options: &[&str]) -> Ended {
        let args = ["network", "create", "--no-host-port"].into_iter();
        self.scene.run(args.chain(options.iter().copied()).chain([name])).succeeded()
    }

    /// On another of pontoon's networks.
    pub(crate) fn container_on(&self, network: &str, name: &str, options: &[&str]) -> Container {
        let mut args = vec!["run", "--network", network, "--name", name];
        args.extend(options);
        args.extend(["--", "sh", "-c", "echo up; exec sleep 600"]);
        let running = self.scene.start(args);
        running.says("up");
        let all = self.scene.json(["ps"]);
        let row = all.as_array().unwrap().iter().find(|row| row["Name"] == name).unwrap();
        let addr = |what: &str| row[what].as_str().and_then(|addr| addr.parse().ok());
        let v4 = addr("IPAddress").unwrap();
        let IpAddr::V4(own) = v4 else { panic!("{v4} is no IPv4 address") };
        let [a, b, c, _] = own.octets();
        let pid = u32::try_from(row["Pid"].as_u64().unwrap()).unwrap();
        let container = Container {
            name: name.to_owned(),
            netns: Netns::of_pid(pid).unwrap(),
            v4,
            v6: addr("GlobalIPv6Address").unwrap_or(Ipv6Addr::UNSPECIFIED.into()),
            gateway: Ipv4Addr::new(a, b, c, 1).into(),
        };
        self.running.lock().unwrap().push(running);
        container
    }

    fn container_of_kernel(&self, name: &str) -> Container {
        let netns = Netns::create().unwrap();
        let host = &self.scene.host;
        let number = self.containers.fetch_add(1, Relaxed) + 2;
        let port = format!("port{number}");
        link::create_veth_pair(&port, host, "eth0", &netns).unwrap();
        self.shell(host, &format!("ip link set {port} master br0 addrgenmode none up"));
        let (v4, v6) = (format!("10.9.0.{number}"), format!("fd00:9::{number}"));
        self.shell(
            &netns,
            &format!(
                "ip link set eth0 addrgenmode none up
                 ip address add {v4}/24 dev eth0 && ip address add {v6}/64 dev eth0 nodad
                 ip route add default via 10.9.0.1 && ip -6 route add default via fd00:9::1"
            ),
        );
        let mac = netns.enter(netns::interfaces).unwrap();
        let mac = mac.iter().find(|found| found.name == "eth0").unwrap().mac.unwrap();
        let mac = mac.map(|octet| format!("{octet:02x}")).join(":");
        for addr in [&v4, &v6] {
            // A container by hand does not answer.
            self.shell(
                host,
                &format!("ip neigh replace {addr} lladdr {mac} dev br0 nud permanent"),
            );
        }
        let container = Container {
            name: name.to_owned(),
            netns,
            v4: v4.parse().unwrap(),
            v6: v6.parse().unwrap(),
            gateway: "10.9.0.1".parse().unwrap(),
        };
        if self.subject == Nothing {
            self.nft(SILENCE);
        }
        container
    }

    /// A namespace with a process in it, by which others find it.
    fn named(&self) -> (Netns, String) {
        let netns = Netns::create().unwrap();
        let mut command = self.scene.as_root("sleep");
        command.arg("600");
        let running = Running::start(&netns, command);
        let path = format!("/proc/{}/ns/net", running.pid());
        self.running.lock().unwrap().push(running);
        (netns, path)
    }

    fn peer(&self, name: &str, netns: &Netns, args: &[&str]) {
        let mut command = self.scene.as_root(program(name).unwrap());
        command.args(args);
        let running = Running::start(&self.scene.host, command);
        wait_for_route(netns, &running);
        self.running.lock().unwrap().push(running);
    }

    fn container_of_pasta(&self, name: &str) -> Container {
        let (netns, path) = self.named();
        let pasta = program("pasta").unwrap();
        let file = self.scene.file(&format!("{name}.netns"));
        // It may open no other process's namespace, but a file that is one, of its mounts alone.
        let script = format!(
            "touch {file}; mount --bind {path} {file}; exec {pasta} --foreground --quiet --config-net \
             --runas 0 -I eth0 --no-map-gw --netns {file} -t {ports} -u {ports} \
             -T none -U none",
            file = file.display(),
            ports = if name.starts_with('p') { "8080:80" } else { "none" },
            pasta = pasta.display(),
        );
        self.peer("unshare", &netns, &["--mount", "sh", "-ec", &script]);
        Container {
            name: name.to_owned(),
            netns,
            v4: Family::V4.host(),
            v6: Family::V6.host(),
            gateway: Family::V4.router(),
        }
    }

    fn container_of_slirp(&self, name: &str) -> Container {
        let (netns, path) = self.named();
        let api = self.scene.file(&format!("{name}.sock"));
        let mut args = vec!["--configure", "--mtu=1500", "--enable-ipv6", "--netns-type=path"];
        args.extend(["--api-socket", api.to_str().unwrap(), &path, "eth0"]);
        let quick = || {
            // Usable at once, without detection of duplicates.
            std::fs::write("/proc/sys/net/ipv6/conf/all/accept_dad", "0")?;
            std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")
        };
        netns.with(quick).unwrap();
        self.peer("slirp4netns", &netns, &args);
        for protocol in ["tcp", "udp"].into_iter().filter(|_| name.starts_with('p')) {
            let forward = format!(
                r#"{{"execute":"add_hostfwd","arguments":{{"proto":"{protocol}","host_addr":"0.0.0.0","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80}}}}"#
            );
            let mut stream = UnixStream::connect(&api).unwrap();
            stream.write_all(forward.as_bytes()).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
        }
        Container {
            name: name.to_owned(),
            netns,
            v4: "10.0.2.100".parse().unwrap(),
            v6: "fd00::100".parse().unwrap(),
            gateway: "10.0.2.2".parse().unwrap(),
        }
    }
}

/// Waits until the peer has set up the container's default route.
fn wait_for_route(netns: &Netns, peer: &Running) {
    let end = Instant::now() + crate::patience();
    let has_route = || {
        let routes = netns.enter(netns::routes).unwrap();
        routes.iter().any(|route| route.dst.prefix_len() == 0 && route.dst.addr().is_ipv4())
    };
    while !has_route() {
        assert!(Instant::now() < end, "no default route: {peer:?}");
        thread::sleep(Duration::from_millis(10));
    }
}
