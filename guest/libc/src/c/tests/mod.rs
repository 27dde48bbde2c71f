//! Tests against the host's own C library.

mod numbers;
mod printf;
mod random;
mod scanf;
mod streams;
mod strings;
mod times;
