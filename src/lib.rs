//! pigateway.
pub mod broker;
pub mod config;
pub mod http;
pub mod journal;
pub mod message;
pub mod sensors;
pub mod time;
pub mod upstream;
