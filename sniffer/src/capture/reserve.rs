//! Whether what is ready in a ring is left there, for the line has no room for it.
//!
//! Where all programs are short of one core, what is packed before it can go leaves the caches: it is written to and read
//! from cold memory then, each packet costs more, and the core stays short. In the ring nothing was done for it yet.

use std::time::{Duration, Instant};

/// Nothing is left for longer: the line may be full of what another ring brings.
const LEFT_TIME_MAX: Duration = Duration::from_millis(100);

/// The state of one ring.
#[derive(Debug, Default)]
pub(super) struct Reserve {
    since: Option<Instant>,
}

impl Reserve {
    /// Whether what is ready is left in the ring: from when the line `is_full` until it `has_room`, if the ring is not
    /// half full, and not for long.
    pub(super) fn leaves(&mut self, is_full: bool, has_room: bool, is_half_full: bool, now: Instant) -> bool {
        let goes_on = if self.since.is_some() { !has_room } else { is_full };
        if !goes_on {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(now);
        !is_half_full && now < since + LEFT_TIME_MAX
    }

    /// The ring is empty: what comes next may be left for as long again.
    pub(super) fn clear(&mut self) {
        self.since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_left_until_the_line_has_room() {
        let (mut reserve, now) = (Reserve::default(), Instant::now());
        let mut leaves =
            |is_full, has_room, is_half_full| reserve.leaves(is_full, has_room, is_half_full, now);
        assert!(!leaves(false, true, false) && !leaves(false, false, false), "it is not full");
        assert!(leaves(true, false, false));
        assert!(leaves(false, false, false), "a little room is not enough");
        assert!(!leaves(false, false, true), "the ring needs its own");
        assert!(leaves(false, false, false));
        assert!(!leaves(false, true, false));
        assert!(!leaves(false, false, false), "the line has to be full again");
    }

    #[test]
    fn nothing_is_left_for_long() {
        let (mut reserve, now) = (Reserve::default(), Instant::now());
        let last = now + LEFT_TIME_MAX - Duration::from_nanos(1);
        assert!(reserve.leaves(true, false, false, now) && reserve.leaves(true, false, false, last));
        assert!(!reserve.leaves(true, false, false, now + LEFT_TIME_MAX));
        assert!(!reserve.leaves(true, false, false, now + 2 * LEFT_TIME_MAX), "all that is there is taken");
        reserve.clear();
        assert!(reserve.leaves(true, false, false, now + 2 * LEFT_TIME_MAX));
    }
}
