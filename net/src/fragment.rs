//! IP fragments, in and out (RFC 791, RFC 8200 §4.5), bounded.

use crate::addr::Ip;
use crate::ingress::Meta;
use crate::stack::Stack;
use crate::{Error, Handle};

pub(crate) struct Fragments {}

impl Fragments {
    pub const fn new() -> Fragments {
        Fragments {}
    }

    pub fn deadline(&self) -> Option<u64> {
        None
    }

    pub fn expire(&mut self, _now: u64) {}
}

impl Stack {
    pub(crate) fn fragment_input(&mut self, _meta: Meta, _id: (u32, u16, bool), _data: &[u8]) {}

    pub(crate) fn send_fragments(
        &mut self,
        _src: Ip,
        _dst: Ip,
        _protocol: u8,
        _data: &[u8],
        _owner: Option<Handle>,
    ) -> Result<(), Error> {
        Err(Error::MessageSize)
    }
}
