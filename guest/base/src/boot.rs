//! The boot page, as the rest of the guest sees it.

#![expect(unsafe_code, reason = "turns the host's addresses into slices, once")]
// UNSAFETY: the host's ranges are trusted to be mapped: whoever serves the gate owns the page tables anyway.

use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};
use donjon_abi::boot::{BootPage, Range};

static BOOT: AtomicPtr<BootPage> = AtomicPtr::new(core::ptr::null_mut());

/// The boot page. Valid from the first instruction of Rust code on; on a test host it describes the fake machine.
#[inline]
pub fn boot() -> &'static BootPage {
    let page = BOOT.load(Relaxed);
    #[cfg(not(donjon_guest))]
    let page = if page.is_null() { crate::host::boot_page() } else { page };
    // SAFETY: 1. the pointer was stored by `set` after the magic was checked; 2. the page is never unmapped nor written.
    unsafe { &*page }
}

/// Remembers the boot page. Returns whether magic and version are right; if not, nothing is remembered.
///
/// # Safety
/// `page` must point to a readable page that stays so.
#[cfg(donjon_guest)]
pub(crate) unsafe fn set(page: *mut BootPage) -> bool {
    // SAFETY: by contract.
    let (magic, version) = unsafe { ((*page).magic, (*page).version) };
    let good = magic == donjon_abi::boot::MAGIC && version == donjon_abi::VERSION;
    if good {
        BOOT.store(page, Relaxed);
    }
    good
}

/// The bytes of one of the boot page's read-only ranges (manifest, bundle, arguments, environment).
pub fn bytes(range: Range) -> &'static [u8] {
    if range.len == 0 {
        return &[];
    }
    // SAFETY: 1. the host maps these ranges read-only for the guest's whole life (abi, BootPage);
    // 2. nothing in the guest can change their rights.
    unsafe { core::slice::from_raw_parts(range.base as *const u8, range.len as usize) }
}

/// The NUL-ended strings of `boot().args` or `boot().env`, without their NULs.
pub fn strings(range: Range) -> impl Iterator<Item = &'static [u8]> + Clone {
    bytes(range).split_inclusive(|b| *b == 0).filter_map(|s| s.strip_suffix(&[0]))
}
