//! Character classes of the "C" locale: ASCII.

use core::ffi::c_int;

/// Whether a byte is white space.
pub fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | 9..=13)
}

/// The classes of a byte, as the bits that glibc's macros test.
const fn classes(byte: u8) -> u16 {
    let mut bits = 0;
    if byte.is_ascii_uppercase() {
        bits |= 0x100;
    }
    if byte.is_ascii_lowercase() {
        bits |= 0x200;
    }
    if byte.is_ascii_alphabetic() {
        bits |= 0x400;
    }
    if byte.is_ascii_digit() {
        bits |= 0x800;
    }
    if byte.is_ascii_hexdigit() {
        bits |= 0x1000;
    }
    if matches!(byte, b' ' | 9..=13) {
        bits |= 0x2000;
    }
    if matches!(byte, b' '..=b'~') {
        bits |= 0x4000;
    }
    if byte.is_ascii_graphic() {
        bits |= 0x8000;
    }
    if matches!(byte, b' ' | 9) {
        bits |= 0x1;
    }
    if byte.is_ascii_control() {
        bits |= 0x2;
    }
    if byte.is_ascii_punctuation() {
        bits |= 0x4;
    }
    if byte.is_ascii_alphanumeric() {
        bits |= 0x8;
    }
    bits
}

/// glibc's tables: indices from -128 (bytes as signed characters, and EOF) to 255.
static CLASSES: [u16; 384] = {
    let mut table = [0; 384];
    let mut i = 128;
    while i < 384 {
        table[i] = classes((i - 128) as u8);
        i += 1;
    }
    table
};

/// A table of bytes in the other case.
const fn case_table(upper: bool) -> [i32; 384] {
    let mut table = [0; 384];
    let mut i = 0;
    while i < 384 {
        let byte = (i as i32 - 128) as u8;
        let changed = if upper { byte.to_ascii_uppercase() } else { byte.to_ascii_lowercase() };
        // Negative indices give the same as the positive ones of the byte, except EOF.
        table[i] = if i == 127 { -1 } else { changed as i32 };
        i += 1;
    }
    table
}

static UPPER: [i32; 384] = case_table(true);
static LOWER: [i32; 384] = case_table(false);

/// A pointer to the entry for 0, as a C variable.
#[repr(transparent)]
struct Table<T>(*const T);

// SAFETY: a constant.
unsafe impl<T> Sync for Table<T> {}

static CLASSES_AT_0: Table<u16> = Table((&raw const CLASSES).cast::<u16>().wrapping_add(128));
static UPPER_AT_0: Table<i32> = Table((&raw const UPPER).cast::<i32>().wrapping_add(128));
static LOWER_AT_0: Table<i32> = Table((&raw const LOWER).cast::<i32>().wrapping_add(128));

/// What glibc's `isalpha` and its kin look into.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn __ctype_b_loc() -> *const *const u16 {
    &raw const CLASSES_AT_0.0
}

/// What glibc's `toupper` looks into.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn __ctype_toupper_loc() -> *const *const i32 {
    &raw const UPPER_AT_0.0
}

/// What glibc's `tolower` looks into.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn __ctype_tolower_loc() -> *const *const i32 {
    &raw const LOWER_AT_0.0
}

/// Defines the functions of the classes.
macro_rules! class_functions {
    ($($name:ident $wide:ident $bit:literal;)*) => {$(
        /// Whether a byte is in the class.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub extern "C" fn $name(c: c_int) -> c_int {
            c_int::from(u8::try_from(c).map_or(0, classes) & $bit)
        }

        /// Whether a wide character is in the class, which holds ASCII only.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub extern "C" fn $wide(c: u32) -> c_int {
            c_int::from(u8::try_from(c).map_or(0, classes) & $bit)
        }
    )*};
}

class_functions! {
    isupper iswupper 0x100;
    islower iswlower 0x200;
    isalpha iswalpha 0x400;
    isdigit iswdigit 0x800;
    isxdigit iswxdigit 0x1000;
    isspace iswspace 0x2000;
    isprint iswprint 0x4000;
    isgraph iswgraph 0x8000;
    isblank iswblank 0x1;
    iscntrl iswcntrl 0x2;
    ispunct iswpunct 0x4;
    isalnum iswalnum 0x8;
}

/// Whether a value is ASCII.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn isascii(c: c_int) -> c_int {
    c_int::from((0..0x80).contains(&c))
}

/// Cuts a value down to ASCII.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn toascii(c: c_int) -> c_int {
    c & 0x7f
}

/// A letter in upper case.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn toupper(c: c_int) -> c_int {
    u8::try_from(c).map_or(c, |c| c.to_ascii_uppercase().into())
}

/// A letter in lower case.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn tolower(c: c_int) -> c_int {
    u8::try_from(c).map_or(c, |c| c.to_ascii_lowercase().into())
}

/// An ASCII letter in upper case.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn towupper(c: u32) -> u32 {
    u8::try_from(c).map_or(c, |c| c.to_ascii_uppercase().into())
}

/// An ASCII letter in lower case.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn towlower(c: u32) -> u32 {
    u8::try_from(c).map_or(c, |c| c.to_ascii_lowercase().into())
}
