//! What the control side tells a worker, and what workers hand each other.

use std::io;
use std::sync::Arc;

use crossbeam_channel::Sender;
use datapath::{Network, NetworkConfig, Port, PortCounters, PortId};
use nat::Zone;
use relay::{Key, Published};

use crate::queue::Queue;
use crate::station::Station;

/// Tells the asker that a worker has done what was asked.
#[derive(Clone, Debug)]
pub(crate) struct Done(pub(crate) Sender<io::Result<()>>);

impl Done {
    pub(crate) fn tell(self) {
        self.tell_result(Ok(()));
    }

    pub(crate) fn tell_result(self, result: io::Result<()>) {
        // An asker that has given up needs no answer.
        let _ = self.0.send(result);
    }
}

/// A frame of a flow that another worker owns.
#[derive(Debug)]
pub(crate) struct Handed {
    pub(crate) zone: Zone,
    pub(crate) port: PortId,
    pub(crate) key: Key,
    /// The frame behind its offload header.
    pub(crate) with_header: Box<[u8]>,
}

#[derive(Debug)]
pub(crate) enum Command {
    SetNetwork {
        zone: Zone,
        network: Arc<Network>,
        config: Arc<NetworkConfig>,
        /// The gateway's, for a network new to the worker.
        counters: Arc<PortCounters>,
    },
    RemoveNetwork {
        zone: Zone,
        done: Done,
    },
    AddPort {
        zone: Zone,
        id: PortId,
        port: Port,
        counters: Arc<PortCounters>,
        queue: Queue,
        /// Read it, too.
        polled: bool,
        done: Done,
    },
    RemovePort {
        zone: Zone,
        id: PortId,
        done: Done,
    },
    /// Our station on a segment whose network was set; [`Command::RemoveNetwork`] takes it away.
    AddStation(Arc<Station>),
    Publish {
        published: Vec<Published>,
        reply: Sender<io::Result<Vec<Key>>>,
    },
    /// A UDP port of the host is wanted for a published one.
    GiveUpPort {
        v4: bool,
        port: u16,
        done: Done,
    },
    Unpublish {
        keys: Vec<Key>,
        done: Done,
    },
    Stop,
}
