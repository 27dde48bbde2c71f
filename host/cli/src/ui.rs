//! Talk on standard error: colours and progress only where a person looks.

use std::{env, io::IsTerminal as _, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

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
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let template = if colour() { "{spinner:.cyan} {msg}" } else { "{spinner} {msg}" };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(text.into());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
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
