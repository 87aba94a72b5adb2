//! The running switch: starts the workers, and carries to each of them what is asked.
//!
//! All state the workers share is made here; what each keeps for itself it is sent. A call returns
//! when every worker has done its part.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant as HostInstant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use datapath::{Leg, Network, Port, PortCounters, PortId, Uplink, network};
use mio::{Poll, Waker};
use nat::{Conntrack, Profile, Protocol, Zone};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use relay::{Key, Limits, Policy, Published, Relay, Shared, Stock, Supplies};
use smoltcp::time::Instant;

use crate::command::{Command, Done};
use crate::control::{Config, Event, NetworkConfig, NetworkId, PortConfig, Publication, PublishId};
use crate::queue::Queue;
use crate::station::{self, Station};
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
pub(crate) struct WorkerHandle {
    commands: Sender<Command>,
    waker: Arc<Waker>,
    pub(crate) tally: Arc<Tally>,
    thread: Option<JoinHandle<()>>,
}

/// A network, or a segment of the world.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) config: NetworkConfig,
    pub(crate) network: Arc<Network>,
    /// The gateway's counters per worker.
    pub(crate) gateway: Vec<Arc<PortCounters>>,
    /// Counters per worker, and the addresses given.
    pub(crate) ports: BTreeMap<PortId, (Vec<Arc<PortCounters>>, Vec<IpAddr>)>,
    next_port: u16,
    /// Our station there, if it is a segment.
    pub(crate) station: Option<Arc<Station>>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) networks: BTreeMap<NetworkId, Known>,
    published: BTreeMap<PublishId, (usize, Key)>,
    next_publish: u32,
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

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // A panic under the lock leaves nothing half-done that a later call could not see.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a network, or changes one: gateway, uplink and host addresses may change live. Networks
    /// are kept apart from each other.
    pub fn set_network(&self, id: NetworkId, config: NetworkConfig) {
        let mut state = self.state();
        let zone = Zone(id.0);
        if let Some(known) = state.networks.get_mut(&id) {
            let before = std::mem::replace(&mut known.config, config);
            if before.uplink != known.config.uplink {
                station::forget_flows(&self.conntrack, zone);
            }
        } else {
            let network = Network::new(zone, Arc::clone(&self.conntrack));
            state.networks.insert(id, self.known(config, Arc::new(network), None));
        }
        self.tell_networks(&state);
    }

    /// A network that has no port yet.
    pub(crate) fn known(
        &self,
        config: NetworkConfig,
        network: Arc<Network>,
        station: Option<Arc<Station>>,
    ) -> Known {
        let (gateway, ports) = (self.counters(), BTreeMap::new());
        Known { config, network, gateway, ports, next_port: 1, station }
    }

    /// Sets how the socket uplink's mappings and the flows of published ports behave in a network: who may
    /// send to a mapping, and how long a silent flow lasts. Holds for those there are at once (for
    /// an idle connection, from its next segment on) and for those to come; the network need not be there yet.
    pub fn set_policy(&self, id: NetworkId, policy: Policy) {
        self.shared.set_policy(Zone(id.0), policy);
    }

    pub(crate) fn counters(&self) -> Vec<Arc<PortCounters>> {
        self.workers.iter().map(|_| Arc::default()).collect()
    }

    /// Tells the workers what the networks are by now, and the stations who is behind them.
    pub(crate) fn tell_networks(&self, state: &State) {
        for (id, known) in &state.networks {
            let subnets = |other: &NetworkId| {
                let gateway =
                    state.networks.get(other).and_then(|other| other.config.gateway.as_ref());
                gateway.map(|gateway| gateway.addresses.clone()).unwrap_or_default()
            };
            if let Some(station) = &known.station {
                let zone = Zone(id.0);
                let by = |uplink| {
                    let those = state.networks.iter().filter(move |(_, other)| {
                        other.station.is_none() && other.config.uplink == uplink
                    });
                    let named = those.flat_map(|(other, _)| {
                        subnets(other).into_iter().map(|subnet| (subnet, Zone(other.0)))
                    });
                    named.collect()
                };
                if station.set_networks(by(Uplink::Raw(zone)), by(Uplink::Sockets)) {
                    self.workers.iter().for_each(WorkerHandle::wake);
                }
                continue;
            }
            let others = state
                .networks
                .iter()
                .filter(|(other, known)| *other != id && known.station.is_none());
            let config = Arc::new(network::NetworkConfig {
                gateway: known.config.gateway.clone(),
                uplink: known.config.uplink,
                mtu: known.config.mtu,
                host_addresses: known.config.host_addresses.clone(),
                isolated_from: others.flat_map(|(other, _)| subnets(other)).collect(),
                leg: Leg::Inside,
            });
            self.tell_network(*id, known, &config);
        }
    }

    pub(crate) fn tell_network(
        &self,
        id: NetworkId,
        known: &Known,
        config: &Arc<network::NetworkConfig>,
    ) {
        for (worker, counters) in self.workers.iter().zip(&known.gateway) {
            worker.tell(Command::SetNetwork {
                zone: Zone(id.0),
                network: Arc::clone(&known.network),
                config: Arc::clone(config),
                counters: Arc::clone(counters),
            });
        }
    }

    /// Removes a network with its ports, flows and published ports.
    pub fn remove_network(&self, id: NetworkId) {
        let mut state = self.state();
        if state.networks.remove(&id).is_some() {
            station::forget_flows(&self.conntrack, Zone(id.0));
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
        known.ports.insert(id, (counters.clone(), port.addresses.clone()));
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
        if let Some((_, addresses)) = known.ports.remove(&port) {
            let (zone, uplink) = (Zone(network.0), known.config.uplink);
            // As for a network.
            let _ = self.ask_all(|_, done| Some(Command::RemovePort { zone, id: port, done }));
            for (segment, known) in &state.networks {
                let crosses = uplink == Uplink::Raw(Zone(segment.0)) || uplink == Uplink::Sockets;
                if let Some(station) = known.station.as_ref().filter(|_| crosses) {
                    addresses.iter().for_each(|addr| station.nat().forget_inside(zone, *addr));
                }
            }
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
