//! Percentiles beside budgets, in one table.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Durations in microseconds, up to ten minutes, three significant digits.
pub(crate) struct Samples(Histogram<u64>);

impl Samples {
    pub(crate) fn new() -> Self {
        Self(Histogram::new_with_bounds(1, 600_000_000, 3).expect("constant bounds are valid"))
    }

    pub(crate) fn record(&mut self, took: Duration) {
        self.0.saturating_record(took.as_micros() as u64);
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("same bounds");
    }

    pub(crate) fn at(&self, percentile: f64) -> Duration {
        Duration::from_micros(self.0.value_at_percentile(percentile))
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.len()
    }
}

/// One line: what, percentiles, budget, and the figure of a Node.js implementation where there is one.
pub(crate) fn times(what: &str, samples: &Samples, budget: &str, node_js: Option<Duration>) {
    let (p50, p90, p99, max) = (samples.at(50.0), samples.at(90.0), samples.at(99.0), samples.at(100.0));
    let ratio = node_js.map_or_else(String::new, |them| {
        format!("  Node.js {} = {:.0}x", show(them), them.as_secs_f64() / p50.as_secs_f64().max(1e-6))
    });
    println!(
        "{what:<44} n={:<5} p50 {:>9}  p90 {:>9}  p99 {:>9}  max {:>9}  budget {budget}{ratio}",
        samples.len(),
        show(p50),
        show(p90),
        show(p99),
        show(max),
    );
}

/// One line with a single figure.
pub(crate) fn figure(what: &str, value: &str, budget: &str) {
    println!("{what:<44} {value}  budget {budget}");
}

pub(crate) fn show(duration: Duration) -> String {
    let us = duration.as_micros();
    match us {
        0..10_000 => format!("{:.2} ms", us as f64 / 1000.0),
        10_000..10_000_000 => format!("{:.0} ms", us as f64 / 1000.0),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}
