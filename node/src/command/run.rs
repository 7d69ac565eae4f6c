//! `tracemesh run`: start a node, say every address, wait, drain.

use super::Exit;
use crate::allocator;
use crate::config::{Config, Log, LogFormat};
use crate::environment::Environment;
use crate::node::{End, Node};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::IsTerminal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::filter::LevelFilter;

/// Open files besides clients' connections: those of the console (256), sinks, data directory.
const OTHER_FILES: u64 = 1000;

/// Runs a node until SIGTERM or SIGINT; a second one of either stops it at once.
pub(super) async fn run(config: Config) -> anyhow::Result<Exit> {
    allocator::keep_free_memory();
    start_log(config.log);
    raise_open_files(config.ingest.connections_max);
    if config.cluster.is_for_development() {
        tracing::warn!(
            "no key and no certificates: this node meets others on this host only, under a \
             built-in key; `tracemesh keygen` makes a real one"
        );
    }
    let node = match Node::start(&config, Environment::real()).await {
        Ok(node) => node,
        Err(error) => {
            let error = anyhow::Error::from(error);
            tracing::error!("{error:#}");
            return Ok(Exit::Usage);
        }
    };
    let addresses = node.addresses();
    for address in &addresses.grpc {
        tracing::info!("OTLP gRPC on {address}");
    }
    for address in &addresses.http {
        tracing::info!("OTLP HTTP on {address}");
    }
    tracing::info!("mesh on {}/udp", addresses.mesh);
    for address in &addresses.console {
        tracing::info!("console on http://{address}");
    }
    let signals = watch::Sender::new(0);
    let (mut first, mut second) = (signals.subscribe(), signals.subscribe());
    let asked = async {
        // The sender outlives this.
        let _ = first.wait_for(|count| *count >= 1).await;
        tracing::info!("asked to stop; asked again, this node stops at once");
    };
    tokio::select! {
        biased;
        error = count(&signals) => error,
        _ = second.wait_for(|count| *count >= 2) => {
            tracing::error!("stopped at once; what no other node has is lost");
            Ok(Exit::Failed)
        }
        end = node.run(asked) => Ok(conclude(end)),
    }
}

/// Counts SIGTERM and SIGINT; returns only when they cannot be heard. SIGHUP, which asks daemons to
/// read their configuration again and ends who does not listen, is answered.
async fn count(signals: &watch::Sender<u32>) -> anyhow::Result<Exit> {
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            biased;
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hang_up.recv() => {
                tracing::warn!("reloading the configuration is not built: restart to apply it");
                continue;
            }
        }
        signals.send_modify(|count| *count += 1);
    }
}

fn conclude(end: End) -> Exit {
    match end {
        End::Drained => {
            tracing::info!("drained; nothing is held here");
            Exit::Done
        }
        End::Left { span_count, spool } => {
            tracing::warn!(span_count, spool, "drain.timeout is over; the rest is spooled");
            eprintln!("{span_count} spans are spooled in {spool}; the next start reads them");
            Exit::Unfinished
        }
        End::Lost { span_count, spool, source } => {
            tracing::error!(
                span_count, spool, %source,
                "drain.timeout is over and the rest cannot be spooled: it is lost unless another \
                 node has it"
            );
            Exit::Failed
        }
        End::Refused(reason) => {
            tracing::error!(%reason, "this node cannot be a member");
            Exit::Usage
        }
        End::Panicked(task) => {
            tracing::error!(task, "stopped, because a task panicked");
            Exit::Failed
        }
    }
}

/// Lets this process open as many files as it may, for every connection is one, and the first limit
/// of many systems is 1024. Files of its own, such as the spool, have to be openable at any time.
fn raise_open_files(connections_max: usize) {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
    let open_files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if open_files < connections_max as u64 + OTHER_FILES {
        tracing::warn!(
            open_files,
            connections_max,
            "this process may open fewer files than ingest.connections_max needs: raise the limit \
             (`LimitNOFILE` of systemd, `ulimit -n`), or lower the key"
        );
    }
}

fn start_log(log: Log) {
    let subscriber = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_max_level(LevelFilter::from_level(log.level))
        .with_target(false)
        // A terminal that was closed takes no lines any more, nor complaints about them.
        .log_internal_errors(false);
    match log.format {
        LogFormat::Text => subscriber.init(),
        LogFormat::Json => subscriber.json().init(),
    }
}
