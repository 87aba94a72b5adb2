//! The machine a lab runs on: this program once more, in namespaces of its own.
//!
//! Outside we only check, start the second self and wait. Inside we are root of a network namespace
//! ("the host"), of a mount namespace where `/run` is empty, and, unless we were root already, of a
//! user namespace: what the lab then types works as on a machine that is ours alone, and all of it
//! goes with the last process.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::process::ExitCode;

use netns::{NewUser, SpawnConfig};
use nix::mount::{MsFlags, mount};

use crate::failure::{Failure, Outcome};

/// This program, wherever its file is.
pub(crate) const PROGRAM: &str = "/proc/self/exe";

/// Option by which the second self knows that it is one.
pub(crate) const INSIDE: &str = "--inside";

/// Starts `arguments` of this program on a machine of its own and waits for it.
pub(crate) fn start(arguments: &[OsString]) -> Outcome {
    check_tun()?;
    let mut argv: Vec<OsString> = vec![PROGRAM.into()];
    argv.extend_from_slice(arguments);
    argv.push(INSIDE.into());
    let held = netns::spawn_in_new_namespaces(SpawnConfig {
        argv,
        user: NewUser::UnlessRoot,
        new_mount: true,
        new_net: true,
        pdeathsig: Some(nix::libc::SIGKILL),
        ..SpawnConfig::default()
    })?;
    let mut running = held.release()?;
    Ok(ExitCode::from(netns::exit_code(running.wait()?)))
}

/// Makes the machine ours, once inside.
pub(crate) fn enter() -> Result<(), Failure> {
    // On the user's own machine the lab would cover /run and configure interfaces.
    if !is_our_own()? {
        return Err(Failure::new(format!("{INSIDE} is for pontoon itself; leave it out")));
    }
    let none: Option<&str> = None;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), flags, Some("mode=755,size=16m"))
        .map_err(|errno| Failure::new(format!("mount a fresh /run for the lab: {errno}")))?;
    // Where /var/run is no link to it, names made by `ip netns` would still be found there.
    if fs::symlink_metadata("/var/run").is_ok_and(|found| found.is_dir()) {
        mount(Some("/run"), "/var/run", none, MsFlags::MS_BIND, none)
            .map_err(|errno| Failure::new(format!("mount the fresh /run on /var/run: {errno}")))?;
    }
    Ok(())
}

/// Whether we are where [`start`] puts us: in other mount and network namespaces than whoever started
/// us, and in a network namespace as empty as a new one.
fn is_our_own() -> Result<bool, Failure> {
    let number = |of: &str, namespace: &str| {
        fs::metadata(format!("/proc/{of}/ns/{namespace}")).map(|found| found.ino())
    };
    let parent = nix::unistd::getppid().to_string();
    for namespace in ["mnt", "net"] {
        let ours = number("self", namespace)
            .map_err(|error| Failure::new(format!("look at our own namespaces: {error}")))?;
        match number(&parent, namespace) {
            Ok(theirs) if theirs != ours => {}
            // From inside a user namespace whoever is outside cannot be looked at (`ptrace(2)`).
            Err(_) if is_alone_in_user_namespace() => {}
            Ok(_) | Err(_) => return Ok(false),
        }
    }
    Ok(netns::interfaces()?.iter().all(|interface| interface.loopback))
}

/// Whether there is one user in our user namespace, as in those that anybody may make, and nobody
/// ever lives in (`user_namespaces(7)`).
fn is_alone_in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let fields: Vec<_> = map.split_whitespace().collect();
    matches!(fields[..], [_, _, "1"])
}

/// Says at once what every `attach` would say.
fn check_tun() -> Result<(), Failure> {
    match File::options().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Ok(()),
        Err(source) if source.kind() == std::io::ErrorKind::PermissionDenied => {
            Err(netns::Error::TunDenied { source }.into())
        }
        Err(_) => Err(netns::Error::TunMissing.into()),
    }
}
