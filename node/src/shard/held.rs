//! What a shard holds, in sums: spans by role, traces, and since when.
//!
//! Kept by whoever changes a trace, so that nobody has to look through all of them. The invariant:
//! each trace of which something is held counts once, under the role that the present view gives
//! it, or the last one if it was not looked at since, and the second in which it began to be held.
//! Bounded by one entry for each second and role in which a trace that is still held began.

use super::Role;
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    spans: [u64; 3],
    traces: u64,
    /// By role: seconds since the shard's start, and how many traces began to be held then.
    began: [BTreeMap<u32, u32>; 3],
}

impl Held {
    /// A trace that began to be held at `since` holds `after` spans and no longer `before`.
    pub(super) fn change(&mut self, role: Role, since: u32, before: u32, after: u32) {
        let spans = &mut self.spans[role as usize];
        *spans = *spans + u64::from(after) - u64::from(before);
        let began = &mut self.began[role as usize];
        match (before, after) {
            (0, 1..) => {
                self.traces += 1;
                *began.entry(since).or_default() += 1;
            }
            (1.., 0) => {
                self.traces -= 1;
                if let Some(count) = began.get_mut(&since) {
                    *count -= 1;
                    if *count == 0 {
                        began.remove(&since);
                    }
                }
            }
            (0, 0) | (1.., 1..) => {}
        }
    }

    /// As owner, as replica, as stand-in.
    pub(super) fn spans(&self) -> [u64; 3] {
        self.spans
    }

    pub(super) fn traces(&self) -> u64 {
        self.traces
    }

    /// By role, the second in which the oldest trace that is held began to be.
    pub(super) fn oldest(&self) -> [Option<u32>; 3] {
        self.began.each_ref().map(|began| began.first_key_value().map(|(&since, _)| since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_is_that_of_the_first_second_with_something_held() {
        let mut held = Held::default();
        for (since, spans) in [(7, 3), (5, 1), (5, 2)] {
            held.change(Role::Owner, since, 0, spans);
        }
        held.change(Role::Replica, 9, 0, 1);
        assert_eq!(held.oldest(), [Some(5), Some(9), None]);
        held.change(Role::Owner, 5, 1, 0);
        held.change(Role::Owner, 5, 2, 1);
        assert_eq!((held.oldest()[0], held.spans(), held.traces()), (Some(5), [4, 1, 0], 3));
        held.change(Role::Owner, 5, 1, 0);
        assert_eq!((held.oldest()[0], held.traces()), (Some(7), 2));
    }
}
