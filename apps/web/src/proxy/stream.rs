//! Bodies on their way through.

use super::Exchange;
use super::pool::{Link, Upstream};
use crate::budget::CROWDED;
use crate::connection::pause;
use crate::serve::Server;
use crate::upload::Upload;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

/// Fewest bytes a second that a client must send of a body, on average after a first pause.
const BODY_RATE: u64 = 128;

/// Why a body of ours ended early.
#[derive(Debug)]
pub(super) enum BodyError {
    /// The client sends more than the limit.
    TooLarge,
    /// Nothing came for too long.
    Stalled,
    /// What came is no body.
    Broken(hyper::Error),
}

impl std::fmt::Display for BodyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            BodyError::TooLarge => "body too large",
            BodyError::Stalled => "body stalled",
            BodyError::Broken(_) => "broken body",
        })
    }
}

impl std::error::Error for BodyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            BodyError::Broken(e) => Some(e),
            _ => None,
        }
    }
}

/// What has come of a request's body.
pub(super) struct Moved {
    start: Instant,
    bytes: AtomicU64,
    /// When the last of them came, in milliseconds since the start.
    last: AtomicU64,
}

impl Moved {
    pub(super) fn new() -> Moved {
        Moved { start: Instant::now(), bytes: AtomicU64::new(0), last: AtomicU64::new(0) }
    }

    fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
        self.last.store(self.start.elapsed().as_millis() as u64, Relaxed);
    }

    /// When something last came, or the exchange began.
    pub(super) fn last(&self) -> Instant {
        self.start + Duration::from_millis(self.last.load(Relaxed))
    }
}

/// A body on its way through: bounded in length, and in the length of its pauses.
#[derive(Default)]
pub struct Stream {
    pub(super) body: Option<Upload>,
    pub(super) left: u64,
    pub(super) stall: Duration,
    /// When the pause is too long, while there is one.
    pub(super) due: Option<Instant>,
    /// Moved when it has fired, as pauses are many.
    pub(super) sleep: Option<Pin<Box<Sleep>>>,
    /// For requests.
    pub(super) moved: Option<Arc<Moved>>,
    /// For responses: where the connection goes when the body is complete.
    pub(super) back: Option<Back>,
    /// Memory for the exchange: until both bodies have gone.
    pub(super) exchange: Option<Arc<Exchange>>,
}

impl Stream {
    /// The connection is free for another request.
    fn give_back(&mut self) {
        let Some(back) = self.back.take() else { return };
        if back.link.sender.is_ready() {
            back.upstream.put(back.link, back.keep);
        } else if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(back.finish());
        }
    }

    /// Whether the sender is so slow that it must be meant to cost us a connection.
    fn too_slow(&self) -> bool {
        self.moved.as_ref().is_some_and(|moved| {
            let allowed = self.stall + Duration::from_secs(moved.bytes.load(Relaxed) / BODY_RATE);
            moved.start.elapsed() > allowed
        })
    }
}

pub(super) struct Back {
    pub(super) server: Arc<Server>,
    pub(super) upstream: Arc<Upstream>,
    pub(super) link: Link,
    pub(super) keep: Duration,
    /// What has come of the request.
    pub(super) moved: Arc<Moved>,
}

impl Back {
    /// After an early answer, the request goes on while some of it comes: whoever waits, client or upstream, has memory that others need.
    async fn finish(mut self) {
        let start = Instant::now();
        while self.moved.last().max(start).elapsed() < pause(&self.server) {
            if timeout(CROWDED, self.link.sender.ready()).await.is_ok() {
                return self.upstream.put(self.link, self.keep);
            }
        }
    }
}

/// A body of known length is not asked for its end.
impl Drop for Stream {
    fn drop(&mut self) {
        if self.body.as_ref().is_some_and(Upload::is_end_stream) {
            self.give_back();
        }
    }
}

impl Body for Stream {
    type Data = Bytes;
    type Error = crate::body::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, crate::body::Error>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        if let (None, Some(exchange)) = (&this.moved, &this.exchange) {
            exchange.waits(polled.is_pending());
        }
        if polled.is_pending() {
            let stall = this.stall;
            let due = *this.due.get_or_insert_with(|| Instant::now() + stall);
            let sleep = this.sleep.get_or_insert_with(|| Box::pin(sleep_until(due)));
            loop {
                ready!(sleep.as_mut().poll(cx));
                if sleep.deadline() >= due {
                    return Poll::Ready(Some(Err(BodyError::Stalled.into())));
                }
                sleep.as_mut().reset(due);
            }
        }
        if this.too_slow() {
            return Poll::Ready(Some(Err(BodyError::Stalled.into())));
        }
        this.due = None;
        Poll::Ready(match ready!(polled) {
            Some(Ok(frame)) => {
                let len = frame.data_ref().map_or(0, |d| d.len() as u64);
                // Nobody asks for what is after them.
                if frame.is_trailers() {
                    this.give_back();
                }
                if let Some(moved) = &this.moved {
                    moved.add(len);
                }
                match this.left.checked_sub(len) {
                    Some(left) => {
                        this.left = left;
                        Some(Ok(frame))
                    }
                    None => Some(Err(BodyError::TooLarge.into())),
                }
            }
            Some(Err(e)) => Some(Err(BodyError::Broken(e).into())),
            None => {
                this.give_back();
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Upload::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), Upload::size_hint)
    }
}
