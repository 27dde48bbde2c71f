//! From the request target to a path of the site.

/// Decodes and normalises the path of a request: percent-decoding, `.` and `..` resolved. `None` if it is malformed, not UTF-8,
/// contains a control character or a backslash, or climbs out of the root. The result starts with `/` and has no empty, `.` or `..` component; a
/// trailing `/` stays.
///
/// The content index is looked up by exact path, so nothing outside of it can be reached whatever this returns.
pub fn normalise(raw: &str) -> Option<String> {
    // Most are plain already.
    let plain = |b: u8| b.is_ascii_graphic() && b != b'%' && b != b'\\';
    // Bytes, because the search for a string is 2 KB of code.
    let special = |pair: &[u8]| pair[0] == b'/' && matches!(pair[1], b'/' | b'.');
    if raw.starts_with('/') && raw.bytes().all(plain) && !raw.as_bytes().windows(2).any(special) {
        return Some(raw.into());
    }
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.bytes();
    while let Some(b) = rest.next() {
        if b == b'%' {
            let (high, low) = (hex(rest.next()?)?, hex(rest.next()?)?);
            bytes.push(high << 4 | low);
        } else {
            bytes.push(b);
        }
    }
    let text = String::from_utf8(bytes).ok()?;
    if !text.starts_with('/') || text.chars().any(|c| c.is_control() || c == '\\') {
        return None;
    }
    let mut out: Vec<&str> = vec![];
    let mut directory = false;
    for component in text.split('/').skip(1) {
        directory = matches!(component, "" | "." | "..");
        match component {
            "" | "." => {}
            ".." => {
                out.pop()?;
            }
            _ => out.push(component),
        }
    }
    let mut path = format!("/{}", out.join("/"));
    if directory && path.len() > 1 {
        path.push('/');
    }
    Some(path)
}

/// A normalised path without the parameters of its components (`;v=1`, RFC 3986 §3.3), if it has any: where an upstream that does not look at them goes.
#[cfg(any(feature = "auth", feature = "proxy"))]
pub fn bare(path: &str) -> Option<String> {
    if !path.as_bytes().contains(&b';') {
        return None;
    }
    let mut bare = String::with_capacity(path.len());
    let mut directory = true;
    for component in path.split('/') {
        let name = component.split(';').next().unwrap_or("");
        directory = name.is_empty();
        if !directory {
            bare.push('/');
            bare.push_str(name);
        }
    }
    if directory {
        bare.push('/');
    }
    Some(bare)
}

fn hex(b: u8) -> Option<u8> {
    (b as char).to_digit(16).map(|d| d as u8)
}

/// Percent-encodes what may not stand in a URL path, for redirects and listings.
pub fn encode(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for b in path.bytes() {
        if b.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(&b) {
            out.push(b as char);
        } else {
            out.push('%');
            for nibble in [b >> 4, b & 15] {
                out.push(char::from(b"0123456789ABCDEF"[usize::from(nibble)]));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (raw, want) in [
            ("/", Some("/")),
            ("/a", Some("/a")),
            ("/a/", Some("/a/")),
            ("//a//b", Some("/a/b")),
            ("/a/./b", Some("/a/b")),
            ("/a/../b", Some("/b")),
            ("/a/..", Some("/")),
            ("/a/b/..", Some("/a/")),
            ("/%61", Some("/a")),
            ("/%2e%2e/x", None),
            ("/..", None),
            ("/a/../../b", None),
            ("/.%2e/x", None),
            ("/%2E%2E%2Fx", None),
            ("/a%2f..%2f..%2fx", None),
            ("/..\\x", None),
            ("/%5c..", None),
            ("/%00", None),
            ("/%", None),
            ("/%4", None),
            ("/%zz", None),
            ("/%ff", None),
            ("/%c0%ae%c0%ae/", None),
            ("a", None),
            ("", None),
        ] {
            assert_eq!(normalise(raw).as_deref(), want, "{raw}");
        }
    }

    #[cfg(any(feature = "auth", feature = "proxy"))]
    #[test]
    fn parameters() {
        for (path, want) in [
            ("/", None),
            ("/a/b", None),
            ("/;", Some("/")),
            ("/a;b", Some("/a")),
            ("/a;b/", Some("/a/")),
            ("/a/;b", Some("/a/")),
            ("/a;b;c/d;/;/e", Some("/a/d/e")),
        ] {
            assert_eq!(bare(path).as_deref(), want, "{path}");
        }
    }

    #[test]
    fn encoding_is_undone_by_normalising() {
        for path in ["/a b", "/ü/ß", "/100%", "/a?b#c", "/plain-._~"] {
            assert_eq!(normalise(&encode(path)).as_deref(), Some(path));
        }
        assert_eq!(encode("/a b%"), "/a%20b%25");
    }
}
