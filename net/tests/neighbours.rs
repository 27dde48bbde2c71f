//! The Ethernet addresses of neighbours: how they are asked for, and what becomes of frames meanwhile.

mod sim;

use donjon_net::*;
use sim::*;
use std::cell::RefCell;
use std::rc::Rc;

/// Notes when side 0 asks for an Ethernet address (s), and whether it asks all; answers are lost if `silent`.
fn questions(sim: &mut Sim, silent: bool) -> Rc<RefCell<Vec<bool>>> {
    let asked = Rc::new(RefCell::new(Vec::new()));
    let log = asked.clone();
    sim.filter = Some(Box::new(move |side, f| {
        let arp = f[12..14] == [8, 6];
        if arp && side == 0 && f[21] == 1 {
            log.borrow_mut().push(f[0] == 0xff);
        }
        arp && silent
    }));
    asked
}

fn send(sim: &mut Sim, c: Handle, size: usize) {
    sim.stacks[0].send_to(c, &[&vec![7; size]], Some(at(2, 9)), None).unwrap();
}

/// How many bytes have come to side 1's socket.
fn arrived(sim: &mut Sim, u: Handle) -> Vec<usize> {
    let mut b = vec![0; 70_000];
    std::iter::from_fn(|| sim.stacks[1].recv_from(u, &mut [&mut b], RecvMode::Take).ok()).map(|d| d.len).collect()
}

fn sockets(sim: &mut Sim) -> (Handle, Handle) {
    let u = sim.stacks[1].udp_socket(Domain::V4).unwrap();
    sim.stacks[1].bind(u, at(2, 9), BindOptions::default()).unwrap();
    (sim.stacks[0].udp_socket(Domain::V4).unwrap(), u)
}

/// An address is used, however old, while its owner is asked whether it still has it.
#[test]
fn an_old_address_is_used_while_it_is_asked_for() {
    for age in [31, 121, 10_000] {
        let mut sim = Sim::new(1);
        let (c, u) = sockets(&mut sim);
        send(&mut sim, c, 1);
        sim.run(age * SECOND);
        assert_eq!(arrived(&mut sim, u), [1]);
        let asked = questions(&mut sim, false);
        for _ in 0..100 {
            send(&mut sim, c, 2);
        }
        sim.flush();
        // One way, and no round trip before it.
        sim.run(sim.delay);
        assert_eq!(arrived(&mut sim, u), [2; 100]);
        sim.run(10 * SECOND);
        assert_eq!(*asked.borrow(), [false]);
    }
}

/// Without an answer everybody is asked, and in the end the address is forgotten.
#[test]
fn an_address_that_nobody_confirms_is_forgotten() {
    let mut sim = Sim::new(2);
    let (c, u) = sockets(&mut sim);
    send(&mut sim, c, 1);
    sim.run(200 * SECOND);
    assert_eq!(arrived(&mut sim, u), [1]);
    let asked = questions(&mut sim, true);
    for _ in 0..6 {
        send(&mut sim, c, 2);
        sim.run(SECOND);
        assert_eq!(arrived(&mut sim, u), [2]);
    }
    assert_eq!(*asked.borrow(), [false, false, false, true, true, true]);
    // Nobody knows it any more, and all are asked.
    send(&mut sim, c, 3);
    sim.run(10 * MS);
    assert!(arrived(&mut sim, u).is_empty());
    assert_eq!(asked.borrow().last(), Some(&true));
    sim.run(10 * SECOND);
    assert_eq!((asked.borrow().len(), sim.stacks[0].deadline()), (9, None));
}

/// What is sent first waits for the answer: a burst of SYNs, a datagram of any size. What is beyond that is lost, not kept.
#[test]
fn frames_wait_for_the_first_answer() {
    let mut sim = Sim::new(3);
    let l = sim.listen(1, 80, 128);
    let (c, u) = sockets(&mut sim);
    send(&mut sim, c, 65_507);
    let connections: Vec<_> = (0..64).map(|_| sim.connect(0, at(2, 80))).collect();
    sim.run(100 * MS);
    assert_eq!(arrived(&mut sim, u), [65_507]);
    assert!(connections.iter().all(|c| sim.stacks[0].readiness(*c).contains(Ready::WRITABLE)));
    assert!(sim.stacks[1].accept(l).is_ok());
    // SYN-ACKs, to somebody whose address side 1 does not know yet.
    let mut sim = Sim::new(4);
    let _l = sim.listen(1, 80, 128);
    let trusted = NetHdr { flags: net_hdr::DATA_VALID, ..NetHdr::default() };
    for port in 0..64 {
        sim.stacks[1].input(sim.now, trusted, &raw_syn([10, 0, 0, 9], 1000 + port, 7));
    }
    sim.flush();
    let before = sim.frames[1];
    sim.stacks[1].input(sim.now, NetHdr::default(), &arp_reply([2, 0, 0, 0, 0, 9], [10, 0, 0, 9]));
    sim.flush();
    assert_eq!(sim.frames[1] - before, 64);
    // Much for somebody who is slow to answer: a part is kept.
    let mut sim = Sim::new(5);
    for _ in 0..10 {
        let c = sim.stacks[1].udp_socket(Domain::V4).unwrap();
        sim.stacks[1].send_to(c, &[&[7; 20_000]], Some(at(9, 9)), None).unwrap();
    }
    sim.flush();
    let before = sim.bytes[1];
    sim.stacks[1].input(sim.now, NetHdr::default(), &arp_reply([2, 0, 0, 0, 0, 9], [10, 0, 0, 9]));
    sim.flush();
    let sent = sim.bytes[1] - before;
    assert!((60_000..80_000).contains(&sent), "{sent}");
}
