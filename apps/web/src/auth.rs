//! Areas with a password (RFC 7617).

use crate::body::Content;
use crate::respond::{status, with};
use base64::Engine;
use donjon_web_format::{Auth, Config, matches};
use hyper::http::request::Parts;
use hyper::{Response, StatusCode, header};
use sha2::{Digest, Sha256};
use std::sync::Mutex;
use subtle::ConstantTimeEq;

/// Checks credentials, and remembers digests of those that were right, so that the slow derivation runs once per user and area.
#[derive(Default)]
pub struct Gatekeeper {
    known: Mutex<Vec<(usize, [u8; 32])>>,
}

/// Most remembered digests; beyond it, the derivation simply runs again.
const KNOWN_MAX: usize = 256;

impl Gatekeeper {
    /// `Err` is the response that asks for a password. All areas that match the path must be passed; of the areas with the same
    /// pattern (several users), one.
    pub fn check(&self, config: &Config, request: &Parts, path: &str) -> Result<(), Box<Response<Content>>> {
        let areas = || config.auth.iter().enumerate().filter(|(_, a)| matches(&a.pattern, path));
        let given = request.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(credentials);
        for (_, area) in areas() {
            let passed = given.as_ref().is_some_and(|(user, password)| {
                areas().any(|(i, a)| a.pattern == area.pattern && a.user == *user && self.right(i, a, password))
            });
            if !passed {
                let realm = area.realm.replace(['"', '\\'], "");
                let ask = format!("Basic realm=\"{realm}\", charset=\"UTF-8\"");
                return Err(with(status(StatusCode::UNAUTHORIZED), header::WWW_AUTHENTICATE, &ask).into());
            }
        }
        Ok(())
    }

    fn right(&self, index: usize, area: &Auth, password: &str) -> bool {
        let digest: [u8; 32] = Sha256::digest(password.as_bytes()).into();
        let seen = |known: &[(usize, [u8; 32])]| known.iter().any(|(i, d)| *i == index && bool::from(d.ct_eq(&digest)));
        if self.known.lock().is_ok_and(|known| seen(&known)) {
            return true;
        }
        let (Some(salt), Some(key)) = (unhex(&area.salt), unhex(&area.key)) else { return false };
        let mut derived = [0; 32];
        pbkdf2::pbkdf2_hmac::<Sha256>(password.as_bytes(), &salt, area.rounds, &mut derived);
        let right = bool::from(derived[..].ct_eq(&key));
        if right
            && let Ok(mut known) = self.known.lock()
            && known.len() < KNOWN_MAX
        {
            known.push((index, digest));
        }
        right
    }
}

fn credentials(value: &str) -> Option<(String, String)> {
    let (scheme, data) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(base64::engine::general_purpose::STANDARD.decode(data.trim()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.into(), password.into()))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(text.get(i..i + 2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas() {
        let mut key = [0; 32];
        pbkdf2::pbkdf2_hmac::<Sha256>(b"secret", b"\x01\x02", 2, &mut key);
        let key: String = key.iter().map(|b| format!("{b:02x}")).collect();
        let area = |user: &str| Auth {
            pattern: "/p/*".into(),
            realm: "R".into(),
            user: user.into(),
            rounds: 2,
            salt: "0102".into(),
            key: key.clone(),
        };
        let config = Config { auth: vec![area("a"), area("b")], ..Config::default() };
        let keeper = Gatekeeper::default();
        let check = |path: &str, value: Option<&str>| {
            let mut request = hyper::Request::get("/");
            if let Some(v) = value {
                request = request.header("authorization", v);
            }
            let (parts, ()) = request.body(()).unwrap().into_parts();
            keeper.check(&config, &parts, path).map_err(|r| r.status().as_u16())
        };
        assert_eq!(check("/open", None), Ok(()));
        assert_eq!(check("/p/x", None), Err(401));
        for _ in 0..2 {
            assert_eq!(check("/p/x", Some("Basic YjpzZWNyZXQ=")), Ok(()));
            assert_eq!(check("/p/x", Some("Basic YTpzZWNyZXQ=")), Ok(()));
            assert_eq!(check("/p/x", Some("Basic YzpzZWNyZXQ=")), Err(401));
            assert_eq!(check("/p/x", Some("Basic YTp3cm9uZw==")), Err(401));
        }
        assert_eq!(check("/p/x", Some("Basic !")), Err(401));
        assert_eq!(check("/p/x", Some("Bearer x")), Err(401));
    }
}
