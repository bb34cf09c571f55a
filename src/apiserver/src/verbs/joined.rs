//! The body of a list: the stored bytes of its objects, joined piece by piece as the client takes them.
//!
//! A list of any length needs one piece of memory at a time, and a piece is still in the processor's cache
//! when it is encrypted. The length is known beforehand, so clients see an ordinary answer.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use serde_json::{Value, json};

use crate::cache::Stored;

/// A piece is at least this large, unless the list ends.
const PIECE: usize = 64 << 10;
const TAIL: &[u8] = b"]}";

/// Something with an object's JSON.
pub(crate) trait Text: Send + Unpin + 'static {
    fn text(&self) -> &[u8];
}

impl Text for Arc<Stored> {
    fn text(&self) -> &[u8] {
        &self.bytes
    }
}

impl Text for Bytes {
    fn text(&self) -> &[u8] {
        self
    }
}

/// The start of a list's JSON, up to where the first object follows.
pub(crate) fn head(kind: &str, api_version: &str, metadata: &Value) -> String {
    let head = json!({ "kind": kind, "apiVersion": api_version, "metadata": metadata }).to_string();
    format!("{},\"items\":[", head.strip_suffix('}').unwrap_or(&head))
}

pub(crate) struct Joined<T> {
    /// What is before the first object; then the comma between two.
    before: Bytes,
    objects: std::vec::IntoIter<T>,
    left: u64,
}

impl<T: Text> Joined<T> {
    /// `head` is that of [`head()`].
    pub(crate) fn new(head: impl Into<Bytes>, objects: Vec<T>) -> Self {
        let head = head.into();
        let bytes: usize = objects.iter().map(|object| object.text().len()).sum();
        let left = head.len() + bytes + objects.len().saturating_sub(1) + TAIL.len();
        Self { before: head, objects: objects.into_iter(), left: left as u64 }
    }

    fn next(&mut self) -> Bytes {
        let mut out =
            Vec::with_capacity(usize::try_from(self.left).map_or(PIECE, |left| left.min(PIECE + 4096)));
        while out.len() < PIECE {
            let Some(object) = self.objects.next() else {
                // An empty list still has its head to say.
                out.extend_from_slice(if self.before.len() > 1 { &self.before } else { b"" });
                out.extend_from_slice(TAIL);
                break;
            };
            out.extend_from_slice(&self.before);
            out.extend_from_slice(object.text());
            if self.before.len() > 1 {
                self.before = Bytes::from_static(b",");
            }
        }
        self.left = self.left.saturating_sub(out.len() as u64);
        out.into()
    }
}

impl<T: Text> Body for Joined<T> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(Frame::data(self.next()))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extract::Extracted;
    use http_body_util::BodyExt as _;

    fn stored(text: String) -> Arc<Stored> {
        Arc::new(Stored::for_test("ns/a", text.into(), Arc::new(Extracted::default())))
    }

    #[tokio::test]
    async fn the_pieces_are_the_whole_list_and_as_long_as_was_said() {
        for (count, size) in [(0, 0), (1, 5), (3, 10), (500, 1024), (3, PIECE * 2)] {
            let text = format!("\"{}\"", "x".repeat(size));
            let objects: Vec<_> = (0..count).map(|_| stored(text.clone())).collect();
            let body = Joined::new(head("List", "v1", &json!({})), objects);
            let said = body.size_hint().exact().expect("known");
            let whole = body.collect().await.expect("infallible").to_bytes();
            assert_eq!(whole.len() as u64, said, "{count} of {size}");
            let value: serde_json::Value = serde_json::from_slice(&whole).expect("JSON");
            assert_eq!(value["items"].as_array().map(Vec::len), Some(count));
        }
    }
}
