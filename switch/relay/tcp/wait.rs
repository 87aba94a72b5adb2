//! Deadlines: what is awaited of a container, and what follows if it does not happen.
//!
//! A timer runs from when something first is awaited and is set anew only by progress (RFC 6298 §5):
//! traffic the other way must not hold it off.

use smoltcp::time::Duration;

use super::flow::{Flow, MAX_ATTEMPTS, MAX_OPENING_ATTEMPTS, Stage, Waits};
use super::table::{ACK, Tcp};
use crate::context::Context;
use crate::key::Key;
use crate::shared::Shared;

/// A container that is silent for that long is asked whether it is still there (RFC 9293 §3.8.4), as the
/// host's kernel asks the far side (`SO_KEEPALIVE`): a connection both ends know of is never ended for
/// being idle, unless the idle time that was chosen is shorter.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(7_200);

/// How often, and how many times, whoever does not answer is asked again (tcp(7), `tcp_keepalive_intvl`,
/// `tcp_keepalive_probes`).
const KEEPALIVE_EVERY: Duration = Duration::from_secs(75);
const KEEPALIVE_PROBES: u8 = 9;

/// How often an attempt to connect is looked at, whether conntrack still has it.
const LOOK: Duration = Duration::from_secs(5);

/// Probes of a closed window once the far side is gone: a minute for the container to read what it said.
const MAX_LAST_PROBES: u8 = 8;

impl Tcp {
    /// Sets the deadline by what is awaited now, if that changed or there was progress.
    pub(super) fn watch(&mut self, key: Key, ctx: &Context<'_>) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        if flow.stage != Stage::Established {
            return;
        }
        let awaited = flow.awaited();
        if flow.waits == Some(awaited) {
            return;
        }
        if flow.waits == Some(Waits::Life) {
            flow.attempts = 0;
        }
        flow.waits = Some(awaited);
        let after = match awaited {
            Waits::Ack | Waits::Window => flow.snd.timeout(),
            Waits::Life => KEEPALIVE_AFTER.min(flow.idle_limit(&self.shared)),
        };
        self.schedule(key, ctx.now + after, ctx.now);
    }

    /// The deadline has come: what was awaited did not happen.
    pub(crate) fn timeout(&mut self, key: Key, ctx: &mut Context<'_>) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        if !flow.entry.is_tracked() {
            // It gave way to a newer flow, and the container's segments do not find it any more.
            self.abandon(key, ctx);
            return;
        }
        if flow.homeless {
            self.reset_by_host(key, ctx);
            return;
        }
        flow.attempts = flow.attempts.saturating_add(1);
        match flow.stage {
            Stage::Connecting => {
                // The host's own SYNs have their own patience, which ends in ETIMEDOUT.
                self.schedule(key, ctx.now + LOOK, ctx.now);
            }
            Stage::Established => self.established_timeout(key, ctx),
            Stage::Opening | Stage::Accepting if flow.attempts > MAX_OPENING_ATTEMPTS => {
                self.abandon(key, ctx);
            }
            stage => {
                flow.snd.rtt.cancel();
                flow.snd.rtt.back_off();
                match stage {
                    Stage::Opening => self.send_syn(key, ctx),
                    _ => self.send_syn_ack(key, ctx),
                }
            }
        }
    }

    fn established_timeout(&mut self, key: Key, ctx: &mut Context<'_>) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        // To be set anew at the end of the burst, by the doubled timeout.
        let waits = flow.waits.take();
        let given_up = flow.attempts > MAX_ATTEMPTS || flow.attempts > 0 && flow.reads_no_more();
        match waits {
            Some(Waits::Ack | Waits::Window) if given_up => {
                self.reset_by_host(key, ctx);
                return;
            }
            Some(of @ (Waits::Ack | Waits::Window)) => {
                match of {
                    // It goes again at once, or as soon as a closed window opens.
                    Waits::Ack => flow.snd.time_out(),
                    _ => flow.snd.rtt.back_off(),
                }
                if of == Waits::Window || flow.snd.is_closed() {
                    // A segment before the next octet must be answered (RFC 9293 §3.8.6.1).
                    let probe = flow.control(ACK, flow.snd.una - 1);
                    Self::send(flow, &probe, ctx);
                }
            }
            Some(Waits::Life) | None => {
                // What either side sends is noted; a question is not.
                let idle = flow.entry.silence(ctx.now);
                let limit = flow.idle_limit(&self.shared);
                if idle < KEEPALIVE_AFTER {
                    flow.attempts = 0;
                }
                if idle >= limit || flow.attempts > KEEPALIVE_PROBES {
                    self.reset_by_host(key, ctx);
                    return;
                }
                flow.waits = waits;
                let mut wait = limit - idle;
                if idle >= KEEPALIVE_AFTER {
                    let question = flow.control(ACK, flow.snd.una - 1);
                    Self::send_apart(&question, ctx);
                    wait = wait.min(KEEPALIVE_EVERY);
                } else {
                    wait = wait.min(KEEPALIVE_AFTER - idle);
                }
                self.schedule(key, ctx.now + wait, ctx.now);
            }
        }
        self.attend(key);
    }
}

impl Flow {
    /// How long it may be silent.
    fn idle_limit(&self, shared: &Shared) -> Duration {
        shared.policy(self.zone()).timeouts.tcp_established
    }

    /// The far side is gone, and the container does not read the last it said.
    fn reads_no_more(&self) -> bool {
        (self.rcv.lost || self.reset_at_end)
            && self.snd.is_closed()
            && self.snd.rtt.doubled() >= MAX_LAST_PROBES
    }
}
