//! The flags of `run`: the last layer of the configuration.
//!
//! Flags hold texts and no meanings, so that they are read by the same code, with the same errors,
//! as the file and the variables. Nothing is decided here.

use super::error::Origin;
use super::yaml::{Content, Node};
use std::path::PathBuf;

/// The largest `--base-port`: three more ports follow it.
const BASE_PORT_MAX: i64 = u16::MAX as i64 - 3;

/// What a node is told on its command line.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct Flags {
    /// Configuration file (YAML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// gRPC on port N, HTTP on N+1, mesh on N+2, console on N+3; 0 lets the system choose all
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(..=BASE_PORT_MAX))]
    pub base_port: Option<u16>,
    /// IP address of every listener that names none
    #[arg(long, value_name = "IP")]
    pub bind: Option<String>,
    /// Name of this node, the same over restarts
    #[arg(long, value_name = "ID")]
    pub node_id: Option<String>,
    /// Mesh address of any member; may be repeated
    #[arg(long, value_name = "HOST:PORT")]
    pub seed: Vec<String>,
    /// The cluster key from `tracemesh keygen`
    #[arg(long, value_name = "FILE")]
    pub cluster_key_file: Option<String>,
    /// Directory for what outlasts a restart
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// Where traces go: stdout, file=PATH or otlp=URL; may be repeated
    #[arg(long, value_name = "SINK")]
    pub sink: Vec<String>,
}

impl Flags {
    /// The values that were given, each with its path.
    pub(super) fn nodes(&self) -> Vec<(&'static str, Node)> {
        let mut nodes = Vec::new();
        if let Some(base) = self.base_port {
            let listeners = ["listen.grpc", "listen.http", "listen.mesh", "listen.console"];
            for (path, offset) in listeners.into_iter().zip(0..) {
                let port = if base == 0 { 0 } else { base + offset };
                nodes.push((path, Node::text(Origin::Flag("--base-port"), format!(":{port}"))));
            }
        }
        let texts = [
            ("--bind", "node.bind", &self.bind),
            ("--node-id", "node.id", &self.node_id),
            ("--cluster-key-file", "cluster.key_file", &self.cluster_key_file),
            ("--data-dir", "node.data_dir", &self.data_dir),
        ];
        for (flag, path, text) in texts {
            nodes.extend(text.iter().map(|text| (path, Node::text(Origin::Flag(flag), text))));
        }
        let lists = [("--seed", "cluster.seeds", &self.seed), ("--sink", "sinks", &self.sink)];
        for (flag, path, texts) in lists {
            let items: Vec<_> =
                texts.iter().map(|text| Node::text(Origin::Flag(flag), text)).collect();
            if !items.is_empty() {
                let node = Node { origin: Origin::Flag(flag), content: Content::List(items) };
                nodes.push((path, node));
            }
        }
        nodes
    }
}
