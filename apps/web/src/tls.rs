//! TLS 1.2 and 1.3 by rustls with ring.
//!
//! What a public web server does not need is not named here and so not linked (ADR 0005): ChaCha20-Poly1305 (every client that has it has
//! AES-GCM), Ed25519 keys (no public authority certifies one, no browser takes one), and what reads or verifies certificates.

use donjon_web_format::{Certificate, Config};
use ring::aead;
use ring::rand::SecureRandom as _;
use rustls::ServerConfig;
use rustls::crypto::{self, CryptoProvider, GetRandomFailed, WebPkiSupportedAlgorithms, ring as suites};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustls::server::{ClientHello, ProducesTickets, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::ticketer::TicketRotator;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use zeroize::{Zeroize, Zeroizing};

mod keys;
mod stream;

pub use stream::Acceptor;
use stream::TlsStream;

/// A connection, over TLS or not. One type for both, so that HTTP is compiled once.
pub enum Link {
    /// Not.
    Plain(TcpStream),
    /// Over TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl crate::connection::Socket for Link {
    fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Link::Plain(stream) => Some(stream),
            Link::Tls(stream) => Some(stream.get_ref()),
        }
    }

    fn http2(&self) -> bool {
        matches!(self, Link::Tls(stream) if stream.protocol() == Some(b"h2"))
    }

    fn buffered(&self) -> bool {
        matches!(self, Link::Tls(_))
    }

    fn unread(&self) -> bool {
        matches!(self, Link::Tls(stream) if stream.unread())
    }
}

impl AsyncRead for Link {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Link::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Link::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Link {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Link::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Link::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Link::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Link::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Link::Plain(stream) => stream.is_write_vectored(),
            Link::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Link::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Link::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Link::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Link::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Where secrets that were handed over at start are found.
const SECRETS: &str = "/run/secrets";

/// An acceptor for the configured certificates: ALPN h2 and http/1.1, resumption by tickets (with a key of this boot) and by session id.
pub fn acceptor(config: &Config) -> Result<Arc<Acceptor>, String> {
    let provider = Arc::new(provider());
    let mut names = vec![];
    for c in &config.certificates {
        let key = Arc::new(load(c, &provider)?);
        names.push((c.names.split(',').map(|n| n.trim().to_ascii_lowercase()).collect(), key));
    }
    if names.is_empty() {
        return Err("HTTPS needs a certificate".into());
    }
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("TLS: {e}"))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Names(names)));
    // Which cipher is used is ours to say (testssl.sh: cipher_order).
    tls.ignore_client_order = true;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let ticketer = TicketRotator::new(Tickets::LIFETIME / 2, Tickets::generate);
    tls.ticketer = Arc::new(ticketer.map_err(|e| format!("TLS tickets: {e}"))?);
    Ok(Arc::new(Acceptor::new(tls)))
}

/// What a server needs of ring, the stronger suite first.
fn provider() -> CryptoProvider {
    use suites::cipher_suite::{
        TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, TLS13_AES_128_GCM_SHA256,
        TLS13_AES_256_GCM_SHA384,
    };
    CryptoProvider {
        cipher_suites: vec![
            keys::thrifty(TLS13_AES_256_GCM_SHA384),
            TLS13_AES_128_GCM_SHA256,
            TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        ],
        kx_groups: vec![suites::kx_group::X25519, suites::kx_group::SECP256R1],
        signature_verification_algorithms: WebPkiSupportedAlgorithms { all: &[], mapping: &[] },
        secure_random: &Random,
        key_provider: &Keys,
    }
}

#[derive(Debug)]
struct Random;

impl crypto::SecureRandom for Random {
    fn fill(&self, buffer: &mut [u8]) -> Result<(), GetRandomFailed> {
        ring::rand::SystemRandom::new().fill(buffer).map_err(|_| GetRandomFailed)
    }
}

/// Reads private keys and wipes what they were read from.
#[derive(Debug)]
struct Keys;

impl crypto::KeyProvider for Keys {
    fn load_private_key(&self, mut key: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, rustls::Error> {
        let loaded = match suites::sign::RsaSigningKey::new(&key) {
            Ok(rsa) => Ok(Arc::new(rsa) as Arc<dyn SigningKey>),
            Err(_) => suites::sign::any_ecdsa_type(&key),
        };
        key.zeroize();
        loaded
    }
}

/// Session tickets (RFC 5077 §4): AES-256-GCM with a key of this boot, which is replaced while the server runs.
#[derive(Debug)]
struct Tickets {
    key: aead::LessSafeKey,
}

impl Tickets {
    /// Longest time that a ticket is taken, seconds.
    const LIFETIME: u32 = 12 * 60 * 60;

    fn generate() -> Result<Box<dyn ProducesTickets>, GetRandomFailed> {
        let mut bytes = Zeroizing::new([0; 32]);
        crypto::SecureRandom::fill(&Random, &mut *bytes)?;
        let key = aead::UnboundKey::new(&aead::AES_256_GCM, &*bytes).map_err(|_| GetRandomFailed)?;
        Ok(Box::new(Tickets { key: aead::LessSafeKey::new(key) }))
    }
}

/// A ticket is a random nonce and the sealed state with its tag.
impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        Tickets::LIFETIME
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; aead::NONCE_LEN];
        crypto::SecureRandom::fill(&Random, &mut nonce).ok()?;
        let mut out = [&nonce, plain].concat();
        let sealed = &mut out[aead::NONCE_LEN..];
        let nonce = aead::Nonce::assume_unique_for_key(nonce);
        let tag = self.key.seal_in_place_separate_tag(nonce, aead::Aad::empty(), sealed).ok()?;
        out.extend(tag.as_ref());
        Some(out)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = ticket.split_first_chunk()?;
        let mut plain = sealed.to_vec();
        let nonce = aead::Nonce::assume_unique_for_key(*nonce);
        let len = self.key.open_in_place(nonce, aead::Aad::empty(), &mut plain).ok()?.len();
        plain.truncate(len);
        Some(plain)
    }
}

fn load(c: &Certificate, provider: &CryptoProvider) -> Result<CertifiedKey, String> {
    let key_path = match c.key.strip_prefix("secret:") {
        Some(name) if !name.contains('/') => format!("{SECRETS}/{name}"),
        Some(name) => return Err(format!("{name}: not a name of a secret")),
        None => c.key.clone(),
    };
    let read = |path: &str| std::fs::read(Path::new(path)).map_err(|e| format!("{path}: {e}"));
    let chain = CertificateDer::pem_slice_iter(&read(&c.chain)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| format!("{}: {e}", c.chain))?;
    let key =
        PrivateKeyDer::from_pem_slice(&Zeroizing::new(read(&key_path)?)).map_err(|e| format!("{key_path}: {e}"))?;
    let key = provider.key_provider.load_private_key(key).map_err(|e| format!("{key_path}: {e}"))?;
    // A certificate has its key in the very form in which the other half gives it (RFC 5280 §4.1.2.7), so nothing here needs to read certificates.
    let own = key.public_key().ok_or_else(|| format!("{key_path} has no public half"))?;
    let fits = |cert: &CertificateDer<'_>| cert.windows(own.len()).any(|part| part == &own[..]);
    if !chain.first().is_some_and(fits) {
        return Err(format!("{key_path} is not the key of {}", c.chain));
    }
    Ok(CertifiedKey::new(chain, key))
}

/// Certificates by server name; the first that a client can use is the default.
#[derive(Debug)]
struct Names(Vec<(Vec<String>, Arc<CertifiedKey>)>);

impl ResolvesServerCert for Names {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let wanted = hello.server_name().unwrap_or("");
        // Of equals, the first is the least.
        let found = self.0.iter().min_by_key(|(names, key)| {
            let exact = names.iter().any(|n| n.eq_ignore_ascii_case(wanted));
            let fits = exact || names.iter().any(|n| covers(n, wanted));
            let usable = key.key.choose_scheme(hello.signature_schemes()).is_some();
            (!fits, !usable, !exact)
        });
        found.map(|(_, key)| key.clone())
    }
}

/// Whether a name, or a wildcard for exactly one label, covers a host name.
fn covers(name: &str, host: &str) -> bool {
    if name.eq_ignore_ascii_case(host) {
        return true;
    }
    let rest = host.split_once('.').map(|(_, rest)| rest);
    name.strip_prefix("*.").zip(rest).is_some_and(|(n, r)| n.eq_ignore_ascii_case(r))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets_are_sealed() {
        let (ours, others) = (Tickets::generate().unwrap(), Tickets::generate().unwrap());
        let ticket = ours.encrypt(b"the state of a session").unwrap();
        assert!(!ticket.windows(5).any(|w| w == b"state"));
        assert_eq!(ours.decrypt(&ticket).unwrap(), b"the state of a session");
        assert_ne!(ours.encrypt(b"the state of a session").unwrap(), ticket, "each has a nonce of its own");
        assert_eq!(others.decrypt(&ticket), None);
        for at in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[at] ^= 1;
            assert_eq!(ours.decrypt(&changed), None, "{at}");
            assert_eq!(ours.decrypt(&ticket[..at]), None, "{at}");
        }
    }

    #[test]
    fn names_cover_hosts() {
        for (name, host, yes) in [
            ("a.example", "A.example", true),
            ("*.example", "a.example", true),
            ("*.example", "a.b.example", false),
            ("*.example", "example", false),
            ("a.example", "b.example", false),
        ] {
            assert_eq!(super::covers(name, host), yes, "{name} {host}");
        }
    }
}
