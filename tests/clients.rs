//! The true program with other people's clients and servers, on a host in a namespace.

mod net;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use net::{HOST, HOST6, Running, Scene, WORLD, WORLD6, Who, clients, wait_for};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Fifty million octets that repeat nowhere near.
fn large() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..6_250_000).flat_map(|_| next()).collect()
}

/// A network of both families.
fn dual_stack(scene: &Scene) {
    let args = ["network", "create", "--subnet", "10.9.0.0/24", "--subnet", "fd00:9::/64", "both"];
    scene.run(args).succeeded();
}

/// Python's web server as the command of `pontoon run`, which serves `page`.
fn page_server(scene: &Scene, options: &[&str]) -> Running {
    let folder = scene.page("index.html", b"a page from inside\n");
    let mut args = vec!["run", "--dns", WORLD];
    args.extend(options);
    args.extend(["--", "python3", "-m", "http.server", "8000", "--bind", "::", "--directory"]);
    let mut command = scene.pontoon(args);
    command.arg(folder);
    let server = Running::start(&scene.host, command);
    server.says("Serving HTTP on");
    server
}

#[test]
fn a_published_page_reaches_clients_whose_addresses_the_server_logs() {
    let (true, Some(scene)) = (clients(&["curl", "python3"]), Scene::new(Who::User)) else {
        return;
    };
    dual_stack(&scene);
    let server = page_server(&scene, &["--network", "both", "-p", "8080:8000"]);
    for (client, addr, seen) in [
        (&scene.world, HOST, format!("::ffff:{WORLD} - - ")),
        (&scene.world, HOST6, format!("{WORLD6} - - ")),
        (&scene.host, HOST, format!("::ffff:{HOST} - - ")),
        (&scene.host, HOST6, format!("{HOST6} - - ")),
    ] {
        let host = if addr.contains(':') { format!("[{addr}]") } else { addr.to_owned() };
        let page = scene.curl(client, &format!("http://{host}:8080/")).succeeded();
        assert_eq!(page.stdout, "a page from inside\n");
        server.says(&seen);
    }
    // Loopback is no address to send an answer to: such a client is connected from inside, by a socket
    // made ahead, and seen as the container itself.
    wait_for("a loopback client to come from inside", || {
        scene.curl(&scene.host, "http://127.0.0.1:8080/").succeeded();
        server.written().contains("::ffff:10.9.0.2 - - ")
    });
}

#[test]
fn fifty_megabytes_arrive_as_sent_over_a_port_that_is_spliced_for_every_client() {
    let (true, Some(scene)) = (clients(&["curl", "python3"]), Scene::new(Who::User)) else {
        return;
    };
    dual_stack(&scene);
    let server =
        page_server(&scene, &["--network", "both", "-p", "8080:8000/tcp,splice", "--name", "web"]);
    let listed = scene.run(["port", "web"]).succeeded().stdout;
    assert!(listed.starts_with("8000/tcp,splice -> 0.0.0.0:8080\n"), "{listed}");
    wait_for("a client of the world to come from inside", || {
        scene.curl(&scene.world, &format!("http://{HOST}:8080/")).succeeded();
        server.written().contains("::ffff:10.9.0.2 - - ")
    });
    let octets = large();
    scene.page("large", &octets);
    for (client, addr) in [(&scene.world, HOST), (&scene.world, HOST6), (&scene.host, "127.0.0.1")]
    {
        let host = if addr.contains(':') { format!("[{addr}]") } else { addr.to_owned() };
        let file = scene.file("home").join("copy");
        let mut curl = scene.command("curl");
        curl.args(["-sS", "--globoff", "--max-time", "60", "-o"]).arg(&file);
        curl.arg(format!("http://{host}:8080/large"));
        Running::start(client, curl).end().succeeded();
        assert!(fs::read(&file).unwrap() == octets, "{addr}: not the octets sent");
    }
    let stats = scene.json(["stats"]);
    let moved: u64 = stats["Workers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|worker| worker["SplicedOctets"].as_u64().unwrap())
        .sum();
    assert!(moved > 150_000_000, "{moved} octets past the bridge");
}

#[test]
fn whatever_ends_the_command_nothing_is_left_of_it() {
    let (true, Some(scene)) = (clients(&["curl", "python3"]), Scene::new(Who::User)) else {
        return;
    };
    let scene = scene.env("PONTOON_IDLE_EXIT", "1");
    let begin = || {
        let server = page_server(&scene, &["-p", "8080:8000"]);
        scene.curl(&scene.world, &format!("http://{HOST}:8080/")).succeeded();
        assert!(!scene.bound().is_empty());
        server
    };
    let server = begin();
    server.interrupt();
    assert!(server.end().stdout.contains("Keyboard interrupt received"));
    scene.is_clean();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let server = begin();
        server.signal(signal);
        server.end();
        scene.is_clean();
    }
}

#[test]
fn the_command_ends_with_its_own_status() {
    let Some(scene) = Scene::new(Who::User) else { return };
    for (script, code) in [("true", 0), ("exit 7", 7), ("kill -TERM $$", 143)] {
        let ended = scene.run(["run", "--", "sh", "-c", script]);
        assert_eq!(ended.status.code(), Some(code), "{ended:?}");
    }
}

#[test]
fn the_world_answers_pings_in_both_families_and_says_where_no_way_leads() {
    let (true, Some(scene)) = (clients(&["ping"]), Scene::new(Who::User)) else { return };
    dual_stack(&scene);
    let ping = |addr| {
        scene.run([
            "run",
            "--network",
            "both",
            "--",
            "ping",
            "-n",
            "-c",
            "2",
            "-i",
            "0.2",
            "-W",
            "9",
            addr,
        ])
    };
    for addr in [WORLD, WORLD6, "10.9.0.1", "fd00:9::1"] {
        let ended = ping(addr).succeeded();
        assert!(ended.stdout.contains(" 0% packet loss"), "{ended:?}");
    }
    let ended = ping("192.0.2.55");
    assert!(ended.stdout.contains("Destination Net Unreachable"), "{ended:?}");
}

#[test]
fn a_host_whose_users_may_not_ping_says_so_instead_of_forging_answers() {
    let (true, Some(scene)) = (clients(&["ping"]), Scene::new(Who::User)) else { return };
    let close = || fs::write("/proc/sys/net/ipv4/ping_group_range", "1 0");
    scene.host.with(close).unwrap();
    // The container sees the host's files, pontoon among them.
    let look = format!(
        "ping -n -c 1 -W 9 {WORLD}; exec {} stats --format json",
        scene.file("pontoon").display()
    );
    let ended = scene.run(["run", "--name", "c1", "--", "sh", "-c", &look]).succeeded();
    let (ping, stats) = ended.stdout.split_at(ended.stdout.find('{').unwrap());
    assert!(ping.contains("Packet filtered"), "{ended:?}");
    let stats: Value = serde_json::from_str(stats).unwrap();
    let ports = stats["Ports"].as_array().unwrap().iter();
    let dropped = ports.filter_map(|port| port["Dropped"]["echo_not_permitted"].as_u64());
    assert_eq!(dropped.sum::<u64>(), 1, "{stats}");
}

#[test]
fn names_are_asked_for_over_udp_and_tcp_and_the_server_sees_the_host() {
    let (true, Some(scene)) = (clients(&["dig", "python3"]), Scene::new(Who::User)) else { return };
    dual_stack(&scene);
    for (server, host) in [(WORLD, HOST), (WORLD6, HOST6)] {
        let dns = scene.dns_server(&scene.world, server);
        let dig = |rest: &[&str]| {
            let at = format!("@{server}");
            let mut args =
                vec!["run", "--network", "both", "--", "dig", "+short", "+time=9", "+tries=1"];
            args.push(&at);
            args.extend(rest);
            scene.run(args).succeeded().stdout
        };
        assert_eq!(dig(&["www.example.net", "A"]).trim(), WORLD);
        assert_eq!(dig(&["www.example.net", "AAAA"]).trim(), WORLD6);
        dns.says(&format!("udp query from {host}"));
        assert_eq!(dig(&["+tcp", "www.example.net", "A"]).trim(), WORLD);
        dns.says(&format!("tcp query from {host}"));
        let text = dig(&["+bufsize=1232", "www.example.net", "TXT"]);
        assert_eq!(text.matches('x').count(), 1000, "{text}");
    }
}

#[test]
fn a_published_name_server_sees_who_asks_over_udp_and_tcp_in_both_families() {
    let (true, Some(scene)) = (clients(&["dig", "python3"]), Scene::new(Who::User)) else { return };
    dual_stack(&scene);
    for (bind, host, client) in [("0.0.0.0", HOST, WORLD), ("::", HOST6, WORLD6)] {
        let ports = ["-p", "5353:53/udp", "-p", "5353:53/tcp"];
        let server = scene.dns_server_inside(&[&["--network", "both"][..], &ports].concat(), bind);
        let at = format!("@{host}");
        let common = ["+short", "+time=9", "+tries=1", "-p", "5353", &at, "www.example.net"];
        let udp = scene.run_in(&scene.world, "dig", common).succeeded();
        assert_eq!(udp.stdout.trim(), WORLD);
        server.says(&format!("udp query from {client}"));
        let tcp = scene.run_in(&scene.world, "dig", common.into_iter().chain(["+tcp"])).succeeded();
        assert_eq!(tcp.stdout.trim(), WORLD);
        server.says(&format!("tcp query from {client}"));
        server.signal(Signal::SIGTERM);
        server.end();
    }
}

/// As a supervisor does that starts again at once what was killed.
#[test]
fn the_port_of_a_command_that_was_killed_is_there_for_the_next() {
    let (true, Some(scene)) = (clients(&["python3"]), Scene::new(Who::User)) else { return };
    for _ in 0..10 {
        for ports in [["-p", "5353:53/udp"], ["-p", "5353:53/tcp"]] {
            drop(scene.dns_server_inside(&ports, "0.0.0.0"));
        }
    }
}

#[test]
fn fifty_megabytes_arrive_as_they_were_sent_in_both_families() {
    let (true, Some(scene)) = (clients(&["curl", "python3"]), Scene::new(Who::User)) else {
        return;
    };
    dual_stack(&scene);
    let octets = large();
    let folder = scene.page("large", &octets);
    let server = scene.web_server(&scene.world, 8000, &folder);
    for (host, seen) in [(WORLD.to_owned(), HOST), (format!("[{WORLD6}]"), HOST6)] {
        let copy = scene.file("home").join("copy");
        let url = format!("http://{host}:8000/large");
        let args = ["run", "--network", "both", "--", "curl", "-sS", "--globoff", "-o"];
        let mut command = scene.pontoon(args);
        command.arg(&copy).arg(url);
        Running::start(&scene.host, command).end().succeeded();
        assert!(
            fs::read(&copy).unwrap() == octets,
            "{} octets came",
            fs::read(&copy).unwrap().len()
        );
        server.says(&format!("{seen} - - "));
    }
}

#[test]
fn each_hop_on_the_way_to_the_world_names_itself() {
    let (true, Some(scene)) = (clients(&["traceroute"]), Scene::new(Who::User)) else { return };
    let args = ["run", "--", "traceroute", "-n", "-q", "1", "-w", "9", "-m", "5", WORLD];
    let ended = scene.run(args).succeeded();
    let hops: Vec<_> =
        ended.stdout.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(hops, ["172.17.0.1", WORLD], "{ended:?}");
}

#[test]
fn nginx_behind_a_published_port_serves_a_large_file_to_the_world() {
    let (true, Some(scene)) = (clients(&["curl", "nginx"]), Scene::new(Who::User)) else { return };
    let octets = large();
    let folder = scene.page("large", &octets);
    let home = scene.file("home");
    let (own, www) = (home.display(), folder.display());
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|what| format!("{what}_temp_path {own}/{what};"))
        .join(" ");
    // In a user namespace of one user there is nobody else to become.
    let config = format!(
        "user root; daemon off; pid {own}/pid; error_log stderr; events {{}}
         http {{ access_log {own}/access.log; {temporary} server {{ listen 80; root {www}; }} }}"
    );
    let file = scene.file("nginx.conf");
    fs::write(&file, config).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let mut command = scene.pontoon(["run", "--name", "web", "-p", "8080:80", "--", "nginx", "-e"]);
    command.arg("stderr").arg("-c").arg(&file);
    let mut server = Running::start(&scene.host, command);
    let url = format!("http://{HOST}:8080/large");
    net::wait_for("nginx to listen", || {
        assert!(server.is_running(), "{server:?}");
        scene.curl(&scene.world, &format!("http://{HOST}:8080/nothing")).status.success()
    });
    let copy = scene.file("copy");
    let args = ["-sS", "-o", copy.to_str().unwrap(), &url];
    scene.run_in(&scene.world, "curl", args).succeeded();
    assert!(fs::read(&copy).unwrap() == octets);
    let log = fs::read_to_string(home.join("access.log")).unwrap();
    assert!(log.contains(&format!("{WORLD} - - ")), "{log}");
    server.signal(Signal::SIGTERM);
    server.end();
}

#[test]
fn iperf3_runs_between_two_containers_and_to_the_world() {
    let (true, Some(scene)) = (clients(&["iperf3"]), Scene::new(Who::User)) else { return };
    let inside = scene.start(["run", "--name", "server", "--", "iperf3", "-s", "--forceflush"]);
    inside.says("Server listening");
    let mut command = scene.as_root("iperf3");
    command.args(["-s", "--forceflush"]);
    let outside = Running::start(&scene.world, command);
    outside.says("Server listening");
    for server in ["172.17.0.2", WORLD] {
        for options in [&[][..], &["-R"], &["-u", "-b", "20M", "-l", "1200"]] {
            let mut args = vec!["run", "--", "iperf3", "-J", "-t", "1", "-c", server];
            args.extend(options);
            let ended = scene.run(args).succeeded();
            let report: Value = serde_json::from_str(&ended.stdout).unwrap();
            let end = &report["end"];
            let received = if options.contains(&"-u") { &end["sum"] } else { &end["sum_received"] };
            assert!(received["bytes"].as_u64() > Some(1_000_000), "{options:?} {report}");
            if options.contains(&"-u") {
                // A slow rate, of which a busy machine may lose some.
                let count = |what: &str| end["sum"][what].as_u64().unwrap();
                assert!(count("lost_packets") < count("packets") / 2, "{report}");
            }
        }
    }
}

#[test]
fn hundreds_of_connections_at_once_each_get_their_own_octets_back() {
    let (true, Some(scene)) = (clients(&["python3"]), Scene::new(Who::User)) else { return };
    dual_stack(&scene);
    let many = scene.many();
    let mut command = scene.as_root("python3");
    command.args([&*many, "serve", "9000"]);
    let outside = Running::start(&scene.world, command);
    outside.says("serving");
    let ports = ["-p", "9001:9000", "-p", "9001:9000/udp"];
    let args = ["run", "--network", "both"].into_iter().chain(ports);
    let inside = scene.start(args.chain(["--", "python3", &many, "serve", "9000"]));
    inside.says("serving");
    for server in [WORLD, WORLD6, "10.9.0.2", "fd00:9::2"] {
        let args =
            ["run", "--network", "both", "--", "python3", &many, "ask", "9000", server, "150"];
        let ended = scene.run(args).succeeded();
        assert!(ended.stdout.contains("answered 300"), "{ended:?}");
    }
    for host in [HOST, HOST6] {
        let args = [&*many, "ask", "9001", host, "150"];
        let ended = scene.run_in(&scene.world, "python3", args).succeeded();
        assert!(ended.stdout.contains("answered 300"), "{ended:?}");
    }
}

#[test]
fn a_container_reaches_published_ports_by_the_hosts_address_its_own_among_them() {
    let (true, Some(scene)) = (clients(&["curl", "python3"]), Scene::new(Who::User)) else {
        return;
    };
    let server = page_server(&scene, &["--name", "web", "-p", "8080:8000"]);
    let url = format!("http://{HOST}:8080/");
    for before in [&["run"][..], &["exec", "web"]] {
        let mut args = before.to_vec();
        args.extend(["--", "curl", "-sS", "--max-time", "20", &url]);
        assert_eq!(scene.run(args).succeeded().stdout, "a page from inside\n", "{server:?}");
    }
}

/// As with docker0: the host is a neighbour of its containers.
#[test]
fn as_root_the_host_reaches_a_container_by_its_own_address_and_the_other_way_round() {
    let (true, Some(scene)) = (clients(&["curl", "python3"]), Scene::new(Who::Root)) else {
        return;
    };
    let before = scene.interfaces();
    let server = page_server(&scene, &["--name", "web"]);
    let page = scene.curl(&scene.host, "http://172.17.0.2:8000/").succeeded();
    assert_eq!(page.stdout, "a page from inside\n");
    server.says("172.17.0.1 - - ");
    assert_eq!(scene.interfaces().difference(&before).count(), 1, "{:?}", scene.interfaces());
    let folder = scene.page("host.html", b"the host's own\n");
    let host = scene.web_server(&scene.host, 8888, &folder);
    for addr in ["172.17.0.1", HOST] {
        let url = format!("http://{addr}:8888/host.html");
        let args = ["exec", "web", "--", "curl", "-sS", "--max-time", "20", &url];
        assert_eq!(scene.run(args).succeeded().stdout, "the host's own\n");
        host.says("172.17.0.2 - - ");
    }
    drop(host);
    drop(server);
    scene.run(["daemon", "stop"]).succeeded();
    scene.is_clean();
}
