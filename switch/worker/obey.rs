//! What the control side asks of a worker, carried out between two turns.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use datapath::{Datapath, PortId};
use mio::Interest;
use mio::unix::SourceFd;
use nat::Zone;
use relay::{Context, Key, Published};
use smoltcp::time::Instant;

use crate::command::Command;
use crate::nets::{Net, PortQueue, port_token};
use crate::queue::Queue;
use crate::worker::Worker;

impl Worker {
    /// Carries out what the control side asks; says whether to go on.
    pub(crate) fn obey(&mut self, now: Instant) -> bool {
        let commands: Vec<_> = self.setup.commands.try_iter().collect();
        for command in commands {
            match command {
                Command::SetNetwork { zone, network, config, counters } => {
                    let net = self.networks.entry(zone).or_insert_with(|| {
                        let mut dp = Datapath::new(network, Arc::clone(&config), counters);
                        dp.set_stations(self.stations.configs());
                        Net { dp, queues: Vec::new() }
                    });
                    net.dp.configure(config);
                }
                Command::RemoveNetwork { zone, done } => {
                    self.end_flows(zone, None, now);
                    if self.setup.housekeeper {
                        self.leave(zone, now);
                    }
                    self.networks.remove(&zone);
                    self.remove_station(zone);
                    done.tell();
                }
                Command::AddPort { zone, id, port, counters, queue, polled, done } => {
                    let added = self.add_port(zone, id, &queue, polled);
                    if added.is_ok()
                        && let Some(net) = self.networks.get_mut(&zone)
                    {
                        net.dp.attach(id, port, counters);
                        if net.queues.len() <= id.index() {
                            net.queues.resize_with(id.index() + 1, || None);
                        }
                        let held = PortQueue::new(queue, polled);
                        net.queues[id.index()] = Some(held);
                        net.dp.introduce(id, now, &mut self.out);
                        self.flush();
                        // Frames may wait already.
                        self.enqueue(zone, id);
                    }
                    done.tell_result(added);
                }
                Command::RemovePort { zone, id, done } => {
                    self.end_flows(zone, Some(id), now);
                    if let Some(net) = self.networks.get_mut(&zone) {
                        net.dp.detach(id);
                        let held = net.queues.get_mut(id.index()).and_then(Option::take);
                        if let Some(held) = held.filter(|held| held.polled) {
                            let fd = held.queue.raw_fd();
                            let _ = self.setup.poll.registry().deregister(&mut SourceFd(&fd));
                        }
                    }
                    done.tell();
                }
                Command::AddStation(station) => self.add_station(station),
                Command::Publish { published, reply } => {
                    let _ = reply.send(self.publish(published));
                }
                Command::GiveUpPort { v4, port, done } => {
                    self.setup.relay.give_up_port(v4, port, &self.setup.conntrack);
                    done.tell();
                }
                Command::Unpublish { keys, done } => {
                    self.unpublish(keys);
                    done.tell();
                }
                Command::Stop => return false,
            }
        }
        true
    }

    /// Serves published ports, all of them or none.
    fn publish(&mut self, published: Vec<Published>) -> io::Result<Vec<Key>> {
        let mut keys = Vec::with_capacity(published.len());
        for published in published {
            match self.setup.relay.publish(published) {
                Ok(key) => keys.push(key),
                Err(error) => {
                    self.unpublish(keys);
                    return Err(error);
                }
            }
        }
        Ok(keys)
    }

    fn unpublish(&mut self, keys: Vec<Key>) {
        for key in keys {
            self.setup.relay.unpublish(key, &self.setup.conntrack);
        }
    }

    fn add_port(&self, zone: Zone, id: PortId, queue: &Queue, polled: bool) -> io::Result<()> {
        if !self.networks.contains_key(&zone) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if polled {
            let fd: RawFd = queue.raw_fd();
            let token = port_token(zone, id);
            self.setup.poll.registry().register(&mut SourceFd(&fd), token, Interest::READABLE)?;
        }
        Ok(())
    }

    fn end_flows(&mut self, zone: Zone, port: Option<PortId>, now: Instant) {
        if let Some(net) = self.networks.get_mut(&zone) {
            let ctx = Context { dp: &mut net.dp, out: &mut self.out, now };
            self.setup.relay.end(port, &ctx);
        }
    }
}
