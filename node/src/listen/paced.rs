//! A connection whose client has to get going, and to take what it asked for.
//!
//! HTTP/2 has its pings and HTTP/1 a time-out for headers, but nothing bounds how long it takes
//! until one of the two is known, nor how long a client may refuse to read. The invariant: a
//! connection ends when its first [`PREFACE_BYTES`] take too long, or when nothing can be written
//! to it for [`WRITE_MAX`]. It owns the stream, and one timer that is for either.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// By so many bytes HTTP/2 is told from HTTP/1, whose requests here are longer.
const PREFACE_BYTES: usize = 24;
/// How long a client may read nothing while there is something for it: as long as a ping may take.
const WRITE_MAX: Duration = Duration::from_secs(20);

/// A stream with patience.
pub(super) struct Paced<S> {
    stream: S,
    /// What has yet to come of the first bytes.
    opening_bytes: usize,
    /// Whether the last write had to wait.
    is_blocked: bool,
    deadline: Pin<Box<Sleep>>,
}

impl<S> Paced<S> {
    pub(super) fn new(stream: S, opening_max: Duration) -> Self {
        let deadline = Box::pin(sleep(opening_max));
        Self { stream, opening_bytes: PREFACE_BYTES, is_blocked: false, deadline }
    }

    /// The deadline as an error, once it is over.
    fn expired<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        ready!(self.deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn wrote<T>(
        &mut self,
        cx: &mut Context<'_>,
        wrote: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let was_blocked = std::mem::replace(&mut self.is_blocked, wrote.is_pending());
        if !self.is_blocked {
            return wrote;
        }
        if !was_blocked {
            self.deadline.as_mut().reset(Instant::now() + WRITE_MAX);
        }
        self.expired(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if read.is_pending() && self.opening_bytes > 0 {
            return self.expired(cx);
        }
        self.opening_bytes = self.opening_bytes.saturating_sub(buffer.filled().len() - before);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(cx, wrote)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(cx, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.wrote(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.wrote(cx, ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    const OPENING_MAX: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn client_that_says_too_little_at_first_is_left() {
        let begun = Instant::now();
        let (mut client, server) = duplex(100);
        let mut server = Paced::new(server, OPENING_MAX);
        client.write_all(&[b'P'; PREFACE_BYTES - 1]).await.unwrap();
        let error = server.read_exact(&mut [0; PREFACE_BYTES]).await.unwrap_err();
        assert_eq!((error.kind(), begun.elapsed()), (io::ErrorKind::TimedOut, OPENING_MAX));
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_has_begun_may_be_silent() {
        let (mut client, server) = duplex(100);
        let mut server = Paced::new(server, OPENING_MAX);
        client.write_all(&[b'P'; PREFACE_BYTES]).await.unwrap();
        server.read_exact(&mut [0; PREFACE_BYTES]).await.unwrap();
        let later = async {
            sleep(100 * OPENING_MAX).await;
            client.write_all(b"x").await.unwrap();
        };
        let (read, ()) = tokio::join!(server.read_u8(), later);
        assert_eq!(read.unwrap(), b'x');
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_reads_nothing_is_left_and_one_that_reads_slowly_is_not() {
        let (mut client, server) = duplex(100);
        let mut server = Paced::new(server, OPENING_MAX);
        let slow = async {
            for _ in 0..5 {
                sleep(WRITE_MAX - Duration::from_millis(1)).await;
                client.read_exact(&mut [0; 100]).await.unwrap();
            }
        };
        let (wrote, ()) = tokio::join!(server.write_all(&[0; 600]), slow);
        wrote.unwrap();
        let begun = Instant::now();
        let error = server.write_all(b"x").await.unwrap_err();
        assert_eq!((error.kind(), begun.elapsed()), (io::ErrorKind::TimedOut, WRITE_MAX));
    }
}
