//! The simulator as a program.

use clap::Parser;
use std::process::ExitCode;
use tracemesh_simulation::allocator::Counting;
use tracemesh_simulation::command::CommandLine;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> ExitCode {
    CommandLine::parse().execute()
}
