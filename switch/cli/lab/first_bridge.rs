//! `first-bridge`: two containers, a switch, the host, the Internet, a published port.
//!
//! The tutorial does it with the kernel's bridge and iptables; here pontoon does, in the same order,
//! and what the tutorial shows at each point is what is checked. The texts of the steps are in
//! `first_bridge_text.rs`.

use daemon::api::{Endpoint, FdbRow, Flow, NeighbourRow, PublishedPort, Stats};
use serde::Deserialize;

use super::checks::Instead;
use super::first_bridge_text as text;
use super::session::{Place, Session, Stop, ending};
use super::topology::{self, HOST, ROUTER, SERVER, WORLD};

/// How many steps there are.
pub(crate) const STEPS: usize = 8;

const NETNS0: Place = Place::Endpoint("netns0");
const NETNS1: Place = Place::Endpoint("netns1");
const THE_WORLD: Place = Place::Namespace(WORLD);

const ADDR0: &str = "172.18.0.10";
const ADDR1: &str = "172.18.0.20";
const GATEWAY: &str = "172.18.0.1";
const SUBNET: &str = "172.18.0.0/16";

/// Where the tutorial's server is published.
const PUBLISHED: &str = "10.0.2.15:5000";

/// Does the tutorial.
pub(crate) fn run(lab: &mut Session, keep: bool) -> Result<(), Stop> {
    lab.report.preface(text::PREFACE);
    lab.step(&text::GROUND, ground)?;
    lab.step(&text::NAMESPACES, namespaces)?;
    lab.step(&text::CONTAINERS, containers)?;
    lab.step(&text::NO_GATEWAY, no_gateway)?;
    lab.step(&text::GATEWAY, gateway)?;
    lab.step(&text::UPLINK, uplink)?;
    lab.step(&text::PUBLISH, publish)?;
    lab.step(&text::TABLES, tables)?;
    if keep {
        lab.report.tell(&text::keep(std::process::id()));
        lab.wait_for_enter()?;
    }
    lab.step(&text::DOWN, down)
}

fn ground(lab: &mut Session) -> Result<(), Stop> {
    lab.type_in("pontoon ns add world")?;
    topology::wire()?;
    lab.start_daemon()?;
    lab.serve(THE_WORLD, "223.5.5.5:80")?;
    lab.answers(Place::Host, SERVER, "the Internet", Some(64))
}

fn namespaces(lab: &mut Session) -> Result<(), Stop> {
    lab.type_in("pontoon ns add netns0")?;
    lab.type_in("pontoon ns add netns1")?;
    lab.look("pontoon ns ls")?;
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Row {
        name: String,
    }
    let rows: Vec<Row> = lab.json("pontoon ns ls")?;
    let names = rows.into_iter().map(|row| row.name).collect::<Vec<_>>().join(" ");
    let what = "each namespace has a name below /run/netns";
    lab.report.check(what, "netns0 netns1 world", &names, names == "netns0 netns1 world");
    for name in ["netns0", "netns1"] {
        let output = lab.station(Place::Namespace(name), "links")?;
        let interfaces: Vec<_> =
            output.stdout.lines().filter(|line| !line.starts_with(' ')).collect();
        let alone = matches!(interfaces[..], [only] if only.contains(" lo: <LOOPBACK"));
        let seen = if output.success() { interfaces.join("\n") } else { ending(&output) };
        let what = format!("{name} has its loopback and no other interface");
        lab.report.check(&what, "1: lo: <LOOPBACK …> and nothing else", &seen, alone);
    }
    Ok(())
}

fn containers(lab: &mut Session) -> Result<(), Stop> {
    lab.type_in("pontoon network create --subnet 172.18.0.0/16 --gateway none --uplink none br0")?;
    lab.type_in("pontoon attach netns0 --network br0 --name netns0 --ip 172.18.0.10")?;
    lab.type_in("pontoon attach netns1 --network br0 --name netns1 --ip 172.18.0.20")?;
    lab.answers(NETNS0, ADDR1, "netns1", Some(64))?;
    lab.answers(NETNS1, ADDR0, "netns0", Some(64))?;
    let (mac0, mac1) = (station_of(lab, NETNS0)?, station_of(lab, NETNS1)?);
    let knows = |addr: &str, mac: &str| format!("{addr} dev eth0 lladdr {mac}");
    let what = "netns0 knows netns1's station";
    lab.shows(NETNS0, "neighbours", what, &knows(ADDR1, &mac1))?;
    let what = "netns1 knows netns0's station";
    lab.shows(NETNS1, "neighbours", what, &knows(ADDR0, &mac0))?;
    lab.look("pontoon fdb br0")?;
    let rows: Vec<FdbRow> = lab.json("pontoon fdb br0")?;
    let has = |mac: &str, name: &str| {
        rows.iter().any(|row| row.mac_address == mac && row.endpoint == name && !row.permanent)
    };
    let seen: Vec<_> =
        rows.iter().map(|row| format!("{} behind {}", row.mac_address, row.endpoint)).collect();
    let expected = format!("{mac0} behind netns0, {mac1} behind netns1");
    let what = "the switch has learned both stations, each behind its port";
    lab.report.check(
        what,
        &expected,
        &seen.join(", "),
        has(&mac0, "netns0") && has(&mac1, "netns1"),
    );
    Ok(())
}

/// The station of a container's interface, as the container itself shows it.
fn station_of(lab: &mut Session, place: Place) -> Result<String, Stop> {
    let output = lab.station_quietly(place, "links")?;
    let mac = output.stdout.lines().find_map(|line| line.trim().strip_prefix("link/ether "));
    Ok(mac.unwrap_or("no station").to_owned())
}

fn no_gateway(lab: &mut Session) -> Result<(), Stop> {
    lab.does_not_answer(NETNS0, HOST, "the host", Instead::Kernel("Network is unreachable"))?;
    let told = Instead::Router(ROUTER, "Destination Net Unreachable");
    lab.does_not_answer(Place::Host, ADDR0, "netns0", told)
}

fn gateway(lab: &mut Session) -> Result<(), Stop> {
    lab.type_in("pontoon network set br0 --gateway 172.18.0.1")?;
    let route = format!("{SUBNET} dev pt-br0 src {GATEWAY}");
    lab.shows(Place::Host, "routes", "the host has a route to the containers", &route)?;
    let default = format!("default via {GATEWAY} dev eth0");
    lab.shows(NETNS0, "routes", "netns0 was given a default route", &default)?;
    lab.answers(Place::Host, ADDR0, "netns0", Some(64))?;
    lab.answers(NETNS0, HOST, "the host", Some(64))?;
    lab.answers(NETNS1, GATEWAY, "the gateway", Some(64))
}

fn uplink(lab: &mut Session) -> Result<(), Stop> {
    let told = Instead::Router(GATEWAY, "Destination Net Unreachable");
    lab.does_not_answer(NETNS0, SERVER, "the Internet", told)?;
    lab.cannot_dial(NETNS0, "223.5.5.5:80", "Network is unreachable")?;
    lab.type_in("pontoon network set br0 --uplink sockets")?;
    lab.answers(NETNS0, SERVER, "the Internet", None)?;
    lab.is_seen_as(NETNS0, "223.5.5.5:80", HOST)
}

fn publish(lab: &mut Session) -> Result<(), Stop> {
    lab.serve(NETNS0, "172.18.0.10:5000")?;
    lab.is_seen_as(Place::Host, "172.18.0.10:5000", GATEWAY)?;
    for place in [THE_WORLD, Place::Host, NETNS1] {
        lab.cannot_dial(place, PUBLISHED, "Connection refused")?;
    }
    lab.type_in("pontoon publish add netns0 5000:5000")?;
    lab.is_seen_as(THE_WORLD, PUBLISHED, ROUTER)?;
    lab.is_seen_as(Place::Host, PUBLISHED, HOST)?;
    lab.is_seen_as(Place::Host, "127.0.0.1:5000", ADDR0)?;
    lab.is_seen_as(NETNS1, PUBLISHED, HOST)
}

fn tables(lab: &mut Session) -> Result<(), Stop> {
    lab.look("pontoon ps")?;
    let endpoints: Vec<Endpoint> = lab.json("pontoon ps")?;
    let seen: Vec<_> = endpoints
        .iter()
        .map(|one| format!("{} {} {}", one.name, one.ip_address, one.status))
        .collect();
    let expected = [format!("netns0 {ADDR0} up"), format!("netns1 {ADDR1} up")];
    look_at(lab, "both endpoints are up", &expected, &seen);

    lab.look("pontoon fdb br0")?;
    let rows: Vec<FdbRow> = lab.json("pontoon fdb br0")?;
    let seen: Vec<_> =
        rows.iter().map(|row| format!("{} {}", row.mac_address, row.endpoint)).collect();
    let (mac0, mac1) = (station_of(lab, NETNS0)?, station_of(lab, NETNS1)?);
    let expected = [format!("{mac0} netns0"), format!("{mac1} netns1")];
    look_at(lab, "the switch knows where both stations are", &expected, &seen);

    lab.look("pontoon neigh br0")?;
    let rows: Vec<NeighbourRow> = lab.json("pontoon neigh br0")?;
    let seen: Vec<_> = rows
        .iter()
        .map(|row| format!("{} {}", row.ip_address, row.mac_address.as_deref().unwrap_or("?")))
        .collect();
    let expected = [format!("{ADDR0} {mac0}")];
    look_at(lab, "the gateway knows netns0's station", &expected, &seen);

    lab.look("pontoon conntrack br0")?;
    let flows: Vec<Flow> = lab.json("pontoon conntrack br0")?;
    let seen: Vec<_> = flows
        .iter()
        .map(|flow| {
            let (protocol, out, back) = (&flow.protocol, &flow.original, &flow.reply);
            format!("{protocol} {} > {}, answered to {}", out.src, out.dst, back.dst)
        })
        .collect();
    let expected = [format!("icmp {ADDR0} > {SERVER}, answered to {HOST}")];
    look_at(lab, "the echo to the Internet is a translated flow", &expected, &seen);

    lab.look("pontoon publish ls")?;
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Row {
        endpoint: String,
        #[serde(flatten)]
        port: PublishedPort,
    }
    let rows: Vec<Row> = lab.json("pontoon publish ls")?;
    let seen: Vec<_> = rows
        .iter()
        .map(|row| format!("{}:{} {}", row.port.host_ip, row.port.host_port, row.endpoint))
        .collect();
    look_at(
        lab,
        "port 5000 of the host leads to netns0",
        &["0.0.0.0:5000 netns0".to_owned()],
        &seen,
    );

    lab.look("pontoon stats br0")?;
    sums(lab)
}

/// One check: each of `expected` is among `seen`.
fn look_at(lab: &mut Session, what: &str, expected: &[String], seen: &[String]) {
    let passed = expected.iter().all(|line| seen.contains(line));
    // Of a table only the lines that were looked for; all of it when they are not there.
    let shown: Vec<_> =
        seen.iter().filter(|line| !passed || expected.contains(line)).cloned().collect();
    let shown = if shown.is_empty() { "nothing".to_owned() } else { shown.join(", ") };
    lab.report.check(what, &expected.join(", "), &shown, passed);
}

fn sums(lab: &mut Session) -> Result<(), Stop> {
    let stats: Stats = lab.json("pontoon stats br0")?;
    let (mut seen, mut passed) = (Vec::new(), !stats.ports.is_empty());
    for port in &stats.ports {
        let dropped: u64 = port.dropped.values().sum();
        passed &= port.rx_frames == port.forwarded + port.consumed + dropped;
        let (name, rx) = (&port.endpoint, port.rx_frames);
        seen.push(format!("{name}: {rx} = {} + {} + {dropped}", port.forwarded, port.consumed));
    }
    let expected = "received = forwarded + consumed + dropped, at every port";
    lab.report.check("no frame is lost without a reason", expected, &seen.join("\n"), passed);
    Ok(())
}

fn down(lab: &mut Session) -> Result<(), Stop> {
    lab.type_in("pontoon publish rm netns0 5000:5000")?;
    lab.cannot_dial(THE_WORLD, PUBLISHED, "Connection refused")?;
    lab.type_in("pontoon detach netns0 netns1")?;
    lab.type_in("pontoon network rm br0")?;
    for (place, name) in [(Place::Host, "the host"), (Place::Namespace("netns0"), "netns0")] {
        let output = lab.station(place, "links")?;
        let names: Vec<_> = output.stdout.lines().filter_map(name_of).collect();
        let (expected, what) = match place {
            Place::Host => ("lo eth0 pontoon0", format!("{name} has its own interfaces again")),
            _ => ("lo", format!("{name} has its loopback and no other interface")),
        };
        let seen = if output.success() { names.join(" ") } else { ending(&output) };
        lab.report.check(&what, expected, &seen, seen == expected);
    }
    lab.stop_daemon()?;
    let output = lab.station(Place::Host, "links")?;
    let seen = output.stdout.lines().filter_map(name_of).collect::<Vec<_>>().join(" ");
    lab.report.check(
        "nothing of pontoon's is left on the host",
        "lo eth0",
        &seen,
        seen == "lo eth0",
    );
    lab.type_in("pontoon ns rm netns0 netns1 world")
}

/// `eth0` of `2: eth0: <BROADCAST…`.
fn name_of(line: &str) -> Option<&str> {
    let (number, rest) = line.split_once(": ")?;
    number.parse::<u32>().ok()?;
    rest.split(':').next()
}
