//! Calendar arithmetic for the real-time clock.

/// Seconds since 1970 of `[second, minute, hour, day, month, year]` as an MC146818 gives them, with its status register B.
/// `None` if they are no time.
pub fn from_rtc(fields: [u8; 6], status_b: u8) -> Option<u64> {
    let binary = status_b & 4 != 0;
    let hours_24 = status_b & 2 != 0;
    let number = |v: u8| u64::from(if binary { v } else { (v >> 4) * 10 + (v & 15) });
    let [second, minute, hour, day, month, year] = fields;
    let afternoon = !hours_24 && hour & 0x80 != 0;
    let mut hour = number(if hours_24 { hour } else { hour & 0x7f });
    if !hours_24 {
        hour = hour % 12 + if afternoon { 12 } else { 0 };
    }
    let (second, minute, day, month, year) =
        (number(second), number(minute), number(day), number(month), 2000 + number(year));
    let sound =
        second < 60 && minute < 60 && hour < 24 && (1..=31).contains(&day) && (1..=12).contains(&month) && year < 2100;
    if !sound {
        return None;
    }
    // Days from March 1st of year 0, when leap days come last (H. Hinnant's days_from_civil).
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1 - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::from_rtc;

    #[test]
    fn known_times() {
        assert_eq!(from_rtc([0x59, 0x59, 0x23, 0x31, 0x12, 0x99], 2), Some(4_102_444_799));
        assert_eq!(from_rtc([40, 46, 1, 9, 9, 1], 6), Some(1_000_000_000));
        assert_eq!(from_rtc([0, 0, 0, 29, 2, 24], 6), Some(1_709_164_800));
        assert_eq!(from_rtc([0, 0, 12, 1, 1, 0], 4), Some(946_684_800));
        assert_eq!(from_rtc([0, 0, 0x80 | 1, 1, 1, 0], 4), Some(946_684_800 + 13 * 3600));
    }

    #[test]
    fn no_clock_is_no_time() {
        assert_eq!(from_rtc([0xff; 6], 0xff), None);
        assert_eq!(from_rtc([0; 6], 2), None);
    }
}
