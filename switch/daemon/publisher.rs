//! What publishing remembers between requests.

/// The cursor of the search for host ports, and the bound on listeners.
#[derive(Debug)]
pub(crate) struct Publisher {
    /// The host port last found for a spec without one. The search goes on after it, as docker's
    /// does, so that a port just given back is not the next one given out.
    pub(crate) last_found: u16,
    /// Descriptors this process may have.
    pub(crate) limit: u64,
}

impl Publisher {
    pub(crate) const fn new(limit: u64) -> Self {
        Self { last_found: 0, limit }
    }
}
