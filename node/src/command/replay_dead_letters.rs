//! `tracemesh replay-dead-letters`: sends what a sink refused once more.
//!
//! One letter after the other, in the order of the file, each waited for; a letter that is larger
//! than a request goes in several. The file is only read. The invariant: every line before the one
//! that is named at the end was sent, refused or found damaged, and was told. What passes (a server
//! that is full or not there) is waited for, [`TRY_FOR`] a letter. Bounded by one letter in memory.

use super::{Exit, Misuse};
use crate::config::{self, Flags, Surroundings};
use crate::node::sink_configs;
use crate::sink::{
    ATTEMPT_MAX, Answer, Client, Compression, Letter, Protocol, SinkConfig, Target, encode, named,
    read_letter,
};
use crate::tls::ClientFiles;
use anyhow::bail;
use http::Uri;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long a letter is tried that a server does not take now, or that reaches none.
const TRY_FOR: Duration = Duration::from_secs(60);
/// Between two tries, unless the server asks for more.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest line: a trace of the largest size, 1 GiB, in base64.
const LINE_BYTES_MAX: u64 = 3 << 29;
/// The largest request: collectors take 4 MiB.
const REQUEST_BYTES_MAX: usize = 3 << 20;

const EXAMPLE: &str = "\
Examples:
  tracemesh replay-dead-letters tracemesh-data/a/dead-letters/otlp.jsonl --config tracemesh.yaml
  tracemesh replay-dead-letters otlp.jsonl --to http://127.0.0.1:4318 --protocol http

Without --to, a letter goes to the sink of the configuration that refused it, with its headers and
certificates. A node is no good target: it remembers traces that are done, and would take these for
repeated ones.

The file is only read; sent twice, letters arrive twice. When it stops early, it says the line with
which --from-line goes on: all before it need not be sent again, and of the letter in that line the
target may have a part.

Exit codes: 0 all was sent; 1 a line is damaged or was refused again (each is told, and the rest is
sent), or it stopped early; 2 usage.";

/// What to send, and where.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct Arguments {
    /// The dead-letter file
    file: PathBuf,
    /// OTLP server to send to
    #[arg(long, value_name = "URL")]
    to: Option<Uri>,
    /// What the server of --to speaks: grpc or http
    #[arg(long, value_enum, default_value = "grpc", requires = "to")]
    protocol: Spoken,
    /// Configuration that has the sinks (YAML)
    #[arg(long, value_name = "FILE", conflicts_with = "to")]
    config: Option<PathBuf>,
    /// Go on with this line of the file
    #[arg(long, value_name = "N", default_value = "1")]
    from_line: u64,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Spoken {
    Grpc,
    Http,
}

/// How it went.
#[derive(Debug, Default, Serialize)]
struct Summary {
    letters_sent: u64,
    spans_sent: u64,
    /// Of the letters sent, spans that the target said it will never take.
    spans_rejected: u64,
    letters_refused: u64,
    lines_damaged: u64,
    /// The line with which to go on; the one behind the last when all is done.
    next_line: u64,
}

/// What became of one letter.
enum Sent {
    /// Spans that were rejected.
    Taken(u64),
    /// And why.
    Refused(String),
    /// And why.
    Stopped(String),
}

/// Sends the letters of a file.
pub(super) async fn run(
    arguments: &Arguments,
    surroundings: &Surroundings,
    output: &mut dyn Write,
) -> anyhow::Result<Exit> {
    let name = arguments.file.display();
    let file = File::open(&arguments.file);
    let file = file.map_err(|error| Misuse(format!("cannot open {name}: {error}")))?;
    let mut lines = Lines { input: BufReader::new(file), number: 0, line: Vec::new() };
    let targets = Targets::of(arguments, surroundings)?;
    let mut summary = Summary::default();
    let stopped = loop {
        summary.next_line = lines.number + 1;
        match lines.next() {
            Ok(true) => {}
            Ok(false) => break None,
            Err(error) => break Some(format!("cannot read {name}: {error:#}")),
        }
        let number = lines.number;
        if number < arguments.from_line {
            continue;
        }
        let letter = match read_letter(&lines.line) {
            Ok(letter) => letter,
            Err(damage) => {
                summary.lines_damaged += 1;
                tell(arguments, output, &format!("line {number}: {damage}"))?;
                continue;
            }
        };
        let client = match targets.client(&letter.sink) {
            Ok(client) => client,
            Err(reason) => break Some(reason),
        };
        match send(client, &letter).await {
            Sent::Taken(rejected) => {
                summary.letters_sent += 1;
                summary.spans_sent += u64::from(letter.attempt.span_count).saturating_sub(rejected);
                summary.spans_rejected += rejected;
            }
            Sent::Refused(reason) => {
                summary.letters_refused += 1;
                tell(arguments, output, &format!("line {number}: refused again: {reason}"))?;
            }
            Sent::Stopped(reason) => break Some(reason),
        }
    };
    print(arguments, output, &summary)?;
    if let Some(reason) = stopped {
        let next = summary.next_line;
        bail!("stopped before line {next}: {reason}; go on with --from-line {next}");
    }
    let is_clean = summary.lines_damaged + summary.letters_refused + summary.spans_rejected == 0;
    Ok(if is_clean { Exit::Done } else { Exit::Failed })
}

fn tell(arguments: &Arguments, output: &mut dyn Write, text: &str) -> io::Result<()> {
    if arguments.json { Ok(()) } else { writeln!(output, "{text}") }
}

fn print(arguments: &Arguments, output: &mut dyn Write, summary: &Summary) -> anyhow::Result<()> {
    if arguments.json {
        writeln!(output, "{}", serde_json::to_string(summary)?)?;
        return Ok(());
    }
    let Summary { letters_sent, spans_sent, spans_rejected, .. } = summary;
    let Summary { letters_refused, lines_damaged, .. } = summary;
    writeln!(output, "sent {spans_sent} spans of {letters_sent} traces")?;
    for (count, what) in [
        (spans_rejected, "of these, spans rejected"),
        (letters_refused, "traces refused again"),
        (lines_damaged, "lines damaged"),
    ] {
        if *count > 0 {
            writeln!(output, "{what}: {count}")?;
        }
    }
    Ok(())
}

/// Sends a letter until it is taken or refused.
async fn send(client: &Client, letter: &Letter) -> Sent {
    let attempt = [Arc::new(letter.attempt.clone())];
    let give_up = Instant::now() + TRY_FOR;
    let mut rejected = 0;
    for request in encode(&attempt, REQUEST_BYTES_MAX) {
        loop {
            let answer = client.call(request.clone(), Instant::now() + ATTEMPT_MAX).await;
            let (after, reason) = match answer {
                Answer::Taken { rejected_span_count, .. } => {
                    rejected += rejected_span_count;
                    break;
                }
                Answer::Never { reason } => return Sent::Refused(reason),
                Answer::Barred { reason } => return Sent::Stopped(reason),
                Answer::Later { after, reason } => (after.unwrap_or_default(), reason),
                Answer::Unreached { reason } | Answer::Unanswered { reason } => {
                    (Duration::ZERO, reason)
                }
            };
            let next = Instant::now() + after.max(PAUSE);
            if next > give_up {
                return Sent::Stopped(reason);
            }
            sleep(next - Instant::now()).await;
        }
    }
    Sent::Taken(rejected)
}

/// Where letters go.
enum Targets {
    One(Client),
    /// By the name of the sink that refused.
    Sinks(BTreeMap<String, Client>),
}

impl Targets {
    fn of(arguments: &Arguments, surroundings: &Surroundings) -> anyhow::Result<Self> {
        let Some(url) = &arguments.to else {
            let flags = Flags { config: arguments.config.clone(), ..Flags::default() };
            let configs = sink_configs(&config::load(&flags, surroundings)?);
            let mut sinks = BTreeMap::new();
            for (name, config) in named(&configs) {
                if let SinkConfig::Otlp(otlp) = config {
                    let client = client(&name, &otlp.target)?;
                    sinks.insert(name, client);
                }
            }
            return Ok(Self::Sinks(sinks));
        };
        let protocol = match arguments.protocol {
            Spoken::Grpc => Protocol::Grpc,
            Spoken::Http => Protocol::Http,
        };
        if !matches!(url.scheme_str(), Some("http" | "https")) || url.host().is_none() {
            return Err(Misuse(format!("--to {url}: expected http://HOST:PORT")).into());
        }
        let target = Target {
            endpoints: vec![url.clone()],
            protocol,
            compression: Compression::Gzip,
            headers: Vec::new(),
            tls: ClientFiles::default(),
        };
        Ok(Self::One(client("--to", &target)?))
    }

    /// The client for letters of this sink, or why there is none.
    fn client(&self, sink: &str) -> Result<&Client, String> {
        let sinks = match self {
            Self::One(client) => return Ok(client),
            Self::Sinks(sinks) => sinks,
        };
        // What other sinks refused, and what was never decided, has no server of its own.
        let advice = if sink.starts_with("otlp") {
            "name the configuration that has it with --config, or a target with --to"
        } else {
            "name a target with --to"
        };
        let client = sinks.get(sink);
        client.ok_or_else(|| format!("{sink:?} is no OTLP sink of the configuration; {advice}"))
    }
}

fn client(name: &str, target: &Target) -> anyhow::Result<Client> {
    let clock = crate::environment::Environment::real().wall_clock;
    // Certificates that change while this runs are those of the next run.
    let (client, _files) = Client::new(name, target, &clock)?;
    Ok(client)
}

/// Lines of a file, one in memory.
struct Lines<R> {
    input: R,
    /// Of the line last read, counted from 1.
    number: u64,
    line: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    /// Reads the next line; false when there is none.
    fn next(&mut self) -> anyhow::Result<bool> {
        self.line.clear();
        let mut input = self.input.by_ref().take(LINE_BYTES_MAX);
        let length = input.read_until(b'\n', &mut self.line)?;
        if length as u64 == LINE_BYTES_MAX {
            bail!("line {} is longer than {LINE_BYTES_MAX} bytes", self.number + 1);
        }
        self.number += u64::from(length > 0);
        Ok(length > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::{DeadLetters, Metrics};
    use crate::spans::{Chunk, Resource, Scope, TraceId};
    use clap::Parser;
    use prometheus_client::registry::Registry;
    use std::time::SystemTime;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    /// A file of three letters of one span each, for which `sink` had no use.
    fn letters(sink: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("otlp.jsonl");
        let metrics = Metrics::register(&mut Registry::default());
        let clock: crate::environment::WallClock = Arc::new(|| SystemTime::UNIX_EPOCH);
        let letters = DeadLetters::new(path.clone(), 1 << 20, sink.into(), clock, &metrics);
        for number in 1..=3 {
            // The fields of a trace id and a span id.
            let ids = [&[0x0a, 16][..], &[number; 16], &[0x12, 8], &[number; 8]].concat();
            let spans = [&[0x12, ids.len() as u8][..], &ids].concat();
            let resource = Arc::new(Resource { fields: Box::default() });
            let scope = Arc::new(Scope { resource, fields: Box::default() });
            let chunks = vec![Chunk { scope, spans: spans.into() }];
            let trace_id = TraceId([number; 16]);
            let attempt =
                crate::sink::Attempt { trace_id, chunks, span_count: 1, bytes: 1, due: None };
            letters.write(&attempt, "no").unwrap();
        }
        (directory, path)
    }

    async fn replayed(path: &std::path::Path, more: &[&str]) -> (Result<Exit, String>, String) {
        let line = [&["replay", path.to_str().unwrap()], more].concat();
        let Line { arguments } = Line::parse_from(line);
        let mut output = Vec::new();
        let surroundings = Surroundings { host_name: "a".to_owned(), ..Surroundings::default() };
        let exit = run(&arguments, &surroundings, &mut output).await;
        let exit = exit.map_err(|error| {
            let kind = if error.is::<Misuse>() { "misuse: " } else { "" };
            format!("{kind}{error:#}")
        });
        (exit, String::from_utf8(output).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn what_reaches_nobody_stops_with_the_line_to_go_on_with() {
        let (_directory, path) = letters("otlp");
        let to = ["--to", "http://127.0.0.1:1", "--from-line", "2"];
        let (exit, output) = replayed(&path, &to).await;
        let error = exit.unwrap_err();
        assert!(error.starts_with("stopped before line 2: "), "{error}");
        assert!(error.ends_with("go on with --from-line 2"), "{error}");
        assert_eq!(output, "sent 0 spans of 0 traces\n");
    }

    #[tokio::test]
    async fn lines_before_the_first_are_not_looked_at() {
        let (_directory, path) = letters("otlp");
        std::fs::write(&path, "damaged\n\nalso\n").unwrap();
        let to = ["--to", "http://127.0.0.1:1", "--from-line", "3"];
        let (exit, output) = replayed(&path, &to).await;
        assert_eq!(exit, Ok(Exit::Failed));
        assert!(output.starts_with("line 3: no dead letter: "), "{output}");
        assert!(output.ends_with("sent 0 spans of 0 traces\nlines damaged: 1\n"), "{output}");
    }

    #[tokio::test]
    async fn letter_without_a_sink_stops_with_the_line_to_go_on_with() {
        for (sink, advice) in [("otlp", "--config, or a target with --to"), ("undecided", "--to")] {
            let (_directory, path) = letters(sink);
            let (exit, output) = replayed(&path, &["--from-line", "2"]).await;
            let error = exit.unwrap_err();
            let begin = format!("stopped before line 2: {sink:?} is no OTLP sink");
            assert!(error.starts_with(&begin), "{error}");
            assert!(error.ends_with(&format!("{advice}; go on with --from-line 2")), "{error}");
            assert_eq!(error.contains("--config"), sink == "otlp", "{error}");
            assert_eq!(output, "sent 0 spans of 0 traces\n");
        }
    }

    #[tokio::test]
    async fn file_that_cannot_be_read_to_its_end_stops_with_the_line_to_go_on_with() {
        let directory = tempfile::tempdir().unwrap();
        let (exit, output) = replayed(directory.path(), &["--to", "http://127.0.0.1:1"]).await;
        let error = exit.unwrap_err();
        assert!(error.starts_with("stopped before line 1: cannot read "), "{error}");
        assert_eq!(output, "sent 0 spans of 0 traces\n");
    }

    #[tokio::test]
    async fn what_cannot_be_begun_is_misuse() {
        let (directory, path) = letters("otlp");
        let (exit, _) = replayed(&path, &["--to", "collector:4317"]).await;
        assert!(exit.unwrap_err().starts_with("misuse: --to collector:4317: expected http://"));
        let (exit, _) = replayed(&directory.path().join("nothing"), &[]).await;
        assert!(exit.unwrap_err().starts_with("misuse: cannot open "));
    }
}
