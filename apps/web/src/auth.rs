//! Areas with a password (RFC 7617).

use crate::body::Content;
use crate::respond::{status, with};
use base64::Engine;
use donjon_web_format::{Auth, Config, matches};
use hmac::{Hmac, Mac};
use hyper::http::request::Parts;
use hyper::{Response, StatusCode, header};
use sha2::{Digest, Sha256};
use std::sync::Mutex;
use subtle::ConstantTimeEq;

/// Checks credentials, and remembers digests of those that were right, so that the slow derivation runs once per user and area.
#[derive(Default)]
pub struct Gatekeeper {
    known: Mutex<Vec<(usize, [u8; 32])>>,
    /// One derivation at a time: whoever guesses passwords gets one turn among all tasks, not one for each connection.
    turn: tokio::sync::Mutex<()>,
}

/// Most remembered digests; beyond it, the derivation simply runs again.
const KNOWN_MAX: usize = 256;
/// Rounds of the derivation after which the other tasks have their turn: a fraction of a millisecond.
const ROUNDS_PER_TURN: u32 = 256;

impl Gatekeeper {
    /// `Err` is the response that asks for a password. All areas that match the path must be passed; of the areas with the same
    /// pattern (several users), one.
    pub async fn check(&self, config: &Config, request: &Parts, path: &str) -> Result<(), Box<Response<Content>>> {
        let areas = || config.auth.iter().enumerate().filter(|(_, a)| covers(&a.pattern, path));
        let given = request.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(credentials);
        for (_, area) in areas() {
            let mut passed = false;
            if let Some((user, password)) = &given {
                for (i, a) in areas().filter(|(_, a)| a.pattern == area.pattern && a.user == *user) {
                    passed = passed || self.right(i, a, password).await;
                }
            }
            if !passed {
                let realm = area.realm.replace(['"', '\\'], "");
                let ask = format!("Basic realm=\"{realm}\", charset=\"UTF-8\"");
                return Err(with(status(StatusCode::UNAUTHORIZED), header::WWW_AUTHENTICATE, &ask).into());
            }
        }
        Ok(())
    }

    async fn right(&self, index: usize, area: &Auth, password: &str) -> bool {
        let digest: [u8; 32] = Sha256::digest(password.as_bytes()).into();
        let seen = |known: &[(usize, [u8; 32])]| known.iter().any(|(i, d)| *i == index && bool::from(d.ct_eq(&digest)));
        if self.known.lock().is_ok_and(|known| seen(&known)) {
            return true;
        }
        let (Some(salt), Some(key)) = (unhex(&area.salt), unhex(&area.key)) else { return false };
        let _turn = self.turn.lock().await;
        if self.known.lock().is_ok_and(|known| seen(&known)) {
            return true;
        }
        let right = Box::pin(derive(password, &salt, area.rounds))
            .await
            .is_some_and(|derived| bool::from(derived[..].ct_eq(&key)));
        if right
            && let Ok(mut known) = self.known.lock()
            && known.len() < KNOWN_MAX
        {
            known.push((index, digest));
        }
        right
    }
}

/// Whether an area has this path: that of its directory with and without the `/` at the end, for an upstream may take one for the other.
fn covers(pattern: &str, path: &str) -> bool {
    matches(pattern, path) || pattern.strip_suffix("/*").is_some_and(|directory| matches(directory, path))
}

/// PBKDF2 with HMAC-SHA-256 and one block of output (RFC 8018 §5.2), in turns with the other tasks. `None` never happens: HMAC takes keys
/// of any length.
async fn derive(password: &str, salt: &[u8], rounds: u32) -> Option<[u8; 32]> {
    let mac = Hmac::<Sha256>::new_from_slice(password.as_bytes()).ok()?;
    let mut last: [u8; 32] =
        mac.clone().chain_update(salt).chain_update(1u32.to_be_bytes()).finalize().into_bytes().into();
    let mut sum = last;
    for round in 1..rounds {
        last = mac.clone().chain_update(last).finalize().into_bytes().into();
        sum.iter_mut().zip(last).for_each(|(s, l)| *s ^= l);
        if round % ROUNDS_PER_TURN == 0 {
            tokio::task::yield_now().await;
        }
    }
    Some(sum)
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

    #[tokio::test]
    async fn derivation_agrees_with_the_crate_that_makes_the_keys() {
        for rounds in [1, 2, 3, ROUNDS_PER_TURN, 1000] {
            let mut key = [0; 32];
            pbkdf2::pbkdf2_hmac::<Sha256>(b"p\xc3\xa4ss", b"salt", rounds, &mut key);
            assert_eq!(derive("p\u{e4}ss", b"salt", rounds).await, Some(key), "{rounds}");
        }
    }

    #[tokio::test]
    async fn other_tasks_run_while_a_password_is_checked() {
        let mut turns = 0;
        let mut guess = std::pin::pin!(derive("guess", b"salt", 20 * ROUNDS_PER_TURN));
        std::future::poll_fn(|context| {
            turns += 1;
            guess.as_mut().poll(context)
        })
        .await;
        assert_eq!(turns, 20);
    }

    #[tokio::test]
    async fn areas() {
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
        let check = async |path: &str, value: Option<&str>| {
            let mut request = hyper::Request::get("/");
            if let Some(v) = value {
                request = request.header("authorization", v);
            }
            let (parts, ()) = request.body(()).unwrap().into_parts();
            keeper.check(&config, &parts, path).await.map_err(|r| r.status().as_u16())
        };
        assert_eq!(check("/open", None).await, Ok(()));
        assert_eq!(check("/p/x", None).await, Err(401));
        // The directory is as its content, also where it is an upstream's.
        assert_eq!(check("/p", None).await, Err(401));
        assert_eq!(check("/p/", None).await, Err(401));
        assert_eq!(check("/px", None).await, Ok(()));
        for _ in 0..2 {
            assert_eq!(check("/p/x", Some("Basic YjpzZWNyZXQ=")).await, Ok(()));
            assert_eq!(check("/p/x", Some("Basic YTpzZWNyZXQ=")).await, Ok(()));
            assert_eq!(check("/p/x", Some("Basic YzpzZWNyZXQ=")).await, Err(401));
            assert_eq!(check("/p/x", Some("Basic YTp3cm9uZw==")).await, Err(401));
        }
        assert_eq!(check("/p/x", Some("Basic !")).await, Err(401));
        assert_eq!(check("/p/x", Some("Bearer x")).await, Err(401));
    }
}
