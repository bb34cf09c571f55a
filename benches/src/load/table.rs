//! The table that is printed.

use std::fmt;
use std::time::Duration;

/// Rows in the order they were measured, and tables of other columns after them.
#[derive(Default)]
pub(crate) struct Table(Vec<[String; 4]>, Vec<String>);

impl Table {
    /// A figure that should not be larger than the target.
    pub(crate) fn at_most(&mut self, what: &str, value: f64, unit: &str, target: f64) {
        self.row(
            what,
            format!("{} {unit}", number(value)),
            format!("{} {unit}", number(target)),
            value <= target,
        );
    }

    /// A duration that should not be longer than the target in seconds.
    pub(crate) fn seconds(&mut self, what: &str, value: Duration, target: f64) {
        let value = value.as_secs_f64();
        self.row(what, format!("{value:.2} s"), format!("{target} s"), value <= target);
    }

    /// A rate that should not be smaller than the target.
    pub(crate) fn at_least(&mut self, what: &str, value: f64, unit: &str, target: f64) {
        self.row(
            what,
            format!("{} {unit}", number(value)),
            format!("{} {unit}", number(target)),
            value >= target,
        );
    }

    /// A figure without a target.
    pub(crate) fn note(&mut self, what: &str, value: String) {
        eprintln!("{what}: {value}");
        self.0.push([what.to_owned(), value, String::new(), String::new()]);
    }

    /// Begins a table of its own below.
    pub(crate) fn heading(&mut self, columns: &[&str]) {
        self.1.push(format!("\n| {} |\n|{}", columns.join(" | "), " --- |".repeat(columns.len())));
    }

    /// A row of that table.
    pub(crate) fn line(&mut self, cells: &[String]) {
        let line = format!("| {} |", cells.join(" | "));
        eprintln!("{line}");
        self.1.push(line);
    }

    /// How many targets were missed.
    pub(crate) fn missed(&self) -> usize {
        self.0.iter().filter(|row| row[3] == "no").count()
    }

    fn row(&mut self, what: &str, value: String, target: String, kept: bool) {
        eprintln!("{what}: {value} (target {target})");
        self.0.push([what.to_owned(), value, target, if kept { "yes" } else { "no" }.to_owned()]);
    }
}

/// Thousands are grouped, small numbers keep their decimals.
fn number(value: f64) -> String {
    if value < 100.0 {
        let text = format!("{value:.2}");
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| what | measured | target | kept |\n| --- | --- | --- | --- |")?;
        self.0.iter().try_for_each(|row| writeln!(f, "| {} |", row.join(" | ")))?;
        self.1.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// The value below which `share` (0 to 1) of the sorted values lie.
pub(crate) fn percentile(sorted: &[Duration], share: f64) -> Duration {
    let last = sorted.len().saturating_sub(1);
    let index = (last as f64 * share).round() as usize;
    sorted.get(index).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        for (value, text) in [
            (0.3, "0.3"),
            (5.0, "5"),
            (99.999, "100"),
            (500.4, "500"),
            (12345.0, "12,345"),
            (1_000_000.0, "1,000,000"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn percentiles_of_few_values() {
        let values: Vec<Duration> = (0..=100).map(Duration::from_millis).collect();
        assert_eq!(percentile(&values, 0.5), Duration::from_millis(50));
        assert_eq!(percentile(&values, 0.99), Duration::from_millis(99));
        assert_eq!(percentile(&[], 0.5), Duration::ZERO);
    }
}
