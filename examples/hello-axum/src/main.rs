//! A web server on axum and tokio's multi-threaded runtime.

use std::{
    convert::Infallible,
    env, io,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, Query},
    http::{StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tower_http::catch_panic::CatchPanicLayer;

fn main() -> io::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve())
}

async fn serve() -> io::Result<()> {
    let port = env::var("PORT").ok().and_then(|p| p.parse().ok()).unwrap_or(8080);
    let app = Router::new()
        .route("/", get(page))
        .route("/file", get(file))
        .route("/json", get(json))
        .route("/sleep", get(sleep))
        .route("/panic", get(panic))
        .route("/tmp", get(tmp))
        .route("/bytes/{count}", get(bytes))
        .route("/hash", post(hash))
        .layer(CatchPanicLayer::new());
    let listener = TcpListener::bind(("0.0.0.0", port)).await?;
    println!("listening on {}", listener.local_addr()?);
    axum::serve(listener, app).await
}

/// The bundled page.
async fn page() -> Result<Html<String>, Failed> {
    Ok(Html(tokio::fs::read_to_string("static/index.html").await?))
}

/// The same as plain bytes.
async fn file() -> Result<Vec<u8>, Failed> {
    Ok(tokio::fs::read("static/index.html").await?)
}

#[derive(Serialize)]
struct Status {
    hello: &'static str,
    requests: u64,
}

async fn json() -> Json<Status> {
    static REQUESTS: AtomicU64 = AtomicU64::new(0);
    Json(Status { hello: "world", requests: REQUESTS.fetch_add(1, Ordering::Relaxed) + 1 })
}

#[derive(Deserialize)]
struct Sleep {
    ms: u64,
}

/// Answers with the milliseconds that the timer really took.
async fn sleep(Query(Sleep { ms }): Query<Sleep>) -> String {
    let start = Instant::now();
    tokio::time::sleep(Duration::from_millis(ms)).await;
    format!("{}\n", start.elapsed().as_millis())
}

/// Is answered with status 500; the server goes on.
async fn panic() -> StatusCode {
    panic!("a handler panics on request")
}

/// Writes a file and reads it back.
async fn tmp() -> Result<String, Failed> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = env::temp_dir().join(format!("hello-axum-{}-{number}", std::process::id()));
    tokio::fs::write(&path, format!("written {number}\n")).await?;
    let text = tokio::fs::read_to_string(&path).await?;
    tokio::fs::remove_file(&path).await?;
    Ok(text)
}

/// `count` bytes, byte `i` is `(i * 31 + 7) % 251`.
async fn bytes(Path(count): Path<u64>) -> Response {
    const PIECE: u64 = 251 * 64;
    let piece: Bytes = (0..PIECE).map(|i| ((i * 31 + 7) % 251) as u8).collect();
    let pieces = stream::unfold(0, move |sent| {
        let next = piece.slice(..(count - sent).min(PIECE) as usize);
        let more = (!next.is_empty()).then(|| (Ok::<_, Infallible>(next.clone()), sent + next.len() as u64));
        async move { more }
    });
    ([(header::CONTENT_LENGTH, count)], Body::from_stream(pieces)).into_response()
}

/// `LENGTH HASH` of the body, the hash being FNV-1a with 64 bits in hexadecimal.
async fn hash(body: Body) -> Result<String, Failed> {
    let (mut length, mut hash) = (0, 0xcbf2_9ce4_8422_2325u64);
    let mut body = body.into_data_stream();
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(io::Error::other)?;
        length += piece.len();
        for byte in piece {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    Ok(format!("{length} {hash:016x}\n"))
}

/// An error becomes status 500.
struct Failed(io::Error);

impl From<io::Error> for Failed {
    fn from(e: io::Error) -> Failed {
        Failed(e)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, format!("{}\n", self.0)).into_response()
    }
}
