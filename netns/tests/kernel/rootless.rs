//! The same without privilege: namespaces owned by a user namespace of the user's own.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use netns::{
    EndpointConfig, Error, ExecConfig, Kind, Mounts, Netns, NewUser, Opened, Running, SocketKind,
    SocketMaker, SpawnConfig, Target, attach, detach, exec_in, exit_code, look, named,
    set_gateways, sockets_in, spawn_in_new_namespaces,
};

use crate::Case;
use crate::commands::{Output, shell};
use crate::lab::{HELPER, Wire, argv, config, eventually, pattern, pipe, skip};

pub(crate) const CASES: &[Case] = &[
    ("we_are_nobody", we_are_nobody),
    ("run_makes_us_root_of_a_network", run_makes_us_root_of_a_network),
    ("run_can_leave_us_who_we_are", run_can_leave_us_who_we_are),
    ("endpoints_of_two_users_namespaces_meet", endpoints_of_two_users_namespaces_meet),
    ("a_namespace_of_unshare_is_as_good", a_namespace_of_unshare_is_as_good),
    ("failures_inside_come_back_as_they_are", failures_inside_come_back_as_they_are),
    ("exec_enters_user_and_mounts", exec_enters_user_and_mounts),
    ("what_is_not_ours_is_refused", what_is_not_ours_is_refused),
    ("without_a_tun_device_the_error_says_so", without_a_tun_device_the_error_says_so),
    ("names_need_root", names_need_root),
    ("a_limit_of_user_namespaces_is_named", a_limit_of_user_namespaces_is_named),
];

/// A command that lives as long as its input, in namespaces of its own.
struct Guest {
    running: Running,
    _input: File,
}

impl Guest {
    fn new(user: NewUser, new_mount: bool) -> Self {
        let (input, reader) = pipe();
        let spawn =
            SpawnConfig { user, new_mount, stdio: [Some(reader), None, None], ..shell("exec cat") };
        let held = spawn_in_new_namespaces(spawn).expect("spawn");
        Self { running: held.release().expect("release"), _input: input }
    }

    fn target(&self) -> Target {
        Target::Pid(self.running.pid())
    }

    fn netns(&self) -> Netns {
        self.target().open().expect("alive")
    }

    /// Runs a script inside; its status.
    fn run(&self, script: &str) -> u8 {
        let config = ExecConfig { argv: argv(&["sh", "-c", script]), ..ExecConfig::default() };
        exit_code(exec_in(&self.target(), config).expect("exec"))
    }
}

fn we_are_nobody() {
    assert!(!nix::unistd::geteuid().is_root());
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let caps = status.lines().find(|line| line.starts_with("CapEff")).expect("a line");
    assert!(caps.ends_with("0000000000000000"), "{caps}");
    let err = netns::Netns::create().expect_err("needs a privilege");
    assert!(err.to_string().contains("`pontoon run`"), "{err:#}");
}

fn output_of(spawn: SpawnConfig) -> String {
    let (output, writer) = Output::new();
    let spawn = SpawnConfig { stdio: [None, Some(writer), None], ..spawn };
    let mut running = spawn_in_new_namespaces(spawn).expect("spawn").release().expect("release");
    assert!(running.wait().expect("wait").success());
    output.read()
}

fn run_makes_us_root_of_a_network() {
    let said = output_of(shell("id -u; id -g; cat /proc/self/setgroups; ip link show dev lo"));
    assert!(said.starts_with("0\n0\ndeny\n"), "{said}");
    assert!(said.contains("LOOPBACK,UP"), "{said}");
}

fn run_can_leave_us_who_we_are() {
    let said = output_of(SpawnConfig { user: NewUser::MapCurrent, ..shell("id -u; id -g") });
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    assert_eq!(said, format!("{uid}\n{gid}\n"));
    let spawn = SpawnConfig { user: NewUser::No, ..shell("true") };
    let err = spawn_in_new_namespaces(spawn).expect_err("needs a privilege");
    assert_eq!(err.errno(), Some(libc::EPERM), "{err:#}");
}

fn endpoints_of_two_users_namespaces_meet() {
    let kinds = [Kind::Tap, Kind::Veth, Kind::TapPlain];
    for (left, right) in [(0, 0), (1, 1), (0, 1), (2, 0)] {
        let (left, right) = (kinds[left], kinds[right]);
        // A plain one takes no segmented frame from one that sends them.
        let left = if right == Kind::Tap && left == Kind::TapPlain { Kind::Tap } else { left };
        let (a, b) = (Guest::new(NewUser::MapRoot, false), Guest::new(NewUser::MapCurrent, true));
        let attached = |guest: &Guest, host, kind| {
            let queues = if kind == Kind::TapPlain { 1 } else { 2 };
            let wanted = EndpointConfig { queues, ..config("eth0", host, kind) };
            let endpoint = attach(&guest.netns(), &wanted).expect("attach");
            assert_eq!(endpoint.queues.len(), usize::from(queues));
            endpoint
        };
        let wire = Wire::between(attached(&a, 2, left), attached(&b, 3, right));
        assert_eq!(a.run("ping -q -c 3 -i 0.2 -W 5 192.0.2.3 > /dev/null"), 0);
        let view = look(&b.netns()).expect("look");
        let found = view.interfaces.iter().find(|found| found.name == "eth0").expect("attached");
        assert!(found.up && found.addresses.len() == 3, "{found:?}");
        set_gateways(&a.netns(), "eth0", &["192.0.2.3".parse().expect("one")]).expect("gateway");
        assert_eq!(a.run("ip route | grep -q 'default via 192.0.2.3 dev eth0'"), 0);
        drop(wire);
        eventually("the interface is gone", || {
            look(&a.netns()).expect("look").interfaces.len() == 1
        });
    }
    tcp_between_guests();
    sockets_are_made_where_they_were_wanted_first();
}

/// Process numbers are used again; the namespace is the one that was opened.
fn sockets_are_made_where_they_were_wanted_first() {
    use nix::sys::socket::{SockaddrIn, bind};
    use std::os::fd::AsRawFd;
    let guest = Guest::new(NewUser::MapRoot, false);
    let maker = SocketMaker::new(guest.netns());
    drop(guest);
    let sockets = maker.make(SocketKind::Tcp4, 100).expect("made without the process");
    assert_eq!(sockets.len(), 100);
    let low: SockaddrIn = "0.0.0.0:81".parse().expect("an address");
    bind(sockets[0].as_raw_fd(), &low).expect("a port of a namespace where we may");
    maker.make(SocketKind::Tcp6, 254).expect_err("more than an answer carries");
}

fn tcp_between_guests() {
    use nix::sys::socket::{Backlog, SockaddrIn, bind, connect, listen};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    let (a, b) = (Guest::new(NewUser::MapRoot, false), Guest::new(NewUser::MapRoot, false));
    let attached = |guest: &Guest, host| {
        attach(&guest.netns(), &config("eth0", host, Kind::Tap)).expect("attach")
    };
    let wire = Wire::between(attached(&a, 2), attached(&b, 3));
    let socket = |guest: &Guest| -> OwnedFd {
        sockets_in(&guest.netns(), SocketKind::Tcp4, 1).expect("open").pop().expect("one")
    };
    let (listening, connecting) = (socket(&b), socket(&a));
    let at: SockaddrIn = "192.0.2.3:80".parse().expect("an address");
    // A low port too: who owns a user namespace has every privilege there.
    bind(listening.as_raw_fd(), &at).expect("bind");
    listen(&listening, Backlog::new(1).expect("small")).expect("listen");
    let started = connect(connecting.as_raw_fd(), &at);
    assert_eq!(started, Err(nix::errno::Errno::EINPROGRESS));
    let (listener, mut near) = (TcpListener::from(listening), TcpStream::from(connecting));
    listener.set_nonblocking(false).expect("wait");
    near.set_nonblocking(false).expect("wait");
    let (mut far, _) = listener.accept().expect("accept");
    let sent: Vec<u8> = (0..1 << 20).map(pattern).collect();
    let expected = sent.clone();
    let writer = std::thread::spawn(move || near.write_all(&sent).expect("send"));
    let mut got = Vec::new();
    far.read_to_end(&mut got).expect("receive");
    writer.join().expect("sent");
    assert!(got == expected, "{} octets", got.len());
    assert!(wire.stop()[0].segmented > 0);
}

fn a_namespace_of_unshare_is_as_good() {
    let mut unshare: Child = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "cat"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("util-linux");
    let ours = netns::Netns::current().expect("/proc").inode();
    let target = Target::Pid(unshare.id());
    eventually("unshare has unshared", || target.open().is_ok_and(|there| there.inode() != ours));
    eventually("and mapped us", || {
        std::fs::read_to_string(format!("/proc/{}/uid_map", unshare.id()))
            .is_ok_and(|map| !map.is_empty())
    });
    let netns = target.open().expect("alive");
    let endpoint = attach(&netns, &config("eth0", 2, Kind::Tap)).expect("attach");
    assert_eq!(endpoint.opened, Opened::TapOffload);
    let config = ExecConfig {
        argv: argv(&["ip", "addr", "add", "198.51.100.1/24", "dev", "eth0"]),
        ..Default::default()
    };
    assert!(exec_in(&target, config).expect("exec").success());
    detach(&netns, "eth0").expect("detach");
    assert_eq!(look(&netns).expect("look").interfaces.len(), 1);
    drop(unshare.stdin.take());
    unshare.wait().expect("it ends with its input");
}

fn failures_inside_come_back_as_they_are() {
    let guest = Guest::new(NewUser::MapRoot, false);
    let _first = attach(&guest.netns(), &config("eth0", 2, Kind::Tap)).expect("attach");
    let err = attach(&guest.netns(), &config("eth0", 3, Kind::Veth)).expect_err("taken");
    assert!(matches!(&err, Error::InterfaceExists { ifname } if ifname == "eth0"), "{err:#}");
    let gateways = vec!["ff02::1".parse().expect("an address")];
    let wanted = EndpointConfig { gateways, ..config("eth1", 3, Kind::Veth) };
    let err = attach(&guest.netns(), &wanted).expect_err("a group address");
    assert!(matches!(err, Error::Step { .. }) && err.errno().is_some(), "{err:#}");
    assert_eq!(look(&guest.netns()).expect("look").interfaces.len(), 2);
    let err = set_gateways(&guest.netns(), "eth9", &[]).expect_err("none such");
    assert!(matches!(err, Error::NoSuchInterface { .. }), "{err:#}");
}

fn exec_enters_user_and_mounts() {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(b"over\n").expect("write");
    let (_input, reader) = pipe();
    let spawn = SpawnConfig {
        new_mount: true,
        bind_mounts: vec![(file.path().to_owned(), "/etc/hosts".into())],
        stdio: [Some(reader), None, None],
        ..shell("exec cat")
    };
    let running = spawn_in_new_namespaces(spawn).expect("spawn").release().expect("release");
    let target = Target::Pid(running.pid());
    let status = |mounts, script: &str| {
        let argv = argv(&["sh", "-c", script]);
        exit_code(
            exec_in(&target, ExecConfig { argv, mounts, ..Default::default() }).expect("exec"),
        )
    };
    assert_eq!(
        status(Mounts::Joined, "grep -q '^over$' /etc/hosts && exit $((40 + $(id -u)))"),
        40
    );
    assert_eq!(status(Mounts::Ours, "grep -q '^over$' /etc/hosts"), 1);
    let private = |sysfs| Mounts::Private {
        bind_mounts: vec![(file.path().to_owned(), "/etc/passwd".into())],
        sysfs,
    };
    assert_eq!(status(private(false), "grep -q '^over$' /etc/passwd"), 0);
    assert_eq!(status(private(true), "test $(ls /sys/class/net) = lo"), 0);
    // Where nothing was unshared there is nothing to join, and that is no error.
    let plain = Guest::new(NewUser::MapRoot, false);
    let config = ExecConfig { argv: argv(&["true"]), mounts: Mounts::Joined, ..Default::default() };
    assert!(exec_in(&plain.target(), config).expect("exec").success());
}

fn what_is_not_ours_is_refused() {
    // Ours to open, since everybody may look at himself, and not ours to change.
    let here = Netns::current().expect("ours");
    let err = attach(&here, &config("mine0", 2, Kind::Tap)).expect_err("the host's");
    let said = format!("{err:#}");
    assert!(matches!(err, Error::Step { .. }) && said.contains("not permitted"), "{said}");
    assert!(look(&here).expect("looking is free").interfaces.iter().any(|i| i.loopback));
    let err = Target::Pid(1).open().expect_err("root's");
    assert!(matches!(err, Error::OpenNamespace { .. }), "{err:#}");
    assert!(err.to_string().contains("pid:1"), "{err:#}");
    // A name is for everybody to open, and still not to enter.
    match named::list().expect("everybody may look").first() {
        Some(named) => {
            let target = Target::Name(named.name.clone());
            let netns = target.open().expect("anybody may");
            let err = attach(&netns, &config("mine0", 2, Kind::Tap)).expect_err("root's");
            assert!(err.to_string().contains(&named.name), "{err:#}");
            assert!(matches!(err, Error::EnterNamespace { .. }), "{err:#}");
            let err = exec_in(&target, ExecConfig { argv: argv(&["true"]), ..Default::default() });
            let err = err.expect_err("root's");
            assert!(matches!(err, Error::EnterNamespace { .. }), "{err:#}");
            assert!(err.to_string().contains("needs root"), "{err:#}");
        }
        None => skip("no named namespace of root's to try"),
    }
}

fn without_a_tun_device_the_error_says_so() {
    let empty = tempfile::tempdir().expect("a directory");
    let covered = |with: &Path, what: &str, helper: &str| {
        let spawn = SpawnConfig {
            argv: vec![std::env::current_exe().expect("ourselves").into()],
            env: Some(vec![(HELPER.into(), helper.into())]),
            new_mount: true,
            bind_mounts: vec![(with.to_owned(), what.into())],
            ..shell("")
        };
        let held = spawn_in_new_namespaces(spawn).expect("spawn");
        held.release().expect("release").wait().expect("wait").success()
    };
    assert!(covered(empty.path(), "/dev/net", "attach-missing"));
    // A file of root's, who is nobody inside.
    assert!(covered(Path::new("/etc/shadow"), "/dev/net/tun", "attach-denied"));
}

fn names_need_root() {
    let err = named::create("pontoon-test").expect_err("needs root");
    assert!(matches!(err, Error::NamedNeedsRoot { .. }), "{err:#}");
    assert!(err.to_string().contains("needs root; without privilege use `pontoon run`"), "{err}");
    named::list().expect("everybody may look");
}

fn a_limit_of_user_namespaces_is_named() {
    // Root of a user namespace sets the limit for those below it.
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && exec $0 limit";
    let program = std::env::current_exe().expect("ourselves");
    let spawn = SpawnConfig {
        argv: vec!["sh".into(), "-c".into(), script.into(), program.into()],
        env: Some(vec![
            (HELPER.into(), "run-in-user-namespace".into()),
            ("PATH".into(), "/usr/bin:/bin".into()),
        ]),
        ..shell("")
    };
    let mut running = spawn_in_new_namespaces(spawn).expect("spawn").release().expect("release");
    assert!(running.wait().expect("wait").success());
}
