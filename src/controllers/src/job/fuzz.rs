//! Indexes of Jobs, for fuzz/.

use super::indexes::Indexes;

/// A list of indexes, as a Job's status has it.
pub fn indexes(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let indexes = Indexes::parse(text, 10_000);
    assert_eq!(Indexes::parse(&indexes.to_string(), 10_000), indexes);
    let _ = (indexes.total(), indexes.has(3));
}
