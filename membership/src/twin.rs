//! Other incarnations of this node's own id.
//!
//! Three things can stand behind one: this node before a restart, which is harmless; this node
//! before its clock and its data directory went back, whose higher generation must be outbid; or a
//! second process with the same id, a cloned host, of which one has to end (rule M5). Only one at
//! another address can be a second process, and it is one if it *answers*: its heartbeat still
//! rises after [`ASK`], which is longer than old heartbeats go round. The newcomer ends: it asks
//! before it joins. The invariant: of two processes with one id at most one stays, and a running
//! node does not end for the sake of one that is joining.
//!
//! Pure. Remembers one line for each such incarnation that gossip lists. It ends nothing itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::belief::Sighting;
use crate::starts::GENERATION_MAX;
use crate::view::MemberState;

/// How long a twin is watched before anything is concluded; gossip reaches 100 nodes in 2 s.
pub(crate) const ASK: Duration = Duration::from_secs(3);

/// A heartbeat that did not rise for so long has stopped: seven rounds of gossip.
const SILENT: Duration = Duration::from_millis(1_500);

/// What to do about the twins, the most pressing first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Advice {
    /// Nothing.
    None,
    /// Do not join yet: a twin may answer.
    Wait,
    /// A former self has a higher generation: start gossip again above it.
    StartAbove(u64),
    /// Another process has this id, and this one has to end.
    InUse(SocketAddr),
}

/// This node as a twin would see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Myself {
    pub(crate) generation: u64,
    pub(crate) mesh_address: SocketAddr,
    pub(crate) state: MemberState,
}

/// The other incarnations of this node's id, and how their hearts beat.
#[derive(Debug, Default)]
pub(crate) struct Twins {
    seen: BTreeMap<(u64, SocketAddr), Watched>,
}

#[derive(Clone, Copy, Debug)]
struct Watched {
    since: Instant,
    heartbeat: u64,
    rose: Option<Instant>,
}

impl Twins {
    /// Takes in the sightings of this node's own id.
    pub(crate) fn on_sightings<'a>(
        &mut self,
        now: Instant,
        me: Myself,
        sightings: impl Iterator<Item = &'a Sighting>,
    ) -> Advice {
        let mut still_seen = BTreeMap::new();
        let mut advice = Advice::None;
        for twin in sightings {
            let key = (twin.generation, twin.mesh_address);
            if key == (me.generation, me.mesh_address) || twin.generation > GENERATION_MAX {
                continue;
            }
            let mut watched = self.seen.get(&key).copied().unwrap_or(Watched {
                since: now,
                heartbeat: twin.heartbeat,
                rose: None,
            });
            if twin.heartbeat > watched.heartbeat {
                watched.heartbeat = twin.heartbeat;
                watched.rose = Some(now);
            }
            still_seen.insert(key, watched);
            advice = advice.max(advise(now, me, twin, watched));
        }
        self.seen = still_seen;
        advice
    }
}

fn advise(now: Instant, me: Myself, twin: &Sighting, watched: Watched) -> Advice {
    // Clocks may tick together; then the addresses make a difference that both see alike.
    let above_me = (twin.generation, twin.mesh_address) > (me.generation, me.mesh_address);
    if twin.mesh_address == me.mesh_address {
        return if above_me { Advice::StartAbove(twin.generation) } else { Advice::None };
    }
    let asked = now >= watched.since + ASK;
    let answers = watched.rose.is_some_and(|rose| now < rose + SILENT);
    let state = twin.published.as_ref().map(|published| published.state);
    let has_joined = state.is_some_and(|state| state != MemberState::Joining);
    match me.state {
        MemberState::Joining if !asked => Advice::Wait,
        MemberState::Joining if answers => {
            // Of two newcomers the later one ends.
            if has_joined || !above_me { Advice::InUse(twin.mesh_address) } else { Advice::Wait }
        }
        MemberState::Joining if above_me => Advice::StartAbove(twin.generation),
        MemberState::Joining => Advice::None,
        MemberState::Active | MemberState::Leaving => {
            if !asked || !above_me {
                Advice::None
            } else if answers && has_joined {
                Advice::InUse(twin.mesh_address)
            } else if watched.rose.is_none() {
                Advice::StartAbove(twin.generation)
            } else {
                // A newcomer that is about to end, or has ended: never this node.
                Advice::None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::belief::tests::{address, sighting};
    use crate::keys::Published;

    const STEP: Duration = Duration::from_millis(200);

    fn myself(state: MemberState) -> Myself {
        Myself { generation: 10, mesh_address: address(1), state }
    }

    fn twin(generation: u64, port: u16, state: MemberState) -> Sighting {
        let mut twin = sighting("me", generation);
        twin.mesh_address = address(port);
        twin.published = twin.published.map(|published| Published { state, ..published });
        twin
    }

    /// The advice after each step, the twin's heart beating for the first `beats` of them.
    fn watch(me: Myself, mut twin: Sighting, beats: usize) -> Vec<Advice> {
        let (mut twins, start) = (Twins::default(), Instant::now());
        let steps = (ASK.as_millis() / STEP.as_millis()) as usize + 15;
        (0..steps)
            .map(|step| {
                if step < beats {
                    twin.heartbeat += 1;
                }
                twins.on_sightings(start + STEP * step as u32, me, [&twin].into_iter())
            })
            .collect()
    }

    fn last(me: Myself, twin: Sighting, beats: usize) -> Advice {
        watch(me, twin, beats).pop().unwrap()
    }

    const JOINING: MemberState = MemberState::Joining;
    const ACTIVE: MemberState = MemberState::Active;
    const ALWAYS: usize = usize::MAX;

    #[test]
    fn a_newcomer_ends_when_another_address_answers_with_its_id() {
        for generation in [9, 10, 11] {
            let advice = watch(myself(JOINING), twin(generation, 2, ACTIVE), ALWAYS);
            assert_eq!(advice[0], Advice::Wait);
            assert_eq!(advice.last(), Some(&Advice::InUse(address(2))));
            assert!(!advice.iter().any(|advice| matches!(advice, Advice::StartAbove(_))));
        }
    }

    #[test]
    fn a_newcomer_joins_when_its_former_address_has_fallen_silent() {
        let advice = watch(myself(JOINING), twin(9, 2, ACTIVE), 3);
        assert_eq!(advice[0], Advice::Wait);
        assert_eq!(advice.last(), Some(&Advice::None));
    }

    #[test]
    fn a_node_whose_clock_went_back_starts_above_its_former_self() {
        let above = Advice::StartAbove(11);
        assert_eq!(watch(myself(JOINING), twin(11, 1, ACTIVE), 0)[0], above);
        assert_eq!(watch(myself(ACTIVE), twin(11, 1, ACTIVE), 0)[0], above);
        assert_eq!(last(myself(JOINING), twin(11, 2, ACTIVE), 2), above);
        assert_eq!(last(myself(ACTIVE), twin(11, 2, ACTIVE), 0), above);
    }

    #[test]
    fn a_former_self_is_passed_over() {
        for state in [JOINING, ACTIVE] {
            assert_eq!(last(myself(state), twin(9, 1, ACTIVE), ALWAYS), Advice::None);
        }
        assert_eq!(last(myself(ACTIVE), twin(9, 2, ACTIVE), ALWAYS), Advice::None);
    }

    #[test]
    fn a_running_node_does_not_end_for_a_newcomer() {
        for beats in [3, 20, ALWAYS] {
            let advice = watch(myself(ACTIVE), twin(11, 2, JOINING), beats);
            assert!(advice.iter().all(|advice| *advice == Advice::None), "{beats}: {advice:?}");
        }
    }

    #[test]
    fn of_two_that_joined_in_two_parts_of_a_cut_mesh_the_older_start_ends() {
        let advice = last(myself(ACTIVE), twin(11, 2, ACTIVE), ALWAYS);
        assert_eq!(advice, Advice::InUse(address(2)));
        assert_eq!(last(myself(ACTIVE), twin(9, 2, ACTIVE), ALWAYS), Advice::None);
    }

    #[test]
    fn of_two_newcomers_the_later_one_ends() {
        let advice = last(myself(JOINING), twin(9, 2, JOINING), ALWAYS);
        assert_eq!(advice, Advice::InUse(address(2)));
        assert_eq!(last(myself(JOINING), twin(11, 2, JOINING), ALWAYS), Advice::Wait);
    }

    #[test]
    fn an_invented_generation_is_passed_over() {
        let twin = twin(GENERATION_MAX + 1, 1, ACTIVE);
        assert_eq!(last(myself(ACTIVE), twin, ALWAYS), Advice::None);
    }
}
