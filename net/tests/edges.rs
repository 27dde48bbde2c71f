//! TCP at its edges: how connections begin and end beside others, and what a receiver makes of what arrives.

mod sim;

use donjon_net::*;
use sim::*;

/// A neighbour that does not exist ends the connections that wait for it, not what has their place since.
#[test]
fn a_question_without_answer_ends_only_who_asked() {
    // The slot is used again: by another socket, or by another attempt of the same.
    for same in [false, true] {
        let mut sim = Sim::new(1);
        let (_, _) = sim.pair(80);
        let waits = sim.connect(0, at(77, 80));
        let options = TcpOptions { user_timeout: 500, ..sim.stacks[0].tcp_options(waits).unwrap() };
        sim.stacks[0].set_tcp_options(waits, options).unwrap();
        sim.run(1500 * MS);
        sim.filter = Some(Box::new(|side, f| side == 0 && f[12..14] == [8, 0]));
        let c = if same {
            assert_eq!(sim.stacks[0].take_error(waits), Some(Error::TimedOut));
            sim.stacks[0].set_tcp_options(waits, TcpOptions { user_timeout: 0, ..options }).unwrap();
            sim.stacks[0].connect(waits, at(2, 81)).unwrap();
            waits
        } else {
            sim.stacks[0].abort(waits);
            sim.connect(0, at(2, 81))
        };
        sim.run(3 * SECOND);
        assert!(!sim.stacks[0].readiness(c).contains(Ready::ERROR), "same socket: {same}");
    }
}
