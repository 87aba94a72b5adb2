//! The running switch: starts the workers, and carries to each of them what is asked.
//!
//! All state the workers share is made here; what each keeps for itself it is sent. A call returns
//! when every worker has done its part.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant as HostInstant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use mio::{Poll, Waker};
use nat::{Conntrack, Profile};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use relay::{Limits, Relay, Shared, Supplies};
use smoltcp::time::Instant;

use crate::command::{Command, Done};
use crate::control::{Config, Event};
use crate::state::State;
use crate::urgency::{self, Urgency};
use crate::worker::{Setup, Tally, WAKER, Worker};

/// Commands one worker may have waiting.
const MAX_COMMANDS: usize = 1024;

/// Frames that others handed over, which one worker may have waiting.
const MAX_HANDED: usize = 1024;

/// Time a worker has to carry out a command.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct WorkerHandle {
    commands: Sender<Command>,
    waker: Arc<Waker>,
    pub(crate) tally: Arc<Tally>,
    thread: Option<JoinHandle<()>>,
}

/// The running switch. Dropping it stops the workers.
#[derive(Debug)]
pub struct Switch {
    pub(crate) workers: Vec<WorkerHandle>,
    pub(crate) conntrack: Arc<Conntrack>,
    pub(crate) shared: Arc<Shared>,
    epoch: HostInstant,
    state: Mutex<State>,
    /// There is nobody to fill stocks before the first.
    pub(crate) supplies: OnceLock<Supplies>,
}

impl Switch {
    /// Starts the workers; the receiver tells what happens by itself.
    ///
    /// # Errors
    ///
    /// A thread or a poll could not be made, or no thread may run on a processor of `config.cpus`;
    /// `InvalidInput` without workers or with more than 255.
    pub fn start(config: Config) -> io::Result<(Self, Receiver<Event>)> {
        if config.workers == 0 || config.workers > 255 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "1 to 255 workers"));
        }
        let conntrack = Arc::new(
            Conntrack::new(config.max_tracked, Profile::Rfc)
                .with_quota(config.max_tracked_per_port),
        );
        let limits = Arc::new(Limits::new(config.max_flows, config.max_flows_per_port));
        let shared = Arc::new(Shared::new(limits));
        let (events, told) = unbounded();
        let epoch = HostInstant::now();
        let mut parts = Vec::new();
        for index in 0..config.workers {
            let index = u8::try_from(index).map_err(io::Error::other)?;
            let poll = Poll::new()?;
            let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
            let relay = Relay::new(index, &shared, poll.registry())?;
            parts.push((index, poll, relay, waker, bounded(MAX_HANDED)));
        }
        let others: Vec<_> = parts
            .iter()
            .map(|(.., waker, (frames, _))| (frames.clone(), Arc::clone(waker)))
            .collect();
        let urgency = Arc::new(urgency::Shared::new(config.nice));
        let mut workers = Vec::new();
        for (index, poll, relay, waker, (_, handed)) in parts {
            let tally = Arc::new(Tally::default());
            let (commands, orders) = bounded(MAX_COMMANDS);
            let worker = Worker::new(Setup {
                index,
                poll,
                relay,
                conntrack: Arc::clone(&conntrack),
                commands: orders,
                events: events.clone(),
                handed,
                others: others.clone(),
                tally: Arc::clone(&tally),
                epoch,
                busy_poll: config.busy_poll,
                housekeeper: index == 0,
            });
            let index = usize::from(index);
            let cpu = config.cpus.get(index % config.cpus.len().max(1)).copied();
            let events = events.clone();
            let urgency = Arc::clone(&urgency);
            let (bound, outcome) = bounded(1);
            let thread =
                thread::Builder::new().name(format!("worker{index}")).spawn(move || {
                    // An asker that is gone has given up the whole switch.
                    let _ = bound.send(cpu.map_or(Ok(()), bind_to));
                    let urgency = Urgency::new(urgency);
                    let worked = catch_unwind(AssertUnwindSafe(|| worker.run(urgency)));
                    if let Err(panic) = worked {
                        // Nobody listens any more only when the switch is coming down.
                        let _ = events
                            .send(Event::WorkerDied { worker: index, panic: words_of(&*panic) });
                    }
                })?;
            workers.push(WorkerHandle { commands, waker, tally, thread: Some(thread) });
            outcome.recv().map_err(io::Error::other)??;
        }
        let state = Mutex::default();
        Ok((Self { workers, conntrack, shared, epoch, state, supplies: OnceLock::new() }, told))
    }

    /// Threads of the switch, which is the number of queues a port should have.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // A panic under the lock leaves nothing half-done that a later call could not see.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks every worker and waits for all; the first error is told.
    pub(crate) fn ask_all(
        &self,
        mut command: impl FnMut(usize, Done) -> Option<Command>,
    ) -> io::Result<()> {
        let (done, answers) = bounded(self.workers.len());
        let mut asked = 0;
        for (index, worker) in self.workers.iter().enumerate() {
            if let Some(command) = command(index, Done(done.clone())) {
                worker.tell(command);
                asked += 1;
            }
        }
        drop(done);
        let mut outcome = Ok(());
        for _ in 0..asked {
            let answer = answers.recv_timeout(PATIENCE).map_err(io::Error::other)?;
            outcome = outcome.and(answer);
        }
        outcome
    }

    pub(crate) fn now(&self) -> Instant {
        let micros = self.epoch.elapsed().as_micros();
        Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        for worker in &self.workers {
            worker.tell(Command::Stop);
        }
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take() {
                // A worker that panicked has said so on standard error already.
                let _ = thread.join();
            }
        }
    }
}

impl WorkerHandle {
    /// It fails only if the worker has ended, and then there is nothing to wake it for.
    pub(crate) fn wake(&self) {
        let _ = self.waker.wake();
    }

    pub(crate) fn tell(&self, command: Command) {
        // It fails only if the worker has ended, which the missing answer then shows.
        if self.commands.send(command).is_ok() {
            let _ = self.waker.wake();
        }
    }
}

/// Binds the calling thread to one processor: sched_setaffinity(2).
fn bind_to(cpu: usize) -> io::Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &only))
        .map_err(|errno| io::Error::other(format!("bind a worker to processor {cpu}: {errno}")))
}

/// What a panic said.
fn words_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}
