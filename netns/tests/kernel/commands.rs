//! Commands started in new namespaces, and in existing ones.

use std::fs;
use std::io::{PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use netns::{
    Error, ExecConfig, Kind, Mounts, SpawnConfig, Target, attach, exec_in, exit_code,
    spawn_in_new_namespaces,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::Case;
use crate::lab::{Container, HELPER, argv, config, eventually, pipe};

pub(crate) const CASES: &[Case] = &[
    ("a_command_is_held_until_its_network_is_there", held_until_its_network_is_there),
    ("a_dropped_command_never_runs_and_a_running_one_ends", dropped),
    ("a_command_that_cannot_start_says_why", a_command_that_cannot_start_says_why),
    ("files_are_mounted_over_others_for_the_command_alone", mounted_over),
    ("exec_joins_and_gives_the_status", exec_joins_and_gives_the_status),
    ("exec_sees_the_mounts_it_is_told_to", exec_sees_the_mounts_it_is_told_to),
    ("signals_to_the_waiter_reach_the_command", signals_to_the_waiter_reach_the_command),
    ("the_command_dies_with_its_parent", the_command_dies_with_its_parent),
];

/// What a command wrote, until it ended.
pub(crate) struct Output {
    reader: PipeReader,
}

impl Output {
    pub(crate) fn new() -> (Self, OwnedFd) {
        let (reader, writer) = std::io::pipe().expect("pipe");
        (Self { reader }, writer.into())
    }

    pub(crate) fn read(mut self) -> String {
        let mut text = String::new();
        self.reader.read_to_string(&mut text).expect("text");
        text
    }
}

pub(crate) fn shell(script: &str) -> SpawnConfig {
    SpawnConfig { argv: argv(&["sh", "-c", script]), new_net: true, ..SpawnConfig::default() }
}

fn held_until_its_network_is_there() {
    let (output, writer) = Output::new();
    let marker = tempfile::NamedTempFile::new().expect("a file");
    fs::remove_file(marker.path()).expect("only its name");
    let script = format!("touch {}; ip -o addr show dev eth0", marker.path().display());
    let mut spawn = shell(&script);
    spawn.stdio[1] = Some(writer);
    let held = spawn_in_new_namespaces(spawn).expect("spawn");
    assert!(!held.netns().is_current());
    let target = Target::Pid(held.pid());
    assert_eq!(target.open().expect("alive").inode(), held.netns().inode());
    assert_eq!(netns::look(held.netns()).expect("look").interfaces.len(), 1);
    let _endpoint = attach(held.netns(), &config("eth0", 2, Kind::Tap)).expect("attach");
    assert!(!marker.path().exists(), "it has run already");
    let mut running = held.release().expect("release");
    assert_eq!(exit_code(running.wait().expect("wait")), 0);
    assert!(output.read().contains("192.0.2.2/24"));
    assert!(marker.path().exists());
    fs::remove_file(marker.path()).expect("it has run");
}

fn dropped() {
    let held = spawn_in_new_namespaces(shell("exec cat")).expect("spawn");
    let gone = |pid: u32| !PathBuf::from(format!("/proc/{pid}")).exists();
    let pid = held.pid();
    drop(held);
    assert!(gone(pid), "held, then dropped");
    let (input, reader) = pipe();
    let mut spawn = shell("exec cat");
    spawn.stdio[0] = Some(reader);
    let mut running = spawn_in_new_namespaces(spawn).expect("spawn").release().expect("release");
    assert!(running.try_wait().expect("ours").is_none());
    let pid = running.pid();
    drop(running);
    assert!(gone(pid), "running, then dropped");
    drop(input);
    // One that ends by a signal says so to the shell.
    let (_input, reader) = pipe();
    let mut spawn = shell("exec cat");
    spawn.stdio[0] = Some(reader);
    let mut running = spawn_in_new_namespaces(spawn).expect("spawn").release().expect("release");
    running.signal(libc::SIGTERM).expect("signal");
    let mut ended = [PollFd::new(running.pidfd(), PollFlags::POLLIN)];
    poll(&mut ended, PollTimeout::from(20_000u16)).expect("poll");
    assert_eq!(exit_code(running.wait().expect("wait")), 128 + 15);
    running.signal(libc::SIGTERM).expect("ended already");
}

fn a_command_that_cannot_start_says_why() {
    let release = |words: &[&str]| {
        let config = SpawnConfig { argv: argv(words), new_net: true, ..SpawnConfig::default() };
        spawn_in_new_namespaces(config).expect("spawn").release().expect_err("no command")
    };
    let err = release(&["pontoon-no-such-command", "x"]);
    assert!(matches!(err, Error::CommandNotFound { .. }), "{err:#}");
    assert_eq!(err.exit_code(), 127);
    assert_eq!(err.to_string(), "pontoon-no-such-command: command not found");
    // As in a root's PATH seen by somebody else: what is in there cannot be told.
    let closed = tempfile::tempdir().expect("a directory");
    fs::set_permissions(closed.path(), PermissionsExt::from_mode(0o0)).expect("chmod our own");
    let mut spawn = shell("");
    spawn.argv = argv(&["pontoon-no-such-command"]);
    spawn.env = Some(vec![("PATH".into(), closed.path().into())]);
    let held = spawn_in_new_namespaces(spawn).expect("spawn");
    assert_eq!(held.release().expect_err("no command").exit_code(), 127);
    let err = release(&["/etc/passwd"]);
    assert!(matches!(err, Error::CommandNotExecutable { .. }), "{err:#}");
    assert_eq!(err.exit_code(), 126);
    let err = release(&[]);
    assert_eq!(err.exit_code(), 125);
    let err = exec_in(&Container::new().target(), exec(&["pontoon-no-such-command"]));
    assert_eq!(err.expect_err("no command").exit_code(), 127);
    let mut spawn = shell("true");
    spawn.cwd = Some("/pontoon/none".into());
    let err = spawn_in_new_namespaces(spawn).expect_err("no directory");
    assert!(format!("{err:#}").starts_with("change to /pontoon/none: No such file"), "{err:#}");
}

fn mounted_over() {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(b"nameserver 192.0.2.1\n").expect("write");
    let (output, writer) = Output::new();
    let spawn = SpawnConfig {
        new_mount: true,
        bind_mounts: vec![(file.path().to_owned(), "/etc/hosts".into())],
        stdio: [None, Some(writer), None],
        ..shell("cat /etc/hosts")
    };
    let mut running = spawn_in_new_namespaces(spawn).expect("spawn").release().expect("release");
    assert!(running.wait().expect("wait").success());
    assert_eq!(output.read(), "nameserver 192.0.2.1\n");
    assert!(!fs::read_to_string("/etc/hosts").expect("there").contains("nameserver"));
    let spawn = SpawnConfig {
        new_mount: true,
        bind_mounts: vec![("/pontoon/none".into(), "/etc/hosts".into())],
        ..shell("true")
    };
    let err = spawn_in_new_namespaces(spawn).expect_err("nothing to mount");
    assert!(err.to_string().contains("mount /pontoon/none over /etc/hosts"), "{err:#}");
    let spawn = SpawnConfig { bind_mounts: vec![("/a".into(), "/b".into())], ..shell("true") };
    spawn_in_new_namespaces(spawn).expect_err("would mount on the host");
}

fn exec(words: &[&str]) -> ExecConfig {
    ExecConfig { argv: argv(words), ..ExecConfig::default() }
}

fn exec_joins_and_gives_the_status() {
    let container = Container::new();
    let target = container.target();
    let inode = container.netns.inode();
    let script = format!("test $(readlink /proc/self/ns/net) = 'net:[{inode}]' && exit 42");
    let status = exec_in(&target, exec(&["sh", "-c", &script])).expect("exec");
    assert_eq!(exit_code(status), 42);
    let status = exec_in(&target, exec(&["sh", "-c", "kill -9 $$"])).expect("exec");
    assert_eq!(exit_code(status), 137);
    let mut config = exec(&["sh", "-c", "test \"$A\" = b && test $PWD = /usr"]);
    config.env = Some(vec![("A".into(), "b".into()), ("PATH".into(), "/usr/bin:/bin".into())]);
    config.cwd = Some("/usr".into());
    assert!(exec_in(&target, config).expect("exec").success());
    let of = |netns| ExecConfig { netns, ..exec(&["true"]) };
    assert!(exec_in(&target, of(Some(inode))).expect("exec").success());
    let err = exec_in(&target, of(Some(inode + 1))).expect_err("another namespace");
    assert!(matches!(err, Error::NamespaceReplaced { .. }), "{err:#}");
    let err = exec_in(&Target::Pid(4_194_305), exec(&["true"])).expect_err("no process");
    assert!(matches!(err, Error::NoSuchProcess { .. }), "{err:#}");
}

fn exec_sees_the_mounts_it_is_told_to() {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(b"over").expect("write");
    let over = vec![(file.path().to_owned(), PathBuf::from("/etc/hosts"))];
    let (_input, reader) = pipe();
    let spawn = SpawnConfig {
        new_mount: true,
        bind_mounts: over.clone(),
        stdio: [Some(reader), None, None],
        ..shell("exec cat")
    };
    let running = spawn_in_new_namespaces(spawn).expect("spawn").release().expect("release");
    let target = Target::Pid(running.pid());
    let reads = |mounts| ExecConfig { mounts, ..exec(&["grep", "-q", "^over$", "/etc/hosts"]) };
    assert!(exec_in(&target, reads(Mounts::Joined)).expect("exec").success());
    assert!(!exec_in(&target, reads(Mounts::Ours)).expect("exec").success());
    let container = Container::new();
    let private = Mounts::Private { bind_mounts: over, sysfs: true };
    assert!(exec_in(&container.target(), reads(private)).expect("exec").success());
    container.run("ip link add only-here type veth peer name other");
    let sees = |mounts| ExecConfig { mounts, ..exec(&["test", "-e", "/sys/class/net/only-here"]) };
    let fresh = Mounts::Private { bind_mounts: Vec::new(), sysfs: true };
    assert!(exec_in(&container.target(), sees(fresh)).expect("exec").success());
    assert!(!exec_in(&container.target(), sees(Mounts::Ours)).expect("exec").success());
    let err = exec_in(&container.target(), reads(Mounts::Joined)).expect_err("no process");
    assert!(err.to_string().contains("pid:N"), "{err:#}");
}

/// Ourselves, started once more to wait for a command in this test's namespace.
fn waiter(stage: &str) -> Command {
    let mut waiter = Command::new("/proc/self/exe");
    waiter.env(HELPER, stage);
    waiter
}

fn signals_to_the_waiter_reach_the_command() {
    use std::os::unix::process::CommandExt;
    use std::process::Stdio;
    let dir = tempfile::tempdir().expect("a directory");
    let (ready, got) = (dir.path().join("ready"), dir.path().join("got"));
    let script = format!(
        "trap 'echo $? > {got}; exit 3' TERM INT; echo > {ready}; while :; do read line; done",
        got = got.display(),
        ready = ready.display()
    );
    for (signal, whole_group) in
        [(libc::SIGTERM, false), (libc::SIGINT, false), (libc::SIGINT, true)]
    {
        // In a group of its own, as a shell starts a job.
        let mut waiter = waiter("exec")
            .arg(&script)
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("start");
        eventually("the command runs", || ready.exists());
        let pid = nix::unistd::Pid::from_raw(waiter.id().cast_signed());
        let signal = nix::sys::signal::Signal::try_from(signal).expect("a signal");
        match whole_group {
            true => nix::sys::signal::killpg(pid, signal).expect("signal the group"),
            false => nix::sys::signal::kill(pid, signal).expect("signal the waiter"),
        }
        // A shell reads on until its input ends, and then runs the trap.
        drop(waiter.stdin.take());
        let status = waiter.wait().expect("wait");
        assert_eq!(status.code(), Some(3), "{signal} {whole_group}: {status}");
        fs::remove_file(&ready).expect("it ran");
        fs::remove_file(&got).expect("it was signalled");
    }
}

fn the_command_dies_with_its_parent() {
    use std::process::Stdio;
    let mut parent =
        waiter("pdeathsig").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start");
    let mut pid = String::new();
    let mut stdout = parent.stdout.take().expect("piped");
    let mut octet = [0];
    while stdout.read(&mut octet).expect("read") == 1 && octet != *b"\n" {
        pid.push(octet[0].into());
    }
    let pidfd = netns::sockopt::pidfd_open(pid.parse().expect("a pid")).expect("it runs");
    parent.kill().expect("kill our own");
    parent.wait().expect("wait");
    let mut ended = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut ended, PollTimeout::from(20_000u16)), Ok(1), "it outlived its parent");
}
