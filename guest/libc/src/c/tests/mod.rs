//! Tests against the host's own C library.

mod random;
mod strings;
