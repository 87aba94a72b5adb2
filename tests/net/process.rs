//! Processes a test starts: their output, their end, and never a day longer than the test.

use std::fmt;
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use netns::Netns;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::PATIENCE;

/// A process that is running, or was; it is killed when this is dropped.
pub(crate) struct Running {
    child: Child,
    said: String,
    stdout: Arc<Text>,
    stderr: Arc<Text>,
}

/// What a process wrote and how it ended.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    pub(crate) what: String,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// What came out of a pipe so far.
#[derive(Default)]
struct Text {
    lines: Mutex<(String, bool)>,
    grew: Condvar,
}

impl Text {
    fn of(pipe: impl Read + Send + 'static) -> Arc<Self> {
        let text = Arc::new(Self::default());
        let into = Arc::clone(&text);
        thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while matches!(pipe.read_until(b'\n', &mut line), Ok(1..)) {
                into.lines.lock().unwrap().0.push_str(&String::from_utf8_lossy(&line));
                into.grew.notify_all();
                line.clear();
            }
            into.lines.lock().unwrap().1 = true;
            into.grew.notify_all();
        });
        text
    }

    fn so_far(&self) -> String {
        self.lines.lock().unwrap().0.clone()
    }

    fn is_over(&self) -> bool {
        self.lines.lock().unwrap().1
    }

    /// Waits until `done` with what came, or nothing more comes, or the time is over.
    fn wait(&self, deadline: Instant, done: impl Fn(&str) -> bool) -> bool {
        let mut lines = self.lines.lock().unwrap();
        while !done(&lines.0) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || lines.1 {
                return false;
            }
            lines = self.grew.wait_timeout(lines, left).unwrap().0;
        }
        true
    }

    /// Waits for the end of the pipe, a little: whoever inherited it may hold it open.
    fn all(&self) -> String {
        let deadline = Instant::now() + Duration::from_secs(2);
        self.wait(deadline, |_| false);
        self.so_far()
    }
}

impl Running {
    /// Starts `command` in a namespace, without standard input.
    #[track_caller]
    pub(crate) fn start(netns: &Netns, mut command: Command) -> Self {
        let program = command.get_program().to_string_lossy().into_owned();
        let args = command.get_args().map(|arg| arg.to_string_lossy().into_owned());
        let said = [program].into_iter().chain(args).collect::<Vec<_>>().join(" ");
        command.process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A child is in the namespace of the thread that starts it.
        let child = netns.with(|| command.spawn());
        let mut child = child.unwrap_or_else(|error| panic!("start {said}: {error}"));
        let stdout = Text::of(child.stdout.take().unwrap());
        let stderr = Text::of(child.stderr.take().unwrap());
        Self { child, said, stdout, stderr }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its namespace, once it is in one of its own.
    pub(crate) fn netns(&self) -> Netns {
        Netns::of_pid(self.pid()).unwrap()
    }

    /// Waits until it has written `text`, to standard output or error.
    #[track_caller]
    pub(crate) fn says(&self, text: &str) -> &Self {
        let deadline = Instant::now() + PATIENCE;
        let step = Duration::from_millis(100);
        let mut last = false;
        while Instant::now() < deadline && !last {
            // What has ended is looked at once more.
            last = self.stdout.is_over() && self.stderr.is_over();
            let seen = |lines: &str| lines.contains(text);
            if self.stdout.wait(Instant::now(), seen)
                || self.stderr.wait(Instant::now() + step, seen)
            {
                return self;
            }
        }
        panic!("it never said {text:?}: {self:?}");
    }

    /// What it has written so far.
    pub(crate) fn written(&self) -> String {
        self.stdout.so_far() + &self.stderr.so_far()
    }

    /// Ctrl-C: the terminal interrupts the whole process group.
    pub(crate) fn interrupt(&self) {
        killpg(self.raw_pid(), Signal::SIGINT).unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.raw_pid(), signal).unwrap();
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn end(mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() > deadline => panic!("it does not end: {self:?}"),
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        let (stdout, stderr) = (self.stdout.all(), self.stderr.all());
        Ended { what: self.said.clone(), status, stdout, stderr }
    }

    fn raw_pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (stdout, stderr) = (self.stdout.so_far(), self.stderr.so_far());
        write!(f, "{}\nstdout:\n{stdout}\nstderr:\n{stderr}", self.said)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

impl Ended {
    #[track_caller]
    pub(crate) fn succeeded(self) -> Self {
        assert!(self.status.success(), "{self:#?}");
        self
    }

    /// It failed with this status, in one line that says all of these.
    #[track_caller]
    pub(crate) fn failed(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.status.code(), Some(code), "{self:#?}");
        let errors: Vec<_> = self.stderr.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(errors.len(), 1, "not one line: {self:#?}");
        assert!(errors[0].starts_with("pontoon: "), "{self:#?}");
        for word in words {
            assert!(errors[0].contains(word), "it does not say {word:?}: {self:#?}");
        }
        self
    }
}
