//! libFuzzer's program. `KEDGE_FUZZ_TARGET` names the target: one program for all, for each would be linked
//! with everything. See docs/development.md.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();
    TARGET.get_or_init(|| {
        let name = std::env::var("KEDGE_FUZZ_TARGET").unwrap_or_default();
        kedge_fuzz::find(&name).unwrap_or_else(|| panic!("KEDGE_FUZZ_TARGET={name:?} names no target")).run
    })(data);
});
