//! One program for all targets. The variable `PIGATEWAY_FUZZ` selects the target, and the arguments are those of libFuzzer.
#![no_main]

use std::sync::OnceLock;

use pigateway_fuzz::TARGETS;

#[global_allocator]
static ALLOCATOR: cap::Cap<std::alloc::System> = cap::Cap::new(std::alloc::System, usize::MAX);

fn target() -> fn(&[u8]) {
    static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();
    *TARGET.get_or_init(|| {
        pigateway_fuzz::measure_by(|| ALLOCATOR.total_allocated());
        let wanted = std::env::var("PIGATEWAY_FUZZ").unwrap_or_default();
        match TARGETS.iter().find(|(name, _)| *name == wanted) {
            Some((_, target)) => *target,
            None => panic!("PIGATEWAY_FUZZ is to be one of {:?}", TARGETS.map(|(name, _)| name)),
        }
    })
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| target()(data));
