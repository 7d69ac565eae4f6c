//! Notices that this node is in nobody's view but its own.
//!
//! Gossip takes a life that has the same generation as an earlier one for that one, and for dead
//! as long again as it had lived. It can only happen to a machine whose clock and data directory
//! both went back, and nobody tells: the node hears all others and believes itself a member, while
//! no member has a view with it. So it looks at the views that members publish. When none has
//! equalled its own for long, it starts its gossip again as a newer life, which everybody hears of.
//!
//! Views may differ for other reasons, such as a link that passes one way only; then a newer life
//! does no good and no harm, and the waits grow so that it happens seldom ([`WAIT_MAX`]): the ids
//! of former lives go round in gossip for a while. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// Views of members that hear each other agree within two seconds.
const WAIT: Duration = Duration::from_secs(10);

/// In twice the time for which gossip keeps a former life, at most one is added.
const WAIT_MAX: Duration = Duration::from_secs(30 * 60);

/// Since when nobody shows this node's view.
#[derive(Debug)]
pub(crate) struct Unnoticed {
    since: Option<Instant>,
    wait: Duration,
}

impl Default for Unnoticed {
    fn default() -> Self {
        Self { since: None, wait: WAIT }
    }
}

impl Unnoticed {
    /// Takes in the hashes of the views that active members publish; whether it is time for a newer
    /// life.
    pub(crate) fn on_views(
        &mut self,
        now: Instant,
        mine: u64,
        mut theirs: impl Iterator<Item = u64>,
    ) -> bool {
        let Some(first) = theirs.next() else {
            self.since = None;
            return false;
        };
        if first == mine || theirs.any(|view| view == mine) {
            *self = Self::default();
            return false;
        }
        let since = *self.since.get_or_insert(now);
        let is_time = now >= since + self.wait;
        if is_time {
            self.since = None;
            self.wait = (2 * self.wait).min(WAIT_MAX);
        }
        is_time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At which seconds it is time, when members show these views all the while.
    fn times(seconds: u64, theirs: &[u64]) -> Vec<u64> {
        let (mut unnoticed, begin) = (Unnoticed::default(), Instant::now());
        let is_time = |second: &u64| {
            let now = begin + Duration::from_secs(*second);
            unnoticed.on_views(now, 7, theirs.iter().copied())
        };
        (0..seconds).filter(is_time).collect()
    }

    #[test]
    fn node_whose_view_nobody_has_starts_anew_and_seldom() {
        assert_eq!(times(75, &[8, 9]), [10, 31, 72]);
    }

    #[test]
    fn one_member_with_the_same_view_is_enough_and_none_is_no_reason() {
        assert_eq!(times(75, &[8, 7]), []);
        assert_eq!(times(75, &[]), []);
    }
}
