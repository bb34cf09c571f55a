//! Random numbers from the system's generator, for names, ports and jitter.

use ring::rand::{SecureRandom, SystemRandom};

/// A number below `limit`; 0 when `limit` is 0 or the system has no randomness.
pub(crate) fn below(limit: u64) -> u64 {
    let mut bytes = [0; 8];
    if limit == 0 || SystemRandom::new().fill(&mut bytes).is_err() {
        return 0;
    }
    u64::from_le_bytes(bytes) % limit
}
