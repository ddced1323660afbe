//! Replays the inputs that the fuzzer has found interesting so far. `fuzz/run` looks for new ones.

#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::path::Path;

#[global_allocator]
static ALLOCATOR: cap::Cap<std::alloc::System> = cap::Cap::new(std::alloc::System, usize::MAX);

/// Runs a target on its corpus.
fn replay(name: &str, target: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut count = 0;
    for entry in std::fs::read_dir(&corpus).expect("the corpus").flatten() {
        let path = entry.path();
        let data = std::fs::read(&path).expect("an input");
        // the panic that follows shows the input
        eprintln!("{}", path.display());
        target(&data);
        count += 1;
    }
    assert!(count >= 10, "{} has {count} inputs", corpus.display());
}

/// The corpora are replayed one after the other, because the allocations of each input are measured.
#[test]
fn every_corpus_is_replayed() {
    targets::measure_by(|| ALLOCATOR.total_allocated());
    for (name, target) in targets::TARGETS {
        replay(name, target);
    }
    let corpora = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")).expect("corpora");
    assert_eq!(corpora.count(), targets::TARGETS.len(), "corpora without a target");
}
