//! Harness of the end-to-end tests: the three programs as processes, network namespaces, and
//! tshark as the judge.
//!
//! Nothing here sleeps and hopes: every wait is for an event, with a deadline that only a hang
//! reaches.

pub mod admin;
pub mod faults;
pub mod judge;
pub mod live;
pub mod netns;
pub mod peer;
pub mod pki;
pub mod process;
pub mod samples;
pub mod scrape;
pub mod soak;
pub mod strangers;
pub mod transfer;
pub mod tshark;

use std::path::PathBuf;

/// Where the programs under test are: beside the test itself, in the target directory.
///
/// `make test` builds them first; `cargo test` alone does not.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows where it is");
    let profile = test.ancestors().nth(2).expect("target/PROFILE/deps/TEST");
    let path = profile.join(name);
    assert!(
        path.exists(),
        "{}: not built: run `make test`, or `cargo build --workspace --bins`",
        path.display()
    );
    path
}

/// Whether a test that needs what is not there may be left out. In CI nothing may.
///
/// Returns `true` after saying so; fails the test where everything is required.
pub fn skip(what: &str) -> bool {
    assert!(std::env::var_os("RINGCAST_REQUIRE_ALL").is_none(), "{what}, but nothing may be skipped here");
    eprintln!("skipped: {what}");
    true
}

/// The captures that the large tests read: `RINGCAST_CAPTURES`, by default `../shared/captures`
/// beside the checkout. `None`, said, where they are absent: the one thing that may be.
pub fn captures() -> Option<PathBuf> {
    let default = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/captures");
    let path = std::env::var_os("RINGCAST_CAPTURES").map_or(default, PathBuf::from);
    if path.join("MANIFEST.tsv").exists() {
        return Some(path);
    }
    eprintln!("skipped: no captures at {}; set RINGCAST_CAPTURES", path.display());
    None
}
