//! Variable arguments.
//!
//! Stable Rust cannot define a C function with `...`, so each one is a few instructions, written by [`variadic!`], that build the SysV
//! `va_list` and call the `v` form of the function.

use core::ffi::c_void;

/// What C calls `va_list` (System V ABI for AMD64, 3.5.7); C passes it as a pointer.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct VaList {
    /// Where in `registers` the next integer is; 48 if all are used up.
    general: u32,
    /// Where in `registers` the next double is; 176 if all are used up.
    floating: u32,
    /// Arguments on the stack.
    overflow: *const u8,
    /// The saved argument registers: six of 8 bytes, then eight of 16.
    registers: *const u8,
}

impl VaList {
    /// A list whose arguments are all on the "stack" at `at`.
    #[cfg(test)]
    pub fn from_stack(at: *const u8) -> Self {
        Self { general: 48, floating: 176, overflow: at, registers: core::ptr::null() }
    }

    /// The next integer or pointer.
    ///
    /// # Safety
    /// The caller passed one.
    pub unsafe fn integer(&mut self) -> u64 {
        // SAFETY: the list was built by a C caller.
        unsafe {
            if self.general < 48 {
                let at = self.registers.add(self.general as usize);
                self.general += 8;
                at.cast::<u64>().read()
            } else {
                self.stack(8).cast::<u64>().read()
            }
        }
    }

    /// The next pointer.
    ///
    /// # Safety
    /// The caller passed one.
    pub unsafe fn pointer<T>(&mut self) -> *mut T {
        // SAFETY: the caller's.
        core::ptr::with_exposed_provenance_mut(unsafe { self.integer() } as usize)
    }

    /// The next double.
    ///
    /// # Safety
    /// The caller passed one.
    pub unsafe fn double(&mut self) -> f64 {
        // SAFETY: the list was built by a C caller.
        unsafe {
            if self.floating < 176 {
                let at = self.registers.add(self.floating as usize);
                self.floating += 16;
                at.cast::<f64>().read()
            } else {
                self.stack(8).cast::<f64>().read()
            }
        }
    }

    /// The next `long double`: its 64-bit mantissa and its sign and exponent.
    ///
    /// # Safety
    /// The caller passed one.
    pub unsafe fn long_double(&mut self) -> (u64, u16) {
        // SAFETY: the list was built by a C caller; the ABI aligns such a value to 16.
        unsafe {
            self.overflow = self.overflow.map_addr(|a| (a + 15) & !15);
            let at = self.stack(16);
            (at.cast::<u64>().read(), at.add(8).cast::<u16>().read())
        }
    }

    /// # Safety
    /// The caller passed so many bytes on the stack.
    unsafe fn stack(&mut self, n: usize) -> *const c_void {
        let at = self.overflow;
        self.overflow = at.wrapping_add(n);
        at.cast()
    }
}

/// Defines a variadic C function after its named arguments, given their bytes and the register that passes the list on:
/// `variadic! { /// doc  name(named arguments) -> result, 16, "rdx", vname }`.
macro_rules! variadic {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty, $bytes:literal, $reg:literal, $v:path;)*) => {$(
        $(#[$doc])*
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> $ret {
            core::arch::naked_asm!(
                ".cfi_startproc",
                "sub rsp, 216",
                ".cfi_def_cfa_offset 224",
                "mov [rsp + 32], rdi",
                "mov [rsp + 40], rsi",
                "mov [rsp + 48], rdx",
                "mov [rsp + 56], rcx",
                "mov [rsp + 64], r8",
                "mov [rsp + 72], r9",
                // al: how many vector registers carry arguments, at most.
                "test al, al",
                "je 2f",
                "movaps [rsp + 80], xmm0",
                "movaps [rsp + 96], xmm1",
                "movaps [rsp + 112], xmm2",
                "movaps [rsp + 128], xmm3",
                "movaps [rsp + 144], xmm4",
                "movaps [rsp + 160], xmm5",
                "movaps [rsp + 176], xmm6",
                "movaps [rsp + 192], xmm7",
                "2:",
                concat!("mov dword ptr [rsp], ", $bytes),
                "mov dword ptr [rsp + 4], 48",
                "lea rax, [rsp + 224]",
                "mov [rsp + 8], rax",
                "lea rax, [rsp + 32]",
                "mov [rsp + 16], rax",
                concat!("mov ", $reg, ", rsp"),
                "call {}",
                "add rsp, 216",
                ".cfi_def_cfa_offset 8",
                "ret",
                ".cfi_endproc",
                sym $v,
            )
        }
    )*};
}
pub(crate) use variadic;
