//! Running `wrk` and reading what it says.

use donjon_tests::Guest;
use serde::Serialize;

/// One load measurement.
#[derive(Clone, Serialize, Debug)]
pub struct Load {
    /// Connections.
    pub connections: u32,
    /// Requests per second.
    pub rate: f64,
    /// Requests in all.
    pub requests: f64,
    /// Median latency, microseconds.
    pub p50: f64,
    /// 99th percentile of the latency, microseconds.
    pub p99: f64,
    /// Largest latency, microseconds.
    pub max: f64,
    /// Errors, as wrk words them; empty if there were none.
    pub errors: String,
}

/// `wrk` with one thread on core 1, and these further arguments.
pub fn run(guest: &Guest, url: &str, more: &[&str], connections: u32, seconds: u32) -> Result<Load, String> {
    let output = guest
        .command("taskset")
        .args(["-c", "1", "wrk", "--latency", "--timeout", "10s", "-t1"])
        .args([format!("-c{connections}"), format!("-d{seconds}s")])
        .args(more)
        .arg(url)
        .output()
        .map_err(|e| format!("cannot run wrk: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    parse(connections, &text).ok_or_else(|| format!("wrk: {text}{}", String::from_utf8_lossy(&output.stderr)))
}

fn parse(connections: u32, text: &str) -> Option<Load> {
    let line = |start: &str| text.lines().map(str::trim).find_map(|l| l.strip_prefix(start)).map(str::trim);
    let errors: Vec<&str> = [line("Socket errors:"), line("Non-2xx or 3xx responses:")].into_iter().flatten().collect();
    Some(Load {
        connections,
        rate: line("Requests/sec:")?.parse().ok()?,
        // `140525 requests in 1.10s, 11.93MB read`
        requests: text.lines().find_map(|l| l.trim().split_once(" requests in ")?.0.parse().ok())?,
        p50: micros(line("50%")?)?,
        p99: micros(line("99%")?)?,
        // `Latency  avg  stdev  max  +/- stdev`
        max: micros(line("Latency ")?.split_whitespace().nth(2)?)?,
        errors: errors.join("; "),
    })
}

fn micros(text: &str) -> Option<f64> {
    let unit = text.find(|c: char| c.is_ascii_alphabetic())?;
    let number: f64 = text[..unit].parse().ok()?;
    Some(
        number
            * match &text[unit..] {
                "us" => 1.0,
                "ms" => 1e3,
                "s" => 1e6,
                "m" => 60e6,
                _ => return None,
            },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_wrk() {
        let text = "Running 1s test @ x\n  1 threads and 4 connections\n  Thread Stats   Avg      Stdev     Max   +/- Stdev\n    \
                    Latency    33.20us   52.82us   1.33ms   98.38%\n    Req/Sec   128.43k     5.32k  136.92k    72.73%\n  \
                    Latency Distribution\n     50%   27.00us\n     75%   31.00us\n     90%   40.00us\n     99%   1.20ms\n  \
                    140525 requests in 1.10s, 11.93MB read\n  Socket errors: connect 0, read 3, write 0, timeout 0\n\
                    Requests/sec: 127757.46\nTransfer/sec:     10.85MB\n";
        let load = parse(4, text).unwrap();
        assert_eq!((load.rate, load.p50, load.p99, load.max), (127_757.46, 27.0, 1200.0, 1330.0));
        assert_eq!(load.requests, 140_525.0);
        assert!(load.errors.contains("read 3"));
        assert!(parse(4, "unable to connect").is_none());
    }
}
