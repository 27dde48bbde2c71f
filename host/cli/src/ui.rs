//! Talk on standard error: colours and progress only where a person looks.

use std::{
    cell::OnceCell,
    env,
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use donjon_monitor::Starting;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};

/// Whether standard error takes colours.
pub fn colour() -> bool {
    env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) && io_is_terminal()
}

/// Whether a person looks at standard error.
pub fn io_is_terminal() -> bool {
    std::io::stderr().is_terminal() && env::var_os("TERM").is_none_or(|t| t != "dumb")
}

/// A spinner with a text; nothing where no person looks.
pub fn spinner(text: impl Into<String>) -> ProgressBar {
    if !io_is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = still(text, ProgressDrawTarget::stderr());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// A spinner that turns when it is told to.
fn still(text: impl Into<String>, target: ProgressDrawTarget) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, target);
    let template = if colour() { "{spinner:.cyan} {msg}" } else { "{spinner} {msg}" };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(text.into());
    bar
}

/// Shows that a virtual machine is starting. Without a thread: the monitor forks, and is jailed.
pub fn starting(how_far: Starting) {
    thread_local!(static BAR: OnceCell<ProgressBar> = const { OnceCell::new() });
    let make = || still("starting the virtual machine", ProgressDrawTarget::term_like(Box::new(Plain)));
    BAR.with(|bar| match how_far {
        Starting::Waiting => bar.get_or_init(make).tick(),
        Starting::Over => bar.get().into_iter().for_each(ProgressBar::finish_and_clear),
    });
}

/// Standard error as a terminal of which nothing is asked: in the jail there is no `ioctl`.
#[derive(Debug)]
struct Plain;

impl Plain {
    fn control(n: usize, letter: char) -> io::Result<()> {
        if n > 0 { Self::put(&format!("\x1b[{n}{letter}")) } else { Ok(()) }
    }

    /// Nothing if the terminal has no room (Ctrl-S): the machine, which has started meanwhile, would wait.
    fn put(s: &str) -> io::Result<()> {
        let errors = io::stderr();
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut polled = [rustix::event::PollFd::new(&errors, rustix::event::PollFlags::OUT)];
        match rustix::event::poll(&mut polled, Some(&now)) {
            Ok(0) | Err(_) => Ok(()),
            Ok(_) => (&errors).write_all(s.as_bytes()),
        }
    }
}

impl TermLike for Plain {
    fn width(&self) -> u16 {
        // What is shown is short.
        80
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        Self::control(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        Self::control(n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        Self::control(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        Self::control(n, 'D')
    }

    fn write_line(&self, s: &str) -> io::Result<()> {
        Self::put(&format!("{s}\n"))
    }

    fn write_str(&self, s: &str) -> io::Result<()> {
        Self::put(s)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.write_str("\r\x1b[2K")
    }

    fn flush(&self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Bytes with separators, as they are read most easily.
pub fn bytes(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn bytes_have_separators() {
        let got: Vec<String> = [0, 999, 1000, 1_234_567].into_iter().map(super::bytes).collect();
        assert_eq!(got, ["0", "999", "1,000", "1,234,567"]);
    }
}
