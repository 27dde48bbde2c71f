//! Listening, connections and their limits.

use crate::body::Content;
use crate::log::Entry;
use crate::metrics::{Held, Metrics};
use crate::respond::{self, Scheme};
use crate::site::Site;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::Sleep;

/// The server's shared state.
pub struct Server {
    /// What is served.
    pub site: Site,
    /// Counters.
    pub metrics: Metrics,
    /// Passwords.
    #[cfg(feature = "auth")]
    pub gatekeeper: crate::auth::Gatekeeper,
    /// Connections to upstreams.
    #[cfg(feature = "proxy")]
    pub upstreams: crate::proxy::Upstreams,
    /// Certificates.
    #[cfg(feature = "tls")]
    pub tls: Option<tokio_rustls::TlsAcceptor>,
    /// One permit per connection that may be open.
    pub places: Arc<Semaphore>,
    /// Turns true when the server is asked to stop.
    pub stop: watch::Receiver<bool>,
}

/// What a listener is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The site.
    Site(Scheme),
    /// Metrics.
    Metrics,
}

/// Accepts connections until stop.
pub async fn listen(server: Arc<Server>, listener: TcpListener, purpose: Purpose) {
    let mut stop = server.stop.clone();
    loop {
        // A place is taken before a connection is: beyond the limit, clients wait in the backlog.
        let place = tokio::select! {
            place = server.places.clone().acquire_owned() => place,
            _ = stopped(&mut stop) => return,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped(&mut stop) => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let server = server.clone();
                tokio::spawn(async move {
                    let _place = place;
                    let _open = Held::new(&server.metrics.open);
                    server.metrics.accepted.fetch_add(1, Relaxed);
                    connection(&server, stream, peer, purpose).await;
                });
            }
            // Out of descriptors or memory, or a client that left early: go on when something has had time to end.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Resolves when the server is asked to stop.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop, too.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn connection(server: &Arc<Server>, stream: TcpStream, peer: SocketAddr, purpose: Purpose) {
    let _ = stream.set_nodelay(true);
    #[cfg(feature = "tls")]
    if let (Purpose::Site(Scheme::Https), Some(tls)) = (purpose, &server.tls) {
        let limit = Duration::from_secs(server.site.config.limits.header_seconds.into());
        if let Ok(Ok(stream)) = tokio::time::timeout(limit, tls.accept(stream)).await {
            talk(server, stream, peer, purpose).await;
        }
        return;
    }
    talk(server, stream, peer, purpose).await;
}

pub(crate) async fn talk<S>(server: &Arc<Server>, stream: S, peer: SocketAddr, purpose: Purpose)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = server.site.config.limits;
    let seconds = |s: u32| Duration::from_secs(s.into());
    let active = Arc::new(AtomicU64::new(0));
    let io = Watched {
        stream,
        active: active.clone(),
        idle: seconds(limits.idle_seconds),
        stall: seconds(limits.stall_seconds),
        read: Watch::default(),
        write: Watch::default(),
    };
    let service = service_fn(|request| {
        let (server, active) = (server.clone(), active.clone());
        async move {
            let _here = Held::new(&active);
            let _everywhere = Held::new(&server.metrics.active);
            Ok::<_, Infallible>(answer(&server, request, peer, purpose).await)
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(seconds(limits.header_seconds))
        .max_buf_size((limits.header_bytes as usize).max(8192))
        .half_close(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(limits.header_bytes)
        .max_concurrent_streams(128)
        .max_send_buf_size(64 * 1024)
        .keep_alive_interval(seconds(limits.idle_seconds))
        .keep_alive_timeout(seconds(limits.stall_seconds));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(io), service);
    let mut connection = std::pin::pin!(connection);
    let mut stop = server.stop.clone();
    tokio::select! {
        // What fails here is the client's doing (malformed, gone, too slow); hyper has answered what could be answered.
        _ = connection.as_mut() => {}
        _ = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

async fn answer(
    server: &Arc<Server>,
    request: Request<Incoming>,
    peer: SocketAddr,
    purpose: Purpose,
) -> Response<Content> {
    let start = Instant::now();
    let (parts, body) = request.into_parts();
    let response = match purpose {
        Purpose::Metrics => metrics(server, parts.uri.path()),
        Purpose::Site(scheme) => {
            let response = site(server, &parts, body, peer, scheme).await;
            if server.site.config.log {
                let bytes = http_body::Body::size_hint(response.body()).exact();
                Entry { peer, request: &parts, status: response.status().as_u16(), bytes, took: start.elapsed() }
                    .write();
            }
            response
        }
    };
    server.metrics.response(response.status().as_u16(), response.body().len());
    response
}

fn metrics(server: &Server, path: &str) -> Response<Content> {
    if path != "/metrics" {
        return respond::status(StatusCode::NOT_FOUND);
    }
    let response = Response::new(Content::new([server.metrics.text().into()]));
    respond::with(response, header::CONTENT_TYPE, "text/plain; version=0.0.4")
}

async fn site(
    server: &Arc<Server>,
    parts: &hyper::http::request::Parts,
    body: Incoming,
    peer: SocketAddr,
    scheme: Scheme,
) -> Response<Content> {
    let site = &server.site;
    let target = match respond::target(site, parts, scheme) {
        Ok(target) => target,
        Err(mut response) => {
            respond::dress(site, scheme, "", &mut response);
            return *response;
        }
    };
    #[cfg(feature = "auth")]
    if let Err(mut response) = server.gatekeeper.check(&site.config, parts, &target.path) {
        respond::dress(site, scheme, "", &mut response);
        return *response;
    }
    #[cfg(feature = "proxy")]
    if let Some(proxy) = crate::proxy::find(&site.config, &target.path) {
        return server.upstreams.forward(server, proxy, parts, body, peer, scheme).await;
    }
    let _ = (body, peer);
    let mut response = respond::content(site, parts, &target);
    respond::dress(site, scheme, &target.path, &mut response);
    response
}

/// A stream that ends itself when its peer does nothing for too long.
struct Watched<S> {
    stream: S,
    /// Requests in progress on this connection.
    active: Arc<AtomicU64>,
    idle: Duration,
    stall: Duration,
    read: Watch,
    write: Watch,
}

#[derive(Default)]
struct Watch(Option<Pin<Box<Sleep>>>);

impl Watch {
    /// To be called when there is no progress; ready when that has lasted for `limit`.
    fn expired(&mut self, cx: &mut Context<'_>, limit: Duration) -> bool {
        let sleep = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        sleep.as_mut().poll(cx).is_ready()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let this = &mut *self;
        let result = Pin::new(&mut this.stream).poll_read(cx, buf);
        // While a request is in progress, the one who waits is the client.
        if result.is_ready() || this.active.load(Relaxed) > 0 {
            this.read.0 = None;
            return result;
        }
        if this.read.expired(cx, this.idle) { Poll::Ready(Err(std::io::ErrorKind::TimedOut.into())) } else { result }
    }
}

impl<S: AsyncWrite + Unpin> Watched<S> {
    fn watch<T>(&mut self, cx: &mut Context<'_>, result: Poll<std::io::Result<T>>) -> Poll<std::io::Result<T>> {
        if result.is_ready() {
            self.write.0 = None;
            return result;
        }
        if self.write.expired(cx, self.stall) { Poll::Ready(Err(std::io::ErrorKind::TimedOut.into())) } else { result }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watch(cx, result)
    }
}
