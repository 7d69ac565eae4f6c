//! What comes out: an OTLP gRPC server that nodes export to.
//!
//! It answers success once the ledger has taken note of the request's spans, so what it
//! acknowledged is counted. It keeps no span. Connections and requests under way are bounded by
//! the exporters, a request by [`REQUEST_BYTES_MAX`].

use super::arrivals::Arrivals;
use super::client::EXPORT_PATH;
use super::codec::BytesCodec;
use super::scan;
use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, TryFutureExt};
use http::{Request as HttpRequest, Response as HttpResponse};
use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::net::TcpListener;
use tonic::body::Body;
use tonic::codec::CompressionEncoding;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tower::Service;

/// The largest request, after decompression; over it an exporter is told so. OTLP recommends it.
const REQUEST_BYTES_MAX: usize = 64 << 20;
/// HTTP/2 windows and frames: with the standard's 64 KiB and 16 KiB a request costs twice as much.
const WINDOW_BYTES: u32 = 8 << 20;
const FRAME_BYTES: u32 = 1 << 20;

/// What a server does with an encoded request, and its encoded answer.
pub(super) type Export =
    Arc<dyn Fn(Bytes) -> BoxFuture<'static, Result<Bytes, Status>> + Send + Sync>;

/// Notes the spans of every request; serves until it is dropped.
pub(super) async fn receive(
    listener: TcpListener,
    arrivals: Arc<Arrivals>,
) -> Result<(), tonic::transport::Error> {
    let export = move |request: Bytes| {
        let noted = arrivals.note(|on_span| scan::each_span(&request, on_span));
        // No bytes are an `ExportTraceServiceResponse` without a partial success.
        let answer = noted.map(|()| Bytes::new());
        let answer = answer.map_err(|error| Status::invalid_argument(error.to_string()));
        ready(answer).boxed()
    };
    serve(listener, Arc::new(export)).await
}

/// Serves the OTLP trace service on raw bytes until it is dropped.
pub(super) async fn serve(
    listener: TcpListener,
    export: Export,
) -> Result<(), tonic::transport::Error> {
    Server::builder()
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .add_service(TraceService { export })
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
        .await
}

#[derive(Clone)]
struct TraceService {
    export: Export,
}

impl NamedService for TraceService {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
}

impl Service<HttpRequest<Body>> for TraceService {
    type Response = HttpResponse<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest<Body>) -> Self::Future {
        let call = Call { export: Arc::clone(&self.export) };
        Box::pin(async move {
            if request.uri().path() != EXPORT_PATH {
                return Ok(Status::unimplemented("only Export is served").into_http());
            }
            let mut grpc = Grpc::new(BytesCodec)
                .accept_compressed(CompressionEncoding::Gzip)
                .accept_compressed(CompressionEncoding::Zstd)
                .max_decoding_message_size(REQUEST_BYTES_MAX);
            Ok(grpc.unary(call, request).await)
        })
    }
}

/// One call of `Export`.
struct Call {
    export: Export,
}

impl UnaryService<Bytes> for Call {
    type Response = Bytes;
    type Future = BoxFuture<'static, Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        (self.export)(request.into_inner()).map_ok(Response::new).boxed()
    }
}
