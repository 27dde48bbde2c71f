//! Substring search.

/// Finds `needle`, which is not empty, in `hay`: Crochemore and Perrin's two-way algorithm (1991), linear in time and constant in space
/// whatever the input, so that a peer cannot make it slow.
pub fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    let n = needle.len();
    let (crit, mut period) = {
        let (a, b) = (maximal_suffix(needle, false), maximal_suffix(needle, true));
        if a.0 > b.0 { a } else { b }
    };
    // Either the needle repeats itself every `period` bytes, and what matched is remembered, or shifting by more than half is safe.
    let periodic = needle.get(period..period + crit) == Some(&needle[..crit]);
    if !periodic {
        period = crit.max(n - crit) + 1;
    }
    let mut at = 0;
    let mut known = 0;
    while at + n <= hay.len() {
        if known == 0 {
            // A match needs this byte here: skip to it.
            match position(&hay[at + crit..hay.len() - (n - crit - 1)], needle[crit]) {
                Some(skip) => at += skip,
                None => return None,
            }
        }
        let window = &hay[at..at + n];
        let right = crit.max(known);
        if let Some(i) = (right..n).find(|&i| needle[i] != window[i]) {
            at += i - crit + 1;
            known = 0;
        } else if (known..crit).rev().all(|i| needle[i] == window[i]) {
            return Some(at);
        } else {
            at += period;
            known = if periodic { n - period } else { 0 };
        }
    }
    None
}

/// The first `byte` of `hay`.
fn position(hay: &[u8], byte: u8) -> Option<usize> {
    // SAFETY: a slice.
    let found = unsafe { super::mem::memchr(hay.as_ptr().cast(), byte.into(), hay.len()) };
    (!found.is_null()).then(|| found as usize - hay.as_ptr() as usize)
}

/// Where the greatest suffix by byte order (or by the reverse order) starts, and its period.
fn maximal_suffix(needle: &[u8], reverse: bool) -> (usize, usize) {
    let (mut left, mut right, mut offset, mut period) = (0, 1, 0, 1);
    while let Some(&a) = needle.get(right + offset) {
        let b = needle[left + offset];
        if a == b {
            if offset + 1 == period {
                right += period;
                offset = 0;
            } else {
                offset += 1;
            }
        } else if (a < b) != reverse {
            right += offset + 1;
            offset = 0;
            period = right - left;
        } else {
            left = right;
            right += 1;
            offset = 0;
            period = 1;
        }
    }
    (left, period)
}
