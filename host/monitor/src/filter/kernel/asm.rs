//! A small assembler for eBPF (Documentation/bpf/standardization/instruction-set.rst).

use super::super::Reason;

/// A register. `R0` returns, `R1` to `R5` pass arguments and are lost in a call, `R6` to `R9` stay, `R10` is the frame pointer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Reg {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
}

/// Width of a memory access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Width {
    B = 0x10,
    H = 0x08,
    W = 0x00,
    D = 0x18,
}

/// A comparison.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Cmp {
    Eq = 0x10,
    Gt = 0x20,
    Ne = 0x50,
}

/// An operation on a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Op {
    Add = 0x00,
    Sub = 0x10,
    Mul = 0x20,
    Div = 0x30,
    Or = 0x40,
    And = 0x50,
    Shl = 0x60,
    Shr = 0x70,
    Mov = 0xb0,
}

/// Where a jump goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Label(usize);

/// A program in the making.
#[derive(Debug, Default)]
pub(super) struct Asm {
    code: Vec<u64>,
    /// Where each label is.
    labels: Vec<Option<usize>>,
    /// Jumps and their targets.
    jumps: Vec<(usize, Label)>,
    drops: [Option<Label>; Reason::ALL.len()],
}

const ALU64: u8 = 0x07;
const ALU32: u8 = 0x04;
const JMP64: u8 = 0x05;
const JMP32: u8 = 0x06;
const BY_REGISTER: u8 = 0x08;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const LOAD_IMMEDIATE: u8 = 0x18;
const TO_BIG_ENDIAN: u8 = 0xdc;
const ATOMIC: u8 = 0xc0;

impl Asm {
    fn put(&mut self, op: u8, dst: Reg, src: u8, offset: i16, immediate: u32) {
        let registers = dst as u8 | src << 4;
        self.code.push(
            u64::from(op) | u64::from(registers) << 8 | u64::from(offset as u16) << 16 | u64::from(immediate) << 32,
        );
    }

    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    pub fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    /// Where to jump to drop the frame for that reason.
    pub fn drop(&mut self, reason: Reason) -> Label {
        if let Some(label) = self.drops[reason as usize] {
            return label;
        }
        let label = self.label();
        self.drops[reason as usize] = Some(label);
        label
    }

    /// The reasons that were used, with their labels.
    pub fn drops(&self) -> Vec<(Reason, Label)> {
        Reason::ALL.into_iter().filter_map(|r| Some((r, self.drops[r as usize]?))).collect()
    }

    pub fn op(&mut self, op: Op, dst: Reg, immediate: i32) {
        self.put(op as u8 | ALU64, dst, 0, 0, immediate as u32);
    }

    /// On the lower 32 bits; the upper ones become 0.
    pub fn op32(&mut self, op: Op, dst: Reg, immediate: u32) {
        self.put(op as u8 | ALU32, dst, 0, 0, immediate);
    }

    pub fn op_reg(&mut self, op: Op, dst: Reg, src: Reg) {
        self.put(op as u8 | ALU64 | BY_REGISTER, dst, src as u8, 0, 0);
    }

    /// The lower 16 bits from network order; the upper ones become 0.
    pub fn network16(&mut self, dst: Reg) {
        self.put(TO_BIG_ENDIAN, dst, 0, 0, 16);
    }

    pub fn load(&mut self, width: Width, dst: Reg, base: Reg, offset: i16) {
        self.put(0x61 | width as u8, dst, base as u8, offset, 0);
    }

    pub fn store(&mut self, width: Width, base: Reg, offset: i16, src: Reg) {
        self.put(0x63 | width as u8, base, src as u8, offset, 0);
    }

    pub fn store_immediate(&mut self, width: Width, base: Reg, offset: i16, value: u32) {
        self.put(0x62 | width as u8, base, 0, offset, value);
    }

    pub fn atomic_add(&mut self, base: Reg, offset: i16, src: Reg) {
        self.put(0x03 | Width::D as u8 | ATOMIC, base, src as u8, offset, 0);
    }

    pub fn jump(&mut self, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.put(JMP64, Reg::R0, 0, 0, 0);
    }

    /// Compares the lower 32 bits.
    pub fn jump_if(&mut self, cmp: Cmp, a: Reg, b: u32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.put(cmp as u8 | JMP32, a, 0, 0, b);
    }

    pub fn jump_if_reg(&mut self, cmp: Cmp, a: Reg, b: Reg, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.put(cmp as u8 | JMP64 | BY_REGISTER, a, b as u8, 0, 0);
    }

    pub fn constant(&mut self, dst: Reg, value: u64) {
        self.wide(dst, 0, [value as u32, (value >> 32) as u32]);
    }

    /// The map itself, as an argument.
    pub fn map(&mut self, dst: Reg, fd: i32) {
        self.wide(dst, 1, [fd as u32, 0]);
    }

    /// The address of the first value of an array.
    pub fn map_value(&mut self, dst: Reg, fd: i32) {
        self.wide(dst, 2, [fd as u32, 0]);
    }

    fn wide(&mut self, dst: Reg, kind: u8, [low, high]: [u32; 2]) {
        self.put(LOAD_IMMEDIATE, dst, kind, 0, low);
        self.put(0, Reg::R0, 0, 0, high);
    }

    pub fn call(&mut self, helper: u32) {
        self.put(CALL, Reg::R0, 0, 0, helper);
    }

    pub fn exit(&mut self) {
        self.put(EXIT, Reg::R0, 0, 0, 0);
    }

    /// The program, or `None` if a jump is too far.
    pub fn finish(mut self) -> Option<Vec<u64>> {
        for (at, to) in self.jumps {
            let distance = self.labels[to.0]? as i64 - at as i64 - 1;
            self.code[at] |= u64::from(i16::try_from(distance).ok()? as u16) << 16;
        }
        Some(self.code)
    }
}
