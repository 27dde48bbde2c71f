//! AES-256-GCM with keys that are small while they are not in use.
//!
//! For speed, ring makes half a kilobyte of a key: what each round needs, and multiples for the hash. A connection has two keys, and with many
//! connections most are idle. So beyond some number of keys, each is made ready for one record at a time. All cryptography is ring's, by way of rustls.
//!
//! Keys of 32 bytes are the only ones that rustls lets others make, and nearly every TLS 1.3 client gets one: we choose.

use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, InboundPlainMessage, Iv, MessageDecrypter, MessageEncrypter, OutboundOpaqueMessage,
    OutboundPlainMessage, Tls13AeadAlgorithm, UnsupportedOperationError,
};
use rustls::crypto::{CipherSuiteCommon, cipher::NONCE_LEN};
use rustls::{ConnectionTrafficSecrets, Error, SupportedCipherSuite, Tls13CipherSuite};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use zeroize::Zeroizing;

/// With more keys than this, two for each connection, none stays ready after it was used.
const MANY: usize = 256;
/// Bytes that a TLS 1.3 record adds to what it carries: the kind and the tag (RFC 8446 §5.2).
const KIND_AND_TAG: usize = 1 + 16;

/// A TLS 1.3 suite with AES-256-GCM, the same but for such keys. It is made once for each program and never freed, as rustls wants it.
pub fn thrifty(suite: SupportedCipherSuite) -> SupportedCipherSuite {
    let SupportedCipherSuite::Tls13(of) = suite else { return suite };
    if of.aead_alg.key_len() != size_of::<Key>() {
        return suite;
    }
    let common = CipherSuiteCommon { ..of.common };
    let aead_alg = Box::leak(Box::new(Thrifty { aead: of.aead_alg, keys: Arc::default() }));
    let made = Tls13CipherSuite { common, hkdf_provider: of.hkdf_provider, aead_alg, quic: None };
    SupportedCipherSuite::Tls13(Box::leak(Box::new(made)))
}

type Key = [u8; 32];

/// The algorithm.
struct Thrifty {
    /// ring's.
    aead: &'static dyn Tls13AeadAlgorithm,
    /// How many keys there are.
    keys: Arc<AtomicUsize>,
}

impl Thrifty {
    fn key<T: ?Sized>(&self, key: AeadKey, iv: Iv) -> Thin<T> {
        self.keys.fetch_add(1, Relaxed);
        let (mut own, mut nonce) = (Zeroizing::new([0; size_of::<Key>()]), [0; NONCE_LEN]);
        own.copy_from_slice(key.as_ref());
        nonce.copy_from_slice(iv.as_ref());
        Thin { aead: self.aead, keys: self.keys.clone(), key: own, iv: nonce, ready: None }
    }
}

impl Tls13AeadAlgorithm for Thrifty {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        Box::new(self.key::<dyn MessageEncrypter>(key, iv))
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        Box::new(self.key::<dyn MessageDecrypter>(key, iv))
    }

    fn key_len(&self) -> usize {
        size_of::<Key>()
    }

    fn extract_keys(&self, key: AeadKey, iv: Iv) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        self.aead.extract_keys(key, iv)
    }
}

/// A key for one direction.
struct Thin<T: ?Sized> {
    aead: &'static dyn Tls13AeadAlgorithm,
    keys: Arc<AtomicUsize>,
    key: Zeroizing<Key>,
    iv: [u8; NONCE_LEN],
    ready: Option<Box<T>>,
}

impl<T: ?Sized> Thin<T> {
    /// Uses what ring has made of the key, or has it made.
    fn with<R>(
        &mut self,
        make: impl Fn(&dyn Tls13AeadAlgorithm, AeadKey, Iv) -> Box<T>,
        used: impl FnOnce(&mut T) -> R,
    ) -> R {
        let mut ready = self.ready.take().unwrap_or_else(|| make(self.aead, (*self.key).into(), self.iv.into()));
        let result = used(&mut ready);
        if self.keys.load(Relaxed) <= MANY {
            self.ready = Some(ready);
        }
        result
    }
}

impl<T: ?Sized> Drop for Thin<T> {
    fn drop(&mut self) {
        self.keys.fetch_sub(1, Relaxed);
    }
}

impl MessageEncrypter for Thin<dyn MessageEncrypter> {
    fn encrypt(&mut self, message: OutboundPlainMessage<'_>, seq: u64) -> Result<OutboundOpaqueMessage, Error> {
        self.with(|aead, key, iv| aead.encrypter(key, iv), |ready| ready.encrypt(message, seq))
    }

    fn encrypted_payload_len(&self, payload_len: usize) -> usize {
        payload_len + KIND_AND_TAG
    }
}

impl MessageDecrypter for Thin<dyn MessageDecrypter> {
    fn decrypt<'a>(&mut self, message: InboundOpaqueMessage<'a>, seq: u64) -> Result<InboundPlainMessage<'a>, Error> {
        self.with(|aead, key, iv| aead.decrypter(key, iv), |ready| ready.decrypt(message, seq))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::crypto::ring::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384};
    use rustls::{ContentType, ProtocolVersion};

    #[test]
    fn many_keys_do_what_few_do_and_are_small() {
        let ring = TLS13_AES_256_GCM_SHA384.tls13().unwrap().aead_alg;
        let thrifty = Thrifty { aead: ring, keys: Arc::default() };
        let (key, iv) = (|| AeadKey::from([7; 32]), || Iv::from([9; NONCE_LEN]));
        let (typ, version) = (ContentType::ApplicationData, ProtocolVersion::TLSv1_2);
        let mut sealer = thrifty.key::<dyn MessageEncrypter>(key(), iv());
        let mut opener = thrifty.key::<dyn MessageDecrypter>(key(), iv());
        let mut others = vec![];
        for seq in 0..2 * MANY as u64 {
            let text = format!("text {seq}");
            let plain = || OutboundPlainMessage { typ, version, payload: text.as_bytes().into() };
            let mut sealed = sealer.encrypt(plain(), seq).unwrap().encode();
            assert_eq!(sealed, ring.encrypter(key(), iv()).encrypt(plain(), seq).unwrap().encode());
            assert_eq!(sealed.len(), 5 + sealer.encrypted_payload_len(text.len()));
            let mut changed = sealed[5..].to_vec();
            changed[0] ^= 1;
            assert!(opener.decrypt(InboundOpaqueMessage::new(typ, version, &mut changed), seq).is_err());
            let opened = opener.decrypt(InboundOpaqueMessage::new(typ, version, &mut sealed[5..]), seq).unwrap();
            assert_eq!(opened.payload, text.as_bytes());
            let few = others.len() + 2 <= MANY;
            assert_eq!((sealer.ready.is_some(), opener.ready.is_some()), (few, few), "{seq}");
            others.push(thrifty.key::<dyn MessageEncrypter>(key(), iv()));
        }
        drop(others);
        assert_eq!(thrifty.keys.load(Relaxed), 2);
        assert!(size_of_val(&sealer) <= 96);
    }

    #[test]
    fn other_suites_stay_what_they_are() {
        let same = |suite: SupportedCipherSuite| {
            let made = thrifty(suite);
            assert_eq!(made.suite(), suite.suite());
            std::ptr::eq(made.tls13().unwrap(), suite.tls13().unwrap())
        };
        assert!(same(TLS13_AES_128_GCM_SHA256));
        assert!(!same(TLS13_AES_256_GCM_SHA384));
    }
}
