//! Calendar arithmetic for the real-time clock.

/// Seconds since 1970 of `[second, minute, hour, day, month, year]` as an MC146818 gives them, with its status register B.
/// `None` if they are no time.
pub fn from_rtc(fields: [u8; 6], status_b: u8) -> Option<u64> {
    let binary = status_b & 4 != 0;
    let hours_24 = status_b & 2 != 0;
    let mut numbers = fields.map(u64::from);
    let [_, _, hour, ..] = &mut numbers;
    let afternoon = !hours_24 && *hour & 0x80 != 0;
    if !hours_24 {
        *hour &= 0x7f;
    }
    if !binary {
        numbers.iter_mut().for_each(|v| *v = (*v >> 4) * 10 + (*v & 15));
    }
    let [second, minute, mut hour, day, month, year] = numbers;
    let year = 2000 + year;
    if !hours_24 {
        hour = hour % 12 + if afternoon { 12 } else { 0 };
    }
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

/// The time now, ns since 1970, by a clock that says `machine`, on a machine that was started at `started`, its CPU `running` ns ago. QEMU's
/// real-time clock starts with a whole second, and shows whole seconds: it may be 2 s behind. What it shows beyond that it has been set to.
pub fn refine(machine: u64, started: u64, running: u64) -> u64 {
    let least = started.saturating_add(running);
    if (machine..machine.saturating_add(2_000_000_000)).contains(&least) { least } else { machine }
}

#[cfg(test)]
mod tests {
    use super::{from_rtc, refine};

    #[test]
    fn the_start_refines_a_late_clock_only() {
        const S: u64 = 1_000_000_000;
        let machine = 1_700_000_000 * S;
        for (started, wanted) in [
            (machine, machine + S / 2),
            (machine + S, machine + 3 * S / 2),
            (machine - S / 4, machine + S / 4),
            // The clock knows of time that passed before the CPU ran, or was set by somebody.
            (machine - S, machine),
            (machine + 2 * S, machine),
            (0, machine),
            (u64::MAX, machine),
        ] {
            assert_eq!(refine(machine, started, S / 2), wanted, "{started}");
        }
    }

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
