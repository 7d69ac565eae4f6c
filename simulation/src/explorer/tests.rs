//! What the explorer promises of itself: it finds nothing where nothing is planted, and everything
//! that is.

use super::bugs::Bug;
use super::check::{LICENCES, Licence};
use super::directed::{DIRECTED, EXCUSED, directed};
use super::rows::ROWS;
use super::schedule::{Played, Schedule};
use super::search::{SMALL, search};
use super::setting::{Atlas, Plan, Setting};
use super::story::story;
use super::walk::{Twist, walk};
use super::witness::{Facts, Invariant};
use super::world::{Action, World};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::time::Instant;

static ATLAS: LazyLock<Arc<Atlas>> = LazyLock::new(|| Arc::new(Atlas::new()));

/// Within so many walks every planted bug is caught that has no schedule.
const WALKS_MAX: u64 = 2000;

#[test]
fn walks_break_no_promise() {
    let (mut accepted, mut finished) = (0, 0);
    for seed in 0..4000 {
        let ended = walk(seed, Twist::default(), &ATLAS, |_, _, _| {});
        assert_eq!(ended.violation, None, "seed {seed}");
        accepted += ended.accepted;
        finished += ended.finished;
    }
    // Refusing everything, or losing everything with an excuse, would break no promise either.
    assert!(accepted > 8000, "{accepted} spans acknowledged");
    assert!(finished * 100 > accepted * 99, "{finished} of {accepted} spans finished");
}

/// Walks that broke a promise once, and what was wrong.
const SEEDS: [(u64, &str); 2] = [
    (2374, "a marked Hold did not mark what it names"),
    (10_250_865, "an attempt whose spans became done elsewhere held up later ones for ever"),
];

#[test]
fn walks_that_once_broke_a_promise_keep_it() {
    for (seed, story) in SEEDS {
        let ended = walk(seed, Twist::default(), &ATLAS, |_, _, _| {});
        assert_eq!(ended.violation, None, "seed {seed}: {story}");
    }
}

#[test]
fn every_planted_bug_without_a_schedule_is_caught_by_walks() {
    for bug in Bug::ALL.into_iter().filter(|&bug| directed(bug).is_none()) {
        let caught = (0..WALKS_MAX).find(|&seed| {
            walk(seed, Twist::planted(bug), &ATLAS, |_, _, _| {}).violation.is_some()
        });
        assert!(caught.is_some(), "{bug:?} is not caught by {WALKS_MAX} walks");
    }
}

#[test]
fn small_worlds_are_searched_completely() {
    for name in ["calm", "pair-crash", "pair-loss", "pair-sink"] {
        let small = SMALL.iter().find(|small| small.name == name).unwrap();
        let seen = search(small.setting(None), &ATLAS, 100_000);
        assert_eq!(seen.violation, None, "{name}");
        assert!(seen.complete && seen.states > 500 && seen.rests > 0, "{name}: {seen:?}");
    }
}

#[test]
fn search_tells_the_way_to_a_planted_bug() {
    let calm = SMALL.iter().find(|small| small.name == "calm").unwrap();
    let seen = search(calm.setting(Some(Bug::AcknowledgeOwnerAlone)), &ATLAS, 100_000);
    let (violation, story) = seen.violation.unwrap();
    assert_eq!(violation.invariant, Invariant::Acknowledged);
    assert!(story.starts_with("   0 client → a: trace 0 spans 1\n"), "{story}");
}

#[test]
fn same_seed_tells_the_same_story() {
    for seed in [3, 26, 1097] {
        assert_eq!(story(seed, Twist::default(), &ATLAS), story(seed, Twist::default(), &ATLAS));
    }
}

#[test]
fn fingerprint_knows_no_absolute_time() {
    let begin = Instant::now();
    let world = |base| {
        let setting = Setting { work: vec![vec![(0, 1)], vec![(0, 2)]], ..Setting::default() };
        World::new(Arc::new(Plan::new(setting, Arc::clone(&ATLAS), base)))
    };
    let (mut early, mut late) = (world(begin), world(begin + Duration::from_secs(12_345)));
    assert_eq!(early.fingerprint(), late.fingerprint());
    let steps = [Action::Submit(0), Action::Deliver(0), Action::Timer(0), Action::Submit(1)];
    for action in steps {
        early.apply(action);
        late.apply(action);
        assert_eq!(early.fingerprint(), late.fingerprint(), "{action:?}");
    }
    // Time that passes counts only when it makes something due.
    let before = late.fingerprint();
    late.nodes[1].now += Duration::from_secs(1);
    assert_eq!(late.fingerprint(), before);
    late.nodes[1].now += Duration::from_secs(60);
    assert_ne!(late.fingerprint(), before);
}

#[test]
fn fingerprint_knows_no_order_of_messages() {
    let small = SMALL.iter().find(|small| small.name == "two").unwrap();
    let plan = Arc::new(Plan::new(small.setting(None), Arc::clone(&ATLAS), Instant::now()));
    let mut world = World::new(plan);
    world.apply(Action::Submit(0));
    world.apply(Action::Submit(0));
    let before = world.fingerprint();
    assert!(world.messages.len() > 1);
    world.messages.reverse();
    assert_eq!(world.fingerprint(), before);
    world.messages.pop();
    assert_ne!(world.fingerprint(), before);
}

#[test]
fn excuse_that_is_withheld_is_missed() {
    let walks_need = |number| {
        let twist = Twist { bug: None, withheld: Some(number) };
        (0..WALKS_MAX).any(|seed| walk(seed, twist, &ATLAS, |_, _, _| {}).violation.is_some())
    };
    let unanswered = |licence: &Licence| licence.facts == Facts::UNANSWERED;
    let unanswered = LICENCES.iter().position(unanswered).unwrap();
    assert!(walks_need(unanswered), "{:?}", LICENCES[unanswered]);
}

/// Plays a schedule; what was broken, and the story.
#[track_caller]
fn play(schedule: &Schedule, twist: Twist) -> Played {
    schedule.play(twist, &ATLAS).unwrap_or_else(|e| panic!("{}\n{}{e}", schedule.name, e.story))
}

/// A schedule breaks nothing by itself, and `broken` when something is twisted.
#[track_caller]
fn assert_breaks(schedule: &Schedule, twist: Twist, broken: Invariant) {
    let played = play(schedule, Twist::default());
    assert_eq!(played.violation, None, "{}\n{}", schedule.name, played.story);
    let played = play(schedule, twist);
    let invariant = played.violation.map(|violation| violation.invariant);
    assert_eq!(invariant, Some(broken), "{}, {twist:?}\n{}", schedule.name, played.story);
}

#[test]
fn directed_schedules_catch_their_bugs_and_break_nothing_without() {
    for directed in DIRECTED {
        for &bug in directed.bugs {
            assert_breaks(&directed.schedule, Twist::planted(bug), directed.broken);
        }
    }
}

#[test]
fn excused_schedules_need_their_excuses() {
    for excused in EXCUSED {
        let licence = excused.licence().unwrap();
        assert_breaks(&excused.schedule, Twist::withheld(licence), excused.invariant);
    }
}

#[test]
fn every_row_of_what_happens_when_is_played_as_promised() {
    for row in ROWS {
        let played = play(&row.schedule, Twist::default());
        let told = format!("{}\n{}", row.schedule.name, played.story);
        assert_eq!((played.violation, played.exports), (None, row.exports), "{told}");
    }
}

/// The cases of PROTOCOL.md's table "What happens when".
fn cases() -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../.github/PROTOCOL.md");
    let text = std::fs::read_to_string(path).unwrap();
    let section = text.split("\n## ").find(|part| part.starts_with("What happens when\n"));
    let rows = section.unwrap().lines().filter(|line| line.starts_with("| "));
    rows.skip(1).map(|row| row.split('|').nth(1).unwrap().trim().to_owned()).collect()
}

#[test]
fn every_row_of_what_happens_when_has_a_schedule() {
    let names: Vec<&str> = ROWS.iter().map(|row| row.schedule.name).collect();
    assert_eq!(cases(), names);
}

#[test]
fn every_row_of_what_happens_when_has_a_test_of_the_core() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../node/src/shard/tests/rows.rs");
    let text = std::fs::read_to_string(path).unwrap();
    let tests = text.lines().filter_map(|line| line.strip_prefix("fn ")?.strip_suffix("() {"));
    let words = |case: &str| {
        let letters = case.to_lowercase();
        let words = letters.split(|c: char| !c.is_ascii_alphanumeric());
        words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join("_")
    };
    let named: Vec<String> = cases().iter().map(|case| words(case)).collect();
    assert_eq!(tests.collect::<Vec<_>>(), named);
}
