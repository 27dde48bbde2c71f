//! A DHCP client (RFC 2131).

use crate::Lease;
use crate::stack::Stack;

pub(crate) struct Dhcp {
    on: bool,
}

impl Dhcp {
    pub fn new(on: bool, _now: u64) -> Dhcp {
        Dhcp { on }
    }

    pub fn is_on(&self) -> bool {
        self.on
    }

    pub fn wants_anything(&self) -> bool {
        false
    }

    pub fn lease(&self) -> Option<Lease> {
        None
    }

    pub fn deadline(&self) -> Option<u64> {
        None
    }
}

impl Stack {
    pub(crate) fn dhcp_input(&mut self, _data: &[u8]) {}

    pub(crate) fn dhcp_timer(&mut self) {}
}
