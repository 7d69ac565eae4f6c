//! OTLP over gRPC without decoding: a client that sends any bytes, and a server that gives its
//! test every message as it came.
//!
//! Both block their caller and own the runtime that they need, so that tests stay plain functions.
//! A dropped server has closed its port and all its connections, as one that crashed.

use bytes::{Buf, BufMut, Bytes};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::client::Grpc;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{NamedService, UnaryService};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Response, Status};

const SERVICE: &str = "opentelemetry.proto.collector.trace.v1.TraceService";
const METHOD: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// More than any node or test sends in one message.
const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// Two threads, so that a connection answers while a large message is compressed.
fn runtime() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be built")
}

/// A client of one node.
#[derive(Debug)]
pub struct Client {
    runtime: Runtime,
    grpc: Grpc<Channel>,
    token: Option<String>,
}

impl Client {
    /// Dials when it is first used.
    ///
    /// # Panics
    /// When `url` is none.
    pub fn new(url: String) -> Self {
        Self::with(url, Ok, |grpc| grpc)
    }

    /// Speaks TLS.
    ///
    /// # Panics
    /// When `tls` cannot be used.
    pub fn secure(url: String, tls: ClientTlsConfig) -> Self {
        Self::with(url, |endpoint| endpoint.tls_config(tls), |grpc| grpc)
    }

    /// Shows a token with every request.
    #[must_use]
    pub fn with_token(self, token: &str) -> Self {
        Self { token: Some(format!("Bearer {token}")), ..self }
    }

    /// Compresses what it sends.
    pub fn compressing(url: String, encoding: CompressionEncoding) -> Self {
        Self::with(url, Ok, |grpc| grpc.send_compressed(encoding))
    }

    fn with(
        url: String,
        secure: impl FnOnce(Endpoint) -> Result<Endpoint, tonic::transport::Error>,
        set: impl FnOnce(Grpc<Channel>) -> Grpc<Channel>,
    ) -> Self {
        let runtime = runtime();
        let endpoint = Endpoint::from_shared(url).expect("the address of a node is a URL");
        let endpoint = secure(endpoint).expect("the settings for TLS are right");
        let channel = runtime.block_on(async { endpoint.connect_lazy() });
        let grpc = Grpc::new(channel).max_encoding_message_size(MESSAGE_BYTES_MAX);
        Self { runtime, grpc: set(grpc), token: None }
    }

    /// Sends `request`, which need not be one, to `Export`.
    ///
    /// # Errors
    /// Whatever status the node answers, or `Unavailable` when it cannot be reached.
    pub fn export(&mut self, request: impl Into<Bytes>) -> Result<Bytes, Status> {
        let mut request = Request::new(request.into());
        if let Some(token) = &self.token {
            let token = token.parse().expect("a token fits into a header");
            request.metadata_mut().insert("authorization", token);
        }
        let method = http::uri::PathAndQuery::from_static(METHOD);
        let grpc = &mut self.grpc;
        let answer = async {
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            grpc.unary(request, method, RawCodec).await
        };
        self.runtime.block_on(answer).map(Response::into_inner)
    }
}

/// What a server says to a message.
#[derive(Debug)]
pub enum Answer {
    /// Success.
    Taken,
    /// This status.
    Refused(Status),
    /// Nothing, ever.
    None,
}

/// Takes OTLP on a port of loopback.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    /// All its tasks end when this is dropped.
    _runtime: Runtime,
}

impl Server {
    /// Listens at `address` (port 0 for any) and asks `take` what to answer to each message.
    ///
    /// # Panics
    /// When the port is taken.
    pub fn start(address: &str, take: impl Fn(Bytes) -> Answer + Send + Sync + 'static) -> Self {
        let runtime = runtime();
        let listener = runtime.block_on(TcpListener::bind(address));
        let listener = listener.unwrap_or_else(|error| panic!("{address}: {error}"));
        let address = listener.local_addr().expect("a listener has an address");
        let server = tonic::transport::Server::builder().add_service(Export(Arc::new(take)));
        runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { address, _runtime: runtime }
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

#[derive(Clone)]
struct Export(Arc<dyn Fn(Bytes) -> Answer + Send + Sync>);

impl NamedService for Export {
    const NAME: &'static str = SERVICE;
}

impl Service<http::Request<tonic::body::Body>> for Export {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let export = self.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(RawCodec)
                .accept_compressed(CompressionEncoding::Gzip)
                .accept_compressed(CompressionEncoding::Zstd)
                .max_decoding_message_size(MESSAGE_BYTES_MAX);
            Ok(grpc.unary(export, request).await)
        })
    }
}

impl UnaryService<Bytes> for Export {
    type Response = Bytes;
    type Future = BoxFuture<Response<Bytes>, Status>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let answer = (self.0)(request.into_inner());
        Box::pin(async {
            match answer {
                Answer::Taken => Ok(Response::new(Bytes::new())),
                Answer::Refused(status) => Err(status),
                Answer::None => std::future::pending().await,
            }
        })
    }
}

/// Hands messages through as they are.
#[derive(Clone, Copy)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, target: &mut EncodeBuf<'_>) -> Result<(), Status> {
        target.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(source.copy_to_bytes(source.remaining())))
    }
}
