//! Signals while we wait for a command that has our terminal.
//!
//! Ctrl-C goes to every process of the foreground group, the command included, and is its to judge;
//! we only have to outlive it. What was sent to us alone, by kill(2), was meant for the command.

use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Signals that would end us and are the command's business.
const HANDED_ON: [Signal; 4] = [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGHUP];

/// The command waited for; 0 while none is. One at a time: dispositions belong to the process.
static COMMAND: AtomicI32 = AtomicI32::new(0);

/// While it lives, signals that ask us to end go to the command instead.
#[derive(Debug)]
pub(crate) struct HandedOn {
    before: Vec<(Signal, SigAction)>,
}

impl HandedOn {
    /// Hands on to process `pid`, our child, which is not reaped while this lives. Does nothing where
    /// another command is being waited for already.
    pub(crate) fn to(pid: i32) -> Self {
        let mut before = Vec::new();
        if COMMAND.compare_exchange(0, pid, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            let flags = SaFlags::SA_RESTART | SaFlags::SA_SIGINFO;
            let action = SigAction::new(SigHandler::SigAction(hand_on), flags, SigSet::empty());
            for signal in HANDED_ON {
                // SAFETY: `hand_on` calls nothing but kill(2), which is async-signal-safe
                // (signal-safety(7)), and touches only an atomic and errno, which it restores.
                if let Ok(old) = unsafe { sigaction(signal, &action) } {
                    before.push((signal, old));
                }
            }
        }
        Self { before }
    }
}

impl Drop for HandedOn {
    fn drop(&mut self) {
        if self.before.is_empty() {
            return;
        }
        for (signal, old) in self.before.drain(..) {
            // SAFETY: `old` is what the kernel said was in force before us, so it is as fit to be
            // called now as it was then.
            let _ = unsafe { sigaction(signal, &old) };
        }
        COMMAND.store(0, Ordering::SeqCst);
    }
}

extern "C" fn hand_on(signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let errno = Errno::last_raw();
    // SAFETY: with SA_SIGINFO the kernel passes a siginfo_t that is valid while the handler runs.
    let code = unsafe { (*info).si_code };
    let pid = COMMAND.load(Ordering::SeqCst);
    // Above zero it is the kernel's own: the terminal's, which the command has got as well.
    if code <= 0 && pid > 0 {
        // SAFETY: kill(2) takes two numbers and no pointer.
        unsafe { libc::kill(pid, signal) };
    }
    Errno::set_raw(errno);
}
