//! Names of interfaces: which can be given, and what number the bearer of one has.
//!
//! A name may be changed while the interface lives, its number may not; both mean something in one
//! namespace only, which is the calling thread's here. Others know these as functions of
//! [`link`](crate::link).

use nix::net::if_::if_nametoindex;

use crate::error::Error;

/// Number of the interface `ifname`.
///
/// # Errors
/// [`Error::NoSuchInterface`]
pub fn index_of(ifname: &str) -> Result<u32, Error> {
    if_nametoindex(ifname).map_err(|_| Error::NoSuchInterface { ifname: ifname.to_owned() })
}

/// Checks what the kernel would refuse later, and less clearly: `dev_valid_name`, `net/core/dev.c`.
/// Refuses `%` too, which TUNSETIFF and RTM_NEWLINK take for "choose a number".
///
/// # Errors
/// [`Error::BadInterfaceName`]
pub fn check_name(ifname: &str) -> Result<(), Error> {
    let unfit = |octet: u8| matches!(octet, b'/' | b':' | b'%' | 0) || is_c_space(octet);
    match ifname {
        "" | "." | ".." => {}
        name if name.len() >= libc::IFNAMSIZ || name.bytes().any(unfit) => {}
        _ => return Ok(()),
    }
    Err(Error::BadInterfaceName { ifname: ifname.to_owned() })
}

/// `isspace(3)` in the C locale: Rust's `is_ascii_whitespace` leaves the vertical tab out.
const fn is_c_space(octet: u8) -> bool {
    matches!(octet, b' ' | b'\t'..=b'\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_judged_as_the_kernel_judges_them() {
        for fit in ["eth0", "a", "123456789012345", "veth.10", "ü"] {
            check_name(fit).expect(fit);
        }
        for unfit in ["", ".", "..", "1234567890123456", "a/b", "a:b", "a b", "a\u{b}", "tap%d"] {
            assert!(check_name(unfit).is_err(), "{unfit:?}");
        }
    }
}
