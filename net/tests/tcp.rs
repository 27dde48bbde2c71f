//! TCP between two stacks over a simulated link.

mod sim;

use donjon_net::*;
use sim::*;

#[test]
fn connects_moves_bytes_and_closes() {
    let mut sim = Sim::new(1);
    let (c, s) = sim.pair(80);
    transfer(&mut sim, 0, c, s, 3_000_000, 60 * SECOND);
    // Half-closed: the other direction still works.
    transfer(&mut sim, 1, s, c, 2_000_000, 60 * SECOND);
    sim.stacks[0].close(c);
    sim.stacks[1].close(s);
    sim.run(SECOND);
    assert_eq!(sim.stacks[0].counts(), (0, 0, 1));
    assert_eq!(sim.stacks[1].counts(), (0, 0, 0));
    assert_eq!(sim.stacks[0].memory_used() + sim.stacks[1].memory_used(), 0);
    sim.run(61 * SECOND);
    assert_eq!(sim.stacks[0].counts(), (0, 0, 0));
    assert_eq!(sim.stacks[0].deadline(), None);
}

#[test]
fn refuses_where_nobody_listens() {
    let mut sim = Sim::new(2);
    let c = sim.connect(0, at(2, 81));
    assert!(sim.run_until(SECOND, |s| s.stacks[0].readiness(c).contains(Ready::ERROR)));
    assert_eq!(sim.stacks[0].take_error(c), Some(Error::ConnectionRefused));
    sim.stacks[0].close(c);
    assert_eq!(sim.stacks[0].counts(), (0, 0, 0));
}
