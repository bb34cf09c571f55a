//! What fuzz/ calls.

use crate::points::Look;

/// What a kubelet says of the resources that it has measured.
pub fn points(data: &[u8]) {
    let _ = Look::parse(&String::from_utf8_lossy(data), 1_700_000_000_000);
}
