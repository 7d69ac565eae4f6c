//! What the links between nodes do to a datagram: delay it, lose it, repeat it, cut it off.
//!
//! Pure: told the time, it says when a datagram arrives, and how often. The invariant: every number
//! is drawn for every datagram, needed or not, so that turning one knob does not shift the others;
//! nothing arrives sooner than [`LinkOptions::LATENCY_MIN`] after it was sent; and jitter alone
//! changes no order, because queues on the way do not: only what is held back is overtaken.

use crate::dice::Dice;
use crate::plan::{LinkOptions, NodeNumber};
use std::time::Duration;

/// How far the second copy of a repeated datagram is behind the first.
const REPEATED_AFTER: Duration = Duration::from_micros(700);

/// When the copies of a datagram arrive, since the simulation began; none when it is lost.
pub type Arrivals = [Option<Duration>; 2];

/// All directed links of a cluster.
#[derive(Debug)]
pub struct Links {
    dice: Dice,
    options: LinkOptions,
    node_count: usize,
    /// How many cuts each directed link is under.
    cuts: Vec<u32>,
    /// Until when each directed link is busy, where bandwidth is limited.
    busy_until: Vec<Duration>,
    /// When the last datagram arrives that was not held back.
    last_arrival: Vec<Duration>,
}

impl Links {
    /// Links that all behave alike.
    pub fn new(seed: u64, node_count: usize, options: LinkOptions) -> Self {
        let links = node_count * node_count;
        Self {
            dice: Dice::new(seed, "links"),
            options,
            node_count,
            cuts: vec![0; links],
            busy_until: vec![Duration::ZERO; links],
            last_arrival: vec![Duration::ZERO; links],
        }
    }

    /// All links behave like this from now on.
    pub fn set_options(&mut self, options: LinkOptions) {
        self.options = options;
    }

    /// One more cut of a directed link.
    pub fn cut(&mut self, source: NodeNumber, target: NodeNumber) {
        let link = self.link(source, target);
        self.cuts[link] += 1;
    }

    /// One cut less.
    pub fn mend(&mut self, source: NodeNumber, target: NodeNumber) {
        let link = self.link(source, target);
        self.cuts[link] = self.cuts[link].saturating_sub(1);
    }

    /// What becomes of a datagram of `bytes` that is sent now.
    pub fn carry(
        &mut self,
        now: Duration,
        source: NodeNumber,
        target: NodeNumber,
        bytes: usize,
    ) -> Arrivals {
        let link = self.link(source, target);
        let LinkOptions { latency_us, jitter_us, loss, duplication, reordering, bandwidth, mtu } =
            self.options;
        let lost = self.dice.chance(loss);
        let repeated = self.dice.chance(duplication);
        let held_back = self.dice.chance(reordering);
        let [jitter, hold] = [(); 2].map(|()| self.dice.share());
        if self.cuts[link] > 0 || bytes > mtu || lost {
            return [None; 2];
        }
        let mut sent = now;
        if let Some(nanos) = (bytes as u64 * 1_000_000_000).checked_div(bandwidth) {
            sent = sent.max(self.busy_until[link]) + Duration::from_nanos(nanos);
            self.busy_until[link] = sent;
        }
        let latency = Duration::from_micros(latency_us).max(LinkOptions::LATENCY_MIN);
        let spread = Duration::from_micros(jitter_us);
        let mut arrival = (sent + latency + spread.mul_f64(jitter)).max(self.last_arrival[link]);
        if held_back {
            arrival += (latency + spread).mul_f64(4.0 * hold);
        } else {
            self.last_arrival[link] = arrival;
        }
        [Some(arrival), repeated.then(|| arrival + REPEATED_AFTER)]
    }

    fn link(&self, source: NodeNumber, target: NodeNumber) -> usize {
        source * self.node_count + target
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAD: LinkOptions =
        LinkOptions { loss: 0.1, duplication: 0.1, reordering: 0.1, ..LinkOptions::GOOD };

    fn carried(options: LinkOptions, bytes: usize) -> Vec<Arrivals> {
        let mut links = Links::new(7, 3, options);
        (0..1000).map(|ms| links.carry(Duration::from_millis(ms), 0, 1, bytes)).collect()
    }

    fn delays(options: LinkOptions) -> Vec<Duration> {
        let sent = (0..).map(Duration::from_millis);
        let both = carried(options, 100).into_iter().zip(sent);
        both.filter_map(|([first, _], sent)| Some(first? - sent)).collect()
    }

    #[test]
    fn good_link_delays_and_loses_nothing() {
        let delays = delays(LinkOptions::GOOD);
        assert_eq!(delays.len(), 1000);
        let (least, most) = (Duration::from_millis(2), Duration::from_millis(3));
        assert!(delays.iter().all(|delay| (least..=most).contains(delay)));
    }

    #[test]
    fn bad_link_loses_repeats_and_holds_back_about_as_often_as_it_should() {
        let carried = carried(BAD, 100);
        let lost = carried.iter().filter(|arrivals| arrivals[0].is_none()).count();
        let repeated = carried.iter().filter(|arrivals| arrivals[1].is_some()).count();
        let late = delays(BAD).iter().filter(|delay| **delay > Duration::from_millis(3)).count();
        for count in [lost, repeated, late] {
            assert!((50..150).contains(&count), "{count}");
        }
    }

    #[test]
    fn jitter_alone_changes_no_order() {
        let mut links = Links::new(7, 2, LinkOptions { jitter_us: 5_000, ..LinkOptions::GOOD });
        let arrivals: Vec<_> = (0..100)
            .map(|us| links.carry(Duration::from_micros(us), 0, 1, 100)[0].unwrap())
            .collect();
        assert!(arrivals.is_sorted());
    }

    #[test]
    fn turning_one_knob_does_not_shift_the_others() {
        let calm = carried(LinkOptions { loss: 0.0, ..BAD }, 100);
        for (bad, calm) in carried(BAD, 100).into_iter().zip(calm) {
            // What was lost does not hold up what comes after it.
            assert!(bad[0].is_none() || bad[1].is_some() == calm[1].is_some());
        }
    }

    #[test]
    fn cuts_of_one_direction_add_up() {
        let mut links = Links::new(7, 2, LinkOptions::GOOD);
        let passes =
            |links: &mut Links, from, to| links.carry(Duration::ZERO, from, to, 1)[0].is_some();
        links.cut(0, 1);
        links.cut(0, 1);
        links.mend(0, 1);
        assert!(!passes(&mut links, 0, 1) && passes(&mut links, 1, 0));
        links.mend(0, 1);
        assert!(passes(&mut links, 0, 1));
    }

    #[test]
    fn narrow_link_makes_datagrams_queue_and_a_large_one_does_not_pass() {
        let narrow = LinkOptions { bandwidth: 100_000, jitter_us: 0, ..LinkOptions::GOOD };
        let mut links = Links::new(7, 2, narrow);
        let arrivals = [(); 3].map(|()| links.carry(Duration::ZERO, 0, 1, 1000)[0].unwrap());
        assert_eq!(arrivals.map(|arrival| arrival.as_millis()), [12, 22, 32]);
        assert_eq!(links.carry(Duration::ZERO, 0, 1, narrow.mtu + 1), [None; 2]);
    }
}
