//! Containers that mean harm, beside one that does not; and a host that must not notice any of it.

mod net;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use net::{HOST, Running, Scene, WORLD, Who, clients, wait_for};
use serde_json::Value;

/// Sends frames from a seed by a packet socket: inventions of stations, cuts and bends of honest frames,
/// noise, and the gateway's own station as sender.
const FLOOD: &str = r#"
import random, socket, sys
random.seed(int(sys.argv[1]))
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind(('eth0', 0))
seeds = [open(path, 'rb').read() for path in sys.argv[3:]]
def octets(n): return bytes(random.getrandbits(8) for _ in range(n))
def frame():
    kind = random.randrange(6)
    if kind == 0: return octets(random.randrange(14, 1514))
    if kind == 1: return b'\xff' * 6 + b'\x02' + octets(5) + b'\x08\x06' + octets(46)
    if kind == 2: return octets(6) + b'\x02\x42\xac\x11\x00\x01' + b'\x08\x00' + octets(60)
    data = bytearray(random.choice(seeds))
    if kind == 3: return bytes(data[:random.randrange(14, max(15, len(data)))])
    for _ in range(random.randrange(1, 6)): data[random.randrange(len(data))] = random.getrandbits(8)
    return bytes(data)
sent = 0
while sent < int(sys.argv[2]):
    try: sent += wire.send(frame()[:1514]) > 0
    except OSError: pass
print('sent', sent, flush=True)
"#;

/// Opens connections and sends datagrams to as many places as it can, and lets none of them go.
const GREED: &str = r#"
import errno, random, resource, socket, sys
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
random.seed(1)
held = []
world = sys.argv[1]
for n in range(3000):
    kind = [socket.SOCK_STREAM, socket.SOCK_DGRAM][n % 2]
    try:
        s = socket.socket(socket.AF_INET, kind)
        s.setblocking(False)
        held.append(s)
        s.connect((world, 8000 if kind == socket.SOCK_STREAM else random.randrange(1, 65536)))
        if kind == socket.SOCK_DGRAM: s.send(b'?')
    except OSError: pass
print('held', len(held), flush=True)
import signal; signal.pause()
"#;

/// The page a neighbour serves, which must be there whatever happens.
fn page_server(scene: &Scene) -> Running {
    let folder = scene.page("index.html", b"still here\n");
    let args = ["run", "--name", "good", "-p", "8080:80", "--dns", WORLD, "--", "python3", "-m"];
    let mut command = scene.pontoon(args);
    command.args(["http.server", "80", "--directory"]).arg(folder);
    let server = Running::start(&scene.host, command);
    server.says("Serving HTTP on");
    server
}

fn is_served(scene: &Scene) {
    let page = scene.curl(&scene.world, &format!("http://{HOST}:8080/")).succeeded();
    assert_eq!(page.stdout, "still here\n");
}

/// Every port's account: what came in was forwarded, taken, or dropped with a name.
fn accounts_balance(scene: &Scene) {
    let stats = scene.json(["stats"]);
    for port in stats["Ports"].as_array().unwrap() {
        let count = |what: &str| port[what].as_u64().unwrap();
        let dropped = port["Dropped"].as_object().unwrap().values().filter_map(Value::as_u64);
        let decided = count("Forwarded") + count("Consumed") + dropped.sum::<u64>();
        assert_eq!(count("RxFrames"), decided, "{port}");
    }
}

#[test]
fn a_container_that_sends_whatever_it_likes_disturbs_nobody() {
    let (true, Some(scene)) = (clients(&["curl", "python3"]), Scene::new(Who::User)) else {
        return;
    };
    let _server = page_server(&scene);
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus/frame");
    let seeds: Vec<PathBuf> = fs::read_dir(&corpus)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            // Behind twelve octets of port, time and offload header there is a length, then a frame.
            let copy = scene.file(&format!("seed-{}", path.file_name().unwrap().display()));
            fs::write(&copy, fs::read(&path).unwrap().get(13..).unwrap_or_default()).unwrap();
            copy
        })
        .filter(|copy| fs::metadata(copy).unwrap().len() > 14)
        .collect();
    let flood = |seed: &str| {
        let mut command = scene.pontoon(["run", "--name", &format!("bad{seed}"), "--"]);
        command.args([
            "sh",
            "-c",
            "python3 -c \"$0\" \"$@\" && exec sleep 600",
            FLOOD,
            seed,
            "20000",
        ]);
        command.args(&seeds);
        Running::start(&scene.host, command)
    };
    let floods = [flood("1"), flood("2")];
    is_served(&scene);
    for flood in &floods {
        flood.says("sent 20000");
    }
    is_served(&scene);
    accounts_balance(&scene);
    let stations = scene.json(["fdb"]);
    for bad in ["bad1", "bad2"] {
        let of = stations.as_array().unwrap().iter().filter(|row| row["Endpoint"] == bad);
        let count = of.count();
        assert!(
            (2..=1024).contains(&count),
            "{count} stations of {bad}: {}",
            scene.json(["stats"])
        );
    }
    let good = stations.as_array().unwrap().iter().filter(|row| row["Endpoint"] == "good");
    assert_eq!(good.count(), 1, "nobody else is behind the good one's port");
}

#[test]
fn a_container_that_holds_all_the_flows_it_may_leaves_others_theirs() {
    let (true, Some(scene)) = (clients(&["curl", "python3"]), Scene::new(Who::User)) else {
        return;
    };
    let daemon = scene.start(["daemon", "--foreground", "--max-flows-per-container", "500"]);
    daemon.says("listening on");
    let _server = page_server(&scene);
    let outside = scene.web_server(&scene.world, 8000, &scene.page("index.html", b"still here\n"));
    let greed = scene.start(["run", "--name", "greedy", "--", "python3", "-c", GREED, WORLD]);
    greed.says("held");
    is_served(&scene);
    let url = format!("http://{WORLD}:8000/");
    let page =
        scene.run(["exec", "good", "--", "curl", "-sS", "--max-time", "20", &url]).succeeded();
    assert_eq!(page.stdout, "still here\n");
    let flows = scene.json(["conntrack"]);
    let greedy =
        flows.as_array().unwrap().iter().filter(|flow| flow["Original"]["Src"] == "172.17.0.3");
    let greedy = greedy.count();
    assert!((400..=500).contains(&greedy), "{greedy} flows");
    accounts_balance(&scene);
    drop(greed);
    wait_for("its flows to go with it", || {
        let flows = scene.json(["conntrack"]);
        flows.as_array().unwrap().iter().all(|flow| flow["Original"]["Src"] != "172.17.0.3")
    });
    drop(outside);
}

/// All that can be set of the host's network, and what it has of rules and routes.
fn configuration(scene: &Scene) -> BTreeMap<String, String> {
    fn walk(folder: &Path, into: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            match fs::read_to_string(&path) {
                Ok(text) => drop(into.insert(path.display().to_string(), text)),
                Err(_) if path.is_dir() => walk(&path, into),
                Err(_) => {}
            }
        }
    }
    let read = || {
        let mut all = BTreeMap::new();
        walk(Path::new("/proc/sys/net"), &mut all);
        // A count, not a setting.
        all.retain(|name, _| !name.ends_with("nf_conntrack_count"));
        Ok(all)
    };
    let mut all = scene.host.with(read).unwrap();
    for (program, args) in [
        ("nft", &["list", "ruleset"][..]),
        ("ip", &["rule"]),
        ("ip", &["-6", "rule"]),
        ("ip", &["route", "show", "table", "all"]),
        ("ip", &["-6", "route", "show", "table", "all"]),
        ("ip", &["-brief", "address"]),
    ] {
        let shown = scene.run_in(&scene.host, program, args).succeeded().stdout;
        all.insert(format!("{program} {}", args.join(" ")), shown);
    }
    all
}

/// What differs, by name.
fn difference(one: &BTreeMap<String, String>, other: &BTreeMap<String, String>) -> Vec<String> {
    let names = one.keys().chain(other.keys().filter(|name| !one.contains_key(*name)));
    names.filter(|name| one.get(*name) != other.get(*name)).cloned().collect()
}

#[test]
fn nothing_of_the_host_is_set_otherwise_while_pontoon_works() {
    let (true, Some(scene)) = (clients(&["curl", "ip", "nft", "python3"]), Scene::new(Who::User))
    else {
        return;
    };
    let before = configuration(&scene);
    let server = page_server(&scene);
    is_served(&scene);
    assert_eq!(difference(&before, &configuration(&scene)), [""; 0]);
    drop(server);
    scene.run(["daemon", "stop"]).succeeded();
    assert_eq!(difference(&before, &configuration(&scene)), [""; 0]);
}

#[test]
fn as_root_the_host_gets_an_interface_and_nothing_else() {
    let (true, Some(scene)) = (clients(&["curl", "ip", "nft", "python3"]), Scene::new(Who::Root))
    else {
        return;
    };
    let (before, interfaces) = (configuration(&scene), scene.interfaces());
    let server = page_server(&scene);
    is_served(&scene);
    let now = scene.interfaces();
    let own: Vec<_> = now.difference(&interfaces).collect();
    assert_eq!(own.len(), 1, "{own:?}");
    let mut changed = difference(&before, &configuration(&scene));
    // Its own settings, its address, and the route that comes with that.
    changed.retain(|name| !name.contains(&format!("/{}/", own[0])));
    changed.retain(|name| !name.contains("route show") && !name.ends_with("address"));
    assert_eq!(changed, [""; 0]);
    drop(server);
    scene.run(["daemon", "stop"]).succeeded();
    assert_eq!(difference(&before, &configuration(&scene)), [""; 0]);
}
