//! Checks of certificates and keys with the same library that the server uses, so that what is wrong is said when the image is made.

use crate::Error;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::path::Path;

/// Checks that `chain` is a PEM chain and, if there is one, that `key` is the PEM key of its first certificate. Returns the DNS names of that.
pub(crate) fn check(cert: (&Path, &[u8]), key: Option<(&Path, &[u8])>) -> Result<Vec<String>, Error> {
    let (path, bytes) = cert;
    let bad = |path: &Path, problem: String| Error::Certificate(path.into(), problem);
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(bytes)
        .collect::<Result<_, _>>()
        .map_err(|e| bad(path, format!("is not PEM: {e}")))?;
    let Some(own) = chain.first().cloned() else { return Err(bad(path, "has no certificate in it".into())) };
    let parsed = webpki::EndEntityCert::try_from(&own)
        .map_err(|e| bad(path, format!("its first certificate is unusable: {e}")))?;
    if let Some((key_path, bytes)) = key {
        let key = PrivateKeyDer::from_pem_slice(bytes).map_err(|e| match e {
            rustls::pki_types::pem::Error::NoItemsFound if bytes.windows(9).any(|w| w == b"ENCRYPTED") => {
                bad(key_path, "is protected by a password".into())
            }
            rustls::pki_types::pem::Error::NoItemsFound => bad(key_path, "has no private key in it".into()),
            e => bad(key_path, format!("is not PEM: {e}")),
        })?;
        CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|e| match e {
            rustls::Error::InconsistentKeys(_) => bad(key_path, format!("is not the key of {}", path.display())),
            e => bad(key_path, format!("its key is unusable: {e}")),
        })?;
    }
    Ok(parsed.valid_dns_names().map(str::to_ascii_lowercase).collect())
}
