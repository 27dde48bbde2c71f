//! The stream against rustls' own client, over a wire that gives and takes as many bytes as it is told, and without a clock.

use super::*;
use crate::tls::{Names, provider};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, ClientConfig, ClientConnection};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::task::Waker;

const VERSIONS: [&rustls::SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

/// The stream below, seen by the server.
#[derive(Default)]
struct Wire {
    coming: VecDeque<u8>,
    /// Whether the client has ended it.
    ended: bool,
    going: Vec<u8>,
    /// Whether the server has.
    shut: bool,
    /// Bytes that a read gives at most, and a write takes.
    step: usize,
    /// Bytes that are taken until there is no more room.
    room: usize,
}

impl Wire {
    fn new() -> Wire {
        Wire { step: usize::MAX, room: usize::MAX, ..Wire::default() }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let n = self.coming.len().min(self.step).min(buf.remaining());
        if n == 0 && !self.ended {
            return Poll::Pending;
        }
        let bytes: Vec<u8> = self.coming.drain(..n).collect();
        buf.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let n = buf.len().min(self.step).min(self.room);
        if n == 0 {
            return Poll::Pending;
        }
        self.room -= n;
        self.going.extend_from_slice(&buf[..n]);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shut = true;
        Poll::Ready(Ok(()))
    }
}

/// An acceptor, and the configuration of a client that trusts it.
fn both(version: &'static rustls::SupportedProtocolVersion) -> (Arc<Acceptor>, ClientConfig) {
    let made = rcgen::generate_simple_self_signed(["one.test".to_owned()]).unwrap();
    let key = provider().key_provider.load_private_key(made.signing_key.serialize_der().try_into().unwrap()).unwrap();
    let names = Names(vec![(vec!["one.test".into()], Arc::new(CertifiedKey::new(vec![made.cert.der().clone()], key)))]);
    let builder = ServerConfig::builder_with_provider(Arc::new(provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let mut server = builder.with_cert_resolver(Arc::new(names));
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
    let mut client = client.with_root_certificates(roots).with_no_client_auth();
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    (Arc::new(Acceptor::new(server)), client)
}

/// A connection with both its ends.
struct Pair {
    stream: Box<TlsStream<Wire>>,
    client: ClientConnection,
    /// What the client has read.
    got: Vec<u8>,
}

impl Pair {
    /// The handshake is done; what the client says with its last part of it is `early`.
    fn new(version: &'static rustls::SupportedProtocolVersion, early: &[u8]) -> Pair {
        let (acceptor, client) = both(version);
        Pair::with(&acceptor, client, early, usize::MAX)
    }

    fn with(acceptor: &Arc<Acceptor>, client: ClientConfig, early: &[u8], step: usize) -> Pair {
        let mut client = ClientConnection::new(Arc::new(client), "one.test".try_into().unwrap()).unwrap();
        client.writer().write_all(early).unwrap();
        let mut wire = Wire { step, ..Wire::new() };
        // The future has the wire: the client speaks through a hole in it.
        let shared = Arc::new(Mutex::new(std::mem::take(&mut wire)));
        let mut accepting = Box::pin(acceptor.accept(Hole(shared.clone())));
        let mut cx = Context::from_waker(Waker::noop());
        let stream = loop {
            say(&mut client, &mut shared.lock().unwrap());
            let done = accepting.as_mut().poll(&mut cx);
            let said = std::mem::take(&mut shared.lock().unwrap().going);
            hear(&mut client, &said).unwrap();
            if let Poll::Ready(stream) = done {
                break stream.unwrap();
            }
        };
        drop(accepting);
        let TlsStream { session, shut, acceptor, .. } = *stream;
        let io = std::mem::take(&mut *shared.lock().unwrap());
        let mut pair = Pair { stream: Box::new(TlsStream { io, session, shut, acceptor }), client, got: vec![] };
        pair.stream.io.step = usize::MAX;
        pair.say();
        assert!(!pair.client.is_handshaking());
        assert_eq!(pair.stream.protocol(), Some(&b"http/1.1"[..]));
        pair
    }

    /// What the client has to say goes to the wire.
    fn say(&mut self) {
        say(&mut self.client, &mut self.stream.io);
    }

    /// The client says this.
    fn tell(&mut self, bytes: &[u8]) {
        self.client.writer().write_all(bytes).unwrap();
        self.say();
    }

    /// The client reads what is on the wire.
    fn hear(&mut self) -> Result<(), Error> {
        let said = std::mem::take(&mut self.stream.io.going);
        self.got.extend(hear(&mut self.client, &said)?);
        Ok(())
    }

    /// One read of at most so many bytes.
    fn read(&mut self, most: usize) -> Poll<io::Result<Vec<u8>>> {
        let mut bytes = vec![0; most];
        let mut buf = ReadBuf::new(&mut bytes);
        let mut cx = Context::from_waker(Waker::noop());
        Pin::new(&mut *self.stream).poll_read(&mut cx, &mut buf).map_ok(|()| buf.filled().to_vec())
    }

    /// All that can be read now.
    fn read_all(&mut self, most: usize) -> Vec<u8> {
        let mut all = vec![];
        while let Poll::Ready(bytes) = self.read(most) {
            let bytes = bytes.unwrap();
            if bytes.is_empty() {
                break;
            }
            all.extend(bytes);
        }
        all
    }

    fn write(&mut self, parts: &[&[u8]]) -> Poll<io::Result<usize>> {
        let parts: Vec<IoSlice<'_>> = parts.iter().map(|p| IoSlice::new(p)).collect();
        Pin::new(&mut *self.stream).poll_write_vectored(&mut Context::from_waker(Waker::noop()), &parts)
    }

    fn flush(&mut self) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(&mut Context::from_waker(Waker::noop()))
    }

    fn shutdown(&mut self) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(&mut Context::from_waker(Waker::noop()))
    }

    /// Bytes of the connection's own buffers.
    fn kept(&self) -> usize {
        let s = &self.stream.session;
        s.incoming.capacity() + s.unread.bytes.capacity() + s.unsent.bytes.capacity()
    }
}

/// The wire while the handshake has it.
struct Hole(Arc<Mutex<Wire>>);

impl AsyncRead for Hole {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock().unwrap()).poll_read(cx, buf)
    }
}

impl AsyncWrite for Hole {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.lock().unwrap()).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock().unwrap()).poll_shutdown(cx)
    }
}

fn say(client: &mut ClientConnection, wire: &mut Wire) {
    let mut said = vec![];
    while client.wants_write() {
        client.write_tls(&mut said).unwrap();
    }
    wire.coming.extend(said);
}

fn hear(client: &mut ClientConnection, mut said: &[u8]) -> Result<Vec<u8>, Error> {
    let mut all = vec![];
    while !said.is_empty() {
        client.read_tls(&mut said).unwrap();
        client.process_new_packets()?;
        match client.reader().read_to_end(&mut all) {
            Err(e) if e.kind() != ErrorKind::WouldBlock => panic!("{e}"),
            _ => {}
        }
    }
    Ok(all)
}

/// Bytes that repeat late.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

/// Records on the wire: their kinds and lengths.
fn records(mut wire: &[u8]) -> Vec<(u8, usize)> {
    let mut all = vec![];
    while let [kind, _, _, a, b, rest @ ..] = wire {
        let len = usize::from(u16::from_be_bytes([*a, *b]));
        all.push((*kind, len));
        wire = &rest[len..];
    }
    assert!(wire.is_empty());
    all
}

#[test]
fn handshakes_in_pieces() {
    for version in VERSIONS {
        let (acceptor, client) = both(version);
        // Of the wire, and of the messages: in such small records, too.
        for fragment in [None, Some(32), Some(100)] {
            for step in [1, 2, 3, 5, 6, 7, 100, usize::MAX] {
                let mut client = client.clone();
                client.max_fragment_size = fragment;
                let mut pair = Pair::with(&acceptor, client, b"", step);
                assert_eq!(pair.stream.session.connection.protocol_version(), Some(version.version));
                pair.tell(b"hello");
                assert_eq!(pair.read_all(100), b"hello");
                assert!(matches!(pair.write(&[b"good", b"bye"]), Poll::Ready(Ok(7))));
                pair.hear().unwrap();
                assert_eq!(pair.got, b"goodbye");
                assert_eq!(pair.kept(), 0, "{version:?} {fragment:?} {step}");
            }
        }
    }
}

#[test]
fn a_hello_may_be_longer_than_a_record() {
    let (acceptor, mut client) = both(&rustls::version::TLS13);
    let others = (0..84u8).map(|n| vec![n; 200]);
    client.alpn_protocols = others.chain([b"http/1.1".to_vec()]).collect();
    for step in [1000, usize::MAX] {
        let mut pair = Pair::with(&acceptor, client.clone(), b"", step);
        pair.tell(b"hello");
        assert_eq!(pair.read_all(100), b"hello");
        assert_eq!(pair.kept(), 0);
    }
}

#[test]
fn what_comes_with_the_end_of_the_handshake_is_read() {
    for version in VERSIONS {
        let mut pair = Pair::new(version, b"GET / HTTP/1.1\r\n\r\n");
        assert_eq!(pair.read(5).map(Result::unwrap), Poll::Ready(b"GET /".to_vec()));
        assert!(pair.stream.unread());
        assert_eq!(pair.read_all(100), b" HTTP/1.1\r\n\r\n");
        assert!(!pair.stream.unread());
        assert!(pair.read(100).is_pending());
        assert_eq!(pair.kept(), 0);
    }
}

#[test]
fn records_are_split_at_each_byte() {
    for version in VERSIONS {
        let mut pair = Pair::new(version, b"");
        let mut at = 0;
        loop {
            pair.tell(b"first");
            let first = pair.stream.io.coming.len();
            pair.tell(b"the second");
            let all: Vec<u8> = pair.stream.io.coming.drain(..).collect();
            if at > all.len() {
                break;
            }
            pair.stream.io.coming.extend(&all[..at]);
            let mut got = pair.read_all(100);
            // Nothing that was complete waits for the rest; no more is kept than has come.
            assert_eq!(got.len(), if at < first { 0 } else { 5 + 10 * usize::from(at == all.len()) }, "{at}");
            assert!(pair.kept() <= at);
            // Something may be said meanwhile.
            assert!(matches!(pair.write(&[b"x"]), Poll::Ready(Ok(1))));
            pair.stream.io.coming.extend(&all[at..]);
            got.extend(pair.read_all(3));
            assert_eq!(got, b"firstthe second", "{at}");
            assert_eq!(pair.kept(), 0);
            at += 1;
        }
        pair.hear().unwrap();
        assert_eq!(pair.got, vec![b'x'; at]);
    }
}

#[test]
fn much_arrives_whole_both_ways() {
    let sent = pattern(1_000_003);
    for version in VERSIONS {
        for step in [1000, RECORD, 20_000, usize::MAX] {
            let mut pair = Pair::new(version, b"");
            pair.client.set_buffer_limit(None);
            pair.stream.io.step = step;
            pair.tell(&sent);
            let mut got = vec![];
            while got.len() < sent.len() {
                let Poll::Ready(bytes) = pair.read(8192) else { panic!("{} bytes", got.len()) };
                got.extend(bytes.unwrap());
                // One record and the beginning of the next.
                assert!(pair.kept() <= 2 * RECORD_MAX);
            }
            assert!(got == sent && pair.kept() == 0);
            let mut left = &sent[..];
            while !left.is_empty() {
                let Poll::Ready(n) = pair.write(&[left]) else { panic!("{} bytes left", left.len()) };
                left = &left[n.unwrap()..];
                pair.hear().unwrap();
            }
            assert!(pair.got == sent && pair.kept() == 0);
        }
    }
}

#[test]
fn a_client_that_does_not_read_is_waited_for() {
    let sent = pattern(300_000);
    for version in VERSIONS {
        let mut pair = Pair::new(version, b"");
        let mut left = &sent[..];
        let mut refused = 0;
        for room in [0, 1, 100, 16_000, 17_000, 70_000, 0, 3, 200_000, usize::MAX].into_iter().cycle() {
            pair.stream.io.room = room;
            match pair.write(&[left]) {
                Poll::Ready(n) => left = &left[n.unwrap()..],
                Poll::Pending => {
                    refused += 1;
                    assert!(pair.flush().is_pending(), "it is not sent");
                }
            }
            assert!(pair.kept() <= RECORD + OVERHEAD, "one record");
            pair.hear().unwrap();
            if left.is_empty() {
                break;
            }
        }
        assert!(refused > 1, "{refused}");
        pair.stream.io.room = usize::MAX;
        assert!(pair.flush().is_ready());
        pair.hear().unwrap();
        assert!(pair.got == sent && pair.kept() == 0);
    }
}

#[test]
fn parts_share_records() {
    let large = pattern(4 * RECORD);
    for (parts, wanted) in [
        // A head and a small body.
        (&[200, 1000][..], &[1200][..]),
        (&[0, 200, 0, 0, 1000, 0], &[1200]),
        (&[1, 2, 3, 4, 5], &[15]),
        // A head and a large one: only what shares a record is copied.
        (&[200, 3 * RECORD], &[RECORD, RECORD, RECORD, 200]),
        (&[200, RECORD], &[RECORD, 200]),
        (&[RECORD + 1, 1], &[RECORD, 2]),
        (&[RECORD, RECORD], &[RECORD, RECORD]),
        (&[2 * RECORD + 7, 0], &[RECORD, RECORD, 7]),
        (&[RECORD - 1, 1, 1], &[RECORD, 1]),
        (&[3 * RECORD, 1], &[RECORD, RECORD, RECORD, 1]),
        (&[3 * RECORD + 2, 1, RECORD], &[RECORD, RECORD, RECORD, RECORD, 3]),
        (&[0], &[]),
        (&[], &[]),
    ] {
        let mut pair = Pair::new(&rustls::version::TLS13, b"");
        pair.hear().unwrap();
        let slices: Vec<&[u8]> = parts.iter().map(|len| &large[..*len]).collect();
        let Poll::Ready(Ok(n)) = pair.write(&slices) else { panic!("{parts:?}") };
        let seen: Vec<usize> = records(&pair.stream.io.going).iter().map(|(_, len)| len - 17).collect();
        assert_eq!(seen, wanted, "{parts:?}");
        assert_eq!(n, wanted.iter().sum::<usize>());
        pair.hear().unwrap();
        assert!(pair.got == slices.concat()[..n]);
    }
}

#[test]
fn the_client_ends_it() {
    for version in VERSIONS {
        // With a word: the end, and an answer is still possible. What comes after it is nothing.
        let mut pair = Pair::new(version, b"");
        pair.tell(b"last");
        pair.client.send_close_notify();
        pair.say();
        pair.stream.io.coming.extend(b"rubbish");
        assert_eq!(pair.read_all(100), b"last");
        for _ in 0..2 {
            assert_eq!(pair.read(100).map(Result::unwrap), Poll::Ready(vec![]));
        }
        assert!(matches!(pair.write(&[b"answer"]), Poll::Ready(Ok(6))));
        assert!(pair.shutdown().is_ready() && pair.stream.io.shut);
        pair.hear().unwrap();
        assert_eq!(pair.got, b"answer");
        assert_eq!(pair.kept(), 0);

        // Without one, at whatever byte: that is no end.
        for at in [0, 1, 5, 20] {
            let mut pair = Pair::new(version, b"");
            pair.tell(b"truncated");
            pair.stream.io.coming.truncate(at);
            pair.stream.io.ended = true;
            for _ in 0..2 {
                let Poll::Ready(Err(e)) = pair.read(100) else { panic!("an end") };
                assert_eq!(e.kind(), ErrorKind::UnexpectedEof);
            }
        }
    }
}

#[test]
fn we_end_it() {
    for version in VERSIONS {
        let mut pair = Pair::new(version, b"");
        assert!(matches!(pair.write(&[b"last"]), Poll::Ready(Ok(4))));
        pair.hear().unwrap();
        pair.stream.io.room = 3;
        assert!(pair.shutdown().is_pending() && !pair.stream.io.shut, "first what waits");
        pair.stream.io.room = usize::MAX;
        for _ in 0..2 {
            assert!(matches!(pair.shutdown(), Poll::Ready(Ok(()))));
        }
        assert!(pair.stream.io.shut);
        assert_eq!(records(&pair.stream.io.going).len(), 1, "close_notify, once");
        let Poll::Ready(Err(e)) = pair.write(&[b"more"]) else { panic!("written") };
        assert_eq!(e.kind(), ErrorKind::BrokenPipe);
        // A clean end for the client, who may still speak.
        pair.hear().unwrap();
        assert_eq!(pair.client.reader().read(&mut [0]).unwrap(), 0);
        pair.tell(b"after all");
        assert_eq!(pair.read_all(100), b"after all");
        assert_eq!(pair.kept(), 0);
    }
}

#[test]
fn keys_are_replaced() {
    let mut pair = Pair::new(&rustls::version::TLS13, b"");
    let answer = pattern(RECORD);
    for round in 0..5 {
        pair.client.refresh_traffic_keys().unwrap();
        pair.tell(b"with new keys");
        // In whatever pieces.
        pair.stream.io.step = [usize::MAX, 1][round % 2];
        assert_eq!(pair.read_all(100), b"with new keys");
        pair.stream.io.step = usize::MAX;
        pair.hear().unwrap();
        // The client has asked for ours to be replaced as well, before the next that we send: together that is more than one record.
        assert!(matches!(pair.write(&[&answer]), Poll::Ready(Ok(RECORD))));
        assert_eq!(records(&pair.stream.io.going).len(), 2);
        pair.hear().unwrap();
        assert_eq!(pair.kept(), 0);
    }
    assert!(pair.got == answer.repeat(5));
}

#[test]
fn rules_that_are_broken_are_answered() {
    for version in VERSIONS {
        for (at, rubbish) in [(0, &b"\x17\x03\x03\x00\x30"[..]), (5, b"\xff")] {
            let mut pair = Pair::new(version, b"");
            pair.tell(b"fine");
            let good = pair.stream.io.coming.len();
            pair.tell(b"not so");
            // The second record, or what it seems to be, is not what the client has sealed.
            for (n, byte) in rubbish.iter().enumerate() {
                pair.stream.io.coming[good + at + n] ^= byte;
            }
            pair.stream.io.coming.extend([0; 100]);
            // The first is not lost.
            pair.stream.io.step = good;
            assert_eq!(pair.read(100).map(Result::unwrap), Poll::Ready(b"fine".to_vec()));
            pair.stream.io.step = usize::MAX;
            for _ in 0..2 {
                let Poll::Ready(Err(e)) = pair.read(100) else { panic!("read") };
                assert_eq!(e.kind(), ErrorKind::InvalidData);
            }
            let Poll::Ready(Err(e)) = pair.write(&[b"more"]) else { panic!("written") };
            assert_eq!(e.kind(), ErrorKind::BrokenPipe);
            assert!(matches!(pair.shutdown(), Poll::Ready(Ok(()))));
            let told = pair.hear().unwrap_err();
            let known = [AlertDescription::BadRecordMac, AlertDescription::DecodeError];
            assert!(known.iter().any(|a| told == Error::AlertReceived(*a)), "{told:?}");
            assert_eq!(pair.kept(), 0);
        }
    }
}

#[test]
fn no_handshake_at_all() {
    let (acceptor, _) = both(&rustls::version::TLS13);
    let long = [&b"\x16\x03\x01\x40\x00\x01\x00\xff\xff"[..], &[0; (16 << 10) - 4]].concat();
    let piece = [&b"\x16\x03\x01\x40\x00"[..], &[0; 16 << 10]].concat();
    for (said, told) in [
        (b"GET / HTTP/1.1\r\nHost: one.test\r\n\r\n".to_vec(), true),
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00".to_vec(), true),
        (b"\x16\x03\x01".to_vec(), false),
        (vec![], false),
        // A hello that is as long as a message may be, which is longer than we wait for.
        ([&long[..], &piece, &piece, &piece].concat(), false),
    ] {
        let wire = Arc::new(Mutex::new(Wire { coming: said.into(), ended: true, ..Wire::new() }));
        let mut accepting = Box::pin(acceptor.accept(Hole(wire.clone())));
        let Poll::Ready(result) = accepting.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
            panic!("it waits")
        };
        assert!(result.is_err());
        let going = &wire.lock().unwrap().going;
        assert_eq!(records(going).iter().any(|(kind, _)| *kind == 21), told, "{going:?}");
    }
}
