//! How a guest is brought to its end by the user: asked first, ended if it does not listen.

use std::time::{Duration, Instant};

/// The guest is asked again after this time: what comes before a virtual machine's serial port listens is lost. Its shim reports the first request only.
const AGAIN: Duration = Duration::from_millis(250);

/// How long a reader has for what a guest has said that the user has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What somebody at a terminal is told at the first request.
pub(crate) const ASKED: &str = "stopping the guest; once more ends it at once";

/// Most time that the peers of a guest that has ended get for what it has sent: whoever starts it anew waits for that.
const END: Duration = Duration::from_secs(10);

/// What is to be done now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    /// Nothing.
    Nothing,
    /// The same as `Ask`, for the first time: [`ASKED`] is to be said then.
    AskFirst,
    /// Ask the guest to stop.
    Ask,
    /// End it; the signal is the one to blame.
    Kill(i32),
}

/// Whether the guest has been asked.
#[derive(Debug)]
pub(crate) struct Stop {
    timeout: Duration,
    asked: Option<Asked>,
    killed: bool,
}

#[derive(Debug)]
struct Asked {
    signal: i32,
    kill_at: Instant,
    again_at: Instant,
}

impl Stop {
    /// `timeout` is how long the guest may take.
    pub fn new(timeout: Duration) -> Stop {
        Stop { timeout, asked: None, killed: false }
    }

    /// SIGINT, SIGTERM or SIGHUP has arrived.
    pub fn signal(&mut self, signal: i32, now: Instant) -> Action {
        if self.asked.is_none() {
            self.asked = Some(Asked { signal, kill_at: now + self.timeout, again_at: now + AGAIN });
            return Action::AskFirst;
        }
        self.kill(signal)
    }

    /// When [`Self::time`] is to be called.
    pub fn deadline(&self) -> Option<Instant> {
        self.asked.as_ref().filter(|_| !self.killed).map(|a| a.kill_at.min(a.again_at))
    }

    /// Time has passed.
    pub fn time(&mut self, now: Instant) -> Action {
        let Some(asked) = &mut self.asked else { return Action::Nothing };
        if now >= asked.kill_at {
            let signal = asked.signal;
            self.kill(signal)
        } else if now >= asked.again_at {
            asked.again_at = now + AGAIN;
            Action::Ask
        } else {
            Action::Nothing
        }
    }

    /// Until when, now that the guest has ended, what it has sent may still go out: as long as it might have taken itself, had it been asked at that time, and
    /// no longer than [`END`].
    pub fn end(&self, now: Instant) -> Instant {
        let most = now + self.timeout.min(END);
        match &self.asked {
            _ if self.killed => now,
            Some(asked) => asked.kill_at.min(most),
            None => most,
        }
    }

    /// Until when the reader of the guest's output is waited for, now that the guest has ended; `None` is for ever.
    pub fn patience(&self, now: Instant) -> Option<Instant> {
        let least = now + LAST_WORDS;
        if self.killed { Some(least) } else { self.asked.as_ref().map(|asked| asked.kill_at.max(least)) }
    }

    fn kill(&mut self, signal: i32) -> Action {
        if std::mem::replace(&mut self.killed, true) { Action::Nothing } else { Action::Kill(signal) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_then_kills_once() {
        let (start, s) = (Instant::now(), Duration::from_secs);
        let mut stop = Stop::new(s(10));
        assert_eq!((stop.deadline(), stop.time(start), stop.end(start + s(1))), (None, Action::Nothing, start + s(11)));
        assert_eq!(stop.signal(2, start), Action::AskFirst);
        assert_eq!(stop.end(start + s(1)), start + s(10));
        assert_eq!(stop.time(start + s(1)), Action::Ask);
        assert_eq!(stop.time(start + s(11)), Action::Kill(2));
        assert_eq!(stop.time(start + s(12)), Action::Nothing);
        assert_eq!((stop.deadline(), stop.end(start + s(12))), (None, start + s(12)));
        assert!(stop.patience(start).is_some());
        assert_eq!(Stop::new(s(86_400)).end(start), start + s(10));
        let mut stop = Stop::new(s(10));
        assert_eq!(stop.signal(2, start), Action::AskFirst);
        assert_eq!(stop.patience(start), Some(start + s(10)));
        assert_eq!(stop.signal(15, start), Action::Kill(15));
        assert_eq!(stop.signal(15, start), Action::Nothing);
    }
}
