//! The daemon's own life: one at a time, ended by request, signal or idleness, with nothing left.

use std::fs::Permissions;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::Case;
use crate::lab::{Container, Daemon, ROLE, skip, until};

pub(crate) const CASES: &[Case] = &[
    ("a second daemon is told of the first", a_second_daemon_is_told_of_the_first),
    ("a killed daemon's socket is replaced", a_killed_daemons_socket_is_replaced),
    ("at the end nothing is left", at_the_end_nothing_is_left),
    ("it stops by request", it_stops_by_request),
    ("it ends when nobody needs it", it_ends_when_nobody_needs_it),
    ("other users are refused", other_users_are_refused),
    ("another user's daemon is told nothing", another_users_daemon_is_told_nothing),
];

fn a_second_daemon_is_told_of_the_first() {
    let daemon = Daemon::start();
    let said = daemon.another();
    assert!(said.contains(&format!("daemon already running (pid {})", daemon.pid())), "{said}");
    assert_eq!(daemon.client.version().expect("the first answers").pid, daemon.pid());
}

fn a_killed_daemons_socket_is_replaced() {
    let daemon = Daemon::start();
    let first = daemon.pid();
    daemon.signal(Signal::SIGKILL);
    let daemon = daemon.again();
    assert_ne!(daemon.client.version().expect("the second answers").pid, first);
}

fn at_the_end_nothing_is_left() {
    let mut daemon = Daemon::start();
    let containers = [Container::new(), Container::new()];
    daemon.attach(&containers[0], "c1");
    let veth = daemon::api::EndpointCreate { veth: true, ..containers[1].request("c2") };
    daemon.client.attach(&veth).expect("attached");
    daemon.client.publish("c1", vec!["8080:80".into()]).expect("published");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.ended().code(), Some(0));
    assert!(!daemon.socket.exists());
    for container in &containers {
        assert!(container.interfaces().is_empty());
    }
    let interfaces = netns::interfaces().expect("interfaces");
    assert!(interfaces.iter().all(|interface| interface.name == "lo"), "{interfaces:?}");
    std::net::TcpListener::bind("0.0.0.0:8080").expect("nobody listens there");
}

fn it_stops_by_request() {
    let mut daemon = Daemon::start();
    assert_eq!(daemon.client.stop().expect("it answers").pid, daemon.pid());
    assert_eq!(daemon.ended().code(), Some(0));
    assert!(daemon.client.version().expect_err("it is gone").is_absent());
}

fn it_ends_when_nobody_needs_it() {
    let limit = Duration::from_millis(150);
    let mut daemon = Daemon::ending_after(limit);
    assert_eq!(daemon.ended().code(), Some(0));
    // With an endpoint it stays, however long nobody asks; its end lets the daemon go.
    let mut daemon = Daemon::ending_after(limit);
    let mut container = Container::new();
    daemon.attach(&container, "c1");
    std::thread::sleep(limit * 4);
    assert_eq!(daemon.client.endpoints().expect("it is there").len(), 1);
    container.end();
    assert_eq!(daemon.ended().code(), Some(0));
}

fn another_users_daemon_is_told_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    // As /tmp is.
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o1777)).expect("ours");
    let socket = directory.path().join("pontoon.sock");
    let impostor = Command::new("/proc/self/exe")
        .arg(&socket)
        .env(ROLE, "impostor")
        .uid(65_534)
        .stdout(Stdio::piped())
        .spawn();
    let mut impostor = match impostor {
        Ok(impostor) => impostor,
        Err(error) => return skip(&format!("be another user: {error}")),
    };
    let mut said = BufReader::new(impostor.stdout.take().expect("a pipe")).lines();
    assert_eq!(said.next().expect("a line").expect("text"), "ready");
    let client = daemon::client::Client::new(&socket).expect("a client");
    let refused = client.version().expect_err("nobody we know");
    assert!(!refused.is_absent(), "{refused}");
    let refused = refused.to_string();
    assert!(refused.contains("uid 65534") && refused.contains("PONTOON_SOCKET"), "{refused}");
    assert_eq!(said.next().expect("a line").expect("text"), "0");
    impostor.wait().expect("our child");
}

fn other_users_are_refused() {
    let daemon = Daemon::start();
    // As if somebody had opened directory and socket to everybody.
    let directory = daemon.socket.parent().expect("a directory");
    for (path, mode) in [(directory, 0o755), (daemon.socket.as_path(), 0o666)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("ours");
    }
    let answer = Command::new("/proc/self/exe")
        .arg(&daemon.socket)
        .env(ROLE, "stranger")
        .uid(65_534)
        .output();
    match answer {
        Ok(answer) => {
            let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
            assert!(answer.starts_with("HTTP/1.1 403 "), "{answer:?}");
            assert!(answer.contains("another user"), "{answer}");
        }
        Err(error) => skip(&format!("be another user: {error}")),
    }
    until("an answer to us", || daemon.client.version().ok());
}
