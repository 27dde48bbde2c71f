//! A received segment, parsed.

use super::flag;
use smoltcp::wire::{TcpOption, TcpPacket};

/// A well-formed segment. Its payload may be longer than a packet (super-frames).
pub(crate) struct Segment<'a> {
    pub src_port: u16,
    pub dst_port: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    /// Timestamp option: value, echo.
    pub ts: Option<(u32, u32)>,
    pub sack: [Option<(u32, u32)>; 3],
    pub mss: Option<u16>,
    pub scale: Option<u8>,
    pub sack_permitted: bool,
    pub payload: &'a [u8],
}

impl<'a> Segment<'a> {
    pub fn parse(bytes: &'a [u8]) -> Option<Segment<'a>> {
        let p = TcpPacket::new_checked(bytes).ok()?;
        let [f] = *bytes.get(13..14)?.first_chunk::<1>()?;
        let mut s = Segment {
            src_port: p.src_port(),
            dst_port: p.dst_port(),
            seq: p.seq_number().0 as u32,
            ack: p.ack_number().0 as u32,
            flags: f & 0x3f,
            window: p.window_len(),
            ts: None,
            sack: [None; 3],
            mss: None,
            scale: None,
            sack_permitted: false,
            payload: p.payload(),
        };
        if s.src_port == 0 || s.dst_port == 0 {
            return None;
        }
        let mut options = p.options();
        while !options.is_empty() {
            // A malformed option ends the list; what came before counts, as in other stacks.
            let Ok((rest, option)) = TcpOption::parse(options) else { break };
            options = rest;
            match option {
                TcpOption::EndOfList => break,
                TcpOption::TimeStamp { tsval, tsecr } => s.ts = Some((tsval, tsecr)),
                TcpOption::SackRange(r) => s.sack = r,
                TcpOption::MaxSegmentSize(m) => s.mss = Some(m),
                TcpOption::WindowScale(w) => s.scale = Some(w.min(14)),
                TcpOption::SackPermitted => s.sack_permitted = true,
                _ => {}
            }
        }
        Some(s)
    }

    pub fn has(&self, bits: u8) -> bool {
        self.flags & bits != 0
    }

    /// Length in sequence space.
    pub fn len(&self) -> u32 {
        self.payload.len() as u32 + u32::from(self.has(flag::SYN)) + u32::from(self.has(flag::FIN))
    }
}
