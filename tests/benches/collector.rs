//! What a span costs, beside a collector that does the same work.
//!
//! `cargo bench -p tracemesh-tests --bench collector`. Three nodes of Tracemesh with a replica and
//! mutual TLS, then three collectors of two tiers in each process (`loadbalancing` by trace id,
//! then `tail_sampling` that keeps all) without TLS and without a copy: the same load and rate,
//! the same sink, both uncompressed, one after the other. A first load of each warms it up.
//! The figures are CPU seconds (user and system) of the three processes per million spans, and how
//! long clients waited for their acknowledgement; the ratio is what other machines may see, too.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use serde_json::{Value, json};
use std::fs;
use std::process::{Command, Stdio};
use tracemesh_tests::host::Host;
use tracemesh_tests::node::{Node, Settings};
use tracemesh_tests::parts;
use tracemesh_tests::ports::claim_base_port;
use tracemesh_tests::program::Program;

/// Spans of a load: half a minute.
const SPANS: u64 = 150_000;
/// Spans a second: what three collectors on two cores keep up with.
const RATE: u64 = 5_000;
/// Loads of each that are measured.
const ROUNDS: usize = 2;

/// What one load showed.
struct Figures {
    cost: f64,
    p50: f64,
    p99: f64,
    lost: u64,
}

fn main() {
    // `cargo bench --workspace` passes `--bench`, and so does this benchmark's own command.
    let Some(otelcol) = parts::otelcol() else { return };
    let host = Host::new(env!("CARGO_BIN_EXE_tracemesh-under-test"));
    let sinks = [claim_base_port(), claim_base_port()].map(|port| format!("127.0.0.1:{port}"));
    let mut nodes = nodes(&host, &sinks[0]);
    let targets: Vec<_> = nodes.iter().map(Node::grpc_url).collect();
    let ids: Vec<_> = nodes.iter_mut().map(|node| node.program().id()).collect();
    let mesh = measure("tracemesh", &|| load(&host, &targets, &ids, &sinks[0]));
    drop(nodes);
    let collectors = collectors(&host, &otelcol, &sinks[1]);
    let (targets, ids): (Vec<_>, Vec<_>) =
        collectors.iter().map(|(url, program)| (url.clone(), program.id())).unzip();
    let collector = measure("otelcol", &|| load(&host, &targets, &ids, &sinks[1]));
    println!("otelcol needs {:.1} times as much", collector / mesh);
}

/// Loads until it is warm, then [`ROUNDS`] times; returns the least cost.
fn measure(name: &str, load: &dyn Fn() -> Figures) -> f64 {
    let mut least = f64::INFINITY;
    for round in 0..=ROUNDS {
        let Figures { cost, p50, p99, lost } = load();
        let note = if round == 0 { " (to warm up)" } else { "" };
        println!(
            "{name:<10} {cost:6.2} CPU s a million spans; acknowledged in {p50:.1} ms (p50), \
             {p99:.1} ms (p99); {lost} spans lost{note}"
        );
        if round > 0 {
            least = least.min(cost);
        }
    }
    least
}

/// Three members.
fn nodes(host: &Host, sink: &str) -> Vec<Node> {
    let sink = json!([{ "otlp": { "endpoint": format!("http://{sink}"), "compression": "none" } }]);
    let settings = host.nodes(&["a", "b", "c"]).into_iter();
    let settings = settings
        .map(|node| node.with("sinks", sink.clone()).with("traces.root_delay", json!("2s")));
    let settings: Vec<Settings> = settings.collect();
    let mut nodes: Vec<Node> = settings.iter().map(Settings::launch).collect();
    nodes.iter_mut().for_each(Node::wait_until_ready);
    nodes.iter().for_each(|node| node.wait_for_members(settings.len()));
    nodes
}

/// Three collectors, each with both tiers, and where clients reach them.
fn collectors(host: &Host, otelcol: &std::path::Path, sink: &str) -> Vec<(String, Program)> {
    let ports = [(); 3].map(|()| claim_base_port());
    let second_tier: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{}", port + 1)).collect();
    let start = |port: u16| {
        let name = format!("otelcol-{port}");
        let file = host.path().join(format!("{name}.yaml"));
        let text = configuration(port, &second_tier, sink).to_string();
        fs::write(&file, text).expect("a configuration can be written");
        let mut command = Command::new(otelcol);
        let mut program = Program::start(&name, host.path(), command.arg("--config").arg(file));
        program.wait_for_output("Everything is ready");
        (format!("http://127.0.0.1:{port}"), program)
    };
    ports.into_iter().map(start).collect()
}

fn configuration(port: u16, second_tier: &[String], sink: &str) -> Value {
    let receiver = |port: u16| {
        let endpoint = format!("127.0.0.1:{port}");
        json!({ "protocols": { "grpc": { "endpoint": endpoint, "max_recv_msg_size_mib": 64 } } })
    };
    let plain = json!({ "insecure": true });
    json!({
        "receivers": { "otlp/first": receiver(port), "otlp/second": receiver(port + 1) },
        "processors": {
            "tail_sampling": {
                "decision_wait": "2s",
                "num_traces": 200_000,
                "policies": [{ "name": "all", "type": "always_sample" }],
            },
            "batch": { "timeout": "200ms" },
        },
        "exporters": {
            "loadbalancing": {
                "routing_key": "traceID",
                "protocol": { "otlp": { "tls": plain, "compression": "none" } },
                "resolver": { "static": { "hostnames": second_tier } },
            },
            "otlp": { "endpoint": sink, "tls": plain, "compression": "none" },
        },
        "service": {
            "telemetry": { "metrics": { "level": "none" } },
            "pipelines": {
                "traces/first": { "receivers": ["otlp/first"], "exporters": ["loadbalancing"] },
                "traces/second": {
                    "receivers": ["otlp/second"],
                    "processors": ["tail_sampling", "batch"],
                    "exporters": ["otlp"],
                },
            },
        },
    })
}

/// Sends to all targets, and verifies what comes to the sink.
fn load(host: &Host, targets: &[String], ids: &[u32], sink: &str) -> Figures {
    let mut load = Command::new(host.program());
    load.args(["load", "--json", "--listen", sink]).stderr(Stdio::inherit());
    load.args(["--spans", &SPANS.to_string(), "--rate", &RATE.to_string()]);
    for (target, id) in targets.iter().zip(ids) {
        load.args(["--target", target, "--pid", &id.to_string()]);
    }
    let output = load.output().expect("the load starts");
    let report: Value = serde_json::from_slice(&output.stdout).expect("the report is JSON");
    let figure = |path: &str| report.pointer(path).and_then(Value::as_f64);
    Figures {
        cost: figure("/processes_cpu_seconds_per_million_spans").expect("the load measured them"),
        p50: figure("/acknowledgements/p50_milliseconds").expect("some were acknowledged"),
        p99: figure("/acknowledgements/p99_milliseconds").expect("some were acknowledged"),
        lost: report["verification"]["spans_lost"].as_u64().expect("the load verified"),
    }
}
