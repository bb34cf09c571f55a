//! Everything that reads bytes from outside, as functions that a fuzzer can call: `fn(&[u8])` that must not
//! panic, and that asserts what else has to hold (what was encoded is decoded again, what a patch makes is
//! valid, and the like). Memory and time of each call are bounded by who calls it.
//!
//! Two drivers share them: `tests/mutate.rs` runs each for a moment with seeded random mutations, with no
//! tool but cargo; `fuzz_targets/decoders.rs` is libFuzzer's. `findings/TARGET/` keeps every input that ever
//! found a fault: both begin with those.
//!
//! What crates keep to themselves they show in a module `fuzz` behind the feature of that name, which nothing
//! but this crate turns on.

mod mutate;
mod shape;
mod targets;

pub use mutate::{Mutator, Random};
pub use targets::{TARGETS, Target, find};
