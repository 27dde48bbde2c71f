//! Files, threads and `SO_LINGER`, as POSIX and Linux have them.

use std::io::{ErrorKind, Read, Write};

use donjon_tests::{Engine, Guest, test_guest};

crate::under_engines! {
    files_of_the_bundle: ProcessUser QemuMicrovm QemuQ35;
    what_may_be_asked_of_files: ProcessUser;
    where_linux_is_particular: ProcessUser QemuMicrovm;
    threads: ProcessUser QemuMicrovm QemuQ35;
    a_stack_that_overflows_is_reported: ProcessUser QemuMicrovm;
    linger: ProcessUser QemuMicrovm;
    linger_and_a_peer_outside: ProcessUser ProcessTap QemuMicrovm;
    an_exit_ends_connections_in_order: ProcessUser ProcessTap QemuMicrovm;
    the_last_thread_ends_the_program: ProcessUser QemuMicrovm;
    an_exit_leaves_keys_alone: ProcessUser;
    an_exit_does_not_wait_for_readers: ProcessUser QemuMicrovm;
    ordinary_calls_without_memory: ProcessUser QemuMicrovm QemuQ35;
    full_tables_without_memory: ProcessUser QemuMicrovm;
    signals_between_threads: ProcessUser QemuMicrovm;
    a_request_to_stop_is_heard_once: ProcessUser QemuMicrovm QemuQ35;
}

fn run(engine: Engine, case: &str) -> donjon_tests::Exit {
    Guest::builder(&test_guest("posix"), engine).memory("64M").args([case]).run()
}

fn files_of_the_bundle(engine: Engine) {
    run(engine, "bundle").expect_code(0).expect_text("PASS bundle");
}

fn what_may_be_asked_of_files(engine: Engine) {
    run(engine, "files").expect_code(0).expect_text("PASS files");
}

fn where_linux_is_particular(engine: Engine) {
    run(engine, "calls").expect_code(0).expect_text("PASS calls");
}

fn threads(engine: Engine) {
    run(engine, "threads").expect_code(0).expect_text("PASS threads");
}

fn a_stack_that_overflows_is_reported(engine: Engine) {
    let exit = run(engine, "overflow");
    assert!(!exit.stdout.contains("FAILURE") && !matches!(exit.code, Some(0 | 1) | None), "{exit}");
    exit.expect_text("thread 'small'").expect_text("has overflowed its stack");
}

fn linger(engine: Engine) {
    run(engine, "linger").expect_code(0).expect_text("PASS linger");
}

fn linger_and_a_peer_outside(engine: Engine) {
    let mut guest = Guest::builder(&test_guest("posix"), engine).port(9000).args(["linger-serve"]).start();
    guest.wait_console("listening");
    let mut stream = guest.connect().unwrap();
    stream.write_all(b"1234").unwrap();
    let error = stream.read_to_end(&mut Vec::new()).map_err(|e| e.kind());
    assert_eq!(error, Err(ErrorKind::ConnectionReset), "{}", guest.log());
    // Everything has arrived: that is told to who waits for it, though nothing else happens.
    let mut stream = guest.connect().unwrap();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"hello");
    guest.wait().expect_code(0);
}

fn an_exit_ends_connections_in_order(engine: Engine) {
    let mut guest = Guest::builder(&test_guest("posix"), engine).port(9000).args(["exit-serve"]).start();
    guest.wait_console("listening");
    let mut stream = guest.connect().unwrap();
    stream.write_all(b"1234").unwrap();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer).map_err(|e| e.kind());
    assert_eq!((read, answer.len()), (Ok(10_100), 10_100), "{}", guest.log());
    guest.wait().expect_code(0);
}

fn the_last_thread_ends_the_program(engine: Engine) {
    run(engine, "last-thread").expect_code(0).expect_text("PASS last-thread").expect_text("held in a stream");
}

fn an_exit_leaves_keys_alone(engine: Engine) {
    let exit = run(engine, "key-at-exit");
    exit.expect_code(0).expect_text("PASS key-at-exit");
    assert!(!exit.stdout.contains("FAILURE"), "{exit}");
}

fn an_exit_does_not_wait_for_readers(engine: Engine) {
    let exit = run(engine, "exit-while-others-read");
    exit.expect_code(0).expect_text("PASS exit-while-others-read").expect_text("held in a stream");
}

fn ordinary_calls_without_memory(engine: Engine) {
    for memory in ["8M", "16M"] {
        let exit = Guest::builder(&test_guest("posix"), engine).memory(memory).args(["short-of-memory"]).run();
        exit.expect_code(0).expect_text("PASS short-of-memory");
    }
}

fn full_tables_without_memory(engine: Engine) {
    run(engine, "full-tables").expect_code(0).expect_text("PASS full-tables");
}

fn signals_between_threads(engine: Engine) {
    run(engine, "signals").expect_code(0).expect_text("PASS signals");
}

fn a_request_to_stop_is_heard_once(engine: Engine) {
    let mut guest = Guest::builder(&test_guest("posix"), engine).memory("64M").args(["stop"]).start();
    guest.wait_console("waiting");
    guest.stop().expect_code(0).expect_text("PASS stop");
}
