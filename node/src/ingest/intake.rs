//! Where both protocols meet: who may come in, and what becomes of a request.
//!
//! The invariant: every request is counted once, by its answer; its bytes are charged to
//! [`InFlight`] as they arrive or grow by decompression, until it is answered or its client is
//! gone. A request that makes the code behind [`Export`] panic costs that request only: it is
//! refused for good, because the next node would fare no better. A request has [`READ_MAX`] to
//! arrive, and from its last byte on the node has the time of [`super::Settings`] to answer. What
//! takes too long for a thread that serves others is done aside, [`ASIDE_MAX`] at once.

use super::collect::{Collector, Encoding};
use super::tokens::Tokens;
use super::{Accepted, Admission, Export, Refusal};
use crate::memory::Shortage;
use crate::metrics::{Answer, IngestMetrics, Protocol, Reason};
use crate::reload::InUse;
use bytes::Bytes;
use futures_util::FutureExt;
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper::body::Body;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};

/// How long the bytes of one request may take to arrive. Clients give up after 5 s to 10 s.
pub(super) const READ_MAX: Duration = Duration::from_secs(20);
/// Clients are asked to wait one of 1, 2, … so many seconds, in turn, so that they do not all come
/// back at once.
const RETRY_SECONDS_MAX: u32 = 10;
/// Large requests that are decompressed or converted at once, each in some tenths of a second: more
/// would want more processors than a node leaves idle, and a window of 16 MiB each.
pub(super) const ASIDE_MAX: usize = 4;
const IN_FLIGHT_FULL: &str = "too many bytes of requests wait to be acknowledged";
const PANICKED: &str = "the request made the node fail";

/// The bytes of requests that are being read or are not answered yet.
#[derive(Debug)]
pub struct InFlight {
    bytes: AtomicUsize,
    bytes_max: usize,
    turn: AtomicU32,
    shortage: Mutex<Shortage>,
    /// Permits of what is done aside.
    aside: Arc<Semaphore>,
}

impl InFlight {
    /// None yet, and at most `bytes_max`.
    pub fn new(bytes_max: usize) -> Arc<Self> {
        let (bytes, turn, shortage) = Default::default();
        let aside = Arc::new(Semaphore::new(ASIDE_MAX));
        Arc::new(Self { bytes, bytes_max, turn, shortage, aside })
    }

    /// Bytes now.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Relaxed)
    }

    /// Whether clients are put off because of them, or were some seconds ago.
    pub fn is_short(&self, now: Instant) -> bool {
        self.shortage.lock().unwrap_or_else(PoisonError::into_inner).is_told(now)
    }

    /// A charge of nothing yet.
    pub(super) fn charge(self: &Arc<Self>) -> Charge {
        Charge { in_flight: self.clone(), bytes: 0 }
    }

    /// Does on another thread what would hold up one that serves others.
    pub(super) async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let permit = Arc::clone(&self.aside).acquire_owned().await;
        let done = spawn_blocking(move || {
            // Until the work is done, even when its client is gone.
            let _permit = permit;
            work()
        });
        done.await.unwrap_or_else(|_| Err(Refusal::Malformed(PANICKED.into())))
    }

    /// Asks a client to come back when there is room.
    fn full(&self) -> Refusal {
        self.shortage.lock().unwrap_or_else(PoisonError::into_inner).on_met(Instant::now());
        self.later(IN_FLIGHT_FULL)
    }

    /// Asks a client to come back, each after another time.
    fn later(&self, why: &'static str) -> Refusal {
        let seconds = 1 + self.turn.fetch_add(1, Relaxed) % RETRY_SECONDS_MAX;
        Refusal::Later { why, after: Duration::from_secs(seconds.into()) }
    }
}

/// What one request adds to [`InFlight`]; given back when dropped.
#[derive(Debug)]
pub(super) struct Charge {
    in_flight: Arc<InFlight>,
    bytes: usize,
}

impl Charge {
    /// Adds bytes, or refuses and leaves the charge as it was. A request that is alone is let in
    /// whatever its forms take together, since it would never find more room.
    pub(super) fn add(&mut self, bytes: usize) -> Result<(), Refusal> {
        let before = self.in_flight.bytes.fetch_add(bytes, Relaxed);
        let is_alone = before == self.bytes;
        if before.saturating_add(bytes) > self.in_flight.bytes_max && !is_alone {
            self.in_flight.bytes.fetch_sub(bytes, Relaxed);
            return Err(self.in_flight.full());
        }
        self.bytes += bytes;
        Ok(())
    }

    /// Takes off bytes that were added.
    pub(super) fn give_back(&mut self, bytes: usize) {
        self.in_flight.bytes.fetch_sub(bytes, Relaxed);
        self.bytes -= bytes;
    }

    /// What it adds to.
    pub(super) fn in_flight(&self) -> Arc<InFlight> {
        Arc::clone(&self.in_flight)
    }

    /// Asks the client to come back.
    pub(super) fn later(&self, why: &'static str) -> Refusal {
        self.in_flight.later(why)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.in_flight.bytes.fetch_sub(self.bytes, Relaxed);
    }
}

/// A request that was read completely, and its charge.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) bytes: Bytes,
    pub(super) charge: Charge,
}

/// What both servers share.
#[derive(Clone)]
pub(super) struct Intake<E> {
    pub(super) export: E,
    /// None: everybody may send.
    pub(super) tokens: Option<InUse<Tokens>>,
    pub(super) admission: watch::Receiver<Admission>,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) request_bytes_max: usize,
    pub(super) answer_max: Duration,
    pub(super) metrics: IngestMetrics,
}

impl<E: Export> Intake<E> {
    /// Lets a request in, before a byte of it is read.
    pub(super) fn admit(&self, headers: &HeaderMap) -> Result<Charge, Refusal> {
        if self.tokens.as_ref().is_some_and(|tokens| !tokens.get().allow(headers)) {
            return Err(Refusal::Unauthenticated);
        }
        match *self.admission.borrow() {
            Admission::Joining => return Err(self.in_flight.later("the node is still joining")),
            Admission::Serving | Admission::Leaving => {}
        }
        if self.in_flight.bytes() >= self.in_flight.bytes_max {
            return Err(self.in_flight.full());
        }
        Ok(self.in_flight.charge())
    }

    /// Collects the bytes of a request that was let in.
    pub(super) fn collector(&self, encoding: Encoding, charge: Charge) -> Collector {
        Collector::new(encoding, self.request_bytes_max, charge)
    }

    /// The next bytes of a request's body; `None` at its end.
    pub(super) async fn next<B>(&self, body: &mut B) -> Result<Option<Bytes>, Refusal>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else {
                return Err(self.in_flight.later("the request broke off"));
            };
            if let Ok(data) = frame.into_data()
                && !data.is_empty()
            {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// Reads within [`READ_MAX`].
    pub(super) async fn read<T>(
        &self,
        reading: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        match timeout(READ_MAX, reading).await {
            Ok(read) => read,
            Err(_) => Err(self.in_flight.later("the request came too slowly")),
        }
    }

    /// What becomes of a request of which the last byte has just come, or "later" when that takes
    /// too long.
    pub(super) async fn in_time(
        &self,
        answering: impl Future<Output = Result<Accepted, Refusal>>,
    ) -> Result<Accepted, Refusal> {
        match timeout(self.answer_max, answering).await {
            Ok(answer) => answer,
            Err(_) => Err(self.in_flight.later("the spans could not be held in time")),
        }
    }

    /// Passes a request on.
    pub(super) async fn take(&self, received: Received) -> Result<Accepted, Refusal> {
        let Received { bytes, charge } = received;
        let begun = Instant::now();
        let exported = AssertUnwindSafe(self.export.export(bytes)).catch_unwind().await;
        drop(charge);
        match exported {
            Ok(Ok(accepted)) => {
                self.metrics.acknowledge_seconds.observe(begun.elapsed().as_secs_f64());
                Ok(accepted)
            }
            Ok(Err(refusal)) => Err(refusal),
            Err(_) => {
                tracing::error!(reason = %Reason::Syntax, "a request made this node panic");
                Err(Refusal::Malformed(PANICKED.into()))
            }
        }
    }

    /// Counts an answer.
    pub(super) fn answered(&self, protocol: Protocol, answer: &Result<Accepted, Refusal>) {
        let (answer, reason) = match answer {
            Ok(_) => (Answer::Accepted, None),
            Err(Refusal::Malformed(why)) => {
                tracing::debug!(reason = %Reason::Syntax, %protocol, why, "request refused");
                (Answer::Malformed, Some(Reason::Syntax))
            }
            Err(Refusal::TooLarge(why)) => {
                tracing::debug!(reason = %Reason::Size, %protocol, why, "request refused");
                (Answer::TooLarge, Some(Reason::Size))
            }
            Err(Refusal::Unauthenticated) => (Answer::Unauthenticated, None),
            Err(Refusal::Later { why, .. }) => {
                tracing::debug!(%protocol, why, "request put off");
                (Answer::Later, None)
            }
        };
        self.metrics.count(protocol, answer, reason);
    }
}
