//! The process engine with a guest that works directly on the gate.

mod common;

use common::{run, run_with};

#[test]
fn hello_prints_and_exits_7() {
    let r = run(&["hello"]);
    assert_eq!((r.code, r.out.as_str(), r.err.as_str()), (Some(7), "hello from test-guest\n", ""));
}
