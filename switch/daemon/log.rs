//! The daemon's log: lines on standard error, which the starter points at a file or a terminal.

/// Writes a line. A log nobody can read is no reason to stop, so a failed write is passed over.
macro_rules! log {
    ($($what:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), "pontoon: {}", format_args!($($what)*));
    }};
}

pub(crate) use log;
