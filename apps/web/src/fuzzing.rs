//! What `fuzz/` needs of this program's inside (there it is compiled as a library).

use crate::connection::{Socket, talk};
use crate::progress::State;
use crate::respond::Scheme;
use crate::serve::{Client, Purpose, Server};
use crate::site::Site;
use donjon_web_format::{CONFIG_PATH, Config, INDEX_PATH, Resource, Variant, index_line};
use std::cell::OnceCell;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};

thread_local! {
    static SERVER: OnceCell<(Runtime, Arc<Server>, watch::Sender<bool>)> = const { OnceCell::new() };
}

impl Socket for tokio::io::DuplexStream {
    fn tcp(&self) -> Option<&tokio::net::TcpStream> {
        None
    }
}

/// One connection on which a client sends the pieces and leaves.
pub fn serve(pieces: &[&[u8]]) {
    SERVER.with(|cell| {
        let (runtime, server, _) = cell.get_or_init(server);
        runtime.block_on(async {
            let (mut client, ours) = tokio::io::duplex(16 * 1024);
            let server = server.clone();
            let peer = ([127, 0, 0, 1], 1).into();
            let client_of = Client { peer, purpose: Purpose::Site(Scheme::Http), state: Arc::new(State::new()) };
            let talking = tokio::spawn(async move { talk(&server, ours, &client_of).await });
            let mut answer = vec![0; 64 * 1024];
            for piece in pieces {
                if client.write_all(piece).await.is_err() {
                    break;
                }
                // Whoever does not read in between meets back-pressure.
                let pause = Duration::from_millis(1);
                let _ = tokio::time::timeout(pause, client.read(&mut answer)).await;
            }
            let _ = client.shutdown().await;
            let mut total = 0;
            while let Ok(n @ 1..) = client.read(&mut answer).await {
                total += n;
                assert!(total < 64 << 20, "an answer without end");
            }
            drop(client);
            // A panic in the connection is one of the target.
            talking.await.expect("the connection ends well");
        });
        let open = server.places.available_permits();
        assert_eq!(open, 8);
    });
}

fn server() -> (Runtime, Arc<Server>, watch::Sender<bool>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    let (stop, stopped) = watch::channel(false);
    let server = Server {
        site: Arc::new(site()),
        budget: crate::budget::Budget::unbounded(),
        metrics: Default::default(),
        places: Arc::new(Semaphore::new(8)),
        metrics_places: Arc::new(Semaphore::new(8)),
        addresses: Default::default(),
        stop: stopped,
    };
    (runtime.expect("a runtime"), Arc::new(server), stop)
}

/// A site in a directory that is gone when it has been read.
fn site() -> Site {
    let dir = std::env::temp_dir().join(format!("donjon-fuzz-site-{}", std::process::id()));
    let put = |path: &str, data: &[u8]| {
        let path = dir.join(path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().expect("a file has a directory")).expect("a writable directory");
        std::fs::write(path, data).expect("a writable directory");
    };
    let mut index = String::new();
    // Sorted, as the packer does it.
    for (path, len) in
        [("/a.txt", 1000), ("/dir/big", 200_000), ("/dir/index.html", 5), ("/index.html", 20), ("/other/x", 0)]
    {
        put(path, &vec![b'a'; len]);
        put(&format!("/br{path}"), b"brotli");
        let variant = |file, etag, len: usize| Variant { file, etag, len: len as u64 };
        let packed = format!("/br{path}");
        let resource = Resource {
            root: 0,
            path,
            content_type: "text/plain",
            mtime: 1_500_000_000,
            plain: variant(path, "plain", len),
            brotli: path.ends_with(".txt").then(|| variant(&packed, "packed", 6)),
            gzip: None,
        };
        index.push_str(&index_line(&resource).expect("a resource"));
    }
    put(INDEX_PATH, index.as_bytes());
    let config = Config { listing: true, not_found: Some("/index.html".into()), log: false, ..Config::default() };
    put(CONFIG_PATH, config.to_text().expect("a configuration").as_bytes());
    let site = Site::load(Path::new(&dir)).expect("a site");
    // Content is opened at first use: now.
    for path in ["/index.html", "/a.txt", "/dir/index.html", "/dir/big", "/other/x"] {
        let page = site.file(0, path).expect("a page");
        site.content(&page.plain).expect("content");
        if let Some(packed) = &page.brotli {
            site.content(packed).expect("content");
        }
    }
    let _ = std::fs::remove_dir_all(&dir);
    site
}
