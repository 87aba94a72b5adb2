//! How much of a busy processor a thread gets: setpriority(2), and autogroups (sched(7)).
//!
//! Where the kernel groups tasks by session (`CONFIG_SCHED_AUTOGROUP`), a thread's nice value counts
//! only within its session, and the session's own against others: a service needs both.

use std::fs;
use std::io;

use nix::unistd::{getpid, getsid};

/// Gives the calling thread a nice value, -20 (most) to 19 (least).
///
/// # Errors
/// `EACCES` for less than it has, without `CAP_SYS_NICE` and beyond `RLIMIT_NICE`.
pub fn set_thread_nice(nice: i32) -> io::Result<()> {
    let (which, calling_thread) = (libc::PRIO_PROCESS, 0);
    // SAFETY: setpriority takes three numbers and no pointer.
    let done = unsafe { libc::setpriority(which, calling_thread, nice) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives the calling process' session a nice value, if the session is its own to lead. Does nothing
/// where it is not: the others in it are somebody else's business.
///
/// # Errors
/// `EPERM` for a negative value without `CAP_SYS_NICE`; `ENOENT` where sessions are not grouped.
pub fn set_session_nice(nice: i32) -> io::Result<()> {
    if getsid(None) != Ok(getpid()) {
        return Ok(());
    }
    fs::write("/proc/self/autogroup", nice.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_may_always_be_nicer_and_the_others_stay_as_they_were() {
        let of = |thread: &str| {
            let stat = fs::read_to_string(format!("/proc/{thread}/stat")).expect("procfs");
            let (_, behind) = stat.rsplit_once(") ").expect("proc_pid_stat(5)");
            behind.split(' ').nth(16).expect("nice is the 19th field").to_owned()
        };
        let before = of("self");
        std::thread::spawn(move || {
            set_thread_nice(7).expect("nobody is refused less");
            assert_eq!(of("thread-self"), "7");
        })
        .join()
        .expect("the thread's own checks");
        assert_eq!(of("self"), before);
    }
}
