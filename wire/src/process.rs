//! What a process that holds secrets does first, and whether a person is still there.

use std::io::IsTerminal;

/// Sees to it that no core dump holds our tokens, keys or packets, and that no other process of this user can read our
/// memory. Linux only; elsewhere nothing happens. Call it before anything secret is read.
///
/// The limit on core files (RLIMIT_CORE, getrlimit(2)) does not hold where the kernel pipes them into a program
/// (core(5)); that we are not dumpable (PR_SET_DUMPABLE, prctl(2)) does, and keeps out ptrace(2) and /proc/PID/mem but
/// for root's. Its price: /proc/PID is root's. What a process reads of itself there it can read as before.
///
/// A panic's message needs nothing: it is the panic's own text and its place, and a [`Secret`](crate::secret::Secret)
/// has no text to be put into one.
#[cfg(target_os = "linux")]
pub fn protect() {
    use nix::sys::prctl::set_dumpable;
    use nix::sys::resource::{Resource, setrlimit};

    // Both are a process's own to give up. If a foreign sandbox forbids even that, it also stands in for it.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    let _ = set_dumpable(false);
}

/// Sees to it that no core dump holds secrets; nothing is known for this system.
#[cfg(not(target_os = "linux"))]
pub fn protect() {}

/// How many of the standard streams are terminals; one that was closed is none any more. SIGHUP is sent both by who wants
/// files read anew and by a terminal that goes away, and only the second changes this number.
pub fn terminals() -> usize {
    let (input, output, error) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    [input.is_terminal(), output.is_terminal(), error.is_terminal()].into_iter().filter(|one| *one).count()
}
