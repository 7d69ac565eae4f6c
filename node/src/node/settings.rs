//! What each stage is told, in its own terms, of the one configuration.
//!
//! Stages know nothing of the configuration file; this is where its values become theirs.

use super::Addresses;
use crate::assemble;
use crate::config::{self, Config};
use crate::decide::KeepAll;
use crate::environment::WallClock;
use crate::ingest;
use crate::shard::Limits;
use crate::sink::{
    DeadLetters, Demand, Durability, OtlpConfig, Rotation, Sink, SinkConfig, Target,
};
use std::net::SocketAddr;
use std::sync::Arc;
use tracemesh_membership::{NodeId, StartStore, Weight, WeightError};

pub(super) fn ingest_settings(config: &Config) -> ingest::Settings {
    ingest::Settings {
        grpc: config.listen.grpc.clone(),
        http: config.listen.http.clone(),
        request_bytes_max: size(config.ingest.request_bytes_max),
        in_flight_max: size(config.ingest.in_flight_bytes_max),
        connections_max: config.ingest.connections_max,
        connection_age_max: config.ingest.connection_age_max,
        tls: config.ingest.tls.clone(),
        bearer_tokens_file: config.ingest.bearer_tokens_file.clone(),
        cors_origins: config.ingest.cors_origins.clone(),
        ..Default::default()
    }
}

/// What other members are told besides what is configured.
pub(super) struct Told<'a> {
    pub(super) addresses: &'a Addresses,
    pub(super) advertised: SocketAddr,
    pub(super) wall_clock: &'a WallClock,
}

pub(super) fn membership_settings(
    config: &Config,
    told: &Told<'_>,
    starts: Arc<dyn StartStore>,
    seed: u64,
) -> Result<tracemesh_membership::Settings, WeightError> {
    Ok(tracemesh_membership::Settings {
        cluster: config.cluster.name.clone(),
        node_id: NodeId::from(config.node.id.as_str()),
        mesh_address: told.advertised,
        seeds: config.cluster.seeds.iter().map(ToString::to_string).collect(),
        alone_after: config.cluster.alone_after,
        replicas: config.cluster.replicas,
        hash_key: config.cluster.hash_key,
        weight: Weight::new(config.node.weight)?,
        zone: config.node.zone.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        otlp_grpc: told.addresses.grpc.clone(),
        otlp_http: told.addresses.http.clone(),
        console: told.addresses.console.first().copied(),
        config_hash: config.config_hash(),
        starts: Some(starts),
        wall_clock: Arc::clone(told.wall_clock),
        seed,
    })
}

pub(super) fn shard_settings(
    config: &Config,
    shard_count: usize,
    sinks: Vec<Arc<dyn Sink>>,
    dead_letters: Arc<DeadLetters>,
) -> assemble::Settings {
    assemble::Settings {
        limits: limits(&config.traces),
        hand_over_bytes_per_second: config.hand_over_bytes_per_second,
        shard_count,
        hash_key: config.cluster.hash_key,
        sinks,
        dead_letters,
        decide: Box::new(|| Box::new(KeepAll)),
    }
}

/// Looking at a trace takes a microsecond or two, and so does offering it: a turn of this takes
/// less than what a client notices.
const TRACES_PER_TURN: usize = 256;

fn limits(traces: &config::Traces) -> Limits {
    Limits {
        root_delay: traces.root_delay,
        age_max: traces.age_max,
        spans_max: traces.spans_max,
        bytes_max: size(traces.bytes_max),
        remember: traces.remember_time,
        remember_bytes_max: size(traces.remember_bytes),
        traces_per_turn: TRACES_PER_TURN,
    }
}

/// What all stages may keep together. Queues of sinks that nobody waits for hold what is no
/// trace's any more, so they have their part of the node's memory to themselves.
pub(super) fn memory_budget(config: &Config) -> usize {
    size(config.node.memory_bytes.saturating_sub(config.optional_queue_bytes()))
}

/// Configured sizes are 64 bits everywhere; what this machine cannot address is no bound.
pub(super) fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// What needs no secrecy is drawn from the first bytes of the seed.
pub(super) fn small_seed(seed: [u8; 32]) -> u64 {
    seed[..8].iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

/// The sinks of a node.
pub(crate) fn sink_configs(config: &Config) -> Vec<SinkConfig> {
    config.sinks.iter().map(sink_config).collect()
}

fn sink_config(sink: &config::Sink) -> SinkConfig {
    match sink {
        config::Sink::Otlp(otlp) => SinkConfig::Otlp(OtlpConfig {
            target: target(otlp),
            request_bytes_max: size(otlp.request_bytes_max),
            queue_bytes_max: size(otlp.queue_bytes_max),
            retry_for: otlp.retry_for,
            demand: if otlp.required { Demand::Required } else { Demand::Optional },
            dead_letter_bytes_max: otlp.dead_letter_bytes_max,
        }),
        config::Sink::File(file) => SinkConfig::File {
            path: file.path.clone(),
            rotation: Rotation { bytes_max: file.rotate_bytes, keep: file.keep },
            durability: if file.fsync { Durability::Disk } else { Durability::System },
        },
        config::Sink::Stdout => SinkConfig::Stdout,
    }
}

/// Where an OTLP sink sends, and how.
fn target(otlp: &config::OtlpSink) -> Target {
    Target {
        endpoints: otlp.endpoints.clone(),
        protocol: otlp.protocol,
        compression: otlp.compression,
        headers: otlp.headers.clone(),
        tls: otlp.tls.clone(),
    }
}
