//! The lines of a watch, counted and their order checked without parsing them.

use anyhow::{Context as _, ensure};
use memchr::{memchr_iter, memmem};

const REVISION: &[u8] = b"\"resourceVersion\":\"";
/// The metadata is at the end of most objects, and the revision near its end.
const NEAR: usize = 160;

/// What has come so far.
#[derive(Debug, Default)]
pub(crate) struct Events {
    /// The beginning of a line whose end has not come yet.
    begun: Vec<u8>,
    /// The revision of the last event.
    last: u64,
}

impl Events {
    /// Takes the next piece of the stream: how many events end in it.
    ///
    /// # Errors
    /// When one is not newer than the one before: lost order, or the same event twice.
    pub(crate) fn take(&mut self, piece: &[u8]) -> anyhow::Result<usize> {
        let (mut start, mut count) = (0, 0);
        for end in memchr_iter(b'\n', piece) {
            let line = &piece[start..end];
            let revision = if self.begun.is_empty() {
                revision(line)
            } else {
                self.begun.extend_from_slice(line);
                let revision = revision(&self.begun);
                self.begun.clear();
                revision
            };
            let revision = revision.context("an event without a revision")?;
            ensure!(revision > self.last, "event {revision} came after {}", self.last);
            self.last = revision;
            (start, count) = (end + 1, count + 1);
        }
        self.begun.extend_from_slice(&piece[start..]);
        Ok(count)
    }
}

fn revision(line: &[u8]) -> Option<u64> {
    let near = &line[line.len().saturating_sub(NEAR)..];
    let digits = after(near).or_else(|| after(line))?;
    let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
    std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
}

fn after(text: &[u8]) -> Option<&[u8]> {
    memmem::rfind(text, REVISION).map(|at| &text[at + REVISION.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(revisions: &[u64]) -> Vec<u8> {
        let line = |revision: &u64| {
            let object = serde_json::json!({
                "metadata": { "name": "a", "resourceVersion": revision.to_string(), "uid": "x".repeat(36) },
                "status": "y".repeat(usize::try_from(revision % 7 * 50).unwrap_or(0)),
            });
            serde_json::json!({ "type": "MODIFIED", "object": object }).to_string() + "\n"
        };
        revisions.iter().map(line).collect::<String>().into_bytes()
    }

    #[test]
    fn events_are_counted_wherever_the_stream_is_cut() {
        let stream = stream(&[3, 4, 9, 10, 123_456]);
        for size in [1, 7, 100, 150, stream.len()] {
            let mut events = Events::default();
            let counts = stream.chunks(size).map(|piece| events.take(piece).expect("in order"));
            assert_eq!(counts.sum::<usize>(), 5, "pieces of {size}");
        }
    }

    #[test]
    fn what_is_older_or_comes_twice_is_an_error() {
        for revisions in [[3, 5, 4], [3, 4, 4]] {
            assert!(Events::default().take(&stream(&revisions)).is_err(), "{revisions:?}");
        }
        assert!(Events::default().take(b"{}\n").is_err(), "no revision");
    }
}
