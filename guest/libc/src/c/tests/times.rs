use super::random::Random;
use crate::c::time::{self, Tm};
use core::ffi::{CStr, c_char};
use core::mem::MaybeUninit;

mod host {
    use super::{Tm, c_char};
    unsafe extern "C" {
        pub fn gmtime_r(time: *const i64, out: *mut Tm) -> *mut Tm;
        pub fn timegm(tm: *mut Tm) -> i64;
        pub fn strftime(out: *mut c_char, room: usize, format: *const c_char, tm: *const Tm) -> usize;
        pub fn asctime_r(tm: *const Tm, out: *mut c_char) -> *mut c_char;
    }
}

fn fields(tm: &Tm) -> [i32; 9] {
    [tm.tm_sec, tm.tm_min, tm.tm_hour, tm.tm_mday, tm.tm_mon, tm.tm_year, tm.tm_wday, tm.tm_yday, tm.tm_isdst]
}

fn breakdown(f: unsafe extern "C" fn(*const i64, *mut Tm) -> *mut Tm, time: i64) -> Option<Tm> {
    let mut tm = MaybeUninit::uninit();
    // SAFETY: in bounds; written if not null.
    unsafe { (!f(&raw const time, tm.as_mut_ptr()).is_null()).then(|| tm.assume_init()) }
}

fn random_time(random: &mut Random) -> i64 {
    match random.below(4) {
        0 => random.next() as u32 as i64,
        1 => (random.next() as i64) >> (8 + random.below(56)),
        2 => (random.below(20_000) as i64 - 10_000) * 86_400 - random.below(3) as i64 + 1,
        _ => -62_167_219_200 + (random.next() % 400_000_000_000) as i64,
    }
}

#[test]
fn breaking_down_and_building_up() {
    let mut random = Random(30);
    for _ in 0..60_000 {
        let time = random_time(&mut random);
        let (ours, theirs) = (breakdown(time::gmtime_r, time), breakdown(host::gmtime_r, time));
        assert_eq!(ours.as_ref().map(fields), theirs.as_ref().map(fields), "{time}");
        let Some(mut tm) = ours else { continue };
        // SAFETY: in bounds.
        unsafe { assert_eq!(time::timegm(&raw mut tm), time) };
        // Parts out of their ranges.
        tm.tm_mon += random.below(50) as i32 - 25;
        tm.tm_mday += random.below(800) as i32 - 400;
        tm.tm_sec += random.below(200_000) as i32 - 100_000;
        if tm.tm_year.abs() > 2_000_000_000 {
            continue;
        }
        let mut again = tm;
        // SAFETY: in bounds.
        unsafe { assert_eq!(time::timegm(&raw mut tm), host::timegm(&raw mut again)) };
        assert_eq!(fields(&tm), fields(&again));
    }
    assert!(breakdown(time::gmtime_r, i64::MAX).is_none());
}

#[test]
fn formatting() {
    let mut random = Random(31);
    let format = c"%a %A %b %B %c %C %d %D %e %F %g %G %h %H %I %j %k %l %m %M %n %p %P %r %R %s %S %t %T %u %U %V %w %W %x %X %y %Y %z %%";
    let flags = c"%-d %_d %0e %-H %_m %^a %^B %Ey %Od %-j %_j %#p";
    for _ in 0..10_000 {
        let time = random_time(&mut random);
        // Years in the plain form that both print alike.
        let Some(mut tm) = breakdown(host::gmtime_r, time).filter(|tm| (-900..8100).contains(&tm.tm_year)) else {
            continue;
        };
        tm.tm_zone = c"UTC".as_ptr();
        for format in [format, flags] {
            for room in [500, 200, 30] {
                let (mut ours, mut theirs) = ([0u8; 500], [0u8; 500]);
                // SAFETY: in bounds.
                let (n, m) = unsafe {
                    (
                        time::strftime(ours.as_mut_ptr().cast(), room, format.as_ptr(), &raw const tm),
                        host::strftime(theirs.as_mut_ptr().cast(), room, format.as_ptr(), &raw const tm),
                    )
                };
                assert_eq!(n, m, "{time} {room}");
                if n > 0 {
                    assert_eq!(CStr::from_bytes_until_nul(&ours), CStr::from_bytes_until_nul(&theirs), "{time}");
                }
            }
        }
        let (mut ours, mut theirs) = ([0u8; 64], [0u8; 64]);
        // SAFETY: in bounds.
        unsafe {
            time::asctime_r(&raw const tm, ours.as_mut_ptr().cast());
            host::asctime_r(&raw const tm, theirs.as_mut_ptr().cast());
        }
        assert_eq!(CStr::from_bytes_until_nul(&ours), CStr::from_bytes_until_nul(&theirs), "{time}");
    }
}
