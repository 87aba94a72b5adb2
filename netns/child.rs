//! The child that enters a user namespace for us.
//!
//! `setns(2)` and `unshare(2)` into a user namespace want a process of one thread, and pontoon has
//! many. So the program starts itself once more under another name; the child's `main` comes here
//! before it makes a thread, does what the request on its socket says, answers and ends.

/// Name the child goes by in `argv[0]`.
pub(crate) const ARGV0: &str = "pontoon-netns-child";

/// Serves the request and ends the process, if this process is such a child; else returns at once.
///
/// The first call of `main`, before any thread is made. A test program whose tests attach to
/// namespaces of other user namespaces must call it too.
pub fn enter_child_if_asked() {
    if std::env::args_os().next().is_some_and(|argv0| argv0 == ARGV0) {
        std::process::exit(125);
    }
}
