//! What a container says by ICMP of segments it was sent.
//!
//! Read RFC 1122 §4.2.3.9 and RFC 5927 first. A connection that opens is refused as by a reset, which is how
//! the client of a published port is told at once; to one that is open an error is a hint. Segments too long
//! for a router inside are made shorter (RFC 1191, RFC 8201).

use datapath::{DropReason, Packet, Received};
use nat::Headers;

use super::flow::Stage;
use super::seq::Seq;
use super::table::Tcp;
use crate::context::Context;
use crate::key::Key;

/// The least MTU believed, IPv4 and IPv6: `net.ipv4.route.min_pmtu`, RFC 8201 §4.
const LEAST_MTU: [u16; 2] = [552, 1280];

impl Tcp {
    /// Takes an ICMP error of a container's about a segment of a flow.
    pub(crate) fn told(
        &mut self,
        key: Key,
        received: &Received<'_>,
        packet: &Packet,
        ctx: &Context<'_>,
    ) -> Result<(), DropReason> {
        const UNKNOWN: DropReason = DropReason::UnknownError;
        let [kind, code, _, _, _, _, high, low, quoted @ ..] = packet.transport(received.frame)
        else {
            return Err(UNKNOWN);
        };
        let headers = Headers::parse_quoted(quoted).map_err(|_| UNKNOWN)?;
        let behind_ports = quoted.get(headers.transport + 4..).ok_or(UNKNOWN)?;
        let seq = Seq(u32::from_be_bytes(*behind_ports.first_chunk().ok_or(UNKNOWN)?));
        let flow = self.flows.get_mut(key).ok_or(UNKNOWN)?;
        // RFC 5927 §4.1: only of what is under way. Another container has no say in it.
        let under_way = seq.since(flow.snd.una) >= 0 && flow.snd.nxt.since(seq) > 0;
        if !under_way || flow.port() != received.port {
            return Err(UNKNOWN);
        }
        let v6 = packet.src.is_ipv6();
        match (v6, *kind, *code) {
            (false, 3, 4) | (true, 2, 0) => {
                let mtu = u16::from_be_bytes([*high, *low]).max(LEAST_MTU[usize::from(v6)]);
                flow.snd.shorten(mtu - if v6 { 60 } else { 40 });
                flow.waits = None;
                self.attend(key);
            }
            // Source quench (RFC 6633) and redirects are no errors.
            (false, 4 | 5, _) | (true, 137, _) => return Err(UNKNOWN),
            _ if matches!(flow.stage, Stage::Opening | Stage::Accepting) => self.abandon(key, ctx),
            _ => {}
        }
        Ok(())
    }
}
