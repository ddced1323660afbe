//! REST and a web page over the same topics.
pub mod settings;
