//! The cases.

use std::process::Stdio;

use crate::{Case, Host, greeting, text, until};

pub(crate) const ALL: &[Case] = &[
    ("exit codes are docker's", exit_codes_are_dockers),
    ("a command of run sees its network and files", a_command_sees_its_network_and_files),
    ("none, host and container", none_host_and_container),
    ("links and hosts", links_and_hosts),
    ("exec goes where run is", exec_goes_where_run_is),
    ("published from the start, and later", published_from_the_start_and_later),
    ("all that it listens on", all_that_it_listens_on),
    ("the uplink is the network's", the_uplink_is_the_networks),
    ("what an uplink cannot be", what_an_uplink_cannot_be),
    ("networks on the command line", networks_on_the_command_line),
    ("attach and detach", attach_and_detach),
    ("listings", listings),
    ("a run that is killed leaves nothing", a_run_that_is_killed_leaves_nothing),
    ("the daemon comes and goes", the_daemon_comes_and_goes),
    ("the default network as configured", the_default_network_as_configured),
    ("help, completions and pages", help_completions_and_pages),
];

/// Names of the interfaces in `/proc/net/dev`, and whether there is a default route.
const LOOK: &str = "sed -n 's/^ *\\([a-z0-9]*\\):.*/\\1/p' /proc/net/dev; \
    if grep -q '^eth[0-9][[:space:]]00000000[[:space:]]' /proc/net/route; then echo routed; fi";

fn netns() -> String {
    let own = std::fs::read_link("/proc/self/ns/net").expect("/proc");
    own.to_str().expect("UTF-8").to_owned()
}

fn exit_codes_are_dockers(host: &Host) {
    assert_eq!(host.pontoon(&["run", "--", "true"]).status.code(), Some(0));
    for (args, code, says) in [
        (&["run", "--", "sh", "-c", "exit 7"][..], 7, ""),
        (&["run", "--", "sh", "-c", "kill -TERM $$"], 143, ""),
        (&["run", "--", "no-such-command"], 127, "command not found"),
        (&["run", "--", "/proc/version"], 126, "cannot be executed"),
        (&["run", "--network", "nowhere", "--", "true"], 125, "no network nowhere"),
        (&["run", "--ip", "10.0.0.1", "--", "true"], 125, "outside 172.17.0.0/16"),
        (&["run", "--network", "host", "--", "no-such-command"], 127, "command not found"),
        (&["run"], 2, "CMD"),
        (&["run", "--uplink", "raw", "--", "true"], 2, "sockets, none, raw:IF or bridge:IF"),
        (&["run", "--uplink", "raw:nic0", "--", "true"], 125, "there is no interface nic0"),
        (&["exec", "nobody", "--", "true"], 125, "no endpoint nobody"),
        (&["detach", "nobody"], 1, "no endpoint nobody"),
        (&["nonsense"], 2, "nonsense"),
    ] {
        let (exited, said) = host.fails(args);
        assert_eq!(exited, code, "{args:?}: {said}");
        assert!(said.contains(says), "{args:?}: {said}");
    }
    assert_eq!(host.says(&["ps", "--quiet"]), "", "nothing is left");
}

fn a_command_sees_its_network_and_files(host: &Host) {
    let seen = host.says(&["run", "--", "sh", "-c", LOOK]);
    assert_eq!(seen, "lo\neth0\nrouted");
    let files = host.says(&[
        "run",
        "--name",
        "c1",
        "--dns",
        "192.0.2.53",
        "--add-host",
        "db:192.0.2.7",
        "--",
        "cat",
        "/etc/resolv.conf",
        "/etc/hosts",
    ]);
    assert!(files.starts_with("nameserver 192.0.2.53\n"), "{files}");
    assert!(files.contains("\n192.0.2.7\tdb\n") && files.contains("\n172.17.0.2\tc1 "), "{files}");
    // Ours are as they were.
    let ours = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    assert!(!ours.contains("192.0.2.7"));
    let input = "through standard input";
    let mut child = host.command(&["run", "--", "cat"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("run");
    std::io::Write::write_all(&mut child.stdin.take().expect("a pipe"), input.as_bytes())
        .expect("sent");
    assert_eq!(text(&child.wait_with_output().expect("ended").stdout), input);
}

fn none_host_and_container(host: &Host) {
    assert_eq!(
        host.says(&["run", "--network", "none", "--", "sh", "-c", LOOK]).lines().next(),
        Some("lo")
    );
    let ours = host.says(&["run", "--network", "host", "--", "readlink", "/proc/self/ns/net"]);
    assert_eq!(ours, netns());
    let _web = host.greeter("web", 80, &[]);
    let theirs = host.says(&["exec", "web", "--", "readlink", "/proc/self/ns/net"]);
    assert_ne!(theirs, netns());
    let joined = ["run", "--network", "container:web", "--", "readlink", "/proc/self/ns/net"];
    assert_eq!(host.says(&joined), theirs);
    for (args, says) in [
        (
            &["run", "--network", "container:web", "-p", "80:80", "--", "true"][..],
            "publish add web",
        ),
        (&["run", "--network", "container:web", "--ip", "172.17.0.9", "--", "true"], "--ip"),
        (&["run", "--network", "none", "-p", "80:80", "--", "true"], "-p"),
        (
            &["run", "--network", "host", "--mac-address", "02:00:00:00:00:01", "--", "true"],
            "--mac-address",
        ),
    ] {
        let (code, said) = host.fails(args);
        assert!(code == 125 && said.contains(says), "{args:?}: {said}");
    }
}

fn links_and_hosts(host: &Host) {
    let _db = host.greeter("db", 5432, &[]);
    let hosts = host.says(&["run", "--link", "db:database", "--", "cat", "/etc/hosts"]);
    let line = hosts.lines().find(|line| line.contains("database")).expect("a line");
    assert!(line.starts_with("172.17.0.2\tdatabase ") && line.ends_with(" db"), "{line}");
    host.says(&["network", "create", "net0"]);
    let (code, said) = host.fails(&["run", "--network", "net0", "--link", "db", "--", "true"]);
    assert!(code == 125 && said.contains("it is on network bridge"), "{said}");
}

fn exec_goes_where_run_is(host: &Host) {
    let _web = host.greeter("web", 80, &["--add-host", "db:192.0.2.7"]);
    assert_eq!(host.says(&["exec", "web", "--", "sh", "-c", LOOK]), "lo\neth0\nrouted");
    assert!(host.says(&["exec", "web", "--", "cat", "/etc/hosts"]).contains("192.0.2.7\tdb"));
    assert_eq!(host.fails(&["exec", "web", "--", "sh", "-c", "exit 9"]).0, 9);
    assert_eq!(host.fails(&["exec", "web", "--", "no-such-command"]).0, 127);
}

fn published_from_the_start_and_later(host: &Host) {
    let _web = host.greeter("web", 80, &["-p", "127.0.0.1:8080:80"]);
    assert_eq!(greeting("127.0.0.1:8080"), "hello");
    assert_eq!(host.says(&["port", "web"]), "80/tcp -> 127.0.0.1:8080");
    assert_eq!(host.says(&["port", "web", "80"]), "127.0.0.1:8080");
    let added = host.says(&["publish", "add", "web", "9000-9002:79-81"]);
    assert_eq!(added.lines().count(), 6, "{added}");
    assert_eq!(greeting("127.0.0.1:9001"), "hello");
    assert!(host.says(&["ps"]).contains("0.0.0.0:9000-9002->79-81/tcp"));
    let (code, said) = host.fails(&["publish", "add", "web", "9001:1"]);
    assert!(code == 1 && said.contains("endpoint web publishes it"), "{said}");
    host.says(&["publish", "rm", "web", "9000-9002:79-81"]);
    assert_eq!(host.says(&["port", "web"]), "80/tcp -> 127.0.0.1:8080");
    assert!(std::net::TcpStream::connect("127.0.0.1:9001").is_err());
    let found = host.says(&["publish", "add", "web", "127.0.0.1::80"]);
    let addr = found.strip_prefix("80/tcp -> ").expect("a line");
    assert_eq!(greeting(addr), "hello");
    let inspected = host.json(&["inspect", "web"]);
    assert_eq!(inspected[0]["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"], "8080");
}

fn all_that_it_listens_on(host: &Host) {
    let _web = host.greeter("web", 8123, &["-P"]);
    let ports = until("a port", || {
        let found = host.pontoon(&["port", "web", "8123"]);
        found.status.success().then(|| text(&found.stdout))
    });
    assert_eq!(greeting(ports.lines().next().expect("a line")), "hello");
}

fn the_uplink_is_the_networks(host: &Host) {
    let look = &["--", "sh", "-c", LOOK][..];
    assert!(host.says(&[&["run", "--uplink", "none"][..], look].concat()).contains("eth0"));
    assert!(!host.says(&["network", "ls"]).contains("no-uplink"), "it went with its endpoint");
    let (code, said) =
        host.fails(&["run", "--network", "bridge", "--uplink", "none", "--", "true"]);
    assert!(code == 125 && said.contains("network create --uplink none"), "{said}");
    host.says(&["run", "--uplink", "sockets", "--", "true"]);
    host.fails(&["run", "--uplink", "bridge:nic0", "--", "true"]);
    assert_eq!(host.json(&["network", "ls", "--format", "json"]).as_array().map(Vec::len), Some(1));
}

/// What cannot be is refused before a daemon is started for it, by a message that says what can.
fn what_an_uplink_cannot_be(host: &Host) {
    for (args, says) in [
        (&["--uplink", "tap:eth0"][..], "it is sockets, none, raw:IF or bridge:IF"),
        (&["--uplink", "raw:eth0,adress=1.2.3.4/8"], "has address=ADDR/LEN, gateway=ADDR"),
        (&["--uplink", "raw:eth0,address=1.2.3.4"], "prefix length, as in 203.0.113.5/24"),
        (&["--snat-to", "203.0.113.0/24"], "203.0.113.8-203.0.113.15"),
        (&["--filtering", "full-cone"], "adf (whoever was spoken to; the default)"),
        (&["--timeouts", "bsd"], "begin with rfc or linux"),
        (&["--timeouts", "rfc,tcp-open=1h"], "the timers are tcp-syn-sent, "),
        (&["--timeouts", "rfc,icmp=soon"], "as in 90s, 5m or 2h4m"),
        (&["--nat46", "yes"], "off, on, or IPv4 addresses"),
        (&["--prefix6", "fd00::/64"], "INSIDE=OUTSIDE, as in"),
    ] {
        let (code, said) = host.fails(&[&["network", "create", "net0"][..], args].concat());
        assert!(code == 2 && said.contains(says) && said.contains(args[0]), "{args:?}: {said}");
        let (code, said) = host.fails(&[&["network", "set", "bridge"][..], args].concat());
        assert!(code == 2 && said.contains(says), "{args:?}: {said}");
    }
    let (code, said) = host.fails(&["network", "set", "bridge"]);
    assert!(code == 2 && said.contains("--timeouts"), "{said}");
    assert!(!host.directory.path().join("pontoon.sock").exists());
    for (args, says) in [
        (&["--snat-to", "203.0.113.8"][..], "use --uplink raw:IF"),
        (&["--uplink", "none", "--filtering", "eif"], "the uplink is none, which leads nowhere"),
        (&["--uplink", "raw:lo"], "lo is the loopback"),
        (&["--uplink", "raw:pontoon0"], "interface pontoon0 is one of pontoon's own"),
        (&["--uplink", "raw:nic0"], "there is no interface nic0"),
        (&["--uplink", "bridge:nic0"], "there is no interface nic0"),
        (&["--uplink", "raw:nic0", "--internal"], "an internal network has none"),
        (&["--uplink", "raw:nic0", "--snat-to", "2001:db8::8"], "no IPv6 subnet"),
        (&["--ip-range", "10.0.0.0/24"], "ip-range 10.0.0.0/24 is in no subnet"),
    ] {
        let (code, said) = host.fails(&[&["network", "create", "net0"][..], args].concat());
        assert!(code == 1 && said.contains(says), "{args:?}: {said}");
    }
    let (_, said) = host.fails(&["nat", "bridge"]);
    assert!(said.contains("has the uplink sockets, where no rules are"), "{said}");
    assert_eq!(host.json(&["nat", "--format", "json"]), serde_json::json!([]));
    assert!(text(&host.pontoon(&["nat"]).stderr).contains("no network has a raw uplink"));
    let (code, said) = host.fails(&["nat", "--as", "linux", "--format", "json"]);
    assert!(code == 2 && said.contains("cannot be used with"), "{said}");
    host.says(&["network", "set", "bridge", "--filtering", "eif", "--timeouts", "linux,icmp=90"]);
    let options = &host.json(&["network", "inspect", "bridge"])[0]["Options"];
    assert_eq!(options["pontoon.filtering"], "eif");
    assert_eq!(options["pontoon.timeouts"], "linux,icmp=90s");
    let short = host.pontoon(&["network", "set", "bridge", "--timeouts", "rfc,udp-stream=30"]);
    assert!(text(&short.stderr).contains("less than the 120s of RFC 4787 REQ-5"));
}

fn networks_on_the_command_line(host: &Host) {
    let id = host.says(&["network", "create", "--subnet", "172.100.0.0/16", "net0"]);
    assert_eq!(id.len(), 64);
    let listed = host.says(&["network", "ls"]);
    assert!(listed.starts_with("NETWORK ID"), "{listed}");
    let row = listed.lines().find(|line| line.contains("net0")).expect("a row");
    assert!(row.starts_with(&id[..12]) && row.contains("172.100.0.0/16"), "{row}");
    let inspected = host.json(&["network", "inspect", "net0"]);
    assert_eq!(inspected[0]["IPAM"]["Config"][0]["Gateway"], "172.100.0.1");
    let web = host.greeter("web", 80, &["--network", "net0", "--ip", "172.100.0.9"]);
    let (_, said) = host.fails(&["network", "rm", "net0"]);
    assert!(said.contains("has endpoints (web)"), "{said}");
    host.says(&["network", "set", "net0", "--gateway", "none"]);
    assert_eq!(host.says(&["exec", "web", "--", "sh", "-c", LOOK]), "lo\neth0");
    host.says(&["network", "set", "net0", "--gateway", "172.100.0.254"]);
    assert!(host.says(&["exec", "web", "--", "sh", "-c", LOOK]).ends_with("routed"));
    drop(web);
    assert_eq!(host.says(&["network", "rm", "net0"]), "net0");
    let (code, said) = host.fails(&["network", "create", "--subnet", "172.17.0.0/24", "net1"]);
    assert!(code == 1 && said.contains("of network bridge"), "{said}");
}

fn attach_and_detach(host: &Host) {
    let mut sleeper = host.keeps(&["run", "--network", "none", "--", "sleep", "60"]);
    let pid = until("its command", || {
        let children = format!("/proc/{0}/task/{0}/children", sleeper.0.id());
        let pid: u32 =
            std::fs::read_to_string(children).ok()?.split_whitespace().next()?.parse().ok()?;
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        (comm == "sleep\n").then_some(pid)
    });
    let pid = pid.to_string();
    assert_eq!(
        host.says(&["attach", &pid, "--name", "late", "--ip", "172.17.0.77", "-p", "8081:81"]),
        "late"
    );
    let endpoint = host.json(&["inspect", "late"]);
    assert_eq!(endpoint[0]["State"]["Pid"].to_string(), pid);
    assert_eq!(endpoint[0]["NetworkSettings"]["IPAddress"], "172.17.0.77");
    assert_eq!(endpoint[0]["NetworkSettings"]["MacAddress"], "02:42:ac:11:00:4d");
    assert_eq!(host.says(&["exec", "late", "--", "sh", "-c", LOOK]), "lo\neth0\nrouted");
    let path = format!("/proc/{pid}/ns/net");
    assert_eq!(host.says(&["attach", &path, "--name", "again", "--veth"]), "again");
    assert_eq!(host.json(&["inspect", "again"])[0]["Endpoint"]["Interface"], "eth1");
    assert_eq!(host.says(&["detach", "again", "late"]), "again\nlate");
    assert!(sleeper.0.try_wait().expect("our child").is_none(), "the process goes on");
    let (_, said) = host.fails(&["attach", "4194305"]);
    assert!(said.contains("no process 4194305"), "{said}");
    let (_, said) = host.fails(&["attach", "no-such-name"]);
    assert!(said.contains("/run/netns/no-such-name"), "{said}");
}

fn listings(host: &Host) {
    let _web = host.greeter("web", 80, &["-p", "8080:80"]);
    greeting("127.0.0.1:8080");
    for args in [
        &["ps"][..],
        &["port", "web"],
        &["publish", "ls"],
        &["network", "ls"],
        &["ns", "ls"],
        &["fdb"],
        &["neigh"],
        &["conntrack"],
        &["stats"],
    ] {
        let table = host.says(args);
        assert!(!table.contains('\x1b'), "{args:?}: colour on a pipe");
        assert!(table.lines().all(|line| line == line.trim_end()), "{args:?}: {table}");
        let json = host.json(&[args, &["--format", "json"]].concat());
        assert!(json.is_array() || json["Ports"].is_array(), "{args:?}: {json}");
    }
    let fdb = host.says(&["fdb", "bridge"]);
    assert!(fdb.contains("02:42:ac:11:00:01") && fdb.contains("permanent"), "{fdb}");
    assert!(fdb.contains("02:42:ac:11:00:02") && fdb.contains("web"), "{fdb}");
    assert!(host.says(&["neigh"]).contains("172.17.0.2"));
    let stats = host.json(&["stats", "--format", "json"]);
    for port in stats["Ports"].as_array().expect("a list") {
        let number = |field: &str| port[field].as_u64().expect("a number");
        let dropped: u64 =
            port["Dropped"].as_object().expect("reasons").values().filter_map(|n| n.as_u64()).sum();
        assert_eq!(
            number("RxFrames"),
            number("Forwarded") + number("Consumed") + dropped,
            "{port}"
        );
    }
}

fn a_run_that_is_killed_leaves_nothing(host: &Host) {
    let mut web = host.greeter("web", 80, &["-p", "8080:80"]);
    web.0.kill().expect("killed");
    until("its end", || host.says(&["ps", "--quiet"]).is_empty().then_some(()));
    std::net::TcpListener::bind("0.0.0.0:8080").expect("nobody listens there");
}

fn the_daemon_comes_and_goes(host: &Host) {
    let socket = host.directory.path().join("pontoon.sock");
    assert!(!socket.exists());
    // Many who need it at once start one.
    let starters: Vec<_> = (0..6)
        .map(|_| host.command(&["network", "ls"]).stdout(Stdio::piped()).spawn().expect("started"))
        .collect();
    let ids: std::collections::BTreeSet<String> = starters
        .into_iter()
        .map(|starter| starter.wait_with_output().expect("ended"))
        .map(|output| text(&output.stdout).lines().last().expect("a row").to_owned())
        .collect();
    assert_eq!(ids.len(), 1, "one daemon answered all: {ids:?}");
    let (code, said) = host.fails(&["daemon"]);
    assert!(code == 1 && said.contains("daemon already running (pid "), "{said}");
    let (code, said) = host.fails(&["daemon", "--foreground"]);
    assert!(code == 1 && said.contains("daemon already running (pid "), "{said}");
    host.says(&["daemon", "stop"]);
    assert!(!socket.exists());
    let stopped = host.pontoon(&["daemon", "stop"]);
    assert!(stopped.status.success() && text(&stopped.stderr).contains("no daemon is running"));
    let idle = host.command(&["ps"]).env("PONTOON_IDLE_EXIT", "1").output().expect("started");
    assert!(idle.status.success() && socket.exists());
    until("its end", || (!socket.exists()).then_some(()));
    let wrong = host.command(&["ps"]).env("PONTOON_IDLE_EXIT", "soon").output().expect("ended");
    assert!(text(&wrong.stderr).contains("PONTOON_IDLE_EXIT=soon"), "{}", text(&wrong.stderr));
    let long = "x".repeat(120);
    let long = host.command(&["ps"]).env("PONTOON_SOCKET", format!("/tmp/{long}")).output();
    assert!(text(&long.expect("ended").stderr).contains("longer than 107 octets"));
}

fn the_default_network_as_configured(host: &Host) {
    let config = host.directory.path().join("daemon.json");
    let path = config.to_str().expect("UTF-8");
    std::fs::write(&config, r#"{"bip": "192.168.1.0/24"}"#).expect("written");
    let (code, said) = host.fails(&["daemon", "--config", path]);
    assert!(code == 1 && said.contains("bip = \"192.168.1.0/24\""), "{said}");
    let text = r#"{"bip": "192.168.1.1/24", "fixed-cidr": "192.168.1.128/25", "mtu": 1400,
        "default-gateway": "192.168.1.254", "dns": ["10.20.1.2"], "log-driver": "none"}"#;
    std::fs::write(&config, text).expect("written");
    host.says(&["daemon", "--config", path]);
    let seen = host.says(&[
        "run",
        "--name",
        "c1",
        "--",
        "sh",
        "-c",
        "cat /etc/resolv.conf /proc/net/route",
    ]);
    assert!(seen.starts_with("nameserver 10.20.1.2\n"), "{seen}");
    // /proc/net/route has addresses in the machine's order.
    let router = format!("{:08X}", u32::from_ne_bytes([192, 168, 1, 254]));
    assert!(seen.contains(&router), "{seen}");
    let _web = host.greeter("web", 80, &[]);
    let endpoint = host.json(&["inspect", "web"]);
    assert_eq!(endpoint[0]["NetworkSettings"]["IPAddress"], "192.168.1.128");
    assert_eq!(endpoint[0]["Endpoint"]["MTU"], 1400);
}

fn help_completions_and_pages(host: &Host) {
    assert!(host.says(&["run", "--help"]).contains("Examples:"));
    assert!(host.says(&["--version"]).starts_with("pontoon 0."));
    assert!(host.says(&["completions", "bash"]).contains("_pontoon"));
    assert!(host.says(&["man"]).contains(".TH"));
    let directory = host.directory.path().to_str().expect("UTF-8");
    host.says(&["man", "--directory", directory]);
    assert!(host.directory.path().join("pontoon-network-create.1").exists());
}
