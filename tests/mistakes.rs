//! What is asked for and cannot be had: one line says what, why and what to do, and nothing is left.

mod net;

use std::fs;

use net::{Ended, HOST, Running, Scene, WORLD, Who, clients};

/// A scene whose daemon ends as soon as nobody needs it.
fn scene(who: Who) -> Option<Scene> {
    Some(Scene::new(who)?.env("PONTOON_IDLE_EXIT", "1"))
}

/// A listener on the host that is not pontoon's.
fn listener(scene: &Scene, port: u16, by_root: bool) -> Running {
    let script = format!(
        "import socket, signal; s = socket.socket(); s.bind(('', {port})); s.listen(); \
         print('listening', flush=True); signal.pause()"
    );
    let mut command = if by_root { scene.as_root("python3") } else { scene.command("python3") };
    command.args(["-c", &script]);
    let listener = Running::start(&scene.host, command);
    listener.says("listening");
    listener
}

#[test]
fn what_is_mistyped_is_named_and_nothing_is_started() {
    let Some(scene) = scene(Who::User) else { return };
    for args in [
        &["frobnicate"][..],
        &["ps", "--frobnicate"],
        &["run", "--frobnicate", "--", "true"],
        &["attach"],
        &["run"],
        &["ps", "--format", "xml"],
    ] {
        let ended = scene.run(args);
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr.starts_with("error: "), "{ended:?}");
        let wrong = args.iter().find(|arg| arg.contains("frobnicate") || **arg == "xml");
        assert!(ended.stderr.contains(wrong.unwrap_or(&"required")), "{ended:?}");
    }
    scene.is_clean();
}

#[test]
fn a_value_that_cannot_be_is_refused_by_what_would_do() {
    let Some(scene) = scene(Who::User) else { return };
    for (options, words) in [
        (&["-p", "foo:80"][..], &["foo", "[IP:]HOST:CTR"][..]),
        (&["-p", "8080:80/icmp"], &["icmp", "tcp"]),
        (&["-p", "8000-8001:80"], &["8000-8001:80"]),
        (&["-p", "70000:80"], &["70000"]),
        (&["-p", "192.0.2.1:8080:80"], &["192.0.2.1 is no address of this host"]),
        (&["-p", "80:80"], &["80", "net.ipv4.ip_unprivileged_port_start", "CAP_NET_BIND_SERVICE"]),
        (&["--ip", "192.0.2.1"], &["192.0.2.1", "172.17.0.0/16"]),
        (&["--ip", "172.17.0.1"], &["172.17.0.1"]),
        (&["--ip", "nonsense"], &["nonsense"]),
        (&["--mac-address", "01:00:5e:00:00:01"], &["01:00:5e:00:00:01"]),
        (&["--network", "nowhere"], &["no network nowhere", "`pontoon network ls`"]),
        (&["--name", "../../etc"], &["../../etc"]),
        (
            &["--uplink", "none", "--network", "bridge"],
            &["--uplink none", "pontoon network create"],
        ),
        (&["--link", "nobody"], &["no endpoint nobody", "`pontoon ps`"]),
    ] {
        let args = ["run"].iter().chain(options).chain(&["--", "true"]);
        scene.run(args).failed(125, words);
    }
    for (command, code) in
        [("/no/such/command", 127), ("no-such-command", 127), ("/etc/passwd", 126)]
    {
        scene.run(["run", "-p", "8080:80", "--", command]).failed(code, &[command]);
    }
    scene.is_clean();
}

#[test]
fn whoever_has_a_port_already_is_named() {
    let (true, Some(scene)) = (clients(&["python3"]), scene(Who::User)) else { return };
    let (own, roots) = (listener(&scene, 8080, false), listener(&scene, 8081, true));
    let ended = scene.run(["run", "-p", "8080:80", "--", "true"]);
    ended.failed(125, &["8080/tcp", &format!("pid {} (python3)", own.pid()), "choose another"]);
    // One of another user's cannot be looked at: it is said how to.
    let ended = scene.run(["run", "-p", "8081:80", "--", "true"]);
    ended.failed(125, &["8081/tcp", "another user's process", "ss -ltnp"]);
    // All or none: 8082 is not left behind.
    let ended = scene.run(["run", "-p", "8082:80", "-p", "8080:80", "--", "true"]);
    ended.failed(125, &["8080/tcp"]);
    drop((own, roots));
    scene.is_clean();
}

#[test]
fn a_target_that_is_not_there_is_named() {
    let Some(scene) = scene(Who::User) else { return };
    // Above pid_max (2^22), so there can be no such process.
    for (target, words) in [
        ("pid:4194305", &["no process 4194305"][..]),
        ("/no/such/netns", &["/no/such/netns"]),
        ("/etc/passwd", &["/etc/passwd"]),
        ("no-such-name", &["no-such-name", "`pontoon ns ls`"]),
    ] {
        scene.run(["attach", target]).failed(1, words);
    }
    // Somebody else's process, into whose namespaces we may not look.
    let own = std::process::id().to_string();
    scene.run(["attach", &own]).failed(1, &[&own]);
    for args in [["exec", "nobody", "--", "true"], ["run", "--network", "container:nobody", "true"]]
    {
        scene.run(args).failed(125, &["no endpoint nobody", "`pontoon ps`"]);
    }
    for args in [["detach", "nobody"], ["inspect", "nobody"], ["port", "nobody"]] {
        scene.run(args).failed(1, &["no endpoint nobody", "`pontoon ps`"]);
    }
    scene.is_clean();
}

#[test]
fn an_address_or_name_in_use_is_refused_with_its_owner() {
    let Some(scene) = scene(Who::User) else { return };
    let args = ["run", "--name", "one", "--", "sh", "-c", "echo up; exec sleep 600"];
    let one = scene.start(args);
    one.says("up");
    let args = ["run", "--ip", "172.17.0.2", "--", "true"];
    scene.run(args).failed(125, &["172.17.0.2", "endpoint one", "--ip"]);
    let args = ["run", "--name", "one", "--", "true"];
    scene.run(args).failed(125, &["one", "taken", "--name"]);
    let args = ["run", "--mac-address", "02:42:ac:11:00:02", "--", "true"];
    scene.run(args).failed(125, &["02:42:ac:11:00:02", "one", "--mac-address"]);
    drop(one);
    scene.is_clean();
}

#[test]
fn a_subnet_the_host_has_is_refused_and_the_default_one_gives_way() {
    let (true, Some(scene)) = (clients(&["ip"]), scene(Who::User)) else { return };
    let ip = |args: &str| scene.run_in(&scene.host, "ip", args.split(' ')).succeeded();
    ip("address add 172.17.9.1/24 dev up0");
    let ended =
        scene.run(["run", "--", "ip", "-4", "-brief", "address", "show", "eth0"]).succeeded();
    assert!(ended.stdout.contains("172.18.0.2/16"), "{ended:?}");
    assert!(ended.stderr.contains("172.17.0.0/16"), "it says why: {ended:?}");
    for subnet in ["172.17.0.0/16", "198.51.100.0/25", "198.51.0.0/16", "172.18.128.0/17"] {
        let ended = scene.run(["network", "create", "--subnet", subnet, "red"]);
        ended.failed(1, &[subnet, "overlaps", "--subnet"]);
    }
    for subnet in ["10.0.0.0/31", "10.0.0.0", "fd00::/128", "300.0.0.0/8"] {
        scene.run(["network", "create", "--subnet", subnet, "red"]).failed(1, &[subnet]);
    }
    ip("address del 172.17.9.1/24 dev up0");
    scene.is_clean();
}

#[test]
fn an_interface_that_is_not_for_the_user_or_no_segment_is_named() {
    let Some(scene) = scene(Who::User) else { return };
    for kind in ["raw", "bridge"] {
        let uplink = format!("{kind}:up0");
        let create = ["network", "create", "--uplink", &uplink, "lan"];
        scene.run(create).failed(1, &["up0", "CAP_NET_RAW", "run as root"]);
        scene.run(["run", "--uplink", &uplink, "--", "true"]).failed(125, &["CAP_NET_RAW"]);
        let uplink = format!("{kind}:up1");
        let create = ["network", "create", "--uplink", &uplink, "lan"];
        scene.run(create).failed(1, &["there is no interface up1", "did you mean up0?"]);
    }
    scene.is_clean();
    let Some(scene) = self::scene(Who::Root) else { return };
    // The world's own, which it defends (RFC 5227 §2.1.1): nothing of the network is left then.
    let uplink = format!("raw:up0,address={WORLD}/24,address6=none");
    let ended = scene.run(["network", "create", "--uplink", &uplink, "lan"]);
    ended.failed(1, &[WORLD, "is in use on up0 by ", "--uplink raw:up0,address=ADDR/LEN"]);
    assert_eq!(scene.json(["network", "ls"]).as_array().map(Vec::len), Some(1));
    scene.host.enter(|| netns::link::set_down("up0")).unwrap();
    let create = ["network", "create", "--uplink", "raw:up0", "lan"];
    scene.run(create).failed(1, &["interface up0 is down", "`ip link set up0 up`"]);
    scene.is_clean();
}

/// `pontoon run` by the user, behind a script that `wrapper` runs as root.
fn after(scene: &Scene, wrapper: &[&str], script: &str) -> Ended {
    let pontoon = scene.pontoon(["run", "-p", "8080:80", "--", "true"]);
    let (uid, gid) = scene.ids().expect("a user");
    let words = [pontoon.get_program()].into_iter().chain(pontoon.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    let mut command = scene.as_root(wrapper[0]);
    command.envs(pontoon.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.args(&wrapper[1..]).args(["sh", "-c"]).arg(format!(
        "{script} && exec setpriv --reuid {uid} --regid {gid} --clear-groups {}",
        words.join(" ")
    ));
    Running::start(&scene.host, command).end()
}

#[test]
fn a_tun_device_that_is_not_there_or_not_ours_is_explained() {
    let Some(scene) = scene(Who::User) else { return };
    let after = |script| after(&scene, &["unshare", "--mount"], script);
    after("mount -t tmpfs none /dev/net").failed(125, &["/dev/net/tun", "modprobe tun"]);
    scene.is_clean();
    let closed =
        "cp -a /dev/net/tun closed && chmod 600 closed && mount --bind closed /dev/net/tun";
    after(closed).failed(125, &["/dev/net/tun", "chmod 666 /dev/net/tun"]);
    scene.is_clean();
    after("mount --bind /dev/null /dev/net/tun").failed(125, &["/dev/net/tun"]);
    scene.is_clean();
}

#[test]
fn without_user_namespaces_a_user_is_told_which_switch_forbids_them() {
    let Some(scene) = scene(Who::User) else { return };
    // In a user namespace where root is root and the user the user, there shall be no more of them.
    let mut command = scene.as_root("unshare");
    command.args(["--user", "sh", "-c", "echo here; exec sleep 600"]);
    let holder = Running::start(&scene.host, command);
    holder.says("here");
    for map in ["gid_map", "uid_map"] {
        fs::write(format!("/proc/{}/{map}", holder.pid()), "0 0 65536").unwrap();
    }
    let user = format!("--user=/proc/{}/ns/user", holder.pid());
    let ended = after(&scene, &["nsenter", &user], "echo 0 > /proc/sys/user/max_user_namespaces");
    ended.failed(125, &["user namespace", "user.max_user_namespaces"]);
    drop(holder);
    scene.is_clean();
}

#[test]
fn a_socket_where_none_can_be_is_explained() {
    let Some(mut scene) = Scene::new(Who::User) else { return };
    let long = format!("/tmp/{}/pontoon.sock", "long".repeat(30));
    for (path, words) in [
        (&*long, &["107 octets", "PONTOON_SOCKET"][..]),
        ("/proc/nowhere/pontoon.sock", &["/proc/nowhere"]),
        ("/tmp/pontoon.sock/..", &["PONTOON_SOCKET"]),
    ] {
        scene = scene.env("PONTOON_SOCKET", path);
        scene.run(["ps"]).failed(1, words);
    }
}

#[test]
fn a_daemon_that_runs_already_is_no_surprise() {
    let Some(scene) = scene(Who::User) else { return };
    let foreground = scene.start(["daemon", "--foreground"]);
    foreground.says("listening on");
    let pid = foreground.pid().to_string();
    scene.run(["daemon"]).failed(1, &["already running", &pid]);
    scene.run(["daemon", "--foreground"]).failed(1, &["already running", &pid]);
    scene.run(["daemon", "stop"]).succeeded();
    foreground.end().succeeded();
    scene.is_clean();
    // Killed, it leaves a socket that is nobody's, and the next one takes its place.
    let killed = scene.start(["daemon", "--foreground"]);
    killed.says("listening on");
    drop(killed);
    assert!(scene.socket().exists());
    scene.run(["run", "--", "true"]).succeeded();
    scene.is_clean();
}

#[test]
fn a_page_that_nobody_serves_is_refused_and_not_left_hanging() {
    let (true, Some(scene)) = (clients(&["curl"]), scene(Who::User)) else { return };
    let args = ["run", "-p", "8080:80", "--", "sh", "-c", "echo up; exec sleep 600"];
    let silent = scene.start(args);
    silent.says("up");
    assert!(!scene.listening().is_empty());
    let ended = scene.curl(&scene.world, &format!("http://{HOST}:8080/"));
    // A reset, which curl meets while it sends, while it waits for an answer, or, if it is quick
    // enough, while it still connects: curl(1), EXIT CODES 56, 52 and 7.
    assert!(matches!(ended.status.code(), Some(56 | 52 | 7)), "{ended:?}");
    assert!(!ended.stderr.contains("timed out"), "{ended:?}");
    drop(silent);
    scene.is_clean();
}
