//! ICMP (RFC 792) and ICMPv6 (RFC 4443): echo, errors in, port unreachable out.

use crate::ingress::Meta;
use crate::stack::Stack;

impl Stack {
    pub(crate) fn icmp4_input(&mut self, _meta: &Meta, _data: &[u8]) {}

    pub(crate) fn icmp6_input(&mut self, _meta: &Meta, _data: &[u8]) {}

    pub(crate) fn port_unreachable(&mut self, _meta: &Meta, _packet: &[u8]) {
        let _ = self.icmp_bucket.take(self.now);
    }
}
