//! A place for the nodes of one test: a directory that is gone afterwards.

use crate::node::Settings;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The directory of one test, and the program that its nodes run.
#[derive(Debug)]
pub struct Host {
    program: PathBuf,
    directory: TempDir,
}

impl Host {
    /// A fresh directory for nodes that run `program`.
    ///
    /// # Panics
    /// When there is no place for temporary files.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        let directory = tempfile::Builder::new().prefix("tracemesh-test-").tempdir();
        let directory = directory.expect("there is a place for temporary files");
        Self { program: program.into(), directory }
    }

    /// The settings of a node called `id`, with ports and a directory of its own.
    pub fn node(&self, id: &str) -> Settings {
        Settings::new(&self.program, &self.directory.path().join(id), id)
    }

    /// The settings of several nodes, all with the first one as their seed.
    pub fn nodes(&self, ids: &[&str]) -> Vec<Settings> {
        let mut nodes: Vec<_> = ids.iter().map(|id| self.node(id)).collect();
        let seed = nodes[0].mesh_address();
        nodes.iter_mut().for_each(|node| node.seed(&seed));
        nodes
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The program that the nodes run.
    pub fn program(&self) -> &Path {
        &self.program
    }
}
