//! TLS over another stream, by rustls' connection without buffers: the buffers are ours, and a connection has none while nothing is on its way.
//!
//! rustls' other connection keeps 4 KB for what comes in for as long as it is open (ADR 0005). Here all connections share one set of buffers,
//! in which records are opened and sealed; of a connection's own is only what cannot be passed on yet: the beginning of a record, what was
//! opened and nobody has read, what the socket does not take.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic};
use rustls::{Error, ServerConfig};

/// Bytes of a record's header.
const HEADER: usize = 5;
/// Bytes of a record on the wire at most (RFC 5246 §6.2.3; RFC 8446 §5.2 allows fewer).
const RECORD_MAX: usize = HEADER + (16 << 10) + 2048;
/// What a record of ours adds to what it carries, at most: header, TLS 1.2's nonce or TLS 1.3's kind, tag.
const OVERHEAD: usize = HEADER + 8 + 16;
/// Bytes that a record of ours carries at most: with all that is around it, as much as the guest's allocator has without going for pages.
const RECORD: usize = (16 << 10) - OVERHEAD;
/// Bytes that may be waiting for the rest of a handshake message, which may be spread over many records. Those that are known have some 2,000, with keys
/// that are safe from quantum computers.
const HANDSHAKE_MAX: usize = RECORD_MAX + 1024;
/// Makes TLS connections of others.
pub struct Acceptor {
    config: Arc<ServerConfig>,
    /// A server has one thread: nobody ever waits.
    shared: Mutex<Shared>,
}

/// What every connection needs for a moment, and none keeps.
struct Shared {
    /// Records as they come, opened in place.
    incoming: Vec<u8>,
    /// Parts of a write that go into one record.
    plain: Vec<u8>,
    /// A sealed record.
    outgoing: Vec<u8>,
}

impl Acceptor {
    /// For connections with this configuration.
    pub fn new(mut config: ServerConfig) -> Acceptor {
        // rustls counts the header as well.
        config.max_fragment_size = Some(RECORD + HEADER);
        let shared = Shared {
            incoming: vec![0; HANDSHAKE_MAX],
            plain: Vec::with_capacity(RECORD),
            outgoing: vec![0; RECORD + OVERHEAD],
        };
        Acceptor { config: Arc::new(config), shared: Mutex::new(shared) }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shakes hands. How long that may take is the caller's to say. The stream is on the heap at once, so that whoever waits is small.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(self: &Arc<Self>, io: S) -> io::Result<Box<TlsStream<S>>> {
        let connection = UnbufferedServerConnection::new(self.config.clone()).map_err(invalid)?;
        let mut stream = Box::new(TlsStream {
            io,
            session: Session {
                connection,
                incoming: vec![],
                unread: Rest::default(),
                unsent: Rest::default(),
                reading: Reading::Open,
            },
            shut: false,
            acceptor: self.clone(),
        });
        std::future::poll_fn(|cx| stream.poll_handshake(cx)).await?;
        Ok(stream)
    }
}

/// A connection over TLS, its handshake done.
pub struct TlsStream<S> {
    io: S,
    session: Session,
    /// Whether we have said our last.
    shut: bool,
    acceptor: Arc<Acceptor>,
}

/// The connection without its stream.
struct Session {
    connection: UnbufferedServerConnection,
    /// A record or a handshake message that is not complete. Whatever was complete was opened.
    incoming: Vec<u8>,
    unread: Rest,
    unsent: Rest,
    reading: Reading,
}

/// What may still be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reading {
    Open,
    /// The client has said that no more comes.
    Closed,
    /// The client has broken a rule.
    Failed,
}

impl<S> TlsStream<S> {
    /// The stream below.
    pub fn get_ref(&self) -> &S {
        &self.io
    }

    /// Whether something was opened that nobody has read.
    pub fn unread(&self) -> bool {
        !self.session.unread.get().is_empty()
    }

    /// The application protocol that was agreed on.
    pub fn protocol(&self) -> Option<&[u8]> {
        self.session.connection.alpn_protocol()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            // Until then there is nothing that the client could answer.
            ready!(self.session.poll_send(&mut self.io, cx))?;
            if !self.session.connection.is_handshaking() {
                return Pin::new(&mut self.io).poll_flush(cx);
            }
            if self.session.reading != Reading::Open {
                return Poll::Ready(Err(ErrorKind::UnexpectedEof.into()));
            }
            ready!(self.poll_more(cx, &mut ReadBuf::new(&mut [])))?;
        }
    }

    /// Reads from the stream below, once. What comes of it is put into `to`, and what finds no place there into `unread`.
    fn poll_more(&mut self, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let TlsStream { io, session, acceptor, .. } = self;
        let mut shared = acceptor.shared();
        let old = session.incoming.len();
        let most = if old < RECORD_MAX { RECORD_MAX } else { HANDSHAKE_MAX };
        let Some(room) = shared.incoming.get_mut(old..most).filter(|room| !room.is_empty()) else {
            return Poll::Ready(Err(invalid(Error::General("a handshake message is too long".into()))));
        };
        let mut room = ReadBuf::new(room);
        ready!(Pin::new(&mut *io).poll_read(cx, &mut room))?;
        let new = room.filled().len();
        if new == 0 {
            // Without a word: perhaps somebody else has ended it (RFC 8446 §6.1).
            return Poll::Ready(Err(ErrorKind::UnexpectedEof.into()));
        }
        let input = &mut shared.incoming[..old + new];
        input[..old].copy_from_slice(&session.incoming);
        let result = session.take(input, to);
        if result.is_err() {
            // It is told why, if it still listens.
            let _ = session.poll_send(io, cx);
        }
        Poll::Ready(result)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    /// Pending only if nothing is left to be read here, so that whoever waits may wait for the stream below.
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        loop {
            let unread = &mut this.session.unread;
            if !unread.get().is_empty() {
                let n = unread.get().len().min(buf.remaining());
                buf.put_slice(&unread.get()[..n]);
                unread.advance(n);
                return Poll::Ready(Ok(()));
            }
            if buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            match this.session.reading {
                Reading::Open => ready!(this.poll_more(cx, buf))?,
                Reading::Closed => return Poll::Ready(Ok(())),
                Reading::Failed => return Poll::Ready(Err(ErrorKind::InvalidData.into())),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    /// Takes nothing while something of the write before waits. One record is sealed after the other, as long as they are taken: at most one waits.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let TlsStream { io, session, acceptor, shut } = self.get_mut();
        if *shut || session.reading == Reading::Failed {
            return Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
        }
        if session.connection.wants_write() {
            // What rustls has to say was sealed before, and goes before.
            session.speak(&mut |_| {})?;
        }
        ready!(session.poll_send(io, cx))?;
        let mut shared = acceptor.shared();
        let Shared { plain, outgoing, .. } = &mut *shared;
        let (mut left, mut taken) = (Parts { bufs, from: 0 }, 0);
        loop {
            let chunk = left.next(plain);
            if chunk.is_empty() {
                break;
            }
            let sealed = match session.seal(chunk, outgoing) {
                Ok(n) => &outgoing[..n],
                // What was sent counts; the next write fails as well.
                Err(_) if taken > 0 => break,
                Err(e) => return Poll::Ready(Err(e)),
            };
            taken += chunk.len();
            let mut sent = 0;
            while sent < sealed.len() {
                match Pin::new(&mut *io).poll_write(cx, &sealed[sent..]) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(n)) => sent += n,
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                    Poll::Pending => {
                        session.unsent.push(&sealed[sent..]);
                        return Poll::Ready(Ok(taken));
                    }
                }
            }
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.session.poll_send(&mut this.io, cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    /// Says close_notify, once, and shuts the stream below down. What the client says may still be read.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.shut {
            this.shut = true;
            this.session.close()?;
        }
        ready!(this.session.poll_send(&mut this.io, cx))?;
        match ready!(Pin::new(&mut this.io).poll_shutdown(cx)) {
            Err(e) if e.kind() == ErrorKind::NotConnected => Poll::Ready(Ok(())),
            result => Poll::Ready(result),
        }
    }
}

impl Session {
    /// Sends what waits.
    fn poll_send(&mut self, io: &mut (impl AsyncWrite + Unpin), cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.get().is_empty() {
            let n = ready!(Pin::new(&mut *io).poll_write(cx, self.unsent.get()))?;
            if n == 0 {
                return Poll::Ready(Err(ErrorKind::WriteZero.into()));
            }
            self.unsent.advance(n);
        }
        Poll::Ready(Ok(()))
    }

    /// Takes what has come: what was kept, and after it what is new.
    fn take(&mut self, input: &mut [u8], to: &mut ReadBuf<'_>) -> io::Result<()> {
        let mut used = 0;
        let result = self.process(input, &mut used, to, &mut |_| {});
        if result.is_err() {
            self.reading = Reading::Failed;
            // The alert that goes with it. As long as there is one, nothing else is looked at.
            while self.connection.wants_write() {
                self.process_one(input, &mut used, to, &mut |_| {}).map_err(invalid)?;
            }
        }
        // Exactly as much as it takes: this is what may be there for long.
        let open = self.reading == Reading::Open;
        self.incoming = if open { input[used..].to_vec() } else { vec![] };
        result.map_err(invalid)
    }

    /// Has rustls say what it has to say, and then, if something may be sent, whatever `write` does.
    fn speak(&mut self, write: &mut dyn FnMut(WriteTraffic<'_, ServerConnectionData>)) -> io::Result<()> {
        let mut input = std::mem::take(&mut self.incoming);
        let mut used = 0;
        let result = self.process(&mut input, &mut used, &mut ReadBuf::new(&mut []), write);
        input.drain(..used);
        self.incoming = input;
        result.map_err(invalid)
    }

    /// Goes on until more input is needed.
    fn process(
        &mut self,
        input: &mut [u8],
        used: &mut usize,
        to: &mut ReadBuf<'_>,
        write: &mut dyn FnMut(WriteTraffic<'_, ServerConnectionData>),
    ) -> Result<(), Error> {
        while self.process_one(input, used, to, write)? {}
        Ok(())
    }

    /// One step; whether there may be another.
    fn process_one(
        &mut self,
        input: &mut [u8],
        used: &mut usize,
        to: &mut ReadBuf<'_>,
        write: &mut dyn FnMut(WriteTraffic<'_, ServerConnectionData>),
    ) -> Result<bool, Error> {
        let UnbufferedStatus { mut discard, state } = self.connection.process_tls_records(&mut input[*used..]);
        let more = match state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    // In order: what comes after something that is unread is unread.
                    let n = if self.unread.get().is_empty() { record.payload.len().min(to.remaining()) } else { 0 };
                    to.put_slice(&record.payload[..n]);
                    self.unread.push(&record.payload[n..]);
                }
                Ok(true)
            }
            Ok(ConnectionState::EncodeTlsData(mut message)) => {
                self.unsent.push_with(|room| match message.encode(room) {
                    Err(EncodeError::InsufficientSize(e)) => Err(e.required_size),
                    // It is encoded once.
                    Err(EncodeError::AlreadyEncoded) => Ok(0),
                    Ok(n) => Ok(n),
                });
                Ok(true)
            }
            Ok(ConnectionState::TransmitTlsData(message)) => {
                // It is in `unsent`, and whatever comes later goes behind it.
                message.done();
                Ok(true)
            }
            Ok(ConnectionState::PeerClosed) => {
                self.reading = Reading::Closed;
                Ok(true)
            }
            Ok(ConnectionState::WriteTraffic(traffic)) => {
                write(traffic);
                Ok(false)
            }
            Ok(ConnectionState::Closed | ConnectionState::BlockedHandshake) => Ok(false),
            // Early data, which we do not offer.
            Ok(_) => Err(Error::General("an unknown state".into())),
            Err(e) => Err(e),
        };
        *used += discard;
        more
    }

    /// Seals at most [`RECORD`] bytes in `room`: in how many.
    fn seal(&mut self, bytes: &[u8], room: &mut Vec<u8>) -> io::Result<usize> {
        // Nothing may be sent any more, or so much was sealed with one key that no more may be.
        let mut sealed = None;
        self.speak(&mut |mut traffic| {
            sealed = fitting(room, 0, |room| match traffic.encrypt(bytes, room) {
                Err(EncryptError::InsufficientSize(e)) => Err(e.required_size),
                Err(EncryptError::EncryptExhausted) => Ok(None),
                Ok(n) => Ok(Some(n)),
            });
        })?;
        sealed.ok_or_else(|| ErrorKind::BrokenPipe.into())
    }

    /// Adds close_notify to what is to be sent, unless something as final was said.
    fn close(&mut self) -> io::Result<()> {
        if self.reading == Reading::Failed {
            return Ok(());
        }
        let mut said = vec![];
        self.speak(&mut |mut traffic| {
            let n = fitting(&mut said, 0, |room| match traffic.queue_close_notify(room) {
                Err(EncryptError::InsufficientSize(e)) => Err(e.required_size),
                Err(EncryptError::EncryptExhausted) => Ok(0),
                Ok(n) => Ok(n),
            });
            said.truncate(n);
        })?;
        self.unsent.push(&said);
        Ok(())
    }
}

/// The parts of a write that are left.
struct Parts<'a> {
    bufs: &'a [IoSlice<'a>],
    /// Bytes of the first that are done with.
    from: usize,
}

impl<'a> Parts<'a> {
    /// The bytes of the next record, none at the end: where they lie if one part has as many as fit or is the last, else gathered.
    fn next<'b>(&mut self, gathered: &'b mut Vec<u8>) -> &'b [u8]
    where
        'a: 'b,
    {
        gathered.clear();
        while let Some((first, rest)) = self.bufs.split_first() {
            let part: &'a [u8] = &first[self.from..];
            let n = part.len().min(RECORD - gathered.len());
            self.from += n;
            if gathered.is_empty() && n > 0 && (n == RECORD || rest.iter().all(|b| b.is_empty())) {
                return &part[..n];
            }
            gathered.extend_from_slice(&part[..n]);
            if n < part.len() {
                break;
            }
            (self.bufs, self.from) = (rest, 0);
        }
        gathered
    }
}

/// Bytes that wait for somebody to take them; no memory when there are none.
#[derive(Default)]
struct Rest {
    bytes: Vec<u8>,
    from: usize,
}

impl Rest {
    fn get(&self) -> &[u8] {
        &self.bytes[self.from..]
    }

    fn push(&mut self, more: &[u8]) {
        self.bytes.extend_from_slice(more);
    }

    /// Adds what `write` puts into the room it is given; it says how much that was, or how much room it needs.
    fn push_with(&mut self, write: impl FnMut(&mut [u8]) -> Result<usize, usize>) {
        let old = self.bytes.len();
        let n = fitting(&mut self.bytes, old, write);
        self.bytes.truncate(old + n);
    }

    fn advance(&mut self, n: usize) {
        self.from += n;
        if self.from == self.bytes.len() {
            *self = Rest::default();
        }
    }
}

/// Has `write` put something behind the first `used` bytes of a buffer, which grows if it says that it needs so much room.
fn fitting<T>(buffer: &mut Vec<u8>, used: usize, mut write: impl FnMut(&mut [u8]) -> Result<T, usize>) -> T {
    loop {
        match write(&mut buffer[used..]) {
            Ok(done) => return done,
            Err(needed) => buffer.resize(used + needed, 0),
        }
    }
}

fn invalid(error: Error) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests;
