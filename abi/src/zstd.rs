//! Unpacks a Zstandard frame (RFC 8878). For the shim, which has no allocator, as the crates that do it want, and for whoever reads a stranger's image: no `unsafe`,
//! no memory but [`Tables`], and whatever the bytes are, an end.
//!
//! Frames without a dictionary; a checksum is not looked at (the image has its own). As the whole content is at hand, a distance may be as long as that.

/// Most bytes that one block unpacks to.
const BLOCK_MAX: usize = 128 << 10;
/// Most bits of a Huffman code.
const HUFFMAN_BITS_MAX: u32 = 11;
/// Most bits of a state of literal lengths and match lengths.
const STATE_BITS_MAX: u32 = 9;
/// So many bytes are copied where fewer would do, if there are as many.
const SHORT: usize = 16;
/// Whether to: the shim is in every image, and smaller without.
const FAST: bool = cfg!(not(donjon_guest));

/// What codes mean, from one block to the next: 28 KB, of no use afterwards.
#[derive(Debug)]
pub struct Tables {
    /// By the next bits of the input: the byte, and the length of its code.
    huffman: [(u8, u8); 1 << HUFFMAN_BITS_MAX],
    /// Bits that choose in `huffman`; 0 if there is no code yet.
    huffman_bits: u32,
    /// Of literal lengths, distances, match lengths, and of the lengths of a Huffman code.
    states: [States; 4],
}

/// A finite-state code.
#[derive(Debug)]
struct States {
    entries: [Entry; 1 << STATE_BITS_MAX],
    /// Bits of a state; none if there is no code yet.
    bits: Option<u32>,
}

#[derive(Clone, Copy, Default, Debug)]
struct Entry {
    symbol: u8,
    /// Bits that are read for the next state, and what they are added to.
    bits: u8,
    base: u16,
    /// The same for the number that the symbol stands for.
    extra: u8,
    first: u32,
}

impl Tables {
    /// Without a code: all zeros.
    pub const fn new() -> Tables {
        Tables { huffman: [(0, 0); 1 << HUFFMAN_BITS_MAX], huffman_bits: 0, states: [NONE; 4] }
    }

    fn clear(&mut self) {
        self.huffman_bits = 0;
        self.states.iter_mut().for_each(|s| s.bits = None);
    }
}

impl Default for Tables {
    fn default() -> Self {
        Self::new()
    }
}

/// Without a code.
const NONE: States =
    States { entries: [Entry { symbol: 0, bits: 0, base: 0, extra: 0, first: 0 }; 1 << STATE_BITS_MAX], bits: None };

/// What the symbols of a kind stand for (RFC 8878, 3.1.1.3.2.1.1), and the code that need not be sent (3.1.1.3.2.2).
struct Kind {
    /// Most bits of a state.
    bits_max: u32,
    /// The least number that a symbol stands for, and how many bits are added to the least of each. These follow each other without a gap.
    least: u32,
    extra: &'static [u8],
    /// Bits of a state of the known code, and how often each symbol is in it.
    known: (u32, &'static [i8]),
}

/// Literal lengths, distances, match lengths.
const KINDS: [Kind; 3] = [
    Kind {
        bits_max: 9,
        least: 0,
        extra: &[
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14,
            15, 16,
        ],
        known: (
            6,
            &[
                4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1,
                -1, -1,
            ],
        ),
    },
    Kind {
        bits_max: 8,
        least: 1,
        extra: &[
            0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28,
            29, 30, 31,
        ],
        known: (5, &[1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1]),
    },
    Kind {
        bits_max: 9,
        least: 3,
        extra: &[
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1,
            2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
        ],
        known: (
            6,
            &[
                1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1,
            ],
        ),
    },
];

/// Unpacks `frame` into `out`, and says how many bytes that were; `None` if the frame is damaged, has more than that, or something follows it.
/// `tables` need not be empty.
pub fn unpack(frame: &[u8], out: &mut [u8], tables: &mut Tables) -> Option<usize> {
    tables.clear();
    let mut input = frame;
    if take(&mut input, 4)? != 0xfd2f_b528u32.to_le_bytes() {
        return None;
    }
    let descriptor = *input.split_off_first()?;
    let single = descriptor & 0x20 != 0;
    if descriptor & 0x0b != 0 {
        return None;
    }
    // Window, and length of the content: the caller knows that.
    take(&mut input, usize::from(!single))?;
    take(&mut input, if descriptor >> 6 == 0 { usize::from(single) } else { 1 << (descriptor >> 6) })?;

    let (mut at, mut repeated) = (0, [1, 4, 8]);
    loop {
        let head = number(take(&mut input, 3)?);
        let len = (head >> 3) as usize;
        at = match head >> 1 & 3 {
            0 => {
                let end = at + len;
                out.get_mut(at..end)?.copy_from_slice(take(&mut input, len)?);
                end
            }
            1 => {
                let end = at + len;
                out.get_mut(at..end)?.fill(*input.split_off_first()?);
                end
            }
            2 => block(take(&mut input, len)?, out, at, tables, &mut repeated)?,
            _ => return None,
        };
        if head & 1 != 0 {
            break;
        }
    }
    take(&mut input, usize::from(descriptor & 4))?;
    input.is_empty().then_some(at)
}

/// Unpacks a compressed block to `out` from `at` on, and says where it ends. `repeated` are the last three distances.
#[cfg_attr(donjon_guest, inline(never))]
fn block(
    mut input: &[u8],
    out: &mut [u8],
    mut at: usize,
    tables: &mut Tables,
    repeated: &mut [usize; 3],
) -> Option<usize> {
    // Literals wait at the end of the room that a block may need: what is unpacked before them comes to an end there at most where they begin.
    let room = out.len().min(at + BLOCK_MAX);
    let mut literal = literals(&mut input, out.get_mut(at..room)?, tables)? + at;

    let mut count = usize::from(*input.split_off_first()?);
    if count == 255 {
        count = number(take(&mut input, 2)?) as usize + 0x7f00;
    } else if count > 127 {
        count = (count - 128) << 8 | usize::from(*input.split_off_first()?);
    }
    if count > 0 {
        let modes = *input.split_off_first()?;
        if modes & 3 != 0 {
            return None;
        }
        for ((states, kind), place) in tables.states.iter_mut().zip(&KINDS).zip([6, 4, 2]) {
            states.read(modes >> place & 3, kind, &mut input)?;
        }
        let mut bits = Bits::new(input)?;
        let [of_literals, of_distances, of_matches, _] = &tables.states;
        let mut l = of_literals.start(&mut bits)?;
        let mut d = of_distances.start(&mut bits)?;
        let mut m = of_matches.start(&mut bits)?;
        loop {
            // 57 bits are there: up to 31, up to 32 for two lengths, up to 26 for what comes next.
            bits.fill();
            let distance = d.first as usize + bits.next(u32::from(d.extra)) as usize;
            if d.extra > 24 {
                bits.fill();
            }
            let length = (m.first + bits.next(u32::from(m.extra))) as usize;
            let before = (l.first + bits.next(u32::from(l.extra))) as usize;

            // The last three distances have numbers; without literals the last one would have been part of the match before. Without a branch, as nobody can foresee it.
            let [first, second, third] = *repeated;
            let (new, known) = (distance > 3, distance.wrapping_sub(usize::from(before > 0)) & 3);
            let (far, old) = (distance.wrapping_sub(3), [first, second, third, first.wrapping_sub(1)][known]);
            let distance = if new { far } else { old };
            *repeated = [
                distance,
                if new || known > 0 { first } else { second },
                if new || known > 1 { second } else { third },
            ];

            if before > room - literal {
                return None;
            }
            if FAST && before <= SHORT && literal - at >= SHORT && out.len() - literal >= SHORT {
                short(out, literal, at)?;
            } else {
                out.copy_within(literal..literal + before, at);
            }
            (literal, at) = (literal + before, at + before);
            repeat(out, distance, at, length, literal)?;
            at += length;

            count -= 1;
            if count == 0 {
                break;
            }
            bits.fill();
            l = of_literals.next(l, &mut bits)?;
            m = of_matches.next(m, &mut bits)?;
            d = of_distances.next(d, &mut bits)?;
        }
        if !bits.ended() {
            return None;
        }
    } else if !input.is_empty() {
        return None;
    }
    let rest = room - literal;
    out.copy_within(literal..room, at);
    Some(at + rest)
}

/// Copies within `out` what lies `distance` before it, up to `limit` at most; what has been copied is copied again where it reaches into itself.
fn repeat(out: &mut [u8], distance: usize, at: usize, len: usize, limit: usize) -> Option<()> {
    let from = at.checked_sub(distance).filter(|_| distance > 0 && len <= limit - at)?;
    if FAST && len <= SHORT && distance >= SHORT && limit - at >= SHORT {
        return short(out, from, at);
    }
    let area = out.get_mut(from..at + len)?;
    let mut done = distance;
    while done < area.len() {
        let n = done.min(area.len() - done);
        let (have, to) = area.split_at_mut(done);
        to.get_mut(..n)?.copy_from_slice(have.get(..n)?);
        done += n;
    }
    Some(())
}

/// More than is asked for, but at once.
fn short(out: &mut [u8], from: usize, to: usize) -> Option<()> {
    let bytes: [u8; SHORT] = *out.get(from..)?.first_chunk()?;
    *out.get_mut(to..)?.first_chunk_mut()? = bytes;
    Some(())
}

/// Puts a block's literals at the end of `room`, and says where they begin.
#[cfg_attr(donjon_guest, inline(never))]
fn literals(input: &mut &[u8], room: &mut [u8], tables: &mut Tables) -> Option<usize> {
    let first = *input.first()?;
    let (kind, form) = (first & 3, first >> 2 & 3);
    if kind < 2 {
        let (head, shift) = [(1, 3), (2, 4), (1, 3), (3, 4)][usize::from(form)];
        let len = (number(take(input, head)?) >> shift) as usize;
        let start = room.len().checked_sub(len)?;
        let to = room.get_mut(start..)?;
        match kind {
            0 => to.copy_from_slice(take(input, len)?),
            _ => to.fill(*input.split_off_first()?),
        }
        return Some(start);
    }
    let (head, width) = [(3, 10), (3, 10), (4, 14), (5, 18)][usize::from(form)];
    let sizes = number(take(input, head)?) >> 4;
    let mask = (1 << width) - 1;
    let mut packed = take(input, (sizes >> width & mask) as usize)?;
    let start = room.len().checked_sub((sizes & mask) as usize)?;
    if kind == 2 {
        tables.read_huffman(&mut packed)?;
    }
    let mut to = room.get_mut(start..)?;
    if form == 0 {
        tables.decode(packed, to)?;
        return Some(start);
    }
    let mut jumps = take(&mut packed, 6)?;
    let quarter = to.len().div_ceil(4);
    for _ in 0..3 {
        let len = number(take(&mut jumps, 2)?) as usize;
        tables.decode(take(&mut packed, len)?, to.split_off_mut(..quarter)?)?;
    }
    tables.decode(packed, to)?;
    Some(start)
}

impl Tables {
    /// Reads a Huffman code, as the length of each byte's.
    #[cfg_attr(donjon_guest, inline(never))]
    fn read_huffman(&mut self, input: &mut &[u8]) -> Option<()> {
        let mut weights = [0u8; 256];
        let head = usize::from(*input.split_off_first()?);
        let mut count = 0;
        if head >= 128 {
            count = head - 127;
            let bytes = take(input, count.div_ceil(2))?;
            for (pair, byte) in weights.chunks_exact_mut(2).zip(bytes) {
                pair.copy_from_slice(&[byte >> 4, byte & 15]);
            }
            // What is left of the last byte is the place of the weight that follows.
            *weights.get_mut(count)? = 0;
        } else {
            let mut input = take(input, head)?;
            let [.., states] = &mut self.states;
            states.receive(6, &mut input)?;
            let mut bits = Bits::new(input)?;
            let (mut now, mut other) = (states.start(&mut bits)?, states.start(&mut bits)?);
            loop {
                *weights.get_mut(count)? = now.symbol;
                count += 1;
                bits.fill();
                now = states.next(now, &mut bits)?;
                if bits.beyond() {
                    *weights.get_mut(count)? = other.symbol;
                    count += 1;
                    break;
                }
                (now, other) = (other, now);
            }
        }
        // The last weight fills what is left.
        let mut sum = 0u32;
        for weight in &weights {
            if u32::from(*weight) > HUFFMAN_BITS_MAX {
                return None;
            }
            sum += 1 << weight >> 1;
        }
        let bits = sum.checked_ilog2()? + 1;
        let left = (1u32 << bits) - sum;
        if bits > HUFFMAN_BITS_MAX || !left.is_power_of_two() {
            return None;
        }
        *weights.get_mut(count)? = left.ilog2() as u8 + 1;
        // The longest codes first, each as often as the bits that it leaves free can be.
        let mut at = 0;
        for weight in 1..=bits as u8 {
            for (symbol, _) in weights.iter().enumerate().filter(|(_, w)| **w == weight) {
                let end = at + (1 << (weight - 1));
                self.huffman.get_mut(at..end)?.fill((symbol as u8, bits as u8 + 1 - weight));
                at = end;
            }
        }
        self.huffman_bits = bits;
        Some(())
    }

    /// Fills `out` with bytes of that code.
    fn decode(&self, input: &[u8], out: &mut [u8]) -> Option<()> {
        let mut bits = Bits::new(input)?;
        // Without a code there are no bits to choose by.
        let table = self.huffman.get(..1 << self.huffman_bits.checked_sub(1)? << 1)?;
        for several in out.chunks_mut(56 / HUFFMAN_BITS_MAX as usize) {
            bits.fill();
            for to in several {
                let (symbol, len) = *table.get(bits.peek(self.huffman_bits) as usize)?;
                bits.skip(u32::from(len));
                *to = symbol;
            }
        }
        bits.ended().then_some(())
    }
}

impl States {
    /// Makes ready for a block, in one of four ways.
    #[cfg_attr(donjon_guest, inline(never))]
    fn read(&mut self, mode: u8, kind: &Kind, input: &mut &[u8]) -> Option<()> {
        match mode {
            0 => {
                let mut counts = [0; 64];
                counts.iter_mut().zip(kind.known.1).for_each(|(to, n)| *to = i16::from(*n));
                self.build(&counts, kind.known.0)?;
            }
            1 => {
                *self.entries.first_mut()? = Entry { symbol: *input.split_off_first()?, ..Entry::default() };
                self.bits = Some(0);
            }
            2 => self.receive(kind.bits_max, input)?,
            _ => return self.bits.map(|_| ()),
        }
        let (mut firsts, mut next) = ([0; 64], kind.least);
        for (first, extra) in firsts.iter_mut().zip(kind.extra) {
            *first = next;
            next = next.wrapping_add(1 << extra);
        }
        for entry in self.entries.get_mut(..1 << self.bits?)? {
            let symbol = usize::from(entry.symbol);
            (entry.first, entry.extra) = (*firsts.get(symbol)?, *kind.extra.get(symbol)?);
        }
        Some(())
    }

    /// Reads how often each symbol is (RFC 8878, 4.1.1).
    fn receive(&mut self, bits_max: u32, input: &mut &[u8]) -> Option<()> {
        let mut counts = [0i16; 64];
        let mut at = 0u32;
        let bits_of = |at: &mut u32, n: u32| {
            let place = (*at / 8) as usize;
            let mut word = [0; 4];
            let have = input.get(place..)?;
            word.iter_mut().zip(have).for_each(|(to, from)| *to = *from);
            let value = u32::from_le_bytes(word) >> (*at % 8) & ((1 << n) - 1);
            *at += n;
            Some(value)
        };
        let bits = bits_of(&mut at, 4)? + 5;
        if bits > bits_max {
            return None;
        }
        let (mut left, mut count) = (1u32 << bits, 0);
        while left > 0 {
            // A number up to left + 1, the smaller ones in one bit less.
            let width = (left + 1).ilog2() + 1;
            let mut value = bits_of(&mut at, width)?;
            let (low, spare) = (value & ((1 << (width - 1)) - 1), (1 << width) - 2 - left);
            if low < spare {
                value = low;
                at -= 1;
            } else if value != low {
                value -= spare;
            }
            let frequency = value as i16 - 1;
            *counts.get_mut(count)? = frequency;
            count += 1;
            left -= u32::from(frequency.unsigned_abs());
            // How many follow that do not occur, by threes.
            let mut more = if frequency == 0 { 3 } else { 0 };
            while more == 3 {
                more = bits_of(&mut at, 2)?;
                count += more as usize;
            }
        }
        take(input, at.div_ceil(8) as usize)?;
        self.build(&counts, bits)
    }

    /// Lays out the states for symbols that are so frequent; -1 is less than once.
    fn build(&mut self, counts: &[i16], bits: u32) -> Option<()> {
        let size = 1usize << bits;
        let entries = self.entries.get_mut(..size)?;
        let (mut high, mut at) = (size, 0);
        for (symbol, _) in counts.iter().enumerate().filter(|(_, n)| **n < 0) {
            high = high.checked_sub(1)?;
            entries.get_mut(high)?.symbol = symbol as u8;
        }
        for (symbol, n) in counts.iter().enumerate() {
            for _ in 0..*n {
                entries.get_mut(at)?.symbol = symbol as u8;
                // An odd step comes to every place, and there are as many as symbols.
                at = (at + size / 2 + size / 8 + 3) & (size - 1);
                while at >= high {
                    at = (at + size / 2 + size / 8 + 3) & (size - 1);
                }
            }
        }
        let mut next = [1u16; 64];
        next.iter_mut().zip(counts).filter(|(_, n)| **n > 0).for_each(|(next, n)| *next = *n as u16);
        for entry in entries {
            let next = next.get_mut(usize::from(entry.symbol))?;
            let more = bits - next.checked_ilog2()?;
            (entry.bits, entry.base) = (more as u8, (*next << more) - size as u16);
            *next += 1;
        }
        self.bits = Some(bits);
        Some(())
    }

    #[cfg_attr(donjon_guest, inline(never))]
    fn start(&self, bits: &mut Bits<'_>) -> Option<Entry> {
        bits.fill();
        self.entries.get(bits.next(self.bits?) as usize).copied()
    }

    #[cfg_attr(donjon_guest, inline(never))]
    fn next(&self, now: Entry, bits: &mut Bits<'_>) -> Option<Entry> {
        self.entries.get(usize::from(now.base) + bits.next(u32::from(now.bits)) as usize).copied()
    }
}

/// Bits that are read from the end to the beginning; before the beginning there are zeros.
struct Bits<'a> {
    /// What was not taken into `word`.
    input: &'a [u8],
    /// The next bits, the first one highest.
    word: u64,
    /// How many of `word` are input's; fewer than none if more were read than there are.
    have: i32,
}

impl<'a> Bits<'a> {
    /// Behind the highest bit that is set.
    fn new(input: &'a [u8]) -> Option<Self> {
        let end = input.last()?.checked_ilog2()?;
        let mut bits = Bits { input, word: 0, have: 0 };
        bits.fill();
        bits.skip(8 - end);
        Some(bits)
    }

    /// Takes in enough for more than 56 bits, if there is as much.
    #[cfg_attr(donjon_guest, inline(never))]
    fn fill(&mut self) {
        if !(0..=56).contains(&self.have) {
            return;
        }
        if FAST && let Some((rest, last)) = self.input.split_last_chunk() {
            // The bits of a byte that has not all its place are taken in again.
            self.word |= u64::from_le_bytes(*last) >> self.have;
            let bytes = (64 - self.have) / 8;
            self.input = self.input.get(..rest.len() + 8 - bytes as usize).unwrap_or_default();
            self.have += 8 * bytes;
            return;
        }
        while self.have <= 56
            && let Some((byte, rest)) = self.input.split_last()
        {
            self.word |= u64::from(*byte) << (56 - self.have);
            self.input = rest;
            self.have += 8;
        }
    }

    /// The next `n` bits, of at most 32.
    #[inline]
    fn peek(&self, n: u32) -> u32 {
        (self.word >> 1 >> (63 - n)) as u32
    }

    #[inline]
    fn skip(&mut self, n: u32) {
        self.word <<= n;
        self.have -= n as i32;
    }

    /// The same, and they are read.
    #[cfg_attr(donjon_guest, inline(never))]
    fn next(&mut self, n: u32) -> u32 {
        let value = self.peek(n);
        self.skip(n);
        value
    }

    /// Whether all was read, and no more.
    fn ended(&self) -> bool {
        self.have == 0 && self.input.is_empty()
    }

    /// Whether more was read than there is.
    fn beyond(&self) -> bool {
        self.have < 0
    }
}

/// Cuts the first `len` bytes off.
#[cfg_attr(donjon_guest, inline(never))]
fn take<'a>(input: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    input.split_off(..len)
}

/// Up to eight bytes as a number.
#[cfg_attr(donjon_guest, inline(never))]
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rfold(0, |n, byte| n << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::vec::Vec;

    fn unpacked(frame: &[u8], len: usize) -> Option<Vec<u8>> {
        let mut out = std::vec![0xaa; len];
        let mut tables = Tables::new();
        // What was there before does no harm.
        tables.huffman_bits = 11;
        tables.states.iter_mut().for_each(|s| s.bits = Some(9));
        (unpack(frame, &mut out, &mut tables)? == len).then_some(out)
    }

    fn random(state: &mut u64) -> usize {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (*state >> 33) as usize
    }

    /// Of many kinds: what repeats near and far, what is skewed, what is random, one byte, words.
    fn contents() -> Vec<Vec<u8>> {
        let state = &mut 7;
        let mut all: Vec<Vec<u8>> = std::vec![Vec::new(), std::vec![5], b"abc".to_vec(), std::vec![0; 300_000]];
        for len in [10, 300, 5000, 70_000, 300_000] {
            all.push((0..len).map(|_| random(state) as u8).collect());
            all.push((0..len).map(|_| random(state).trailing_zeros() as u8).collect());
            all.push((0..len).map(|_| (random(state) % 7 * (random(state) % 30)) as u8).collect());
            all.push((0..len).flat_map(|i| (i as u32 / 3 * 0x1001).to_le_bytes()).collect());
            let mut repeats: Vec<u8> = (0..50).map(|_| random(state) as u8).collect();
            while repeats.len() < len {
                let (from, n) = (random(state) % repeats.len(), random(state) % 60);
                let piece = repeats[from..].iter().copied().take(n).collect::<Vec<_>>();
                repeats.extend(piece);
                repeats.extend((0..random(state) % 9).map(|_| (random(state) & 0x3f) as u8));
            }
            all.push(repeats);
        }
        all.push(include_bytes!("image.rs").repeat(20));
        all.push(std::fs::read(std::env::current_exe().unwrap()).unwrap()[..200_000].to_vec());
        all
    }

    #[test]
    fn what_the_library_packs_comes_back() {
        for (i, content) in contents().iter().enumerate() {
            for level in if content.len() < 100_000 { &[-50, 1, 3, 9, 19, 22][..] } else { &[1, 19] } {
                let frame = zstd::bulk::compress(content, *level).unwrap();
                assert!(unpacked(&frame, content.len()).as_ref() == Some(content), "{i} at level {level}");
                assert_eq!(unpacked(&frame, content.len() + 1), None);
                assert_eq!(unpacked(&[&frame[..], b"x"].concat(), content.len()), None);
                if !content.is_empty() {
                    assert_eq!(unpacked(&frame, content.len() - 1), None);
                }
            }
        }
        // In pieces, without a length, with a checksum.
        let content = contents().pop().unwrap();
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 5).unwrap();
        encoder.include_checksum(true).unwrap();
        for piece in content.chunks(77_777) {
            std::io::Write::write_all(&mut encoder, piece).unwrap();
            std::io::Write::flush(&mut encoder).unwrap();
        }
        assert!(unpacked(&encoder.finish().unwrap(), content.len()) == Some(content));
    }

    /// A Huffman code's lengths may be sent by a code that has any symbols.
    #[test]
    fn weights_are_bounded() {
        for first in [11, 30, 31, 40] {
            let mut bits = std::vec![(0u32, 4)];
            // As many symbols that do not occur, by threes, then two that share 32 states.
            bits.push((1, 5));
            bits.extend(std::vec![(3, 2); (first - 1) / 3]);
            bits.extend([((first - 1) as u32 % 3, 2), (17, 5), (31, 5)]);
            let (mut word, mut len) = (0u128, 0);
            for (value, n) in bits {
                word |= u128::from(value) << len;
                len += n;
            }
            let mut description = word.to_le_bytes()[..usize::div_ceil(len, 8)].to_vec();
            description.extend([0xff, 0xff, 0xff, 1]);
            description.insert(0, description.len() as u8);
            let mut tables = Tables::new();
            assert_eq!(tables.read_huffman(&mut &description[..]), None, "{first}");
        }
    }

    /// Whatever is changed, there is an end without a panic; and where the library unpacks it, too, the content is the same.
    #[test]
    fn damage_does_no_harm() {
        let state = &mut 1;
        let (mut refused, mut same) = (0, 0);
        for content in contents().into_iter().filter(|c| c.len() < 30_000) {
            for level in [1, 19] {
                let frame = zstd::bulk::compress(&content, level).unwrap();
                for cut in (0..frame.len()).step_by(1 + frame.len() / 100) {
                    assert_eq!(unpacked(&frame[..cut], content.len()), None, "cut at {cut}");
                }
                for _ in 0..400 {
                    let mut damaged = frame.clone();
                    for _ in 0..=random(state) % 3 {
                        // More often where the codes are.
                        let limit = if random(state).is_multiple_of(2) { damaged.len().min(60) } else { damaged.len() };
                        damaged[random(state) % limit] ^= 1 << (random(state) % 8);
                    }
                    let ours = unpacked(&damaged, content.len());
                    let theirs =
                        zstd::bulk::decompress(&damaged, content.len()).ok().filter(|c| c.len() == content.len());
                    match (ours, theirs) {
                        (None, _) => refused += 1,
                        (Some(ours), Some(theirs)) => {
                            assert!(ours == theirs);
                            same += 1;
                        }
                        // The library looks at the length in the header, too.
                        (Some(_), None) => {}
                    }
                }
            }
        }
        assert!(refused > 1000 && same > 20, "{refused} {same}");
    }
}
