//! After the guest's end: what it has sent is given to the host's sockets.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt;

use super::flow::{Flow, Phase};
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
            && let Some(ready) = ready(&flows, signals, until)
        {
            let mut ready = ready.into_iter();
            flows.retain_mut(|flow| ready.next() == Some(false) || self.is_waiting(flow));
        }
    }

    /// Whether the host's side must take more first.
    fn is_waiting(&mut self, flow: &mut Flow) -> bool {
        let waits = flow.deliver(&mut self.stack, &mut self.scratch);
        if flow.is_delivered() {
            let _ = sockopt::set_socket_linger(&flow.socket, None);
        }
        waits
    }
}

/// Time between two looks at whether what the host has taken has arrived, which no event tells.
const ARRIVING: Duration = Duration::from_millis(10);

/// Which of them are to be looked at again; waits for one that is. `None` if it is time to give up. (The reactor would tell of the guest's end all the time.)
fn ready(flows: &[Box<Flow>], signals: &Signals, until: Instant) -> Option<Vec<bool>> {
    let lingers = |flow: &Flow| flow.phase == Phase::Lingers && !flow.wanted().write;
    loop {
        let left = until.checked_duration_since(Instant::now())?;
        let left = if flows.iter().any(|flow| lingers(flow)) { left.min(ARRIVING) } else { left };
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut polled = vec![PollFd::new(signals, PollFlags::IN)];
        polled.extend(flows.iter().map(|flow| {
            let mut flags = PollFlags::OUT;
            if lingers(flow) {
                flags = PollFlags::empty();
                flags.set(PollFlags::IN, flow.wanted().read);
            }
            PollFd::new(&flow.socket, flags)
        }));
        match poll(&mut polled, Some(&left)) {
            Ok(_) if std::iter::from_fn(|| signals.next()).any(|signal| signal != CPU_TIMER) => return None,
            Err(Errno::INTR) => {}
            Ok(_) => {
                let ready = flows.iter().zip(&polled[1..]);
                return Some(ready.map(|(flow, p)| lingers(flow) || !p.revents().is_empty()).collect());
            }
            Err(_) => return None,
        }
    }
}
