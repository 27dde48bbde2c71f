//! From the hypervisor's entry to the guest's first instruction.
#![expect(unsafe_code, reason = "builds the first address space and leaves ring 0")]
// UNSAFETY: runs once, alone, on memory that the frame allocator has just given it.

use super::apic::{self, Apic, Lines};
use super::clock::{Calibration, wall};
use super::console::Piece::{Dec, Hex};
use super::cpu::{self, Features, inb, outw};
use super::devices::Devices;
use super::random::Random;
use super::segments::{self, USER_CODE, USER_DATA};
use super::shim::{Shim, install};
use super::trap::Frame;
use super::{console, exit};
use crate::calendar;
use crate::cmdline::{self, Words};
use crate::firmware::{self, Machine, Power, Protocol};
use crate::frames::{Frames, Span};
use crate::fwcfg::{self, FwCfg, RESERVED};
use crate::image::{self, LoadError, Places, loaded_end, map_range, payload_end, physical};
use crate::nic::Nic;
use crate::phys::{Direct, Phys, PhysAddr};
use crate::say;
use crate::space::{Device, Refused, Rights, Space, bits};
use crate::stop;
use crate::strings::{STRINGS_MAX, Strings, StringsError};
use crate::text;
use crate::transport::Kind;
use crate::virtq::Lie;
use core::cell::UnsafeCell;
use donjon_abi::boot::{BootPage, Range, flags};
use donjon_abi::image::{HeaderError, ImageHeader, PAYLOAD_PADDR, SHIM_PADDR};
use donjon_abi::manifest::{Tag, records};
use donjon_abi::zstd::Tables;
use donjon_abi::{PAGE, Prot, TICK_NS};

/// Address space for heap and stacks.
const RESERVE: u64 = 64 << 30;
/// Address space of the first stack; its pages appear as they are touched.
const STACK: u64 = 8 << 20;
const FAULT_STACK: u64 = 64 << 10;
/// What a guest must have for itself, bytes, beyond its image: as much as under the process engine.
const MEMORY_LEAST: u64 = 1 << 20;
/// Bytes at the end of memory in which the payload must not lie: SeaBIOS has code and tables of its own there while it loads the payload, and one
/// overwrites the other.
const FIRMWARE: u64 = 512 << 10;
/// Longest command line, NUL included.
const COMMAND_LINE_MAX: usize = PAGE as usize;

unsafe extern "C" {
    static shim_root: u8;
    static shim_low_table: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __guard_page: u8;
    static __ist_guard_page: u8;
    static __shim_end: u8;
    static shim_gate_stub: u8;
    static shim_gate_stub_back: u8;
    static shim_gate_stub_end: u8;
    static mut shim_gate_back: u64;
    fn shim_enter(frame: *const Frame) -> !;
}

/// Why the guest does not start.
enum Stop {
    Firmware,
    Header(HeaderError),
    Beyond,
    Image(LoadError),
    Manifest,
    Quote,
    Word,
    LongLine,
    Strings,
    NoEntropy,
    Secrets,
    Device(Lie),
    NoClock,
    NoMemory,
}

impl From<Refused> for Stop {
    fn from(_: Refused) -> Self {
        Stop::NoMemory
    }
}

impl From<LoadError> for Stop {
    fn from(e: LoadError) -> Self {
        if e == LoadError::NoMemory { Stop::NoMemory } else { Stop::Image(e) }
    }
}

impl From<StringsError> for Stop {
    fn from(e: StringsError) -> Self {
        match e {
            StringsError::TooLong => Stop::Strings,
            StringsError::NoMemory => Stop::NoMemory,
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn shim_start(protocol: u64, info: u64) -> ! {
    console::init();
    segments::load();
    // SAFETY: boot.s mapped the first GiB one to one; this is called once.
    let mem = unsafe { Direct::claim() };
    let protocol = if protocol == 0 { Protocol::Pvh } else { Protocol::Linux };
    let mut needed = 0;
    let stop = match boot(mem, protocol, PhysAddr(info), &mut needed) {
        Ok((frame, shim)) => enter(&frame, shim),
        Err(stop) => stop,
    };
    let status = match stop {
        Stop::Firmware => told("the boot information has no memory map", exit::UNFIT),
        Stop::Header(HeaderError::NotAnImage) => told("there is no image behind the shim", exit::BAD_IMAGE),
        Stop::Header(HeaderError::Version { expected, got }) => {
            say!("this image is of gate version ", Dec(got.into()), ", its shim of ", Dec(expected.into()));
            exit::BAD_IMAGE
        }
        Stop::Header(HeaderError::Field(name)) => {
            say!("bad image: ", name);
            exit::BAD_IMAGE
        }
        Stop::Header(_) => told("bad image header", exit::BAD_IMAGE),
        Stop::Image(LoadError::Relocation(offset)) => {
            say!("bad image: relocation of ", Hex(offset));
            exit::BAD_IMAGE
        }
        Stop::Image(LoadError::Packed) => told("bad image: it cannot be unpacked", exit::BAD_IMAGE),
        Stop::Image(_) => told("bad image: a writable page is used twice", exit::BAD_IMAGE),
        Stop::Manifest => told("bad image: manifest", exit::BAD_IMAGE),
        Stop::Quote => told("command line: a quote is not closed", exit::USAGE),
        Stop::LongLine => told("command line: longer than 4095 bytes", exit::USAGE),
        Stop::Strings => told("command line: arguments and environment exceed 64 KiB", exit::USAGE),
        Stop::Word => exit::USAGE,
        Stop::Secrets => told("the secrets (fw_cfg opt/donjon/secret/NAME) are more than 64 KiB", exit::USAGE),
        Stop::NoEntropy => told(
            "no source of randomness: use a CPU with RDRAND (QEMU: -cpu max) or add a virtio-rng device \
             (QEMU: -device virtio-rng-device on microvm, -device virtio-rng-pci elsewhere)",
            exit::UNFIT,
        ),
        Stop::Device(lie) => {
            say!("the network device cannot be used: ", lie.0);
            exit::UNFIT
        }
        Stop::NoClock => told("no clock of known speed (APIC timer, PIT or CPUID leaf 0x15)", exit::UNFIT),
        Stop::Beyond | Stop::NoMemory => {
            say!("too little memory: this image needs at least ", Dec(needed.div_ceil(1 << 20)), " MiB");
            exit::CRASH
        }
    };
    exit::exit(None, status)
}

fn told(text: &str, status: u8) -> u8 {
    say!(text);
    status
}

fn enter(frame: &Frame, _: &'static mut Shim) -> ! {
    // SAFETY: (1) the frame is complete, for ring 3; (2) the state's reference ends here.
    unsafe { shim_enter(frame) }
}

fn boot(
    mut mem: Direct,
    protocol: Protocol,
    info: PhysAddr,
    needed: &mut u64,
) -> Result<(Frame, &'static mut Shim), Stop> {
    let features = Features::enable();
    protect_shim(&mut mem);
    let machine = Machine::read(&mem, protocol, info).ok_or(Stop::Firmware)?;
    *needed = PAYLOAD_PADDR + (2 << 20);
    if !machine.has(SHIM_PADDR, PAYLOAD_PADDR + PAGE) {
        return Err(Stop::Beyond);
    }
    let header = read_header(&mem)?;
    let end = payload_end(&header);
    *needed = end.saturating_add(1 << 20);
    if !machine.has(SHIM_PADDR, end.saturating_add(FIRMWARE)) {
        return Err(Stop::Beyond);
    }
    // SAFETY: the manifest lies in the payload, which nobody writes to before ring 3 starts.
    let manifest = unsafe { mem.bytes(physical(header.manifest.offset), header.manifest.len as usize) };
    let manifest = if header.manifest.len == 0 { &[] } else { manifest };
    let mut declared = false;
    for record in records(manifest) {
        let (tag, _) = record.map_err(|_| Stop::Manifest)?;
        declared |= matches!(tag, Tag::Listen | Tag::Egress);
    }
    let mut secrets = Span { start: end.next_multiple_of(PAGE), end: end.next_multiple_of(PAGE) };
    if with(manifest, Tag::Secret).next().is_some() {
        secrets.end += RESERVED;
        *needed = secrets.end + (1 << 20);
        if !machine.has(secrets.start, secrets.end + FIRMWARE) {
            return Err(Stop::Beyond);
        }
    }
    let taken = [
        Span { start: 0, end: SHIM_PADDR },
        Span { start: SHIM_PADDR, end: (&raw const __shim_end) as u64 },
        Span { start: PAYLOAD_PADDR, end: secrets.end },
    ];
    let mut frames = Frames::new();
    machine.ram().iter().for_each(|s| frames.add(s.start, s.end, &taken));
    let mut space = Space::new(mem, frames, PhysAddr((&raw const shim_root) as u64));
    space.map_shim(apic::LAPIC_RANGE.0, apic::LAPIC_RANGE.1, Device::Yes)?;
    let apic = Apic::enable(&mut space.mem, &features);
    let calibration = Calibration::begin(&space.mem, &apic, &features);
    for ram in machine.ram() {
        space.map_shim(PhysAddr(ram.start), ram.end - ram.start, Device::No)?;
    }
    let acpi = firmware::acpi(&mut space, machine.rsdp);
    for ioapic in acpi.ioapics.iter().filter(|a| **a != 0) {
        space.map_shim(PhysAddr(u64::from(*ioapic)), 4096, Device::Yes)?;
    }
    if let Power::SleepMemory(at) = acpi.power {
        space.map_shim(at, 1, Device::Yes)?;
    }
    let scratch = space.frames.alloc(&mut space.mem).ok_or(Stop::NoMemory)?;

    let line = command_line(&mut space, machine.command_line)?;
    let words = cmdline::split(line).ok_or(Stop::Quote)?;
    let settings = words.settings().map_err(|bad| {
        console::write(b"donjon: command line: bad word: ");
        console::write(bad.0);
        console::write(b"\n");
        Stop::Word
    })?;

    let apic_id = apic.id(&space.mem);
    let sought = (declared && settings.network()).then_some(Kind::Net);
    let devices = Devices::find(&mut space, &settings.mmio, apic_id, sought);
    if sought.is_some() && devices.net.is_none() {
        say!("there is no network device that can be used (virtio-net), and this image has use for one");
    }
    let lines = if devices.lines { Lines::All } else { Lines::Serial };
    apic::route(&mut space.mem, &acpi.ioapics, lines, apic_id);

    let mut pool = Random::new(&features);
    if let Some(transport) = devices.rng {
        pool.fill(&mut space, &transport);
    }
    let mut random = || pool.next(&features);
    let mut page = BootPage::empty();
    for chunk in page.entropy.chunks_exact_mut(8) {
        let fresh = random().ok_or(Stop::NoEntropy)?.to_le_bytes();
        chunk.iter_mut().zip(fresh).for_each(|(to, from)| *to = from);
    }
    let mut places = Places::new();
    let mut place = |len| places.pick(len, &mut random).ok_or(Stop::NoEntropy);

    unpack(&mut space, &header)?;
    page.image = Range { base: place(header.span)?, len: header.span };
    image::load(&mut space, &header, page.image.base)?;
    page.bundle = map_extent(&mut space, header.bundle, &mut place)?;
    page.manifest = map_extent(&mut space, header.manifest, &mut place)?;
    page.secrets = load_secrets(&mut space, manifest, &mut secrets, &mut place)?;
    for (range, len) in [(&mut page.stack, STACK), (&mut page.fault_stack, FAULT_STACK)] {
        *range = Range { base: place(len)?, len };
        space.protect(range.base, len, Prot::ReadWrite)?;
    }
    page.reserve = Range { base: place(RESERVE)?, len: RESERVE };
    page.gate = place(PAGE)?;
    map_gate(&mut space, page.gate)?;
    let boot_page = place(PAGE + STRINGS_MAX)?;
    image::seal(&mut space, &header)?;
    write_strings(&mut space, manifest, &words, boot_page + PAGE, &mut page)?;

    page.flags = if features.fsgsbase { flags::FSGSBASE } else { 0 } | if features.rdrand { flags::RDRAND } else { 0 };
    page.flags |= settings.open;
    page.net = settings.net;
    let nic = match devices.net {
        None => None,
        Some(transport) => {
            let [a, b, c, d, e, f, ..] = random().ok_or(Stop::NoEntropy)?.to_le_bytes();
            // A locally administered address, for a device that has none.
            page.net.mac = [a & 0xfc | 2, b, c, d, e, f];
            page.flags |= flags::NET;
            Some(Nic::start(&mut space, transport, &mut page.net).map_err(Stop::Device)?)
        }
    };
    page.engine = *b"shim\0\0\0\0\0\0\0\0\0\0\0\0";
    let boot_frame = space.frames.alloc(&mut space.mem).ok_or(Stop::NoMemory)?;
    space.map(boot_page, boot_frame, Rights::Read)?;
    // Touch what the first instructions need, so that a machine that is too small says so here.
    space.touch(page.stack.base + STACK - 8, crate::space::Access::Write)?;
    space.touch(page.fault_stack.base + FAULT_STACK - 8, crate::space::Access::Write)?;

    let clock = calibration.finish(&mut space.mem, &apic, &features, scratch).ok_or(Stop::NoClock)?;
    let wall = settings.time.unwrap_or_else(|| {
        let machine = wall(&mut space.mem, &features, scratch);
        settings.started.map_or(machine, |started| calendar::refine(machine, started, clock.since_reset()))
    });
    page.clock = clock.describe(wall);
    space.frames.release(&mut space.mem, scratch);
    // What the page tables of the reserve may take.
    let free = space.frames.free() * PAGE;
    page.memory = (free - free / 32).saturating_sub(128 << 10) & !(PAGE - 1);
    let least = image::zeroed_len(&header) + MEMORY_LEAST;
    if page.memory < least {
        // Whole MiB are given to a machine; a part of the last one is the firmware's.
        *needed = machine.end().next_multiple_of(1 << 20) + (least - page.memory);
        return Err(Stop::NoMemory);
    }
    space.mem.place(boot_frame, &page);

    cpu::flush_all();
    // The first page may have held the boot information; from now on it catches null pointers.
    space.mem.write_u64(PhysAddr((&raw const shim_low_table) as u64), 0);
    cpu::flush(0, PAGE);
    apic.start_timer(&mut space.mem);
    let frame = Frame {
        rdi: boot_page,
        rip: page.image.base + header.entry,
        cs: USER_CODE.into(),
        rflags: 0x202,
        rsp: page.stack.base + page.stack.len,
        ss: USER_DATA.into(),
        ..Frame::default()
    };
    let shim = Shim {
        space,
        features,
        apic,
        clock,
        power: acpi.power,
        secrets,
        reserve: Span { start: page.reserve.base, end: page.reserve.base + page.reserve.len },
        upcall: page.image.base + header.upcall,
        fault_entry: Some(page.image.base + header.fault),
        fault_stack: page.fault_stack.base + page.fault_stack.len,
        total: machine.total(),
        nic,
        expires: 0,
        stop: stop::Request::default(),
    };
    // SAFETY: called once, here, before ring 3 starts.
    let shim = unsafe { install(shim) };
    // A byte that came before interrupts were routed keeps the line high: there is no edge for it, nor for any later one.
    shim.serial();
    shim.arm(shim.clock.now(), TICK_NS);
    Ok((frame, shim))
}

/// Final rights for the first 2 MiB: text executable, constants read-only, the rest neither; pages below the stacks not
/// there at all.
fn protect_shim(mem: &mut Direct) {
    let table = PhysAddr((&raw const shim_low_table) as u64);
    let text_end = (&raw const __text_end) as u64;
    let rodata_end = (&raw const __rodata_end) as u64;
    let holes = [(&raw const __guard_page) as u64, (&raw const __ist_guard_page) as u64];
    for index in 0..512 {
        let at = index * PAGE;
        let rights = match at {
            _ if holes.contains(&at) => 0,
            _ if at < SHIM_PADDR || at >= rodata_end => bits::P | bits::W | bits::NX,
            _ if at < text_end => bits::P,
            _ => bits::P | bits::NX,
        };
        mem.write_u64(table.add(index * 8), if rights == 0 { 0 } else { at | rights | bits::AD | bits::GLOBAL });
    }
    cpu::flush(0, 2 << 20);
}

fn read_header(mem: &Direct) -> Result<ImageHeader, Stop> {
    let mut bytes = [0; ImageHeader::LEN];
    mem.read(PhysAddr(PAYLOAD_PADDR), &mut bytes);
    // The shim does not see the file; that it was loaded whole is the hypervisor's business.
    let file_len = mem.read_u64(PhysAddr(PAYLOAD_PADDR).add(core::mem::offset_of!(ImageHeader, file_len) as u64));
    ImageHeader::parse(&bytes, file_len).map_err(Stop::Header)
}

/// What is behind `end` in its page, which may be mapped whole.
fn zero_tail(mem: &mut Direct, end: u64) {
    mem.zero(PhysAddr(end), (end.next_multiple_of(PAGE) - end) as usize);
}

struct Room(UnsafeCell<Tables>);
// SAFETY: one CPU; see `unpack`.
unsafe impl Sync for Room {}
/// Too large for the stack.
static TABLES: Room = Room(UnsafeCell::new(Tables::new()));

/// Unpacks what is compressed; the memory that only that lay in is free then.
fn unpack(space: &mut Space<Direct>, header: &ImageHeader) -> Result<(), Stop> {
    let (packed, unpacked) = (header.packed, header.unpacked);
    zero_tail(&mut space.mem, loaded_end(header));
    if packed.len == 0 {
        return Ok(());
    }
    // SAFETY: (1) `unpacked` lies behind the file, so behind `packed`; (2) all up to its end was found to be memory, and is not the frame allocator's;
    // (3) nothing else refers to it yet.
    let (block, content) = unsafe {
        let block = space.mem.bytes(physical(packed.offset), packed.len as usize);
        (block, space.mem.bytes_mut(physical(unpacked.offset), unpacked.len as usize))
    };
    // SAFETY: (1) this is called once, and (2) nothing else refers to it.
    let tables = unsafe { &mut *TABLES.0.get() };
    if !header.unpack(block, content, tables) {
        return Err(Stop::Image(LoadError::Packed));
    }
    zero_tail(&mut space.mem, payload_end(header));
    let spare = image::spare(header);
    space.frames.add(spare.start, spare.end, &[]);
    Ok(())
}

fn command_line(space: &mut Space<Direct>, at: PhysAddr) -> Result<&'static mut [u8], Stop> {
    let frame = space.frames.alloc(&mut space.mem).ok_or(Stop::NoMemory)?;
    if at.0 != 0 {
        space.map_shim(at, COMMAND_LINE_MAX as u64, Device::No)?;
        for i in 0..COMMAND_LINE_MAX as u64 {
            let mut byte = [0];
            space.mem.read(at.add(i), &mut byte);
            if byte == [0] {
                break;
            }
            if i + 1 == COMMAND_LINE_MAX as u64 {
                return Err(Stop::LongLine);
            }
            space.mem.write(frame.add(i), &byte);
        }
    }
    // SAFETY: the frame was just allocated and is never released.
    Ok(unsafe { space.mem.bytes_mut(frame, COMMAND_LINE_MAX) })
}

fn map_extent(
    space: &mut Space<Direct>,
    extent: donjon_abi::image::Extent,
    place: &mut impl FnMut(u64) -> Result<u64, Stop>,
) -> Result<Range, Stop> {
    if extent.len == 0 {
        return Ok(Range::default());
    }
    let at = physical(extent.offset);
    let inside = at.0 % PAGE;
    let len = (inside + extent.len).next_multiple_of(PAGE);
    let base = place(len)?;
    map_range(space, base, PhysAddr(at.0 - inside), len, Rights::Read)?;
    Ok(Range { base: base + inside, len: extent.len })
}

/// The user's side of the gate: a page with three instructions.
fn map_gate(space: &mut Space<Direct>, va: u64) -> Result<(), Stop> {
    let (start, end) = ((&raw const shim_gate_stub) as u64, (&raw const shim_gate_stub_end) as u64);
    let frame = space.frames.alloc(&mut space.mem).ok_or(Stop::NoMemory)?;
    // Whatever else is jumped to in this page faults.
    for word in (0..PAGE).step_by(8) {
        space.mem.write_u64(frame.add(word), 0xcccc_cccc_cccc_cccc);
    }
    space.mem.copy(PhysAddr(start), frame, (end - start) as usize);
    space.map(va, frame, Rights::ReadExecute)?;
    let back = va + ((&raw const shim_gate_stub_back) as u64 - start);
    // SAFETY: written once, before ring 3 starts, and read by `trap.s` alone.
    unsafe { shim_gate_back = back };
    Ok(space.seal_shim(frame, PAGE)?)
}

/// Takes the declared secrets from the hypervisor, into memory that is mapped for reading and wiped at the end; `memory` shrinks to what they take.
fn load_secrets(
    space: &mut Space<Direct>,
    manifest: &[u8],
    memory: &mut Span,
    place: &mut impl FnMut(u64) -> Result<u64, Stop>,
) -> Result<Range, Stop> {
    let reserved = (memory.end - memory.start) as usize;
    if reserved == 0 {
        return Ok(Range::default());
    }
    space.mem.zero(PhysAddr(memory.start), reserved);
    // SAFETY: the frame allocator has never had this memory, and nobody else refers to it.
    let out = unsafe { space.mem.bytes_mut(PhysAddr(memory.start), reserved) };
    let len = fwcfg::load(&mut FwCfgPorts, with(manifest, Tag::Secret), out).map_err(|_| Stop::Secrets)? as u64;
    memory.end = memory.start + len.next_multiple_of(PAGE);
    if len == 0 {
        return Ok(Range::default());
    }
    let base = place(len)?;
    map_range(space, base, PhysAddr(memory.start), memory.end - memory.start, Rights::Read)?;
    Ok(Range { base, len })
}

struct FwCfgPorts;

impl FwCfg for FwCfgPorts {
    fn select(&mut self, item: u16) {
        outw(0x510, item);
    }

    fn byte(&mut self) -> u8 {
        inb(0x511)
    }
}

/// The values of the manifest's records with that tag. It has been checked.
fn with(manifest: &[u8], tag: Tag) -> impl Iterator<Item = &[u8]> {
    records(manifest).filter_map(move |r| r.ok().filter(|r| r.0 == tag).map(|r| r.1))
}

fn write_strings(
    space: &mut Space<Direct>,
    manifest: &[u8],
    words: &Words<'_>,
    base: u64,
    page: &mut BootPage,
) -> Result<(), Stop> {
    let with = |tag| with(manifest, tag);
    let mut strings = Strings::new(base);
    strings.push(space, &[with(Tag::Name).next().unwrap_or(b"guest")])?;
    match words.arguments() {
        Some(arguments) => arguments.into_iter().try_for_each(|a| strings.push(space, &[a]))?,
        None => with(Tag::Arg).try_for_each(|a| strings.push(space, &[a]))?,
    }
    page.args = strings.end();
    for entry in with(Tag::Env) {
        let name = |e| text::cut(e, b'=').map(|(name, _)| name);
        if !words.env().any(|e| name(e) == name(entry)) {
            strings.push(space, &[entry])?;
        }
    }
    words.env().try_for_each(|e| strings.push(space, &[e]))?;
    page.env = strings.end();
    Ok(())
}
