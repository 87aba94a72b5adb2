//! How TCP flows end.

use nat::TcpState;

use super::flow::{Flow, Stage};
use super::table::{RST_ACK, Tcp};
use crate::context::Context;
use crate::key::Key;
use crate::socket;

impl Tcp {
    /// Takes a flow out of every table; dropping it closes its socket and returns its lease, and the
    /// room of what waited.
    pub(crate) fn take(&mut self, key: Key, ctx: &Context<'_>) -> Option<Box<Flow>> {
        let flow = self.flows.remove(key)?;
        ctx.dp.network().conntrack.remove(&flow.entry);
        if flow.stage == Stage::Connecting {
            self.attempts.ended((flow.zone(), flow.port()));
        }
        Some(flow)
    }

    /// The container has reset, or never answered: so the far side sees a reset.
    pub(crate) fn abandon(&mut self, key: Key, ctx: &Context<'_>) {
        if let Some(flow) = self.take(key, ctx) {
            socket::abort_on_close(&flow.stream);
        }
    }

    /// The far side has reset, or the host gave up: so the container sees a reset, right behind the
    /// last octet it was sent.
    pub(crate) fn reset_by_host(&mut self, key: Key, ctx: &mut Context<'_>) {
        if let Some(mut flow) = self.take(key, ctx) {
            flow.entry.set_state(TcpState::Close);
            socket::abort_on_close(&flow.stream);
            let reset = flow.control(RST_ACK, flow.snd.nxt);
            Self::send(&flow, &reset, ctx);
        }
    }

    /// Ends a flow in which nothing is left to say in either direction. Nothing is kept to answer a FIN
    /// sent again: its sender has closed already, and a reset then only confirms it.
    pub(super) fn finish_if_over(&mut self, key: Key, ctx: &mut Context<'_>) {
        if !self.flows.get(key).is_some_and(|flow| flow.finished()) {
            return;
        }
        // Octets left unread would make the close a reset (RFC 2525 §2.17). A read ends at an urgent one.
        while self.discard(key, 1) > 0 {}
        self.acknowledge_if_due(key, ctx);
        if let Some(flow) = self.take(key, ctx) {
            flow.entry.set_state(TcpState::TimeWait);
        }
    }
}
