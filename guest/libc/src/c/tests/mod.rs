//! Tests against the host's own C library.

mod numbers;
mod printf;
mod random;
mod strings;
mod times;
