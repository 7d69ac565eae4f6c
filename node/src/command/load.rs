//! `tracemesh load`: sends traces as a crowd of OTLP clients would, takes what comes out, and says
//! whether every acknowledged span came out once and every trace in one piece.
//!
//! ```text
//! plan ─► generator ─► sender, client ─► the system under load ─► receiver, file
//!   └───────────────────────┴──────────────► arrivals (ledger) ◄──────┘ ─► report
//! ```
//!
//! The invariant: only what an OTLP success acknowledged is asked for, and nothing else excuses a
//! span that is missing. The run owns all its tasks and drops them when it ends. It is a client
//! like any other: it shares neither a scanner nor a codec nor a clock with the nodes, so it can
//! find their faults, and it is never simulated.

mod arrivals;
mod client;
mod codec;
mod file;
mod generator;
mod ledger;
mod plan;
mod processes;
mod receiver;
mod report;
mod scan;
mod sender;

use self::arrivals::Arrivals;
use self::client::{Client, Sending};
use self::file::Follower;
use self::generator::Generator;
use self::plan::{Plan, SPANS_PER_TRACE_MAX, Shape};
use self::processes::{Meter, Process};
use self::report::{Allowed, Report};
use self::sender::{Pace, Sender};
use anyhow::{Context, bail};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::select;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::codec::CompressionEncoding;
use tonic::transport::Uri;

/// Spans of a run that says neither how many spans nor how long.
const SPANS_DEFAULT: u64 = 100_000;
/// Spans of a trace, unless told otherwise.
const SPANS_PER_TRACE: u64 = 8;
/// Spans of a request, unless told otherwise.
const REQUEST_SPANS: u64 = 512;
/// Requests under way when the rate is what the targets can take: enough to keep them busy.
const REQUESTS_IN_FLIGHT: usize = 32;
/// Requests under way at a fixed rate: with 512 spans each, ten seconds of 20,000 spans a second,
/// so that a target that stands still for its deadline does not hold up the others; 100 MB.
const REQUESTS_IN_FLIGHT_AT_RATE: usize = 400;

/// Load a mesh with generated traces and verify what comes out.
///
/// The spans of each trace are dealt out over all targets. With --listen, or --verify-file, or
/// both, it verifies that every acknowledged span came out, none twice, and no trace in parts.
/// Exit code: 0 when all is well, 1 when not, 2 for bad arguments.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Example: three nodes on this host whose sink is `--sink otlp=http://127.0.0.1:4327`
  tracemesh load --target http://127.0.0.1:4317 --target http://127.0.0.1:5317 \\
      --target http://127.0.0.1:6317 --listen 127.0.0.1:4327 --spans 200000")]
pub(super) struct Arguments {
    /// OTLP gRPC address of a node, as http://HOST:PORT; repeat for several
    #[arg(long = "target", value_name = "URL", value_parser = target)]
    #[arg(default_value = "http://127.0.0.1:4317")]
    pub targets: Vec<Uri>,
    /// Send so many spans, rounded up to whole traces [default: 100000]
    #[arg(long, value_name = "COUNT", conflicts_with = "duration")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub spans: Option<u64>,
    /// Send for so long
    #[arg(long, value_parser = duration)]
    pub duration: Option<Duration>,
    /// Spans a second; 0 for as fast as they are acknowledged
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub rate: u64,
    /// Spans of a trace
    #[arg(long, value_name = "COUNT", default_value_t = SPANS_PER_TRACE)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=SPANS_PER_TRACE_MAX))]
    pub spans_per_trace: u64,
    /// Spans of a request
    #[arg(long, value_name = "COUNT", default_value_t = REQUEST_SPANS)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub request_spans: u64,
    /// Spread the spans of a trace over so much time; needs --rate
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "rate")]
    pub trace_time: Option<Duration>,
    /// Requests under way at a time [default: 32, with --rate 400]
    #[arg(long, value_name = "COUNT", value_parser = at_least_one)]
    pub requests_in_flight: Option<usize>,
    /// Connections to each target
    #[arg(long, value_name = "COUNT", value_parser = at_least_one, default_value = "2")]
    pub connections: usize,
    /// Compression of requests
    #[arg(long, value_enum, default_value_t = Compression::None)]
    pub compression: Compression,
    /// Time for one try of a request
    #[arg(long, value_parser = duration, default_value = "10s")]
    pub deadline: Duration,
    /// Give a request up when it keeps failing for so long
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "60s")]
    pub give_up_after: Duration,
    /// Take OTLP gRPC exports of the nodes here and verify them
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<SocketAddr>,
    /// Follow a file that a node's file sink writes and verify it; repeat for several
    #[arg(long = "verify-file", value_name = "FILE")]
    pub verify_files: Vec<PathBuf>,
    /// Wait for what is missing until nothing came for so long
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "60s")]
    pub settle: Duration,
    /// Stay for so long when all has come, to see what comes twice
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "2s")]
    pub linger: Duration,
    /// Allow spans to come out twice, in any number of traces or in at most COUNT
    #[arg(long, value_name = "COUNT", num_args = 0..=1, require_equals = true)]
    #[arg(default_value_t = 0, default_missing_value = "18446744073709551615")]
    pub allow_twice: u64,
    /// Allow traces to come out in parts, any number or at most COUNT
    #[arg(long, value_name = "COUNT", num_args = 0..=1, require_equals = true)]
    #[arg(default_value_t = 0, default_missing_value = "18446744073709551615")]
    pub allow_parts: u64,
    /// Measure processor time and memory of this process; repeat for several
    #[arg(long = "pid", value_name = "PID")]
    pub pids: Vec<u32>,
    /// Make ids and contents from this number [default: from the clock]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

/// Compression of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Compression {
    /// As they are.
    None,
    /// `grpc-encoding: gzip`.
    Gzip,
    /// `grpc-encoding: zstd`.
    Zstd,
}

fn target(text: &str) -> Result<Uri, String> {
    let uri: Uri = text.parse().map_err(|error| format!("{error}; expected http://HOST:PORT"))?;
    match (uri.scheme_str(), uri.port_u16(), uri.path()) {
        (Some("http"), Some(_), "" | "/") => Ok(uri),
        _ => Err("expected http://HOST:PORT".to_owned()),
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("expected at least 1".to_owned()),
        Ok(count) => Ok(count),
        Err(error) => Err(error.to_string()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (count, unit) = text.split_at(digits);
    let unit = match unit {
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        "h" => Duration::from_secs(3600),
        _ => return Err("expected a number with ms, s, m or h, as in 250ms".to_owned()),
    };
    let count: u32 = count.parse().map_err(|error| format!("{error}"))?;
    unit.checked_mul(count).ok_or_else(|| "too long".to_owned())
}

/// Runs the command: prints a report on standard output, or one line on standard error.
///
/// # Errors
/// When a line cannot be printed, or a file that is followed cannot be read any more.
pub(super) async fn load(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let (interrupt, mut interrupts) = mpsc::channel(1);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while tokio::signal::ctrl_c().await.is_ok() {
            if interrupt.send(()).await.is_err() {
                break;
            }
        }
    });
    let is_json = arguments.json;
    let run = match Run::prepare(arguments).await {
        Ok(run) => run,
        Err(error) => {
            writeln!(std::io::stderr(), "tracemesh load: {error:#}")?;
            return Ok(ExitCode::from(2));
        }
    };
    if let Some(address) = run.address {
        writeln!(std::io::stderr(), "tracemesh load: receiving on {address}")?;
    }
    let report = run.run(&mut interrupts).await?;
    let mut output = std::io::stdout().lock();
    if is_json {
        serde_json::to_writer(&mut output, &report)?;
        writeln!(output)?;
    } else {
        write!(output, "{report}")?;
    }
    Ok(if report.good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Everything that a run needs, with its ports bound, files open and processes found.
#[derive(Debug)]
struct Run {
    sender: Sender,
    arrivals: Arc<Arrivals>,
    /// The receiver and the followers of files; none of them ends while all is well.
    watchers: JoinSet<anyhow::Result<()>>,
    /// Where the receiver listens.
    address: Option<SocketAddr>,
    processes: Vec<Meter>,
    own: Meter,
    arguments: Arguments,
    seed: u64,
}

impl Run {
    /// Checks what can be checked before anything is sent.
    async fn prepare(arguments: Arguments) -> anyhow::Result<Self> {
        let seed = arguments.seed.unwrap_or_else(nanoseconds_since_1970);
        let plan = plan_of(&arguments, seed);
        let arrivals = Arc::new(Arrivals::new(plan));
        let mut watchers = JoinSet::new();
        let mut address = None;
        if let Some(listen) = arguments.listen {
            let listener = TcpListener::bind(listen)
                .await
                .with_context(|| format!("cannot listen on {listen}"))?;
            address = Some(listener.local_addr()?);
            let arrivals = Arc::clone(&arrivals);
            watchers.spawn(async { Ok(receiver::receive(listener, arrivals).await?) });
        }
        for path in &arguments.verify_files {
            let follower = Follower::open(path).await?;
            watchers.spawn(follower.follow(Arc::clone(&arrivals)));
        }
        let processes = arguments.pids.iter().map(|pid| Meter::start(Process::Id(*pid)));
        let processes = processes.collect::<anyhow::Result<_>>()?;
        let own = Meter::start(Process::Own)?;
        let sender = sender_of(&arguments, plan, seed);
        Ok(Self { sender, arrivals, watchers, address, processes, own, arguments, seed })
    }

    /// Sends, waits for what comes out, and says what was found.
    async fn run(mut self, interrupts: &mut mpsc::Receiver<()>) -> anyhow::Result<Report> {
        let tally = self.sender.send(&self.arrivals, interrupts).await;
        let verification = if self.watchers.is_empty() {
            None
        } else {
            select! {
                biased;
                // An interrupt now ends the waiting, and what is known is reported.
                _ = interrupts.recv() => {}
                Some(ended) = self.watchers.join_next() => {
                    ended??;
                    bail!("the receiver ended");
                }
                () = settle(&self.arrivals, &self.arguments) => {}
            }
            Some(self.arrivals.with(|ledger| ledger.findings(tally.trace_count)))
        };
        let cost = |meter: Meter| meter.cost(tally.spans_acknowledged);
        let allowed = Allowed {
            traces_twice: self.arguments.allow_twice,
            traces_in_parts: self.arguments.allow_parts,
        };
        let processes = self.processes.into_iter().map(cost).collect();
        let own = cost(self.own);
        Ok(Report::new(self.seed, &tally, verification, allowed, processes, own))
    }
}

/// Waits until nothing is missing and a little longer, or until nothing came for long enough.
async fn settle(arrivals: &Arrivals, arguments: &Arguments) {
    while arrivals.with(|ledger| ledger.missing()) > 0 {
        if timeout(arguments.settle, arrivals.changed()).await.is_err() {
            return;
        }
    }
    sleep(arguments.linger).await;
}

/// The first requests that `load` sends to so many targets, and the number of spans in them; for
/// benchmarks.
pub fn load_requests(target_count: u64, request_count: usize) -> (Vec<Bytes>, u64) {
    let shape = Shape {
        seed: 1,
        spans_per_trace: SPANS_PER_TRACE,
        trace_count: None,
        target_count,
        request_spans: REQUEST_SPANS,
    };
    let plan = Plan::new(shape);
    let mut generator = Generator::new(plan, shape.seed);
    let now = nanoseconds_since_1970();
    let requests = plan.schedule(0).take(request_count);
    let requests: Vec<_> = requests.map(|request| generator.request(request, now)).collect();
    let span_count = requests.iter().map(|(_, span_count)| span_count).sum();
    (requests.into_iter().map(|(bytes, _)| bytes).collect(), span_count)
}

fn plan_of(arguments: &Arguments, seed: u64) -> Plan {
    let spans = match arguments.duration {
        Some(_) => None,
        None => Some(arguments.spans.unwrap_or(SPANS_DEFAULT)),
    };
    Plan::new(Shape {
        seed,
        spans_per_trace: arguments.spans_per_trace,
        trace_count: spans.map(|spans| spans.div_ceil(arguments.spans_per_trace)),
        target_count: arguments.targets.len() as u64,
        request_spans: arguments.request_spans,
    })
}

fn sender_of(arguments: &Arguments, plan: Plan, seed: u64) -> Sender {
    let rate = (arguments.rate > 0).then_some(arguments.rate as f64);
    let request_interval = rate.map_or(Duration::ZERO, |rate| {
        Duration::from_secs_f64(arguments.request_spans as f64 / rate)
    });
    let lag = plan.lag(arguments.trace_time.unwrap_or_default(), request_interval);
    let sending = Sending {
        deadline: arguments.deadline,
        give_up_after: arguments.give_up_after,
        compression: match arguments.compression {
            Compression::None => None,
            Compression::Gzip => Some(CompressionEncoding::Gzip),
            Compression::Zstd => Some(CompressionEncoding::Zstd),
        },
        connections: arguments.connections,
    };
    let requests_in_flight = match rate {
        Some(_) => REQUESTS_IN_FLIGHT_AT_RATE,
        None => REQUESTS_IN_FLIGHT,
    };
    Sender {
        plan,
        schedule: plan.schedule(lag),
        generator: Generator::new(plan, seed),
        client: Arc::new(Client::new(&arguments.targets, sending)),
        pace: Pace {
            rate,
            requests_in_flight: arguments.requests_in_flight.unwrap_or(requests_in_flight),
            duration: arguments.duration,
        },
        wall_clock: nanoseconds_since_1970,
    }
}

#[expect(clippy::disallowed_methods, reason = "a load generator is a client, never simulated")]
fn nanoseconds_since_1970() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or_default().as_nanos() as u64
}

#[cfg(test)]
mod tests;
