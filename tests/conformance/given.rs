//! A station that is given its addresses: by router advertisements (RFC 4861, RFC 4862) and by DHCP
//! (RFC 2131); and one that is given somebody else's (RFC 5227, RFC 4862 5.4).
//!
//! Its segment is a second interface of the host's, whose other end is in a namespace of its own. There a
//! probe is the router itself, or dnsmasq is the server.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use netns::{Netns, link};

use crate::errors::{TOO_BIG, mtu_of};
use crate::lab::{Family, Lab, Station, listen};
use crate::mapping::{answered, map};
use crate::net::{Running, clients};
use crate::packet::Packet;
use crate::published::exchanged;
use crate::wire::Wire;
use crate::{Verdict, ensure, probes};

probes! {
    RawAlone {
        "4862" V6 an_advertised_prefix_is_an_address_and_its_router_the_way_out;
        "4862" V6 a_prefix_that_gives_way_takes_nothing_along;
        "2131" V4 a_lease_is_an_address_and_its_router_the_way_out;
        "5227" V4 an_address_that_somebody_has_is_not_taken;
        "5227" ANY a_change_to_an_address_that_somebody_has_changes_nothing;
    }
}

/// The host's second segment, and what is on its other end.
fn segment(lab: &Lab) -> Netns {
    let netns = Netns::create().unwrap();
    link::create_veth_pair("up1", &lab.scene.host, "seg0", &netns).unwrap();
    lab.scene.host.enter(|| link::set_up("up1")).unwrap();
    netns.enter(|| link::no_own_link_local("seg0").and_then(|()| link::set_up("seg0"))).unwrap();
    netns
}

const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x99);
const ALL: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// A prefix of 64 bits, and for how many seconds an address of it is valid and preferred.
fn prefix(prefix: &str, valid: u32, preferred: u32) -> Vec<u8> {
    let prefix: Ipv6Addr = prefix.parse().unwrap();
    let times = [valid.to_be_bytes(), preferred.to_be_bytes(), [0; 4]].concat();
    // On the link, and to make addresses of: RFC 4861 4.6.2.
    [&[3, 4, 64, 0xc0][..], &times, &prefix.octets()].concat()
}

/// An advertisement: RFC 4861 4.2.
fn advertisement(wire: &Wire, from: Ipv6Addr, lifetime: u16, options: &[Vec<u8>]) -> Packet {
    let [high, low] = lifetime.to_be_bytes();
    let body = [&[0; 8][..], &[1, 1], &wire.mac(), &options.concat()].concat();
    let mut packet = Packet::icmp(from.into(), ALL.into(), 134, 0, [64, 0, high, low], &body);
    packet.ttl = 255;
    packet
}

fn advertise(wire: &Wire, packet: &Packet) {
    wire.send_frame([0x33, 0x33, 0, 0, 0, 1], [0x86, 0xdd], &packet.octets());
}

/// The address of that prefix that the station finds out is nobody's: RFC 4862 5.4.
fn detects(wire: &Wire, prefix: &str) -> Result<IpAddr, String> {
    let prefix = prefix.parse::<Ipv6Addr>().unwrap().octets();
    let asks = |packet: &Packet| {
        packet.icmp_kind() == Some((135, 0)) && packet.payload[8..16] == prefix[..8]
    };
    let asked = wire.wait("a question who has an address of the prefix", asks)?;
    ensure!(asked.src.is_unspecified(), "asked by {}", asked.src);
    let target: [u8; 16] = asked.payload[8..24].try_into().unwrap();
    Ok(Ipv6Addr::from(target).into())
}

/// A network whose station is advertised to, its router, and a container of it.
fn advertised(lab: &Lab) -> Result<(Wire, Station, IpAddr), String> {
    let segment = segment(lab);
    // What is advertised is for the station alone.
    for (netns, ifname) in [(&segment, "seg0"), (&lab.scene.host, "up1")] {
        netns.with(|| link::set_ipv6(ifname, false).map_err(std::io::Error::other)).unwrap();
    }
    let wire = Wire::on(&segment, "seg0", &[ROUTER.into(), WORLD.into(), OTHER.into()]);
    let args = ["network", "create", "--no-host-port", "--subnet", "10.8.0.0/24", "--subnet"];
    let created = lab.scene.start(args.into_iter().chain([
        "fd00:8::/64",
        "--uplink",
        "raw:up1,address=none",
        "auto",
    ]));
    let solicited = wire
        .frame_within(crate::patience(), |frame| frame[12..14] == [0x86, 0xdd] && frame[54] == 133)
        .ok_or("nobody asks for routers")?;
    wire.set_gateway(solicited[6..12].try_into().unwrap());
    let asked = Packet::read(&solicited[14..])?;
    ensure!(
        asked.ttl == 255 && asked.dst == IpAddr::from([0xff02, 0, 0, 0, 0, 0, 0, 2]),
        "{asked:?}"
    );
    // From beyond a router, and by no router's own address: RFC 4861 6.1.2.
    let bad = [prefix("2001:db8:bad::", 7200, 3600)];
    let mut far = advertisement(&wire, ROUTER, 1800, &bad);
    far.ttl = 254;
    advertise(&wire, &far);
    advertise(&wire, &advertisement(&wire, "2001:db8:5::99".parse().unwrap(), 1800, &bad));
    let options = [prefix("2001:db8:5::", 7200, 3600), vec![5, 1, 0, 0, 0, 0, 5, 0x78]];
    advertise(&wire, &advertisement(&wire, ROUTER, 1800, &options));
    let address = detects(&wire, "2001:db8:5::")?;
    created.end().succeeded();
    let came = wire.all(|packet| {
        packet.icmp_kind() == Some((135, 0))
            && packet.payload[8..14] == [0x20, 1, 0xd, 0xb8, 0xb, 0xad]
    });
    ensure!(came.is_empty(), "it takes what is no router's: {came:?}");
    let container = lab.container_on("auto", "auto6", &[]);
    Ok((wire, lab.by_hand(&container)?, address))
}

/// Somebody beyond the router.
const WORLD: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 1);
/// Somebody on the segment itself.
const OTHER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 5, 0, 0, 0, 0, 0x77);

/// Waits until datagrams from `own` to `to` are seen as from `due`, and answered.
fn leaves_as(wire: &Wire, inside: &Station, (port, to): (u16, Ipv6Addr), due: IpAddr) -> Verdict {
    let (own, to) = (inside.at(Family::V6, port), SocketAddr::new(to.into(), 9000));
    let data = format!("from {port}");
    inside.says(own, to, data.as_bytes());
    let seen = wire.wait(&data, |packet| packet.datagram() == Some(data.as_bytes()))?;
    ensure!(seen.src == due, "{own} to {to} is seen as {}, not {due}", seen.src);
    let answer = format!("answer to {port}");
    wire.send(&Packet::udp(to, seen.from().unwrap(), answer.as_bytes()));
    let (from, _) = inside.hears(answer.as_bytes())?;
    ensure!(from == to, "the answer comes from {from}");
    Ok(())
}

fn an_advertised_prefix_is_an_address_and_its_router_the_way_out(
    lab: &Lab,
    family: Family,
) -> Verdict {
    let (wire, inside, address) = advertised(lab)?;
    leaves_as(&wire, &inside, (50_000, WORLD), address)?;
    leaves_as(&wire, &inside, (50_000, OTHER), address)?;
    // What the link carries, the router knows.
    let world = SocketAddr::new(WORLD.into(), 9000);
    inside.says(inside.at(family, 50_001), world, &[1; 1452]);
    let told = inside.wait("a word about it", Packet::is_error)?;
    ensure!(told.icmp_kind() == Some(TOO_BIG.v6) && mtu_of(&told) == 1400, "told {told:?}");
    // A router that is none any more: RFC 4861 6.3.4. The prefix is no less on the segment.
    advertise(&wire, &advertisement(&wire, ROUTER, 0, &[]));
    wire.forget();
    leaves_as(&wire, &inside, (50_002, OTHER), address)?;
    inside.says(inside.at(family, 50_003), world, b"nowhere to");
    let told = inside.wait("a word about it", Packet::is_error)?;
    ensure!(told.icmp_kind() == Some((1, 0)), "told {told:?}");
    let came = wire.all(|packet| packet.datagram() == Some(b"nowhere to"));
    ensure!(came.is_empty(), "it went out: {came:?}");
    advertise(&wire, &advertisement(&wire, ROUTER, 1800, &[]));
    leaves_as(&wire, &inside, (50_004, OTHER), address)?;
    leaves_as(&wire, &inside, (50_005, WORLD), address)
}

/// RFC 4862 5.5.3 and 5.5.4: nobody can take an address within two hours; what is new has the new prefix.
fn a_prefix_that_gives_way_takes_nothing_along(lab: &Lab, _: Family) -> Verdict {
    let (wire, inside, address) = advertised(lab)?;
    leaves_as(&wire, &inside, (50_100, WORLD), address)?;
    let forged = advertisement(&wire, ROUTER, 1800, &[prefix("2001:db8:5::", 0, 0)]);
    advertise(&wire, &forged);
    leaves_as(&wire, &inside, (50_100, WORLD), address)?;
    // The new one is preferred to what is deprecated: RFC 6724 5, rule 3.
    let renumbered = [prefix("2001:db8:5::", 7200, 0), prefix("2001:db8:6::", 7200, 3600)];
    advertise(&wire, &advertisement(&wire, ROUTER, 1800, &renumbered));
    let new = detects(&wire, "2001:db8:6::")?;
    // It is had once nobody has objected.
    let end = std::time::Instant::now() + crate::patience();
    let mut port = 50_101;
    while leaves_as(&wire, &inside, (port, WORLD), new).is_err() {
        ensure!(std::time::Instant::now() < end, "{new} is never used");
        std::thread::sleep(std::time::Duration::from_millis(200));
        port += 1;
    }
    // What there was goes on.
    leaves_as(&wire, &inside, (50_100, WORLD), address)
}

fn a_lease_is_an_address_and_its_router_the_way_out(lab: &Lab, family: Family) -> Verdict {
    if !clients(&["dnsmasq"]) {
        return Ok(());
    }
    let segment = segment(lab);
    for address in ["198.18.0.2/24", "192.0.2.1/32"] {
        segment.enter(|| link::add_address("seg0", address.parse().unwrap())).unwrap();
    }
    let mut command = lab.scene.as_root("dnsmasq");
    command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root"]);
    command.args(["--interface=seg0", "--bind-interfaces", "--no-ping", "--log-dhcp"]);
    command.args(["--log-facility=-", "--pid-file=", "--dhcp-authoritative"]);
    command.args(["--dhcp-range=198.18.0.50,198.18.0.59,255.255.255.0,1h"]);
    command.args(["--dhcp-option=option:router,198.18.0.2", "--dhcp-option=option:mtu,1400"]);
    command.arg(format!("--dhcp-leasefile={}", lab.scene.file("leases").display()));
    let server = Running::start(&segment, command);
    server.says("DHCP, IP range");
    lab.network("auto", &["--subnet", "10.8.0.0/24", "--uplink", "raw:up1,address6=none"]);
    let container = lab.container_on("auto", "auto4", &["-p", "8080:80"]);
    let wire = Wire::on(&segment, "seg0", &[]);
    let listener = listen(&container.netns, container.v4, 80);
    let inside_addr = container.v4;
    // What is published is found by the leased address.
    let leases = std::fs::read_to_string(lab.scene.file("leases")).unwrap();
    let leased = leases.split_whitespace().nth(2).and_then(|addr| addr.parse::<IpAddr>().ok());
    let leased = leased.ok_or(format!("no lease: {leases}"))?;
    let from = SocketAddr::new("198.18.0.2".parse().unwrap(), 52_000);
    let seen = exchanged(&segment, from, SocketAddr::new(leased, 8080), &listener)?;
    ensure!(seen == from, "{from} is seen as {seen}");
    // By the router to where only it leads, with the leased address.
    let inside = lab.by_hand(&container)?;
    let world = SocketAddr::new("192.0.2.1".parse().unwrap(), 9000);
    let outside = crate::lab::udp(&segment, world.ip(), 9000);
    inside.says(SocketAddr::new(inside_addr, 50_000), world, b"question");
    let mut buffer = [0; 100];
    let (len, from) = outside.recv_from(&mut buffer).map_err(|error| format!("out: {error}"))?;
    ensure!(buffer[..len] == *b"question", "{:?} came", &buffer[..len]);
    ensure!(from == SocketAddr::new(leased, 50_000), "seen as {from}");
    outside.send_to(b"answer", from).map_err(|error| format!("answer: {error}"))?;
    inside.hears(b"answer")?;
    let mut long = Packet::udp(inside.at(family, 50_000), world, &[1; 1472]);
    long.df = true;
    inside.wire.send(&long);
    let told = inside.wait("a word about it", Packet::is_error)?;
    ensure!(told.icmp_kind() == Some(TOO_BIG.v4) && mtu_of(&told) == 1400, "told {told:?}");
    // The lease ends with its network.
    lab.end_containers();
    lab.scene.run(["network", "rm", "auto"]).succeeded();
    server.says("DHCPRELEASE");
    let came = wire.all(|packet| packet.src == inside_addr);
    ensure!(came.is_empty(), "it went out untranslated: {came:?}");
    Ok(())
}

fn an_address_that_somebody_has_is_not_taken(lab: &Lab, _: Family) -> Verdict {
    let segment = segment(lab);
    for address in ["198.18.0.2/24", "2001:db8:5::2/64"] {
        segment.enter(|| link::add_address("seg0", address.parse().unwrap())).unwrap();
    }
    let interfaces = segment.enter(netns::interfaces).unwrap();
    let mac = interfaces.iter().find(|found| found.name == "seg0").unwrap().mac.unwrap();
    let mac = mac.map(|octet| format!("{octet:02x}")).join(":");
    let create = ["network", "create", "--subnet", "10.8.0.0/24", "--no-host-port", "--uplink"];
    for uplink in [
        "raw:up1,address=198.18.0.2/24,address6=none",
        "raw:up1,address=none,address6=2001:db8:5::2/64",
    ] {
        let ended = lab.scene.run(create.into_iter().chain([uplink, "taken"]));
        ensure!(!ended.status.success(), "it is taken: {ended:?}");
        ensure!(ended.stderr.contains(&mac), "who has it is not said: {}", ended.stderr);
        let listed = lab.scene.run(["network", "ls"]).succeeded().stdout;
        ensure!(!listed.contains("taken"), "it is there: {listed}");
    }
    // One that nobody has is had.
    let free = "raw:up1,address=198.18.0.9/24,address6=2001:db8:5::9/64";
    lab.network("free", &["--subnet", "10.8.0.0/24", "--uplink", free]);
    for addr in ["198.18.0.9", "2001:db8:5::9"] {
        let ended = lab.scene.run_in(&segment, "ping", ["-n", "-c", "1", "-W", "5", addr]);
        ensure!(ended.status.success(), "{addr} is not there: {}", ended.stdout);
    }
    Ok(())
}

/// What could not be changed is as it was.
fn a_change_to_an_address_that_somebody_has_changes_nothing(lab: &Lab, family: Family) -> Verdict {
    let taken = family.router();
    let uplink = match family {
        Family::V4 => format!("raw:up0,address={taken}/24,address6=none"),
        Family::V6 => format!("raw:up0,address=none,address6={taken}/64"),
    };
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 50_200), outside.at(family, 9000));
    let mapped = map(&inside, own, &outside, peer)?;
    let ended = lab.scene.run(["network", "set", "both", "--uplink", &uplink]);
    ensure!(!ended.status.success(), "it is taken: {ended:?}");
    ensure!(map(&inside, own, &outside, peer)? == mapped, "{mapped} is lost");
    answered(&inside, own, &outside, peer, mapped)
}
