//! One simulation: machines, clients and faults, driven in lock step through virtual time.
//!
//! In every step the world acts first (faults, clients), then every node gets its turn, in the
//! order of their numbers, and then the nodes are looked at. A step is no longer than the shortest
//! way of a datagram, so nothing that one node says in a step could have reached another in the
//! same step. The invariant: what happens depends on the plan and on nothing else; so everything
//! here is ordered, and whatever is random is drawn from the plan's seed.
//!
//! First the **safety** phase, in which anything may go wrong; then the **liveness** phase: faults
//! are over, and the healed cluster has to finish everything within a bound.

mod faults;

use crate::allocator;
use crate::client::{Act, Client};
use crate::entropy;
use crate::events::{self, Events};
use crate::history::{Answer, Ending, History, Life, Look, RequestNumber, ViewSeen, What};
use crate::host::{AnswerSlot, Exporting, Host, Said};
use crate::link::Links;
use crate::load::Load;
use crate::network::Network;
use crate::plan::{Fault, LinkOptions, Millis, NodeNumber, Plan, Timed};
use crate::sink::Arrival;
use crate::spans;
use anyhow::Context;
use bytes::Bytes;
use faults::Schedule;
use std::cell::Cell;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tempfile::TempDir;
use tracemesh::ingest::{Accepted, Refusal};
use tracemesh::node::{End, Observer};
use tracemesh_membership::MemberState;

/// How often the healed cluster is asked whether it is finished.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// What came of a simulation.
#[derive(Debug)]
pub struct Outcome {
    /// What was seen.
    pub history: History,
    /// The hash over all events, and their number.
    pub hash: (u64, u64),
}

/// What else a run is told; nothing of it changes what happens.
#[derive(Default)]
pub struct Watching {
    /// Gets a line for every event.
    pub event_log: Option<Box<dyn Write + Send>>,
    /// The simulation ends here, if it did not before.
    pub until: Option<Millis>,
}

/// Runs a plan in a thread of its own, whose randomness comes from the plan's seed. The same plan
/// gives the same outcome in every process that runs just one; a second one in the same process may
/// differ, because the runtime counts its instances.
///
/// # Errors
/// The plan makes no sense, or the machine has no room.
pub fn run(plan: Plan, watching: Watching) -> anyhow::Result<Outcome> {
    plan.check()?;
    let simulate = move || {
        entropy::seed_this_thread(plan.seed);
        Cluster::new(plan, watching)?.run()
    };
    let thread = std::thread::Builder::new().name("simulation".to_owned()).spawn(simulate);
    match thread.context("no thread for the simulation")?.join() {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

thread_local! {
    /// The time of the step that the cluster of this thread is in.
    static PRESENT: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// The virtual time of the simulation that runs in this thread, to within a step; zero elsewhere.
pub fn present() -> Duration {
    PRESENT.get()
}

/// A send of a client that is under way.
struct Flying {
    client: usize,
    request: RequestNumber,
    node: NodeNumber,
    answer: AnswerSlot,
    exporting: Exporting,
}

struct Cluster {
    now: Duration,
    step: Duration,
    until: Duration,
    hosts: Vec<Host>,
    network: Network,
    clients: Vec<Client>,
    load: Load,
    requests: Vec<(usize, Bytes)>,
    flying: Vec<Flying>,
    schedule: Schedule,
    history: History,
    events: Arc<Mutex<Events>>,
    lives: Vec<LifeSeen>,
    _data: TempDir,
}

/// What was seen of the present process of a machine.
#[derive(Clone, Default)]
struct LifeSeen {
    view: Option<ViewSeen>,
    ready: bool,
    memory_at_ready: i64,
    draining: bool,
}

impl Cluster {
    fn new(plan: Plan, watching: Watching) -> anyhow::Result<Self> {
        let events = Arc::new(Mutex::new(Events::new(watching.event_log)));
        let node_count = plan.all_nodes().end;
        let links = Links::new(plan.seed, node_count, plan.link);
        let network = Network::new(node_count, links, Arc::clone(&events));
        let data = tempfile::tempdir().context("no directory for the nodes' data")?;
        let hosts = plan.all_nodes().map(|number| {
            let directory = data.path().join(format!("{number}"));
            let replicas = plan.cluster.replicas;
            let disagrees =
                |timed: &Timed| matches!(timed.fault, Fault::Disagree { node } if node == number);
            let differs = plan.faults.iter().any(disagrees);
            let replicas = if differs { 1 - replicas } else { replicas };
            Host::new(&plan, number, network.clone(), &directory, replicas)
        });
        let hosts = hosts.collect::<anyhow::Result<Vec<_>>>()?;
        let client = |number| Client::new(plan.seed, number, plan.nodes, &plan.load);
        let until = plan.safety_ms.duration() + plan.liveness_ms.duration();
        let until = watching.until.map_or(until, |at| at.duration().min(until));
        Ok(Self {
            now: Duration::ZERO,
            step: step(&plan),
            until,
            network,
            clients: (0..plan.load.clients).map(client).collect(),
            load: Load::new(plan.seed, &plan.load, plan.safety_ms.duration()),
            requests: Vec::new(),
            flying: Vec::new(),
            schedule: Schedule::new(&plan),
            lives: vec![LifeSeen::default(); hosts.len()],
            history: History::new(plan, hosts[0].hash_key()),
            hosts,
            events,
            _data: data,
        })
    }

    fn run(mut self) -> anyhow::Result<Outcome> {
        for node in 0..self.history.plan.nodes {
            self.start(node);
        }
        let healed = self.history.plan.safety_ms.duration();
        let mut ask_at = healed;
        while self.now < self.until {
            if self.now >= ask_at {
                ask_at += ASK_EVERY;
                if self.is_finished() {
                    break;
                }
            }
            self.advance();
        }
        self.history.healed_at = self.history.plan.safety_ms;
        self.history.ended_at = self.now.into();
        for node in 0..self.hosts.len() {
            self.look_last(node);
        }
        if let Some(complaint) = self.hosts.iter().find_map(|host| host.sink().complaint()) {
            anyhow::bail!("what a sink was given is not what was sent: {complaint}");
        }
        let mut events = lock(&self.events);
        events.finish().context("the log of events cannot be written")?;
        let hash = events.hash();
        drop(events);
        Ok(Outcome { history: self.history, hash })
    }

    /// One step.
    fn advance(&mut self) {
        PRESENT.set(self.now);
        self.apply_faults();
        self.offer();
        self.hear_answers();
        self.let_clients_act();
        let until = self.now + self.step;
        for (node, host) in self.hosts.iter_mut().enumerate() {
            let _node = tracing::info_span!("", node).entered();
            match self.schedule.turn_of(node) {
                faults::Turn::Normal => host.turn(until),
                faults::Turn::None => {}
                faults::Turn::Late => host.late_turn(self.now, until),
            }
        }
        self.now = until;
        for node in 0..self.hosts.len() {
            self.look(node);
        }
    }

    fn offer(&mut self) {
        for offer in self.load.offers(self.now) {
            let number = RequestNumber::try_from(self.requests.len()).unwrap_or(u32::MAX);
            let plan = &self.history.plan;
            let bytes = spans::request(plan.seed, &offer.spans, plan.load.span_bytes);
            self.requests.push((offer.client, bytes));
            self.clients[offer.client].offer(self.now, number);
            self.note(What::Offered { request: number, spans: offer.spans });
        }
    }

    fn hear_answers(&mut self) {
        let hosts = &self.hosts;
        let is_over =
            |flying: &Flying| flying.answer.get().is_some() || !hosts[flying.node].is_up();
        let (over, still): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.flying).into_iter().partition(is_over);
        self.flying = still;
        for Flying { client, request, node, answer, .. } in over {
            let (answer, wish, view) = match answer.get() {
                Some(Said { answer, view }) => {
                    let (answer, wish) = answer_of(answer);
                    (answer, wish, Some(*view))
                }
                None => (Answer::Broken, None, None),
            };
            let acts = self.clients[client].on_answer(self.now, request, node, answer, wish);
            self.act(client, acts, view);
        }
    }

    fn let_clients_act(&mut self) {
        for client in 0..self.clients.len() {
            let acts = self.clients[client].acts(self.now);
            self.act(client, acts, None);
        }
    }

    /// Does what a client does; an answer was given in this view.
    fn act(&mut self, client: usize, acts: Vec<Act>, view: Option<u64>) {
        for act in acts {
            match act {
                Act::Send(request, node) => self.send(client, request, node),
                Act::Cancel(request, node) => {
                    self.flying.retain(|flying| {
                        let meant = (flying.request, flying.node) == (request, node);
                        if meant {
                            flying.exporting.abort();
                        }
                        !meant
                    });
                }
                Act::Told(request, node, answer) => {
                    self.note(What::Told { request, node, answer, view });
                }
                Act::GaveUp(request) => self.note(What::GaveUp { request }),
            }
        }
    }

    fn send(&mut self, client: usize, request: RequestNumber, node: NodeNumber) {
        self.note(What::Sent { request, node });
        let bytes = self.requests[request as usize].1.clone();
        if let Some((answer, exporting)) = self.hosts[node].send(bytes) {
            self.flying.push(Flying { client, request, node, answer, exporting });
            return;
        }
        let now = self.now;
        let acts = self.clients[client].on_answer(now, request, node, Answer::Broken, None);
        self.act(client, acts, None);
    }

    fn start(&mut self, node: NodeNumber) {
        if self.hosts[node].is_up() {
            return;
        }
        self.lives[node] = LifeSeen::default();
        let event = match self.hosts[node].start(self.now) {
            Ok(()) => Life::Started,
            Err(why) => {
                self.schedule.start_again(node, self.now);
                Life::Failed(why)
            }
        };
        self.note(What::Life { node, event });
    }

    fn crash(&mut self, node: NodeNumber) {
        if self.hosts[node].is_up() {
            self.close_account(node);
            self.hosts[node].crash();
            self.note(What::Life { node, event: Life::Crashed });
        }
    }

    /// Looks at a node from outside: did it end, what does it believe, what did its sink get.
    fn look(&mut self, node: NodeNumber) {
        self.look_at_views(node);
        // After the views, because who exports may just have become the owner.
        self.look_at_exports(node);
        if let Some(ended) = self.hosts[node].ended() {
            let ending = match ended {
                Ok(End::Drained) => Ending::Drained,
                Ok(End::Left { span_count, .. }) => Ending::Spooled(span_count),
                Ok(End::Lost { span_count, .. }) => Ending::Left(span_count),
                Ok(End::Refused(why)) => Ending::Refused(format!("{why:?}")),
                Ok(End::Panicked(task)) => Ending::Panicked(task.to_owned()),
                Err(panic) => Ending::Panicked(panic),
            };
            self.close_account(node);
            self.note(What::Life { node, event: Life::Ended(ending) });
            self.schedule.ended(node, self.now);
        }
    }

    fn look_at_views(&mut self, node: NodeNumber) {
        let Some(observer) = self.hosts[node].observer() else { return };
        if !observer.has_changed() {
            return;
        }
        let (view, state) = (view_seen(observer), observer.status().state);
        if self.lives[node].view.as_ref() != Some(&view) {
            self.lives[node].view = Some(view.clone());
            self.note(What::View { node, view });
        }
        if state == MemberState::Active && !self.lives[node].ready {
            self.lives[node].ready = true;
            self.lives[node].memory_at_ready = allocator::mark(node);
            self.note(What::Life { node, event: Life::Ready });
        }
    }

    fn look_at_exports(&mut self, node: NodeNumber) {
        for arrival in self.hosts[node].sink().take_arrivals() {
            let Arrival { spans, late, kept, said, heard_at } = arrival;
            let words = [2, node as u64, spans.len() as u64, u64::from(spans[0].trace)];
            let text = format_args!("{node} exports {spans:?}: {said:?}");
            lock(&self.events).add(self.now, &words, text);
            let heard_at = heard_at.into();
            let what = What::Export { node, spans, late, kept, said, heard_at };
            self.history.add(self.now.into(), what);
        }
    }

    /// Writes down how much memory a process took, before it is gone.
    fn close_account(&mut self, node: NodeNumber) {
        if self.lives[node].ready {
            let (_, peak) = allocator::balance(node);
            let grown = u64::try_from(peak - self.lives[node].memory_at_ready).unwrap_or(0);
            let known = self.history.memory_peaks.entry(node).or_default();
            *known = grown.max(*known);
        }
    }

    fn look_last(&mut self, node: NodeNumber) {
        self.close_account(node);
        let former = self.hosts[node].former_counters().clone();
        self.history.former_counters.insert(node, former);
        let at = self.now.into();
        let Some(observer) = self.hosts[node].observer() else { return };
        let (view, held) = (view_seen(observer), observer.held());
        let (unplaced, settled) = (observer.unplaced(), observer.has_settled());
        let counters = observer.counters();
        let look = Look { at, view, held, unplaced, settled, counters };
        self.history.last_looks.insert(node, look);
    }

    /// Whether nothing is left to do: the load is over and told, nobody holds anything or has
    /// anything to hand over, and all nodes have one view.
    fn is_finished(&mut self) -> bool {
        let told = self.load.is_over(self.now)
            && self.clients.iter().all(|client| client.open_count() == 0)
            && self.schedule.is_over();
        let ready = |(host, life): (&Host, &LifeSeen)| !host.is_up() || life.ready;
        if !told || !self.hosts.iter().zip(&self.lives).all(ready) {
            return false;
        }
        let mut views = Vec::new();
        for (host, life) in self.hosts.iter_mut().zip(&self.lives) {
            let Some(observer) = host.observer() else { continue };
            let is_placed = observer.unplaced() == 0 && observer.has_settled();
            if life.draining || observer.held() != [0; 3] || !is_placed {
                return false;
            }
            views.push(observer.view().hash());
        }
        views.windows(2).all(|pair| pair[0] == pair[1])
    }

    fn note(&mut self, what: What) {
        let text = match &what {
            What::Offered { request, spans } => format!("offered {request}: {} spans", spans.len()),
            other => format!("{other:?}"),
        };
        lock(&self.events).add(self.now, &[3, events::word(&text)], format_args!("{text}"));
        self.history.add(self.now.into(), what);
    }
}

fn view_seen(observer: &mut Observer) -> ViewSeen {
    let view = observer.view();
    let number = |id: &str| id.strip_prefix("node-")?.parse().ok();
    let members = view.members().iter().filter_map(|member| {
        let incarnation = member.incarnation;
        Some((number(member.id.as_str())?, incarnation.generation, incarnation.epoch))
    });
    ViewSeen { hash: view.hash(), members: members.collect() }
}

fn answer_of(said: &Result<Accepted, Refusal>) -> (Answer, Option<Duration>) {
    match said {
        Ok(Accepted { refused_span_count: 0, .. }) => (Answer::Accepted, None),
        Ok(_) | Err(Refusal::Malformed(_) | Refusal::TooLarge(_) | Refusal::Unauthenticated) => {
            (Answer::Refused, None)
        }
        Err(Refusal::Later { after, .. }) => (Answer::Later, Some(*after)),
    }
}

/// The shortest way of a datagram in this plan, in whole milliseconds.
fn step(plan: &Plan) -> Duration {
    let faulty = plan.faults.iter().filter_map(|timed| match &timed.fault {
        Fault::Links { link, .. } => Some(link.latency_us),
        _ => None,
    });
    let shortest = faulty.chain([plan.link.latency_us]).min().unwrap_or(0);
    Duration::from_millis(shortest / 1000).max(LinkOptions::LATENCY_MIN)
}

fn lock(events: &Mutex<Events>) -> MutexGuard<'_, Events> {
    events.lock().unwrap_or_else(PoisonError::into_inner)
}
