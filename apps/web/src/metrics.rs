//! Counters in Prometheus' text format.

use donjon_web_format::Config;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The server's counters. Status classes are 1xx to 5xx.
#[derive(Default)]
pub struct Metrics {
    responses: [AtomicU64; 5],
    /// Bytes of bodies that were passed on to connections.
    pub bytes: AtomicU64,
    /// Connections accepted since start.
    pub accepted: AtomicU64,
    /// Connections open now.
    pub open: AtomicU64,
    /// Requests in progress now.
    pub active: AtomicU64,
}

impl Metrics {
    /// Counts a response with its status.
    pub fn response(&self, status: u16) {
        if let Some(class) = self.responses.get(usize::from(status / 100).wrapping_sub(1)) {
            class.fetch_add(1, Relaxed);
        }
    }

    /// The text that a scraper gets.
    pub fn text(&self, _config: &Config) -> String {
        let mut out = String::from("# TYPE donjon_web_responses_total counter\n");
        for (i, class) in self.responses.iter().enumerate() {
            let _ = writeln!(out, "donjon_web_responses_total{{class=\"{}xx\"}} {}", i + 1, class.load(Relaxed));
        }
        for (name, kind, value) in [
            ("body_bytes_total", "counter", &self.bytes),
            ("connections_accepted_total", "counter", &self.accepted),
            ("connections_open", "gauge", &self.open),
            ("requests_active", "gauge", &self.active),
        ] {
            let _ = writeln!(out, "# TYPE donjon_web_{name} {kind}\ndonjon_web_{name} {}", value.load(Relaxed));
        }
        #[cfg(feature = "tls")]
        for (i, c) in _config.certificates.iter().enumerate() {
            const NAME: &str = "donjon_web_certificate_expiry_timestamp_seconds";
            if i == 0 {
                let _ = writeln!(out, "# TYPE {NAME} gauge");
            }
            let _ = write!(out, "{NAME}{{certificate=\"{}\",names=", i + 1);
            crate::log::string(&mut out, &c.names);
            let _ = writeln!(out, "}} {}", c.expires);
        }
        out
    }
}

/// Adds one to a gauge until dropped.
pub struct Held<'a>(&'a AtomicU64);

impl<'a> Held<'a> {
    /// Adds one.
    pub fn new(gauge: &'a AtomicU64) -> Held<'a> {
        gauge.fetch_add(1, Relaxed);
        Held(gauge)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(all(test, feature = "tls"))]
mod tests {
    use super::*;
    use donjon_web_format::Certificate;

    #[test]
    fn certificates_have_an_end() {
        let certificate =
            |names: &str, expires| Certificate { chain: "c".into(), key: "k".into(), names: names.into(), expires };
        let certificates = vec![certificate("a.example,*.b.example", 1_800_000_000), certificate("\"", -1)];
        let text = Metrics::default().text(&Config { certificates, ..Config::default() });
        let lines: Vec<_> = text.lines().filter(|line| line.contains("certificate")).collect();
        let name = "donjon_web_certificate_expiry_timestamp_seconds";
        assert_eq!(
            lines,
            [
                format!("# TYPE {name} gauge"),
                format!("{name}{{certificate=\"1\",names=\"a.example,*.b.example\"}} 1800000000"),
                format!("{name}{{certificate=\"2\",names=\"\\\"\"}} -1"),
            ]
        );
    }
}
