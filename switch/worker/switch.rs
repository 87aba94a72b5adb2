//! The running switch: starts the workers, and carries to each of them what is asked.
//!
//! All state the workers share is made here; what each keeps for itself it is sent. A call returns
//! when every worker has done its part.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant as HostInstant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use datapath::{DropReason, Leg, Network, Port, PortCounters, PortId, PortTotals, network};
use mio::{Poll, Waker};
use nat::{Conntrack, Direction, Profile, Protocol, Zone};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use relay::{Key, Limits, Policy, Published, Relay, Shared, Stock, Supplies};
use smoltcp::time::Instant;

use crate::command::{Command, Done};
use crate::control::{
    Config, Event, FdbRow, FlowRow, NeighbourRow, NetworkConfig, NetworkId, PortConfig, PortStats,
    Publication, PublishId, WorkerStats,
};
use crate::queue::Queue;
use crate::urgency::{self, Urgency};
use crate::worker::{Setup, Tally, WAKER, Worker};

/// Commands one worker may have waiting.
const MAX_COMMANDS: usize = 1024;

/// Frames that others handed over, which one worker may have waiting.
const MAX_HANDED: usize = 1024;

/// Ports of one network.
const MAX_PORTS: u16 = 4095;

/// Time a worker has to carry out a command.
const PATIENCE: Duration = Duration::from_secs(5);

/// Times the workers are asked to give up a UDP port: the first time one of them may just be sending on a
/// socket another one gives up.
const TAKING_BACK: usize = 3;

#[derive(Debug)]
struct WorkerHandle {
    commands: Sender<Command>,
    waker: Arc<Waker>,
    tally: Arc<Tally>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Known {
    config: NetworkConfig,
    network: Arc<Network>,
    gateway: Vec<Arc<PortCounters>>,
    /// Counters per worker.
    ports: BTreeMap<PortId, Vec<Arc<PortCounters>>>,
    next_port: u16,
}

#[derive(Debug, Default)]
struct State {
    networks: BTreeMap<NetworkId, Known>,
    published: BTreeMap<PublishId, (usize, Key)>,
    next_publish: u32,
}

/// The running switch. Dropping it stops the workers.
#[derive(Debug)]
pub struct Switch {
    workers: Vec<WorkerHandle>,
    conntrack: Arc<Conntrack>,
    shared: Arc<Shared>,
    epoch: HostInstant,
    state: Mutex<State>,
    /// There is nobody to fill stocks before the first.
    supplies: OnceLock<Supplies>,
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

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic under the lock leaves nothing half-done that a later call could not see.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a network, or changes one: gateway, uplink and host addresses may change live. Networks
    /// are kept apart from each other.
    pub fn set_network(&self, id: NetworkId, config: NetworkConfig) {
        let mut state = self.state();
        if let Some(known) = state.networks.get_mut(&id) {
            known.config = config;
        } else {
            let zone = Zone(id.0);
            let known = Known {
                config,
                network: Arc::new(Network::new(zone, Arc::clone(&self.conntrack))),
                gateway: self.counters(),
                ports: BTreeMap::new(),
                next_port: 1,
            };
            state.networks.insert(id, known);
        }
        self.tell_networks(&state);
    }

    /// Sets how the socket uplink's mappings and the flows of published ports behave in a network: who may
    /// send to a mapping, and how long a silent flow lasts. Holds for those there are at once (for
    /// an idle connection, from its next segment on) and for those to come; the network need not be there yet.
    pub fn set_policy(&self, id: NetworkId, policy: Policy) {
        self.shared.set_policy(Zone(id.0), policy);
    }

    fn counters(&self) -> Vec<Arc<PortCounters>> {
        self.workers.iter().map(|_| Arc::default()).collect()
    }

    fn tell_networks(&self, state: &State) {
        for (id, known) in &state.networks {
            let others = state.networks.iter().filter(|(other, _)| *other != id);
            let config = Arc::new(network::NetworkConfig {
                gateway: known.config.gateway.clone(),
                uplink: known.config.uplink,
                mtu: known.config.mtu,
                host_addresses: known.config.host_addresses.clone(),
                isolated_from: others
                    .filter_map(|(_, other)| other.config.gateway.as_ref())
                    .flat_map(|gateway| gateway.addresses.iter().copied())
                    .collect(),
                leg: Leg::Inside,
            });
            for (worker, counters) in self.workers.iter().zip(&known.gateway) {
                worker.tell(Command::SetNetwork {
                    zone: Zone(id.0),
                    network: Arc::clone(&known.network),
                    config: Arc::clone(&config),
                    counters: Arc::clone(counters),
                });
            }
        }
    }

    /// Removes a network with its ports, flows and published ports.
    pub fn remove_network(&self, id: NetworkId) {
        let mut state = self.state();
        if state.networks.remove(&id).is_some() {
            // A worker that does not answer is stuck in a system call; there is nothing to undo.
            let _ = self.ask_all(|_, done| Some(Command::RemoveNetwork { zone: Zone(id.0), done }));
            self.shared.set_policy(Zone(id.0), Policy::default());
            self.tell_networks(&state);
        }
    }

    /// Adds a port. With fewer queues than workers, the first workers read them and all write them.
    ///
    /// # Errors
    ///
    /// No such network, no queue, no port number left, or a descriptor cannot be polled; the port is
    /// not there then.
    pub fn add_port(&self, network: NetworkId, config: PortConfig) -> io::Result<PortId> {
        let mut state = self.state();
        let known = state.networks.get_mut(&network).ok_or(io::ErrorKind::NotFound)?;
        let id = known.free_port().ok_or(io::ErrorKind::QuotaExceeded)?;
        let counters = self.counters();
        let mut queues: Vec<_> =
            config.queues.into_iter().map(|fd| Queue::new(fd, config.offloads)).collect();
        let polled = queues.len();
        if polled == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for worker in polled..self.workers.len() {
            queues.push(queues[worker % polled].try_clone()?);
        }
        let port = Port {
            role: config.role,
            mtu: config.mtu,
            offloads: config.offloads,
            mac: config.mac,
            addresses: config.addresses,
        };
        known.ports.insert(id, counters.clone());
        let zone = Zone(network.0);
        let mut queues = queues.into_iter().enumerate();
        let added = self.ask_all(|worker, done| {
            let (index, queue) = queues.next()?;
            Some(Command::AddPort {
                zone,
                id,
                port: port.clone(),
                counters: Arc::clone(&counters[worker]),
                queue,
                polled: index < polled,
                done,
            })
        });
        if let Err(error) = added {
            drop(state);
            self.remove_port(network, id);
            return Err(error);
        }
        Ok(id)
    }

    /// Removes a port, closing its descriptors and ending its flows.
    pub fn remove_port(&self, network: NetworkId, port: PortId) {
        let mut state = self.state();
        let Some(known) = state.networks.get_mut(&network) else { return };
        if known.ports.remove(&port).is_some() {
            let zone = Zone(network.0);
            // As for a network.
            let _ = self.ask_all(|_, done| Some(Command::RemovePort { zone, id: port, done }));
        }
    }

    /// Binds the host socket in the calling thread's namespace and starts serving it.
    ///
    /// # Errors
    ///
    /// As `bind(2)`: the address is in use, is not the host's, or needs privilege.
    pub fn publish(&self, publication: Publication) -> io::Result<PublishId> {
        let made = self.publish_all(vec![publication]).map_err(|(_, error)| error)?;
        made.first().copied().ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// The same for many at once, all of them or none: the workers are asked once, not for each.
    ///
    /// # Errors
    ///
    /// As [`publish`](Self::publish), with the place of the first that could not be had.
    pub fn publish_all(
        &self,
        publications: Vec<Publication>,
    ) -> Result<Vec<PublishId>, (usize, io::Error)> {
        let bind = |(place, publication): (usize, Publication)| {
            self.bind(&relay::Publication {
                zone: Zone(publication.network.0),
                port: publication.port,
                protocol: publication.protocol,
                listen: publication.listen,
                to: publication.to,
                to_port: publication.to_port,
                splice: publication.splice,
            })
            .map_err(|error| (place, error))
        };
        let bound: Vec<_> =
            publications.into_iter().enumerate().map(bind).collect::<Result<_, _>>()?;
        let mut state = self.state();
        let mut shares: Vec<_> = self.workers.iter().map(|_| (Vec::new(), Vec::new())).collect();
        let mut ids = Vec::with_capacity(bound.len());
        for published in bound {
            let id = PublishId(state.next_publish);
            state.next_publish += 1;
            let (own, share) = &mut shares[id.0 as usize % self.workers.len()];
            own.push(id);
            share.push(published);
            ids.push(id);
        }
        let mut outcome = Ok(());
        for (worker, (own, published)) in shares.into_iter().enumerate() {
            if published.is_empty() {
                continue;
            }
            let (reply, answer) = bounded(1);
            self.workers[worker].tell(Command::Publish { published, reply });
            match answer.recv_timeout(PATIENCE).map_err(io::Error::other).flatten() {
                Ok(keys) => {
                    let named = own.into_iter().zip(keys.into_iter().map(|key| (worker, key)));
                    state.published.extend(named);
                }
                Err(error) => outcome = outcome.and(Err((0, error))),
            }
        }
        drop(state);
        if outcome.is_err() {
            self.unpublish_all(&ids);
        }
        outcome.map(|()| ids)
    }

    /// Binds a host socket. A UDP port that a container's mapping holds is taken back from it.
    fn bind(&self, publication: &relay::Publication) -> io::Result<Published> {
        let mut bound = Published::bind(publication.clone());
        for _ in 0..TAKING_BACK {
            let in_use = matches!(&bound, Err(error) if error.kind() == io::ErrorKind::AddrInUse);
            if !in_use || publication.protocol != Protocol::Udp {
                break;
            }
            let (v4, port) = (publication.listen.is_ipv4(), publication.listen.port());
            self.ask_all(|_, done| Some(Command::GiveUpPort { v4, port, done }))?;
            bound = Published::bind(publication.clone());
        }
        bound
    }

    /// A stock of sockets inside a container's namespace, for [`Publication::splice`], made while
    /// the caller waits: [`netns::SocketMaker::make`] says how long. Keeps
    /// the namespace: to be dropped when the container ends.
    ///
    /// # Errors
    ///
    /// The thread that fills stocks cannot be made.
    pub fn stock(&self, maker: netns::SocketMaker, v4: bool, v6: bool) -> io::Result<Arc<Stock>> {
        if self.supplies.get().is_none() {
            let (supplies, orders) = Supplies::new();
            // Of two made at once, the one that is not kept ends for want of an asker.
            thread::Builder::new()
                .name("sockets".into())
                .spawn(move || relay::keep_filled(&orders))?;
            let _ = self.supplies.set(supplies);
        }
        let supplies = self.supplies.get().ok_or(io::ErrorKind::NotFound)?;
        Ok(supplies.stock(maker, v4, v6))
    }

    /// Stops listening. TCP connections that came by it stay until they end.
    pub fn unpublish(&self, id: PublishId) {
        self.unpublish_all(&[id]);
    }

    /// The same for many at once.
    pub fn unpublish_all(&self, ids: &[PublishId]) {
        let mut shares = vec![Vec::new(); self.workers.len()];
        let mut state = self.state();
        for (worker, key) in ids.iter().filter_map(|id| state.published.remove(id)) {
            shares[worker].push(key);
        }
        drop(state);
        let mut shares = shares.into_iter();
        // As for a network.
        let _ = self.ask_all(|_, done| {
            let keys = shares.next().filter(|keys| !keys.is_empty())?;
            Some(Command::Unpublish { keys, done })
        });
    }

    /// Asks every worker and waits for all; the first error is told.
    fn ask_all(&self, mut command: impl FnMut(usize, Done) -> Option<Command>) -> io::Result<()> {
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

    fn now(&self) -> Instant {
        let micros = self.epoch.elapsed().as_micros();
        Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    /// The stations of a network, the gateway's own first.
    pub fn fdb(&self, network: NetworkId) -> Vec<FdbRow> {
        let state = self.state();
        let Some(known) = state.networks.get(&network) else { return Vec::new() };
        let now = self.now();
        let own = known.config.gateway.iter().map(|gateway| FdbRow {
            mac: gateway.mac,
            port: PortId::GATEWAY,
            permanent: true,
            age: Duration::ZERO,
        });
        let mut learned: Vec<_> = known
            .network
            .fdb
            .list()
            .into_iter()
            .map(|(mac, port, seen)| FdbRow { mac, port, permanent: false, age: since(seen, now) })
            .collect();
        learned.sort_by_key(|row| (row.port, row.mac));
        own.chain(learned).collect()
    }

    /// The gateway's neighbours on a network.
    pub fn neighbours(&self, network: NetworkId) -> Vec<NeighbourRow> {
        let state = self.state();
        let Some(known) = state.networks.get(&network) else { return Vec::new() };
        let mut rows: Vec<_> = known
            .network
            .neighbours
            .list(self.now())
            .into_iter()
            .map(|(addr, mac, state)| NeighbourRow { addr, mac, state: state.name() })
            .collect();
        rows.sort_by_key(|row| row.addr);
        rows
    }

    /// The flows of a network, or of all.
    pub fn flows(&self, network: Option<NetworkId>) -> Vec<FlowRow> {
        let now = self.now();
        let timeouts = |entry: &nat::Entry| match entry.owner() {
            nat::Owner::NONE => *self.conntrack.timeouts(),
            _ => self.shared.policy(entry.zone).timeouts,
        };
        let entries = self.conntrack.list(network.map(|network| Zone(network.0)));
        let mut rows: Vec<_> = entries
            .iter()
            .map(|entry| FlowRow {
                network: NetworkId(entry.zone.0),
                original: entry.original,
                reply: entry.reply,
                state: entry.state(),
                replied: entry.replied(),
                assured: entry.assured(),
                expires_in: since(now, entry.expires_at(&timeouts(entry))),
                sent: entry.counts(Direction::Original),
                received: entry.counts(Direction::Reply),
            })
            .collect();
        rows.sort_by_key(|row| (row.network, row.original.protocol, row.original.src));
        rows
    }

    /// The counts of a network's ports, the gateway ([`PortId::GATEWAY`]) among them.
    pub fn stats(&self, network: NetworkId) -> Vec<(PortId, PortStats)> {
        let state = self.state();
        let Some(known) = state.networks.get(&network) else { return Vec::new() };
        let gateway = (PortId::GATEWAY, sum(&known.gateway));
        let ports = known.ports.iter().map(|(id, counters)| (*id, sum(counters)));
        std::iter::once(gateway).chain(ports).collect()
    }

    /// What the workers did.
    pub fn worker_stats(&self) -> Vec<WorkerStats> {
        self.workers
            .iter()
            .map(|worker| WorkerStats {
                turns: worker.tally.turns.load(Relaxed),
                sleeps: worker.tally.sleeps.load(Relaxed),
                flows: worker.tally.flows.load(Relaxed),
                spliced: worker.tally.spliced.load(Relaxed),
                spliced_octets: worker.tally.spliced_octets.load(Relaxed),
            })
            .collect()
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
    fn tell(&self, command: Command) {
        // It fails only if the worker has ended, which the missing answer then shows.
        if self.commands.send(command).is_ok() {
            let _ = self.waker.wake();
        }
    }
}

impl Known {
    /// A port number that was not used for long.
    fn free_port(&mut self) -> Option<PortId> {
        for _ in 0..MAX_PORTS {
            let id = PortId(self.next_port);
            self.next_port = self.next_port % MAX_PORTS + 1;
            if !self.ports.contains_key(&id) {
                return Some(id);
            }
        }
        None
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

fn since(earlier: Instant, later: Instant) -> Duration {
    if later > earlier { Duration::from(later - earlier) } else { Duration::ZERO }
}

fn sum(counters: &[Arc<PortCounters>]) -> PortStats {
    let mut totals = PortTotals::default();
    counters.iter().for_each(|counters| counters.add_to(&mut totals));
    let named = |counts: &[u64]| {
        DropReason::ALL
            .iter()
            .zip(counts)
            .filter(|(_, count)| **count > 0)
            .map(|(reason, count)| (reason.name(), *count))
            .collect()
    };
    PortStats {
        rx_frames: totals.rx_frames,
        rx_octets: totals.rx_octets,
        tx_frames: totals.tx_frames,
        tx_octets: totals.tx_octets,
        forwarded: totals.forwarded,
        consumed: totals.consumed,
        dropped: named(&totals.dropped),
        tx_dropped: named(&totals.tx_dropped),
    }
}
