//! Checks of certificates and keys with the same library that the server uses, so that what is wrong is said when the image is made.
//!
//! What cannot work is an error; what a client would refuse today, and perhaps not tomorrow, is a warning.

use crate::Error;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::path::Path;
use std::time::{Duration, SystemTime};
use x509_parser::oid_registry::OID_SIG_ED25519;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// A certificate that is to be renewed within this time is worth a word.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// A certificate that can be used.
#[derive(Debug)]
pub(crate) struct Checked {
    /// Its DNS names.
    pub names: Vec<String>,
    /// Until when it is valid, seconds since 1970.
    pub expires: i64,
    /// What clients may refuse.
    pub warnings: Vec<String>,
}

/// Checks that `chain` is a PEM chain and, if there is one, that `key` is the PEM key of its first certificate.
pub(crate) fn check(cert: (&Path, &[u8]), key: Option<(&Path, &[u8])>, now: SystemTime) -> Result<Checked, Error> {
    let (path, bytes) = cert;
    let bad = |path: &Path, problem: String| Error::Certificate(path.into(), problem);
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(bytes)
        .collect::<Result<_, _>>()
        .map_err(|e| bad(path, format!("is not PEM: {e}")))?;
    let Some(own) = chain.first().cloned() else { return Err(bad(path, "has no certificate in it".into())) };
    let unusable = |e: String| bad(path, format!("its first certificate is unusable: {e}"));
    let parsed = webpki::EndEntityCert::try_from(&own).map_err(|e| unusable(e.to_string()))?;
    let (mut warnings, mut expires) = (vec![], 0);
    for (i, der) in chain.iter().enumerate() {
        match X509Certificate::from_der(der) {
            Ok((_, x509)) if i == 0 && x509.public_key().algorithm.algorithm == OID_SIG_ED25519 => {
                return Err(bad(
                    path,
                    "is for an Ed25519 key, which browsers do not take: use an ECDSA or RSA key".into(),
                ));
            }
            Ok((_, x509)) => {
                warnings.extend(unfit(&x509, i == 0, now));
                if i == 0 {
                    expires = x509.validity().not_after.timestamp();
                }
            }
            Err(e) if i == 0 => return Err(unusable(e.to_string())),
            Err(_) => warnings.push(format!("certificate {} in it cannot be read", i + 1)),
        }
    }
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
    let names = parsed.valid_dns_names().map(str::to_ascii_lowercase).collect();
    Ok(Checked { names, expires, warnings: warnings.into_iter().map(|w| format!("{}: {w}", path.display())).collect() })
}

/// Whether a name of a certificate, which may be a wildcard for exactly one label, covers the name of a host.
pub(crate) fn covers(name: &str, host: &str) -> bool {
    let rest = host.split_once('.').map(|(_, rest)| rest);
    name.eq_ignore_ascii_case(host)
        || name.strip_prefix("*.").zip(rest).is_some_and(|(name, rest)| name.eq_ignore_ascii_case(rest))
}

/// Why clients would refuse this certificate of a chain, now or soon.
fn unfit(x509: &X509Certificate<'_>, own: bool, now: SystemTime) -> Vec<String> {
    let mut out = vec![];
    let whose = if own { "its certificate".into() } else { format!("the certificate of `{}` in it", x509.subject()) };
    let seconds = |t: SystemTime| {
        t.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
    };
    let (from, until) = (x509.validity().not_before, x509.validity().not_after);
    if until.timestamp() < seconds(now) {
        out.push(format!("{whose} has expired: it was valid until {until}"));
    } else if from.timestamp() > seconds(now) {
        out.push(format!("{whose} is not valid yet: it will be from {from} on"));
    } else if until.timestamp() < seconds(now + SOON) {
        out.push(format!("{whose} expires soon: it is valid until {until}"));
    }
    let names = x509.subject_alternative_name().ok().flatten();
    let host = |n: &GeneralName<'_>| matches!(n, GeneralName::DNSName(_) | GeneralName::IPAddress(_));
    if own && !names.is_some_and(|names| names.value.general_names.iter().any(host)) {
        out.push(format!("{whose} is for no host: clients want a subject alternative name"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    #[test]
    fn what_clients_refuse_is_said() {
        let day = |days: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(days * 24 * 3600);
        let key = KeyPair::generate().unwrap();
        let pem = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            let mut params = CertificateParams::new(names).unwrap();
            // 1 March 2026 is day 20,513.
            (params.not_before, params.not_after) = (date_time_ymd(2026, 3, 1), date_time_ymd(2026, 5, 30));
            params.self_signed(&key).unwrap().pem()
        };
        let warnings = |pem: &str, now| check((Path::new("c.pem"), pem.as_bytes()), None, now).unwrap().warnings;
        let good = pem(&["a.example", "10.0.0.1"]);
        assert!(warnings(&good, day(20_520)).is_empty());
        let checked = check((Path::new("c.pem"), good.as_bytes()), None, day(20_520)).unwrap();
        assert_eq!(checked.expires, (20_513 + 90) * 24 * 3600);
        for (now, want) in [(20_512, "not valid yet"), (20_513 + 80, "expires soon"), (20_513 + 91, "has expired")] {
            let got = warnings(&good, day(now));
            assert!(got.len() == 1 && got[0].starts_with("c.pem: its certificate") && got[0].contains(want), "{got:?}");
        }
        assert!(warnings(&pem(&["10.0.0.1"]), day(20_520)).is_empty());
        assert!(warnings(&pem(&[]), day(20_520))[0].contains("for no host"));
        // The rest of a chain can expire, too.
        let now = day(20_513 + 91);
        assert_eq!(warnings(&format!("{good}{good}"), now).len(), 2);
        assert!(warnings(&format!("{good}{good}"), now)[1].contains("in it has expired"));
    }

    #[test]
    fn keys_that_the_server_does_not_take_are_refused() {
        let made = |kind| {
            let key = KeyPair::generate_for(kind).unwrap();
            let cert = CertificateParams::new(["a.example".to_owned()]).unwrap().self_signed(&key).unwrap();
            let (cert, key) = (cert.pem(), key.serialize_pem());
            let (cert, key) = ((Path::new("c"), cert.as_bytes()), (Path::new("k"), key.as_bytes()));
            check(cert, Some(key), SystemTime::now()).map(|c| c.names).map_err(|e| e.to_string())
        };
        for kind in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384] {
            assert_eq!(made(kind).unwrap(), ["a.example"]);
        }
        assert!(made(&rcgen::PKCS_ED25519).unwrap_err().contains("Ed25519"));
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
            assert_eq!(covers(name, host), yes, "{name} {host}");
        }
    }
}
