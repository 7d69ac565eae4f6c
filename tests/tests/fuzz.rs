//! What is fuzzed holds of some thousand inputs with each change.

use std::process::Command;

#[test]
fn properties_hold_of_seeds_that_are_changed_and_of_noise() {
    let ended = Command::new(env!("CARGO_BIN_EXE_fuzz")).output().expect("it can be started");
    let said = [ended.stdout, ended.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    assert!(ended.status.success(), "{}", said.concat());
    assert_eq!(said.concat().matches("holds of 2000 inputs").count(), 4, "{}", said.concat());
}
