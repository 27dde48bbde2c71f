//! Preconditions and content coding (RFC 9110 §12.5.3, §13).

use hyper::HeaderMap;
use hyper::header::{self, HeaderName, HeaderValue};
use std::time::{Duration, SystemTime};

/// What the preconditions of a GET or HEAD come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// Answer as usual.
    Go,
    /// 304.
    NotModified,
    /// 412.
    Failed,
}

/// Evaluates If-Match, If-Unmodified-Since, If-None-Match and If-Modified-Since in the order of RFC 9110 §13.2.2.
/// `tag` is the entity tag with its quotes; `mtime` in seconds since 1970, if it is known.
pub fn precondition(headers: &HeaderMap, tag: &HeaderValue, mtime: Option<u64>) -> Precondition {
    // Whether it was changed later.
    let changed = |name| Some(mtime? > date(headers, name)?);
    match any_tag(headers, header::IF_MATCH, tag, false) {
        Some(false) => return Precondition::Failed,
        None if changed(header::IF_UNMODIFIED_SINCE) == Some(true) => return Precondition::Failed,
        _ => {}
    }
    match any_tag(headers, header::IF_NONE_MATCH, tag, true) {
        Some(true) => Precondition::NotModified,
        None if changed(header::IF_MODIFIED_SINCE) == Some(false) => Precondition::NotModified,
        _ => Precondition::Go,
    }
}

/// Whether a Range header is to be honoured, given If-Range. `mtime` is `None` where a date does not tell enough.
pub fn range_applies(headers: &HeaderMap, tag: &HeaderValue, mtime: Option<u64>) -> bool {
    // A date is no tag, nor the other way round.
    headers.get(header::IF_RANGE).is_none_or(|value| {
        value.as_bytes().trim_ascii() == tag || (mtime.is_some() && date(headers, header::IF_RANGE) == mtime)
    })
}

/// Whether the client takes `coding` ("br", "gzip"), with its weight in thousandths.
pub fn accepts(headers: &HeaderMap, coding: &str) -> Option<u32> {
    let mut any = None;
    for value in headers.get_all(header::ACCEPT_ENCODING) {
        for item in value.to_str().ok()?.split(',') {
            let mut fields = item.split(';');
            let name = fields.next().unwrap_or("").trim();
            let quality = fields.find_map(|f| f.trim().strip_prefix(['q', 'Q'])?.strip_prefix('='));
            let weight = quality.map_or(1000, |q| thousandths(q.trim()).unwrap_or(0));
            if name.eq_ignore_ascii_case(coding) {
                return (weight > 0).then_some(weight);
            }
            if name == "*" {
                any = Some(weight);
            }
        }
    }
    any.filter(|w| *w > 0)
}

/// Reads a qvalue (RFC 9110 §12.4.2): `0`, `1`, or such with up to three decimals. Not by way of a float: its parser would be 15 KB.
fn thousandths(q: &str) -> Option<u32> {
    let (whole, decimals) = q.split_once('.').unwrap_or((q, ""));
    if decimals.len() > 3 || !decimals.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let fraction = decimals.bytes().chain([b'0'; 3]).take(3).fold(0, |n, digit| n * 10 + u32::from(digit - b'0'));
    match whole {
        "0" => Some(fraction),
        "1" if fraction == 0 => Some(1000),
        _ => None,
    }
}

/// A header's values as one text, joined by commas; `None` if absent or not ASCII.
pub fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    let mut values = headers.get_all(name).iter();
    let mut out = String::from(values.next()?.to_str().ok()?);
    for value in values {
        out.push(',');
        out.push_str(value.to_str().ok()?);
    }
    Some(out)
}

/// Seconds since 1970 as an HTTP date.
pub fn http_date(seconds: u64) -> String {
    // httpdate covers the years 1970 to 9999.
    httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.min(253_402_300_799)))
}

fn date(headers: &HeaderMap, name: HeaderName) -> Option<u64> {
    let time = httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()?;
    Some(time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs())
}

/// Whether one of a header's tags is this; `None` without the header. They are bytes (RFC 9110 §8.8.3).
fn any_tag(headers: &HeaderMap, name: HeaderName, tag: &HeaderValue, weak: bool) -> Option<bool> {
    let values = headers.get_all(name);
    values.iter().next()?;
    // Our tags contain no comma, so splitting at commas cannot cut a tag that would match.
    Some(values.iter().flat_map(|list| list.as_bytes().split(|b| *b == b',')).any(|item| {
        let item = item.trim_ascii();
        let item = if weak { item.strip_prefix(b"W/").unwrap_or(item) } else { item };
        item == b"*" || item == tag.as_bytes()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(HeaderName, &str)]) -> HeaderMap {
        list.iter().map(|(n, v)| (n.clone(), v.parse().unwrap())).collect()
    }

    #[test]
    fn preconditions() {
        use Precondition::*;
        let (old, same, new) = (http_date(1_000_000_000), http_date(1_500_000_000), http_date(1_600_000_000));
        for (list, want) in [
            (vec![], Go),
            (vec![(header::IF_NONE_MATCH, "\"x\"")], NotModified),
            (vec![(header::IF_NONE_MATCH, "W/\"x\"")], NotModified),
            (vec![(header::IF_NONE_MATCH, "\"a\", \"x\"")], NotModified),
            (vec![(header::IF_NONE_MATCH, "*")], NotModified),
            (vec![(header::IF_NONE_MATCH, "\"y\""), (header::IF_MODIFIED_SINCE, &new)], Go),
            (vec![(header::IF_MODIFIED_SINCE, &same)], NotModified),
            (vec![(header::IF_MODIFIED_SINCE, &old)], Go),
            (vec![(header::IF_MODIFIED_SINCE, "rubbish")], Go),
            (vec![(header::IF_MATCH, "\"y\"")], Failed),
            (vec![(header::IF_MATCH, "W/\"x\"")], Failed),
            (vec![(header::IF_MATCH, "\"x\"")], Go),
            (vec![(header::IF_UNMODIFIED_SINCE, &old)], Failed),
            (vec![(header::IF_UNMODIFIED_SINCE, &new)], Go),
        ] {
            assert_eq!(
                precondition(&headers(&list), &HeaderValue::from_static("\"x\""), Some(1_500_000_000)),
                want,
                "{list:?}"
            );
        }
    }

    /// A header that is there and has nothing of ours is not one that is absent, nor is a time that nobody knows an old one.
    #[test]
    fn strange_tags_and_no_time() {
        let tag = HeaderValue::from_static("\"x\"");
        let new = http_date(1_600_000_000);
        let ask = |name: &HeaderName, value: &[u8], time| {
            let mut headers = headers(&[(header::IF_MODIFIED_SINCE, &new)]);
            headers.insert(name, HeaderValue::from_bytes(value).unwrap());
            precondition(&headers, &tag, time)
        };
        let time = Some(1_500_000_000);
        assert_eq!(ask(&header::IF_MATCH, b"\"\xe9\"", time), Precondition::Failed);
        assert_eq!(ask(&header::IF_NONE_MATCH, b"\"\xe9\"", time), Precondition::Go);
        assert_eq!(ask(&header::IF_NONE_MATCH, b"\"\xe9\", \"x\"", time), Precondition::NotModified);
        assert_eq!(ask(&header::ACCEPT, b"", time), Precondition::NotModified);
        assert_eq!(ask(&header::ACCEPT, b"", None), Precondition::Go);
        assert_eq!(ask(&header::IF_UNMODIFIED_SINCE, http_date(1).as_bytes(), None), Precondition::Go);
    }

    #[test]
    fn if_range() {
        let (date, tag) = (http_date(1_500_000_000), HeaderValue::from_static("\"x\""));
        for (value, want) in [("\"x\"", true), ("\"y\"", false), ("W/\"x\"", false), (&*date, true), ("rubbish", false)]
        {
            assert_eq!(
                range_applies(&headers(&[(header::IF_RANGE, value)]), &tag, Some(1_500_000_000)),
                want,
                "{value}"
            );
        }
        assert!(range_applies(&HeaderMap::new(), &tag, None));
        for value in [&*date, "rubbish"] {
            assert!(!range_applies(&headers(&[(header::IF_RANGE, value)]), &tag, None), "{value}");
        }
        let unreadable = HeaderMap::from_iter([(header::IF_RANGE, HeaderValue::from_bytes(b"\"\xe9\"").unwrap())]);
        assert!(!range_applies(&unreadable, &tag, Some(1_500_000_000)));
    }

    #[test]
    fn codings() {
        for (value, br) in [
            ("br", Some(1000)),
            ("gzip, br;q=0.5", Some(500)),
            ("gzip", None),
            ("br;q=0", None),
            ("*", Some(1000)),
            ("*;q=0.1, br;q=0", None),
            ("BR", Some(1000)),
            ("br;q=rubbish", None),
            ("br;Q=0.125", Some(125)),
            ("br; q=1.000", Some(1000)),
            ("br;q=0.", None),
            ("br;q=1.1", None),
            ("br;q=0.0001", None),
            ("br;q=-0.5", None),
            ("br;q=0.1x", None),
        ] {
            assert_eq!(accepts(&headers(&[(header::ACCEPT_ENCODING, value)]), "br"), br, "{value}");
        }
        assert_eq!(accepts(&HeaderMap::new(), "br"), None);
    }
}
