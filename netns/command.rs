//! How a child becomes a command: into its namespaces, its mounts, its directory, and exec.
//!
//! Runs in the re-executed child, which has one thread and nobody else's memory. The order of steps
//! is the privileges': the user namespace first, for what it gives; who we are there last, since
//! changing it takes the death signal away.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, getegid, geteuid, getppid, setgroups, setresgid, setresuid};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::namespace::{Netns, inode};
use crate::{ioctl, link, wire};

/// A command and where it is to run. Its environment and standard streams are the child's own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CommandOrder {
    pub(crate) argv: Vec<OsString>,
    pub(crate) cwd: Option<OsString>,
    pub(crate) place: Place,
    /// Files to mount over others; not empty only where the mount namespace is a new one.
    pub(crate) bind_mounts: Vec<(OsString, OsString)>,
    /// Whether to mount `/sys` anew, so that it shows this network namespace.
    pub(crate) sysfs: bool,
    pub(crate) pdeathsig: Option<i32>,
    /// Who gave the order, to notice that it died before the death signal was set.
    pub(crate) parent: i32,
    /// Whether to wait for a word before exec.
    pub(crate) hold: bool,
}

/// The namespaces a command runs in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Place {
    /// New ones.
    New { user: Option<MapTo>, mount: bool, net: bool },
    /// The network namespace whose descriptor comes first, and the mount namespace whose
    /// descriptor comes second, or a new one, or ours.
    Existing { target: String, mount: bool },
}

/// Who we are in a new user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum MapTo {
    Root,
    Ourselves,
}

/// The word that lets a held command go.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Go;

/// Becomes the command, or returns the status to end with after saying why on `socket`.
pub(crate) fn become_command(order: &CommandOrder, fds: Vec<OwnedFd>, socket: &UnixStream) -> i32 {
    match prepare(order, fds, socket) {
        Ok(Verdict::Run) => {}
        Ok(Verdict::Stop) => return 125,
        Err(err) => return report(socket, &err),
    }
    // Closed by exec, and that is how the parent learns of success.
    report(socket, &exec(&order.argv))
}

enum Verdict {
    Run,
    Stop,
}

fn report(socket: &UnixStream, err: &Error) -> i32 {
    // Where the parent is gone nobody wants to know.
    let _ = wire::send(socket, &Err::<(), &Error>(err), &[]);
    err.exit_code().into()
}

fn prepare(order: &CommandOrder, fds: Vec<OwnedFd>, socket: &UnixStream) -> Result<Verdict, Error> {
    let own_mounts = match &order.place {
        Place::New { user, mount, net } => {
            create(*user, *mount, *net)?;
            *mount
        }
        Place::Existing { target, mount } => {
            join(target, fds)?;
            if *mount {
                unshare(CloneFlags::CLONE_NEWNS)
                    .map_err(|errno| Error::step("create a mount namespace", errno))?;
            }
            *mount
        }
    };
    if own_mounts {
        keep_mounts_here()?;
        mount_all(order)?;
    }
    change_directory(order)?;
    if let Some(signal) = order.pdeathsig {
        die_with_parent(signal, order.parent)?;
    }
    let netns = Netns::current()?;
    wire::send(socket, &Ok::<(), Error>(()), &[netns.as_fd()])
        .map_err(|source| Error::step("answer", source))?;
    if !order.hold {
        return Ok(Verdict::Run);
    }
    match wire::receive::<Go>(socket) {
        Ok(Some(_)) => Ok(Verdict::Run),
        Ok(None) | Err(_) => Ok(Verdict::Stop),
    }
}

fn create(user: Option<MapTo>, mount: bool, net: bool) -> Result<(), Error> {
    let (uid, gid) = (geteuid(), getegid());
    let mut flags = CloneFlags::empty();
    for (wanted, flag) in [
        (user.is_some(), CloneFlags::CLONE_NEWUSER),
        (mount, CloneFlags::CLONE_NEWNS),
        (net, CloneFlags::CLONE_NEWNET),
    ] {
        flags.set(flag, wanted);
    }
    // One call: the kernel makes the user namespace first and the others as its property.
    unshare(flags).map_err(|errno| match user {
        Some(_) => no_user_namespace(errno.into()),
        None => Error::step("create namespaces (needs root, or a user namespace)", errno),
    })?;
    if let Some(map_to) = user {
        let (inner_uid, inner_gid) = match map_to {
            MapTo::Root => (0, 0),
            MapTo::Ourselves => (uid.as_raw(), gid.as_raw()),
        };
        // user_namespaces(7): without privilege outside, setgroups must be given up before the
        // groups can be mapped, and only our own ids can be.
        for (file, text) in [
            ("setgroups", "deny".to_owned()),
            ("uid_map", format!("{inner_uid} {uid} 1")),
            ("gid_map", format!("{inner_gid} {gid} 1")),
        ] {
            fs::write(format!("/proc/self/{file}"), text).map_err(no_user_namespace)?;
        }
    }
    if net {
        link::set_up("lo")?;
    }
    Ok(())
}

fn join(target: &str, fds: Vec<OwnedFd>) -> Result<(), Error> {
    let failed =
        |errno: Errno| Error::EnterNamespace { target: target.to_owned(), source: errno.into() };
    let mut fds = fds.into_iter();
    let netns = fds.next().ok_or(Errno::EBADF).map_err(failed)?;
    let mounts = fds.next();
    let entered_user = enter_owner(&netns, target)?;
    // Before the mounts change: /proc there may be another one.
    let cwd = std::env::current_dir();
    if let Some(mounts) = mounts {
        setns(&mounts, CloneFlags::CLONE_NEWNS)
            .map_err(|errno| Error::step(format!("join the mounts of {target}"), errno))?;
        // setns(2) leaves us at the new root; the same path is the next best to the same place.
        let _ = cwd.and_then(std::env::set_current_dir);
    }
    setns(&netns, CloneFlags::CLONE_NEWNET).map_err(failed)?;
    if entered_user {
        become_root()?;
    }
    Ok(())
}

/// Enters the user namespace that owns `netns`, where it is another than ours and lets us in. Root
/// of an ancestor needs no entering, but is root there only after it.
fn enter_owner(netns: &OwnedFd, target: &str) -> Result<bool, Error> {
    let foreign = |owner| Error::ForeignNamespace {
        target: target.to_owned(),
        owner,
        euid: geteuid().as_raw(),
    };
    // Where the owner is beyond our sight it is an ancestor's, and only its root can get in.
    let Ok(owner) = ioctl::owning_user_namespace(netns.as_fd()) else { return Ok(false) };
    let ours = fs::File::open("/proc/self/ns/user")
        .and_then(|ours| inode(ours.as_fd()))
        .map_err(|source| Error::step("open /proc/self/ns/user", source))?;
    if inode(owner.as_fd()).is_ok_and(|number| number == ours) {
        return Ok(false);
    }
    setns(&owner, CloneFlags::CLONE_NEWUSER)
        .map_err(|_| foreign(ioctl::owner_uid(owner.as_fd()).ok()))?;
    Ok(true)
}

/// Becomes uid and gid 0 where the user namespace has them; where it has not, we stay who we are.
fn become_root() -> Result<(), Error> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    let unmapped = |done: nix::Result<()>| match done {
        Err(Errno::EINVAL | Errno::EPERM) | Ok(()) => Ok(()),
        Err(errno) => Err(Error::step("become root in the user namespace", errno)),
    };
    // Where setgroups is denied the groups are as harmless as they were outside.
    unmapped(setgroups(&[]))?;
    unmapped(setresgid(gid, gid, gid))?;
    unmapped(setresuid(uid, uid, uid))
}

/// What we mount is seen here only; what the host mounts later is seen here too.
fn keep_mounts_here() -> Result<(), Error> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .map_err(|errno| Error::step("keep mounts from spreading to the host", errno))
}

fn mount_all(order: &CommandOrder) -> Result<(), Error> {
    let none: Option<&str> = None;
    if order.sysfs {
        // As `ip netns exec` does it (lib/namespace.c, netns_switch). In a user namespace the old
        // one is locked, and the new one lies over it.
        let _ = umount2("/sys", MntFlags::MNT_DETACH);
        match mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none) {
            // Where part of /sys is covered, as in many containers, the kernel shows no other to a
            // user namespace (`mount_too_revealing` in fs/namespace.c). The command then sees the old.
            Ok(()) | Err(Errno::EPERM) => {}
            Err(errno) => return Err(Error::step("mount a /sys for the namespace", errno)),
        }
    }
    for (source, target) in &order.bind_mounts {
        let (source, target) = (Path::new(source), Path::new(target));
        mount(Some(source), target, none, MsFlags::MS_BIND, none).map_err(|errno| {
            let what = format!("mount {} over {}", source.display(), target.display());
            Error::step(what, errno)
        })?;
    }
    Ok(())
}

fn change_directory(order: &CommandOrder) -> Result<(), Error> {
    let Some(cwd) = &order.cwd else { return Ok(()) };
    std::env::set_current_dir(cwd)
        .map_err(|source| Error::step(format!("change to {}", Path::new(cwd).display()), source))
}

fn die_with_parent(signal: i32, parent: i32) -> Result<(), Error> {
    let signal = Signal::try_from(signal)
        .map_err(|errno| Error::step(format!("set signal {signal} for our parent's end"), errno))?;
    set_pdeathsig(signal).map_err(|errno| Error::step("ask to end with our parent", errno))?;
    // It may have ended before it could be told of.
    match getppid().as_raw() == parent {
        true => Ok(()),
        false => std::process::exit(125),
    }
}

fn exec(argv: &[OsString]) -> Error {
    let Some((command, args)) = argv.split_first() else {
        let source = io::Error::from_raw_os_error(libc::EINVAL);
        return Error::step("run a command: none was given", source);
    };
    let source = Command::new(command).args(args).exec();
    let name = Path::new(command);
    let command = name.display().to_string();
    // That a script's interpreter is missing reads as if the script were; and a directory of PATH we
    // may not look into, as if the command were there.
    match is_somewhere(name) {
        false => Error::CommandNotFound { command },
        true => Error::CommandNotExecutable { command, source },
    }
}

/// Whether exec could have meant a file, executable or not: execvp(3).
fn is_somewhere(name: &Path) -> bool {
    if name.as_os_str().as_bytes().contains(&b'/') {
        return name.exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    std::env::split_paths(&path).any(|directory| directory.join(name).exists())
}

fn no_user_namespace(source: io::Error) -> Error {
    let fix = obstacle().unwrap_or_else(|| {
        match source.raw_os_error() {
            Some(libc::ENOSPC) => {
                "a limit is reached, here or in a namespace above: `sysctl \
                 user.max_user_namespaces=15000 user.max_net_namespaces=15000` raises both"
            }
            _ => "a container's runtime may forbid it: try --security-opt seccomp=unconfined",
        }
        .to_owned()
    });
    Error::NoUserNamespace { fix, source }
}

/// The setting that keeps us from making user namespaces, with the command that changes it.
pub(crate) fn obstacle() -> Option<String> {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    if number("/proc/sys/user/max_user_namespaces") == Some(0) {
        return Some("`sysctl user.max_user_namespaces=15000` allows it".to_owned());
    }
    if geteuid().is_root() {
        return None;
    }
    if number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        return Some("`sysctl kernel.unprivileged_userns_clone=1` allows it".to_owned());
    }
    if number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        let fix = "`sysctl kernel.apparmor_restrict_unprivileged_userns=0` allows it, or an \
                   AppArmor profile with the rule `userns,`";
        return Some(fix.to_owned());
    }
    None
}
