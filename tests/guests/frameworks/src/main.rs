//! Two web servers in one program. On 8080 actix-web: event loops in several threads, a pool for what blocks, its own handling of signals. On 8081
//! tiny_http, one thread per connection, in front of SQLite (C) with a database in `/tmp` and one in the bundle.

use std::sync::Arc;

use actix_web::{App, HttpResponse, HttpServer, Responder, get, post, web};
use rusqlite::{Connection, OpenFlags};

#[derive(serde::Serialize)]
struct Answer {
    path: String,
    sum: u64,
}

#[get("/")]
async fn index() -> impl Responder {
    "Hello from actix-web"
}

#[get("/sum/{a}/{b}")]
async fn sum(numbers: web::Path<(u64, u64)>) -> impl Responder {
    let (a, b) = numbers.into_inner();
    web::Json(Answer { path: format!("{a}/{b}"), sum: a + b })
}

/// What blocks runs in a pool of threads.
#[get("/blocking")]
async fn blocking() -> impl Responder {
    let read = web::block(|| std::fs::read("/bundled.db").map(|bytes| bytes.len())).await;
    HttpResponse::Ok().body(format!("{read:?}"))
}

#[post("/echo")]
async fn echo(body: web::Bytes) -> impl Responder {
    HttpResponse::Ok().body(body)
}

#[actix_web::main]
async fn main() -> std::io::Result<()> {
    notes().expect("the database");
    let served = HttpServer::new(|| App::new().service(index).service(sum).service(blocking).service(echo))
        .workers(2)
        .bind(("0.0.0.0", 8080))?
        .run()
        .await;
    // It ends because it has heard SIGTERM, after what it was doing is answered.
    println!("actix-web has stopped: {served:?}");
    served
}

const NOTES: &str = "/tmp/notes.db";

/// Starts the server of notes: four threads, each with its own connection to the database.
fn notes() -> Result<(), Box<dyn std::error::Error>> {
    let database = Connection::open(NOTES)?;
    // The write-ahead log keeps its index in shared memory: a shared mapping of a file.
    let mode: String = database.query_row("pragma journal_mode = wal", [], |row| row.get(0))?;
    assert_eq!(mode, "wal");
    database.execute_batch("create table notes (id integer primary key, text text not null)")?;
    let server = Arc::new(tiny_http::Server::http("0.0.0.0:8081").map_err(|e| e.to_string())?);
    for _ in 0..4 {
        let server = Arc::clone(&server);
        let database = Connection::open(NOTES)?;
        database.busy_timeout(std::time::Duration::from_secs(30))?;
        std::thread::spawn(move || {
            while let Ok(mut request) = server.recv() {
                let (status, text) = match answer(&database, &mut request) {
                    Ok(text) => (200, text),
                    Err(e) => (500, e.to_string()),
                };
                let response = tiny_http::Response::from_string(text).with_status_code(status);
                // The client may be gone.
                let _ = request.respond(response);
            }
        });
    }
    Ok(())
}

fn answer(database: &Connection, request: &mut tiny_http::Request) -> Result<String, Box<dyn std::error::Error>> {
    let first = |sql: &str| database.query_row(sql, [], |row| row.get::<_, String>(0));
    Ok(match request.url() {
        "/add" => {
            let mut text = String::new();
            request.as_reader().read_to_string(&mut text)?;
            database.execute("insert into notes (text) values (?1)", [text])?;
            database.last_insert_rowid().to_string()
        }
        "/count" => first("select count(*) || ' ' || count(distinct text) from notes")?,
        "/check" => {
            database.execute_batch("pragma wal_checkpoint(truncate); vacuum")?;
            format!("{} {}", first("pragma journal_mode")?, first("pragma integrity_check")?)
        }
        "/bundled" => {
            let bundled = Connection::open_with_flags("/bundled.db", OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            bundled.query_row("select group_concat(name, ', ') from towers", [], |row| row.get(0))?
        }
        "/read-only" => {
            let bundled = Connection::open("/bundled.db")?;
            match bundled.execute("delete from towers", []) {
                Ok(rows) => format!("FAILURE: {rows} rows are gone from the image"),
                Err(e) => e.to_string(),
            }
        }
        other => format!("Hello from tiny_http: {other}"),
    })
}
