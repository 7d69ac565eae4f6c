//! OTLP over gRPC alone.

use super::answers::retry_seconds;
use super::*;
use ::http::uri::PathAndQuery;
use bytes::{Buf, BufMut};
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};

#[tokio::test]
async fn grpc_hands_on_the_bytes_of_a_message_in_any_encoding() {
    let server = Server::start().await;
    let message = message();
    let requests = [
        (vec![], frame(0, &message)),
        (vec![("grpc-encoding", "identity")], frame(0, &message)),
        (vec![("grpc-encoding", "gzip")], frame(1, &gzip(&message))),
        (vec![("grpc-encoding", "zstd")], frame(1, &zstd(&message))),
        (vec![("grpc-encoding", "gzip")], frame(0, &message)),
    ];
    for (headers, body) in requests {
        let reply = server.export(&headers, body).await;
        assert_eq!(reply.grpc_code(), Code::Ok, "{headers:?}");
        assert_eq!(reply.body, frame(0, b""));
        assert_eq!(reply.header("grpc-accept-encoding"), "gzip,zstd,identity");
    }
    assert_eq!(server.received(), vec![Bytes::from(message); 5]);
    assert_eq!(server.counter("requests_total{protocol=\"grpc\",answer=\"accepted\"}"), 5);
    assert_eq!(server.in_flight.bytes(), 0);
}

#[tokio::test]
async fn grpc_message_that_breaks_the_framing_is_refused_for_good() {
    let server = Server::start().await;
    let mut truncated = frame(0, b"12345678");
    truncated.truncate(9);
    let mut followed = frame(0, b"12345678");
    followed.extend_from_slice(&frame(0, b"9"));
    let mut cut = gzip(b"12345678");
    cut.truncate(cut.len() - 3);
    for (headers, body, said) in [
        (vec![], vec![], "ended before its message"),
        (vec![], vec![0, 0, 0], "ended before its message"),
        (vec![], truncated, "4 of the 8 bytes of the message are missing"),
        (vec![], followed, "more follows after the message of 8 bytes"),
        (vec![], frame(2, b"1"), "unknown compression flag 2"),
        (
            vec![("grpc-encoding", "gzip")],
            frame(1, b"12345678901234567890"),
            "gzip data is damaged",
        ),
        (vec![("grpc-encoding", "gzip")], frame(1, &cut), "gzip data is damaged"),
        (
            vec![("grpc-encoding", "zstd")],
            frame(1, b"12345678901234567890"),
            "zstd data is damaged",
        ),
        (
            vec![("grpc-encoding", "zstd")],
            frame(1, &zstd(b"12345678")[..8]),
            "zstd data is damaged",
        ),
    ] {
        let reply = server.export(&headers, body).await;
        assert_eq!(reply.grpc_code(), Code::InvalidArgument, "{said}");
        assert!(reply.grpc_message().contains(said), "{said:?} not in {}", reply.grpc_message());
    }
    assert_eq!(server.received(), Vec::<Bytes>::new());
    assert_eq!(server.in_flight.bytes(), 0);
}

#[tokio::test]
async fn what_is_no_export_over_grpc_is_told_what_would_be() {
    let server = Server::start().await;
    for service in ["metrics.v1.MetricsService", "logs.v1.LogsService"] {
        let path = format!("/opentelemetry.proto.collector.{service}/Export");
        let reply = server.call(&path, &[], frame(0, b"")).await;
        assert_eq!(reply.grpc_code(), Code::Unimplemented);
        assert!(reply.grpc_message().contains("traces only"));
    }
    let reply = server.call("/a.b/C", &[], frame(0, b"")).await;
    assert_eq!(reply.grpc_code(), Code::Unimplemented);
    assert!(reply.grpc_message().contains(LONG_PATH));
    let reply = server.export(&[("grpc-encoding", "br")], frame(1, b"x")).await;
    assert_eq!(reply.grpc_code(), Code::Unimplemented);
    assert_eq!(reply.header("grpc-accept-encoding"), "gzip,zstd,identity");

    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let uri = format!("http://{}/v1/traces", server.grpc);
    let reply = Reply::read(client.get(uri.parse().unwrap()).await.unwrap()).await;
    assert_eq!(reply.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert!(reply.text().contains("listen.http"));
}

/// Messages as bytes, for tonic's own client.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = tonic::Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), tonic::Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = tonic::Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, tonic::Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

#[tokio::test]
async fn client_that_others_wrote_understands_every_answer() {
    let server = Server::start().await;
    let endpoint = Endpoint::from_shared(format!("http://{}", server.grpc)).unwrap();
    let channel = endpoint.connect().await.unwrap();
    for encoding in [None, Some(CompressionEncoding::Gzip), Some(CompressionEncoding::Zstd)] {
        let mut client = tonic::client::Grpc::new(channel.clone());
        if let Some(encoding) = encoding {
            client = client.send_compressed(encoding).accept_compressed(encoding);
        }
        let path = || PathAndQuery::from_static(LONG_PATH);
        let request = || tonic::Request::new(Bytes::from(message()));

        server.answer(Ok(Accepted::default()));
        client.ready().await.unwrap();
        let accepted = client.unary(request(), path(), Raw).await.unwrap();
        assert!(accepted.into_inner().is_empty());

        server.answer(Err(later(3000)));
        client.ready().await.unwrap();
        let status = client.unary(request(), path(), Raw).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "try again"));
        assert_eq!(retry_seconds(&RpcStatus::decode(status.details()).unwrap()), 3);
    }
    assert_eq!(server.received(), vec![Bytes::from(message()); 6]);
}
