//! Memory, and who may have some of it.
//!
//! A guest without memory ends: an allocation cannot fail. So nothing begins while too little is free: not a connection, not a request, not an
//! exchange with an upstream. What is allocated at once is looked for in what is free; what may grow later is promised, and counts from then on. This
//! program has one thread, so nobody comes in between.
//!
//! When memory gets short, exchanges with upstreams are refused first; then no more connections speak HTTP/2, then none are accepted; requests wait
//! last ([`For`]). While anybody waits or has just been refused, who is idle or slow is waited for no longer than [`CROWDED`].
//!
//! Whatever a client finds that is counted too low, HTTP/2 reads only as much as there is memory for ([`Budget::may_read`]).

use crate::serve::Server;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

/// Longest wait for somebody who is idle or slow, while memory or places for connections are short.
pub const CROWDED: Duration = Duration::from_secs(2);
/// How often is looked whether there is memory again, for all that wait for the same.
const LOOK: Duration = Duration::from_millis(10);
/// The same for each connection that may not read.
pub const LOOK_TO_READ: Duration = Duration::from_millis(100);
/// How often those that are idle are called because memory is short.
const CALL: Duration = Duration::from_millis(500);
const PAGE: u64 = 4096;
/// What a byte that HTTP/2 reads may become: a reference to a field of a head becomes an entry in a map.
const BYTE: u64 = 256;
/// Fewest bytes that are worth to be read.
const READ: u64 = 1024;

/// What an HTTP/2 connection may grow by: a head and its frames on their way in (`header_bytes` each), frames on their way out, its table of headers.
pub const HTTP2: u64 = 48 * 1024;
/// What a request over HTTP/2 may grow by while it waits for its client: over HTTP/1 that is the connection.
pub const STREAM: u64 = 4 * 1024;
/// What the page of a large directory may grow by while it is sent: pieces that wait for the client, `header_bytes` and one more.
pub const LISTING: u64 = 40 * 1024;
/// What an exchange with an upstream may grow by: what is read from the upstream and waits for the client in two places; with a body, also what is
/// written to the upstream, and HTTP/2's window.
#[cfg(feature = "proxy")]
pub fn exchange(fields: usize, body: bool, http2: bool) -> u64 {
    let (buffer, window) = (BUFFER as u64, u64::from(WINDOW));
    // The head is there twice.
    let head = 2 * 128 * fields as u64;
    3 * buffer + head + if body { buffer } else { 0 } + if body && http2 { window } else { 0 }
}
/// What two joined connections take.
#[cfg(feature = "proxy")]
pub const TUNNEL: u64 = 24 * 1024;
/// What a handshake takes.
#[cfg(feature = "tls")]
pub const HANDSHAKE: u64 = 32 * 1024;
/// Half of what the stack holds for an upstream that does not take it; in the reserve.
#[cfg(feature = "proxy")]
pub const QUEUE: usize = 64 * 1024;
/// What is read or written ahead.
#[cfg(feature = "proxy")]
pub const BUFFER: usize = 16 * 1024;
/// What a client may send over HTTP/2 before somebody has taken it, on a connection: HTTP's own default.
pub const WINDOW: u32 = 65_535;

/// For what memory is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum For {
    /// A request of a connection that is there.
    Request,
    /// A connection.
    Connection,
    /// HTTP/2 on it, or the page of a large directory.
    Http2,
    /// An exchange with an upstream.
    #[cfg(feature = "proxy")]
    Upstream,
}

/// The guest's memory.
pub struct Budget {
    free: fn() -> u64,
    /// What is left for what is not counted: the TCP/IP stack's queues, the cache of small files, what one turn allocates before the next look.
    reserve: u64,
    promised: AtomicU64,
    /// Held by the one that looks for memory; the others that want it for the same wait behind it.
    turns: [Semaphore; 3],
    /// Calls those that are idle: memory is short, or the server is to stop.
    idle: Notify,
    start: Instant,
    /// When something was last refused, in milliseconds from `start`; 0 for never.
    refused: AtomicU64,
    /// In which [`CALL`] they were last called because of memory.
    call: AtomicU64,
}

impl Budget {
    /// All memory of a guest. What is in use now stays in use.
    pub fn guest() -> Budget {
        Budget::new(sysconf(libc::_SC_PHYS_PAGES), || sysconf(libc::_SC_AVPHYS_PAGES))
    }

    /// No bound: an ordinary system has caches that it gives back and a disk to swap to, and what is free says little.
    pub fn unbounded() -> Budget {
        Budget::new(0, || u64::MAX / 2)
    }

    fn new(total: u64, free: fn() -> u64) -> Budget {
        // The stack's queues have a quarter of all (`donjon_net::Limits::for_memory`).
        let reserve = (total / 4 + total / 16).min(free() / 2);
        Budget {
            free,
            reserve,
            promised: AtomicU64::new(0),
            turns: [const { Semaphore::const_new(1) }; 3],
            idle: Notify::new(),
            start: Instant::now(),
            refused: AtomicU64::new(0),
            call: AtomicU64::new(0),
        }
    }

    /// Whether there is memory for this, and for `bytes` more.
    fn has(&self, wanted: For, bytes: u64) -> bool {
        let margin = self.reserve / 4 * wanted as u64;
        let times = match wanted {
            // When it is allocated, less is free and it is promised still. Connections shall have room even then: uploads may wait for long.
            #[cfg(feature = "proxy")]
            For::Upstream => 2,
            _ => 1,
        };
        (self.free)() >= self.reserve + margin + times * (self.promised.load(Relaxed) + bytes)
    }

    /// Whether a request that is there cannot begin.
    pub fn is_out(&self) -> bool {
        !self.has(For::Request, 0)
    }

    /// Whether those who are idle or slow should go.
    pub fn is_short(&self) -> bool {
        let refused = self.refused.load(Relaxed);
        // Whoever is slow looks every `CROWDED`, or a little later.
        let lately = || self.start.elapsed() < Duration::from_millis(refused) + CROWDED * 2;
        !self.has(For::Connection, 0)
            || self.turns.iter().any(|turn| turn.available_permits() == 0)
            || refused != 0 && lately()
    }

    /// How many bytes HTTP/2 may read now. What they become is there before the next are read.
    pub fn may_read(&self) -> usize {
        let kept = self.reserve + self.promised.load(Relaxed);
        let bytes = (self.free)().saturating_sub(kept) / BYTE;
        if bytes < READ { 0 } else { bytes as usize }
    }

    /// Whether there is memory for this. If not, those that are idle are called.
    fn has_now(&self, wanted: For, bytes: u64) -> bool {
        let has = self.has(wanted, bytes);
        if !has {
            self.refused.store(self.start.elapsed().as_millis() as u64 + 1, Relaxed);
            self.call_for_memory();
        }
        has
    }

    /// Bytes that are promised.
    #[cfg(all(test, feature = "proxy"))]
    pub fn promised(&self) -> u64 {
        self.promised.load(Relaxed)
    }

    /// Resolves when those that are idle are called after this: somebody waits for memory, or [`Budget::call`].
    pub fn called(&self) -> Notified<'_> {
        self.idle.notified()
    }

    /// Calls those that are idle.
    pub fn call(&self) {
        self.idle.notify_waiters();
    }

    /// The same, but not again and again: it is work for each of them.
    pub fn call_for_memory(&self) {
        let now = (self.start.elapsed().as_millis() / CALL.as_millis()) as u64 + 1;
        if self.call.swap(now, Relaxed) != now {
            self.call();
        }
    }

    /// Resolves when there is memory for this.
    pub async fn room(&self, wanted: For) {
        self.room_for(wanted, 0).await;
    }

    async fn room_for(&self, wanted: For, bytes: u64) {
        // Nobody is overtaken.
        let turn = &self.turns[wanted as usize];
        if turn.available_permits() > 0 && self.has(wanted, bytes) {
            return;
        }
        let _turn = turn.acquire().await;
        while !self.has(wanted, bytes) {
            self.call_for_memory();
            tokio::time::sleep(LOOK).await;
        }
    }
}

#[expect(unsafe_code, reason = "UNSAFETY: a call into libc without pointers")]
fn sysconf(name: libc::c_int) -> u64 {
    // SAFETY: it takes any number and has no other effect than its result.
    let pages = unsafe { libc::sysconf(name) };
    u64::try_from(pages).unwrap_or(0) * PAGE
}

/// Memory that something may grow by, until dropped.
pub struct Promise(Arc<Server>, u64);

impl Promise {
    /// At once or not at all.
    pub fn now(server: &Arc<Server>, wanted: For, bytes: u64) -> Option<Promise> {
        server.budget.has_now(wanted, bytes).then(|| Promise::made(server, bytes))
    }

    /// As soon as there is enough; `None` if that takes longer than a request's head may.
    pub async fn soon(server: &Arc<Server>, wanted: For, bytes: u64) -> Option<Promise> {
        in_time(server, server.budget.room_for(wanted, bytes)).await?;
        Some(Promise::made(server, bytes))
    }

    fn made(server: &Arc<Server>, bytes: u64) -> Promise {
        server.budget.promised.fetch_add(bytes, Relaxed);
        Promise(server.clone(), bytes)
    }

    /// Less is enough from now on.
    #[cfg(feature = "proxy")]
    pub fn shrink(&mut self, bytes: u64) {
        let less = self.1.saturating_sub(bytes);
        self.0.budget.promised.fetch_sub(less, Relaxed);
        self.1 -= less;
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.0.budget.promised.fetch_sub(self.1, Relaxed);
    }
}

/// Waits for what a client does, for no longer than a request's head may take; or [`CROWDED`], if it is crowded or becomes so.
pub async fn patient<T>(server: &Server, what: impl Future<Output = T>) -> Option<T> {
    let (start, mut crowded) = (Instant::now(), server.is_crowded());
    let limit = head_time(server);
    let mut what = std::pin::pin!(what);
    loop {
        let called = server.budget.called();
        let limit = if crowded { limit.min(CROWDED) } else { limit };
        tokio::select! {
            biased;
            done = timeout_at(start + limit, what.as_mut()) => return done.ok(),
            () = called => crowded = true,
        }
    }
}

/// Waits for no longer than a request's head may take.
pub async fn in_time<T>(server: &Server, what: impl Future<Output = T>) -> Option<T> {
    timeout(head_time(server), what).await.ok()
}

fn head_time(server: &Server) -> Duration {
    Duration::from_secs(server.site.config.limits.header_seconds.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    const MIB: u64 = 1 << 20;

    #[test]
    fn requests_have_memory_when_others_have_none_left() {
        static FREE: AtomicU64 = AtomicU64::new(60 * MIB);
        let budget = Budget::new(64 * MIB, || FREE.load(Relaxed));
        for (free, promised, out, short) in [
            (60, 0, false, false),
            (25, 0, false, false),
            (24, 0, false, true),
            (20, 0, false, true),
            (19, 0, true, true),
            (60, 35, false, false),
            (60, 36, false, true),
            (60, 41, true, true),
        ] {
            FREE.store(free * MIB, Relaxed);
            budget.promised.store(promised * MIB, Relaxed);
            assert_eq!((budget.is_out(), budget.is_short()), (out, short), "{free} free, {promised} promised");
        }
        // One whose memory is used up when it starts has half of what is left.
        FREE.store(8 * MIB, Relaxed);
        let small = Budget::new(64 * MIB, || FREE.load(Relaxed));
        assert!(!small.is_short());
        FREE.store(3 * MIB, Relaxed);
        assert!(small.is_out());
        assert!(!Budget::unbounded().is_short());
    }

    #[test]
    fn http2_reads_what_there_is_memory_for() {
        static FREE: AtomicU64 = AtomicU64::new(60 * MIB);
        let budget = Budget::new(64 * MIB, || FREE.load(Relaxed));
        for (free, promised, bytes) in [(60, 0, 160 << 10), (21, 0, 4096), (20, 0, 0), (60, 39, 4096), (60, 41, 0)] {
            FREE.store(free * MIB, Relaxed);
            budget.promised.store(promised * MIB, Relaxed);
            assert_eq!(budget.may_read(), bytes, "{free} free, {promised} promised");
        }
        assert!(Budget::unbounded().may_read() > 1 << 30);
    }

    /// Whoever holds exchanges with upstreams that others need is to go, too.
    #[cfg(feature = "proxy")]
    #[tokio::test(start_paused = true)]
    async fn who_refuses_an_exchange_is_short() {
        static FREE: AtomicU64 = AtomicU64::new(60 * MIB);
        let budget = Budget::new(64 * MIB, || FREE.load(Relaxed));
        assert!(budget.has_now(For::Upstream, 1000) && !budget.is_short());
        FREE.store(30 * MIB, Relaxed);
        assert!(!budget.has_now(For::Upstream, 1000) && budget.is_short());
        tokio::time::advance(CROWDED).await;
        assert!(budget.is_short(), "until everybody has looked");
        tokio::time::advance(CROWDED * 2).await;
        assert!(!budget.is_short());
    }

    #[tokio::test]
    async fn who_waits_is_not_overtaken_and_tells_the_idle() {
        static FREE: AtomicU64 = AtomicU64::new(60 * MIB);
        let budget = Budget::new(64 * MIB, || FREE.load(Relaxed));
        budget.room(For::Connection).await;
        FREE.store(22 * MIB, Relaxed);
        let told = async {
            budget.called().await;
            // There is enough for a request, whoever waits for something else.
            budget.room(For::Request).await;
            FREE.store(30 * MIB, Relaxed);
            // There is enough for a connection, but the other comes first.
            budget.room(For::Connection).await;
            assert_eq!(budget.promised.load(Relaxed), 1);
        };
        let first = async {
            budget.room(For::Connection).await;
            budget.promised.store(1, Relaxed);
        };
        tokio::join!(told, first);
    }
}
