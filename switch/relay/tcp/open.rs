//! How TCP flows begin.
//!
//! From the container: its SYN is answered only once the far side has answered ours, so it sees what a
//! direct connection would see. By a published port: the container gets a SYN from the client's own
//! address.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use datapath::{DropReason, IcmpError, Packet, PortId, Received};
use mio::unix::SourceFd;
use mio::{Interest, Token};
use nat::{Direction, Entry, InsertError, Protocol, TcpState, TransportAddr, Tuple, Zone};
use nix::errno::Errno;
use nix::libc;
use smoltcp::time::Instant;

use super::dial::{DSCP, Dialled, dial};
use super::flow::{Birth, Flow, Stage};
use super::segment::{self, SynOptions, WINDOW_SCALE};
use super::seq::Seq;
use super::table::{RST_ACK, SYN, SYN_ACK, Tcp, own_mss};
use crate::context::{Context, Readiness};
use crate::errors;
use crate::key::{Arena, Key, account};
use crate::limits::Lease;
use crate::{quote, socket};

/// Client ports tried when the container already has a flow from the client's own one.
const PORT_ATTEMPTS: u16 = 64;

/// A client that came by a published port.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) zone: Zone,
    pub(crate) port: PortId,
    /// The container's address and port.
    pub(crate) inside: TransportAddr,
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    /// The host's address the client used.
    pub(crate) local: SocketAddr,
}

/// The part of a container's flows that may be attempts.
const ATTEMPTS_SHARE: usize = 4;

/// Whether a flow waits for its far side still.
fn is_attempt(flows: &Arena<Box<Flow>>, key: Key) -> bool {
    flows.get(key).is_some_and(|flow| flow.stage == Stage::Connecting)
}

/// Whether the host has no descriptor left.
fn is_shortage(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

impl Tcp {
    /// A segment of no flow, from the container: a SYN opens one, anything else is reset.
    pub(crate) fn open(
        &mut self,
        received: &Received<'_>,
        packet: &Packet,
        tuple: Tuple,
        ctx: &mut Context<'_>,
    ) -> Result<(), DropReason> {
        let (syn, _) = segment::read(packet, received.frame)?;
        if syn.flags.rst {
            return Err(DropReason::NoFlow);
        }
        if !syn.flags.syn || syn.flags.ack || syn.flags.fin {
            ctx.reset(received, packet);
            return Err(DropReason::NoFlow);
        }
        let zone = ctx.zone();
        let of = (zone, received.port);
        let most = self.shared.limits.most_of_one() / ATTEMPTS_SHARE;
        if self.attempts.live(of) >= most.max(1) {
            self.give_way(of, ctx);
        }
        let Some(lease) = self.lease(of, ctx) else {
            ctx.dp.tell(received, packet, IcmpError::AdminProhibited, ctx.now, ctx.out);
            return Err(DropReason::FlowLimit);
        };
        let mut dialled = dial(&self.shared, of, tuple, packet);
        if dialled.as_ref().is_err_and(is_shortage) && self.give_way(of, ctx) {
            dialled = dial(&self.shared, of, tuple, packet);
        }
        let dialled = match dialled {
            Ok(dialled) => dialled,
            Err(error) => {
                let what = errors::icmp_for(Errno::try_from(error).unwrap_or(Errno::EIO));
                match what {
                    // No connection leads to everybody, of whom no error may speak.
                    Some(_) if socket::is_broadcast(tuple.dst.into()) => {}
                    Some(what) => ctx.dp.tell(received, packet, what, ctx.now, ctx.out),
                    None => ctx.reset(received, packet),
                }
                return Err(DropReason::NoSocket);
            }
        };
        let key = self.flows.next_key();
        let Dialled { stream, local, claim } = dialled;
        let reply = Tuple::new(Protocol::Tcp, tuple.dst, local);
        let entry = Entry::new(zone, Direction::Original, tuple, reply, key.into(), ctx.now);
        let account = account(zone, received.port);
        let Ok(entry) = ctx.dp.network().conntrack.insert(account, entry) else {
            ctx.dp.tell(received, packet, IcmpError::AdminProhibited, ctx.now, ctx.out);
            return Err(DropReason::FlowLimit);
        };
        let mut flow = Flow::new(Birth {
            entry,
            stream,
            lease,
            claim: Some(claim),
            stage: Stage::Connecting,
            iss: self.initial_seq(tuple.src, tuple.dst, ctx.now),
            now: ctx.now,
        });
        flow.syn = quote::kept(received, packet);
        flow.class = packet.traffic_class & DSCP;
        let options = segment::syn_options(packet, received.frame);
        flow.synchronise(&syn, options, own_mss(ctx, tuple.src.addr.is_ipv6()));
        flow.note(Direction::Original, packet.ip_len(), syn.flags, ctx.now);
        let key = self.enter(flow, ctx)?;
        let flows = &self.flows;
        self.attempts.add(of, key, |key| is_attempt(flows, key));
        Ok(())
    }

    /// A place for one more flow of a container, which its own oldest attempt may have to make room for.
    fn lease(&mut self, of: (Zone, PortId), ctx: &Context<'_>) -> Option<Lease> {
        let lease = |tcp: &Self| tcp.shared.limits.lease(of.0, of.1);
        lease(self).or_else(|| if self.give_way(of, ctx) { lease(self) } else { None })
    }

    /// Ends the container's attempt that is the oldest, if there is any. Nothing is told: whoever made it
    /// may try again.
    fn give_way(&mut self, of: (Zone, PortId), ctx: &Context<'_>) -> bool {
        let flows = &self.flows;
        let oldest = self.attempts.oldest(of, |key| is_attempt(flows, key));
        oldest.is_some_and(|key| self.take(key, ctx).is_some())
    }

    /// A client of a published port: opens the inner connection from the client's own address.
    pub(crate) fn accept(
        &mut self,
        client: Client,
        ctx: &mut Context<'_>,
    ) -> Result<(), DropReason> {
        let Client { zone, port, inside, stream, peer, local } = client;
        let Some(lease) = self.shared.limits.lease(zone, port) else {
            socket::abort_on_close(&stream);
            return Err(DropReason::FlowLimit);
        };
        let key = self.flows.next_key();
        let original = Tuple::new(Protocol::Tcp, peer.into(), local.into());
        let entry = self.claim_outside(original, (port, inside), key, ctx).inspect_err(|_| {
            socket::abort_on_close(&stream);
        })?;
        let outside = entry.reply.dst;
        let mut flow = Flow::new(Birth {
            entry,
            stream,
            lease,
            claim: None,
            stage: Stage::Opening,
            iss: self.initial_seq(inside, outside, ctx.now),
            now: ctx.now,
        });
        flow.snd.mss = own_mss(ctx, inside.addr.is_ipv6());
        // The client may have spoken already; nothing more will announce that.
        flow.readable = true;
        let key = self.enter(flow, ctx)?;
        self.send_syn(key, ctx);
        Ok(())
    }

    /// Enters the flow of a client in conntrack, as seen from inside under the client's own address
    /// and port; under another port if the container already has a flow from there, and under the
    /// gateway's address if the client's own cannot be seen from inside at all.
    fn claim_outside(
        &mut self,
        original: Tuple,
        (bridge_port, inside): (PortId, TransportAddr),
        key: Key,
        ctx: &Context<'_>,
    ) -> Result<Arc<Entry>, DropReason> {
        let outside = ctx
            .as_seen_inside(original.src, original.dst.addr, inside.addr)
            .ok_or(DropReason::NoRoute)?;
        let conntrack = &ctx.dp.network().conntrack;
        for attempt in 0..PORT_ATTEMPTS {
            let port = match attempt {
                0 => outside.port,
                _ => self.other_port(original, attempt, ctx.now),
            };
            let seen = TransportAddr::new(outside.addr, port);
            let reply = Tuple::new(Protocol::Tcp, inside, seen);
            let entry =
                Entry::new(ctx.zone(), Direction::Reply, original, reply, key.into(), ctx.now);
            match conntrack.insert(account(ctx.zone(), bridge_port), entry) {
                Ok(entry) => return Ok(entry),
                Err(InsertError::Clash) => {}
                Err(InsertError::Full | InsertError::Quota) => return Err(DropReason::FlowLimit),
            }
        }
        Err(DropReason::FlowLimit)
    }

    /// An ephemeral port that cannot be guessed (RFC 6056 §3.3.1).
    fn other_port(&self, tuple: Tuple, attempt: u16, now: Instant) -> u16 {
        let Seq(word) = self.initial_seq(
            TransportAddr::new(tuple.src.addr, attempt),
            TransportAddr::new(tuple.dst.addr, tuple.src.port),
            now,
        );
        49_152 + u16::try_from(word % 16_384).unwrap_or(0)
    }

    /// Takes a flow in, and has its socket polled.
    fn enter(&mut self, flow: Flow, ctx: &Context<'_>) -> Result<Key, DropReason> {
        let fd = flow.stream.as_raw_fd();
        let key = self.flows.next_key();
        let interest = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
        if self.registry.register(&mut SourceFd(&fd), Token::from(key), interest).is_err() {
            ctx.dp.network().conntrack.remove(&flow.entry);
            return Err(DropReason::NoSocket);
        }
        if self.peek_offset {
            // Supported, as asked before; a refusal would show as octets sent twice, so check.
            if netns::sockopt::set_peek_off(&flow.stream, Some(0)).is_err() {
                self.peek_offset = false;
            }
        }
        let deadline = ctx.now + flow.snd.timeout();
        let entered = self.flows.insert(Box::new(flow));
        debug_assert_eq!(entered, key, "the key given before is the key got");
        self.schedule(key, deadline, ctx.now);
        Ok(key)
    }

    /// The host socket says how its attempt to connect ended.
    pub(super) fn connected(&mut self, key: Key, readiness: Readiness, ctx: &mut Context<'_>) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        if !flow.entry.is_tracked() {
            // It gave way to a newer flow: the container's segments would not find it any more.
            self.abandon(key, ctx);
            return;
        }
        // Room to write and nothing else to say is how success looks (connect(2), EINPROGRESS).
        let plain = readiness.writable && !readiness.hung_up;
        match if plain { Ok(None) } else { flow.stream.take_error() } {
            Ok(None) => {
                if !plain && flow.stream.peer_addr().is_err() {
                    return; // Woken before the end of the attempt.
                }
                // From here on an ICMP error is a hint, not an end (RFC 1122 §4.2.3.9).
                let _ = socket::want_errors(&flow.stream, flow.outside().addr.is_ipv4(), false);
                flow.stage = Stage::Accepting;
                flow.syn = Box::default();
                flow.attempts = 0;
                let of = (flow.zone(), flow.port());
                self.attempts.ended(of);
                self.send_syn_ack(key, ctx);
            }
            Ok(Some(error)) | Err(error) => {
                let errno = Errno::try_from(error).unwrap_or(Errno::EIO);
                self.refuse(key, errno, ctx);
            }
        }
    }

    /// The far side cannot be reached: tells the container how, and forgets the flow.
    pub(super) fn refuse(&mut self, key: Key, errno: Errno, ctx: &mut Context<'_>) {
        let Some(mut flow) = self.take(key, ctx) else { return };
        let told = errors::read(&flow.stream).next().filter(errors::HostError::is_icmp);
        let what = match &told {
            Some(error) => error.as_icmp(),
            None => errors::icmp_for(errno),
        };
        flow.entry.set_state(TcpState::Close);
        match what {
            Some(what) if errno != Errno::ECONNREFUSED => {
                let (to, syn) = (flow.inside().addr, std::mem::take(&mut flow.syn));
                match told {
                    Some(error) => error.tell((to, error.offender), what, syn.into_vec(), ctx),
                    None => ctx.dp.tell_about(to, None, what, &syn, ctx.now, ctx.out),
                }
            }
            _ => {
                let reset = flow.control(RST_ACK, flow.snd.nxt);
                Self::send(&flow, &reset, ctx);
            }
        }
    }

    /// Answers the container's SYN.
    pub(crate) fn send_syn_ack(&mut self, key: Key, ctx: &mut Context<'_>) {
        self.send_opening(key, SYN_ACK, ctx);
    }

    /// Opens the connection to the container.
    pub(crate) fn send_syn(&mut self, key: Key, ctx: &mut Context<'_>) {
        self.send_opening(key, SYN, ctx);
    }

    fn send_opening(&mut self, key: Key, flags: nat::TcpFlags, ctx: &mut Context<'_>) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        let mss = own_mss(ctx, flow.inside().addr.is_ipv6());
        let scaled = !flags.ack || flow.rcv.scale > 0;
        let sack = !flags.ack || flow.rcv.sack;
        let iss = flow.snd.una;
        let mut segment = flow.control(flags, iss);
        flow.snd.sent(iss, iss + 1, ctx.now);
        segment.options =
            Some(SynOptions { mss, window_scale: scaled.then_some(WINDOW_SCALE), sack });
        Self::send(flow, &segment, ctx);
        let deadline = ctx.now + flow.snd.timeout();
        self.schedule(key, deadline, ctx.now);
    }
}
