//! `tracemesh drain`: end a node in order, and say how it went.
//!
//! Asks the node's console, which takes this from its own host only, and keeps a second request
//! open that the node answers as the last thing it does. What this command cannot know is what
//! comes after that answer: the node's own exit code is the authority. Bounded by the node's own
//! `drain.announce` and `drain.timeout`; interrupting this command does not stop the drain.

use super::Exit;
use super::console::{self, Console};
use crate::status::{Ending, SpansHeld, Status};
use anyhow::Context;
use http::{Method, StatusCode, Uri};
use serde::Serialize;
use std::io::Write;
use std::pin::pin;
use std::time::Duration;
use tokio::time::{sleep, timeout};

const PATH: &str = "/api/v1/drain";
/// How often it says how far the node is.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After its last word a node closes what is open and is gone.
const GONE_MAX: Duration = Duration::from_secs(30);
/// How often it looks whether the node is gone.
const GONE_EVERY: Duration = Duration::from_millis(50);

const EXAMPLE: &str = "\
Example:
  tracemesh drain --node http://127.0.0.1:4320

The node does what it does on SIGTERM: accepts for drain.announce, then leaves, hands on what it
holds, and ends. Exit codes: 0 drained, 3 ended with spans left over, 1 not asked, or ended without
saying how. The node's own exit code is the authority.";

/// Which node.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct Arguments {
    /// Console of the node, on this host
    #[arg(long, value_name = "URL", default_value = console::DEFAULT)]
    node: Uri,
    /// Print how it ended as JSON, and nothing before
    #[arg(long)]
    json: bool,
}

/// What is printed with `--json`.
#[derive(Serialize)]
struct Report {
    id: String,
    #[serde(flatten)]
    ending: Ending,
}

/// Drains a node and waits until it is gone.
pub(super) async fn run(arguments: &Arguments, output: &mut dyn Write) -> anyhow::Result<Exit> {
    let console = Console::new(arguments.node.clone());
    let asked = console.ask(Method::POST, PATH).await?;
    console.expect(&asked, asked.code == StatusCode::ACCEPTED)?;
    let first: Status = console.parse(&asked.body)?;
    let id = first.id.clone();
    let mut told = Told { output, quiet: arguments.json, last: None };
    told.tell(&first)?;
    let ending = wait(&console, &id, &mut told).await?;
    if arguments.json {
        let report = Report { id, ending };
        writeln!(told.output, "{}", serde_json::to_string(&report)?)?;
    } else {
        writeln!(told.output, "{id} {}", words(ending))?;
    }
    Ok(match ending {
        Ending::Drained => Exit::Done,
        Ending::Left { .. } => Exit::Unfinished,
        Ending::Failed => Exit::Failed,
    })
}

/// Waits for the node's last word, telling how far it is meanwhile, and until it is gone.
async fn wait(console: &Console, id: &str, told: &mut Told<'_>) -> anyhow::Result<Ending> {
    let mut last_word = pin!(console.wait(PATH));
    let answer = loop {
        tokio::select! {
            biased;
            answer = &mut last_word => break answer,
            () = sleep(LOOK_EVERY) => {
                // It may be ending at this moment; its last word is what counts.
                if let Ok(body) = console.get("/api/v1/status").await {
                    told.tell(&console.parse(&body)?)?;
                }
            }
        }
    };
    let answer = answer.with_context(|| {
        let held = told.last.map_or(0, total);
        format!(
            "{id} is gone without saying how it ended; when last seen it held {held} spans, and \
             its own exit code and log tell the rest"
        )
    })?;
    console.expect(&answer, answer.code.is_success())?;
    let ending = console.parse(&answer.body)?;
    let gone = async {
        while console.get("/healthz").await.is_ok() {
            sleep(GONE_EVERY).await;
        }
    };
    // It said how it ended; what keeps its process is in its log.
    let _ = timeout(GONE_MAX, gone).await;
    Ok(ending)
}

/// Tells how far the node is, whenever that changed.
struct Told<'a> {
    output: &'a mut dyn Write,
    quiet: bool,
    last: Option<SpansHeld>,
}

impl Told<'_> {
    fn tell(&mut self, status: &Status) -> anyhow::Result<()> {
        let held = status.spans_held;
        if self.last.replace(held) == Some(held) || self.quiet {
            return Ok(());
        }
        writeln!(self.output, "{} is draining: {} spans held", status.id, total(held))?;
        // Whoever watches sees it now.
        Ok(self.output.flush()?)
    }
}

fn total(held: SpansHeld) -> u64 {
    held.owner + held.replica + held.stand_in
}

fn words(ending: Ending) -> String {
    match ending {
        Ending::Drained => "drained; it held nothing any more".to_owned(),
        Ending::Left { span_count } => {
            format!("ended with {span_count} spans left over; its log says what became of them")
        }
        Ending::Failed => "ended because it could not go on; its log says why".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::testing::{Nodes, status};
    use axum::Json;
    use axum::body::{Body, Bytes};
    use axum::routing::{get, post};
    use futures_util::stream::iter;
    use std::io;

    async fn drained(nodes: &Nodes, json: bool) -> (anyhow::Result<Exit>, String) {
        let (arguments, mut output) = (Arguments { node: nodes.url(), json }, Vec::new());
        let exit = run(&arguments, &mut output).await;
        (exit, String::from_utf8(output).unwrap())
    }

    #[tokio::test]
    async fn last_word_of_the_node_is_the_exit_code() {
        for (ending, exit, said) in [
            (Ending::Drained, Exit::Done, "a drained; it held nothing any more\n"),
            (Ending::Left { span_count: 7 }, Exit::Unfinished, "a ended with 7 spans left over"),
            (Ending::Failed, Exit::Failed, "a ended because it could not go on"),
        ] {
            let drain = post(|| async { (StatusCode::ACCEPTED, Json(status("a"))) });
            let nodes = Nodes::start(|router| {
                router.route(PATH, drain.get(move || async move { Json(ending) }))
            });
            let (code, output) = drained(&nodes.await, false).await;
            assert_eq!(code.unwrap(), exit);
            assert!(output.starts_with("a is draining: 6 spans held\n"), "{output}");
            assert!(output.contains(said), "{output}");
        }
    }

    #[tokio::test]
    async fn json_is_one_document() {
        let drain = post(|| async { (StatusCode::ACCEPTED, Json(status("a"))) });
        let drain = drain.get(|| async { Json(Ending::Left { span_count: 7 }) });
        let nodes = Nodes::start(|router| router.route(PATH, drain)).await;
        let (_, output) = drained(&nodes, true).await;
        assert_eq!(output, "{\"id\":\"a\",\"ended\":\"left\",\"span_count\":7}\n");
    }

    #[tokio::test]
    async fn refusal_and_stranger_are_told_as_they_are() {
        let refuse = post(|| async { (StatusCode::FORBIDDEN, "not from there\nat all") });
        let nodes = Nodes::start(|router| router.route(PATH, refuse)).await;
        let error = drained(&nodes, false).await.0.unwrap_err().to_string();
        assert!(error.ends_with("answers 403 Forbidden: not from there"), "{error}");

        let other = Nodes::start(|router| router.route("/", get(|| async {}))).await;
        let error = drained(&other, false).await.0.unwrap_err().to_string();
        assert!(error.contains("404"), "{error}");

        let other = post(|| async { (StatusCode::ACCEPTED, "welcome") });
        let nodes = Nodes::start(|router| router.route(PATH, other)).await;
        let error = drained(&nodes, false).await.0.unwrap_err().to_string();
        assert!(error.contains("no console"), "{error}");
    }

    #[tokio::test]
    async fn node_that_is_gone_without_a_word_is_said_so() {
        let drain = post(|| async { (StatusCode::ACCEPTED, Json(status("a"))) });
        let lost = || iter([Err::<Bytes, _>(io::Error::other("as in a crash"))]);
        let drain = drain.get(async move || Body::from_stream(lost()));
        let nodes = Nodes::start(|router| router.route(PATH, drain)).await;
        let error = drained(&nodes, false).await.0.unwrap_err().to_string();
        assert!(error.contains("held 6 spans"), "{error}");
    }
}
