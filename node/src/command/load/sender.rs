//! Sends a plan's requests at their pace and adds up what becomes of them.
//!
//! One loop starts deliveries, at most `requests_in_flight` at a time, and takes their ends; it
//! owns the [`Tally`], and a delivery owns nothing but its request. A request that is late because
//! too many are under way still counts its latency from when it was due, so that a system that
//! stands still is not measured by the requests that were never sent.
//!
//! It ends when the schedule does and every delivery has ended; or, since then nobody listens,
//! when a first request was given up before any was acknowledged.

use super::arrivals::Arrivals;
use super::client::{Client, Delivery, End, Outgoing};
use super::generator::Generator;
use super::plan::{Plan, Schedule};
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::select;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// The largest latency that is told apart, in microseconds: far beyond giving up.
const LATENCY_MAX: u64 = 3_600_000_000;
/// Digits of a latency that are kept.
const LATENCY_DIGITS: u8 = 3;

/// How fast and how long to send.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Spans a second; `None` for as many as are acknowledged.
    pub(super) rate: Option<f64>,
    /// Requests that are not yet acknowledged, at most.
    pub(super) requests_in_flight: usize,
    /// When to begin no further traces; `None` to send the whole plan.
    pub(super) duration: Option<Duration>,
}

/// What was sent and what became of it.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) requests_sent: u64,
    pub(super) spans_sent: u64,
    pub(super) bytes_sent: u64,
    pub(super) requests_acknowledged: u64,
    pub(super) spans_acknowledged: u64,
    /// Of requests that a target will never take.
    pub(super) spans_refused: u64,
    /// Refused for good inside of requests that were acknowledged (partial success).
    pub(super) spans_rejected: u64,
    /// Of requests that were given up.
    pub(super) spans_unacknowledged: u64,
    /// Tries after the first of each request.
    pub(super) retries: u64,
    /// Failures of tries by their name.
    pub(super) failures: BTreeMap<String, u64>,
    /// The last failure that ended a request, as a sentence.
    pub(super) last_failure: Option<String>,
    /// From when a request was due to its acknowledgement, in microseconds.
    pub(super) latency: Histogram<u64>,
    /// The longest time between two acknowledgements.
    pub(super) gap_max: Duration,
    /// From the first request to the end of the last.
    pub(super) elapsed: Duration,
    /// Traces that were begun.
    pub(super) trace_count: u64,
    acknowledged_last: Option<Instant>,
}

impl Tally {
    fn new() -> Self {
        Self {
            requests_sent: 0,
            spans_sent: 0,
            bytes_sent: 0,
            requests_acknowledged: 0,
            spans_acknowledged: 0,
            spans_refused: 0,
            spans_rejected: 0,
            spans_unacknowledged: 0,
            retries: 0,
            failures: BTreeMap::new(),
            last_failure: None,
            latency: Histogram::new_with_bounds(1, LATENCY_MAX, LATENCY_DIGITS)
                .expect("the constants are bounds that a histogram accepts"),
            gap_max: Duration::ZERO,
            elapsed: Duration::ZERO,
            trace_count: 0,
            acknowledged_last: None,
        }
    }

    fn on_sent(&mut self, outgoing: &Outgoing) {
        self.requests_sent += 1;
        self.spans_sent += outgoing.span_count;
        self.bytes_sent += outgoing.bytes.len() as u64;
    }

    fn on_delivery(&mut self, delivery: &Delivery) {
        let is_acknowledged = matches!(delivery.end, End::Acknowledged { .. });
        let final_failures = usize::from(!is_acknowledged);
        self.retries += delivery.failures.len().saturating_sub(final_failures) as u64;
        for failure in &delivery.failures {
            *self.failures.entry(failure.label()).or_default() += 1;
        }
        match delivery.end {
            End::Acknowledged { refused_span_count } => {
                self.requests_acknowledged += 1;
                self.spans_acknowledged += delivery.span_count;
                self.spans_rejected += refused_span_count;
                self.latency.saturating_record(delivery.latency.as_micros() as u64);
                if let Some(last) = self.acknowledged_last.replace(delivery.at) {
                    self.gap_max = self.gap_max.max(delivery.at.duration_since(last));
                }
            }
            End::Refused => self.spans_refused += delivery.span_count,
            End::GivenUp => self.spans_unacknowledged += delivery.span_count,
        }
        if !is_acknowledged {
            self.last_failure = delivery.failures.last().map(ToString::to_string);
        }
    }

    /// A request was given up, and none was ever acknowledged.
    fn is_hopeless(&self) -> bool {
        self.requests_acknowledged == 0 && self.spans_unacknowledged > 0
    }
}

/// Sends requests.
#[derive(Debug)]
pub(super) struct Sender {
    pub(super) plan: Plan,
    pub(super) schedule: Schedule,
    pub(super) generator: Generator,
    pub(super) client: Arc<Client>,
    pub(super) pace: Pace,
    /// Nanoseconds since 1970.
    pub(super) wall_clock: fn() -> u64,
}

impl Sender {
    /// Sends all, tells the ledger what is acknowledged, and says what became of it. At the first
    /// interrupt no further traces are begun, at the second nothing is waited for.
    pub(super) async fn send(
        mut self,
        arrivals: &Arrivals,
        interrupts: &mut mpsc::Receiver<()>,
    ) -> Tally {
        let begin = Instant::now();
        let end = self.pace.duration.map(|duration| begin + duration);
        let (mut due, mut is_closed) = (begin, false);
        let mut next = self.next_request();
        let mut deliveries = JoinSet::new();
        let mut tally = Tally::new();
        while next.is_some() || !deliveries.is_empty() {
            let may_start = deliveries.len() < self.pace.requests_in_flight;
            select! {
                biased;
                Some(()) = interrupts.recv() => {
                    if is_closed {
                        break;
                    }
                    is_closed = true;
                    self.schedule.close();
                }
                () = sleep_until(end.unwrap_or(begin)), if end.is_some() && !is_closed => {
                    is_closed = true;
                    self.schedule.close();
                }
                Some(delivery) = deliveries.join_next() => {
                    let delivery: Delivery = delivery.expect("deliveries are not aborted");
                    tally.on_delivery(&delivery);
                    if let End::Acknowledged { .. } = delivery.end {
                        arrivals.with(|ledger| ledger.on_acknowledged(delivery.number));
                    }
                    if tally.is_hopeless() {
                        self.schedule.close();
                        next = None;
                    }
                }
                () = sleep_until(due), if may_start && next.is_some() => {
                    let Some(number) = next else { continue };
                    let outgoing = self.outgoing(number, due);
                    due = self.due_after(&outgoing);
                    tally.on_sent(&outgoing);
                    let client = Arc::clone(&self.client);
                    deliveries.spawn(async move { client.deliver(outgoing).await });
                    next = self.next_request();
                }
            }
        }
        tally.spans_unacknowledged =
            tally.spans_sent - tally.spans_acknowledged - tally.spans_refused;
        tally.elapsed = begin.elapsed();
        tally.trace_count = self.plan.trace_count(self.schedule.window_count());
        tally
    }

    /// The next request that has spans: of a small window, or the last, some have none.
    fn next_request(&mut self) -> Option<u64> {
        let plan = self.plan;
        self.schedule.find(|request| plan.spans_of(*request).next().is_some())
    }

    fn outgoing(&mut self, number: u64, due: Instant) -> Outgoing {
        let (bytes, span_count) = self.generator.request(number, (self.wall_clock)());
        let due = match self.pace.rate {
            Some(_) => due,
            None => Instant::now(),
        };
        Outgoing { number, target: self.plan.target_of(number), bytes, span_count, due }
    }

    fn due_after(&self, outgoing: &Outgoing) -> Instant {
        match self.pace.rate {
            Some(rate) => outgoing.due + Duration::from_secs_f64(outgoing.span_count as f64 / rate),
            None => outgoing.due,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::Failure;
    use super::*;

    fn acknowledged(at: Instant, latency: u64, failures: Vec<Failure>) -> Delivery {
        Delivery {
            number: 0,
            span_count: 512,
            end: End::Acknowledged { refused_span_count: 0 },
            at,
            latency: Duration::from_millis(latency),
            failures,
        }
    }

    #[test]
    fn longest_gap_lies_between_two_acknowledgements() {
        let (begin, mut tally) = (Instant::now(), Tally::new());
        for milliseconds in [700, 710, 1110, 1120] {
            let at = begin + Duration::from_millis(milliseconds);
            tally.on_delivery(&acknowledged(at, 3, Vec::new()));
        }
        assert_eq!(tally.gap_max, Duration::from_millis(400));
        assert_eq!(tally.spans_acknowledged, 4 * 512);
        assert_eq!(tally.latency.value_at_quantile(0.99) / 10, 300);
    }

    #[test]
    fn retries_are_tries_after_the_first() {
        let target = "http://127.0.0.1:1".parse::<tonic::transport::Uri>().unwrap();
        let failures = vec![Failure::Deadline { target }; 3];
        let mut tally = Tally::new();
        tally.on_delivery(&acknowledged(Instant::now(), 3, failures.clone()));
        assert_eq!((tally.retries, tally.failures["deadline"]), (3, 3));
        let given_up = Delivery { end: End::GivenUp, ..acknowledged(Instant::now(), 3, failures) };
        tally.on_delivery(&given_up);
        assert_eq!((tally.retries, tally.failures["deadline"]), (5, 6));
        assert_eq!(tally.spans_unacknowledged, 512);
        assert!(!tally.is_hopeless());
    }
}
