//! Which spans are sent in which request to which target, and what their ids are.
//!
//! The generator writes from this plan and the verification reads from it, so neither needs a list
//! of ids: the invariant is that every id, request and target is a pure function of the plan and
//! that ids can be turned back into (trace, span). Traces are numbered from 0. A *window* of
//! traces fills a number of requests, a multiple of the number of targets; the spans of each of
//! its traces are dealt out over these requests in turn, so that every trace meets every target
//! (when it has as many spans) and its root is sent first, last or in the middle.
//!
//! It holds no state but [`Schedule`]'s position, and nothing here is random: a seed makes the ids
//! of a run differ from those of another.

use std::time::Duration;

/// Bits of a span's number inside its trace, in a span id.
const SPAN_BITS: u32 = 20;

/// The most spans that a trace can have.
pub(super) const SPANS_PER_TRACE_MAX: u64 = 1 << SPAN_BITS;

/// The most traces of a run: with [`SPAN_BITS`] they fill a span id but for its top bit, which the
/// keys set, so that no id is ever zero.
const TRACE_COUNT_MAX: u64 = 1 << (63 - SPAN_BITS);

/// Sets the top bit of a key, which no number that it is combined with has.
const TOP_BIT: u64 = 1 << 63;

/// A span: the number of its trace in the run, and its own in the trace; 0 is the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SpanNumber {
    /// Less than the number of traces.
    pub(super) trace: u64,
    /// Less than the number of spans of a trace.
    pub(super) span: u64,
}

/// The whole run, as numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    trace_keys: [u64; 2],
    span_key: u64,
    spans_per_trace: u64,
    trace_count: u64,
    target_count: u64,
    window_traces: u64,
    window_requests: u64,
}

/// What a plan is made from; every number at least 1.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Makes the ids of two runs differ.
    pub(super) seed: u64,
    /// At most [`SPANS_PER_TRACE_MAX`].
    pub(super) spans_per_trace: u64,
    /// `None` for a run that ends by the clock.
    pub(super) trace_count: Option<u64>,
    /// Number of targets.
    pub(super) target_count: u64,
    /// Spans of a request; kept to where traces and targets divide it, else nearly.
    pub(super) request_spans: u64,
}

impl Plan {
    /// Lays out a run.
    pub(super) fn new(shape: Shape) -> Self {
        let Shape { seed, spans_per_trace, trace_count, target_count, request_spans } = shape;
        // A trace that is bigger than one request to every target needs several rounds of them.
        let rounds = spans_per_trace.div_ceil(request_spans * target_count);
        let window_requests = target_count * rounds;
        Self {
            trace_keys: [mix(seed) | TOP_BIT, mix(seed ^ 0x7472_6163_6573) | TOP_BIT],
            span_key: mix(seed ^ 0x0073_7061_6e73) | TOP_BIT,
            spans_per_trace,
            trace_count: trace_count.unwrap_or(TRACE_COUNT_MAX).min(TRACE_COUNT_MAX),
            target_count,
            window_traces: (request_spans * window_requests / spans_per_trace).max(1),
            window_requests,
        }
    }

    /// The trace id of a trace.
    pub(super) fn trace_id(&self, trace: u64) -> [u8; 16] {
        let mut id = [0; 16];
        for (half, key) in id.chunks_exact_mut(8).zip(self.trace_keys) {
            half.copy_from_slice(&mix(trace ^ key).to_be_bytes());
        }
        id
    }

    /// The span id of a span, as the big-endian number that it is written as.
    pub(super) fn span_id(&self, number: SpanNumber) -> u64 {
        mix((number.trace << SPAN_BITS | number.span) ^ self.span_key)
    }

    /// The span with these ids; `None` when they are not of this run, or not of one span.
    pub(super) fn span_number(&self, trace_id: &[u8], span_id: &[u8]) -> Option<SpanNumber> {
        let (high, low) = trace_id.split_first_chunk::<8>()?;
        let low = low.try_into().ok()?;
        let [high_trace, low_trace] = [(*high, self.trace_keys[0]), (low, self.trace_keys[1])]
            .map(|(half, key)| unmix(u64::from_be_bytes(half)) ^ key);
        let span = unmix(u64::from_be_bytes(span_id.try_into().ok()?)) ^ self.span_key;
        let number =
            SpanNumber { trace: span >> SPAN_BITS, span: span & (SPANS_PER_TRACE_MAX - 1) };
        let ours = high_trace == low_trace
            && high_trace == number.trace
            && number.trace < self.trace_count
            && number.span < self.spans_per_trace;
        ours.then_some(number)
    }

    /// The number of a span among all spans of the run.
    pub(super) fn position(&self, number: SpanNumber) -> u64 {
        number.trace * self.spans_per_trace + number.span
    }

    /// The request that a span is sent in.
    pub(super) fn request_of(&self, number: SpanNumber) -> u64 {
        let window = number.trace / self.window_traces;
        window * self.window_requests + (number.trace + number.span) % self.window_requests
    }

    /// The spans of a request; neighbours are of different traces where there are several.
    pub(super) fn spans_of(&self, request: u64) -> impl Iterator<Item = SpanNumber> + use<> {
        let Self { window_requests, spans_per_trace, .. } = *self;
        let (window, turn) = (request / window_requests, request % window_requests);
        let first = window * self.window_traces;
        let end = (first + self.window_traces).min(self.trace_count);
        (0..spans_per_trace).flat_map(move |span| {
            // The first trace of the window with (trace + span) % window_requests == turn.
            let skipped =
                (turn + window_requests - (first + span) % window_requests) % window_requests;
            (first + skipped..end)
                .step_by(window_requests as usize)
                .map(move |trace| SpanNumber { trace, span })
        })
    }

    /// The spans of a trace.
    pub(super) fn spans_of_trace(&self, trace: u64) -> impl Iterator<Item = SpanNumber> + use<> {
        (0..self.spans_per_trace).map(move |span| SpanNumber { trace, span })
    }

    /// The target that a request is sent to first.
    pub(super) fn target_of(&self, request: u64) -> usize {
        let (window, turn) = (request / self.window_requests, request % self.window_requests);
        ((window + turn) % self.target_count) as usize
    }

    /// How many windows lie between two requests of the same window, so that the spans of a trace
    /// are sent over about `trace_time` when `request_interval` lies between two requests.
    pub(super) fn lag(&self, trace_time: Duration, request_interval: Duration) -> u64 {
        let steps = (self.window_requests - 1) * self.window_requests;
        if steps == 0 || request_interval.is_zero() {
            return 0;
        }
        (trace_time.as_secs_f64() / request_interval.as_secs_f64() / steps as f64).round() as u64
    }

    /// The order in which requests are sent.
    pub(super) fn schedule(&self, lag: u64) -> Schedule {
        Schedule {
            window_requests: self.window_requests,
            window_count: self.trace_count.div_ceil(self.window_traces),
            lag,
            step: 0,
            turn: 0,
        }
    }

    /// The number of traces in the first `window_count` windows.
    pub(super) fn trace_count(&self, window_count: u64) -> u64 {
        window_count.saturating_mul(self.window_traces).min(self.trace_count)
    }
}

/// Requests in the order in which they are sent: step by step one request of each of several
/// windows, `lag` windows apart.
#[derive(Debug)]
pub(super) struct Schedule {
    window_requests: u64,
    /// Windows from here on are not sent.
    window_count: u64,
    lag: u64,
    step: u64,
    /// Less than `window_requests`.
    turn: u64,
}

impl Schedule {
    /// Begins no further window; those begun are sent to their end.
    pub(super) fn close(&mut self) {
        let begun = if self.turn == 0 { self.step } else { self.step + 1 };
        self.window_count = self.window_count.min(begun);
    }

    /// The windows that are sent, as far as is known.
    pub(super) fn window_count(&self) -> u64 {
        self.window_count
    }
}

impl Iterator for Schedule {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let last_lag = (self.window_requests - 1) * self.lag;
        while self.window_count > 0 && self.step < self.window_count + last_lag {
            let (step, turn) = (self.step, self.turn);
            self.turn = (turn + 1) % self.window_requests;
            self.step += u64::from(self.turn == 0);
            match step.checked_sub(turn * self.lag) {
                Some(window) if window < self.window_count => {
                    return Some(window * self.window_requests + turn);
                }
                Some(_) | None => {}
            }
        }
        None
    }
}

/// The finalizer of SplitMix64: one to one, and every bit of the result depends on every bit.
pub(super) fn mix(number: u64) -> u64 {
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

/// Undoes [`mix`]: the steps backwards, with the factors' inverses modulo 2^64.
fn unmix(number: u64) -> u64 {
    let number = (number ^ number >> 31 ^ number >> 62).wrapping_mul(0x3196_42b2_d24d_8ec3);
    let number = (number ^ number >> 27 ^ number >> 54).wrapping_mul(0x96de_1b17_3f11_9089);
    number ^ number >> 30 ^ number >> 60
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn shape(targets: u64, spans_per_trace: u64, request_spans: u64, traces: u64) -> Shape {
        Shape {
            seed: 7,
            spans_per_trace,
            trace_count: Some(traces),
            target_count: targets,
            request_spans,
        }
    }

    proptest! {
        #[test]
        fn ids_turn_back_into_numbers(
            seed: u64, trace in 0..TRACE_COUNT_MAX, span in 0..SPANS_PER_TRACE_MAX,
        ) {
            let spans_per_trace = SPANS_PER_TRACE_MAX;
            let shape = Shape { seed, trace_count: None, ..shape(1, spans_per_trace, 512, 1) };
            let plan = Plan::new(shape);
            let number = SpanNumber { trace, span };
            let span_id = plan.span_id(number).to_be_bytes();
            prop_assert_eq!(plan.span_number(&plan.trace_id(trace), &span_id), Some(number));
            let other = Plan::new(Shape { seed: seed ^ 1, ..shape });
            prop_assert_eq!(other.span_number(&plan.trace_id(trace), &span_id), None);
        }

        #[test]
        fn every_span_is_in_exactly_one_request_of_the_schedule(
            targets in 1_u64..6, spans_per_trace in 1_u64..40, request_spans in 1_u64..30,
            traces in 1_u64..60, lag in 0_u64..4,
        ) {
            let plan = Plan::new(shape(targets, spans_per_trace, request_spans, traces));
            let mut seen = BTreeSet::new();
            for request in plan.schedule(lag) {
                for number in plan.spans_of(request) {
                    prop_assert_eq!(plan.request_of(number), request);
                    prop_assert!(seen.insert(number));
                }
            }
            prop_assert_eq!(seen.len() as u64, traces * spans_per_trace);
        }
    }

    #[test]
    fn every_trace_meets_every_target_in_full_requests() {
        for targets in [1, 2, 3, 5, 8] {
            let plan = Plan::new(shape(targets, 8, 512, 512 * targets));
            let mut targets_of = BTreeMap::<u64, BTreeSet<usize>>::new();
            for request in plan.schedule(0) {
                assert_eq!(plan.spans_of(request).count(), 512, "{targets} targets");
                for number in plan.spans_of(request) {
                    targets_of.entry(number.trace).or_default().insert(plan.target_of(request));
                }
            }
            assert!(targets_of.values().all(|of_trace| of_trace.len() as u64 == targets));
        }
    }

    #[test]
    fn giant_trace_is_sent_in_several_requests_to_each_target() {
        let plan = Plan::new(shape(3, 20_000, 512, 2));
        let largest = plan.schedule(0).map(|request| plan.spans_of(request).count()).max();
        assert!((400..=512).contains(&largest.unwrap()));
    }

    #[test]
    fn roots_are_sent_first_and_last_and_in_between() {
        let plan = Plan::new(shape(3, 8, 512, 192));
        let turns: BTreeSet<_> =
            (0..192).map(|trace| plan.request_of(SpanNumber { trace, span: 0 })).collect();
        assert_eq!(turns, BTreeSet::from([0, 1, 2]));
    }

    #[test]
    fn closed_schedule_finishes_the_windows_that_it_began() {
        let plan = Plan::new(Shape { trace_count: None, ..shape(3, 8, 512, 1) });
        for sent in 0..30 {
            let mut schedule = plan.schedule(2);
            let mut requests: Vec<_> = schedule.by_ref().take(sent).collect();
            schedule.close();
            requests.extend(schedule.by_ref());
            requests.sort_unstable();
            let traces = plan.trace_count(schedule.window_count());
            let wanted: BTreeSet<_> = (0..traces)
                .flat_map(|trace| (0..8).map(move |span| SpanNumber { trace, span }))
                .map(|number| plan.request_of(number))
                .collect();
            assert_eq!(requests, Vec::from_iter(wanted));
        }
    }

    #[test]
    fn lag_spreads_a_trace_over_the_time_asked_for() {
        let plan = Plan::new(shape(3, 8, 512, 192 * 200));
        let interval = Duration::from_millis(25);
        let order: Vec<_> = plan.schedule(plan.lag(Duration::from_secs(5), interval)).collect();
        // Requests 300 to 302 are window 100, far from both ends.
        let at = |request| order.iter().position(|sent| *sent == request).unwrap() as u32;
        let spread = interval * (at(302) - at(300));
        assert!(spread.abs_diff(Duration::from_secs(5)) < Duration::from_millis(200));
    }
}
