//! The page that lists a directory, made while it is sent: a large one is never in memory as a whole.

use crate::path::encode;
use crate::site::Site;
use bytes::Bytes;
use std::sync::Arc;

/// From this length on, a piece is sent, bytes.
const PIECE: usize = 8 * 1024;
/// A line more fits beside it: of a name's at most 255 bytes each becomes at most 5 in the reference and 6 in the text.
const ROOM: usize = PIECE + 3 * 1024;

/// What comes after the first piece.
pub struct Listing {
    site: Arc<Site>,
    root: u32,
    directory: String,
    /// The next name's place in the site.
    at: usize,
}

/// A page's first piece, and the rest if there is more.
pub fn page(site: &Arc<Site>, root: u32, directory: &str) -> (Bytes, Option<Box<Listing>>) {
    let mut listing =
        Listing { site: site.clone(), root, directory: directory.into(), at: site.first(root, directory) };
    let mut piece = String::with_capacity(ROOM);
    piece.push_str("<!doctype html><meta charset=utf-8><title>");
    escape(&mut piece, directory);
    piece.push_str("</title><h1>");
    escape(&mut piece, directory);
    piece.push_str("</h1><ul>\n");
    if directory != "/" {
        piece.push_str("<li><a href=\"../\">../</a>\n");
    }
    let more = listing.fill(&mut piece);
    if !more {
        piece.shrink_to_fit();
    }
    (piece.into(), more.then(|| Box::new(listing)))
}

impl Listing {
    /// The next piece, and whether there are more.
    pub fn next(&mut self) -> (Bytes, bool) {
        let mut piece = String::with_capacity(ROOM);
        let more = self.fill(&mut piece);
        (piece.into(), more)
    }

    fn fill(&mut self, piece: &mut String) -> bool {
        while piece.len() < PIECE {
            let Some((name, next)) = self.site.entry(self.root, &self.directory, self.at) else {
                piece.push_str("</ul>\n");
                return false;
            };
            // "./" keeps a name with a colon from being read as a scheme.
            piece.push_str("<li><a href=\"./");
            escape(piece, &encode(name));
            piece.push_str("\">");
            escape(piece, name);
            piece.push_str("</a>\n");
            self.at = next;
        }
        true
    }
}

fn escape(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
}
