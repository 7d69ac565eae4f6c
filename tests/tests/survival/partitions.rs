//! The network between nodes is cut in two, and clients reach both sides.

use crate::Size;
use crate::cluster::Cluster;
use crate::run::Run;
use crate::sink::Manner;
use serde_json::json;
use std::time::Duration;
use tracemesh_tests::links::Links;
use tracemesh_tests::wait::last;

#[test]
fn two_and_one_of_three_cannot_reach_each_other() {
    let mut cluster = Cluster::of(3);
    let links = Links::new(&cluster.mesh_addresses());
    let addresses: Vec<_> = (0..3).map(|node| links.address(node)).collect();
    cluster.set("cluster.seeds", &json!(addresses));
    for (node, address) in addresses.iter().enumerate() {
        cluster.set_of(node, "node.advertise", json!(address));
    }
    let mut run = Run::start(cluster, 3, Manner::Honest);
    links.cut(&[0, 0, 1]);
    run.cluster.wait_for_view(&[0, 1]);
    run.cluster.wait_for_view(&[2]);
    run.go_on();
    if Size::asked_for() == Size::Full {
        last(Duration::from_secs(20));
    }
    links.heal();
    run.cluster.wait_until_settled();
    run.go_on();
    run.end("two and one of three cannot reach each other");
}
