//! One connection: which HTTP it speaks, its timeouts, its end.
//!
//! hyper's HTTP/1 state costs more than 16 KB of buffers, so a connection has it only while there is something to do: one that has been
//! quiet for a second (with many connections: at all) gives it back and waits for the socket to become readable, which costs a task and the socket.

use crate::budget::{self, CROWDED, For, Promise};
use crate::gather::Gathered;
use crate::progress::{End, PACE, State, Watched, quiet};
use crate::serve::{Client, Server, answer, is_stopped, stopped};
use bytes::Bytes;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, timeout, timeout_at};

/// How an HTTP/2 client begins when it knows in advance that we speak it.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// After our last word, how long a client is listened to, so that closing does not reset the connection before it has read that word (RFC 9112 §9.6).
const LINGER: Duration = Duration::from_secs(2);
/// How often is looked whether a client has left for which an upstream works, milliseconds.
const LOOK_LEFT: u64 = 1000;
/// How often is looked whether the client has all, at a stop and else.
const LOOK_SENT: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(200)];
const LATE: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
const FULL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n";
/// The same over HTTP/2: SETTINGS, and GOAWAY with ENHANCE_YOUR_CALM (RFC 9113 §7).
const CALM: &[u8] = b"\0\0\0\x04\0\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0b";
const LONG: &[u8] = b"HTTP/1.1 414 URI Too Long\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// What a connection runs over.
pub trait Socket: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// The socket below, if there is one that can be waited for.
    fn tcp(&self) -> Option<&TcpStream>;

    /// Whether HTTP/2 was agreed on.
    fn http2(&self) -> bool {
        false
    }

    /// Whether a stream that was not read from may have data for us that is no longer in the socket.
    fn buffered(&self) -> bool {
        false
    }

    /// Whether it has something for us that was left unread.
    fn unread(&self) -> bool {
        false
    }
}

#[cfg(any(not(feature = "tls"), test))]
impl Socket for TcpStream {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

/// Serves a connection to its end.
#[expect(
    clippy::manual_async_fn,
    reason = "in an `async fn` arguments are there twice, for as long as a connection lives"
)]
pub fn talk<S: Socket>(server: &Arc<Server>, mut stream: S, client: &Client) -> impl Future<Output = ()> {
    async move {
        let mut stop = server.stop.clone();
        let mut fresh = true;
        let state = client.state.clone();
        if stream.http2() {
            return Box::pin(two(server, Watched::new(stream, Bytes::new(), state).closing(), client, &mut stop)).await;
        }
        loop {
            let at_hand = fresh && stream.buffered();
            let Some(begins) =
                (if at_hand { Some(Begins::Else) } else { readable(server, &stream, fresh, &stop).await })
            else {
                return Box::pin(close(server, stream, &state)).await;
            };
            fresh = false;
            let mut rest = Bytes::new();
            if begins == Begins::LikeHttp2 {
                // hyper wants all of it at once.
                match budget::patient(server, Box::pin(preface(&mut stream))).await {
                    Some(first) => rest = first,
                    None => return Box::pin(refuse(server, stream, client, End::Late)).await,
                }
                if rest == HTTP2_PREFACE {
                    return Box::pin(two(server, Watched::new(stream, rest, state).closing(), client, &mut stop)).await;
                }
            }
            loop {
                if server.budget.is_out()
                    && budget::in_time(server, Box::pin(server.budget.room(For::Request))).await.is_none()
                {
                    return Box::pin(refuse(server, stream, client, End::Full)).await;
                }
                let speaking = one(server, Watched::new(stream, rest, state.clone()), client, &mut stop);
                // On the heap, as all that an idle connection does without.
                let (end, back, unread) = Box::pin(speaking).await;
                (stream, rest) = (back, unread);
                match end {
                    End::Idle if rest.is_empty() && !stream.unread() => break,
                    // The beginning of a request came with the one before.
                    End::Idle => {}
                    End::Http2 => {
                        return Box::pin(two(server, Watched::new(stream, rest, state).closing(), client, &mut stop))
                            .await;
                    }
                    End::Late | End::Long | End::Full => return Box::pin(refuse(server, stream, client, end)).await,
                    End::Done => {
                        #[cfg(feature = "proxy")]
                        if let Some(upstream) = state.take_upstream() {
                            let stream = Watched::new(stream, rest, state).closing();
                            return Box::pin(crate::proxy::tunnel(server, stream, upstream)).await;
                        }
                        return Box::pin(close(server, stream, &state)).await;
                    }
                    End::Stalled => return,
                }
            }
        }
    }
}

/// How a connection begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begins {
    /// With a part of HTTP/2's preface.
    LikeHttp2,
    /// In another way, with all of the preface included.
    Else,
}

/// Waits for a request to begin. `None` if there will be none.
async fn readable<S: Socket>(server: &Server, stream: &S, fresh: bool, stop: &watch::Receiver<bool>) -> Option<Begins> {
    let Some(socket) = stream.tcp() else { return Some(Begins::Else) };
    let limits = &server.site.config.limits;
    let limit = Duration::from_secs(if fresh { limits.header_seconds } else { limits.idle_seconds }.into());
    let (start, mut crowded) = (Instant::now(), server.is_crowded());
    let begins = async {
        if fresh {
            // On the heap, so that whoever has been of use does without.
            Box::pin(first(socket)).await
        } else {
            // `readable` would be 140 bytes of each idle connection, so that several may wait.
            poll_fn(|cx| socket.poll_read_ready(cx)).await.ok().map(|()| Begins::Else)
        }
    };
    let mut begins = std::pin::pin!(begins);
    loop {
        // Before `stop` is looked at, so that it is not missed. One for both, as it is 64 bytes of each idle connection.
        let called = server.budget.called();
        if is_stopped(stop) {
            return None;
        }
        let limit = if crowded { limit.min(CROWDED) } else { limit };
        tokio::select! {
            biased;
            begins = timeout_at(start + limit, begins.as_mut()) => return begins.ok().flatten(),
            () = called => crowded = true,
        }
    }
}

/// How a new connection begins.
async fn first(socket: &TcpStream) -> Option<Begins> {
    // tokio takes a new socket for readable until it has been read from.
    let mut first = [0; HTTP2_PREFACE.len()];
    let n = socket.peek(&mut first).await.ok().filter(|n| *n > 0)?;
    let part = n < first.len() && HTTP2_PREFACE.starts_with(&first[..n]);
    Some(if part { Begins::LikeHttp2 } else { Begins::Else })
}

/// Reads what may become HTTP/2's preface: until it is complete or cannot become it, or the client has said its last.
async fn preface<S: Socket>(stream: &mut S) -> Bytes {
    let mut first = [0; HTTP2_PREFACE.len()];
    let mut filled = 0;
    while filled < first.len() && HTTP2_PREFACE.starts_with(&first[..filled]) {
        match stream.read(&mut first[filled..]).await {
            Ok(n @ 1..) => filled += n,
            _ => break,
        }
    }
    Bytes::copy_from_slice(&first[..filled])
}

/// Speaks HTTP/1 until the connection is idle or ends. Returns the stream and what was read from it and not used.
async fn one<S: Socket>(
    server: &Arc<Server>,
    stream: Watched<S>,
    client: &Client,
    stop: &mut watch::Receiver<bool>,
) -> (End, S, Bytes) {
    let limits = server.site.config.limits;
    let state = client.state.clone();
    let service = service_fn(|request| {
        let (server, client) = (server.clone(), client.clone());
        async move { Ok::<_, Infallible>(answer(server, request, client).await) }
    });
    let head_max = (limits.header_bytes as usize).max(8192);
    let fd = stream.tcp().map(AsRawFd::as_raw_fd);
    let stream = stream.limited(head_max);
    let mut connection = Box::new(
        http1::Builder::new()
            .header_read_timeout(None)
            .max_buf_size(head_max)
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service),
    );
    let mut stopped = std::pin::pin!(stopped(stop));
    let mut draining = false;
    let mut deadline = Deadline::default();
    let (mut look, mut next) = (Deadline::default(), 0);
    let mut refused = None;
    let mut end = poll_fn(|cx| {
        if server.budget.is_out() && state.is_idle() {
            // Another request waits for memory before it begins, as those of others.
            return Poll::Ready(End::Idle);
        }
        let mut pinned = Pin::new(&mut *connection);
        if !draining && stopped.as_mut().poll(cx).is_ready() {
            draining = true;
            pinned.as_mut().graceful_shutdown();
        }
        if let Poll::Ready(result) = pinned.poll(cx) {
            let Err(e) = result else { return Poll::Ready(End::Done) };
            refused = e.is_parse().then(|| if e.is_parse_too_large() { 431 } else { 400 });
            return Poll::Ready(End::Http2);
        }
        if state.long() {
            return Poll::Ready(End::Long);
        }
        // hyper does not read while a request is under way: an upstream would work on for nobody.
        while state.is_forwarded() && look.poll(cx, &state, next).is_ready() {
            if fd.is_some_and(has_left) {
                return Poll::Ready(End::Stalled);
            }
            next = state.now() + LOOK_LEFT;
        }
        let quiet = quiet(server.metrics.open.load(Relaxed));
        let (at, end) = state.due(&limits, false, quiet);
        if matches!(end, End::Idle | End::Done) && quiet == 0 {
            return Poll::Ready(end);
        }
        let slow = match end {
            // Whatever has not begun needs memory that others need to end.
            End::Late if server.budget.is_out() => return Poll::Ready(End::Full),
            End::Late | End::Stalled => state.slow_since(&limits, (at, end)),
            _ => None,
        };
        deadline.poll_crowded(cx, &state, at, slow, || server.is_crowded()).map(|()| end)
    })
    .await;
    let parts = connection.into_parts();
    if end == End::Http2 && !parts.read_buf.starts_with(HTTP2_PREFACE) {
        // Another error, which hyper has answered as far as it can be answered.
        end = End::Done;
        if let Some(code) = refused {
            server.refused(client, code);
        }
    }
    let (stream, rest) = parts.io.into_inner().into_parts(parts.read_buf);
    (end, stream, rest)
}

/// Whether a connection is broken. Who only sends no more waits for an answer.
#[expect(unsafe_code, reason = "UNSAFETY: a call into libc with a pointer to a local")]
fn has_left(fd: RawFd) -> bool {
    let mut one = libc::pollfd { fd, events: 0, revents: 0 };
    // SAFETY: `one` is the one that is announced.
    let n = unsafe { libc::poll(&mut one, 1, 0) };
    n == 1 && one.revents & (libc::POLLERR | libc::POLLHUP) != 0
}

/// Speaks HTTP/2.
async fn two<S: Socket>(server: &Arc<Server>, stream: Watched<S>, client: &Client, stop: &mut watch::Receiver<bool>) {
    let fd = stream.tcp().map(AsRawFd::as_raw_fd);
    let Some(promise) = Promise::soon(server, For::Http2, budget::HTTP2).await else {
        let mut stream = stream;
        let _ = timeout(LINGER, stream.write_all(CALM)).await;
        return linger(&mut stream, LINGER).await;
    };
    let limits = server.site.config.limits;
    let proxied = !server.site.config.proxies.is_empty();
    let state = client.state.clone();
    let service = service_fn(|request| {
        let (server, client) = (server.clone(), client.clone());
        async move { Ok::<_, Infallible>(answer(server, request, client).await) }
    });
    let gate = server.clone();
    let stream = Gathered::new(stream, move || gate.budget.may_read());
    let gathered = stream.share();
    let mut connection = Box::pin(
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_header_list_size(limits.header_bytes)
            .initial_connection_window_size(budget::WINDOW)
            .initial_stream_window_size(budget::WINDOW)
            // An exchange with an upstream costs more than a file, of which nothing is copied.
            .max_concurrent_streams(if proxied { 32 } else { 128 })
            .max_send_buf_size(if proxied { 16 } else { 64 } * 1024)
            .serve_connection(TokioIo::new(stream), service),
    );
    let mut stopped = std::pin::pin!(stopped(stop));
    // When GOAWAY was said.
    let mut goodbye = None;
    let mut deadline = Deadline::default();
    let (mut held, mut look) = (None, Deadline::default());
    let end = poll_fn(|cx| {
        if goodbye.is_none() && stopped.as_mut().poll(cx).is_ready() {
            goodbye = Some(state.now());
            connection.as_mut().graceful_shutdown();
        }
        loop {
            // What fails here is the client's doing.
            if turn(connection.as_mut(), &gathered, cx) {
                return Poll::Ready(End::Done);
            }
            if !gathered.is_held() {
                held = None;
                break;
            }
            // Nothing more is read for want of memory, of which this connection may be the one that has it.
            server.budget.call_for_memory();
            let now = state.now();
            let (since, next) = held.get_or_insert((now, now));
            if now >= *since + CROWDED.as_millis() as u64 {
                return Poll::Ready(End::Full);
            }
            if now >= *next {
                *next = now + budget::LOOK_TO_READ.as_millis() as u64;
            }
            if look.poll(cx, &state, *next).is_pending() {
                break;
            }
        }
        let (at, end) = state.due(&limits, true, 0);
        let slow = state.slow_since(&limits, (at, end));
        // A client that does not answer the PING that goes with GOAWAY keeps nobody waiting. What it asked for meanwhile is answered.
        let at = match (goodbye, slow) {
            (Some(since), Some(done)) if end == End::Idle => done.max(since) + LINGER.as_millis() as u64,
            _ => at,
        };
        std::task::ready!(deadline.poll_crowded(cx, &state, at, slow, || server.is_crowded()));
        if end != End::Idle || goodbye.is_some() {
            return Poll::Ready(end);
        }
        goodbye = Some(state.now());
        connection.as_mut().graceful_shutdown();
        // The next turn sends it; in a crowd it is the last.
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
    drop(connection);
    drop(promise);
    if end == End::Stalled {
        return;
    }
    gathered.forget();
    let most = pause(server);
    let mut gathered = gathered;
    linger(&mut gathered, most).await;
    sent(server, &mut gathered, fd).await;
}

/// What the client says while it reads the end of an answer, such as WINDOW_UPDATE, must find a socket: else it is answered with a reset, which takes
/// away what is on its way. Until the client ends the connection or falls silent.
async fn linger(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), most: Duration) {
    let listen = async {
        // HTTP/2 itself does this only when all has been said.
        let _ = stream.shutdown().await;
        let mut buffer = [0; 256];
        while let Ok(Ok(1..)) = timeout(LINGER, stream.read(&mut buffer)).await {}
    };
    let _ = timeout(most, listen).await;
}

/// Lets HTTP/2 do what it can and sends what came of it; whether it has ended.
fn turn<S: Socket>(connection: Pin<&mut impl Future>, gathered: &Gathered<Watched<S>>, cx: &mut Context<'_>) -> bool {
    let ended = connection.poll(cx).is_ready();
    // Pending: the task is woken, and the next turn goes on with it.
    let sent = gathered.send(cx);
    ended || matches!(sent, Poll::Ready(Err(_)))
}

/// Answers a request that hyper has not seen to its end.
async fn refuse<S: Socket>(server: &Server, mut stream: S, client: &Client, end: End) {
    let (code, answer) = match end {
        End::Late => (408, LATE),
        End::Long => (414, LONG),
        _ => (503, FULL),
    };
    server.refused(client, code);
    let _ = timeout(LINGER, stream.write_all(answer)).await;
    close(server, stream, &client.state).await;
}

/// Says goodbye so that the client hears it.
pub async fn close<S: Socket>(server: &Server, mut stream: S, state: &State) {
    let fd = stream.tcp().map(AsRawFd::as_raw_fd);
    let goodbye = async {
        if stream.shutdown().await.is_err() || state.ended() {
            return;
        }
        let mut buffer = vec![0; 4096];
        while let Ok(1..) = stream.read(&mut buffer).await {}
    };
    let _ = timeout(LINGER, goodbye).await;
    sent(server, &mut stream, fd).await;
}

/// Longest wait for a client that takes nothing.
pub fn pause(server: &Server) -> Duration {
    if server.is_crowded() { CROWDED } else { Duration::from_secs(server.site.config.limits.stall_seconds.into()) }
}

/// Waits until the client has all that was written: a stop may come, and at the end of a guest, what its stack still holds is lost. How long that may take is
/// the drain's to say then; before, the client has to take some of it now and then.
pub async fn sent(server: &Server, stream: &mut (impl AsyncRead + Unpin), fd: Option<RawFd>) {
    let Some(fd) = fd else { return };
    let (mut buffer, mut open) = ([0; 256], true);
    let (mut left, mut since) = (i64::MAX, Instant::now());
    loop {
        let (now, stops) = (unsent(fd), is_stopped(&server.stop));
        if now <= left - PACE {
            (left, since) = (now, Instant::now());
        }
        if now == 0 || !stops && since.elapsed() >= pause(server) {
            return;
        }
        // Closing with something unread would reset the connection.
        let word = async { if open { stream.read(&mut buffer).await } else { std::future::pending().await } };
        match timeout(LOOK_SENT[usize::from(!stops)], word).await {
            Ok(Ok(0)) => open = false,
            Ok(Err(_)) => return,
            _ => {}
        }
    }
}

/// How many bytes a socket has that the other side does not have yet.
#[expect(unsafe_code, reason = "UNSAFETY: a call into libc with a pointer to a local")]
fn unsent(fd: RawFd) -> i64 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ, which is the same number, puts an `int` where it is told to.
    let result = unsafe { libc::ioctl(fd, libc::TIOCOUTQ, &mut bytes) };
    if result == 0 { bytes.into() } else { 0 }
}

/// A timer that is moved only when it has to be: most deadlines are put off again and again.
#[derive(Default)]
struct Deadline(Option<(Pin<Box<Sleep>>, u64)>);

impl Deadline {
    /// Ready if the state's clock shows `at` or later; else the task is woken then, or earlier.
    fn poll(&mut self, cx: &mut Context<'_>, state: &State, at: u64) -> Poll<()> {
        let left = || Duration::from_millis(at.saturating_sub(state.now()));
        let (sleep, set) = self.0.get_or_insert_with(|| (Box::pin(tokio::time::sleep(left())), at));
        let mut fired = sleep.as_mut().poll(cx).is_ready();
        if !fired && at >= *set {
            return Poll::Pending;
        }
        loop {
            if left().is_zero() {
                return Poll::Ready(());
            }
            if !fired && *set == at {
                return Poll::Pending;
            }
            *set = at;
            sleep.as_mut().reset(tokio::time::Instant::now() + left());
            fired = sleep.as_mut().poll(cx).is_ready();
        }
    }
}

impl Deadline {
    /// The same, but no later than [`CROWDED`] after `slow`, if it is crowded then or while it waits.
    fn poll_crowded(
        &mut self,
        cx: &mut Context<'_>,
        state: &State,
        at: u64,
        slow: Option<u64>,
        is_crowded: impl Fn() -> bool,
    ) -> Poll<()> {
        let crowded = CROWDED.as_millis() as u64;
        let Some(early) = slow.map(|since| since + crowded).filter(|early| *early < at) else {
            return self.poll(cx, state, at);
        };
        loop {
            let now = state.now();
            if now >= at || now >= early && is_crowded() {
                return Poll::Ready(());
            }
            let look = if now < early { early } else { at.min(now + crowded) };
            std::task::ready!(self.poll(cx, state, look));
        }
    }
}

#[cfg(all(test, feature = "proxy"))]
mod tests;
