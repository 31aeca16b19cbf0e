//! The two clocks: wall time for stamps, taken here so that the core gets it as an argument.

use std::time::{SystemTime, UNIX_EPOCH};

/// Wall time, ns since 1970; 0 before that.
pub fn wall_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
