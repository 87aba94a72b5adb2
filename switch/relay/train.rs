//! Trains: consecutive datagrams of one flow leave by one system call.
//!
//! Read udp(7), `UDP_SEGMENT`. Within one burst, datagrams of one flow and of one size wait for each
//! other; the last of a train may be shorter. Whatever does not fit sends the train on first, and the
//! burst's end does, so none is delayed and the order within a flow is kept.

use datapath::{Gso, Offload, Packet};
use nat::Tuple;

use crate::last::{self, Seen};

/// Datagrams of one train (`UDP_MAX_SEGMENTS` in `include/linux/udp.h` was 64 up to Linux 6.8).
const MAX_DATAGRAMS: usize = 64;

/// Octets of payload of one train: those and the headers are one IP packet to the kernel.
const MAX_OCTETS: usize = 65_000;

/// The datagrams of one worker that wait for more of their kind, and `V`: by what they leave.
#[derive(Debug)]
pub(crate) struct Train<V> {
    head: Option<Head<V>>,
    payload: Vec<u8>,
}

/// What the datagrams of a train have in common.
#[derive(Debug)]
pub(crate) struct Head<V> {
    pub(crate) via: V,
    pub(crate) tuple: Tuple,
    /// TTL or hop limit, one hop less than they came with.
    pub(crate) hop_limit: u8,
    pub(crate) traffic_class: u8,
    pub(crate) may_fragment: bool,
    /// The first one's IPv4 identification, or the flow label.
    label: u32,
    /// Payload octets of each but the last.
    pub(crate) size: usize,
    pub(crate) datagrams: usize,
    /// Octets of IP in all.
    pub(crate) ip_octets: usize,
    /// The last one was shorter: no more may follow.
    complete: bool,
}

/// The payload of a datagram, or of a frame that holds a train already, and how it is cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load<'a> {
    payload: &'a [u8],
    size: usize,
    label: u32,
}

impl<'a> Load<'a> {
    /// What a whole UDP packet carries.
    pub(crate) fn of(packet: &Packet, frame: &'a [u8], offload: Offload) -> Self {
        let octets = packet.transport(frame);
        let label = last::label(packet, frame);
        match offload.gso {
            Gso::Udp { size } => Self { payload: &octets[8..], size: usize::from(size), label },
            _ => {
                // A datagram is as long as its header says; what follows is padding.
                let len = usize::from(u16::from_be_bytes([octets[4], octets[5]]));
                Self { payload: &octets[8..len], size: len - 8, label }
            }
        }
    }

    fn datagrams(self) -> usize {
        self.payload.len().div_ceil(self.size.max(1)).max(1)
    }
}

impl<V> Default for Train<V> {
    fn default() -> Self {
        Self { head: None, payload: Vec::new() }
    }
}

impl<V> Train<V> {
    /// Takes a packet's datagrams along, if they fit behind those that wait.
    pub(crate) fn join(&mut self, tuple: Tuple, packet: &Packet, load: Load<'_>) -> bool {
        let Some(head) = &mut self.head else { return false };
        let fits = head.tuple == tuple
            && !head.complete
            && head.hop_limit == packet.hop_limit - 1
            && head.traffic_class == packet.traffic_class
            && head.may_fragment != packet.dont_fragment
            && (load.size == head.size || load.size < head.size && load.datagrams() == 1)
            && load.size > 0
            && head.datagrams + load.datagrams() <= MAX_DATAGRAMS
            && self.payload.len() + load.payload.len() <= MAX_OCTETS;
        if fits {
            self.payload.extend_from_slice(load.payload);
            head.datagrams += load.datagrams();
            head.ip_octets += ip_octets(packet, load);
            head.complete = !self.payload.len().is_multiple_of(head.size);
        }
        fits
    }

    /// Begins a train with a packet's datagrams. Whatever waited must have been sent.
    pub(crate) fn begin(&mut self, via: V, tuple: Tuple, packet: &Packet, load: Load<'_>) {
        debug_assert!(self.head.is_none(), "one train waits at a time");
        self.payload.clear();
        self.payload.extend_from_slice(load.payload);
        self.head = Some(Head {
            via,
            tuple,
            hop_limit: packet.hop_limit - 1,
            traffic_class: packet.traffic_class,
            may_fragment: !packet.dont_fragment,
            label: load.label,
            size: load.size,
            datagrams: load.datagrams(),
            ip_octets: ip_octets(packet, load),
            complete: load.size == 0 || !load.payload.len().is_multiple_of(load.size),
        });
    }

    /// What waits, to be sent now.
    pub(crate) fn take(&mut self) -> Option<(Head<V>, &[u8])> {
        self.head.take().map(|head| (head, &self.payload[..]))
    }
}

impl<V> Head<V> {
    /// What the IP header of the `nth` datagram said, from 0 on. Behind the first, identifications are taken to
    /// be counted, as those of a frame that is cut are (`inet_gso_segment`).
    pub(crate) fn seen(&self, nth: usize) -> Seen {
        let counted = self.tuple.src.addr.is_ipv4() && (self.label > 0 || self.may_fragment);
        let behind = u32::try_from(nth).unwrap_or(0);
        let label = if counted { (self.label + behind) & 0xffff } else { self.label };
        let dont_fragment = !self.may_fragment;
        Seen { traffic_class: self.traffic_class, dont_fragment, label }
    }

    /// Datagrams of one share.
    pub(crate) const MOST: usize = MAX_DATAGRAMS;

    /// Octets to be sent at once: the whole, unless a frame brought more datagrams than one call takes.
    pub(crate) fn share(&self) -> usize {
        self.size.max(1) * MAX_DATAGRAMS
    }
}

/// Octets of IP of a packet's datagrams, had each come by itself.
fn ip_octets(packet: &Packet, load: Load<'_>) -> usize {
    let headers = packet.transport + 8 - Packet::IP;
    load.payload.len() + load.datagrams() * headers
}
