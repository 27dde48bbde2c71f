//! Connections to upstreams: made, kept and given up.

use super::stream::Stream;
use hyper::client::conn::http1::SendRequest;
use hyper::header::HeaderMap;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;
use tokio::net::{TcpStream, lookup_host};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout};

/// Longest wait for a connection to an upstream.
pub(super) const CONNECT: Duration = Duration::from_secs(5);
/// How long one address of an upstream has to answer before the next is asked, too: the first SYN is repeated after that time.
const NEXT: Duration = Duration::from_secs(1);
/// For how long is believed what the resolver has said.
const FOUND: Duration = Duration::from_secs(5);
/// Most idle connections kept for each upstream.
const IDLE_MAX: usize = 32;
/// For how long, unless the upstream says less: after that, something on the way may have forgotten them.
const IDLE_AGE: Duration = Duration::from_secs(30);
/// For how long a connection is used for one request after the other, so that an upstream may move.
const LIFE: Duration = Duration::from_secs(300);

/// A connection to an upstream, which ends when this is dropped: of itself it would go on waiting for an upstream that does not take what is left of a
/// body, although nobody waits for the answer.
pub(super) struct Link {
    pub(super) sender: SendRequest<Stream>,
    task: Option<AbortHandle>,
    born: Instant,
}

impl Link {
    /// A connection that has just been made, by this task.
    pub(super) fn new(sender: SendRequest<Stream>, task: AbortHandle) -> Link {
        Link { sender, task: Some(task), born: Instant::now() }
    }

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

/// All upstreams, by name.
#[derive(Default)]
pub struct Upstreams(Mutex<HashMap<String, Arc<Upstream>>>);

impl Upstreams {
    pub(super) fn of(&self, name: &str) -> Arc<Upstream> {
        let mut all = lock(&self.0);
        if let Some(upstream) = all.get(name) {
            return upstream.clone();
        }
        let upstream = Arc::new(Upstream { name: name.into(), ..Upstream::default() });
        all.insert(name.into(), upstream.clone());
        upstream
    }
}

/// An upstream: what is known of its addresses, and idle connections.
#[derive(Default)]
pub(super) struct Upstream {
    name: String,
    idle: Mutex<Idle>,
    found: Found,
    /// The address that has accepted when another had not: it is asked first.
    better: Mutex<Option<SocketAddr>>,
}

/// Addresses, and until when they are believed.
type Found = Arc<tokio::sync::Mutex<Option<(Instant, Vec<SocketAddr>)>>>;

/// Idle connections, each with the time when it is too old; the one that came last is the last.
#[derive(Default)]
struct Idle {
    links: Vec<(Link, Instant)>,
    /// Whether somebody ends them in time.
    watched: bool,
}

impl Idle {
    /// Drops what can be of no use.
    fn prune(&mut self) {
        let now = Instant::now();
        self.links.retain(|(link, until)| *until > now && link.sender.is_ready());
    }
}

impl Upstream {
    pub(super) fn take(&self) -> Option<Link> {
        let mut idle = lock(&self.idle);
        idle.prune();
        idle.links.pop().map(|(link, _)| link)
    }

    /// Keeps a connection whose exchange is over in both directions.
    pub(super) fn put(self: &Arc<Self>, link: Link, keep: Duration) {
        let mut idle = lock(&self.idle);
        let until = (Instant::now() + keep).min(link.born + LIFE);
        idle.links.push((link, until));
        idle.prune();
        let over = idle.links.len().saturating_sub(IDLE_MAX);
        idle.links.drain(..over);
        if !idle.watched
            && !idle.links.is_empty()
            && let Ok(runtime) = Handle::try_current()
        {
            idle.watched = true;
            drop(idle);
            runtime.spawn(self.clone().watch());
        }
    }

    /// Ends idle connections when they are too old, as long as there are any.
    async fn watch(self: Arc<Self>) {
        loop {
            let next = {
                let mut idle = lock(&self.idle);
                idle.prune();
                let next = idle.links.iter().map(|(_, until)| *until).min();
                idle.watched = next.is_some();
                next
            };
            let Some(next) = next else { return };
            sleep_until(next).await;
        }
    }

    /// Connects to an address. The next is tried when those before have failed, or have said nothing for a while.
    pub(super) async fn connect(&self) -> Option<TcpStream> {
        let mut addresses = addresses(&self.found, || look_up(self.name.clone())).await;
        let better = *lock(&self.better);
        addresses.sort_by_key(|address| Some(*address) != better);
        let mut attempts = vec![];
        let mut stream = None;
        for address in &addresses {
            attempts.push(Box::pin(TcpStream::connect(*address)));
            stream = timeout(NEXT, first(&mut attempts)).await.ok().flatten();
            if stream.is_some() {
                break;
            }
        }
        if stream.is_none() {
            stream = first(&mut attempts).await;
        }
        let accepted = stream.as_ref()?.peer_addr().ok();
        if accepted != addresses.first().copied() {
            *lock(&self.better) = accepted;
        }
        stream
    }
}

/// The addresses of an upstream. They are looked up once for all who want them, whoever of them gives up: the C library's lookup is a thread, and cannot be
/// taken back.
async fn addresses<F>(found: &Found, look_up: impl FnOnce() -> F) -> Vec<SocketAddr>
where
    F: Future<Output = Vec<SocketAddr>> + Send + 'static,
{
    let mut found = found.clone().lock_owned().await;
    if let Some((until, addresses)) = &*found
        && *until > Instant::now()
    {
        return addresses.clone();
    }
    let looking = look_up();
    let looking = tokio::spawn(async move {
        let addresses = looking.await;
        let age = if addresses.is_empty() { NEXT } else { FOUND };
        *found = Some((Instant::now() + age, addresses.clone()));
        addresses
    });
    looking.await.unwrap_or_default()
}

async fn look_up(names: String) -> Vec<SocketAddr> {
    let mut addresses = vec![];
    for name in names.split(',') {
        addresses.extend(lookup_host(name).await.into_iter().flatten());
    }
    addresses
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For how long an upstream's connection may be kept: for less than it says, so that no request meets its end.
pub(super) fn keep(headers: &HeaderMap) -> Duration {
    let said = headers.get("keep-alive").and_then(|v| v.to_str().ok()).and_then(|v| {
        let timeout = v.split(',').find_map(|part| part.trim().strip_prefix("timeout="))?;
        timeout.parse().ok()
    });
    said.map_or(IDLE_AGE, |seconds: u32| IDLE_AGE.min(Duration::from_secs(seconds.saturating_sub(1).into())))
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
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    use tokio::io::AsyncReadExt;

    /// A connection to an upstream that never says anything, and its other end.
    async fn silent() -> (Link, tokio::io::DuplexStream) {
        let (near, far) = tokio::io::duplex(1024);
        let (mut sender, connection) = http1::handshake(TokioIo::new(near)).await.unwrap();
        let task = tokio::spawn(connection).abort_handle();
        sender.ready().await.unwrap();
        (Link::new(sender, task), far)
    }

    #[tokio::test(start_paused = true)]
    async fn idle_connections_grow_old() {
        let upstream = Upstreams::default().of("up");
        let kept = || lock(&upstream.idle).links.len();
        let (old, _old) = silent().await;
        let (short, _short) = silent().await;
        upstream.put(old, IDLE_AGE);
        upstream.put(short, Duration::from_secs(2));
        tokio::time::advance(Duration::from_secs(3)).await;
        let (new, _new) = silent().await;
        upstream.put(new, IDLE_AGE);
        assert_eq!(kept(), 2, "one has gone without being asked for");
        tokio::time::advance(IDLE_AGE - Duration::from_secs(3)).await;
        assert!(upstream.take().is_some(), "the new one");
        assert!(upstream.take().is_none(), "the old one is too old");
        assert_eq!(kept(), 0);
        let (none, _none) = silent().await;
        upstream.put(none, Duration::ZERO);
        assert_eq!(kept(), 0);
    }

    /// Also if nobody comes any more.
    #[tokio::test(start_paused = true)]
    async fn idle_connections_end() {
        let upstream = Upstreams::default().of("up");
        for _ in 0..2 {
            let (link, mut far) = silent().await;
            upstream.put(link, IDLE_AGE);
            let start = Instant::now();
            let end = timeout(IDLE_AGE * 2, far.read(&mut [0])).await;
            assert_eq!(end.expect("it ends").unwrap(), 0);
            assert!((IDLE_AGE..IDLE_AGE * 2).contains(&start.elapsed()), "{:?}", start.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_are_used_all_the_time_end() {
        let upstream = Upstreams::default().of("up");
        let (link, _far) = silent().await;
        upstream.put(link, IDLE_AGE);
        for _ in 0..LIFE.as_secs() / 20 {
            tokio::time::advance(Duration::from_secs(20)).await;
            let Some(link) = upstream.take() else { continue };
            upstream.put(link, IDLE_AGE);
        }
        assert!(upstream.take().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_connections_the_oldest_ends() {
        let upstream = Upstreams::default().of("up");
        let mut far_ends = vec![];
        for _ in 0..=IDLE_MAX {
            let (link, far) = silent().await;
            upstream.put(link, IDLE_AGE);
            far_ends.push(far);
        }
        let end = timeout(IDLE_AGE / 2, far_ends[0].read(&mut [0])).await;
        assert_eq!(end.expect("it ends at once").unwrap(), 0);
        assert_eq!(lock(&upstream.idle).links.len(), IDLE_MAX);
    }

    /// Names are looked up once, for those who wait and those who come soon; he who was first may have left.
    #[tokio::test(start_paused = true)]
    async fn one_lookup_is_for_all() {
        let found = Found::default();
        let lookups = Arc::new(AtomicU32::new(0));
        let ask = || {
            let lookups = lookups.clone();
            addresses(&found, move || async move {
                lookups.fetch_add(1, Relaxed);
                tokio::time::sleep(Duration::from_secs(18)).await;
                vec![([10, 0, 0, 1], 80).into()]
            })
        };
        assert!(timeout(CONNECT, ask()).await.is_err());
        let (a, b) = tokio::join!(ask(), ask());
        assert_eq!((a.len(), b.len(), lookups.load(Relaxed)), (1, 1, 1));
        assert_eq!((ask().await.len(), lookups.load(Relaxed)), (1, 1));
        tokio::time::advance(FOUND).await;
        assert_eq!((ask().await.len(), lookups.load(Relaxed)), (1, 2));
    }

    /// An address that does not answer costs its time once.
    #[tokio::test]
    async fn the_address_that_accepted_is_first() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let upstream = Upstreams::default().of(&format!("{nobody},{good}"));
        assert_eq!(*lock(&upstream.better), None);
        for _ in 0..2 {
            assert_eq!(upstream.connect().await.unwrap().peer_addr().unwrap(), good);
            assert_eq!(*lock(&upstream.better), Some(good));
        }
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
