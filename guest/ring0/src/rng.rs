//! The entropy device: virtio-rng (virtio 1.3 §5.4), used once, at boot.

use crate::phys::Phys;
use crate::space::Space;
use crate::transport::Transport;
use crate::virtq::{Queue, Writer};

/// Most looks at the queue until the device has answered.
const PATIENCE: u32 = if cfg!(fuzzing) { 1000 } else { 50_000_000 };

/// Fills `out` (at most a page) from the device; `None` if it does not answer, or not as it must.
pub fn read<M: Phys>(space: &mut Space<M>, transport: &Transport, out: &mut [u8]) -> Option<()> {
    let page = space.frames.alloc(&mut space.mem)?;
    let buffer = space.frames.alloc(&mut space.mem)?;
    let mem = &mut space.mem;
    transport.negotiate(mem, 0).ok()?;
    let offered = transport.queue_max(mem, 0);
    let mut queue = Queue::new(page, offered, 2)?;
    transport.set_queue(mem, 0, &queue);
    let notify = transport.notify_address(mem, 0)?;
    queue.interrupts(mem, false);
    transport.start(mem);
    let mut filled = 0;
    let mut patience = PATIENCE;
    while filled < out.len() {
        let index = queue.take()?;
        let left = out.len() - filled;
        queue.push(mem, core::iter::once((index, buffer, left as u32)), Writer::Device);
        if queue.publish(mem) {
            transport.notify(mem, notify, 0);
        }
        let used = loop {
            patience = patience.checked_sub(1)?;
            if let Some(used) = queue.pop(mem).ok()? {
                break used;
            }
            core::hint::spin_loop();
        };
        queue.release(used.head);
        let got = (used.len as usize).min(left);
        mem.read(buffer, out.get_mut(filled..filled + got)?);
        filled += got;
    }
    transport.reset(mem);
    mem.zero(buffer, donjon_abi::PAGE as usize);
    for frame in [page, buffer] {
        space.frames.release(&mut space.mem, frame);
    }
    Some(())
}
