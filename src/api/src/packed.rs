//! Tables that were packed into the program by `build.rs`.

use std::io::Read as _;

/// The text of a table. It stays in memory: what is parsed from it refers to it. To be called once for each.
///
/// # Panics
/// Never: the data is part of the program.
pub(crate) fn text(packed: &[u8]) -> &'static str {
    let mut text = String::new();
    flate2::read::GzDecoder::new(packed).read_to_string(&mut text).expect("packed by build.rs");
    text.leak()
}
