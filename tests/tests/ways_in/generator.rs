//! The collector's own load generator, `telemetrygen`.

use crate::mesh::Mesh;
use std::process::Command;
use tracemesh_tests::program::Program;
use tracemesh_tests::{parts, readme};

/// Spans of a trace: the root and seven children.
pub(crate) const SPANS_OF_A_TRACE: usize = 8;
/// Levels of its log at which it tells of exports that failed.
const FAILURES: [&str; 3] = ["\tWARN\t", "\tERROR\t", "\tFATAL\t"];

/// `telemetrygen` with arguments that send to `address`; `None` without Go.
pub(crate) fn command(address: &str, arguments: &[&str]) -> Option<Command> {
    let mut command = Command::new(parts::telemetrygen()?);
    command.args(["traces", "--otlp-endpoint", address, "--otlp-insecure"]);
    // It waits longer than its ten seconds between two tries.
    command.env("OTEL_EXPORTER_OTLP_TIMEOUT", "60000");
    command.args(["--child-spans", &(SPANS_OF_A_TRACE - 1).to_string()]).args(arguments);
    Some(command)
}

/// Sends `traces` traces as fast as it goes.
pub(crate) fn send(mesh: &Mesh, address: &str, traces: usize) -> Option<()> {
    // Its own default is one span a second.
    let mut command = command(address, &["--rate", "0", "--traces", &traces.to_string()])?;
    Program::run("telemetrygen", mesh.host.path(), &mut command).succeeded();
    Some(())
}

/// What it printed tells of no failed export; returns how many spans it says that it sent.
#[track_caller]
pub(crate) fn assert_no_error(printed: &str) -> usize {
    let failed = |line: &&str| FAILURES.iter().any(|failure| line.contains(failure));
    assert_eq!(printed.lines().find(failed), None);
    let generated = printed.lines().filter_map(|line| {
        let (_, count) = line.split_once("traces generated")?.1.split_once("\"traces\": ")?;
        count.trim_end_matches('}').parse::<usize>().ok()
    });
    SPANS_OF_A_TRACE * generated.sum::<usize>()
}

#[test]
fn telemetrygen_sends_for_twenty_seconds_without_an_error() {
    let Some(telemetrygen) = parts::telemetrygen() else { return };
    let mesh = Mesh::start();
    let text = mesh.here(&readme::text("telemetrygen"));
    let mut words = text.split_whitespace();
    assert_eq!(words.next(), Some("telemetrygen"));
    let mut command = Command::new(telemetrygen);
    let ended = Program::run("telemetrygen", mesh.host.path(), command.args(words));
    let spans = assert_no_error(&ended.succeeded());
    mesh.assert_came_out(spans, SPANS_OF_A_TRACE);
}
