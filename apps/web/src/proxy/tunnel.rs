//! Two joined connections (WebSocket).

use super::Exchange;
use super::head::strip;
use crate::body::Content;
use crate::budget;
use crate::connection::sent;
use crate::progress::Watched;
use crate::serve::{Client, Server};
use hyper::Response;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

/// Passes 101 on. The connection is joined with the upstream when that is written.
pub(super) fn switch(client: &Client, mut response: Response<Incoming>, promise: Arc<Exchange>) -> Response<Content> {
    client.state.put_upstream((hyper::upgrade::on(&mut response), promise));
    let (mut head, _) = response.into_parts();
    let protocol = head.headers.get(header::UPGRADE).cloned();
    strip(&mut head.headers);
    head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        head.headers.insert(header::UPGRADE, protocol);
    }
    Response::from_parts(head, Content::default())
}

/// An upstream with which a client is to be joined.
pub type Joined = (OnUpgrade, Arc<Exchange>);

/// Joins client and upstream. Ends when both have ended, or nothing has come from either for too long. A stop leaves it until the drain ends.
pub async fn tunnel<S>(server: &Server, mut client: Watched<S>, (upstream, promise): Joined)
where
    S: crate::connection::Socket,
{
    let idle = Duration::from_secs(server.site.config.limits.idle_seconds.into());
    if let Ok(upstream) = upstream.await {
        // Nobody else has it: the request has no body, or that has ended.
        let mut exchange = Arc::into_inner(promise);
        if let Some(exchange) = &mut exchange {
            exchange.promise.shrink(budget::TUNNEL);
        }
        let fd = client.tcp().map(AsRawFd::as_raw_fd);
        splice(&mut client, TokioIo::new(upstream), idle).await;
        sent(server, &mut client, fd).await;
    }
}

/// Moves bytes both ways, each without waiting for the other, until both have ended or nothing has moved for `idle` to twice that.
async fn splice<A, B>(a: A, b: B, idle: Duration)
where
    A: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    B: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let ((ar, aw), (br, bw)) = (tokio::io::split(a), tokio::io::split(b));
    let moved = AtomicBool::new(false);
    let both = async { tokio::try_join!(pump(ar, bw, &moved), pump(br, aw, &moved)) };
    let stalled = async {
        loop {
            tokio::time::sleep(idle).await;
            if !moved.swap(false, Relaxed) {
                return;
            }
        }
    };
    tokio::select! {
        // An error ends both directions, as it ends the tunnel.
        _ = both => {}
        () = stalled => {}
    }
}

/// One direction.
async fn pump(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    moved: &AtomicBool,
) -> std::io::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut buffer = vec![0; 8192];
    loop {
        let n = from.read(&mut buffer).await?;
        moved.store(true, Relaxed);
        match n {
            0 => return to.shutdown().await,
            n => {
                to.write_all(&buffer[..n]).await?;
                // The end of it may otherwise wait for the next, under TLS.
                to.flush().await?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Both ends have more to say than any buffer holds, and the client reads only when it has said it.
    #[tokio::test]
    async fn tunnel_directions_do_not_wait_for_each_other() {
        const LEN: usize = 1 << 20;
        let (client, inner) = tokio::io::duplex(1024);
        let (outer, upstream) = tokio::io::duplex(1024);
        let client = async {
            let (mut read, mut write) = tokio::io::split(client);
            write.write_all(&vec![1; LEN]).await.unwrap();
            write.shutdown().await.unwrap();
            let mut got = Vec::new();
            read.read_to_end(&mut got).await.unwrap();
            got.len()
        };
        let upstream = async {
            let (mut read, mut write) = tokio::io::split(upstream);
            let mut got = Vec::new();
            let send = async {
                write.write_all(&vec![2; LEN]).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let ((), n) = tokio::join!(send, async { read.read_to_end(&mut got).await.unwrap() });
            n
        };
        let ((), sent, received) = tokio::join!(splice(inner, outer, Duration::from_secs(60)), client, upstream);
        assert_eq!((sent, received), (LEN, LEN));
    }

    /// What was written may wait for a flush, as the end of a record does under TLS.
    #[tokio::test(start_paused = true)]
    async fn what_was_said_is_sent() {
        let (mut client, inner) = tokio::io::duplex(1024);
        let (outer, mut upstream) = tokio::io::duplex(1024);
        let mut got = [0; 2];
        let said = async {
            client.write_all(b"hi").await.unwrap();
            upstream.read_exact(&mut got).await.unwrap();
            upstream.write_all(b"ho").await.unwrap();
            client.read_exact(&mut got).await.unwrap();
        };
        let (inner, outer) = (tokio::io::BufStream::new(inner), tokio::io::BufStream::new(outer));
        tokio::join!(splice(inner, outer, Duration::from_secs(60)), said);
        assert_eq!(&got, b"ho");
    }

    #[tokio::test]
    async fn silent_tunnels_end() {
        let (_client, inner) = tokio::io::duplex(1024);
        let (outer, _upstream) = tokio::io::duplex(1024);
        splice(inner, outer, Duration::from_millis(10)).await;
    }
}
