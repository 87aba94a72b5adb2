//! The program as it is typed: exit codes, what commands see, and what is printed.
//!
//! Without a test harness, because `main` must begin with `enter_child_if_asked`. Every case runs in a
//! network namespace of its own as "the host", and without root in a user namespace, as root of it; the
//! daemon is started on demand by the commands themselves and ends with the case. What cannot run says
//! SKIP, and fails where `PONTOON_REQUIRE_NETNS` is set.

mod cases;

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::panic::catch_unwind;
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::time::{Duration, Instant};

use netns::{Held, SpawnConfig};
use tempfile::TempDir;

/// Variable that says what this process is.
const ROLE: &str = "PONTOON_CLI_TEST";

/// Longest wait for anything. Reached only by a failure.
const DEADLINE: Duration = Duration::from_secs(20);

/// A name and what it stands for.
type Case = (&'static str, fn(&Host));

fn main() -> ExitCode {
    netns::enter_child_if_asked();
    if std::env::args().any(|arg| arg == "--list") {
        return ExitCode::SUCCESS;
    }
    match std::env::var(ROLE) {
        Err(_) => all(),
        Ok(role) => match role.split_once(' ') {
            Some(("case", name)) => one(name),
            Some(("greet", port)) => greet(port.parse().expect("a port")),
            _ => panic!("no role {role}"),
        },
    }
}

/// Runs each case in a namespace of its own.
fn all() -> ExitCode {
    if std::fs::File::options().read(true).write(true).open("/dev/net/tun").is_err() {
        return skip("/dev/net/tun cannot be opened");
    }
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let is_wanted =
        |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, _) in cases::ALL.iter().filter(|(name, _)| is_wanted(name)) {
        eprintln!("cli: {name}");
        let role = OsString::from(format!("case {name}"));
        let config = SpawnConfig {
            argv: vec!["/proc/self/exe".into()],
            env: Some(std::env::vars_os().chain([(ROLE.into(), role)]).collect()),
            new_net: true,
            pdeathsig: Some(nix::libc::SIGKILL),
            ..SpawnConfig::default()
        };
        match netns::spawn_in_new_namespaces(config).and_then(Held::release) {
            Ok(mut running) => match running.wait().expect("our child").success() {
                true => passed += 1,
                false => failed.push(name),
            },
            Err(error) => return skip(&format!("{error:#}")),
        }
    }
    for name in &failed {
        eprintln!("FAILED: {name}");
    }
    println!("{passed} passed, {} failed", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Says why nothing can run here. Where namespaces were promised, that is a failure.
fn skip(why: &str) -> ExitCode {
    assert!(std::env::var_os("PONTOON_REQUIRE_NETNS").is_none(), "cannot run: {why}");
    eprintln!("SKIP: {why}");
    ExitCode::SUCCESS
}

fn one(name: &str) -> ExitCode {
    let (_, case) = cases::ALL.iter().find(|(known, _)| *known == name).expect("a case");
    let host = Host { directory: TempDir::with_prefix("pontoon-cli-").expect("a directory") };
    let passed = catch_unwind(|| case(&host)).is_ok();
    // Whatever the case left behind; the daemon ends before its directory does.
    host.pontoon(&["daemon", "stop"]);
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A server for commands to run: greets one client after the other.
fn greet(port: u16) -> ExitCode {
    let listener = TcpListener::bind(("0.0.0.0", port)).expect("a port");
    for stream in listener.incoming() {
        let _ = stream.and_then(|mut stream| stream.write_all(b"hello"));
    }
    ExitCode::SUCCESS
}

/// A namespace in the part of the host, with a daemon of its own.
struct Host {
    directory: TempDir,
}

impl std::panic::RefUnwindSafe for Host {}

impl Host {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pontoon"));
        command.args(args).env("PONTOON_SOCKET", self.directory.path().join("pontoon.sock"));
        command.env_remove(ROLE).env_remove("NO_COLOR").stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    fn pontoon(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the program")
    }

    /// What a command prints that succeeds.
    fn says(&self, args: &[&str]) -> String {
        let output = self.pontoon(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// What a command prints on standard error, with its status.
    fn fails(&self, args: &[&str]) -> (i32, String) {
        let output = self.pontoon(args);
        let code = output.status.code().expect("a status");
        assert_ne!(code, 0, "{args:?} succeeds: {}", text(&output.stdout));
        (code, text(&output.stderr))
    }

    fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.says(args)).unwrap_or_else(|error| panic!("{args:?}: {error}"))
    }

    /// A command that goes on until it is dropped.
    fn keeps(&self, args: &[&str]) -> Kept {
        let command = self.command(args).stderr(Stdio::null()).stdout(Stdio::null()).spawn();
        Kept(command.expect("the program"))
    }

    /// A server on `port` of an endpoint `name`, once it is attached.
    fn greeter(&self, name: &str, port: u16, args: &[&str]) -> Kept {
        let role = format!("{ROLE}=greet {port}");
        let exe = std::env::current_exe().expect("this program");
        let exe = exe.to_str().expect("UTF-8");
        let kept =
            self.keeps(&[&["run", "--name", name], args, &["--", "env", &role, exe]].concat());
        self.attached(name);
        kept
    }

    /// Waits until an endpoint is up.
    fn attached(&self, name: &str) {
        until(&format!("endpoint {name}"), || {
            let found = self.pontoon(&["inspect", name]);
            (found.status.success() && text(&found.stdout).contains("\"up\"")).then_some(())
        });
    }
}

/// A running command; dropped, it is told to end, and has ended.
struct Kept(Child);

impl Drop for Kept {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).trim_end().to_owned()
}

/// What a server at `addr` says, once it says something.
fn greeting(addr: &str) -> String {
    until(addr, || {
        let mut stream = TcpStream::connect(addr).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).ok()?;
        let mut said = String::new();
        stream.read_to_string(&mut said).ok()?;
        (!said.is_empty()).then_some(said)
    })
}

/// Waits for a condition.
fn until<T>(what: &str, mut met: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = met() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
