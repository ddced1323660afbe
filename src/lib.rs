//! pigateway.
pub mod broker;
pub mod journal;
pub mod message;
pub mod time;
