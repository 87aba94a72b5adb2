//! A host, a world behind it and the true program, each test with its own.
//!
//! ```text
//!   pontoon, as a user of ── host 198.51.100.1 ══ world 198.51.100.2
//!                            2001:db8:7::1        2001:db8:7::2
//! ```
//! Host and world are namespaces made here; nothing leaves them. What is started here carries a mark in
//! its environment, so that a test can say what is left of it, and is ended by its id.

#![allow(dead_code, reason = "each test program uses a part of it")]

mod process;
mod servers;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use netns::{Netns, link};
use nix::unistd::{User, geteuid};
use serde_json::Value;

pub(crate) use process::{Ended, Running};

pub(crate) const HOST: &str = "198.51.100.1";
pub(crate) const HOST6: &str = "2001:db8:7::1";
pub(crate) const WORLD: &str = "198.51.100.2";
pub(crate) const WORLD6: &str = "2001:db8:7::2";

/// How long anything is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Who runs pontoon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// A user without any privilege.
    User,
    Root,
}

/// A host with a world behind it, and a user with a folder on it.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) host: Netns,
    pub(crate) world: Netns,
    folder: tempfile::TempDir,
    mark: String,
    who: Option<(u32, u32)>,
    env: Vec<(String, String)>,
}

/// Says why a test cannot run here. Where it was promised that it can (`PONTOON_REQUIRE_NETNS`), that
/// is a failure.
fn skip(why: &str, promise: &str) {
    assert!(std::env::var_os(promise).is_none(), "{promise} is set, and {why}");
    eprintln!("SKIP: {why}");
}

/// The file of a program of the machine's, or `None` after saying that it is missing; a failure where
/// `PONTOON_REQUIRE_CLIENTS` is set. `tests/run` installs them all.
pub(crate) fn client(name: &str) -> Option<PathBuf> {
    let folders = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let found =
        folders.iter().map(|folder| Path::new(folder).join(name)).find(|file| file.exists());
    if found.is_none() {
        skip(&format!("there is no {name} here"), "PONTOON_REQUIRE_CLIENTS");
    }
    found
}

/// Whether all of these programs are here.
pub(crate) fn clients(names: &[&str]) -> bool {
    names.iter().filter(|name| client(name).is_none()).count() == 0
}

impl Scene {
    /// A host on which pontoon is run by `who`; `None` after saying why there can be none here.
    pub(crate) fn new(who: Who) -> Option<Self> {
        let ids = match (who, geteuid().is_root()) {
            (_, false) => {
                skip("only root can play a host", "PONTOON_REQUIRE_NETNS");
                return None;
            }
            (Who::Root, true) => None,
            (Who::User, true) => Some(unprivileged_user()?),
        };
        let (host, world) = match (Netns::create(), Netns::create()) {
            (Ok(host), Ok(world)) => (host, world),
            (Err(error), _) | (_, Err(error)) => {
                skip(&error.to_string(), "PONTOON_REQUIRE_NETNS");
                return None;
            }
        };
        static SCENES: AtomicU32 = AtomicU32::new(0);
        let number = SCENES.fetch_add(1, Relaxed);
        // Known to `tests/run`, too, which ends what a test leaves that was killed itself.
        let run = std::env::var("PONTOON_TEST_RUN").unwrap_or_default();
        let mark = format!("{run}-{}-{number}", std::process::id());
        let folder = tempfile::Builder::new().prefix("pontoon-test-").tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let scene = Self { host, world, folder, mark, who: ids, env: Vec::new() };
        scene.connect();
        scene.install();
        Some(scene)
    }

    /// Another variable in the environment of what is run on the host.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    fn connect(&self) {
        link::create_veth_pair("up0", &self.host, "down0", &self.world).unwrap();
        for (netns, ifname, addresses) in
            [(&self.host, "up0", [HOST, HOST6]), (&self.world, "down0", [WORLD, WORLD6])]
        {
            netns
                .enter(|| {
                    link::no_own_link_local(ifname)?;
                    for (addr, len) in addresses.iter().zip([24, 64]) {
                        link::add_address(ifname, format!("{addr}/{len}").parse().unwrap())?;
                    }
                    link::set_up(ifname)
                })
                .unwrap();
        }
        let prepare = || {
            for via in [WORLD, WORLD6] {
                let via: IpAddr = via.parse().unwrap();
                link::add_route(link::default_route(via), via).unwrap();
            }
            // The host lets its users ping, as distributions do.
            fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")
        };
        self.host.with(prepare).unwrap();
        // A router that knows no way says so.
        self.world.with(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1")).unwrap();
        self.world.with(|| fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")).unwrap();
    }

    /// The program where the user can execute it, and the user's own folders.
    fn install(&self) {
        let built = env!("CARGO_BIN_EXE_pontoon");
        let program = self.file("pontoon");
        if fs::hard_link(built, &program).is_err() {
            // Copied by another process: a descriptor open for writing here would be inherited by
            // whatever another test starts meanwhile, and the copy be "text file busy".
            let copied = Command::new("cp").arg(built).arg(&program).status().unwrap();
            assert!(copied.success(), "copy {built}");
        }
        for name in ["run", "home"] {
            let own = self.file(name);
            fs::create_dir(&own).unwrap();
            fs::set_permissions(&own, fs::Permissions::from_mode(0o700)).unwrap();
            if let Some((uid, gid)) = self.who {
                chown(&own, Some(uid), Some(gid)).unwrap();
            }
        }
    }

    /// User and group of whoever runs pontoon, if that is not root.
    pub(crate) fn ids(&self) -> Option<(u32, u32)> {
        self.who
    }

    /// A file of the scene's folder, which everybody may read.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A folder there with one file in it, readable for everybody.
    pub(crate) fn page(&self, name: &str, octets: &[u8]) -> PathBuf {
        let folder = self.file("www");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name), octets).unwrap();
        folder
    }

    /// Where the daemon listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.file("run").join("pontoon.sock")
    }

    /// `pontoon` with these arguments, still to be run on the host.
    pub(crate) fn pontoon<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.command(self.file("pontoon"));
        command.args(args);
        command
    }

    /// A program as the user runs it.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.as_root(program);
        command.env("HOME", self.file("home"));
        command.env("XDG_RUNTIME_DIR", self.file("run"));
        command.env("PONTOON_SOCKET", self.socket());
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        if let Some((uid, gid)) = self.who {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// A program of the machine's, as whoever runs the test.
    pub(crate) fn as_root(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear();
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("LC_ALL", "C.UTF-8");
        command.env("PYTHONUNBUFFERED", "1");
        command.env("PONTOON_TEST_MARK", &self.mark);
        command.current_dir(self.folder.path());
        command
    }

    /// Runs `pontoon` on the host to its end.
    #[track_caller]
    pub(crate) fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ended {
        Running::start(&self.host, self.pontoon(args)).end()
    }

    /// What a listing prints with `--format json`.
    #[track_caller]
    pub(crate) fn json<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Value {
        let mut command = self.pontoon(args);
        command.args(["--format", "json"]);
        let ended = Running::start(&self.host, command).end().succeeded();
        serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
    }

    /// Starts `pontoon` on the host.
    #[track_caller]
    pub(crate) fn start<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Running {
        Running::start(&self.host, self.pontoon(args))
    }

    /// Runs a program of the machine's in `netns` to its end.
    #[track_caller]
    pub(crate) fn run_in<S: AsRef<OsStr>>(
        &self,
        netns: &Netns,
        program: &str,
        args: impl IntoIterator<Item = S>,
    ) -> Ended {
        let mut command = self.as_root(program);
        command.args(args);
        Running::start(netns, command).end()
    }

    /// Fetches a page with curl, from `netns`.
    #[track_caller]
    pub(crate) fn curl(&self, netns: &Netns, url: &str) -> Ended {
        let args = ["-sS", "--globoff", "--connect-timeout", "10", "--max-time", "25", url];
        self.run_in(netns, "curl", args)
    }

    /// Processes of this scene that are alive, with their command lines. Zombies are not: their
    /// parent's business.
    pub(crate) fn processes(&self) -> Vec<(u32, String)> {
        let mark = format!("PONTOON_TEST_MARK={}", self.mark);
        let marked = |pid: &u32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|octet| *octet == 0).any(|entry| entry == mark.as_bytes())
        };
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let line = |pid: u32| {
            let octets = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            (pid, String::from_utf8_lossy(&octets).replace('\0', " "))
        };
        pids.filter(marked).map(line).filter(|(_, line)| !line.is_empty()).collect()
    }

    /// Names of the host's interfaces.
    pub(crate) fn interfaces(&self) -> BTreeSet<String> {
        let all = self.host.enter(netns::interfaces).unwrap();
        all.into_iter().map(|interface| interface.name).collect()
    }

    /// Local addresses of the host's sockets that listen or are bound, from `/proc/net`.
    pub(crate) fn bound(&self) -> Vec<String> {
        let read = || {
            let mut bound = Vec::new();
            for (table, state) in [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")] {
                let text = fs::read_to_string(format!("/proc/thread-self/net/{table}"))?;
                for line in text.lines().skip(1) {
                    let words: Vec<_> = line.split_whitespace().collect();
                    if words.get(3) == Some(&state) {
                        bound.push(format!("{table} {}", words[1]));
                    }
                }
            }
            Ok(bound)
        };
        self.host.with(read).unwrap()
    }

    /// Those that listen for TCP.
    pub(crate) fn listening(&self) -> Vec<String> {
        self.bound().into_iter().filter(|socket| socket.starts_with("tcp")).collect()
    }

    /// Waits until nothing of the scene is left but the host as it was: no process, no interface, no
    /// bound socket, no socket file.
    #[track_caller]
    pub(crate) fn is_clean(&self) {
        let expected: BTreeSet<_> = ["lo", "up0"].map(str::to_owned).into();
        let left = || {
            let mut left: Vec<_> =
                self.processes().into_iter().map(|(pid, line)| format!("{pid} {line}")).collect();
            left.extend(self.bound());
            left.extend(self.interfaces().difference(&expected).cloned());
            left.extend(self.socket().exists().then(|| "the daemon's socket".to_owned()));
            left
        };
        let deadline = Instant::now() + PATIENCE;
        while !left().is_empty() {
            assert!(Instant::now() < deadline, "still there: {:#?}", left());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if self.socket().exists() {
            let _ = Running::start(&self.host, self.pontoon(["daemon", "stop"])).end();
        }
        // Marked as ours, so started by this test, whatever became of the parent.
        for (pid, line) in self.processes() {
            eprintln!("ending what is left: {pid} {line}");
            let Ok(pid) = i32::try_from(pid) else { continue };
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// `tests/run` makes one and names it in `PONTOON_TEST_USER`; `nobody` will do, too.
fn unprivileged_user() -> Option<(u32, u32)> {
    let name = std::env::var("PONTOON_TEST_USER").unwrap_or_else(|_| "nobody".to_owned());
    let Ok(Some(user)) = User::from_name(&name) else {
        skip(&format!("there is no user {name} here"), "PONTOON_REQUIRE_NETNS");
        return None;
    };
    let tun = fs::metadata("/dev/net/tun").map(|found| found.permissions().mode() & 0o006);
    if tun.ok() != Some(0o006) {
        skip("/dev/net/tun is not open to every user: chmod 666", "PONTOON_REQUIRE_NETNS");
        return None;
    }
    Some((user.uid.as_raw(), user.gid.as_raw()))
}

/// Waits until `holds` does.
#[track_caller]
pub(crate) fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn at(addr: &str, port: u16) -> SocketAddr {
    SocketAddr::new(addr.parse().unwrap(), port)
}
