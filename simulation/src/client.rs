//! Clients that behave as OTLP exporters do: send, wait, send the same bytes elsewhere, give up.
//!
//! Pure: told the time and what was answered, a client says what to send where. The invariant: a
//! request has one send under way at most, and the client knows of each request whether it was
//! accepted, given up, or neither yet. Bounded by the load; nothing is limited here, because a real
//! exporter's queue is not what is tested.

use crate::dice::Dice;
use crate::history::{Answer, RequestNumber};
use crate::plan::{LoadOptions, NodeNumber};
use std::collections::BTreeMap;
use std::time::Duration;

/// After a broken connection or an answer "later": gRPC's own reconnect is about as quick.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// A repetition of an accepted request comes at most so much later.
const REPEATED_AFTER_MAX: u64 = 3000;

/// What a client does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Send this request to this node; the deadline runs from now.
    Send(RequestNumber, NodeNumber),
    /// Nobody waits any more for this send.
    Cancel(RequestNumber, NodeNumber),
    /// The request was told this.
    Told(RequestNumber, NodeNumber, Answer),
    /// The request will not be sent again.
    GaveUp(RequestNumber),
}

#[derive(Debug)]
struct Open {
    state: Waiting,
    tries: u32,
    /// Sent again although it was accepted.
    repeated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    ToSend(Duration),
    ForAnswer { from: NodeNumber, until: Duration },
}

/// One exporter.
#[derive(Debug)]
pub struct Client {
    options: LoadOptions,
    dice: Dice,
    node_count: usize,
    /// The node that it speaks to; another one after every failure.
    node: NodeNumber,
    open: BTreeMap<RequestNumber, Open>,
}

impl Client {
    /// A client of nodes 0 to `node_count`, which begins with `node`.
    pub fn new(seed: u64, node: NodeNumber, node_count: usize, options: &LoadOptions) -> Self {
        let dice = Dice::new(seed, &format!("client {node}"));
        let node = node % node_count;
        Self { options: options.clone(), dice, node_count, node, open: BTreeMap::new() }
    }

    /// A new request.
    pub fn offer(&mut self, now: Duration, request: RequestNumber) {
        let repeated = false;
        self.open.insert(request, Open { state: Waiting::ToSend(now), tries: 0, repeated });
    }

    /// Requests that are neither accepted nor given up.
    pub fn open_count(&self) -> usize {
        self.open.values().filter(|open| !open.repeated).count()
    }

    /// A node answered. An answer that nobody waits for any more changes nothing.
    pub fn on_answer(
        &mut self,
        now: Duration,
        request: RequestNumber,
        node: NodeNumber,
        answer: Answer,
        wish: Option<Duration>,
    ) -> Vec<Act> {
        let Some(open) = self.open.get_mut(&request) else { return Vec::new() };
        if !matches!(open.state, Waiting::ForAnswer { from, .. } if from == node) {
            return Vec::new();
        }
        let mut acts = vec![Act::Told(request, node, answer)];
        match answer {
            Answer::Accepted if !open.repeated && self.dice.chance(self.options.repeats) => {
                let after = Duration::from_millis(self.dice.below(REPEATED_AFTER_MAX));
                open.repeated = true;
                open.state = Waiting::ToSend(now + after);
                self.node = (node + 1) % self.node_count;
            }
            Answer::Accepted | Answer::Refused => {
                self.open.remove(&request);
            }
            Answer::Later | Answer::Broken | Answer::Nothing => {
                acts.extend(self.again(request, node, now + wish.unwrap_or(AGAIN_AFTER)));
            }
        }
        acts
    }

    /// What is to be done by now.
    pub fn acts(&mut self, now: Duration) -> Vec<Act> {
        let mut acts = Vec::new();
        let late =
            |open: &Open| matches!(open.state, Waiting::ForAnswer { until, .. } if until <= now);
        let late: Vec<_> =
            self.open.iter().filter(|(_, open)| late(open)).map(|(number, _)| *number).collect();
        for request in late {
            let Some(Waiting::ForAnswer { from, .. }) = self.open.get(&request).map(|o| o.state)
            else {
                continue;
            };
            acts.push(Act::Cancel(request, from));
            acts.extend(self.on_answer(now, request, from, Answer::Nothing, Some(Duration::ZERO)));
        }
        let until = now + self.options.deadline_ms.duration();
        for (request, open) in &mut self.open {
            if matches!(open.state, Waiting::ToSend(at) if at <= now) {
                open.state = Waiting::ForAnswer { from: self.node, until };
                open.tries += 1;
                acts.push(Act::Send(*request, self.node));
            }
        }
        acts
    }

    /// Sends a request again at `at` and to another node, or gives it up.
    fn again(&mut self, request: RequestNumber, node: NodeNumber, at: Duration) -> Option<Act> {
        if self.node == node {
            self.node = (node + 1) % self.node_count;
        }
        let open = self.open.get_mut(&request)?;
        if open.tries < self.options.tries_max {
            open.state = Waiting::ToSend(at);
            return None;
        }
        let repeated = open.repeated;
        self.open.remove(&request);
        // What was accepted once is not given up.
        (!repeated).then_some(Act::GaveUp(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Millis;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn client(repeats: f64) -> Client {
        let options = LoadOptions {
            from_ms: Millis(0),
            clients: 1,
            requests_per_second: 1.0,
            spans_per_request: 1,
            span_bytes: 1,
            spans_per_trace: 1,
            scattered: 1.0,
            rootless: 0.0,
            spread_ms: Millis(0),
            deadline_ms: Millis(1000),
            tries_max: 3,
            repeats,
        };
        let mut client = Client::new(7, 0, 3, &options);
        client.offer(ms(0), 1);
        assert_eq!(client.acts(ms(0)), [Act::Send(1, 0)]);
        client
    }

    #[test]
    fn accepted_request_is_over() {
        let mut client = client(0.0);
        let acts = client.on_answer(ms(5), 1, 0, Answer::Accepted, None);
        assert_eq!(acts, [Act::Told(1, 0, Answer::Accepted)]);
        assert_eq!(client.open_count(), 0);
        assert_eq!(client.acts(ms(5000)), []);
    }

    #[test]
    fn request_told_later_is_sent_elsewhere_when_its_wish_is_over() {
        let mut client = client(0.0);
        client.on_answer(ms(5), 1, 0, Answer::Later, Some(ms(2000)));
        assert_eq!(client.acts(ms(2004)), []);
        assert_eq!(client.acts(ms(2005)), [Act::Send(1, 1)]);
        client.on_answer(ms(2010), 1, 1, Answer::Broken, None);
        assert_eq!(client.acts(ms(2110)), [Act::Send(1, 2)]);
        let acts = client.on_answer(ms(2200), 1, 2, Answer::Later, None);
        assert_eq!(acts, [Act::Told(1, 2, Answer::Later), Act::GaveUp(1)]);
    }

    #[test]
    fn silence_until_the_deadline_cancels_and_a_late_answer_changes_nothing() {
        let mut client = client(0.0);
        assert_eq!(client.acts(ms(999)), []);
        let told = Act::Told(1, 0, Answer::Nothing);
        assert_eq!(client.acts(ms(1000)), [Act::Cancel(1, 0), told, Act::Send(1, 1)]);
        assert_eq!(client.on_answer(ms(1001), 1, 0, Answer::Accepted, None), []);
        assert_eq!(client.open_count(), 1);
    }

    #[test]
    fn accepted_request_is_repeated_elsewhere_once_when_told_so() {
        let mut client = client(1.0);
        client.on_answer(ms(5), 1, 0, Answer::Accepted, None);
        assert_eq!(client.open_count(), 0);
        assert_eq!(client.acts(ms(5 + REPEATED_AFTER_MAX)), [Act::Send(1, 1)]);
        client.on_answer(ms(6000), 1, 1, Answer::Accepted, None);
        assert_eq!(client.acts(ms(10_000)), []);
    }
}
