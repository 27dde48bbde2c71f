//! The gate's memory calls against a model that is a plain list of pages: rights and content agree, nothing leaks, and no page is ever writable and executable.
//!
//! `guest/ring0/src/machine/gate.rs` lets whole pages inside of the reserve through; so does this. Pointers are tried everywhere.

use crate::input::Input;
use crate::machine::{check, machine};
use donjon_abi::{PAGE, Prot};
use donjon_ring0::phys::{Phys, PhysAddr};
use donjon_ring0::space::{Access, Refused, Rights, Space};
use donjon_ring0::user;
use std::collections::{BTreeMap, HashMap};

const RESERVE: u64 = 0x7000_0000_0000;
/// Pages of the reserve: all levels of the tables are in play.
const PAGES: u64 = 1 << 28;
const TEXT: u64 = 0x6000_0000_0000;
const MEMORY: u64 = 100;

/// What the guest should see.
struct Model {
    /// Rights from that page on.
    rights: BTreeMap<u64, Prot>,
    /// The first byte of pages that were written to.
    content: HashMap<u64, u8>,
}

impl Model {
    fn rights(&self, page: u64) -> Prot {
        self.rights.range(..=page).next_back().map_or(Prot::None, |r| *r.1)
    }

    fn protect(&mut self, page: u64, count: u64, prot: Prot) {
        let after = self.rights(page + count);
        self.rights.retain(|p, _| *p < page || *p >= page + count);
        self.rights.insert(page + count, after);
        self.rights.insert(page, prot);
    }
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut space = machine(MEMORY, 2);
    space.map(TEXT, PhysAddr(crate::machine::RAM + PAGE), Rights::ReadExecute).expect("memory for three tables");
    let before = space.frames.free() + check(&space).tables.len() as u64;
    let mut model = Model { rights: BTreeMap::new(), content: HashMap::new() };
    while !input.is_empty() {
        if step(&mut input, &mut space, &mut model).is_err() {
            break;
        }
    }
    let map = check(&space);
    let all = space.frames.free() + map.tables.len() as u64 + map.owned.len() as u64;
    assert_eq!(all, before, "frames that are neither free nor used");
    // An empty reserve costs nothing: its pages and what the tables can give back come back.
    let emptied = space.discard(RESERVE, PAGES * PAGE).and_then(|_| space.protect(RESERVE, PAGES * PAGE, Prot::None));
    if emptied.is_ok() {
        let map = check(&space);
        assert!(map.owned.is_empty(), "frames are kept after a discard");
        assert_eq!(space.frames.free() + map.tables.len() as u64, before);
    }
}

/// An error: memory ran out half-way, and the model cannot say where.
fn step(input: &mut Input<'_>, space: &mut Space<crate::machine::Mem>, model: &mut Model) -> Result<(), Refused> {
    let op = input.u8();
    let page = input.scaled() % PAGES;
    let at = RESERVE + page * PAGE;
    match op % 6 {
        0 | 1 => {
            let count = input.scaled().min(PAGES - page);
            let prot = Prot::from_number(u64::from(op >> 4) % 3).expect("a number below 3");
            space.protect(at, count * PAGE, prot)?;
            if count > 0 {
                model.protect(page, count, prot);
            }
        }
        2 => {
            let count = input.scaled().min(PAGES - page);
            space.discard(at, count * PAGE)?;
            model.content.retain(|p, _| *p < page || *p >= page + count);
        }
        3 => {
            let value = input.u8();
            let expected = if model.rights(page) == Prot::ReadWrite { Ok(()) } else { Err(Refused::Rights) };
            let got = user::write(space, at, &[value]);
            if got == Err(Refused::NoMemory) {
                return got;
            }
            assert_eq!(got, expected, "write to page {page:x}");
            if got.is_ok() {
                model.content.insert(page, value);
            }
        }
        4 => {
            let mut byte = [0xee];
            let expected = if model.rights(page) == Prot::None { Err(Refused::Rights) } else { Ok(()) };
            let got = user::read(space, at, &mut byte);
            if got == Err(Refused::NoMemory) {
                return got;
            }
            assert_eq!(got, expected, "read of page {page:x}");
            if got.is_ok() {
                assert_eq!(byte[0], model.content.get(&page).copied().unwrap_or(0), "content of page {page:x}");
            }
        }
        _ => {
            // A pointer that is not even canonical, or that is text.
            let at = if op & 16 == 0 { input.u64() } else { TEXT + u64::from(input.u16()) };
            let in_text = at & !(PAGE - 1) == TEXT;
            let in_reserve = at.wrapping_sub(RESERVE) < PAGES * PAGE;
            match space.touch(at, Access::Write) {
                Err(Refused::NoMemory) => return Err(Refused::NoMemory),
                Ok(_) => assert!(in_reserve, "wrote at {at:x}"),
                Err(Refused::Rights) => {}
            }
            match space.touch(at, Access::Read) {
                Err(Refused::NoMemory) => return Err(Refused::NoMemory),
                Ok(frame) => {
                    assert!(in_reserve || in_text, "read at {at:x}");
                    space.mem.read_u8(frame);
                }
                Err(Refused::Rights) => {}
            }
        }
    }
    Ok(())
}
