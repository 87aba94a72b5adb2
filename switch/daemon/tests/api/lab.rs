//! What the cases are built of: a host, daemons on it, and containers to attach.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use daemon::client::Client;
use daemon::{Config, api, server};
use netns::{Held, Interface, Netns, NewUser, Running, SpawnConfig};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Variable that says what this process is.
pub(crate) const ROLE: &str = "PONTOON_DAEMON_TEST";

/// Variable that tells the daemon to end after so many milliseconds without anybody.
const IDLE: &str = "PONTOON_DAEMON_TEST_IDLE";

/// Longest wait for anything. Reached only by a failure.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Says why something cannot run here. Where namespaces were promised, that is a failure.
pub(crate) fn skip(why: &str) {
    assert!(std::env::var_os("PONTOON_REQUIRE_NETNS").is_none(), "cannot run: {why}");
    eprintln!("SKIP: {why}");
}

/// Runs this program again, as root of a namespace of its own.
pub(crate) fn inside_a_host() -> ExitCode {
    if std::fs::File::options().read(true).write(true).open("/dev/net/tun").is_err() {
        skip("/dev/net/tun cannot be opened");
        return ExitCode::SUCCESS;
    }
    let env = std::env::vars_os().chain([(ROLE.into(), "host".into())]).collect();
    let config = SpawnConfig {
        argv: std::env::args_os().collect(),
        env: Some(env),
        new_net: true,
        pdeathsig: Some(nix::libc::SIGKILL),
        ..SpawnConfig::default()
    };
    match netns::spawn_in_new_namespaces(config).and_then(Held::release) {
        Ok(mut running) => ExitCode::from(netns::exit_code(running.wait().expect("our child"))),
        Err(error) => {
            skip(&format!("{error:#}"));
            ExitCode::SUCCESS
        }
    }
}

/// The daemon's process.
pub(crate) fn be_the_daemon() -> ExitCode {
    let idle = std::env::var(IDLE).ok().and_then(|text| text.parse().ok());
    let options = server::Options {
        socket: std::env::args_os().next_back().map(PathBuf::from).expect("a socket"),
        workers: worker::Config {
            workers: 2,
            max_tracked: 4096,
            max_tracked_per_port: 4096,
            max_flows: 1024,
            max_flows_per_port: 512,
            busy_poll: Duration::ZERO,
            cpus: Vec::new(),
            nice: 0,
        },
        config: Config::default(),
        idle_exit: idle.map(Duration::from_millis),
    };
    let ready = |notes: &[String]| println!("ready {}", notes.join("; "));
    match server::run(options, ready) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error {error}");
            ExitCode::FAILURE
        }
    }
}

/// A process of another user that asks the daemon who it is, and prints the answer.
pub(crate) fn be_a_stranger() -> ExitCode {
    let socket = std::env::args_os().next_back().map(PathBuf::from).expect("a socket");
    print!("{}", talk(&socket, "GET /v1/version HTTP/1.1\r\nHost: p\r\nConnection: close\r\n\r\n"));
    ExitCode::SUCCESS
}

/// A process of another user that listens where a daemon might, and says how much it was told.
pub(crate) fn be_an_impostor() -> ExitCode {
    let socket = std::env::args_os().next_back().map(PathBuf::from).expect("a socket");
    let listener = UnixListener::bind(socket).expect("a place to listen");
    println!("ready");
    let (mut stream, _) = listener.accept().expect("somebody");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let mut told = Vec::new();
    let _ = stream.read_to_end(&mut told);
    println!("{}", told.len());
    ExitCode::SUCCESS
}

/// Octets sent as they are, and whatever comes back.
pub(crate) fn talk(socket: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(socket).expect("a daemon");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    stream.write_all(request.as_bytes()).expect("sent");
    stream.shutdown(Shutdown::Write).expect("shut down");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

/// A daemon on a socket of its own.
pub(crate) struct Daemon {
    pub(crate) client: Client,
    pub(crate) socket: PathBuf,
    child: Child,
    directory: TempDir,
}

impl Daemon {
    pub(crate) fn start() -> Self {
        Self::with(&[], TempDir::with_prefix("pontoon-api-").expect("a directory"))
    }

    pub(crate) fn ending_after(idle: Duration) -> Self {
        let idle = idle.as_millis().to_string();
        Self::with(&[(IDLE, &idle)], TempDir::with_prefix("pontoon-api-").expect("a directory"))
    }

    fn with(env: &[(&str, &str)], directory: TempDir) -> Self {
        let socket = directory.path().join("pontoon.sock");
        let (child, said) = spawn(&socket, env);
        assert!(said.starts_with("ready"), "the daemon says {said:?}");
        let client = Client::new(&socket).expect("a client");
        Self { client, socket, child, directory }
    }

    /// What a second daemon on the same socket says.
    pub(crate) fn another(&self) -> String {
        let (mut child, said) = spawn(&self.socket, &[]);
        let _ = child.kill();
        child.wait().expect("our child");
        said
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("our child");
    }

    /// Waits for its end.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        until("the daemon's end", || self.child.try_wait().expect("our child"))
    }

    /// A new daemon in the place of one that has ended.
    pub(crate) fn again(mut self) -> Self {
        self.ended();
        let directory =
            std::mem::replace(&mut self.directory, TempDir::new().expect("a directory"));
        Self::with(&[], directory)
    }

    pub(crate) fn request(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let answer = talk(
            &self.socket,
            &format!(
                "{method} {path} HTTP/1.1\r\nHost: p\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ),
        );
        let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
        let status = head.split(' ').nth(1).and_then(|text| text.parse().ok()).expect("a status");
        (status, body.to_owned())
    }

    /// Attaches a container to the default network.
    pub(crate) fn attach(&self, container: &Container, name: &str) -> api::Endpoint {
        self.client.attach(&container.request(name)).expect("attached")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.signal(Signal::SIGTERM);
            let _ = self.child.wait();
        }
    }
}

fn spawn(socket: &Path, env: &[(&str, &str)]) -> (Child, String) {
    let mut child = Command::new("/proc/self/exe")
        .arg(socket)
        .env(ROLE, "daemon")
        .envs(env.iter().copied())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program");
    let mut said = String::new();
    let stdout = child.stdout.as_mut().expect("a pipe");
    BufReader::new(stdout).read_line(&mut said).expect("a line");
    (child, said.trim_end().to_owned())
}

/// A command in namespaces of its own, with another user namespace than the daemon's.
pub(crate) struct Container {
    pub(crate) running: Running,
    pub(crate) netns: Netns,
    stdin: Option<ChildStdin>,
}

impl Container {
    pub(crate) fn new() -> Self {
        // It ends with its standard input, which is this pipe.
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("a pipe");
        let config = SpawnConfig {
            argv: vec![OsString::from("cat")],
            user: NewUser::MapRoot,
            new_net: true,
            pdeathsig: Some(nix::libc::SIGKILL),
            stdio: [Some(read), None, None],
            ..SpawnConfig::default()
        };
        let held = netns::spawn_in_new_namespaces(config).expect("namespaces");
        let netns = held.netns().try_clone().expect("a descriptor");
        let running = held.release().expect("cat");
        Self { running, netns, stdin: Some(ChildStdin::from(write)) }
    }

    pub(crate) fn target(&self) -> String {
        format!("pid:{}", self.running.pid())
    }

    pub(crate) fn request(&self, name: &str) -> api::EndpointCreate {
        api::EndpointCreate {
            target: self.target(),
            name: Some(name.to_owned()),
            ..api::EndpointCreate::default()
        }
    }

    /// Its interfaces but loopback.
    pub(crate) fn interfaces(&self) -> Vec<Interface> {
        let mut found = self.netns.enter(netns::interfaces).expect("interfaces");
        found.retain(|interface| interface.name != "lo");
        found
    }

    /// Next hops of its default routes.
    pub(crate) fn routers(&self) -> Vec<String> {
        let routes = self.netns.enter(netns::routes).expect("routes");
        let defaults = routes.into_iter().filter(|route| route.dst.prefix_len() == 0);
        defaults.filter_map(|route| route.via).map(|via| via.to_string()).collect()
    }

    /// Lets the command end.
    pub(crate) fn end(&mut self) {
        drop(self.stdin.take());
        self.running.wait().expect("our child");
    }
}

/// Waits for a condition.
pub(crate) fn until<T>(what: &str, mut met: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = met() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(2));
    }
}
