//! From the entry point to `main`.

#![expect(unsafe_code, reason = "runs the program's constructors and its main")]
// UNSAFETY: linker-defined arrays, the program's `main`.

use crate::{env, process, signal};
use core::ffi::{c_char, c_int};
use donjon_base::{boot, preempt, strings};

type Constructor = extern "C" fn(c_int, *mut *mut c_char, *mut *mut c_char);

unsafe extern "C" {
    static __preinit_array_start: [Constructor; 0];
    static __preinit_array_end: [Constructor; 0];
    static __init_array_start: [Constructor; 0];
    static __init_array_end: [Constructor; 0];
    fn main(argc: c_int, argv: *mut *mut c_char, envp: *mut *mut c_char) -> c_int;
}

/// Exit status if the guest cannot even start for lack of memory.
const STATUS_NO_MEMORY: i32 = 70;

/// Called by the entry code on the boot stack: sets the library OS up and continues on the first thread's own stack.
#[unsafe(no_mangle)]
extern "C" fn donjon_guest_start() -> ! {
    if donjon_os::start(run).is_err() {
        donjon_base::gate::fault_fmt(
            format_args!("too little memory to start: {} KiB", boot().memory / 1024),
            STATUS_NO_MEMORY,
        )
    }
    unreachable!()
}

/// The first thread.
extern "C" fn run(_: usize) -> ! {
    donjon_os::begin();
    signal::init();
    let vectors = (|| Some((env::c_array(strings(boot().args))?, env::c_array(strings(boot().env))?)))();
    let Some(((argv, argc), (envp, _))) = vectors else {
        donjon_base::gate::fault_fmt(format_args!("too little memory for arguments and environment"), STATUS_NO_MEMORY)
    };
    env::init(envp);
    preempt::set_count(0);
    let argc = argc as c_int;
    // SAFETY: the linker defines the arrays; constructors are the program's own.
    unsafe {
        construct(&raw const __preinit_array_start, &raw const __preinit_array_end, argc, argv, envp);
        construct(&raw const __init_array_start, &raw const __init_array_end, argc, argv, envp);
        process::exit(main(argc, argv, envp))
    }
}

unsafe fn construct(
    start: *const [Constructor; 0],
    end: *const [Constructor; 0],
    argc: c_int,
    argv: *mut *mut c_char,
    envp: *mut *mut c_char,
) {
    let (mut at, end) = (start.cast::<Constructor>(), end.cast::<Constructor>());
    while at < end {
        // SAFETY: inside the array.
        unsafe { (*at)(argc, argv, envp) };
        at = at.wrapping_add(1);
    }
}
