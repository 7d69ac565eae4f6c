//! Lives of nodes: who is alive, who was dropped, who could accept.

use super::*;

#[test]
fn life_that_goes_on_as_an_earlier_one_is_found() {
    let others: Vec<_> = (0..NODES).map(|node| (node, 1, 0)).collect();
    for (incarnation, is_found) in [((1, 0), true), ((1, 1), false), ((2, 0), false)] {
        let mut after = others.clone();
        after[3] = (3, incarnation.0, incarnation.1);
        let mut begun = Told::calm();
        begun.life(10_000, 3, Life::Crashed);
        begun.life(11_000, 3, Life::Started);
        begun.life(12_000, 3, Life::Ready);
        let mut woken = Told::calm();
        woken.life(10_000, 3, Life::Paused);
        woken.life(12_000, 3, Life::Woken);
        for mut told in [begun, woken] {
            (0..NODES).for_each(|node| told.view_of(12_500, node, &after));
            let verdict = told.judge();
            if is_found {
                assert_only(&verdict, Invariant::IncarnationsGrow, 1);
            } else {
                assert_green(&verdict);
            }
        }
    }
}

#[test]
fn member_that_began_again_is_not_dropped_alive() {
    // The others drop the former life of node 1 when the new one has just begun.
    for (restart, is_licensed) in [(Some(1_000), false), (None, true)] {
        let mut told = Told::calm();
        twice(&mut told, 2_100, SinkSaid::Acknowledged, (2_300, 1));
        if let Some(restart) = restart {
            told.life(restart - 500, 1, Life::Crashed);
            told.life(restart, 1, Life::Started);
            told.view(restart, 1, &[0, 1, 2, 3, 4]);
            told.life(restart, 1, Life::Ready);
        }
        told.view(2_200, 0, &[0, 2, 3, 4]);
        told.view(2_900, 0, &[0, 1, 2, 3, 4]);
        let licensed = told.judge().licensed.contains_key(&Licence::LiveNodeDropped);
        assert_eq!(licensed, is_licensed, "{restart:?}");
    }
}

#[test]
fn where_nobody_was_active_nobody_could_accept() {
    for (restart, is_green) in [(5_000, true), (900, false)] {
        let mut told = Told::calm();
        for node in 0..NODES {
            told.life(500, node, Life::Crashed);
            told.life(800, node, Life::Started);
            told.life(restart, node, Life::Ready);
            let members: Vec<_> = (0..NODES).map(|node| (node, 2, 0)).collect();
            told.view_of(restart, node, &members);
        }
        for trace in 0..20 {
            let request = told.request;
            told.request(1_000, 0, all_spans(trace), Answer::Later);
            told.add(6_000, What::GaveUp { request });
        }
        assert_eq!(told.judge().is_green(), is_green);
    }
}
