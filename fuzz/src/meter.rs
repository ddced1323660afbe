//! Measures the cost of an input: all bytes that are allocated, freed or not.

use std::sync::OnceLock;

static TOTAL: OnceLock<fn() -> usize> = OnceLock::new();

/// The function by which a program reports the number of all allocated bytes. Without it nothing is measured.
pub fn measure_by(total: fn() -> usize) {
    let _ = TOTAL.set(total);
}

/// Runs a function and checks its cost: it may allocate `start` bytes, plus a number of bytes for each byte of the input.
pub fn paid_by<T>(input: usize, (start, for_each): (usize, usize), run: impl FnOnce() -> T) -> T {
    let total = || TOTAL.get().map_or(0, |total| total());
    let before = total();
    let done = run();
    let spent = total().saturating_sub(before);
    let most = start + for_each * input;
    assert!(spent <= most, "{spent} bytes were allocated for an input of {input}, which pays for {most}");
    done
}
