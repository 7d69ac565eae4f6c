//! Memberships on an in-memory network under virtual time: real gossip, no socket.
//!
//! Which peers gossip picks is random, so the bounds here are what must hold for any choice.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::SystemTime;

use tokio::time::{sleep, timeout};

use super::*;
use crate::gossip::tests::{invented, opening};
use crate::slot::{HashKey, Slot};
use crate::starts::StartStore;
use crate::view::{MemberState, View, Weight};

const QUEUE: usize = 1_024;
const SOON: Duration = Duration::from_secs(8);

/// Carries messages at once, except across a cut.
#[derive(Clone, Default)]
struct Network(Arc<Mutex<Links>>);

#[derive(Default)]
struct Links {
    inboxes: BTreeMap<SocketAddr, mpsc::Sender<(SocketAddr, Bytes)>>,
    cut: BTreeSet<SocketAddr>,
    tasks: JoinSet<()>,
}

impl Network {
    /// A carrier for this address; whoever had the address before is unplugged.
    fn plug(&self, address: SocketAddr) -> Carrier {
        let (outgoing, mut sent) = mpsc::channel::<(SocketAddr, Bytes)>(QUEUE);
        let (inbox, incoming) = mpsc::channel(QUEUE);
        let own_inbox = inbox.clone();
        lock(&self.0).inboxes.insert(address, inbox);
        let network = self.clone();
        let carry = async move {
            while let Some((to, bytes)) = sent.recv().await {
                network.deliver(&own_inbox, address, to, bytes);
            }
        };
        lock(&self.0).tasks.spawn(carry);
        Carrier { outgoing, incoming }
    }

    fn deliver(
        &self,
        own_inbox: &mpsc::Sender<(SocketAddr, Bytes)>,
        from: SocketAddr,
        to: SocketAddr,
        bytes: Bytes,
    ) {
        let links = lock(&self.0);
        let plugged = links.inboxes.get(&from).is_some_and(|inbox| inbox.same_channel(own_inbox));
        let passes = plugged && !links.cut.contains(&from) && !links.cut.contains(&to);
        if let Some(inbox) = links.inboxes.get(&to).filter(|_| passes) {
            let _ = inbox.try_send((from, bytes));
        }
    }

    fn unplug(&self, address: SocketAddr) {
        lock(&self.0).inboxes.remove(&address);
    }

    fn cut(&self, address: SocketAddr) {
        lock(&self.0).cut.insert(address);
    }

    fn heal(&self) {
        lock(&self.0).cut.clear();
    }

    /// As if somebody at `from` had sent it.
    fn forge(&self, from: SocketAddr, to: SocketAddr, bytes: Bytes) {
        lock(&self.0).inboxes[&to].try_send((from, bytes)).unwrap();
    }
}

#[derive(Default)]
struct StartsInMemory(Mutex<Option<StartRecord>>);

impl StartStore for StartsInMemory {
    fn load(&self) -> io::Result<Option<StartRecord>> {
        Ok(*lock(&self.0))
    }

    fn store(&self, record: StartRecord) -> io::Result<()> {
        *lock(&self.0) = Some(record);
        Ok(())
    }
}

/// A wall clock that runs with virtual time and can be stepped.
#[derive(Clone)]
struct Clock {
    began: Instant,
    step_millis: Arc<AtomicI64>,
}

impl Clock {
    fn new() -> Self {
        Self { began: Instant::now(), step_millis: Arc::default() }
    }

    fn step(&self, by_millis: i64) {
        self.step_millis.fetch_add(by_millis, Ordering::Relaxed);
    }

    fn wall(&self) -> WallClock {
        let clock = self.clone();
        Arc::new(move || {
            let seconds = 1_000_000_i64 * 1_000 + clock.step_millis.load(Ordering::Relaxed);
            let base = Duration::from_millis(u64::try_from(seconds).unwrap());
            SystemTime::UNIX_EPOCH + base + clock.began.elapsed()
        })
    }
}

fn address(host: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host], 4319))
}

fn settings(host: u8, seeds: &[u8]) -> Settings {
    Settings {
        cluster: "tracemesh".to_owned(),
        node_id: NodeId::from(format!("node-{host}")),
        mesh_address: address(host),
        seeds: seeds.iter().map(|seed| address(*seed).to_string()).collect(),
        alone_after: Duration::from_secs(10),
        replicas: 1,
        hash_key: HashKey::from_cluster_name("tracemesh"),
        weight: Weight::default(),
        zone: String::new(),
        version: "0.1.0".to_owned(),
        otlp_grpc: Vec::new(),
        otlp_http: Vec::new(),
        console: None,
        config_hash: 0,
        starts: None,
        wall_clock: Clock::new().wall(),
        seed: u64::from(host),
    }
}

async fn start(network: &Network, settings: Settings) -> Membership {
    let carrier = network.plug(settings.mesh_address);
    Membership::start(settings, carrier).await.unwrap()
}

/// Nodes 1 to `count`, in one view.
async fn mesh(network: &Network, count: u8) -> Vec<Membership> {
    let hosts: Vec<u8> = (1..=count).collect();
    let mut nodes = Vec::new();
    for host in 1..=count {
        nodes.push(start(network, settings(host, &hosts)).await);
    }
    agree(&nodes, &hosts).await;
    nodes
}

async fn until<T>(watch: &mut watch::Receiver<T>, what: &str, condition: impl FnMut(&T) -> bool) {
    assert!(timeout(SOON, watch.wait_for(condition)).await.is_ok(), "{what}: not within {SOON:?}");
}

fn is_view_of(view: &View, hosts: &[u8]) -> bool {
    let expected = hosts.iter().map(|host| format!("node-{host}"));
    view.members().iter().map(|member| member.id.as_str().to_owned()).eq(expected)
}

/// Waits until all these have the same view, of these hosts.
async fn agree(nodes: &[Membership], hosts: &[u8]) {
    let agreed = async {
        loop {
            let views: Vec<_> = nodes.iter().map(view).collect();
            let same = views.iter().all(|view| view.hash() == views[0].hash());
            if same && is_view_of(&views[0], hosts) {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    if timeout(SOON, agreed).await.is_err() {
        let views: Vec<_> = nodes.iter().map(|node| view(node).members().to_vec()).collect();
        panic!("no common view of {hosts:?}: {views:#?}");
    }
}

fn view(node: &Membership) -> Arc<View> {
    Arc::clone(node.placement().borrow().view())
}

fn status(node: &Membership) -> Status {
    node.state().borrow().clone()
}

async fn is_active(node: &Membership) {
    until(&mut node.state(), "active", |status| status.state == MemberState::Active).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_without_seeds_or_with_itself_alone_is_active_at_once() {
    for seeds in [&[][..], &[1], &[1, 1]] {
        let network = Network::default();
        let began = Instant::now();
        let node = start(&network, settings(1, seeds)).await;
        assert_eq!(status(&node).state, MemberState::Joining);
        is_active(&node).await;
        assert!(began.elapsed() < Duration::from_millis(500));
        assert!(!status(&node).alone);
        assert!(is_view_of(&view(&node), &[1]));
        assert!(node.placement().borrow().holders(Slot(7)).is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_with_the_same_seeds_that_start_together_find_one_view() {
    let network = Network::default();
    let began = Instant::now();
    let nodes = mesh(&network, 5).await;
    assert!(began.elapsed() < Duration::from_secs(4), "took {:?}", began.elapsed());
    assert!(nodes.iter().all(|node| !status(node).alone));
}

#[tokio::test(start_paused = true)]
async fn a_joining_node_holds_nothing_until_it_knows_the_members() {
    let network = Network::default();
    let mut nodes = mesh(&network, 3).await;
    let newcomer = start(&network, settings(4, &[2])).await;
    until(&mut newcomer.peers(), "three peers", |peers| peers.len() == 3).await;
    assert_eq!(status(&newcomer).state, MemberState::Joining);
    assert!(is_view_of(&view(&nodes[0]), &[1, 2, 3]));
    is_active(&newcomer).await;
    nodes.push(newcomer);
    agree(&nodes, &[1, 2, 3, 4]).await;
    let known = nodes[0].peers().borrow().clone();
    let peer = &known[&NodeId::from("node-4")];
    assert_eq!((peer.mesh_address, peer.alive), (address(4), true));
}

#[tokio::test(start_paused = true)]
async fn a_leaving_node_changes_its_own_view_first_and_the_others_follow_at_once() {
    let network = Network::default();
    let nodes = mesh(&network, 3).await;
    nodes[1].leave();
    assert_eq!(status(&nodes[1]).state, MemberState::Leaving);
    assert!(is_view_of(&view(&nodes[1]), &[1, 3]));
    let began = Instant::now();
    agree(&nodes, &[1, 3]).await;
    assert!(began.elapsed() < Duration::from_millis(300), "took {:?}", began.elapsed());
    assert_eq!(nodes[0].peers().borrow().len(), 2, "a leaving node is still a peer");
}

#[tokio::test(start_paused = true)]
async fn when_all_leave_the_leaving_ones_are_the_view() {
    let network = Network::default();
    let nodes = mesh(&network, 3).await;
    for node in &nodes {
        node.leave();
    }
    agree(&nodes, &[1, 2, 3]).await;
    let states = |view: &View| view.members().iter().all(|m| m.state == MemberState::Leaving);
    assert!(states(&view(&nodes[0])));
}

#[tokio::test(start_paused = true)]
async fn a_crashed_node_leaves_the_view_and_a_short_pause_does_not() {
    let network = Network::default();
    let mut nodes = mesh(&network, 3).await;
    sleep(Duration::from_secs(20)).await;
    let before = view(&nodes[0]).hash();
    network.cut(address(3));
    sleep(Duration::from_millis(500)).await;
    network.heal();
    sleep(Duration::from_secs(5)).await;
    assert!(nodes.iter().all(|node| view(node).hash() == before), "a short cut moved slots");

    drop(nodes.pop());
    network.unplug(address(3));
    let began = Instant::now();
    agree(&nodes, &[1, 2]).await;
    assert!(began.elapsed() < Duration::from_secs(4), "took {:?}", began.elapsed());
    until(&mut nodes[0].peers(), "the dead are gone", |peers| peers.len() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_is_a_new_incarnation_although_the_clock_went_back() {
    let network = Network::default();
    let mut nodes = mesh(&network, 2).await;
    let (clock, starts) = (Clock::new(), Arc::new(StartsInMemory::default()));
    let third = || {
        let settings = settings(3, &[1, 2]);
        Settings { wall_clock: clock.wall(), starts: Some(starts.clone()), ..settings }
    };
    nodes.push(start(&network, third()).await);
    agree(&nodes, &[1, 2, 3]).await;
    let before = view(&nodes[0]);

    drop(nodes.pop());
    clock.step(-5_000_000);
    nodes.push(start(&network, third()).await);
    let old = before.members()[2].incarnation;
    is_active(&nodes[2]).await;
    agree(&nodes, &[1, 2, 3]).await;
    assert!(view(&nodes[0]).members()[2].incarnation > old);
    assert_ne!(view(&nodes[0]).hash(), before.hash());
    let holders = nodes[0].placement().borrow().holders(Slot(1));
    assert_eq!(Placement::new(before).holders(Slot(1)), holders, "the placement is the same");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_lost_its_record_and_its_clock_starts_above_its_former_self() {
    let network = Network::default();
    let mut nodes = mesh(&network, 3).await;
    let old = view(&nodes[0]).members()[2].incarnation;
    drop(nodes.pop());
    let clock = Clock::new();
    clock.step(-5_000_000);
    let restarted = Settings { wall_clock: clock.wall(), ..settings(3, &[1, 2]) };
    nodes.push(start(&network, restarted).await);
    until(&mut nodes[2].state(), "above", |status| status.incarnation > old).await;
    agree(&nodes, &[1, 2, 3]).await;
    assert!(view(&nodes[0]).members()[2].incarnation > old);
}

#[tokio::test(start_paused = true)]
async fn a_second_node_with_the_same_id_ends_and_the_first_one_is_not_disturbed() {
    for step in [-5_000_000, 0, 5_000_000] {
        let network = Network::default();
        let nodes = mesh(&network, 3).await;
        sleep(Duration::from_secs(5)).await;
        let before = view(&nodes[0]).hash();
        let mut changes = nodes[0].placement();
        changes.mark_unchanged();
        let clock = Clock::new();
        clock.step(step);
        let clone = settings(3, &[1]);
        let clone = Settings { mesh_address: address(9), wall_clock: clock.wall(), ..clone };
        let clone = start(&network, clone).await;
        let ended = timeout(SOON, clone.ended()).await.expect("the newcomer ends");
        assert_eq!(ended, Ended::IdInUse { address: address(3) });
        assert_eq!(status(&clone).state, MemberState::Joining);
        sleep(Duration::from_secs(20)).await;
        assert!(!changes.has_changed().unwrap(), "the view changed for a node that was refused");
        assert!(nodes.iter().all(|node| view(node).hash() == before));
        assert_eq!(status(&nodes[2]).refused, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_joiner_that_disagrees_ends_with_both_values() {
    let network = Network::default();
    let nodes = mesh(&network, 3).await;
    let before = view(&nodes[0]).hash();
    let odd = Settings { replicas: 0, ..settings(4, &[1]) };
    let odd = start(&network, odd).await;
    let ended = timeout(SOON, odd.ended()).await.expect("the joiner ends");
    let Ended::Disagrees { key, mine, theirs, .. } = ended else { panic!("{ended:?}") };
    assert_eq!((key, mine.as_str(), theirs.as_str()), ("cluster.replicas", "0", "1"));
    sleep(Duration::from_secs(10)).await;
    assert!(nodes.iter().all(|node| view(node).hash() == before));
    assert!(nodes.iter().all(|node| status(node).refused.is_none()));
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_seeds_are_down_works_alone_until_they_are_up() {
    let network = Network::default();
    let began = Instant::now();
    let node = start(&network, settings(1, &[1, 2])).await;
    sleep(Duration::from_secs(9)).await;
    assert_eq!(status(&node).state, MemberState::Joining);
    assert!(view(&node).members().is_empty());
    is_active(&node).await;
    assert!(began.elapsed() < Duration::from_secs(11));
    assert!(status(&node).alone);
    sleep(Duration::from_secs(60)).await;
    let other = start(&network, settings(2, &[2])).await;
    let nodes = [node, other];
    agree(&nodes, &[1, 2]).await;
    assert!(!status(&nodes[0]).alone);
}

#[tokio::test(start_paused = true)]
async fn garbage_and_forged_gossip_change_nothing() {
    let network = Network::default();
    let nodes = mesh(&network, 2).await;
    let before = (view(&nodes[0]).hash(), status(&nodes[0]));
    let stranger = address(99);
    let garbage = [
        Bytes::new(),
        Bytes::from_static(b"GET / HTTP/1.1\r\n\r\n"),
        Bytes::from(vec![0xFF; 70_000]),
        opening(&invented("far-too-many", 1_400)),
        opening(&invented(&"x".repeat(300), 1)),
    ];
    let count = garbage.len() as u64;
    for bytes in garbage {
        network.forge(stranger, address(1), bytes);
    }
    let ids = [("node-2".to_owned(), u64::MAX, address(2)), ("ghost".to_owned(), 1, stranger)];
    network.forge(stranger, address(1), opening(&ids));
    sleep(Duration::from_secs(5)).await;
    assert_eq!(nodes[0].gossip_refused(), count);
    assert_eq!((view(&nodes[0]).hash(), status(&nodes[0])), before);
    agree(&nodes, &[1, 2]).await;
}

#[tokio::test(start_paused = true)]
async fn gossip_that_was_killed_is_started_again_as_a_new_incarnation() {
    let network = Network::default();
    let nodes = mesh(&network, 3).await;
    let before = status(&nodes[0]).incarnation;
    // Each is small enough to be read; together they leave no room in gossip's own messages.
    network.forge(address(2), address(1), opening(&invented("one", 1_000)));
    network.forge(address(2), address(1), opening(&invented("two", 1_000)));
    until(&mut nodes[0].state(), "restarted", |status| status.incarnation > before).await;
    assert_eq!(status(&nodes[0]).state, MemberState::Active);
    agree(&nodes, &[1, 2, 3]).await;
    sleep(Duration::from_secs(5)).await;
    agree(&nodes, &[1, 2, 3]).await;
}

#[tokio::test(start_paused = true)]
async fn a_stand_still_is_a_new_epoch_before_anything_else() {
    let network = Network::default();
    let mut nodes = mesh(&network, 2).await;
    let clock = Clock::new();
    let third = Settings { wall_clock: clock.wall(), ..settings(3, &[1]) };
    nodes.push(start(&network, third).await);
    agree(&nodes, &[1, 2, 3]).await;
    assert!(!nodes[2].stood_still());
    let before = status(&nodes[2]).incarnation;
    for step in [700, -700] {
        let epoch = status(&nodes[2]).incarnation.epoch;
        clock.step(step);
        assert!(nodes[2].stood_still());
        assert_eq!(status(&nodes[2]).incarnation.epoch, epoch + 1);
        assert_eq!(view(&nodes[2]).members()[2].incarnation, status(&nodes[2]).incarnation);
        assert!(!nodes[2].stood_still(), "it is noticed once");
    }
    agree(&nodes, &[1, 2, 3]).await;
    assert_eq!(view(&nodes[0]).members()[2].incarnation.generation, before.generation);
}

#[tokio::test(start_paused = true)]
async fn a_loop_that_stood_still_raises_the_epoch_and_keeps_its_peers() {
    let network = Network::default();
    let mut nodes = mesh(&network, 3).await;
    sleep(Duration::from_secs(10)).await;
    let node = nodes.remove(0);
    let mut changes = node.peers();
    // Nothing of this process runs meanwhile: the other nodes stand still as well.
    tokio::time::advance(Duration::from_secs(5)).await;
    until(&mut node.state(), "an epoch", |status| status.incarnation.epoch == 1).await;
    for _ in 0..50 {
        sleep(Duration::from_millis(100)).await;
        assert_eq!(changes.borrow_and_update().len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_cut_off_from_all_others_at_once_doubts_itself_first() {
    let network = Network::default();
    let nodes = mesh(&network, 5).await;
    sleep(Duration::from_secs(20)).await;
    network.cut(address(1));
    agree(&nodes[1..], &[2, 3, 4, 5]).await;
    assert!(view(&nodes[0]).members().len() >= 3, "it believed most others dead");
    sleep(Duration::from_secs(10)).await;
    assert!(is_view_of(&view(&nodes[0]), &[1]));
    assert!(status(&nodes[0]).alone);
    network.heal();
    agree(&nodes, &[1, 2, 3, 4, 5]).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_node_publishes_reaches_the_others() {
    let network = Network::default();
    let nodes = mesh(&network, 2).await;
    let settled = view(&nodes[0]).hash();
    let update = Update { fill: Some(420), settled: Some(settled), ..Update::default() };
    nodes[0].publish(update);
    let name = NodeId::from("node-1");
    until(&mut nodes[1].peers(), "figures", |peers| {
        let says = &peers[&name].published;
        says.fill == 420 && says.settled == settled && says.view_hash == settled
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn gossip_with_one_peer_is_asked_for_at_most_every_50_ms() {
    let (outgoing, mut sent) = mpsc::channel(QUEUE);
    let (_inbox, incoming) = mpsc::channel(QUEUE);
    let carrier = Carrier { outgoing, incoming };
    let node = Membership::start(settings(1, &[]), carrier).await.unwrap();
    is_active(&node).await;
    for _ in 0..20 {
        for host in [2, 3] {
            node.gossip_with(address(host));
        }
        sleep(Duration::from_millis(10)).await;
    }
    sleep(Duration::from_millis(10)).await;
    let mut counts = BTreeMap::<SocketAddr, u32>::new();
    while let Ok((to, _)) = sent.try_recv() {
        *counts.entry(to).or_default() += 1;
    }
    assert_eq!(counts, BTreeMap::from([(address(2), 4), (address(3), 4)]));
}

#[tokio::test(start_paused = true)]
async fn a_carrier_that_takes_nothing_holds_nobody_up() {
    let (outgoing, _sent) = mpsc::channel(1);
    let (inbox, incoming) = mpsc::channel(1);
    drop(inbox);
    let carrier = Carrier { outgoing, incoming };
    let node = Membership::start(settings(1, &[2]), carrier).await.unwrap();
    sleep(Duration::from_secs(11)).await;
    assert!(status(&node).alone);
    node.leave();
    assert!(timeout(SOON, node.shutdown()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_keeps_crashing_waits_before_it_joins_and_an_orderly_one_does_not() {
    let network = Network::default();
    let starts = Arc::new(StartsInMemory::default());
    let again = || Settings { starts: Some(starts.clone()), ..settings(1, &[]) };
    let mut waits = Vec::new();
    for _ in 0..5 {
        let began = Instant::now();
        let node = start(&network, again()).await;
        is_active(&node).await;
        waits.push(began.elapsed().as_millis() / 500);
    }
    assert_eq!(waits, [0, 0, 0, 2, 4]);

    let node = start(&network, again()).await;
    node.shutdown().await;
    assert_eq!(starts.load().unwrap().unwrap().unsteady_starts, 0);

    let node = start(&network, again()).await;
    assert_eq!(starts.load().unwrap().unwrap().unsteady_starts, 1);
    sleep(Duration::from_secs(61)).await;
    assert_eq!(starts.load().unwrap().unwrap().unsteady_starts, 0);
    drop(node);
}

#[tokio::test(start_paused = true)]
async fn a_refused_node_counts_as_crashed() {
    let network = Network::default();
    let _nodes = mesh(&network, 2).await;
    let starts = Arc::new(StartsInMemory::default());
    let odd = Settings { replicas: 0, starts: Some(starts.clone()), ..settings(3, &[1]) };
    let odd = start(&network, odd).await;
    let _ = timeout(SOON, odd.ended()).await.expect("the joiner ends");
    odd.shutdown().await;
    assert_eq!(starts.load().unwrap().unwrap().unsteady_starts, 1);
}

#[tokio::test(start_paused = true)]
async fn settings_that_gossip_cannot_carry_are_refused() {
    let refused = [
        Settings { node_id: "".into(), ..settings(1, &[]) },
        Settings { node_id: "x".repeat(254).into(), ..settings(1, &[]) },
        Settings { zone: "x".repeat(257), ..settings(1, &[]) },
        Settings { cluster: String::new(), ..settings(1, &[]) },
        Settings { mesh_address: "0.0.0.0:4319".parse().unwrap(), ..settings(1, &[]) },
        Settings { mesh_address: "10.0.0.1:0".parse().unwrap(), ..settings(1, &[]) },
    ];
    for settings in refused {
        let carrier = Network::default().plug(address(1));
        assert!(Membership::start(settings, carrier).await.is_err());
    }
}
