//! Request bodies, and what becomes of one that nobody wants.

use crate::progress::State;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::Version;
use hyper::body::Incoming;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::timeout;

/// For how long a body is read that nobody wants.
const UNREAD: Duration = Duration::from_secs(3);

/// A message's body. One of an HTTP/2 request that is given up before its end is read on for a while, and thrown away: else h2 would reset the
/// stream as soon as the response is sent. RFC 9113 §8.1 allows that, but there are clients (curl up to 7.88, at least) that take the reset for an
/// error if it comes with the response, while they are still sending. One that has had the time to read the response stops by itself, and knows its
/// status. HTTP/1 does the same for a whole connection (`connection::close`).
pub struct Upload {
    body: Option<Incoming>,
    version: Version,
    /// Of an HTTP/1 request, until it has ended: see [`State::body`].
    state: Option<Arc<State>>,
}

impl Upload {
    /// The body of a request of this version.
    pub fn new(body: Incoming, version: Version, state: &Arc<State>) -> Upload {
        let unread = version != Version::HTTP_2 && !body.is_end_stream();
        let state = unread.then(|| state.clone());
        if let Some(state) = &state {
            state.body();
        }
        Upload { body: Some(body), version, state }
    }

    /// The body of an upstream's response.
    #[cfg(feature = "proxy")]
    pub fn response(body: Incoming) -> Upload {
        Upload { body: Some(body), version: Version::HTTP_11, state: None }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(state) = self.state.take() {
            state.body_given_up();
        }
        if let (Some(mut body), Version::HTTP_2) = (self.body.take(), self.version)
            && !body.is_end_stream()
            && let Ok(runtime) = Handle::try_current()
        {
            // An error is the client's word that it has stopped, or the connection's end.
            let read = async move { while let Some(Ok(_)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {} };
            runtime.spawn(timeout(UNREAD, read));
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        let frame = Pin::new(&mut *body).poll_frame(cx);
        // One of known length is not asked for its end. After an error, more of it may come.
        let ended =
            matches!(frame, Poll::Ready(None)) || matches!(frame, Poll::Ready(Some(Ok(_)))) && body.is_end_stream();
        if ended && let Some(state) = this.state.take() {
            state.body_ended();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), Incoming::size_hint)
    }
}
