//! Sets of completion indexes as they are written into a Job's status: `1,3-5,7`
//! (upstream controller/job/indexed_job_utils.go).

use std::collections::BTreeSet;
use std::fmt;

use k8s_openapi::api::core::v1::Pod;

/// The annotation and the label that carry a pod's index.
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Indexes(pub(super) BTreeSet<i32>);

impl Indexes {
    /// Indexes at `completions` and above do not count; nor does what is no number.
    pub(super) fn parse(text: &str, completions: i32) -> Self {
        let mut set = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(first), Ok(last)) = (first.trim().parse::<i32>(), last.trim().parse::<i32>()) {
                set.extend(first.max(0)..last.saturating_add(1).min(completions));
            }
        }
        Self(set)
    }

    pub(super) fn has(&self, index: i32) -> bool {
        self.0.contains(&index)
    }

    pub(super) fn total(&self) -> i32 {
        i32::try_from(self.0.len()).unwrap_or(i32::MAX)
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.iter().copied().peekable();
        let mut separator = "";
        while let Some(first) = rest.next() {
            let mut last = first;
            while rest.next_if_eq(&(last + 1)).is_some() {
                last += 1;
            }
            write!(f, "{separator}{first}")?;
            match last - first {
                0 => {}
                1 => write!(f, ",{last}")?,
                _ => write!(f, "-{last}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

/// The index of a pod of an indexed Job.
pub(super) fn of(pod: &Pod) -> Option<i32> {
    let index: i32 = pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok()?;
    (index >= 0).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_read_and_written() {
        for (text, completions, expected) in [
            ("", 10, ""),
            ("3", 10, "3"),
            ("1,2", 10, "1,2"),
            ("1-3", 10, "1-3"),
            ("0-1,3,5-9", 10, "0,1,3,5-9"),
            ("0,1,2,3", 10, "0-3"),
            ("2-20", 5, "2-4"),
            ("7", 5, ""),
            ("x,4", 5, "4"),
        ] {
            assert_eq!(Indexes::parse(text, completions).to_string(), expected, "{text}");
        }
    }
}
