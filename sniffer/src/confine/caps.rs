//! Capabilities (capabilities(7)): all are given up but the one that opens rings.

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};

/// Gives up every capability for good, but CAP_NET_RAW if `keep_raw` and if it is there: from the effective, permitted,
/// inheritable and ambient sets, and, where CAP_SETPCAP is there, from the bounding set. Then this process and its
/// children can get no privilege any more. (PR_SET_NO_NEW_PRIVS, prctl(2))
///
/// INVARIANT: called before the first thread is made. Capabilities are a thread's own; later threads inherit these.
pub fn give_up(keep_raw: bool) -> Result<(), CapsError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    let kept: CapsHashSet =
        permitted.into_iter().filter(|one| keep_raw && *one == Capability::CAP_NET_RAW).collect();
    // The bounding set first: it takes a capability to change it.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        for one in caps::read(None, CapSet::Bounding)?.difference(&kept) {
            caps::drop(None, CapSet::Bounding, *one)?;
        }
    }
    let _ = caps::clear(None, CapSet::Ambient); // there is none before Linux 4.3
    caps::clear(None, CapSet::Inheritable)?;
    // What is permitted need not be effective: `setcap cap_net_raw+p` is enough.
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    nix::sys::prctl::set_no_new_privs().map_err(|errno| CapsError::from(errno.to_string()))
}

/// What is left, in words; an error if it is more than [`give_up`] leaves.
pub fn held() -> Result<String, String> {
    let set = caps::read(None, CapSet::Permitted).map_err(|error| error.to_string())?;
    match set.len() {
        0 => Ok("no capabilities".to_owned()),
        1 if set.contains(&Capability::CAP_NET_RAW) => Ok("capabilities CAP_NET_RAW only".to_owned()),
        count => Err(format!("{count} of them are left")),
    }
}
