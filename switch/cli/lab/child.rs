//! Children of the lab: each with a deadline, each waited for, none able to outlive us.
//!
//! They are started by `netns`, in no new namespace, for its death signal: if the lab is killed, they
//! are. What lasts (the daemon, servers) runs in the background with the tail of what it says kept;
//! the rest is run to its end, and its output captured.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netns::{NewUser, Running, SpawnConfig};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::{SIGKILL, SIGTERM};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::interrupt::Interrupt;

/// How long a command may take.
pub(crate) const WITHIN: Duration = Duration::from_secs(10);

/// Most octets of output that are kept of each stream.
const MAX_OUTPUT: usize = 256 * 1024;

/// Most lines that are kept of something in the background.
const MAX_LINES: usize = 200;

/// Environment of the children: ours with changes.
pub(crate) type Environment = Vec<(OsString, OsString)>;

/// How a command ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Output {
    /// As a shell shows it; `None` for one that was killed at its deadline.
    pub(crate) status: Option<u8>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    pub(crate) fn success(&self) -> bool {
        self.status == Some(0)
    }

    /// What a terminal would show.
    pub(crate) fn text(&self) -> String {
        let both = [self.stdout.trim_end(), self.stderr.trim_end()];
        both.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n")
    }
}

fn spawn(
    argv: &[OsString],
    env: &Environment,
    stdio: [OwnedFd; 2],
) -> Result<Running, netns::Error> {
    let [stdout, stderr] = stdio;
    let null = File::open("/dev/null").ok().map(OwnedFd::from);
    netns::spawn_in_new_namespaces(SpawnConfig {
        argv: argv.to_vec(),
        env: Some(env.clone()),
        user: NewUser::No,
        pdeathsig: Some(SIGKILL),
        stdio: [null, Some(stdout), Some(stderr)],
        ..SpawnConfig::default()
    })?
    .release()
}

/// Runs a command to its end, its deadline, or an interrupt, whichever comes first; the latter two
/// kill it.
pub(crate) fn run(
    argv: &[OsString],
    env: &Environment,
    within: Duration,
    interrupt: Option<&Interrupt>,
) -> Result<Output, netns::Error> {
    let failed = |source| netns::Error::Child { what: "run a command".to_owned(), source };
    let deadline = Instant::now() + within;
    let (out, out_end) = io::pipe().map_err(failed)?;
    let (err, err_end) = io::pipe().map_err(failed)?;
    let mut running = spawn(argv, env, [out_end.into(), err_end.into()])?;
    let mut streams =
        [Stream::new(out.into()).map_err(failed)?, Stream::new(err.into()).map_err(failed)?];
    loop {
        // A grandchild may hold the pipes for longer: the command's end is the end.
        if let Some(status) = running.try_wait().map_err(failed)? {
            streams.iter_mut().for_each(Stream::drain);
            return Ok(Output { status: Some(netns::exit_code(status)), ..Output::from(streams) });
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || interrupt.is_some_and(Interrupt::asked) {
            // Dropped, it is killed and reaped.
            drop(running);
            streams.iter_mut().for_each(Stream::drain);
            return Ok(Output::from(streams));
        }
        let mut waiting = vec![PollFd::new(running.pidfd(), PollFlags::POLLIN)];
        waiting
            .extend(interrupt.map(|interrupt| PollFd::new(interrupt.as_fd(), PollFlags::POLLIN)));
        let open = streams.iter().filter(|stream| stream.open);
        waiting.extend(open.map(|stream| PollFd::new(stream.file.as_fd(), PollFlags::POLLIN)));
        match poll(&mut waiting, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)) {
            Ok(_) | Err(Errno::EINTR) => streams.iter_mut().for_each(Stream::drain),
            Err(errno) => return Err(failed(errno.into())),
        }
    }
}

/// The near end of a pipe, and what came out of it.
struct Stream {
    file: File,
    octets: Vec<u8>,
    open: bool,
}

impl Stream {
    fn new(end: OwnedFd) -> io::Result<Self> {
        fcntl(&end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self { file: end.into(), octets: Vec::new(), open: true })
    }

    /// Takes what is there.
    fn drain(&mut self) {
        let mut piece = [0; 4096];
        // A bound, so that one who talks without end does not keep us from the deadline.
        for _ in 0..64 {
            match self.file.read(&mut piece) {
                Ok(0) => {
                    self.open = false;
                    return;
                }
                Ok(len) => {
                    let room = MAX_OUTPUT.saturating_sub(self.octets.len()).min(len);
                    self.octets.extend_from_slice(piece.get(..room).unwrap_or_default());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn text(self) -> String {
        String::from_utf8_lossy(&self.octets).into_owned()
    }
}

impl From<[Stream; 2]> for Output {
    fn from([stdout, stderr]: [Stream; 2]) -> Self {
        Self { status: None, stdout: stdout.text(), stderr: stderr.text() }
    }
}

/// Something that lasts.
pub(crate) struct Background {
    running: Running,
    heard: Arc<(Mutex<Heard>, Condvar)>,
    reader: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Heard {
    lines: VecDeque<String>,
    ended: bool,
}

impl Background {
    /// Starts it.
    pub(crate) fn start(argv: &[OsString], env: &Environment) -> Result<Self, netns::Error> {
        let failed = |source| netns::Error::Child { what: "start a command".to_owned(), source };
        let (near, far) = io::pipe().map_err(failed)?;
        let both = [far.try_clone().map_err(failed)?.into(), far.into()];
        let running = spawn(argv, env, both)?;
        let heard = Arc::<(Mutex<Heard>, Condvar)>::default();
        let teller = Arc::clone(&heard);
        let reader = std::thread::spawn(move || {
            let (heard, news) = &*teller;
            for line in BufReader::new(near).lines().map_while(Result::ok) {
                let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                heard.lines.push_back(line);
                if heard.lines.len() > MAX_LINES {
                    heard.lines.pop_front();
                }
                news.notify_all();
            }
            heard.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
            news.notify_all();
        });
        Ok(Self { running, heard, reader })
    }

    /// Waits until it has said a line with `text` in it; what it said instead, if it does not.
    pub(crate) fn wait_for(&self, text: &str, interrupt: &Interrupt) -> Result<(), String> {
        let deadline = Instant::now() + WITHIN;
        let (heard, news) = &*self.heard;
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        while !heard.lines.iter().any(|line| line.contains(text)) {
            if heard.ended || Instant::now() > deadline || interrupt.asked() {
                return Err(heard.lines.iter().cloned().collect::<Vec<_>>().join("\n"));
            }
            // Looks up from time to time, since an interrupt does not wake it.
            let waited = news.wait_timeout(heard, Duration::from_millis(50));
            heard = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.running.try_wait(), Ok(None))
    }

    /// The last lines it said.
    pub(crate) fn tail(&self) -> String {
        let heard = self.heard.0.lock().unwrap_or_else(PoisonError::into_inner);
        let from = heard.lines.len().saturating_sub(10);
        heard.lines.iter().skip(from).cloned().collect::<Vec<_>>().join("\n")
    }

    /// Asks it to end, insists when it does not, and reaps it.
    pub(crate) fn stop(mut self) {
        if !self.has_ended() {
            // It exists, since it is not reaped.
            let _ = self.running.signal(SIGTERM);
            let mut ended = [PollFd::new(self.running.pidfd(), PollFlags::POLLIN)];
            let patience =
                PollTimeout::try_from(Duration::from_secs(5)).unwrap_or(PollTimeout::ZERO);
            while poll(&mut ended, patience) == Err(Errno::EINTR) {}
        }
        // Dropped, it is killed if need be, and reaped; then nobody holds the pipe.
        drop(self.running);
        let _ = self.reader.join();
    }
}

/// The end of whatever our children left behind: it becomes ours, and dies before us.
pub(crate) struct Strays;

impl Strays {
    /// From now on orphans below us are our children (`PR_SET_CHILD_SUBREAPER`, `prctl(2)`).
    pub(crate) fn adopt() -> io::Result<Self> {
        set_child_subreaper(true)?;
        Ok(Self)
    }
}

impl Drop for Strays {
    /// Kills and reaps every child there is. What the lab knows of it has waited for before.
    fn drop(&mut self) {
        let deadline = Instant::now() + WITHIN;
        while Instant::now() < deadline {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => {
                    children().into_iter().for_each(|child| {
                        // Ours and not reaped, so the number is still its own.
                        let _ = kill(child, Signal::SIGKILL);
                    });
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}

/// Our children, of every thread (`proc_pid_task_tid_children(5)`).
fn children() -> Vec<Pid> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let pids = lists.flat_map(|list| {
        list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()
    });
    pids.map(Pid::from_raw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_shows_both_streams() {
        let output = Output { status: Some(1), stdout: "out\n\n".into(), stderr: "err\n".into() };
        assert_eq!(output.text(), "out\nerr");
        assert!(!output.success());
        assert_eq!(Output::default().text(), "");
    }

    #[test]
    fn a_pipe_is_drained_without_waiting_and_not_without_bound() {
        use std::io::Write as _;
        let (near, mut far) = io::pipe().expect("a pipe");
        let mut stream = Stream::new(near.into()).expect("a pipe");
        stream.drain();
        assert!(stream.open && stream.octets.is_empty());
        far.write_all(&[b'x'; 5000]).expect("room");
        stream.drain();
        assert_eq!(stream.octets.len(), 5000);
        stream.octets.resize(MAX_OUTPUT - 1, b'x');
        far.write_all(b"yz").expect("room");
        drop(far);
        stream.drain();
        assert!(!stream.open);
        assert_eq!(stream.octets.len(), MAX_OUTPUT);
        assert!(stream.text().ends_with("xy"));
    }
}
