//! The pigateway program.
fn main() {}
