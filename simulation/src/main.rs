//! The process: parses the command line, does what it says, and ends with its exit code.

use clap::Parser;
use std::io;
use std::process::ExitCode;
use tracemesh_simulation::explorer::command::{Explore, run};

/// Simulate and explore a mesh.
#[derive(Debug, Parser)]
#[command(name = "tracemesh-sim", version)]
enum CommandLine {
    /// Explore the protocol of holding spans
    Explore(Explore),
}

#[global_allocator]
static ALLOCATOR: tracemesh::Allocator = tracemesh::Allocator;

fn main() -> ExitCode {
    let CommandLine::Explore(explore) = CommandLine::parse();
    match run(&explore, &mut io::stdout()) {
        Ok(code) => code,
        // Whoever reads the output, such as `head`, has seen enough.
        Err(_) => ExitCode::from(1),
    }
}
