//! Areas with a password (RFC 7617).

use crate::addresses::network;
use crate::body::Content;
use crate::path::bare;
use crate::respond::{status, with};
use base64::Engine;
use donjon_web_format::{Auth, Config, matches};
use hmac::{Hmac, Mac};
use hyper::http::request::Parts;
use hyper::{Response, StatusCode, header};
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, Weak};
use subtle::ConstantTimeEq;

/// Checks credentials, and remembers digests of those that were right, so that the slow derivation runs once per user and area.
#[derive(Default)]
pub struct Gatekeeper {
    known: Mutex<Vec<Claim>>,
    /// Guesses that wait for their turn or have it, each for as long as somebody waits for it.
    pending: Mutex<Vec<Weak<Guess>>>,
    /// One derivation at a time: whoever guesses passwords gets one turn among all tasks, not one for each connection.
    turn: tokio::sync::Mutex<()>,
}

/// An entry of the configuration and a digest of the credentials that were given for it.
type Claim = (usize, [u8; 32]);

struct Guess {
    peer: u128,
    claim: Claim,
    /// Whoever has this lock derives; the others wait for it and find the answer.
    right: tokio::sync::Mutex<Option<bool>>,
}

/// Too many guesses wait already.
struct Busy;

/// Most remembered digests; beyond it, the derivation simply runs again.
const KNOWN_MAX: usize = 256;
/// Most guesses that wait: of one client, and of all. Those of the same credentials are one.
const PENDING_MAX: (usize, usize) = (4, 16);
/// Seconds after which whoever is refused may try again: most of those who waited have been served by then.
const AGAIN: &str = "3";
/// Rounds of the derivation after which the other tasks have their turn: a fraction of a millisecond.
const ROUNDS_PER_TURN: u32 = 256;

impl Gatekeeper {
    /// `Err` is the response that asks for a password, or to come back later. All areas that match the path must be passed; of the areas with the same
    /// pattern (several users), one.
    pub async fn check(
        &self,
        config: &Config,
        request: &Parts,
        path: &str,
        peer: IpAddr,
    ) -> Result<(), Box<Response<Content>>> {
        let bare = (!config.auth.is_empty()).then(|| bare(path)).flatten();
        let covered = |a: &Auth| covers(&a.pattern, path) || bare.as_ref().is_some_and(|b| covers(&a.pattern, b));
        let areas = || config.auth.iter().enumerate().filter(|(_, a)| covered(a));
        let given = request.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(credentials);
        for (first, area) in areas() {
            let mut passed = false;
            if let Some((user, password)) = &given {
                let of_user = areas().filter(|(_, a)| a.pattern == area.pattern && a.user == *user);
                let mut entries: Vec<_> = of_user.collect();
                if entries.is_empty() {
                    // A name that is not there takes as long as one that is.
                    entries.push((first, area));
                }
                for (i, a) in entries {
                    if !passed {
                        let right = self.right(i, a, user, password, peer).await;
                        let busy = |Busy| with(status(StatusCode::SERVICE_UNAVAILABLE), header::RETRY_AFTER, AGAIN);
                        passed = right.map_err(busy)?;
                    }
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

    /// Whether user and password are those of this entry.
    async fn right(&self, index: usize, area: &Auth, user: &str, password: &str, peer: IpAddr) -> Result<bool, Busy> {
        let claim = (index, Sha256::digest(format!("{user}:{password}")).into());
        if self.known.lock().is_ok_and(|known| known.iter().any(|k| same(k, &claim))) {
            return Ok(true);
        }
        let guess = self.guess(claim, peer)?;
        let mut answer = guess.right.lock().await;
        let right = match *answer {
            Some(right) => right,
            None => *answer.insert(Box::pin(self.derived(area, user, password)).await),
        };
        if right
            && let Ok(mut known) = self.known.lock()
            && known.len() < KNOWN_MAX
            && !known.iter().any(|k| same(k, &claim))
        {
            known.push(claim);
        }
        Ok(right)
    }

    async fn derived(&self, area: &Auth, user: &str, password: &str) -> bool {
        let (Some(salt), Some(key)) = (unhex(&area.salt), unhex(&area.key)) else { return false };
        let _turn = self.turn.lock().await;
        let derived = derive(password, &salt, area.rounds).await;
        derived.is_some_and(|derived| bool::from(derived[..].ct_eq(&key))) && area.user == user
    }

    /// A place among those who wait: that of the same credentials, if there is one.
    fn guess(&self, claim: Claim, peer: IpAddr) -> Result<Arc<Guess>, Busy> {
        let peer = network(peer);
        let mut pending = self.pending.lock().map_err(|_| Busy)?;
        pending.retain(|guess| guess.strong_count() > 0);
        let mut of_peer = 0;
        for guess in pending.iter().filter_map(Weak::upgrade) {
            if same(&guess.claim, &claim) {
                return Ok(guess);
            }
            of_peer += usize::from(guess.peer == peer);
        }
        let (each, all) = PENDING_MAX;
        if pending.len() >= all || of_peer >= each {
            return Err(Busy);
        }
        let guess = Arc::new(Guess { peer, claim, right: tokio::sync::Mutex::new(None) });
        pending.push(Arc::downgrade(&guess));
        Ok(guess)
    }
}

fn same(a: &Claim, b: &Claim) -> bool {
    a.0 == b.0 && bool::from(a.1.ct_eq(&b.1))
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
            keeper.check(&config, &parts, path, [10, 0, 0, 1].into()).await.map_err(|r| r.status().as_u16())
        };
        assert_eq!(check("/open", None).await, Ok(()));
        assert_eq!(check("/p/x", None).await, Err(401));
        // The directory is as its content, also where it is an upstream's.
        assert_eq!(check("/p", None).await, Err(401));
        assert_eq!(check("/p/", None).await, Err(401));
        assert_eq!(check("/px", None).await, Ok(()));
        // Nor do path parameters lead past it.
        for path in ["/p;a/x", "/p;/x", "/;/p/x", "/p;a", "/;a=b/p;c/;d"] {
            assert_eq!(check(path, None).await, Err(401), "{path}");
            assert_eq!(check(path, Some("Basic YTpzZWNyZXQ=")).await, Ok(()), "{path}");
        }
        for _ in 0..2 {
            assert_eq!(check("/p/x", Some("Basic YjpzZWNyZXQ=")).await, Ok(()));
            assert_eq!(check("/p/x", Some("Basic YTpzZWNyZXQ=")).await, Ok(()));
            assert_eq!(check("/p/x", Some("Basic YzpzZWNyZXQ=")).await, Err(401));
            assert_eq!(check("/p/x", Some("Basic YTp3cm9uZw==")).await, Err(401));
        }
        assert_eq!(check("/p/x", Some("Basic !")).await, Err(401));
        assert_eq!(check("/p/x", Some("Bearer x")).await, Err(401));
    }

    /// A site where `/p/*` is for alice with `secret`, and a client's request that can be polled.
    fn guesses(rounds: u32) -> (Config, impl Fn(&str) -> Parts) {
        let mut key = [0; 32];
        pbkdf2::pbkdf2_hmac::<Sha256>(b"secret", b"\x01\x02", rounds, &mut key);
        let area = Auth {
            pattern: "/p/*".into(),
            realm: "R".into(),
            user: "alice".into(),
            rounds,
            salt: "0102".into(),
            key: key.iter().map(|b| format!("{b:02x}")).collect(),
        };
        let request = |credentials: &str| {
            let value = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(credentials));
            hyper::Request::get("/").header("authorization", value).body(()).unwrap().into_parts().0
        };
        (Config { auth: vec![area], ..Config::default() }, request)
    }

    #[tokio::test]
    async fn few_guesses_wait() {
        let (config, request) = guesses(100 * ROUNDS_PER_TURN);
        let keeper = Gatekeeper::default();
        // Whether it waits, and for what it is refused.
        let start = |credentials: &str, peer: &str| {
            let (parts, peer) = (request(credentials), peer.parse().unwrap());
            let (keeper, config) = (&keeper, &config);
            let mut check = Box::pin(async move { keeper.check(config, &parts, "/p/x", peer).await });
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            match check.as_mut().poll(&mut context) {
                std::task::Poll::Pending => Ok(check),
                std::task::Poll::Ready(answer) => Err(answer.map_err(|r| {
                    let again = r.headers().get(header::RETRY_AFTER).map(|v| v.to_str().unwrap().to_owned());
                    (r.status().as_u16(), again)
                })),
            }
        };
        let busy = Err((503, Some(AGAIN.to_owned())));
        let mut waiting = vec![];
        for n in 0..4 {
            waiting.push(start(&format!("alice:{n}"), "10.0.0.1").ok().unwrap());
        }
        assert_eq!(start("alice:4", "10.0.0.1").err(), Some(busy.clone()));
        assert_eq!(start("alice:4", "::ffff:10.0.0.1").err(), Some(busy.clone()));
        // The same again costs nothing.
        let again = start("alice:3", "10.0.0.1").ok().unwrap();
        // Others have their own places, in one network together, until all are taken.
        let right = start("alice:secret", "10.0.0.2").ok().unwrap();
        for n in 0..4 {
            waiting.push(start(&format!("nobody:{n}"), &format!("2001:db8::{n}")).ok().unwrap());
        }
        assert_eq!(start("nobody:4", "2001:db8::ffff:ffff:ffff:ffff").err(), Some(busy.clone()));
        for n in 0..7 {
            waiting.push(start(&format!("alice:y{n}"), &format!("2001:db8:1:{n}::1")).ok().unwrap());
        }
        assert_eq!(start("alice:z", "10.0.0.3").err(), Some(busy));
        drop((waiting, again));
        // Those who left have given their places back.
        assert!(right.await.is_ok());
        assert!(start("alice:4", "10.0.0.1").is_ok());
        // Who was right before does not wait.
        assert_eq!(start("alice:secret", "10.0.0.1").err(), Some(Ok(())));
    }

    #[tokio::test]
    async fn unknown_users_take_as_long_as_known_ones() {
        let (config, request) = guesses(20 * ROUNDS_PER_TURN);
        let keeper = Gatekeeper::default();
        for credentials in ["alice:guess", "bob:guess", "bob:secret", "alice:secret"] {
            let parts = request(credentials);
            let mut check = std::pin::pin!(keeper.check(&config, &parts, "/p/x", [10, 0, 0, 1].into()));
            let mut turns = 0;
            let answer = std::future::poll_fn(|context| {
                turns += 1;
                check.as_mut().poll(context)
            });
            let passed = answer.await.is_ok();
            assert_eq!((turns, passed), (20, credentials == "alice:secret"), "{credentials}");
        }
        assert_eq!(keeper.known.lock().unwrap().len(), 1);
    }
}
