//! Seccomp (seccomp(2)): the system calls that a sniffer makes in its life, and no other.
//!
//! What is not listed fails with EPERM and kills nobody: a capture must not die of a new C library. So programs cannot
//! be run, processes not traced, file systems not mounted, kernel code (modules, eBPF, kexec) not loaded, memory not made
//! executable but from a file; and io_uring, keyrings and userfaultfd, where holes in kernels are found, are out of
//! reach. The list is what strace(1) showed of live captures, files, spools, outages, lookups and failures, with what
//! other versions of the C library use for the same.

use std::collections::BTreeMap;

use libc::{c_int, c_long};
use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};

use super::Confinement;

/// Calls without conditions.
const ALLOWED: &[c_long] = &[
    // Files: what may be opened is Landlock's to say.
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    // Sockets: which ones is said below.
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
    // Waiting.
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    // Time, chance, and who we are.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getcpu,
    libc::SYS_getrusage,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    // Memory; executable memory is said below.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    // Threads and their signals.
    libc::SYS_clone3, // never comes through: see `without_clone3`
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// The same calls under names that only this older architecture has.
#[cfg(target_arch = "x86_64")]
const ALLOWED_OLD: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_mkdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_dup2,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_wait,
    libc::SYS_time,
];
/// What rename(3) is made of here; the `libc` crate does not have it. (renameat, asm-generic/unistd.h)
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_OLD: &[c_long] = &[38];

/// Requests of ioctl(2): non-blocking mode, whether a log goes to a terminal and how wide that is, names and properties of interfaces.
#[allow(clippy::unnecessary_cast)] // they are of another type with another C library
const IOCTLS: [u64; 8] = [
    libc::FIONBIO as u64,
    libc::FIONREAD as u64,
    libc::TCGETS as u64,
    libc::TCGETS2 as u64,
    libc::TIOCGWINSZ as u64,
    libc::SIOCGIFNAME as u64,
    libc::SIOCGIFINDEX as u64,
    libc::SIOCETHTOOL as u64,
];

/// Puts the filter on all threads, now and later. `false`: this architecture has no filter.
pub fn restrict(confinement: &Confinement<'_>) -> Result<bool, Error> {
    let Ok(arch) = TargetArch::try_from(std::env::consts::ARCH) else { return Ok(false) };
    // INVARIANT: in this order, for the second filter does not let a third be put on.
    apply_filter_all_threads(&without_clone3(arch)?)?;
    apply_filter_all_threads(&allow_list(arch, confinement)?)?;
    Ok(true)
}

/// clone3(2) has its flags in memory, where no filter sees them. As if it were not there, the C library falls back to
/// clone(2). Of two filters the more severe verdict holds.
fn without_clone3(arch: TargetArch) -> Result<BpfProgram, Error> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let enosys = SeccompAction::Errno(libc::ENOSYS as u32);
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, enosys, arch)?.try_into()?)
}

fn allow_list(arch: TargetArch, confinement: &Confinement<'_>) -> Result<BpfProgram, Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().chain(ALLOWED_OLD).map(|number| (*number, Vec::new())).collect();
    rules.insert(libc::SYS_socket, sockets(confinement)?);
    rules.insert(libc::SYS_socketpair, vec![rule(&[argument(0, libc::AF_UNIX as u64)])?]);
    let ioctls: Result<_, Error> = IOCTLS.iter().map(|request| rule(&[argument(1, *request)])).collect();
    rules.insert(libc::SYS_ioctl, ioctls?);
    rules.insert(
        libc::SYS_prctl,
        vec![rule(&[argument(0, libc::PR_SET_NAME as u64)])?, rule(&[argument(0, PR_SET_VMA)])?],
    );
    if confinement.sends_pages {
        for number in [libc::SYS_vmsplice, libc::SYS_splice] {
            rules.insert(number, Vec::new());
        }
    }
    if confinement.has_admin {
        // Of a socket that listens already: none can be made to, for listen(2) is not listed.
        rules.insert(libc::SYS_accept4, Vec::new());
    }
    // Threads, no processes, no namespaces.
    rules.insert(libc::SYS_clone, vec![rule(&[masked(0, CLONE_CHECKED, libc::CLONE_THREAD as u64)])?]);
    // abort(3): a signal to ourselves.
    rules.insert(libc::SYS_tgkill, vec![rule(&[argument(0, u64::from(std::process::id()))])?]);
    // Limits are read, not set.
    rules.insert(libc::SYS_prlimit64, vec![rule(&[pointer(2, 0)])?]);
    // Nothing that was written is executed: modules of the name service are mapped from their files.
    let (write, execute) = (libc::PROT_WRITE as u64, libc::PROT_EXEC as u64);
    rules.insert(libc::SYS_mmap, vec![rule(&[masked(2, execute, 0)])?, rule(&[masked(2, write, 0)])?]);
    rules.insert(libc::SYS_mprotect, vec![rule(&[masked(2, execute, 0)])?]);
    let eperm = SeccompAction::Errno(libc::EPERM as u32);
    Ok(SeccompFilter::new(rules, eperm, SeccompAction::Allow, arch)?.try_into()?)
}

/// Names memory for those who look at /proc/PID/maps. (linux/prctl.h)
const PR_SET_VMA: u64 = 0x5356_4d41;
/// What a clone must have, and what it must not.
const CLONE_CHECKED: u64 = (libc::CLONE_THREAD
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// TCP and UDP, local services of the resolver, interfaces by rtnetlink, rings. No raw IP, which CAP_NET_RAW would allow.
/// What a local socket is connected to is out of a filter's sight, and services of root's trust whoever is root: a
/// relay that is given by its address needs none. The C library asks for an interface's number by a local datagram
/// socket, and such a one goes to no service that does anything for anybody.
fn sockets(needs: &Confinement<'_>) -> Result<Vec<SeccompRule>, Error> {
    /// Without SOCK_CLOEXEC and SOCK_NONBLOCK.
    const TYPE: u64 = 0xf;
    let family = |family: c_int| argument(0, family as u64);
    let kind = |kind: c_int| masked(1, TYPE, kind as u64);
    let protocol = |protocol: c_int| argument(2, protocol as u64);
    let mut rules = vec![rule(&[family(libc::AF_NETLINK), protocol(libc::NETLINK_ROUTE)])?];
    // Zero is TCP for streams and UDP for datagrams. Landlock knows of no ports of MPTCP or SCTP.
    for internet in [libc::AF_INET, libc::AF_INET6] {
        for (one, named) in [(libc::SOCK_STREAM, libc::IPPROTO_TCP), (libc::SOCK_DGRAM, libc::IPPROTO_UDP)] {
            for number in [0, named] {
                rules.push(rule(&[family(internet), kind(one), protocol(number)])?);
            }
        }
    }
    let local = match needs.looks_up_names {
        true => rule(&[family(libc::AF_UNIX)])?,
        false => rule(&[family(libc::AF_UNIX), kind(libc::SOCK_DGRAM)])?,
    };
    rules.push(local);
    if needs.has_rings {
        // Bound to one interface before it hears anything: see `ring`.
        rules.push(rule(&[family(libc::AF_PACKET), kind(libc::SOCK_RAW), protocol(0)])?);
    }
    Ok(rules)
}

/// An argument, of 32 bits, its mask and what has to be under it; or all of a pointer.
type Condition = (u8, SeccompCmpArgLen, SeccompCmpOp, u64);

fn argument(index: u8, value: u64) -> Condition {
    (index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

fn masked(index: u8, mask: u64, value: u64) -> Condition {
    (index, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask), value)
}

fn pointer(index: u8, value: u64) -> Condition {
    (index, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, value)
}

/// All of the conditions.
fn rule(conditions: &[Condition]) -> Result<SeccompRule, Error> {
    let made: Result<Vec<SeccompCondition>, _> = conditions
        .iter()
        .map(|(index, length, operator, value)| {
            SeccompCondition::new(*index, length.clone(), operator.clone(), *value)
        })
        .collect();
    Ok(SeccompRule::new(made?)?)
}
