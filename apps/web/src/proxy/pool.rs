//! Connections to upstreams: made, kept and given up.

use super::stream::Stream;
use hyper::client::conn::http1::SendRequest;
use hyper::header::HeaderMap;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Mutex;
use std::task::Poll;
use std::time::Duration;
use tokio::net::{TcpStream, lookup_host};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

/// Longest wait for a connection to an upstream.
pub(super) const CONNECT: Duration = Duration::from_secs(5);
/// How long one address of an upstream has to answer before the next is asked, too: the first SYN is repeated after that time.
const NEXT: Duration = Duration::from_secs(1);
/// Most idle connections kept for each upstream.
const IDLE_MAX: usize = 32;
/// For how long, unless the upstream says less: after that, something on the way may have forgotten them.
const IDLE_AGE: Duration = Duration::from_secs(30);

/// Idle connections, each with the time when it is too old.
type Idle = Vec<(Link, Instant)>;

/// A connection to an upstream, which ends when this is dropped: of itself it would go on waiting for an upstream that does not take what is left of a
/// body, although nobody waits for the answer.
pub(super) struct Link {
    pub(super) sender: SendRequest<Stream>,
    pub(super) task: Option<AbortHandle>,
}

impl Link {
    /// The connection goes on without this.
    pub(super) fn detach(&mut self) {
        self.task = None;
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Idle connections by upstream.
#[derive(Default)]
pub struct Upstreams {
    idle: Mutex<HashMap<String, Idle>>,
}

impl Upstreams {
    pub(super) fn take(&self, upstream: &str) -> Option<Link> {
        let mut idle = self.idle.lock().ok()?;
        let list = idle.get_mut(upstream)?;
        prune(list);
        list.pop().map(|(link, _)| link)
    }

    /// Keeps a connection whose exchange is over in both directions. After an early answer the request may still be on its way, as slowly as its
    /// client likes: such a connection ends with it.
    pub(super) fn put(&self, upstream: &str, mut link: Link, keep: Duration) {
        if !link.sender.is_ready() {
            return link.detach();
        }
        if let Ok(mut idle) = self.idle.lock() {
            let list = idle.entry(upstream.into()).or_default();
            list.push((link, Instant::now() + keep));
            prune(list);
            list.truncate(IDLE_MAX);
        }
    }
}

/// Drops what can be of no use.
fn prune(list: &mut Idle) {
    let now = Instant::now();
    list.retain(|(link, until)| *until > now && link.sender.is_ready());
}

/// For how long an upstream's connection may be kept: for less than it says, so that no request meets its end.
pub(super) fn keep(headers: &HeaderMap) -> Duration {
    let said = headers.get("keep-alive").and_then(|v| v.to_str().ok()).and_then(|v| {
        let timeout = v.split(',').find_map(|part| part.trim().strip_prefix("timeout="))?;
        timeout.parse().ok()
    });
    said.map_or(IDLE_AGE, |seconds: u32| IDLE_AGE.min(Duration::from_secs(seconds.saturating_sub(1).into())))
}

/// Connects to an address of an upstream. The next is tried when those before have failed, or have said nothing for a while.
pub(super) async fn connect(upstream: &str) -> Option<TcpStream> {
    let mut attempts = vec![];
    for name in upstream.split(',') {
        for address in lookup_host(name).await.into_iter().flatten() {
            attempts.push(Box::pin(TcpStream::connect(address)));
            if let Ok(Some(stream)) = timeout(NEXT, first(&mut attempts)).await {
                return Some(stream);
            }
        }
    }
    first(&mut attempts).await
}

/// The first attempt that succeeds; `None` if all have failed.
async fn first<F>(attempts: &mut Vec<Pin<Box<F>>>) -> Option<TcpStream>
where
    F: Future<Output = std::io::Result<TcpStream>>,
{
    poll_fn(|cx| {
        let mut found = None;
        attempts.retain_mut(|attempt| match attempt.as_mut().poll(cx) {
            Poll::Ready(ended) => {
                found = found.take().or(ended.ok());
                false
            }
            Poll::Pending => true,
        });
        if found.is_some() || attempts.is_empty() { Poll::Ready(found) } else { Poll::Pending }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::client::conn::http1;
    use hyper::header::{HeaderName, HeaderValue};
    use hyper_util::rt::TokioIo;

    /// A connection to an upstream that never says anything, and its other end.
    async fn silent() -> (Link, tokio::io::DuplexStream) {
        let (near, far) = tokio::io::duplex(1024);
        let (mut sender, connection) = http1::handshake(TokioIo::new(near)).await.unwrap();
        let task = tokio::spawn(connection).abort_handle();
        sender.ready().await.unwrap();
        (Link { sender, task: Some(task) }, far)
    }

    #[tokio::test(start_paused = true)]
    async fn idle_connections_grow_old() {
        let upstreams = Upstreams::default();
        let kept = || upstreams.idle.lock().unwrap()["up"].len();
        let (old, _old) = silent().await;
        let (short, _short) = silent().await;
        upstreams.put("up", old, IDLE_AGE);
        upstreams.put("up", short, Duration::from_secs(2));
        tokio::time::advance(Duration::from_secs(3)).await;
        let (new, _new) = silent().await;
        upstreams.put("up", new, IDLE_AGE);
        assert_eq!(kept(), 2, "one has gone without being asked for");
        tokio::time::advance(IDLE_AGE - Duration::from_secs(3)).await;
        assert!(upstreams.take("up").is_some(), "the new one");
        assert!(upstreams.take("up").is_none(), "the old one is too old");
        assert_eq!(kept(), 0);
        let (none, _none) = silent().await;
        upstreams.put("up", none, Duration::ZERO);
        assert_eq!(kept(), 0);
    }

    #[test]
    fn how_long_connections_are_kept() {
        for (value, seconds) in [
            (None, 30),
            (Some("timeout=5"), 4),
            (Some("timeout=5, max=100"), 4),
            (Some("max=100, timeout=20"), 19),
            (Some("timeout=1"), 0),
            (Some("timeout=0"), 0),
            (Some("timeout=3600"), 30),
            (Some("timeout=x"), 30),
            (Some("max=1"), 30),
        ] {
            let value = value.map(|v| (HeaderName::from_static("keep-alive"), HeaderValue::from_static(v)));
            assert_eq!(keep(&value.into_iter().collect()).as_secs(), seconds);
        }
    }
}
