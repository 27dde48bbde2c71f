//! The table and the JSON.

use donjon_tests::target_dir;
use serde::Serialize;

use crate::Options;
use crate::client::Figures;

/// One cell of both servers.
#[derive(Serialize)]
pub struct Row {
    pub name: String,
    pub nginx: Result<Figures, String>,
    pub donjon: Result<Figures, String>,
}

/// Prints the table.
pub fn print(rows: &[Row], options: &Options) {
    println!(
        "\nDonjon against nginx; {} s each; ratios are Donjon / nginx; /CPU-s: for each second that the server was on its core; \
         both: for each second that server and client were on theirs\n",
        options.seconds
    );
    println!(
        "{:<30} {:>9} {:>9} {:>6} {:>9} {:>9} {:>6} {:>6} {:>8} {:>8} {:>8} {:>8}  busy: server, client",
        "", "nginx/s", "donjon/s", "", "n/CPU-s", "d/CPU-s", "", "both", "p50 n us", "p50 d us", "p99 n us", "p99 d us"
    );
    for row in rows {
        let (Ok(n), Ok(d)) = (&row.nginx, &row.donjon) else {
            for (who, result) in [("nginx", &row.nginx), ("donjon", &row.donjon)] {
                if let Err(e) = result {
                    println!("{:<30} {who} FAILED: {}", row.name, e.trim());
                }
            }
            continue;
        };
        let show = |v: Option<f64>| v.map_or("-".to_owned(), |v| format!("{v:.0}"));
        let percent = |f: &Figures| {
            let one = |v: Option<f64>| v.map_or("-".to_owned(), |v| format!("{:.0} %", v * 100.0));
            format!("{}, {}", one(f.server_busy), one(f.client_busy))
        };
        println!(
            "{:<30} {:>9.0} {:>9.0} {:>6} {:>9} {:>9} {:>6} {:>6} {:>8} {:>8} {:>8} {:>8}  n {}; d {}{}",
            row.name,
            n.rate,
            d.rate,
            ratio(Some(n.rate), Some(d.rate)),
            show(n.rate_per_cpu),
            show(d.rate_per_cpu),
            ratio(n.rate_per_cpu, d.rate_per_cpu),
            ratio(n.rate_per_both(), d.rate_per_both()),
            show(n.p50),
            show(d.p50),
            show(n.p99),
            show(d.p99),
            percent(n),
            percent(d),
            limit(n, d)
        );
        for (who, f) in [("nginx", n), ("donjon", d)].iter().filter(|(_, f)| !f.note.is_empty()) {
            println!("{:<30} {who}: {}", "", f.note);
        }
    }
}

/// Whether it was the client that could do no more.
fn limit(n: &Figures, d: &Figures) -> &'static str {
    let client_bound = |f: &Figures| f.client_busy.is_some_and(|c| c > 0.9) && f.server_busy.is_some_and(|s| s < 0.9);
    match (client_bound(n), client_bound(d)) {
        (true, true) => "  (the client is the limit of both)",
        (true, false) => "  (the client is nginx's limit)",
        (false, true) => "  (the client is Donjon's limit)",
        (false, false) => "",
    }
}

fn ratio(nginx: Option<f64>, donjon: Option<f64>) -> String {
    match (nginx, donjon) {
        (Some(n), Some(d)) if n > 0.0 => format!("{:.2}x", d / n),
        _ => "-".to_owned(),
    }
}

/// Writes `target/bench-web.json`.
pub fn write(rows: &[Row]) {
    let json = target_dir().join("bench-web.json");
    let text = serde_json::to_string_pretty(rows).expect("plain data");
    match std::fs::write(&json, text) {
        Ok(()) => println!("\nwritten to {}", json.display()),
        Err(e) => eprintln!("cannot write {}: {e}", json.display()),
    }
}
