//! Percentiles beside budgets: a table for people, and the same rows as JSON for programs.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Every row that was printed, in order.
static ROWS: Mutex<Vec<Value>> = Mutex::new(Vec::new());

/// What the figures from here on are measured under: durability, TLS, limits, the disk.
static CONDITIONS: Mutex<String> = Mutex::new(String::new());

/// Durations in microseconds, up to ten minutes, three significant digits.
pub(crate) struct Samples(Histogram<u64>);

impl Samples {
    pub(crate) fn new() -> Self {
        Self(Histogram::new_with_bounds(1, 600_000_000, 3).expect("constant bounds are valid"))
    }

    pub(crate) fn record(&mut self, took: Duration) {
        self.0.saturating_record(took.as_micros() as u64);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("the bounds are equal");
    }

    pub(crate) fn at(&self, percentile: f64) -> Duration {
        Duration::from_micros(self.0.value_at_percentile(percentile))
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.len()
    }
}

/// Stands behind every figure until it is said anew.
pub(crate) fn under(conditions: String) {
    *CONDITIONS.lock().unwrap_or_else(PoisonError::into_inner) = conditions;
}

/// One line: what, percentiles, budget, and the figure of a Node.js implementation where there is one.
pub(crate) fn times(what: &str, samples: &Samples, budget: &str, node_js: Option<Duration>) {
    let percentiles = [50.0, 90.0, 99.0, 99.9, 100.0].map(|percentile| samples.at(percentile));
    let [p50, p90, p99, p999, max] = percentiles;
    let ratio = node_js.map_or_else(String::new, |them| {
        format!("  Node.js {} = {:.0}x", show(them), them.as_secs_f64() / p50.as_secs_f64().max(1e-6))
    });
    println!(
        "{what:<64} n={:<6} p50 {:>8}  p90 {:>8}  p99 {:>8}  p99.9 {:>8}  max {:>8}  budget {budget}{ratio}{}",
        samples.len(),
        show(p50),
        show(p90),
        show(p99),
        show(p999),
        show(max),
        conditions(),
    );
    let us = percentiles.map(|p| p.as_micros() as u64);
    keep(json!({"what": what, "n": samples.len(), "p50_us": us[0], "p90_us": us[1], "p99_us": us[2],
        "p999_us": us[3], "max_us": us[4], "budget": budget}));
}

/// One line with a single figure.
pub(crate) fn figure(what: &str, value: &str, budget: &str) {
    println!("{what:<64} {value}  budget {budget}{}", conditions());
    keep(json!({"what": what, "value": value, "budget": budget}));
}

fn conditions() -> String {
    let conditions = CONDITIONS.lock().unwrap_or_else(PoisonError::into_inner);
    if conditions.is_empty() { String::new() } else { format!("  [{conditions}]") }
}

fn keep(mut row: Value) {
    row["under"] = CONDITIONS.lock().unwrap_or_else(PoisonError::into_inner).as_str().into();
    ROWS.lock().unwrap_or_else(PoisonError::into_inner).push(row);
}

/// Writes all rows so far.
pub(crate) fn write_json(path: &Path) -> Result<()> {
    let rows = ROWS.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(std::fs::write(path, serde_json::to_vec_pretty(&*rows)?)?)
}

pub(crate) fn show(duration: Duration) -> String {
    let us = duration.as_micros();
    match us {
        0..10_000 => format!("{:.2} ms", us as f64 / 1000.0),
        10_000..10_000_000 => format!("{:.0} ms", us as f64 / 1000.0),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}
