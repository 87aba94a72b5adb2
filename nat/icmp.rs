//! ICMP errors about translated packets: the packet quoted in one is rewritten, too.
//!
//! Read RFC 5508 §4 first. An error never makes, keeps alive or ends a flow (REQ-6, RFC 5382 REQ-10); one
//! that quotes no flow is dropped in silence. The quoted packet becomes what its sender had sent, checksums
//! included where they are quoted. Everything is done in place, so what follows the quoted packet
//! (RFC 4884) stays.

use crate::checksum::Sum;
use crate::headers::{Headers, Malformed};
use crate::rewrite::{self, addresses};
use crate::tuple::{Protocol, Tuple};

/// Octets of an ICMP error before the packet it quotes.
pub(crate) const HEADER: usize = 8;

/// Whether an ICMP message's own checksum is right (RFC 5508 REQ-3).
pub(crate) fn is_sound(octets: &[u8], headers: &Headers) -> bool {
    sum(octets, headers).fold() == 0xffff
}

/// The packet an error quotes.
pub(crate) fn quoted(octets: &[u8], headers: &Headers) -> Result<Headers, Malformed> {
    let quoted = octets.get(headers.transport + HEADER..headers.end).ok_or(Malformed)?;
    let quoted = Headers::parse_quoted(quoted)?;
    if quoted.v6() == headers.v6() { Ok(quoted) } else { Err(Malformed) }
}

/// Makes the quoted packet read `sent`, and the error come from and go to whom that concerns: to the
/// quoted packet's sender; from the quoted addressee, as that sender knows it, where the true origin is
/// behind the translation (RFC 5508 REQ-5).
pub(crate) fn rewrite(
    octets: &mut [u8],
    headers: &Headers,
    quoted: &Headers,
    sent: &Tuple,
) -> Headers {
    let at = headers.transport + HEADER;
    rewrite::rewrite_quoted(&mut octets[at..headers.end], quoted, sent);
    let hidden = quoted.dst != sent.dst.addr;
    let src = if hidden { sent.dst.addr } else { headers.src };
    let dst = sent.src.addr;
    rewrite::set_addresses(octets, src, dst);
    if !headers.v6() {
        rewrite::replace(octets, 10, addresses(headers.src, headers.dst), addresses(src, dst));
    }
    let headers = Headers { src, dst, ..*headers };
    finish(octets, &headers);
    headers
}

/// Makes an ICMP message's checksum anew.
pub(crate) fn finish(octets: &mut [u8], headers: &Headers) {
    let field = headers.transport + 2;
    octets[field..field + 2].fill(0);
    let checksum = sum(octets, headers).checksum();
    octets[field..field + 2].copy_from_slice(&checksum.0.to_be_bytes());
}

fn sum(octets: &[u8], headers: &Headers) -> Sum {
    let message = &octets[headers.transport..headers.end];
    let pseudo_header = match headers.protocol {
        Protocol::Icmpv6 => Sum::pseudo_header(headers.src, headers.dst, 58, message.len()),
        _ => Sum::ZERO,
    };
    pseudo_header.and(Sum::of(message))
}
