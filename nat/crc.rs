//! The checksum of SCTP, CRC32c (RFC 9260 appendix A). It covers no pseudo-header, so that other addresses
//! leave it as it is; other ports need it made anew.

/// Castagnoli's polynomial, its bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut octet = 0u8;
    loop {
        let mut crc = octet as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[octet as usize] = crc;
        if octet == u8::MAX {
            break table;
        }
        octet += 1;
    }
};

/// Where an SCTP packet has it.
const FIELD: std::ops::Range<usize> = 8..12;

/// The checksum of `octets`.
fn crc32c(octets: &[u8]) -> u32 {
    !octets.iter().fold(!0, step)
}

/// Whether an SCTP packet's checksum is right.
pub(crate) fn is_right(packet: &[u8]) -> bool {
    let Some(held) = packet.get(FIELD) else { return false };
    let rest = packet[FIELD.end..].iter();
    let sum = packet[..FIELD.start].iter().chain(&[0; 4]).chain(rest).fold(!0, step);
    held == (!sum).to_le_bytes()
}

fn step(crc: u32, octet: &u8) -> u32 {
    crc >> 8 ^ TABLE[usize::from(crc.to_le_bytes()[0] ^ octet)]
}

/// Makes an SCTP packet's checksum anew. One too short to have it is left alone.
pub(crate) fn renew(packet: &mut [u8]) {
    if packet.len() >= FIELD.end {
        packet[FIELD].fill(0);
        let crc = crc32c(packet);
        packet[FIELD].copy_from_slice(&crc.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720 appendix B.4.
    #[test]
    fn sums_as_rfc_3720_does() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&ascending), 0x46dd_794e);
    }
}
