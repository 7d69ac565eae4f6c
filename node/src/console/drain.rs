//! The one thing that the console lets somebody do: end the node in order.
//!
//! There are no tokens here, so only this host may ask, and no web page that somebody on this host
//! looks at: browsers say where a page came from with every POST. What came through a proxy that
//! says so comes from somebody else. Asking twice is asking once; how it ended is told to whoever
//! waits for it, as the last thing that a node says.

use super::Source;
use crate::listen::Client;
use crate::status::{Ending, Status};
use axum::extract::State as Extract;
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};

/// What nobody sends who asks from this host and by hand, and what to say then.
const FOREIGN: [(&str, &str); 3] =
    [("origin", "a web page"), ("forwarded", "a proxy"), ("x-forwarded-for", "a proxy")];

/// Why somebody may not end the node.
fn refusal(client: Client, headers: &HeaderMap) -> Option<String> {
    let advice = "ask the node's own host: tracemesh drain, or SIGTERM";
    if !client.is_local() {
        let client = client.address;
        return Some(format!("{client} is not on this host and may not drain it; {advice}\n"));
    }
    let foreign = FOREIGN.iter().find(|(name, _)| headers.contains_key(*name));
    foreign.map(|(name, who)| format!("{who} may not drain this node ({name} is set); {advice}\n"))
}

/// Begins to drain, and says how the node stands.
pub(super) async fn ask(
    Extract(source): Extract<Source>,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<Status>), (StatusCode, String)> {
    if let Some(why) = refusal(client, &headers) {
        tracing::debug!(client = %client.address, "refused to drain");
        return Err((StatusCode::FORBIDDEN, why));
    }
    if !source.draining.is_cancelled() {
        tracing::info!("asked to drain, by the console");
        source.draining.cancel();
    }
    Ok((StatusCode::ACCEPTED, Json((source.status)())))
}

/// Answers when the node has ended; at once when nobody asked it to.
pub(super) async fn wait(
    Extract(mut source): Extract<Source>,
) -> Result<Json<Ending>, (StatusCode, &'static str)> {
    if !source.draining.is_cancelled() {
        return Err((StatusCode::CONFLICT, "this node does not drain; POST asks it to\n"));
    }
    let ending = source.ended.wait_for(Option::is_some).await.map(|ending| *ending);
    // A node that is gone without a word did not end in order.
    Ok(Json(ending.ok().flatten().unwrap_or(Ending::Failed)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderName;

    #[test]
    fn only_this_host_may_drain_and_no_web_page_on_it() {
        let refusal_of = |address: &str, reached: &str, header: Option<&'static str>| {
            let header = header.map(|name| (HeaderName::from_static(name), "x".parse().unwrap()));
            let client =
                Client { address: address.parse().unwrap(), reached: reached.parse().unwrap() };
            refusal(client, &header.into_iter().collect())
        };
        for (own, reached) in [
            ("127.0.0.1:9", "127.0.0.1"),
            ("127.9.9.9:9", "127.0.0.1"),
            ("[::1]:9", "::1"),
            ("[::ffff:127.0.0.1]:9", "::ffff:127.0.0.1"),
            ("10.0.0.1:9", "10.0.0.1"),
            ("10.0.0.1:9", "::ffff:10.0.0.1"),
            ("[fe80::1]:9", "fe80::1"),
        ] {
            assert_eq!(refusal_of(own, reached, None), None, "{own}");
        }
        for other in ["10.0.0.2:9", "[fe80::1]:9", "[::ffff:10.0.0.2]:9"] {
            let why = refusal_of(other, "10.0.0.1", None).unwrap();
            assert!(why.contains(other), "{why}");
        }
        for (name, who) in FOREIGN {
            let why = refusal_of("127.0.0.1:9", "127.0.0.1", Some(name)).unwrap();
            assert!(why.starts_with(who), "{why}");
        }
    }
}
