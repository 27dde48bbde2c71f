//! The host's request to stop.

/// Whether the host has asked, and whether the guest knows.
///
/// The host asks again until the machine has ended, as a byte that comes before the serial port listens is lost; the guest hears it once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Request {
    /// Nobody has asked.
    #[default]
    Not,
    /// The guest does not know yet.
    Asked,
    /// The guest knows.
    Told,
}

impl Request {
    /// The host asks.
    pub fn ask(&mut self) {
        if *self == Request::Not {
            *self = Request::Asked;
        }
    }

    /// Whether the guest is to be told now; it is then.
    pub fn take(&mut self) -> bool {
        let asked = *self == Request::Asked;
        if asked {
            *self = Request::Told;
        }
        asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_told_once() {
        let mut stop = Request::default();
        assert!(!stop.take());
        stop.ask();
        stop.ask();
        assert!(stop.take());
        assert!(!stop.take());
        stop.ask();
        assert!(!stop.take());
    }
}
