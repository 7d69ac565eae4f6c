//! Consoles made up for the tests of commands.

use crate::status::{Member, SpansHeld, State, Status, View};
use axum::Router;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// A console that ends with this value.
pub(super) struct Nodes {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Nodes {
    /// Serves what `add` adds to an empty router.
    pub(super) async fn start(add: impl FnOnce(Router) -> Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mut tasks, router) = (JoinSet::new(), add(Router::new()));
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, _tasks: tasks }
    }

    pub(super) fn url(&self) -> http::Uri {
        format!("http://{}/", self.address).parse().unwrap()
    }
}

/// A member that other members see.
pub(super) fn member(id: &str, state: State, zone: &str) -> Member {
    Member {
        id: id.to_owned(),
        state,
        generation: 3,
        epoch: 1,
        mesh_address: "127.0.0.1:4319".to_owned(),
        console_address: format!("{id}:4320"),
        zone: zone.to_owned(),
        weight: 1.0,
        owned_slots: 32_768,
        replica_slots: 7,
        fill_percent: 12,
    }
}

/// What a node says of itself.
pub(super) fn status(id: &str) -> Status {
    Status {
        id: id.to_owned(),
        cluster: "blue".to_owned(),
        started_unix_seconds: 1_700_000_000,
        state: State::Active,
        ready: true,
        degraded: vec!["alone".to_owned()],
        view: View { hash: "00ff".to_owned(), members: 2 },
        members: vec![
            member("a", State::Active, "rack 7"),
            member("longer-name", State::Leaving, ""),
        ],
        spans_held: SpansHeld { owner: 1, replica: 2, stand_in: 3 },
        traces_held: 4,
        traces_unplaced: 0,
        settled: true,
        memory_bytes: 3 << 19,
        memory_budget_bytes: 4 << 30,
        counters: BTreeMap::from([
            ("spans_accepted_total".to_owned(), 500),
            ("spans_exported_total".to_owned(), 5),
            ("spans_late_total".to_owned(), 0),
        ]),
    }
}
