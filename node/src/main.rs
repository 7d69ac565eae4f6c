//! The process: parses the command line, does what it says, and ends with its exit code.

use clap::Parser;
use std::io;
use std::process::ExitCode;
use tracemesh::command::CommandLine;
use tracemesh::config::Surroundings;

#[global_allocator]
static ALLOCATOR: tracemesh::Allocator = tracemesh::Allocator;

fn main() -> ExitCode {
    CommandLine::parse().execute(&Surroundings::of_this_process(), &mut io::stderr())
}
