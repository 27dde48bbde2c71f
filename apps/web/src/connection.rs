//! One connection: which HTTP it speaks, its timeouts, its end.
//!
//! hyper's HTTP/1 state costs more than 16 KB of buffers, so a connection has it only while there is something to do: one that has been
//! quiet for a second (with many connections: at all) gives it back and waits for the socket to become readable, which costs a task and the socket.

use crate::gather::Gathered;
use crate::progress::{End, State, Watched, quiet};
use crate::serve::{Client, Server, answer, stopped};
use bytes::Bytes;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Sleep, timeout};

/// How an HTTP/2 client begins when it knows in advance that we speak it.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Longest idle time while few places for connections are left.
const CROWDED: Duration = Duration::from_secs(2);
/// After our last word, how long and for how many bytes a client is listened to, so that closing does not reset the connection before it has read
/// that word (RFC 9112 §9.6).
const LINGER: (Duration, usize) = (Duration::from_secs(2), 64 * 1024);
const LATE: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
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
                (if at_hand { Some(Begins::Else) } else { readable(server, &stream, fresh, &mut stop).await })
            else {
                return close(stream, &state).await;
            };
            fresh = false;
            let mut rest = Bytes::new();
            if begins == Begins::LikeHttp2 {
                let limit = Duration::from_secs(server.site.config.limits.header_seconds.into());
                // hyper wants all of it at once.
                match timeout(limit, Box::pin(preface(&mut stream))).await {
                    Ok(first) => rest = first,
                    Err(_) => return refuse(server, stream, &state, End::Late).await,
                }
                if rest == HTTP2_PREFACE {
                    return Box::pin(two(server, Watched::new(stream, rest, state).closing(), client, &mut stop)).await;
                }
            }
            loop {
                let speaking = one(server, Watched::new(stream, rest, state.clone()), client, &mut stop);
                // On the heap, as all that an idle connection does without.
                let (end, back, unread) = Box::pin(speaking).await;
                (stream, rest) = (back, unread);
                match end {
                    End::Idle if rest.is_empty() => break,
                    // The beginning of a request came with the one before.
                    End::Idle => {}
                    End::Http2 => {
                        return Box::pin(two(server, Watched::new(stream, rest, state).closing(), client, &mut stop))
                            .await;
                    }
                    End::Late | End::Long => return refuse(server, stream, &state, end).await,
                    End::Done => {
                        #[cfg(feature = "proxy")]
                        if let Some(upstream) = state.take_upstream() {
                            let stream = Watched::new(stream, rest, state).closing();
                            return Box::pin(crate::proxy::tunnel(server, stream, upstream)).await;
                        }
                        return close(stream, &state).await;
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
async fn readable<S: Socket>(
    server: &Server,
    stream: &S,
    fresh: bool,
    stop: &mut watch::Receiver<bool>,
) -> Option<Begins> {
    let Some(socket) = stream.tcp() else { return Some(Begins::Else) };
    let limits = &server.site.config.limits;
    let mut limit = Duration::from_secs(if fresh { limits.header_seconds } else { limits.idle_seconds }.into());
    if server.places.available_permits() < limits.connections as usize / 8 {
        limit = limit.min(CROWDED);
    }
    let begins = async {
        if fresh {
            // On the heap, so that whoever has been of use does without.
            Box::pin(first(socket)).await
        } else {
            // `readable` would be 140 bytes of each idle connection, so that several may wait.
            poll_fn(|cx| socket.poll_read_ready(cx)).await.ok().map(|()| Begins::Else)
        }
    };
    tokio::select! {
        begins = timeout(limit, begins) => begins.ok().flatten(),
        _ = stopped(stop) => None,
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
    let mut end = poll_fn(|cx| {
        let mut pinned = Pin::new(&mut *connection);
        if !draining && stopped.as_mut().poll(cx).is_ready() {
            draining = true;
            pinned.as_mut().graceful_shutdown();
        }
        if let Poll::Ready(result) = pinned.poll(cx) {
            return Poll::Ready(if result.is_err() { End::Http2 } else { End::Done });
        }
        if state.long() {
            return Poll::Ready(End::Long);
        }
        let quiet = quiet(server.metrics.open.load(Relaxed));
        let (at, end) = state.due(&limits, false, quiet);
        if matches!(end, End::Idle | End::Done) && quiet == 0 {
            return Poll::Ready(end);
        }
        deadline.poll(cx, &state, at).map(|()| end)
    })
    .await;
    let parts = connection.into_parts();
    if end == End::Http2 && !parts.read_buf.starts_with(HTTP2_PREFACE) {
        // Another error, which hyper has answered as far as it can be answered.
        end = End::Done;
    }
    let (stream, rest) = parts.io.into_inner().into_parts(parts.read_buf);
    (end, stream, rest)
}

/// Speaks HTTP/2.
async fn two<S: Socket>(server: &Arc<Server>, stream: Watched<S>, client: &Client, stop: &mut watch::Receiver<bool>) {
    let limits = server.site.config.limits;
    let state = client.state.clone();
    let service = service_fn(|request| {
        let (server, client) = (server.clone(), client.clone());
        async move { Ok::<_, Infallible>(answer(server, request, client).await) }
    });
    let stream = Gathered::new(stream);
    let gathered = stream.share();
    let mut connection = Box::pin(
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_header_list_size(limits.header_bytes)
            .max_concurrent_streams(128)
            .max_send_buf_size(64 * 1024)
            .serve_connection(TokioIo::new(stream), service),
    );
    let mut stopped = std::pin::pin!(stopped(stop));
    let (mut draining, mut grace) = (false, None);
    let mut deadline = Deadline::default();
    poll_fn(|cx| {
        if !draining && stopped.as_mut().poll(cx).is_ready() {
            draining = true;
            connection.as_mut().graceful_shutdown();
        }
        // What fails here is the client's doing.
        if turn(connection.as_mut(), &gathered, cx) {
            return Poll::Ready(());
        }
        let (at, end) = state.due(&limits, true, 0);
        if let Some(until) = grace {
            return deadline.poll(cx, &state, until);
        }
        std::task::ready!(deadline.poll(cx, &state, at));
        if end != End::Idle {
            return Poll::Ready(());
        }
        // GOAWAY, and a little time to read it.
        connection.as_mut().graceful_shutdown();
        if turn(connection.as_mut(), &gathered, cx) {
            return Poll::Ready(());
        }
        let until = state.now() + LINGER.0.as_millis() as u64;
        grace = Some(until);
        deadline.poll(cx, &state, until)
    })
    .await;
    drop(connection);
    linger(gathered, Duration::from_secs(limits.stall_seconds.into())).await;
}

/// What the client says while it reads the end of an answer, such as WINDOW_UPDATE, must find a socket: else it is answered with a reset, which takes
/// away what is on its way. Until the client ends the connection or falls silent.
async fn linger(mut stream: impl AsyncRead + Unpin, most: Duration) {
    let listen = async {
        let mut buffer = [0; 256];
        while let Ok(Ok(1..)) = timeout(LINGER.0, stream.read(&mut buffer)).await {}
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
async fn refuse<S: Socket>(server: &Server, mut stream: S, state: &State, end: End) {
    let (code, answer) = if end == End::Late { (408, LATE) } else { (414, LONG) };
    server.metrics.response(code, 0);
    let _ = timeout(LINGER.0, stream.write_all(answer)).await;
    close(stream, state).await;
}

/// Says goodbye so that the client hears it.
pub async fn close<S: Socket>(mut stream: S, state: &State) {
    let goodbye = async {
        if stream.shutdown().await.is_err() || state.ended() {
            return;
        }
        let (mut buffer, mut left) = (vec![0; 1024], LINGER.1);
        while let Ok(n @ 1..) = stream.read(&mut buffer).await {
            left = left.saturating_sub(n);
            if left == 0 {
                return;
            }
        }
    };
    let _ = timeout(LINGER.0, goodbye).await;
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
