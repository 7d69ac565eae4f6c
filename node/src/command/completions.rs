//! `tracemesh completions`: a script by which a shell completes this command line.

use super::{CommandLine, Exit};
use clap::CommandFactory;
use clap_complete::Shell;
use std::io::Write;

const EXAMPLE: &str = "\
Example:
  tracemesh completions bash > ~/.local/share/bash-completion/completions/tracemesh";

/// For which shell.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct Arguments {
    /// The shell
    shell: Shell,
}

/// Prints the script.
pub(super) fn run(arguments: &Arguments, output: &mut dyn Write) -> anyhow::Result<Exit> {
    // The generator panics when it cannot write, so it writes to memory.
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut CommandLine::command(), "tracemesh", &mut script);
    output.write_all(&script)?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_learns_the_subcommands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::PowerShell, Shell::Elvish] {
            let mut output = Vec::new();
            run(&Arguments { shell }, &mut output).unwrap();
            let script = String::from_utf8(output).unwrap();
            assert!(script.contains("check-config"), "{shell}");
        }
    }
}
