//! The gate calls, typed. Everything else in the guest goes through these.
//!
//! The gate is called with preemption off, so an upcall that arrives during a call only marks a tick as pending.

#![expect(unsafe_code, reason = "calls the host")]
// UNSAFETY: an indirect call to an address that the host gave; `protect` and `discard` change what memory holds.

use crate::{boot, preempt};
use core::marker::PhantomData;
use donjon_abi::{Call, Error, Frame, IoVec, Prot, ready};

/// What [`wait`] reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ready {
    /// Frames can be received, or the device can take frames again.
    pub net: bool,
    /// The host asks the guest to stop.
    pub stop: bool,
}

/// A console stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    /// Standard output.
    Output = 1,
    /// Standard error.
    Errors = 2,
}

/// Appends to the host-side log. Returns how many bytes were taken.
pub fn console(stream: Stream, text: &[u8]) -> Result<usize, Error> {
    // SAFETY: the range is a live slice.
    let taken = unsafe { call(Call::Console, text.as_ptr() as u64, text.len() as u64, stream as u64, 0) }?;
    Ok((taken as usize).min(text.len()))
}

/// Sleeps until something is ready or `timeout` nanoseconds have passed (`None`: for ever). May return early.
pub fn wait(timeout: Option<u64>) -> Ready {
    // SAFETY: no memory is named. A failure is reported as "nothing ready", which callers must expect anyway.
    let bits = unsafe { call(Call::Wait, timeout.unwrap_or(u64::MAX), 0, 0, 0) }.unwrap_or(0);
    Ready { net: bits & ready::NET != 0, stop: bits & ready::STOP != 0 }
}

/// A piece of memory to send from.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Piece<'a>(IoVec, PhantomData<&'a [u8]>);

impl<'a> Piece<'a> {
    /// The whole of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Piece(IoVec { base: bytes.as_ptr() as u64, len: bytes.len() as u64 }, PhantomData)
    }
}

/// A piece of memory to receive into.
#[repr(transparent)]
pub struct PieceMut<'a>(IoVec, PhantomData<&'a mut [u8]>);

impl<'a> PieceMut<'a> {
    /// The whole of `bytes`.
    pub fn new(bytes: &'a mut [u8]) -> Self {
        PieceMut(IoVec { base: bytes.as_mut_ptr() as u64, len: bytes.len() as u64 }, PhantomData)
    }
}

/// A frame to send.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct TxFrame<'a>(Frame, PhantomData<&'a [Piece<'a>]>);

impl<'a> TxFrame<'a> {
    /// The frame made of `pieces`, of which the first is exactly the encoded [`donjon_abi::NetHdr`].
    pub fn new(pieces: &'a [Piece<'a>]) -> Self {
        TxFrame(Frame { iov: pieces.as_ptr() as u64, iov_count: pieces.len() as u32, len: 0 }, PhantomData)
    }
}

/// Room for one received frame.
#[repr(transparent)]
pub struct RxFrame<'a>(Frame, PhantomData<&'a mut [PieceMut<'a>]>);

impl<'a> RxFrame<'a> {
    /// Room for one frame, offload header first, in `pieces`.
    pub fn new(pieces: &'a mut [PieceMut<'_>]) -> Self {
        RxFrame(Frame { iov: pieces.as_mut_ptr() as u64, iov_count: pieces.len() as u32, len: 0 }, PhantomData)
    }

    /// Bytes received, offload header included. The host says so: check it against the room that you gave.
    pub fn received(&self) -> usize {
        self.0.len as usize
    }
}

/// Sends frames in order. Returns how many were taken; fewer than all means that the device is full now.
pub fn net_send(frames: &[TxFrame<'_>]) -> Result<usize, Error> {
    // SAFETY: `TxFrame` is a transparent `Frame` whose pieces live as long as the slice.
    let taken = unsafe { call(Call::NetSend, frames.as_ptr() as u64, frames.len() as u64, 0, 0) }?;
    Ok((taken as usize).min(frames.len()))
}

/// Receives up to `frames.len()` frames. Returns how many there were.
pub fn net_recv(frames: &mut [RxFrame<'_>]) -> Result<usize, Error> {
    // SAFETY: `RxFrame` is a transparent `Frame` whose pieces are exclusively borrowed as long as the slice.
    let got = unsafe { call(Call::NetRecv, frames.as_mut_ptr() as u64, frames.len() as u64, 0, 0) }?;
    Ok((got as usize).min(frames.len()))
}

/// Sets the rights of whole pages inside the reserve.
///
/// # Safety
/// No reference may reach into the range if its rights are taken away.
pub unsafe fn protect(addr: usize, len: usize, prot: Prot) -> Result<(), Error> {
    // SAFETY: by contract.
    unsafe { call(Call::Protect, addr as u64, len as u64, prot as u64, 0) }.map(|_| ())
}

/// Gives the content of whole pages inside the reserve back to the host; the next touch finds zeros.
///
/// # Safety
/// Nobody may rely on the content of the range.
pub unsafe fn discard(addr: usize, len: usize) -> Result<(), Error> {
    // SAFETY: by contract.
    unsafe { call(Call::Discard, addr as u64, len as u64, 0, 0) }.map(|_| ())
}

/// Sets the FS base by gate call, for machines without `wrfsbase`.
///
/// # Safety
/// `base` must be the address of a thread control block, or nothing may use TLS until it is.
pub unsafe fn set_tls(base: usize) -> Result<(), Error> {
    // SAFETY: by contract.
    unsafe { call(Call::SetTls, base as u64, 0, 0, 0) }.map(|_| ())
}

/// Ends the guest.
pub fn exit(code: i32) -> ! {
    loop {
        // SAFETY: no memory is named; does not return.
        let _ = unsafe { call(Call::Exit, code as u64 & 0xff, 0, 0, 0) };
    }
}

/// Ends the guest with a crash report.
pub fn fault(report: &[u8], code: i32) -> ! {
    let len = report.len().min(donjon_abi::FAULT_MAX as usize);
    loop {
        // SAFETY: the range is a live slice; does not return.
        let _ = unsafe { call(Call::Fault, report.as_ptr() as u64, len as u64, code as u64 & 0xff, 0) };
    }
}

/// Formats a message and ends the guest with it: for states of the library OS that cannot be right.
#[cold]
pub fn fault_fmt(message: core::fmt::Arguments<'_>, code: i32) -> ! {
    let mut text = Text { bytes: [0; 1024], len: 0 };
    let _ = core::fmt::write(&mut text, message);
    fault(&text.bytes[..text.len], code)
}

/// A fixed buffer that formatted text goes into; what does not fit is cut off.
struct Text {
    bytes: [u8; 1024],
    len: usize,
}

impl core::fmt::Write for Text {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        let n = s.len().min(self.bytes.len() - self.len);
        self.bytes[self.len..self.len + n].copy_from_slice(&s.as_bytes()[..n]);
        self.len += n;
        Ok(())
    }
}

/// # Safety
/// What the call does with the memory that its arguments name must be sound.
unsafe fn call(call: Call, a: u64, b: u64, c: u64, d: u64) -> Result<u64, Error> {
    let _off = preempt::off();
    #[cfg(donjon_guest)]
    let result = {
        type Gate = unsafe extern "C" fn(u64, u64, u64, u64, u64) -> i64;
        // SAFETY: 1. the boot page's magic and version were checked; 2. `gate` is then a function of this type.
        let gate: Gate = unsafe { core::mem::transmute(boot().gate as *const ()) };
        // SAFETY: by contract of this function.
        unsafe { gate(call as u64, a, b, c, d) }
    };
    #[cfg(not(donjon_guest))]
    let result = {
        let _ = boot();
        crate::host::gate(call, [a, b, c, d])
    };
    if result >= 0 {
        return Ok(result as u64);
    }
    Err(match -result {
        12 => Error::NoMemory,
        14 => Error::BadAddress,
        38 => Error::NoSuchCall,
        _ => Error::Invalid,
    })
}
