//! Range requests (RFC 9110 §14).

use core::ops::Range;

/// Most parts that are answered; a request for more is treated as one for the whole, which RFC 9110 §14.2 allows.
const PARTS_MAX: usize = 16;

/// What a Range header asks of a content of some length.
#[derive(Debug, PartialEq, Eq)]
pub enum Ranges {
    /// The whole content: no or an unusable header.
    Whole,
    /// These parts, none empty, none past the end.
    Parts(Vec<Range<u64>>),
    /// Only parts past the end: status 416.
    Unsatisfiable,
}

/// Reads the value of a Range header.
pub fn parse(value: &str, len: u64) -> Ranges {
    let Some((unit, set)) = value.split_once('=') else { return Ranges::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Ranges::Whole;
    }
    let mut parts: Vec<Range<u64>> = vec![];
    let mut any = false;
    // Empty elements do not count (RFC 9110 §5.6.1).
    for spec in set.split(',').map(str::trim).filter(|spec| !spec.is_empty()) {
        any = true;
        let Some((first, last)) = spec.split_once('-') else { return Ranges::Whole };
        let range = match (number(first), number(last)) {
            (Some(first), Some(last)) if last < first => return Ranges::Whole,
            (Some(first), Some(last)) => first..len.min(last.saturating_add(1)),
            (Some(first), None) if last.is_empty() => first..len,
            // The last bytes of nothing are there, but Content-Range cannot say so (RFC 9110 §14.1.2).
            (None, Some(1..)) if first.is_empty() && len == 0 => return Ranges::Whole,
            (None, Some(suffix)) if first.is_empty() => len.saturating_sub(suffix)..len,
            _ => return Ranges::Whole,
        };
        if !range.is_empty() {
            parts.push(range);
        }
        if parts.len() > PARTS_MAX {
            return Ranges::Whole;
        }
    }
    // Overlapping parts make a small request cost more than the whole: refuse to play along.
    if !any || parts.iter().map(|r| r.end - r.start).sum::<u64>() > len {
        return Ranges::Whole;
    }
    if parts.is_empty() { Ranges::Unsatisfiable } else { Ranges::Parts(parts) }
}

fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // More digits than fit mean "past every end".
    Some(text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "lists of ranges are what is tested")]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let parts = |list: &[Range<u64>]| Ranges::Parts(list.to_vec());
        for (value, want) in [
            ("bytes=0-9", parts(&[0..10])),
            ("bytes=90-", parts(&[90..100])),
            ("bytes=-5", parts(&[95..100])),
            ("bytes=-500", parts(&[0..100])),
            ("bytes=50-1000", parts(&[50..100])),
            ("bytes=0-0, -1", parts(&[0..1, 99..100])),
            ("bytes=0-0,200-", parts(&[0..1])),
            ("bytes=100-", Ranges::Unsatisfiable),
            ("bytes=-0", Ranges::Unsatisfiable),
            ("bytes=99999999999999999999999-", Ranges::Unsatisfiable),
            ("bytes=5-1", Ranges::Whole),
            ("bytes=a-b", Ranges::Whole),
            ("bytes=+1-2", Ranges::Whole),
            ("bytes=", Ranges::Whole),
            ("bytes=,", Ranges::Whole),
            ("bytes=0-5,", parts(&[0..6])),
            ("bytes=, 0-5, ,7-7", parts(&[0..6, 7..8])),
            ("bytes=100-,", Ranges::Unsatisfiable),
            ("items=0-1", Ranges::Whole),
            ("bytes=0-99,0-99", Ranges::Whole),
        ] {
            assert_eq!(parse(value, 100), want, "{value}");
        }
        let many = (0..20).map(|i| format!("{i}-{i}")).collect::<Vec<_>>().join(",");
        assert_eq!(parse(&format!("bytes={many}"), 100), Ranges::Whole);
        assert_eq!(parse("bytes=0-", 0), Ranges::Unsatisfiable);
        assert_eq!(parse("bytes=-0", 0), Ranges::Unsatisfiable);
        assert_eq!(parse("bytes=-3", 0), Ranges::Whole);
    }
}
