//! End-to-end tests: images under every engine, talked to by real clients.

mod bad_input;
mod boot;
mod build;
mod cli;
mod dhcp;
mod examples;
mod frameworks;
mod hostile;
mod limits;
mod load;
mod machines;
mod outbound;
mod posix;
mod secrets;
mod security;
mod serve;
mod stdlib;
mod transfer;
mod web;

/// For each engine that this machine has: a test of the given function, with the engine's name.
#[macro_export]
macro_rules! under_engines {
    ($($test:ident: $($engine:ident)*;)*) => { $(
        mod $test {
            $crate::under_engines!(@one $test, $($engine)*);
        }
    )* };
    (@one $test:ident,) => {};
    (@one $test:ident, $engine:ident $($rest:ident)*) => {
        #[test]
        #[expect(non_snake_case, reason = "named like the engine")]
        fn $engine() {
            let engine = donjon_tests::Engine::$engine;
            if donjon_tests::missing(concat!(stringify!($test), "::", stringify!($engine)), engine.needs()) {
                return;
            }
            super::$test(engine);
        }
        $crate::under_engines!(@one $test, $($rest)*);
    };
}
