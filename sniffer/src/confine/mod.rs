//! What the sniffer gives up before it looks at the first byte of anybody else's.
//!
//! ```text
//! as it was started     filter compiled, file of --read opened
//! give_up_capabilities  all but CAP_NET_RAW, which rings need whenever an interface comes back
//!                       spool directory made and checked
//! confine               Landlock: files and ports; seccomp: system calls
//! first thread          everything else, with no more than that
//! ```
//!
//! What the kernel lacks is said and goes without; a service manager can do more from outside.

mod caps;
mod landlock;
mod seccomp;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use tracing::{info, warn};

/// What is needed from here on.
#[derive(Clone, Copy, Debug)]
pub struct Confinement<'a> {
    /// Rings are opened.
    pub has_rings: bool,
    /// Names of hosts are looked up, so services of the resolver are asked: name servers and local ones.
    pub looks_up_names: bool,
    /// The relay is spoken to without TLS: TCP is to have pages of blocks rather than copies.
    pub sends_pages: bool,
    /// Connections to the admin port are accepted. It is open already.
    pub has_admin: bool,
    /// Where files are made, written and deleted.
    pub spool: Option<&'a Path>,
    /// The one TCP port that is connected to, beside that of name servers where they are asked.
    pub relay_port: u16,
    /// Files that are read again later; those beside them, and beside what they are links to, can be read too, so that
    /// they can be replaced.
    pub readable: &'a [PathBuf],
}

/// Gives up every capability but, if `has_rings`, CAP_NET_RAW; and the way to any other privilege.
///
/// INVARIANT: called before the first thread is made.
pub fn give_up_capabilities(has_rings: bool) {
    if let Err(error) = caps::give_up(has_rings) {
        warn!("capabilities are not given up: {error}");
    }
}

/// Confines this process to what is needed, and says what holds.
///
/// INVARIANT: called before the first thread is made.
pub fn confine(confinement: &Confinement<'_>) {
    let (mut holds, mut lacks) = (Vec::new(), Vec::new());
    match caps::held() {
        Ok(held) => holds.push(held),
        Err(error) => lacks.push(format!("giving up capabilities ({error})")),
    }
    match landlock::restrict(confinement) {
        Ok(Some(abi)) => holds.push(format!("landlock ABI {abi}")),
        Ok(None) => lacks.push("landlock (this kernel has it not, or not enabled)".to_owned()),
        Err(error) => lacks.push(format!("landlock ({})", crate::text(&error))),
    }
    match seccomp::restrict(confinement) {
        Ok(true) => holds.push("seccomp".to_owned()),
        Ok(false) => lacks.push(format!("seccomp (no filter for {})", std::env::consts::ARCH)),
        Err(error) => lacks.push(format!("seccomp ({})", crate::text(&error))),
    }
    let holds = if holds.is_empty() { "by nothing".to_owned() } else { holds.join("; ") };
    if lacks.is_empty() {
        info!("confined: {holds}");
    } else {
        warn!(
            "confined: {holds}; without {}; run as a service of systemd it can be confined from outside",
            lacks.join(" and ")
        );
    }
}
