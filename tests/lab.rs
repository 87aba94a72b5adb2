//! `pontoon lab run first-bridge`: by root, by somebody without privilege, when it cannot succeed, and
//! when it is not let finish. Whatever becomes of it, nothing of it may be left.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, User, geteuid};
use serde_json::Value;

/// Longest a lab may take, with all else that the machine does meanwhile. By itself it takes 2 s.
const WITHIN: Duration = Duration::from_secs(60);

/// Variable by which the processes of one lab are found, whatever becomes of their parents.
const MARK: &str = "LAB_TEST_MARK";

/// Whom a lab is run by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Root,
    Nobody,
}

/// A copy of the program that anybody may execute, and a folder where anybody may write.
struct Bench {
    folder: tempfile::TempDir,
    mark: String,
    by: By,
    /// What looked like a lab's before there was one.
    before: BTreeSet<String>,
}

/// How a lab ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// A lab that runs.
struct Running {
    child: Child,
    stdout: Said,
    stderr: Said,
}

/// What a stream has said so far, and the thread that listens.
struct Said {
    text: Arc<Mutex<String>>,
    listener: JoinHandle<()>,
}

impl Bench {
    /// `None` where such a lab cannot be run here, which has been said by then.
    fn new(by: By) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if by == By::Root && !geteuid().is_root() {
            return skip("not root");
        }
        if by == By::Nobody {
            let tun = fs::metadata("/dev/net/tun").map(|tun| tun.permissions().mode());
            if !tun.is_ok_and(|mode| mode & 0o006 == 0o006) {
                return skip(
                    "/dev/net/tun is not open to every user; as root: chmod 666 /dev/net/tun",
                );
            }
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let open = |path: &Path, mode| {
            fs::set_permissions(path, Permissions::from_mode(mode)).expect("our own file");
        };
        open(folder.path(), 0o755);
        let program = folder.path().join("pontoon");
        // By another process: a write descriptor of ours would live on in whatever another test's thread
        // forks meanwhile, and nobody may execute the file as long (ETXTBSY).
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_pontoon")).arg(&program).status();
        assert!(copied.is_ok_and(|status| status.success()), "room for the program");
        open(&program, 0o755);
        let scratch = folder.path().join("scratch");
        fs::create_dir(&scratch).expect("a folder");
        open(&scratch, 0o777);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mark = format!("{MARK}={}-{number}", std::process::id());
        let mut bench = Self { folder, mark, by, before: BTreeSet::new() };
        bench.before = bench.traces();
        Some(bench)
    }

    fn scratch(&self) -> PathBuf {
        self.folder.path().join("scratch")
    }

    /// Starts `pontoon lab run first-bridge` with further arguments.
    fn start(&self, arguments: &[&str]) -> Running {
        let mut command = Command::new(self.folder.path().join("pontoon"));
        command.args(["lab", "run", "first-bridge"]).args(arguments);
        for name in ["HOME", "TMPDIR", "XDG_RUNTIME_DIR"] {
            command.env(name, self.scratch());
        }
        // Another daemon's socket is none of the lab's business, and must stay so.
        command.env("PONTOON_SOCKET", self.scratch().join("other.sock"));
        let (_, value) = self.mark.split_once('=').expect("made so");
        command.env(MARK, value).current_dir("/");
        if self.by == By::Nobody && geteuid().is_root() {
            let (uid, gid) = nobody();
            // With a uid and as root, std gives up the other groups, too.
            command.uid(uid).gid(gid);
        }
        // As a shell does for what is typed at a terminal.
        command.process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program");
        let stdout = Said::by(child.stdout.take().expect("asked for"));
        let stderr = Said::by(child.stderr.take().expect("asked for"));
        Running { child, stdout, stderr }
    }

    /// What is left of the lab.
    fn left_behind(&self) -> Vec<String> {
        self.traces().difference(&self.before).cloned().collect()
    }

    /// Processes, mounts, names, interfaces and files that could be the lab's.
    fn traces(&self) -> BTreeSet<String> {
        let mut traces: BTreeSet<_> = marked(&self.mark).into_iter().collect();
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc");
        let folder = self.folder.path().display().to_string();
        let names = ["/netns/world", "/netns/netns0", "/netns/netns1", &folder];
        let ours = |line: &&str| names.iter().any(|name| line.contains(name));
        traces.extend(mounts.lines().filter(ours).map(str::to_owned));
        for path in [
            "/run/netns/netns0",
            "/run/netns/netns1",
            "/run/netns/world",
            "/sys/class/net/pontoon0",
            "/sys/class/net/pt-br0",
        ] {
            traces.extend(Path::new(path).exists().then(|| path.to_owned()));
        }
        let files = fs::read_dir(self.scratch()).expect("our own folder").flatten();
        traces.extend(files.map(|file| file.path().display().to_string()));
        traces
    }

    /// Waits until nothing is left: who was killed is gone a moment later.
    fn assert_nothing_is_left(&self) {
        let start = Instant::now();
        while start.elapsed() < WITHIN {
            if self.left_behind().is_empty() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("left behind: {:#?}", self.left_behind());
    }

    /// Runs a lab to its end. Nothing may be left at that very moment.
    fn run(&self, arguments: &[&str]) -> Ended {
        let ended = self.start(arguments).wait();
        assert_eq!(self.left_behind(), [""; 0], "{ended:#?}");
        ended
    }
}

impl Running {
    fn wait(mut self) -> Ended {
        let start = Instant::now();
        let status = loop {
            match self.child.try_wait().expect("our own child") {
                Some(status) => break status,
                None if start.elapsed() > WITHIN => {
                    self.child.kill().expect("our own child");
                    self.child.wait().expect("our own child");
                    panic!("no end within {WITHIN:?}: {}", self.stdout.whole());
                }
                None => thread::sleep(Duration::from_millis(10)),
            }
        };
        Ended { code: status.code(), stdout: self.stdout.whole(), stderr: self.stderr.whole() }
    }

    /// Waits until it has said `text`, and gives its input, whose end would be as good as Enter.
    fn wait_until_it_says(&mut self, text: &str) -> ChildStdin {
        let start = Instant::now();
        while !self.stdout.so_far().contains(text) {
            let ended = self.child.try_wait().expect("our own child");
            let in_time = ended.is_none() && start.elapsed() < WITHIN;
            assert!(in_time, "never said {text:?} ({ended:?}): {}", self.stdout.so_far());
            thread::sleep(Duration::from_millis(5));
        }
        self.child.stdin.take().expect("taken once")
    }
}

impl Said {
    fn by(stream: impl std::io::Read + Send + 'static) -> Self {
        let text = Arc::<Mutex<String>>::default();
        let heard = Arc::clone(&text);
        let listener = thread::spawn(move || {
            for line in BufReader::new(stream).lines() {
                *heard.lock().expect("nobody panics") += &(line.expect("UTF-8") + "\n");
            }
        });
        Self { text, listener }
    }

    fn so_far(&self) -> String {
        self.text.lock().expect("nobody panics").clone()
    }

    fn whole(self) -> String {
        self.listener.join().expect("it listens to the end");
        self.text.lock().expect("nobody panics").clone()
    }
}

impl Ended {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

/// Says why a test cannot run here. Where namespaces were promised, that is a failure.
fn skip<T>(why: &str) -> Option<T> {
    assert!(std::env::var_os("PONTOON_REQUIRE_NETNS").is_none(), "cannot run: {why}");
    eprintln!("SKIP: {why}");
    None
}

/// Uid and gid of somebody without privilege: of `PONTOON_TEST_USER`, or `nobody`'s.
fn nobody() -> (u32, u32) {
    let name = std::env::var("PONTOON_TEST_USER").unwrap_or_else(|_| "nobody".to_owned());
    let user = User::from_name(&name).expect("the users can be read");
    user.map_or((65534, 65534), |user| (user.uid.as_raw(), user.gid.as_raw()))
}

/// Processes with `mark` in their environment: a line each. A zombie has none any more.
fn marked(mark: &str) -> Vec<String> {
    let pids = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let is_ours = environment.split(|octet| *octet == 0).any(|one| one == mark.as_bytes());
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        is_ours.then(|| format!("{pid} {}", String::from_utf8_lossy(&command).replace('\0', " ")))
    })
    .collect()
}

fn checks(document: &Value) -> impl Iterator<Item = (&Value, &Value)> {
    let steps = document["Steps"].as_array().expect("steps").iter();
    steps.flat_map(|step| {
        step["Checks"].as_array().expect("checks").iter().map(move |check| (step, check))
    })
}

fn assert_it_is_crossed(by: By) {
    let Some(bench) = Bench::new(by) else { return };
    let ended = bench.run(&["--format", "json"]);
    let document = ended.json();
    for (step, check) in checks(&document) {
        assert_eq!(check["Passed"], true, "step {}: {check:#}", step["Number"]);
    }
    assert_eq!((ended.code, &*ended.stderr), (Some(0), ""));
    assert_eq!(document["Steps"].as_array().map(Vec::len), Some(9));
    let count = checks(&document).count();
    assert!(count >= 38, "{count} checks");
    assert_eq!((&document["Passed"], &document["Failed"]), (&count.into(), &0.into()));
    assert_eq!(document["Complete"], true);
}

#[test]
fn root_crosses_the_first_bridge() {
    assert_it_is_crossed(By::Root);
}

#[test]
fn somebody_without_privilege_crosses_it_as_well() {
    assert_it_is_crossed(By::Nobody);
}

/// Each command is there for something: without it, just the checks that need it fail.
#[test]
fn a_command_left_out_is_missed_where_it_is_needed() {
    let misses = |without: &str, first_missed: &str| {
        let Some(bench) = Bench::new(By::Nobody) else { return };
        let ended = bench.run(&["--format", "json", "--without", without]);
        let document = ended.json();
        assert_eq!(ended.code, Some(1), "{ended:#?}");
        assert_eq!(document["Complete"], true);
        let failed: Vec<_> = checks(&document)
            .filter(|(_, check)| check["Passed"] == false)
            .map(|(_, check)| check["What"].as_str().expect("text"))
            .collect();
        assert!(failed.first().is_some_and(|what| what.starts_with(first_missed)), "{failed:#?}");
        assert_eq!(document["Failed"], failed.len());
    };
    // What is missed is waited for.
    std::thread::scope(|scope| {
        for (without, first_missed) in [
            ("network set br0 --uplink sockets", "netns0 reaches the Internet"),
            ("publish add netns0 5000:5000", "the world gets the page of 10.0.2.15:5000"),
            ("network set br0 --gateway 172.18.0.1", "the host has a route to the containers"),
        ] {
            scope.spawn(move || misses(without, first_missed));
        }
    });
}

#[test]
fn what_is_told_a_person_names_each_step_and_the_failures() {
    let Some(bench) = Bench::new(By::Nobody) else { return };
    let ended = bench.run(&["--without", "publish add netns0 5000:5000"]);
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    for text in [
        "1  Network namespaces",
        "$ pontoon attach netns0 --network br0 --name netns0 --ip 172.18.0.10",
        "ok        netns0 reaches netns1",
        "FAILED    the world gets the page of 10.0.2.15:5000",
        "checks FAILED",
    ] {
        assert!(ended.stdout.contains(text), "no {text:?} in\n{}", ended.stdout);
    }
    assert!(!ended.stdout.contains('\x1b'), "colour in a pipe");
}

#[test]
fn a_command_that_is_not_typed_cannot_be_left_out() {
    let Some(bench) = Bench::new(By::Nobody) else { return };
    let ended = bench.run(&["--without", "network rm br1"]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("types no command `network rm br1`"), "{ended:#?}");
}

#[test]
fn a_lab_that_is_kept_goes_when_it_is_told_to() {
    let Some(bench) = Bench::new(By::Nobody) else { return };
    let mut running = bench.start(&["--keep"]);
    let mut stdin = running.wait_until_it_says("Press Enter");
    assert!(!bench.left_behind().is_empty(), "it is up");
    stdin.write_all(b"\n").expect("it reads");
    let ended = running.wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert_eq!(bench.left_behind(), [""; 0]);
}

/// By kill(1), which asks one process, and by Ctrl-C, which asks all of them, at any time.
#[test]
fn an_interrupted_lab_is_taken_down() {
    let times = ["The ground", "Container to container", "A published port", "Press Enter"];
    for (n, text) in times.into_iter().enumerate() {
        let by = if n % 2 == 0 { By::Nobody } else { By::Root };
        for (signal, everybody) in [(Signal::SIGINT, true), (Signal::SIGTERM, false)] {
            let Some(bench) = Bench::new(by) else { return };
            // Kept, so that it cannot be over before it is asked.
            let mut running = bench.start(&["--keep"]);
            let _stdin = running.wait_until_it_says(text);
            let pid = Pid::from_raw(running.child.id().cast_signed());
            match everybody {
                true => killpg(pid, signal).expect("our own children"),
                false => kill(pid, signal).expect("our own child"),
            }
            let ended = running.wait();
            assert_eq!(ended.code, Some(130), "at {text:?} by {by:?}, {signal}: {ended:#?}");
            assert!(ended.stderr.contains("interrupted"), "{ended:#?}");
            assert_eq!(bench.left_behind(), [""; 0]);
        }
    }
}

#[test]
fn a_killed_lab_leaves_nothing_either() {
    for by in [By::Nobody, By::Root] {
        let Some(bench) = Bench::new(by) else { return };
        let mut running = bench.start(&["--keep"]);
        let _stdin = running.wait_until_it_says("Press Enter");
        running.child.kill().expect("our own child");
        assert_eq!(running.wait().code, None);
        bench.assert_nothing_is_left();
    }
}

/// As somebody who could do no harm if it were not refused.
#[test]
fn the_users_own_machine_is_not_taken_for_the_labs() {
    let Some(bench) = Bench::new(By::Nobody) else { return };
    let ended = bench.run(&["--inside"]);
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert!(ended.stderr.contains("--inside is for pontoon itself"), "{ended:#?}");
}
