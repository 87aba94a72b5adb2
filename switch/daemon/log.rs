//! The daemon's log: lines on standard error, which the starter points at a file or a terminal.

use std::time::{Duration, Instant};

/// Writes a line. A log nobody can read is no reason to stop, so a failed write is passed over.
macro_rules! log {
    ($($what:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), "pontoon: {}", format_args!($($what)*));
    }};
}

pub(crate) use log;

/// Lines that a [`Limit`] lets through at once; it lets one more through each second.
const AT_ONCE: u32 = 20;

/// Bounds the lines about what anybody on a wire can make happen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Limit {
    /// Written since it began to count.
    written: u32,
    since: Option<Instant>,
    unwritten: u64,
}

impl Limit {
    /// The line, if one may be written now, and how many could not since the last one.
    pub(crate) fn line(&mut self, said: String, now: Instant) -> Option<String> {
        match self.allow(now)? {
            0 => Some(said),
            others => Some(format!("{said} (after {others} lines not written)")),
        }
    }

    fn allow(&mut self, now: Instant) -> Option<u64> {
        let since = self.since.get_or_insert(now);
        let earned = now.saturating_duration_since(*since).as_secs();
        *since += Duration::from_secs(earned);
        self.written = self.written.saturating_sub(u32::try_from(earned).unwrap_or(AT_ONCE));
        if self.written == AT_ONCE {
            self.unwritten += 1;
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.unwritten))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_cause_is_written_twenty_times_then_once_a_second() {
        let begin = Instant::now();
        let mut limit = Limit::default();
        let written = (0..1000).filter(|_| limit.allow(begin).is_some()).count();
        assert_eq!(written, 20);
        let later = begin + Duration::from_millis(2500);
        assert_eq!(
            [limit.allow(later), limit.allow(later), limit.allow(later)],
            [Some(980), Some(0), None]
        );
        assert_eq!(limit.allow(begin + Duration::from_secs(3)), Some(1), "half a second was saved");
        let hour = begin + Duration::from_secs(3600);
        assert_eq!((0..1000).filter(|_| limit.allow(hour).is_some()).count(), 20);
    }
}
