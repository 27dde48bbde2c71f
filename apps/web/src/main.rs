//! Donjon's stock web server.
//!
//! An ordinary program: in an image it finds its site in the bundle; elsewhere, `donjon-web DIR` serves a directory that the
//! packer has prepared. See `docs/web.md`.
#![cfg_attr(fuzzing, expect(dead_code, reason = "there it is a library, whose `main` nobody calls"))]

mod addresses;
#[cfg(feature = "auth")]
mod auth;
mod body;
mod budget;
mod connection;
#[cfg(fuzzing)]
pub mod fuzzing;
mod gather;
mod listing;
mod log;
mod metrics;
mod negotiate;
mod path;
mod progress;
#[cfg(feature = "proxy")]
mod proxy;
mod range;
mod respond;
mod serve;
mod site;
#[cfg(feature = "tls")]
mod tls;
mod upload;

use budget::Budget;
use respond::Scheme;
use serve::{Purpose, Server, listen};
use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};

fn main() -> ExitCode {
    let base = std::env::args().nth(1);
    let result = site::Site::load(Path::new(base.as_deref().unwrap_or("/"))).and_then(|site| {
        let budget = if base.is_none() { Budget::guest() } else { Budget::unbounded() };
        // Threads look names up, and wait for nothing else.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build();
        let runtime = runtime.map_err(|e| format!("cannot start: {e}"))?;
        let result = runtime.block_on(run(site, budget));
        // A lookup may take longer than the drain.
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("donjon-web: {message}");
            ExitCode::FAILURE
        }
    }
}

async fn run(site: site::Site, budget: Budget) -> Result<(), String> {
    let (stop, stopped) = watch::channel(false);
    let config = site.config.clone();
    needs(&config)?;
    let connections = config.limits.connections.max(1);
    let server = Arc::new(Server {
        #[cfg(feature = "tls")]
        tls: if config.https.is_some() { Some(tls::acceptor(&config)?) } else { None },
        #[cfg(feature = "auth")]
        gatekeeper: Default::default(),
        #[cfg(feature = "proxy")]
        upstreams: Default::default(),
        site: Arc::new(site),
        budget,
        metrics: Default::default(),
        places: Arc::new(Semaphore::new(connections as usize)),
        metrics_places: Arc::new(Semaphore::new(16)),
        addresses: Default::default(),
        stop: stopped,
    });
    let mut listeners = vec![];
    for (port, purpose) in [
        (config.http, Purpose::Site(Scheme::Http)),
        (config.https, Purpose::Site(Scheme::Https)),
        (config.metrics, Purpose::Metrics),
    ] {
        if let Some(port) = port {
            let listener = bind(port).map_err(|e| format!("port {port}: {e}"))?;
            listeners.push(tokio::spawn(listen(server.clone(), listener, purpose)));
        }
    }
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| format!("cannot watch for a stop: {e}"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| format!("cannot watch for a stop: {e}"))?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    // Graceful drain: no new connections, requests in progress end, idle connections close; then, or when time is up, the end.
    let _ = stop.send(true);
    server.budget.call();
    for listener in listeners {
        let _ = listener.await;
    }
    let drain = Duration::from_secs(config.limits.drain_seconds.into());
    let _ = tokio::time::timeout(drain, server.places.acquire_many(connections)).await;
    Ok(())
}

/// Refuses a configuration that asks for what is not in this variant: nothing is silently not done.
fn needs(config: &donjon_web_format::Config) -> Result<(), String> {
    for (wanted, there, name) in [
        (!config.auth.is_empty(), cfg!(feature = "auth"), "auth"),
        (!config.proxies.is_empty(), cfg!(feature = "proxy"), "proxy"),
        (config.https.is_some(), cfg!(feature = "tls"), "tls"),
    ] {
        if wanted && !there {
            return Err(format!("the site needs `{name}`, which this variant of the server does not contain"));
        }
    }
    Ok(())
}

fn bind(port: u16) -> std::io::Result<TcpListener> {
    let on = |address: SocketAddr, socket: TcpSocket| {
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(1024)
    };
    // One dual-stack listener; where there is no IPv6, IPv4 alone.
    match TcpSocket::new_v6() {
        Ok(socket) => on((Ipv6Addr::UNSPECIFIED, port).into(), socket),
        Err(_) => on(([0, 0, 0, 0], port).into(), TcpSocket::new_v4()?),
    }
}
