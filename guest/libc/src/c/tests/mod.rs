//! Tests against the host's own C library.

mod printf;
mod random;
mod strings;
