//! The command line: what a person types, and what the process says when it ends.
//!
//! Each subcommand is a module with its arguments and one function; this one only tells them apart
//! and turns what they return into an [`Exit`]. Commands write to the output that they are handed,
//! never to a global one. A command that is not built does not exist.

mod check_config;
mod completions;
mod console;
mod drain;
mod explain;
mod keygen;
mod load;
mod replay_dead_letters;
mod run;
mod status;
mod table;
#[cfg(test)]
mod testing;

pub use load::load_requests;

use crate::config::{self, ConfigErrors, Flags, Surroundings};
use crate::environment;
use anyhow::Context;
use clap::{Parser, Subcommand};
use rand::TryRngCore;
use rand::rngs::OsRng;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::process::ExitCode;
use tokio::runtime::Builder;

/// The variable of the environment that says how many threads serve; its name is tokio's.
const THREADS: &str = "TOKIO_WORKER_THREADS";

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// Failed while it worked.
    Failed,
    /// The command line or the configuration is wrong; nothing was started.
    Usage,
    /// Drained, but not everything could be handed over or exported in time.
    Unfinished,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Done => Self::SUCCESS,
            Exit::Failed => Self::from(1),
            Exit::Usage => Self::from(2),
            Exit::Unfinished => Self::from(3),
        }
    }
}

/// A mesh that brings every trace to one owner.
///
/// Any node takes OTLP spans; the spans of a trace meet on one node, which sends the trace on once
/// it is whole. Without a subcommand, a node is run.
#[derive(Debug, Parser)]
#[command(
    name = "tracemesh",
    version,
    args_conflicts_with_subcommands = true,
    after_help = RUN_EXAMPLE
)]
pub struct CommandLine {
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    command: Option<Command>,
}

const RUN_EXAMPLE: &str = "\
Examples:
  tracemesh                                          one node on this machine
  tracemesh --base-port 4327 --seed 127.0.0.1:4319   a second one beside it
  tracemesh run --config tracemesh.yaml              as the file says

Flags go before the environment (TRACEMESH_NODE__ID=a), that before the file.
Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 stopped with spans left over.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node
    #[command(after_help = RUN_EXAMPLE)]
    Run(Flags),
    /// Check a configuration, and show every value in force
    CheckConfig(check_config::Arguments),
    /// Print a new cluster key
    Keygen(keygen::Arguments),
    /// Show the members of a mesh and what they hold
    Status(status::Arguments),
    /// Show who owns a trace and why, and who holds what of it
    Explain(explain::Arguments),
    /// End a node in order, and say how it went
    Drain(drain::Arguments),
    /// Send traces, take what comes out, and verify it
    Load(load::Arguments),
    /// Send a dead-letter file again
    ReplayDeadLetters(replay_dead_letters::Arguments),
    /// Print completions for a shell
    Completions(completions::Arguments),
}

/// A command line that names something unusable; not worth a retry. `Display` says what and why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Misuse(String);

impl CommandLine {
    /// Does what was asked and returns how the process ends. What goes wrong is said on `errors`;
    /// of a configuration that is one line an error and nothing else.
    pub fn execute(self, surroundings: &Surroundings, errors: &mut dyn Write) -> ExitCode {
        let command = self.command.unwrap_or(Command::Run(self.flags));
        // Not locked: a node's own sink may write there, too.
        match command.execute(surroundings, &mut io::stdout()) {
            Ok(code) => code,
            // Whoever reads the output, such as `head`, has seen enough.
            Err(error) if is_broken_pipe(&error) => Exit::Done.into(),
            Err(error) => {
                // With nowhere to say it, the exit code has to do.
                let _ = writeln!(errors, "{error:#}");
                let is_usage = error.is::<ConfigErrors>() || error.is::<Misuse>();
                if is_usage { Exit::Usage.into() } else { Exit::Failed.into() }
            }
        }
    }
}

impl Command {
    fn execute(
        self,
        surroundings: &Surroundings,
        output: &mut dyn Write,
    ) -> anyhow::Result<ExitCode> {
        let exit = match self {
            Self::Run(flags) => {
                let config = config::load(&flags, surroundings)?;
                let threads = serving_threads(surroundings)?;
                block_on_with(Builder::new_multi_thread().worker_threads(threads), run::run(config))
            }
            Self::Load(arguments) => return block_on(load::load(arguments)),
            Self::CheckConfig(arguments) => check_config::run(&arguments, surroundings, output),
            Self::Keygen(arguments) => keygen::run(&arguments, &mut OsRng.unwrap_err(), output),
            Self::Status(arguments) => block_on(status::run(&arguments, output)),
            Self::Explain(arguments) => block_on(explain::run(&arguments, output)),
            Self::Drain(arguments) => block_on(drain::run(&arguments, output)),
            Self::ReplayDeadLetters(arguments) => {
                block_on(replay_dead_letters::run(&arguments, surroundings, output))
            }
            Self::Completions(arguments) => completions::run(&arguments, output),
        };
        exit.map(ExitCode::from)
    }
}

fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    block_on_with(&mut Builder::new_multi_thread(), future)
}

fn block_on_with<T>(
    runtime: &mut Builder,
    future: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let runtime = runtime.enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(future)
}

/// How many threads a node serves with.
fn serving_threads(surroundings: &Surroundings) -> Result<usize, Misuse> {
    let Some(text) = surroundings.variables.get(THREADS) else {
        return Ok(environment::serving_threads());
    };
    let threads = text.parse().map(NonZeroUsize::get);
    threads.map_err(|_| Misuse(format!("{THREADS} is {text:?}: expected a number, 1 or more")))
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use std::collections::BTreeMap;

    fn parsed(line: &str) -> Result<CommandLine, clap::Error> {
        CommandLine::try_parse_from(line.split(' '))
    }

    #[test]
    fn environment_says_how_many_threads_serve() {
        let threads = |text: &str| {
            let variables = BTreeMap::from([(THREADS.to_owned(), text.to_owned())]);
            serving_threads(&Surroundings { variables, ..Surroundings::default() })
        };
        assert_eq!(threads("3").unwrap(), 3);
        for wrong in ["0", "", "two", "-1"] {
            let error = threads(wrong).unwrap_err().to_string();
            assert!(error.contains(THREADS) && error.contains(wrong), "{error}");
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let usual = serving_threads(&Surroundings::default()).unwrap();
        assert!((1..=cores).contains(&usual) && usual * 2 >= cores);
    }

    #[test]
    fn definitions_are_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn every_help_text_has_an_example() {
        let mut command = CommandLine::command();
        command.build();
        let all: Vec<_> = command.get_subcommands().cloned().chain([command.clone()]).collect();
        for mut command in all.into_iter().filter(|command| command.get_name() != "help") {
            let help = command.render_long_help().to_string();
            assert!(help.contains("Example"), "{}:\n{help}", command.get_name());
            assert!(help.contains("\n  tracemesh"), "{}:\n{help}", command.get_name());
        }
    }

    #[test]
    fn every_command_is_in_the_readme() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
        let readme = std::fs::read_to_string(path).expect("the README is there");
        let command = CommandLine::command();
        // Whoever needs completions finds them in the help.
        let named = command.get_subcommands().map(clap::Command::get_name);
        for name in named.filter(|name| !["run", "completions"].contains(name)) {
            let line = format!("tracemesh {name}");
            assert!(readme.contains(&line), "README.md: say what `{line}` is for");
        }
    }

    #[test]
    fn flags_alone_are_those_of_run() {
        let bare = parsed("tracemesh --base-port 4327 --seed a:1 --seed b:2").unwrap();
        assert!(bare.command.is_none());
        let run = parsed("tracemesh run --base-port 4327 --seed a:1 --seed b:2").unwrap();
        let Some(Command::Run(flags)) = run.command else { panic!("run is a subcommand") };
        assert_eq!(bare.flags, flags);
        assert_eq!(flags.seed, ["a:1", "b:2"]);
    }

    #[test]
    fn misuse_ends_with_code_2() {
        for line in [
            "tracemesh --base-prot 1",
            "tracemesh --base-port 65533",
            "tracemesh demo",
            "tracemesh explain",
            "tracemesh explain 12",
            "tracemesh keygen extra",
            "tracemesh --bind ::1 run",
        ] {
            assert_eq!(parsed(line).unwrap_err().exit_code(), 2, "{line}");
        }
        let surroundings = Surroundings {
            variables: BTreeMap::from([("TRACEMESH_NODE__BIND".into(), "nowhere".into())]),
            ..Surroundings::default()
        };
        let mut errors = Vec::new();
        let code = parsed("tracemesh run --node-id a").unwrap().execute(&surroundings, &mut errors);
        assert_eq!(code, ExitCode::from(2));
        let errors = String::from_utf8(errors).unwrap();
        assert!(errors.starts_with("TRACEMESH_NODE__BIND: node.bind: "), "{errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
    }
}
