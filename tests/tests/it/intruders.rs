//! Who must not get in. Each test ends with a mesh that has its own members and takes spans.

use crate::host;
use crate::mesh::{Authority, Validity, key_file, start, with_key};
use crate::otlp::{Noise, encoded, hex, trace, trace_id};
use serde_json::json;
use std::net::UdpSocket;
use tracemesh_tests::node::{Node, Settings};
use tracemesh_tests::traces;
use tracemesh_tests::wait::wait_until;

/// Counts who was refused at the mesh port, by reason.
const REFUSED: &str = "tracemesh_mesh_refused_total";

/// Starts an intruder with the mesh as its seed, and waits until it gave up: alone, or ended.
fn intrude(settings: Settings, mesh: &[Node]) -> Node {
    let settings = settings.with("cluster.alone_after", json!("2s"));
    let mut intruder = settings.with_seed(&mesh[0].mesh_address()).launch();
    wait_until("the intruder to be alone", || {
        intruder.program().ended().is_some() || intruder.is_ready()
    });
    if intruder.program().ended().is_none() {
        intruder.wait_for_members(1);
    }
    intruder
}

/// Somebody was refused for that cause, which is counted; each reason is logged once however often
/// it was.
fn assert_counted_and_logged_once(node: &Node, cause: &str) {
    let count = || node.metrics().sum(REFUSED, &[("cause", cause)]);
    wait_until("a refusal to be counted", || count() >= 1.0);
    let output = node.output();
    let lines: Vec<_> = output.lines().filter(|line| line.contains("logged once")).collect();
    assert!(!lines.is_empty() && lines.len() <= 2, "a line a reason, not {lines:#?}");
}

/// The mesh has its own members only, and a trace in parts meets on one of them.
fn assert_goes_on(mesh: &[Node]) {
    let id = trace_id(1);
    // The root comes last: soon after it the trace is due.
    let spans = trace(&id, mesh.len() as u64).into_iter().rev();
    for (node, span) in mesh.iter().zip(spans) {
        node.deliver(&encoded(vec![span]));
    }
    let counts = || traces::span_counts(mesh.iter().map(Node::trace_file));
    wait_until("the trace", || counts().contains_key(&hex(&id)));
    assert_eq!(counts()[&hex(&id)], [mesh.len()]);
    for node in mesh {
        node.wait_for_members(mesh.len());
        assert!(!node.output().contains("panicked"), "{}", node.output());
    }
}

#[test]
fn node_with_another_key_stays_outside() {
    let host = host();
    let mesh = start(&with_key(host.nodes(&["a", "b"]), &key_file(&host, "ours")));
    let other = key_file(&host, "theirs");
    let _intruder = intrude(host.node("x").with("cluster.key_file", json!(other)), &mesh);
    assert_counted_and_logged_once(&mesh[0], "by_peer");
    assert_goes_on(&mesh);
}

#[test]
fn node_without_a_key_stays_outside() {
    let host = host();
    let mesh = start(&with_key(host.nodes(&["a", "b"]), &key_file(&host, "ours")));
    let _intruder = intrude(host.node("x"), &mesh);
    assert_counted_and_logged_once(&mesh[0], "by_peer");
    assert_goes_on(&mesh);
}

#[test]
fn node_of_another_cluster_stays_outside() {
    let host = host();
    let key = key_file(&host, "ours");
    let mesh = start(&with_key(host.nodes(&["a", "b"]), &key));
    let other = host.node("x").with("cluster.name", json!("elsewhere"));
    let mut intruder = intrude(other.with("cluster.key_file", json!(key)), &mesh);
    intruder.program().wait_for_output("it is of cluster tracemesh, not elsewhere");
    assert!(intruder.is_ready(), "another name is another cluster");
    assert_counted_and_logged_once(&mesh[0], "by_peer");
    assert!(mesh[0].output().contains("not elsewhere"), "{}", mesh[0].output());
    assert_goes_on(&mesh);
}

#[test]
fn node_that_disagrees_ends_with_both_values() {
    let host = host();
    let mesh = start(&host.nodes(&["a", "b"]));
    let other = host.node("x").with("cluster.replicas", json!(0));
    let ended = other.with_seed(&mesh[0].mesh_address()).run_to_end();
    assert_eq!(ended.status.code(), Some(2), "{}", ended.output);
    let said = ended.output.lines().find(|line| line.contains("cluster.replicas"));
    let said = said.unwrap_or_else(|| panic!("the setting is named: {}", ended.output));
    assert!(said.contains("is 0 here") && said.contains("1 at"), "{said}");
    assert_goes_on(&mesh);
}

#[test]
fn newcomer_with_the_id_of_a_member_ends_and_names_its_address() {
    let host = host();
    let mesh = start(&host.nodes(&["a", "b"]));
    let twin = Settings::new(host.program(), &host.path().join("twin"), "b");
    let ended = twin.with_seed(&mesh[0].mesh_address()).run_to_end();
    assert_eq!(ended.status.code(), Some(2), "{}", ended.output);
    assert!(ended.output.contains(&mesh[1].mesh_address()), "{}", ended.output);
    assert_goes_on(&mesh);
}

#[test]
fn node_with_an_expired_certificate_stays_outside() {
    let host = host();
    let authority = Authority::new();
    let mut settings = host.nodes(&["a", "b"]);
    for (settings, id) in settings.iter_mut().zip(["a", "b"]) {
        settings.set("cluster.tls", authority.issue(&host, id, Validity::Now));
    }
    let mesh = start(&settings);
    let expired = authority.issue(&host, "x", Validity::Expired);
    let mut intruder = intrude(host.node("x").with("cluster.tls", expired), &mesh);
    if intruder.program().ended().is_some() {
        // It looked at its own certificate first.
        assert!(intruder.output().contains("expired"), "{}", intruder.output());
    } else {
        assert_counted_and_logged_once(&mesh[0], "expired");
    }
    assert_goes_on(&mesh);
}

#[test]
fn node_of_another_authority_stays_outside() {
    let host = host();
    let authority = Authority::new();
    let mut settings = host.nodes(&["a", "b"]);
    for (settings, id) in settings.iter_mut().zip(["a", "b"]) {
        settings.set("cluster.tls", authority.issue(&host, id, Validity::Now));
    }
    let mesh = start(&settings);
    let other = Authority::new().issue(&host, "x", Validity::Now);
    let _intruder = intrude(host.node("x").with("cluster.tls", other), &mesh);
    assert_counted_and_logged_once(&mesh[0], "by_peer");
    assert_goes_on(&mesh);
}

#[test]
fn noise_and_forged_gossip_at_the_mesh_port_change_nothing() {
    let host = host();
    let mesh = start(&host.nodes(&["a", "b"]));
    let stranger = || UdpSocket::bind("127.0.0.1:0").expect("a port of loopback is free");
    let send = |socket: &UdpSocket, bytes: &[u8]| {
        for node in &mesh {
            socket.send_to(bytes, node.mesh_address()).expect("loopback takes a datagram");
        }
    };
    let (mut noise, noisy, forger) = (Noise(11), stranger(), stranger());
    for length in 1..1_400 {
        send(&noisy, &(0..length).map(|_| noise.byte()).collect::<Vec<u8>>());
    }
    assert_counted_and_logged_once(&mesh[0], "garbage");
    let forger_is_logged = || {
        let address = forger.local_addr().expect("it has one").to_string();
        let is_it = |line: &str| line.contains("logged once") && line.contains(&address);
        mesh.iter().all(|node| node.output().lines().any(is_it))
    };
    // The kernel drops what comes while there is too much of it.
    wait_until("the forged gossip to be refused", || {
        send(&forger, &forged_gossip(1));
        // As many ids as fit into a datagram, which is more than an answer can hold.
        send(&forger, &forged_gossip(1_421));
        forger_is_logged()
    });
    assert_counted_and_logged_once(&mesh[0], "garbage");
    assert_goes_on(&mesh);
}

/// The first message of a gossip round as the gossip library writes it, from `count` invented
/// nodes.
fn forged_gossip(count: u16) -> Vec<u8> {
    let mut message = 45_139_u16.to_le_bytes().to_vec();
    // The version, and the kind.
    message.extend([0, 0]);
    message.extend(count.to_le_bytes());
    for number in 0..count {
        let id = format!("f{number}");
        message.extend((id.len() as u16).to_le_bytes());
        message.extend(id.as_bytes());
        message.extend(1_u64.to_le_bytes());
        message.extend([4, 127, 0, 0, 1]);
        message.extend((20_000 + number).to_le_bytes());
        // Heartbeat, and two versions.
        [9_u64, 0, 1].iter().for_each(|figure| message.extend(figure.to_le_bytes()));
    }
    let cluster = "tracemesh";
    message.extend((cluster.len() as u16).to_le_bytes());
    message.extend(cluster.as_bytes());
    message
}
