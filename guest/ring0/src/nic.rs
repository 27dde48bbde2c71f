//! The network device: virtio-net (virtio 1.3 §5.1) below the gate.
//!
//! Descriptors name the shim's own buffers only (ADR 0003). There are few of them, however long the device's queues are, and they get
//! memory when they are first used.

use crate::iov::Iov;
use crate::phys::{Phys, PhysAddr};
use crate::pool::{Each, Pool};
use crate::space::{Access, Refused, Space};
use crate::transport::Transport;
use crate::user;
use crate::virtq::{Lie, Queue, SIZE_MAX, Writer};
use donjon_abi::boot::{self, net};
use donjon_abi::{FRAME_MAX, NET_HDR_LEN, NetHdr, net_hdr};

/// Bits of the feature word (§5.1.3).
mod feature {
    pub const CSUM: u64 = 1;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const MTU: u64 = 1 << 3;
    pub const MAC: u64 = 1 << 5;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_TSO6: u64 = 1 << 12;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const WANTED: u64 = CSUM | GUEST_CSUM | MTU | MAC | GUEST_TSO4 | GUEST_TSO6 | HOST_TSO4 | HOST_TSO6 | MRG_RXBUF;
}

/// Bytes of a receive buffer: a whole Ethernet frame.
const RX_SIZE: u32 = Each::HalfPage.size();
/// Receive buffers that the device gets at first, and each time it has run out of them. With segmentation offload it needs enough for
/// the largest frame at once, else it waits for more for ever.
const RX_STEP: [u16; 2] = [16, 64];
/// Most receive buffers.
const RX_MAX: [u16; 2] = [64, SIZE_MAX];
const RX: u16 = 0;
const TX: u16 = 1;
/// Most buffers that the longest frame takes.
const CHAIN_MAX: usize = FRAME_MAX.div_ceil(RX_SIZE as usize);
/// Least length of the send queue with segmentation offload: the longest frame takes 17 pages.
const TX_LEAST: u16 = FRAME_MAX.div_ceil(Each::Page.size() as usize).next_power_of_two() as u16;
/// Least payload of a segment that the device makes, bytes: Linux's own limit (TCP_MIN_SND_MSS).
const SEGMENT_LEAST: u16 = 48;
/// Most frames in one call.
const BATCH_MAX: u64 = 4096;

/// Why a call failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The guest's pointers.
    User(Refused),
    /// The guest's numbers.
    Invalid,
    /// The device broke the rules.
    Device(Lie),
}

impl From<Refused> for Failure {
    fn from(r: Refused) -> Self {
        Failure::User(r)
    }
}

impl From<Lie> for Failure {
    fn from(l: Lie) -> Self {
        Failure::Device(l)
    }
}

/// A running network device.
pub struct Nic {
    transport: Transport,
    rx: Queue,
    tx: Queue,
    notify: [PhysAddr; 2],
    rx_pool: Pool,
    tx_pool: Pool,
    features: u64,
    /// See [`RX_STEP`].
    step: u16,
    /// Receive buffers that the device has got so far.
    posted: u16,
    /// The last `send` found the device full.
    full: bool,
    /// The frame in hand.
    iov: Iov,
}

impl Nic {
    /// Starts the device and fills in its part of the boot page (`mac` only if the device has one).
    pub fn start<M: Phys>(space: &mut Space<M>, transport: Transport, out: &mut boot::Net) -> Result<Nic, Lie> {
        let mem = &mut space.mem;
        let mut wanted = feature::WANTED;
        let mut features = transport.negotiate(mem, wanted)?;
        // Large frames are received in merged buffers only, and neither side of segmentation works without its checksums.
        let mut forgo = 0;
        let maximum = [RX, TX].map(|q| transport.queue_max(mem, q));
        if features & feature::MRG_RXBUF == 0 || features & feature::GUEST_CSUM == 0 || maximum[0] < RX_STEP[1] {
            forgo |= feature::GUEST_TSO4 | feature::GUEST_TSO6;
        }
        // A queue that has no room for the longest frame would never take it. Its length is rounded down to a power of two.
        if features & feature::CSUM == 0 || maximum[1] < TX_LEAST {
            forgo |= feature::HOST_TSO4 | feature::HOST_TSO6;
        }
        if features & forgo != 0 {
            wanted &= !forgo;
            features = transport.negotiate(mem, wanted)?;
        }
        let large = usize::from(features & (feature::GUEST_TSO4 | feature::GUEST_TSO6) != 0);
        let mut frame = || space.frames.alloc(&mut space.mem).ok_or(Lie("there is no memory for its queues"));
        let (rx_page, tx_page) = (frame()?, frame()?);
        let short = Lie("its queues are too short");
        let rx = Queue::new(rx_page, maximum[0], RX_MAX[large]).ok_or(short)?;
        let tx = Queue::new(tx_page, maximum[1], SIZE_MAX).ok_or(short)?;
        let mem = &mut space.mem;
        transport.set_queue(mem, RX, &rx);
        transport.set_queue(mem, TX, &tx);
        let outside = Lie("its notification address is out of range");
        let notify =
            [transport.notify_address(mem, RX).ok_or(outside)?, transport.notify_address(mem, TX).ok_or(outside)?];
        rx.interrupts(mem, false);
        tx.interrupts(mem, false);
        describe(&transport, mem, features, out);
        let segments = features & (feature::HOST_TSO4 | feature::HOST_TSO6) != 0;
        let tx_pool = Pool::new(if segments { Each::Page } else { Each::HalfPage });
        let mut nic = Nic {
            transport,
            rx,
            tx,
            notify,
            rx_pool: Pool::new(Each::HalfPage),
            tx_pool,
            features,
            step: RX_STEP[large],
            posted: 0,
            full: false,
            iov: Iov::EMPTY,
        };
        nic.post(space, nic.step);
        if nic.posted == 0 {
            return Err(Lie("there is no memory for its buffers"));
        }
        transport.start(&mut space.mem);
        nic.rx.publish(&mut space.mem);
        transport.notify(&mut space.mem, nic.notify[0], RX);
        Ok(nic)
    }

    /// Whether frames can be received, or can be sent again.
    pub fn ready<M: Phys>(&mut self, space: &mut Space<M>) -> Result<bool, Lie> {
        if self.full && self.tx.pending(&space.mem)? > 0 {
            self.full = false;
            return Ok(true);
        }
        Ok(self.rx.pending(&space.mem)? > 0)
    }

    /// Switches the device's interrupts on (before sleeping) or off.
    pub fn interrupts<M: Phys>(&self, space: &mut Space<M>, on: bool) {
        self.rx.interrupts(&mut space.mem, on);
        self.tx.interrupts(&mut space.mem, on && self.full);
    }

    /// Acknowledges an interrupt.
    pub fn acknowledge<M: Phys>(&self, space: &mut Space<M>) {
        self.transport.acknowledge(&mut space.mem);
    }

    /// Stops the device when it has sent what it was given, or after `patience` looks at it.
    pub fn stop<M: Phys>(&mut self, space: &mut Space<M>, patience: u32) {
        for _ in 0..patience {
            if reclaim(&mut self.tx, &space.mem).is_err() || self.tx.flying() == 0 {
                break;
            }
        }
        self.transport.reset(&mut space.mem);
    }

    /// The gate's `net_send`.
    pub fn send<M: Phys>(&mut self, space: &mut Space<M>, frames: u64, count: u64) -> Result<u64, Failure> {
        if count > BATCH_MAX {
            return Err(Failure::Invalid);
        }
        reclaim(&mut self.tx, &space.mem)?;
        let mut sent = 0;
        let mut outcome = Ok(true);
        while sent < count {
            outcome = self.send_one(space, frames.wrapping_add(sent * 16));
            if outcome != Ok(true) {
                break;
            }
            sent += 1;
        }
        self.full = outcome == Ok(false);
        if self.tx.publish(&mut space.mem) {
            self.transport.notify(&mut space.mem, self.notify[1], TX);
        }
        match outcome {
            Err(e) if sent == 0 => Err(e),
            _ => Ok(sent),
        }
    }

    /// Whether the frame was taken (sent or dropped); `false` if the device is full.
    fn send_one<M: Phys>(&mut self, space: &mut Space<M>, frame: u64) -> Result<bool, Failure> {
        let iov = &mut self.iov;
        iov.read(space, frame)?;
        let total = iov.total;
        let well_formed = iov.first() == NET_HDR_LEN as u64 && total > NET_HDR_LEN as u64 + 14;
        if !well_formed || total > FRAME_MAX as u64 {
            return Ok(true);
        }
        let size = self.tx_pool.each.size();
        let needed = ((total as u32 + size - 1) >> self.tx_pool.each.shift()) as u16;
        if needed > self.tx.size() {
            return Ok(true);
        }
        if self.tx.free() < needed && (reclaim(&mut self.tx, &space.mem).is_err() || self.tx.free() < needed) {
            return Ok(false);
        }
        let mut chain = [(0, PhysAddr(0), 0); CHAIN_MAX];
        let mut taken = 0;
        let mut left = total as u32;
        let mut result = Ok(true);
        for slot in chain.iter_mut().take(needed.into()) {
            let Some(index) = self.tx.take() else { break };
            let Some(at) = self.tx_pool.back(space, index) else {
                self.tx.give(index);
                // Frames that are under way give their buffers back.
                result = if self.tx.flying() > 0 { Ok(false) } else { Err(Failure::User(Refused::NoMemory)) };
                break;
            };
            *slot = (index, at, left.min(size));
            left -= slot.2;
            taken += 1;
        }
        let chain = chain.get(..taken).unwrap_or_default();
        if left == 0 {
            result = chain
                .iter()
                .try_for_each(|(_, at, len)| iov.copy(space, *at, *len, Access::Read))
                .map(|()| true)
                .map_err(Failure::User);
        }
        let sound = result == Ok(true)
            && chain.first().is_some_and(|c| check_header(self.features, &mut space.mem, c.1, total));
        if sound {
            self.tx.push(&mut space.mem, chain.iter().copied(), Writer::Driver);
        } else {
            chain.iter().rev().for_each(|c| self.tx.give(c.0));
        }
        result
    }

    /// The gate's `net_recv`.
    pub fn receive<M: Phys>(&mut self, space: &mut Space<M>, frames: u64, count: u64) -> Result<u64, Failure> {
        if count > BATCH_MAX {
            return Err(Failure::Invalid);
        }
        let starved = self.rx.pending(&space.mem)? >= self.posted;
        let mut received = 0;
        let mut outcome = Ok(true);
        while received < count {
            outcome = self.receive_one(space, frames.wrapping_add(received * 16));
            match outcome {
                Ok(true) => received += 1,
                Ok(false) if self.rx.pending(&space.mem)? > 0 => {}
                _ => break,
            }
        }
        if starved && self.posted < self.rx.size() {
            self.post(space, self.step);
        }
        if self.rx.publish(&mut space.mem) {
            self.transport.notify(&mut space.mem, self.notify[0], RX);
        }
        match outcome {
            Err(e) if received == 0 => Err(e),
            _ => Ok(received),
        }
    }

    /// Whether a frame was received: `false` if none is there, or if one was dropped because the guest has no room for it.
    fn receive_one<M: Phys>(&mut self, space: &mut Space<M>, frame: u64) -> Result<bool, Failure> {
        if self.rx.pending(&space.mem)? == 0 {
            return Ok(false);
        }
        // The guest's side first: a frame is not lost to a bad pointer.
        let iov = &mut self.iov;
        iov.read(space, frame)?;
        let mut buffers = [(0u16, 0u32); CHAIN_MAX];
        let mut used = 0;
        let mut wanted = 1;
        let mut total = 0;
        while used < wanted {
            let popped = self.rx.pop(&space.mem)?.ok_or(Lie("a received frame is incomplete"))?;
            if popped.len > RX_SIZE || used == 0 && popped.len < NET_HDR_LEN as u32 + 14 {
                return Err(Lie("a received frame has an impossible length").into());
            }
            if used == 0 && self.features & feature::MRG_RXBUF != 0 {
                wanted = usize::from(space.mem.read_u16(self.rx_pool.at(popped.head).add(10)));
            }
            *buffers.get_mut(used).ok_or(Lie("a received frame has too many buffers"))? = (popped.head, popped.len);
            used += 1;
            total += popped.len;
        }
        let buffers = buffers.get(..used).unwrap_or_default();
        let fits = u64::from(total) <= iov.total;
        let mut result = Ok(fits);
        if fits {
            let copied = buffers
                .iter()
                .try_for_each(|(index, len)| iov.copy(space, self.rx_pool.at(*index), *len, Access::Write))
                .and_then(|()| user::write(space, frame.wrapping_add(12), &total.to_le_bytes()));
            result = copied.map(|()| true).map_err(Failure::User);
        }
        for (index, _) in buffers {
            let at = self.rx_pool.at(*index);
            self.rx.push(&mut space.mem, core::iter::once((*index, at, RX_SIZE)), Writer::Device);
        }
        result
    }

    /// Gives the device up to `count` more receive buffers.
    fn post<M: Phys>(&mut self, space: &mut Space<M>, count: u16) {
        for _ in 0..count {
            let Some(index) = self.rx.take() else { return };
            let Some(at) = self.rx_pool.back(space, index) else {
                self.rx.give(index);
                return;
            };
            self.rx.push(&mut space.mem, core::iter::once((index, at, RX_SIZE)), Writer::Device);
            self.posted += 1;
        }
    }
}

/// Checks the offload header, which is the shim's own copy, against what was negotiated and against the frame behind it: what the device fills in
/// must not be what a filter has looked at.
fn check_header(features: u64, mem: &mut impl Phys, at: PhysAddr, total: u64) -> bool {
    let mut bytes = [0; NET_HDR_LEN];
    mem.read(at, &mut bytes);
    let mut header = NetHdr::from_bytes(bytes);
    header.flags &= net_hdr::NEEDS_CSUM;
    // §5.1.6.2: the driver sets it to 0.
    header.num_buffers = 0;
    mem.write(at, &header.to_bytes());
    let has = |f| features & f != 0;
    let len = total - NET_HDR_LEN as u64;
    if header.flags == 0 {
        return header.gso_type == net_hdr::GSO_NONE && u64::from(header.hdr_len) <= len;
    }
    let Some((start, offset, cut)) = checksum(mem, at.add(NET_HDR_LEN as u64)) else { return false };
    let segments = match header.gso_type {
        net_hdr::GSO_NONE => true,
        net_hdr::GSO_TCPV4 => has(feature::HOST_TSO4),
        net_hdr::GSO_TCPV6 => has(feature::HOST_TSO6),
        _ => false,
    };
    has(feature::CSUM)
        && (header.csum_start, header.csum_offset) == (start, offset)
        && u64::from(start + offset) + 2 <= len
        && segments
        && (header.gso_type == net_hdr::GSO_NONE || header.gso_type == cut && header.gso_size >= SEGMENT_LEAST)
        && u64::from(header.hdr_len) <= len
}

/// Where the protocol of a frame has its checksum (RFC 9293 §3.1, RFC 768): from where to sum, how far behind that it is, and how the frame may be cut. The
/// frame may be shorter than that: a buffer is not.
fn checksum(mem: &impl Phys, frame: PhysAddr) -> Option<(u16, u16, u8)> {
    let byte = |at| mem.read_u8(frame.add(at));
    let (start, protocol, cut) = match (byte(12), byte(13), byte(14)) {
        // Whole ones (RFC 791 §3.1).
        (0x08, 0x00, 0x45) if byte(20) & 0x3f | byte(21) == 0 => (34, byte(23), net_hdr::GSO_TCPV4),
        (0x86, 0xdd, 0x60..=0x6f) => (54, byte(20), net_hdr::GSO_TCPV6),
        _ => return None,
    };
    match protocol {
        6 => Some((start, 16, cut)),
        17 => Some((start, 6, net_hdr::GSO_NONE)),
        _ => None,
    }
}

/// Takes back what the device has sent.
fn reclaim(tx: &mut Queue, mem: &impl Phys) -> Result<(), Lie> {
    while let Some(used) = tx.pop(mem)? {
        tx.release(used.head);
    }
    Ok(())
}

/// What the boot page says about the device.
fn describe(transport: &Transport, mem: &impl Phys, features: u64, out: &mut boot::Net) {
    let has = |f| features & f != 0;
    let config = |at| transport.config(mem, at);
    if has(feature::MAC) {
        out.mac = core::array::from_fn(|i| config(i as u64));
    }
    out.mtu = 1500;
    if has(feature::MTU) {
        let told = u32::from(config(10)) | u32::from(config(11)) << 8;
        // What is longer than a buffer needs merged ones. RFC 8200 §5 sets the least.
        let most = if has(feature::MRG_RXBUF) { 9000 } else { 1500 };
        out.mtu = told.clamp(1280, most);
    }
    for (feature, flag) in [
        (feature::CSUM, net::TX_CSUM),
        (feature::HOST_TSO4, net::TX_TSO4),
        (feature::HOST_TSO6, net::TX_TSO6),
        (feature::GUEST_CSUM, net::RX_GSO),
    ] {
        if has(feature) {
            out.flags |= flag;
        }
    }
}

#[cfg(test)]
#[path = "nic_tests.rs"]
mod tests;
