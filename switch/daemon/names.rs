//! Names and ids of networks and endpoints.
//!
//! Names are what docker allows; an id is 64 hexadecimal digits, of which the first 12 are shown and
//! any unambiguous beginning is understood.

/// Most octets of a name: what fits a DNS label.
pub const MAX_NAME_LEN: usize = 63;

/// Digits of a short id.
pub const SHORT_ID_LEN: usize = 12;

/// A name that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It has characters that names do not have.
    #[error(
        "name {0:?} is not allowed: it begins with a letter or digit, has two characters or more, \
         and only letters, digits, '_', '.' and '-'"
    )]
    Characters(String),
    /// It is too long.
    #[error("name {0:?} is longer than {MAX_NAME_LEN} characters")]
    TooLong(String),
    /// It means something to `--network`.
    #[error("name {0:?} has a meaning of its own to --network; choose another")]
    Reserved(String),
    /// The interface's name does not suit the kernel.
    #[error("interface name {0:?} is not allowed: 1 to 15 characters, no '/', no ':' and no space")]
    Interface(String),
}

/// Checks a name of an endpoint: docker's `[a-zA-Z0-9][a-zA-Z0-9_.-]+`.
///
/// # Errors
///
/// It is another.
pub fn check(name: &str) -> Result<(), NameError> {
    let mut chars = name.chars();
    let begins = chars.next().is_some_and(|c| c.is_ascii_alphanumeric());
    let goes_on = chars.clone().count() > 0
        && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    if !begins || !goes_on {
        return Err(NameError::Characters(name.to_owned()));
    }
    if name.len() > MAX_NAME_LEN { Err(NameError::TooLong(name.to_owned())) } else { Ok(()) }
}

/// Checks a name of a network: as [`check`], and not one of `--network`'s own words.
///
/// # Errors
///
/// It is another.
pub fn check_network(name: &str) -> Result<(), NameError> {
    if matches!(name, "none" | "host" | "container" | "default") {
        return Err(NameError::Reserved(name.to_owned()));
    }
    check(name)
}

/// Checks a name of an interface as `dev_valid_name` of `net/core/dev.c` does.
///
/// # Errors
///
/// The kernel would refuse it.
pub fn check_interface(name: &str) -> Result<(), NameError> {
    let fits = (1..=15).contains(&name.len()) && name != "." && name != "..";
    let plain = name.chars().all(|c| c != '/' && c != ':' && !c.is_whitespace() && !c.is_control());
    if fits && plain { Ok(()) } else { Err(NameError::Interface(name.to_owned())) }
}

/// A new id: 64 hexadecimal digits that no one can guess.
///
/// # Errors
///
/// The kernel has no randomness to give.
pub fn new_id() -> Result<String, getrandom::Error> {
    let mut octets = [0; 32];
    getrandom::fill(&mut octets)?;
    Ok(octets.iter().map(|octet| format!("{octet:02x}")).collect())
}

/// The digits of `id` that are shown.
#[must_use]
pub fn short_id(id: &str) -> &str {
    id.get(..SHORT_ID_LEN).unwrap_or(id)
}

/// A name for what was given none, chosen by `id` and not `taken`: `calm_ferry`, or the short id.
#[must_use]
pub fn invent(id: &str, taken: impl Fn(&str) -> bool) -> String {
    let digits = u64::from_str_radix(id.get(..16).unwrap_or("0"), 16).unwrap_or(0);
    let pick = |words: &[&'static str], by: u64| {
        let len = words.len() as u64;
        usize::try_from(by % len).ok().and_then(|at| words.get(at).copied()).unwrap_or("calm")
    };
    let count = (ADJECTIVES.len() * NOUNS.len()) as u64;
    // A few other pairs are tried before the id itself, which is always free.
    for turn in 0..8 {
        let at = digits.wrapping_add(turn) % count;
        let name =
            format!("{}_{}", pick(ADJECTIVES, at), pick(NOUNS, at / ADJECTIVES.len() as u64));
        if !taken(&name) {
            return name;
        }
    }
    short_id(id).to_owned()
}

const ADJECTIVES: &[&str] = &[
    "amber", "bold", "brisk", "calm", "clear", "deep", "drifting", "eager", "fair", "gentle",
    "glad", "grey", "high", "keen", "light", "long", "mellow", "misty", "narrow", "patient",
    "placid", "quick", "quiet", "silver", "slow", "steady", "still", "swift", "tidal", "upright",
    "warm", "wide",
];

const NOUNS: &[&str] = &[
    "anchor", "barge", "beacon", "bollard", "buoy", "cable", "canal", "channel", "current",
    "delta", "dock", "ferry", "ford", "gangway", "harbour", "heron", "jetty", "lock", "mooring",
    "oar", "otter", "pier", "quay", "raft", "reed", "river", "rudder", "sluice", "strait", "tide",
    "weir", "wharf",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dockers() {
        for name in ["c1", "web-1", "A.b_c", "00"] {
            assert_eq!(check(name), Ok(()), "{name}");
        }
        for name in ["", "a", "-a", "_a", ".a", "a b", "a/b", "é1", "a\n"] {
            assert!(matches!(check(name), Err(NameError::Characters(_))), "{name:?}");
        }
        assert!(matches!(check(&"a".repeat(64)), Err(NameError::TooLong(_))));
        assert!(matches!(check_network("none"), Err(NameError::Reserved(_))));
        assert_eq!(check("none"), Ok(()));
    }

    #[test]
    fn interface_names_are_the_kernels() {
        for name in ["eth0", "e", "pt-net0", "fifteen-octets-"] {
            assert_eq!(check_interface(name), Ok(()), "{name}");
        }
        for name in ["", ".", "..", "a b", "a/b", "a:1", "sixteen-octets--", "a\0"] {
            assert!(check_interface(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn ids_differ_and_are_64_digits() {
        let ids = [new_id().unwrap(), new_id().unwrap()];
        assert_ne!(ids[0], ids[1]);
        for id in ids {
            assert!(id.len() == 64 && id.bytes().all(|c| c.is_ascii_hexdigit()));
            assert_eq!(short_id(&id).len(), 12);
        }
    }

    #[test]
    fn invented_names_are_allowed_and_free() {
        let id = new_id().unwrap();
        let first = invent(&id, |_| false);
        assert_eq!(check(&first), Ok(()));
        assert_ne!(invent(&id, |name| name == first), first);
        assert_eq!(invent(&id, |_| true), short_id(&id));
    }
}
