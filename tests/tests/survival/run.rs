//! One case: nodes, clients, a sink; and what came of them.
//!
//! The invariant: what ends without a panic lost nothing that was acknowledged, and no client was
//! refused for good.

use crate::Size;
use crate::cluster::Cluster;
use crate::load::{Load, Report, SPANS_OF_A_TRACE};
use crate::sink::{Found, Manner, Sink};
use tracemesh_tests::ports::claim_base_port;
use tracemesh_tests::wait::{DEADLINE, comes_true_within};

/// Runs until the machine left the nodes alone throughout.
const TRIES_MAX: u32 = 5;

/// Nodes under load.
pub(crate) struct Run {
    load: Load,
    pub(crate) cluster: Cluster,
    pub(crate) sink: Sink,
}

/// What came of a run.
pub(crate) struct Outcome {
    report: Report,
    found: Found,
    stand_stills: usize,
}

impl Run {
    /// `count` nodes, a sink that says what it has.
    pub(crate) fn of(count: usize) -> Self {
        Self::start(Cluster::of(count), count, Manner::Honest)
    }

    /// The first `count` nodes of `cluster`, with the load on all of them.
    pub(crate) fn start(mut cluster: Cluster, count: usize, manner: Manner) -> Self {
        let port = claim_base_port();
        let [listen, sink] = [port, port + 1].map(|port| format!("127.0.0.1:{port}"));
        let sink = Sink::start(sink, manner);
        cluster.start_first(count, &sink, &listen);
        let load = Load::start(&cluster, &listen);
        let run = Self { load, cluster, sink };
        run.go_on();
        run
    }

    /// Waits until a second's worth of spans was acknowledged.
    pub(crate) fn go_on(&self) {
        self.cluster.wait_for_acknowledged(Size::asked_for().rate());
    }

    /// Stops the clients, waits until everything came out, and prints what did.
    ///
    /// # Panics
    /// When something that was acknowledged does not, or a client was refused for good.
    pub(crate) fn end(self, case: &str) -> Outcome {
        let Self { load, cluster, sink } = self;
        let report = load.finish();
        let spans = report.count("sent", "spans");
        comes_true_within(DEADLINE, || sink.found().spans == spans);
        let found = sink.found();
        let outcome = Outcome { report, found, stand_stills: cluster.stand_stills() };
        outcome.print(case);
        outcome.assert_all_came();
        outcome
    }
}

impl Outcome {
    fn assert_all_came(&self) {
        let Self { report, found, .. } = self;
        for (section, name) in [
            ("verification", "spans_lost"),
            ("verification", "spans_foreign"),
            ("sent", "spans_refused"),
            ("sent", "spans_rejected"),
            ("sent", "spans_unacknowledged"),
        ] {
            assert_eq!(report.count(section, name), 0, "{name}: {}", report.document());
        }
        // So every span was acknowledged, and the sink need not know which.
        let spans = report.count("sent", "spans");
        assert_eq!((found.traces, found.spans), (spans / SPANS_OF_A_TRACE, spans));
    }

    /// No trace may have come twice or in parts.
    pub(crate) fn assert_once_and_whole(&self) {
        self.assert_once();
        let parts = self.report.count("verification", "traces_in_parts");
        assert_eq!((parts, self.found.traces_in_parts), (0, 0), "{}", self.report.document());
    }

    /// No span may have come again to a sink that had acknowledged it.
    pub(crate) fn assert_once(&self) {
        let twice = self.report.count("verification", "traces_twice");
        assert_eq!((twice, self.found.traces_twice), (0, 0), "{}", self.report.document());
    }

    fn print(&self, case: &str) {
        let Self { report, found, stand_stills } = self;
        let count = |section, name| report.count(section, name);
        eprintln!(
            "{case}: {} spans, lost {} (for the load {}); of {} traces {} twice and {} in parts \
             (for the load {} and {}); longest gap {:.0} ms, {} retries, {} lies of the sink, \
             {stand_stills} stand-stills",
            count("sent", "spans"),
            count("sent", "spans").saturating_sub(found.spans),
            count("verification", "spans_lost"),
            found.traces,
            found.traces_twice,
            found.traces_in_parts,
            count("verification", "traces_twice"),
            count("verification", "traces_in_parts"),
            report.gap(),
            count("sent", "retries"),
            found.lies,
        );
    }
}

/// Runs `case` until the machine let no node stand still meanwhile: what is promised of an orderly
/// change does not hold for one that others took for dead.
pub(crate) fn undisturbed(mut case: impl FnMut() -> Outcome) -> Outcome {
    for _ in 0..TRIES_MAX {
        let outcome = case();
        if outcome.stand_stills == 0 {
            return outcome;
        }
        eprintln!("a node stood still: once more");
    }
    panic!("in {TRIES_MAX} tries some node always stood still");
}
