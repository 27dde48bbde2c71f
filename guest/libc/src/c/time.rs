//! Calendar time. The only zone is UTC.

use super::extern_c::{EOVERFLOW, set_errno};
use core::cell::UnsafeCell;
use core::ffi::{c_char, c_int, c_long};
use core::ptr::null_mut;

/// `struct tm`.
#[repr(C)]
#[derive(Clone, Copy)]
#[expect(missing_docs, reason = "C names")]
pub struct Tm {
    pub tm_sec: c_int,
    pub tm_min: c_int,
    pub tm_hour: c_int,
    pub tm_mday: c_int,
    pub tm_mon: c_int,
    pub tm_year: c_int,
    pub tm_wday: c_int,
    pub tm_yday: c_int,
    pub tm_isdst: c_int,
    pub tm_gmtoff: c_long,
    pub tm_zone: *const c_char,
}

const _: () = assert!(size_of::<Tm>() == 56);

/// Seconds in a day.
const DAY: i64 = 86_400;

/// Days from 1970-01-01 to a date of the Gregorian calendar. Years are counted from March, so that the leap day is the last.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The reverse: year, month from 1, day from 1.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

/// Breaks seconds since 1970 down; none if the year has no room.
fn break_down(time: i64) -> Option<Tm> {
    let (days, seconds) = (time.div_euclid(DAY), time.rem_euclid(DAY) as c_int);
    let (year, month, day) = civil_from_days(days);
    Some(Tm {
        tm_sec: seconds % 60,
        tm_min: seconds / 60 % 60,
        tm_hour: seconds / 3600,
        tm_mday: day as c_int,
        tm_mon: month as c_int - 1,
        tm_year: c_int::try_from(year - 1900).ok()?,
        tm_wday: (days + 4).rem_euclid(7) as c_int,
        tm_yday: (days - days_from_civil(year, 1, 1)) as c_int,
        tm_isdst: 0,
        tm_gmtoff: 0,
        tm_zone: c"UTC".as_ptr(),
    })
}

/// Seconds since 1970 of broken-down time, whose parts may be out of their ranges.
fn build_up(tm: &Tm) -> i64 {
    let months = i64::from(tm.tm_mon);
    let days = days_from_civil(i64::from(tm.tm_year) + 1900 + months.div_euclid(12), months.rem_euclid(12) + 1, 1);
    (days + i64::from(tm.tm_mday) - 1) * DAY
        + i64::from(tm.tm_hour) * 3600
        + i64::from(tm.tm_min) * 60
        + i64::from(tm.tm_sec)
}

/// Breaks time down, in UTC.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn gmtime_r(time: *const i64, out: *mut Tm) -> *mut Tm {
    // SAFETY: C contract.
    unsafe {
        match break_down(*time) {
            Some(tm) => {
                *out = tm;
                out
            }
            None => {
                set_errno(EOVERFLOW);
                null_mut()
            }
        }
    }
}

/// [`gmtime_r`].
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn localtime_r(time: *const i64, out: *mut Tm) -> *mut Tm {
    // SAFETY: C contract.
    unsafe { gmtime_r(time, out) }
}

/// What `gmtime` and `asctime` return points here. C says that they are not for threads.
struct Shared<T>(UnsafeCell<T>);

// SAFETY: the caller's duty, by C contract.
unsafe impl<T> Sync for Shared<T> {}

/// [`gmtime_r`] into static memory.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn gmtime(time: *const i64) -> *mut Tm {
    static BROKEN_DOWN: Shared<Tm> = Shared(UnsafeCell::new(Tm {
        tm_sec: 0,
        tm_min: 0,
        tm_hour: 0,
        tm_mday: 0,
        tm_mon: 0,
        tm_year: 0,
        tm_wday: 0,
        tm_yday: 0,
        tm_isdst: 0,
        tm_gmtoff: 0,
        tm_zone: c"UTC".as_ptr(),
    }));
    // SAFETY: C contract.
    unsafe { gmtime_r(time, BROKEN_DOWN.0.get()) }
}

/// [`gmtime`].
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn localtime(time: *const i64) -> *mut Tm {
    // SAFETY: C contract.
    unsafe { gmtime(time) }
}

/// Makes time of its parts and puts them into their ranges.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn timegm(tm: *mut Tm) -> i64 {
    // SAFETY: C contract.
    unsafe {
        let time = build_up(&*tm);
        match break_down(time) {
            Some(normal) => {
                *tm = normal;
                time
            }
            None => {
                set_errno(EOVERFLOW);
                -1
            }
        }
    }
}

/// [`timegm`].
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn mktime(tm: *mut Tm) -> i64 {
    // SAFETY: C contract.
    unsafe { timegm(tm) }
}

/// Seconds between two times.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn difftime(a: i64, b: i64) -> f64 {
    a.wrapping_sub(b) as f64
}

/// Nothing to do: the only zone is UTC.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn tzset() {}

/// Names of the zones, as a C variable.
#[repr(transparent)]
pub struct Names([*const c_char; 2]);

// SAFETY: constants.
unsafe impl Sync for Names {}

/// The names of the zone without and with daylight saving.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
#[cfg_attr(not(donjon_guest), expect(non_upper_case_globals, reason = "C name"))]
pub static tzname: Names = Names([c"UTC".as_ptr(), c"UTC".as_ptr()]);
/// Seconds west of UTC.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
#[cfg_attr(not(donjon_guest), expect(non_upper_case_globals, reason = "C name"))]
pub static timezone: c_long = 0;
/// Whether there is daylight saving.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
#[cfg_attr(not(donjon_guest), expect(non_upper_case_globals, reason = "C name"))]
pub static daylight: c_int = 0;

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Where `strftime` writes.
struct Text {
    at: *mut u8,
    room: usize,
    used: usize,
}

impl Text {
    /// Counts what does not fit.
    fn put(&mut self, bytes: &[u8]) {
        if self.used + bytes.len() <= self.room {
            // SAFETY: there is room.
            unsafe {
                super::mem::memcpy(self.at.add(self.used).cast(), bytes.as_ptr().cast(), bytes.len());
            }
        }
        self.used = self.used.saturating_add(bytes.len());
    }

    /// A number in at least `width` places; `pad` 0 means no padding.
    fn number(&mut self, value: i64, width: usize, pad: u8) {
        let mut digits = [0; 20];
        let mut at = digits.len();
        let mut rest = value.unsigned_abs();
        while rest > 0 || at == digits.len() {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        let length = digits.len() - at + usize::from(value < 0);
        let padding = if pad == 0 { 0 } else { width.saturating_sub(length) };
        if value < 0 && pad != b' ' {
            self.put(b"-");
        }
        for _ in 0..padding {
            self.put(&[pad]);
        }
        if value < 0 && pad == b' ' {
            self.put(b"-");
        }
        self.put(&digits[at..]);
    }

    /// A name, perhaps cut to three letters or in capitals.
    fn name(&mut self, names: &[&str], index: c_int, short: bool, capitals: bool) {
        let name =
            usize::try_from(index).ok().and_then(|i| names.get(i)).map_or("?", |n| if short { &n[..3] } else { n });
        for &byte in name.as_bytes() {
            self.put(&[if capitals { byte.to_ascii_uppercase() } else { byte }]);
        }
    }
}

/// The week of ISO 8601 and the year that it belongs to.
fn iso_week(tm: &Tm) -> (i64, i64) {
    let year = i64::from(tm.tm_year) + 1900;
    // Monday is 0.
    let weekday = i64::from(tm.tm_wday + 6) % 7;
    let length = |year: i64| days_from_civil(year + 1, 1, 1) - days_from_civil(year, 1, 1);
    // The week belongs to the year of its Thursday.
    let thursday = i64::from(tm.tm_yday) - weekday + 3;
    if thursday < 0 {
        (year - 1, (thursday + length(year - 1)) / 7 + 1)
    } else if thursday >= length(year) {
        (year + 1, 1)
    } else {
        (year, thursday / 7 + 1)
    }
}

/// Puts one conversion; false if it is unknown.
fn convert(text: &mut Text, conversion: u8, tm: &Tm, flag: u8) -> bool {
    let year = i64::from(tm.tm_year) + 1900;
    let hour12 = (tm.tm_hour + 11) % 12 + 1;
    let pad = |usual| match flag {
        b'-' => 0,
        b'_' => b' ',
        b'0' => b'0',
        _ => usual,
    };
    let two = |text: &mut Text, value: c_int| text.number(value.into(), 2, pad(b'0'));
    let all = |text: &mut Text, format: &[u8]| {
        for &part in format {
            if part.is_ascii_alphabetic() {
                convert(text, part, tm, 0);
            } else {
                text.put(&[part]);
            }
        }
    };
    let capitals = flag == b'^' || flag == b'#';
    match conversion {
        b'a' => text.name(&DAYS, tm.tm_wday, true, capitals),
        b'A' => text.name(&DAYS, tm.tm_wday, false, capitals),
        b'b' | b'h' => text.name(&MONTHS, tm.tm_mon, true, capitals),
        b'B' => text.name(&MONTHS, tm.tm_mon, false, capitals),
        b'c' => all(text, b"a b e T Y"),
        b'C' => text.number(year.div_euclid(100), 2, pad(b'0')),
        b'd' => two(text, tm.tm_mday),
        b'D' | b'x' => all(text, b"m/d/y"),
        b'e' => text.number(tm.tm_mday.into(), 2, pad(b' ')),
        b'F' => all(text, b"Y-m-d"),
        b'g' => text.number(iso_week(tm).0.rem_euclid(100), 2, pad(b'0')),
        b'G' => text.number(iso_week(tm).0, 1, pad(b'0')),
        b'H' => two(text, tm.tm_hour),
        b'I' => two(text, hour12),
        b'j' => text.number(i64::from(tm.tm_yday) + 1, 3, pad(b'0')),
        b'k' => text.number(tm.tm_hour.into(), 2, pad(b' ')),
        b'l' => text.number(hour12.into(), 2, pad(b' ')),
        b'm' => two(text, tm.tm_mon.saturating_add(1)),
        b'M' => two(text, tm.tm_min),
        b'n' => text.put(b"\n"),
        b'p' => text.put(if flag == b'#' { [b"am", b"pm"] } else { [b"AM", b"PM"] }[usize::from(tm.tm_hour >= 12)]),
        b'P' => text.put([b"am", b"pm"][usize::from(tm.tm_hour >= 12)]),
        b'r' => all(text, b"I:M:S p"),
        b'R' => all(text, b"H:M"),
        b's' => text.number(build_up(tm), 1, pad(b'0')),
        b'S' => two(text, tm.tm_sec),
        b't' => text.put(b"\t"),
        b'T' | b'X' => all(text, b"H:M:S"),
        b'u' => text.number(i64::from(tm.tm_wday + 6) % 7 + 1, 1, 0),
        b'U' => two(text, (tm.tm_yday + 7 - tm.tm_wday) / 7),
        b'V' => text.number(iso_week(tm).1, 2, pad(b'0')),
        b'w' => text.number(tm.tm_wday.into(), 1, 0),
        b'W' => two(text, (tm.tm_yday + 7 - (tm.tm_wday + 6) % 7) / 7),
        b'y' => text.number(year.rem_euclid(100), 2, pad(b'0')),
        b'Y' => text.number(year, 1, pad(b'0')),
        b'z' => text.put(b"+0000"),
        b'Z' => text.put(b"UTC"),
        b'%' => text.put(b"%"),
        _ => return false,
    }
    true
}

/// Formats time; returns the bytes without the zero, or 0 if they do not fit.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strftime(out: *mut c_char, room: usize, format: *const c_char, tm: *const Tm) -> usize {
    let Some(room) = room.checked_sub(1) else { return 0 };
    let mut text = Text { at: out.cast(), room, used: 0 };
    let mut at = format.cast::<u8>();
    // SAFETY: 1. `format` has not ended; 2. the zero has its place by the subtraction above.
    unsafe {
        let tm = &*tm;
        while *at != 0 {
            if *at != b'%' {
                text.put(&[*at]);
                at = at.add(1);
                continue;
            }
            let start = at;
            at = at.add(1);
            let mut flag = 0;
            while let b'-' | b'_' | b'0' | b'^' | b'#' = *at {
                flag = *at;
                at = at.add(1);
            }
            if let b'E' | b'O' = *at {
                at = at.add(1);
            }
            let known = *at != 0 && convert(&mut text, *at, tm, flag);
            at = at.add(usize::from(*at != 0));
            if !known {
                text.put(core::slice::from_raw_parts(start, at as usize - start as usize));
            }
        }
        if text.used > room {
            return 0;
        }
        *out.add(text.used) = 0;
    }
    text.used
}

/// Formats time as `Thu Jan  1 00:00:00 1970\n` into 26 bytes.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn asctime_r(tm: *const Tm, out: *mut c_char) -> *mut c_char {
    // SAFETY: C contract.
    if unsafe { strftime(out, 26, c"%a %b %e %H:%M:%S %Y\n".as_ptr(), tm) } == 0 {
        set_errno(EOVERFLOW);
        return null_mut();
    }
    out
}

/// [`asctime_r`] into static memory.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn asctime(tm: *const Tm) -> *mut c_char {
    static TEXT: Shared<[c_char; 26]> = Shared(UnsafeCell::new([0; 26]));
    // SAFETY: C contract.
    unsafe { asctime_r(tm, TEXT.0.get().cast()) }
}

/// [`asctime_r`] of a time.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn ctime_r(time: *const i64, out: *mut c_char) -> *mut c_char {
    // SAFETY: C contract.
    unsafe {
        match break_down(*time) {
            Some(tm) => asctime_r(&raw const tm, out),
            None => {
                set_errno(EOVERFLOW);
                null_mut()
            }
        }
    }
}

/// [`asctime`] of a time.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn ctime(time: *const i64) -> *mut c_char {
    // SAFETY: C contract.
    unsafe {
        let tm = gmtime(time);
        if tm.is_null() { null_mut() } else { asctime(tm) }
    }
}
