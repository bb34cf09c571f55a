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
    /// How far before its line's end it stood there, with what is around it.
    place: usize,
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
            let found = if self.begun.is_empty() {
                revision(line, self.place)
            } else {
                self.begun.extend_from_slice(line);
                let found = revision(&self.begun, self.place);
                self.begun.clear();
                found
            };
            let (revision, place) = found.context("an event without a revision")?;
            self.place = place;
            ensure!(revision > self.last, "event {revision} came after {}", self.last);
            self.last = revision;
            (start, count) = (end + 1, count + 1);
        }
        self.begun.extend_from_slice(&piece[start..]);
        Ok(count)
    }
}

/// A line's revision and how far before its end it stands. Most lines have it where the one before had it.
fn revision(line: &[u8], place: usize) -> Option<(u64, usize)> {
    let at = line.len().checked_sub(place).filter(|at| line[*at..].starts_with(REVISION));
    let at = at.or_else(|| {
        let near = line.len().saturating_sub(NEAR);
        memmem::rfind(&line[near..], REVISION).map(|at| near + at).or_else(|| memmem::rfind(line, REVISION))
    })?;
    let digits = &line[at + REVISION.len()..];
    let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
    let revision = std::str::from_utf8(&digits[..end]).ok()?.parse().ok()?;
    Some((revision, line.len() - at))
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
