//! What an evaluation costs. Upstream's units (cel-go `interpreter/runtimecost.go`, apiserver
//! `pkg/cel/library/cost.go`): about one for every step, a tenth for every character that is gone through. A
//! million of them is about a tenth of a second.

use std::sync::Arc;

use regex::Regex;

use super::value::Value;
use super::{Error, Stop};

/// How many regular expressions are kept while an expression is evaluated.
const PATTERNS: usize = 16;

/// What one evaluation may cost (apiserver `PerCallLimit`).
pub const PER_CALL: u64 = 1_000_000;

/// What all evaluations for one thing may cost together.
#[derive(Debug)]
pub struct Budget(u64);

impl Budget {
    /// For the rules of one custom resource, or for one binding of a policy (`RuntimeCELCostBudget`).
    pub fn validation() -> Self {
        Self(10_000_000)
    }

    /// For the match conditions of one webhook or of one binding (`RuntimeCELCostBudgetMatchConditions`).
    pub fn conditions() -> Self {
        Self(2_500_000)
    }

    /// Whether nothing is left.
    pub fn is_spent(&self) -> bool {
        self.0 == 0
    }

    /// Nothing more may be evaluated.
    pub fn stop(&mut self) {
        self.0 = 0;
    }

    pub(super) fn meter(&self) -> Meter {
        Meter { spent: 0, limit: self.0.min(PER_CALL), patterns: Vec::new() }
    }

    /// Takes what was spent; an error if that was more than there was.
    pub(super) fn take(&mut self, meter: &Meter) -> Result<(), Error> {
        match self.0.checked_sub(meter.spent) {
            Some(left) => {
                self.0 = left;
                Ok(())
            }
            None => {
                self.0 = 0;
                Err(Error::Budget)
            }
        }
    }
}

/// Counts what one evaluation costs.
#[derive(Debug)]
pub(super) struct Meter {
    spent: u64,
    limit: u64,
    /// Made in this evaluation.
    patterns: Vec<(Arc<str>, Regex)>,
}

impl Meter {
    #[cfg(test)]
    pub(super) fn spent(&self) -> u64 {
        self.spent
    }

    /// Ends the evaluation when there is not that much left.
    pub(super) fn spend(&mut self, cost: u64) -> Result<(), Stop> {
        self.spent = self.spent.saturating_add(cost);
        if self.spent > self.limit { Err(Stop::Exceeded) } else { Ok(()) }
    }

    /// For going `times` through what has this size.
    pub(super) fn traverse(&mut self, size: u64, times: u64) -> Result<(), Stop> {
        self.spend(tenth(size.saturating_mul(times)))
    }

    /// For matching a text with a regular expression.
    pub(super) fn regex(&mut self, text: &Value, pattern: &Value) -> Result<(), Stop> {
        let pattern = pattern.size().div_ceil(4);
        self.spend(tenth(text.size().saturating_add(1)).saturating_mul(pattern))
    }

    /// A regular expression; to make one is paid for beyond what upstream counts.
    pub(super) fn pattern(&mut self, text: &Arc<str>) -> Result<Regex, Stop> {
        if let Some((_, made)) = self.patterns.iter().find(|(known, _)| known == text) {
            return Ok(made.clone());
        }
        if !self.patterns.is_empty() {
            self.spend(10 * text.len() as u64)?;
        }
        let made = super::text::compiled(text)?;
        if self.patterns.len() == PATTERNS {
            self.patterns.remove(0);
        }
        self.patterns.push((text.clone(), made.clone()));
        Ok(made)
    }
}

/// A tenth, rounded up (`StringTraversalCostFactor`).
pub(super) fn tenth(size: u64) -> u64 {
    size.div_ceil(10)
}

/// What it costs to go through everything in a value (`traversalCost`).
pub(super) fn traversal(value: &Value) -> u64 {
    match value {
        Value::String(_) | Value::Bytes(_) => value.size() / 10,
        Value::List(items) => items.iter().map(traversal).sum(),
        Value::Map(map) => map.values().map(traversal).sum::<u64>() + map.len() as u64,
        _ => 1,
    }
}
