//! Response bodies.

use crate::listing::Listing;
use crate::serve::Busy;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Largest piece that is handed to the connection at once, so that a slow client holds little.
const PIECE: usize = 64 * 1024;

/// A body: pieces of the bundle or of the heap, in order; or a stream from an upstream.
#[derive(Default)]
pub struct Content {
    pieces: VecDeque<Bytes>,
    /// What comes after the pieces.
    more: Option<Box<Listing>>,
    busy: Option<Busy>,
    #[cfg(feature = "proxy")]
    stream: Option<crate::proxy::Stream>,
}

impl Content {
    /// A body of these pieces.
    pub fn new(pieces: impl IntoIterator<Item = Bytes>) -> Content {
        let mut content = Content::default();
        content.pieces.extend(pieces.into_iter().filter(|p| !p.is_empty()));
        content
    }

    /// A directory's page: its beginning, and what makes the rest.
    pub fn listing((first, more): (Bytes, Option<Box<Listing>>)) -> Content {
        Content { more, ..Content::new([first]) }
    }

    /// Whether some of it is still to be made.
    pub fn grows(&self) -> bool {
        self.more.is_some()
    }

    /// A body that an upstream sends.
    #[cfg(feature = "proxy")]
    pub fn stream(stream: crate::proxy::Stream) -> Content {
        Content { stream: Some(stream), ..Content::default() }
    }

    /// Keeps this until the body is sent or given up.
    pub fn keep(&mut self, mut busy: Busy) {
        if self.is_end_stream() {
            busy.complete();
        }
        self.busy = Some(busy);
    }

    /// Whether some of it may have to be waited for.
    pub fn waits(&self) -> bool {
        #[cfg(feature = "proxy")]
        return self.stream.is_some();
        #[cfg(not(feature = "proxy"))]
        false
    }

    /// Length of the pieces, bytes: of all, unless it [grows](Content::grows) or is a stream.
    pub fn len(&self) -> u64 {
        self.pieces.iter().map(|p| p.len() as u64).sum()
    }
}

impl Content {
    fn next(&mut self, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        #[cfg(feature = "proxy")]
        if let Some(stream) = &mut self.stream {
            return Pin::new(stream).poll_frame(_cx);
        }
        if self.pieces.is_empty()
            && let Some(listing) = &mut self.more
        {
            let (piece, more) = listing.next();
            if !more {
                self.more = None;
            }
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        Poll::Ready(self.pieces.front_mut().map(|piece| piece.split_to(piece.len().min(PIECE))).map(|piece| {
            if self.pieces.front().is_some_and(Bytes::is_empty) {
                self.pieces.pop_front();
            }
            Ok(Frame::data(piece))
        }))
    }
}

/// What a body may fail with.
#[cfg(feature = "proxy")]
pub type Error = Box<dyn std::error::Error + Send + Sync>;
/// What a body may fail with: nothing, without an upstream.
#[cfg(not(feature = "proxy"))]
pub type Error = std::convert::Infallible;

impl Body for Content {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut polled = self.next(cx);
        // A body of known length is not asked for its end.
        let complete = matches!(polled, Poll::Ready(None)) || self.is_end_stream();
        if let Some(busy) = &mut self.busy {
            if let Poll::Ready(Some(Ok(frame))) = &mut polled
                && let Some(piece) = frame.data_mut()
            {
                *piece = busy.pass(std::mem::take(piece));
            }
            if complete {
                busy.complete();
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        #[cfg(feature = "proxy")]
        if let Some(stream) = &self.stream {
            return stream.is_end_stream();
        }
        self.pieces.is_empty() && self.more.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        #[cfg(feature = "proxy")]
        if let Some(stream) = &self.stream {
            return stream.size_hint();
        }
        if self.more.is_some() { SizeHint::default() } else { SizeHint::with_exact(self.len()) }
    }
}
