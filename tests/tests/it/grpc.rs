//! OTLP over gRPC without decoding: a client that sends any bytes, and a receiver that keeps them.
//!
//! Both block their caller and own the runtime that they need, so that tests stay plain functions.

use bytes::{Buf, BufMut, Bytes};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::client::Grpc;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{NamedService, UnaryService};
use tonic::transport::{Channel, Endpoint, Server};
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
pub(crate) struct Client {
    runtime: Runtime,
    grpc: Grpc<Channel>,
}

impl Client {
    /// Dials when it is first used.
    pub(crate) fn new(url: String) -> Self {
        Self::with(url, |grpc| grpc)
    }

    /// Compresses what it sends.
    pub(crate) fn compressing(url: String, encoding: CompressionEncoding) -> Self {
        Self::with(url, |grpc| grpc.send_compressed(encoding))
    }

    fn with(url: String, set: impl FnOnce(Grpc<Channel>) -> Grpc<Channel>) -> Self {
        let runtime = runtime();
        let endpoint = Endpoint::from_shared(url).expect("the address of a node is a URL");
        let channel = runtime.block_on(async { endpoint.connect_lazy() });
        let grpc = Grpc::new(channel).max_encoding_message_size(MESSAGE_BYTES_MAX);
        Self { runtime, grpc: set(grpc) }
    }

    /// Sends `request`, which need not be one, to `Export`.
    pub(crate) fn export(&mut self, request: impl Into<Bytes>) -> Result<Bytes, Status> {
        let request = Request::new(request.into());
        let method = http::uri::PathAndQuery::from_static(METHOD);
        let grpc = &mut self.grpc;
        let answer = async {
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            grpc.unary(request, method, RawCodec).await
        };
        self.runtime.block_on(answer).map(Response::into_inner)
    }
}

/// Takes OTLP on a port of loopback, and keeps every message as it came.
pub(crate) struct Receiver {
    address: SocketAddr,
    messages: Arc<Mutex<Vec<Bytes>>>,
    /// The server ends when this is dropped.
    _stop: oneshot::Sender<()>,
}

impl Receiver {
    /// Listens at once.
    pub(crate) fn start() -> Self {
        let runtime = runtime();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"));
        let listener = listener.expect("a port of loopback is free");
        let address = listener.local_addr().expect("a listener has an address");
        let messages = Arc::new(Mutex::new(Vec::new()));
        let keep = Keep { messages: Arc::clone(&messages) };
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::spawn(move || {
            let server = Server::builder().add_service(keep);
            let stopped = async { drop(stopped.await) };
            let serve =
                server.serve_with_incoming_shutdown(TcpListenerStream::new(listener), stopped);
            runtime.block_on(serve).expect("a receiver serves until it is stopped");
        });
        Self { address, messages, _stop: stop }
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The messages that came until now.
    pub(crate) fn messages(&self) -> Vec<Bytes> {
        self.messages.lock().expect("nothing panics while it keeps a message").clone()
    }
}

#[derive(Clone)]
struct Keep {
    messages: Arc<Mutex<Vec<Bytes>>>,
}

impl NamedService for Keep {
    const NAME: &'static str = SERVICE;
}

impl Service<http::Request<tonic::body::Body>> for Keep {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let keep = self.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(RawCodec)
                .accept_compressed(CompressionEncoding::Gzip)
                .accept_compressed(CompressionEncoding::Zstd)
                .max_decoding_message_size(MESSAGE_BYTES_MAX);
            Ok(grpc.unary(keep, request).await)
        })
    }
}

impl UnaryService<Bytes> for Keep {
    type Response = Bytes;
    type Future = BoxFuture<Response<Bytes>, Status>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let mut messages = self.messages.lock().expect("nothing panics while it keeps a message");
        messages.push(request.into_inner());
        Box::pin(async { Ok(Response::new(Bytes::new())) })
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
