//! The crate against a real kernel, in namespaces made for each case.
//!
//! Without a test harness, because `main` must begin with `enter_child_if_asked`. Run as root it
//! gives itself a mount namespace with its own `/run` and `/dev/net`, so that the machine's stay as
//! they are, runs every case there, and then runs itself once more as an unprivileged user for the
//! cases that must hold without root. Run by anybody else it becomes root of a user namespace for
//! the former. What cannot run says SKIP, and fails where `PONTOON_REQUIRE_NETNS` is set.

mod commands;
mod endpoints;
mod lab;
mod names;
mod older;
mod rootless;
mod uplinks;

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::panic::catch_unwind;
use std::path::Path;
use std::process::{Command, ExitCode};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// A name and what it stands for.
type Case = (&'static str, fn());

/// Marks a run that is the unprivileged half.
const ROOTLESS: &str = "PONTOON_NETNS_TEST_ROOTLESS";

fn main() -> ExitCode {
    netns::enter_child_if_asked();
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    if std::env::args().any(|arg| arg == "--list") {
        return ExitCode::SUCCESS;
    }
    if let Some(stage) = std::env::var_os(lab::HELPER) {
        return lab::help(&stage);
    }
    if let Some(kernel) = std::env::var_os(older::KERNEL) {
        return older::attach_under(&kernel);
    }
    if std::env::var_os(ROOTLESS).is_some() {
        return run("rootless", &[rootless::CASES, uplinks::ROOTLESS].concat(), &wanted);
    }
    if !nix::unistd::geteuid().is_root() {
        // What needs no root is seen as the user we are; the rest as root of a user namespace.
        let first = run("rootless", &[rootless::CASES, uplinks::ROOTLESS].concat(), &wanted);
        let second = as_root_of_a_user_namespace();
        return if first == ExitCode::SUCCESS { second } else { first };
    }
    // Before any thread: a mount namespace is shared by all of a process's.
    own_mounts();
    let cases =
        [endpoints::CASES, older::CASES, names::CASES, commands::CASES, uplinks::CASES].concat();
    let first = run("root", &cases, &wanted);
    netns::named::create("of-root").expect("something nobody may not enter");
    let second = as_nobody(&wanted);
    if first == ExitCode::SUCCESS { second } else { first }
}

fn run(who: &str, cases: &[Case], wanted: &[String]) -> ExitCode {
    let mut failed = Vec::new();
    for (name, case) in cases {
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        eprintln!("{who}: {name}");
        if catch_unwind(case).is_err() {
            failed.push(*name);
        }
    }
    match failed.as_slice() {
        [] => ExitCode::SUCCESS,
        some => {
            eprintln!("FAILED ({who}): {}", some.join(", "));
            ExitCode::FAILURE
        }
    }
}

/// A mount namespace with an empty `/run`, and a `/dev/net/tun` everybody may open.
fn own_mounts() {
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).expect("root may unshare mounts");
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .expect("make mounts private");
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).expect("own /run");
    // As root of a user namespace we can make no device, and use what is there.
    let tun = Path::new("/dev/net/tun");
    let mode = Mode::from_bits_truncate(0o666);
    if let Ok(found) = std::fs::metadata(tun)
        && found.permissions().mode() & 0o006 == 0o006
    {
        return;
    }
    let own = tempfile::tempdir().expect("a directory");
    mount(Some("tmpfs"), own.path(), Some("tmpfs"), MsFlags::empty(), none).expect("tmpfs");
    let copy = own.path().join("tun");
    if mknod(&copy, SFlag::S_IFCHR, mode, makedev(10, 200)).is_ok() {
        std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o666)).expect("chmod our own");
        mount(Some(&copy), tun, none, MsFlags::MS_BIND, none).expect("our own /dev/net/tun");
    }
    // The directory goes with the mount namespace's tmpfs; its name must not stay behind.
    nix::mount::umount2(own.path(), nix::mount::MntFlags::MNT_DETACH).expect("umount");
}

/// Runs the unprivileged half as `nobody`, from a copy it may read.
fn as_nobody(wanted: &[String]) -> ExitCode {
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65534;
    if !every_user_is_mapped() {
        return ExitCode::SUCCESS; // Our caller, who is nobody special, has run it already.
    }
    let copy = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(copy.path(), PermissionsExt::from_mode(0o755)).expect("chmod our own");
    let program = copy.path().join("kernel");
    std::fs::copy("/proc/self/exe", &program).expect("copy ourselves");
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("chmod our own");
    let status = Command::new(&program)
        .args(wanted)
        .env(ROOTLESS, "1")
        .current_dir("/")
        .gid(NOBODY)
        .uid(NOBODY)
        .status()
        .expect("run our copy");
    if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether our user namespace is the first one, with every id.
fn every_user_is_mapped() -> bool {
    std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().last() == Some("4294967295"))
}

fn as_root_of_a_user_namespace() -> ExitCode {
    if let Some(fix) = netns::user_namespaces_blocked() {
        lab::skip(&format!("no user namespaces: {fix}"));
        return ExitCode::SUCCESS;
    }
    let argv: Vec<OsString> =
        [OsString::from("/proc/self/exe")].into_iter().chain(std::env::args_os().skip(1)).collect();
    let config = netns::SpawnConfig {
        argv,
        user: netns::NewUser::MapRoot,
        new_mount: true,
        new_net: true,
        ..netns::SpawnConfig::default()
    };
    let status = netns::spawn_in_new_namespaces(config)
        .and_then(netns::Held::release)
        .map(|mut running| running.wait());
    match status {
        Ok(Ok(status)) if status.success() => ExitCode::SUCCESS,
        other => {
            eprintln!("as root of a user namespace: {other:?}");
            ExitCode::FAILURE
        }
    }
}
