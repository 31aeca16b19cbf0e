//! Landlock (landlock(7)): files and TCP ports, as far as the kernel knows it.
//!
//! Rules name directories, not files: what is replaced by a new file of the same name (a host table, a key, a segment of
//! the spool) is found as before.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, NetPort, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, make_bitflags, path_beneath_rules,
};

use super::Confinement;

/// The newest version whose every right is refused or granted here on purpose. Newer ones add rights that no rule below
/// gives, UDP for one: to be looked at before this is raised.
const NEWEST: ABI = ABI::V7;

/// What a resolver, the C library and the sniffer itself read: configuration and host tables, modules of the name
/// service, interface counters, memory that is free, random numbers.
const READABLE: [&str; 12] = [
    "/etc",
    "/usr",
    "/lib",
    "/lib64",
    "/proc",
    "/sys",
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/run/NetworkManager",
    "/run/nscd",
    "/dev/urandom",
    "/dev/null",
];
/// Files of the resolver that are often links to elsewhere.
const RESOLVER_FILES: [&str; 3] = ["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf"];
/// Name servers: answers that are too long for UDP come by TCP.
const DNS_PORT: u16 = 53;

/// Restricts this thread and those it starts. Returns the version of the interface that holds, `None` without Landlock.
///
/// INVARIANT: called before the first thread is made; Landlock restricts a thread and its descendants.
pub fn restrict(confinement: &Confinement<'_>) -> Result<Option<ABI>, RulesetError> {
    let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let spool = read | make_bitflags!(AccessFs::{WriteFile | MakeReg | RemoveFile | Truncate});
    let ports = [Some(confinement.relay_port), confinement.looks_up_names.then_some(DNS_PORT)];
    let ports = ports.into_iter().flatten().map(|port| NetPort::new(port, AccessNet::ConnectTcp));
    let any_port = NetPort::new(0, AccessNet::BindTcp);
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        // No signal to another program, no abstract socket of one: none of ours needs them.
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .add_rules(path_beneath_rules(readable(confinement.readable), read))?
        .add_rules(path_beneath_rules(confinement.spool, spool))?
        .add_rules(ports.chain([any_port]).map(Ok::<_, RulesetError>))?
        .restrict_self()?;
    Ok(match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, _) => None,
        (_, LandlockStatus::Available { effective_abi, .. }) => Some(effective_abi),
        _ => None,
    })
}

/// Directories to read in, and the few single files.
fn readable(more: &[PathBuf]) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = READABLE.map(PathBuf::from).into();
    paths.extend(RESOLVER_FILES.iter().filter_map(|path| directory_of(Path::new(path))));
    for path in more {
        paths.extend(directory_of(path));
        paths.extend(directory_named(path));
    }
    paths
}

/// The directory that a file is named in. Where the file is a link, it is the link that is replaced, and what it leads to
/// next is mostly below: so volumes of secrets are updated, `token -> ..data/token`, `..data -> ..2026_11_24`.
fn directory_named(path: &Path) -> Option<PathBuf> {
    let named = std::path::absolute(path).ok()?;
    let directory = named.parent()?.canonicalize().ok()?;
    (directory != Path::new("/")).then_some(directory)
}

/// The directory that a file really is in; the file alone where that is the root of all.
fn directory_of(path: &Path) -> Option<PathBuf> {
    let real = path.canonicalize().ok()?;
    let parent = real.parent()?;
    Some(if parent == Path::new("/") { real } else { parent.to_owned() })
}
