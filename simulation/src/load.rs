//! What clients have to send, and when: traces whose spans are scattered over all clients.
//!
//! Pure: told the time, it says which requests are new. Traces begin evenly, their spans end within
//! `spread_ms`, the root last; each span belongs to a client of its own choice, and a client sends
//! what has ended, at its pace. The same seed and options give the same load, whatever becomes of
//! it.

use crate::dice::Dice;
use crate::history::SpanNumber;
use crate::plan::LoadOptions;
use std::collections::BTreeMap;
use std::time::Duration;

/// A client, by number.
pub type ClientNumber = usize;

/// A new request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Whose.
    pub client: ClientNumber,
    /// What is in it.
    pub spans: Vec<SpanNumber>,
}

/// The load of one simulation.
#[derive(Debug)]
pub struct Load {
    options: LoadOptions,
    dice: Dice,
    until: Duration,
    trace_every: Duration,
    request_every: Duration,
    next_trace: u32,
    /// Spans that are going on, by when they end.
    going_on: BTreeMap<(Duration, SpanNumber), ClientNumber>,
    /// What each client has, and when it sends next.
    ready: Vec<(Duration, Vec<SpanNumber>)>,
}

impl Load {
    /// Traces begin from `from_ms` on until `until`.
    pub fn new(seed: u64, options: &LoadOptions, until: Duration) -> Self {
        let spans_per_second =
            options.clients as f64 * options.requests_per_second * options.spans_per_request as f64;
        let traces_per_second = spans_per_second / options.spans_per_trace as f64;
        let request_every = period(options.requests_per_second, until);
        let clients = u32::try_from(options.clients).unwrap_or(u32::MAX).max(1);
        // Clients do not all send at the same moment.
        let first = |client| request_every / clients * client;
        Self {
            options: options.clone(),
            dice: Dice::new(seed, "load"),
            until,
            trace_every: period(traces_per_second, until),
            request_every,
            next_trace: 0,
            going_on: BTreeMap::new(),
            ready: (0..clients).map(|client| (first(client), Vec::new())).collect(),
        }
    }

    /// The requests that are new by now.
    pub fn offers(&mut self, now: Duration) -> Vec<Offer> {
        if self.options.clients == 0 || self.options.requests_per_second == 0.0 {
            return Vec::new();
        }
        let begin = |trace| self.options.from_ms.duration() + self.trace_every * trace;
        let begun = (self.next_trace..).map(begin).take_while(|at| *at <= now.min(self.until));
        for at in begun.collect::<Vec<_>>() {
            self.begin_trace(at);
        }
        while let Some(head) = self.going_on.first_entry().filter(|head| head.key().0 <= now) {
            let ((_, span), client) = head.remove_entry();
            self.ready[client].1.push(span);
        }
        let mut offers = Vec::new();
        for (client, (at, spans)) in self.ready.iter_mut().enumerate() {
            while *at <= now {
                *at += self.request_every;
                let count = spans.len().min(self.options.spans_per_request);
                if count > 0 {
                    offers.push(Offer { client, spans: spans.drain(..count).collect() });
                }
            }
        }
        offers
    }

    /// Whether nothing will come any more.
    pub fn is_over(&self, now: Duration) -> bool {
        now > self.until
            && self.going_on.is_empty()
            && self.ready.iter().all(|(_, spans)| spans.is_empty())
    }

    fn begin_trace(&mut self, at: Duration) {
        let trace = self.next_trace;
        self.next_trace += 1;
        let rootless = self.dice.chance(self.options.rootless);
        let scattered = self.dice.chance(self.options.scattered);
        let only = self.dice.index(self.options.clients);
        let spread = self.options.spread_ms.duration();
        for span in 0..u16::try_from(self.options.spans_per_trace).unwrap_or(u16::MAX) {
            let any = self.dice.index(self.options.clients);
            let client = if scattered { any } else { only };
            let part = self.dice.share();
            let end = at + if span == 0 { spread } else { spread.mul_f64(part) };
            if span > 0 || !rootless {
                self.going_on.insert((end, SpanNumber { trace, span }), client);
            }
        }
    }
}

/// The time between two of so many a second; longer than `until` when there are none.
fn period(per_second: f64, until: Duration) -> Duration {
    let seconds = 1.0 / per_second;
    Duration::try_from_secs_f64(seconds).unwrap_or(until * 2 + Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Millis;
    use std::collections::BTreeSet;

    fn options() -> LoadOptions {
        LoadOptions {
            from_ms: Millis(0),
            clients: 3,
            requests_per_second: 20.0,
            spans_per_request: 20,
            span_bytes: 500,
            spans_per_trace: 8,
            scattered: 1.0,
            rootless: 0.1,
            spread_ms: Millis(500),
            deadline_ms: Millis(10_000),
            tries_max: 10,
            repeats: 0.0,
        }
    }

    fn offered(seed: u64) -> Vec<(u64, Offer)> {
        let mut load = Load::new(seed, &options(), Duration::from_secs(10));
        let mut offered = Vec::new();
        for ms in (0..).step_by(2) {
            let now = Duration::from_millis(ms);
            offered.extend(load.offers(now).into_iter().map(|offer| (ms, offer)));
            if load.is_over(now) {
                return offered;
            }
        }
        offered
    }

    #[test]
    fn every_span_is_offered_once_and_traces_are_scattered() {
        let offered = offered(7);
        let spans: Vec<_> = offered.iter().flat_map(|(_, offer)| offer.spans.clone()).collect();
        let distinct: BTreeSet<_> = spans.iter().collect();
        assert_eq!(distinct.len(), spans.len());
        let traces = 20 * 20 * 3 * 10 / 8;
        let traces_seen: BTreeSet<_> = spans.iter().map(|span| span.trace).collect();
        assert!(traces_seen.len().abs_diff(traces) <= 1, "{}", traces_seen.len());
        let clients: BTreeSet<_> = offered
            .iter()
            .filter(|(_, offer)| offer.spans.iter().any(|span| span.trace == 5))
            .map(|(_, offer)| offer.client)
            .collect();
        assert!(clients.len() > 1);
        let roots = spans.iter().filter(|span| span.span == 0).count();
        assert!(roots < traces && roots > traces * 8 / 10, "{roots}");
    }

    #[test]
    fn same_seed_gives_the_same_load_at_an_even_pace() {
        let offered_once = offered(7);
        assert_eq!(offered_once, offered(7));
        assert_ne!(offered_once, offered(8));
        let in_second =
            |second: u64| offered_once.iter().filter(|(ms, _)| ms / 1000 == second).count();
        assert!((1..10).all(|second| (50..=60).contains(&in_second(second))));
    }
}
