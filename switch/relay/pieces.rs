//! Packets that containers cut: put together before they go on.
//!
//! Read RFC 4787 REQ-14; `nat::fragments` does it, and bounds each container's share. A host socket sends
//! whole datagrams, which the host cuts again as its own path wants. Pieces of one packet may come to
//! several workers, so what is there of it is shared.

use datapath::{DropReason, ETHERNET_HEADER_LEN, IcmpError, Offload, Packet, Received};
use nat::{Gathered, Headers};

use crate::context::Context;
use crate::key::account;
use crate::shared::Shared;

/// Takes a piece, and returns the frame of the whole packet if it was the last one missing.
///
/// # Errors
///
/// It cannot be kept, or what the pieces make is no packet.
pub(crate) fn gather(
    shared: &Shared,
    received: &Received<'_>,
    packet: &Packet,
    ctx: &Context<'_>,
) -> Result<Option<(Vec<u8>, Packet)>, DropReason> {
    let octets = &received.frame[Packet::IP..packet.end];
    let headers = Headers::parse(octets).map_err(|_| DropReason::Malformed)?;
    let of = (ctx.zone(), account(ctx.zone(), received.port));
    let timeouts = shared.policy(ctx.zone()).timeouts;
    let whole = match shared.pieces().gather(octets, &headers, of, ctx.now, &timeouts) {
        Gathered::Kept => return Ok(None),
        Gathered::Refused => return Err(DropReason::Fragment),
        Gathered::Complete(whole) => whole,
    };
    let mut frame = received.frame[..ETHERNET_HEADER_LEN].to_vec();
    frame.extend_from_slice(&whole.packet);
    // Its checksum is over all of it, and nobody has looked at it before.
    let packet = Packet::parse(&frame, &Offload::NONE)?;
    // Who cut it may have it cut again.
    Ok(Some((frame, Packet { dont_fragment: false, ..packet })))
}

/// Tells senders that what they sent in pieces never became whole: those of the network at hand, whose turn
/// it is. Says whether others wait.
pub(crate) fn tell_overdue(shared: &Shared, ctx: &mut Context<'_>) -> bool {
    loop {
        // Told without the lock.
        let overdue = {
            let mut pieces = shared.pieces();
            match pieces.overdue_zone() {
                None => return false,
                Some(zone) if zone != ctx.zone() => return true,
                Some(_) => pieces.overdue(),
            }
        };
        let Some(overdue) = overdue else { return false };
        let what = IcmpError::ReassemblyTimeExceeded;
        ctx.dp.tell_about(overdue.src, None, what, &overdue.piece, ctx.now, ctx.out);
    }
}
