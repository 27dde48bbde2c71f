//! After the guest's end: what it has sent is given to the host's sockets.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt;

use super::flow::{Delivery, Flow};
use super::{Source, UserNet};
use crate::reactor::Reactor;
use crate::signals::{CPU_TIMER, Signals};

impl UserNet {
    /// The guest has ended. What it sent before still goes out, and for what clients do not take at once there is time until `until`, or until a signal comes.
    ///
    /// A connection ends with a reset if the guest did not end it, or if something is left then: what has arrived may not be all.
    pub fn finish(&mut self, reactor: &Reactor, signals: &Signals, until: Instant) {
        // Nobody sends any more: it comes to an end.
        while self.receive_frames(reactor) {}
        // Whoever comes now is refused.
        self.tcp_listeners.clear();
        self.udp_listeners.clear();
        let numbers: Vec<u64> = self.sources.iter().map(|(number, _)| number).collect();
        let sources = numbers.into_iter().filter_map(|number| self.sources.remove(number));
        let mut flows: Vec<Box<Flow>> = sources
            .filter_map(|source| match source {
                Source::Flow(flow) => Some(flow),
                _ => None,
            })
            .collect();
        // Also if the monitor is ended in between.
        for flow in &flows {
            let _ = sockopt::set_socket_linger(&flow.socket, Some(Duration::ZERO));
        }
        flows.retain_mut(|flow| self.is_waiting(flow));
        while !flows.is_empty()
            && let Some(ready) = writable(&flows, signals, until)
        {
            let mut ready = ready.into_iter();
            flows.retain_mut(|flow| ready.next() == Some(false) || self.is_waiting(flow));
        }
    }

    /// Whether the host's side must take more first.
    fn is_waiting(&mut self, flow: &mut Flow) -> bool {
        let delivery = flow.deliver(&mut self.stack, &mut self.scratch);
        if delivery == Delivery::Done {
            let _ = sockopt::set_socket_linger(&flow.socket, None);
        }
        delivery == Delivery::Waits
    }
}

/// Which of them take bytes; waits for one that does. `None` if it is time to give up. (The reactor would tell of the guest's end all the time.)
fn writable(flows: &[Box<Flow>], signals: &Signals, until: Instant) -> Option<Vec<bool>> {
    loop {
        let left = until.checked_duration_since(Instant::now())?;
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut polled = vec![PollFd::new(signals, PollFlags::IN)];
        polled.extend(flows.iter().map(|flow| PollFd::new(&flow.socket, PollFlags::OUT)));
        match poll(&mut polled, Some(&left)) {
            Ok(_) if std::iter::from_fn(|| signals.next()).any(|signal| signal != CPU_TIMER) => return None,
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Some(polled[1..].iter().map(|p| !p.revents().is_empty()).collect()),
            Err(_) => return None,
        }
    }
}
