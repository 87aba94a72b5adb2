//! What is typed and what comes back: endpoints, ports and tables of a running daemon.

mod net;

use std::collections::BTreeSet;
use std::fs;

use net::{HOST, Running, Scene, WORLD, Who, clients, wait_for};
use nix::sys::signal::Signal;
use serde_json::Value;

/// A process of the user's in namespaces of its own, to be attached to.
fn container(scene: &Scene) -> Running {
    let mut command = scene.command("unshare");
    command.args(["--user", "--map-root-user", "--net", "sh", "-c", "echo inside; exec sleep 600"]);
    let container = Running::start(&scene.host, command);
    container.says("inside");
    container
}

/// Interfaces with an address in the namespace of `pid`, as iproute2 prints them.
fn addresses(scene: &Scene, container: &Running) -> String {
    scene.run_in(&container.netns(), "ip", ["-brief", "address"]).succeeded().stdout
}

#[test]
fn a_namespace_is_attached_by_process_path_or_name_and_detached_again() {
    let (true, Some(scene)) = (clients(&["ip", "ping"]), Scene::new(Who::User)) else { return };
    let container = container(&scene);
    let targets = [
        vec![format!("pid:{}", container.pid())],
        vec![container.pid().to_string()],
        vec![format!("/proc/{}/ns/net", container.pid())],
        vec![format!("/proc/{}/ns/net", container.pid()), "--veth".to_owned()],
    ];
    for target in targets {
        let mut args = vec!["attach".to_owned(), "--name".to_owned(), "box".to_owned()];
        args.extend(target);
        assert_eq!(scene.run(&args).succeeded().stdout, "box\n");
        let inside = addresses(&scene, &container);
        assert!(inside.contains("172.17.0.2/16"), "{args:?}: {inside}");
        let ping = ["exec", "box", "--", "ping", "-n", "-c", "1", "-W", "9", WORLD];
        scene.run(ping).succeeded();
        scene.run(["detach", "box"]).succeeded();
        let inside = addresses(&scene, &container);
        assert!(!inside.contains("eth0"), "{args:?}: {inside}");
    }
}

#[test]
fn a_named_namespace_is_interchangeable_with_iproute2s() {
    let (true, Some(scene)) = (clients(&["ip", "ping"]), Scene::new(Who::Root)) else { return };
    let names: [String; 2] =
        ["a", "b"].map(|which| format!("pontoon-{}-{which}", std::process::id()));
    let [ours, theirs] = &names;
    let undo = Undo(|| {
        for name in &names {
            let _ = std::process::Command::new("ip").args(["netns", "del", name]).output();
        }
    });
    scene.run(["ns", "add", ours]).succeeded();
    scene.run_in(&scene.host, "ip", ["netns", "add", theirs]).succeeded();
    let listed = scene.run_in(&scene.host, "ip", ["netns", "list"]).succeeded().stdout;
    assert!(listed.contains(ours.as_str()), "{listed}");
    let listed = scene.run(["ns", "ls"]).succeeded().stdout;
    assert!(listed.contains(theirs.as_str()), "{listed}");
    for name in &names {
        scene.run(["attach", name]).succeeded();
    }
    let ping = ["ping", "-n", "-c", "1", "-W", "9"];
    let args = ["ns", "exec", ours, "--"].into_iter().chain(ping).chain(["172.17.0.3"]);
    scene.run(args).succeeded();
    let args = ["netns", "exec", theirs].into_iter().chain(ping).chain(["172.17.0.2"]);
    scene.run_in(&scene.host, "ip", args).succeeded();
    scene.run(["ns", "rm", theirs]).succeeded();
    scene.run_in(&scene.host, "ip", ["netns", "del", ours]).succeeded();
    wait_for("the endpoints to go with their namespaces", || {
        scene.json(["ps"]) == serde_json::json!([])
    });
    drop(undo);
}

/// Does something at the end of a test, however it ends.
struct Undo<F: FnMut()>(F);

impl<F: FnMut()> Drop for Undo<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[test]
fn an_endpoint_goes_with_its_process() {
    let Some(scene) = Scene::new(Who::User) else { return };
    let container = container(&scene);
    scene.run(["attach", &format!("pid:{}", container.pid()), "-p", "8080:80"]).succeeded();
    assert!(!scene.bound().is_empty());
    drop(container);
    wait_for("the endpoint to go", || scene.json(["ps"]) == serde_json::json!([]));
    assert_eq!(scene.bound(), [""; 0]);
}

#[test]
fn ports_are_published_and_taken_back_while_the_server_runs() {
    let (true, Some(scene)) = (clients(&["curl", "python3"]), Scene::new(Who::User)) else {
        return;
    };
    let folder = scene.page("index.html", b"here\n");
    let folder = folder.to_str().unwrap();
    let args = ["run", "--name", "web", "--dns", WORLD, "--", "python3", "-m", "http.server", "80"];
    let server = scene.start(args.into_iter().chain(["--directory", folder]));
    server.says("Serving HTTP on");
    let reached = |port: u16| {
        let ended = scene.curl(&scene.world, &format!("http://{HOST}:{port}/"));
        match ended.status.code() {
            Some(0) => true,
            Some(7) => false, // curl's "failed to connect"
            _ => panic!("{ended:?}"),
        }
    };
    assert!(!reached(8080));
    scene
        .run(["publish", "add", "web", "8080:80", "8090-8091:80-81", "127.0.0.1:8070:80"])
        .succeeded();
    assert!(reached(8080) && reached(8090) && !reached(8070));
    scene.curl(&scene.host, "http://127.0.0.1:8070/").succeeded();
    let ports = scene.run(["port", "web"]).succeeded().stdout;
    for line in ["80/tcp -> 0.0.0.0:8080", "80/tcp -> [::]:8080", "81/tcp -> 0.0.0.0:8091"] {
        assert!(ports.contains(line), "{ports}");
    }
    // All of a call, or none: the second is taken.
    let ended = scene.run(["publish", "add", "web", "8081:80", "8080:80"]);
    ended.failed(1, &["8080/tcp", "endpoint web publishes it", "`pontoon publish rm web"]);
    assert!(!reached(8081));
    scene.run(["publish", "rm", "web", "8080:80"]).succeeded();
    assert!(!reached(8080) && reached(8090));
    scene.run(["publish", "rm", "web", "8090-8091:80-81", "127.0.0.1:8070:80"]).succeeded();
    assert_eq!(scene.json(["publish", "ls"]), serde_json::json!([]));
    assert_eq!(scene.listening(), [""; 0]);
}

#[test]
fn ports_of_both_protocols_come_and_go_by_themselves() {
    let Some(scene) = Scene::new(Who::User) else { return };
    let container = container(&scene);
    scene.run(["attach", &format!("pid:{}", container.pid()), "--name", "web"]).succeeded();
    let (tcp, udp) = ("5353:53/tcp", "5353:53/udp");
    let bound = || {
        let bound = scene.bound();
        let of =
            |protocol: &str| bound.iter().filter(|socket| socket.starts_with(protocol)).count();
        (of("tcp"), of("udp"))
    };
    for (first, second, between) in [(tcp, udp, (0, 2)), (udp, tcp, (2, 0))] {
        scene.run(["publish", "add", "web", tcp, udp]).succeeded();
        assert_eq!(bound(), (2, 2));
        scene.run(["publish", "rm", "web", first]).succeeded();
        assert_eq!(bound(), between);
        scene.run(["publish", "rm", "web", second]).succeeded();
        assert_eq!(bound(), (0, 0));
    }
}

#[test]
fn a_port_left_open_is_chosen_from_the_hosts_range() {
    let (true, Some(scene)) = (clients(&["curl", "python3"]), Scene::new(Who::User)) else {
        return;
    };
    let folder = scene.page("index.html", b"here\n");
    let folder = folder.to_str().unwrap();
    let args = ["run", "--name", "web", "-P", "--dns", WORLD, "--", "python3", "-m", "http.server"];
    let server = scene.start(args.into_iter().chain(["8000", "--directory", folder]));
    server.says("Serving HTTP on");
    let ports = || scene.json(["port", "web"]).as_array().unwrap().clone();
    wait_for("what it listens on to be published", || !ports().is_empty());
    let port = ports()[0]["HostPort"].as_u64().unwrap();
    assert!((32_768..=60_999).contains(&port), "{port}");
    scene.curl(&scene.world, &format!("http://{HOST}:{port}/")).succeeded();
}

#[test]
fn each_table_shows_what_happened_to_people_and_to_programs() {
    let (true, Some(scene)) = (clients(&["python3"]), Scene::new(Who::User)) else { return };
    let _outside = scene.web_server(&scene.world, 8000, &scene.page("index.html", b""));
    let script = format!(
        "import signal, socket; s = socket.create_connection(('{WORLD}', 8000)); print('connected'); \
         signal.pause()"
    );
    let args = ["run", "--name", "web", "-p", "8080:80", "--", "python3", "-c", &script];
    let mut inside = scene.start(args);
    inside.says("connected");

    let table = |args: &[&str]| scene.run(args).succeeded().stdout;
    let has = |args: &[&str], words: &[&str]| {
        let text = table(args);
        for word in words {
            assert!(text.contains(word), "{args:?} does not say {word:?}:\n{text}");
        }
    };
    let rows = |args: &[&str]| scene.json(args).as_array().unwrap().clone();
    let mac = "02:42:ac:11:00:02";

    has(&["ps"], &["NAME", "web", "bridge", "172.17.0.2", "up", "0.0.0.0:8080->80/tcp"]);
    let ps = rows(&["ps"]);
    assert_eq!((&ps[0]["Name"], &ps[0]["IPAddress"]), (&"web".into(), &"172.17.0.2".into()));
    assert_eq!(ps[0]["MacAddress"], mac);

    has(&["inspect", "web"], &["\"172.17.0.2\"", mac]);
    has(&["network", "ls"], &["bridge", "172.17.0.0/16", "172.17.0.1"]);
    has(&["network", "inspect", "bridge"], &["\"IPv4Address\": \"172.17.0.2/16\""]);

    has(&["fdb"], &[mac, "web", "gateway", "permanent"]);
    let station = |row: &Value| row["MacAddress"] == mac && row["Endpoint"] == "web";
    assert_eq!(rows(&["fdb"]).iter().filter(|row| station(row)).count(), 1);

    has(&["neigh"], &["172.17.0.2", mac, "PERMANENT"]);
    let neighbour = |row: &Value| row["IPAddress"] == "172.17.0.2" && row["MacAddress"] == mac;
    assert!(rows(&["neigh"]).iter().any(neighbour));

    let flow = [
        "src=172.17.0.2",
        "dst=198.51.100.2",
        "dport=8000",
        "src=198.51.100.2",
        "dst=198.51.100.1",
    ];
    has(&["conntrack"], &[&["tcp      6", "[ASSURED]"][..], &flow].concat());
    let flows = rows(&["conntrack"]);
    let original = &flows[0]["Original"];
    assert_eq!((&original["Src"], &original["DstPort"]), (&"172.17.0.2".into(), &8000.into()));

    has(&["stats"], &["NETWORK", "web", "gateway"]);
    let stats = scene.json(["stats"]);
    for port in stats["Ports"].as_array().unwrap() {
        let count = |what: &str| port[what].as_u64().unwrap();
        let dropped: u64 =
            port["Dropped"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
        assert_eq!(count("RxFrames"), count("Forwarded") + count("Consumed") + dropped, "{port}");
    }
    assert!(stats["Ports"].as_array().unwrap().len() >= 2, "{stats}");
    assert!(inside.is_running());
}

#[test]
fn exec_runs_where_the_endpoint_is_with_its_files() {
    let Some(scene) = Scene::new(Who::User) else { return };
    let args = ["run", "--name", "one", "--dns", "192.0.2.53", "--add-host", "db:192.0.2.7"];
    let one = scene.start(args.into_iter().chain(["--", "sh", "-c", "echo up; exec sleep 600"]));
    one.says("up");
    let exec = |script: &str| scene.run(["exec", "one", "--", "sh", "-c", script]);
    assert_eq!(exec("cat /etc/resolv.conf").succeeded().stdout.trim(), "nameserver 192.0.2.53");
    let hosts = exec("cat /etc/hosts").succeeded().stdout;
    assert!(hosts.contains("192.0.2.7\tdb") && hosts.contains("172.17.0.2\tone"), "{hosts}");
    assert_eq!(exec("exit 9").status.code(), Some(9));
    // A second one knows the first by name, and can share its namespace.
    let args = ["run", "--link", "one:db", "--", "sh", "-c", "cat /etc/hosts"];
    let hosts = scene.run(args).succeeded().stdout;
    let line = hosts.lines().find(|line| line.starts_with("172.17.0.2\tdb "));
    assert!(line.is_some_and(|line| line.ends_with(" one")), "{hosts}");
    let beside =
        scene.run(["run", "--network", "container:one", "--", "readlink", "/proc/self/ns/net"]);
    let within = exec("readlink /proc/self/ns/net").succeeded().stdout;
    assert_eq!(beside.succeeded().stdout, within);
    let alone = scene.run(["run", "--network", "none", "--", "ls", "/sys/class/net"]);
    alone.succeeded();
    // The host's own files are as they were.
    assert!(!fs::read_to_string("/etc/resolv.conf").unwrap_or_default().contains("192.0.2.53"));
}

#[test]
fn networks_are_made_told_apart_and_removed() {
    let (true, Some(scene)) = (clients(&["ping"]), Scene::new(Who::User)) else { return };
    scene.run(["network", "create", "--subnet", "10.7.0.0/24", "red"]).succeeded();
    scene.run(["network", "create", "--internal", "blue"]).succeeded();
    let args =
        ["run", "--network", "red", "--name", "r1", "--", "sh", "-c", "echo up; exec sleep 600"];
    let red = scene.start(args);
    red.says("up");
    let ping = |network: &str, addr: &str| {
        scene.run(["run", "--network", network, "--", "ping", "-n", "-c", "1", "-W", "9", addr])
    };
    ping("red", "10.7.0.2").succeeded();
    ping("red", WORLD).succeeded();
    let ended = ping("bridge", "10.7.0.2");
    assert!(ended.stdout.contains("Packet filtered"), "{ended:?}");
    // An internal network has no default route: the command's own kernel says so.
    let ended = ping("blue", WORLD);
    assert!(ended.stderr.contains("Network is unreachable"), "{ended:?}");
    let ended = scene.run(["network", "rm", "red"]);
    ended.failed(1, &["network red has endpoints", "r1", "`pontoon detach"]);
    red.signal(Signal::SIGTERM);
    red.end();
    scene.run(["network", "rm", "red", "blue"]).succeeded();
    let names = scene.json(["network", "ls"]);
    assert_eq!(names.as_array().unwrap().len(), 1, "{names}");
}

#[test]
fn a_stopped_daemon_takes_everything_with_it() {
    let (true, Some(scene)) = (clients(&["ip"]), Scene::new(Who::User)) else { return };
    let container = container(&scene);
    scene.run(["daemon"]).succeeded();
    scene.run(["network", "create", "red"]).succeeded();
    let target = format!("pid:{}", container.pid());
    scene.run(["attach", &target, "-p", "8080:80", "-p", "5353:53/udp"]).succeeded();
    scene.run(["attach", &target, "--network", "red"]).succeeded();
    let inside = addresses(&scene, &container);
    assert!(inside.contains("eth0") && inside.contains("eth1"), "{inside}");
    assert!(!scene.bound().is_empty());
    scene.run(["daemon", "stop"]).succeeded();
    let inside = addresses(&scene, &container);
    assert!(!inside.contains("eth"), "{inside}");
    assert_eq!(scene.bound(), [""; 0]);
    drop(container);
    scene.is_clean();
    // And it is no error to stop what does not run.
    scene.run(["daemon", "stop"]).succeeded();
}

/// Its network goes with the daemon; the command goes on, and ends as it ends.
#[test]
fn a_command_outlives_the_daemon_and_says_nothing_of_it() {
    let Some(scene) = Scene::new(Who::User) else { return };
    let until_alone = "echo up; while grep -q eth0 /proc/net/dev; do sleep 0.1; done; exit 7";
    let command = scene.start(["run", "-p", "8080:80", "--", "sh", "-c", until_alone]);
    command.says("up");
    scene.run(["daemon", "stop"]).succeeded();
    let ended = command.end();
    assert_eq!((ended.status.code(), &*ended.stderr), (Some(7), ""), "{ended:?}");
    scene.is_clean();
}

#[test]
fn many_commands_at_once_start_one_daemon_and_get_an_address_each() {
    let Some(scene) = Scene::new(Who::User) else { return };
    let all: Vec<_> = (0..12)
        .map(|_| scene.start(["run", "--", "sh", "-c", "echo up; exec sleep 600"]))
        .collect();
    for one in &all {
        one.says("up");
    }
    let daemons = || {
        let processes = scene.processes().into_iter();
        processes.filter(|(_, line)| line.starts_with("pontoon daemon")).collect::<Vec<_>>()
    };
    assert_eq!(daemons().len(), 1, "{:?}", daemons());
    let ps = scene.json(["ps"]);
    let addresses: BTreeSet<_> =
        ps.as_array().unwrap().iter().map(|row| row["IPAddress"].as_str().unwrap()).collect();
    let expected: Vec<_> = (2..14).map(|last| format!("172.17.0.{last}")).collect();
    assert_eq!(addresses, expected.iter().map(String::as_str).collect());
    drop(all);
    wait_for("all of them to be gone", || scene.json(["ps"]) == serde_json::json!([]));
}

#[test]
fn the_api_is_one_curl_away() {
    let (true, Some(scene)) = (clients(&["curl"]), Scene::new(Who::User)) else { return };
    scene.run(["daemon"]).succeeded();
    let socket = scene.socket();
    let curl = |args: &[&str]| {
        let mut command = scene.command("curl");
        command.args(["-sS", "--max-time", "20", "--unix-socket"]).arg(&socket).args(args);
        let ended = Running::start(&scene.host, command).end().succeeded();
        serde_json::from_str::<Value>(&ended.stdout)
            .unwrap_or_else(|error| panic!("{error}: {ended:?}"))
    };
    assert_eq!(curl(&["http://pontoon/v1/version"])["ApiVersion"], "1");
    assert_eq!(curl(&["http://pontoon/v1/endpoints"]), serde_json::json!([]));
    let body = r#"{"Name":"red","Subnets":["10.7.0.0/24"]}"#;
    assert_eq!(curl(&["-d", body, "http://pontoon/v1/networks"])["Name"], "red");
    for (body, word) in
        [("{", "body"), (r#"{"Nmae":"x"}"#, "Nmae"), (r#"{"Name":"red"}"#, "exists")]
    {
        let answer = curl(&["-d", body, "http://pontoon/v1/networks"]);
        assert!(answer["message"].as_str().unwrap().contains(word), "{answer}");
    }
}
