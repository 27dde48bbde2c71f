//! Writes a prepared site to a directory, so that `apps/web` can be run as an ordinary process:
//! `cargo run -p donjon-site --example prepare -- FROM TO [PORT]`, then `cargo run -- TO` in `apps/web`.

use donjon_site::{Options, Places, prepare};
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, from, to, rest @ ..] = &args[..] else { return Err("usage: prepare FROM TO [PORT]".into()) };
    let http = rest.first().map(|p| p.parse()).transpose()?;
    let options = Options { root: Some(".".into()), http: http.or(Some(8080)), listing: true, ..Options::default() };
    let scratch = std::env::temp_dir();
    let places = Places { cache: None, scratch: &scratch, output: Path::new(to) };
    for (path, source) in prepare(Path::new(from), &options, places)?.files {
        let path = Path::new(to).join(path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().ok_or("a file has a directory")?)?;
        source.write_to(&mut std::fs::File::create(path)?)?;
    }
    Ok(())
}
