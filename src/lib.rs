//! pigateway.
pub mod app;
pub mod broker;
pub mod cli;
pub mod config;
pub mod http;
pub mod journal;
pub mod message;
pub mod net;
pub mod sensors;
pub mod service;
pub mod status;
pub mod supervise;
pub mod time;
pub mod tls;
pub mod upstream;
