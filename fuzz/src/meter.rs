//! What an input costs: every byte that is asked of the allocator, given back or not.

use std::sync::OnceLock;

static TOTAL: OnceLock<fn() -> usize> = OnceLock::new();

/// Where a program says how much was ever allocated. Without it nothing is measured.
pub fn measure_by(total: fn() -> usize) {
    let _ = TOTAL.set(total);
}

/// Runs something whose work an input pays for: it may allocate `start` bytes, and so many for each byte of the input.
pub fn paid_by<T>(input: usize, (start, for_each): (usize, usize), run: impl FnOnce() -> T) -> T {
    let total = || TOTAL.get().map_or(0, |total| total());
    let before = total();
    let done = run();
    let spent = total().saturating_sub(before);
    let most = start + for_each * input;
    assert!(spent <= most, "{spent} bytes were allocated for an input of {input}, which pays for {most}");
    done
}
