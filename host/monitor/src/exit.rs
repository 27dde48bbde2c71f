//! How a guest ended.

use std::fmt;

/// How a guest ended.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ExitStatus {
    /// It said so itself.
    Exited(u8),
    /// It crashed and said why. The report has been filtered for terminals.
    Fault {
        /// The guest's own code for it (134 for an abort), or 70.
        code: u8,
        /// Its report.
        report: String,
    },
    /// The host ended it for something that it must not do or have.
    Killed {
        /// What it did.
        reason: String,
    },
    /// The user ended it, by this signal, before it did so itself.
    Stopped {
        /// SIGINT or SIGTERM.
        signal: i32,
    },
}

impl ExitStatus {
    /// The exit code of `donjon run`: the guest's own; 70 for a crash without one; 128 + signal if the user ended it.
    pub fn code(&self) -> u8 {
        match self {
            ExitStatus::Exited(code) | ExitStatus::Fault { code, .. } => *code,
            ExitStatus::Killed { .. } => 70,
            ExitStatus::Stopped { signal } => 128u8.wrapping_add(*signal as u8),
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitStatus::Exited(code) => write!(f, "the guest ended with status {code}"),
            ExitStatus::Fault { report, .. } => write!(f, "the guest crashed\n{report}"),
            ExitStatus::Killed { reason } => write!(f, "the guest was killed: {reason}"),
            ExitStatus::Stopped { signal } => write!(f, "the guest was ended by signal {signal}"),
        }
    }
}
