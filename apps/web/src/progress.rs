//! What is known about a connection's progress, and when it has taken too long.

use crate::connection::Socket;
use bytes::{Buf, Bytes};
use donjon_web_format::Limits;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// After this many milliseconds without a request, an HTTP/1 connection's buffers are given back.
const QUIET: u64 = 1000;
/// With more connections than this, it does not keep them between requests at all: so many would be large in memory, and a buffer that others
/// have just used is in the processor's caches.
const MANY: u64 = 256;

/// Bytes that a client takes of an answer, more than it sends meanwhile, so that it counts as taking it.
pub const PACE: i64 = 1024;

/// How long an HTTP/1 connection keeps its buffers without a request, in milliseconds, among so many connections.
pub fn quiet(connections: u64) -> u64 {
    if connections > MANY { 0 } else { QUIET }
}

/// Why HTTP is no longer spoken on a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// There has been no request for a while.
    Idle,
    /// A request's head takes too long: status 408.
    Late,
    /// A request line is longer than a head may be: status 414.
    Long,
    /// There is no memory for a request: status 503.
    Full,
    /// Nothing moves although there is something to move.
    Stalled,
    /// All is said, or the client has left or broken a rule.
    Done,
    /// The client speaks HTTP/2.
    Http2,
}

/// A connection's progress. Times are milliseconds from `start`, which is the connection's own; 0 stands for "not".
pub struct State {
    start: Instant,
    /// Requests whose response is not yet complete.
    active: AtomicU32,
    /// HTTP/1 requests whose body has not ended and is still wanted. It may take longer than the response: what comes is no request.
    bodies: AtomicU32,
    /// A body was given up before its end: what comes is the rest of it, or not; nobody can tell, so there is no other request.
    unread: AtomicBool,
    /// When the last response was complete, or the connection opened.
    done: AtomicU64,
    /// When the first byte of a request's head was read.
    head: AtomicU64,
    /// When something was last read, written.
    read: AtomicU64,
    written: AtomicU64,
    /// Since when the client takes nothing although there is something to write.
    blocked: AtomicU64,
    /// Bytes written, less what was read.
    gain: AtomicI64,
    /// When the client last asked for something or took some of it, and `gain` then.
    pace: (AtomicU64, AtomicI64),
    /// Requests that an upstream may keep waiting, or a password that is being checked.
    forwarded: AtomicU32,
    ended: AtomicBool,
    /// The next write is the beginning of the last response, all of which is there.
    last: AtomicBool,
    long: AtomicBool,
    #[cfg(feature = "proxy")]
    upstream: std::sync::Mutex<Option<crate::proxy::Joined>>,
}

impl State {
    /// A connection that has just been opened.
    pub fn new() -> State {
        State {
            start: Instant::now(),
            active: AtomicU32::new(0),
            bodies: AtomicU32::new(0),
            unread: AtomicBool::new(false),
            done: AtomicU64::new(1),
            head: AtomicU64::new(0),
            read: AtomicU64::new(1),
            written: AtomicU64::new(1),
            blocked: AtomicU64::new(0),
            gain: AtomicI64::new(0),
            pace: (AtomicU64::new(1), AtomicI64::new(0)),
            forwarded: AtomicU32::new(0),
            ended: AtomicBool::new(false),
            last: AtomicBool::new(false),
            long: AtomicBool::new(false),
            #[cfg(feature = "proxy")]
            upstream: Default::default(),
        }
    }

    /// Milliseconds since the connection was opened.
    pub fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64 + 1
    }

    /// Whether the client has said that it sends no more.
    pub fn ended(&self) -> bool {
        self.ended.load(Relaxed)
    }

    /// The connection closes after the response that comes next, which has to wait for nobody.
    pub fn last(&self) {
        self.last.store(true, Relaxed);
    }

    /// Whether a request line has become too long.
    pub fn long(&self) -> bool {
        self.long.load(Relaxed)
    }

    /// A request's head is complete.
    pub fn begin(&self) {
        self.active.fetch_add(1, Relaxed);
        self.paced(self.gain.load(Relaxed));
        self.head.store(0, Relaxed);
        // hyper has found the end of the body before it, wanted or not.
        self.unread.store(false, Relaxed);
    }

    /// The request that has begun in HTTP/1 has a body.
    pub fn body(&self) {
        self.bodies.fetch_add(1, Relaxed);
    }

    /// All of it has come.
    pub fn body_ended(&self) {
        self.bodies.fetch_sub(1, Relaxed);
    }

    /// Nobody wants the rest of it.
    pub fn body_given_up(&self) {
        self.unread.store(true, Relaxed);
        self.body_ended();
    }

    /// Whether a body was given up. The connection must end with the response.
    pub fn unread(&self) -> bool {
        self.unread.load(Relaxed)
    }

    /// Whether what comes is a request.
    fn expects_request(&self) -> bool {
        self.active.load(Relaxed) == 0 && self.bodies.load(Relaxed) == 0 && !self.unread()
    }

    /// Whether nothing is under way and nothing begins.
    pub fn is_idle(&self) -> bool {
        self.expects_request() && self.head.load(Relaxed) == 0 && !self.is_blocked()
    }

    /// A response is complete.
    pub fn end(&self) {
        self.active.fetch_sub(1, Relaxed);
        self.done.store(self.now(), Relaxed);
    }

    /// Bytes of a response whose connection is under way until they are dropped: HTTP/2 may keep them for a window after their body is complete.
    pub fn hold(self: &Arc<Self>, bytes: Bytes) -> Bytes {
        self.active.fetch_add(1, Relaxed);
        Bytes::from_owner(Held(bytes, self.clone()))
    }

    /// The connection's next deadline if nothing happens, and what it then comes to. `quiet` is for HTTP/1; see [`quiet`].
    pub fn due(&self, limits: &Limits, http2: bool, quiet: u64) -> (u64, End) {
        let millis = |seconds: u32| u64::from(seconds) * 1000;
        let (done, head, blocked) = (self.done.load(Relaxed), self.head.load(Relaxed), self.blocked.load(Relaxed));
        if blocked != 0 {
            return (blocked + millis(limits.stall_seconds), End::Stalled);
        }
        if self.active.load(Relaxed) > 0 || self.bodies.load(Relaxed) > 0 {
            // What waits may be an upstream, which has time limits of its own; or an HTTP/2 client that opens no window.
            let last = self.read.load(Relaxed).max(self.written.load(Relaxed));
            return (last + millis(limits.stall_seconds) + millis(limits.upstream_seconds), End::Stalled);
        }
        if self.unread() {
            return (done + quiet, End::Done);
        }
        match (http2, head) {
            (true, _) => (done + millis(limits.idle_seconds), End::Idle),
            (false, 0) => (done.max(self.read.load(Relaxed)) + quiet, End::Idle),
            (false, head) => (head + millis(limits.header_seconds), End::Late),
        }
    }

    /// Since when a client that is waited for does too little, with this deadline from [`State::due`]: what others need it may not have for long.
    /// `None` if it is not the client that is waited for.
    pub fn slow_since(&self, limits: &Limits, (at, end): (u64, End)) -> Option<u64> {
        let before = |seconds: u32| at.saturating_sub(u64::from(seconds) * 1000);
        // Of all that is under way: one does not excuse the others.
        let forwarded = self.is_forwarded() && self.forwarded.load(Relaxed) >= self.active.load(Relaxed);
        Some(match end {
            End::Idle => before(limits.idle_seconds),
            End::Late => before(limits.header_seconds),
            End::Stalled if self.is_blocked() && forwarded => before(limits.stall_seconds),
            End::Stalled if forwarded => return None,
            End::Stalled => {
                let gain = self.gain.load(Relaxed);
                if gain >= self.pace.1.load(Relaxed) + PACE {
                    self.paced(gain);
                }
                self.pace.0.load(Relaxed)
            }
            _ => return None,
        })
    }

    fn paced(&self, gain: i64) {
        self.pace.0.store(self.now(), Relaxed);
        self.pace.1.store(gain, Relaxed);
    }

    /// Counts a request that an upstream may keep waiting, or a password, up or down.
    #[cfg(any(feature = "auth", feature = "proxy"))]
    pub fn forwarded(&self, up: bool) {
        if up {
            self.forwarded.fetch_add(1, Relaxed);
        } else {
            self.forwarded.fetch_sub(1, Relaxed);
            // The client's time begins.
            self.paced(self.gain.load(Relaxed));
        }
    }

    /// Whether it is not the client that is waited for.
    pub fn is_forwarded(&self) -> bool {
        self.forwarded.load(Relaxed) > 0
    }

    /// Whether the client takes nothing of what there is for it.
    pub fn is_blocked(&self) -> bool {
        self.blocked.load(Relaxed) != 0
    }

    /// Notes that this connection is to be joined with an upstream once its response is complete.
    #[cfg(feature = "proxy")]
    pub fn put_upstream(&self, upstream: crate::proxy::Joined) {
        if let Ok(mut place) = self.upstream.lock() {
            *place = Some(upstream);
        }
    }

    /// The upstream that this connection is to be joined with.
    #[cfg(feature = "proxy")]
    pub fn take_upstream(&self) -> Option<crate::proxy::Joined> {
        self.upstream.lock().ok()?.take()
    }
}

/// A request that waits for us, until dropped.
#[cfg(feature = "auth")]
pub struct Waits<'a>(&'a State);

#[cfg(feature = "auth")]
impl Waits<'_> {
    pub fn new(state: &State) -> Waits<'_> {
        state.forwarded(true);
        Waits(state)
    }
}

#[cfg(feature = "auth")]
impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.forwarded(false);
    }
}

/// See [`State::hold`].
struct Held(Bytes, Arc<State>);

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.1.end();
    }
}

/// A stream that notes its progress.
pub struct Watched<S> {
    stream: S,
    /// To be read before what the stream has.
    rest: Bytes,
    state: Arc<State>,
    /// Whether a shutdown is for the stream.
    closing: bool,
    /// Whether the last write has to be repeated.
    pending: bool,
    /// Bytes of the request line so far, while it has no end.
    line: Option<usize>,
    /// Where it is too long.
    line_max: usize,
}

impl<S> Watched<S> {
    /// Watches a stream from which `rest` was read already.
    pub fn new(stream: S, rest: Bytes, state: Arc<State>) -> Watched<S> {
        Watched { stream, rest, state, closing: false, pending: false, line: None, line_max: usize::MAX }
    }

    /// The same, but a shutdown reaches the stream. Otherwise it does not: an HTTP/1 connection that hyper is done with may be upgraded, and
    /// else is closed in our way.
    pub fn closing(self) -> Watched<S> {
        Watched { closing: true, ..self }
    }

    /// The same, but nothing more is read of a request line that has this many bytes and no end: hyper would take it for a long head.
    pub fn limited(self, line_max: usize) -> Watched<S> {
        Watched { line_max, ..self }
    }

    /// The stream, and what was read but not used: `unused`, then what was left here.
    pub fn into_parts(self, unused: Bytes) -> (S, Bytes) {
        let rest = if self.rest.is_empty() { unused } else { [unused, self.rest].concat().into() };
        (self.stream, rest)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        if this.rest.is_empty() {
            std::task::ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        } else {
            let n = this.rest.len().min(buf.remaining());
            buf.put_slice(&this.rest[..n]);
            this.rest.advance(n);
        }
        let (state, now) = (&this.state, this.state.now());
        state.read.store(now, Relaxed);
        state.gain.fetch_sub((buf.filled().len() - before) as i64, Relaxed);
        if buf.filled().len() == before && buf.remaining() > 0 {
            state.ended.store(true, Relaxed);
            return Poll::Ready(Ok(()));
        }
        if state.head.load(Relaxed) == 0 && state.expects_request() {
            state.head.store(now, Relaxed);
            this.line = Some(0);
        }
        if let Some(line) = &mut this.line {
            let new = &buf.filled()[before..];
            *line += new.len();
            if new.contains(&b'\n') {
                this.line = None;
            } else if *line >= this.line_max {
                state.long.store(true, Relaxed);
                buf.set_filled(before);
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Socket> Watched<S> {
    /// The socket below.
    pub fn tcp(&self) -> Option<&tokio::net::TcpStream> {
        self.stream.tcp()
    }

    /// Lets the end of the last response wait for the end of the connection, so that both go in one packet.
    fn cork(&self) {
        if self.state.last.swap(false, Relaxed)
            && let Some(socket) = self.stream.tcp()
        {
            // If it cannot be done, they go in two.
            let _ = socket2::SockRef::from(socket).set_tcp_cork(true);
        }
    }
}

impl<S> Watched<S> {
    fn note(&mut self, result: Poll<std::io::Result<usize>>) -> Poll<std::io::Result<usize>> {
        self.pending = result.is_pending();
        let state = &self.state;
        if result.is_ready() {
            state.blocked.store(0, Relaxed);
            state.written.store(state.now(), Relaxed);
            if let Poll::Ready(Ok(n)) = &result {
                state.gain.fetch_add(*n as i64, Relaxed);
            }
        } else if state.blocked.load(Relaxed) == 0 {
            state.blocked.store(state.now(), Relaxed);
        }
        result
    }
}

impl<S: Socket> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        self.cork();
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.note(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        self.cork();
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.note(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        // Under TLS, what was written may not yet be in the socket.
        match &result {
            Poll::Pending if self.state.blocked.load(Relaxed) == 0 => {
                self.state.blocked.store(self.state.now(), Relaxed)
            }
            // Nothing to flush says nothing of what is still to be written.
            Poll::Ready(_) if !self.pending => self.state.blocked.store(0, Relaxed),
            _ => {}
        }
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let this = &mut *self;
        let stream = Pin::new(&mut this.stream);
        if this.closing { stream.poll_shutdown(cx) } else { stream.poll_flush(cx) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines() {
        let limits = Limits {
            header_seconds: 10,
            idle_seconds: 60,
            stall_seconds: 30,
            upstream_seconds: 50,
            ..Limits::default()
        };
        let state = State::new();
        let set = |field: &AtomicU64, value| field.store(value, Relaxed);
        set(&state.done, 7);
        set(&state.read, 5);
        assert_eq!(state.due(&limits, false, quiet(MANY)), (7 + QUIET, End::Idle));
        assert_eq!(state.due(&limits, false, quiet(MANY + 1)), (7, End::Idle));
        assert_eq!(state.due(&limits, true, QUIET), (60_007, End::Idle));
        set(&state.head, 9);
        assert_eq!(state.due(&limits, false, QUIET), (10_009, End::Late));
        state.begin();
        set(&state.written, 11);
        assert_eq!(state.due(&limits, false, QUIET), (80_011, End::Stalled));
        set(&state.blocked, 13);
        assert_eq!(state.due(&limits, true, QUIET), (30_013, End::Stalled));
        set(&state.blocked, 0);
        state.end();
        assert_eq!(state.due(&limits, false, QUIET).1, End::Idle);
    }

    #[test]
    fn a_connection_with_a_body_is_not_idle() {
        let limits = Limits::default();
        let state = State::new();
        let end = || state.due(&limits, false, 0).1;
        let request = || {
            state.begin();
            state.body();
            state.end();
            assert_eq!((end(), state.expects_request()), (End::Stalled, false));
        };
        request();
        state.body_ended();
        assert_eq!((end(), state.expects_request()), (End::Idle, true));
        request();
        state.body_given_up();
        assert_eq!((end(), state.expects_request()), (End::Done, false));
        // There is another request only if the body has ended after all.
        request();
        state.body_ended();
        assert_eq!((end(), state.expects_request()), (End::Idle, true));
    }

    /// What a client says while it takes nothing, PING say, is no reason to wait for it, nor what we answer to that.
    #[test]
    fn words_are_no_progress() {
        let limits = Limits::default();
        let state = State::new();
        let slow_since = || state.slow_since(&limits, state.due(&limits, true, 0));
        // Later than any time that this test sees.
        const THEN: u64 = 1 << 40;
        let then = || state.pace.0.store(THEN, Relaxed);
        state.begin();
        then();
        for _ in 0..100 {
            // Of a client that has a window of nothing.
            state.gain.fetch_add(17 - 17, Relaxed);
            assert_eq!(slow_since(), Some(THEN));
        }
        state.gain.fetch_add(PACE - 1, Relaxed);
        assert_eq!(slow_since(), Some(THEN));
        state.gain.fetch_add(1, Relaxed);
        assert!(slow_since().is_some_and(|since| since < THEN));
        then();
        state.begin();
        assert!(slow_since().is_some_and(|since| since < THEN));
        #[cfg(feature = "proxy")]
        {
            then();
            state.forwarded(true);
            assert_eq!(slow_since(), Some(THEN), "the other of two is its client's to take");
            state.end();
            assert_eq!(slow_since(), None);
            state.blocked.store(THEN, Relaxed);
            assert_eq!(slow_since(), Some(THEN));
            state.forwarded(false);
            assert!(slow_since().is_some_and(|since| since < THEN));
        }
    }

    /// A stream that has taken what was written and cannot send it, as TLS does before a client that does not read.
    struct Full;

    impl Socket for Full {
        fn tcp(&self) -> Option<&tokio::net::TcpStream> {
            None
        }
    }

    impl AsyncRead for Full {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Full {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Pending
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Pending
        }
    }

    /// A stream that takes nothing and has nothing to flush, as TCP before a client that does not read.
    struct Blocked;

    impl Socket for Blocked {
        fn tcp(&self) -> Option<&tokio::net::TcpStream> {
            None
        }
    }

    impl AsyncRead for Blocked {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Blocked {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<std::io::Result<usize>> {
            Poll::Pending
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// HTTP/2 flushes after each turn, also when there was nothing to flush.
    #[test]
    fn a_flush_takes_nothing() {
        let state = Arc::new(State::new());
        let mut stream = Watched::new(Blocked, Bytes::new(), state.clone());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for _ in 0..2 {
            assert!(Pin::new(&mut stream).poll_write(&mut cx, b"x").is_pending());
            assert!(Pin::new(&mut stream).poll_flush(&mut cx).is_ready());
            assert!(state.is_blocked());
        }
    }

    /// Such a connection is not idle when its response is complete: nobody would send the rest.
    #[test]
    fn what_is_not_flushed_is_not_done() {
        let state = Arc::new(State::new());
        let mut stream = Watched::new(Full, Bytes::new(), state.clone());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut stream).poll_write(&mut cx, b"x").is_ready());
        assert_eq!(state.due(&Limits::default(), false, 0).1, End::Idle);
        assert!(Pin::new(&mut stream).poll_flush(&mut cx).is_pending());
        assert_eq!(state.due(&Limits::default(), false, 0).1, End::Stalled);
    }
}
