//! Small writes, gathered: HTTP/2 writes and flushes frame by frame, which would be a packet for each, and a TLS record.

use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// As much as a TLS record holds.
const ROOM: usize = 16 * 1024;
/// What is written at once and is larger is not copied: a file's content is sent from where it lies (ADR 0010).
const LARGE: usize = 4 * 1024;
/// Parts of a write that are passed on together. A shorter write is allowed to take a part of it.
const PARTS: usize = 16;

/// A stream whose flush does nothing. Whoever has it polled keeps a second one ([`Gathered::share`]) and calls [`Gathered::send`] after each turn.
pub struct Gathered<S>(Arc<Mutex<Inner<S>>>);

struct Inner<S> {
    stream: S,
    waiting: Vec<u8>,
    /// How many bytes may be read now.
    gate: Box<dyn Fn() -> usize + Send>,
    /// None were when they were wanted.
    held: bool,
}

impl<S> Gathered<S> {
    /// `gate` says how many bytes may be read, each time. See [`Gathered::is_held`].
    pub fn new(stream: S, gate: impl Fn() -> usize + Send + 'static) -> Gathered<S> {
        Gathered(Arc::new(Mutex::new(Inner { stream, waiting: vec![], gate: Box::new(gate), held: false })))
    }

    /// The same stream.
    pub fn share(&self) -> Gathered<S> {
        Gathered(self.0.clone())
    }

    /// Whether a read found the gate closed. Nobody is woken when it opens: whoever asks has the stream polled again after a while.
    pub fn is_held(&self) -> bool {
        self.inner().held
    }

    /// Gives up what waits.
    pub fn forget(&self) {
        self.inner().waiting = vec![];
    }

    fn inner(&self) -> MutexGuard<'_, Inner<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    /// Sends what waits. Pending: the task is woken when there is room for more of it.
    pub fn send(&self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let mut inner = self.inner();
        ready!(inner.write(cx, &[]))?;
        Pin::new(&mut inner.stream).poll_flush(cx)
    }
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    /// Writes what waits and then those parts; how many bytes of the parts were taken, at least one if they have any.
    fn write(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<Result<usize>> {
        while !self.waiting.is_empty() {
            let mut all = [IoSlice::new(&[]); PARTS];
            all[0] = IoSlice::new(&self.waiting);
            let used = all.iter_mut().skip(1).zip(parts).map(|(to, from)| *to = *from).count();
            let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &all[..=used]))?;
            if written == 0 {
                return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
            }
            if written < self.waiting.len() {
                self.waiting.drain(..written);
                continue;
            }
            // Idle connections are many.
            let beyond = written - std::mem::take(&mut self.waiting).len();
            if beyond > 0 {
                return Poll::Ready(Ok(beyond));
            }
        }
        if parts.is_empty() { Poll::Ready(Ok(0)) } else { Pin::new(&mut self.stream).poll_write_vectored(cx, parts) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let mut inner = self.inner();
        let most = (inner.gate)().min(buf.remaining());
        inner.held = most == 0;
        if inner.held {
            return Poll::Pending;
        }
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(most));
        ready!(Pin::new(&mut inner.stream).poll_read(cx, &mut part))?;
        let n = part.filled().len();
        buf.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<Result<usize>> {
        let mut inner = self.inner();
        let len = bufs.iter().map(|b| b.len()).sum::<usize>();
        if len > LARGE {
            return inner.write(cx, bufs);
        }
        if inner.waiting.len() + len > ROOM {
            ready!(inner.write(cx, &[]))?;
        }
        bufs.iter().for_each(|b| inner.waiting.extend_from_slice(b));
        Poll::Ready(Ok(len))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let mut inner = self.inner();
        ready!(inner.write(cx, &[]))?;
        Pin::new(&mut inner.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A stream that takes a few bytes at a time, and counts the writes.
    struct Narrow {
        taken: Vec<u8>,
        writes: usize,
        step: usize,
    }

    impl AsyncWrite for Narrow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
            let n = buf.len().min(self.step);
            self.taken.extend_from_slice(&buf[..n]);
            self.writes += 1;
            Poll::Ready(Ok(n))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<Result<usize>> {
            let all = bufs.iter().flat_map(|b| b.iter().copied());
            let before = self.taken.len();
            let step = self.step;
            self.taken.extend(all.take(step));
            self.writes += 1;
            Poll::Ready(Ok(self.taken.len() - before))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_is_written_arrives_in_order_and_whole() {
        // Around both limits, by streams that take all or little.
        for step in [1, 7, 4096, 5000, usize::MAX] {
            let mut stream = Gathered::new(Narrow { taken: vec![], writes: 0, step }, || 0);
            let sender = stream.share();
            let mut expected = vec![];
            for (n, len) in [1, 100, LARGE, LARGE + 1, 3, 9, ROOM, ROOM + 1, 0, 200, LARGE, LARGE, LARGE, LARGE, LARGE]
                .into_iter()
                .enumerate()
            {
                let part: Vec<u8> = (0..len).map(|i| (i * 7 + n) as u8).collect();
                stream.write_all(&part).await.unwrap();
                stream.flush().await.unwrap();
                expected.extend(part);
            }
            std::future::poll_fn(|cx| sender.send(cx)).await.unwrap();
            let inner = stream.inner();
            assert!(inner.stream.taken == expected, "{step}");
            assert_eq!(inner.waiting.capacity(), 0);
        }
    }

    #[tokio::test]
    async fn many_small_writes_are_one() {
        let mut stream = Gathered::new(Narrow { taken: vec![], writes: 0, step: usize::MAX }, || 0);
        for _ in 0..10 {
            stream.write_all(&[7; 1000]).await.unwrap();
            stream.flush().await.unwrap();
        }
        assert_eq!(stream.inner().stream.writes, 0);
        let sender = stream.share();
        std::future::poll_fn(|cx| sender.send(cx)).await.unwrap();
        let inner = stream.inner();
        assert_eq!((inner.stream.writes, inner.stream.taken.len()), (1, 10_000));
    }

    #[tokio::test]
    async fn no_more_is_read_than_the_gate_allows() {
        static MOST: AtomicUsize = AtomicUsize::new(0);
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut stream = Gathered::new(ours, || MOST.load(Relaxed));
        theirs.write_all(b"12345").await.unwrap();
        let mut buffer = [0; 16];
        for (most, read) in [(0, None), (2, Some("12")), (0, None), (9, Some("345"))] {
            MOST.store(most, Relaxed);
            let mut buf = ReadBuf::new(&mut buffer);
            let result = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut stream).poll_read(cx, &mut buf))).await;
            assert_eq!(result.is_ready().then_some(buf.filled()), read.map(str::as_bytes));
            assert_eq!(stream.is_held(), most == 0);
        }
    }

    #[tokio::test]
    async fn a_shutdown_sends_what_waits() {
        let (ours, mut theirs) = tokio::io::duplex(8);
        let mut stream = Gathered::new(ours, || 0);
        stream.write_all(b"longer than the pipe").await.unwrap();
        let shut = async { stream.shutdown().await.unwrap() };
        let mut got = String::new();
        let read = async { theirs.read_to_string(&mut got).await.unwrap() };
        tokio::join!(shut, read);
        assert_eq!(got, "longer than the pipe");
    }
}
