//! HAProxy and nginx between clients and the mesh, with the README's configurations.

use crate::generator::{self, SPANS_OF_A_TRACE};
use crate::mesh::Mesh;
use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use tracemesh_tests::program::Program;
use tracemesh_tests::wait::wait_until;
use tracemesh_tests::{http, parts, readme};

/// Traces of each of the workers that send while a node drains; at [`RATE`] for ten seconds.
const TRACES: usize = 50;
/// Spans a second of each worker.
const RATE: &str = "40";
const WORKERS: usize = 4;

/// Sends over gRPC and HTTP through the balancer at 10.0.0.9 while the second node drains; `None`
/// without Go.
fn drain_a_node_under_load(mesh: &mut Mesh) -> Option<()> {
    let address = mesh.here("10.0.0.9:4317");
    wait_until("the balancer to listen", || TcpStream::connect(&address).is_ok());
    let traces = TRACES.to_string();
    let arguments = ["--rate", RATE, "--traces", &traces, "--workers", &WORKERS.to_string()];
    let mut command = generator::command(&address, &arguments)?;
    let mut generator = Program::start("telemetrygen", mesh.host.path(), &mut command);
    let accepted = |mesh: &Mesh, node: usize| {
        mesh.nodes[node].metrics().sum("tracemesh_spans_accepted_total", &[])
    };
    wait_until("the second node to be used", || accepted(mesh, 1) > 0.0);
    mesh.nodes[1].program().terminate();
    wait_until("it to drain", || !mesh.nodes[1].is_ready());
    assert!(mesh.nodes[1].program().wait().success());
    assert!(generator.wait().success());
    let spans = generator::assert_no_error(&generator.output());
    assert_eq!(spans, TRACES * WORKERS * SPANS_OF_A_TRACE);
    let url = format!("http://{}/v1/traces", mesh.here("10.0.0.9:4318"));
    let answer = http::post(&url, &[("content-type", "application/json")], b"{}");
    assert_eq!(answer.status, 200);
    mesh.assert_came_out(spans, SPANS_OF_A_TRACE);
    Some(())
}

/// Writes a configuration into the directory of the case.
fn write(mesh: &Mesh, name: &str, text: &str) -> PathBuf {
    let path = mesh.host.path().join(name);
    fs::write(&path, text).expect("a configuration can be written");
    path
}

#[test]
fn haproxy_takes_a_node_that_drains_out_in_time() {
    let Some(haproxy) = parts::of_the_system("haproxy") else { return };
    let mut mesh = Mesh::start_with(|settings, _| settings.with("drain.announce", "5s".into()));
    let file = write(&mesh, "haproxy.cfg", &mesh.here(&readme::text("haproxy")));
    let mut command = Command::new(haproxy);
    let mut balancer =
        Program::start("haproxy", mesh.host.path(), command.arg("-f").arg(file).arg("-db"));
    let Some(()) = drain_a_node_under_load(&mut mesh) else { return };
    balancer.wait_for_output("Server nodes-grpc/n2 is DOWN");
}

#[test]
fn nginx_finds_out_that_a_node_has_gone() {
    let Some(nginx) = parts::of_the_system("nginx") else { return };
    let mut mesh = Mesh::start();
    let directory = mesh.host.path();
    let text = format!(
        // One process, which ends with the test.
        "daemon off; master_process off; pid {0}/nginx.pid; error_log {0}/nginx-errors.log;\n\
         events {{}}\n\
         http {{ access_log off; {1} }}\n",
        directory.display(),
        mesh.here(&readme::text("nginx")),
    );
    let file = write(&mesh, "nginx.conf", &text);
    let mut command = Command::new(nginx);
    let _balancer = Program::start("nginx", directory, command.arg("-c").arg(file));
    drain_a_node_under_load(&mut mesh);
}
