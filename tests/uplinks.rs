//! A station of our own on a segment of the host's, as it is typed and seen from both sides.
//!
//! The segment is the wire between host and world. The station stands beside the host on it, with
//! addresses of its own; what the world sees of containers is that station, or, where nothing is
//! translated, the containers themselves.

mod net;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use net::{HOST, Running, Scene, WORLD, WORLD6, Who, clients, wait_for};
use netns::Netns;
use serde_json::Value;

/// The station's addresses.
const STATION: &str = "198.51.100.5";
const STATION6: &str = "2001:db8:7::5";

/// A raw uplink with those addresses, and the world as its router.
const UPLINK: &str = "raw:up0,address=198.51.100.5/24,gateway=198.51.100.2,\
    address6=2001:db8:7::5/64,gateway6=2001:db8:7::2";

fn scene() -> Option<Scene> {
    Some(Scene::new(Who::Root)?.env("PONTOON_IDLE_EXIT", "1"))
}

/// A web server in a container on `network`.
fn server(scene: &Scene, network: &str, options: &[&str], folder: &Path) -> Running {
    let mut args = vec!["run", "--name", "web", "--network", network];
    args.extend(options);
    args.extend(["--", "python3", "-m", "http.server", "80", "--bind", "::", "--directory"]);
    let server = scene.start(args.into_iter().chain([folder.to_str().unwrap()]));
    server.says("Serving HTTP on");
    server
}

/// The one network there is of that name.
fn network(scene: &Scene, name: &str) -> Value {
    let ended = scene.run(["network", "inspect", name]).succeeded();
    let networks: Value = serde_json::from_str(&ended.stdout).unwrap();
    networks[0].clone()
}

#[test]
fn the_world_sees_the_station_and_finds_what_is_published_there() {
    let (true, Some(scene)) = (clients(&["curl", "ping", "python3"]), scene()) else { return };
    let create = ["network", "create", "--subnet", "10.9.0.0/24", "--subnet", "fd00:9::/64"];
    scene.run(create.into_iter().chain(["--uplink", UPLINK, "lan"])).succeeded();
    let lan = network(&scene, "lan");
    assert_eq!(lan["Options"]["pontoon.uplink"], UPLINK);
    assert_eq!(lan["Uplink"]["Status"], "up", "{lan}");
    assert_eq!(lan["Uplink"]["Interface"], "up0");
    assert_eq!(lan["Uplink"]["Addresses"][0]["Address"], format!("{STATION}/24"));
    assert_eq!(lan["Uplink"]["Networks"], serde_json::json!(["lan"]));

    // Outwards: the world's log has the station, for both families.
    let folder = scene.page("index.html", b"here\n");
    let web = server(&scene, "lan", &["-p", "8080-8081:80-81", "-p", "127.0.0.1:7070:80"], &folder);
    let far = scene.web_server(&scene.world, 8000, &folder);
    let exec = ["exec", "web", "--"];
    for (world, station, shown) in [
        (WORLD, STATION, format!("http://{WORLD}:8000/")),
        (WORLD6, STATION6, format!("http://[{WORLD6}]:8000/")),
    ] {
        scene.run(exec.into_iter().chain(["ping", "-n", "-c", "1", "-W", "9", world])).succeeded();
        scene.run(exec.into_iter().chain(["curl", "-sS", "--max-time", "20", &shown])).succeeded();
        far.says(station);
    }
    let flow = |of: &str, ends: [(&str, &str); 2], nat: [bool; 2]| {
        let flows = scene.json(["conntrack", of, "--nat"]);
        let is = |flow: &&Value| {
            let [(from, to), (answers, back)] = ends;
            flow["Protocol"] == "tcp"
                && (&flow["Original"]["Src"], &flow["Original"]["Dst"])
                    == (&from.into(), &to.into())
                && (&flow["Reply"]["Src"], &flow["Reply"]["Dst"]) == (&answers.into(), &back.into())
                && (&flow["SourceNat"], &flow["DestinationNat"]) == (&nat[0].into(), &nat[1].into())
        };
        assert!(flows.as_array().unwrap().iter().any(|flow| is(&flow)), "{flows:#}");
    };
    flow("lan", [("10.9.0.2", WORLD), (WORLD, STATION)], [true, false]);

    // Inwards: a range of ports, at the station's addresses and at the host's.
    for url in [
        format!("http://{STATION}:8080/"),
        format!("http://[{STATION6}]:8080/"),
        format!("http://{HOST}:8080/"),
    ] {
        scene.curl(&scene.world, &url).succeeded();
    }
    web.says(&format!("{WORLD} - - "));
    scene.curl(&scene.host, "http://127.0.0.1:8080/").succeeded();
    scene.curl(&scene.host, "http://127.0.0.1:7070/").succeeded();
    for of in ["up0", "lan"] {
        flow(of, [(WORLD, STATION), ("10.9.0.2", WORLD)], [false, true]);
    }
    // By its outside address from inside: the server sees that (RFC 4787 REQ-9).
    let hairpin = format!("http://{STATION}:8080/");
    scene.run(exec.into_iter().chain(["curl", "-sS", "--max-time", "20", &hairpin])).succeeded();
    web.says(&format!("{STATION} - - "));

    let nat = scene.json(["nat", "lan"]);
    let rules = nat[0]["Rules"].as_array().unwrap();
    let published =
        |rule: &&Value| rule["Target"] == "DNAT" && rule["Destination"] == format!("{STATION}/32");
    let rule = rules.iter().find(published).unwrap_or_else(|| panic!("{nat:#}"));
    assert_eq!(rule["Ports"], serde_json::json!([8080, 8081]));
    assert_eq!((&rule["ChangedTo"], &rule["Endpoint"]), (&"10.9.0.2:80".into(), &"web".into()));
    assert!(rule["Flows"].as_u64() >= Some(1), "{rule}");
    assert!(!rules.iter().any(|rule| rule["Ports"] == serde_json::json!([7070, 7070])), "{nat:#}");
    let saved = scene.run(["nat", "--as", "linux"]).succeeded().stdout;
    let line = format!(
        "-A PREROUTING -d {STATION}/32 -p tcp -m tcp --dport 8080:8081 -j DNAT --to-destination 10.9.0.2:80-81/8080"
    );
    assert!(saved.lines().any(|saved| saved == line), "{saved}");
    assert!(saved.contains("-o up0 -j MASQUERADE"), "{saved}");
    for listing in ["fdb", "neigh", "stats"] {
        let rows = scene.json([listing, "up0"]);
        let rows = if listing == "stats" { &rows["Ports"] } else { &rows };
        let rows = rows.as_array().unwrap();
        assert!(rows.iter().all(|row| row["Network"] == "up0") && !rows.is_empty(), "{rows:?}");
    }

    // Taken back, none of it is left.
    scene.run(["publish", "rm", "web", "8080-8081:80-81"]).succeeded();
    let nat = scene.json(["nat", "up0"]);
    let rules = nat[0]["Rules"].as_array().unwrap();
    assert!(rules.iter().all(|rule| rule["Target"] != "DNAT"), "{nat:#}");
    drop((web, far));
    wait_for("the endpoint to go", || scene.json(["ps"]) == serde_json::json!([]));
    scene.run(["network", "rm", "lan"]).succeeded();
    assert_eq!(scene.json(["nat"]), serde_json::json!([]));
    scene.is_clean();
}

#[test]
fn networks_with_one_interface_share_a_station_and_the_last_takes_it_along() {
    let (true, Some(scene)) = (clients(&["ping", "python3", "curl"]), scene()) else { return };
    // The station's subnet is the one the next network would have had (RFC 4787 REQ-7).
    let uplink = "raw:up0,address=172.18.0.5/16,address6=none";
    let create = ["network", "create", "--uplink", uplink, "--filtering", "eif", "one"];
    let made = scene.run(create).succeeded();
    assert!(made.stderr.contains("172.18.0.0/16 overlaps 172.18.0.0/16, the segment of raw:up0"));
    assert_eq!(network(&scene, "one")["IPAM"]["Config"][0]["Subnet"], "172.19.0.0/16");
    scene.run(["network", "create", "--uplink", "raw:up0", "two"]).succeeded();
    let two = network(&scene, "two");
    assert_eq!(two["Uplink"]["Networks"], serde_json::json!(["one", "two"]));
    assert_eq!(two["Options"]["pontoon.filtering"], "eif");
    assert_eq!(two["Options"]["pontoon.uplink"], uplink);
    for (options, says) in [
        (&["--uplink", "raw:up0,nat=off"][..], "is the uplink of network one already"),
        (&["--uplink", "raw:up0", "--timeouts", "linux"], "with timeouts rfc"),
        (&["--uplink", "raw:up0", "--subnet", "172.18.5.0/24"], "the segment of raw:up0"),
    ] {
        let args = ["network", "create", "three"].into_iter().chain(options.iter().copied());
        scene.run(args).failed(1, &[says]);
    }
    // A change of what they share is one for both.
    let other = "raw:up0,address=198.51.100.5/24,gateway=198.51.100.2,address6=none";
    scene.run(["network", "set", "two", "--uplink", other, "--filtering", "adf"]).succeeded();
    for name in ["one", "two"] {
        let options = &network(&scene, name)["Options"];
        assert_eq!(
            (&options["pontoon.uplink"], &options["pontoon.filtering"]),
            (&other.into(), &"adf".into())
        );
        let ping = ["run", "--network", name, "--", "ping", "-n", "-c", "1", "-W", "9", WORLD];
        scene.run(ping).succeeded();
    }
    scene.run(["network", "rm", "one"]).succeeded();
    assert_eq!(network(&scene, "two")["Uplink"]["Networks"], serde_json::json!(["two"]));
    // Back to the host's sockets: the segment has nobody behind it any more.
    scene.run(["network", "set", "two", "--uplink", "sockets"]).succeeded();
    assert_eq!(scene.json(["nat"]), serde_json::json!([]));
    assert_eq!(network(&scene, "two").get("Uplink"), None);
    scene
        .run(["run", "--network", "two", "--", "ping", "-n", "-c", "1", "-W", "9", WORLD])
        .succeeded();
    scene.run(["network", "rm", "two"]).succeeded();
    scene.is_clean();
}

#[test]
fn a_run_may_have_an_uplink_of_its_own_and_a_network_may_be_the_segment_itself() {
    let (true, Some(scene)) = (clients(&["ping", "python3", "curl"]), scene()) else { return };
    let run = ["run", "--uplink", UPLINK, "--", "ping", "-n", "-c", "1", "-W", "9", WORLD];
    scene.run(run).succeeded();
    wait_for("its network to go", || scene.json(["network", "ls"]).as_array().unwrap().len() == 1);
    let create = ["network", "create", "--uplink", "bridge:up0", "--subnet", "198.51.100.0/24"];
    let create =
        create.into_iter().chain(["--ip-range", "198.51.100.64/26", "--gateway", WORLD, "seg"]);
    scene.run(create).succeeded();
    let folder = scene.page("index.html", b"here\n");
    let far = scene.web_server(&scene.world, 8000, &folder);
    let url = format!("http://{WORLD}:8000/");
    scene
        .run(["run", "--network", "seg", "--", "curl", "-sS", "--max-time", "20", &url])
        .succeeded();
    far.says("198.51.100.64");
    // Reached by its own address, with nothing published.
    let web = server(&scene, "seg", &["--ip", "198.51.100.77"], &folder);
    scene.curl(&scene.world, "http://198.51.100.77/").succeeded();
    web.says(&format!("{WORLD} - - "));
    scene
        .run(["network", "create", "--uplink", "bridge:up0", "again"])
        .failed(1, &["a port of network seg"]);
    drop((web, far));
    wait_for("the endpoint to go", || scene.json(["ps"]) == serde_json::json!([]));
    scene.run(["network", "rm", "seg"]).succeeded();
    scene.is_clean();
}

/// RFC 5227 §2.1, RFC 4862 §5.4, for a container whose kernel asks nobody.
#[test]
fn a_container_on_the_segment_gets_an_address_that_no_other_station_has() {
    let (true, Some(scene)) = (clients(&["ip"]), scene()) else { return };
    for taken in ["198.51.100.64/32", "198.51.100.65/32", "2001:db8:7::40/128"] {
        have(&scene, taken);
    }
    let create = ["network", "create", "--uplink", "bridge:up0", "--subnet", "198.51.100.0/24"];
    let more = ["--subnet", "2001:db8:7::/64", "--ip-range", "198.51.100.64/26"];
    let more = more.into_iter().chain(["--ip-range", "2001:db8:7::40/122", "seg"]);
    scene.run(create.into_iter().chain(more)).succeeded();
    let run = |options: &[&str]| {
        let args = ["run", "--network", "seg"].into_iter().chain(options.iter().copied());
        scene.run(args.chain(["--", "ip", "-brief", "address", "show", "eth0"]))
    };
    for (options, addr, fix) in [
        (["--ip", "198.51.100.65"], "198.51.100.65", "choose another: --ip ADDR"),
        (["--ip6", "2001:db8:7::40"], "2001:db8:7::40", "choose another: --ip6 ADDR"),
        (["--ip", HOST], HOST, "by the host"),
    ] {
        run(&options).failed(125, &[&format!("address {addr} is in use on up0 by "), fix]);
    }
    let shown = run(&[]).succeeded().stdout;
    assert!(shown.contains("198.51.100.66/24") && shown.contains("2001:db8:7::41/64"), "{shown}");
    let shown = run(&["--ip", "198.51.100.77"]).succeeded().stdout;
    assert!(shown.contains("198.51.100.77/24"), "{shown}");
    wait_for("the endpoints to go", || scene.json(["ps"]) == serde_json::json!([]));
    scene.run(["network", "rm", "seg"]).succeeded();
    scene.is_clean();
}

/// A route of the world's, by the station.
fn route_back(scene: &Scene, prefix: &str, station: &str) {
    let via = Some(station.parse().unwrap());
    let add = || netns::link::add_route_through(prefix.parse().unwrap(), via, "down0");
    scene.world.enter(add).unwrap();
}

#[test]
fn what_is_asked_of_translation_is_what_the_world_sees() {
    let (true, Some(scene)) = (clients(&["ping", "python3", "curl"]), scene()) else { return };
    let create = ["network", "create", "--uplink", UPLINK, "--subnet", "10.9.0.0/24"];
    let shown = ["--snat-to", "198.51.100.8-198.51.100.9", "--nat46", "on"];
    scene.run(create.into_iter().chain(shown).chain(["four"])).succeeded();
    let prefix = ["--subnet", "fd00:6::/64", "--prefix6", "fd00:6::/64=2001:db8:66::/64"];
    let create = ["network", "create", "--uplink", "raw:up0", "--subnet", "10.6.0.0/24"];
    scene.run(create.into_iter().chain(prefix).chain(["six"])).succeeded();
    let folder = scene.page("index.html", b"here\n");
    let far = scene.web_server(&scene.world, 8000, &folder);
    let curl = ["curl", "-sS", "--max-time", "20"];

    // SNAT to other addresses than the station's, which answers for them.
    let url = format!("http://{WORLD}:8000/");
    let publish = ["-p", "8080:80", "-p", "198.51.100.9:8081:80"];
    let web = server(&scene, "four", &publish, &folder);
    scene.run(["exec", "web", "--"].into_iter().chain(curl).chain([&*url])).succeeded();
    let flows = scene.json(["conntrack", "four", "--nat", "--why"]);
    let why = flows[0]["Why"].as_array().cloned().unwrap_or_default();
    let rule = "postrouting rule 0 matches: all from 0.0.0.0/0: SNAT to 198.51.100.8-198.51.100.9";
    assert!(why.len() == 3 && why[0] == rule, "{flows:#}");
    assert!(scene.json(["conntrack", "four", "--nat"])[0].get("Why").is_none());
    let dst = flows[0]["Reply"]["Dst"].as_str().unwrap().to_owned();
    assert!(["198.51.100.8", "198.51.100.9"].contains(&&*dst), "{flows:#}");
    far.says(&dst);
    // One of them with a port of its own, where the host has no listener.
    scene.curl(&scene.world, "http://198.51.100.9:8081/").succeeded();
    assert!(scene.curl(&scene.world, &format!("http://{HOST}:8081/")).status.code() == Some(7));
    let taken = scene.run(["publish", "add", "web", "198.51.100.9:8081:80"]);
    taken.failed(1, &["198.51.100.9:8081/tcp", "endpoint web publishes it"]);
    // A client of the other family, of a container that has not got it.
    scene.curl(&scene.world, &format!("http://[{STATION6}]:8080/")).succeeded();
    web.says("192.0.0.");
    drop(web);
    wait_for("the endpoint to go", || scene.json(["ps"]) == serde_json::json!([]));

    // A prefix for a prefix, both ways, and nothing remembered of it.
    route_back(&scene, "2001:db8:66::/64", STATION6);
    let web = server(&scene, "six", &[], &folder);
    let url = format!("http://[{WORLD6}]:8000/");
    scene.run(["exec", "web", "--"].into_iter().chain(curl).chain([&*url])).succeeded();
    far.says("2001:db8:66:0:");
    let rules = scene.json(["nat", "six"])[0]["Rules"].clone();
    let npt = rules.as_array().unwrap().iter().find(|rule| rule["Target"] == "NPT").cloned();
    assert_eq!(npt.unwrap_or_default()["ChangedTo"], "2001:db8:66::/64", "{rules:#}");
    drop(web);
    wait_for("the endpoint to go", || scene.json(["ps"]) == serde_json::json!([]));
    scene.run(["network", "rm", "six"]).succeeded();

    // Nothing translated at all: the world must know the way, and sees the container itself.
    let other = format!("{UPLINK},nat=off");
    let plain = ["--snat-to", "none", "--nat46", "off"];
    scene.run(["network", "set", "four", "--uplink", &other].into_iter().chain(plain)).succeeded();
    route_back(&scene, "10.9.0.0/24", STATION);
    let web = server(&scene, "four", &[], &folder);
    let url = format!("http://{WORLD}:8000/");
    scene.run(["exec", "web", "--"].into_iter().chain(curl).chain([&*url])).succeeded();
    far.says("10.9.0.2");
    scene.curl(&scene.world, "http://10.9.0.2/").succeeded();
    web.says(&format!("{WORLD} - - "));
    drop(far);
    // The daemon's end takes all of it along.
    scene.run(["daemon", "stop"]).succeeded();
    drop(web);
    scene.is_clean();
}

/// Gives the world one more address.
fn have(scene: &Scene, address: &str) {
    let add = || netns::link::add_address("down0", address.parse().unwrap());
    scene.world.enter(add).unwrap();
}

#[test]
fn what_is_to_be_shown_is_asked_for_first_and_who_has_it_is_named() {
    let (true, Some(scene)) = (clients(&["ping"]), scene()) else { return };
    have(&scene, "198.51.100.9/32");
    let uplink = "raw:up0,address=198.51.100.5/24,address6=none";
    let shown = "198.51.100.8-198.51.100.9";
    let conflict = ["address 198.51.100.9 is in use on up0 by ", "--snat-to ADDR[-ADDR]"];
    let create = ["network", "create", "--uplink", uplink, "lan"];
    scene.run(create.into_iter().chain(["--snat-to", shown])).failed(1, &conflict);
    assert_eq!(scene.json(["network", "ls"]).as_array().unwrap().len(), 1, "nothing is left of it");
    // What is routed to the station is nobody's on the segment.
    scene.run(create.into_iter().chain(["--snat-to", "203.0.113.0-203.0.113.255"])).succeeded();
    assert_eq!(network(&scene, "lan")["Uplink"]["Addresses"].as_array().unwrap().len(), 1);
    // Changed while it runs, the network has what it can have of it.
    let but = ["network lan is changed, but address 198.51.100.9", conflict[1]];
    scene.run(["network", "set", "lan", "--snat-to", shown]).failed(1, &but);
    let state = |of: &str| {
        let uplink = network(&scene, "lan")["Uplink"].clone();
        let addresses = uplink["Addresses"].as_array().cloned().unwrap();
        let row = addresses.into_iter().find(|row| row["Address"] == of);
        row.map(|row| (row["Origin"].clone(), row["State"].clone()))
    };
    let is = |state: &str| Some(("snat-to".into(), state.into()));
    wait_for("the other address", || state("198.51.100.8/32") == is("valid"));
    assert_eq!(state("198.51.100.9/32"), is("conflict"));
    let uplink = &network(&scene, "lan")["Uplink"];
    assert_eq!(uplink["Status"], "up");
    let said = uplink["Conflicts"][0].as_str().unwrap_or_default().to_owned();
    assert!(said.starts_with("198.51.100.9 is in use by "), "{said}");
    let kept = scene.start(["run", "--name", "box", "--network", "lan", "--", "sleep", "600"]);
    wait_for("the container", || scene.json(["ps"]).as_array().unwrap().len() == 1);
    let ping = ["ping", "-n", "-c", "1", "-W", "9", WORLD];
    for _ in 0..4 {
        let run = ["run", "--network", "lan", "--"].into_iter().chain(ping);
        scene.run(run).succeeded();
    }
    scene.run(["exec", "box", "--"].into_iter().chain(ping)).succeeded();
    let flows = scene.json(["conntrack", "lan", "--nat"]);
    let flows = flows.as_array().unwrap();
    assert!(!flows.is_empty() && flows.iter().all(|flow| flow["Reply"]["Dst"] == "198.51.100.8"));
    drop(kept);
    wait_for("the endpoint to go", || scene.json(["ps"]) == serde_json::json!([]));
    scene.run(["network", "rm", "lan"]).succeeded();
    scene.is_clean();
}

/// A connection of a container's that is used now and then.
struct Kept(TcpStream, TcpStream);

impl Kept {
    fn new(container: &Netns, world: &Netns, to: &str) -> Self {
        let listener = world.with(|| TcpListener::bind((to, 9000))).unwrap();
        let near = container.with(|| TcpStream::connect((to, 9000))).unwrap();
        let far = listener.accept().unwrap().0;
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(net::PATIENCE)).unwrap();
        }
        Self(near, far)
    }

    /// Both hear each other.
    #[track_caller]
    fn lives(&self, after: &str) {
        let Self(near, far) = self;
        for (mut from, mut to) in [(near, far), (far, near)] {
            from.write_all(b"still there?").unwrap();
            let mut heard = [0; 12];
            let read = to.read_exact(&mut heard);
            assert!(read.is_ok() && heard == *b"still there?", "{read:?} after {after}");
        }
    }
}

#[test]
fn a_changed_option_leaves_addresses_and_flows_alone_that_it_does_not_concern() {
    let (true, Some(scene)) = (clients(&["sleep"]), scene()) else { return };
    let create = ["network", "create", "--subnet", "10.9.0.0/24", "--subnet", "fd00:9::/64"];
    scene.run(create.into_iter().chain(["--uplink", UPLINK, "lan"])).succeeded();
    let box_ = scene.start(["run", "--name", "box", "--network", "lan", "--", "sleep", "600"]);
    wait_for("the container", || scene.json(["ps"])[0]["Status"] == "up");
    let target = scene.json(["ps"])[0]["Target"].clone();
    let pid = target.as_str().and_then(|target| target.strip_prefix("pid:")).unwrap().to_owned();
    let container = Netns::of_pid(pid.parse().unwrap()).unwrap();
    let kept = [WORLD, WORLD6].map(|world| Kept::new(&container, &scene.world, world));
    let other = UPLINK.replace("gateway6=2001:db8:7::2", "address6=2001:db8:7::6/64");
    for change in [
        &["set", "lan", "--filtering", "eif"][..],
        &["set", "lan", "--timeouts", "linux,tcp-established=1h"],
        &["set", "lan", "--nat46", "on"],
        &["set", "lan", "--snat-to", "198.51.100.8"],
        &["set", "lan", "--prefix6", "fd00:9:0:0::/64=2001:db8:66::/64"],
        &["set", "lan", "--prefix6", "none"],
        &["create", "--uplink", "raw:up0", "two"],
        &["set", "two", "--filtering", "apdf"],
        &["set", "two", "--snat-to", "none"],
        &["rm", "two"],
        &["set", "lan", "--uplink", &other],
    ] {
        scene.run(["network"].into_iter().chain(change.iter().copied())).succeeded();
        let uplink = network(&scene, "lan")["Uplink"].clone();
        let rows = uplink["Addresses"].as_array().unwrap();
        for own in [STATION, STATION6] {
            let row =
                |row: &&Value| row["Address"].as_str().unwrap().starts_with(&format!("{own}/"));
            assert_eq!(rows.iter().find(row).unwrap()["State"], "valid", "{change:?}: {uplink:#}");
        }
        kept.iter().for_each(|kept| kept.lives(&format!("{change:?}")));
    }
    // Another address than the one a flow is shown with is another matter.
    let moved = UPLINK.replace("198.51.100.5/24", "198.51.100.6/24");
    scene.run(["network", "set", "lan", "--uplink", &moved]).succeeded();
    let flows = scene.json(["conntrack", "lan", "--nat"]);
    let shown = |flow: &Value| flow["Reply"]["Dst"] == STATION;
    assert!(!flows.as_array().unwrap().iter().any(shown), "{flows:#}");
    drop((kept, box_));
    wait_for("the endpoint to go", || scene.json(["ps"]) == serde_json::json!([]));
    scene.run(["network", "rm", "lan"]).succeeded();
    scene.is_clean();
}

/// A router and DHCP server of the world's: dnsmasq, which says each message it sees.
fn router(scene: &Scene) -> Running {
    for address in ["172.18.0.1/16", "fe80::2/64"] {
        let add = || netns::link::add_address("down0", address.parse().unwrap());
        scene.world.enter(add).unwrap();
    }
    let mut command = scene.as_root("dnsmasq");
    command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--log-facility=-"]);
    command.args(["--user=root", "--pid-file=", "--interface=down0", "--bind-interfaces"]);
    command.args(["--log-dhcp", "--no-ping", "--dhcp-authoritative", "--enable-ra"]);
    command.args(["--dhcp-range=172.18.0.50,172.18.0.60,255.255.0.0,1h"]);
    command.args(["--dhcp-option=option:router,172.18.0.1"]);
    command.args(["--dhcp-option=option:dns-server,172.18.0.53"]);
    command.arg("--dhcp-option=option6:dns-server,[2001:db8:7::53]");
    command.arg("--dhcp-range=2001:db8:7::,ra-only,64");
    command.arg(format!("--dhcp-leasefile={}", scene.file("leases").display()));
    let router = Running::start(&scene.world, command);
    router.says("DHCP, IP range");
    router
}

#[test]
fn a_station_asks_for_its_addresses_and_its_networks_step_aside() {
    let (true, Some(scene)) = (clients(&["ping", "dnsmasq"]), scene()) else { return };
    let router = router(&scene);
    // The next pool is the one the lease will be of, and nobody can know (RFC 4787 REQ-7).
    let create = ["network", "create", "--subnet", "fd00:9::/64", "--uplink", "raw:up0", "lan"];
    let made = scene.run(create).succeeded();
    assert!(
        made.stderr.contains("172.18.0.0/16 overlaps 172.18.0.0/16, the segment of raw:up0"),
        "{made:?}"
    );
    let lan = network(&scene, "lan");
    assert_eq!(lan["IPAM"]["Config"][0]["Subnet"], "172.19.0.0/16", "{lan:#}");
    let uplink = &lan["Uplink"];
    assert_eq!((&uplink["Status"], &uplink["Conflicts"]), (&"up".into(), &serde_json::json!([])));
    assert_eq!(uplink["Lease"]["Server"], "172.18.0.1", "{uplink:#}");
    assert_eq!(uplink["Lease"]["State"], "BOUND");
    assert_eq!(uplink["Lease"]["Dns"], serde_json::json!(["172.18.0.53"]));
    let renewal = uplink["Lease"]["RenewsIn"].as_u64().unwrap();
    assert!((1600..=1800).contains(&renewal), "{renewal}");
    let lease = uplink["Lease"]["ExpiresIn"].as_u64().unwrap();
    assert!((3500..=3600).contains(&lease), "{lease}");
    let origins = |uplink: &Value| -> Vec<String> {
        let addresses = uplink["Addresses"].as_array().cloned().unwrap_or_default();
        let valid = addresses.iter().filter(|address| address["State"] == "valid");
        valid.map(|address| address["Origin"].as_str().unwrap_or_default().to_owned()).collect()
    };
    wait_for("an address of each family", || {
        origins(&network(&scene, "lan")["Uplink"]) == ["dhcp", "slaac"]
    });
    for world in ["172.18.0.1", WORLD6] {
        scene
            .run(["run", "--network", "lan", "--", "ping", "-n", "-c", "1", "-W", "9", world])
            .succeeded();
    }
    // What the segment says of name servers is what containers ask, but for whoever knows better.
    let both = serde_json::json!(["172.18.0.53", "2001:db8:7::53"]);
    assert_eq!(network(&scene, "lan")["Uplink"]["Dns"], both);
    let asked = |options: &[&str]| -> Vec<String> {
        let run = ["run", "--network", "lan"].into_iter().chain(options.iter().copied());
        let run = scene.run(run.chain(["--", "cat", "/etc/resolv.conf"])).succeeded();
        let servers = run.stdout.lines().filter_map(|line| line.strip_prefix("nameserver "));
        servers.map(str::to_owned).collect()
    };
    assert_eq!(asked(&[]), ["172.18.0.53", "2001:db8:7::53"]);
    assert_eq!(asked(&["--dns", "192.0.2.53"]), ["192.0.2.53"]);
    scene.run(["network", "create", "--uplink", "raw:up0", "four"]).succeeded();
    let run = ["run", "--network", "four", "--", "cat", "/etc/resolv.conf"];
    let four = scene.run(run).succeeded().stdout;
    assert!(four.contains("nameserver 172.18.0.53") && !four.contains("2001:db8"), "{four}");
    scene.run(["network", "rm", "four"]).succeeded();
    // Given up, the address is the server's again.
    scene.run(["network", "rm", "lan"]).succeeded();
    router.says("DHCPRELEASE");
    drop(router);
    scene.is_clean();
}

#[test]
fn a_segment_whose_interface_goes_down_or_away_is_shown_so() {
    let (true, Some(scene)) = (clients(&["ping"]), scene()) else { return };
    let uplink = "raw:up0,address=198.51.100.5/24,address6=none";
    scene.run(["network", "create", "--uplink", uplink, "lan"]).succeeded();
    let status = || network(&scene, "lan")["Uplink"]["Status"].clone();
    assert_eq!(status(), "up");
    scene.world.enter(|| netns::link::set_down("down0")).unwrap();
    wait_for("the carrier to go", || status() == "no carrier");
    scene.host.enter(|| netns::link::set_down("up0")).unwrap();
    assert!(status().as_str().unwrap_or_default().starts_with("down ("), "{}", status());
    scene.host.enter(|| netns::link::set_up("up0")).unwrap();
    scene.world.enter(|| netns::link::set_up("down0")).unwrap();
    wait_for("the carrier to come back", || status() == "up");
    let ping = ["run", "--network", "lan", "--", "ping", "-n", "-c", "1", "-W", "9", WORLD];
    scene.run(ping).succeeded();
    // What the interface carries is followed, and containers are told (RFC 1191).
    scene.host.enter(|| netns::link::set_mtu("up0", 1400)).unwrap();
    wait_for("the new MTU", || network(&scene, "lan")["Uplink"]["MTU"] == 1400);
    let longer = ["ping", "-n", "-c", "2", "-W", "2", "-M", "do", "-s", "1400", WORLD];
    let told = scene.run(["run", "--network", "lan", "--"].into_iter().chain(longer));
    assert!(told.stdout.contains("mtu = 1400") || told.stdout.contains("mtu=1400"), "{told:#?}");
    // Renamed, it is the same one.
    scene.host.enter(|| netns::link::rename("up0", "lan0")).unwrap();
    wait_for("its new name", || network(&scene, "lan")["Uplink"]["Interface"] == "lan0");
    assert_eq!(status(), "up");
    scene.run(ping).succeeded();
    scene.host.enter(|| netns::link::rename("lan0", "up0")).unwrap();
    wait_for("its old name", || network(&scene, "lan")["Uplink"]["Interface"] == "up0");

    // Gone, and made again by its name: the network has it again, and nobody had to do anything.
    let before = network(&scene, "lan")["Uplink"]["MacAddress"].clone();
    scene.host.enter(|| netns::link::delete("up0")).unwrap();
    wait_for("its end to be seen", || status() == "down (up0 is gone)");
    let create = ["network", "create", "--uplink", "bridge:up0", "seg"];
    scene.run(create).failed(1, &["there is no interface up0"]);
    renew(&scene);
    wait_for("the new one to be taken", || status() == "up");
    assert_eq!(network(&scene, "lan")["Uplink"]["MacAddress"], before, "the same station");
    scene.run(ping).succeeded();
    scene.run(["network", "rm", "lan"]).succeeded();

    // One that is down is none to begin with.
    scene.host.enter(|| netns::link::set_down("up0")).unwrap();
    for uplink in ["raw:up0", "bridge:up0"] {
        let create = ["network", "create", "--uplink", uplink, "other"];
        scene.run(create).failed(1, &["interface up0 is down; `ip link set up0 up` brings it up"]);
    }
    scene.host.enter(|| netns::link::set_up("up0")).unwrap();
    scene.run(create.into_iter().chain(["--subnet", "198.51.100.0/24"])).succeeded();
    let ping = ["run", "--network", "seg", "--ip", "198.51.100.9", "--"];
    let ping = ping.into_iter().chain(["ping", "-n", "-c", "9", "-W", "1", WORLD]);
    scene.run(ping.clone()).succeeded();
    scene.host.enter(|| netns::link::delete("up0")).unwrap();
    renew(&scene);
    scene.run(ping).succeeded();
    scene.run(["network", "rm", "seg"]).succeeded();
    scene.is_clean();
}

/// Another interface by the name of the one that is gone, and another world behind it.
fn renew(scene: &Scene) {
    netns::link::create_veth_pair("up0", &scene.host, "down0", &scene.world).unwrap();
    have(scene, "198.51.100.2/24");
    scene.world.enter(|| netns::link::set_up("down0")).unwrap();
    scene.host.enter(|| netns::link::set_up("up0")).unwrap();
}
