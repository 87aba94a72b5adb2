//! Who closes a device last.

use std::os::fd::OwnedFd;

/// A second handle of one queue of a device, closed after the switch has closed its own.
///
/// Closing a TAP's last descriptor takes the interface away, for which the kernel waits tens of
/// milliseconds (`synchronize_net`). This way it is we who wait, and not a worker with everybody's
/// frames.
#[derive(Debug)]
pub(crate) struct Keeper(#[expect(dead_code, reason = "kept for its drop")] OwnedFd);

impl Keeper {
    /// Of a device just made; without a free descriptor a worker waits, which is no failure.
    pub(crate) fn of(device: &netns::Endpoint) -> Option<Self> {
        device.queues.first().and_then(|queue| queue.try_clone().ok()).map(Self)
    }
}
