//! MAC addresses of endpoints and gateways.
//!
//! Docker's habit: `02:42` (locally administered) and the four octets of the IPv4 address, so that
//! 172.17.0.2 is `02:42:ac:11:00:02` and a listing can be read without a table.

use std::net::IpAddr;

use datapath::MacAddr;

/// The station of whoever has `addr`: `02:42` and the address's last four octets.
#[must_use]
pub fn from_address(addr: IpAddr) -> MacAddr {
    let [a, b, c, d] = match addr {
        IpAddr::V4(addr) => addr.octets(),
        IpAddr::V6(addr) => {
            let [.., a, b, c, d] = addr.octets();
            [a, b, c, d]
        }
    };
    MacAddr([0x02, 0x42, a, b, c, d])
}

/// The station of whoever has this id of hexadecimal digits, and no address to make it from: locally
/// administered, and `0a` in front, so that it is none of [`from_address`].
#[must_use]
pub fn from_id(id: &str) -> MacAddr {
    let digits = id.get(..10).and_then(|digits| u64::from_str_radix(digits, 16).ok());
    let [_, _, _, a, b, c, d, e] = digits.unwrap_or_default().to_be_bytes();
    MacAddr([0x0a, a, b, c, d, e])
}

/// `02:42:ac:11:00:02`, as Linux prints it.
#[must_use]
pub fn text(mac: MacAddr) -> String {
    let octets: Vec<_> = mac.0.iter().map(|octet| format!("{octet:02x}")).collect();
    octets.join(":")
}

/// A MAC address no station can have, or none at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// Not six octets in hexadecimal.
    #[error("MAC address {0:?} is malformed; write six octets as in 02:42:ac:11:00:02")]
    Malformed(String),
    /// Multicast, broadcast or all zeros.
    #[error("MAC address {} names no single station; make the first octet even, as in 02:42:ac:11:00:02", text(*.0))]
    NotIndividual(MacAddr),
}

/// Reads `02:42:ac:11:00:02`, of upper or lower case, with colons or hyphens.
///
/// # Errors
///
/// It is no MAC address, or one that no station may have (IEEE 802 §8).
pub fn parse(text: &str) -> Result<MacAddr, MacError> {
    let malformed = || MacError::Malformed(text.to_owned());
    let mut octets = [0; 6];
    let mut fields = text.split([':', '-']);
    for octet in &mut octets {
        let field = fields.next().ok_or_else(malformed)?;
        if field.is_empty() || field.len() > 2 || field.starts_with('+') {
            return Err(malformed());
        }
        *octet = u8::from_str_radix(field, 16).map_err(|_| malformed())?;
    }
    if fields.next().is_some() {
        return Err(malformed());
    }
    let mac = MacAddr(octets);
    if mac.is_unicast() && octets != [0; 6] { Ok(mac) } else { Err(MacError::NotIndividual(mac)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_shows_in_the_station() {
        let mac = from_address("172.17.0.2".parse().unwrap());
        assert_eq!(text(mac), "02:42:ac:11:00:02");
        let mac = from_address("fd00::a:2".parse().unwrap());
        assert_eq!(mac, MacAddr([2, 0x42, 0, 0x0a, 0, 2]));
    }

    #[test]
    fn only_single_stations_are_taken() {
        assert_eq!(parse("02:42:AC:11:0:2"), Ok(MacAddr([2, 0x42, 0xac, 0x11, 0, 2])));
        assert_eq!(parse("02-42-ac-11-00-02"), parse("02:42:ac:11:00:02"));
        for text in
            ["", "02:42:ac:11:00", "02:42:ac:11:00:02:03", "02:42:ac:11:00:zz", "+2:1:1:1:1:1"]
        {
            assert!(matches!(parse(text), Err(MacError::Malformed(_))), "{text}");
        }
        for text in ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"] {
            assert!(matches!(parse(text), Err(MacError::NotIndividual(_))), "{text}");
        }
    }
}
