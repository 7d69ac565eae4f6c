//! A real node: its settings, its process, and what can be asked from outside.
//!
//! The invariant: a [`Node`] returned by [`Settings::start`] accepts spans; one returned by
//! [`Settings::launch`] may still be joining, or may refuse its settings. All listeners are on
//! loopback, on 127.0.0.1 unless it was told otherwise.

use crate::http::{self, Answer};
use crate::metrics::Metrics;
use crate::ports::claim_base_port;
use crate::program::{self, Ended, Program};
use crate::traces::{self, Line};
use crate::wait::{wait_for, wait_until};
use serde_json::{Value, json};
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// Decides a trace soon after its root came, so that tests need not wait for slow clients.
const ROOT_DELAY: &str = "300ms";
/// Memory of a node under test: enough for every test, little enough to run six of them.
const MEMORY: &str = "512MiB";

/// The configuration of a node that does not run yet.
#[derive(Clone, Debug)]
pub struct Settings {
    program: PathBuf,
    directory: PathBuf,
    id: String,
    ip: Ipv4Addr,
    base_port: u16,
    file: Value,
    arguments: Vec<String>,
}

impl Settings {
    /// A node with its trace file and its data below `directory`.
    ///
    /// # Panics
    /// When `directory` cannot be made, or no ports are free.
    pub fn new(program: &Path, directory: &Path, id: &str) -> Self {
        fs::create_dir_all(directory).expect("a directory for a node can be made");
        let mut settings = Self {
            program: program.to_owned(),
            directory: directory.to_owned(),
            id: id.to_owned(),
            ip: Ipv4Addr::LOCALHOST,
            base_port: 0,
            file: json!({}),
            arguments: Vec::new(),
        };
        let traces = settings.trace_file();
        settings.set("node.id", json!(id));
        settings.set("node.data_dir", json!(directory.join("data")));
        settings.set("node.memory", json!(MEMORY));
        settings.set("traces.root_delay", json!(ROOT_DELAY));
        settings.set("drain.announce", json!("0s"));
        settings.set("sinks", json!([{ "file": { "path": traces } }]));
        settings.at(Ipv4Addr::LOCALHOST, claim_base_port())
    }

    /// Sets a key of the configuration file, given with dots: `traces.root_delay`.
    pub fn set(&mut self, key: &str, value: Value) {
        let place = key.split('.').fold(&mut self.file, |place, part| &mut place[part]);
        *place = value;
    }

    /// As [`Settings::set`], to be chained.
    #[must_use]
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.set(key, value);
        self
    }

    /// Lets it listen on another address of loopback, where others may have the same ports.
    #[must_use]
    pub fn at(mut self, ip: Ipv4Addr, base_port: u16) -> Self {
        (self.ip, self.base_port) = (ip, base_port);
        let address = |offset| format!("{ip}:{}", base_port + offset);
        self.set("listen.grpc", json!([address(0)]));
        self.set("listen.http", json!([address(1)]));
        self.set("listen.mesh", json!(address(2)));
        self.set("listen.console", json!([address(3)]));
        self
    }

    /// Adds arguments to the command line.
    #[must_use]
    pub fn with_arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// Adds a seed.
    pub fn seed(&mut self, address: &str) {
        self.arguments.extend(["--seed".to_owned(), address.to_owned()]);
    }

    /// As [`Settings::seed`], to be chained.
    #[must_use]
    pub fn with_seed(mut self, address: &str) -> Self {
        self.seed(address);
        self
    }

    /// The mesh address that the node will have.
    pub fn mesh_address(&self) -> String {
        format!("{}:{}", self.ip, self.base_port + 2)
    }

    /// The first of the node's four ports.
    pub fn base_port(&self) -> u16 {
        self.base_port
    }

    /// The node's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The directory of the node.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the node writes finished traces, unless its sinks were set.
    pub fn trace_file(&self) -> PathBuf {
        self.directory.join("traces.jsonl")
    }

    /// Everything that its processes have printed until now.
    pub fn log(&self) -> String {
        program::output_of(&self.id, &self.directory)
    }

    /// Starts the process and waits until it accepts spans.
    ///
    /// # Panics
    /// When it ends, or does not become ready in time.
    pub fn start(&self) -> Node {
        let mut node = self.launch();
        node.wait_until_ready();
        node
    }

    /// Starts the process and returns at once.
    ///
    /// # Panics
    /// When the program cannot be started.
    pub fn launch(&self) -> Node {
        let program = Program::start(&self.id, &self.directory, &mut self.command());
        let (ip, base_port) = (self.ip, self.base_port);
        Node { program, ip, base_port, trace_file: self.trace_file() }
    }

    /// Starts a process that must end by itself, and waits for its end.
    ///
    /// # Panics
    /// When it does not end.
    pub fn run_to_end(&self) -> Ended {
        Program::run(&self.id, &self.directory, &mut self.command())
    }

    fn command(&self) -> Command {
        let path = self.directory.join("tracemesh.yaml");
        // JSON is YAML.
        fs::write(&path, format!("{:#}\n", self.file)).expect("a configuration can be written");
        let mut command = Command::new(&self.program);
        command.args(["run", "--config"]).arg(path);
        command.args(&self.arguments);
        command
    }
}

/// A node whose process was started.
#[derive(Debug)]
pub struct Node {
    program: Program,
    ip: Ipv4Addr,
    base_port: u16,
    trace_file: PathBuf,
}

impl Node {
    /// Where OTLP gRPC is served.
    pub fn grpc_url(&self) -> String {
        format!("http://{}", self.grpc_address())
    }

    /// Where OTLP gRPC is served, as `host:port`.
    pub fn grpc_address(&self) -> String {
        format!("{}:{}", self.ip, self.base_port)
    }

    /// The URL of a path of the OTLP HTTP listener.
    pub fn http_url(&self, path: &str) -> String {
        format!("http://{}:{}{path}", self.ip, self.base_port + 1)
    }

    /// The address of the mesh listener.
    pub fn mesh_address(&self) -> String {
        format!("{}:{}", self.ip, self.base_port + 2)
    }

    /// The URL of a path of the console.
    pub fn console_url(&self, path: &str) -> String {
        format!("http://{}:{}{path}", self.ip, self.base_port + 3)
    }

    /// Posts to `/v1/traces`.
    ///
    /// # Panics
    /// When there is no answer.
    pub fn post(&self, content_type: &str, body: &[u8]) -> Answer {
        http::post(&self.http_url("/v1/traces"), &[("content-type", content_type)], body)
    }

    /// Posts a protobuf request, again while the node puts clients off, as it does when another
    /// one did not answer it in time.
    ///
    /// # Panics
    /// When there is no answer, or another than 200 and 503; at the deadline.
    pub fn deliver(&self, body: &[u8]) {
        wait_until("a node to take a request", || {
            let answer = self.post("application/x-protobuf", body);
            assert!([200, 503].contains(&answer.status), "{}", answer.text());
            answer.status == 200
        });
    }

    /// Whether it accepts spans.
    pub fn is_ready(&self) -> bool {
        http::try_get(&self.console_url("/readyz")).is_some_and(|answer| answer.status == 200)
    }

    /// Waits until it accepts spans.
    ///
    /// # Panics
    /// When it ends, or at the deadline.
    pub fn wait_until_ready(&mut self) {
        wait_until("a node to be ready", || {
            let ended = self.program.ended();
            assert!(ended.is_none(), "the node ended before it was ready: {ended:?}");
            self.is_ready()
        });
    }

    /// Waits until it counts `count` active members, itself included.
    ///
    /// # Panics
    /// At the deadline.
    pub fn wait_for_members(&self, count: usize) {
        wait_until(&format!("{count} members"), || self.member_count() == count);
    }

    /// Active members that it sees, itself included.
    pub fn member_count(&self) -> usize {
        self.metrics().sum("tracemesh_members", &[("state", "active")]) as usize
    }

    /// All its metrics now; none while it does not serve them.
    pub fn metrics(&self) -> Metrics {
        let answer = http::try_get(&self.console_url("/metrics"));
        answer.map_or_else(Metrics::default, |answer| Metrics::read(&answer.text()))
    }

    /// Waits until the sum of a metric is `value`.
    ///
    /// # Panics
    /// At the deadline.
    pub fn wait_for_metric(&self, name: &str, labels: &[(&str, &str)], value: f64) {
        let what = format!("{name}{labels:?} to be {value}");
        wait_until(&what, || self.metrics().sum(name, labels) == value);
    }

    /// The trace file.
    pub fn trace_file(&self) -> &Path {
        &self.trace_file
    }

    /// The traces that it has written.
    pub fn traces(&self) -> Vec<Line> {
        traces::read(&self.trace_file)
    }

    /// Waits until the trace file has a line of `trace_id`.
    ///
    /// # Panics
    /// At the deadline.
    pub fn wait_for_trace(&self, trace_id: &str) -> Line {
        let is_it = |line: &Line| line.trace_id == trace_id;
        wait_for(&format!("trace {trace_id}"), || self.traces().into_iter().find(is_it))
    }

    /// Drains it with SIGTERM and waits for its end.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn stop(&mut self) -> ExitStatus {
        self.program.terminate();
        self.program.wait()
    }

    /// The process.
    pub fn program(&mut self) -> &mut Program {
        &mut self.program
    }

    /// Everything that it has printed until now.
    pub fn output(&self) -> String {
        self.program.output()
    }
}
