//! Plans that once failed, each with its story. What they found was mended, and stays so.
//!
//! They are kept as plans and not as seeds, because what a seed draws changes with the drawing.

use std::path::Path;
use std::process::Command;

/// The name of a plan in `seeds/`, and what it found.
const STORIES: [(&str, &str); 2] = [
    (
        "same_generation",
        "a node that starts again with the generation that it had before was taken for its dead \
         former life for as long as that one had lived",
    ),
    (
        "abandoned_frames",
        "frames of calls that were given up went on to be sent, so that on a lossy path a pause \
         of one node left all of them busy with what nobody waited for",
    ),
];

#[test]
fn what_was_mended_stays_mended() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/seeds");
    for (name, story) in STORIES {
        let plan = directory.join(name).with_extension("json");
        let mut program = Command::new(env!("CARGO_BIN_EXE_tracemesh-sim"));
        let output = program.args(["replay", "--plan"]).arg(&plan).output();
        let output = output.expect("the simulator can be run");
        let said = String::from_utf8_lossy(&output.stdout);
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "again {story}:\n{said}{complained}");
    }
}

#[test]
fn every_plan_has_its_story() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/seeds");
    let files = std::fs::read_dir(directory).expect("plans are kept there");
    let names = files.map(|file| file.expect("a file").path());
    let mut names: Vec<_> =
        names.map(|path| path.file_stem().unwrap().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    let mut told = STORIES.map(|(name, _)| name.to_owned());
    told.sort_unstable();
    assert_eq!(names, told);
}
