//! What the fuzzer has found interesting so far, replayed. New inputs come from `cargo +nightly fuzz run` in `fuzz/`.

#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::path::Path;

/// Runs a target on its corpus.
fn replay(name: &str, target: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut count = 0;
    for entry in std::fs::read_dir(&corpus).expect("the corpus").flatten() {
        let path = entry.path();
        let data = std::fs::read(&path).expect("an input");
        // the panic that follows shows which input it was
        eprintln!("{}", path.display());
        target(&data);
        count += 1;
    }
    assert!(count >= 10, "{} has {count} inputs", corpus.display());
}

#[test]
fn first_bytes() {
    replay("first_bytes", targets::first_bytes);
}

#[test]
fn packets() {
    replay("packets", targets::packets);
}

#[test]
fn configuration() {
    replay("configuration", targets::configuration);
}
