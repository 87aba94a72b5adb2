//! What the cases are built of: namespaces, programs inside them, a wire between endpoints.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, PipeWriter, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use netns::{Endpoint, EndpointConfig, Kind, Netns, Opened, Target};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Longest wait for anything. Reached only by a failure.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Says why something cannot run here. Where namespaces were promised, that is a failure.
pub(crate) fn skip(why: &str) {
    assert!(std::env::var_os("PONTOON_REQUIRE_NETNS").is_none(), "cannot run: {why}");
    eprintln!("SKIP: {why}");
}

/// Variable that makes this program one of the commands the cases start.
pub(crate) const HELPER: &str = "PONTOON_NETNS_TEST_HELPER";

/// The commands: small, so that nothing need be installed.
pub(crate) fn help(what: &OsStr) -> ExitCode {
    match what.to_str() {
        // Runs a script in a namespace and ends with its status.
        Some("exec") => {
            let container = Container::new();
            let script = std::env::args().next_back().expect("a script");
            let config =
                netns::ExecConfig { argv: argv(&["sh", "-c", &script]), ..Default::default() };
            let status = netns::exec_in(&container.target(), config).expect("exec");
            ExitCode::from(netns::exit_code(status))
        }
        // Starts a command that is to die with us, says its pid, and waits to be killed.
        Some("pdeathsig") => {
            let config = netns::SpawnConfig {
                argv: argv(&["sleep", "60"]),
                new_net: true,
                pdeathsig: Some(libc::SIGKILL),
                ..netns::SpawnConfig::default()
            };
            let held = netns::spawn_in_new_namespaces(config).expect("spawn");
            let running = held.release().expect("release");
            println!("{}", running.pid());
            let mut rest = Vec::new();
            let _ = io::stdin().read_to_end(&mut rest);
            ExitCode::SUCCESS
        }
        // Tries to attach where it is and succeeds where that fails for the device's sake.
        Some(why @ ("attach-missing" | "attach-denied")) => {
            match netns::attach(&Netns::current().expect("ours"), &config("eth0", 2, Kind::Tap)) {
                Err(netns::Error::TunMissing) if why == "attach-missing" => ExitCode::SUCCESS,
                Err(netns::Error::TunDenied { .. }) if why == "attach-denied" => ExitCode::SUCCESS,
                other => {
                    eprintln!("{other:?}");
                    ExitCode::FAILURE
                }
            }
        }
        // Tries to make a user namespace and succeeds where the limit is named as the cause.
        Some("run-in-user-namespace") => {
            let config = netns::SpawnConfig {
                argv: argv(&["true"]),
                user: netns::NewUser::MapRoot,
                ..netns::SpawnConfig::default()
            };
            match netns::spawn_in_new_namespaces(config) {
                Err(err) if err.to_string().contains("sysctl user.max_user_namespaces") => {
                    ExitCode::SUCCESS
                }
                other => {
                    eprintln!("{other:?}");
                    ExitCode::FAILURE
                }
            }
        }
        _ => ExitCode::FAILURE,
    }
}

/// Waits for `holds`, asking again and again.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < DEADLINE, "never: {what}");
        thread::yield_now();
    }
}

/// A container: a namespace and how to get at it.
pub(crate) struct Container {
    pub(crate) netns: Netns,
}

impl Container {
    pub(crate) fn new() -> Self {
        Self { netns: Netns::create().expect("root makes namespaces") }
    }

    pub(crate) fn target(&self) -> Target {
        use std::os::fd::AsRawFd;
        Target::Path(PathBuf::from(format!("/proc/self/fd/{}", self.netns.as_fd().as_raw_fd())))
    }

    /// Runs a program inside and gives its output, which must be a success.
    pub(crate) fn run(&self, line: &str) -> String {
        run_in(&self.netns, line)
    }

    pub(crate) fn has(&self, ifname: &str) -> bool {
        self.netns.enter(|| Ok(netns::link::index_of(ifname).is_ok())).expect("enter")
    }
}

pub(crate) fn run_in(netns: &Netns, line: &str) -> String {
    let output = netns.with(|| command(line).output()).expect("start a program");
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{line}: {}\n{out}{err}", output.status);
    out.into_owned()
}

fn command(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().expect("a program"));
    command.args(words);
    command
}

/// 192.0.2.`host` and 2001:db8::`host`, documentation addresses.
pub(crate) fn config(ifname: &str, host: u8, kind: Kind) -> EndpointConfig {
    EndpointConfig {
        ifname: ifname.to_owned(),
        mac: [0x02, 0x42, 192, 0, 2, host],
        mtu: 1500,
        addresses: vec![
            format!("192.0.2.{host}/24").parse().expect("an address"),
            format!("2001:db8::{host:x}/64").parse().expect("an address"),
        ],
        gateways: Vec::new(),
        queues: 1,
        kind,
    }
}

/// What a wire saw.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) frames: u64,
    /// Longest frame, header included.
    pub(crate) longest: usize,
    /// Frames whose header says that they are to be segmented.
    pub(crate) segmented: u64,
}

/// Copies frames between two endpoints until dropped: the simplest switch there is.
pub(crate) struct Wire {
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<[Seen; 2]>>,
}

impl Wire {
    pub(crate) fn between(a: Endpoint, b: Endpoint) -> Self {
        let (stopped, stop) = io::pipe().expect("pipe");
        let thread = thread::spawn(move || copy(&[a, b], stopped.as_fd()));
        Self { stop: Some(stop), thread: Some(thread) }
    }

    /// Stops copying; what each end has sent.
    pub(crate) fn stop(mut self) -> [Seen; 2] {
        self.stop.take();
        self.thread.take().expect("not stopped before").join().expect("the wire copies")
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn copy(ends: &[Endpoint; 2], stopped: BorrowedFd<'_>) -> [Seen; 2] {
    let mut seen = [Seen::default(); 2];
    let mut buf = vec![0; 10 + 18 + 65535];
    let queues: Vec<(usize, &OwnedFd)> = ends
        .iter()
        .enumerate()
        .flat_map(|(end, endpoint)| endpoint.queues.iter().map(move |queue| (end, queue)))
        .collect();
    loop {
        let mut fds: Vec<PollFd<'_>> =
            queues.iter().map(|(_, fd)| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
        fds.push(PollFd::new(stopped, PollFlags::POLLIN));
        poll(&mut fds, PollTimeout::NONE).expect("poll");
        if fds.last().is_some_and(|fd| fd.any() == Some(true)) {
            return seen;
        }
        for (end, queue) in &queues {
            // A bound on each turn, so that the stop is seen.
            for _ in 0..64 {
                let Some(len) = receive(&ends[*end], queue, &mut buf) else { break };
                let seen = &mut seen[*end];
                seen.frames += 1;
                seen.longest = seen.longest.max(len);
                let headed = ends[*end].opened != Opened::TapPlain;
                seen.segmented += u64::from(headed && buf[1] != 0);
                send(&ends[1 - end], &buf[..len]);
            }
        }
    }
}

pub(crate) fn receive(end: &Endpoint, queue: &OwnedFd, buf: &mut [u8]) -> Option<usize> {
    let got = match end.opened {
        Opened::Packet => netns::recv_frame(queue, buf),
        Opened::TapOffload | Opened::TapPlain => {
            nix::unistd::read(queue, buf).map_err(io::Error::from)
        }
    };
    got.ok()
}

/// A full or vanished end loses the frame, as a wire does; a wrong frame is our own fault.
pub(crate) fn send(end: &Endpoint, frame: &[u8]) {
    let sent = match end.opened {
        Opened::Packet => netns::send_frame(&end.queues[0], frame),
        Opened::TapOffload | Opened::TapPlain => {
            nix::unistd::write(&end.queues[0], frame).map_err(io::Error::from)
        }
    };
    if let Err(err) = sent {
        assert_ne!(err.raw_os_error(), Some(libc::EINVAL), "refused: {:02x?}", &frame[..64]);
    }
}

/// The octet at a place of a test's stream: of a prime period, so that nothing shifts unnoticed.
pub(crate) fn pattern(at: usize) -> u8 {
    u8::try_from(at % 251).expect("below 251")
}

/// Sends `octets` octets by TCP from one namespace to another and checks each.
pub(crate) fn transfer(from: &Netns, to: &Netns, address: &str, octets: usize) {
    let address: IpAddr = address.parse().expect("an address");
    let listener = to.with(|| TcpListener::bind(SocketAddr::new(address, 0))).expect("listen");
    let at = listener.local_addr().expect("bound");
    let receiver = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        stream.set_read_timeout(Some(DEADLINE)).expect("timeout");
        let (mut buf, mut total) = (vec![0; 1 << 16], 0);
        loop {
            let got = stream.read(&mut buf).expect("receive");
            if got == 0 {
                return total;
            }
            for octet in &buf[..got] {
                assert_eq!(*octet, pattern(total), "octet {total}");
                total += 1;
            }
        }
    });
    let mut stream = from.with(|| TcpStream::connect_timeout(&at, DEADLINE)).expect("connect");
    stream.set_write_timeout(Some(DEADLINE)).expect("timeout");
    let data: Vec<u8> = (0..octets).map(pattern).collect();
    stream.write_all(&data).expect("send");
    drop(stream);
    assert_eq!(receiver.join().expect("received as sent"), octets);
}

/// Words as a command line.
pub(crate) fn argv(words: &[&str]) -> Vec<OsString> {
    words.iter().map(Into::into).collect()
}

/// Writer and reader of a pipe, the reader as a descriptor to be given away.
pub(crate) fn pipe() -> (File, OwnedFd) {
    let (read, write) = io::pipe().expect("pipe");
    (File::from(OwnedFd::from(write)), read.into())
}
